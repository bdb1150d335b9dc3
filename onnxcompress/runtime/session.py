"""The only place where onnxruntime sessions are made.

Every session runs on the CPU, sequentially, with deterministic kernels, a stated number of threads and no log lines on
stderr; every exception of onnxruntime leaves as one line of this package's own errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from onnxcompress.errors import DataError, ModelError, nearest
from onnxcompress.runtime.loose import Loose, as_inputs

Feeds = Mapping[str, np.ndarray]

DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}

FATAL_ONLY = 4  # onnxruntime's severities: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal

# The thread pools of several sessions share the cores: a pool that goes on spinning after its run slows the others.
SESSION_ENTRIES = {"session.force_spinning_stop": "1"}

# What stands around the sentence in a message of onnxruntime: its name and status, source lines, signatures.
NOISE = [
    re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "),
    re.compile(r"Load model (?:from )?.*? failed[:.] ?"),
    re.compile(r"\S+\.(?:cc|h|cpp):\d+ "),
    re.compile(r"(?:onnxruntime::|static |virtual |const )[^()]*\([^)]*\)(?: const)? ?"),
    re.compile(r"Non-zero status code returned while running "),
    re.compile(r"\bStatus Message: "),
    re.compile(r"This is an invalid model\. "),
    re.compile(r"Please fix either the inputs/outputs or the model\.?"),
]
LONGEST_REASON = 300


@dataclass(frozen=True)
class Port:
    """An input or output of a model.

    dtype    numpy's; None for what is not a tensor of such a type (sequences, maps, bfloat16): see `type`
    shape    int where the model fixes the dimension, its symbol (str) or None where it does not
    type     onnxruntime's own word, such as ``tensor(float)``
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]
    type: str = ""

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def static(self) -> bool:
        """Whether the model fixes every dimension."""
        return all(isinstance(dim, int) for dim in self.shape)

    def __str__(self) -> str:
        dims = ",".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {self.dtype.name if self.dtype is not None else self.type}[{dims}]"


class Session:
    """A loaded model. Made by `open_session`."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        name: str,
        default: Sequence[str] | None,
        weights: Mapping[str, np.ndarray],
    ) -> None:
        self._session = session
        self._weights = weights  # fed at each run
        self._arrays: Mapping[str, np.ndarray] = {}  # onnxruntime reads them where they are
        self.name = name
        self.inputs = [_port(node) for node in session.get_inputs() if node.name not in weights]
        self.outputs = [_port(node) for node in session.get_outputs()]
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self._takes = {port.name for port in self.inputs}
        self._gives = [port.name for port in self.outputs]
        self._quiet = onnxruntime.RunOptions()
        self._quiet.log_severity_level = FATAL_ONLY
        self._default = self._known(default) if default is not None else self._gives

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run once; the outputs by name, all or those asked for, as numpy arrays (lists for sequences and maps).

        DataError where the feeds do not fit the inputs (names, types, static dimensions); ModelError where a node
        fails on them, with the node and its reason.
        """
        names = self._default if outputs is None else self._known(outputs)
        if feeds.keys() != self._takes:
            self._refuse_names(feeds)
        try:
            values = self._session.run(names, {**feeds, **self._weights}, self._quiet)
        except Exception as error:  # onnxruntime's exceptions have no parent of their own
            raise self._failure(error, feeds) from error
        return dict(zip(names, values, strict=True))

    def stream(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """As `run`, of tensors that hold numbers, one after the other: each is freed when the next one is asked for."""
        names = self._default if outputs is None else self._known(outputs)
        if feeds.keys() != self._takes:
            self._refuse_names(feeds)
        try:
            given = {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(x, order="C"))
                for name, x in {**feeds, **self._weights}.items()
            }
            values = self._session.run_with_ort_values(names, given, self._quiet)
        except Exception as error:  # onnxruntime's exceptions have no parent of their own
            raise self._failure(error, feeds) from error
        values.reverse()
        for name in names:
            yield name, values.pop().numpy()

    def end_profiling(self) -> Path:
        """Close the profile that `open_session(profile=...)` began; the path of its JSON file."""
        return Path(self._session.end_profiling())

    def _known(self, names: Sequence[str]) -> list[str]:
        for name in names:
            if name not in self._gives:
                raise ModelError(f"{self.name}: no output is called {name!r}; {nearest(name, self._gives)}")
        return list(names)

    def _refuse_names(self, feeds: Feeds) -> None:
        for name in feeds:
            if name not in self._takes:
                raise DataError(f"{self.name}: no input is called {name!r}; {nearest(name, self._takes)}")
        for port in self.inputs:
            if port.name not in feeds:
                raise DataError(f"{self.name}: nothing is given for the input {port}; give an array of that name")

    def _failure(self, error: Exception, feeds: Feeds) -> DataError | ModelError:
        reason = plain_reason(error)
        given = ", ".join(f"{name} {np.asarray(value).dtype}{list(np.shape(value))}" for name, value in feeds.items())
        if "while running" in str(error):
            return ModelError(f"{self.name}: fails on {given}: {reason}; give data of other shapes or values")
        takes = ", ".join(map(str, self.inputs))
        return DataError(f"{self.name}: takes {takes}, not {given}: {reason}")


def open_session(
    model: bytes | str | os.PathLike[str] | Loose,
    *,
    threads: int = 1,
    optimise: bool = True,
    outputs: Sequence[str] | None = None,
    name: str | None = None,
    profile: Path | None = None,
    optimised_to: Path | None = None,
    early: bool = False,
    lean: bool = False,
    as_given: bool = False,
) -> Session:
    """Load a model for running on the CPU.

    model      the bytes of an ONNX file, its path (needed for external data and over 2 GB), or a graph with its arrays
    threads    intra-op threads; one gives the same bits on every run
    optimise   False keeps the graph as it stands, node by node
    outputs    what `Session.run` returns where it is not asked for less; default all
    name       how errors call the model; default its path
    profile    beginning of the file name of onnxruntime's profile; None for no profile
    optimised_to  where onnxruntime writes the graph that it will execute, for this CPU
    early      run each node as soon as what it reads is there, in the order of the file: outputs that need only the beginning
               of the graph come first, and what they alone read is freed
    lean       take memory value by value, not in one piece that is planned for a run: much less of it where many values leave the
               graph (of a ResNet-50's calibration 0.44 GB for 0.63), in the same time
    as_given   large weights of a Loose are fed at each run, since a session would hold a copy, and none are laid out in blocks for
               this CPU: for runs over few samples, which take as long, and half of the memory

    ModelError, one line with file and reason, where onnxruntime does not load it.
    """
    weights: Mapping[str, np.ndarray] = {}
    if as_given and isinstance(model, Loose):
        model, weights = as_inputs(model)
    arrays = model.arrays if isinstance(model, Loose) else {}
    message = model.message if isinstance(model, Loose) else model
    given = message if isinstance(message, bytes) else str(Path(message))
    shown = name or (f"model of {len(given)} bytes" if isinstance(given, bytes) else given)
    options = _options(threads, optimise, profile, optimised_to, early, as_given)
    options.enable_mem_pattern = not lean
    try:
        if arrays:
            beside = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
            options.add_external_initializers(list(arrays), beside)
        made = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no parent of their own
        raise ModelError(f"{shown}: onnxruntime does not load it: {plain_reason(error)}") from error
    session = Session(made, shown, outputs, weights)
    session._arrays = arrays
    return session


def handed_session(
    message: bytes | Path,
    arrays: Mapping[str, np.ndarray],
    options: onnxruntime.SessionOptions | None,
    providers: Sequence[Any] | None,
    *,
    name: str,
) -> onnxruntime.InferenceSession:
    """onnxruntime's own session for the user, of a message (or its path) and the initializers that lie beside it, by name.

    options, providers  onnxruntime's; None: its defaults, on the CPU
    The session reads the arrays where they are. ModelError where onnxruntime does not load it.
    """
    beside = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    if options is None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
    try:
        if beside:
            options.add_external_initializers(list(arrays), beside)
        given = str(message) if isinstance(message, Path) else message
        made = onnxruntime.InferenceSession(given, options, providers=list(providers or ["CPUExecutionProvider"]))
    except Exception as error:  # onnxruntime's exceptions have no parent of their own
        raise ModelError(f"{name}: onnxruntime does not load it: {plain_reason(error)}") from error
    made.handed = beside
    return made


def plain_reason(error: BaseException) -> str:
    """onnxruntime's message on one line, without status codes, source lines and C++ signatures."""
    text = str(error)
    for pattern in NOISE:
        text = pattern.sub("", text)
    text = " ".join(text.split()).strip(" .") or type(error).__name__
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def _options(
    threads: int, optimise: bool, profile: Path | None, optimised_to: Path | None, early: bool, as_given: bool
) -> onnxruntime.SessionOptions:
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    if as_given and optimise:  # what is left out lays convolutions out in blocks
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
    if as_given:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if early:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.use_deterministic_compute = True
    options.log_severity_level = FATAL_ONLY
    for key, value in SESSION_ENTRIES.items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if optimised_to is not None:
        options.optimized_model_filepath = str(optimised_to)
    return options


def _port(node: Any) -> Port:
    kind = DTYPES.get(node.type)
    return Port(node.name, None if kind is None else np.dtype(kind), tuple(node.shape), node.type)
