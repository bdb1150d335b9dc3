"""Written graphs: every row's kernel is the one that onnxruntime executes, and it answers as fake quantization does."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from onnx import checker
from zoo import ZOO

from onnxcompress.errors import ModelError
from onnxcompress.model.edit import walk
from onnxcompress.model.load import load
from onnxcompress.model.save import to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.passes.quantize.chosen import candidates
from onnxcompress.passes.quantize.ends import integer_ends
from onnxcompress.passes.quantize.folding import folded
from onnxcompress.passes.quantize.grid import grid_of
from onnxcompress.passes.quantize.pen import Rounded
from onnxcompress.passes.quantize.rows import IN_BODY, ROWS
from onnxcompress.passes.quantize.walked import Simulation
from onnxcompress.passes.quantize.write import write

from .calibrated import Arrays, db, decided, executed, fake, feeds_of, model_of, run, static

rng = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / 3).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A model of the operators named, what onnxruntime then executes, and how many steps it may be off."""

    text: str
    executes: dict[str, int]
    constants: Arrays = field(default_factory=dict)
    steps: int = 2


IMAGE, WIDE = "float[2,8,6,6] x", "float[2,8,6,6] a, float[2,8,6,6] b"


def one(op: str, result: str = "float[n,c,h,w] y", reads: str = IMAGE) -> str:
    return f"agraph ({reads}) => ({result}) {{ y = {op} }}"


CONV = {"w": normal(6, 8, 3, 3), "b": normal(6)}
CASES: dict[str, Case] = {
    "Conv": Case(one("Conv(x, w, b)"), {"QLinearConv": 1}, CONV),
    "Conv without bias": Case(one("Conv(x, w)"), {"QLinearConv": 1}, {"w": CONV["w"]}),
    "Conv, one axis": Case(
        one("Conv(x, w, b)", "float[n,c,l] y", "float[2,8,9] x"),
        {"QLinearConv": 1},
        {"w": normal(4, 8, 3), "b": normal(4)},
    ),
    "Conv, three axes": Case(
        one("Conv(x, w, b)", "float[n,c,d,h,w] y", "float[1,4,5,5,5] x"),
        {"QLinearConv": 1},
        {"w": normal(4, 4, 3, 3, 3), "b": normal(4)},
    ),
    "Conv, grouped": Case(one("Conv<group=2>(x, w)"), {"QLinearConv": 1}, {"w": normal(6, 4, 3, 3)}),
    "Conv, depthwise": Case(one("Conv<group=8>(x, w)"), {"QLinearConv": 1}, {"w": normal(8, 1, 3, 3)}),
    "Conv, Relu": Case(
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ h = Conv(x, w, b)  y = Relu(h) }}", {"QLinearConv": 1}, CONV
    ),
    "Conv, Clip": Case(
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ h = Conv(x, w, b)  y = Clip(h, low, high) }}",
        {"QLinearConv": 1},
        {**CONV, "low": np.float32(0), "high": np.float32(1.5)},
    ),
    "Conv, HardSwish": Case(
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ h = Conv(x, w, b)  y = HardSwish(h) }}",
        {"QLinearConv": 1, "Clip": 1, "QLinearMul": 1},
        {"w": 3 * CONV["w"], "b": CONV["b"]},
        steps=4,
    ),
    "Gemm": Case(
        one("Gemm(x, w, b)", "float[n,o] y", "float[3,16] x"), {"QGemm": 1}, {"w": normal(16, 5), "b": normal(5)}
    ),
    "Gemm, transposed": Case(
        one("Gemm<transB=1>(x, w, b)", "float[n,o] y", "float[3,16] x"),
        {"QGemm": 1},
        {"w": normal(5, 16), "b": normal(1, 5)},
    ),
    "MatMul": Case(
        one("MatMul(x, w)", "float[n,m,o] y", "float[2,3,16] x"), {"QLinearMatMul": 1}, {"w": normal(16, 5)}
    ),
    "MatMul of activations": Case(
        one("MatMul(a, b)", "float[n,m,o] y", "float[2,3,16] a, float[2,16,5] b"), {"QLinearMatMul": 1}
    ),
    "MatMul and bias": Case(
        "agraph (float[2,3,16] x) => (float[n,m,o] y) { h = MatMul(x, w)  y = Add(h, b) }",
        {"QGemm": 1},
        {"w": normal(16, 5), "b": normal(5)},
    ),
    "Add": Case(one("Add(a, b)", reads=WIDE), {"QLinearAdd": 1}),
    "Add of a constant": Case(one("Add(x, c)"), {"QLinearAdd": 1}, {"c": normal(8, 1, 1)}),
    "Mul": Case(one("Mul(a, b)", reads=WIDE), {"QLinearMul": 1}),
    "Concat": Case(one("Concat<axis=1>(a, b)", reads=WIDE), {"QLinearConcat": 1}),
    "Where": Case(one("Where(c, a, b)", reads=f"bool[2,8,6,6] c, {WIDE}"), {"QLinearWhere": 1}),
    "AveragePool": Case(one("AveragePool<kernel_shape=[2,2]>(x)"), {"QLinearAveragePool": 1}),
    "GlobalAveragePool": Case(one("GlobalAveragePool(x)"), {"QLinearGlobalAveragePool": 1}),
    "LeakyRelu": Case(one("LeakyRelu<alpha=0.1>(x)"), {"QLinearLeakyRelu": 1}),
    "Sigmoid": Case(one("Sigmoid(x)"), {"QLinearSigmoid": 1}),
    "Add and Mul of numbers": Case(
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ h = Conv(x, w, b)  m = Mul(h, half)  y = Add(m, one) }}",
        {"QLinearConv": 1},
        {**CONV, "half": np.float32(0.5), "one": np.float32(0.25)},
        steps=2,
    ),
    "SiLU": Case(
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ g = Sigmoid(x)  y = Mul(x, g) }}",
        {"QLinearSigmoid": 1, "QLinearMul": 1},
    ),
    "HardSigmoid": Case(one("HardSigmoid(x)", reads="float[2,8,16,16] x"), {"Clip": 1}),
    "HardSwish": Case(one("HardSwish(x)", reads="float[2,8,32,32] x"), {"Clip": 1, "QLinearMul": 1}, steps=4),
    "Relu": Case(one("Relu(x)"), {"Clip": 0}),
    "Clip": Case(
        "agraph (float[2,8,6,6] a) => (float[n,c,h,w] y, float[n,c,h,w] z) { y = Clip(a, low, high)  z = Mul(a, a) }",
        {"Clip": 1, "QLinearMul": 1},
        {"low": np.float32(-1), "high": np.float32(1)},
    ),
    "MaxPool": Case(one("MaxPool<kernel_shape=[2,2]>(x)"), {"MaxPool": 1}),
    "Flatten": Case(one("Flatten(x)", "float[n,o] y"), {"Flatten": 1}),
    "Transpose": Case(one("Transpose<perm=[0,2,3,1]>(x)"), {}),
    "DepthToSpace": Case(one("DepthToSpace<blocksize=2>(x)"), {"DepthToSpace": 1}),
    "SpaceToDepth": Case(one("SpaceToDepth<blocksize=2>(x)"), {"SpaceToDepth": 1}),
    "Pad": Case(one("Pad(x, p)"), {"Pad": 1}, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "Pad, reflected": Case(one('Pad<mode="reflect">(x, p)'), {"Pad": 1}, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "Slice": Case(one("Slice(x, s, e, a)"), {"Slice": 1}, {"s": np.array([1]), "e": np.array([4]), "a": np.array([1])}),
    "Gather": Case(one("Gather<axis=1>(x, i)"), {"Gather": 1}, {"i": np.array([3, 0, 5])}),
    "Resize, nearest": Case(
        one('Resize<mode="nearest">(x, , s)'), {"Resize": 1}, {"s": np.array([1, 1, 2, 2], np.float32)}
    ),
    "ReduceMax": Case(one("ReduceMax<axes=[2,3]>(x)"), {"ReduceMax": 1}),
    "Expand": Case(one("Expand(x, s)", reads="float[2,8,1,1] x"), {"Expand": 1}, {"s": np.array([2, 8, 3, 3])}),
    "Tile": Case(one("Tile(x, s)"), {"Tile": 1}, {"s": np.array([1, 1, 2, 1])}),
    "Split": Case(
        "agraph (float[2,8,6,6] x) => (float[n,c,h,w] y, float[n,c,h,w] z) { y, z = Split<axis=1>(x) }", {"Split": 1}
    ),
    "residual": Case(
        f"agraph ({IMAGE}) => (float[n,c,h,w] y) {{ h = Conv<pads=[1,1,1,1]>(x, w, b)  s = Add(h, x)  y = Relu(s) }}",
        {"QLinearConv": 1, "QLinearAdd": 1},
        {"w": normal(8, 8, 3, 3), "b": normal(8)},
        steps=3,
    ),
    "a weight of two nodes": Case(
        f"agraph ({IMAGE}) => (float[n,c,h,w] y)"
        " { h = Conv<pads=[1,1,1,1]>(x, w)  g = Relu(h)  y = Conv<pads=[1,1,1,1]>(g, w) }",
        {"QLinearConv": 2},
        {"w": normal(8, 8, 3, 3)},
        steps=3,
    ),
    "pooled and flattened": Case(
        "agraph (float[2,8,6,6] x) => (float[n,o] y)"
        " { h = Conv(x, w, b)  r = Relu(h)  p = MaxPool<kernel_shape=[2,2]>(r)  f = Flatten(p)  y = Gemm(f, v, c) }",
        {"QLinearConv": 1, "MaxPool": 1, "Flatten": 1, "QGemm": 1},
        {**CONV, "v": normal(54, 5), "c": normal(5)},
        steps=3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_row_runs_on_integers(name: str) -> None:
    """Only the kernels expected, one rounding for an input and one back for an output, within the steps of fake quantization."""
    case = CASES[name]
    model = model_of(case.text, case.constants)
    feeds = feeds_of(model)
    nodes, grids, weights = decided(model, feeds)
    written = write(model, nodes, grids, weights)
    assert not violations(written)
    checker.check_model(to_bytes(written.ir), full_check=True)
    found = executed(written)
    rounded = sum(value.name in grids for value in model.ir.graph.inputs)
    assert found.pop("QuantizeLinear") == rounded
    assert found.pop("DequantizeLinear") == len(model.ir.graph.outputs)
    assert found == {op: count for op, count in case.executes.items() if count}
    for feed in feeds[:2]:
        got, wanted = run(written, feed), fake(model, feed, grids, weights)
        for value, y in wanted.items():
            step = float(grids[value].scale)
            assert np.abs(got[value] - y).max() <= (case.steps + 1e-3) * step


def test_every_integer_row_has_a_case() -> None:
    """Rows that run on integers are all seen to do so; those that only move entries are one row."""
    tested = {node.op_type for case in CASES.values() for node in walk(model_of(case.text, case.constants).ir)}
    alike = {op for op, row in ROWS.items() if row.form == "moves"}
    assert {op.split(",")[0] for op, row in ROWS.items() if row.form not in ("float", "moves")} <= tested
    assert len(tested & alike) >= 12


def chain() -> tuple:
    model = model_of(
        "agraph (float[2,8,6,6] x) => (float[n,c,h,w] y, float[n,c,h,w] z)"
        " { h = Conv(x, w, b)  r = Relu(h)  y = Erf(r)  z = MaxPool<kernel_shape=[2,2]>(r) }",
        CONV,
    )
    feeds = feeds_of(model)
    return model, feeds, decided(model, feeds)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_any_choice_of_nodes(name: str) -> None:
    """Folded, and a random half of its nodes static: legal, loads, and says the same fused and unfused, close to the float model."""
    original = load(ZOO[name]())
    feed = feeds_of(original, count=1)
    model = folded(original)
    chance = np.random.default_rng(len(name))
    nodes = {node for node in sorted(static(model)) if chance.random() < 0.5}
    written = write(model, *decided(model, feed, nodes))
    assert not violations(written)
    checker.check_model(to_bytes(written.ir))
    fused, unfused = run(written, feed[0]), run(written, feed[0], optimise=False)
    for value, y in run(original, feed[0]).items():
        if y.dtype.kind == "f" and np.abs(y).max(initial=0) > 0:
            assert db(y, fused[value]) > 15
            assert min(db(y, unfused[value]), 40) > min(db(y, fused[value]), 40) - 6
        else:
            assert y.shape == fused[value].shape


def test_a_ramp_outside_the_grid_is_computed_in_float() -> None:
    """No zero of the type stands for where the ramp begins: right, if not in integers."""
    for op in ("HardSwish", "HardSigmoid"):
        model = model_of(f"agraph (float[2,8,6,6] x) => (float[n,c,h,w] y) {{ h = Relu(x)  y = {op}(h) }}")
        feeds = feeds_of(model)
        nodes, grids, weights = decided(model, feeds)
        got, wanted = (
            run(write(model, nodes, grids, weights), feeds[0])["y"],
            fake(model, feeds[0], grids, weights)["y"],
        )
        assert np.abs(got - wanted).max() <= 2 * float(grids["y"].scale)


def test_values_keep_their_names_and_types() -> None:
    """A float reader of a rounded value reads it by its own name; inputs and outputs are as they were."""
    model, _, (nodes, grids, weights) = chain()
    written = write(model, nodes, grids, weights)
    erf = next(node for node in written.ir.graph if node.op_type == "Erf")
    assert erf.inputs[0] is not None and erf.inputs[0].name == "r"
    for side in ("inputs", "outputs"):
        before, after = getattr(model.ir.graph, side), getattr(written.ir.graph, side)
        assert [(v.name, v.dtype, v.shape) for v in before] == [(v.name, v.dtype, v.shape) for v in after]
    assert not any(v.shape is None or v.dtype is None for node in written.ir.graph for v in node.outputs)


def test_int8_ends_hand_over_levels() -> None:
    """The same levels as the float ends stand for."""
    model, feeds, (nodes, grids, weights) = chain()
    floats = write(model, nodes, grids, weights)
    levels, told = integer_ends(floats)
    assert [sentence.split()[0] for sentence in told] == ["feed", "'y'", "read"]
    assert told[1].startswith("'y' stays float: Erf ")
    fed = {"x": grids["x"].levels(feeds[0]["x"]).astype(np.uint8)}
    got, wanted = run(levels, fed), run(floats, feeds[0])
    assert got["z"].dtype == np.uint8 and got["y"].dtype == np.float32  # Erf is float
    assert np.array_equal(grids["z"].values(got["z"]), wanted["z"])
    assert np.array_equal(got["y"], wanted["y"])


def test_one_copy_of_a_shared_weight() -> None:
    case = CASES["a weight of two nodes"]
    model = model_of(case.text, case.constants)
    written = write(model, *decided(model, feeds_of(model)))
    assert [
        name for name, value in written.initializers.items() if value.shape is not None and len(value.shape) == 4
    ] == ["w.levels"]


def test_a_float_reader_keeps_the_float_weight() -> None:
    """A weight of a node that stays float is not decoded at every run."""
    case = CASES["a weight of two nodes"]
    model = model_of(case.text, case.constants)
    nodes, grids, weights = decided(model, feeds_of(model))
    last = [node.name or "" for node in model.ir.graph][-1]
    written = write(model, nodes - {last}, grids, weights)
    assert {"w", "w.levels"} <= set(written.initializers)
    assert executed(written)["QLinearConv"] == 1


def test_a_product_may_hand_out_floats() -> None:
    model = model_of("agraph (float[2,3,16] x) => (float[n,m,o] y) { y = MatMul(x, w) }", {"w": normal(16, 5)})
    nodes, grids, weights = decided(model, feeds_of(model))
    written = write(model, nodes, {"x": grids["x"]}, weights)
    assert executed(written) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}


def test_a_bias_that_does_not_fit_32_bits() -> None:
    """Tiny weights beside a large bias: the bias counts, in both arithmetics of the runtime."""
    bias = np.array([5.0, -3.0, 0.1, 0, 0, 0], np.float32)
    model = model_of(one("Conv(x, w, b)"), {"w": normal(6, 8, 3, 3) * np.float32(1e-12), "b": bias})
    feeds = feeds_of(model)
    nodes, grids, weights = decided(model, feeds)
    for optimise in (True, False):
        got = run(write(model, nodes, grids, weights), feeds[0], optimise=optimise)["y"]
        assert np.abs(got - bias.reshape(1, -1, 1, 1)).max() <= float(grids["y"].scale)


def test_what_is_missing_is_said() -> None:
    model, _, (nodes, grids, weights) = chain()
    with pytest.raises(ModelError, match="no levels for its weight w"):
        write(model, nodes, grids, {})
    with pytest.raises(ModelError, match="no grid for x"):
        write(model, nodes, {name: grid for name, grid in grids.items() if name != "x"}, weights)
    other = {**grids, "z": grid_of(-9.0, 9.0, "uint8", symmetric=False)}
    with pytest.raises(ModelError, match="must be on one grid"):
        write(model, nodes, other, weights)


def test_loops_stay_float() -> None:
    model = model_of(
        "agraph (float[2,4] x) => (float[2,4] y) { y = Loop(n, go, x) <body = b (int64 i, bool k, float[2,4] s)"
        " => (bool l, float[2,4] t) { l = Identity(k)  t = MatMul(s, w) }> }",
        {"w": np.ones((4, 4), np.float32), "n": np.array(3), "go": np.array(True)},
    )
    (inner,) = (node for node in walk(model.ir) if node.op_type == "MatMul")
    assert candidates(model, ())[1] == {inner.name: IN_BODY}


def test_branches_that_read_one_value_and_one_weight() -> None:
    """Each gets pairs of its own: neither sees what the other makes."""
    model = model_of(
        "agraph (bool c, float[2,8,6,6] x) => (float[2,6,4,4] y)"
        " { y = If (c) <then_branch = t () => (float[2,6,4,4] p) { p = Conv(x, w, b) },"
        " else_branch = e () => (float[2,6,4,4] q) { a = Conv(x, w)  q = Relu(a) }> }",
        CONV,
    )
    nodes = set(candidates(model, ())[0])
    feeds = [{**feed, "c": np.array(bool(number % 2))} for number, feed in enumerate(feeds_of(model))]
    _, grids, weights = decided(model, feeds, nodes)
    written = write(model, nodes, grids, weights)
    inside = [node.op_type for node in walk(written.ir) if node.graph is not written.ir.graph]
    assert inside.count("QuantizeLinear") == 4 and "Relu" not in inside
    for feed in feeds:
        exact = Simulation(written.ir, saturate=False, every=True).run(feed).outputs["y"]
        assert np.abs(exact - run(written, feed, optimise=False)["y"]).max() <= 2 * float(grids["p"].scale)
        assert db(run(model, feed)["y"], run(written, feed)["y"]) > 25


def test_a_branch_has_pairs_of_its_own_for_what_is_rounded_outside() -> None:
    """A product there with an integer weight beside floats from outside does not load in onnxruntime 1.32."""
    model = model_of(
        "agraph (bool c, float[4,16] x) => (float[4,10] y) { h = MatMul(x, w)  r = Relu(h)"
        " y = If (c) <then_branch = t () => (float[4,10] p) { p = MatMul(r, a) },"
        " else_branch = e () => (float[4,10] q) { k = MatMul(r, b)  q = Relu(k) }> }",
        {"w": normal(16, 24), "a": normal(24, 10), "b": normal(24, 10)},
    )
    nodes = set(candidates(model, ())[0])
    feeds = [{**feed, "c": np.array(bool(number % 2))} for number, feed in enumerate(feeds_of(model))]
    _, grids, weights = decided(model, feeds, nodes)
    for chosen in (nodes, {node for node in nodes if node != next(iter(sorted(nodes)))}):
        written = write(model, chosen, grids, weights)
        for feed in feeds:
            assert db(run(model, feed)["y"], run(written, feed)["y"]) > 25


def test_int8_activations_fuse_between_pairs() -> None:
    """onnxruntime on x86 makes such pairs uint8 first."""
    model = model_of(CASES["Conv"].text, CONV)
    nodes, _, weights = decided(model, feeds_of(model))
    grids = {name: grid_of(-4.0, 4.0, "int8", symmetric=False, levels=(-128, 127)) for name in ("x", "y")}
    assert executed(write(model, nodes, grids, weights))["QLinearConv"] == 1


def test_per_tensor_weights_fuse_too() -> None:
    model, _, (nodes, grids, _) = chain()
    grid = grid_of(CONV["w"].min(), CONV["w"].max(), "int8", symmetric=True)
    found = executed(write(model, nodes, grids, {"w": Rounded(grid.levels(CONV["w"]), grid)}))
    assert found["QLinearConv"] == 1


def test_same_bytes_twice() -> None:
    model, _, (nodes, grids, weights) = chain()
    assert write(model, nodes, grids, weights).serialized == write(model, nodes, grids, weights).serialized
