"""Refit: fit every layer by least squares to the original's outputs, from what the compressed network really feeds it.

For one layer, with X the rows that it is fed now (a patch a row for a convolution) and Y what the original puts out at the
same places and channels,

    min over W, b of  ‖Y − X Wᵀ − b‖² + λ ‖W − W₀‖²          (W₀, the present weights, is where no data speaks)

in float64, from the centred Gram matrix. λ is the one of RIDGES whose fit on four fifths of the batches does best on the
rest; where none beats the present weights there, the layer stays as it is. Behind a residual addition the target is what the
sum lacks, so that errors of the shortcut are made up for as well: the reconstruction step of He, Zhang, Sun, ICCV 2017,
arXiv:1707.06168, with its multi-branch enhancement.
"""

from __future__ import annotations

from dataclasses import dataclass as plain
from dataclasses import field
from itertools import product
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.linalg import cho_factor, cho_solve

from onnxcompress.errors import DataError
from onnxcompress.evidence.need import Evidence, Need
from onnxcompress.evidence.paired import Arrays, Pair, Paired
from onnxcompress.model import Model
from onnxcompress.model.edit import constant_of, new_constant, set_constant, walk
from onnxcompress.operators.layer import Layer, layers
from onnxcompress.plan import Plan, Refusal

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ as shares of the Gram's mean diagonal."""

HELD_OUT = 5
"""Every fifth batch judges the fit of the others."""


@dataclass(frozen=True)
class Refit:
    """Fit weights and biases to the original's outputs, layer by layer, by least squares on calibration data."""

    name: ClassVar[str] = "refit"

    rows: Annotated[
        int, Field(ge=16, description="rows (positions of samples) at most that one layer is fitted on")
    ] = 16384
    seed: Annotated[int, Field(ge=0, description="which positions are drawn")] = 0

    def needs(self, model: Model) -> list[Need]:
        """The paired walk."""
        return [Paired.NEED]

    def plan(self, model: Model, evidence: Evidence) -> Plan:
        """Walk once; each layer is fitted before the next one is fed."""
        paired: Paired = evidence[Paired.NEED]
        plan = Plan(self.name, dict(vars(self)), model.fingerprint)
        nodes = {node.name or "": node for node in walk(model.ir)}
        todo: dict[str, Layer] = {}
        for layer in layers(model):
            why = _unsuited(layer, nodes[layer.name], model)
            if why:
                plan.refusals.append(Refusal(layer.weight, why, layer.name))
            elif layer.weight not in {other.weight for other in todo.values()}:
                todo[layer.name] = layer
        for pair in paired.walk(list(todo)):
            self._fit(model, todo[pair.node], nodes[pair.node], pair, plan)
        return plan

    def _fit(self, model: Model, layer: Layer, node: ir.Node, pair: Pair, plan: Plan) -> None:
        """One stop: gather rows, solve, and let the rest of the walk use the new weights where they are better."""
        goal = _goal(model, layer, node, pair)
        weight = pair.constant(layer.weight)
        matrix = layer.matrix(weight).astype(np.float64)
        bias = np.zeros(len(matrix)) if layer.bias is None else pair.constant(layer.bias).reshape(-1).astype(np.float64)
        fit, judge = Sums(), Sums()
        rng = np.random.default_rng(self.seed)
        arrays = pair.read(layer.reads)
        share = max(1, self.rows // len(arrays))
        for number, (x, y) in enumerate(zip(arrays, goal, strict=True)):
            rows, wanted = _rows(node, layer, x, y, share, rng)
            (
                judge
                if (len(arrays) > 1 and number % HELD_OUT == HELD_OUT - 1) or number == len(arrays) - 1 > 0
                else fit
            ).add(rows, wanted)
        if len(arrays) == 1:
            judge = fit
        found = solve(fit, judge, matrix, bias, fixed_bias=layer.bias is None and layer.op == "MatMul")
        if found is None:
            plan.refusals.append(Refusal(layer.weight, "no fit beats the present weights on held-out rows", layer.name))
            return
        new = layer.stored(found.weight, weight).astype(weight.dtype)
        plan.arrays[layer.weight] = new
        pair.replace(layer.weight, new)
        name = layer.bias
        if name is None and layer.op != "MatMul":
            name = f"{layer.weight}.bias"
            pair.add_input(name, found.bias.astype(weight.dtype))
            plan.arrays[name] = found.bias.astype(weight.dtype)
        elif name is not None:
            stored = pair.constant(name)
            plan.arrays[name] = found.bias.reshape(stored.shape).astype(stored.dtype)
            pair.replace(name, plan.arrays[name])
        plan.decisions.append(
            {
                "layer": layer.name,
                "weight": layer.weight,
                "bias": name,
                "new_bias": layer.bias is None and name is not None,
                "ridge": found.ridge,
                "before_db": found.before_db,
                "after_db": found.after_db,
            }
        )

    def apply(self, model: Model, plan: Plan) -> Model:
        """Write the fitted weights."""
        plan.check_fits(model.fingerprint)
        graph = model.ir.clone()
        nodes = {node.name or "": node for node in walk(graph)}
        for decision in plan.decisions:
            set_constant(graph, decision["weight"], plan.arrays[decision["weight"]])
            name = decision["bias"]
            if decision["new_bias"]:
                value = new_constant(graph, name, plan.arrays[name])
                node = nodes[decision["layer"]]
                node.resize_inputs(3)
                node.replace_input_with(2, value)
            elif name is not None:
                set_constant(graph, name, plan.arrays[name])
        return model.edited(graph)


# -- which layers, and what they should put out --------------------------------------------------------------------

FITTED = {"Conv", "Gemm", "MatMul"}


def _unsuited(layer: Layer, node: ir.Node, model: Model) -> str:
    """Why a layer is not refitted; empty where it is."""
    if layer.op not in FITTED:
        return f"{layer.op} is not refitted"
    if node.graph is not model.ir.graph:
        return "it lies in the body of an If or Loop"
    if layer.groups != 1 and layer.matrix(model.array(layer.weight)).shape[1] != 1:
        return "grouped convolutions are not refitted"
    if node.attributes.get_string("auto_pad") not in (None, "NOTSET"):
        return "its padding is computed"
    if layer.op == "MatMul" and node.inputs[0].name == layer.weight:  # type: ignore[union-attr]
        return "its weight stands on the left"
    return ""


def _goal(model: Model, layer: Layer, node: ir.Node, pair: Pair) -> Arrays:
    """[batches] of what the layer should put out: the original's output, or what a residual sum behind it lacks."""
    own = layer.writes
    residual = _residual(node, model, pair)
    if residual is None:
        return [_kept(model, own, y) for y in pair.target(_original_name(model, own))]
    total, other, scale, shift = residual
    wanted = pair.target(_original_name(model, total))
    goals = []
    for y, z in zip(wanted, pair.read(other), strict=True):
        lacking = _kept(model, total, y).astype(np.float64) - z
        shape = [1, -1] + [1] * (lacking.ndim - 2)
        goals.append((lacking - shift.reshape(shape)) / scale.reshape(shape))
    return goals


def _original_name(model: Model, value: str) -> str:
    origin = model.origin.get(value)
    return value if origin is None else origin.name


def _kept(model: Model, value: str, array: np.ndarray) -> np.ndarray:
    """The original's array at the indices that the current value still has."""
    origin = model.origin.get(value)
    for axis, indices in (origin.kept if origin is not None else {}).items():
        array = np.take(array, indices, axis=axis)
    return array


def _residual(node: ir.Node, model: Model, pair: Pair) -> tuple[str, str, np.ndarray, np.ndarray] | None:
    """Sum behind a convolution (through BatchNormalization) whose other operand is known: names of both, scale and shift between."""
    if node.op_type != "Conv":
        return None
    value, scale, shift = node.outputs[0], np.ones(1), np.zeros(1)
    user = _only_user(value)
    if user is not None and user.op_type == "BatchNormalization":
        gamma, beta, mean, var = (
            pair.constant(v.name or "").astype(np.float64) for v in user.inputs[1:5] if v is not None
        )
        scale = gamma / np.sqrt(var + user.attributes.get_float("epsilon", 1e-5))
        shift = beta - mean * scale
        value, user = user.outputs[0], _only_user(user.outputs[0])
    if user is None or user.op_type != "Add" or user.domain or np.abs(scale).min() < 1e-6 * np.abs(scale).max():
        return None
    other = next((operand for operand in user.inputs if operand is not value), None)
    if other is None or constant_of(other) is not None or not pair.has(other.name or ""):
        return None
    same = other.shape is not None and value.shape is not None and len(other.shape) == len(value.shape)
    if not same or other.shape[1] != value.shape[1] or pair.read(other.name or "")[0].ndim < 3:  # type: ignore[index]
        return None
    return user.outputs[0].name or "", other.name or "", scale, shift


def _only_user(value: ir.Value) -> ir.Node | None:
    users = list(value.uses())
    return users[0][0] if len(users) == 1 and not value.is_graph_output() else None


# -- rows ----------------------------------------------------------------------------------------------------------


def _rows(
    node: ir.Node, layer: Layer, x: np.ndarray, y: np.ndarray, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What the layer multiplies at some positions, [rows, in·kernel] (depthwise [rows, out, kernel]), and the goal [rows, out]."""
    if layer.op != "Conv":
        flat, goal = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        chosen = _drawn(len(flat), most, rng)
        return flat[chosen].astype(np.float64), goal[chosen].astype(np.float64)
    places = y.shape[0] * int(np.prod(y.shape[2:]))
    at = np.unravel_index(_drawn(places, most, rng), (y.shape[0], *y.shape[2:]))
    goal = np.moveaxis(y, 1, -1)[at].astype(np.float64)
    return _patches(node, x, at, depthwise=layer.groups > 1, outputs=goal.shape[1]), goal


def _drawn(count: int, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))


def _patches(
    node: ir.Node, x: np.ndarray, places: tuple[np.ndarray, ...], *, depthwise: bool, outputs: int
) -> np.ndarray:
    """[rows, in·kernel]: the inputs under the kernel at each output position (sample, *position); kernel innermost."""
    spatial = x.ndim - 2
    kernel = [int(str(size)) for size in node.inputs[1].shape[2:]]  # type: ignore[union-attr,index]
    strides = node.attributes.get_ints("strides") or [1] * spatial
    dilations = node.attributes.get_ints("dilations") or [1] * spatial
    pads = node.attributes.get_ints("pads") or [0] * (2 * spatial)
    padded = np.pad(x, [(0, 0), (0, 0), *((pads[axis], pads[axis + spatial]) for axis in range(spatial))])
    last = np.moveaxis(padded, 1, -1)
    taps = []
    for tap in product(*(range(size) for size in kernel)):
        index = [places[axis + 1] * strides[axis] + tap[axis] * dilations[axis] for axis in range(spatial)]
        taps.append(last[(places[0], *index)])
    patches = np.stack(taps, axis=-1).astype(np.float64)  # [rows, in, kernel]
    if depthwise:
        return np.repeat(patches, outputs // patches.shape[1], axis=1)
    return patches.reshape(len(patches), -1)


# -- the solver ----------------------------------------------------------------------------------------------------


@plain(eq=False)
class Sums:
    """Sums over rows: enough for the fit and for its error on other rows. Depthwise rows [n, out, k] make one Gram an output."""

    count: int = 0
    x: Any = 0.0
    y: Any = 0.0
    gram: Any = 0.0
    cross: Any = 0.0
    power: Any = field(default=0.0)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take rows [n, in] (or [n, out, k]) and [n, out] in."""
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise DataError("activations are not finite; look for NaN or Inf in the data or the model")
        self.count += len(x)
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
        self.power = self.power + (y**2).sum(0)
        if x.ndim == 3:
            by_output = np.moveaxis(x, 1, 0)
            self.gram = self.gram + by_output.transpose(0, 2, 1) @ by_output
            self.cross = self.cross + np.einsum("no,nok->ok", y, x)
        else:
            self.gram = self.gram + x.T @ x
            self.cross = self.cross + y.T @ x

    def plus(self, other: Sums) -> Sums:
        """Both."""
        return Sums(*(getattr(self, name) + getattr(other, name) for name in vars(self)))

    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """Gram and cross moments about the means."""
        x, y = self.x / self.count, self.y / self.count
        if np.ndim(self.gram) == 3:
            return self.gram - self.count * x[:, :, None] * x[:, None, :], self.cross - self.count * y[:, None] * x
        return self.gram - self.count * np.outer(x, x), self.cross - self.count * np.outer(y, x)

    def error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """Σ ‖y − W x − b‖²."""
        if np.ndim(self.gram) == 3:
            square = np.einsum("ok,okj,oj->o", weight, self.gram, weight)
            fed = (weight * self.x).sum(1)
        else:
            square = ((weight @ self.gram) * weight).sum(1)
            fed = weight @ self.x
        cross = (weight * self.cross).sum(1)
        total = self.power + square + self.count * bias**2 - 2 * cross - 2 * bias * self.y + 2 * bias * fed
        return float(max(total.sum(), 0.0))


@plain(frozen=True, eq=False)
class Fit:
    """New weight [out, in/groups, *kernel] and bias [out], the ridge that did best, and SQNR on held-out rows before and after."""

    weight: np.ndarray
    bias: np.ndarray
    ridge: float
    before_db: float
    after_db: float


def solve(fit: Sums, judge: Sums, weight: np.ndarray, bias: np.ndarray, *, fixed_bias: bool = False) -> Fit | None:
    """The best of RIDGES on `judge`, then fitted on both; None where none beats the present weights.

    weight  [out, in/groups, *kernel] present          bias  [out] present
    """
    flat = weight.reshape(len(weight), -1)
    present = judge.error(flat, bias)
    best, ridge = present * (1 - 1e-6), None
    for share in RIDGES:
        new, offset = _ridge(fit, flat, bias, share, fixed_bias)
        error = judge.error(new, offset)
        if error < best:
            best, ridge = error, share
    if ridge is None:
        return None
    new, offset = _ridge(fit if judge is fit else fit.plus(judge), flat, bias, ridge, fixed_bias)
    signal = float(judge.power.sum())
    return Fit(new.reshape(weight.shape), offset, ridge, _db(signal, present), _db(signal, best))


def _ridge(
    sums: Sums, weight: np.ndarray, bias: np.ndarray, share: float, fixed_bias: bool
) -> tuple[np.ndarray, np.ndarray]:
    """W₀ + (C − W₀ G)(G + λ)⁻¹, and the bias that goes with it."""
    gram, cross = (sums.gram, sums.cross) if fixed_bias else sums.centred()
    size = gram.shape[-1]
    if gram.ndim == 3:
        level = share * np.trace(gram, axis1=1, axis2=2)[:, None, None] / size + 1e-12
        lack = cross - np.einsum("ok,okj->oj", weight, gram)
        new = weight + np.linalg.solve(gram + level * np.eye(size), lack[:, :, None])[:, :, 0]
        fed = (new * sums.x).sum(1)
    else:
        level = share * np.trace(gram) / size + 1e-12
        factor = cho_factor(gram + level * np.eye(size), lower=True, overwrite_a=True, check_finite=False)
        new = weight + cho_solve(factor, (cross - weight @ gram).T, check_finite=False).T
        fed = new @ sums.x
    return new, bias if fixed_bias else (sums.y - fed) / sums.count


def _db(signal: float, error: float) -> float:
    return float(10 * np.log10(max(signal, 1e-300) / max(error, 1e-300)))
