"""What both sides of benchmarks/training.py share: steps on command, timed one by one. Nothing but Python is imported.

Standard input: a number of steps a line. Standard output: a line of JSON for each, with seconds of each step (wall, CPU) and the
peak of resident memory until then, in bytes.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any


def peak() -> int:
    """Bytes, of this process since it was started (ru_maxrss would be the parent's)."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) << 10 if found else 0


class Meter:
    """Call it after every step; it waits for the next command where the last one is carried out.

    facts: what the first answer also holds
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts, self.left = facts, 0
        self.taken: list[tuple[float, float]] = []
        self.then = (0.0, 0.0)

    def __call__(self, *_: object) -> None:
        """A step is done. SystemExit where no more commands come."""
        now = (time.perf_counter(), time.process_time())
        if self.left:
            self.taken.append((now[0] - self.then[0], now[1] - self.then[1]))
            self.left -= 1
        if not self.left:
            told = {
                **self.facts,
                "wall": [wall for wall, _ in self.taken],
                "cpu": [cpu for _, cpu in self.taken],
                "peak": peak(),
            }
            print(json.dumps(told), flush=True)
            line = sys.stdin.readline()
            if not line:
                raise SystemExit(0)
            self.facts, self.taken, self.left = {}, [], int(line)
        self.then = (time.perf_counter(), time.process_time())
