"""The window of a convolution or pool, from its attributes and sizes: explicit pads, whatever auto_pad says."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcompress.training.derivatives.site import Site
from onnxcompress.training.lowering import Window
from onnxcompress.training.pen import shape_of


def window_of(at: Site, extent: Sequence[int], kernel: Sequence[int]) -> Window:
    """How the node's kernel moves over an input of these spatial sizes; the end pads reach as far as its output does.

    With ceil_mode the last window of a pool may begin within the pads that are declared and end beyond them.
    """
    rank = len(kernel)
    strides, dilations = at.attribute("strides", [1] * rank), at.attribute("dilations", [1] * rank)
    pads, kind = at.attribute("pads", [0] * 2 * rank), at.attribute("auto_pad", "NOTSET")
    begins = list(pads[:rank])
    spans = [
        (n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(shape_of(at.y)[2:], strides, dilations, kernel, strict=True)
    ]
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        total = [max(span - n, 0) for span, n in zip(spans, extent, strict=True)]
        begins = [(each + 1) // 2 if kind == "SAME_LOWER" else each // 2 for each in total]
    elif kind == "VALID":
        begins = [0] * rank
    # where stride leaves positions at the end that no window sees, the pad is negative: they are cut, and get no gradient
    ends = [max(span - n - b, 0) for span, n, b in zip(spans, extent, begins, strict=True)]
    return Window(tuple(extent), tuple(kernel), tuple(strides), tuple(dilations), tuple(begins), tuple(ends))
