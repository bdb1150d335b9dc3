"""A second process for code that may end the one it runs in: ONNX's and onnxsim's C++ aborts on some damaged graphs.

It is forked at the first call, answers one call after another until it is told to go (`forget`: it holds tens of megabytes for itself),
and is forked again where it died or went. Only Linux forks here: Windows cannot, and macOS's libraries do not survive it. There
calls run in this process, and only those crashes are refused that `CRASHES` in normalise.py knows.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

FORKS = sys.platform == "linux"
Failures = tuple[type[Exception], ...]


class Crash(RuntimeError):
    """The process died in `step`."""

    def __init__(self, step: str, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        how = signal.Signals(-code).name if code < 0 else "no answer, perhaps out of memory"
        super().__init__(f"ONNX's own code crashes on it, at the step {step!r} ({how}); is a size in it below zero?")
        self.step = step


def guarded(work: Callable[..., Any], failures: Failures, *arguments: object) -> Any:
    """`work(tell, *arguments)`, out of this process where the platform allows. All that goes over is pickled: it should be small.

    tell      the work calls it with the name of each step that it begins, so that a crash has a place
    failures  errors of the work that are handed on, as ValueError with the same text
    Raises Crash where the other process dies.
    """
    if not FORKS:
        return work(lambda step: None, *arguments)
    with _State.lock:
        worker, _State.worker = _State.worker, None  # what fails or is interrupted below is not used again
        if worker is None or not worker.idle():
            worker = Worker()
        kind, value = worker.ask(work, failures, arguments)
        _State.worker = worker
    if kind == "failed":
        raise ValueError(value)
    return value


class Worker:
    """A forked copy of this process that answers calls; it ends with this object, and nothing is left of it."""

    def __init__(self) -> None:
        self._pipe, other = Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are threads; the copy needs none of them
            self._pid = os.fork()
        if self._pid == 0:
            try:
                _serve(other)
            finally:
                os._exit(0)  # nothing of the parent's may run here: no exception handler, no exit hook, no flush
        other.close()
        self._end = weakref.finalize(self, _ended, self._pipe, self._pid)

    def idle(self) -> bool:
        """It lives and has nothing to say."""
        return not self._pipe.poll()

    def ask(self, work: Callable[..., Any], failures: Failures, arguments: tuple[object, ...]) -> tuple[str, Any]:
        """The kind of the answer ("done" or "failed") and its value. Raises Crash."""
        self._pipe.send((work, failures, arguments))
        kind, value = "step", "start"
        try:
            while kind == "step":
                kind, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise Crash(value, self._status()) from None
        return kind, value

    def _status(self) -> int:
        self._end.detach()
        self._pipe.close()
        try:
            return os.waitpid(self._pid, 0)[1]
        except ChildProcessError:  # the system or somebody else has taken note of its end
            return 0


def _ended(pipe: Connection, pid: int) -> None:
    """End a worker and take note of it: one that nobody waits for stays in the system's table. Nobody wants what it still does."""
    pipe.close()
    with contextlib.suppress(
        ChildProcessError
    ):  # in a fork of this process it is nobody's child; or it has been taken note of
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class _State:
    """One worker, one call at a time."""

    worker: Worker | None = None
    lock = threading.Lock()


def forget() -> None:
    """End the worker, after what another thread may have asked of it; the next call makes another."""
    with _State.lock:
        _State.worker = None


def _in_a_fork() -> None:
    """The worker answers the process that made it, not its other children; a thread that held the lock is not in this one."""
    _State.lock, _State.worker = threading.Lock(), None


if FORKS:
    os.register_at_fork(after_in_child=_in_a_fork)


def _serve(pipe: Connection) -> None:
    """In the copy: keep nothing of the parent's open, print nothing, answer until the pipe ends."""
    import resource

    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in (0, 1, 2, pipe.fileno()):
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))
    for standard in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), standard)
    while True:
        try:
            work, failures, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("done", work(lambda step: pipe.send(("step", step)), *arguments))
        except failures as error:
            answer = ("failed", str(error))
        pipe.send(answer)
