"""What stands between convolutions and looks at the channel axis: activations, normalizations, indices, reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from .sample import Sample, table


def between(name: str, nodes: str, channels: int = 6, **facts: Any) -> Sample:
    """conv w1 (6 channels, `a`) -> `nodes` -> `o` (`channels` channels) -> conv w2; extra weights by name."""
    known = {key: facts.pop(key) for key in ("free", "frozen", "opset", "domains") if key in facts}
    weights = dict(w1=(6, 3, 3, 3), b1=(6,), w2=(4, channels, 1, 1), **facts)
    graph = f"""(float[N,3,8,8] x) => (float[N,4,8,8] y) {{
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  {nodes}  y = Conv(o, w2) }}"""
    return Sample(name, graph, weights, **known)


FREE = {"w1": 6}
EVEN = np.arange(6) % 2 == 0

ACTIVATIONS = table(
    between(
        "hardswish_decomposed",
        "t = Add(a, three) c = Clip(t, zero, six) m = Mul(a, c) o = Div(m, six)",
        three=3.0,
        zero=0.0,
        six=6.0,
        free=FREE,
    ),
    between("hardswish", "o = HardSwish(a)", free=FREE),
    between(
        "gelu_erf",
        "d = Div(a, root) e = Erf(d) p = Add(e, one) m = Mul(a, p) o = Mul(m, half)",
        root=2**0.5,
        one=1.0,
        half=0.5,
        free=FREE,
    ),
    between("mish", "s = Softplus(a) t = Tanh(s) o = Mul(a, t)", free=FREE),
    between("prelu_channel", "o = PRelu(a, slope)", slope=(6, 1, 1), free=FREE),
    between("prelu_scalar", "o = PRelu(a, slope)", slope=(1,), free=FREE),
    between(
        "channel_constants",
        "m = Mul(a, scale) p = Add(m, shift) q = Div(p, scale2) r = Sub(shift2, q) o = Pow(r, two)",
        scale=(1, 6, 1, 1),
        shift=(6, 1, 1),
        scale2=(1, 6, 1, 1),
        shift2=(1, 6, 1, 1),
        two=2.0,
        free=FREE,
    ),
    between("position_constants", "m = Mul(a, scale) o = Add(m, shift)", scale=(1, 6, 8, 8), shift=(8, 8), free=FREE),
    between("where_mask", "o = Where(mask, a, other)", mask=EVEN.reshape(1, 6, 1, 1), other=0.0, free=FREE),
    between(
        "where_condition",
        "g = Greater(a, zero) n = Mul(a, slope) o = Where(g, a, n)",
        zero=0.0,
        slope=(1, 6, 1, 1),
        free=FREE,
    ),
    between("cast_fp16", "h = Cast<to=10>(a) r = Relu(h) o = Cast<to=1>(r)", free=FREE),
    between(
        "min_max",
        "p = Max(a, low) q = Min(p, high) n = Neg(q) b = Abs(n) e = Exp(b) o = Reciprocal(e)",
        low=(1, 6, 1, 1),
        high=2.0,
        free=FREE,
    ),
    between("identity_dropout", "i = Identity(a) d, mask = Dropout(i) o = Elu<alpha=0.5>(d)", free=FREE),
)

NORMALIZED = table(
    between("instance_norm", "n = InstanceNormalization(a, scale, beta) o = Relu(n)", scale=(6,), beta=(6,), free=FREE),
    between(
        "group_norm",
        "n = GroupNormalization<num_groups=3>(a, scale, beta) o = Relu(n)",
        scale=(6,),
        beta=(6,),
        opset=21,
    ),
    between(
        "group_norm_decomposed",
        """r = Reshape(a, groups) i = InstanceNormalization(r, scale, beta) s = Shape(a)
            b = Reshape(i, s) m = Mul(b, scale2) o = Add(m, shift)""",
        groups=[0, 3, -1],
        scale=np.ones(3),
        beta=np.zeros(3),
        scale2=(6, 1, 1),
        shift=(6, 1, 1),
    ),
    between(
        "layer_norm_channels",
        """t = Transpose<perm=[0,2,3,1]>(a) n = LayerNormalization<axis=-1>(t, scale, beta)
            o = Transpose<perm=[0,3,1,2]>(n)""",
        scale=(6,),
        beta=(6,),
        frozen={"w1": "LayerNormalization"},
    ),
    between("lrn", "o = LRN<size=3>(a)", frozen={"w1": "LRN"}),
    between("l2_norm", "o = LpNormalization<axis=1, p=2>(a)"),
    between(
        "mean_variance_norm",
        "o = MeanVarianceNormalization<axes=[0,2,3]>(a)",
        frozen={"w1": "MeanVarianceNormalization"},
    ),
    between("softmax_channels", "s = Softmax<axis=1>(a) o = Mul(a, s)", frozen={"w1": "Softmax"}),
    between("softmax_spatial", "s = Softmax<axis=3>(a) o = Mul(a, s)", free=FREE),
    between(
        "spatial_attention",
        """m = ReduceMean<axes=[1]>(a) h = ReduceMax<axes=[1]>(a) c = Concat<axis=1>(m, h)
            g = Conv<pads=[1,1,1,1]>(c, wg) s = Sigmoid(g) o = Mul(a, s)""",
        wg=(1, 2, 3, 3),
        frozen={"w1": "ReduceMean"},
    ),
    between("reduce_mean_channels", "m = ReduceMean<axes=[1]>(a) o = Sub(a, m)", frozen={"w1": "ReduceMean"}),
    between(
        "reduce_max_channels", "m = ReduceMax(a, axis) o = Sub(a, m)", axis=[1], opset=18, frozen={"w1": "ReduceMax"}
    ),
    between("reduce_sum_channels", "m = ReduceSum(a, axis) o = Mul(a, m)", axis=[1], free=FREE),
    between(
        "arg_max_channels",
        "m = ArgMax<axis=1>(a) f = Cast<to=1>(m) s = Mul(f, tenth) o = Add(a, s)",
        tenth=0.1,
        frozen={"w1": "ArgMax"},
    ),
    between("cumsum_channels", "o = CumSum(a, axis)", axis=np.array(1)),
)

INDEXED = table(
    between("gather_permutation", "o = Gather<axis=1>(a, order)", order=[3, 0, 5, 1, 4, 2], free=FREE),
    between("gather_subset", "o = Gather<axis=1>(a, order)", channels=4, order=[4, 0, 4, 2]),
    between(
        "slice_channels",
        "p = Slice(a, zero, three, one) q = Slice(a, three, big, one) s = Sigmoid(q) o = Mul(p, s)",
        channels=3,
        zero=[0],
        one=[1],
        three=[3],
        big=[2**31 - 1],
        free={"w1": 3},
    ),
    between(
        "split_channels",
        "p, q = Split<axis=1>(a, sizes) s = Sigmoid(q) t = Tanh(p) o = Concat<axis=1>(s, t)",
        sizes=[2, 4],
        free=FREE,
    ),
    between(
        "split_num_outputs",
        "p, q = Split<axis=1, num_outputs=2>(a) o = Max(p, q)",
        channels=3,
        opset=18,
        free={"w1": 3},
    ),
    between(
        "maxout_reshape",
        "r = Reshape(a, parts) m = ReduceMax<axes=[2], keepdims=0>(r) o = Relu(m)",
        channels=3,
        parts=[0, 3, 2, 8, 8],
    ),
    between("concat_same", "r = Neg(a) o = Concat<axis=1>(a, r)", channels=12, free=FREE),
    between("tile_channels", "o = Tile(a, repeats)", channels=12, repeats=[1, 2, 1, 1], free=FREE),
    between(
        "tile_spatial", "p = GlobalAveragePool(a) t = Tile(p, repeats) o = Add(a, t)", repeats=[1, 1, 8, 8], free=FREE
    ),
    between(
        "expand_constant",
        "p = GlobalAveragePool(a) t = Expand(p, shape) o = Concat<axis=1>(a, t)",
        channels=12,
        shape=[1, 6, 8, 8],
        free=FREE,
    ),
    between("expand_shape", "p = GlobalAveragePool(a) s = Shape(a) t = Expand(p, s) o = Sub(a, t)", free=FREE),
    between(
        "pad_spatial", "p = Pad(a, pads) o = MaxPool<kernel_shape=[3,3]>(p)", pads=[0, 0, 1, 1, 0, 0, 1, 1], free=FREE
    ),
    between(
        "pad_reflect",
        """p = Pad<mode="reflect">(a, pads) o = AveragePool<kernel_shape=[3,3]>(p)""",
        pads=[0, 0, 1, 1, 0, 0, 1, 1],
        free=FREE,
    ),
    between(
        "pad_channels",
        "p = Pad(a, pads) h = Conv<pads=[1,1,1,1]>(a, w3) s = Add(p, h) o = Relu(s)",
        channels=9,
        pads=[0, 1, 0, 0, 0, 2, 0, 0],
        w3=(9, 6, 3, 3),
    ),
    between(
        "squeeze_unsqueeze",
        """p = GlobalAveragePool(a) s = Squeeze(p, axes) u = Unsqueeze(s, axes)
            o = Mul(a, u)""",
        axes=[2, 3],
        free=FREE,
    ),
    between(
        "reshape_spatial",
        """r = Reshape(a, flat) t = Transpose<perm=[0,2,1]>(r) m = MatMul(t, wm) n = Relu(m)
            v = Transpose<perm=[0,2,1]>(n) o = Reshape(v, image)""",
        channels=5,
        flat=[0, 6, -1],
        wm=(6, 5),
        image=[-1, 5, 8, 8],
        free={"w1": 6, "wm": 5},
    ),
    between(
        "gram_of_channels",
        """r = Reshape(a, flat) t = Transpose<perm=[0,2,1]>(r) g = MatMul(r, t)
            d = Div(g, area) m = MatMul(d, r) o = Reshape(m, image)""",
        flat=[0, 6, -1],
        area=64.0,
        image=[-1, 6, 8, 8],
        free=FREE,
    ),
    between(
        "scatter_channels",
        "o = ScatterElements<axis=1>(a, index, update)",
        index=np.zeros((1, 1, 1, 1), np.int64),
        update=0.5 * np.ones((1, 1, 1, 1)),
    ),
    between("top_k_channels", "v, i = TopK<axis=1>(a, k) o = Relu(v)", channels=3, k=[3], frozen={"w1": "TopK"}),
)

CHANNEL = {**ACTIVATIONS, **NORMALIZED, **INDEXED}
