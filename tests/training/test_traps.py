"""What went wrong in experiments with training on stock onnxruntime, each as a test."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnxcompress.training import lowering
from onnxcompress.training.derivatives.normalization import training_form, unbiased
from onnxcompress.training.fixed import fix
from onnxcompress.training.pen import Pen, shape_of
from onnxcompress.training.reverse import differentiate
from tests.training.check import Arrays, close, differences, graph_of, run_float64, run_stock, with_gradients

RNG = np.random.default_rng(3)


def test_repeated_rows_of_an_embedding_add_up_with_two_threads() -> None:
    """ScatterND loses sums there: 54 of 60 runs were wrong. The graph has none, and every run gives the same bits."""
    table, rows = RNG.normal(size=(512, 64)).astype(np.float32), RNG.integers(0, 8, (64, 64))
    graph = graph_of([helper.make_node("Gather", ["x", "i"], ["y"])], {"x": table, "i": rows}, {}, "y")
    weights = RNG.normal(size=(64, 64, 64)).astype(np.float32)
    made, _ = with_gradients(graph, weights, ["x"])
    assert "ScatterND" not in {node.op_type for node in made.graph}
    wanted = np.zeros(table.shape)
    np.add.at(wanted, rows, weights.astype(np.float64))
    runs = [run_stock(made, {"x": table, "i": rows}, threads=2)[1] for _ in range(8)]
    close(runs[0], wanted, 1e-5, "x")
    assert all(np.array_equal(each, runs[0]) for each in runs)


def two_norms(dtype: type) -> tuple[ir.Model, Arrays]:
    """x -> norm -> norm, in training form; both were exported with the same constants as running statistics."""
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["h"], name="first"),
        helper.make_node("BatchNormalization", ["h", "t", "b", "m", "v"], ["y"], name="second"),
    ]
    feeds = {
        "x": 2 + RNG.normal(size=(4, 3, 5)),
        "s": RNG.normal(size=3),
        "t": RNG.normal(size=3),
        "b": RNG.normal(size=3),
    }
    feeds = {name: array.astype(dtype) for name, array in feeds.items()}
    constants = {"m": np.zeros(3, dtype), "v": np.ones(3, dtype)}
    graph = graph_of(nodes, feeds, constants, "y")
    op = Pen(graph)
    fix(op, {value.name: shape_of(value) for value in graph.graph.inputs})
    for number, node in enumerate([each for each in graph.graph if each.op_type == "BatchNormalization"]):
        graph.graph.outputs.extend(training_form(op, node, number))
    return graph, feeds


def test_batch_statistics_never_reach_the_inputs_of_another_node() -> None:
    """onnxruntime's kernel may write new statistics into the arrays of the old ones: each node has buffers of its own."""
    graph, feeds = two_norms(np.float32)
    norms = [node for node in graph.graph if node.op_type == "BatchNormalization"]
    buffers = [node.inputs[i] for node in norms for i in (3, 4)]
    assert len(set(buffers)) == 4
    assert all(each is not None and each.producer() is not None and len(list(each.uses())) == 1 for each in buffers)
    before = {name: array.copy() for name, array in feeds.items()}
    first = run_stock(graph, feeds)
    assert all(np.array_equal(feeds[name], before[name]) for name in feeds)
    assert all(np.array_equal(one, two) for one, two in zip(run_stock(graph, feeds), first, strict=True))
    x = feeds["x"].astype(np.float64)
    close(first[1], x.mean((0, 2)), 1e-5, "mean")
    close(first[2], x.var((0, 2)), 1e-5, "variance")  # not over n - 1: `unbiased` makes that
    close(unbiased(first[2], 20), x.var((0, 2), ddof=1), 1e-5, "running variance")


def gradients_of_two_norms(dtype: type, shift: float = 0.0) -> tuple[ir.Model, Arrays]:
    graph, feeds = two_norms(dtype)
    feeds = {**feeds, "x": feeds["x"] + dtype(shift)}
    op, weights = Pen(graph, "!"), np.random.default_rng(0).normal(size=(4, 3, 5)).astype(dtype)
    loss = op.ReduceSum(op.Mul(graph.graph.outputs[0], weights), keepdims=0)
    inputs = list(graph.graph.inputs)
    found = differentiate(op, loss, inputs)
    graph.graph.outputs[:] = [loss, *(op.Identity(found[value]) for value in inputs)]
    return graph, feeds


def test_gradient_through_batch_statistics() -> None:
    graph, feeds = gradients_of_two_norms(np.float64)
    got = dict(zip(feeds, run_float64(graph, feeds)[1:], strict=True))
    forward = np.ones(())
    for name in feeds:
        wanted = differences(lambda f: np.asarray(run_float64(graph, f)[0]), feeds, name, forward, 1e-6)
        close(got[name], wanted, 1e-5, name)


@pytest.mark.parametrize(("shift", "tolerance"), [(0.0, 5e-3), (1000.0, 5e-2)])
def test_gradient_through_batch_statistics_in_onnxruntime(shift: float, tolerance: float) -> None:
    """Buffers that onnxruntime merged gave gradients 20,000 times too large; Σ dy x - m Σ dy would lose all digits at mean 1000."""
    state = RNG.bit_generator.state
    exact, _ = gradients_of_two_norms(np.float64, shift)
    RNG.bit_generator.state = state
    stock, single = gradients_of_two_norms(np.float32, shift)
    rounded = {name: x.astype(np.float64) for name, x in single.items()}  # what single precision keeps near 1000
    for name, one, two in zip(single, run_stock(stock, single)[1:], run_float64(exact, rounded)[1:], strict=True):
        close(one, two, tolerance, name)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-30, -1e-30, 1e30])
def test_the_step_of_relu_is_0_or_1(value: float) -> None:
    x = np.full((3,), value, np.float32)
    graph = graph_of([helper.make_node("Relu", ["x"], ["y"])], {"x": x}, {}, "y")
    made, _ = with_gradients(graph, np.ones(3, np.float32), ["x"])
    assert "Where" not in {node.op_type for node in made.graph}  # fifteen times slower
    assert run_stock(made, {"x": x})[1].tolist() == [float(value > 0)] * 3


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-0.3, 0.7), (1e-12, 1e12), (-1e-3, 1e6)])
def test_the_step_of_a_limit_is_exact(low: float, high: float) -> None:
    """A limit itself has slope 0, its nearest neighbour inside 1, that outside 0: also where no difference is taken first."""
    ends = np.array([low, high], np.float32)
    x = np.concatenate(
        [np.nextafter(ends, way) for way in (np.float32(-np.inf), np.float32(np.inf))] + [ends, ends.mean()[None]]
    ).astype(np.float32)
    x = x[(x == 0) | (np.abs(x) > np.finfo(np.float32).tiny)]
    graph = graph_of(
        [helper.make_node("Clip", ["x", "low", "high"], ["y"])], {"x": x}, {"low": ends[0], "high": ends[1]}, "y"
    )
    made, _ = with_gradients(graph, np.ones(len(x), np.float32), ["x"])
    assert run_stock(made, {"x": x})[1].tolist() == ((x > ends[0]) & (x < ends[1])).astype(float).tolist()


def test_maxima_in_overlapping_windows_add_up() -> None:
    x = np.array([[[1.0, 5.0, 2.0, 0.0]]], np.float32)
    graph = graph_of([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2])], {"x": x}, {}, "y")
    made, _ = with_gradients(graph, np.array([[[1.0, 10.0, 100.0]]], np.float32), ["x"])
    assert run_stock(made, {"x": x})[1].tolist() == [[[0.0, 11.0, 100.0, 0.0]]]


@pytest.mark.parametrize("widest", [1, 3000, 64 << 20])
def test_a_wide_kernel_does_not_hold_its_input_once_a_tap(widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of 3 x 39 over an audio batch laid 117 inputs side by side, 2.7 GB for one layer: 88 MB in pieces, same sums."""
    monkeypatch.setattr(lowering, "WIDEST", widest)
    x, dy = RNG.normal(size=(2, 3, 5, 11)).astype(np.float32), RNG.normal(size=(2, 4, 5, 11)).astype(np.float32)
    graph = graph_of([helper.make_node("Identity", ["x"], ["y"])], {"x": x, "dy": dy}, {}, "y")
    op, inputs = Pen(graph), list(graph.graph.inputs)
    fix(op, {"x": x.shape, "dy": dy.shape})
    window = lowering.Window((5, 11), (3, 7), (1, 1), (1, 1), (1, 3), (1, 3))
    graph.graph.outputs[:] = [lowering.conv_weight_grad(op, inputs[1], inputs[0], window, 1)]
    wide = [shape_of(n.outputs[0]) for n in graph.graph if n.op_type == "Concat" and len(shape_of(n.outputs[0])) == 4]
    assert all(4 * np.prod(shape) <= widest for shape in wide)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (3, 3)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (5, 11), axis=(2, 3))
    close(run_stock(graph, {"x": x, "dy": dy})[0], np.einsum("nopq,niabpq->oiab", dy, seen), 1e-5, "weight")


def test_a_gradient_with_many_more_places_than_dy_is_not_read_from_padding() -> None:
    """8x8 to 12x12 with 5x5: as a Conv over padding it took eight times as long."""
    x, w = RNG.normal(size=(1, 2, 12, 12)).astype(np.float32), RNG.normal(size=(3, 2, 5, 5)).astype(np.float32)
    graph = graph_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": x}, {"w": w}, "y")
    dy = RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)
    made, _ = with_gradients(graph, dy, ["x"])
    assert [node.op_type for node in made.graph if "Conv" in node.op_type] == ["Conv", "ConvTranspose"]
    wanted = np.zeros(x.shape)
    for i, j in np.ndindex(5, 5):
        wanted[:, :, i : i + 8, j : j + 8] += np.einsum("nopq,oi->nipq", dy.astype(np.float64), w[:, :, i, j])
    close(run_stock(made, {"x": x})[1], wanted, 1e-5, "x")


def test_windows_that_lie_in_the_padding_alone_have_no_gradient() -> None:
    """One place, stride 2, a pad as wide as the kernel: onnxruntime refuses the ConvTranspose that would give nothing."""
    x, w = np.ones((1, 4, 1, 1), np.float32), np.ones((4, 1, 1, 1), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4, pads=[1, 0, 0, 0], strides=[2, 1])
    graph = graph_of([node], {"x": x}, {"w": w}, "y")
    made, _ = with_gradients(graph, np.ones((1, 4, 1, 1), np.float32), ["x"])
    assert run_stock(made, {"x": x})[1].tolist() == np.zeros_like(x).tolist()
