"""Rows of the fused attention operators: a head is a block of columns of q, k and v, and goes as a whole."""

from __future__ import annotations

from onnxcompress.operators.view import SPREAD, Case, View


def fused_attention(view: View) -> Case | None:
    """com.microsoft Attention: one weight for q, k and v; a head is a block of columns of each."""
    weight, heads = view.shape(1), view.number("num_heads", 0)
    uneven = view.ints("qkv_hidden_sizes", [])
    if weight is None or not heads or uneven or any(view.has(index) for index in (4, 5, 6)):
        return None
    if not isinstance(weight[1], int) or weight[1] % (3 * heads):
        return None
    return Case(
        "x[n,l,i] w[i,(T h D)] b[(T h D)] mask[...] -> y[n,t,(h D)]",
        sizes={"T": 3, "D": weight[1] // (3 * heads)},
        attributes={"num_heads": "h"},
    )


def multi_head_attention(view: View) -> Case | None:
    """com.microsoft MultiHeadAttention with separate q, k, v of rank three."""
    heads = view.number("num_heads", 0)
    q, k, v = view.shape(0), view.shape(1), view.shape(2)
    if not heads or any(shape is None or len(shape) != 3 or not isinstance(shape[2], int) for shape in (q, k, v)):
        return None
    if any(view.has(index) for index in range(4, len(view.node.inputs))):
        return None
    assert q is not None and v is not None
    key, inner = int(str(q[2])) // heads, int(str(v[2])) // heads
    if view.has(3) and key != inner:
        return None
    return Case(
        "q[n,l,(h D)] k[n,m,(h D)] v[n,m,(h E)] b[(T h D)] -> y[n,l,(h E)]",
        sizes={"T": 3, "D": key, "E": inner},
        attributes={"num_heads": "h"},
        inexact={"m": SPREAD},
        zeros="any",
    )


def attention(view: View) -> Case | None:
    """Attention of opset 23, heads in an axis of their own or inside the last one; past and present are not covered."""
    rank, q, kv = view.rank(0), view.number("q_num_heads", 0), view.number("kv_num_heads", 0)
    if any(view.has(index) for index in range(3, len(view.node.inputs))):
        return None
    if rank == 4 and view.shape(0)[1] == view.shape(1)[1]:  # type: ignore[index]
        return Case("q[n,h,l,D] k[n,h,m,D] v[n,h,m,E] -> y[n,h,l,E]", zeros="any", inexact={"m": SPREAD})
    if rank != 3 or q != kv or not q:
        return None
    sizes = [view.shape(index)[2] for index in (0, 2)]  # type: ignore[index]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return Case(
        "q[n,l,(h D)] k[n,m,(h D)] v[n,m,(h E)] -> y[n,l,(h E)]",
        sizes={"D": sizes[0] // q, "E": sizes[1] // q},  # type: ignore[operator]
        attributes={"q_num_heads": "h", "kv_num_heads": "h"},
        inexact={"m": SPREAD},
        zeros="any",
    )
