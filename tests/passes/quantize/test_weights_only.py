"""QuantizeWeights: the written model is the original with decoded weights; forms, limits, plans that are replayed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from generate import feeds, models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import distance
from onnx import checker
from zoo import ZOO

from onnxcompress import quantize
from onnxcompress.errors import SettingError
from onnxcompress.evidence.expose import run_shapes
from onnxcompress.model import Model, load
from onnxcompress.model.edit import set_constant, walk
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.operators.cost import macs_by_layer, parameters
from onnxcompress.operators.layer import all_layers
from onnxcompress.passes import QuantizeWeights
from onnxcompress.passes.quantize.blocks import SEARCHED, Blocks, blocks_of
from onnxcompress.passes.quantize.found import Weight
from onnxcompress.passes.quantize.integers import decoded
from onnxcompress.passes.quantize.portable import fits, pairing
from onnxcompress.passes.quantize.weights_only import read
from onnxcompress.plan import Plan, load_plan
from onnxcompress.run import run as carried_out
from onnxcompress.runtime.session import open_session

from .calibrated import db, executed, model_of, run
from .locally import check_products, in_floats

rng = np.random.default_rng(5)
SAME = 0.0
MULTIPLIED = 1e-4
"""Of each output's largest value: weights multiplied out of blocks, summed in another order."""


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def planned(model: Model, **ways: object) -> tuple[QuantizeWeights, Plan]:
    """Every weight, however small and however much it loses; no clock."""
    each = QuantizeWeights(**{"smallest": 0, "least_db": -100.0, "measure": False, **ways})  # type: ignore[arg-type]
    return each, each.plan(model, {})


def with_decoded(model: Model, plan: Plan) -> Model:
    """The float model with each weight replaced by what its integers stand for."""
    graph = model.ir.clone()
    for each in plan.decisions:
        weight = Weight(each["weight"], each["op"], None, tuple(each["nodes"]), each["form"], 0)
        values = decoded(read(each, plan.arrays), model.array(weight.name).shape, weight, each["form"])
        set_constant(graph, weight.name, values)
    return model.edited(graph)


def check_weights(proto: onnx.ModelProto, seed: int, **ways: object) -> Counter[str]:
    """The law, legality, determinism and the signature; returns how many weights took which form."""
    model = load(proto)
    each, plan = planned(model, **ways)
    written = each.apply(model, plan)
    assert not violations(written)
    data = to_bytes(finished(written))
    checker.check_model(data)
    assert data == to_bytes(finished(each.apply(model, planned(model, **ways)[1])))
    decoded_ = with_decoded(model, plan)
    float_, integer = open_session(to_bytes(finished(decoded_))), open_session(data)
    assert (integer.inputs, integer.outputs) == (float_.inputs, float_.outputs)
    inputs = feeds(proto, seed)
    wanted, found = float_.run(inputs), integer.run(inputs)
    forms = Counter(each["form"] for each in plan.decisions if each["form"] == "load" or each["op"] != "Gather")
    if set(forms) <= {"load"}:  # folded when loaded, or picked: the very same floats
        assert distance(found, wanted, wanted) <= SAME
    else:  # inputs are rounded too: by themselves, and none of it where floats are multiplied
        check_products(decoded_, written, plan.decisions, inputs)
    if "dynamic" not in forms:
        floats = open_session(to_bytes(finished(in_floats(written))), optimise=False).run(inputs)
        assert distance(floats, wanted, wanted) <= MULTIPLIED
    assert not each.plan(written, {}).decisions
    assert parameters(written) == parameters(model)
    shapes = [run_shapes(each, inputs) for each in (model, written)]
    assert sum(macs_by_layer(written, shapes[1]).values()) == sum(macs_by_layer(model, shapes[0]).values())
    return forms


WAYS = (
    {"bits": 8, "decode": "load"},
    {"bits": 4, "decode": "load"},
    {"bits": 8},
    {"bits": 4, "block": 16},
    {"dynamic": "all"},
)
"""The first two are rebuilt when the file is loaded, and are the same bit for bit."""


@pytest.mark.parametrize("name", ZOO)
def test_the_law_on_the_zoo(name: str) -> None:
    """Ways that decide the same write the same file, which is checked once."""
    seen: list[list[dict[str, object]]] = [[]]
    for ways in WAYS:
        decisions = planned(load(ZOO[name]()), **ways)[1].decisions
        if decisions not in seen:
            forms = check_weights(ZOO[name](), 0, **ways)
            assert ways.get("decode") != "load" or set(forms) <= {"load"}
            seen.append(decisions)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(proto=models(), seed=st.integers(0, 99), bits=st.sampled_from([4, 8]), dynamic=st.sampled_from(["none", "all"]))
def test_the_law_on_generated_models(proto: onnx.ModelProto, seed: int, bits: int, dynamic: str) -> None:
    check_weights(proto, seed, bits=bits, dynamic=dynamic)


def test_the_zoo_has_every_form() -> None:
    forms = {
        (each["form"], each["op"]) for name in ZOO for each in planned(load(ZOO[name]()), dynamic="all")[1].decisions
    }
    assert {("dynamic", "MatMul"), ("dynamic", "Gemm"), ("dynamic", "LSTM"), ("run", "Gather")} <= forms
    assert {("load", "Conv"), ("load", "ConvTranspose"), ("load", "GRU"), ("load", "RNN"), ("load", "Einsum")} <= forms


def model(text: str, **weights: np.ndarray) -> Model:
    return model_of(f"agraph {text}", weights)


MATMUL = "(float[3,64] x) => (float[3,48] y) { y = MatMul(x, w) }"
BODY = (
    "(bool c, float[3,64] x) => (float[3,48] y) { y = If (c)"
    " <then_branch = t () => (float[3,48] p) { p = MatMul(x, w) },"
    " else_branch = e () => (float[3,48] q) { u = Unsqueeze(v, k)  s = Squeeze(u, k)  q = MatMul(x, s) }> }"
)


@pytest.mark.parametrize(
    ("ways", "form", "kernel"),
    [
        ({}, "run", "MatMulNBits"),
        ({"bits": 4}, "run", "MatMulNBits"),
        ({"block": 32}, "run", "MatMulNBits"),
        ({"decode": "load"}, "load", "MatMul"),
        ({"dynamic": "all"}, "dynamic", "DynamicQuantizeMatMul"),
        ({"dynamic": "recurrent"}, "run", "MatMulNBits"),
    ],
)
def test_what_runs(ways: dict[str, object], form: str, kernel: str) -> None:
    float_ = model(MATMUL, w=normal(64, 48))
    each, plan = planned(float_, **ways)
    assert [decision["form"] for decision in plan.decisions] == [form]
    assert executed(each.apply(float_, plan))[kernel] == 1


def test_weights_in_bodies_and_behind_reshapes() -> None:
    """A matrix is read in blocks where it stands; what a body reshapes is rebuilt when the file is loaded."""
    float_ = model(BODY, w=normal(64, 48), v=normal(64, 48), k=np.array([0]))
    each, plan = planned(float_)
    assert {(d["weight"], d["form"], d["block"]) for d in plan.decisions} == {("w", "run", 32), ("v", "load", None)}
    written = each.apply(float_, plan)
    held = sum(written.array(name).nbytes for name in written.initializers)
    assert held < 0.3 * 2 * 64 * 48 * 4
    assert [node.op_type for node in walk(written.ir) if node.domain] == ["MatMulNBits"]
    assert not any(node.op_type == "DequantizeLinear" for node in walk(written.ir))
    for choice in (True, False):
        feed = {"c": np.array(choice), "x": normal(3, 64)}
        assert db(run(float_, feed)["y"], run(written, feed)["y"]) > 30


@pytest.mark.parametrize(
    ("mode", "kernels"), [("static", set()), ("weights", {"MatMulNBits"}), ("dynamic", {"MatMulInteger"})]
)
def test_every_mode_reaches_into_bodies(mode: str, kernels: set[str]) -> None:
    """In static, activations there get grids, since samples take both branches."""
    float_ = model(BODY, w=normal(64, 48), v=normal(64, 48), k=np.array([0]))
    data = [{"c": np.array(bool(number % 2)), "x": normal(3, 64)} for number in range(4)]
    result = quantize(to_bytes(float_.ir), data=data, mode=mode, measure=False, smallest=0)
    inside = {node.op_type for node in walk(result.model.ir) if node.graph is not result.model.ir.graph}
    assert inside & {"MatMulNBits", "MatMulInteger"} == kernels
    assert result.after.bytes < 0.45 * result.before.bytes
    assert ("QuantizeLinear" in inside) == (mode == "static")
    assert not any("stay float there" in note for note in result.report.notes)
    assert result.comparison is not None and result.comparison.sqnr_db > 30  # type: ignore[operator]


def test_a_branch_that_no_sample_takes_stays_float_and_says_so() -> None:
    float_ = model(BODY, w=normal(64, 48), v=normal(64, 48), k=np.array([0]))
    data = [{"c": np.array(True), "x": normal(3, 64)} for _ in range(4)]
    result = quantize(to_bytes(float_.ir), data=data, measure=False, smallest=0)
    (told,) = (note for note in result.report.notes if "stay float there" in note)
    assert told.startswith("1 layer lies in branches of If that no calibration sample takes")
    (node,) = (node for node in result.model.ir.graph if node.op_type == "If")
    inside = {way: {each.op_type for each in node.attributes[way].as_graph()} for way in node.attributes}
    assert ["QuantizeLinear" in kinds for kinds in inside.values()] == [way == "then_branch" for way in inside]


def test_a_weight_with_another_reader_is_rebuilt_once() -> None:
    float_ = model(
        "(float[3,64] x, float[64,48] v) => (float[3,48] y, float[64,48] z) { y = MatMul(x, w)  z = Mul(v, w) }",
        w=normal(64, 48),
    )
    each, plan = planned(float_)
    assert [decision["form"] for decision in plan.decisions] == ["load"]
    written = each.apply(float_, plan)
    assert sum(node.op_type == "Cast" for node in written.ir.graph) == 1
    assert sum(written.array(name).size for name in written.initializers) < 1.1 * 64 * 48


def test_a_weight_that_loses_too_much_gets_more_bits_or_stays_float() -> None:
    spiky = normal(64, 48)
    spiky[::32] *= 1000
    four = QuantizeWeights(bits=4, measure=False)
    assert [d["bits"] for d in four.plan(model(MATMUL, w=normal(64, 48)), {}).decisions] == [4]
    assert [
        d["bits"]
        for d in QuantizeWeights(bits=4, least_db=30.0, measure=False)
        .plan(model(MATMUL, w=normal(64, 48)), {})
        .decisions
    ] == [8]
    plan = QuantizeWeights(least_db=60.0, measure=False).plan(model(MATMUL, w=spiky), {})
    assert not plan.decisions
    assert "below 60" in plan.refusals[0].why
    assert plan.notes == ["no float weight is left that is worth integers"]


def test_what_stays_float() -> None:
    """Kept nodes, small weights, doubles, weights that are not finite; a name that matches nothing is told the nearest."""
    weight = normal(64, 48)
    float_ = model(MATMUL, w=weight)
    name = next(iter(float_.ir.graph)).name or ""
    assert planned(float_, keep=(name,))[1].refusals[0].why == "it was to be kept"
    assert not planned(float_, smallest=weight.nbytes + 1)[1].decisions
    weight[3, 4] = np.inf
    assert "NaN or Inf" in planned(model(MATMUL, w=weight))[1].refusals[0].why
    double = model("(double[3,64] x) => (double[3,48] y) { y = MatMul(x, w) }", w=normal(64, 48).astype(np.float64))
    assert "float64" in planned(double)[1].refusals[0].why
    with pytest.raises(SettingError, match=name):
        planned(float_, keep=(name + "x",))


def test_integer_products_do_not_overflow_sixteen_bits_unless_asked() -> None:
    weight = normal(64, 48)
    weight[:, :] = np.abs(weight) + 1
    pairs = pairing("MatMul", (48, 64))
    assert pairs is not None
    for cpu, safe in (("any", True), ("vnni", False)):
        plan = planned(model(MATMUL, w=weight), dynamic="all", cpu=cpu)[1]
        assert fits(plan.arrays["levels/w"].T.astype(np.int64), pairs) == safe


@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_pairs_do_not_overflow_either(directions: int) -> None:
    """An odd number of inputs: the last of one direction is no neighbour of the first of the next."""
    text = '(float[5,2,15] x) => (float[5,%d,2,12] y) { y = LSTM<hidden_size=12, direction="%s">(x, w, r) }'
    text %= directions, "forward" if directions == 1 else "bidirectional"
    weights = {"w": np.abs(normal(directions, 48, 15)) + 1, "r": np.abs(normal(directions, 48, 12)) + 1}
    plan = planned(model(text, **weights), dynamic="recurrent")[1]
    assert {decision["form"] for decision in plan.decisions} == {"dynamic"}
    for name in "wr":
        for levels in plan.arrays[f"levels/{name}"].astype(np.int64):
            pairs = pairing("LSTM", levels.shape)
            assert pairs is not None
            assert fits(levels, pairs)
            assert levels.max() > 64  # no more than need be is given up


def test_a_saved_plan_makes_the_same_file(tmp_path: Path) -> None:
    for ways in ({}, {"bits": 4}, {"dynamic": "all"}):
        float_ = load(ZOO["lstm"]())
        each, plan = planned(float_, **ways)
        plan.save(tmp_path / "plan.json")
        again = each.apply(float_, load_plan(tmp_path / "plan.json"))
        assert to_bytes(finished(again)) == to_bytes(finished(each.apply(float_, plan)))


class Stopwatch:
    """Says that graphs with one of these operators take twice as long, and that an LSTM in integers answers worse."""

    def __init__(self, *slow: str, cost: float = 0.0) -> None:
        self.slow, self.cost = slow, cost

    def milliseconds(self, graphs: dict, seconds: float) -> dict[str, float]:
        return {
            name: 0.5 + len(ops(graph) & FLOATS) + 9 * len(ops(graph) & set(self.slow))
            for name, graph in graphs.items()
        }

    def compare(self, graph: object) -> object:
        class Answer:
            sqnr_db = 30.0 - (self.cost if "DynamicQuantizeLSTM" in ops(graph) else 0.0)

        return Answer()


FLOATS = {"LSTM", "MatMul"}


def ops(graph: object) -> set[str]:
    return {node.op_type for node in walk(graph)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("watch", "dynamic", "form"),
    [
        (Stopwatch(), "recurrent", "dynamic"),
        (Stopwatch("DynamicQuantizeLSTM"), "recurrent", "load"),
        (Stopwatch(cost=3.0), "recurrent", "load"),
        (Stopwatch(cost=3.0), "all", "dynamic"),
    ],
)
def test_an_lstm_is_integer_where_that_is_faster_and_costs_nothing(watch: Stopwatch, dynamic: str, form: str) -> None:
    float_ = load(ZOO["lstm"]())
    each = QuantizeWeights(smallest=0, least_db=-100.0, dynamic=dynamic, decode="load")  # type: ignore[arg-type]
    assert each.needs(float_)
    plan = each.plan(float_, {each.needs(float_)[0]: watch})
    assert {d["form"] for d in plan.decisions if d["op"] == "LSTM"} == {form}
    assert plan.notes


@pytest.mark.parametrize("block", [16, 32])
def test_four_bits_are_searched_for_the_least_error(block: int) -> None:
    """No block is worse than with the full range; on normal numbers the whole is better."""
    matrix = normal(40, 64)
    full, best = (blocks_of(matrix, 4, block, shares) for shares in ((1.0,), SEARCHED))
    lost = [np.square(each.values() - matrix).reshape(40, -1, block).sum(axis=2) for each in (full, best)]
    assert (lost[1] <= lost[0] * 1.0001).all()
    assert lost[1].sum() < 0.95 * lost[0].sum()
    assert isinstance(best, Blocks)


DIGITS = Path(__file__).parents[3] / "sample_models" / "digits.onnx"


@pytest.mark.parametrize("mode", ["static", "dynamic", "weights"])
def test_modes_of_the_verb(mode: str) -> None:
    """The file shrinks, all parameters are still counted, the answers stay; what static leaves in float takes a byte a weight."""
    result = quantize(DIGITS, data=DIGITS.with_suffix(".npz"), limit=64, mode=mode, measure=False)
    assert result.comparison is not None and result.comparison.sqnr_db is not None
    assert result.comparison.sqnr_db > 30
    assert result.after.bytes < 0.4 * result.before.bytes
    assert result.after.macs == result.before.macs
    assert [plan.method for plan in result.plans][-1] == "quantize-weights"
    assert ("quantize" in {plan.method for plan in result.plans}) == (mode == "static")


def test_settings_of_another_mode_are_refused() -> None:
    with pytest.raises(SettingError, match="static, dynamic, weights"):
        quantize(DIGITS, mode="weight")
    with pytest.raises(SettingError, match="calibration is for the mode static"):
        quantize(DIGITS, mode="weights", calibration="entropy")
    with pytest.raises(SettingError, match="give one of 8, 4"):
        quantize(DIGITS, mode="weights", bits=5)


TIED = """(int64[N,L] ids) => (float[N,L,96] y) {
     e = Gather(w, ids)
     t = Tanh(e)
     y = MatMul(t, v)
   }"""


@pytest.mark.parametrize(("bits", "how", "most"), [(4, "Reshape", 0.57), (8, "Transpose", 0.52)])
def test_a_matrix_that_is_tied_to_an_embedding_is_stored_once(bits: int, how: str, most: float) -> None:
    """The other way round is made when the file is loaded; both answer as they would by themselves, and still count as layers."""
    table = normal(96, 64)
    tied, single = (model(TIED, w=table, v=second) for second in (table.T.copy(), normal(64, 96)))
    sizes = []
    for float_ in (tied, single):
        each, plan = planned(float_, bits=bits)
        written = each.apply(float_, plan)
        sizes.append(sum(written.array(name).nbytes for name in written.initializers))
        moved = [node.op_type for node in walk(written.ir) if node.op_type in ("Reshape", "Transpose")]
        assert moved == ([how] if float_ is tied else [])
        assert [layer.bits for layer in all_layers(written) if layer.bits] == [bits, bits]
        ids = {"ids": np.arange(96).reshape(4, 24)}
        check_products(with_decoded(float_, plan), written, plan.decisions, ids)
        wanted, found = (
            open_session(to_bytes(finished(m)), optimise=False).run(ids)
            for m in (with_decoded(float_, plan), in_floats(written))
        )
        assert distance(found, wanted, wanted) <= MULTIPLIED
    scales = sizes[1] - (2 * 96 * 64 * bits // 8)
    assert sizes[0] - scales <= most * (sizes[1] - scales) + 64


def test_a_tied_matrix_keeps_the_levels_of_its_embedding_where_others_are_rounded_on_data() -> None:
    table = normal(96, 64)
    float_ = model(TIED, w=table, v=table.T.copy())
    each = QuantizeWeights(bits=4, smallest=0, least_db=-100.0, measure=False)
    result = carried_out(float_, [each], {"ids": rng.integers(0, 96, (80, 8))})
    assert sum(array.nbytes for name, array in stored_levels(result.model)) == 96 * 32


def stored_levels(written: Model) -> list[tuple[str, np.ndarray]]:
    return [(name, array) for name in written.initializers if (array := written.array(name)).size >= 96 * 32]


@pytest.mark.parametrize("ways", [{"bits": 4}, {"dynamic": "all"}], ids=str)
def test_the_law_of_one_product_sees_a_wrong_step(ways: dict[str, object]) -> None:
    float_, inputs = model(MATMUL, w=normal(64, 48)), {"x": normal(3, 64)}
    each, plan = planned(float_, **ways)
    written = each.apply(float_, plan)
    check_products(with_decoded(float_, plan), written, plan.decisions, inputs)
    plan.arrays["scale/w"] = plan.arrays["scale/w"] * np.float32(1.3)
    with pytest.raises(AssertionError):
        check_products(with_decoded(float_, plan), written, plan.decisions, inputs)


def test_a_channel_of_zeros_answers_zeros() -> None:
    """Kernels add 128 steps to each level and take them off again in floats: with steps of one, 3e-5 was left of a zero."""
    weight = normal(64, 48) * 1e-3
    weight[:, 7] = 0
    float_ = model(MATMUL, w=weight.astype(np.float32))
    each, plan = planned(float_)
    assert plan.arrays["scale/w"].max() < 1e-4
    assert np.abs(run(each.apply(float_, plan), {"x": normal(3, 64)})["y"][:, 7]).max() < 1e-6
