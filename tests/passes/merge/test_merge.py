"""Merge: the outputs stay, nothing costs more, nothing is left to merge; which rule takes what, and which refuses why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from generate import feeds, models
from hypothesis import HealthCheck, assume, given, settings
from laws import distance
from zoo import ZOO

import onnxcompress
from onnxcompress.data import open_data
from onnxcompress.errors import ModelError, SettingError
from onnxcompress.model import Model, load
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.operators.cost import parameters
from onnxcompress.passes import Merge
from onnxcompress.plan import Plan
from onnxcompress.runtime.session import open_session
from sample_models.fetch import FetchError, fetch
from sample_models.fetch import models as real_models

from .chains import chains, forks
from .parts import Made, relu

SAME = 1e-4
"""Of each output's largest value."""


def merged(model: Model) -> tuple[Model, Plan]:
    plan = Merge().plan(model, {})
    return Merge().apply(model, plan), plan


def check(proto: onnx.ModelProto, seed: int = 0, tolerance: float = SAME) -> tuple[Model, Plan]:
    """The laws of this pass on one model."""
    model = load(proto)
    new, plan = merged(model)
    assert not violations(new)
    data = to_bytes(finished(new))
    assert data == to_bytes(finished(merged(load(proto))[0]))
    onnx.checker.check_model(data)
    given = feeds(proto, seed)
    before, after = open_session(model.serialized), open_session(data)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    answers = before.run(given)
    assert distance(after.run(given), answers, answers) <= tolerance
    attributes = 2 * rules_of(plan).count("response")  # alpha and bias are numbers now
    assert parameters(new) <= parameters(model) + attributes
    assert not Merge().plan(new, {}).decisions
    return new, plan


def runs(proto: onnx.ModelProto) -> bool:
    """Is there a position left behind all windows?"""
    try:
        onnx.checker.check_model(proto, full_check=True)
        answers = open_session(proto.SerializeToString()).run(feeds(proto, 0))
    except (onnx.shape_inference.InferenceError, ModelError, onnxcompress.DataError):
        return False
    return all(array.size for array in answers.values())


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(chains())
def test_merged_chains_give_the_same(proto: onnx.ModelProto) -> None:
    assume(runs(proto))
    check(proto)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(forks())
def test_merged_branches_give_the_same(proto: onnx.ModelProto) -> None:
    check(proto)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(models())
def test_any_model_gives_the_same(proto: onnx.ModelProto) -> None:
    check(proto)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_gives_the_same(name: str) -> None:
    check(ZOO[name](), tolerance=2e-2 if name in {"float16", "cast_fp16"} else SAME)


@pytest.mark.fetch
@pytest.mark.parametrize("name", [str(name) for name in real_models()])
def test_real_models_give_the_same(name: str) -> None:
    try:
        path = fetch(name)
        from sample_models.inputs import inputs as natural

        data = natural(name, 2, 0)
    except (FetchError, onnxcompress.DataError) as error:
        pytest.skip(str(error))
    session = open_session(path)
    batch = next(iter(open_data(data, session.inputs).batches(1)))
    model = load(path)
    new, _ = merged(model)
    answers = session.run(batch)
    assert distance(open_session(to_bytes(finished(new))).run(batch), answers, answers) <= SAME
    assert parameters(new) <= parameters(model) and not Merge().plan(new, {}).decisions


def rules_of(plan: Plan) -> list[str]:
    return [each["rule"] for each in plan.decisions]


def ops_of(model: Model) -> list[str]:
    return [node.op_type for node in model.ir.graph]


def test_a_repvgg_block_is_one_convolution() -> None:
    g = Made(8)
    wide = g.norm(g.conv("x", 8, 3, pads=1), 8)
    narrow = g.norm(g.conv("x", 8, 1), 8)
    new, plan = check(g.model(g.add(g.add(wide, narrow), g.norm("x", 8)), relu))
    assert ops_of(new) == ["Conv", "Relu"]
    assert parameters(new) == 8 * 8 * 9 + 8
    assert rules_of(plan) == ["chain", "chain", "branches", "branches"]


def test_a_repvgg_block_that_halves() -> None:
    g = Made(8)
    wide, narrow = g.conv("x", 16, 3, pads=1, stride=2), g.conv("x", 16, 1, stride=2)
    new, _ = check(g.model(g.add(wide, narrow), relu))
    assert ops_of(new) == ["Conv", "Relu"] and parameters(new) == 16 * 8 * 9


def test_asymmetric_kernels_meet_in_one_square() -> None:
    """ACNet: 3x3, 1x3 and 3x1 are one 3x3 (Ding et al., ICCV 2019, arXiv:1908.03930)."""
    g = Made(4)
    parts = [
        g.conv("x", 4, (3, 3), pads=(1, 1)),
        g.conv("x", 4, (1, 3), pads=(0, 1)),
        g.conv("x", 4, (3, 1), pads=(1, 0)),
    ]
    new, _ = check(g.model(g.add(g.add(parts[0], parts[1]), parts[2]), relu))
    assert ops_of(new) == ["Conv", "Relu"] and parameters(new) == 4 * 4 * 9


def test_low_rank_terms_beside_their_matrix_go_into_it() -> None:
    """LoRA: x W + s (x A) B costs less as one product, (x A) B alone does not."""
    g = Made(12, axes=0)
    low = g.mul(g.matmul(g.matmul("x", 12, 2), 2, 12), 0.5)
    new, _ = check(g.model(g.add(g.matmul("x", 12, 12), low), relu))
    assert ops_of(new) == ["MatMul", "Relu"] and parameters(new) == 144


def test_a_bottleneck_stays_and_the_refusal_has_the_figures() -> None:
    g = Made(12, axes=0)
    new, plan = check(g.model(g.matmul(g.matmul("x", 12, 2), 2, 12), relu))
    assert ops_of(new) == ["MatMul", "MatMul", "Relu"]
    (refusal,) = plan.refusals
    assert refusal.why == "one node would need 144 parameters for 48 and 144 multiply-adds a position for 48"


def test_a_separable_convolution_stays() -> None:
    g = Made(8)
    deep = g.conv("x", 8, 3, pads=1, group=8)
    new, plan = check(g.model(g.conv(deep, 16, 1), relu))
    assert ops_of(new) == ["Conv", "Conv", "Relu"]
    assert "1,152 parameters for 200" in plan.refusals[0].why


def test_a_wide_middle_goes() -> None:
    g = Made(4)
    new, _ = check(g.model(g.conv(g.conv("x", 64, 3, stride=2), 8, 1, stride=2), relu))
    assert ops_of(new) == ["Conv", "Relu"]
    assert list(new.ir.graph.node(0).attributes["strides"].as_ints()) == [4, 4]


@pytest.mark.parametrize(("pads", "left"), [(0, ["Conv", "Relu"]), (1, ["BatchNormalization", "Conv", "Relu"])])
def test_a_norm_before_a_padded_convolution_stays(pads: int, left: list[str]) -> None:
    g = Made(6)
    new, plan = check(g.model(g.conv(g.norm("x", 6), 4, 3, pads=pads), relu))
    assert ops_of(new) == left
    assert [each.why for each in plan.refusals] == (
        ["the padding in between is zero, where the first one's bias would be"] if pads else []
    )


def test_a_scale_goes_through_a_shift_that_padding_holds_back() -> None:
    g = Made(6)
    scaled = g.op("Add", g.mul("x", g.scale(6).reshape(6, 1, 1)), g.vector(6).reshape(6, 1, 1))
    g.width[scaled] = 6
    new, plan = check(g.model(g.conv(scaled, 4, 3, pads=1), relu))
    assert ops_of(new) == ["Add", "Conv", "Relu"] and rules_of(plan) == ["through"]


def test_a_norm_that_only_products_read_goes_into_each() -> None:
    g = Made(6)
    shared = g.norm("x", 6)
    new, plan = check(g.model(g.add(relu(g, g.conv(shared, 4, 1)), relu(g, g.conv(shared, 4, 3, pads=0, cut=1))), relu))
    assert "BatchNormalization" not in ops_of(new) and rules_of(plan) == ["ahead"]


def test_what_somebody_else_reads_stays() -> None:
    g = Made(6)
    first = g.conv("x", 6, 1)
    new, plan = check(g.model(g.add(relu(g, first), g.conv(first, 6, 1)), relu))
    assert ops_of(new).count("Conv") == 2 and not plan.decisions


def test_convolutions_that_are_laid_end_to_end_become_one() -> None:
    g = Made(6)
    new, plan = check(g.model(g.concat(g.conv("x", 4, 3, pads=1), g.conv("x", 2, 3, pads=1)), relu))
    assert ops_of(new) == ["Conv", "Relu"] and rules_of(plan) == ["concat"]


def test_kept_nodes_stay() -> None:
    g = Made(6)
    model = load(g.model(g.norm(g.conv("x", 4, 1), 4), relu))
    names = [node.name or "" for node in model.ir.graph]
    plan = Merge(keep=(names[0],)).plan(model, {})
    assert not plan.decisions and [each.why for each in plan.refusals] == ["it is kept"]
    with pytest.raises(SettingError, match="matches no node"):
        Merge(keep=("nothing*",)).plan(model, {})


def test_a_damaged_plan_is_refused() -> None:
    g = Made(6)
    model = load(g.model(g.norm(g.conv("x", 4, 1), 4), relu))
    plan = Merge().plan(model, {})
    for wrong in ({"at": "nobody"}, {"rule": "none"}):
        with pytest.raises(ModelError, match="cannot be merged as the plan says"):
            Merge().apply(model, Plan(plan.method, {}, plan.fingerprint, [{**plan.decisions[0], **wrong}]))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_keep_the_type_of_the_file(dtype: type) -> None:
    g = Made(6, axes=0, dtype=dtype)
    new, _ = check(g.model(g.mul(g.matmul("x", 6, 4), np.full(4, 0.3, np.float32)), relu), tolerance=1e-2)
    assert ops_of(new)[-2:] == ["MatMul", "Relu"]
    assert {new.array(name).dtype for name in new.initializers} == {np.dtype(dtype)}


def test_a_coded_weight_stays() -> None:
    """Its symbols would be lost."""
    g = Made(64, axes=0)
    coded = onnxcompress.cluster(g.model(g.mul(g.matmul("x", 64, 64), 0.5), relu), bits=4).model
    assert ops_of(coded) == ops_of(merged(coded)[0])


@pytest.mark.parametrize("axes", [0, 1, 2])
@pytest.mark.parametrize(("middle", "merged_too"), [(2, False), (3, True), (24, True)])
def test_linear_layers_in_a_row_are_one_exactly_where_that_costs_no_more(
    axes: int, middle: int, merged_too: bool
) -> None:
    """6 to m to 4: 10 m weights apart, 24 as one."""
    g = Made(6, axes=axes)
    if axes:
        y = g.conv(g.conv("x", middle, 1), 4, 1)
    else:
        y = g.matmul(g.matmul("x", 6, middle), middle, 4)
    new, _ = check(g.model(y, relu))
    assert parameters(new) == (24 if merged_too else 10 * middle)


@pytest.mark.parametrize("divided", ["last", "first", "times a sixth"])
def test_a_hard_swish_in_pieces_is_one_node_and_not_taken_apart(divided: str) -> None:
    """Its sixth would go into the convolution behind it, its three into the bias before, and quantize would know neither."""
    g = Made(6)
    before = g.conv("x", 6, 1)
    gate = g.op("Clip", g.op("Add", before, np.float32(3)), np.float32(0), np.float32(6))
    if divided == "first":
        y = g.op("Mul", before, g.op("Div", gate, np.float32(6)))
    elif divided == "last":
        y = g.op("Div", g.op("Mul", before, gate), np.float32(6))
    else:
        y = g.op("Mul", g.op("Mul", before, gate), np.float32(1 / 6))
    g.width[y] = 6
    new, plan = check(g.model(g.conv(y, 4, 1), relu))
    assert ops_of(new) == ["Conv", "HardSwish", "Conv", "Relu"] and set(rules_of(plan)) == {"hard"}


def test_a_gate_keeps_its_three_and_its_sixth() -> None:
    g = Made(6)
    inner = relu(g, g.conv("x", 6, 1))
    gate = g.op("Div", g.op("Clip", g.op("Add", inner, np.float32(3)), np.float32(0), np.float32(6)), np.float32(6))
    g.width[gate] = 6
    new, _ = check(g.model(g.conv(gate, 4, 1), relu))
    assert ops_of(new) == ["Conv", "Relu", "HardSigmoid", "Conv", "Relu"]


@pytest.mark.parametrize(("size", "beta"), [(1, 0.25), (3, 0.5), (5, 0.75), (7, 1.0)])
def test_a_local_response_is_sums_and_roots(size: int, beta: float) -> None:
    """Channels at both ends have fewer neighbours than the window takes."""
    g = Made(6)
    inner = g.op("LRN", g.conv("x", 6, 1), size=size, alpha=2.5, beta=beta, bias=1.5)
    g.width[inner] = 6
    new, plan = check(g.model(g.conv(inner, 4, 1), relu), tolerance=1e-6)
    assert set(rules_of(plan)) == {"response"} and ops_of(new).count("Slice") == size


@pytest.mark.parametrize("facts", [{"beta": 0.6}, {"bias": 0.0}, {"alpha": -1e-4}])
def test_a_local_response_without_such_roots_stays(facts: dict[str, float]) -> None:
    g = Made(6)
    inner = g.op("LRN", g.conv("x", 6, 1), **{"size": 3, **facts})
    g.width[inner] = 6
    model = load(g.model(g.conv(inner, 4, 1), relu))
    assert not merged(model)[1].decisions
