"""Which options each verb has: the settings of its pass, and its own beside them."""

from __future__ import annotations

from onnxcompress import methods, passes
from onnxcompress.cli.common import FEEDING
from onnxcompress.cli.options import Option, Panel

PRUNING = Panel(lambda: passes.Prune, panel="Pruning", without=["seed"])
PLANNING = [
    Option(
        "rounds",
        "rounds",
        int,
        1,
        "cut and repair that often, a part of the amount each time (at least 1); often no better",
        "Pruning",
    ),
    Option(
        "refit",
        "refit",
        bool | None,
        None,
        "repair by least squares after each cut (default: where there is --data)",
        "Pruning",
    ),
    Option(
        "largest",
        "largest",
        bool,
        False,
        "the largest cut that still meets the budgets, instead of --amount",
        "Pruning",
        ("--largest",),
    ),
    Option("save_plan", "save_plan", str | None, None, "write what was decided, for 'onnxcompress apply'", "Output"),
    Option("dry_run", "dry_run", bool, False, "decide, show it, and write no model", "Output", ("--dry-run",)),
]
TRAINING = [
    Option(
        "epochs", "epochs", int | None, None,
        "after each round train so many epochs with the original as the teacher; no labels are needed (at least 1)", "Training",
    ),
    Option(
        "slim", "slim", float | None, None,
        "first train so many epochs with this much L1 on BatchNormalization's scales, then cut by them: Network Slimming (more than 0)",
        "Training",
    ),
]  # fmt: skip
TEACHING = Panel(lambda: methods.Distill, panel="Training", only=methods.OPTIONS)
REFIT = [option for option in PLANNING if option.name == "refit"]
DECIDING = [option for option in PLANNING if option.name in ("save_plan", "dry_run")]
SPARSIFYING = Panel(lambda: passes.Sparsify, panel="Sparsity", without=["seed"])
FACTORIZING = Panel(lambda: passes.Factorize, panel="Factors", without=["seed"])
MERGING = Panel(lambda: passes.Merge, panel="Merging")
CLUSTERING = Panel(lambda: passes.Cluster, panel="Codebooks", without=["seed"])
BINARIZING = Panel(lambda: passes.Binarize, panel="Binary weights", without=["seed"])
QUANTIZING = Panel(lambda: passes.Quantize, panel="Quantization")
MODE = Option(
    "mode",
    "mode",
    str,
    "static",
    "static: activations on grids from data; dynamic: on grids found at run time; weights: activations stay float",
    "Quantization",
)
WEIGHING = Panel(
    lambda: passes.QuantizeWeights,
    panel="Weights",
    without=["cpu", "keep", "measure", "seconds", "rounding", "dynamic", "decode"],
)
EQUALIZE = Option(
    "equalize",
    "equalize",
    bool,
    True,
    "first scale channels against each other, which changes no output",
    "Quantization",
)
DISTILLING = Panel(lambda: methods.Distill, panel="Distillation")
LEARNING = [
    Option(
        "teacher",
        "teacher",
        list[str],
        [],
        "the .onnx file that it shall answer like; several answer as one; without it --labels teach",
        "Distillation",
    ),
    Option(
        "checkpoint",
        "checkpoint",
        str | None,
        None,
        "file that is written after each epoch; where it is there, training goes on from it",
        "Distillation",
    ),
]
LOOKING = Panel(lambda: passes.Prune, panel="Channels", only=["inexact", "inner"])
SHOW_FORMS = Option(
    "forms",
    "forms",
    bool,
    False,
    "by which chains of smaller layers (see factorize) each layer could be replaced",
    "Output",
    ("--forms",),
)
WHOLE = Option(
    "whole", "whole", bool, False, "judge on all samples, not only those that are held out", "Data", ("--whole",)
)
ALL_ROWS = Option("all_rows", "all_rows", bool, False, "show every row of every table", "Output", ("--all",))
PACKING = [
    Option("entropy", "entropy", str, "ans", "code of symbols: ans, or huffman for the classic one", "Packing"),
    Option(
        "peers",
        "peers",
        bool,
        False,
        "also show gzip -9 and zstd -19 of every tensor: takes minutes",
        "Packing",
        ("--peers",),
    ),
]
TIMING = [
    Option(
        "threads", "threads", list[int], [1], "threads of onnxruntime; give it several times to measure each", "Timing"
    ),
    Option("seconds", "seconds", float, 10.0, "time of measuring, for all models together", "Timing"),
    Option("batch", "batch", int, 1, "samples run at once, where the model's first axis is free", "Timing"),
]
BENCH_DATA = [each for each in FEEDING if each.name in ("data", "limit", "seed")]
INSPECT_DATA = [each for each in FEEDING if each.name == "data"]
