"""nncodec 2.1 (ISO/IEC 15938-17) and our codes at equal error: of the weights, and of the model's outputs.

    python -m benchmarks.nncodec --python PYTHON [--models NAME ...] [--steps N ...] [--samples 24]

PYTHON has nncodec installed. It codes all weights of a model at one step, in three ways: rounded; with its trellis (dependent quantization,
eight states); and that with levels chosen by rate and distortion (`lambda_scale` 1). Ours for each of its files:

- at equal error of the weights    symbols by error + λ · bits (`passes/cluster/rate.py`), one λ for all tensors as it has one step, halved
                                   until the error over all weights is theirs; the values, packed
- at equal error of the outputs    `cluster --rate container` without data, the target size halved likewise, saved as a packed file
- the same numbers                 what it decodes to, packed: no rate is saved here, since its trellis uses a value's neighbours

Bits are of the whole packed weights, books and tables counted; nncodec's are of its whole file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

import onnxcompress
from benchmarks.written import RESULTS, table, write
from onnxcompress.errors import OnnxCompressError
from onnxcompress.model import Model, load
from onnxcompress.model.edit import set_constant
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

Row = dict[str, Any]
Weights = Mapping[str, np.ndarray]
T = TypeVar("T")

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
    """All models and ways; the page is written anew after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="where nncodec 2.1 is installed")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--steps", nargs="*", type=int, default=STEPS)
    parser.add_argument("--samples", type=int, default=24, help="natural inputs that judge")
    parser.add_argument("--keep", action="store_true", help="keep rows of the last page that this run does not replace")
    asked = parser.parse_args()
    page = RESULTS / "nncodec.json"
    rows: list[Row] = json.loads(page.read_text())["rows"] if asked.keep and page.exists() else []
    for name in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            case = Case(name, asked.samples, Path(folder))
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

    def __init__(self, name: str, samples: int, folder: Path) -> None:
        self.path, self.folder = fetch(name), folder
        self.model = load(self.path)
        self.found = Cluster().tensors(self.model)[0]
        self.data = inputs(name, samples)
        self.weights = {f"w{number}.weight": self._rows(each) for number, each in enumerate(self.found)}
        self.size = sum(each.size for each in self.weights.values())
        self.power = sum(float(np.square(each, dtype=float).sum()) for each in self.weights.values())

    def _rows(self, each: Clustered) -> np.ndarray:
        return each.rows(self.model.array(each.name)).astype(np.float32)

    def beside(self, python: str, step: int, way: str) -> Row:
        """One file of nncodec, and ours at its errors."""
        theirs, size = self._coded(python, step, way)
        weights_db, outputs_db = self.weights_db(theirs), self.outputs_db(self._with(theirs))
        same = self._packed(theirs)
        equal = self._at_equal_weights(weights_db)
        row = {"weights_db": weights_db, "outputs_db": outputs_db, "nncodec": 8 * size / self.size, "same": same}
        return {**row, "ours": equal, **self._at_equal_outputs(outputs_db, size)}

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
        """SQNR of the worst output."""
        return min(each.sqnr_db for each in onnxcompress.compare(self.model, result, data=self.data).outputs)

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

    def _at_equal_weights(self, decibel: float) -> float:
        """Bits a weight of ours whose weights are no worse: the largest λ that a search finds."""

        def coded(price: float) -> Weights:
            found = {name: rated(Tensor(rows.astype(float)), price) for name, rows in self.weights.items()}
            return {name: each.books.values(each.symbols) for name, each in found.items()}

        price = 2 * np.log(2) * self.power / self.size * 10 ** (-decibel / 10)
        best = searched(price, lambda price: (self.weights_db(found := coded(price)), found), decibel, up=False)
        return self._packed(best)

    def _at_equal_outputs(self, decibel: float, size: int) -> Row:
        """Bits a weight of `cluster --rate container` that answers no worse, and its SQNR."""
        target = self.folder / "ours.onnxz"

        def coded(bytes_: float) -> tuple[float, Row]:
            try:
                onnxcompress.cluster(self.path, rate="container", target_size=bytes_).save(target)
            except OnnxCompressError:
                return -np.inf, {}
            told = self.outputs_db(target)
            return told, {"ours_outputs_db": told, "ours_outputs": 8 * target.stat().st_size / self.size}

        return searched(size + 0.05 * size, coded, decibel, up=True)


def searched(begin: float, coded: Callable[[float], tuple[float, T]], decibel: float, *, up: bool) -> T:
    """What `coded` makes of the cheapest number that reaches so many dB, near `begin`; `up`: larger numbers reach more."""
    low, high, best = begin / 4, begin * 4, None
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low * high))
        reached, found = coded(middle)
        good = reached >= decibel
        best = found if good else best
        low, high = (low, middle) if good == up else (middle, high)
    if best is None:
        raise SystemExit(f"nothing near {begin:g} reaches {decibel:.1f} dB")
    return best


HEADS = ("model", "step", "nncodec's way", "SQNR of weights dB", "of outputs", "its bits", "the same numbers packed")
OURS = ("ours, equal weights", "ratio", "ours, equal outputs", "ratio", "our SQNR dB")


def _report(rows: Sequence[Row]) -> None:
    cells = [
        [
            *(row["model"], row["step"], row["way"], f"{row['weights_db']:.1f}", f"{row['outputs_db']:.1f}"),
            *(
                f"{row['nncodec']:.3f}",
                f"{row['same']:.3f}",
                f"{row['ours']:.3f}",
                f"{row['ours'] / row['nncodec']:.3f}",
            ),
            *(
                f"{row['ours_outputs']:.3f}",
                f"{row['ours_outputs'] / row['nncodec']:.3f}",
                f"{row['ours_outputs_db']:.1f}",
            ),
        ]
        for row in rows
    ]
    about = (__doc__ or "").split("\n\n", 2)[2].strip()
    write("nncodec", "Beside nncodec, at equal error", [about, table((*HEADS, *OURS), cells)], {"rows": rows})


if __name__ == "__main__":
    sys.exit(main())
