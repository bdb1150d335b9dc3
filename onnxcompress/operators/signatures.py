"""The signature table: one row an operator, in the notation of notation.py.

A row is a line, a Case, or a function from a View to a Case where axes depend on attributes or ranks (None: this setting is
not covered). The names of constant terms say what they are: w, r weights; b, bias added; scale multiplied; the rest is
carried along. Operators whose axes depend on the values of constants (Concat, Reshape, Slice, ...) are in flows.py.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxcompress.model.edit import axes_of, input_of
from onnxcompress.operators.attention import attention, fused_attention, multi_head_attention
from onnxcompress.operators.stored import held
from onnxcompress.operators.view import SPREAD, Case, View, letters

Row = str | Case | Callable[[View], Case | None]

AVERAGE = "removing one entry changes the mean of the others"
EXTREME = "a zero in its place still counts in the extreme"


def conv(view: View) -> Case | None:
    """Dense; depthwise, where whole groups go; grouped, where cuts are alike inside every group."""
    weight, x, group = view.shape(1), view.shape(0), view.number("group", 1)
    if group == 1:
        return Case("x[n,i,*s] w[o,i,*k] b[o] -> y[n,o,*t]")
    if weight is None or x is None:
        return None
    if weight[1] == 1:
        return Case("x[n,c,*s] w[(c M),1,*k] b[(c M)] -> y[n,(c M),*t]", attributes={"group": "c"})
    return Case("x[n,(G i),*s] w[(G o),i,*k] b[(G o)] -> y[n,(G o),*t]", sizes={"G": group})


def conv_transpose(view: View) -> Case | None:
    """The same three, with the input channel first in the weight."""
    group, weight = view.number("group", 1), view.shape(1)
    if group == 1:
        return Case("x[n,i,*s] w[i,o,*k] b[o] -> y[n,o,*t]")
    if weight is not None and weight[0] == group:
        return Case("x[n,c,*s] w[c,M,*k] b[(c M)] -> y[n,(c M),*t]", attributes={"group": "c"})
    return Case("x[n,(G i),*s] w[(G i),o,*k] b[(G o)] -> y[n,(G o),*t]", sizes={"G": group})


def gemm(view: View) -> Case:
    """transA is 0 since the door."""
    weight = "o,i" if view.number("transB", 0) else "i,o"
    return Case(f"x[n,i] w[{weight}] b[...n,o] -> y[n,o]")


def matmul(view: View) -> Case | None:
    """Contraction of the last axis with the last but one; leading axes broadcast."""
    left, right = view.rank(0), view.rank(1)
    if left is None or right is None or left < 1 or right < 1:
        return None
    batch = letters(max(left, right, 2) - 2)
    a = [*batch[len(batch) - max(left - 2, 0) :], "m", "i"][-left:] if left > 1 else ["i"]
    b = [*batch[len(batch) - max(right - 2, 0) :], "i", "o"] if right > 1 else ["i"]
    y = [*batch, *(["m"] if left > 1 else []), *(["o"] if right > 1 else [])]
    return Case(f"{_weight_name(view, 0, 'x')}[{','.join(a)}] w[{','.join(b)}] -> y[{','.join(y)}]", origin=("m", "o"))


def _weight_name(view: View, index: int, otherwise: str) -> str:
    return "w" if view.constant(index) is not None or held(input_of(view.node, index)) is not None else otherwise


def einsum(view: View) -> Case | None:
    """The equation is the signature. Ellipses and repeated letters in one term are not covered."""
    left, _, right = view.text("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if not right or "." in left or any(len(set(term)) < len(term) for term in terms):
        return None
    names = [_weight_name(view, index, "x") for index in range(len(terms))]
    inputs = " ".join(f"{name}[{','.join(term.lower())}]" for name, term in zip(names, terms, strict=True))
    return Case(f"{inputs} -> y[{','.join(right.lower())}]") if len(set(left)) == len(set(left.lower())) else None


def recurrent(gates: int) -> Callable[[View], Case | None]:
    """LSTM, GRU, RNN: a hidden unit is one row of each gate, one column of the recurrent matrix, one entry of each state."""

    def row(view: View) -> Case | None:
        x, y, state = (
            ("x[t,b,i]", "y[t,D,b,h]", "[D,b,h]")
            if not view.number("layout", 0)
            else ("x[b,t,i]", "y[b,t,D,h]", "[b,D,h]")
        )
        rest = f"lens[b] b0{state} b1{state} peephole[D,(P h)]"
        return Case(
            f"{x} w[D,(K h),i] r[D,(K h),h] b[D,(L h)] {rest} -> {y} last{state} cell{state}",
            sizes={"K": gates, "L": 2 * gates, "P": 3},
            attributes={"hidden_size": "h"},
            zeros="linear" if view.node.attributes.get("activations") is None else "moves",
        )

    return row


def elementwise(zeros: str, names: tuple[str, ...] = ("b",)) -> Callable[[View], Case | None]:
    """Any number of operands, aligned at the right; `names` for the constants among them, the last one repeated."""

    def row(view: View) -> Case | None:
        ranks = [view.rank(index) for index in range(len(view.node.inputs)) if view.has(index)]
        if any(rank is None for rank in ranks) or len(ranks) != len(view.node.inputs):
            return None
        axes = letters(max(rank or 0 for rank in ranks))
        terms = [
            f"{names[min(index, len(names) - 1)]}[{','.join(axes[len(axes) - (rank or 0) :])}]"
            for index, rank in enumerate(ranks)
        ]
        return Case(f"{' '.join(terms)} -> y[{','.join(axes)}]", zeros=zeros)

    return row


def clip(view: View) -> Case:
    """Zero stays zero where the limits enclose it."""
    low, high = view.constant(1), view.constant(2)
    encloses = (not view.has(1) or (low is not None and low <= 0)) and (
        not view.has(2) or (high is not None and high >= 0)
    )
    return Case(UNARY, zeros="keeps" if encloses else "moves")


def power(view: View) -> Case | None:
    """A positive constant exponent keeps zero."""
    exponent = view.constant(1)
    keeps = exponent is not None and bool((exponent > 0).all())
    return elementwise("keeps" if keeps else "moves", ("x", "exponent"))(view)


def reduction(*, adds_up: bool, why: str = "") -> Callable[[View], Case | None]:
    """Reduce*: the reduced letters stand in the input only."""

    def row(view: View) -> Case | None:
        rank = view.rank(0)
        if rank is None:
            return None
        axes = axes_of(view.node, rank, [])
        if axes is None:
            return None
        if not axes and not view.number("noop_with_empty_axes", 0):
            axes = list(range(rank))  # an empty list means the same as none
        names = letters(rank)
        kept = [
            ("1" if view.number("keepdims", 1) else "") if place in axes else name for place, name in enumerate(names)
        ]
        listed = " axes[A]" if view.has(1) else ""
        return Case(
            f"x[{','.join(names)}]{listed} -> y[{','.join(name for name in kept if name)}]",
            zeros="keeps",
            adds_up=adds_up,
            inexact={names[place]: why for place in axes} if why else {},
        )

    return row


def arg_reduction(view: View) -> Case | None:
    """ArgMax, ArgMin: the axis is closed, since positions along it are the answer."""
    rank = view.rank(0)
    if rank is None:
        return None
    names, axis = letters(rank), view.number("axis", 0) % max(rank, 1)
    kept = [("1" if view.number("keepdims", 1) else "") if place == axis else name for place, name in enumerate(names)]
    return Case(f"x[{','.join(names)}] -> y[{','.join(name for name in kept if name)}]", zeros="moves", adds_up=False)


def along(default: int, *, why: str, zeros: str = "moves") -> Callable[[View], Case | None]:
    """Softmax and its like: same shape, and all entries along `axis` depend on each other."""

    def row(view: View) -> Case | None:
        rank = view.rank(0)
        if rank is None:
            return None
        names = letters(rank)
        axis = view.number("axis", default) % max(rank, 1)
        return Case(f"x[{','.join(names)}] -> y[{','.join(names)}]", zeros=zeros, inexact={names[axis]: why})

    return row


def layer_norm(view: View) -> Case | None:
    """LayerNormalization and RMSNormalization over the axes from `axis` on; scale and bias stand aligned at the right."""
    rank = view.rank(0)
    if rank is None:
        return None
    names, axis = letters(rank), view.number("axis", -1) % max(rank, 1)
    every = ",".join(names)
    return Case(
        f"x[{every}] scale[...{every}] b[...{every}] -> y[{every}]", inexact=dict.fromkeys(names[axis:], SPREAD)
    )


def skip_layer_norm(view: View) -> Case:
    """com.microsoft SkipLayerNormalization: (x + skip + bias) normalised over the last axis; the sum may be a fourth output."""
    simplified = view.node.op_type.startswith("SkipSimplified")
    middle = "scale[d] b[d]" if simplified else "scale[d] b[d] bias[d]"
    return Case(f"x[n,l,d] skip[n,l,d] {middle} -> y[n,l,d] mean[n,l] var[n,l] sum[n,l,d]", inexact={"d": SPREAD})


def group_norm(view: View) -> Case | None:
    """Whole groups go without a change to the others. Up to opset 20 the scale had an entry a group, since then one a channel."""
    groups = view.number("num_groups", 1)
    shape, scale = view.shape(0), view.shape(1)
    if shape is None or scale is None:
        return None
    per_channel = "(c K)" if scale[0] == shape[1] else "c"
    signature = f"x[n,(c K),*s] scale[{per_channel}] b[{per_channel}] -> y[n,(c K),*t]"
    if not isinstance(shape[1], int) or groups < 1 or shape[1] % groups:
        return None
    return Case(signature, sizes={"K": shape[1] // groups}, attributes={"num_groups": "c"})


def transpose(view: View) -> Case | None:
    """A permutation."""
    rank = view.rank(0)
    if rank is None:
        return None
    names = letters(rank)
    order = view.ints("perm", list(range(rank))[::-1])
    if sorted(order) != list(range(rank)):
        return None
    return Case(f"x[{','.join(names)}] -> y[{','.join(names[place] for place in order)}]", zeros="keeps")


def depth_to_space(view: View) -> Case:
    """The block stands outside (DCR) or inside (CRD) the channel."""
    block = view.number("blocksize", 1) ** 2
    channel = "(c B)" if view.text("mode", "DCR") == "CRD" else "(B c)"
    return Case(f"x[n,{channel},*s] -> y[n,c,*t]", sizes={"B": block}, zeros="keeps")


def space_to_depth(view: View) -> Case:
    """The block stands outside the channel."""
    return Case("x[n,c,*s] -> y[n,(B c),*t]", sizes={"B": view.number("blocksize", 1) ** 2}, zeros="keeps")


UNARY = "x[*s] -> y[*s]"
POOL = Case("x[n,c,*s] -> y[n,c,*t]", zeros="keeps", adds_up=False)
GLOBAL_POOL = Case("x[n,c,*s] -> y[n,c,*1]", zeros="keeps", adds_up=False)
KEEPS = Case(UNARY, zeros="keeps")
MOVES = Case(UNARY, zeros="moves")

SIGNATURES: dict[str, Row] = {
    # -- weights
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": einsum,
    "LSTM": recurrent(4),
    "GRU": recurrent(3),
    "RNN": recurrent(1),
    "com.microsoft.FusedMatMul": lambda view: (
        None if view.number("transA", 0) or view.number("transB", 0) else matmul(view)
    ),
    "com.microsoft.FusedConv": conv,
    # -- normalizations
    "BatchNormalization": "x[n,c,*s] scale[c] b[c] mean[c] var[c] -> y[n,c,*s]",
    "InstanceNormalization": "x[n,c,*s] scale[c] b[c] -> y[n,c,*t]",
    "GroupNormalization": group_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": layer_norm,
    "SimplifiedLayerNormalization": layer_norm,
    "com.microsoft.SkipLayerNormalization": skip_layer_norm,
    "com.microsoft.SkipSimplifiedLayerNormalization": skip_layer_norm,
    "LpNormalization": along(-1, why=SPREAD),
    "LRN": Case("x[n,C,*s] -> y[n,C,*s]", zeros="keeps"),
    # -- attention
    "Attention": attention,
    "com.microsoft.Attention": fused_attention,
    "com.microsoft.MultiHeadAttention": multi_head_attention,
    # -- along one axis
    "Softmax": along(-1, why=SPREAD),
    "LogSoftmax": along(-1, why=SPREAD),
    "Hardmax": along(-1, why=SPREAD),
    # -- reductions and pooling
    "ReduceSum": reduction(adds_up=True),
    "ReduceSumSquare": reduction(adds_up=True),
    "ReduceL1": reduction(adds_up=True),
    "ReduceL2": reduction(adds_up=True),
    "ReduceMean": reduction(adds_up=False, why=AVERAGE),
    "ReduceMax": reduction(adds_up=False, why=EXTREME),
    "ReduceMin": reduction(adds_up=False, why=EXTREME),
    "ReduceProd": reduction(adds_up=False),
    "ReduceLogSum": reduction(adds_up=False),
    "ReduceLogSumExp": reduction(adds_up=False, why=SPREAD),
    "ArgMax": arg_reduction,
    "ArgMin": arg_reduction,
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), POOL),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), GLOBAL_POOL),
    # -- axes moved
    "Transpose": transpose,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    # -- elementwise
    **dict.fromkeys(("Add", "Sum", "Sub", "Max", "Min", "Mean", "BitShift"), elementwise("all")),
    "Mul": elementwise("any", ("scale",)),
    "And": elementwise("any", ("mask",)),
    "Div": elementwise("keeps", ("x", "divisor")),
    "Mod": elementwise("keeps", ("x", "divisor")),
    "PRelu": elementwise("keeps", ("x", "slope")),
    "Pow": power,
    "Where": elementwise("all", ("condition", "b", "b")),
    **dict.fromkeys(("com.microsoft.BiasGelu", "com.microsoft.FastGelu"), elementwise("all")),
    **dict.fromkeys(
        ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Or", "Xor"), elementwise("moves", ("limit",))
    ),
    "Clip": clip,
    **dict.fromkeys(
        (
            *(
                "Relu",
                "LeakyRelu",
                "Elu",
                "Selu",
                "Celu",
                "ThresholdedRelu",
                "HardSwish",
                "Gelu",
                "Mish",
                "Swish",
                "Softsign",
            ),
            *(
                "Tanh",
                "Erf",
                "Abs",
                "Neg",
                "Sign",
                "Sqrt",
                "Floor",
                "Ceil",
                "Round",
                "Sin",
                "Sinh",
                "Asin",
                "Asinh",
                "Atan",
            ),
            *("Atanh", "Tan", "Identity", "Cast", "CastLike", "Dropout", "Shrink", "IsNaN"),
            *("com.microsoft.Gelu", "com.microsoft.QuickGelu"),
        ),
        KEEPS,
    ),
    **dict.fromkeys(
        (
            "Sigmoid",
            "HardSigmoid",
            "Exp",
            "Log",
            "Reciprocal",
            "Softplus",
            "Cos",
            "Cosh",
            "Acos",
            "Acosh",
            "Not",
            "IsInf",
        ),
        MOVES,
    ),
}


def case_of(view: View) -> Case | None:
    """The row for a node in its present setting; None where the table has none."""
    node = view.node
    row = SIGNATURES.get(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
    if row is None:
        return None
    if isinstance(row, str):
        return Case(row)
    return row if isinstance(row, Case) else row(view)
