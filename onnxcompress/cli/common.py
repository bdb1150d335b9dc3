"""Options that several verbs have, declared like the settings of a pass."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.cli.options import Option, budget_options, instance, options_of
from onnxcompress.data import ImageSettings

Given = dict[str, Any]
"""Name of each option -> what was given."""


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


def running(given: Given) -> Given:
    """Fields of `run.How`, checked."""
    feeding, judging = instance(Feeding, FEEDING, given), instance(Judging, JUDGING, given)
    ways = {name: value for name, value in {**vars(feeding), **vars(judging)}.items() if name != "data"}
    return {**ways, "images": instance(ImageSettings, IMAGES, given)}


def budgets(given: Given) -> Given:
    """Those that were given."""
    return {option.name: given[option.name] for option in BUDGETING if given[option.name] is not None}


def writing(given: Given) -> Writing:
    """What shall be written beside the model."""
    found: Writing = instance(Writing, WRITING, given)
    return found
