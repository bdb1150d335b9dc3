"""CTC beside sums over all alignments in float64, its gradient beside differences, and text labels as what is learned."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxcompress.data import Data, open_data
from onnxcompress.errors import DataError
from onnxcompress.model import Model, load
from onnxcompress.model.save import to_bytes
from onnxcompress.runtime.session import open_session
from onnxcompress.training.ctc import NONE, collapsed, ctc, log_likelihood
from onnxcompress.training.graph import LOSS, step_graph
from onnxcompress.training.judge import LabelJudge
from onnxcompress.training.labels import labelled
from onnxcompress.training.pen import Pen
from onnxcompress.training.reverse import differentiate
from onnxcompress.training.targets import LABELS as GIVEN
from onnxcompress.training.targets import TEACHER, criterion
from tests.training.check import close, run_float64, run_stock

LABELS = {0: [[1, 2, 2], [2], [], [3, 1, 3, 1, 3]], 2: [[0, 1, 1], [3, 0]]}
"""Blank -> labels of lines; the fifth of the first needs more frames than there are."""

FRAMES, CLASSES = 4, 4


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def by_alignments(log_q: np.ndarray, label: list[int], blank: int) -> float:
    """log of the sum over all paths through the classes that spell the label."""
    paths = [p for p in product(range(log_q.shape[1]), repeat=len(log_q)) if collapsed(np.array(p), blank) == label]
    return float(np.logaddexp.reduce([log_q[np.arange(len(log_q)), list(path)].sum() for path in paths] or [-np.inf]))


def padded(labels: list[list[int]]) -> np.ndarray:
    longest = max(map(len, labels))
    return np.array([[*each, *[NONE] * (longest - len(each))] for each in labels], np.float64)


def written(labels: np.ndarray, blank: int, kind: type) -> ir.Model:
    """The loss and its gradient by the scores."""
    op = Pen(ir.Model(ir.Graph([], [], nodes=[], name="ctc", opset_imports={"": 17}), ir_version=8))
    x = op.input("x", (FRAMES, len(labels), CLASSES), kind)
    value = ctc(op, x, op.input("labels", labels.shape, kind), blank=blank)
    op.graph.graph.outputs[:] = [value, op.Identity(differentiate(op, value, [x])[x])]
    return op.graph


@pytest.mark.parametrize("blank", LABELS)
def test_ctc_is_the_sum_over_all_alignments(blank: int) -> None:
    labels = padded(LABELS[blank])
    x = np.random.default_rng(7).normal(size=(FRAMES, len(labels), CLASSES))

    def wanted(scores: np.ndarray) -> float:
        lines = [by_alignments(log_softmax(scores[:, n]), each, blank) for n, each in enumerate(LABELS[blank])]
        return -sum(each for each in lines if np.isfinite(each)) / (FRAMES * len(labels))

    value, gradient = run_float64(written(labels, blank, np.float64), {"x": x, "labels": labels})
    assert float(value) == pytest.approx(wanted(x), rel=1e-12)
    for n, each in enumerate(LABELS[blank]):
        assert log_likelihood(log_softmax(x[:, n]), each, blank) == pytest.approx(
            by_alignments(log_softmax(x[:, n]), each, blank), rel=1e-12
        )
    slope = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        move = np.zeros_like(x)
        move[at] = 1e-5
        slope[at] = (wanted(x + move) - wanted(x - move)) / 2e-5
    close(gradient, slope, 1e-8, "by the scores")
    stock = run_stock(
        written(labels, blank, np.float32), {"x": x.astype(np.float32), "labels": labels.astype(np.float32)}
    )
    for one, two in zip(stock, (value, gradient), strict=True):
        close(one, two, 1e-5, "stock")


X = np.random.default_rng(0).normal(size=(8, 2, 5)).astype(np.float32)
TEXTS = ["ab", "", "c", "aab", "abc", "cc", "bab", "b"]

ENDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "classes second": [("Softmax", {"axis": 1})],
    "frames first": [("Transpose", {"perm": [2, 0, 1]})],
    "in one row": [("Transpose", {"perm": [0, 2, 1]}), ("Reshape", {"to": [-1, 4]}), ("Softmax", {}), ("Reshape", {"to": [-1, 5, 4]})],
}  # fmt: skip
"""How frames of scores [lines, classes, frames] leave a reader."""


def reader(end: str, signs: str | None = "a\nb\nc") -> Model:
    rng = np.random.default_rng(1)
    held = [numpy_helper.from_array(rng.normal(size=(4, 2, 1)).astype(np.float32), "w")]
    nodes = [helper.make_node("Conv", ["x", "w"], ["v0"])]
    for number, (op_type, given) in enumerate(ENDS[end]):
        more = [f"to{number}"] if "to" in given else []
        held += [numpy_helper.from_array(np.array(given["to"]), name) for name in more]
        given = {name: value for name, value in given.items() if name != "to"}
        nodes.append(helper.make_node(op_type, [f"v{number}", *more], [f"v{number + 1}"], **given))
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes, "reader", [helper.make_tensor_value_info("x", 1, ["N", 2, 5])], [helper.make_tensor_value_info("y", 1, None)], held
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if signs is not None:
        helper.set_model_props(made, {"character": signs})
    return load(made)


def opened(model: Model) -> Data:
    return open_data({"x": X}, open_session(to_bytes(model.ir)).inputs)


@pytest.mark.parametrize("end", ENDS)
def test_text_is_learned_from_frames_as_they_leave_the_reader(end: str) -> None:
    """The loss of the step graph, what the judge says, and log_likelihood of the answers are one number."""
    model = reader(end)
    made = labelled(model, TEXTS, opened(model), smoothing=0.0, weight=1.0)
    assert not isinstance(made, str)
    target, labels = made
    assert target.loss == "ctc" and "3 characters" in target.why
    right = LabelJudge(target, labels, opened(model), 3, 1)(model, float)
    y = open_session(to_bytes(model.ir)).run({"x": X})["y"].astype(np.float64)
    lines = {"classes second": (0, 2, 1), "frames first": (1, 0, 2), "in one row": (0, 1, 2)}[end]
    scores = np.transpose(y, lines)
    log_q = log_softmax(scores) if end == "frames first" else np.log(scores)
    spelled = [["abc".index(sign) + 1 for sign in text] for text in TEXTS]
    each = [log_likelihood(one, two) for one, two in zip(log_q, spelled, strict=True)]
    assert right.likelihood == pytest.approx(np.mean(each), rel=1e-5)
    hits = [collapsed(one.argmax(-1)) == two for one, two in zip(log_q, spelled, strict=True)]
    assert right.accuracy == np.mean(hits)
    given = labels.values(np.arange(8))
    made_graph = step_graph(model, {"x": X.shape}, ["w"], criterion([target], {GIVEN: given.shape}, temperature=None))
    loss = made_graph.open().run({"x": X, "w": model.array("w"), f"{TEACHER}{GIVEN}": given})[LOSS]
    assert float(loss) == pytest.approx(-np.mean(each) / 5, rel=1e-4)


@pytest.mark.parametrize(
    ("texts", "lines", "said"),
    [
        ([*TEXTS[:7], "bd"], None, "sample 7 is 'bd', and the model's metadata 'character' has no 'd'"),
        ([*TEXTS[:7], "abcab!"], "a\nb\n!\n", "sample 2 is 'c'"),
        (TEXTS, "a\nb\n", "'c'"),
        (TEXTS, "a\n", "2 signs with the blank, the output has 4 classes"),
        (TEXTS, "a\n\n\nb\n", "4 signs with the blank, the output has 4 classes; give a line"),
        ([*TEXTS[:7], "aaab"], None, "sample 7 is 'aaab', which takes 6 frames"),
    ],
)
def test_text_that_cannot_be_learned(texts: list[str], lines: str | None, said: str, tmp_path: Path) -> None:
    model = reader("classes second")
    given = None if lines is None else tmp_path / "alphabet.txt"
    if given is not None and lines is not None:
        given.write_text(lines)
    with pytest.raises(DataError, match=said.replace("[", r"\[")):
        labelled(model, texts, opened(model), smoothing=0.0, weight=1.0, alphabet=None if given is None else str(given))


def test_digits_are_text_where_an_alphabet_is_given(tmp_path: Path) -> None:
    """An empty line is the blank, here the last class; without any alphabet text only judges."""
    model = reader("classes second", signs=None)
    (tmp_path / "alphabet.txt").write_text("0\n7\n8\n\n")
    (tmp_path / "labels.txt").write_text("".join(f"{each}\n" for each in ("07", "7", "80", "0", "08", "78", "70", "8")))
    given = {"alphabet": str(tmp_path / "alphabet.txt"), "smoothing": 0.0, "weight": 1.0}
    found = labelled(model, tmp_path / "labels.txt", opened(model), **given)  # type: ignore[arg-type]
    assert not isinstance(found, str) and found[0].frames == (2, 3)
    np.testing.assert_array_equal(found[1].values(np.array([0, 1])), [[0, 1], [1, NONE]])
    told = labelled(model, TEXTS, opened(model), smoothing=0.0, weight=1.0)
    assert isinstance(told, str) and "give --alphabet" in told
