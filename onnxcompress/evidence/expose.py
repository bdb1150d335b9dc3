"""Seeing inside a graph: a clone whose outputs are intermediate values, and the shapes of all values in one run.

Values of the main graph and of branches of If (branches.py): what Loop and Scan bodies compute leaves them only through their outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress.errors import ModelError, nearest
from onnxcompress.evidence.branches import hand_out, inside
from onnxcompress.model import Model
from onnxcompress.model.edit import bodies_of, walk
from onnxcompress.model.wiring import drop_unread
from onnxcompress.runtime.loose import Loose, loose
from onnxcompress.runtime.memory import give_back
from onnxcompress.runtime.session import Session, open_session

UNREADABLE = {ir.DataType.BFLOAT16, ir.DataType.STRING}
"""Element types that onnxruntime does not hand over as numbers."""


@dataclass(frozen=True)
class Exposed:
    """A model that answers with inner values.

    model     for `open_session`         outputs   the values that it gives, in the order asked for
    left_out  value -> why it is not among them
    """

    model: Loose
    outputs: tuple[str, ...]
    left_out: Mapping[str, str]


def exposed(model: Model, values: Sequence[str]) -> Exposed:
    """A clone of the graph whose outputs are these values, and nothing that they do not need.

    Its inputs are all those of the model. ModelError, with the nearest name, for a value that is nowhere in the model.
    """
    graph = model.ir.clone()
    hand_out(graph, values)
    found, left_out = _sorted_out(graph, values)
    answer(graph, found)
    return Exposed(loose(graph), tuple(value.name or "" for value in found), left_out)


def hidden(model: Model, values: Sequence[str]) -> dict[str, str]:
    """Those of the values that no run over data shows, and why: in bodies of loops, constants, no numbers. Inputs are seen.

    ModelError, with the nearest name, for a value that is nowhere in the model.
    """
    seen = {value.name for value in model.ir.graph.inputs} | inside(model.ir).keys()
    return _sorted_out(model.ir, [name for name in values if name not in seen])[1]


def run_shapes(
    model: Model, feeds: Mapping[str, np.ndarray], values: Iterable[str] | None = None
) -> dict[str, tuple[int, ...]]:
    """The shape of every value of the main graph (or of those named) in one run, inputs and constants too.

    Each value gets a Shape node, so activations are freed as the run goes on and only shapes come out. Missing are
    sequences and other values that are no tensors, outputs that nothing reads, values in Loop and Scan bodies; those in branches
    of If are there where they are named, without entries where another branch was taken.
    """
    wanted = None if values is None else set(values)
    graph = model.ir.clone()
    hand_out(graph, wanted or ())
    kept = _with_shape_nodes(graph, wanted)
    found = _known_shapes(model, feeds)
    if kept:
        watched = Watched(model, _as_it_stands(model, loose(graph)), kept)
        found = watched.shapes(feeds)
        del watched
        give_back()
    return {name: shape for name, shape in found.items() if wanted is None or name in wanted}


@dataclass(frozen=True, eq=False)
class Watched:
    """A session that answers as the model does, and tells the shapes of its values when it is asked for them.

    kept  output of the session -> the value that it is the shape of
    """

    model: Model
    session: Session
    kept: Mapping[str, str]

    @classmethod
    def of(cls, model: Model, threads: int = 1) -> Watched:
        """Of all values."""
        values = [value.name or "" for value in _computed(model.ir) if value.uses() or value.is_graph_output()]
        kept = {f"onnxcompress.shape.{number}": name for number, name in enumerate(values)}

        def told(graph: onnx.GraphProto) -> None:
            for shape, name in kept.items():
                graph.node.add(op_type="Shape", name=shape, input=[name], output=[shape])
                graph.output.add(name=shape).type.tensor_type.elem_type = onnx.TensorProto.INT64

        outputs = [value.name or "" for value in model.ir.graph.outputs]
        return cls(model, _as_it_stands(model, loose(model.ir, told), outputs, threads), kept)

    def shapes(self, feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
        """As `run_shapes`."""
        shown = self.session.run(feeds, list(self.kept)) if self.kept else {}
        return _known_shapes(self.model, feeds) | {self.kept[n]: tuple(map(int, shape)) for n, shape in shown.items()}


def _as_it_stands(model: Model, graph: Loose, outputs: Sequence[str] | None = None, threads: int = 1) -> Session:
    """Not optimised: it loads faster, and folding constants would run once more what is run only once."""
    return open_session(
        graph,
        threads=threads,
        optimise=False,
        outputs=outputs,
        early=True,
        as_given=True,
        name=model.source.name,
    )


def _known_shapes(model: Model, feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Of inputs and constants."""
    shapes = {name: np.shape(array) for name, array in feeds.items()}
    for name, value in model.initializers.items():
        if value.const_value is not None:
            shapes[name] = tuple(value.const_value.shape.numpy())
    return shapes


def _with_shape_nodes(graph: ir.Model, wanted: set[str] | None) -> dict[str, str]:
    """Make the shapes of these values (None: of all that something reads) the outputs; output -> value."""
    kept: dict[str, str] = {}
    outputs = []
    for value in _computed(graph):
        if value.name in wanted if wanted is not None else (value.uses() or value.is_graph_output()):
            name = f"onnxcompress.shape.{len(kept)}"
            node = ir.node("Shape", [value], name=name)
            node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.INT64)
            graph.graph.append(node)
            outputs.append(node.outputs[0])
            kept[name] = value.name or ""
    answer(graph, outputs)
    return kept


def answer(graph: ir.Model, outputs: Sequence[ir.Value]) -> None:
    """Make these the outputs, and drop what they do not need."""
    graph.graph.outputs.clear()
    graph.graph.outputs.extend(outputs)
    drop_unread(graph)


def _computed(graph: ir.Model) -> list[ir.Value]:
    """The tensors that nodes of the main graph give; those of unknown type (custom operators) are taken for tensors."""
    return [
        value
        for node in graph.graph
        for value in node.outputs
        if value.name and (value.type is None or isinstance(value.type, ir.TensorType))
    ]


def _sorted_out(graph: ir.Model, values: Sequence[str]) -> tuple[list[ir.Value], dict[str, str]]:
    """Those that can be outputs, and the reason for each of the others."""
    computed = {value.name or "": value for value in _computed(graph)}
    within = "it lies in the body of a Loop or Scan"
    reasons = {value.name or "": within for node in walk(graph) for value in (*node.outputs, *_body_inputs(node))}
    reasons |= {value.name or "": "it is not a tensor" for node in graph.graph for value in node.outputs}
    reasons |= {value.name or "": "it is an input: the feed holds it" for value in graph.graph.inputs}
    reasons |= {name: "it is a constant" for name in graph.graph.initializers}
    found, left_out = [], {}
    for name in dict.fromkeys(values):
        value = computed.get(name)
        if value is not None and value.dtype not in UNREADABLE:
            found.append(value)
        elif value is not None:
            left_out[name] = f"its type is {value.dtype}"
        elif name in reasons:
            left_out[name] = reasons[name]
        else:
            raise ModelError(f"no value of the graph is called {name!r}; {nearest(name, reasons)}")
    return found, left_out


def _body_inputs(node: ir.Node) -> list[ir.Value]:
    return [value for attribute in node.attributes.values() for body in bodies_of(attribute) for value in body.inputs]
