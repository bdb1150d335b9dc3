"""Nodes that nothing reads: taken out as onnx-ir's own pass takes them out."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from zoo import ZOO

from onnxcompress.model import load
from onnxcompress.model.wiring import drop_unread

LEFT_OVER = """
<ir_version: 8, opset_import: ["" : 17]>
graph (float[N,4,8,8] x, bool c) => (float[N,4,8,8] y)
<float[4] unread = {1, 2, 3, 4}>
{ gone = Relu (x)
  goes = Neg (gone)
  d, mask = Dropout (x)
  k = Clip (d, , )
  y = If (c) <then_branch = one () => (float[N,4,8,8] t) { t = Relu (k) s = Neg (t) },
              else_branch = other () => (float[N,4,8,8] e) { e = Identity (k) }> }
"""


def both(graph: ir.Model) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The graph as we leave it, and as the library's pass does."""
    mine, theirs = graph.clone(), graph.clone()
    drop_unread(mine)
    common.RemoveUnusedNodesPass()(theirs)
    return ir.to_proto(mine), ir.to_proto(theirs)


def test_leftovers_go_as_in_the_librarys_pass():
    """Chains, constants, bodies, optional inputs and outputs."""
    mine, theirs = both(ir.from_proto(onnx.parser.parse_model(LEFT_OVER)))
    assert mine == theirs
    assert [node.op_type for node in mine.graph.node] == ["Dropout", "Clip", "If"]
    assert [len(node.output) for node in mine.graph.node] == [1, 1, 1]
    assert list(mine.graph.node[1].input) == ["d"]
    assert not mine.graph.initializer


@pytest.mark.parametrize("name", sorted(ZOO)[::5])
def test_every_node_taken_for_an_output_leaves_the_same(name: str):
    """Of some models of the zoo, with what one node in the middle computes as the only output."""
    graph = load(ZOO[name]()).ir.clone()
    nodes = list(graph.graph)
    graph.graph.outputs.clear()
    graph.graph.outputs.append(nodes[len(nodes) // 2].outputs[0])
    mine, theirs = both(graph)
    assert mine == theirs
