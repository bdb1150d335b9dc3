"""Damaged models on their way through the door, the analysis and a cut: a Model or one line of ModelError, never anything else.

Where a damaged model still runs, it must keep the law too: a graph that nobody meant is a good test of the rows.
"""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
from generate import feeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import CUT_EQUALS_ZEROED, distance, draw
from mutations import MUTATIONS, mutated, shuffled
from zoo import NOT_RUNNABLE, REPAIRABLE, ZOO

from onnxcompress.channels import analyse, cut, zero
from onnxcompress.errors import DataError, ModelError
from onnxcompress.model import Model, load
from onnxcompress.model.edit import walk
from onnxcompress.model.guard import forget
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.runtime.session import open_session

DIGITS = onnx.load(Path(__file__).parents[2] / "sample_models" / "digits.onnx")
WHOLE = {**ZOO, **NOT_RUNNABLE, **REPAIRABLE, "digits": lambda: DIGITS}
MEMORY = 8 << 30
"""Bytes of address space while damaged models run; two workers share a machine."""

LARGEST = 1e6
"""Numbers in one value; a mutated size may ask for more than a test should compute."""


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory() -> Iterator[None]:
    """A mutated pad can ask onnxruntime for terabytes when the model runs: that must fail, not take the machine with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    forget()  # the next worker has the limit too
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    forget()


def through(data: bytes) -> tuple[Model, Model, Model] | None:
    """Loaded, cut and zeroed; None where the door refuses the bytes. The analysis and the cut refuse nothing."""
    try:
        model = load(data)
    except ModelError as error:
        assert "\n" not in str(error)
        return None
    channels, gone = analyse(model), draw(model, 0.5, 0)
    narrow, zeroed = cut(model, channels, gone), zero(model, channels, gone)
    assert not violations(model) and not violations(narrow)
    return model, narrow, zeroed


def check_law(model: Model, narrow: Model, zeroed: Model) -> None:
    """Cut equals zeroed, for a model that runs and stays finite."""
    values = [*model.ir.graph.inputs, *(value for node in walk(model.ir) for value in node.outputs)]
    if any(prod(n for n in value.shape or () if isinstance(n, int)) > LARGEST for value in values):
        return
    inputs = feeds(onnx.load_from_string(model.serialized), 0)
    try:
        whole = open_session(model.serialized).run(inputs)
        wanted = open_session(to_bytes(zeroed.ir)).run(inputs)
    except (ModelError, DataError):
        return
    floats = [y for y in (*whole.values(), *wanted.values()) if y.dtype.kind == "f"]
    if all(np.isfinite(y).all() for y in floats) and not any(y.dtype == np.float16 for y in floats):
        found = open_session(to_bytes(finished(narrow))).run(inputs)
        assert distance(found, wanted, whole) <= CUT_EQUALS_ZEROED


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(WHOLE)), seed=st.integers(0, 1 << 32), times=st.integers(1, 3))
def test_damaged_graphs(name: str, seed: int, times: int) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(WHOLE[name]())
    mutated(proto, random.Random(seed), times)
    made = through(proto.SerializeToString())
    if made is not None and name != "cast_fp16":
        check_law(*made)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(WHOLE)), seed=st.integers(0, 1 << 32), times=st.integers(1, 6))
def test_damaged_bytes(name: str, seed: int, times: int) -> None:
    through(shuffled(WHOLE[name]().SerializeToString(), random.Random(seed), times))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_every_mutation_changes_something(mutation) -> None:  # type: ignore[no-untyped-def]
    changed = 0
    for seed in range(20):
        proto = ZOO["attention_static"]()
        before = proto.SerializeToString()
        mutation(proto, random.Random(seed))
        changed += proto.SerializeToString() != before
    assert changed


def test_sizes_below_zero_are_unknown() -> None:
    """ONNX's shape inference would abort the whole process on a Slice of such an axis."""
    proto = ZOO["focus_slices"]()
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -2
    assert analyse(load(proto)).groups


def test_an_input_without_an_element_type_is_refused() -> None:
    proto = ZOO["conv_chain"]()
    proto.graph.input[0].type.tensor_type.elem_type = 0
    with pytest.raises(ModelError, match="element type"):
        load(proto)


def test_a_weight_with_a_size_below_zero_is_refused() -> None:
    """numpy would take the -1 as "whatever is left"."""
    proto = ZOO["conv_chain"]()
    proto.graph.initializer[0].dims[0] = -1
    with pytest.raises(ModelError, match="below zero"):
        load(proto)


@pytest.mark.parametrize("operator", ["Squeeze", "Unsqueeze"])
def test_a_matrix_of_axes_freezes(operator: str) -> None:
    """ONNX's checker lets it pass, and onnxruntime refuses it when the model runs."""
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    graph (float[N,3,1,1] x) => (float y) <int64[1,1] axes = {{2}}>
    {{ h = Conv (x, w) r = {operator} (h, axes) y = Relu (r) }}
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((6, 3, 1, 1), np.float32), "w"))
    channels = analyse(load(proto))
    assert not channels.groups and {frozen.why for frozen in channels.frozen} == {"its axes are computed"}


def test_a_constant_without_a_value_is_refused() -> None:
    proto = ZOO["conv_chain"]()
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["nothing"]))
    proto.graph.node[1].input[0] = "nothing"
    with pytest.raises(ModelError):
        load(proto)


def test_a_split_into_more_outputs_than_it_says_is_refused() -> None:
    """ONNX's shape inference would abort the whole process on it."""
    proto = ZOO["split_num_outputs"]()
    split = next(node for node in proto.graph.node if node.op_type == "Split")
    next(attribute for attribute in split.attribute if attribute.name == "num_outputs").i = 1
    with pytest.raises(ModelError, match="num_outputs is 1"):
        load(proto)


def test_one_of_many_inputs_left_out_is_refused() -> None:
    """onnxruntime would end the whole process when it runs."""
    proto = ZOO["split_num_outputs"]()
    next(node for node in proto.graph.node if node.op_type == "Max").input.append("")
    with pytest.raises(ModelError, match="no name"):
        load(proto)


def test_a_stride_of_zero_is_refused() -> None:
    """onnxsim would divide by it."""
    proto = ZOO["conv_chain"]()
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    conv.attribute.append(onnx.helper.make_attribute("strides", [2, 0]))
    with pytest.raises(ModelError, match="strides"):
        load(proto)
