"""The structures that may stand for a layer, by name. To add one: a class in a file here, and its line in FORMS."""

from __future__ import annotations

from onnxcompress.passes.factorize.forms.canonical import Canonical, SplitCanonical
from onnxcompress.passes.factorize.forms.fire import Fire
from onnxcompress.passes.factorize.forms.form import Factors, Form, Part, Ranks, Shape
from onnxcompress.passes.factorize.forms.grouped import Grouped
from onnxcompress.passes.factorize.forms.lowrank import LowRank, SqueezeIn
from onnxcompress.passes.factorize.forms.separable import Blueprint, Separable
from onnxcompress.passes.factorize.forms.shrunk import Shrunk
from onnxcompress.passes.factorize.forms.spatial import Across, Spatial
from onnxcompress.passes.factorize.forms.stacked import Stacked
from onnxcompress.passes.factorize.forms.tucker import Tucker

FORMS: dict[str, Form] = {
    each.name: each
    for each in (
        LowRank(),
        SqueezeIn(),
        Tucker(),
        Spatial(),
        Across(),
        Separable(),
        Blueprint(),
        SplitCanonical(),
        Fire(),
        Stacked(),
        Grouped(),
        Shrunk(),
        Canonical(),
    )
}

__all__ = ["FORMS", "Factors", "Form", "Part", "Ranks", "Shape"]
