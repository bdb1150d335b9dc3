"""Text labels as numbers: which class of a reader's frames stands for which character, and which for none (the blank of CTC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxcompress.errors import DataError
from onnxcompress.model import Model
from onnxcompress.training.ctc import NONE

KEY = "character"
"""Of a model's metadata, where PaddleOCR's exporter leaves the characters, a line each."""


@dataclass(frozen=True)
class Alphabet:
    """classes: character -> class; blank: the class that stands for none; where: what it was read from."""

    classes: dict[str, int]
    blank: int
    where: str

    @classmethod
    def of(cls, given: str | Path | None, student: Model, classes: int) -> Alphabet | None:
        """given: a text file, a line a class; None: the model's metadata, where they have one. None where there is neither.

        An empty line is the blank. Without one it is class 0, before the first line; where one more class is left, it is the space at the
        end, as PaddleOCR has it. DataError where lines and classes do not fit.
        """
        listed = student.ir.metadata_props.get(KEY)
        if given is not None:
            lines, where = _lines(Path(given)), str(given)
        elif listed is not None:
            lines, where = listed.splitlines(), f"the model's metadata {KEY!r}"
        else:
            return None
        if "" not in lines:
            lines = ["", *lines]
        lines = [*lines, " "] if len(lines) == classes - 1 and " " not in lines else lines
        if len(lines) != classes or lines.count("") != 1:
            raise DataError(
                f"{where}: {len(lines)} signs with the blank, the output has {classes} classes; give a line for each class in their "
                "order, one empty line for the blank (without one it is the first class)"
            )
        return cls({sign: number for number, sign in enumerate(lines) if sign}, lines.index(""), where)

    def codes(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, longest] classes, NONE behind each end; DataError for a character that no class stands for."""
        found = []
        for row, text in enumerate(texts):
            wrong = next((sign for sign in text if sign not in self.classes), None)
            if wrong is not None:
                raise DataError(
                    f"labels: sample {row} is {text!r}, and {self.where} has no {wrong!r}; correct it, or give --alphabet with all of "
                    "the output's characters, or --hard 0 to learn without labels"
                )
            found.append([self.classes[sign] for sign in text])
        longest = max(1, *map(len, found))
        return np.array([[*each, *[NONE] * (longest - len(each))] for each in found], np.int64)


def frames_needed(codes: np.ndarray) -> np.ndarray:
    """[texts]: a frame a sign, and one for the blank between two equal ones."""
    there = codes != NONE
    again = there[:, 1:] & (codes[:, 1:] == codes[:, :-1])
    return np.asarray(there.sum(1) + again.sum(1))


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the alphabet cannot be read ({error}); give a text file, a character a line"
        ) from error
    return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
