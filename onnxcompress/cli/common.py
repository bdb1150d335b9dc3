"""Options that several verbs have, declared like the settings of a pass."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.cli.options import Option, budget_options, options_of
from onnxcompress.data import ImageSettings
from onnxcompress.methods import rounds
from onnxcompress.methods.distill import Distill


@dataclass(frozen=True)
class Feeding:
    """What the models are fed, and how."""

    data: Annotated[
        str | None,
        Field(description=".npz by input name, folder of .npz, .npy or images, or module:function; else synthetic"),
    ] = None
    limit: Annotated[int | None, Field(ge=1, description="samples used at most")] = None
    seed: Annotated[int, Field(ge=0, description="of the split, of what is drawn, of synthetic inputs")] = 0
    threads: Annotated[int, Field(ge=1, description="threads of onnxruntime")] = 1
    batch: Annotated[int, Field(ge=1, description="samples run at once, where the model's first axis is free")] = 8


@dataclass(frozen=True)
class Judging:
    """The user's own score."""

    labels: Annotated[
        str | None, Field(description="file with a class for each row of the data: reports the accuracy")
    ] = None
    metric: Annotated[str | None, Field(description="module:function of (outputs, labels): reports its score")] = None


@dataclass(frozen=True)
class Writing:
    """What is written beside the model."""

    json: Annotated[str | None, Field(description="write the report as JSON to this file; - for standard output")] = (
        None
    )
    html: Annotated[
        str | None,
        Field(description="write it as one HTML page, with charts, that needs no other file; -: as for --json"),
    ] = None
    junit: Annotated[
        str | None, Field(description="write budgets and findings as JUnit's test cases; -: as for --json")
    ] = None
    quiet: Annotated[bool, Field(description="print the first line only")] = False


FEEDING = options_of(Feeding, panel="Data")
FEEDING = [
    Option(**{**vars(each), "flags": ("--limit", "--samples")}) if each.name == "limit" else each for each in FEEDING
]
IMAGES = options_of(ImageSettings, prefix="image_", panel="Images")
JUDGING = options_of(Judging, panel="Data")
WRITING = [
    Option(**{**vars(each), "flags": ("--quiet", "-q")}) if each.name == "quiet" else each
    for each in options_of(Writing, panel="Output")
]
BUDGETING = budget_options()
OUTPUT = Option("output", "output", str | None, None, "the model that is written", "Output", ("--output", "-o"))

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
    *(each for each in options_of(Distill, panel="Training") if each.name in rounds.OPTIONS),
]  # fmt: skip
