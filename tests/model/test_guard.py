"""The second process: what ends it is one line of ModelError, and the next model is read as before."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from zoo import ZOO

from onnxcompress.channels import analyse
from onnxcompress.errors import ModelError
from onnxcompress.model import load
from onnxcompress.model.guard import FORKS, Crash, forget, guarded
from onnxcompress.model.spec import violations
from onnxcompress.run import read

pytestmark = pytest.mark.skipif(not FORKS, reason="a gap of this platform: see onnxcompress/model/guard.py")

KERNEL_ABOVE_INPUT = """
<ir_version: 8, opset_import: ["" : 17]>
graph (float[N,3,4,4] x) => (float[N,a,b,c] y)
<int64[1] starts = {0}, int64[1] ends = {2}, int64[1] axes = {2}>
{ h = Conv (x, w)
  y = Slice (h, starts, ends, axes) }
"""


def aborting() -> onnx.ModelProto:
    """A Conv larger than its input, then a Slice: ONNX's shape inference ends the process it runs in."""
    model = onnx.parser.parse_model(KERNEL_ABOVE_INPUT)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((5, 3, 9, 9), np.float32), "w"))
    return model


def dies(tell: Callable[[str], None], number: int) -> None:
    """A step that ends its process."""
    tell("the last step")
    os.kill(os.getpid(), number)


def children() -> set[int]:
    """Processes that this one has started and not taken note of the end of."""
    return {int(pid) for listed in Path("/proc/self/task").glob("*/children") for pid in listed.read_text().split()}


def identity(tell: Callable[[str], None], pid: int) -> bool:
    """Is this another process than `pid`?"""
    return os.getpid() != pid


def refuses(tell: Callable[[str], None]) -> None:
    """An error of the work itself."""
    raise KeyError("no such thing")


def test_a_graph_that_aborts_the_libraries_is_refused() -> None:
    for _ in range(2):
        with pytest.raises(ModelError, match="SIGABRT") as caught:
            load(aborting())
        assert "\n" not in str(caught.value)
        assert analyse(load(ZOO["conv_chain"]())).groups


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGFPE])
def test_a_crash_has_a_place_and_a_name(number: signal.Signals) -> None:
    with pytest.raises(Crash, match=f"the last step.*{number.name}"):
        guarded(dies, (), number)
    assert guarded(identity, (), os.getpid())


def test_an_error_comes_over_and_an_unforeseen_one_is_a_crash() -> None:
    with pytest.raises(ValueError, match="no such thing"):
        guarded(refuses, (KeyError,))
    with pytest.raises(Crash, match="no answer"):
        guarded(refuses, ())


def test_many_threads_take_turns() -> None:
    forget()
    names = ["conv_chain", "split_num_outputs", "focus_slices", "embedding_tied"] * 3
    with ThreadPoolExecutor(4) as pool:
        for model in pool.map(lambda name: load(ZOO[name]()), names):
            assert not violations(model)


def test_a_forked_child_gets_a_worker_of_its_own() -> None:
    load(ZOO["conv_chain"]())
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = int(not analyse(load(ZOO["conv_chain"]())).groups)
        finally:
            os._exit(status)
    load(ZOO["conv_chain"]())
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_is_left_of_a_worker_that_was_told_to_go_or_died() -> None:
    forget()
    before = children()
    load(ZOO["conv_chain"]())
    assert len(children() - before) == 1
    forget()
    assert not children() - before
    with pytest.raises(Crash):
        guarded(dies, (), signal.SIGKILL)
    assert not children() - before


def test_a_run_keeps_no_second_process() -> None:
    forget()
    before = children()
    read(onnx.parser.parse_model(KERNEL_ABOVE_INPUT.replace("Conv (x, w)", "Relu (x)")))
    assert not children() - before
