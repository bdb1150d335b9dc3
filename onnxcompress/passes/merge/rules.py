"""What may be merged: one rule, one function from a node to a Rewrite, or to a Refusal, or to None where it has nothing to say.

  hard      x · clip(x + 3, 0, 6) / 6 in pieces, or without x        HardSwish, HardSigmoid; before all others, which break it up
  response  LRN                                                      sums, roots and a quotient, which run in vectors
  chain     two linear nodes one after the other                     one
  through   a scale and a shift ahead of a product that pads         the scale goes into the product, the shift stays
  ahead     a scale and shift of channels that only products read    part of each of them
  branches  two ways from one value to an Add, each linear or none   one (RepVGG, ACNet, residuals without a function, LoRA)
  concat    convolutions of one value, laid end to end               one

All give the same function within float rounding. One that would need more parameters, or more multiply-adds, is refused with the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxcompress.model.edit import constant_of
from onnxcompress.model.wiring import alone
from onnxcompress.operators.view import rank_of, sizes_of
from onnxcompress.passes.merge.hard import as_hard, hard_of
from onnxcompress.passes.merge.linear import AFFINE, Linear, affine_of, ending_in, positions, product_of, write
from onnxcompress.passes.merge.maps import Map, added, chained, channelwise, identity, stacked
from onnxcompress.passes.merge.response import as_roots, quarters
from onnxcompress.plan import Refusal

Pair = tuple[int, int]
"""Before and after."""


@dataclass(frozen=True, eq=False)
class Rewrite:
    """Nodes that can become fewer.

    parameters  of these nodes, before and after
    macs        multiply-adds for each position that the last of them writes (reads, of a transposed convolution)
    act         carries it out
    """

    nodes: list[ir.Node]
    parameters: Pair
    macs: Pair
    act: Callable[[ir.Model], None] = field(repr=False)

    @property
    def pays(self) -> bool:
        """It needs no more of anything."""
        return self.parameters[1] <= self.parameters[0] and self.macs[1] <= self.macs[0]


Found = Rewrite | Refusal | None
Rule = Callable[[ir.Node], Found]


def _refused(nodes: list[ir.Node], why: str, by: str) -> Refusal:
    return Refusal(" + ".join(node.name or "?" for node in nodes), why, by)


def _bias_numbers(new: Map, host: Linear) -> int:
    """Numbers of the bias that `host` will have."""
    if host.node.op_type == "BatchNormalization":
        return 3 * new.outs
    has = host.behind is not None or (len(host.node.inputs) > 2 and host.node.inputs[2] is not None)
    return new.outs if host.is_product and (has or new.shifts) else 0


# -- one after the other -------------------------------------------------------------------------------------------


def chain(node: ir.Node) -> Found:
    """Two linear nodes, the first of which only the second reads."""
    second = product_of(node)
    if second is None and node.op_type not in AFFINE:
        return None
    pair = into_product(node) if second is None else _before_product(second)
    if pair is None:
        return None
    first, second = pair
    if not alone(first.writes) or first.node.graph is not node.graph:
        return None
    nodes = [*first.nodes, *second.nodes]
    new = chained(first.map, second.map)
    if isinstance(new, str):
        return _refused(nodes, new, "chain")
    host = _host(first, second, new)
    if host is None:
        return None
    numbers = first.numbers + second.numbers, _numbers(new, host)
    reads, last = first.reads, second.writes
    return Rewrite(
        nodes,
        numbers,
        (_chain_macs(first, second), new.size if host.is_product else 0),
        _writing(host, new, reads, last),
    )


def _writing(host: Linear, new: Map, reads: ir.Value, last: ir.Value) -> Callable[[ir.Model], None]:
    return lambda graph: write(graph, host, new, reads, last)


def _numbers(new: Map, host: Linear) -> int:
    return new.size + _bias_numbers(new, host)


def _chain_macs(first: Linear, second: Linear) -> int:
    """At each position of the second's result; at each of the first's input where that is spread."""
    if first.map.spread:
        return first.macs + second.macs * positions(first.map.window)
    return first.macs * (1 if second.map.spread else positions(second.map.window)) + second.macs


def _before_product(second: Linear) -> tuple[Linear, Linear] | None:
    """What stands before a product: another one, or a scale and shift."""
    before = second.reads.producer()
    first = ending_in(second.reads) or affine_of(before, second.axes, second.map.ins)
    return None if first is None or first.axes != second.axes or first.map.outs != second.map.ins else (first, second)


def into_product(node: ir.Node) -> tuple[Linear, Linear] | None:
    """A scale and shift behind a product, or behind another one."""
    before = next((v for v in node.inputs if v is not None and constant_of(v) is None), None)
    first = ending_in(before)
    if first is not None:
        second = affine_of(node, first.axes, first.map.outs)
        return None if second is None else (first, second)
    made = None if before is None else before.producer()
    if made is None or made.op_type not in AFFINE or _is_bias(node) or _is_bias(made):
        return None
    for axes, channels in _places(node):
        pair = affine_of(made, axes, channels), affine_of(node, axes, channels)
        if pair[0] is not None and pair[1] is not None:
            return pair[0], pair[1]
    return None


def _is_bias(node: ir.Node) -> bool:
    """The Add of a product: part of it."""
    return ending_in(node.outputs[0]) is not None


def _places(node: ir.Node) -> Iterator[tuple[int, int]]:
    """Where the channels of a value may lie: axes behind them, and how many they are."""
    rank, sizes = rank_of(node.outputs[0]), sizes_of(node.outputs[0])
    for axes in sorted({0, max((rank or 2) - 2, 0)}, reverse=True):
        size = sizes[-axes - 1] if sizes and len(sizes) > axes else None
        yield axes, size if isinstance(size, int) else 1


def _host(first: Linear, second: Linear, new: Map) -> Linear | None:
    """The node that stays: a product, the transposed one of two; else a norm; else the one operator that both are."""
    for each in (first, second):
        if each.map.spread:
            return each
    for each in (second, first):
        if each.is_product:
            return each
    for each in (second, first):
        if each.node.op_type == "BatchNormalization":
            return each
    weight, bias = new.arrays
    same = first.node.op_type if first.node.op_type == second.node.op_type else None
    return second if (same == "Mul" and not bias.any()) or (same == "Add" and (weight == 1).all()) else None


# -- a scale through a shift ---------------------------------------------------------------------------------------


def through(node: ir.Node) -> Found:
    """A scale, a shift, and a product that cannot take the shift since it pads: s·x + b is s·(x + b/s), and it takes the scale."""
    product = product_of(node)
    if product is None or not product.map.window.padded:
        return None
    shift = affine_of(product.reads.producer(), product.axes, product.map.ins)
    scale = None if shift is None else affine_of(shift.reads.producer(), product.axes, product.map.ins)
    if (
        shift is None
        or scale is None
        or shift.node.op_type != "Add"
        or not (alone(shift.writes) and alone(scale.writes))
    ):
        return None
    (factors, none), bias = scale.map.arrays, shift.map.arrays[1]
    parts = [scale, shift, product]
    if none.any() or not factors.all() or any(each.node.graph is not node.graph for each in parts):
        return None
    new = chained(scale.map, product.map)
    if isinstance(new, str):
        return None
    moved = channelwise(np.ones(len(bias)), bias / factors.reshape(-1), product.axes)
    counted = sum(each.numbers for each in parts), _numbers(new, product) + len(np.unique(moved.arrays[1]))
    macs = product.macs, new.size

    def act(graph: ir.Model) -> None:
        write(graph, product, new, product.reads, product.writes)
        write(graph, shift, moved, scale.reads, shift.writes)
        shift.writes.name = f"{shift.writes.name}.unscaled"  # the name stands for another value in the original

    return Rewrite([each for part in parts for each in part.nodes], counted, macs, act)


# -- ahead of products ---------------------------------------------------------------------------------------------


def ahead(node: ir.Node) -> Found:
    """A scale and shift that several products read, and nothing else: each takes it in."""
    out = node.outputs[0]
    readers = (
        [product_of(user) for user, _ in out.uses()] if node.op_type in AFFINE and not out.is_graph_output() else []
    )
    if len(readers) < 2 or any(each is None or each.reads is not out for each in readers) or _is_bias(node):
        return None
    products: list[Linear] = [each for each in readers if each is not None]
    pairs = [(affine_of(node, each.axes, each.map.ins), each) for each in products]
    if any(first is None or each.node.graph is not node.graph for first, each in pairs):
        return None
    made = [chained(first.map, each.map) for first, each in pairs if first is not None]
    reason = next((each for each in made if isinstance(each, str)), None)
    if reason is not None:
        return _refused([node, *(each.node for each in products)], reason, "ahead")
    maps = [each for each in made if isinstance(each, Map)]
    first = pairs[0][0]
    assert first is not None
    before = first.numbers + sum(each.numbers for each in products)
    after = sum(_numbers(new, each) for new, each in zip(maps, products, strict=True))
    counted = sum(each.macs for each in products)

    def act(graph: ir.Model) -> None:
        for each, new in zip(products, maps, strict=True):
            write(graph, each, new, first.reads, each.writes)

    return Rewrite([node, *(each.node for each in products)], (before, after), (counted, counted), act)


# -- branches ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Way:
    """From a value to an operand of an Add: nothing, one linear node, or two."""

    start: ir.Value
    map: Map
    parts: list[Linear]
    macs: int


def branches(node: ir.Node) -> Found:
    """Two ways from one value that meet in an Add."""
    if (
        node.op_type != "Add"
        or node.domain
        or len(node.inputs) != 2
        or any(constant_of(v) is not None for v in node.inputs)
    ):
        return None
    ends = [ending_in(value) for value in node.inputs]
    like = next((each for each in ends if each is not None), None)
    if like is None or node.inputs[0] is node.inputs[1]:
        return None
    left, right = (list(_ways(value, like)) for value in node.inputs)
    pairs = [(a, b) for a in left for b in right if a.start is b.start and (a.parts or b.parts)]
    if not pairs:
        return None
    one, other = min(pairs, key=lambda pair: len(pair[0].parts) + len(pair[1].parts))
    parts = [*one.parts, *other.parts]
    nodes = [*(each for part in parts for each in part.nodes), node]
    if any(each.graph is not node.graph for each in nodes):
        return None
    new = added(one.map, other.map)
    if isinstance(new, str):
        return _refused(nodes, new, "branches")
    host = max((part for part in parts if part.is_product), key=lambda part: part.map.size, default=None)
    if host is None:
        return None
    numbers = sum(part.numbers for part in parts), _numbers(new, host)
    return Rewrite(nodes, numbers, (one.macs + other.macs, new.size), _writing(host, new, one.start, node.outputs[0]))


def _ways(value: ir.Value | None, like: Linear) -> Iterator[Way]:
    """Back from an operand, through nodes that nobody else reads."""
    assert value is not None
    channels = like.map.outs
    yield Way(value, identity(channels, like.axes), [], 0)
    if not alone(value):
        return
    last = ending_in(value) or affine_of(value.producer(), like.axes, channels)
    if last is None or last.axes != like.axes:
        return
    yield Way(last.reads, last.map, [last], last.macs)
    first = ending_in(last.reads) if alone(last.reads) else None
    joined = None if first is None or first.axes != last.axes else chained(first.map, last.map)
    if first is not None and isinstance(joined, Map):
        yield Way(first.reads, joined, [first, last], _chain_macs(first, last))


# -- laid end to end -----------------------------------------------------------------------------------------------


def concat(node: ir.Node) -> Found:
    """Convolutions of one value whose results a Concat lays side by side: one convolution, and no copies."""
    values = [value for value in node.inputs if value is not None]
    if node.op_type != "Concat" or node.domain or len(values) < 2:
        return None
    parts = [ending_in(value) if alone(value) else None for value in values]
    found = [each for each in parts if each is not None and each.map.size]
    first = found[0] if found else None
    if first is None or len(found) != len(values) or any(each.reads is not first.reads for each in found):
        return None
    rank = rank_of(node.outputs[0])
    if rank is None or node.attributes.get_int("axis", 0) % rank != rank - 1 - first.axes:
        return None
    if len({each.axes for each in found}) > 1 or any(each.node.op_type != first.node.op_type for each in found):
        return None
    nodes = [*(each for part in found for each in part.nodes), node]
    if any(each.graph is not node.graph for each in nodes):
        return None
    new = stacked([each.map for each in found])
    if isinstance(new, str):
        return _refused(nodes, new, "concat")
    numbers = sum(each.numbers for each in found), _numbers(new, first)
    macs = sum(each.macs for each in found)
    return Rewrite(nodes, numbers, (macs, new.size), _writing(first, new, first.reads, node.outputs[0]))


# -- nothing at all ------------------------------------------------------------------------------------------------


def idle(node: ir.Node) -> Found:
    """A scale and shift that changes nothing."""
    if node.op_type not in AFFINE or node.domain or _is_bias(node):
        return None
    found = (affine_of(node, axes, channels) for axes, channels in _places(node))
    each = next((one for one in found if one is not None), None)
    if each is None or node.outputs[0].is_graph_output() or sizes_of(each.reads) != sizes_of(node.outputs[0]):
        return None
    weight, bias = each.map.arrays
    if (weight != 1).any() or bias.any():
        return None
    return Rewrite([node], (each.numbers, 0), (0, 0), lambda graph: _passed(node, each.reads))


def hard(node: ir.Node) -> Found:
    """The last piece of a HardSwish or HardSigmoid: onnxruntime runs fewer nodes, and other passes know the activation."""
    if hard_of(node) is None:
        return None
    held = [value for value in node.inputs if constant_of(value) is not None and value is not None and alone(value)]
    return Rewrite([node], (len(held), 0), (0, 0), lambda graph: as_hard(graph, node))


def response(node: ir.Node) -> Found:
    """An LRN, whose kernel is slow: no fewer nodes, but less time."""
    return None if quarters(node) is None else Rewrite([node], (0, 0), (0, 0), lambda graph: as_roots(graph, node))


def _passed(node: ir.Node, reads: ir.Value) -> None:
    node.outputs[0].replace_all_uses_with(reads)
    assert isinstance(node.graph, ir.Graph)
    node.graph.remove(node, safe=True)


RULES: Mapping[str, Rule] = {
    "hard": hard,
    "response": response,
    "idle": idle,
    "chain": chain,
    "through": through,
    "ahead": ahead,
    "branches": branches,
    "concat": concat,
}
"""Name -> the rule; those before go first at each node, and those in FIRST at all nodes."""

FIRST = ("hard",)
