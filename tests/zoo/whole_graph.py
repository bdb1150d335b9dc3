"""Facts about whole graphs: bodies, shared weights, inputs and outputs in the way, types, units that cost nothing."""

from __future__ import annotations

import numpy as np

from .sample import Sample, table


def with_rows(rows: dict[int, int | float], shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random array of `shape` whose rows are replaced: an int copies that row, a float fills."""
    array = np.random.default_rng(seed).standard_normal(shape) * 0.3
    for row, source in rows.items():
        array[row] = array[source] if isinstance(source, int) else source
    return array


CHAIN = """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  y = Conv(r, w2) }"""

BODIES = table(
    Sample(
        "if_branches",
        """(float[N,3,8,8] x, bool flag) => (float[N,4,8,8] y) {
        a = Conv(x, w1)  r = Relu(a)
        h = If(flag) <then_branch = yes () => (float[N,5,8,8] t) { t = Conv<pads=[1,1,1,1]>(r, wt, bt) },
                      else_branch = no () => (float[N,5,8,8] e) { e = Conv(r, we) }>
        q = Relu(h)  y = Conv(q, w2) }""",
        dict(w1=(6, 3, 1, 1), w2=(4, 5, 1, 1)),
        inner={"yes": dict(wt=(5, 6, 3, 3), bt=(5,)), "no": dict(we=(5, 6, 1, 1))},
    ),
    Sample(
        "if_constant_branch",
        """(float[N,6] x, bool flag) => (float[N,4] y) {
        a = MatMul(x, w1)  r = Relu(a)
        h = If(flag) <then_branch = yes () => (float[9] t) { t = Identity(scale) },
                      else_branch = no () => (float[9] e) { e = Constant<value_floats=[1.0,2.0,3.0,1.0,1.0,1.0,1.0,1.0,0.5]>() }>
        s = Mul(r, h)  y = MatMul(s, w2) }""",
        dict(w1=(6, 9), w2=(9, 4), scale=(9,)),
    ),
    Sample(
        "if_whole_net",
        """(float[N,3,8,8] x, bool flag) => (float[N,4,8,8] y) {
        y = If(flag) <then_branch = yes () => (float[N,4,8,8] t) { a = Conv(x, wa)  r = Relu(a)  t = Conv(r, wb) },
                      else_branch = no () => (float[N,4,8,8] e) { e = Conv(x, we) }> }""",
        {},
        inner={"yes": dict(wa=(6, 3, 1, 1), wb=(4, 6, 1, 1)), "no": dict(we=(4, 3, 1, 1))},
    ),
    Sample(
        "loop_matmul",
        """(float[N,6] x) => (float[N,4] y) {
        h = MatMul(x, w1)
        z = Loop(trips, go, h) <body = step (int64 i, bool c_in, float[N,7] s) => (bool c_out, float[N,7] s2) {
            c_out = Identity(c_in)  m = MatMul(s, wl)  t = Tanh(m)  s2 = Add(s, t) }>
        y = MatMul(z, w2) }""",
        dict(trips=np.array(3), go=np.array(True), w1=(6, 7), w2=(7, 4)),
        inner={"step": dict(wl=(7, 7))},
    ),
    Sample(
        "scan_outer_weight",
        """(float[L,6] x) => (float[L,4] y) {
        p = MatMul(x, w1)
        last, z = Scan<num_scan_inputs=1, body = step (float[7] s, float[7] e) => (float[7] s2, float[7] o) {
            m = MatMul(s, wl)  t = Add(m, e)  s2 = Tanh(t)  o = Identity(s2) }>(start, p)
        y = MatMul(z, w2) }""",
        dict(w1=(6, 7), wl=(7, 7), start=np.zeros(7), w2=(7, 4)),
    ),
)

SHARED = table(
    Sample(
        "shared_siamese",
        """(float[N,3,8,8] x, float[N,3,8,8] z) => (float[N,4,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  ar = Relu(a)  b = Conv<pads=[1,1,1,1]>(z, w1, b1)  br = Relu(b)
        p = Conv(ar, w2)  q = Conv(br, w3)  y = Add(p, q) }""",
        dict(w1=(6, 3, 3, 3), b1=(6,), w2=(4, 6, 1, 1), w3=(4, 6, 1, 1)),
        free={"w1": 6},
    ),
    Sample(
        "shared_series",
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv(x, w1)  r = Relu(a)  b = Conv<pads=[1,1,1,1]>(r, w, b0)  br = Relu(b)
        c = Conv<pads=[1,1,1,1]>(br, w, b0)  cr = Relu(c)  y = Conv(cr, w2) }""",
        dict(w1=(6, 3, 1, 1), w=(6, 6, 3, 3), b0=(6,), w2=(4, 6, 1, 1)),
        free={"w1 w": 6},
    ),
    Sample(
        "shared_bias",
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv(x, w1, b0)  ar = Relu(a)  b = Conv(ar, w2, b0)  br = Relu(b)  y = Conv(br, w3) }""",
        dict(w1=(6, 3, 1, 1), b0=(6,), w2=(6, 6, 1, 1), w3=(4, 6, 1, 1)),
        free={"w1": 6, "w2": 6},
    ),
    Sample("initializer_is_input", CHAIN, dict(w1=(6, 3, 3, 3), b1=(6,), w2=(5, 6, 1, 1)), inputs=["w1", "b1"]),
    Sample(
        "weights_in_constants",
        """(float[N,2] x) => (float[N,2] y) {
        w1 = Constant<value = float[2,3] {0.5, -1.0, 0.25, 1.0, 0.75, -0.5}>()
        w2 = Constant<value = float[3,2] {1.0, 0.5, -0.5, 0.25, 0.75, -1.0}>()
        a = MatMul(x, w1)  r = Relu(a)  y = MatMul(r, w2) }""",
        {},
        free={"w1": 3},
    ),
    Sample(
        "weight_through_identity",
        """(float[N,5] x) => (float[N,4] y) {
        v = Identity(w1)  t = Transpose<perm=[1,0]>(w2)  a = MatMul(x, v)  r = Relu(a)  y = MatMul(r, t) }""",
        dict(w1=(5, 6), w2=(4, 6)),
    ),
)

ENDS = table(
    Sample(
        "hidden_is_output",
        """(float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,6,8,8] r) {
        a = Conv(x, w1)  r = Relu(a)  b = Conv(r, w2)  q = Relu(b)  y = Conv(q, w3) }""",
        dict(w1=(6, 3, 1, 1), w2=(5, 6, 1, 1), w3=(4, 5, 1, 1)),
        free={"w2": 5},
        frozen={"w1": "output"},
    ),
    Sample(
        "residual_from_input",
        """(float[N,6,8,8] x) => (float[N,4,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1)  r = Relu(a)  b = Conv(r, w2)  s = Add(x, b)  q = Relu(s)  y = Conv(q, w3) }""",
        dict(w1=(5, 6, 3, 3), w2=(6, 5, 1, 1), w3=(4, 6, 1, 1)),
        free={"w1": 5},
        frozen={"w2": "input"},
    ),
    Sample(
        "two_inputs_two_outputs",
        """(float[N,3,8,8] x, float[N,5] z) => (float[N,4] y, float[N,2] s) {
        a = Conv<pads=[1,1,1,1]>(x, w1)  r = Relu(a)  p = GlobalAveragePool(r)  f = Flatten(p)
        g = Gemm(z, w2)  t = Tanh(g)  c = Concat<axis=1>(f, t)  y = Gemm(c, w3)  s = Gemm(c, w4) }""",
        dict(w1=(6, 3, 3, 3), w2=(5, 4), w3=(10, 4), w4=(10, 2)),
        free={"w1": 6, "w2": 4},
    ),
    Sample(
        "gated_by_input",
        """(float[N,3,8,8] x, float[N,1,8,8] mask) => (float[N,4,8,8] y) {
        a = Conv(x, w1)  m = Mul(a, mask)
        y = Conv(m, w2) }""",
        dict(w1=(6, 3, 1, 1), w2=(4, 6, 1, 1)),
        free={"w1": 6},
    ),
    Sample(
        "weight_from_input",
        """(float[N,3,8,8] x, float[5,6,1,1] w) => (float[N,4,8,8] y) {
        a = Conv(x, w1)  r = Relu(a)  b = Conv(r, w)  y = Conv(b, w2) }""",
        dict(w1=(6, 3, 1, 1), w2=(4, 5, 1, 1)),
        frozen={"w1": "input"},
    ),
    Sample(
        "nothing_free",
        "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, w1)  y = Add(a, x) }",
        dict(w1=(4, 4)),
        frozen={"w1": "output|input"},
    ),
    Sample("no_weights", "(float[N,4] x) => (float[N,4] y) { y = Relu(x) }", {}),
)

FREE_CUTS = table(
    Sample(
        "duplicate_filters",
        CHAIN,
        dict(w1=with_rows({4: 1, 5: 2}, (6, 3, 3, 3), 1), b1=with_rows({4: 1, 5: 2}, (6,), 2), w2=(5, 6, 1, 1)),
        free={"w1": 6},
    ),
    Sample(
        "zero_filters",
        CHAIN,
        dict(w1=with_rows({0: 0.0, 3: 0.0}, (6, 3, 3, 3), 3), b1=with_rows({0: 0.0, 3: 0.0}, (6,), 4), w2=(5, 6, 1, 1)),
        free={"w1": 6},
    ),
    Sample(
        "constant_units",
        CHAIN,
        dict(
            w1=with_rows({1: 0.0, 2: 0.0}, (6, 3, 3, 3), 5), b1=with_rows({1: -2.0, 2: 0.7}, (6,), 6), w2=(5, 6, 1, 1)
        ),
        free={"w1": 6},
    ),
    Sample(
        "unread_units",
        CHAIN,
        dict(w1=(6, 3, 3, 3), b1=(6,), w2=with_rows({2: 0.0}, (6, 5), 7).T.reshape(5, 6, 1, 1)),
        free={"w1": 6},
    ),
    Sample(
        "dead_by_sigmoid_bound",
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
        s = Sigmoid(x)  a = Conv<pads=[1,1,1,1]>(s, w1, b1)  r = Relu(a)  y = Conv(r, w2) }""",
        dict(w1=(6, 3, 3, 3), b1=with_rows({3: -50.0}, (6,), 8), w2=(5, 6, 1, 1)),
        free={"w1": 6},
    ),
)

TYPES = table(
    Sample(
        "float16",
        CHAIN.replace("float", "float16"),
        dict(w1=(6, 3, 3, 3), b1=(6,), w2=(5, 6, 1, 1)),
        free={"w1": 6},
        dtype=np.float16,
    ),
    # onnxruntime has no double Conv on CPU
    Sample(
        "double",
        """(double[N,5] x) => (double[N,4] y) {
        a = MatMul(x, w1)  ab = Add(a, b1)  r = Relu(ab)  y = Gemm<transB=1>(r, w2, b2) }""",
        dict(w1=(5, 6), b1=(6,), w2=(4, 6), b2=(4,)),
        free={"w1": 6},
        dtype=np.float64,
    ),
    Sample(
        "quantized_qdq",
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        w1 = DequantizeLinear<axis=0>(w1q, scale, zeros)  a = Conv(x, w1)  r = Relu(a)  y = Conv(r, w2) }""",
        dict(
            w1q=np.arange(-9, 9, dtype=np.int8).reshape(6, 3, 1, 1),
            scale=(6,),
            zeros=np.zeros(6, np.int8),
            w2=(4, 6, 1, 1),
        ),
    ),
)

WHOLE_GRAPH = {**BODIES, **SHARED, **ENDS, **FREE_CUTS, **TYPES}

NOT_RUNNABLE = table(
    Sample(
        "unknown_domain",
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv(x, w1)  r = Relu(a)  c = my.domain.Mystery<level=3>(r)  b = Conv(c, w2)  q = Relu(b)
        y = Conv(q, w3) }""",
        dict(w1=(6, 3, 1, 1), w2=(5, 6, 1, 1), w3=(4, 5, 1, 1)),
        free={"w2": 5},
        frozen={"w1": "Mystery"},
        domains=["my.domain"],
    ),
    Sample(
        "unknown_operator",
        """(float[N,5] x) => (float[N,4] y) {
        a = MatMul(x, w1)  r = Brelu(a)  y = MatMul(r, w2) }""",
        dict(w1=(5, 6), w2=(6, 4)),
        frozen={"w1": "Brelu"},
    ),
)

REPAIRABLE = table(
    Sample(
        "unsorted_nodes",
        """(float[N,5] x) => (float[N,4] y) {

        y = MatMul(r, w2)  r = Relu(a)  a = MatMul(x, w1) }""",
        dict(w1=(5, 6), w2=(6, 4), unused=(3, 3)),
        free={"w1": 6},
    ),
    Sample(
        "repeated_node_names",
        """(float[N,5] x) => (float[N,4] y) {
        [same] a = MatMul(x, w1)  [same] r = Relu(a)  [same] y = MatMul(r, w2) }""",
        dict(w1=(5, 6), w2=(6, 4)),
        free={"w1": 6},
    ),
)
