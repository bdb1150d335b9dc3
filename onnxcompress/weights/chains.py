"""Reading back what `forms.py` writes: chains of nodes on constants, decoded to the dense tensor and its Coded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import ModelError
from onnxcompress.weights import paths
from onnxcompress.weights.coded import MOST_ENTRIES, Coded, per_slice, per_tensor, vectors_of

SMALLEST = 16
"""Weights of a tensor that is looked at: what has fewer is a shape or a scale."""

LARGEST = 1 << 31
"""Bytes of a tensor that a chain may make, of each number that it computes on the way."""

SYMBOLS = {ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.UINT2}


Evaluate = Callable[[ir.Node, Sequence[np.ndarray]], "np.ndarray | list[np.ndarray]"]


def _cumulated(node: ir.Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    values, axis = arrays[0], int(arrays[1].item())
    found = np.cumsum(values, axis=axis, dtype=values.dtype)
    return found - values if node.attributes.get_int("exclusive", 0) else found


def _scattered(node: ir.Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    values = arrays[0].copy()
    np.put_along_axis(values, arrays[1].astype(np.int64), arrays[2], node.attributes.get_int("axis", 0) or 0)
    return values


def _sliced(node: ir.Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    starts, ends = (each.reshape(-1).tolist() for each in arrays[1:3])
    axes = arrays[3].reshape(-1).tolist() if len(arrays) > 3 else range(len(starts))
    places = dict(zip(axes, zip(starts, ends, strict=True), strict=True))
    return arrays[0][tuple(slice(*places.get(axis, (None, None))) for axis in range(arrays[0].ndim))]


def _expanded(node: ir.Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    sizes = tuple(arrays[1].reshape(-1).tolist())
    _fits(prod(sizes) * arrays[0].itemsize)
    return np.broadcast_to(arrays[0], np.broadcast_shapes(arrays[0].shape, sizes))


def _gathered(node: ir.Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    axis = node.attributes.get_int("axis", 0) or 0
    _fits(arrays[1].size * (arrays[0].nbytes // max(arrays[0].shape[axis], 1)))
    return np.take(arrays[0], arrays[1].astype(np.int64), axis=axis)


def _spread(compute: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Evaluate:
    """Of two arrays that stretch to one shape."""

    def evaluated(node: ir.Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
        _fits(prod(np.broadcast_shapes(arrays[0].shape, arrays[1].shape)) * arrays[0].itemsize)
        return compute(arrays[0], arrays[1])

    return evaluated


def _quotient(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of whole numbers from zero on, which is all that decoding divides."""
    if one.dtype.kind not in "iu" or one.min(initial=0) < 0 or other.min(initial=1) < 1:
        raise ValueError("a division that no form of weights needs")
    return one // other


def _where(node: ir.Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    _fits(prod(np.broadcast_shapes(*(each.shape for each in arrays))) * arrays[1].itemsize)
    return np.where(arrays[0], arrays[1], arrays[2])


def _divided(node: ir.Node, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    sizes = arrays[1].reshape(-1)
    axis = node.attributes.get_int("axis", 0) or 0
    if sizes.min(initial=0) < 0 or sizes.sum() != arrays[0].shape[axis] or len(sizes) != len(node.outputs):
        raise ValueError("parts that do not add up")
    return np.split(arrays[0], np.cumsum(sizes)[:-1], axis)


def _padded(node: ir.Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    sides = arrays[1].reshape(2, arrays[0].ndim).T.tolist()
    if len(arrays) > 2 or node.attributes.get_string("mode", "constant") != "constant":
        raise ValueError("padding that no form of weights needs")
    _fits(prod(size + sum(side) for size, side in zip(arrays[0].shape, sides, strict=True)) * arrays[0].itemsize)
    return np.pad(arrays[0], sides)


def _fits(size: int) -> None:
    if size > LARGEST:
        raise ModelError(
            f"its weights decode to {size / 1e9:.1f} GB in one tensor, more than {LARGEST / 1e9:.0f} are not read"
        )


EVALUATE: dict[str, Evaluate] = {
    "Cast": lambda node, arrays: arrays[0].astype(ir.DataType(node.attributes.get_int("to", 1)).numpy()),
    "Gather": _gathered,
    "Reshape": lambda node, arrays: arrays[0].reshape(arrays[1].tolist()),
    "Transpose": lambda node, arrays: arrays[0].transpose(node.attributes.get_ints("perm")),
    "Mul": _spread(np.multiply),
    "Add": _spread(np.add),
    "Sub": _spread(np.subtract),
    "Mod": _spread(np.mod),
    "Div": _spread(_quotient),
    "Pad": _padded,
    "BitShift": _spread(np.right_shift),
    "Where": _where,
    "Split": _divided,
    "Concat": lambda node, arrays: np.concatenate(arrays, axis=node.attributes.get_int("axis", 0) or 0),
    "Slice": _sliced,
    "Expand": _expanded,
    "CumSum": _cumulated,
    "ScatterElements": _scattered,
}
"""Operators of decoding chains, as onnxruntime computes them."""

INNER = {"BitShift", "Mod", "Div", "CumSum", "ScatterElements", "Where", "Sub", "Split", "Concat"}
"""Operators whose operands nobody asks for again once they are computed: not those that look up in books."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """values: the dense tensor      coded: how they are coded, None where no book was found"""

    values: np.ndarray
    coded: Coded | None


def decoded(graph: ir.Graph) -> dict[ir.Value, Decoded]:
    """Values that a chain makes of symbols and books, and which other nodes read. The graph stays as it is.

    ModelError where a chain breaks ONNX's rules.
    """
    chain: dict[ir.Value, bool] = {}
    for node in graph:
        if not node.domain and node.op_type in EVALUATE and all(_constant(value, chain) for value in node.inputs):
            symbols = any(
                _holds_symbols(value) or chain.get(value, False) for value in node.inputs if value is not None
            )
            chain |= dict.fromkeys(node.outputs, symbols)
    found: dict[ir.Value, Decoded] = {}
    shared: dict[ir.Value, np.ndarray] = {}
    for value, symbols in chain.items():
        read = any(user.outputs[0] not in chain for user, _ in value.uses())
        if symbols and read and not value.is_graph_output() and _gathers(value):
            memory = dict(shared)
            values = _evaluated(value, memory)
            shared |= {made: array for made, array in memory.items() if _is_part(made)}
            if values.dtype.kind == "f" and values.size >= SMALLEST:
                coded = _coded(value, memory)
                same = coded is not None and np.array_equal(coded.decode(), values)
                found[value] = Decoded(
                    values, replace(coded, form=_form(value, coded)) if coded is not None and same else None
                )
    return found


def _constant(value: ir.Value | None, chain: dict[ir.Value, bool]) -> bool:
    return value is not None and (value.const_value is not None or value in chain)


def _holds_symbols(value: ir.Value | None) -> bool:
    tensor = None if value is None else value.const_value
    return tensor is not None and tensor.dtype in SYMBOLS and tensor.size >= SMALLEST


def _evaluated(value: ir.Value, memory: dict[ir.Value, np.ndarray]) -> np.ndarray:
    """The numbers of a chain; nodes without recursion, since a damaged file may hold a long one."""
    pending = [value]
    while pending:
        each = pending[-1]
        node = each.producer()
        if each in memory or each.const_value is not None or node is None:
            if each not in memory and each.const_value is not None:
                memory[each] = each.const_value.numpy()
            pending.pop()
            continue
        missing = [read for read in node.inputs if read is not None and read not in memory]
        if missing:
            pending.extend(missing)
            continue
        try:
            made = EVALUATE[node.op_type](node, [memory[read] for read in node.inputs if read is not None])
            memory |= dict(zip(node.outputs, made if isinstance(made, list) else [made], strict=True))
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise ModelError(f"{node.op_type} {node.name!r}: its weights cannot be decoded: {error}") from error
        for read in node.inputs if node.op_type in INNER else ():
            if read is not None and len(read.uses()) == 1:
                del memory[read]
        pending.pop()
    return memory[value]


def _is_part(value: ir.Value) -> bool:
    """Does it come out of a Split, which decodes several tensors at once?"""
    node = value.producer()
    return node is not None and node.op_type == "Split"


def _coded(value: ir.Value, memory: dict[ir.Value, np.ndarray]) -> Coded | None:
    """How the values of a chain are coded; None where they are not in a book, up to one factor a slice."""
    top = value.producer()
    if top is not None and top.op_type == "Transpose":
        inner = None if top.inputs[0] is None else _coded(top.inputs[0], memory)
        turned = inner is not None and inner.width == 1 and list(top.attributes.get_ints("perm") or ()) == [1, 0]
        return inner.transposed() if inner is not None and turned else None
    scales = None
    if top is not None and top.op_type == "Mul":
        parts = [each for each in top.inputs if each is not None]
        factors = [each for each in parts if _is_factor(each)]
        if len(factors) == 1:
            scales = _evaluated(factors[0], memory)
            value = parts[1 - parts.index(factors[0])]
    values = _evaluated(value, memory)
    found = paths.read(_chain(value), memory, values.shape)
    if found is None:
        found = next((c for node in _gathers(value) if (c := _looked_up(values, node, memory)) is not None), None)
    return found if found is None or scales is None else _factored(found, scales)


def _factored(coded: Coded, scales: np.ndarray) -> Coded | None:
    """With a factor for each slice along the one axis that has several."""
    if scales.ndim != len(coded.shape):
        return None
    axis = next((number for number, size in enumerate(scales.shape) if size > 1), coded.axis)
    bound = coded.groups is not None or coded.states > 1
    if scales.size not in (1, coded.shape[axis]) or (bound and axis != coded.axis):
        return None
    spread = np.broadcast_to(scales.reshape(-1), (coded.shape[axis],)).copy()
    return replace(coded, scales=spread, axis=axis)


def _form(value: ir.Value, coded: Coded) -> str:
    """The key of `forms.FORMS` that the nodes of a chain belong to."""
    nodes = _chain(value)
    kinds = {read.dtype for node in nodes for read in node.inputs if read is not None}
    if any(node.op_type == "ScatterElements" for node in nodes):
        numbers = [_gathers_numbers(node) for node in nodes if node.op_type == "Mul"]
        levels = any(node.op_type == "Where" for node in nodes)
        return "sparse" if any(numbers) else "huffman" if levels else "tunstall"
    if kinds & {ir.DataType.UINT4, ir.DataType.UINT2}:
        return "uint4" if ir.DataType.UINT4 in kinds else "uint2"
    tables = {node.inputs[0] for node in nodes if node.op_type == "Gather"}
    tables = {made for each in tables if (made := _cast(each)) is not None and made.dtype in SYMBOLS}
    stored = [each for node in nodes if (each := _cast(node.outputs[0])) is not None and each.const_value is not None]
    shapes = [each.const_value.shape for each in stored if each not in tables]  # type: ignore[union-attr]
    whole = coded.shape if coded.width == 1 else (len(coded.symbols),)
    return "planes" if len(tables) > 1 else "bytes" if whole in shapes else "packed"


def _gathers_numbers(node: ir.Node) -> bool:
    """Is it a product of numbers of entries?"""
    made = [value.producer() for value in node.inputs if value is not None]
    return len(made) == 2 and all(each is not None and each.op_type == "Gather" for each in made)


def _cast(value: ir.Value | None) -> ir.Value | None:
    """What a Cast makes a value of."""
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == "Cast" else None


def _chain(value: ir.Value) -> list[ir.Node]:
    """The nodes that a value is made by, its own first."""
    found: dict[ir.Node, None] = {}
    pending: list[ir.Value | None] = [value]
    while pending:
        each = pending.pop()
        node = None if each is None else each.producer()
        if node is not None and node not in found:
            found[node] = None
            pending.extend(node.inputs)
    return list(found)


def _is_factor(value: ir.Value) -> bool:
    """A constant, or one that a Cast widens."""
    half = _cast(value)
    return value.const_value is not None or (half is not None and half.dtype not in SYMBOLS)


def _gathers(value: ir.Value) -> list[ir.Node]:
    """Nodes of the chain that look up values in a book: a constant of floats which nothing computed."""
    return [node for node in _chain(value) if node.op_type == "Gather" and _is_book(node.inputs[0])]


def _looked_up(values: np.ndarray, node: ir.Node, memory: dict[ir.Value, np.ndarray]) -> Coded | None:
    """Values by the one Gather that makes them: from several books where numbers were moved on for each slice, else from one."""
    book, index = node.inputs[0], node.inputs[1]
    adds = None if index is None else index.producer()
    if book is None or index is None:
        return None
    if adds is not None and adds.op_type == "Add" and index in memory:
        numbers, offsets = (memory[each] for each in adds.inputs if each is not None)
        found = _several(values, memory[book], numbers, offsets)
        if found is not None:
            return found
    return _with_book(values, memory[book])


def _several(values: np.ndarray, books: np.ndarray, numbers: np.ndarray, offsets: np.ndarray) -> Coded | None:
    """Symbols and the book of each slice: offsets say where it begins in all books laid end to end."""
    entries = len(books) - int(offsets.max(initial=0))
    begins, rest = np.divmod(offsets, max(entries, 1))
    axis = next((number for number, size in enumerate(offsets.shape) if size > 1), 0)
    width = books.shape[1] if books.ndim == 2 else 1
    fits = entries > 0 and len(books) % entries == 0 and not rest.any() and offsets.size == values.shape[axis]
    if not fits or entries > MOST_ENTRIES or numbers.size * width != values.size or (width > 1 and axis):
        return None
    tables = books.reshape(-1, entries, width)
    return Coded(values.shape, numbers.reshape(-1).astype(np.uint8), tables, groups=begins.reshape(-1), axis=axis)


def _is_book(value: ir.Value | None) -> bool:
    tensor = None if value is None else (_cast(value) or value).const_value
    return tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape) in (1, 2)


def _with_book(values: np.ndarray, book: np.ndarray) -> Coded | None:
    """Symbols of one book, of vectors, or of a book a slice, along whichever axis has one."""
    if book.ndim == 2:
        return vectors_of(values, book) if len(book) <= MOST_ENTRIES else None
    if len(book) <= MOST_ENTRIES:
        return _placed(values, book)
    for axis in range(values.ndim):
        found = per_slice(values, axis)
        if found is not None:
            return found
    return per_tensor(values)


def _placed(values: np.ndarray, book: np.ndarray) -> Coded | None:
    """Every value is an entry: the first of equal ones."""
    order = np.argsort(book, kind="stable")
    place = np.minimum(np.searchsorted(book[order], values.reshape(-1)), len(book) - 1)
    symbols = order[place]
    if not np.array_equal(book[symbols], values.reshape(-1)):
        return None
    return Coded(values.shape, symbols.astype(np.uint8), np.ascontiguousarray(book)[None, :, None])
