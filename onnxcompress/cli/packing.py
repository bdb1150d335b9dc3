"""Verbs of packed files, and the one that fetches a second source of gradients; app.py has what they say of themselves."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from onnxcompress import packing
from onnxcompress.cli.common import OUTPUT, WRITING, writing
from onnxcompress.cli.options import Model, verb
from onnxcompress.cli.output import check_given, check_outputs, progress, show
from onnxcompress.cli.panels import ALL_ROWS, PACKING
from onnxcompress.errors import SettingError
from onnxcompress.report import packing_page
from onnxcompress.training.builder.place import PACKAGE, VERSION, folder_of, set_up


@verb(OUTPUT, PACKING, ALL_ROWS, WRITING)
def pack(model: Model, **given: Any) -> None:
    output = given["output"]
    if output is None:
        raise SettingError("no output is named; give -o small.onnxz")
    check_given(given, model, None)
    with progress(given["quiet"]) as bars:
        done = packing.pack(model, output, entropy=given["entropy"], peers=given["peers"], progress=bars)
    page = packing_page(done, whole=given["all_rows"])
    show(page, done.to_json(), writing(given), done=[f"written to {output}"])


@verb(OUTPUT)
def unpack(packed: Annotated[str, typer.Argument(help="a file of pack", show_default=False)], **given: Any) -> None:
    if given["output"] is None:
        raise SettingError("no output is named; give -o model.onnx")
    check_outputs([given["output"]], [packed])
    for path in packing.unpack(packed, given["output"]):
        print(f"written to {path}")


@verb()
def setup_training(
    wheel: Annotated[str | None, typer.Option(help="the .whl file, where there is no network")] = None,
    folder: Annotated[str | None, typer.Option("--dir", help="where to; default in the cache folder")] = None,
    **given: Any,
) -> None:
    print(f"{PACKAGE} {VERSION} works, in {set_up(folder_of(folder), wheel)}")
