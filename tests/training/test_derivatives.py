"""Every row of the derivative table against central differences in float64, and onnxruntime's float32 against that."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxcompress.errors import ModelError
from onnxcompress.operators import FLOWS, SIGNATURES
from onnxcompress.training.derivatives import COMPOSED, DERIVATIVES, FLAT, REFUSED, SEVERAL
from onnxcompress.training.derivatives.recurrent import RECURRENT
from tests.training.check import Arrays, check_row, graph_of, with_gradients

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def far(*shape: int) -> np.ndarray:
    """No value near 0."""
    x = normal(*shape)
    return x + 0.3 * np.sign(x)


def node(op_type: str, *inputs: str, output: str = "y", **attributes: Any) -> Any:
    return helper.make_node(op_type, list(inputs), [output], **attributes)


def case(op_type: str, inputs: Arrays, constants: Arrays | None = None, **more: Any) -> tuple[Any, ...]:
    """One node that reads the inputs, then the constants; or as `order` has their names."""
    options = {name: more.pop(name) for name in ("float64", "step", "exact", "opset", "tolerance") if name in more}
    order = more.pop("order", [*inputs, *(constants or {})])
    return [node(op_type, *order, **more)], inputs, constants, options


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


ROUGH = {"step": 1e-3, "exact": 1e-4}
"""ONNX's reference computes these in float32."""

APART, TWICE = {"i": ints(0, 2, 3, -3, 1, 0).reshape(3, 2)}, {"i": ints(0, 2, 3, 3, 1, 0).reshape(3, 2)}
"""Indices of two entries a row; the same entry twice in the second row."""

UNARY = (
    *("Relu", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish", "Sigmoid", "Softplus", "Tanh", "Exp", "Neg", "Abs"),
    *("Softmax", "LogSoftmax", "Identity", "Dropout", "Selu", "Softsign", "ThresholdedRelu", "Shrink"),
    *("Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh"),
)
CASES = {
    **{name: case(name, {"x": normal(2, 3, 4)}) for name in UNARY},
    **{name: case(name, {"x": normal(2, 3, 4, 2)}) for name in ("GlobalAveragePool", "GlobalMaxPool")},
    **{name: case(name, {"x": np.abs(normal(2, 3)) + 0.5}) for name in ("Log", "Sqrt", "Reciprocal")},
    **{name: case(name, {"a": normal(2, 3, 4), "b": normal(3, 1) + 3}) for name in ("Add", "Sub", "Mul", "Div")},
    **{name: case(name, {"a": normal(2, 3, 4), "b": normal(3, 1), "c": normal(4)}) for name in ("Max", "Min", "Sum")},
    **{name: case(name, {"x": np.tanh(normal(3, 4)) * 0.9}) for name in ("Asin", "Acos", "Atanh")},
    "Acosh": case("Acosh", {"x": np.abs(normal(3, 4)) + 1.5}),
    "Celu": case("Celu", {"x": normal(3, 4)}, alpha=2.0, float64=False),
    "Mish": case("Mish", {"x": normal(3, 4)}, opset=18),
    "Swish": case("Swish", {"x": normal(3, 4)}, opset=24, alpha=1.5),
    "Mean": case("Mean", {"a": normal(2, 3, 4), "b": normal(3, 1), "c": normal(4)}),
    "CastLike": case("CastLike", {"x": normal(3)}, {"like": np.zeros(1)}),
    "Mod": case("Mod", {"a": 5 * normal(3, 4), "b": np.abs(normal(4)) + 1}, fmod=1),
    "Softmax, axis": case("Softmax", {"x": normal(2, 3, 4)}, axis=1),
    "LogSoftmax, axis": case("LogSoftmax", {"x": normal(2, 3, 4)}, axis=0),
    "Erf": case("Erf", {"x": normal(3, 4)}, **ROUGH),
    "Gelu": case("Gelu", {"x": normal(3, 4)}, opset=20, **ROUGH),
    "Gelu, tanh": case("Gelu", {"x": normal(3, 4)}, opset=20, approximate="tanh"),
    "Cast": case("Cast", {"x": normal(3)}, to=int(ir.DataType.FLOAT), **ROUGH),
    "Pow": case("Pow", {"x": np.abs(normal(3, 4)) + 0.3, "p": normal(4)}),
    "Pow, 2": case("Pow", {"x": normal(3, 4)}, {"p": np.array(2.0)}),
    "Clip": case("Clip", {"x": normal(3, 4)}, {"low": np.array(-0.5), "high": np.array(0.6)}),
    "Clip, below": case("Clip", {"x": normal(3, 4)}, {"low": np.array(0.0)}),
    "PRelu": case("PRelu", {"x": normal(2, 3, 4), "slope": normal(3, 1)}),
    "Where": ([node("Where", "c", "x", "z")], {"x": normal(3, 4), "z": normal(4)}, {"c": normal(3, 4) > 0}, {}),
    "Gemm": case("Gemm", {"a": normal(3, 2), "b": normal(4, 3), "c": normal(4)}, transA=1, transB=1, alpha=0.5, beta=2.0),
    "Gemm, plain": case("Gemm", {"a": normal(2, 3), "b": normal(3, 4)}),
    "BatchNormalization": case(
        "BatchNormalization", {"x": normal(2, 3, 4), "s": normal(3), "b": normal(3)}, {"m": normal(3), "v": np.abs(normal(3))}
    ),
    "LayerNormalization": case("LayerNormalization", {"x": normal(2, 3, 4), "s": normal(3, 4), "b": normal(3, 4)}, axis=1),
    "LayerNormalization, no bias": case("LayerNormalization", {"x": normal(2, 3, 4), "s": normal(4)}),
    "Reshape": case("Reshape", {"x": normal(2, 6)}, {"to": ints(3, -1)}),
    "Flatten": case("Flatten", {"x": normal(2, 3, 2)}),
    "Squeeze": case("Squeeze", {"x": normal(2, 1, 3)}, {"axes": ints(1)}),
    "Unsqueeze": case("Unsqueeze", {"x": normal(2, 3)}, {"axes": ints(0, 3)}),
    "Transpose": case("Transpose", {"x": normal(2, 3, 4)}, perm=[2, 0, 1]),
    "Transpose, reversed": case("Transpose", {"x": normal(2, 3)}),
    "Concat": case("Concat", {"a": normal(2, 3), "b": normal(2, 2)}, axis=1),
    "Split": (
        [helper.make_node("Split", ["x", "s"], ["a", "b", "c"], axis=1), node("Mul", "b", "c")],
        {"x": normal(2, 5)}, {"s": ints(1, 2, 2)}, {},
    ),
    "Expand": case("Expand", {"x": normal(3, 1)}, {"to": ints(2, 3, 4)}),
    "Gather": case("Gather", {"x": normal(2, 5, 3)}, {"i": ints(0, 2, 2, -1).reshape(2, 2)}, axis=1),
    "Gather, rows": case("Gather", {"x": normal(4, 3, 2)}, {"i": ints(0, 2, 2, -1, 3, 3).reshape(2, 3)}),
    "Pad, wrap": case("Pad", {"x": normal(3, 4)}, {"pads": ints(1, 0, 2, 3)}, mode="wrap", opset=19),
    "Gather, one": case("Gather", {"x": normal(2, 5, 3)}, {"i": np.array(-2)}, axis=1),
    "Pad": case("Pad", {"x": normal(3, 4)}, {"pads": ints(1, 0, 2, 3)}),
    "Pad, cutting": case("Pad", {"x": normal(3, 4)}, {"pads": ints(-1, 1, 0, -2)}, float64=False),
    "Pad, reflect": case("Pad", {"x": normal(3, 4)}, {"pads": ints(1, 0, 2, 3)}, mode="reflect"),
    "Pad, edge": case("Pad", {"x": normal(3, 4)}, {"pads": ints(1, 0, 2, 3)}, mode="edge"),
    "ReduceSum": case("ReduceSum", {"x": normal(2, 3, 4)}, {"axes": ints(0, -1)}, keepdims=0),
    "ReduceMean": case("ReduceMean", {"x": normal(2, 3, 4)}, axes=[1]),
    "ReduceMean, all": case("ReduceMean", {"x": normal(2, 3)}, keepdims=0),
    "ReduceMean, opset 18": case("ReduceMean", {"x": normal(2, 3)}, {"axes": ints(-1)}, opset=18, keepdims=0),
    "ReduceMax": case("ReduceMax", {"x": normal(2, 3, 4)}, axes=[1], keepdims=0),
    **{name: case(name, {"x": normal(2, 3, 4)}, axes=[1]) for name in ("ReduceL1", "ReduceL2", "ReduceSumSquare")},
    **{name: case(name, {"x": normal(2, 3, 4)}, keepdims=0) for name in ("ReduceLogSumExp", "ReduceProd")},
    "ReduceLogSum": case("ReduceLogSum", {"x": np.abs(normal(2, 3, 4)) + 0.1}, axes=[0, -1], keepdims=0),
    "Tile": case("Tile", {"x": normal(2, 3)}, {"by": ints(3, 2)}),
    **{f"CumSum, {e}{r}": case("CumSum", {"x": normal(3, 4)}, {"a": ints(1)[0]}, exclusive=e, reverse=r) for e in (0, 1) for r in (0, 1)},
    "Trilu": case("Trilu", {"x": normal(2, 4, 5)}),
    "Trilu, lower": case("Trilu", {"x": normal(4, 5)}, {"k": ints(1)[0]}, upper=0),
    "ReverseSequence": case("ReverseSequence", {"x": normal(4, 3, 2)}, {"n": ints(2, 4, 1)}, float64=False),
    "GatherElements": case("GatherElements", {"x": normal(3, 4)}, {"i": ints(0, 2, 2, -1, 1, 1).reshape(3, 2)}, axis=1),
    "GatherND": case("GatherND", {"x": normal(3, 4, 2)}, {"i": ints(0, 1, -1, 3, 0, 1).reshape(3, 2)}),
    "GatherND, batches": case("GatherND", {"x": normal(2, 4, 3)}, {"i": ints(0, -1, 3, 3).reshape(2, 2, 1)}, batch_dims=1),
    "ScatterElements": case("ScatterElements", {"x": normal(3, 4), "u": normal(3, 2)}, APART, order="xiu", axis=1),
    "ScatterElements, add": case(
        "ScatterElements", {"x": normal(3, 4), "u": normal(3, 2)}, TWICE, order="xiu", axis=1, reduction="add"
    ),
    "ScatterND": case("ScatterND", {"x": normal(3, 4, 2), "u": normal(2, 2)}, {"i": ints(0, 1, -1, 3).reshape(2, 2)}, order="xiu"),
    "ScatterND, add": case(
        "ScatterND", {"x": normal(3, 4), "u": normal(2, 4)}, {"i": ints(2, 2).reshape(2, 1)}, order="xiu", reduction="add"
    ),
    "TopK": ([helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=1)], {"x": normal(3, 5)}, {"k": ints(2)}, {}),
    "MaxUnpool": case(
        "MaxUnpool", {"x": normal(1, 1, 2, 2)}, {"i": ints(5, 2, 8, 15).reshape(1, 1, 2, 2)}, kernel_shape=[2, 2], strides=[2, 2],
        float64=False,
    ),
    "InstanceNormalization": case("InstanceNormalization", {"x": normal(2, 3, 4, 2), "s": normal(3), "b": normal(3)}),
    "GroupNormalization": case(
        "GroupNormalization", {"x": normal(2, 4, 3), "s": normal(4), "b": normal(4)}, num_groups=2, opset=21, float64=False
    ),
    "RMSNormalization": case("RMSNormalization", {"x": normal(2, 3, 4), "s": normal(3, 4)}, axis=1, opset=23),
    "LpNormalization": case("LpNormalization", {"x": normal(3, 4)}),
    "LpNormalization, 1": case("LpNormalization", {"x": far(3, 4)}, p=1, axis=0, float64=False),
    "LRN": case("LRN", {"x": normal(2, 5, 3, 2)}, size=3, alpha=0.5, bias=1.5, float64=False),
    "MeanVarianceNormalization": case("MeanVarianceNormalization", {"x": normal(2, 3, 2, 2)}, float64=False),
    **{f"DepthToSpace, {m}": case("DepthToSpace", {"x": normal(1, 8, 2, 3)}, blocksize=2, mode=m) for m in ("DCR", "CRD")},
    "SpaceToDepth": case("SpaceToDepth", {"x": normal(1, 2, 4, 6)}, blocksize=2),
    "GlobalLpPool": case("GlobalLpPool", {"x": normal(2, 3, 4)}, p=3, float64=False),
    "LpPool": case("LpPool", {"x": normal(1, 2, 5, 4)}, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1], p=3, float64=False),
    "ReduceMin": case("ReduceMin", {"x": normal(2, 3, 4)}, axes=[0, 2]),
}  # fmt: skip
"""Row and what is special -> nodes, inputs, constants, options of `check_row`."""

OWN = {name for name in {*DERIVATIVES, *COMPOSED} if name.startswith("com.microsoft.")} | {
    "SimplifiedLayerNormalization",
    "Attention",
}
"""Tested in test_fused.py."""

EQUATIONS = {
    "bij,jk->bik": ((2, 3, 4), (4, 2)), "bhld,bhmd->bhlm": ((1, 2, 3, 2), (1, 2, 2, 2)), "ij,jk": ((2, 3), (3, 2)),
    "...i,io->...o": ((2, 3, 2), (2, 4)), "ij->i": ((2, 3),), "ij->ji": ((2, 3),), "i,j->ij": ((2,), (3,)),
    "ab,bc,cd->ad": ((2, 3), (3, 2), (2, 2)),
    "bcd->": ((2, 3, 2),), "b...->b...": ((2, 3, 2),), "ij,k->i": ((2, 3), (2,)),
}  # fmt: skip


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str) -> None:
    inputs = {name: normal(*shape) for name, shape in zip("abc", EQUATIONS[equation], strict=False)}
    check_row([node("Einsum", *inputs, equation=equation)], inputs)


DRAWN = {"Einsum", "Conv", "ConvTranspose", "MaxPool", "AveragePool", "MatMul", "Slice", "Resize"}
"""Rows with tests of their own below, on drawn shapes."""


@pytest.mark.parametrize("name", CASES)
def test_row(name: str) -> None:
    nodes, inputs, constants, options = CASES[name]
    check_row(nodes, inputs, constants=constants, **options)


def test_every_row_is_tested() -> None:
    assert {name.split(",")[0] for name in CASES} | DRAWN == {
        *DERIVATIVES,
        *SEVERAL,
        *COMPOSED,
    } - OWN - RECURRENT.keys()


def test_rows_and_refusals_do_not_overlap() -> None:
    assert not DERIVATIVES.keys() & FLAT and not DERIVATIVES.keys() & REFUSED.keys()


def test_every_refused_operator_is_one_that_the_package_knows() -> None:
    assert REFUSED.keys() <= {*SIGNATURES, *FLOWS, "QuantizeLinear", "DequantizeLinear"}


FEW = settings(max_examples=12)


@st.composite
def windows(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """Attributes of a convolution, kernel and input sizes; one axis or two."""
    rank = draw(st.integers(1, 2))
    each = lambda low, high: [draw(st.integers(low, high)) for _ in range(rank)]  # noqa: E731
    kernel, strides, dilations = each(1, 3), each(1, 3), each(1, 2)
    pads = [draw(st.integers(0, d * (k - 1))) for _ in range(2) for k, d in zip(kernel, dilations, strict=True)]
    sizes = [d * (k - 1) + 1 + draw(st.integers(0, 3)) for k, d in zip(kernel, dilations, strict=True)]
    return {"strides": strides, "dilations": dilations, "pads": pads}, tuple(kernel), tuple(sizes)


@FEW
@given(
    window=windows(),
    groups=st.sampled_from([(1, 2, 3), (2, 4, 2), (3, 3, 3), (2, 2, 4), (1, 9, 2)]),
    auto=st.booleans(),
)
def test_conv(window: Any, groups: tuple[int, int, int], auto: bool) -> None:
    """Dense, grouped, depthwise, with a multiplier, more channels than are laid side by side; explicit pads or SAME."""
    attributes, kernel, sizes = window
    count, ins, outs = groups
    if auto and max(attributes["dilations"]) == 1:
        attributes = {"strides": attributes["strides"], "auto_pad": "SAME_LOWER"}
    inputs = {"x": normal(2, ins, *sizes), "w": normal(outs, ins // count, *kernel), "b": normal(outs)}
    plain = count == 1 or max(attributes["strides"]) == 1  # the reference's ConvTranspose knows no groups
    check_row([node("Conv", *inputs, group=count, **attributes)], inputs, float64=plain)


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_of_many_channels_at_few_positions(groups: int) -> None:
    """One product over the batch."""
    inputs = {"x": normal(2, 12 * groups, 2), "w": normal(12 * groups, 12, 2)}
    check_row([node("Conv", *inputs, group=groups)], inputs, float64=False)


@FEW
@given(window=windows(), groups=st.sampled_from([(1, 2, 3), (2, 4, 2), (3, 3, 3)]), data=st.data())
def test_conv_transpose(window: Any, groups: tuple[int, int, int], data: st.DataObject) -> None:
    attributes, kernel, sizes = window
    count, ins, outs = groups
    attributes["output_padding"] = [data.draw(st.integers(0, stride - 1)) for stride in attributes["strides"]]
    inputs = {"x": normal(1, ins, *sizes), "w": normal(ins, outs // count, *kernel), "b": normal(outs)}
    check_row([node("ConvTranspose", *inputs, group=count, **attributes)], inputs, float64=False)


@pytest.mark.parametrize("size", [6, 7, 8, 9, 10])
@pytest.mark.parametrize(
    "more", [{}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"output_padding": [1]}, {"pads": [1, 0]}]
)
def test_conv_transpose_of_a_given_output_shape(size: int, more: dict[str, Any]) -> None:
    inputs = {"x": normal(1, 2, 4), "w": normal(2, 3, 3), "b": normal(3)}
    check_row([node("ConvTranspose", *inputs, strides=[2], output_shape=[size], **more)], inputs, float64=False)


def test_conv_transpose_in_float64() -> None:
    inputs = {"x": normal(1, 2, 3, 2), "w": normal(2, 3, 3, 2), "b": normal(3)}
    check_row([node("ConvTranspose", *inputs, strides=[2, 1], pads=[1, 0, 0, 1])], inputs)


@FEW
@given(
    kind=st.sampled_from(["MaxPool", "AveragePool"]), window=windows(), ceil=st.booleans(), include=st.booleans(),
)  # fmt: skip
def test_pools(kind: str, window: Any, ceil: bool, include: bool) -> None:
    """Overlapping and apart, with pads that count or do not, with windows that begin in the last pads. Ties never come up."""
    attributes, kernel, sizes = window
    attributes = {
        "kernel_shape": list(kernel), "strides": attributes["strides"], "ceil_mode": int(ceil),
        "pads": [min(pad, k - 1) for pad, k in zip(attributes["pads"], kernel * 2, strict=True)],
    }  # fmt: skip
    if any(
        k < stride for k, stride in zip(kernel, attributes["strides"], strict=True)
    ):  # a window may begin beyond the input
        attributes["ceil_mode"] = 0
    if kind == "AveragePool":
        attributes["count_include_pad"] = int(include)
    sizes = tuple(max(n, k) for n, k in zip(sizes, kernel, strict=True))
    x = RNG.permutation(2 * 3 * int(np.prod(sizes))).reshape(2, 3, *sizes) * 0.1
    try:
        check_row([node(kind, "x", **attributes)], {"x": x}, float64=False)
    except ModelError as error:  # pads and ceil_mode together may do that to one of two axes
        assert attributes["ceil_mode"] and "windows that begin beyond" in str(error)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_a_window_that_begins_beyond_the_input_is_none(kind: str) -> None:
    """ONNX's inference counts two windows of two entries with stride 2 and ceil_mode, onnxruntime has one."""
    attributes: dict[str, Any] = {"kernel_shape": [1], "strides": [2], "ceil_mode": 1}
    check_row([node(kind, "x", **attributes)], {"x": normal(2, 3, 4)}, float64=False)
    x = normal(1, 1, 4, 4).astype(np.float32)  # along the other axis ceil_mode brings a window that is run
    both = graph_of([node(kind, "x", kernel_shape=[1, 3], strides=[2, 2], ceil_mode=1)], {"x": x}, {}, "y")
    with pytest.raises(ModelError, match="ceil_mode gives windows that begin beyond the input"):
        with_gradients(both, np.ones(()), ["x"])


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pools_in_float64(kind: str) -> None:
    x = RNG.permutation(120).reshape(2, 3, 4, 5) * 0.1
    check_row([node(kind, "x", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])], {"x": x})


@FEW
@given(shapes=st.sampled_from([
    ((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,)), ((2, 2, 3), (3, 4)), ((4, 1, 2, 3), (2, 3, 2)),
    ((3,), (2, 3, 4)), ((2, 3, 4), (4,)), ((2, 3), (5, 3, 1)), ((1, 2, 3), (4, 3, 2)),
]))  # fmt: skip
def test_matmul(shapes: Any) -> None:
    check_row([node("MatMul", "a", "b")], {"a": normal(*shapes[0]), "b": normal(*shapes[1])})


@FEW
@given(data=st.data())
def test_slice(data: st.DataObject) -> None:
    """Any start, end and step of numpy's, forward and backward."""
    shape = (4, 5)
    cuts = []
    for size in shape:
        first, step = data.draw(st.integers(0, size - 1)), data.draw(st.sampled_from([1, 2, 3, -1, -2]))
        ends = range(first + 1, size + 1) if step > 0 else range(-1, first)
        last = data.draw(st.sampled_from([*ends]))
        cuts.append((first - data.draw(st.sampled_from([0, size])), last if last >= 0 else -100, step))
    constants = {name: ints(*(cut[place] for cut in cuts)) for place, name in enumerate(("s", "e"))}
    constants |= {"a": ints(0, data.draw(st.sampled_from([1, -1]))), "t": ints(*(cut[2] for cut in cuts))}
    check_row([node("Slice", "x", "s", "e", "a", "t")], {"x": normal(*shape)}, constants=constants, float64=False)


PLACES = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]


@settings(max_examples=25)
@given(
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    place=st.sampled_from(PLACES),
    rounding=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    scales=st.sampled_from([(2.0, 3.0), (1.6, 0.5), (1.0, 2.0), (0.5, 2.5)]),
    sized=st.booleans(),
)
def test_resize(mode: str, place: str, rounding: str, scales: tuple[float, float], sized: bool) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": place}
    attributes |= {"nearest_mode": rounding} if mode == "nearest" else {}
    x = normal(1, 2, 4, 5)
    if sized:
        sizes = ints(1, 2, *(int(np.floor(n * s)) for n, s in zip((4, 5), scales, strict=True)))
        nodes, constants = [node("Resize", "x", "", "", "to", **attributes)], {"to": sizes}
        check_row(nodes, {"x": x}, constants=constants, float64=False)
        return
    check_row([scaled(*scales), node("Resize", "x", "", "by", **attributes)], {"x": x}, float64=False)


def scaled(*scales: float) -> Any:
    """Constant scales `by`: float32 always, also beside float64."""
    return helper.make_node("Constant", [], ["by"], value=helper.make_tensor("by", 1, [4], [1.0, 1.0, *scales]))


@pytest.mark.parametrize(
    ("attributes", "scales"),
    [
        ({"mode": "linear", "antialias": 1}, (0.5, 0.6)),
        ({"mode": "cubic", "antialias": 1}, (0.4, 2.0)),
        ({"mode": "linear", "antialias": 1, "exclude_outside": 1}, (0.5, 0.6)),
        ({"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}, (1.5, 0.6)),
        ({"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, (1.7, 0.7)),
    ],
)
def test_resize_of_opset_19(attributes: dict[str, Any], scales: tuple[float, float]) -> None:
    nodes = [scaled(*scales), node("Resize", "x", "", "by", **attributes)]
    check_row(nodes, {"x": normal(1, 2, 7, 6)}, float64=False, opset=19)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_in_float64(mode: str) -> None:
    nodes = [node("Resize", "x", "", "", "to", mode=mode)]
    check_row(nodes, {"x": normal(1, 1, 3, 4)}, constants={"to": ints(1, 1, 5, 6)}, **ROUGH)


@pytest.mark.parametrize(
    ("nodes", "constants", "said"),
    [
        (
            [node("Resize", "x", "r", "", "to", mode="linear", coordinate_transformation_mode="tf_crop_and_resize")],
            {"to": ints(1, 1, 6, 6), "r": np.ones(8)},
            "Resize 'n': .* coordinate_transformation_mode 'tf_crop_and_resize'",
        ),
        ([node("Einsum", "x", equation="abcc->ab")], {}, "Einsum 'n': .* a letter comes twice in one operand"),
        ([node("Einsum", "x", "o", equation="abcd,ad->abc")], {"o": np.ones((1, 1))}, "its operands broadcast"),
        ([node("Det", "x")], {}, "Det 'n': .* no row .* freeze"),
        (
            [node("ScatterElements", "x", "i", "x", reduction="mul")],
            {"i": np.zeros((1, 1, 3, 3), int)},
            "reduction 'mul'",
        ),
    ],
)
def test_what_is_left_out_is_refused_by_name(nodes: Any, constants: Arrays, said: str) -> None:
    nodes[-1].name = "n"
    x = normal(1, 1, 3, 3).astype(np.float32)
    constants = {
        n: np.asarray(c, np.float32) if np.asarray(c).dtype.kind == "f" else np.asarray(c) for n, c in constants.items()
    }
    with pytest.raises(ModelError, match=said):
        with_gradients(graph_of(nodes, {"x": x}, constants, "y"), np.ones(()), ["x"])
