"""What a layer multiplies, as rows [groups, n, k] at some of its positions: one function for each form of layer.

k is (in/groups)·kernel in the order of the Layer view, so that rows times its matrix, plus the bias, is the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, product
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxcompress.evidence.paired import Shelf
from onnxcompress.operators.layer import Layer
from onnxcompress.passes.refit.solver import Held, Sums

PIECE_BYTES = 32 << 20
"""Rows made at once, in float64: a Gram matrix takes them in piece by piece."""

FOLDS = 5
"""Parts of the rows. With one part as the judge the outcome hung on which: 6.9 to 9.1 dB on one model."""

FOLD_BYTES = 256 << 20
"""For the Gram matrices of parts that judge; a layer too wide for several has one judge."""

Places = tuple[np.ndarray, ...]
"""Index arrays [n]: sample, then one a spatial axis."""


class Adding(Protocol):
    """Sums, or what else takes rows in."""

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Rows [groups, n, k] and what they should become [groups, n, out]."""
        ...


def gathered(
    node: ir.Node, layer: Layer, fed: Shelf, goal: Iterable[np.ndarray], most: int, seed: int
) -> tuple[Sums, Sums]:
    """Sums over most of the rows, to fit on, and over a fifth of them, which judges; the arguments of `spread`."""
    fit, judge = Sums(), Sums()
    spread([judge] + [fit] * (FOLDS - 1), node, layer, fed, goal, most, seed)
    return fit, judge


def folded(
    node: ir.Node, layer: Layer, fed: Shelf, goal: Iterator[np.ndarray], most: int, seed: int, columns: tuple[int, int]
) -> tuple[Sums, list[Sums]] | tuple[Held, list[Held]]:
    """Sums over rows that only fit, and over parts that each judge the fit of all others; the arguments of `spread`.

    columns  groups and k of the rows: their Gram matrices decide how many parts there is room for
    Where rows are fewer than columns they are held as they are.
    """
    groups, k = columns
    few, goal = fewer(node, layer, len(fed), goal, most, k)
    if few:
        held = [Held() for _ in range(FOLDS)]
        spread(held, node, layer, fed, goal, most, seed)
        return Held(), [part for part in held if part.count]
    room = max(1, min(FOLDS, FOLD_BYTES // (8 * groups * k * k)))
    rest, judges = Sums(), [Sums() for _ in range(room)]
    spread(judges + [rest] * (FOLDS - room), node, layer, fed, goal, most, seed)
    return rest, [judge for judge in judges if judge.count]


def fewer(
    node: ir.Node, layer: Layer, batches: int, goal: Iterator[np.ndarray], most: int, columns: int
) -> tuple[bool, Iterator[np.ndarray]]:
    """Does `spread` give at most as many rows as there are columns? And the goals, of which one was looked at."""
    first = next(goal)
    places = int(np.prod(FORMS[layer.op][0](node, layer, first).shape[:-1]))
    return min(places, most // batches) * batches <= columns, chain([first], goal)


def spread(
    parts: Sequence[Adding],
    node: ir.Node,
    layer: Layer,
    fed: Shelf,
    goal: Iterable[np.ndarray],
    most: int,
    seed: int,
) -> None:
    """Add at most `most` rows to these sums in turn: a batch to each, since rows of one sample are alike; rows where there is one batch.

    fed, goal  batch by batch, what the layer is fed and what it should put out      seed  which positions are drawn
    """
    rng = np.random.default_rng(seed)
    share = max(1, most // len(fed))
    for number, (x, y) in enumerate(zip(fed, goal, strict=True)):
        for taken, wanted in rows(node, layer, x, y, share, rng):
            if len(fed) > 1:
                parts[number % len(parts)].add(taken, wanted)
                continue
            for first, part in enumerate(parts[: taken.shape[1]]):
                part.add(taken[:, first :: len(parts)], wanted[:, first :: len(parts)])


def rows(
    node: ir.Node, layer: Layer, x: np.ndarray, y: np.ndarray, most: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows [groups, n, k] and goals [groups, n, out/groups] of at most `most` positions drawn from one batch, in pieces.

    x, y  what the layer is fed and what it should put out
    """
    last, read = FORMS[layer.op]
    y_last, x_last = last(node, layer, y), last(node, layer, x)
    count = int(np.prod(y_last.shape[:-1]))
    chosen = np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))
    width = x_last.shape[-1] * int(np.prod(_kernel(node) if read is not _fed else [1]))
    for piece in np.array_split(chosen, max(1, -(-len(chosen) * width * 8 // PIECE_BYTES))):
        places = np.unravel_index(piece, y_last.shape[:-1])
        goal = y_last[places].astype(np.float64)
        taken = read(node, x_last, y_last, places).astype(np.float64)
        yield by_group(taken, layer.groups), by_group(goal[:, :, None], layer.groups)


def by_group(values: np.ndarray, groups: int) -> np.ndarray:
    """[n, channels, kernel] -> [groups, n, channels/groups · kernel]."""
    count, channels, kernel = values.shape
    return np.moveaxis(values.reshape(count, groups, channels // groups * kernel), 1, 0)


# -- matrix products -----------------------------------------------------------------------------------------------


def on_left(node: ir.Node, layer: Layer) -> bool:
    """Does the weight stand on the left of a product?"""
    return node.inputs[0] is not None and node.inputs[0].name == layer.weight


def _features_last(node: ir.Node, layer: Layer, array: np.ndarray) -> np.ndarray:
    """A weight on the left multiplies columns; a vector is one row."""
    if array.ndim == 1:
        return array[None]
    return array.swapaxes(-1, -2) if on_left(node, layer) else array


def _fed(node: ir.Node, x: np.ndarray, y: np.ndarray, places: Places) -> np.ndarray:
    return x[places][:, :, None]


# -- convolutions --------------------------------------------------------------------------------------------------


def _channels_last(node: ir.Node, layer: Layer, array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1)


def _under_kernel(node: ir.Node, x: np.ndarray, y: np.ndarray, places: Places) -> np.ndarray:
    """[n, in, kernel]: tap t of output position p meets the input at p · stride + t · dilation − padding."""
    sizes, out, strides, dilations = x.shape[1:-1], y.shape[1:-1], _ints(node, "strides"), _ints(node, "dilations")
    whole = [
        (o - 1) * stride + (k - 1) * dilation + 1 - size
        for o, size, k, stride, dilation in zip(out, sizes, _kernel(node), strides, dilations, strict=True)
    ]
    begins = _begins(node, whole)

    def at(axis: int, tap: int) -> np.ndarray:
        return places[axis + 1] * strides[axis] + tap * dilations[axis] - begins[axis]

    return _taps(x, places[0], _kernel(node), at)


def _over_kernel(node: ir.Node, x: np.ndarray, y: np.ndarray, places: Places) -> np.ndarray:
    """[n, in, kernel]: tap t reaches output position p from the input at (p + padding − t · dilation) / stride, where whole."""
    sizes, out, strides, dilations = x.shape[1:-1], y.shape[1:-1], _ints(node, "strides"), _ints(node, "dilations")
    extra = _ints(node, "output_padding", 0)
    whole = [
        (size - 1) * stride + more + (k - 1) * dilation + 1 - o
        for o, size, k, stride, dilation, more in zip(out, sizes, _kernel(node), strides, dilations, extra, strict=True)
    ]
    begins = _begins(node, whole)

    def at(axis: int, tap: int) -> np.ndarray:
        distance = places[axis + 1] + begins[axis] - tap * dilations[axis]
        return np.where(distance % strides[axis] == 0, distance // strides[axis], -1)

    return _taps(x, places[0], _kernel(node), at)


def _taps(
    x: np.ndarray, samples: np.ndarray, kernel: Sequence[int], at: Callable[[int, int], np.ndarray]
) -> np.ndarray:
    """[n, in, kernel]: for each tap, x [samples, *spatial, in] at `at(axis, tap)`; zero outside."""
    found = []
    for tap in product(*(range(size) for size in kernel)):
        index = [at(axis, t) for axis, t in enumerate(tap)]
        inside = np.logical_and.reduce([(i >= 0) & (i < size) for i, size in zip(index, x.shape[1:-1], strict=True)])
        met = x[(samples, *(np.where(inside, i, 0) for i in index))]
        met[~inside] = 0
        found.append(met)
    return np.stack(found, axis=-1)


def _begins(node: ir.Node, whole: Sequence[int]) -> list[int]:
    """Padding at the beginning of each axis; `whole` is that of both ends together where the operator works it out."""
    mode = node.attributes.get_string("auto_pad") or "NOTSET"
    computed = mode.startswith("SAME") or "output_shape" in node.attributes
    if not computed:
        return _ints(node, "pads", 0)[: len(whole)] if mode == "NOTSET" else [0] * len(whole)
    later = mode == "SAME_LOWER" if node.op_type == "Conv" else mode != "SAME_UPPER"
    return [(max(both, 0) + later) // 2 for both in whole]


def _kernel(node: ir.Node) -> list[int]:
    return [int(str(size)) for size in node.inputs[1].shape[2:]]  # type: ignore[union-attr,index]


def _ints(node: ir.Node, name: str, default: int = 1) -> list[int]:
    """An attribute with one number a spatial axis (pads: two)."""
    given = node.attributes.get_ints(name)
    return list(given) if given else [default] * (len(_kernel(node)) * (2 if name == "pads" else 1))


# -- the table -----------------------------------------------------------------------------------------------------

Form = tuple[Callable[[ir.Node, Layer, np.ndarray], np.ndarray], Callable[..., np.ndarray]]

FORMS: dict[str, Form] = {
    "Conv": (_channels_last, _under_kernel),
    "ConvTranspose": (_channels_last, _over_kernel),
    "Gemm": (_features_last, _fed),
    "MatMul": (_features_last, _fed),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (_features_last, _fed)),
    "BatchNormalization": (_channels_last, _fed),
}
"""Operator -> how its channels come to the last axis, and what it multiplies at given positions, [n, in, kernel]."""
