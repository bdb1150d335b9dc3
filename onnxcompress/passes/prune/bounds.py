"""What every value can be at most and at least, channel by channel, whatever the input: proven from the constants alone.

Intervals are carried through the main graph in order (interval arithmetic: Moore 1966). A unit whose interval is a point is
constant: Relu behind weights, bias and inputs whose signs leave nothing above zero, a BatchNormalization whose scale is
zero, a filter of zeros with a bias. What no row of ROWS knows is unbounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.special import erf, expit

from onnxcompress.model import Model
from onnxcompress.model.edit import axes_of, constant_of, input_of


@dataclass(frozen=True, eq=False)
class Bound:
    """low <= value <= high; float64 arrays that broadcast to the value, [1, C, 1, 1] for a feature map."""

    low: np.ndarray
    high: np.ndarray

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> Bound:
        """Both ends changed alike, by a rising function or a change of shape."""
        return Bound(change(self.low), change(self.high))

    def or_zero(self) -> Bound:
        """The value or zero: what a kernel sees that reaches over the edge."""
        return Bound(np.minimum(self.low, 0.0), np.maximum(self.high, 0.0))

    def along(self, axis: int) -> Bound:
        """One entry for each position of this axis (or one for all), the extremes over the other axes: [C] or [1]."""
        if not self.low.ndim:
            return self.map(lambda end: end.reshape(1))
        others = tuple(place for place in range(self.low.ndim) if place != axis % self.low.ndim)
        return Bound(self.low.min(axis=others), self.high.max(axis=others))


ANYTHING = Bound(np.array(-np.inf), np.array(np.inf))
Row = Callable[[ir.Node, list[Bound]], Bound]
LARGEST = 1 << 16
"""Numbers of a bound: beyond, a Reshape makes one interval of it, and a constant is not read as an operand."""


def bounds(model: Model) -> dict[str, Bound]:
    """Value name -> bound, for the first outputs of the main graph's nodes that are bounded on some side; remembered."""
    return model.remember("bounds", _bounds)


def _bounds(model: Model) -> dict[str, Bound]:
    known: dict[str, Bound] = {}
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for node in model.ir.graph:
            row = ROWS.get(node.op_type) if not node.domain else None
            if row is None or (found := row(node, [_of(value, known) for value in node.inputs])) is ANYTHING:
                continue
            if np.isfinite(found.low).any() or np.isfinite(found.high).any():
                known[node.outputs[0].name or ""] = found
    return known


def _of(value: ir.Value | None, known: dict[str, Bound]) -> Bound:
    """Of an operand; a floating-point constant is what it is (weights are read by their rows)."""
    constant = constant_of(value)
    if constant is None or constant.dtype.kind != "f" or constant.size > LARGEST:
        return known.get("" if value is None else value.name or "", ANYTHING)
    exact = constant.astype(np.float64)
    return Bound(exact, exact)


def _product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Zero times anything is zero: bounds are infinite, values are not."""
    found = one * other
    return np.where((one == 0) | (other == 0), 0.0, found)


# -- elementwise ---------------------------------------------------------------------------------------------------


def _rising(function: Callable[[np.ndarray], np.ndarray]) -> Row:
    return lambda node, given: given[0].map(function)


def _valley(function: Callable[[np.ndarray], np.ndarray], bottom: float, left: float) -> Row:
    """Falls from `left` at minus infinity to its least at `bottom`, rises from there."""

    def row(node: ir.Node, given: list[Bound]) -> Bound:
        if node.attributes:  # an approximation, a slope: not this function
            return ANYTHING
        low, high = given[0].low, given[0].high
        ends = [np.where(np.isneginf(end), left, function(np.where(np.isinf(end), 0.0, end))) for end in (low, high)]
        ends[1] = np.where(np.isposinf(high), np.inf, ends[1])
        least = function(np.clip(bottom, low, high))
        return Bound(least, np.maximum(*ends))

    return row


def _leaky(node: ir.Node, given: list[Bound]) -> Bound:
    slope = node.attributes.get_float("alpha", 0.01)
    return given[0].map(lambda x: np.where(x < 0, slope * x, x)) if slope > 0 else ANYTHING


def _hard_sigmoid(node: ir.Node, given: list[Bound]) -> Bound:
    slope, shift = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return given[0].map(lambda x: np.clip(slope * x + shift, 0.0, 1.0)) if slope > 0 else ANYTHING


def _clip(node: ir.Node, given: list[Bound]) -> Bound:
    low, high = (constant_of(input_of(node, index)) for index in (1, 2))
    if any(input_of(node, index) is not None and end is None for index, end in ((1, low), (2, high))):
        return ANYTHING
    return given[0].map(lambda x: np.clip(x, -np.inf if low is None else low, np.inf if high is None else high))


def _add(node: ir.Node, given: list[Bound]) -> Bound:
    return Bound(sum(each.low for each in given), sum(each.high for each in given))  # type: ignore[arg-type]


def _subtract(node: ir.Node, given: list[Bound]) -> Bound:
    return Bound(given[0].low - given[1].high, given[0].high - given[1].low)


def _multiply(node: ir.Node, given: list[Bound]) -> Bound:
    one, other = given
    ends = [_product(a, b) for a in (one.low, one.high) for b in (other.low, other.high)]
    return Bound(np.minimum.reduce(np.broadcast_arrays(*ends)), np.maximum.reduce(np.broadcast_arrays(*ends)))


def _divide(node: ir.Node, given: list[Bound]) -> Bound:
    divisor = given[1]
    if np.any(divisor.low != divisor.high) or not np.all(divisor.low):
        return ANYTHING
    inverse = 1 / divisor.low
    return _multiply(node, [given[0], Bound(inverse, inverse)])


def _extreme(pick: np.ufunc) -> Row:
    def row(node: ir.Node, given: list[Bound]) -> Bound:
        return Bound(
            pick.reduce(np.broadcast_arrays(*(each.low for each in given))),
            pick.reduce(np.broadcast_arrays(*(each.high for each in given))),
        )

    return row


def _batch_norm(node: ir.Node, given: list[Bound]) -> Bound:
    x, scale, shift, mean, variance = given[:5]
    rank = _rank(node)
    if (
        rank is None
        or node.attributes.get_int("training_mode")
        or any(each is ANYTHING for each in (scale, shift, mean, variance))
    ):
        return ANYTHING
    spread = [-1] + [1] * (rank - 2)
    factor = (scale.low / np.sqrt(variance.low + node.attributes.get_float("epsilon", 1e-5))).reshape(spread)
    offset = shift.low.reshape(spread)
    ends = [_product(end - mean.low.reshape(spread), factor) + offset for end in (x.low, x.high)]
    found = Bound(np.minimum(*ends), np.maximum(*ends))
    return found.map(lambda end: end.reshape((1,) * (rank - end.ndim) + end.shape))


# -- weights -------------------------------------------------------------------------------------------------------


def _weighed(weight: np.ndarray, fed: Bound) -> Bound:
    """[groups, out] bounds of W x, weight [groups, out, in, taps], each tap fed anything in the bound; fed [groups, in]."""
    if not (np.isfinite(fed.low).any() or np.isfinite(fed.high).any()):
        free = np.where(weight.any(axis=(2, 3)), np.inf, 0.0)
        return Bound(-free, free)
    up, down = (pick(weight, 0).sum(axis=3, dtype=np.float64) for pick in (np.maximum, np.minimum))
    return Bound(_least(up, down, fed.low, fed.high), -_least(-down, -up, fed.low, fed.high))


def _least(up: np.ndarray, down: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[groups, out] of positive and negative weights [groups, out, in]: minus infinity where one of them meets no bound."""
    finite = [np.isfinite(end) for end in (low, high)]
    ends = [np.where(known, end, 0.0)[:, :, None] for known, end in zip(finite, (low, high), strict=True)]
    least = (up @ ends[0] + down @ ends[1])[:, :, 0]
    unmet = [sign.astype(bool) @ ~known[:, :, None] for sign, known in zip((up, down), finite, strict=True)]
    return np.where((unmet[0] | unmet[1])[:, :, 0], -np.inf, least)


def _conv(node: ir.Node, given: list[Bound]) -> Bound:
    weight, rank, groups = constant_of(node.inputs[1]), _rank(node), node.attributes.get_int("group", 1)
    if weight is None or rank is None:
        return ANYTHING
    fed = given[0].along(1) if given[0].low.ndim in (0, rank) else ANYTHING.along(1)
    fed = fed.or_zero() if is_padded(node) else fed
    fed = fed.map(lambda end: np.broadcast_to(end, (weight.shape[1] * groups,)).reshape(groups, -1))
    found = _weighed(weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:]))), fed)
    found = found.map(lambda end: end.reshape(-1))
    found = found if input_of(node, 2) is None else _add(node, [found, given[2].along(0)])
    return found.map(lambda end: end.reshape(1, -1, *[1] * (rank - 2)))


def is_padded(node: ir.Node) -> bool:
    """May the kernel of a Conv reach over the edge?"""
    automatic = node.attributes.get_string("auto_pad") not in (None, "NOTSET", "VALID")
    return automatic or any(node.attributes.get_ints("pads") or [])


def _gemm(node: ir.Node, given: list[Bound]) -> Bound:
    weight = constant_of(node.inputs[1])
    if weight is None or weight.ndim != 2:
        return ANYTHING
    matrix = weight if node.op_type == "Gemm" and node.attributes.get_int("transB") else weight.T
    fed = given[0].along(-1).map(lambda end: np.broadcast_to(end, (1, matrix.shape[1])))
    found = _weighed(matrix[None, :, :, None], fed)
    rank = _rank(node) or 2
    found = found.map(lambda end: end.reshape(*[1] * (rank - 1), -1))
    return found if len(given) < 3 or input_of(node, 2) is None else _add(node, [found, given[2]])


# -- positions -----------------------------------------------------------------------------------------------------


def _pool(node: ir.Node, given: list[Bound]) -> Bound:
    """A mean or an extreme of values within the bound; a mean that counts the padding is of zeros too."""
    counted = node.op_type == "AveragePool" and node.attributes.get_int("count_include_pad") and is_padded(node)
    return _same_rank(node, given[0].or_zero() if counted else given[0])


def _same_rank(node: ir.Node, bound: Bound) -> Bound:
    rank = _rank(node)
    if not bound.low.ndim or (rank == bound.low.ndim and all(size == 1 for size in bound.low.shape[2:])):
        return bound
    return _whole(bound)


def _whole(bound: Bound) -> Bound:
    """One interval for the whole tensor."""
    return Bound(np.array(bound.low.min()), np.array(bound.high.max()))


def _reduce(node: ir.Node, given: list[Bound]) -> Bound:
    bound, rank = given[0], _rank_of(node.inputs[0])
    axes = None if rank is None else axes_of(node, rank)
    if rank is None or axes is None or bound.low.ndim != rank or any(bound.low.shape[axis] != 1 for axis in axes):
        return _whole(bound)
    return bound if node.attributes.get_int("keepdims", 1) else bound.map(lambda end: end.squeeze(tuple(axes)))


def _reshape(node: ir.Node, given: list[Bound]) -> Bound:
    """Behind the first axis, where that stays as it is."""
    bound = given[0]
    before, after = _sizes(node.inputs[0]), _sizes(node.outputs[0])
    fits = before is not None and after is not None and bound.low.ndim == len(before) + 1 and bound.low.shape[0] == 1
    if not fits or np.prod(before) != np.prod(after) or np.prod(before) > LARGEST:  # type: ignore[arg-type]
        return _whole(bound)
    return bound.map(lambda end: np.broadcast_to(end, (1, *before)).reshape(1, *after))  # type: ignore[misc]


def _transpose(node: ir.Node, given: list[Bound]) -> Bound:
    order = node.attributes.get_ints("perm")
    return (
        given[0].map(lambda end: end.transpose(order))
        if order and len(order) == given[0].low.ndim
        else _whole(given[0])
    )


def _sizes(value: ir.Value | None) -> list[int] | None:
    """Of all axes but the first, where they are known."""
    if value is None or value.shape is None or not len(value.shape):
        return None
    sizes = list(value.shape)[1:]
    return [int(str(size)) for size in sizes] if all(isinstance(size, int) for size in sizes) else None


def _rank_of(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _rank(node: ir.Node) -> int | None:
    return _rank_of(node.outputs[0])


def _swish(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * expit(x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + erf(x / np.sqrt(2))))


def _hard_swish(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * np.clip(x / 6 + 0.5, 0.0, 1.0))


ROWS: dict[str, Row] = {
    "Relu": _rising(lambda x: np.maximum(x, 0.0)),
    "Sigmoid": _rising(expit),
    "Tanh": _rising(np.tanh),
    "Erf": _rising(erf),
    "Exp": _rising(np.exp),
    "Softplus": _rising(lambda x: np.logaddexp(0.0, x)),
    "LeakyRelu": _leaky,
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
    "HardSwish": _valley(_hard_swish, -1.5, 0.0),
    "Swish": _valley(_swish, -1.2784645, 0.0),
    "Gelu": _valley(_gelu, -0.7517916, 0.0),
    "Abs": _valley(np.abs, 0.0, np.inf),
    "Identity": lambda node, given: given[0],
    "Add": _add,
    "Sum": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Max": _extreme(np.maximum),
    "Min": _extreme(np.minimum),
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _gemm,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin"), _reduce),
    **dict.fromkeys(("Flatten", "Reshape"), _reshape),
    "Transpose": _transpose,
}
