"""Groups in the best order: hidden ones are found, the written model is the dense weight, data makes up for what is dropped."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.evidence.expose import run_shapes
from onnxcompress.evidence.need import SHAPES
from onnxcompress.model import load
from onnxcompress.model.edit import set_constant
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.passes import Factorize
from onnxcompress.passes.factorize.carry import carried_out
from onnxcompress.passes.factorize.chain import write
from onnxcompress.passes.factorize.forms import FORMS, Shape
from onnxcompress.passes.factorize.metric import Metric
from onnxcompress.passes.factorize.sites import sites
from onnxcompress.runtime.session import open_session
from tests.laws import distance
from tests.passes.factorize.single import made

FORM = FORMS["grouped"]


def hidden(groups: int, seed: int = 2) -> np.ndarray:
    """[1, 24, 16, 9]: blocks, rows and columns shuffled."""
    rng = np.random.default_rng(seed)
    weight = np.zeros((24, 16, 9))
    for group in range(groups):
        rows, columns = (slice(group * n // groups, (group + 1) * n // groups) for n in (24, 16))
        weight[rows, columns] = rng.normal(size=weight[rows, columns].shape)
    return weight[rng.permutation(24)][:, rng.permutation(16)][None]


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_groups_behind_a_shuffle_are_found(groups: int) -> None:
    shape, weight = Shape(1, 24, 16, (3, 3)), hidden(groups)
    found = FORM.start(shape, weight, (16 // groups,), Metric())
    np.testing.assert_array_equal(FORM.dense(shape, found), weight)
    assert FORM.size(shape, (16 // groups,)) == np.count_nonzero(weight)


def test_the_best_order_keeps_more_than_the_order_as_it_is() -> None:
    shape = Shape(1, 24, 16, (3, 3))
    weight = np.random.default_rng(3).normal(size=(1, 24, 16, 9))
    kept = np.square(FORM.dense(shape, FORM.start(shape, weight, (8,), Metric()))).sum()
    assert kept > np.square(weight[:, :12, :8]).sum() + np.square(weight[:, 12:, 8:]).sum()


def test_halving_groups_again_is_what_smaller_groups_are_made_of() -> None:
    shape, weight = Shape(1, 24, 16, (3, 3)), hidden(4)
    begun = FORM.start(shape, weight, (8,), Metric())
    np.testing.assert_array_equal(FORM.dense(shape, FORM.leading(begun, (4,))), weight)


def test_what_is_kept_makes_up_for_what_is_dropped() -> None:
    rng = np.random.default_rng(4)
    shape, weight = Shape(1, 24, 16, (3, 3)), rng.normal(size=(1, 24, 16, 9))
    fed = rng.normal(size=(1, 600, 20)) @ rng.normal(size=(1, 20, 144))
    rows, gram = Metric(rows=fed), Metric(gram=fed.transpose(0, 2, 1) @ fed)
    errors = [
        gram.error(weight - FORM.dense(shape, FORM.start(shape, weight, (8,), m))) for m in (Metric(), gram, rows)
    ]
    assert errors[1] < 0.5 * errors[0] and errors[2] == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("width", [2, 4])
def test_the_written_model_is_the_dense_weight(op: str, width: int) -> None:
    rng = np.random.default_rng(5)
    sizes = (12, 8, 8) if op == "Conv" else (8, 12, 8)
    constants = {"w": rng.normal(size=(*sizes[:2], 8, 8)), "b": rng.normal(size=12)}
    x = rng.normal(size=(2, 8, 11, 9))
    proto, feed = made(op, ["x", "w", "b"], constants, {"strides": [2, 1], "pads": [1, 2, 0, 1]}, x, relu=True)
    model = load(proto)
    (site,), _ = sites(model, [], run_shapes(model, feed))
    stored = model.array(site.layer.weight)
    factors = FORM.start(site.shape, site.weight(stored), (width,), Metric())
    graph, dense = model.ir.clone(), model.ir.clone()
    parts, links = FORM.parts(site.shape, (width,)), FORM.links(site.shape, factors)
    write(graph, site.layer, site.shape, FORM.name, parts, links)
    new = model.edited(graph)
    assert not violations(new)
    assert [node.op_type for node in graph.graph] == ["Gather", op, "Gather", "Relu"]
    set_constant(dense, site.layer.weight, site.stored(FORM.dense(site.shape, factors), stored))
    wanted = open_session(to_bytes(finished(model.edited(dense)))).run(feed)
    assert distance(open_session(to_bytes(finished(new))).run(feed), wanted, wanted) <= 1e-5


def test_orders_are_made_by_the_weights_around_where_these_are_free() -> None:
    """Between two convolutions no Gather is left; where a residual sum wants both orders, one is."""
    rng = np.random.default_rng(6)
    for residual, left in ((False, 0), (True, 1)):
        proto = between(rng, residual=residual)
        model = load(proto)
        plan = Factorize(target_macs=0.6, forms=("grouped",), pays=0, fit="weights").plan(
            model, {SHAPES: run_shapes(model, {"x": np.zeros((1, 3, 8, 8), np.float32)})}
        )
        (decision,) = plan.decisions
        new = carried_out(model, plan)
        assert not violations(new)
        assert [node.op_type for node in new.ir.graph].count("Gather") == left
        site = next(each for each in sites(model, [], {})[0] if each.layer.name == decision["layer"])
        links = [plan.arrays[f"{decision['weight']}/{n}"] for n in range(3)]
        blocks, ins = links[1].reshape(16 // decision["ranks"][0], -1, decision["ranks"][0], 9), links[0]
        dense = FORM.dense(site.shape, [blocks, ins, np.argsort(links[2])])
        graph = model.ir.clone()
        set_constant(graph, decision["weight"], site.stored(dense, model.array(decision["weight"])))
        feed = {"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)}
        wanted = open_session(to_bytes(finished(model.edited(graph)))).run(feed)
        assert distance(open_session(to_bytes(finished(new))).run(feed), wanted, wanted) <= 1e-5


def between(rng: np.random.Generator, *, residual: bool) -> onnx.ModelProto:
    """1×1, Relu, 3×3 (the one that is worth grouping), Relu, 1×1; with a sum over the 3×3."""
    sizes = {"a": (16, 3, 1, 1), "w": (16, 16, 3, 3), "c": (4, 16, 1, 1)}
    constants = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    constants["b"] = rng.normal(size=16).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "w", "b"], ["s"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["s", "r"], ["t"]) if residual else helper.make_node("Relu", ["s"], ["t"]),
        helper.make_node("Conv", ["t", "c"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", n, 8, 8]) for name, n in (("x", 3), ("y", 4))]
    held = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "between", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
