"""`keep`: weights that a user protects, by name or pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

from onnxcompress.errors import SettingError, nearest


def protected(patterns: Sequence[str], names: Collection[str], what: str) -> set[str]:
    """Those of `names` that a pattern matches; SettingError for a pattern that matches none, with the nearest name.

    what  the names in words, for the message
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not matched:
            raise SettingError(f"--keep {pattern!r} matches no {what}; {nearest(pattern, names)}")
        found |= matched
    return found
