"""Sessions: ports, runs, and onnxruntime's exceptions as one line of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxcompress.runtime.session
from onnxcompress.errors import DataError, ModelError
from onnxcompress.runtime.session import LONGEST_REASON, Port, open_session, plain_reason


def model(text: str) -> bytes:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}').SerializeToString()


PRODUCT = model("g (float[N,3] x, float[M,L] w) => (float[A,B] y, int64[2] shape) {y = MatMul(x, w) shape = Shape(y)}")
FEEDS = {"x": np.ones((2, 3), np.float32), "w": np.ones((3, 4), np.float32)}


def test_ports() -> None:
    session = open_session(PRODUCT)
    assert session.inputs == [
        Port("x", np.dtype("float32"), ("N", 3), "tensor(float)"),
        Port("w", np.dtype("float32"), ("M", "L"), "tensor(float)"),
    ]
    assert [str(port) for port in session.outputs] == ["y float32[A,B]", "shape int64[2]"]
    assert session.inputs[0].rank == 2 and not session.inputs[0].static and session.outputs[1].static


def test_run_all_or_some() -> None:
    session = open_session(PRODUCT)
    both = session.run(FEEDS)
    assert list(both) == ["y", "shape"] and both["y"].tolist() == [[3.0] * 4] * 2
    assert list(session.run(FEEDS, ["shape"])) == ["shape"]
    assert list(open_session(PRODUCT, outputs=["shape"]).run(FEEDS)) == ["shape"]


def test_path_bytes_and_metadata(tmp_path: Path) -> None:
    proto = onnx.load_from_string(PRODUCT)
    onnx.helper.set_model_props(proto, {"character": "a\nb"})
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    for given in (path, str(path), path.read_bytes()):
        assert open_session(given).metadata == {"character": "a\nb"}
    assert open_session(path).name == str(path)


@pytest.mark.parametrize(
    ("feeds", "kind", "message"),
    [
        ({"x": FEEDS["x"]}, DataError, r"m.onnx: nothing is given for the input w float32\[M,L\]"),
        ({**FEEDS, "z": FEEDS["x"]}, DataError, "no input is called 'z'"),
        ({**FEEDS, "x": np.ones((2, 4), np.float32)}, DataError, r"takes x float32\[N,3\].* not x float32\[2, 4\]"),
        ({**FEEDS, "x": np.ones((2, 3))}, DataError, "x float64"),
        ({**FEEDS, "w": np.ones((5, 4), np.float32)}, ModelError, r"fails on .*w float32\[5, 4\].*MatMul.*mismatch"),
    ],
)
def test_failing_runs(
    feeds: dict[str, np.ndarray], kind: type[Exception], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_session(PRODUCT, name="m.onnx").run(feeds)
    assert "\n" not in str(caught.value) and "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_weights_read_as_they_are_given_answer_the_same(tmp_path: Path) -> None:
    digits = Path(__file__).parents[2] / "sample_models" / "digits.onnx"
    x = np.load(digits.with_suffix(".npz"))["image"][:4]
    written = {given: tmp_path / f"{given}.onnx" for given in (False, True)}
    found = [open_session(digits, as_given=given, optimised_to=at).run({"image": x}) for given, at in written.items()]
    for name, y in found[0].items():
        np.testing.assert_allclose(found[1][name], y, rtol=1e-4, atol=1e-4 * np.abs(y).max())
    laid_out = {given: {node.domain for node in onnx.load(at).graph.node} for given, at in written.items()}
    assert "com.microsoft.nchwc" not in laid_out[True]


def test_unknown_output() -> None:
    with pytest.raises(ModelError, match="no output is called 'shap'; the nearest name is 'shape'"):
        open_session(PRODUCT).run(FEEDS, ["shap"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "No graph|ModelProto"),
        (b"not onnx", "rotobuf parsing failed"),
        (PRODUCT[:-20], "rotobuf parsing failed"),
        (model("g (float[N] x) => (float[N] y) {y = Foo(x)}"), "No Op registered for Foo"),
    ],
)
def test_failing_loads(tmp_path: Path, content: bytes, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    for given in (path, content):
        with pytest.raises(ModelError, match=message) as caught:
            open_session(given, name="bad.onnx")
        assert str(caught.value).startswith("bad.onnx: onnxruntime does not load it: ")
        assert "\n" not in str(caught.value) and "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_missing_file() -> None:
    with pytest.raises(ModelError, match=r"no/such.onnx: onnxruntime does not load it: File doesn't exist"):
        open_session("no/such.onnx")


def test_what_is_not_a_tensor() -> None:
    session = open_session(model("g (float[N] x) => (seq(float[N]) y) {y = SequenceConstruct(x, x)}"))
    assert session.outputs[0].dtype is None and session.outputs[0].type == "seq(tensor(float))"
    given = session.run({"x": np.ones(2, np.float32)})["y"]
    assert [item.tolist() for item in given] == [[1, 1], [1, 1]]


def test_noise_is_taken_away_and_the_reason_stays() -> None:
    raw = (
        "[ONNXRuntimeError] : 1 : FAIL : /a/b/graph.cc:1234 onnxruntime::Graph::Graph(const std::string&, bool) "
        "Node (n1) has input size 0\n not in range [min=1, max=1]."
    )
    assert plain_reason(Exception(raw)) == "Node (n1) has input size 0 not in range [min=1, max=1]"
    assert plain_reason(Exception("")) == "Exception"
    assert len(plain_reason(Exception("x" * 10_000))) == LONGEST_REASON


def test_sessions_are_made_nowhere_else() -> None:
    package = Path(onnxcompress.runtime.session.__file__).parents[1]
    files = {path: path.read_text() for path in package.rglob("*.py")}
    makers = {path.relative_to(package).as_posix() for path, text in files.items() if "InferenceSession(" in text}
    assert makers == {"runtime/session.py"}


def test_the_same_bits_each_time() -> None:
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in FEEDS.items()}
    first, second = (open_session(PRODUCT).run(feeds)["y"] for _ in range(2))
    assert first.tobytes() == second.tobytes()
