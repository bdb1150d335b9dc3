"""Sequences and vectors: MLPs, embeddings, normalizations of tokens, gated feed-forward, recurrence."""

from __future__ import annotations

import numpy as np

from .sample import Sample, table

LAYER_NORM = """m = ReduceMean<axes=[-1]>(h)  c = Sub(h, m)  q = Pow(c, two)  v = ReduceMean<axes=[-1]>(q)
        e = Add(v, eps)  d = Sqrt(e)  n = Div(c, d)  s = Mul(n, scale)  o = Add(s, beta)"""
RMS_NORM = """q = Pow(h, two)  v = ReduceMean<axes=[-1]>(q)  e = Add(v, eps)  d = Sqrt(e)  i = Div(one, d)
        n = Mul(h, i)  o = Mul(scale, n)"""

VECTORS = table(
    Sample(
        "mlp_matmul",
        """(float[N,7] x) => (float[N,4] y) {
        a = MatMul(x, w1)  ab = Add(a, b1)  r = Relu(ab)  b = MatMul(r, w2)  bb = Add(b2, b)  s = Sigmoid(bb)
        c = MatMul(s, w3)  y = Add(c, b3) }""",
        dict(w1=(7, 9), b1=(9,), w2=(9, 6), b2=(6,), w3=(6, 4), b3=(4,)),
        free={"w1": 9, "w2": 6},
        frozen={"w3": "output"},
    ),
    Sample(
        "mlp_gemm",
        """(float[N,7] x) => (float[N,4] y) {
        a = Gemm<transB=1>(x, w1, b1)  r = Relu(a)  b = Gemm(r, w2, b2)  s = Tanh(b)  c = Gemm(s, w3)
        y = Softmax(c) }""",
        dict(w1=(9, 7), b1=(9,), w2=(9, 6), b2=(6,), w3=(6, 4)),
        free={"w1": 9, "w2": 6},
        frozen={"w3": "Softmax"},
    ),
    Sample(
        "gemm_alpha_beta",
        """(float[N,7] x) => (float[N,4] y) {
        a = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w1, b1)  r = Relu(a)  y = Gemm<alpha=1.5>(r, w2, b2) }""",
        dict(w1=(9, 7), b1=(1, 9), w2=(9, 4), b2=1.0),
        free={"w1": 9},
    ),
    Sample(
        "matmul_weight_left",
        """(float[7,N] x) => (float[4,N] y) {
        a = MatMul(w1, x)  ab = Add(a, b1)  r = Relu(ab)  y = MatMul(w2, r) }""",
        dict(w1=(9, 7), b1=(9, 1), w2=(4, 9)),
        free={"w1": 9},
    ),
    Sample(
        "batched_experts",
        """(float[N,7] x) => (float[N,4] y) {
        a = MatMul(x, w1)  r = Relu(a)  b = MatMul(r, w2)  y = ReduceSum<keepdims=0>(b, axis) }""",
        dict(w1=(3, 7, 9), w2=(3, 9, 4), axis=[0]),
        free={"w1": 9},
    ),
    Sample(
        "mlp_batch_norm",
        """(float[N,7] x) => (float[N,4] y) {
        a = Gemm<transB=1>(x, w1)  n = BatchNormalization(a, scale, beta, mean, var)  r = Relu(n)  y = Gemm(r, w2) }""",
        dict(w1=(9, 7), scale=(9,), beta=(9,), mean=(9,), var=(9,), w2=(9, 4)),
        free={"w1": 9},
    ),
    Sample(
        "factorization_pair",
        """(float[N,7] x) => (float[N,4] y) {
        a = MatMul(x, w1)  q = Mul(a, a)  p = MatMul(x, w2)  d = Sub(q, p)  y = MatMul(d, w3) }""",
        dict(w1=(7, 5), w2=(7, 5), w3=(5, 4)),
        free={"w1 w2": 5},
    ),
)

TOKENS = table(
    Sample(
        "embedding_position",
        """(int64[N,L] ids) => (float[N,L,6] y) {
        t = Gather(emb, ids)  s = Shape(ids)  l = Gather(s, one)  u = Unsqueeze(l, zero)  p = Slice(pos, zero, u, zero)
        h = Add(t, p)  a = MatMul(h, w1)  ab = Add(a, b1)  r = Relu(ab)  y = MatMul(r, w2) }""",
        dict(emb=(11, 8), pos=(16, 8), one=np.array(1), zero=[0], w1=(8, 9), b1=(9,), w2=(9, 6)),
        free={"emb": 8, "w1": 9},
    ),
    Sample(
        "embedding_mean",
        """(int64[N,L] ids) => (float[N,6] y) {
        t = Gather(emb, ids)  m = ReduceMean<axes=[1], keepdims=0>(t)  y = MatMul(m, w1) }""",
        dict(emb=(11, 8), w1=(8, 6)),
        free={"emb": 8},
    ),
    Sample(
        "embedding_tied",
        """(int64[N,L] ids) => (float[N,L,11] y) {
        h = Gather(emb, ids)  a = MatMul(h, w1)  r = Relu(a)  b = MatMul(r, w2)  s = Add(h, b)
        t = Transpose<perm=[1,0]>(emb)  y = MatMul(s, t) }""",
        dict(emb=(11, 8), w1=(8, 9), w2=(9, 8)),
        free={"emb w2": 8, "w1": 9},
    ),
    Sample(
        "one_hot",
        """(int64[N,L] ids) => (float[N,L,6] y) {
        h = OneHot(ids, depth, range)  a = MatMul(h, w1)  r = Relu(a)  y = MatMul(r, w2) }""",
        dict(depth=np.array(5), range=[0.0, 1.0], w1=(5, 8), w2=(8, 6)),
        free={"w1": 8},
    ),
    Sample(
        "layer_norm",
        """(float[N,L,7] x) => (float[N,L,4] y) {
        h = MatMul(x, w1)  n = LayerNormalization(h, scale, beta)  a = MatMul(n, w2)  r = Relu(a)
        y = MatMul(r, w3) }""",
        dict(w1=(7, 6), scale=(6,), beta=(6,), w2=(6, 9), w3=(9, 4)),
        free={"w2": 9},
        frozen={"w1": "LayerNormalization"},
    ),
    Sample(
        "layer_norm_decomposed",
        f"""(float[N,L,7] x) => (float[N,L,4] y) {{
        h = MatMul(x, w1)  {LAYER_NORM}  a = MatMul(o, w2)  r = Relu(a)  y = MatMul(r, w3) }}""",
        dict(w1=(7, 6), two=2.0, eps=1e-5, scale=(6,), beta=(6,), w2=(6, 9), w3=(9, 4)),
        free={"w2": 9},
        frozen={"w1": "ReduceMean|LayerNormalization"},
    ),
    Sample(
        "rms_norm_decomposed",
        f"""(float[N,L,7] x) => (float[N,L,4] y) {{
        h = MatMul(x, w1)  {RMS_NORM}  a = MatMul(o, w2)  r = Relu(a)  y = MatMul(r, w3) }}""",
        dict(w1=(7, 6), two=2.0, one=1.0, eps=1e-5, scale=(6,), w2=(6, 9), w3=(9, 4)),
        free={"w2": 9},
        frozen={"w1": "ReduceMean|RMSNormalization"},
    ),
    Sample(
        "rms_norm",
        """(float[N,L,7] x) => (float[N,L,4] y) {
        h = MatMul(x, w1)  n = RMSNormalization(h, scale)  a = MatMul(n, w2)  r = Relu(a)  y = MatMul(r, w3) }""",
        dict(w1=(7, 6), scale=(6,), w2=(6, 9), w3=(9, 4)),
        free={"w2": 9},
        frozen={"w1": "RMSNormalization"},
        opset=23,
    ),
    Sample(
        "skip_layer_norm",
        """(float[N,L,6] x) => (float[N,L,4] y) {
        h = MatMul(x, w1)  n = com.microsoft.SkipLayerNormalization<epsilon=1e-5>(h, x, scale, beta)
        a = MatMul(n, w2)  r = com.microsoft.FastGelu(a, b2)  y = MatMul(r, w3) }""",
        dict(w1=(6, 6), scale=(6,), beta=(6,), w2=(6, 9), b2=(9,), w3=(9, 4)),
        free={"w2": 9},
        frozen={"w1": "SkipLayerNormalization|input"},
        domains=["com.microsoft"],
    ),
    Sample(
        "swiglu_split",
        """(float[N,L,7] x) => (float[N,L,4] y) {
        h = MatMul(x, w1)  a, b = Split<axis=-1>(h, halves)  s = Sigmoid(a)  t = Mul(a, s)  u = Mul(t, b)
        y = MatMul(u, w2) }""",
        dict(w1=(7, 12), halves=[6, 6], w2=(6, 4)),
        free={"w1": 6},
    ),
    Sample(
        "geglu_split",
        """(float[N,L,7] x) => (float[N,L,4] y) {
        h = MatMul(x, w1)  hb = Add(b1, h)  a, b = Split<axis=2>(hb, halves)  g = Gelu(b)  u = Mul(a, g)
        y = MatMul(u, w2) }""",
        dict(w1=(7, 12), b1=(12,), halves=[6, 6], w2=(6, 4)),
        free={"w1": 6},
        opset=20,
    ),
    Sample(
        "swiglu_separate",
        """(float[N,L,7] x) => (float[N,L,4] y) {
        a = MatMul(x, w1)  s = Sigmoid(a)  t = Mul(a, s)  b = MatMul(x, w2)  u = Mul(t, b)  y = MatMul(u, w3) }""",
        dict(w1=(7, 6), w2=(7, 6), w3=(6, 4)),
        free={"w1 w2": 6},
    ),
    Sample(
        "conformer_glu",
        """(float[N,L,7] x) => (float[N,L,4] y) {
        t = Transpose<perm=[0,2,1]>(x)  h = Conv(t, w1, b1)  a, b = Split<axis=1>(h, halves)  s = Sigmoid(b)
        g = Mul(a, s)  d = Conv<group=6, pads=[1,1]>(g, dw)  o = Conv(d, w2)  y = Transpose<perm=[0,2,1]>(o) }""",
        dict(w1=(12, 7, 1), b1=(12,), halves=[6, 6], dw=(6, 1, 3), w2=(4, 6, 1)),
        free={"w1 dw": 6},
    ),
)

RECURRENT = table(
    Sample(
        "lstm",
        """(float[L,N,4] x) => (float[L,N,3] y) {
        h, last, cell = LSTM<hidden_size=5>(x, W, R, B)  s = Squeeze(h, axis)  y = MatMul(s, w2) }""",
        dict(W=(1, 20, 4), R=(1, 20, 5), B=(1, 40), axis=[1], w2=(5, 3)),
        free={"W R": 5},
    ),
    Sample(
        "lstm_last",
        """(float[L,N,4] x) => (float[N,3] y) {
        e = MatMul(x, w1)  s = Shape(e)  n = Gather(s, one)  u = Unsqueeze(n, zero)  t = Concat<axis=0>(single, u, five)
        z = ConstantOfShape(t)  h, last, cell = LSTM<hidden_size=5>(e, W, R, B, "", z, z)
        l = Squeeze(last, zero)  y = MatMul(l, w2) }""",
        dict(
            w1=(4, 6), one=np.array(1), zero=[0], single=[1], five=[5], W=(1, 20, 6), R=(1, 20, 5), B=(1, 40), w2=(5, 3)
        ),
        free={"w1": 6, "W R": 5},
    ),
    Sample(
        "lstm_bidirectional",
        """(float[N,L,4] x) => (float[N,L,3] y) {
        t = Transpose<perm=[1,0,2]>(x)  h, last, cell = LSTM<direction="bidirectional", hidden_size=5>(t, W, R, B)
        p = Transpose<perm=[2,0,1,3]>(h)  f = Reshape(p, flat)  y = MatMul(f, w2) }""",
        dict(W=(2, 20, 4), R=(2, 20, 5), B=(2, 40), flat=[0, 0, -1], w2=(10, 3)),
        free={"W R": 5},
    ),
    Sample(
        "lstm_stacked",
        """(float[L,N,4] x) => (float[L,N,3] y) {
        h1, l1, c1 = LSTM<direction="bidirectional", hidden_size=5>(x, W1, R1, B1)
        p1 = Transpose<perm=[0,2,1,3]>(h1)  f1 = Reshape(p1, flat)
        h2, l2, c2 = LSTM<hidden_size=6>(f1, W2, R2)  s = Squeeze(h2, axis)  y = MatMul(s, w3) }""",
        dict(
            W1=(2, 20, 4),
            R1=(2, 20, 5),
            B1=(2, 40),
            flat=[0, 0, -1],
            W2=(1, 24, 10),
            R2=(1, 24, 6),
            axis=[1],
            w3=(6, 3),
        ),
        free={"W1 R1": 5, "W2 R2": 6},
    ),
    Sample(
        "lstm_stateful",
        """(float[L,1,4] x, float[1,1,5] h0, float[1,1,5] c0) => (float[L,1,3] y, float[1,1,5] h1) {
        h, h1, c = LSTM<hidden_size=5>(x, W, R, B, "", h0, c0)  s = Squeeze(h, axis)  y = MatMul(s, w2) }""",
        dict(W=(1, 20, 4), R=(1, 20, 5), B=(1, 40), axis=[1], w2=(5, 3)),
    ),
    Sample(
        "gru",
        """(float[L,N,4] x) => (float[L,N,3] y) {
        h, last = GRU<hidden_size=5, linear_before_reset=1>(x, W, R, B)  s = Squeeze(h, axis)  r = Relu(s)
        y = MatMul(r, w2) }""",
        dict(W=(1, 15, 4), R=(1, 15, 5), B=(1, 30), axis=[1], w2=(5, 3)),
        free={"W R": 5},
    ),
    Sample(
        "gru_bidirectional_last",
        """(float[L,N,4] x) => (float[N,3] y) {
        h, last = GRU<direction="bidirectional", hidden_size=5>(x, W, R, B)  t = Transpose<perm=[1,0,2]>(last)
        f = Flatten(t)  y = Gemm(f, w2) }""",
        dict(W=(2, 15, 4), R=(2, 15, 5), B=(2, 30), w2=(10, 3)),
        free={"W R": 5},
    ),
    Sample(
        "rnn",
        """(float[L,N,4] x) => (float[L,N,3] y) {
        h, last = RNN<hidden_size=5>(x, W, R, B)  s = Squeeze(h, axis)  y = MatMul(s, w2) }""",
        dict(W=(1, 5, 4), R=(1, 5, 5), B=(1, 10), axis=[1], w2=(5, 3)),
        free={"W R": 5},
    ),
    Sample(
        "crnn",
        """(float[N,1,8,16] x) => (float[L,N,7] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  m = MaxPool<kernel_shape=[8,1], strides=[8,1]>(r)
        q = Squeeze(m, two)  t = Transpose<perm=[2,0,1]>(q)  h, l, c = LSTM<hidden_size=5>(t, W, R, B)
        s = Squeeze(h, axis)  o = MatMul(s, w2)  y = LogSoftmax<axis=2>(o) }""",
        dict(w1=(6, 1, 3, 3), b1=(6,), two=[2], W=(1, 20, 6), R=(1, 20, 5), B=(1, 40), axis=[1], w2=(5, 7)),
        free={"w1": 6, "W R": 5},
        frozen={"w2": "LogSoftmax"},
    ),
)

SEQUENCE = {**VECTORS, **TOKENS, **RECURRENT}
