"""Gradients as evidence: probes have the curvature that they stand for, gates and weights the sums of the formula."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxcompress
from onnxcompress.data import open_data
from onnxcompress.errors import ModelError
from onnxcompress.evidence.gather import Sources, gather
from onnxcompress.evidence.need import Need
from onnxcompress.model import load
from onnxcompress.passes import Prune
from onnxcompress.runtime.session import open_session
from onnxcompress.training import importance
from onnxcompress.training.derivatives import DERIVATIVES
from onnxcompress.training.importance import GRADIENTS, PROBES

SAMPLE = Path(__file__).parents[2] / "sample_models" / "digits.onnx"
DIGITS, DATA = str(SAMPLE), str(SAMPLE.with_suffix(".npz"))
RNG = np.random.default_rng(5)


def every_sign(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> itertools.product:  # type: ignore[type-arg]
    """All arrays of signs of that shape, one a call of `_signs`."""
    patterns = itertools.product([-1.0, 1.0], repeat=int(np.prod(shape)))
    monkeypatch.setattr(importance, "_signs", lambda shape, rng: np.reshape(next(patterns), shape))
    return patterns


@pytest.mark.parametrize("kind", PROBES)
def test_the_mean_over_all_probes_is_the_curvature(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, over the 2^n sign patterns: two rows of three classes, or six numbers."""
    y = RNG.normal(size=(2, 3)) * 2
    every_sign(monkeypatch, y.shape)
    draws = [PROBES[kind](y, -1, RNG).ravel() for _ in range(2**y.size)]  # type: ignore[index]
    found = np.mean([np.outer(v, v) for v in draws], axis=0)
    p = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    expected = np.zeros((6, 6))
    if kind == "logits":
        for row in range(2):
            at = slice(3 * row, 3 * row + 3)
            expected[at, at] = (np.diag(p[row]) - np.outer(p[row], p[row])) / 2
    else:
        q = 1 / (1 + np.exp(-y.ravel()))
        expected = np.diag(q * (1 - q) / 6) if kind == "log odds" else np.eye(6) / (y**2).sum()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def two_layers(between: str = "Relu") -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """x [n, 4] -> 5 hidden -> 3."""
    one, two = RNG.normal(size=(4, 5)).astype(np.float32), RNG.normal(size=(5, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "one"], ["h"]), helper.make_node(between, ["h"], ["a"], name="act"),
         helper.make_node("MatMul", ["a", "two"], ["y"])], "two_layers",
        [helper.make_tensor_value_info("x", 1, ["N", 4])], [helper.make_tensor_value_info("y", 1, ["N", 3])],
        [numpy_helper.from_array(one, "one"), numpy_helper.from_array(two, "two")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), one, two


def sources(proto: onnx.ModelProto | str, x: dict[str, np.ndarray], seed: int = 0) -> Sources:
    model = load(proto)
    session = open_session(model.serialized if not isinstance(proto, str) else proto)
    return Sources(model, model, open_data(x, session.inputs, session=session), seed=seed)


def test_gates_and_weights_have_the_sums_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one sample, over all sign patterns of three outputs: (a_j w_jk)² and the squares of the chain rule, over Σ y²."""
    proto, one, two = two_layers()
    x = RNG.normal(size=(1, 4)).astype(np.float32)
    monkeypatch.setattr(importance, "DRAWS", 8)
    every_sign(monkeypatch, (3,))
    needs = [Need("gradient", "a", 1)]
    gates = gather(sources(proto, {"x": x}), needs, GRADIENTS)[needs[0]]
    h = x @ one
    a = np.maximum(h, 0)
    power = np.square(a @ two).sum()
    assert gates.shape == (8, 5)
    np.testing.assert_allclose(np.square(gates).mean(0), np.square(a.T * two).sum(1) / power, rtol=1e-4, atol=1e-9)
    every_sign(monkeypatch, (3,))
    needs = [Need("hessian", name, 0) for name in ("one", "two")]
    found = gather(sources(proto, {"x": x}), needs, GRADIENTS)
    onto = np.square(x).T * (np.square(two).sum(1) * (h > 0) / power)
    np.testing.assert_allclose(found[needs[0]], onto, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found[needs[1]], np.repeat(np.square(a).T / power, 3, axis=1), rtol=1e-4, atol=1e-9)


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    proto, _, _ = two_layers()
    x = {"x": RNG.normal(size=(20, 4)).astype(np.float32)}
    need = Need("gradient", "a", 1)
    one, two, other = (gather(sources(proto, x, seed), [need], GRADIENTS)[need] for seed in (1, 1, 2))
    assert one.tobytes() == two.tobytes() != other.tobytes()


def test_a_unit_whose_readers_do_not_care_goes_first() -> None:
    """The largest weights write it, and next to nothing reads it: norms keep it, gradients do not."""
    proto, one, two = two_layers()
    one[:, 2] *= 10
    two[2] *= 1e-3
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([numpy_helper.from_array(one, "one"), numpy_helper.from_array(two, "two")])
    x = {"x": RNG.normal(size=(40, 4)).astype(np.float32)}
    gone = {}
    for criterion in ("l2", "taylor", "hessian"):
        result = onnxcompress.prune(proto, data=x, amount=0.2, round_to=1, criterion=criterion, refit=False)
        gone[criterion] = result.plans[0].decisions[0]["cut"]
    assert gone["taylor"] == gone["hessian"] == [2] != gone["l2"]


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_gradients_see_more_than_norms_on_the_sample_model(criterion: str) -> None:
    """A fifth of the channels goes, without repair: of a hundred decisions 91 (taylor) and 78 (hessian) stay, and 57 by norms."""
    found = {
        name: onnxcompress.prune(DIGITS, data=DATA, amount=0.2, round_to=1, criterion=name, refit=False, limit=400)
        for name in (criterion, "l2")
    }
    told = {name: result.comparison.agreement for name, result in found.items()}  # type: ignore[union-attr]
    assert told[criterion] > told["l2"] + 0.1  # type: ignore[operator]


def test_needs_are_about_what_the_criterion_reads() -> None:
    model = load(DIGITS)
    for criterion, kind in (("taylor", "gradient"), ("hessian", "hessian")):
        needs = Prune(criterion=criterion).needs(model)
        assert needs and {need.kind for need in needs} == {kind}
    held = {need.value for need in Prune(criterion="hessian").needs(model)}
    assert held <= set(model.initializers)


def test_an_operator_without_a_derivative_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DERIVATIVES, "Relu")
    proto, _, _ = two_layers()
    x = {"x": RNG.normal(size=(4, 4)).astype(np.float32)}
    with pytest.raises(ModelError, match=r"^Relu 'act': no gradient goes through it.*nearest.*") as caught:
        onnxcompress.prune(proto, data=x, criterion="hessian", round_to=1)
    assert "\n" not in str(caught.value)


def test_rounds_measure_anew() -> None:
    """Each round's cut is chosen on the model as the round before left it."""
    result = onnxcompress.prune(DIGITS, data=DATA, criterion="taylor", rounds=2, limit=128)
    assert [plan.method for plan in result.plans] == ["prune", "refit"] * 2
    assert result.plans[0].decisions != result.plans[2].decisions
