"""Comparisons whose answer is known: equal, scaled, noisy, broken models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnxcompress.compare import Comparison, compare, json_safe
from onnxcompress.data import Data, open_data
from onnxcompress.difference import Differences, decision_axis, merged
from onnxcompress.errors import DataError, ModelError
from onnxcompress.runtime.session import Port, open_session


def model(body: str, x: str = "float[N,4]", y: str = "float[N,4]", outputs: str = "") -> bytes:
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({x} x) => ({y} y{outputs}) {{ {body} }}'
    return onnx.parser.parse_model(text).SerializeToString()


SAME = model("y = Identity(x)")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 4)).astype(np.float32)


def data(model: bytes = SAME, x: np.ndarray = X, **options: int) -> Data:
    return open_data({"x": x}, open_session(model).inputs, **options)


def scaled(by: float) -> bytes:
    return model(f"c = Constant<value_float = {by}>() y = Mul(x, c)")


def test_equal_models() -> None:
    found = compare(SAME, SAME, data())
    (out,) = found.outputs
    assert (out.max_abs, out.relative, out.sqnr_db, out.agreement, out.values) == (0, 0, math.inf, 1, 160)
    assert out.cosine == pytest.approx(1) and found.same and found.samples == 40
    assert found.verdict == "answers like the original (equal bit for bit, 100.0 % of decisions agree)"


@pytest.mark.parametrize(("by", "db", "verdict"), [(1.05, 26.02, 0), (1.2, 13.98, 1), (1.5, 6.02, 2), (-1.0, -6.02, 2)])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_numbers_of_a_scaled_output(by: float, db: float, verdict: int, batch: int) -> None:
    found = compare(SAME, scaled(by), data(), batch=batch)
    (out,) = found.outputs
    assert out.sqnr_db == pytest.approx(db, abs=0.01) and out.cosine == pytest.approx(math.copysign(1, by))
    assert out.max_abs == pytest.approx(abs(by - 1) * np.abs(X).max(), rel=1e-4)
    assert out.relative == pytest.approx(abs(by - 1), rel=1e-4) and found.grade == verdict
    assert out.agreement == (1.0 if by > 0 else 0.0)


def heated(by: float) -> bytes:
    return model(f"c = Constant<value_float = {by}>() z = Mul(x, c) y = Softmax<axis = -1>(z)")


@pytest.mark.parametrize("by", [1.1, 0.9])
def test_probabilities_are_compared_as_logits_too(by: float) -> None:
    """Logits that are a tenth off are 20 dB, however saturated the probabilities are."""
    far = data(x=np.float32([[6, -6, 0, 1]]) * np.linspace(0.1, 0.9, 8, dtype=np.float32)[:, None])
    found = compare(heated(1.0), heated(by), far)
    (out,) = found.outputs
    assert out.logits_db == pytest.approx(20, abs=0.3) and found.logits_db == out.logits_db
    assert out.sqnr_db is not None and out.sqnr_db > 25


def test_odds_of_what_lies_between_zero_and_one() -> None:
    sigmoid = model("y = Sigmoid(x)"), model("c = Constant<value_float = 1.1>() z = Mul(x, c) y = Sigmoid(z)")
    assert compare(*sigmoid, data()).logits_db == pytest.approx(20, abs=0.01)


def test_what_is_no_probability_has_no_logits() -> None:
    found = compare(SAME, scaled(1.1), data())
    assert found.outputs[0].logits_db is None and found.logits_db == found.sqnr_db


def test_one_batch_beyond_one_and_nothing_was_a_probability() -> None:
    assert compare(SAME, scaled(1.1), data(x=np.float32([[0.5] * 4, [2.0] * 4])), batch=1).outputs[0].logits_db is None


def test_agreement_alone_lowers_the_grade() -> None:
    turn = model("i = Constant<value_ints = [1, 0]>() y = Gather<axis = 1>(x, i)", "float[N,2]", "float[N,2]")
    same = model("y = Identity(x)", "float[N,2]", "float[N,2]")
    close = np.tile(np.float32([[1.0, 1.001]]), (9, 1))  # turned round, hardly an error, and every decision changes
    found = compare(same, turn, data(same, close))
    assert found.sqnr_db is not None and found.sqnr_db > 50 and found.agreement == 0 and found.grade == 2
    assert "0.0 % of decisions agree" in found.verdict


def test_an_output_that_is_not_finite() -> None:
    broken = model("z = Constant<value_float = 0.0>() s = Relu(x) y = Div(x, s)")
    found = compare(SAME, broken, data())
    assert found.outputs[0].not_finite == (X < 0).sum()
    assert found.verdict.startswith("no longer answers like the original") and "not finite" in found.verdict
    assert found.sqnr_db == -math.inf and found.outputs[0].max_abs == math.inf
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["sqnr_db"] == "-inf"


def test_values_that_the_original_does_not_have_either() -> None:
    logs = model("y = Log(x)")
    found = compare(logs, logs, data())
    assert found.outputs[0].not_finite == 0 and found.outputs[0].values == (X > 0).sum() and found.same


def test_integers_and_several_outputs() -> None:
    def two(by: float) -> bytes:
        body = f"c = Constant<value_float = {by}>() y = Mul(x, c) k = ArgMax<axis = 1, keepdims = 0>(y)"
        return model(body, outputs=", int64[N] k")

    found = compare(two(1.0), two(-1.0), data())
    y, k = found.outputs
    assert (k.name, k.sqnr_db, k.max_abs, k.agreement) == ("k", None, None, 0.0) and y.sqnr_db is not None
    assert found.sqnr_db == y.sqnr_db and found.agreement == 0 and found.verdict.endswith("agree)")
    assert "output 'y': SQNR -6.0 dB" in found.verdict


def test_other_shapes_are_said() -> None:
    picks = "k = NonZero(m) t = Transpose(k) y = GatherND(x, t)"
    some = model(f"z = Constant<value_float = 0.0>() m = Greater(x, z) {picks}", y="float[K]")
    other = model(f"z = Constant<value_float = 0.5>() m = Greater(x, z) {picks}", y="float[K]")
    found = compare(some, other, data(), batch=40)
    assert found.outputs[0].other_shapes == 1 and found.outputs[0].values == 0 and found.grade == 2
    assert found.notes == ("output 'y' has another shape in 1 batches, left out of its numbers",)
    partly = compare(some, other, data(x=np.where(X < 0.5, -1, X).astype(np.float32)))
    assert partly.same and not partly.notes


def test_empty_outputs_are_equal() -> None:
    none = model("z = Constant<value_float = 1e9>() m = Greater(x, z) k = NonZero(m) y = Transpose(k)", y="int64[K,2]")
    found = compare(none, none, data())
    assert found.same and found.agreement is None and "no values to compare" in found.notes[0]


def test_sequences_and_maps() -> None:
    both = model("y = SequenceConstruct(x, x)", y="seq(float[N,4])")
    other = model("z = Neg(x) y = SequenceConstruct(z, x)", y="seq(float[N,4])")
    assert compare(both, both, data()).sqnr_db == math.inf
    assert compare(both, other, data()).sqnr_db == pytest.approx(10 * math.log10(2 / 4), abs=1e-4)
    running = Differences(
        Port("y", None, (None,), "seq(map(int64,tensor(float)))")
    )  # as classifiers of scikit-learn answer
    running.add([{0: 0.9, 1: 0.1}], [{0: 0.8, 1: 0.2}], {})
    found = running.finished()
    assert found.max_abs == pytest.approx(0.1) and found.sqnr_db == pytest.approx(10 * math.log10(0.82 / 0.02))
    running.add([{0: 0.9}], [{1: 0.9}], {})
    assert running.finished().other_shapes == 1
    words = Differences(Port("y", None, (None,), "seq(tensor(string))"))
    words.add([np.array(["a"])], [np.array(["b"])], {})
    assert words.finished().agreement == 0 and words.finished().sqnr_db is None


def test_an_output_of_another_rank_is_judged_when_it_runs() -> None:
    other = model("a = Constant<value_ints = [0]>() y = Unsqueeze(x, a)", y="float[1,N,4]")
    found = compare(SAME, other, data())
    assert not found.same and found.grade == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (SAME.replace(b"\x01y", b"\x01z"), "the result: has no output 'y', the other model has"),
        (SAME[:-9], "the result: onnxruntime does not load it"),
        (model("y = Cast<to = 11>(x)", y="double[N,4]"), r"output y float64\[N,4\] is y float32\[N,4\] in the orig"),
        (model("y = Identity(x)", "double[N,4]", "double[N,4]"), "input x float64"),
    ],
)
def test_signatures_that_differ(other: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        compare(SAME, other, data())
    assert "\n" not in str(caught.value)


def test_the_missing_name_is_said_both_ways() -> None:
    more = model("y = Identity(x) y2 = Identity(x)", outputs=", float[N,4] y2")
    for one, two in ((SAME, more), (more, SAME)):
        with pytest.raises(ModelError, match="has no output 'y2', the other model has; the nearest name is 'y'"):
            compare(one, two, data())


LABELS = X.argmax(1)


def test_labels_give_accuracy(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", LABELS)
    np.savez(tmp_path / "l.npz", LABELS)
    (tmp_path / "l.txt").write_text("".join(f"{label}\n" for label in LABELS))
    (tmp_path / "l.csv").write_text("file,label\n" + "".join(f"{i}.png,{label}\n" for i, label in enumerate(LABELS)))
    for labels in (LABELS, LABELS.tolist(), *(tmp_path / f"l.{kind}" for kind in ("npy", "npz", "txt", "csv"))):
        score = compare(SAME, scaled(-1.0), data(), labels=labels).score
        assert score is not None and (score.metric, score.original, score.result, score.drop) == ("accuracy", 1, 0, 1)


def test_labels_follow_the_held_out_rows() -> None:
    whole = data(seed=3)
    for labels in (LABELS, LABELS[whole.held_out.rows]):
        score = compare(SAME, SAME, whole.held_out, labels=labels).score
        assert score is not None and score.original == 1.0
    with pytest.raises(DataError, match="labels: 39 for 40 rows of arrays"):
        compare(SAME, SAME, whole.held_out, labels=LABELS[:-1])


def test_labels_for_fixed_batches_and_integer_outputs() -> None:
    picked = model("y = ArgMax<axis = 1, keepdims = 0>(x)", "float[6,4]", "int64[6]")
    score = compare(picked, picked, data(picked), labels=LABELS).score
    assert score is not None and score.original == 1.0


def test_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_metric.py").write_text(
        "def spread(outputs): return float(outputs['y'].max() - outputs['y'].min())\n"
        "def right(outputs, labels=None): return (outputs['y'].argmax(1) == labels).mean()\n"
        "def words(outputs): return 'good'\n"
        "def fails(outputs): raise KeyError('z')\n"
    )
    monkeypatch.chdir(tmp_path)
    score = compare(SAME, scaled(0.5), data(), metric="mine_metric:spread").score
    assert score is not None and score.metric == "mine_metric:spread"
    assert score.drop == pytest.approx((X.max() - X.min()) / 2)
    found = compare(SAME, scaled(-1.0), data(), metric="mine_metric:right", labels=LABELS)
    assert found.score is not None and found.score.drop == 1 and "mine_metric:right 1 before, 0 after" in found.verdict
    assert found.to_json()["score"] == {"metric": "mine_metric:right", "original": 1.0, "result": 0.0, "drop": 1.0}
    for name, message in (("words", "returned 'good'"), ("fails", "raised KeyError"), ("wrds", "name is 'words'")):
        with pytest.raises(DataError, match=message):
            compare(SAME, SAME, data(), metric=f"mine_metric:{name}")


def test_bad_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=LABELS, b=LABELS)
    flat = model("a = Constant<value_ints = [1]>() y = ReduceMean<axes = [1], keepdims = 0>(x)", y="float[N]")
    for labels, message in (
        (tmp_path / "two.npz", r"holds 2 arrays \(a, b\)"),
        (tmp_path / "no.txt", "cannot be read"),
        (3, "labels: 1 for 40 rows"),
        (np.zeros((40, 2)), "give one for each row"),
    ):
        with pytest.raises(DataError, match=message):
            compare(SAME, SAME, data(), labels=labels)
    with pytest.raises(DataError, match="no output looks like class scores"):
        compare(flat, flat, data(), labels=LABELS)


def test_synthetic_inputs_are_said() -> None:
    found = compare(SAME, SAME, open_data(None, open_session(SAME).inputs, samples=8).held_out)
    assert found.synthetic and "on synthetic inputs" in found.verdict and "2 held-out synthetic samples" in found.data
    assert found.to_json()["synthetic"] is True


F = np.dtype("float32")
PICTURE = {"x": np.zeros((1, 3, 8, 6), np.float32)}


def softmax(*shape: int) -> np.ndarray:
    raised = np.exp(RNG.standard_normal(shape)).astype(np.float32)
    return raised / raised.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("dims", "value", "axis"),
    [
        (("N", 10), np.zeros((2, 10)), -1),
        (("N", "M"), np.zeros((2, 10)), None),
        (("N", 1), np.zeros((2, 1)), None),
        (("N",), np.zeros(2), None),
        ((2, "N", 128), RNG.standard_normal((2, 1, 128)), None),
        ((1, "seqlen"), RNG.standard_normal((28, 1, 40)), -1),
        (("N", "T", 10), RNG.standard_normal((2, 5, 10)), -1),
        ((1, 84, 8400), RNG.standard_normal((1, 84, 8400)), None),
        ((26, 1, 40), softmax(26, 1, 40), -1),
        ((26, 1, 40), np.log(softmax(26, 1, 40)), -1),
        (("N", 21, "H", "W"), np.zeros((1, 21, 8, 6)), 1),
        (("N", 21, "H", "W"), np.zeros((1, 21, 4, 3)), None),
        (("N", 1, "H", "W"), np.zeros((1, 1, 8, 6)), None),
    ],
)
def test_which_outputs_are_decisions(dims: tuple, value: np.ndarray, axis: int | None) -> None:
    assert decision_axis(Port("y", F, dims), value.astype(np.float32), PICTURE) == axis
    assert decision_axis(Port("y", np.dtype("int64"), dims), value.astype(np.int64), PICTURE) is None


@pytest.mark.parametrize("time_first", [False, True])
def test_exact_sequences_merge_repeats(time_first: bool) -> None:
    def scores(*lines: str) -> np.ndarray:
        value = np.stack([np.eye(3, dtype=np.float32)[[int(c) for c in line]] for line in lines])
        return value.transpose(1, 0, 2) if time_first else value

    running = Differences(Port("y", F, (None, None, 3)))
    running.add(scores("00112", "01010"), scores("01122", "01012"), {"x": np.zeros((2, 7), np.float32)})
    found = running.finished()
    assert found.agreement == pytest.approx(7 / 10) and found.exact == 0.5
    assert merged(np.array([1, 1, 2, 1])).tolist() == [1, 2, 1] and merged(np.array([])).size == 0


def test_json_safe() -> None:
    value = {"a": (np.float32(1.5), math.inf), "b": np.array([math.nan]), 3: None, "c": np.int64(2), "d": True}
    assert json_safe(value) == {"a": [1.5, "inf"], "b": ["nan"], "3": None, "c": 2, "d": True}


def test_nothing_is_kept_without_a_metric() -> None:
    shares: list[float] = []
    found = compare(SAME, SAME, data(), batch=16, progress=shares.append)
    assert isinstance(found, Comparison) and found.score is None and shares == [0.4, 0.8, 1.0]
