"""What a run is charged with: its children's CPU and memory too, whether it waited for them or not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.quantize_peers import children, cpu_seconds, peak, private

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of running children")

HELD = 64 << 20
BUSY = 0.5
CHILD = f"""
import time
freed = bytearray(b"x") * {HELD}
del freed
held = bytearray(b"x") * {HELD}
while time.process_time() < {BUSY}: pass
print("ready", flush=True)
input()
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """It has been busy, holds memory, and waits for a line."""
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=-1, stdout=-1, text=True) as started:
        assert started.stdin and started.stdout
        started.stdout.readline()
        yield started
        started.kill()


def test_cpu_of_a_child_is_counted_while_it_runs_when_it_has_ended_and_when_it_was_waited_for() -> None:
    before = cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=-1, stdout=-1, text=True) as started:
        assert started.stdin and started.stdout
        started.stdout.readline()
        assert started.pid in children()
        running = cpu_seconds()
        started.stdin.write("\n")
        started.stdin.flush()
        started.stdout.read()  # ends with the process, which nobody has waited for
        ended = cpu_seconds()
    waited = cpu_seconds()
    assert started.pid not in children()
    assert before + 0.9 * BUSY < running < before + 20 * BUSY
    assert running <= ended + 0.05
    assert ended - 0.05 <= waited < ended + 0.9 * BUSY  # moved from one count to the other, not in both


def test_memory_of_a_child_is_counted_while_it_runs(child: subprocess.Popen[str]) -> None:
    with_child = peak()
    assert HELD <= private(child.pid) < 3 * HELD
    child.kill()
    child.wait()
    assert private(child.pid) == 0
    assert with_child - peak() > HELD // 2


def test_a_forked_copy_is_charged_with_what_it_does_not_share() -> None:
    from onnxcompress.model.guard import FORKS, forget, guarded

    if not FORKS:
        pytest.skip("no fork on this platform")
    forget()
    shared = bytearray(b"x") * HELD
    before = set(children())
    guarded(_nothing, ())
    (made,) = set(children()) - before
    assert private(made) < HELD // 2
    del shared
    forget()


def _nothing(tell: object) -> None:
    """A call of the guard."""
