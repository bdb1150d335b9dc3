"""Both sources of gradients agree: our derivative table, and onnxruntime-training's builder where its wheel can be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.cli.app import main
from onnxcompress.errors import ModelError, SettingError
from onnxcompress.model import load
from onnxcompress.training.builder import place
from onnxcompress.training.builder.place import ask, folder_of, is_set_up, set_up
from onnxcompress.training.graph import step_graph
from onnxcompress.training.parameters import parameters_of
from onnxcompress.training.sources import Source
from onnxcompress.training.targets import TEACHER, criterion, targets_of
from onnxcompress.training.teacher import Teacher
from sample_models.fetch import fetch
from sample_models.inputs import inputs

RNG = np.random.default_rng(5)
SHAKEN = 0.1
"""Noise on the weights: at the teacher's own, all gradients are rounding."""

ZERO = 1e-4
"""A gradient below this share of the largest one is rounding: a key's bias, a bias before a norm."""


@pytest.fixture(scope="module")
def side() -> Path:
    """The folder of onnxruntime-training; set up where it is missing, skipped where no wheel can be had."""
    folder = folder_of()
    if not is_set_up(folder):
        try:
            set_up(folder)
        except SettingError as error:
            pytest.skip(str(error))
    return folder


def weight(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32) * 0.3


def net(nodes: list[onnx.NodeProto], x: tuple[int, ...], constants: dict[str, np.ndarray]) -> bytes:
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


N = helper.make_node


def convolutions() -> bytes:
    """Strides, groups, depthwise, a norm, pools that overlap, activations that the builder lacks."""
    nodes = [
        N("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], name="c1"),
        N("BatchNormalization", ["c1", "s", "t", "m", "v"], ["n1"], name="n1"),
        N("HardSwish", ["n1"], ["h1"]),
        N("MaxPool", ["h1"], ["p1"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        N("Conv", ["p1", "w2"], ["c2"], group=8, pads=[1, 1, 1, 1]),
        N("HardSigmoid", ["c2"], ["h2"]),
        N("Conv", ["h2", "w3", "b3"], ["c3"], group=2, strides=[2, 2]),
        N("PRelu", ["c3", "slope"], ["h3"]),
        N("AveragePool", ["h3"], ["p3"], kernel_shape=[2, 2]),
        N("ConvTranspose", ["p3", "w4"], ["c4"], strides=[2, 2]),
        N("LeakyRelu", ["c4"], ["h4"]),
        N("GlobalAveragePool", ["h4"], ["g"]),
        N("Flatten", ["g"], ["f"]),
        N("Gemm", ["f", "w5", "b5"], ["y"], transB=1),
    ]
    constants = {
        "w1": weight(8, 3, 3, 3), "b1": weight(8), "s": weight(8) + 1, "t": weight(8), "m": weight(8),
        "v": np.abs(weight(8)) + 1, "w2": weight(8, 1, 3, 3), "w3": weight(6, 4, 2, 2), "b3": weight(6),
        "slope": weight(6, 1, 1), "w4": weight(6, 4, 2, 2), "w5": weight(5, 4), "b5": weight(5),
    }  # fmt: skip
    return net(nodes, (4, 3, 12, 12), constants)


def attention() -> bytes:
    """Embedding rows that repeat, LayerNormalization, one head, splits and slices, Erf, Softmax."""
    nodes = [
        N("MatMul", ["x", "w0"], ["e"]),
        N("LayerNormalization", ["e", "s", "t"], ["n"]),
        N("MatMul", ["n", "w1"], ["qkv"]),
        N("Split", ["qkv"], ["q", "k", "v"], axis=2),
        N("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        N("MatMul", ["q", "kt"], ["logits"]),
        N("Softmax", ["logits"], ["a"]),
        N("MatMul", ["a", "v"], ["z"]),
        N("Add", ["z", "e"], ["r"]),
        N("Erf", ["r"], ["g"]),
        N("Slice", ["g", "first", "last", "axis"], ["cut"]),
        N("Gather", ["cut", "rows"], ["picked"], axis=1),
        N("ReduceMean", ["picked"], ["y"], axes=[1], keepdims=0),
    ]
    constants = {
        "w0": weight(6, 8), "s": weight(8) + 1, "t": weight(8), "w1": weight(8, 24), "first": np.array([1]),
        "last": np.array([7]), "axis": np.array([2]), "rows": np.array([0, 2, 2]),
    }  # fmt: skip
    return net(nodes, (3, 4, 6), constants)


def gradients(model, feeds, source: Source, norms: str = "frozen", threads: int = 1):  # type: ignore[no-untyped-def]
    """Of the loss of self-distillation, away from the teacher's weights; and what the step says of their source."""
    targets, names = targets_of(model, model), parameters_of(model)
    taught = Teacher.of(model, [target.teacher for target in targets]).session.run(feeds)
    terms = criterion(targets, {n: x.shape for n, x in taught.items()}, temperature=None)
    made = step_graph(model, {n: x.shape for n, x in feeds.items()}, names, terms, norms=norms, source=source)
    rng = np.random.default_rng(0)
    arrays = {n: model.array(n) for n in names}
    shaken = {n: x * (1 + np.float32(SHAKEN) * rng.standard_normal(x.shape, np.float32)) for n, x in arrays.items()}
    found = made.open(threads=threads).run({**feeds, **shaken, **{f"{TEACHER}{n}": x for n, x in taught.items()}})
    return {n: found[f"gradient/{n}"] for n in names}, made.source


def agree(one: dict[str, np.ndarray], other: dict[str, np.ndarray], tolerance: float = 1e-3) -> None:
    most = max(float(np.abs(g).max(initial=0)) for g in one.values())
    assert most > 0
    off = {
        n: float(np.abs(g - other[n]).max(initial=0)) / max(float(np.abs(g).max(initial=0)), ZERO * most)
        for n, g in one.items()
    }
    wrong = {n: round(share, 5) for n, share in off.items() if share > tolerance}
    assert not wrong, wrong


@pytest.mark.parametrize("made", [convolutions, attention])
@pytest.mark.parametrize("norms", ["frozen", "training"])
def test_both_sources_agree_on_made_nets(side: Path, made, norms: str) -> None:  # type: ignore[no-untyped-def]
    model = load(made())
    shape = next(port.shape for port in Teacher.of(model, ["y"]).session.inputs)
    x = RNG.normal(size=shape).astype(np.float32)
    own, said = gradients(model, {"x": x}, Source("own"), norms)
    other, told = gradients(model, {"x": x}, Source("builder", str(side)), norms)
    assert "derivative table" in said
    assert "builder" in told
    agree(own, other)


@pytest.mark.fetch
@pytest.mark.parametrize("name", ["ppocr-cls", "minilm", "ppocr-rec"])
def test_both_sources_agree_on_real_models(side: Path, name: str) -> None:
    model, feeds = load(fetch(name)), inputs(name, 2)
    own, _ = gradients(model, feeds, Source("own"))
    other, _ = gradients(model, feeds, Source("builder", str(side)))
    agree(own, other)


def test_a_builder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="setup-training"):
        gradients(load(attention()), {"x": weight(3, 4, 6)}, Source("builder", str(tmp_path)))


def test_set_up_refuses_what_is_no_wheel_of_it(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no such file"):
        set_up(tmp_path / "side", tmp_path / "missing.whl")
    (tmp_path / "other.whl").write_bytes(b"no wheel")
    with pytest.raises(SettingError, match="pip does not install"):
        set_up(tmp_path / "side", tmp_path / "other.whl")
    assert not (tmp_path / "side").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["other.whl"]


def test_the_verb_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["setup-training", "--wheel", str(tmp_path / "missing.whl"), "--dir", str(tmp_path / "side")])
    assert end.value.code == 2
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "side").exists()


def test_set_up_says_for_which_pythons_there_are_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.sys, "version_info", (3, 13, 0))
    with pytest.raises(SettingError, match=r"3\.8 to 3\.12 only.*3\.13.*--gradients own"):
        set_up(tmp_path / "side")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed .signal 9"),
        ("import sys; sys.exit('refused: has not been registered: Elu for node e ')", "no gradient for Elu 'e'"),
    ],
)
def test_a_worker_that_dies_or_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    (tmp_path / "worker.py").write_text(code)
    monkeypatch.setattr(place, "WORKER", tmp_path / "worker.py")
    with pytest.raises(ModelError, match=words):
        ask(tmp_path, onnx.ModelProto(), "loss", ["x"])
