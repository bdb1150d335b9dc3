"""nncodec 2.1 (ISO/IEC 15938-17) and our codes at equal error: of the weights, and of the model's outputs.

    python -m benchmarks.nncodec --python PYTHON [--models NAME ...] [--steps N ...] [--samples 24] [--calibration N] [--keep]

PYTHON has nncodec installed. It codes all weights of a model at one step, in three ways: rounded; with its trellis (dependent quantization,
eight states); and that with levels chosen by rate and distortion (`lambda_scale` 1). Ours for each of its files:

- at equal error of the weights    symbols by error + λ · bits (`passes/cluster/rate.py`), one λ for all tensors as it has one step, halved
                                   until the error over all weights is theirs; the values, packed
- at equal error of the outputs    the first of a ladder of packed files of `cluster --rate container`, each 12 % larger than the one
                                   before, that answers no worse; without data, and with data where `--calibration` gives samples
- the same numbers                 what it decodes to, packed: no rate is saved here, since its trellis uses a value's neighbours

Errors of outputs are of probabilities as logits, which do not saturate. Bits are of the weights, books and tables counted; of our files
that is what they take beyond the same file with zeros in place of the weights (*rest*: graph, norms, biases), which nncodec is not given.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import onnxcompress
from benchmarks.written import RESULTS, table, write
from onnxcompress.errors import BudgetError
from onnxcompress.model import Model, load
from onnxcompress.model.edit import set_constant
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.packing import pack
from onnxcompress.passes.cluster.cluster import Cluster
from onnxcompress.passes.cluster.rate import Tensor, rated
from onnxcompress.passes.cluster.tensors import Clustered
from sample_models.fetch import fetch
from sample_models.inputs import inputs

MODELS = ("ppocr-rec", "open-nsfw")
STEPS = (-20, -26)
"""nncodec's quantization parameter: a step of 2^(qp/4), four more are one bit a weight less."""

WAYS = {"rounded": (0, 0.0), "trellis": (1, 0.0), "trellis, by rate": (1, 1.0)}
"""Its use_dq and lambda_scale."""

HALVINGS = 7

RUNG = 2 ** (1 / 6)
"""From one file of a ladder to the next."""

LOWEST, HIGHEST = 0.6, 1.5
"""Where a ladder begins, as a share of nncodec's bits, and ends."""

Row = dict[str, Any]
Weights = Mapping[str, np.ndarray]

NNCODEC = """
import json, os, sys, tempfile
import numpy as np
import nncodec.nnc as nnc
source, target, step, trellis, scale = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1", float(sys.argv[5])
weights = dict(np.load(source))
stream = os.path.join(tempfile.mkdtemp(), "w.nnc")
data = nnc.compress(weights, bitstream_path=stream, qp=step, nonweight_qp=step, use_dq=trellis, lambda_scale=scale, return_bitstream=True)
data = data[0] if isinstance(data, tuple) else data
found = nnc.decompress(bytearray(data))
found = found[0] if isinstance(found, tuple) else found
np.savez(target, **{name: np.asarray(found[name]).reshape(each.shape) for name, each in weights.items()})
print(json.dumps({"bytes": len(data)}))
"""


def main() -> int:
    """All models and ways; the page is written anew after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="where nncodec 2.1 is installed")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--steps", nargs="*", type=int, default=STEPS)
    parser.add_argument("--samples", type=int, default=24, help="natural inputs that judge")
    parser.add_argument("--calibration", type=int, default=0, help="others, for `cluster --data`")
    parser.add_argument("--keep", action="store_true", help="keep rows of the last page that this run does not replace")
    asked = parser.parse_args()
    page = RESULTS / "nncodec.json"
    rows: list[Row] = json.loads(page.read_text())["rows"] if asked.keep and page.exists() else []
    for name in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            case = Case(name, asked.samples, asked.calibration, Path(folder))
            for step in asked.steps:
                for way in WAYS:
                    row = {"model": name, "step": step, "way": way, **case.beside(asked.python, step, way)}
                    print(row, flush=True)
                    rows = [each for each in rows if _key(each) != _key(row)] + [row]
                    _report(rows)
    return 0


def _key(row: Row) -> tuple[str, int, str]:
    return row["model"], row["step"], row["way"]


class Case:
    """A model, its weights as rows of output channels, and what judges its outputs."""

    def __init__(self, name: str, samples: int, calibration: int, folder: Path) -> None:
        self.path, self.folder = fetch(name), folder
        self.model = load(self.path)
        self.found = Cluster().tensors(self.model)[0]
        data = inputs(name, samples + calibration)
        self.data = {key: values[:samples] for key, values in data.items()}
        self.weights = {f"w{number}.weight": self._rows(each) for number, each in enumerate(self.found)}
        self.size = sum(each.size for each in self.weights.values())
        self.power = sum(float(np.square(each, dtype=float).sum()) for each in self.weights.values())
        bare = self.model.with_constants({each.name: np.zeros_like(self.model.array(each.name)) for each in self.found})
        self.rest = 8 * pack(to_bytes(finished(bare)), folder / "bare.onnxz").after / self.size
        ladders = {"outputs": Ladder(self, None)}
        if calibration:
            ladders["data"] = Ladder(self, {key: values[samples:] for key, values in data.items()})
        self.ladders = ladders

    def _rows(self, each: Clustered) -> np.ndarray:
        return each.rows(self.model.array(each.name)).astype(np.float32)

    def beside(self, python: str, step: int, way: str) -> Row:
        """One file of nncodec, and ours at its errors."""
        theirs, size = self._coded(python, step, way)
        weights_db, outputs_db, bits = (
            self.weights_db(theirs),
            self.outputs_db(self._with(theirs)),
            8 * size / self.size,
        )
        row: Row = {"weights_db": weights_db, "outputs_db": outputs_db, "nncodec": bits, "same": self._packed(theirs)}
        row |= {"ours": self._at_equal_weights(weights_db), "rest": self.rest}
        for name, ladder in self.ladders.items():
            row[f"ours_{name}"], row[f"ours_{name}_db"] = ladder.reaching(outputs_db, bits)
        return row

    def _coded(self, python: str, step: int, way: str) -> tuple[Weights, int]:
        source, target = self.folder / "weights.npz", self.folder / "decoded.npz"
        np.savez(source, allow_pickle=False, **self.weights)
        trellis, scale = WAYS[way]
        command = [python, "-c", NNCODEC, str(source), str(target), str(step), str(trellis), str(scale)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        with np.load(target) as decoded:
            return dict(decoded), json.loads(done.stdout.splitlines()[-1])["bytes"]

    def weights_db(self, values: Weights) -> float:
        """SQNR over all weights."""
        noise = sum(float(np.square(each - values[name], dtype=float).sum()) for name, each in self.weights.items())
        return float(10 * np.log10(self.power / noise))

    def outputs_db(self, result: Model | Path) -> float:
        """SQNR of the worst output, probabilities as logits."""
        told = onnxcompress.compare(self.model, result, data=self.data).logits_db
        assert told is not None
        return told

    def _with(self, values: Weights) -> Model:
        graph = self.model.ir.clone()
        for each, rows in zip(self.found, values.values(), strict=True):
            moved = rows.reshape(each.shape[each.axis], *np.delete(each.shape, each.axis))
            set_constant(graph, each.name, np.ascontiguousarray(np.moveaxis(moved, 0, each.axis)).astype(np.float32))
        return self.model.edited(graph)

    def _packed(self, values: Weights) -> float:
        """Bits a weight of a packed file of these alone."""
        kept = [numpy_helper.from_array(each.astype(np.float32), name) for name, each in values.items()]
        onnx.save(helper.make_model(helper.make_graph([], "g", [], [], kept)), self.folder / "values.onnx")
        return 8 * pack(self.folder / "values.onnx", self.folder / "values.onnxz").after / self.size

    def _at_equal_weights(self, decibel: float) -> float | None:
        """Bits a weight of ours whose weights are no worse: the largest λ that a search finds."""
        near, best = 2 * np.log(2) * self.power / self.size * 10 ** (-decibel / 10), None
        low, high = near / 4, near * 4
        for _ in range(HALVINGS):
            price = float(np.sqrt(low * high))
            found = {name: rated(Tensor(rows.astype(float)), price) for name, rows in self.weights.items()}
            values = {name: each.books.values(each.symbols) for name, each in found.items()}
            good = self.weights_db(values) >= decibel
            low, high, best = (price, high, values) if good else (low, price, best)
        return None if best is None else self._packed(best)


class Ladder:
    """Packed files of a model, each made and judged when it is asked for."""

    def __init__(self, case: Case, data: Weights | None) -> None:
        self._case, self._data, self._made = case, data, dict[int, tuple[float, float]]()

    def reaching(self, decibel: float, bits: float) -> tuple[float | None, float | None]:
        """Bits a weight of the smallest file that answers no worse, and its SQNR; None where none has so few as HIGHEST · `bits`."""
        for rung in range(self._rung(LOWEST * bits), self._rung(HIGHEST * bits) + 1):
            if rung not in self._made:
                self._made[rung] = self._file(RUNG**rung + self._case.rest)
            if self._made[rung][1] >= decibel:
                return self._made[rung]
        return None, None

    def _rung(self, bits: float) -> int:
        return int(np.ceil(np.log(bits) / np.log(RUNG)))

    def _file(self, bits: float) -> tuple[float, float]:
        """Bits a weight beyond the rest, and SQNR, of a file of at most so many bits a weight in all."""
        case, target = self._case, self._case.folder / "ours.onnxz"
        size = bits * case.size / 8
        try:
            onnxcompress.cluster(case.path, data=self._data, rate="container", target_size=size).save(target)
        except BudgetError:
            return bits, -np.inf
        found = 8 * target.stat().st_size / case.size - case.rest, case.outputs_db(target)
        print(case.path.stem, "without data" if self._data is None else "with data", found, flush=True)
        return found


HEADS = ("model", "step", "nncodec's way", "SQNR of weights dB", "of outputs", "its bits", "the same numbers packed")
OURS = (
    "ours, equal weights",
    "ratio",
    "ours, equal outputs",
    "ratio",
    "our SQNR dB",
    "with data",
    "ratio",
    "its SQNR dB",
)


def _report(rows: Sequence[Row]) -> None:
    cells = [
        [
            *(row["model"], row["step"], row["way"]),
            *(_number(row[key], 1) for key in ("weights_db", "outputs_db")),
            *(_number(row[key], 3) for key in ("nncodec", "same")),
            *_beside(row, "ours"),
            *(*_beside(row, "ours_outputs"), _number(row.get("ours_outputs_db"), 1)),
            *(*_beside(row, "ours_data"), _number(row.get("ours_data_db"), 1)),
        ]
        for row in rows
    ]
    about = (__doc__ or "").split("\n\n", 2)[2].strip()
    rest = ", ".join(f"{name} {bits:.3f}" for name, bits in {row["model"]: row["rest"] for row in rows}.items())
    parts = [about, f"Rest, bits a weight: {rest}.", table((*HEADS, *OURS), cells)]
    write("nncodec", "Beside nncodec, at equal error", parts, {"rows": rows})


def _beside(row: Row, key: str) -> tuple[str, str]:
    """Our bits, and how many times nncodec's that is."""
    bits = row.get(key)
    return _number(bits, 3), _number(None if bits is None else bits / row["nncodec"], 3)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
