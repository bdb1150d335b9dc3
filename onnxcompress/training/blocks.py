"""Convolutions in onnxruntime's blocked layout, the operators of its domain com.microsoft.nchwc.

A blocked tensor keeps its sizes [n, c, h, w], c a multiple of the block, and lies as [n, c/block, h, w, block]: a vector register holds
a position's channels. onnxruntime chooses these operators where weights are constants, and ours are inputs. Weights lie as
[o/block, i/block, *k, block of i, block of o], of depthwise kernels and of less than a block of input channels as [o/block, i, *k, block].
What is written here is used where a self-test passed (blocked.py): the operators are not part of onnxruntime's interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onnxcompress.training.pen import Pen, shape_of

DOMAIN = "com.microsoft.nchwc"

FOURS = 4
"""ReorderInput takes channels in fours."""

WASTE = 1.35
"""Products with channels that were added, over those without: 1.44 took as long as the plain one, 1.33 four fifths."""


@dataclass(frozen=True)
class Form:
    """Of one convolution: channels in and out as the kernel sees them, and what it takes.

    few        less than a block of input channels, which stay as they are
    depthwise  one input channel a group
    """

    ins: int
    outs: int
    groups: int
    few: bool = False
    depthwise: bool = False


def rounded(channels: int, block: int) -> int:
    """Up to whole blocks."""
    return -(-channels // block) * block


def form_of(ins: int, outs: int, groups: int, block: int) -> Form | None:
    """How a convolution with these channels is written; None where the layout has no form of it."""
    if groups == ins == outs:
        wide = rounded(ins, block)
        return Form(wide, wide, wide, depthwise=True) if ins % FOURS == 0 else None
    if groups > 1:
        whole = (ins // groups) % block == 0 and (outs // groups) % block == 0
        return Form(ins, outs, groups) if whole else None
    if ins < block:
        return Form(ins, rounded(outs, block), 1, few=True)
    return Form(rounded(ins, block), rounded(outs, block), 1) if ins % FOURS == 0 else None


def reordered(op: Pen, x: ir.Value) -> ir.Value:
    """x [n, c, h, w] in blocks; once for all who ask."""
    assert op.block is not None
    if x not in op.in_blocks:
        n, channels, *sizes = shape_of(x)
        op.in_blocks[x] = _node(op, "ReorderInput", [x], [n, rounded(channels, op.block), *sizes])
    return op.in_blocks[x]


def plain(op: Pen, y: ir.Value, channels: int) -> ir.Value:
    """A blocked tensor as [n, channels, h, w]."""
    n, _, *sizes = shape_of(y)
    return _node(op, "ReorderOutput", [y], [n, channels, *sizes], channels=channels)


def conv(
    op: Pen,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None,
    form: Form,
    count: Sequence[int],
    *,
    pads: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> ir.Value:
    """[n, o, *count], plain, of x [n, i, h, w] and weight [o, i/groups, *kernel], plain as well."""
    outs, _, *kernel = shape_of(weight)
    given = x if form.few else reordered(op, x)
    if bias is not None and form.outs > outs:
        bias = op.Pad(bias, [0, form.outs - outs])
    made = _node(
        op, "Conv", [given, weight_in_blocks(op, weight, form), *([] if bias is None else [bias])],
        [shape_of(x)[0], form.outs, *count], kernel_shape=kernel, pads=list(pads), strides=list(strides),
        dilations=list(dilations), group=form.groups,
    )  # fmt: skip
    return plain(op, made, outs)


def weight_in_blocks(op: Pen, weight: ir.Value, form: Form) -> ir.Value:
    """[o, i/groups, *kernel] as the kernel reads it, zeros where channels were added. The outer block is a ReorderInput of one image."""
    assert op.block is not None
    (outs, ins, *kernel), block = shape_of(weight), op.block
    inner = 1 if form.depthwise else form.ins // form.groups
    if (outs, ins) != (form.outs, inner):
        weight = op.Pad(weight, [0] * 4 + [form.outs - outs, inner - ins, 0, 0])
    last = _node(op, "ReorderInput", [op.Reshape(weight, [1, form.outs, inner, kernel[0] * kernel[1]])],
                 [1, form.outs, inner, kernel[0] * kernel[1]])  # fmt: skip
    if not (form.few or form.depthwise):
        apart = op.Reshape(last, [form.outs // block, inner // block, block, kernel[0] * kernel[1], block])
        last = op.Transpose(apart, perm=[0, 1, 3, 2, 4])
    return op.Reshape(last, [form.outs, inner, *kernel])  # type: ignore[no-any-return]


def depthwise_weight_grad(
    op: Pen,
    dy: ir.Value,
    x: ir.Value,
    kernel: Sequence[int],
    *,
    pads: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> ir.Value:
    """[c, 1, *kernel] of y = Conv(x, weight), all by channel: x as one image of n c channels, dy as its kernel, a kernel's stride is its
    dilation and the other way round; n images' sums are added up. 64 images of 96 x 16 x 16: 5.5 ms against 18.6 for products and sums.
    """
    (n, channels, *sizes), count = shape_of(x), shape_of(dy)[2:]
    image, taps = reordered(op, x), reordered(op, dy)
    wide = shape_of(image)[1]
    spans = [(k - 1) * s + 1 for k, s in zip(count, strides, strict=True)]
    begins, ends = pads[:2], pads[2:]
    found = [
        (size + b + e - span) // d + 1
        for size, b, e, span, d in zip(sizes, begins, ends, spans, dilations, strict=True)
    ]
    made = _node(
        op, "Conv", [op.Reshape(image, [1, n * wide, *sizes]), op.Reshape(taps, [n * wide, 1, *count])],
        [1, n * wide, *found], kernel_shape=list(count), pads=list(pads), strides=list(dilations),
        dilations=list(strides), group=n * wide,
    )  # fmt: skip
    summed = op.ReduceSum(op.Reshape(made, [n, -1]), [0], keepdims=0)
    summed = plain(op, op.Reshape(summed, [1, wide, *found]), channels)
    if found != list(kernel):  # positions that stride left over saw more of x
        summed = op.Slice(summed, [0, 0], list(kernel), [2, 3])
    return op.Reshape(summed, [channels, 1, *kernel])  # type: ignore[no-any-return]


def dense_weight_grad(op: Pen, dy: ir.Value, x: ir.Value, kernel: Sequence[int], dilations: Sequence[int]) -> ir.Value:
    """[o, i, *kernel] of y = Conv(x, weight) with stride 1; x with its padding written out (left to the kernel, it takes twice the time),
    n whole blocks. x is i images of n channels and dy o kernels over these: what is left to move over is the taps. 64 images, 3x3: 16
    channels of 32 x 32, 32 of 16 x 16 and 64 of 8 x 8 take 0.58, 0.45 and 0.62 of a product a tap; with stride 2 it is no faster.
    """
    assert op.block is not None
    (n, outs, *count), block = shape_of(dy), op.block
    wide = rounded(outs, block)
    apart = op.Reshape(reordered(op, dy), [n // block, block, wide // block, prod(count), block])
    taps = op.Reshape(op.Transpose(apart, perm=[2, 0, 3, 1, 4]), [wide, n, *count])
    made = _node(
        op, "Conv", [reordered(op, op.Transpose(x, perm=[1, 0, 2, 3])), taps], [shape_of(x)[1], wide, *kernel],
        kernel_shape=count, pads=[0] * 4, strides=list(dilations), dilations=[1, 1], group=1,
    )  # fmt: skip
    return op.Transpose(plain(op, made, outs), perm=[1, 0, 2, 3])  # type: ignore[no-any-return]


def depthwise_input_grad(
    op: Pen, dy: ir.Value, weight: ir.Value, extent: Sequence[int], begins: Sequence[int], strides: Sequence[int]
) -> ir.Value | None:
    """[n, c, *extent] of y = Conv(x, weight [c, 1, *kernel]) with a stride, no dilation: dy with zeros between its places, under the
    weight turned round. None where pads reach too far. 64 images of 144 x 16 x 16, stride 2: 3.0 ms against 12.6 for a ConvTranspose,
    which two threads do not make faster.
    """
    (n, channels, *count), kernel = shape_of(dy), shape_of(weight)[2:]
    spread = [places * stride for places, stride in zip(count, strides, strict=True)]
    first = [k - 1 - begin for k, begin in zip(kernel, begins, strict=True)]
    last = [size - s - f + k - 1 for size, s, f, k in zip(extent, spread, first, kernel, strict=True)]
    if min(*first, *last) < 0:
        return None
    given, block = reordered(op, dy), op.block
    wide = shape_of(given)[1]
    apart = op.Reshape(given, [n * wide // block * count[0], 1, count[1], 1, block])  # type: ignore[operator]
    apart = op.Pad(apart, [0] * 6 + [strides[0] - 1, 0, strides[1] - 1, 0])
    turned = op.Slice(weight, [-1, -1], [-(1 << 31)] * 2, [2, 3], [-1, -1])
    form = Form(wide, wide, wide, depthwise=True)
    made = _node(
        op, "Conv", [op.Reshape(apart, [n, wide, *spread]), weight_in_blocks(op, turned, form)], [n, wide, *extent],
        kernel_shape=list(kernel), pads=[*first, *last], strides=[1, 1], dilations=[1, 1], group=wide,
    )  # fmt: skip
    return plain(op, made, channels)


def _node(op: Pen, op_type: str, inputs: Sequence[ir.Value], shape: Sequence[int], **attributes: object) -> ir.Value:
    op.graph.opset_imports.setdefault(DOMAIN, 1)
    return op.holder(op_type, inputs, [(inputs[0].dtype, shape)], domain=DOMAIN, **attributes)[0]
