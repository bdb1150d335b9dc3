"""A driver: the largest cut that still meets the budgets, by halving the interval of amounts; each trial is a whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnxcompress.errors import SettingError
from onnxcompress.model import Loadable, load
from onnxcompress.passes.protocol import Pass
from onnxcompress.passes.prune.prune import Prune
from onnxcompress.result import Result
from onnxcompress.run import How, run


def largest_cut(
    model: Loadable,
    prune: Prune,
    data: Any = None,
    *,
    budgets: Mapping[str, float],
    then: Sequence[Pass] = (),
    how: How | None = None,
    trials: int = 6,
) -> Result:
    """The run with the largest `amount` (to within 2^-trials) whose budgets are met; the smallest cut tried where none is.

    Whether a larger amount does worse is assumed, as it nearly always holds; the result's own numbers are measured.
    SettingError without a budget on outputs, or with a target beside it.
    """
    if not budgets:
        raise SettingError("the largest cut needs a budget to keep; give --min-sqnr, --min-agreement or --max-drop")
    if any(target is not None for target in (prune.target_params, prune.target_macs, prune.target_size)):
        raise SettingError("give either a target or the largest cut that keeps the budgets, not both")
    loaded = load(model)
    low, high, best, last = 0.0, 1.0, None, None
    for _ in range(trials):
        amount = (low + high) / 2
        last = run(loaded, [replace(prune, amount=amount), *then], data, budgets=budgets, how=how)
        low, high, best = (amount, high, last) if last.met else (low, amount, best)
    return best or last  # type: ignore[return-value]
