"""What inspect shows of forms: formulas, and figures that are those of the parts."""

from __future__ import annotations

from pathlib import Path

import onnxcompress
from onnxcompress.passes.factorize.forms import FORMS
from onnxcompress.report import inspection_page

MODEL = Path(onnxcompress.__file__).parents[1] / "sample_models" / "digits.onnx"


def test_forms_are_shown_with_formulas_and_figures():
    found = onnxcompress.inspect(MODEL, forms=True)
    line = next(each for each in found.forms if each.layer == "/residual1" and each.form == "spatial")
    assert line.formula == FORMS["spatial"].formula
    assert line.parameters == (32 * 32 * 9, line.ranks[0] * (32 * 3 + 32 * 3))
    assert line.macs == (64 * 32 * 32 * 9, 64 * line.parameters[1])
    titles = [each.title for each in inspection_page(found).tables]
    assert any(title.startswith("forms") for title in titles)
    assert not onnxcompress.inspect(MODEL).forms
