"""What is collected equals numpy on the same activations, however it is cut into batches, waves and files."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from generate import feeds
from zoo import ZOO

from onnxcompress.data import Data, open_data
from onnxcompress.errors import DataError, ModelError, SettingError
from onnxcompress.evidence.branches import straight
from onnxcompress.evidence.collect import by_sample, collect, sampled_rows
from onnxcompress.evidence.expose import run_shapes
from onnxcompress.evidence.kinds import KINDS
from onnxcompress.evidence.need import Need
from onnxcompress.model import Model, load
from onnxcompress.model.edit import walk
from onnxcompress.runtime.session import open_session

SAMPLES = 13  # not a multiple of any batch here
FEW = 24_000  # bytes: several waves, with batches as large as they can be
SMALL = ("conv_bn", "nhwc", "mlp_matmul", "attention_dynamic", "lstm", "double", "float16", "depthwise", "if_branches")


def opened(name: str, samples: int = SAMPLES) -> tuple[Model, Data]:
    proto = ZOO[name]()
    model = load(proto)
    arrays = feeds(proto, seed=1, batch=samples)
    return model, open_data(arrays, open_session(model.serialized).inputs)


def observed(model: Model) -> list[str]:
    """Floating-point tensors of the main graph that something computes."""
    return [
        value.name or ""
        for node in model.ir.graph
        for value in node.outputs
        if value.name and value.dtype is not None and value.dtype.is_floating_point() and value.shape
    ]


def activations(model: Model, data: Data, batch: int = 4) -> dict[str, list[np.ndarray]]:
    """By hand: every value as an output of an onnx message, one array a batch."""
    proto = onnx.ModelProto.FromString(model.serialized)
    given = {output.name for output in proto.graph.output}
    names = observed(model)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    session = open_session(proto.SerializeToString())
    runs = [session.run(feed) for feed in data.batches(batch)]
    return {name: [run[name].astype(np.float64) for run in runs] for name in names}


def rows_of(arrays: list[np.ndarray], axis: int) -> np.ndarray:
    return np.concatenate([np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]) for array in arrays])


def same(one: object, other: object, kind: str, tolerance: float = 0.0) -> bool:
    """Whether each field is, within a share of its largest number."""
    saved = KINDS[kind].save(one), KINDS[kind].save(other)
    return all(np.abs(a - saved[1][key]).max() <= tolerance * np.abs(a).max() for key, a in saved[0].items())


@pytest.mark.parametrize("name", SMALL)
def test_numbers_equal_numpy(name: str) -> None:
    """Every value of the model, along its second and last axis; fused kernels differ by up to 1e-4, 2e-2 in half."""
    model, data = opened(name)
    seen = activations(model, data)
    tolerance = 2e-2 if name == "float16" else 1e-4
    marks = [(value, axis) for value, arrays in seen.items() for axis in (1, -1) if axis < arrays[0].ndim]
    needs = [Need(kind, value, axis) for value, axis in marks for kind in KINDS]
    found = collect(model, needs, data, batch=4)
    assert set(found) == set(needs) and found.samples == data.samples
    for value, axis in marks:
        x = rows_of(seen[value], axis)
        size = np.sqrt((x**2).mean()) + 1e-6
        moments, gram, extent = (found[Need(kind, value, axis)] for kind in ("moments", "gram", "range"))
        assert moments.count == gram.rows == gram.seen == len(x)
        assert np.abs(moments.mean - x.mean(0)).max() <= tolerance * size
        assert np.abs(moments.mean_square - (x**2).mean(0)).max() <= tolerance * size**2 * 10
        assert np.abs(moments.zero_share - (x == 0).mean(0)).max() <= 0.02
        assert np.abs(moments.minimum - x.min(0)).max() <= 10 * tolerance * size
        assert np.abs(moments.maximum - x.max(0)).max() <= 10 * tolerance * size
        assert np.abs(gram.matrix - x.T @ x).max() <= 10 * tolerance * size**2 * len(x)
        assert np.allclose(gram.mean, moments.mean) and np.allclose(np.diag(gram.matrix), moments.squares)
        mean, reach = (found[Need(kind, value, axis)] for kind in ("mean", "reach"))
        assert mean.count == reach.count == len(x) and np.abs(mean.mean - x.mean(0)).max() <= tolerance * size
        assert np.abs(reach.mean_square - (x**2).mean(0)).max() <= tolerance * size**2 * 10
        assert np.array_equal(reach.minimum, moments.minimum) and np.array_equal(reach.maximum, moments.maximum)
        assert extent.minimum == moments.minimum.min() and extent.maximum == moments.maximum.max()


def test_waves_files_and_batches_change_nothing() -> None:
    model, data = opened("conv_bn", 32)
    # The last bit of an entry may move it to the next bin of a histogram: see test_kinds.py.
    needs = [Need(kind, value, 1) for value in observed(model) for kind in KINDS if kind != "histogram"]
    steps: list[tuple[int, int, str]] = []
    whole = collect(model, needs, data, batch=8)
    waves = collect(model, needs, data, batch=8, memory_limit=FEW, progress=lambda *step: steps.append(step))
    assert any("wave 2" in what for _, _, what in steps)
    # Not to the last bit: what onnxruntime fuses depends on the outputs of a wave.
    assert all(same(whole[need], waves[need], need.kind, 1e-5) for need in needs)
    again = collect(model, needs, data, batch=8, memory_limit=FEW)
    assert all(same(again[need], waves[need], need.kind) for need in needs)
    assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)
    assert steps[-1][0] == steps[-1][1] and len({total for _, total, _ in steps}) == 1
    single = collect(model, needs, data, batch=1)
    assert all(same(whole[need], single[need], need.kind, 1e-5) for need in needs)


def test_a_histogram_knows_the_extremes_of_each_sample_whatever_the_batch() -> None:
    model, data = opened("conv_bn", 12)
    needs = [Need("histogram", value, 0) for value in observed(model)]
    one, many = (collect(model, needs, data, batch=size) for size in (1, 8))
    alone = activations(model, data, batch=1)
    for need in needs:
        lows = sum(float(array.min()) for array in alone[need.value])
        for found in (one[need], many[need]):
            assert found.samples == 12 and found.lows == pytest.approx(lows, rel=1e-5)


def test_samples_are_told_apart_by_the_axis_that_grew() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert np.array_equal(by_sample(x, (1, 3, 4), 2), x.reshape(2, 12).T)
    assert np.array_equal(by_sample(x, (2, 1, 4), 3), np.stack([x[:, i].reshape(-1) for i in range(3)], axis=1))
    assert np.array_equal(
        by_sample(x, (2, 3, 2), 2), np.stack([x[..., :2].reshape(-1), x[..., 2:].reshape(-1)], axis=1)
    )
    for shape, samples in (((2, 3, 4), 2), ((1, 3, 4), 1)):  # no axis grew; one sample
        assert by_sample(x, shape, samples).shape == (24, 1)


def test_results_of_several_waves_lie_in_a_folder_that_goes() -> None:
    model, data = opened("conv_bn", 32)
    needs = [Need("gram", value, 1) for value in observed(model)]
    found = collect(model, needs, data, memory_limit=FEW)
    folder = Path(found._folder.name)  # type: ignore[union-attr]
    assert len(list(folder.iterdir())) == len(needs) == len(found)
    del found
    gc.collect()
    assert not folder.exists()


def test_the_batch_is_halved_where_one_value_passes_the_limit() -> None:
    model, data = opened("conv_bn", 32)
    need = Need("gram", observed(model)[0])
    found = collect(model, [need], data, batch=32, memory_limit=300_000)
    assert same(found[need], collect(model, [need], data, batch=32)[need], "gram", 1e-5)
    with pytest.raises(SettingError, match=f"{need.value!r} takes .* MB, over the memory limit"):
        collect(model, [need], data, memory_limit=1000)
    assert same(collect(model, [need], data, memory_limit=1000, alone=300_000)[need], found[need], "gram", 1e-5)


def test_equal_needs_are_one_result() -> None:
    model, data = opened("mlp_matmul")
    value = observed(model)[0]
    front, back = Need("gram", value, 1), Need("gram", value, -1)
    found = collect(model, [front, back, front], data)
    assert found[front] is found[back] and len(found) == 2


def test_a_need_about_an_input_reads_the_feed() -> None:
    model, data = opened("conv_chain")
    need = Need("gram", "x", 1)
    x = rows_of([feed["x"].astype(np.float64) for feed in data.batches(1)], 1)
    assert np.allclose(collect(model, [need], data)[need].matrix, x.T @ x, rtol=1e-12)


# ---- sampling ----


def test_sampled_positions_are_even_and_each_as_likely() -> None:
    counts = np.zeros(100)
    for seed in range(3000):
        chosen = sampled_rows(100, 32, seed, 0)
        assert chosen is not None and len(chosen) == 32 and (np.diff(chosen) >= 0).all()
        counts += np.bincount(chosen, minlength=100)
    assert np.abs(counts / 3000 - 0.32).max() < 5 * np.sqrt(0.32 / 3000)
    assert sampled_rows(32, 32, 0, 0) is None
    assert (sampled_rows(100, 32, 0, 0) == sampled_rows(100, 32, 0, 0)).all()  # type: ignore[union-attr]
    assert (sampled_rows(100, 32, 0, 0) != sampled_rows(100, 32, 0, 1)).any()  # type: ignore[union-attr]


def test_sampled_grams_are_unbiased_and_deterministic() -> None:
    model, data = opened("conv_chain")
    need = Need("gram", "x", 1)
    whole = collect(model, [need], data)[need]
    parts = [collect(model, [need], data, rows=24, seed=seed)[need] for seed in range(60)]
    assert parts[0].rows == whole.rows == SAMPLES * 64 and parts[0].seen == SAMPLES * 24
    draws = np.stack([part.matrix for part in parts])
    assert np.abs(draws.mean(0) - whole.matrix).max() <= 4.5 * (draws.std(0) / np.sqrt(60)).max()
    assert same(collect(model, [need], data, rows=24, seed=3)[need], parts[3], "gram")
    assert not same(parts[0], parts[1], "gram")


# ---- unlike batches, bodies, bad numbers ----


def test_sizes_that_differ_from_sample_to_sample() -> None:
    model = load(ZOO["attention_dynamic"]())
    rng = np.random.default_rng(0)
    pieces = [{"x": rng.standard_normal((1, length, 7)).astype(np.float32)} for length in (3, 9, 5, 9, 9)]
    data = open_data(pieces, open_session(model.serialized).inputs)
    value = next(node.outputs[0].name or "" for node in model.ir.graph if node.op_type == "MatMul")
    seen = activations(model, data, batch=1)[value]
    gram = collect(model, [Need("gram", value, -1)], data, batch=2)[Need("gram", value, -1)]
    x = rows_of(seen, -1)
    assert gram.rows == 35 and np.allclose(gram.matrix, x.T @ x, rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match=f"{value!r} has 3 channels along axis 1 in one batch and 9 in another"):
        collect(model, [Need("moments", value, 1)], data)


def test_values_in_loops_are_left_out_and_said_so() -> None:
    model, data = opened("scan_outer_weight")
    inner = next(
        value.name or ""
        for node in model.ir.graph
        if node.op_type == "Scan"
        for body in [node.attributes["body"].as_graph()]
        for each in body
        for value in each.outputs
    )
    outer = Need("gram", observed(model)[0])
    found = collect(model, [Need("gram", inner), outer, Need("gram", "w1")], data)
    assert list(found) == [outer]
    assert "body of a Loop" in found.left_out[inner] and "constant" in found.left_out["w1"]


NESTED = """agraph (float[2,3] x, bool c, bool d) => (float[2,3] y) {
    y = If (c) <then_branch = t () => (float[2,3] p) {
        p = If (d) <then_branch = tt () => (float[2,3] pp) { a = Neg(x)  pp = Relu(a) },
                    else_branch = te () => (float[2,3] pe) { pe = Exp(x) }> },
      else_branch = e () => (float[2,3] q) { q = Abs(x) }> }"""


def nested(ways: Sequence[tuple[bool, bool]]) -> tuple[Model, list[dict[str, np.ndarray]]]:
    """A branch in a branch, and a sample that takes each of the ways."""
    rng = np.random.default_rng(0)
    model = load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {NESTED}'))
    x = rng.standard_normal((len(ways), 2, 3)).astype(np.float32)
    return model, [{"x": each, "c": np.array(c), "d": np.array(d)} for each, (c, d) in zip(x, ways, strict=True)]


def test_values_in_branches_are_seen_where_samples_take_them() -> None:
    """An inner branch counts only what went through it, whichever way the first sample went."""
    model, feeds = nested([(False, True), (True, True), (True, False), (True, True)])
    data = open_data(feeds, open_session(model.serialized).inputs)
    ends, mean, outer = Need("range", "a", 0), Need("mean", "a", 1), Need("histogram", "q", 0)
    found = collect(model, [ends, mean, outer], data)
    taken = np.stack([-feeds[1]["x"], -feeds[3]["x"]])
    assert (found[ends].minimum, found[ends].maximum) == (taken.min(), taken.max())
    np.testing.assert_allclose(found[mean].mean, taken.mean((0, 1)), rtol=1e-5)
    assert found[outer].count == 6
    untaken = collect(model, [ends, outer], open_data(feeds[:1], open_session(model.serialized).inputs))
    assert list(untaken) == [outer]


def test_a_model_goes_straight_where_all_samples_take_one_branch() -> None:
    model, feeds = nested([(True, True), (True, True), (False, False)])
    names = {node.op_type: node.name or "" for node in walk(model.ir)}
    one, both = straight(model, [names["Neg"]], feeds[:2]), straight(model, names.values(), feeds[1:])
    kinds = [[node.op_type for node in each.ir.graph if node.op_type != "Identity"] for each in (one, both)]
    assert kinds == [["Neg", "Relu"], ["If"]]
    for feed in feeds[:2]:
        answers = [open_session(each.serialized).run(feed)["y"] for each in (model, one, both)]
        assert all(np.array_equal(answers[0], each) for each in answers)


@pytest.mark.parametrize("kind", ["moments", "mean", "reach", "range", "histogram"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_name_the_tensor(bad: float, kind: str) -> None:
    model = load(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> '
            "g (float[N,2] x) => (float[N,2] y) { h = Sqrt(x)  l = Log(h)  y = Neg(l) }"
        )
    )
    x = np.ones((6, 2), np.float32)
    x[4] = -1 if np.isnan(bad) else 0
    data = open_data({"x": x}, open_session(model.serialized).inputs)
    with pytest.raises(DataError, match=r"'[hl]' becomes (NaN|infinity) within samples 4 to 5"):
        collect(model, [Need("range", "h"), Need(kind, "l")], data, batch=2)


def test_numbers_whose_squares_overflow_are_read_whole() -> None:
    model = load(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y) { h = Neg(x)  y = Neg(h) }'
        )
    )
    x = np.array([[1e25, 2, 3], [-1e30, 1, 0]], np.float32)
    need = Need("reach", "h", 1)
    found = collect(model, [need], open_data({"x": x}, open_session(model.serialized).inputs))[need]
    assert np.allclose(found.squares, (x.astype(np.float64) ** 2).sum(0)) and found.count == 2


@pytest.mark.parametrize(
    ("need", "error", "says"),
    [
        (Need("gramm", "x"), SettingError, "no kind of evidence is called 'gramm'; the nearest name is 'gram'"),
        (Need("gram", "xx"), ModelError, "no value of the graph is called 'xx'"),
        (Need("gram", "x", 4), SettingError, "value 'x' has 4 axes"),
    ],
)
def test_wishes_that_cannot_be(need: Need, error: type[Exception], says: str) -> None:
    model, data = opened("conv_chain")
    with pytest.raises(error, match=says):
        collect(model, [need], data)


def test_no_needs_run_nothing() -> None:
    model, data = opened("conv_chain")
    assert len(collect(model, [], data)) == 0


def test_memory_does_not_grow_with_samples() -> None:
    """But for garbage, which is collected seldom; what each sample makes of the values is held for none."""
    peaks, held = [], 0
    for samples in (16, 128):
        model, data = opened("conv_chain", samples)
        needs = [Need("gram", value) for value in observed(model)]
        collect(model, needs, data)
        one = run_shapes(model, next(iter(data.batches(1))))
        held = samples * sum(4 * int(np.prod(one[name])) for name in observed(model)) - held
        tracemalloc.start()
        collect(model, needs, data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < held / 4
