"""How long a chain takes beside the layer that it stands for, by onnxruntime on this CPU: what is not rewarded is not made.

Both are run in turn on noise of the shape that the layer is fed. Multiply-adds tell little: depthwise and thin layers reach a fraction
of the speed of dense ones. A call of a session and onnxruntime's change to blocked channels and back would count for layer and chain
alike, which within a model neither pays: so each also runs as COPIES of it on one input, summed up, and its time is what a copy more
takes. A layer that a model has many times is measured once in a process; nothing is kept on the disk, since what a busy machine once
measured would be believed for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxcompress.operators.layer import RECURRENT
from onnxcompress.passes.factorize.candidates import Choice
from onnxcompress.passes.factorize.chain import write
from onnxcompress.passes.factorize.forms import FORMS
from onnxcompress.passes.factorize.sites import Site
from onnxcompress.runtime import clock
from onnxcompress.runtime.loose import loose

SECONDS = 0.05
"""For each chain beside its layer; each runs five times at least."""

COPIES, COPIED_BYTES = 3, 64 << 20
"""How often a layer stands in the graph that is timed beside the one with the layer alone, and weights above which there is none: what
a call costs is little there."""

LEAST = 0.02
"""Share of a layer's own time below which no chain is believed to be."""


TOGETHER_BYTES = 96 << 20
"""Of the weights that are timed together; more are timed in parts, each beside the layer. A session packs what it holds once more."""


@dataclass(eq=False)
class Stopwatch:
    """(layer in all that tells its time, choice) -> share of the layer's own time; and the layer's milliseconds."""

    threads: int = 1
    seconds: float = SECONDS
    shares: dict[tuple[object, Choice], float] = field(default_factory=dict)
    own: dict[object, float] = field(default_factory=dict)

    def share(self, site: Site, choices: Sequence[Choice]) -> dict[Choice, float | None]:
        """Choice -> its time as a share of the layer's; None where the layer was not seen to run."""
        key = _key(site)
        if site.read is None:
            return dict.fromkeys(choices)
        unknown = [each for each in dict.fromkeys(choices) if each.form and (key, each) not in self.shares]
        if unknown:
            graph, feed = single(site)
            graphs = {"": graph} | {str(each): _chained(site, graph, each) for each in unknown}
            times = self._times(site, graphs, feed)
            self.own[key] = times[""]
            self.shares |= {(key, each): max(times[str(each)] / times[""], LEAST) for each in unknown}
        return {each: self.shares[key, each] if each.form else 1.0 for each in choices}

    def _times(self, site: Site, graphs: Mapping[str, ir.Model], feed: dict[str, np.ndarray]) -> dict[str, float]:
        """Milliseconds of each graph: what one more of it takes, or all of it where that cannot be told."""
        copies = COPIES if site.layer.op not in RECURRENT and 4 * COPIES * site.shape.size <= COPIED_BYTES else 0
        found: dict[str, float] = {}
        for names in _parts({name: (1 + copies) * _bytes(graph) for name, graph in graphs.items()}):
            times = self._together({name: graphs[name] for name in names}, copies, feed)
            found |= {name: found.get("", times[""]) * time / times[""] for name, time in times.items()}
        return found

    def _together(self, graphs: Mapping[str, ir.Model], copies: int, feed: dict[str, np.ndarray]) -> dict[str, float]:
        models = {name: loose(graph) for name, graph in graphs.items()}
        many = {f"{name} again": loose(repeated(graph, copies)) for name, graph in graphs.items()} if copies else {}
        seconds = self.seconds * len(models)
        times = clock.paired_ms(models | many, [feed], threads=self.threads, seconds=seconds)
        more = {name: (times[f"{name} again"] - times[name]) / (copies - 1) for name in graphs} if many else times
        return more if more[""] > LEAST * times[""] else {name: times[name] for name in graphs}

    def milliseconds(self, site: Site) -> float | None:
        """Of the layer as it is, once it was measured beside a chain."""
        return self.own.get(_key(site))


def _bytes(graph: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)


def _parts(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in groups of TOGETHER_BYTES, the first name in each."""
    first, *rest = sizes
    part, held = [first], sizes[first]
    for name in rest:
        if len(part) > 1 and held + sizes[name] > TOGETHER_BYTES:
            yield part
            part, held = [first], sizes[first]
        part.append(name)
        held += sizes[name]
    yield part


def _key(site: Site) -> object:
    attributes = tuple(sorted((key, str(each.value)) for key, each in site.node.attributes.items()))
    return site.layer.op, site.shape, site.read, site.layer.order, attributes


def single(site: Site) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A graph with the layer alone, its weights noise, and a feed."""
    assert site.read is not None
    rng = np.random.default_rng(0)
    fed, out, constant = (ir.val(name, dtype=ir.DataType.FLOAT) for name in (site.layer.reads, "y", site.layer.weight))
    fed.shape = ir.Shape(site.read)
    inputs = [fed if v is not None and v.name == site.layer.reads else constant for v in site.node.inputs[:2]]
    values = rng.normal(size=_weight_shape(site, site.layer.weight)).astype(np.float32)
    constant.const_value, constant.shape = ir.Tensor(values, name=site.layer.weight), ir.Shape(values.shape)
    held = [constant]
    if site.layer.op in RECURRENT:
        state = ir.val("state", dtype=ir.DataType.FLOAT)
        values = rng.normal(size=_weight_shape(site, site.node.inputs[2].name)).astype(np.float32)  # type: ignore[union-attr]
        state.const_value, state.shape = ir.Tensor(values, name="state"), ir.Shape(values.shape)
        inputs, held = [*inputs, state], [constant, state]
    attributes = {name: each.value for name, each in site.node.attributes.items()}
    node = ir.node(site.layer.op, inputs, attributes, outputs=[out], name=site.layer.name)
    out.shape = None if site.written is None else ir.Shape(site.written)
    graph = ir.Graph([fed], [out], nodes=[node], initializers=held, opset_imports={"": 17}, name="single")
    return ir.Model(graph, ir_version=8), {site.layer.reads: rng.normal(size=site.read).astype(np.float32)}


def _weight_shape(site: Site, name: str | None) -> tuple[int, ...]:
    value = next(v for v in site.node.inputs if v is not None and v.name == name)
    return tuple(int(size) for size in value.const_value.shape)  # type: ignore[union-attr,arg-type]


def _chained(site: Site, graph: ir.Model, choice: Choice) -> ir.Model:
    form, rng = FORMS[choice.form], np.random.default_rng(0)
    made = graph.clone()
    parts = form.parts(site.shape, choice.ranks)
    weights = [
        rng.permutation(part.outs)
        if part.order
        else rng.normal(size=(part.outs, part.ins // part.groups, *part.kernel(site.shape))).astype(np.float32)
        for part in parts
    ]
    write(made, site.layer, site.shape, choice.form, parts, weights)
    return made


def repeated(graph: ir.Model, copies: int) -> ir.Model:
    """A graph of one input and one output, so often on the same input, outputs summed up; weights of their own, lest they be merged."""
    made = graph.clone()
    (fed,), (total,) = made.graph.inputs, made.graph.outputs
    for number in range(1, copies):
        other = graph.clone().graph
        ir.convenience.replace_all_uses_with(other.inputs[0], fed)
        (out,) = other.outputs
        other.outputs.clear()
        for name, value in list(other.initializers.items()):
            del other.initializers[name]
            value.name = f"{name}.{number}"
            if value.dtype == ir.DataType.FLOAT:
                value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1 + number), name=value.name)  # type: ignore[union-attr]
            made.graph.register_initializer(value)
        nodes = list(other)
        other.remove(nodes)
        for node in nodes:
            node.name = f"{node.name}.{number}"
            for value in node.outputs:
                value.name = f"{value.name}.{number}"
        both = ir.node("Add", [total, out], name=f"sum.{number}")
        both.outputs[0].name, both.outputs[0].type, both.outputs[0].shape = f"sum.{number}.out", total.type, total.shape
        made.graph.extend([*nodes, both])
        total = both.outputs[0]
    made.graph.outputs[0] = total
    return made
