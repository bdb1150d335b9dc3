"""Equalization: outputs stay, whatever factors are drawn and whichever are chosen; tensors become easier to quantize."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import pytest
from generate import feeds, models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import distance
from zoo import ZOO

from onnxcompress.data import open_data
from onnxcompress.errors import ModelError
from onnxcompress.evidence.collect import collect
from onnxcompress.model import Model, load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.passes.quantize.equalize import Equalize
from onnxcompress.passes.quantize.folding import folded
from onnxcompress.passes.quantize.grid import grid_of
from onnxcompress.passes.quantize.scaling import scaling
from onnxcompress.plan import Plan
from onnxcompress.runtime.session import open_session

LOOSE = {"float16": 5e-3, "cast_fp16": 5e-3}
UNCHANGED = 1e-4
"""Of each output's largest value."""


def drawn(model: Model, seed: int) -> Plan:
    """A plan with any factors, from a quarter to four; those before a Clip stay at one."""
    found = scaling(model)
    factors = 2.0 ** np.random.default_rng(seed).uniform(-2, 2, found.count)
    factors[0] = 1
    for _, numbers, _ in found.limits:
        factors[numbers] = 1
    plan = Plan("equalize", {}, model.fingerprint)
    for edit in found.edits:
        key = f"{edit.tensor}|{edit.axis}"
        plan.arrays[key] = plan.arrays.get(key, 1.0) * factors[edit.factors] ** edit.power
    return plan


def planned(model: Model, inputs: Mapping[str, np.ndarray], each: Equalize | None = None) -> Plan:
    each = each or Equalize()
    data = open_data([dict(inputs)], open_session(model.serialized).inputs)
    return each.plan(model, collect(model, each.needs(model), data))


def outputs(model: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return open_session(to_bytes(finished(model))).run(inputs)


def check(model: Model, plan: Plan, inputs: Mapping[str, np.ndarray], tolerance: float = UNCHANGED) -> Model:
    scaled = Equalize().apply(model, plan)
    assert not violations(scaled)
    assert to_bytes(scaled.ir) == to_bytes(Equalize().apply(model, plan).ir)
    before = outputs(model, inputs)
    assert distance(outputs(scaled, inputs), before, before) <= tolerance
    return scaled


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_unchanged(name: str) -> None:
    """By factors at random, and by those that are chosen."""
    proto = ZOO[name]()
    model, inputs = load(proto), feeds(proto, 0)
    for plan in (drawn(model, 0), drawn(model, 1), planned(model, inputs)):
        check(model, plan, inputs, LOOSE.get(name, UNCHANGED))


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(proto=models(), seed=st.integers(0, 99))
def test_generated_models_are_unchanged(proto: onnx.ModelProto, seed: int) -> None:
    model, inputs = load(proto), feeds(proto, seed)
    check(model, drawn(model, seed), inputs)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(proto=models(), seed=st.integers(0, 99))
def test_generated_models_are_unchanged_by_what_is_chosen(proto: onnx.ModelProto, seed: int) -> None:
    model, inputs = load(proto), feeds(proto, seed)
    check(model, planned(model, inputs), inputs)


WIDE: dict[str, int] = {
    "conv_chain": 14, "residual_identity": 11, "dense_concat": 26, "inverted_residual": 20, "depthwise": 12, "unet": 21,
    "shuffle_split_concat": 18, "nhwc": 13, "layer_norm": 15, "rms_norm": 15, "vision_transformer": 21, "mlp_gemm": 9,
    "prelu_channel": 6, "squeeze_excite": 9, "embedding_position": 9, "attention_qkv_split": 6, "flatten_gemm": 11,
}  # fmt: skip
"""Sample of the zoo -> factors that are free in it."""


@pytest.mark.parametrize("name", WIDE)
def test_residual_sums_concatenations_norms_and_depthwise_are_reached(name: str) -> None:
    assert scaling(load(ZOO[name]())).count - 1 == WIDE[name]


@pytest.mark.parametrize(
    "name", ["hardswish", "gelu_erf", "shared_series", "lrn", "softmax_channels", "weight_from_input"]
)
def test_what_is_not_homogeneous_or_shared_is_held(name: str) -> None:
    found = scaling(load(ZOO[name]()))
    assert found.count == 1 and not found.edits and not found.values


# ---- it helps ----


def network(text: str, **arrays: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()
    )
    return load(proto)


def by_tensor(model: Model, inputs: Mapping[str, np.ndarray], inner: str) -> float:
    """SQNR in dB of the output when the tensor `inner` is rounded to 256 levels."""
    proto = onnx.ModelProto.FromString(model.serialized)
    proto = onnx.shape_inference.infer_shapes(proto)
    proto.graph.output.append(next(value for value in proto.graph.value_info if value.name == inner))
    found = open_session(proto.SerializeToString()).run(inputs)
    x, y = found[inner], next(value for name, value in found.items() if name != inner)
    rest = onnx.utils.Extractor(proto).extract_model([inner], [proto.graph.output[0].name])
    rounded = grid_of(x.min(), x.max(), "uint8", symmetric=False).rounded(x)
    z = next(iter(open_session(rest.SerializeToString()).run({inner: rounded}).values()))
    return float(10 * np.log10((y**2).sum() / ((y - z) ** 2).sum()))


def uneven(shape: tuple[int, ...], axis: int, seed: int, orders: float = 1.5) -> np.ndarray:
    """Normal weights whose channels differ by factors of up to 10^(2 · orders)."""
    rng = np.random.default_rng(seed)
    along = [1] * len(shape)
    along[axis] = -1
    return rng.standard_normal(shape) * (10 ** rng.uniform(-orders, orders, shape[axis])).reshape(along)


def test_a_pair_of_layers_gains() -> None:
    w1 = uneven((16, 3, 3, 3), 0, 0)
    w2 = np.random.default_rng(1).standard_normal((8, 16, 1, 1)) / np.abs(w1).max((1, 2, 3))[:, None, None]
    model = network(
        "(float[N,3,8,8] x) => (float[N,8,6,6] y) { a = Conv(x, w1) r = Relu(a) y = Conv(r, w2) }", w1=w1, w2=w2
    )
    inputs = {"x": np.random.default_rng(2).standard_normal((8, 3, 8, 8)).astype(np.float32)}
    plan = planned(model, inputs)
    (decision,) = plan.decisions
    assert decision["channels"] == 16 and decision["after_db"] > decision["before_db"] + 10
    scaled = check(model, plan, inputs)
    assert by_tensor(scaled, inputs, "r") > by_tensor(model, inputs, "r") + 10


def test_a_residual_sum_with_two_writers_and_two_readers_gains() -> None:
    w = uneven((12, 3, 1, 1), 0, 0)
    v = w[:, ::-1] * 0.5
    read = np.random.default_rng(1).standard_normal((5, 12, 1, 1)) / np.abs(w).max((1, 2, 3))[:, None, None]
    model = network(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
        a = Conv(x, w) b = Conv(x, v, c) s = Add(a, b) r = Relu(s) p = Conv(r, u1) q = Conv(s, u2) y = Add(p, q) }""",
        w=w, v=v, c=np.abs(w).max((1, 2, 3)), u1=read, u2=read[::-1],
    )  # fmt: skip
    inputs = {"x": np.random.default_rng(2).standard_normal((8, 3, 8, 8)).astype(np.float32)}
    plan = planned(model, inputs)
    assert sorted(key.split("|")[0] for key in plan.arrays) == ["c", "u1", "u2", "v", "w"]
    check(model, plan, inputs)
    assert plan.decisions[0]["after_db"] > plan.decisions[0]["before_db"] + 10


def test_a_norm_gives_its_outliers_to_the_weights_that_read_it() -> None:
    """SmoothQuant's case: two wide channels behind a LayerNorm, read by ordinary weights."""
    scale = np.ones(32)
    scale[[3, 17]] = 60
    rng = np.random.default_rng(0)
    model = network(
        """(float[N,4,8] x) => (float[N,4,16] y) { e = MatMul(x, u) n = LayerNormalization(e, g, b) p = MatMul(n, w) q = MatMul(n, v)
        y = Add(p, q) }""",
        u=rng.standard_normal((8, 32)), g=scale, b=0.1 * rng.standard_normal(32),
        w=rng.standard_normal((32, 16)), v=rng.standard_normal((32, 16)),
    )  # fmt: skip
    inputs = {"x": rng.standard_normal((16, 4, 8)).astype(np.float32)}
    plan = planned(model, inputs)
    (decision,) = plan.decisions
    assert 0 < decision["alpha"] < 1 and decision["after_db"] > decision["before_db"] + 3
    scaled = check(model, plan, inputs)
    assert by_tensor(scaled, inputs, "n") > by_tensor(model, inputs, "n") + 3


def test_a_clip_never_begins_to_clip() -> None:
    """What was clipped keeps its scale, what was far from the limit stays below it by the margin."""
    w = np.array([0.01, 0.5, 4.0, 40.0]).reshape(4, 1, 1, 1)
    model = network(
        """(float[N,1,4,4] x) => (float[N,3,4,4] y) { a = Conv(x, w) c = Clip(a, low, high) y = Conv(c, v) }""",
        w=w, low=np.float32(0), high=np.float32(6), v=np.random.default_rng(0).standard_normal((3, 4, 1, 1)) / w[:, 0, 0],
    )  # fmt: skip
    inputs = {"x": np.random.default_rng(1).uniform(-1, 1, (8, 1, 4, 4)).astype(np.float32)}
    plan = planned(model, inputs, Equalize(clips=True, margin=1.5))
    factors, most = plan.arrays["w|0"], w[:, 0, 0, 0] * float(inputs["x"].max())
    assert factors[3] == 1 and (factors * most * 1.5 <= 6.001)[:3].all() and factors[0] > 2 * factors[2]
    check(model, plan, {"x": 1.4 * inputs["x"]}, tolerance=1e-5)
    assert not planned(model, inputs).arrays  # unless asked for: what is true of the data is not true of all inputs


def test_nothing_is_left_to_do_the_second_time() -> None:
    proto = ZOO["conv_chain"]()
    model, inputs = load(proto), feeds(proto, 0, batch=8)
    once = Equalize().apply(model, planned(model, inputs))
    again = planned(once, inputs)
    assert all(decision["after_db"] - decision["before_db"] < 1 for decision in again.decisions)


def test_a_plan_for_another_model_is_refused() -> None:
    model = load(ZOO["conv_chain"]())
    with pytest.raises(ModelError, match="made for another model"):
        Equalize().apply(model, planned(load(ZOO["mlp_gemm"]()), feeds(ZOO["mlp_gemm"](), 0)))


# ---- BatchNormalization ----


@pytest.mark.parametrize("name", ZOO)
def test_folding_changes_no_output_of_the_zoo(name: str) -> None:
    proto = ZOO[name]()
    model, inputs = load(proto), feeds(proto, 0)
    less, before = folded(model), outputs(model, inputs)
    assert not violations(less)
    assert distance(outputs(less, inputs), before, before) <= LOOSE.get(name, UNCHANGED)
    assert folded(less).fingerprint == less.fingerprint


@pytest.mark.parametrize(
    ("name", "left"), [("conv_bn", 0), ("residual_identity", 0), ("bn_relu_conv", 0), ("depthwise", 0)]
)
def test_norms_behind_layers_are_folded(name: str, left: int) -> None:
    less = folded(load(ZOO[name]()))
    assert sum(node.op_type == "BatchNormalization" for node in less.ir.graph) == left
