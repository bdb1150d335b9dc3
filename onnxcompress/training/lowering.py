"""What training operators become in standard ONNX operators: the one lowering that every source of gradients meets.

The names are those of a backward pass (onnxruntime-training's builder has ReluGrad, ConvGrad, ...): our derivative table calls
these functions, and a graph of that builder maps its nodes to them. Forms were chosen by measurement on two cores, stock
onnxruntime 1.32, one thread; none uses ScatterND, whose sums race with two threads, nor Where, fifteen times slower than a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import constant_of
from onnxcompress.training.blocks import (
    FOURS,
    WASTE,
    dense_weight_grad,
    depthwise_input_grad,
    depthwise_weight_grad,
    form_of,
    rounded,
)
from onnxcompress.training.pen import Pen, element_of, shape_of

STEEP = 3e38
"""Slope of a HardSigmoid that is a step: 0 for x <= 0, 1 for x > 0."""

SPREAD = 1.5
"""Places of x for one of dy. 64 images, 5x5: 50 channels, 8x8 to 12x12, 2.7 ms as ConvTranspose against 23 as Conv, one thread or two;
3x3 of as many places as before: 4.4 against 4.3, with two threads 20 against 2.7."""

PLAIN = (1e-3, 1e6)
"""Sizes of limits whose multiples by 2^100 are numbers of float32, and so are those of their last digits."""

FEW_CHANNELS = 8
"""Input channels up to which the taps of a kernel are laid side by side for one product, instead of one product a tap."""

MOVED = 4
"""512 by 512 channels, 8 images of 49 positions: 2.4 ms in one product against 7.7; 64 of 4: 1.9 against 17.5; 256 by 256, 32 of 64 (a
ratio of 2): 7.5 against 5.2."""


WIDEST = 64 << 20
"""Bytes of taps that are laid side by side at once: a kernel of 3 x 39 would otherwise hold its input 117 times."""


def step(op: Pen, x: ir.Value) -> ir.Value:
    """1 where x > 0, else 0: one HardSigmoid, 0.4 ms a million elements against 1.1 for Greater, Cast (Where: 6.3)."""
    return op.HardSigmoid(x, alpha=STEEP, beta=0.0)  # type: ignore[no-any-return]


def beyond(op: Pen, x: ir.Value, limit: ir.Value, side: int) -> ir.Value:
    """1 where x is above a limit of one number (side 1) or below it (-1), else 0.

    Of a limit that is a constant within PLAIN, without a difference of its own: the slope and its multiple are powers of two times x and
    limit, so that their sum is exact, and a last digit of float32 is far more than 1.
    """
    number = constant_of(limit)
    value = None if number is None or number.size != 1 else float(number.reshape(-1)[0])
    if value == 0 and side > 0:
        return step(op, x)
    if value is not None and element_of(x) == np.float32 and PLAIN[0] <= abs(value) <= PLAIN[1]:
        return op.HardSigmoid(x, alpha=side * 2.0**100, beta=-side * value * 2.0**100)  # type: ignore[no-any-return]
    return step(op, op.Sub(x, limit) if side > 0 else op.Sub(limit, x))


def relu_grad(op: Pen, dy: ir.Value, y: ir.Value) -> ir.Value:
    """dy where y > 0."""
    return op.Mul(dy, step(op, y))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Window:
    """How a kernel moves over an input of spatial sizes `extent`; begins and ends are pads, all lists by spatial axis."""

    extent: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Input positions between the first and the last tap."""
        return tuple(d * (k - 1) for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def count(self) -> tuple[int, ...]:
        """Output positions, where no window begins beyond what pads allow."""
        sizes = zip(self.extent, self.begins, self.ends, self.reach, self.strides, strict=True)
        return tuple((n + b + e - r - 1) // s + 1 for n, b, e, r, s in sizes)

    @property
    def taps(self) -> list[tuple[int, ...]]:
        """Kernel positions, the last axis fastest."""
        return list(product(*(range(k) for k in self.kernel)))


def conv_input_grad(op: Pen, dy: ir.Value, weight: ir.Value, window: Window, groups: int) -> ir.Value:
    """[n, i, *extent] of y = Conv(x, weight): dy [n, o, *count], weight [o, i/groups, *kernel].

    Stride 1: Conv with the weight's channels swapped and taps reversed, pads d(k-1) - p. Else ConvTranspose, which takes the
    weight as it is; it also does where dy has far fewer places than x, since that Conv would mostly read its padding.
    """
    pads = [[r - p for r, p in zip(window.reach, sides, strict=True)] for sides in (window.begins, window.ends)]
    spread = groups == 1 and prod(window.extent) > SPREAD * prod(shape_of(dy)[2:])
    if (
        max(window.strides) > 1
        and max(window.dilations) == 1
        and _by_channel(op, dy, shape_of(weight)[1] * groups, groups)
    ):
        found = depthwise_input_grad(op, dy, weight, window.extent, window.begins, window.strides)
        if found is not None:
            return found
    if max(window.strides) > 1 or min(pads[0] + pads[1]) < 0 or spread:
        return transposed(op, dy, weight, window, groups)
    turned = _swapped(op, weight, groups)
    if prod(window.kernel) > 1:
        axes = list(range(2, 2 + len(window.kernel)))
        turned = op.Slice(turned, [-1] * len(axes), [-(1 << 31)] * len(axes), axes, [-1] * len(axes))
    return op.Conv(  # type: ignore[no-any-return]
        dy, turned, kernel_shape=list(window.kernel), dilations=list(window.dilations), pads=pads[0] + pads[1],
        group=groups,
    )  # fmt: skip


def _swapped(op: Pen, weight: ir.Value, groups: int) -> ir.Value:
    """[(g o), i, *k] -> [(g i), o, *k]."""
    outs, ins, *kernel = shape_of(weight)
    if outs == groups and ins == 1:
        return weight
    apart = op.Reshape(weight, [groups, outs // groups, ins, *kernel]) if groups > 1 else weight
    at = 1 if groups > 1 else 0
    order = [*range(at), at + 1, at, *range(at + 2, at + 2 + len(kernel))]
    swapped = op.Transpose(apart, perm=order)
    return op.Reshape(swapped, [groups * ins, outs // groups, *kernel]) if groups > 1 else swapped


def transposed(op: Pen, dy: ir.Value, weight: ir.Value, window: Window, groups: int) -> ir.Value:
    """ConvTranspose of dy that gives exactly [n, *, *window.extent], whatever the pads are."""
    sizes = zip(shape_of(dy)[2:], window.strides, window.reach, strict=True)
    full = [(n - 1) * s + r + 1 for n, s, r in sizes]
    if any(f <= b for f, b in zip(full, window.begins, strict=True)):  # every window lies in the padding
        shape = [shape_of(dy)[0], groups * shape_of(weight)[1], *window.extent]
        return op.Expand(op.constant(np.zeros([1] * len(shape), element_of(dy))), shape)  # type: ignore[no-any-return]
    over = [f - b - n for f, b, n in zip(full, window.begins, window.extent, strict=True)]
    spread = op.ConvTranspose(
        dy, weight, kernel_shape=list(window.kernel), strides=list(window.strides), dilations=list(window.dilations),
        pads=[*window.begins, *(max(each, 0) for each in over)],
        output_padding=[0] * len(full), group=groups,
    )  # fmt: skip
    short = [max(-each, 0) for each in over]
    if not any(short):
        return spread  # type: ignore[no-any-return]
    return op.Pad(spread, [0] * (2 + len(full)) + [0, 0, *short])  # type: ignore[no-any-return]


def conv_weight_grad(op: Pen, dy: ir.Value, x: ir.Value, window: Window, groups: int) -> ir.Value:
    """[o, i/groups, *kernel] of y = Conv(x, weight): dy [n, o, *count], x [n, i, *extent].

    dW[o, i, tap] = sum over n and positions of dy[n, o, p] x[n, i, s p + d tap]: the input that each tap sees is a Slice. Dense:
    one product a tap, batched over n (a Conv over swapped axes is 1.5 to 3 times slower); depthwise: Mul and ReduceSum (0.63 of a
    Conv over n c images, and of products).
    """
    outs, ins = shape_of(dy)[1], shape_of(x)[1]
    count = shape_of(dy)[2:]
    pads, strides, dilations = [*window.begins, *window.ends], window.strides, window.dilations
    if _by_channel(op, dy, ins, groups):
        return depthwise_weight_grad(op, dy, x, window.kernel, pads=pads, strides=strides, dilations=dilations)
    if _worth(op, dy, ins, window, groups):
        return dense_weight_grad(op, dy, padded(op, x, window.begins, window.ends), window.kernel, dilations)
    seen = _taps(op, x, window, count)
    if groups == outs == ins:
        return _depthwise(op, dy, seen, window)
    batch, positions = shape_of(dy)[0], prod(count)
    left = op.Reshape(dy, [batch, groups, outs // groups, positions])
    if ins // groups <= FEW_CHANNELS:  # [n, g, (tap i), p]
        apart = [op.Reshape(each, [batch, groups, ins // groups, positions]) for each in seen]
        together = max(WIDEST // (batch * ins * positions * element_of(x).itemsize), 1)
        parts = []
        for first in range(0, len(apart), together):
            some = apart[first : first + together]
            right = op.Concat(*some, axis=2) if len(some) > 1 else some[0]
            parts.append(op.Reshape(_product(op, left, right), [outs, len(some), ins // groups]))
        made = op.Concat(*parts, axis=1) if len(parts) > 1 else parts[0]
    else:
        parts = [_product(op, left, op.Reshape(each, [batch, groups, ins // groups, positions])) for each in seen]
        parts = [op.Reshape(each, [outs, 1, ins // groups]) for each in parts]
        made = op.Concat(*parts, axis=1) if len(parts) > 1 else parts[0]
    if len(seen) > 1:
        made = op.Transpose(made, perm=[0, 2, 1])
    return op.Reshape(made, [outs, ins // groups, *window.kernel])  # type: ignore[no-any-return]


def _fits(op: Pen, dy: ir.Value) -> bool:
    """May a gradient of images be written in blocks at all?"""
    return op.block is not None and len(shape_of(dy)) == 4 and dy.dtype == ir.DataType.FLOAT


def _by_channel(op: Pen, dy: ir.Value, ins: int, groups: int) -> bool:
    """Of a depthwise convolution that has a form in blocks?"""
    if not _fits(op, dy) or not groups == ins == shape_of(dy)[1]:
        return False
    return form_of(groups, groups, groups, op.block) is not None  # type: ignore[arg-type]


def _worth(op: Pen, dy: ir.Value, ins: int, window: Window, groups: int) -> bool:
    """Is the weight gradient of a dense convolution faster in blocks?"""
    if not _fits(op, dy) or groups > 1 or max(window.strides) > 1 or prod(window.kernel) == 1 or ins <= FEW_CHANNELS:
        return False
    (n, outs, *_), block = shape_of(dy), op.block
    assert block is not None
    return n % block == 0 and outs % FOURS == 0 and rounded(outs, block) <= WASTE * outs


def _product(op: Pen, left: ir.Value, right: ir.Value) -> ir.Value:
    """sum over n of left [n, g, a, p] times right [n, g, b, p] transposed: [g, a, b]. onnxruntime fuses the last Transpose.

    A product for each n writes a b numbers, one over all n first moves p (a + b) for each: `MOVED` times as many are worth it.
    """
    (batch, groups, a, positions), b = shape_of(left), shape_of(right)[2]
    if batch > 1 and a * b > MOVED * positions * (a + b):
        rows = [op.Reshape(op.Transpose(x, perm=[1, 2, 0, 3]), [groups, -1, batch * positions]) for x in (left, right)]
        return op.MatMul(rows[0], op.Transpose(rows[1], perm=[0, 2, 1]))  # type: ignore[no-any-return]
    made = op.MatMul(left, op.Transpose(right, perm=[0, 1, 3, 2]))
    return op.ReduceSum(made, [0], keepdims=0)  # type: ignore[no-any-return]


def _depthwise(op: Pen, dy: ir.Value, seen: Sequence[ir.Value], window: Window) -> ir.Value:
    axes, channels = [0, *range(2, len(shape_of(dy)))], shape_of(dy)[1]
    parts = [op.Reshape(op.ReduceSum(op.Mul(each, dy), axes, keepdims=0), [channels, 1]) for each in seen]
    made = op.Concat(*parts, axis=1) if len(parts) > 1 else parts[0]
    return op.Reshape(made, [channels, 1, *window.kernel])  # type: ignore[no-any-return]


def _taps(op: Pen, x: ir.Value, window: Window, count: Sequence[int]) -> list[ir.Value]:
    """What each tap of the kernel sees of x: [n, i, *count] for each of `window.taps`."""
    x = padded(op, x, window.begins, window.ends)
    sizes, axes = shape_of(x)[2:], list(range(2, len(shape_of(x))))
    found = []
    for tap in window.taps:
        starts = [t * d for t, d in zip(tap, window.dilations, strict=True)]
        stops = [a + (n - 1) * s + 1 for a, n, s in zip(starts, count, window.strides, strict=True)]
        whole = not any(starts) and stops == list(sizes) and max(window.strides) == 1
        found.append(x if whole else op.Slice(x, starts, stops, axes, list(window.strides)))
    return found


def padded(op: Pen, x: ir.Value, begins: Sequence[int], ends: Sequence[int]) -> ir.Value:
    """Zeros around the spatial axes; a negative pad cuts."""
    if not any(begins) and not any(ends):
        return x
    return op.Pad(x, [0, 0, *begins, 0, 0, *ends])  # type: ignore[no-any-return]


def pool_grad(op: Pen, dy: ir.Value, window: Window, counts: np.ndarray) -> ir.Value:
    """[n, c, *extent] of an average over windows: counts [*count] is what each window was divided by."""
    channels = shape_of(dy)[1]
    ones = np.ones((channels, 1, *window.kernel), counts.dtype)
    return transposed(op, op.Mul(dy, 1.0 / counts), op.constant(ones), window, channels)


def scattered(op: Pen, dy: ir.Value, indices: ir.Value | np.ndarray, size: int, axis: int) -> ir.Value:
    """Sums of dy's entries along an axis at `indices` [entries of that axis], into zeros of that size.

    ScatterElements, never ScatterND: with two threads the latter loses sums where an index comes twice (54 of 60 runs).
    """
    shape = list(shape_of(dy))
    zero = op.constant(np.zeros([1] * len(shape), element_of(dy)))
    zeros = op.Expand(zero, [*shape[:axis], size, *shape[axis + 1 :]])
    lined = [1] * axis + [shape[axis]] + [1] * (len(shape) - axis - 1)
    places = indices if isinstance(indices, ir.Value) else op.constant(indices.astype(np.int64))
    everywhere = op.Expand(op.Reshape(places, lined), shape)
    return op.ScatterElements(zeros, everywhere, dy, axis=axis, reduction="add")  # type: ignore[no-any-return]


def max_pool_grad(op: Pen, dy: ir.Value, indices: ir.Value, shape: Sequence[int]) -> ir.Value:
    """Each dy at the place of its maximum: indices count over the whole input tensor, as MaxPool gives them."""
    flat = scattered(op, op.Reshape(dy, [-1]), op.Reshape(indices, [-1]), prod(shape), 0)
    return op.Reshape(flat, list(shape))  # type: ignore[no-any-return]


def along_channels(op: Pen, vector: ir.Value, rank: int) -> ir.Value:
    """[c] so that it broadcasts against [n, c, *spatial]."""
    return op.Reshape(vector, [1, -1, *[1] * (rank - 2)])  # type: ignore[no-any-return]


def scaled_channels(op: Pen, x: ir.Value, scale: ir.Value, shift: ir.Value) -> ir.Value:
    """scale x + shift by channel: an inference BatchNormalization, one pass over x instead of two."""
    plain = np.zeros(shape_of(scale), element_of(scale))
    return op.BatchNormalization(x, scale, shift, plain, plain + 1, epsilon=0.0)  # type: ignore[no-any-return]


def batch_norm_grad(
    op: Pen, dy: ir.Value, x: ir.Value, scale: ir.Value, mean: ir.Value, var: ir.Value, epsilon: float
) -> list[ir.Value]:
    """dx, dscale, dbias of y = scale (x - m) r + bias with m and v of the batch, r = 1 / sqrt(v + eps), n values a channel, c = x - m:

        dx = a dy + b c + d   with a = scale r,  b = -a r² Σ(dy c) / n,  d = -a Σdy / n
        dscale = r Σ(dy c)    dbias = Σdy

    Σ(dy x) - m Σdy would lose digits where m is large.
    """
    shape = shape_of(x)
    axes, n = [0, *range(2, len(shape))], float(prod(shape) // shape[1])
    r = op.Reciprocal(op.Sqrt(op.Add(var, epsilon)))
    a, total = op.Mul(scale, r), op.ReduceSum(dy, axes, keepdims=0)
    centred = op.Sub(x, along_channels(op, mean, len(shape)))
    moment = op.ReduceSum(op.Mul(dy, centred), axes, keepdims=0)
    b = op.Mul(op.Mul(op.Mul(a, op.Mul(r, r)), moment), -1 / n)
    d = op.Mul(op.Mul(a, total), -1 / n)
    dx = op.Add(op.Mul(dy, along_channels(op, a, len(shape))), scaled_channels(op, centred, b, d))
    return [dx, op.Mul(moment, r), total]
