"""Constants that are let go of are read again as they were, and a run that lets go gives the same result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxcompress
from onnxcompress import run as loop
from onnxcompress.errors import ModelError
from onnxcompress.model import load
from onnxcompress.model.save import to_bytes
from onnxcompress.weights import filed

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose constants are all worth letting go of, but those too small to stand beside the message."""
    monkeypatch.setattr(filed, "LEAST_LET_GO", 0)
    path = tmp_path / "digits.onnx"
    path.write_bytes(DIGITS.read_bytes())
    return path


def let_go_of(path: Path) -> tuple[filed.ir.TensorProtocol, np.ndarray]:
    """The largest constant, let go of, and a copy of its values."""
    tensors = [value.const_value for value in load(path).initializers.values() if value.const_value is not None]
    tensor = max(tensors, key=lambda each: each.nbytes)
    before = tensor.numpy().copy()
    filed.let_go(tensor)
    assert tensor.raw._seen() is None  # nobody holds them
    return tensor, before


def test_values_are_read_again_and_shared_while_somebody_holds_them(digits: Path):
    tensor, before = let_go_of(digits)
    again = tensor.numpy()
    assert again.dtype == before.dtype
    assert np.array_equal(again, before)
    assert tensor.numpy() is again
    del again
    assert tensor.raw._seen() is None


def test_a_file_that_has_changed_or_gone_is_an_error(digits: Path):
    tensor, _ = let_go_of(digits)
    digits.write_bytes(b"\0" * digits.stat().st_size * 2)
    with pytest.raises(ModelError, match="has changed since it was loaded"):
        tensor.numpy()
    digits.unlink()
    with pytest.raises(ModelError, match="cannot be read again"):
        tensor.numpy()


def test_quantizing_a_large_file_gives_what_a_small_one_gives(digits: Path, monkeypatch: pytest.MonkeyPatch):
    """Weights let go of after each pass, and the original's fed where both are compared."""
    settings = {"rounding": "nearest", "measure": False, "calibration": "minmax"}
    usual = onnxcompress.quantize(DIGITS.read_bytes(), **settings)
    monkeypatch.setattr(loop, "LARGE", 0)
    found = onnxcompress.quantize(digits, **settings)
    assert to_bytes(found.model.ir) == to_bytes(usual.model.ir)
    assert found.comparison is not None
    assert found.comparison.sqnr_db == pytest.approx(usual.comparison.sqnr_db, abs=0.01)
    assert any(
        value.const_value.raw._seen() is None
        for value in found.original.initializers.values()
        if isinstance(value.const_value, filed.ir.LazyTensor)
    )
    assert found.original.fingerprint == usual.original.fingerprint
