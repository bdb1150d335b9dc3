"""The command line: its verbs, what each says of itself, and what becomes of an error.

The options of a verb are made when it is called, from the settings of its pass: nobody waits for what the others need.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Annotated

import typer

import onnxcompress
from onnxcompress.errors import BudgetError, OnnxCompressError

DONE, MISSED, BAD, INTERRUPTED = 0, 1, 2, 130

VERBS = {
    "making": {
        "prune": "Remove whole channels, repair what is left, train it where asked, and compare the result with the original.",
        "sparsify": "Set single weights to zero; the file gets smaller only with an encoding that stores zeros well.",
        "cluster": "Store weights as indices into small codebooks: a file of a seventh, which runs as fast as before once it is loaded.",
        "merge": "Merge linear layers that stand side by side (norms, branches, chains) where one costs less; the outputs stay the same.",
        "factorize": (
            "Layers become chains of smaller ones (low rank, Tucker, spatial, depthwise separable), where that is faster on this CPU."
        ),
        "binarize": (
            "One bit a weight, three values, or sums of such terms; without training much accuracy is lost, and the report says how much."
        ),
        "quantize": "int8 weights and activations, where that is faster on this CPU, in a file that answers the same on every other.",
        "distill": "Fine-tune a compressed model until it answers like the one that it was made from; labels are not needed, but may help.",
        "apply": "Carry out a saved plan on the model that it was made for.",
    },
    "looking": {
        "compare": "Run two models on the same inputs and compare what they answer.",
        "inspect": "Show what a model is made of, what can be cut, and which operator froze the rest.",
        "check": "Find what is wrong with a quantized file: does it load, do its nodes fuse, does it answer the same on every CPU.",
        "benchmark": "Time models on this CPU, interleaved: latency, load time, memory, file size.",
    },
    "packing": {
        "pack": "Write a model as one packed file (.onnxz), smaller than any zip of it; unpack gives back the same bytes.",
        "unpack": "Write the model that was packed, byte for byte, with its external data.",
        "setup-training": "Put onnxruntime-training beside the stock onnxruntime, as a second source of gradients for distill --gradients.",
    },
}
"""Module here -> its verbs -> what each does."""

HOME_OF = {name: home for home, verbs in VERBS.items() for name in verbs}


def application(whole: Collection[str]) -> typer.Typer:
    """The command line with the options of the verbs in `whole`; the others are there in name."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        help="Make any exported ONNX model smaller and faster on CPU, and see on onnxruntime what it costs.",
    )
    app.callback(invoke_without_command=True)(_root)
    for home, verbs in VERBS.items():
        for name, told in verbs.items():
            app.command(name, help=told)(_command(home, name) if name in whole else _nothing)
    return app


def _command(home: str, name: str) -> Callable[..., None]:
    made: Callable[[], Callable[..., None]] = getattr(import_module(f"onnxcompress.cli.{home}"), name.replace("-", "_"))
    return made()


def _nothing() -> None:
    """Of a verb that is not called."""


def _root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        print(onnxcompress.__version__)
        raise typer.Exit(DONE)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``onnxcompress``: one line on stderr for whatever goes wrong, and the exit code."""
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # what it warns of in a damaged model, our own error says
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if not os.environ.keys() & {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"}:
        # told before numpy is loaded: its threads wait for each other on small matrices (33 CPU seconds for 54, and no later)
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    """0 done, 1 budget missed, 2 bad input or usage, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    called = [word for word in given if word in HOME_OF][:1]
    try:
        app = application(called)
        code = app(args=given, prog_name="onnxcompress", standalone_mode=False)
        return code if isinstance(code, int) else DONE
    except BudgetError as error:
        for line in str(error).splitlines():
            print(f"budget missed: {line}", file=sys.stderr)
        return MISSED
    except (OnnxCompressError, typer.TyperException) as error:
        return _say(error.format_message() if isinstance(error, typer.TyperException) else str(error))
    except BrokenPipeError:  # the reader of our output went away: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        return _say(f"{error.filename or 'the system'}: {error.strerror or error}; free space or choose another place")
    except MemoryError:
        return _say("out of memory; give fewer samples (--limit), or a machine with more")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _say(message: str) -> int:
    print(f"error: {' '.join(message.split()) or 'give a verb; see onnxcompress --help'}", file=sys.stderr)
    return BAD
