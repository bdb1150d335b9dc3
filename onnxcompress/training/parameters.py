"""Which constants of a graph are parameters, and one flat buffer that holds what trains of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import ModelError, SettingError, nearest
from onnxcompress.model import Model
from onnxcompress.model.edit import coded_of, constant_of, set_coded, set_constant, walk
from onnxcompress.model.save import written_as
from onnxcompress.model.twins import twins
from onnxcompress.training.derivatives import key_of
from onnxcompress.training.halves import widened
from onnxcompress.training.integers import Limit, in_floats
from onnxcompress.training.kept import Dense, Kept, form_of

WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "Einsum": (0, 1, 2, 3),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    **dict.fromkeys(("com.microsoft.FusedConv", "com.microsoft.Attention"), (1, 2)),
    "com.microsoft.FusedMatMul": (0, 1),
    "com.microsoft.MultiHeadAttention": (3,),
    **dict.fromkeys(("com.microsoft.BiasGelu", "com.microsoft.FastGelu"), (1,)),
    "com.microsoft.SkipLayerNormalization": (2, 3, 4),
    "com.microsoft.SkipSimplifiedLayerNormalization": (2, 3),
    "PRelu": (1,),
    "Gather": (0,),
}
"""Operator -> the inputs that hold weights, whatever their size."""

VECTORS = ("Add", "Sub", "Mul", "Div")
"""Operators whose constant is a weight where it holds more than one number: x / 6 of a hard-swish is none."""


MOVES = ("Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that only move entries: exporters compute a recurrent layer's weights with them from those of the framework."""


def _moved_from(value: ir.Value | None) -> list[ir.Value]:
    """The constants that a value is, or is put together from; none where anything else takes part."""
    if value is None or value.const_value is not None:
        return [] if value is None else [value]
    node = value.producer()
    if node is None or node.domain or node.op_type not in MOVES:
        return []
    parts = [_moved_from(each) for each in (node.inputs if node.op_type == "Concat" else node.inputs[:1])]
    return [each for part in parts for each in part] if all(parts) else []


def _size(value: ir.Value | None) -> int:
    """How many numbers a constant has; 0 for what is none."""
    return 0 if value is None or value.const_value is None else int(value.const_value.size)


def parameters_of(model: Model, frozen: Sequence[str] = ()) -> list[str]:
    """Names of the trainable constants, in the order of their readers, without those that a pattern of `frozen` matches.

    A pattern stands for names of constants or of nodes, whose constants it freezes. SettingError for a pattern that matches
    nothing, ModelError where nothing is left to train.
    """
    readers: dict[str, list[str]] = {}
    for node in walk(model.ir):
        key = key_of(node)
        for index, value in enumerate(node.inputs):
            if index in WEIGHTS.get(key, ()):
                found = _moved_from(value)
            else:
                found = [value] if key in VECTORS and value is not None and _size(value) > 1 else []
            for each in found:
                tensor, name = each.const_value, each.name
                if name and name in model.initializers and tensor is not None and tensor.dtype.is_floating_point():
                    readers.setdefault(name, []).append(node.name or "")
    known = {*readers, *(name for names in readers.values() for name in names)}
    for pattern in frozen:
        if not fnmatch.filter(known, pattern):
            raise SettingError(f"--freeze {pattern!r} matches no weight and no node; {nearest(pattern, known)}")
    left = [
        name
        for name, nodes in readers.items()
        if not any(fnmatch.fnmatchcase(each, pattern) for pattern in frozen for each in (name, *nodes))
    ]
    if not left:
        raise ModelError(
            f"{model.source.name}: nothing in it can be trained: "
            + (
                "all weights are frozen"
                if readers
                else "no operator that is known to hold weights reads a constant of floats"
            )
        )
    return left


@dataclass(frozen=True)
class Layout:
    """Arrays end to end in one buffer of float32. shapes: by name, in order."""

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: Model, names: Sequence[str]) -> Layout:
        """Of these initializers."""
        return cls({name: tuple(model.array(name).shape) for name in names})

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Begin and end of each array."""
        ends = np.cumsum([prod(shape) for shape in self.shapes.values()]).tolist()
        return list(zip([0, *ends], ends, strict=False))

    @property
    def size(self) -> int:
        """Numbers in all."""
        return self.bounds[-1][1] if self.shapes else 0

    def views(self, buffer: np.ndarray) -> dict[str, np.ndarray]:
        """Each array as a view into the buffer."""
        places = zip(self.shapes.items(), self.bounds, strict=True)
        return {name: buffer[first:last].reshape(shape) for (name, shape), (first, last) in places}

    def gathered(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """A new buffer with copies of the arrays."""
        buffer = np.empty(self.size, np.float32)
        for name, view in self.views(buffer).items():
            view[...] = arrays[name]
        return buffer

    @property
    def matrices(self) -> np.ndarray:
        """[size]: 1 for entries of arrays with two axes or more that are longer than one, else 0: biases and norms do not decay."""
        mask = np.zeros(self.size, np.float32)
        for (first, last), shape in zip(self.bounds, self.shapes.values(), strict=True):
            mask[first:last] = sum(size > 1 for size in shape) > 1
        return mask


@dataclass(frozen=True, eq=False)
class Parameters:
    """What the step graph takes, computed from what trains.

    model   the student with floats where it has integers
    forms   of each parameter that trains     twins   a matrix -> the parameter whose transpose it is: they train as one
    layout  of the parts of all forms, PARAMETER or PARAMETER/PART
    """

    model: Model
    forms: Mapping[str, Kept]
    twins: Mapping[str, str]
    layout: Layout

    @classmethod
    def of(
        cls,
        model: Model,
        frozen: Sequence[str] = (),
        *,
        keep: bool = False,
        move: bool = False,
        guesses: Mapping[str, np.ndarray] | None = None,
        limits: Mapping[str, Limit] | None = None,
    ) -> Parameters:
        """frozen: what `parameters_of` takes; keep: tensors stay coded, and zeros zero; move: symbols may change, guesses are the
        weights that they may stand for. Integers stay integers, asked or not; limits: what kernels ask of them."""
        model, integers = in_floats(widened(model), limits)
        names = parameters_of(model, frozen)
        tied = {name: first for name, first in twins(model.ir).items() if name in names and first in names}
        forms: dict[str, Kept] = {}
        for name in names:
            if name in tied:
                continue
            array, coded = model.array(name), written_as(model.initializers[name])
            if name in integers:
                forms[name] = integers[name]
                continue
            forms[name] = form_of(array, coded, move=move, guess=(guesses or {}).get(name)) if keep else Dense(array)
        shapes = {_part(name, p): a.shape for name, form in forms.items() for p, a in form.start().items()}
        return cls(model, forms, tied, Layout(shapes))

    def start(self) -> np.ndarray:
        """The buffer before the first update."""
        return self.layout.gathered(
            {_part(n, p): array for n, form in self.forms.items() for p, array in form.start().items()}
        )

    def arrays(self, buffer: np.ndarray) -> dict[str, np.ndarray]:
        """Each parameter of the graph."""
        found = {name: form.values(parts) for name, form, parts in self._parts(buffer)}
        return found | {name: np.ascontiguousarray(found[first].T) for name, first in self.twins.items()}

    def gather(self, total: np.ndarray, gradients: Mapping[str, np.ndarray], share: float, buffer: np.ndarray) -> None:
        """Add a share of the gradients of the graph's parameters to those of what trains, in `total`."""
        whole = dict(gradients)
        for name, first in self.twins.items():
            whole[first] = whole[first] + whole[name].T
        into = self.layout.views(total)
        for name, form, parts in self._parts(buffer):
            for part, gradient in form.pull(whole[name], parts).items():
                into[_part(name, part)] += gradient if share == 1 else np.float32(share) * gradient

    def settle(self, buffer: np.ndarray) -> None:
        """After an update, in place."""
        for _, form, parts in self._parts(buffer):
            form.settle(parts)

    def write(self, graph: ir.Model, buffer: np.ndarray) -> None:
        """All parameters into a graph, in the forms that they came in."""
        for name, form, parts in self._parts(buffer):
            form.write(graph, name, parts)
        for name, first in self.twins.items():
            _transpose(graph, name, first)

    def _parts(self, buffer: np.ndarray) -> Iterator[tuple[str, Kept, dict[str, np.ndarray]]]:
        views = self.layout.views(buffer)
        for name, form in self.forms.items():
            yield name, form, {part: views[_part(name, part)] for part in form.parts}

    @cached_property
    def decays(self) -> np.ndarray:
        """[size]: 1 where weight decay may shrink a number: entries of matrices that are no book."""
        mask = self.layout.matrices
        allowed = {_part(name, part) for name, form in self.forms.items() for part in form.decays}
        for (first, last), name in zip(self.layout.bounds, self.layout.shapes, strict=True):
            if name not in allowed:
                mask[first:last] = 0
        return mask


def _transpose(graph: ir.Model, name: str, first: str) -> None:
    """Parameter `name` becomes the other one transposed, its symbols too where each stands for one weight."""
    value = graph.graph.initializers[first]
    coded, values = coded_of(value), constant_of(value)
    assert values is not None
    if coded is not None and coded.width == 1:
        set_coded(graph, name, coded.transposed())
    else:
        set_constant(graph, name, values.T)


def _part(name: str, part: str) -> str:
    return f"{name}/{part}" if part else name
