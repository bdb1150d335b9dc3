"""Weights behind a Cast: read as float, cut like others, and written back in the type that they came in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from generate import feeds
from laws import check_cut

from onnxcompress.channels import analyse
from onnxcompress.model import load, save
from onnxcompress.model.edit import set_constant
from onnxcompress.model.spec import violations
from onnxcompress.runtime.session import open_session

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
graph (float[N,32,8,8] x) => (float[N,64,1,1] y)
{ w1 = Cast <to = 1> (h1)
  w2 = Cast <to = 1> (h2)
  a = Conv <pads = [1,1,1,1]> (x, w1)
  r = Relu (a)
  c = Conv <pads = [1,1,1,1]> (r, w2)
  y = GlobalAveragePool (c) }
"""


def chain(kind: ir.DataType) -> onnx.ModelProto:
    """Two convolutions whose weights are stored in `kind`."""
    model, rng = onnx.parser.parse_model(CHAIN), np.random.default_rng(0)
    for name, shape in (("h1", (48, 32, 3, 3)), ("h2", (64, 48, 3, 3))):
        values = (rng.standard_normal(shape) * 0.1).astype(kind.numpy())
        model.graph.initializer.append(ir.to_proto(ir.Tensor(values, dtype=kind, name=name)))
    return model


@pytest.mark.parametrize("kind", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16], ids=lambda kind: kind.name)
def test_a_file_does_not_grow(kind: ir.DataType, tmp_path: Path) -> None:
    proto = chain(kind)
    model, inputs = load(proto), feeds(chain(kind), 0)
    assert model.array("w1").dtype == np.float32 and [group.size for group in analyse(model).groups] == [48]
    path = save(model, tmp_path / "same.onnx")
    assert path.stat().st_size < 1.02 * proto.ByteSize()
    wanted = open_session(proto.SerializeToString()).run(inputs)
    for name, y in open_session(path).run(inputs).items():
        np.testing.assert_array_equal(y, wanted[name])
    narrow = check_cut(model, inputs, 0.5, 0)
    assert not violations(narrow)
    half = save(narrow, tmp_path / "half.onnx")
    assert half.stat().st_size < 0.55 * proto.ByteSize()
    again = load(half)
    np.testing.assert_array_equal(again.array("w2"), narrow.array("w2"))
    assert save(again, tmp_path / "again.onnx").stat().st_size == half.stat().st_size


def test_new_values_are_rounded_at_once_and_large_ones_stay_float(tmp_path: Path) -> None:
    """What runs in memory is what the file will hold."""
    model = load(chain(ir.DataType.FLOAT16))
    third = np.full((48, 32, 3, 3), 1 / 3, np.float32)
    set_constant(model.ir, "w1", third)
    np.testing.assert_array_equal(model.array("w1"), third.astype(np.float16).astype(np.float32))
    set_constant(model.ir, "w1", third * 1e6)
    np.testing.assert_array_equal(model.array("w1"), third * 1e6)
    path = save(model, tmp_path / "wide.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert kinds == {"w1": onnx.TensorProto.FLOAT, "w2.float16": onnx.TensorProto.FLOAT16}
