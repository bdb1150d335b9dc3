"""The loop: repeats bit for bit, goes on after a kill, stops where a loss is not finite, averages gradients over batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcompress.data import Data, open_data
from onnxcompress.errors import DivergedError, SettingError
from onnxcompress.model import Model, load
from onnxcompress.model.edit import set_constant
from onnxcompress.runtime.session import open_session
from onnxcompress.training import loop, trials
from onnxcompress.training.checkpoint import load_state
from onnxcompress.training.judge import Judge
from onnxcompress.training.lesson import Lesson
from onnxcompress.training.loop import train
from onnxcompress.training.parameters import parameters_of
from onnxcompress.training.recipe import Recipe
from onnxcompress.training.targets import targets_of
from onnxcompress.training.teacher import Teacher

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.onnx"


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(DIGITS)


@pytest.fixture(scope="module")
def samples(digits: Model) -> Data:
    session = open_session(DIGITS)
    return open_data(str(DIGITS.with_suffix(".npz")), session.inputs, limit=64, session=session).calibration


@pytest.fixture(scope="module")
def shaken(digits: Model) -> Model:
    """The sample model with weights times 1 + 0.2 N(0, 1)."""
    graph, rng = digits.ir.clone(), np.random.default_rng(0)
    for name in parameters_of(digits):
        values = digits.array(name)
        set_constant(graph, name, values * (1 + 0.2 * rng.normal(size=values.shape)))
    return digits.edited(graph)


def lesson(student: Model, teacher: Model, data: Data, checkpoint: Path | None = None, **recipe: Any) -> Lesson:
    targets = targets_of(student, teacher)
    taught = Teacher.of(teacher, [target.teacher for target in targets])
    taught.remember(data, 8, 1 << 26)
    given = {"epochs": 2, "minibatch": 16, "rate": 1e-3, **recipe}
    return Lesson(student, taught, targets, data, Recipe(**given), checkpoint=checkpoint)


def weights(model: Model) -> np.ndarray:
    return np.concatenate([model.array(name).ravel() for name in parameters_of(model)])


def test_the_student_comes_back(digits: Model, shaken: Model, samples: Data) -> None:
    made = train(lesson(shaken, digits, samples, epochs=8, rate=3e-3))
    losses = [row["loss"] for row in made.curve]
    assert losses[-1] < 0.5 * losses[0]
    assert [row["epoch"] for row in made.curve] == [*range(1, 9)]
    assert not np.array_equal(weights(made.model), weights(shaken))


@pytest.mark.parametrize(
    "recipe",
    [{}, {"optimizer": "sgd", "rate": 0.05, "nesterov": True, "average": 0.9}, {"optimizer": "lamb", "decay": 0.1},
     {"norms": "training", "freeze": ("*bias*",)} ],
)  # fmt: skip
def test_a_killed_run_goes_on_to_the_same_bits(
    digits: Model, shaken: Model, samples: Data, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    if "freeze" in recipe:  # a name that is there
        recipe = {**recipe, "freeze": (parameters_of(digits)[0],)}
    whole = train(lesson(shaken, digits, samples, epochs=3, **recipe))
    again = train(lesson(shaken, digits, samples, epochs=3, **recipe))
    assert weights(whole.model).tobytes() == weights(again.model).tobytes()

    def kill(done: int, total: int, what: str) -> None:
        if done == 5:  # in the middle of the second of three epochs of three batches
            raise KeyboardInterrupt

    place = tmp_path / "run.npz"
    with pytest.raises(KeyboardInterrupt):
        train(replace(lesson(shaken, digits, samples, place, epochs=3, **recipe), progress=kill))
    assert load_state(place, lesson(shaken, digits, samples, epochs=3, **recipe).key).epoch == 1  # type: ignore[union-attr]
    resumed = train(lesson(shaken, digits, samples, place, epochs=3, **recipe))
    assert resumed.resumed == 1 and len(resumed.curve) == 3
    assert weights(resumed.model).tobytes() == weights(whole.model).tobytes()


def test_a_checkpoint_of_something_else_is_refused(digits: Model, shaken: Model, samples: Data, tmp_path: Path) -> None:
    place = tmp_path / "run.npz"
    train(lesson(shaken, digits, samples, place, epochs=1))
    with pytest.raises(SettingError, match="of other models, data or settings; delete it"):
        train(lesson(shaken, digits, samples, place, epochs=1, rate=0.1))
    place.write_bytes(place.read_bytes()[:100])
    with pytest.raises(SettingError, match="not a checkpoint of this tool"):
        train(lesson(shaken, digits, samples, place, epochs=1))


def test_a_loss_that_is_not_finite_names_batch_and_layer_and_keeps_the_last_epoch(
    digits: Model, shaken: Model, samples: Data, tmp_path: Path
) -> None:
    """Rates without bound: weights grow until the forward pass overflows."""
    place = tmp_path / "run.npz"
    with pytest.raises(DivergedError) as caught:
        train(
            lesson(
                shaken,
                digits,
                samples,
                place,
                epochs=30,
                optimizer="sgd",
                rate=1e9,
                clip=None,
                schedule="constant",
                warmup=0,
            )
        )
    said = str(caught.value)
    assert said.startswith("epoch ") and ", batch " in said and "lower --rate" in said
    named = [f"{node.op_type} {node.name!r}" for node in digits.ir.graph]
    assert any(name in said for name in named)
    assert place.exists() == (str(place) in said)


def found(
    monkeypatch: pytest.MonkeyPatch, student: Model, teacher: Model, data: Data, place: Path | None = None,
    high: float = 3.0, **ways: Any,
) -> Lesson:  # fmt: skip
    """A lesson whose trials find a rate that is far too high, judged on its own samples."""
    monkeypatch.setattr(loop, "found_rate", lambda *given: (high, f"rate {high:g} by trials"))
    judge = Judge.of(open_session(DIGITS), data, batch=32, threads=1, limit=1 << 26)
    return replace(lesson(student, teacher, data, place, epochs=3, rate=None, **ways), judge=judge)


def test_where_no_epoch_is_kept_the_rate_falls_and_the_training_begins_anew_twice_at_most(
    digits: Model, shaken: Model, samples: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = train(found(monkeypatch, shaken, digits, samples))
    assert made.model is shaken and len(made.curve) == 3 and made.kept is not None and "more samples" in made.kept
    assert "--rate" not in made.kept
    assert made.rate is not None and made.rate.count("begun anew from the student at ") == 2
    assert made.rate.endswith("at 0.95 no epoch was kept: begun anew from the student at 0.3")
    monkeypatch.setattr(trials, "LOWER", 1000.0)
    made = train(found(monkeypatch, shaken, digits, samples))
    assert made.rate is not None and made.rate.count("begun anew from the student at 0.003") == 1
    assert (
        made.kept is not None and "are kept" in made.kept and not np.array_equal(weights(made.model), weights(shaken))
    )
    given = train(replace(found(monkeypatch, shaken, digits, samples), recipe=Recipe(epochs=1, minibatch=16, rate=3.0)))
    assert given.rate is None and given.kept is not None and "give a lower --rate, or more samples" in given.kept


def test_a_run_that_began_anew_goes_on_after_a_kill_to_the_same_bits(
    digits: Model, shaken: Model, samples: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first epoch at the lower rate, when the checkpoint still has the last one at the higher, and in its second."""
    monkeypatch.setattr(trials, "LOWER", 1000.0)
    whole, place, passed = train(found(monkeypatch, shaken, digits, samples)), tmp_path / "run.npz", [0]

    def kill(done: int, total: int, what: str) -> None:
        passed[0] += 1
        if passed[0] in (
            11,
            16,
        ):  # three epochs of three batches at the higher rate, then two; then a whole one and two
            raise KeyboardInterrupt

    for epochs in (3, 1):
        cut_off = replace(found(monkeypatch, shaken, digits, samples, place), progress=kill)
        with pytest.raises(KeyboardInterrupt):
            train(cut_off)
        state = load_state(place, cut_off.key)
        assert state is not None and state.epoch == epochs and state.again == (epochs == 1)
    resumed = train(found(monkeypatch, shaken, digits, samples, place))
    assert resumed.resumed == 1 and resumed.rate == whole.rate
    assert weights(resumed.model).tobytes() == weights(whole.model).tobytes()


def test_a_loss_that_is_not_finite_at_a_rate_that_was_found_is_a_reason_to_begin_anew(
    digits: Model, shaken: Model, samples: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: dict[str, Any] = {"optimizer": "sgd", "clip": None, "schedule": "constant", "warmup": 0}
    monkeypatch.setattr(trials, "LOWER", 1e12)
    made = train(found(monkeypatch, shaken, digits, samples, high=1e9, **ways))
    assert made.rate is not None and "the loss did not stay finite: begun anew from the student at 0.001" in made.rate
    assert len(made.curve) == 3
    monkeypatch.setattr(trials, "LOWER", 1.0)
    with pytest.raises(DivergedError, match="epoch 1, batch "):
        train(found(monkeypatch, shaken, digits, samples, high=1e9, **ways))


def test_two_small_batches_make_the_update_of_a_large_one(digits: Model, shaken: Model, samples: Data) -> None:
    recipe: dict[str, Any] = {"optimizer": "sgd", "clip": None, "schedule": "constant", "warmup": 0, "norms": "frozen"}
    one = train(lesson(shaken, digits, samples, epochs=1, minibatch=48, **recipe))
    two = train(lesson(shaken, digits, samples, epochs=1, minibatch=24, accumulate=2, **recipe))
    moved = weights(one.model) - weights(shaken)
    assert np.abs(weights(two.model) - weights(one.model)).max() < 1e-2 * np.abs(moved).max()


def test_running_statistics_follow_the_data(digits: Model, shaken: Model, samples: Data) -> None:
    made = train(lesson(shaken, digits, samples, epochs=1, norms="training"))
    norms = [node for node in digits.ir.graph if node.op_type == "BatchNormalization"]
    assert norms
    for node in norms:
        name = node.inputs[3].name or ""  # type: ignore[union-attr]
        assert not np.array_equal(made.model.array(name), shaken.array(name))


def test_the_form_of_norms_follows_from_the_loss_before_the_first_update(
    digits: Model, shaken: Model, samples: Data
) -> None:
    """Statistics that are right stay; those of a model whose inner values have changed give way to the batch's."""
    wrong = shaken.ir.clone()
    for node in digits.ir.graph:
        if node.op_type == "BatchNormalization":
            for index, factor in ((3, -3.0), (4, 0.05)):
                name = node.inputs[index].name or ""  # type: ignore[union-attr]
                set_constant(wrong, name, factor * shaken.array(name))
    told = [train(lesson(each, digits, samples, epochs=1)).norms or "" for each in (digits, shaken.edited(wrong))]
    assert "BatchNormalization frozen: loss" in told[0] and "BatchNormalization training: loss" in told[1]


def test_the_teacher_runs_once_for_each_sample_where_that_fits(digits: Model, samples: Data) -> None:
    names = [targets_of(digits, digits)[0].teacher]
    kept, filed, none = (Teacher.of(digits, names) for _ in range(3))
    assert kept.remember(samples, 7, 1 << 20) and len(kept.kept) == samples.samples and "in memory" in kept.told
    assert filed.remember(samples, 7, 100) and len(filed.kept) == samples.samples and "temporary file" in filed.told
    shuffled = samples.shuffled(3)
    for indices, feed in shuffled.indexed(5):
        np.testing.assert_array_equal(kept.values(indices, feed)[names[0]], filed.values(indices, feed)[names[0]])
        np.testing.assert_allclose(
            kept.values(indices, feed)[names[0]], none.values(indices, feed)[names[0]], rtol=1e-4, atol=1e-4
        )


def test_shuffles(samples: Data) -> None:
    one, two = samples.shuffled(0), samples.shuffled(1)
    assert sorted(one.indices) == sorted(samples.indices) and one.indices.tolist() != two.indices.tolist()
    assert one.indices.tolist() == samples.shuffled(0).indices.tolist()
