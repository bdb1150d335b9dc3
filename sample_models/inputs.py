"""Natural inputs for each model of the manifest, labels for them, and the metric of its task where there is one.

    arrays = inputs("ppocr-rec", 100)             # {input name: array}, samples on the first axis
    truth = labels("ppocr-rec", 100)              # an array, samples on the first axis; None where there is no truth
    metric = task("ppocr-rec")                    # metric(outputs, truth) -> float, larger is better; None likewise
    outputs = answers("ppocr-rec", arrays, run)   # run: feeds of one run -> outputs of it, both by name

Sample i depends on the seed and on i alone, so that the first rows of a longer call are those of a shorter one. How
samples lie is the manifest's `batch`: "first" any number in a run; "one" the same, but one in a run; "stacked" a sample
x[i] is all that a run is fed. Packages beside the core's: pip install 'onnxcompress[samples]'. Figures of the originals
are in tests/sample_models/test_inputs.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcompress.errors import DataError, SettingError, nearest
from sample_models import metrics
from sample_models.fetch import entry, models

Arrays = dict[str, np.ndarray]
Sample = tuple[Arrays, Any]
Metric = Callable[[Arrays, np.ndarray], float]

PAGE, LINE, CAPTCHA = 320, 320, 192  # pixels: side of a page, widths of a line and of a captcha


def _paddle(pixels: np.ndarray, width: int) -> np.ndarray:
    """RGB uint8 [h,w,3] as PaddleOCR wants it: BGR float32 [3,h,width], -1..1, 0 on the right."""
    scaled = (pixels[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) / 255 - 0.5) / 0.5
    return np.pad(scaled, ((0, 0), (0, 0), (0, width - pixels.shape[1])))


def _recognised(seed: int, index: int) -> Sample:
    from sample_models import rendering

    rng = np.random.default_rng([seed, index])
    text = rendering.wording(rng, 20)
    return {"x": _paddle(rendering.text_line(rng, text, 48, LINE), LINE)}, text


def _turned(seed: int, index: int) -> Sample:
    from sample_models import rendering

    rng = np.random.default_rng([seed, index])
    pixels, upside_down = rendering.text_line(rng, rendering.wording(rng, 20), 48, 192), index % 2
    return {"x": _paddle(pixels[::-1, ::-1] if upside_down else pixels, 192)}, upside_down


def _page(seed: int, index: int) -> Sample:
    from sample_models import rendering

    pixels, boxes = rendering.page(np.random.default_rng([seed, index]), PAGE)
    return {"x": _paddle(pixels, PAGE)}, rendering.shrunk_mask(boxes, PAGE)


def _captcha(seed: int, index: int) -> Sample:
    from sample_models import rendering

    rng = np.random.default_rng([seed, index])
    text = "".join(rng.choice(list("0123456789abcdefghjkmnpqrstuvwxyz"), int(rng.integers(4, 7))))
    pixels = rendering.text_line(rng, text, 64, CAPTCHA)
    grey = (pixels @ np.array([0.299, 0.587, 0.114]) / 255).astype(np.float32)
    return {"input1": np.pad(grey, ((0, 0), (0, CAPTCHA - grey.shape[1])), mode="edge")[None]}, text


def _captcha_page(seed: int, index: int) -> Sample:
    from sample_models import rendering

    pixels, _ = rendering.page(np.random.default_rng([seed, index]), 416)
    return {"images": pixels[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)}, None


def _safe(seed: int, index: int) -> Sample:
    from sample_models import photos

    pixels = photos.photo(np.random.default_rng([seed, index]), 224)
    return {"input:0": pixels[:, :, ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)}, None


def _classified(seed: int, index: int) -> Sample:
    from sample_models import photos

    pixels, label = photos.labelled_photo(np.random.default_rng([seed, index]), index, 224)
    return {"image": (pixels.transpose(2, 0, 1).astype(np.float32) - 127) / 128}, label


def _typed(seed: int, index: int) -> Sample:
    from sample_models import file_bytes

    row, kind = file_bytes.sample(np.random.default_rng([seed, index]), index)
    return {"bytes": row}, kind


def _embedded(seed: int, index: int) -> Sample:
    from sample_models import sentences

    text, truth = sentences.sentence(seed, index)
    ids, mask = sentences.encode(text)
    return {"input_ids": ids, "attention_mask": mask}, truth


def _heard(seed: int, index: int) -> Sample:
    """A frame, spoken and silent in turn, as the first one of a stream."""
    from sample_models import speech

    window, truth = speech.frame(np.random.default_rng([seed, index]), bool(index % 2))
    return {"input": window, "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(speech.RATE)}, truth


def _heard_in_sequence(seed: int, index: int) -> Sample:
    from sample_models import speech

    windows, truth = speech.clip(np.random.default_rng([seed, index]), 64)
    return {"input": windows, **{name: np.zeros((1, 1, 128), np.float32) for name in "hc"}}, truth


def _without_rate(seed: int, index: int) -> Sample:
    arrays, truth = _heard(seed, index)
    return {name: array for name, array in arrays.items() if name != "sr"}, truth


@dataclass(frozen=True)
class Recipe:
    """How a model's samples are made, and what measures its answers."""

    make: Callable[[int, int], Sample]
    metric: Metric | None = None


RECIPES: dict[str, Recipe] = {
    "ppocr-det": Recipe(_page, metrics.overlap),
    "ppocr-rec": Recipe(_recognised, functools.partial(metrics.exact_lines, characters=metrics.ppocr_characters)),
    "ppocr-cls": Recipe(_turned, metrics.first_answer),
    "open-nsfw": Recipe(_safe),
    "magika": Recipe(_typed, metrics.first_answer),
    "efficientnet-lite0": Recipe(_classified, metrics.first_answer),
    "silero-vad": Recipe(_heard, metrics.speech_found),
    "silero-vad-op15": Recipe(_heard, metrics.speech_found),
    "silero-vad-sequence": Recipe(_heard_in_sequence, metrics.speech_found),
    "silero-vad-half": Recipe(_without_rate, metrics.speech_found),
    "silero-vad-ifless": Recipe(_heard, metrics.speech_found),
    "silero-vad-openvino": Recipe(_without_rate, metrics.speech_found),
    "ddddocr": Recipe(_captcha, functools.partial(metrics.exact_lines, characters=metrics.ddddocr_characters)),
    "ddddocr-det": Recipe(_captcha_page),
    "minilm": Recipe(_embedded, metrics.nearest_intent),
}


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise SettingError(f"sample models: no inputs for {name!r}; {nearest(name, models())}")
    return RECIPES[name]


@functools.lru_cache(maxsize=4)
def _made(name: str, samples: int, seed: int) -> list[Sample]:
    recipe = _recipe(name)
    if samples < 1:
        raise DataError(f"sample models: {samples} samples of {name!r} asked for; ask for 1 or more")
    return [recipe.make(seed, index) for index in range(samples)]


def inputs(name: str, samples: int, seed: int = 0) -> Arrays:
    """Natural inputs of model `name` by input name, `samples` on the first axis of each.

    Raises SettingError for an unknown name, DataError where an optional package is missing, FetchError where data
    cannot be had.
    """
    made = _made(name, samples, seed)
    return {key: np.stack([arrays[key] for arrays, _ in made]) for key in made[0][0]}


def labels(name: str, samples: int, seed: int = 0) -> np.ndarray | None:
    """The truth about the same samples, as task(name) takes it; None where there is none."""
    return np.stack([truth for _, truth in _made(name, samples, seed)]) if _recipe(name).metric else None


def task(name: str) -> Metric | None:
    """The metric of the model's task: metric(outputs by name, labels) -> float, larger is better; None without."""
    return _recipe(name).metric


def feeds(name: str, arrays: Arrays, rows: int = 16) -> Iterator[Arrays]:
    """What each run of the model is fed: `rows` samples at a time where it takes any number, else one."""
    batch, samples = entry(name).batch, len(next(iter(arrays.values())))
    step = rows if batch == "first" else 1
    for start in range(0, samples, step):
        taken = start if batch == "stacked" else slice(start, start + step)
        yield {key: np.asarray(array[taken]) for key, array in arrays.items()}


def answers(name: str, arrays: Arrays, run: Callable[[Arrays], Arrays], rows: int = 16) -> Arrays:
    """Outputs of all samples by output name; a "stacked" model's outputs get samples as a new first axis."""
    parts = [run(fed) for fed in feeds(name, arrays, rows)]
    join = np.stack if entry(name).batch == "stacked" else np.concatenate
    return {key: join([part[key] for part in parts]) for key in parts[0]}
