"""Fused operators, ONNX's Attention and those that onnxruntime's optimizer writes, as what they were fused from (composed.py)."""

from __future__ import annotations

from collections.abc import Callable
from math import prod, sqrt

import numpy as np
import onnx_ir as ir

from onnxcompress.training.derivatives.composed import Composition, root_mean_square
from onnxcompress.training.derivatives.site import Site
from onnxcompress.training.pen import Pen, element_of, shape_of

NEVER = -1e9
"""Added to a score that must not count: exp is 0, and no row of -inf alone gives NaN."""

ACTIVATED: dict[str, Callable[[Pen, ir.Value, list[float]], ir.Value]] = {
    "": lambda op, x, given: x,
    "Relu": lambda op, x, given: op.Relu(x),
    "Sigmoid": lambda op, x, given: op.Sigmoid(x),
    "Tanh": lambda op, x, given: op.Tanh(x),
    "LeakyRelu": lambda op, x, given: op.LeakyRelu(x, alpha=given[0]),
    "Clip": lambda op, x, given: op.Clip(x, *given),
    "HardSigmoid": lambda op, x, given: op.HardSigmoid(x, alpha=given[0], beta=given[1]),
}
"""FusedConv's activation, with its parameters."""

WINDOW = ("kernel_shape", "strides", "dilations", "pads", "auto_pad", "group")


def _fused_conv(op: Pen, at: Site) -> ir.Value:
    """activation(Conv(x, w, b) + z)."""
    kind = at.attribute("activation", "")
    if kind not in ACTIVATED:
        raise at.refused(f"activation {kind!r}")
    window = {name: at.attribute(name, None) for name in WINDOW if name in at.node.attributes}
    made = op.Conv(*at.x[:3], **window)
    if at.has(3):
        made = op.Add(made, at.x[3])
    return ACTIVATED[kind](op, made, at.attribute("activation_params", []))


def _fused_matmul(op: Pen, at: Site) -> ir.Value:
    """alpha A' B', the last two axes swapped where transA or transB say so."""
    if at.attribute("transBatchA", 0) or at.attribute("transBatchB", 0):
        raise at.refused("its batch axes are swapped")
    parts = [
        _swapped(op, at.x[index]) if at.attribute(name, 0) else at.x[index]
        for index, name in enumerate(("transA", "transB"))
    ]
    made, alpha = op.MatMul(*parts), at.attribute("alpha", 1.0)
    return made if alpha == 1.0 else op.Mul(made, alpha)


def _swapped(op: Pen, x: ir.Value) -> ir.Value:
    rank = len(shape_of(x))
    return op.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])  # type: ignore[no-any-return]


def _fast_gelu(op: Pen, at: Site) -> ir.Value:
    """x (1 + tanh(c (x + 0.044715 x³))) / 2, of x + bias where one is given."""
    x = op.Add(at.x[0], at.x[1]) if at.has(1) else at.x[0]
    cube = op.Mul(op.Mul(op.Mul(x, x), x), 0.044715)
    t = op.Tanh(op.Mul(op.Add(x, cube), sqrt(2 / np.pi)))
    return op.Mul(op.Mul(x, op.Add(t, 1.0)), 0.5)  # type: ignore[no-any-return]


def _bias_gelu(op: Pen, at: Site) -> ir.Value:
    x = op.Add(at.x[0], at.x[1])
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Mul(x, sqrt(0.5))), 1.0)), 0.5)  # type: ignore[no-any-return]


def _total(op: Pen, at: Site, bias: int) -> ir.Value:
    total = op.Add(at.x[0], at.x[1])
    return op.Add(total, at.x[bias]) if at.has(bias) else total


def _skip_norm(op: Pen, at: Site) -> list[ir.Value | None]:
    """Outputs 0 and 3: the norm of x + skip + bias, and that sum."""
    total, beta = _total(op, at, 4), at.x[3] if at.has(3) else None
    normal = op.LayerNormalization(total, at.x[2], beta, axis=-1, epsilon=at.attribute("epsilon", 1e-12))
    return [normal, None, None, total]


def _skip_root(op: Pen, at: Site) -> list[ir.Value | None]:
    total = _total(op, at, 3)
    last = len(at.shape(0)) - 1
    return [root_mean_square(op, total, at.x[2], [last], at.attribute("epsilon", 1e-5)), None, None, total]


def _heads(op: Pen, x: ir.Value, count: int) -> ir.Value:
    """[n, l, (h d)] -> [n, h, l, d]."""
    n, length, width = shape_of(x)
    return op.Transpose(op.Reshape(x, [n, length, count, width // count]), perm=[0, 2, 1, 3])  # type: ignore[no-any-return]


def _joined(op: Pen, x: ir.Value) -> ir.Value:
    """[n, h, l, d] -> [n, l, (h d)]."""
    n, count, length, width = shape_of(x)
    return op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), [n, length, count * width])  # type: ignore[no-any-return]


def _attended(
    op: Pen, parts: list[ir.Value], scale: float | None, masks: list[ir.Value], *, causal: bool, cap: float = 0.0
) -> ir.Value:
    """softmax(q kᵀ scale + masks) v; q [n, h, l, d], k [n, h, m, d], v [n, h, m, e]; scale 1 / √d where none is given."""
    q, k, v = parts
    length, width, keys = shape_of(q)[2], shape_of(q)[3], shape_of(k)[2]
    scores = op.Mul(op.MatMul(q, _swapped(op, k)), scale or 1 / sqrt(width))
    if cap:
        scores = op.Mul(op.Tanh(op.Mul(scores, 1 / cap)), cap)
    if causal:
        later = np.arange(keys) > np.arange(length)[:, None] + (0 if keys == length else keys - length)
        masks = [*masks, op.constant((later * NEVER).astype(element_of(q)))]
    for mask in masks:
        scores = op.Add(scores, mask)
    return op.MatMul(op.Softmax(scores, axis=-1), v)  # type: ignore[no-any-return]


def _added(op: Pen, at: Site, mask: ir.Value) -> ir.Value:
    """A mask of 1 where a key counts, [n, m] or [n, l, m], as what is added to the scores [n, h, l, m]."""
    shape = shape_of(mask)
    if len(shape) not in (2, 3) or prod(shape) == shape[0]:
        raise at.refused(f"a mask of shape {list(shape)}")
    apart = op.Reshape(op.Cast(mask, to=at.x[0].dtype), [shape[0], 1, *([1] if len(shape) == 2 else []), *shape[1:]])
    return op.Mul(op.Sub(1.0, apart), at.attribute("mask_filter_value", -10000.0))  # type: ignore[no-any-return]


def _without(at: Site, inputs: tuple[int, ...], why: str) -> None:
    if any(at.has(index) for index in inputs):
        raise at.refused(why)


def _attention(op: Pen, at: Site) -> ir.Value:
    """com.microsoft.Attention: one product gives q, k and v."""
    _without(at, (4, 6), "it goes on from past keys")
    heads, total = at.attribute("num_heads", 1), at.shape(1)[1]
    sizes = at.attribute("qkv_hidden_sizes", [total // 3] * 3)
    made = op.MatMul(at.x[0], at.x[1])
    made = op.Add(made, at.x[2]) if at.has(2) else made
    parts = [_heads(op, each, heads) for each in op.Split(made, sizes, axis=2, outputs=3)]
    masks = [_added(op, at, at.x[3])] if at.has(3) else []
    masks += [at.x[5]] if at.has(5) else []
    causal = bool(at.attribute("unidirectional", 0))
    return _joined(op, _attended(op, parts, at.attribute("scale", None), masks, causal=causal))


def _multi_head(op: Pen, at: Site) -> ir.Value:
    """com.microsoft.MultiHeadAttention: q, k and v apart, each [n, l, (h d)], with one bias for all."""
    _without(at, (6, 7, 8, 9), "it goes on from past keys")
    if not (at.has(1) and at.has(2)) or any(len(at.shape(index)) != 3 for index in range(3)):
        raise at.refused("its q, k and v are packed")
    heads, parts = at.attribute("num_heads", 1), list(at.x[:3])
    if at.has(3):
        sizes = [shape_of(each)[2] for each in parts]
        biases = op.Split(at.x[3], sizes, axis=0, outputs=3)
        parts = [op.Add(each, bias) for each, bias in zip(parts, biases, strict=True)]
    masks = [_added(op, at, at.x[4])] if at.has(4) else []
    masks += [at.x[5]] if at.has(5) else []
    parts = [_heads(op, each, heads) for each in parts]
    causal = bool(at.attribute("unidirectional", 0))
    return _joined(op, _attended(op, parts, at.attribute("scale", None), masks, causal=causal))


def _standard_attention(op: Pen, at: Site) -> ir.Value:
    """ONNX's Attention: heads apart, or together with their number in attributes; several query heads may share a key head."""
    _without(at, (4, 5, 6), "it goes on from past keys")
    flat, parts = len(at.shape(0)) == 3, list(at.x[:3])
    if flat:
        counts = [at.attribute("q_num_heads", 1), *[at.attribute("kv_num_heads", 1)] * 2]
        parts = [_heads(op, each, count) for each, count in zip(parts, counts, strict=True)]
    times = shape_of(parts[0])[1] // shape_of(parts[1])[1]
    parts[1:] = [each if times == 1 else _shared(op, each, times) for each in parts[1:]]
    masks = []
    if at.has(3):
        mask = at.x[3]
        kept = mask.dtype == ir.DataType.BOOL
        masks = [op.Mul(op.Sub(1.0, op.Cast(mask, to=at.x[0].dtype)), NEVER) if kept else mask]
    made = _attended(
        op, parts, at.attribute("scale", None), masks,
        causal=bool(at.attribute("is_causal", 0)), cap=at.attribute("softcap", 0.0),
    )  # fmt: skip
    return _joined(op, made) if flat else made


def _shared(op: Pen, x: ir.Value, times: int) -> ir.Value:
    """Each head `times` times in a row."""
    n, count, length, width = shape_of(x)
    apart = op.Expand(op.Reshape(x, [n, count, 1, length, width]), [n, count, times, length, width])
    return op.Reshape(apart, [n, count * times, length, width])  # type: ignore[no-any-return]


FUSED: dict[str, Composition] = {
    "Attention": _standard_attention,
    "com.microsoft.Attention": _attention,
    "com.microsoft.MultiHeadAttention": _multi_head,
    "com.microsoft.FusedConv": _fused_conv,
    "com.microsoft.FusedMatMul": _fused_matmul,
    "com.microsoft.FastGelu": _fast_gelu,
    "com.microsoft.BiasGelu": _bias_gelu,
    "com.microsoft.SkipLayerNormalization": _skip_norm,
    "com.microsoft.SkipSimplifiedLayerNormalization": _skip_root,
}
