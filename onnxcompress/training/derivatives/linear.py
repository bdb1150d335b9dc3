"""Derivatives of products and convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxcompress.training.derivatives.site import Gradients, Rule, Site, summed_to
from onnxcompress.training.derivatives.windows import window_of
from onnxcompress.training.lowering import Window, conv_input_grad, conv_weight_grad
from onnxcompress.training.pen import Pen, shape_of


def _turned(op: Pen, x: ir.Value) -> ir.Value:
    """The last two axes swapped."""
    rank = len(shape_of(x))
    return op.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])  # type: ignore[no-any-return]


def _matmul(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """dA = dY Bᵀ, dB = Aᵀ dY, summed over what was broadcast; a vector is a matrix of one row or column."""
    a, b = at.x
    shapes = at.shape(0), at.shape(1)
    if len(shapes[0]) == 1:
        a, dy = op.Reshape(a, [1, -1]), _with_axis(op, dy, -2, len(shapes[1]) == 1)
    if len(shapes[1]) == 1:
        b, dy = op.Reshape(b, [-1, 1]), op.Reshape(dy, [*shape_of(dy), 1]) if len(shapes[0]) > 1 else dy
    left = right = None
    if at.wants(0):
        left = op.Reshape(summed_to(op, op.MatMul(dy, _turned(op, b)), shape_of(a)), list(shapes[0]))
    if at.wants(1):
        if len(shape_of(b)) == 2 and len(shape_of(a)) > 2:  # rows of all positions in one product
            a, dy = op.Reshape(a, [-1, shape_of(a)[-1]]), op.Reshape(dy, [-1, shape_of(dy)[-1]])
        right = op.Reshape(summed_to(op, op.MatMul(_turned(op, a), dy), shape_of(b)), list(shapes[1]))
    return [left, right]


def _with_axis(op: Pen, dy: ir.Value, place: int, both: bool) -> ir.Value:
    """dy of a vector times something, with the axis of one row back (two of them for a product of two vectors)."""
    sizes = list(shape_of(dy))
    return op.Reshape(dy, [1, 1] if both else [*sizes[:-1], 1, sizes[-1]])  # type: ignore[no-any-return]


def _gemm(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """Y = alpha A' B' + beta C, with A' and B' transposed where the attributes say so."""
    alpha, beta = at.attribute("alpha", 1.0), at.attribute("beta", 1.0)
    over_a, over_b = at.attribute("transA", 0), at.attribute("transB", 0)
    a, b = at.x[0], at.x[1]
    found: list[ir.Value | None] = [None, None, None]
    if at.wants(0):
        found[0] = op.Gemm(b, dy, alpha=alpha, transA=over_b, transB=1) if over_a else (
            op.Gemm(dy, b, alpha=alpha, transB=1 - over_b)
        )  # fmt: skip
    if at.wants(1):
        found[1] = op.Gemm(dy, a, alpha=alpha, transA=1, transB=over_a) if over_b else (
            op.Gemm(a, dy, alpha=alpha, transA=1 - over_a)
        )  # fmt: skip
    if at.wants(2):
        summed = summed_to(op, dy, at.shape(2))
        found[2] = summed if beta == 1.0 else op.Mul(summed, beta)
    return found[: len(at.x)]


def _bias(op: Pen, at: Site, dy: ir.Value) -> ir.Value | None:
    if not at.wants(2):
        return None
    return op.ReduceSum(dy, [0, *range(2, len(shape_of(dy)))], keepdims=0)  # type: ignore[no-any-return]


def _conv(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    window, groups = window_of(at, at.shape(0)[2:], at.shape(1)[2:]), at.attribute("group", 1)
    return [
        conv_input_grad(op, dy, at.x[1], window, groups) if at.wants(0) else None,
        conv_weight_grad(op, dy, at.x[0], window, groups) if at.wants(1) else None,
        _bias(op, at, dy),
    ][: len(at.x)]


def _conv_transpose(op: Pen, at: Site, dy: ir.Value) -> Gradients:
    """A Conv run backward: its input is dy and its output x, weight [i, o/groups, *kernel] as that Conv has it."""
    groups, bias = at.attribute("group", 1), _bias(op, at, dy)
    window = _backward_window(at, shape_of(dy)[2:])
    if shape_of(dy)[2:] != window.extent:  # output_padding beyond the pads: there the output is bias alone
        axes = list(range(2, len(shape_of(dy))))
        dy = op.Slice(dy, [0] * len(axes), list(window.extent), axes)
    sizes = {"kernel_shape": list(window.kernel), "strides": list(window.strides), "dilations": list(window.dilations)}
    pads = [*window.begins, *window.ends]
    return [
        op.Conv(dy, at.x[1], pads=pads, group=groups, **sizes) if at.wants(0) else None,
        conv_weight_grad(op, at.x[0], dy, window, groups) if at.wants(1) else None,
        bias,
    ][: len(at.x)]


def _backward_window(at: Site, extent: Sequence[int]) -> Window:
    """How that Conv moves over dy. End pads follow from sizes: output_padding and auto_pad are in them.

    Where output_shape is given pads are not read: what the output lacks is cut from both ends, the odd one from the begin, or from the
    end with SAME_UPPER, and output_padding counts as output.
    """
    kernel = at.shape(1)[2:]
    rank, kind = len(kernel), at.attribute("auto_pad", "NOTSET")
    strides, dilations = at.attribute("strides", [1] * rank), at.attribute("dilations", [1] * rank)
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    full = [(n - 1) * s + r + 1 for n, s, r in zip(at.shape(0)[2:], strides, reach, strict=True)]
    begins = at.attribute("pads", [0] * 2 * rank)[:rank]
    if kind in ("SAME_UPPER", "SAME_LOWER") or "output_shape" in at.node.attributes:
        added = at.attribute("output_padding", [0] * rank)
        over = [max(f + a - n, 0) for f, a, n in zip(full, added, extent, strict=True)]
        begins = [each // 2 if kind == "SAME_UPPER" else (each + 1) // 2 for each in over]
    ends = [f - n - b for f, n, b in zip(full, extent, begins, strict=True)]
    seen = tuple(n + min(e, 0) for n, e in zip(extent, ends, strict=True))
    ends = [max(each, 0) for each in ends]
    return Window(seen, tuple(kernel), tuple(strides), tuple(dilations), tuple(begins), tuple(ends))


LINEAR: dict[str, Rule] = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "ConvTranspose": _conv_transpose}
