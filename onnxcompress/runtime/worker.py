"""A fresh process that loads one model, runs it, and prints what memory that took: ``python -m`` this file.

A process of its own, because memory once taken is not given back. It reads a JSON object on stdin (model: path, feeds:
path of an .npz, threads) and prints one on stdout (peak, base: bytes).

The peak is the kernel's high-water mark of this process' own memory (VmHWM), set back after the imports. ``ru_maxrss``
of getrusage, the fallback, is inherited over fork and exec from whoever started the process; so it is only used
where VmHWM does not exist, and is None where the module does not exist either (Windows).
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np

from onnxcompress.errors import OnnxCompressError
from onnxcompress.runtime.session import open_session

RESET_PEAK = "5"  # the value that sets VmHWM back to the present: proc(5), /proc/pid/clear_refs
RUNS = 2  # the arena has its final size after the first run; the second one shows that it stays


def peak_bytes() -> int | None:
    """The most memory that this process held at once, so far or since the mark was set back."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Measure what stdin asks for."""
    task = json.load(sys.stdin)
    with np.load(task["feeds"], allow_pickle=True) as stored:  # written by clock.py a moment ago
        feeds = {name: stored[key] for key, name in zip(stored.files, task["names"], strict=True)}
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    base = peak_bytes()
    try:
        session = open_session(task["model"], threads=task["threads"])
        for _ in range(RUNS):
            session.run(feeds)
    except OnnxCompressError as error:
        print(json.dumps({"error": str(error)}))
        return
    print(json.dumps({"peak": peak_bytes(), "base": base}))


if __name__ == "__main__":
    main()
