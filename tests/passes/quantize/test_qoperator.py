"""The spelling in kernels says what the pairs say: the same kernels run, on the same levels, with the runtime's optimiser and without."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from generate import feeds, models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import SAME, check_quantized, distance
from onnx import checker
from zoo import ZOO

from onnxcompress import check, prune, quantize
from onnxcompress.errors import ModelError
from onnxcompress.model import Model
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.passes.quantize.qoperator import KERNELS, TO_FLOAT, as_operators
from onnxcompress.passes.quantize.write import write

from .calibrated import decided, executed, feeds_of, model_of, run
from .test_quantize import DATA, DIGITS, HALFWAY, REFUSED, quantized
from .test_write import CASES, normal

BIASED = "MatMul and bias"
"""In pairs onnxruntime makes a Gemm of it; here its sum is handed out in float, the bias added, and rounded after that."""


@pytest.mark.parametrize("name", CASES)
def test_both_spellings_say_the_same(name: str) -> None:
    """The same kernels and levels, legal, and no operator is left in pairs that has a kernel."""
    case = CASES[name]
    model = model_of(case.text, case.constants)
    feeds = feeds_of(model)
    nodes, grids, weights = decided(model, feeds)
    pairs = write(model, nodes, grids, weights)
    operators = as_operators(pairs)
    assert not violations(operators)
    checker.check_model(to_bytes(operators.ir))
    if name != BIASED:
        assert executed(operators) == executed(pairs)
    for value, y in run(operators, feeds[0]).items():
        step = float(grids[value].scale) if name == BIASED else 0.0
        assert np.abs(y - run(pairs, feeds[0])[value]).max() <= 1.001 * step
        assert np.array_equal(y, run(operators, feeds[0], optimise=False)[value])
    assert not Counter(node.op_type for node in operators.ir.graph).keys() & (KERNELS.keys() | TO_FLOAT.keys())


@pytest.mark.parametrize(
    ("text", "kernel"),
    [
        ("agraph (float[2,3,16] x) => (float[n,m,o] y) { y = MatMul(x, w) }", "MatMulIntegerToFloat"),
        ("agraph (float[2,3,16] x) => (float[n,m,o] y) { h = MatMul(x, w)  y = Add(h, b) }", "MatMulIntegerToFloat"),
        ("agraph (float[3,16] x) => (float[n,o] y) { y = Gemm(x, w, b) }", "QGemm"),
    ],
)
def test_a_product_that_hands_out_floats(text: str, kernel: str) -> None:
    model = model_of(text, {"w": normal(16, 5), **({"b": normal(5)} if "b)" in text else {})})
    feeds = feeds_of(model)
    nodes, grids, weights = decided(model, feeds)
    pairs = write(model, nodes, {"x": grids["x"]}, weights)
    operators = as_operators(pairs)
    assert executed(operators) == {"QuantizeLinear": 1, kernel: 1}
    wanted = run(pairs, feeds[0])["y"]
    for optimise in (True, False):
        assert np.allclose(run(operators, feeds[0], optimise=optimise)["y"], wanted, atol=1e-6 * np.abs(wanted).max())


BETWEEN = 0.02
"""Share of an output's largest value: a bias that is added in float, not in int32, may take what lies halfway the other way."""


def spelled(proto: onnx.ModelProto, seed: int = 0) -> tuple[Model, Model] | None:
    """Pairs, and kernels in their place; None where nothing runs on static grids."""
    result = quantized(proto, seed)
    return None if result is None else (result.model, as_operators(result.model))


def ends(model: Model) -> list[tuple[str, str, str]]:
    return [(str(v.name), str(v.type), str(v.shape)) for v in (*model.ir.graph.inputs, *model.ir.graph.outputs)]


@pytest.mark.parametrize("name", sorted(set(ZOO) - REFUSED))
def test_the_law_on_the_zoo(name: str) -> None:
    """onnxruntime answers as numpy does in integers, with 16-bit sums and without; ends are those of the pairs."""
    proto = ZOO[name]()
    made = spelled(proto)
    assert made is not None
    pairs, operators = made
    inputs = feeds(proto, 0)
    check_quantized(operators, inputs, HALFWAY.get(name, SAME))
    assert ends(operators) == ends(pairs)
    one, other = (run(each, inputs) for each in (pairs, operators))
    assert distance(other, one, one) <= BETWEEN


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(proto=models(), seed=st.integers(0, 99))
def test_the_law_on_generated_models(proto: onnx.ModelProto, seed: int) -> None:
    made = spelled(proto, seed)
    if made is not None:
        check_quantized(made[1], feeds(proto, seed), 0.1)


def test_the_form_is_a_setting() -> None:
    """The same answers and costs, fewer nodes; recognised as quantized, and sound."""
    one, other = (
        quantize(DIGITS, data=DATA, limit=64, measure=False, rounding="nearest", form=form)
        for form in ("qdq", "qoperator")
    )
    assert one.comparison is not None and other.comparison is not None
    assert other.comparison.sqnr_db == pytest.approx(one.comparison.sqnr_db)
    assert (other.after.parameters, other.after.macs) == (one.after.parameters, one.after.macs)
    assert other.after.bytes < one.after.bytes
    assert not any(node.op_type in ("Conv", "Gemm") for node in other.model.ir.graph)
    file = to_bytes(finished(other.model))
    assert check(file, data=DATA).findings == ()
    for verb in (prune, quantize):
        with pytest.raises(ModelError, match="quantized"):
            verb(file, data=DATA, limit=64)
