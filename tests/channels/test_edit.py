"""Cutting: sizes, what a tensor stands for afterwards, and what stays untouched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from generate import feeds
from laws import check_cut
from zoo import NOT_RUNNABLE, ZOO

from onnxcompress.channels import analyse, cut, zero
from onnxcompress.model import load
from onnxcompress.model.spec import violations
from onnxcompress.operators import Settings


def chain():  # type: ignore[no-untyped-def]
    model = load(ZOO["conv_chain"]())
    return model, analyse(model)


def test_the_original_is_not_touched() -> None:
    model, channels = chain()
    before = model.serialized
    gone = channels.groups[0].units[:2]
    cut(model, channels, gone), zero(model, channels, gone)
    assert load(ZOO["conv_chain"]()).serialized == before
    del model.__dict__["serialized"]
    assert model.serialized == before


def test_every_member_loses_its_positions() -> None:
    model, channels = chain()
    group = channels.groups[0]
    narrow = cut(model, channels, group.units[[1, 3]])
    for member in group.members:
        kept = np.delete(np.arange(model.array(member.tensor).shape[member.axis]), member.positions[[1, 3]].reshape(-1))
        expected = np.take(model.array(member.tensor), kept, axis=member.axis)
        assert narrow.array(member.tensor).shape[member.axis] == len(kept)
        if len([m for g in channels.groups for m in g.members if m.tensor == member.tensor]) == 1:
            np.testing.assert_array_equal(narrow.array(member.tensor), expected)


def test_origins_compose_over_two_cuts() -> None:
    model, channels = chain()
    group = channels.groups[0]
    write = next(member for member in group.members if member.role == "write")
    once = cut(model, channels, group.units[[0]])
    again = analyse(once)
    twice = cut(once, again, next(g for g in again.groups if g.name == group.name).units[[1]])
    kept = twice.origin[write.tensor].kept[write.axis]
    expected = np.delete(np.delete(write.positions[:, 0], 0), 1)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(
        twice.array(write.tensor).sum(axis=tuple(a for a in range(twice.array(write.tensor).ndim) if a != write.axis)),
        model.array(write.tensor).sum(axis=tuple(a for a in range(model.array(write.tensor).ndim) if a != write.axis))[
            expected
        ],
    )


def test_cutting_nothing_changes_nothing() -> None:
    model, channels = chain()
    assert cut(model, channels, np.zeros(0, np.int64)).serialized == model.serialized


@pytest.mark.parametrize("name", ZOO)
def test_groups_share_no_unit_and_no_position(name: str) -> None:
    channels = analyse(load(ZOO[name]()))
    units = [unit for group in channels.groups for unit in group.units]
    assert len(units) == len(set(units))
    for group in channels.groups:
        assert group.size == len(group.units) > 0
        for member in group.members:
            assert len(np.unique(member.positions)) == member.positions.size


def test_an_unknown_operator_freezes_what_it_touches() -> None:
    """And nothing more: behind it a weight tells the rank that inference cannot know."""
    sample = NOT_RUNNABLE["unknown_domain"]
    channels = analyse(load(sample()))
    for weight, operator in sample.frozen.items():
        assert any(f.name == weight and operator in f.by for f in channels.frozen)
    for weight, units in sample.free.items():
        assert sum(group.size for group in channels.groups if group.name == weight) == units


def test_the_inner_factor_is_a_choice() -> None:
    model = load(ZOO["attention_static"]())
    outer, inner = (
        next(g.size for g in analyse(model, Settings(inner=inner)).groups if "bv" in {m.tensor for m in g.members})
        for inner in (False, True)
    )
    assert (outer, inner) == (4, 2)


REDUCED = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,5,7] x) => (float[N,5,4] y) <float e = {{0.01}}> {{
    h = MatMul(x, w1)  q = Mul(h, h)  v = ReduceMean{axes}(q)  i = Add(v, e)  n = Div(h, i)  y = MatMul(n, w2) }}"""


@pytest.mark.parametrize("axes", ["", "<axes=[-1]>", "<axes=[2, 1]>"])
def test_a_mean_over_channels_freezes_them(axes: str) -> None:
    """An empty list of axes means all of them, as no list does: `<axes=[]>` is written by hand below."""
    proto = onnx.parser.parse_model(REDUCED.format(axes=axes))
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (7, 6)), ("w2", (6, 4))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    empty = onnx.ModelProto()
    empty.CopyFrom(proto)
    if not axes:
        mean = next(node for node in empty.graph.node if node.op_type == "ReduceMean")
        mean.attribute.add(name="axes", type=onnx.AttributeProto.INTS)
    for each in (proto, empty):
        model = load(each)
        assert not analyse(model).groups
        check_cut(model, feeds(each, 0), 0.5, 0)


def test_a_zero_that_copies_another_axis_is_written_out() -> None:
    """Reshape's 0 lends the size of the input axis at the same place, here a row of pixels that is as long as there are channels."""
    sample = ZOO["shuffle_grouped"]
    weights = {**sample.weights, "split": [-1, 2, 0, 8, 8], "merge": [-1, 8, 8, 8]}
    proto = replace(sample, weights=weights)()
    check_cut(load(proto), feeds(proto, 0), 0.5, 0)


def test_a_mask_of_minus_infinity_freezes_its_channels_only() -> None:
    proto = ZOO["conv_chain"]()
    tensor = next(each for each in proto.graph.initializer if len(each.dims) == 4)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0] = -np.inf
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    frozen, free = analyse(load(proto)), analyse(load(ZOO["conv_chain"]()))
    assert any(each.why == "it holds Inf or NaN" and each.by == tensor.name for each in frozen.frozen)
    assert 0 < sum(group.size for group in frozen.groups) < sum(group.size for group in free.groups)


def test_a_tied_matrix_cut_down_to_one_channel_is_a_vector_of_each_reader() -> None:
    """Everything behind the door counts on vectors having one reader."""
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 4] y, float[2, 4] z) {
            w = Constant <value = float[3, 4] {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> ()
            v = Constant <value = float[3, 3] {1, 2, 3, 4, 5, 6, 7, 8, 10}> ()
            a = MatMul (x, v)
            b = Relu (a)
            y = MatMul (b, w)
            z = MatMul (b, w)
        }""")
    model = load(proto)
    channels = analyse(model)
    (group,) = channels.groups
    narrow = cut(model, channels, group.units[1:])
    assert not violations(narrow)
    first, second = (
        node.inputs[1].name for node in narrow.ir.graph if node.op_type == "MatMul" and node.outputs[0].name in "yz"
    )
    assert first != second
    assert narrow.origin[first].name == narrow.origin[second].name == "w"
