"""Attention as exporters write it. Four heads of two dimensions; by default whole heads are the units."""

from __future__ import annotations

import numpy as np

from .sample import Sample, Weight, table

PROJECTED = """h = MatMul(x, w0)
        q0 = MatMul(h, wq)  q = Add(q0, bq)  k0 = MatMul(h, wk)  k = Add(k0, bk)  v0 = MatMul(h, wv)  v = Add(v0, bv)"""
ATTEND = """s = MatMul(qt, kt)  sc = Mul(s, root)  p = Softmax<axis=-1>(sc)  a = MatMul(p, vt)
        at = Transpose<perm=[0,2,1,3]>(a)"""
FINISH = "o0 = MatMul(m, wo)  o = Add(o0, bo)  r = Add(o, h)  y = MatMul(r, w1)"
PROJECTIONS: dict[str, Weight] = dict(
    w0=(7, 6), wq=(6, 8), bq=(8,), wk=(6, 8), bk=(8,), wv=(6, 8), bv=(8,), wo=(8, 6), bo=(6,), w1=(6, 3)
)
WEIGHTS: dict[str, Weight] = dict(PROJECTIONS, root=2**-0.5)
FUSED: dict[str, Weight] = dict(w0=(7, 6), wqkv=(6, 24), bqkv=(24,), root=2**-0.5, wo=(8, 6), bo=(6,), w1=(6, 3))
FUSED_START = "h = MatMul(x, w0)  f0 = MatMul(h, wqkv)  f = Add(bqkv, f0)"
FREE = {"wq wk wv": 4, "w0 wo": 6}
FUSED_FREE = {"wqkv": 4, "w0 wo": 6}
SIGNATURE = "(float[N,5,7] x) => (float[N,5,3] y)"


def dynamic_heads(name: str) -> str:
    """`name` [N, L, 8] -> `name`4 [N, L, 4, 2] by a chain of Shape, Gather, Unsqueeze, Concat, Reshape."""
    return f"""{name}s = Shape({name})  {name}b = Gather({name}s, i0)  {name}l = Gather({name}s, i1)
        {name}bu = Unsqueeze({name}b, axis0)  {name}lu = Unsqueeze({name}l, axis0)
        {name}c = Concat<axis=0>({name}bu, {name}lu, four, two)  {name}4 = Reshape({name}, {name}c) """


def heads(name: str, perm: str = "0,2,1,3") -> str:
    return f"{name}4 = Reshape({name}, split)  {name}t = Transpose<perm=[{perm}]>({name}4) "


STANDARD = table(
    Sample(
        "attention_static",
        f"""{SIGNATURE} {{ {PROJECTED} {heads("q")} {heads("k", "0,2,3,1")} {heads("v")}
        {ATTEND}  m = Reshape(at, merge)  {FINISH} }}""",
        dict(WEIGHTS, split=[-1, 5, 4, 2], merge=[-1, 5, 8]),
        free=FREE,
    ),
    Sample(
        "attention_zero_copy",
        f"""(float[N,L,7] x) => (float[N,L,3] y) {{ {PROJECTED} {heads("q")}
        {heads("k", "0,2,3,1")} {heads("v")} {ATTEND}  m = Reshape(at, merge)  {FINISH} }}""",
        dict(WEIGHTS, split=[0, 0, 4, 2], merge=[0, 0, -1]),
        free=FREE,
    ),
    Sample(
        "attention_dynamic",
        f"""(float[N,L,7] x) => (float[N,L,3] y) {{ {PROJECTED}
        {dynamic_heads("q")} {dynamic_heads("k")} {dynamic_heads("v")} qt = Transpose<perm=[0,2,1,3]>(q4)
        kt = Transpose<perm=[0,2,3,1]>(k4)  vt = Transpose<perm=[0,2,1,3]>(v4)
        {ATTEND}  ms = Shape(at)  mb = Gather(ms, i0)  ml = Gather(ms, i1)  mh = Gather(ms, i2)  md = Gather(ms, i3)
        mw = Mul(mh, md)  mbu = Unsqueeze(mb, axis0)  mlu = Unsqueeze(ml, axis0)  mwu = Unsqueeze(mw, axis0)
        mc = Concat<axis=0>(mbu, mlu, mwu)  m = Reshape(at, mc)  {FINISH} }}""",
        dict(WEIGHTS, i0=np.array(0), i1=np.array(1), i2=np.array(2), i3=np.array(3), axis0=[0], four=[4], two=[2]),
        free=FREE,
    ),
    Sample(
        "attention_masked",
        f"""(float[N,5,7] x, int64[N,5] mask) => (float[N,5,3] y) {{ {PROJECTED} {heads("q")}
        {heads("k", "0,2,3,1")} {heads("v")} mf = Cast<to=1>(mask)  mu = Unsqueeze(mf, axes)  mi = Sub(one, mu)
        mm = Mul(mi, big)  s = MatMul(qt, kt)  sc = Div(s, root)  sm = Add(sc, mm)  p = Softmax<axis=-1>(sm)
        a = MatMul(p, vt)  at = Transpose<perm=[0,2,1,3]>(a)  m = Reshape(at, merge)  {FINISH} }}""",
        dict(WEIGHTS, split=[-1, 5, 4, 2], merge=[-1, 5, 8], axes=[1, 2], one=1.0, big=-10.0),
        free=FREE,
    ),
    Sample(
        "attention_qkv_gather",
        f"""{SIGNATURE} {{ {FUSED_START}  f5 = Reshape(f, split)
        ft = Transpose<perm=[2,0,3,1,4]>(f5)  qt = Gather<axis=0>(ft, i0)  k4 = Gather<axis=0>(ft, i1)
        vt = Gather<axis=0>(ft, i2)  kt = Transpose<perm=[0,1,3,2]>(k4)  {ATTEND}  m = Reshape(at, merge)
        {FINISH} }}""",
        dict(FUSED, split=[-1, 5, 3, 4, 2], merge=[-1, 5, 8], i0=np.array(0), i1=np.array(1), i2=np.array(2)),
        free=FUSED_FREE,
    ),
    Sample(
        "attention_qkv_split",
        f"""{SIGNATURE} {{ {FUSED_START}  f5 = Reshape(f, split)
        ft = Transpose<perm=[2,0,3,1,4]>(f5)  q1, k1, v1 = Split<axis=0>(ft, ones)  qt = Squeeze(q1, axis0)
        k4 = Squeeze(k1, axis0)  vt = Squeeze(v1, axis0)  kt = Transpose<perm=[0,1,3,2]>(k4)
        {ATTEND}  m = Reshape(at, merge)  {FINISH} }}""",
        dict(FUSED, split=[-1, 5, 3, 4, 2], merge=[-1, 5, 8], ones=[1, 1, 1], axis0=[0]),
        free=FUSED_FREE,
    ),
    Sample(
        "attention_qkv_last_split",
        f"""{SIGNATURE} {{ {FUSED_START}  q, k, v = Split<axis=-1>(f, thirds)
        {heads("q")}
        {heads("k", "0,2,3,1")} {heads("v")} {ATTEND}  m = Reshape(at, merge)  {FINISH} }}""",
        dict(FUSED, thirds=[8, 8, 8], split=[-1, 5, 4, 2], merge=[-1, 5, 8]),
        free=FUSED_FREE,
    ),
    Sample(
        "attention_single_head",
        f"""{SIGNATURE} {{ {PROJECTED}  kt = Transpose<perm=[0,2,1]>(k)  s = MatMul(q, kt)
        sc = Mul(s, root)  p = Softmax<axis=-1>(sc)  m = MatMul(p, v)  {FINISH} }}""",
        WEIGHTS,
        free={"wq wk": 8, "wv": 8, "w0 wo": 6},
    ),
    Sample(
        "attention_einsum",
        """(float[N,L,7] x) => (float[N,L,3] y) { h = MatMul(x, w0)
        q = Einsum<equation="bld,dhe->blhe">(h, wq)  k = Einsum<equation="bld,dhe->blhe">(h, wk)
        v = Einsum<equation="bld,dhe->blhe">(h, wv)  s = Einsum<equation="bqhe,bkhe->bhqk">(q, k)
        p = Softmax<axis=-1>(s)  a = Einsum<equation="bhqk,bkhe->bqhe">(p, v)
        o = Einsum<equation="bqhe,hed->bqd">(a, wo)  r = Add(o, h)  y = MatMul(r, w1) }""",
        dict(w0=(7, 6), wq=(6, 4, 2), wk=(6, 4, 2), wv=(6, 4, 2), wo=(4, 2, 6), w1=(6, 3)),
    ),
    Sample(
        "attention_grouped_query",
        f"""{SIGNATURE} {{ h = MatMul(x, w0)  q = MatMul(h, wq)  k = MatMul(h, wk)
        v = MatMul(h, wv)  q4 = Reshape(q, split)  k4 = Reshape(k, few)  v4 = Reshape(v, few)
        qt = Transpose<perm=[0,2,1,3]>(q4)  k2 = Transpose<perm=[0,2,3,1]>(k4)  v2 = Transpose<perm=[0,2,1,3]>(v4)
        ku = Unsqueeze(k2, axis)  ke = Expand(ku, k_many)  kt = Reshape(ke, k_all)
        vu = Unsqueeze(v2, axis)  ve = Expand(vu, v_many)  vt = Reshape(ve, v_all)
        {ATTEND}  m = Reshape(at, merge)  o = MatMul(m, wo)  r = Add(o, h)  y = MatMul(r, w1) }}""",
        dict(
            w0=(7, 6),
            wq=(6, 8),
            wk=(6, 4),
            wv=(6, 4),
            split=[-1, 5, 4, 2],
            few=[-1, 5, 2, 2],
            axis=[2],
            k_many=[1, 1, 2, 1, 1],
            k_all=[-1, 4, 2, 5],
            v_many=[1, 1, 2, 1, 1],
            v_all=[-1, 4, 5, 2],
            root=2**-0.5,
            merge=[-1, 5, 8],
            wo=(8, 6),
            w1=(6, 3),
        ),
        free={"w0 wo": 6},
    ),
    Sample(
        "attention_rotary",
        f"""{SIGNATURE} {{ {PROJECTED} {heads("q")} {heads("k")} {heads("v")}
        qa, qb = Split<axis=-1>(qt, ones)  qn = Neg(qb)  qr = Concat<axis=-1>(qn, qa)  qc = Mul(qt, cos)
        qs = Mul(qr, sin)  qe = Add(qc, qs)  ka, kb = Split<axis=-1>(kt, ones)  kn = Neg(kb)
        kr = Concat<axis=-1>(kn, ka)  kc = Mul(kt, cos)  ks = Mul(kr, sin)  ke = Add(kc, ks)
        kx = Transpose<perm=[0,1,3,2]>(ke)  s = MatMul(qe, kx)  sc = Mul(s, root)  p = Softmax<axis=-1>(sc)
        a = MatMul(p, vt)  at = Transpose<perm=[0,2,1,3]>(a)  m = Reshape(at, merge)  {FINISH} }}""",
        dict(WEIGHTS, split=[-1, 5, 4, 2], merge=[-1, 5, 8], ones=[1, 1], cos=(5, 2), sin=(5, 2)),
        free=FREE,
    ),
    Sample(
        "vision_transformer",
        f"""(float[N,3,8,8] x) => (float[N,3] y) {{
        c = Conv<strides=[4,4]>(x, patch, pb)  c3 = Reshape(c, flat)  t = Transpose<perm=[0,2,1]>(c3)
        sh = Shape(t)  n = Slice(sh, zero, one)  cs = Concat<axis=0>(n, tail)  ce = Expand(cls, cs)
        tc = Concat<axis=1>(ce, t)  h = Add(tc, pos)  ln = LayerNormalization(h, scale, beta)
        q = MatMul(ln, wq)  k = MatMul(ln, wk)  v = MatMul(ln, wv) {heads("q")} {heads("k", "0,2,3,1")} {heads("v")}
        {ATTEND}  m = Reshape(at, merge)  o = MatMul(m, wo)  r = Add(o, h)
        l2 = LayerNormalization(r, scale2, beta2)  f1 = MatMul(l2, w1)  g = Relu(f1)  f2 = MatMul(g, w2)
        r2 = Add(f2, r)  first = Gather<axis=1>(r2, index)  y = Gemm(first, w3) }}""",
        dict(
            patch=(6, 3, 4, 4),
            pb=(6,),
            flat=[0, 6, 4],
            zero=[0],
            one=[1],
            tail=[1, 6],
            cls=(1, 1, 6),
            pos=(1, 5, 6),
            scale=(6,),
            beta=(6,),
            wq=(6, 8),
            wk=(6, 8),
            wv=(6, 8),
            root=2**-0.5,
            wo=(8, 6),
            scale2=(6,),
            beta2=(6,),
            w1=(6, 9),
            w2=(9, 6),
            index=np.array(0),
            w3=(6, 3),
            split=[-1, 5, 4, 2],
            merge=[-1, 5, 8],
        ),
        free={"wq wk wv": 4, "w1": 9},
        frozen={"patch": "LayerNormalization"},
    ),
)

FUSED_OPERATORS = table(
    Sample(
        "attention_contrib",
        """(float[N,5,7] x) => (float[N,5,3] y) { h = MatMul(x, w0)
        m = com.microsoft.Attention<num_heads=4>(h, wqkv, bqkv)  o = MatMul(m, wo)  r = Add(o, h)
        y = MatMul(r, w1) }""",
        dict(w0=(7, 6), wqkv=(6, 24), bqkv=(24,), wo=(8, 6), w1=(6, 3)),
        free=FUSED_FREE,
        domains=["com.microsoft"],
    ),
    Sample(
        "multi_head_attention_contrib",
        f"""{SIGNATURE} {{ {PROJECTED}
        m = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v)  {FINISH} }}""",
        PROJECTIONS,
        free=FREE,
        domains=["com.microsoft"],
    ),
    Sample(
        "attention_opset23",
        f"""{SIGNATURE} {{ {PROJECTED}
        m = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v)  {FINISH} }}""",
        PROJECTIONS,
        free=FREE,
        opset=23,
    ),
    Sample(
        "attention_opset23_4d",
        f"""{SIGNATURE} {{ {PROJECTED} {heads("q")} {heads("k")} {heads("v")}
        a = Attention(qt, kt, vt)  at = Transpose<perm=[0,2,1,3]>(a)  m = Reshape(at, merge)  {FINISH} }}""",
        dict(PROJECTIONS, split=[-1, 5, 4, 2], merge=[-1, 5, 8]),
        free=FREE,
        opset=23,
    ),
)

ATTENTION = {**STANDARD, **FUSED_OPERATORS}
