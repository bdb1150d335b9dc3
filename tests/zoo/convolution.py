"""Convolutional structures: chains, joins, groups, gates, and what turns channels into positions."""

from __future__ import annotations

import numpy as np

from .sample import Sample, table

CHAINS = table(
    Sample(
        "conv_chain",
        """(float[N,3,8,8] x) => (float[N,5] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)   ar = Relu(a)
        b = Conv<pads=[1,1,1,1]>(ar, w2, b2)  br = Relu(b)
        p = GlobalAveragePool(br)  f = Flatten(p)  y = Gemm<transB=1>(f, w3, b3) }""",
        dict(w1=(8, 3, 3, 3), b1=(8,), w2=(6, 8, 3, 3), b2=(6,), w3=(5, 6), b3=(5,)),
        free={"w1": 8, "w2": 6},
        frozen={"w3": "output"},
    ),
    Sample(
        "conv_bn",
        """(float[N,3,8,8] x) => (float[N,5] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1)   an = BatchNormalization(a, scale1, beta1, mean1, var1)   ar = Relu(an)
        b = Conv<pads=[1,1,1,1]>(ar, w2)  bn = BatchNormalization(b, scale2, beta2, mean2, var2)   br = Relu(bn)
        p = GlobalAveragePool(br)  f = Flatten(p)  y = Gemm(f, w3, b3) }""",
        dict(
            w1=(8, 3, 3, 3),
            scale1=(8,),
            beta1=(8,),
            mean1=(8,),
            var1=(8,),
            w2=(6, 8, 3, 3),
            scale2=(6,),
            beta2=(6,),
            mean2=(6,),
            var2=(6,),
            w3=(6, 5),
            b3=(5,),
        ),
        free={"w1": 8, "w2": 6},
        frozen={"w3": "output"},
    ),
    Sample(
        "bn_relu_conv",
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  n = BatchNormalization(a, scale1, beta1, mean1, var1)  r = Relu(n)
        m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)
        v = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(m)  y = Conv(v, w2) }""",
        dict(w1=(6, 3, 3, 3), b1=(6,), scale1=(6,), beta1=(6,), mean1=(6,), var1=(6,), w2=(4, 6, 1, 1)),
        free={"w1": 6},
        frozen={"w2": "output"},
    ),
    Sample(
        "residual_identity",
        """(float[N,3,8,8] x) => (float[N,5] y) {
        s = Conv<pads=[1,1,1,1]>(x, w1, b1)   sr = Relu(s)
        a = Conv<pads=[1,1,1,1]>(sr, w2, b2)  ar = Relu(a)  b = Conv<pads=[1,1,1,1]>(ar, w3, b3)
        t = Add(b, sr)  tr = Relu(t)  p = GlobalAveragePool(tr)  f = Flatten(p)  y = Gemm<transB=1>(f, w4, b4) }""",
        dict(w1=(6, 3, 3, 3), b1=(6,), w2=(5, 6, 3, 3), b2=(5,), w3=(6, 5, 3, 3), b3=(6,), w4=(5, 6), b4=(5,)),
        free={"w1 w3": 6, "w2": 5},
    ),
    Sample(
        "residual_downsample",
        """(float[N,3,8,8] x) => (float[N,5] y) {
        s = Conv<pads=[1,1,1,1]>(x, w1, b1)   sr = Relu(s)
        a = Conv<pads=[1,1,1,1], strides=[2,2]>(sr, w2, b2)  ar = Relu(a)  b = Conv<pads=[1,1,1,1]>(ar, w3, b3)
        d = Conv<strides=[2,2]>(sr, w4)
        t = Add(b, d)  tr = Relu(t)  p = GlobalAveragePool(tr)  f = Flatten(p)  y = Gemm<transB=1>(f, w5, b5) }""",
        dict(
            w1=(4, 3, 3, 3),
            b1=(4,),
            w2=(6, 4, 3, 3),
            b2=(6,),
            w3=(8, 6, 3, 3),
            b3=(8,),
            w4=(8, 4, 1, 1),
            w5=(5, 8),
            b5=(5,),
        ),
        free={"w1": 4, "w2": 6, "w3 w4": 8},
    ),
    Sample(
        "dense_concat",
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  ar = Relu(a)
        b = Conv<pads=[1,1,1,1]>(ar, w2, b2)  br = Relu(b)   c1 = Concat<axis=1>(ar, br)
        c = Conv<pads=[1,1,1,1]>(c1, w3, b3)  cr = Relu(c)   c2 = Concat<axis=1>(c1, cr)
        n = BatchNormalization(c2, scale4, beta4, mean4, var4)  nr = Relu(n)
        t = Conv(nr, w4)  tr = Relu(t)  y = Conv(tr, w5) }""",
        dict(
            w1=(4, 3, 3, 3),
            b1=(4,),
            w2=(3, 4, 3, 3),
            b2=(3,),
            w3=(3, 7, 3, 3),
            b3=(3,),
            scale4=(10,),
            beta4=(10,),
            mean4=(10,),
            var4=(10,),
            w4=(6, 10, 1, 1),
            w5=(5, 6, 1, 1),
        ),
        free={"w1": 4, "w2": 3, "w3": 3, "w4": 6},
    ),
    Sample(
        "inception",
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
        s = Conv(x, w0)  sr = Relu(s)
        a = Conv(sr, w1, b1)
        b1x = Conv(sr, w2)  b1r = Relu(b1x)  b = Conv<pads=[1,1,1,1]>(b1r, w3)
        p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(sr)  c = Conv(p, w4)
        m = Concat<axis=1>(a, b, c)  mr = Relu(m)  y = Conv(mr, w5) }""",
        dict(
            w0=(4, 3, 1, 1),
            w1=(3, 4, 1, 1),
            b1=(3,),
            w2=(2, 4, 1, 1),
            w3=(4, 2, 3, 3),
            w4=(3, 4, 1, 1),
            w5=(5, 10, 1, 1),
        ),
        free={"w0": 4, "w1": 3, "w2": 2, "w3": 4, "w4": 3},
    ),
    Sample(
        "conv1d",
        """(float[N,3,L] x) => (float[N,4,L] y) {
        a = Conv<pads=[1,1]>(x, w1, b1)  r = Relu(a)  b = Conv<pads=[2,2], dilations=[2]>(r, w2)  t = Tanh(b)
        y = Conv(t, w3) }""",
        dict(w1=(6, 3, 3), b1=(6,), w2=(5, 6, 3), w3=(4, 5, 1)),
        free={"w1": 6, "w2": 5},
    ),
    Sample(
        "conv3d",
        """(float[N,2,4,6,6] x) => (float[N,3] y) {
        a = Conv<pads=[1,1,1,1,1,1]>(x, w1, b1)  r = Relu(a)  m = MaxPool<kernel_shape=[2,2,2], strides=[2,2,2]>(r)
        b = Conv(m, w2)  q = Sigmoid(b)  p = GlobalMaxPool(q)  f = Flatten(p)  y = Gemm(f, w3) }""",
        dict(w1=(5, 2, 3, 3, 3), b1=(5,), w2=(4, 5, 1, 1, 1), w3=(4, 3)),
        free={"w1": 5, "w2": 4},
    ),
)

GROUPED = table(
    Sample(
        "depthwise",
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)
        d = Conv<group=6, pads=[1,1,1,1]>(r, dw, db)  q = Relu(d)  y = Conv(q, w2) }""",
        dict(w1=(6, 3, 3, 3), b1=(6,), dw=(6, 1, 3, 3), db=(6,), w2=(4, 6, 1, 1)),
        free={"w1 dw": 6},
    ),
    Sample(
        "depthwise_multiplier",
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)
        d = Conv<group=6, pads=[1,1,1,1]>(r, dw, db)  q = Relu(d)  y = Conv(q, w2) }""",
        dict(w1=(6, 3, 3, 3), b1=(6,), dw=(12, 1, 3, 3), db=(12,), w2=(4, 12, 1, 1)),
        free={"w1 dw": 6},
    ),
    Sample(
        "inverted_residual",
        """(float[N,3,8,8] x) => (float[N,5] y) {
        s = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)  zero = Constant<value_float=0.0>()
        six = Constant<value_float=6.0>()  sc = Clip(s, zero, six)
        e = Conv(sc, w2, b2)  ec = Clip(e, zero, six)  d = Conv<group=8, pads=[1,1,1,1]>(ec, dw, db)
        dc = Clip(d, zero, six)  q = Conv(dc, w3, b3)  t = Add(sc, q)
        p = GlobalAveragePool(t)  f = Flatten(p)  y = Gemm<transB=1>(f, w4, b4) }""",
        dict(
            w1=(4, 3, 3, 3),
            b1=(4,),
            w2=(8, 4, 1, 1),
            b2=(8,),
            dw=(8, 1, 3, 3),
            db=(8,),
            w3=(4, 8, 1, 1),
            b3=(4,),
            w4=(5, 4),
            b4=(5,),
        ),
        free={"w1 w3": 4, "w2 dw": 8},
    ),
    Sample(
        "depthwise_on_input",
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        d = Conv<group=3, pads=[1,1,1,1]>(x, dw)  q = Relu(d)  p = Conv(q, w1)  r = Relu(p)  y = Conv(r, w2) }""",
        dict(dw=(6, 1, 3, 3), w1=(6, 6, 1, 1), w2=(4, 6, 1, 1)),
        free={"w1": 6},
    ),
    Sample(
        "grouped",
        """(float[N,3,8,8] x) => (float[N,6,8,8] y) {
        a = Conv(x, w1, b1)  r = Relu(a)  g = Conv<group=4, pads=[1,1,1,1]>(r, w2, b2)  q = Relu(g)
        y = Conv(q, w3) }""",
        dict(w1=(8, 3, 1, 1), b1=(8,), w2=(12, 2, 3, 3), b2=(12,), w3=(6, 12, 1, 1)),
        free={"w1": None, "w2": None},
    ),
    Sample(
        "grouped_residual",
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
        s = Conv(x, w0)  a = Conv(s, w1, b1)  r = Relu(a)  g = Conv<group=4, pads=[1,1,1,1]>(r, w2)  q = Relu(g)
        o = Conv(q, w3)  t = Add(o, s)  u = Relu(t)  y = Conv(u, w4) }""",
        dict(w0=(6, 3, 1, 1), w1=(8, 6, 1, 1), b1=(8,), w2=(8, 2, 3, 3), w3=(6, 8, 1, 1), w4=(5, 6, 1, 1)),
        free={"w0 w3": 6, "w1": None, "w2": None},
    ),
    Sample(
        "shuffle_grouped",
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
        s = Conv(x, w0)  g1 = Conv<group=2>(s, w1, b1)  r = Relu(g1)
        a = Reshape(r, split)  t = Transpose<perm=[0,2,1,3,4]>(a)  u = Reshape(t, merge)
        d = Conv<group=8, pads=[1,1,1,1]>(u, dw)  g2 = Conv<group=2>(d, w2)  q = Add(g2, s)  y = Conv(q, w3) }""",
        dict(
            w0=(6, 3, 1, 1),
            w1=(8, 3, 1, 1),
            b1=(8,),
            split=[-1, 2, 4, 8, 8],
            merge=[-1, 8, 8, 8],
            dw=(8, 1, 3, 3),
            w2=(6, 4, 1, 1),
            w3=(5, 6, 1, 1),
        ),
    ),
    Sample(
        "shuffle_split_concat",
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
        s = Conv(x, w0)  a, b = Split<axis=1>(s, halves)
        e = Conv(b, w1)  er = Relu(e)  d = Conv<group=4, pads=[1,1,1,1]>(er, dw)  o = Conv(d, w2)  r = Relu(o)
        c = Concat<axis=1>(a, r)  h = Reshape(c, split)  t = Transpose<perm=[0,2,1,3,4]>(h)  u = Reshape(t, merge)
        a2, b2 = Split<axis=1>(u, halves)  f = Conv(b2, w3)  v = Concat<axis=1>(a2, f)  y = Conv(v, w4) }""",
        dict(
            w0=(8, 3, 1, 1),
            halves=[4, 4],
            w1=(4, 4, 1, 1),
            dw=(4, 1, 3, 3),
            w2=(4, 4, 1, 1),
            split=[0, 2, 4, 8, 8],
            merge=[0, -1, 8, 8],
            w3=(4, 4, 1, 1),
            w4=(5, 8, 1, 1),
        ),
        free={"w1 dw": 4},
    ),
    Sample(
        "squeeze_excite",
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)
        p = GlobalAveragePool(r)  q = Conv(p, se1, sb1)  qr = Relu(q)  e = Conv(qr, se2, sb2)
        g = HardSigmoid<alpha=0.2, beta=0.5>(e)  m = Mul(r, g)  y = Conv(m, w2) }""",
        dict(w1=(6, 3, 3, 3), b1=(6,), se1=(3, 6, 1, 1), sb1=(3,), se2=(6, 3, 1, 1), sb2=(6,), w2=(4, 6, 1, 1)),
        free={"w1 se2": 6, "se1": 3},
    ),
    Sample(
        "squeeze_excite_gemm",
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  s = Sigmoid(a)  r = Mul(a, s)
        p = ReduceMean<axes=[2,3], keepdims=0>(r)  q = Gemm<transB=1>(p, se1, sb1)  qr = Relu(q)
        e = Gemm<transB=1>(qr, se2, sb2)  g = Sigmoid(e)  u = Unsqueeze(g, axes)  m = Mul(u, r)  y = Conv(m, w2) }""",
        dict(w1=(6, 3, 3, 3), b1=(6,), se1=(3, 6), sb1=(3,), se2=(6, 3), sb2=(6,), axes=[2, 3], w2=(4, 6, 1, 1)),
        free={"w1 se2": 6, "se1": 3},
    ),
    Sample(
        "squeeze_excite_opset18",  # axes are an input; biases as PyTorch's exporter writes them without optimisation
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        like = CastLike(nothing, x)  b1 = Expand(like, six)  a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)
        p = ReduceMean(r, space)  q = Conv(p, se1, sb1)  qr = Relu(q)  e = Conv(qr, se2, sb2)
        g = Sigmoid(e)  m = Mul(r, g)  y = Conv(m, w2) }""",
        dict(
            nothing=np.array(0.0, np.float16),
            six=[6],
            w1=(6, 3, 3, 3),
            space=[-1, -2],
            se1=(3, 6, 1, 1),
            sb1=(3,),
            se2=(6, 3, 1, 1),
            sb2=(6,),
            w2=(4, 6, 1, 1),
        ),
        free={"w1 se2": 6, "se1": 3},
        opset=18,
    ),
)

POSITIONS = table(
    Sample(
        "flatten_gemm",
        """(float[N,3,8,8] x) => (float[N,5] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
        f = Flatten(m)  h = Gemm<transB=1>(f, w2, b2)  q = Relu(h)  y = Gemm<transB=1>(q, w3, b3) }""",
        dict(w1=(4, 3, 3, 3), b1=(4,), w2=(7, 64), b2=(7,), w3=(5, 7), b3=(5,)),
        free={"w1": 4, "w2": 7},
    ),
    Sample(
        "flatten_dynamic",
        """(float[N,3,8,8] x) => (float[N,5] y) {
        a = Conv(x, w1, b1)  r = Relu(a)  s = Shape(r)  n = Gather(s, zero)  m = Unsqueeze(n, axis)
        t = Concat<axis=0>(m, rest)  f = Reshape(r, t)  y = MatMul(f, w2) }""",
        dict(w1=(4, 3, 3, 3), b1=(4,), zero=np.array(0), axis=[0], rest=[-1], w2=(144, 5)),
        free={"w1": 4},
    ),
    Sample(
        "nhwc",
        """(float[N,8,8,3] x) => (float[N,5] y) {
        t = Transpose<perm=[0,3,1,2]>(x)  a = Conv<pads=[1,1,1,1]>(t, w1)  u = Transpose<perm=[0,2,3,1]>(a)
        ub = Add(u, b1)  r = Relu(ub)  v = Transpose<perm=[0,3,1,2]>(r)  b = Conv<pads=[1,1,1,1]>(v, w2)
        w = Transpose<perm=[0,2,3,1]>(b)  wb = Add(w, b2)  wr = Relu(wb)
        m = ReduceMean<axes=[1,2], keepdims=0>(wr)  h = MatMul(m, w3)  y = Add(h, b3) }""",
        dict(w1=(6, 3, 3, 3), b1=(6,), w2=(7, 6, 3, 3), b2=(7,), w3=(7, 5), b3=(5,)),
        free={"w1": 6, "w2": 7},
    ),
    Sample(
        "nhwc_flatten",
        """(float[N,6,6,3] x) => (float[N,5] y) {
        t = Transpose<perm=[0,3,1,2]>(x)  a = Conv(t, w1, b1)  u = Transpose<perm=[0,2,3,1]>(a)  r = Relu(u)
        f = Reshape(r, flat)  y = MatMul(f, w2) }""",
        dict(w1=(5, 3, 3, 3), b1=(5,), flat=[-1, 80], w2=(80, 5)),
        free={"w1": 5},
    ),
    Sample(
        "unet",
        """(float[N,3,8,8] x) => (float[N,2,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  ar = Relu(a)  d = MaxPool<kernel_shape=[2,2], strides=[2,2]>(ar)
        b = Conv<pads=[1,1,1,1]>(d, w2, b2)  br = Relu(b)  u = ConvTranspose<strides=[2,2]>(br, up, ub)
        c = Concat<axis=1>(u, ar)  e = Conv<pads=[1,1,1,1]>(c, w3, b3)  er = Relu(e)  y = Conv(er, w4) }""",
        dict(
            w1=(4, 3, 3, 3),
            b1=(4,),
            w2=(6, 4, 3, 3),
            b2=(6,),
            up=(6, 5, 2, 2),
            ub=(5,),
            w3=(6, 9, 3, 3),
            b3=(6,),
            w4=(2, 6, 1, 1),
        ),
        free={"w1": 4, "w2": 6, "up": 5, "w3": 6},
    ),
    Sample(
        "unet_resize",
        """(float[N,3,8,8] x) => (float[N,2,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  ar = Relu(a)  d = AveragePool<kernel_shape=[2,2], strides=[2,2]>(ar)
        b = Conv<pads=[1,1,1,1]>(d, w2, b2)  br = Relu(b)
        u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(br, "", scales)
        c = Concat<axis=1>(u, ar)  e = Conv<pads=[1,1,1,1]>(c, w3, b3)  er = Relu(e)  y = Conv(er, w4) }""",
        dict(
            w1=(4, 3, 3, 3),
            b1=(4,),
            w2=(6, 4, 3, 3),
            b2=(6,),
            scales=[1.0, 1.0, 2.0, 2.0],
            w3=(6, 10, 3, 3),
            b3=(6,),
            w4=(2, 6, 1, 1),
        ),
        free={"w1": 4, "w2": 6, "w3": 6},
    ),
    Sample(
        "resize_linear_sizes",
        """(float[1,3,8,8] x) => (float[1,2,16,16] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  u = Resize<mode="linear">(a, "", "", sizes)  r = Relu(u)
        y = Conv(r, w2) }""",
        dict(w1=(5, 3, 3, 3), b1=(5,), sizes=[1, 5, 16, 16], w2=(2, 5, 1, 1)),
        free={"w1": 5},
    ),
    Sample(
        "fpn_resize_like",
        """(float[N,3,8,8] x) => (float[N,2,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1)  d = Conv<strides=[2,2]>(a, w2)  l = Conv(a, w3)  t = Conv(d, w4)
        sl = Shape(l)  hw = Slice(sl, two, four)  st = Shape(t)  nc = Slice(st, zero, two)  s = Concat<axis=0>(nc, hw)
        u = Resize<mode="nearest">(t, "", "", s)  m = Add(u, l)  r = Relu(m)  y = Conv(r, w5) }""",
        dict(
            w1=(4, 3, 3, 3),
            w2=(6, 4, 1, 1),
            w3=(5, 4, 1, 1),
            w4=(5, 6, 1, 1),
            zero=[0],
            two=[2],
            four=[4],
            w5=(2, 5, 1, 1),
        ),
        free={"w1": 4, "w2": 6, "w3 w4": 5},
    ),
    Sample(
        "upsample_old",
        """(float[N,3,8,8] x) => (float[N,2,16,16] y) {
        a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)  u = Upsample<mode="nearest">(a, scales)  r = Relu(u)
        y = Conv<kernel_shape=[1,1]>(r, w2) }""",
        dict(w1=(5, 3, 3, 3), b1=(5,), scales=[1.0, 1.0, 2.0, 2.0], w2=(2, 5, 1, 1)),
        free={"w1": 5},
        opset=9,
    ),
    Sample(
        "transpose_depthwise",
        """(float[N,3,6,6] x) => (float[N,2,12,12] y) {
        a = Conv(x, w1)  r = Relu(a)  u = ConvTranspose<group=4, strides=[2,2]>(r, up)  y = Conv(u, w2) }""",
        dict(w1=(4, 3, 1, 1), up=(4, 1, 2, 2), w2=(2, 4, 1, 1)),
        free={"w1 up": 4},
    ),
    *[
        Sample(
            f"depth_to_space_{mode.lower()}",
            f"""(float[N,3,6,6] x) => (float[N,4,12,12] y) {{
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  d = DepthToSpace<blocksize=2, mode="{mode}">(a)  r = Relu(d)
        y = Conv(r, w2) }}""",
            dict(w1=(12, 3, 3, 3), b1=(12,), w2=(4, 3, 1, 1)),
            free={"w1": 3},
        )
        for mode in ("DCR", "CRD")
    ],
    Sample(
        "pixel_shuffle_reshape",
        """(float[N,3,6,6] x) => (float[N,4,12,12] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  s = Reshape(a, split)  t = Transpose<perm=[0,1,4,2,5,3]>(s)
        d = Reshape(t, merge)  y = Conv(d, w2) }""",
        dict(w1=(12, 3, 3, 3), b1=(12,), split=[-1, 3, 2, 2, 6, 6], merge=[-1, 3, 12, 12], w2=(4, 3, 1, 1)),
        free={"w1": 3},
    ),
    Sample(
        "space_to_depth",
        """(float[N,3,8,8] x) => (float[N,5,4,4] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  d = SpaceToDepth<blocksize=2>(a)  r = Relu(d)  y = Conv(r, w2) }""",
        dict(w1=(4, 3, 3, 3), b1=(4,), w2=(5, 16, 1, 1)),
        free={"w1": 4},
    ),
    Sample(
        "focus_slices",
        """(float[N,3,8,8] x) => (float[N,4,4,4] y) {
        x00 = Slice(x, s00, end, hw, step)  x10 = Slice(x, s10, end, hw, step)  x01 = Slice(x, s01, end, hw, step)
        x11 = Slice(x, s11, end, hw, step)  c = Concat<axis=1>(x00, x10, x01, x11)
        a = Conv<pads=[1,1,1,1]>(c, w1)  r = Relu(a)  y = Conv(r, w2) }""",
        dict(
            s00=[0, 0],
            s10=[1, 0],
            s01=[0, 1],
            s11=[1, 1],
            end=[8, 8],
            hw=[2, 3],
            step=[2, 2],
            w1=(6, 12, 3, 3),
            w2=(4, 6, 1, 1),
        ),
        free={"w1": 6},
    ),
)

CONVOLUTION = {**CHAINS, **GROUPED, **POSITIONS}
