"""The verb distill: a cut model comes back, with the report, budgets and files of every other verb; bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxcompress
from onnxcompress.errors import DataError, ModelError, SettingError
from onnxcompress.result import Result
from onnxcompress.runtime.session import open_session
from tests.cli.conftest import DATA, LABELS, MODEL, Run, cli

__all__ = ["cli"]


@pytest.fixture(scope="module")
def taught(cut: Path) -> Result:
    return onnxcompress.distill(cut, teacher=MODEL, data=DATA, labels=LABELS, epochs=20, rate=3e-3)


def test_it_answers_like_its_teacher_again(cut: Path, taught: Result) -> None:
    before = onnxcompress.compare(MODEL, cut, data=DATA, labels=LABELS)
    after = taught.comparison
    assert after is not None and after.score is not None and before.score is not None
    assert before.agreement is not None and after.agreement is not None
    assert before.agreement < 0.7 and after.agreement > 0.9
    assert after.score.result > before.score.result + 0.2


def test_the_report_says_what_was_learned_and_what_it_was_before(cut: Path, taught: Result) -> None:
    report = taught.report
    before = onnxcompress.compare(MODEL, cut, data=DATA, labels=LABELS)
    assert f"before distillation it {before.verdict}" in report.notes
    assert "logits: 0.9 of soft-cross-entropy on 'logits' (labels show that these are class scores)" in report.notes
    assert "labels: 0.1 of cross-entropy on 'logits' (10 classes)" in report.notes
    assert any("BatchNormalization training: loss before" in note for note in report.notes)
    (plan,) = report.plans
    assert [row["epoch"] for row in plan["decisions"]] == [*range(1, 21)]
    assert plan["decisions"][-1]["loss"] < 0.5 * plan["decisions"][0]["loss"]
    assert report.costs["parameters"][1] < 0.5 * report.costs["parameters"][0]  # beside the teacher
    json.dumps(report.to_json())


def test_the_file_answers_as_the_result_does(cut: Path, taught: Result, tmp_path: Path) -> None:
    place = tmp_path / "better.onnx"
    taught.save(place)
    again = onnxcompress.compare(MODEL, place, data=DATA, labels=LABELS)
    assert taught.comparison is not None and again.agreement == taught.comparison.agreement
    one, two = open_session(cut), open_session(place)
    assert [str(port) for port in (*one.inputs, *one.outputs)] == [str(port) for port in (*two.inputs, *two.outputs)]
    assert json.loads(onnx.load(place).metadata_props[0].value)[0]["method"] == "distill"


def test_from_model_to_model_without_a_file(cut: Path) -> None:
    student = onnxcompress.prune(MODEL, target_macs=0.2, refit=False).model
    made = onnxcompress.distill(student, teacher=onnxcompress.load(MODEL), data=DATA, limit=64, epochs=1)
    same = onnxcompress.distill(cut, teacher=MODEL, data=DATA, limit=64, epochs=1)
    assert made.comparison is not None and same.comparison is not None
    assert made.comparison.agreement == same.comparison.agreement


def test_a_logit_loss_on_plain_logits(cut: Path) -> None:
    made = onnxcompress.distill(
        cut, teacher=MODEL, data=DATA, limit=128, epochs=2, loss="soft-cross-entropy", temperature=2.0
    )
    curve = made.plan.decisions
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert any("soft-cross-entropy on 'logits' (chosen" in note for note in made.report.notes)


def test_it_never_ends_worse_than_it_began() -> None:
    """A rate that is far too high: the student comes back as it was, and the report says so."""
    student = onnxcompress.cluster(MODEL, bits=4, same=True, data=DATA, assign="nearest").model
    made = onnxcompress.distill(student, teacher=MODEL, data=DATA, limit=240, epochs=2, rate=0.1)
    assert any("no epoch answers better on 22 samples kept back" in note for note in made.report.notes)
    for name in student.initializers:
        assert np.array_equal(student.array(name), made.model.array(name)), name


def test_the_best_epoch_is_kept_and_the_average_where_it_is_better(cut: Path) -> None:
    """Steps so long that the weights go round what they aim at: their average is nearer."""
    made = onnxcompress.distill(
        cut, teacher=MODEL, data=DATA, limit=320, epochs=4, rate=0.02, schedule="constant", average=0.95, minibatch=16
    )
    curve = made.plan.decisions
    best = min((row[name], row["epoch"], name) for row in curve for name in ("kept_loss", "averaged_kept_loss"))
    what = "averaged weights" if best[2].startswith("averaged") else "weights"
    assert what == "averaged weights"
    assert any(f"the {what} of epoch {best[1]} are kept: loss {best[0]:.4g}, " in note for note in made.report.notes)
    plain = onnxcompress.distill(
        cut, teacher=MODEL, data=DATA, limit=320, epochs=4, rate=0.02, schedule="constant", average=0.0, minibatch=16
    )
    assert "averaged_sqnr_db" not in plain.plan.decisions[0]
    assert [row["sqnr_db"] for row in plain.plan.decisions] == [row["sqnr_db"] for row in curve]


def test_the_source_of_gradients_that_is_asked_for_is_the_one(cut: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="onnxruntime-training is not there"):
        onnxcompress.distill(
            cut, teacher=MODEL, data=DATA, limit=32, epochs=1, gradients="builder", builder_dir=str(tmp_path)
        )


def test_dry_run_lists_what_would_be_learned(cut: Path) -> None:
    made = onnxcompress.distill(cut, teacher=MODEL, data=DATA, dry=True)
    assert made.plan.notes[0] == "logits: mse on 'logits' (plain numbers, which may be logits or an embedding)"
    assert made.comparison is None and made.model.source.path == cut
    assert [each["loss"] for each in made.plan.decisions] == ["mse"]
    assert any("would be trained" in note for note in made.report.notes)
    assert any("samples takes about" in note and "of memory" in note for note in made.report.notes)


def test_command_line(cut: Path, tmp_path: Path, cli: Run) -> None:
    out, report, kept = tmp_path / "better.onnx", tmp_path / "report.json", tmp_path / "run.npz"
    line = ["distill", str(cut), "--teacher", MODEL, "--data", DATA, "-o", str(out), "--json", str(report)]
    more = ["--epochs", "2", "--limit", "128", "--checkpoint", str(kept), "--min-agreement", "0.01"]
    done = cli(*line, *more)
    assert done.code == 0, done.err
    assert out.exists() and kept.exists() and "distillation: mean loss of each epoch" in done.out
    first = out.read_bytes()
    done = cli(*line, *more)  # nothing is left to do: the checkpoint has all epochs
    assert done.code == 0 and "epochs 1 to 2 come from the checkpoint" in done.out and out.read_bytes() == first
    done = cli(*line, "--epochs", "1", "--limit", "64", "--min-agreement", "1.0")
    assert done.code == 1 and "budget missed" in done.err and out.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "no teacher is named; give --teacher model.onnx"),
        (["--teacher", MODEL], "distill needs inputs like those of use: give --data"),
        (
            ["--teacher", MODEL, "--data", DATA, "--freeze", "hiden"],
            "matches no weight and no node; the nearest name is '/hidden'",
        ),
        (["--teacher", MODEL, "--data", DATA, "--loss", "jss"], "no loss is called 'jss'; the nearest name is 'js'"),
        (["--teacher", MODEL, "--data", DATA, "--optimizer", "adma"], "give one of sgd, adamw, lamb"),
        (["--teacher", MODEL, "--data", DATA, "--rate", "0"], "rate is 0; give a number that is more than 0"),
        (["--teacher", MODEL, "--data", DATA, "--features", "nothing"], "no value is called 'nothing'"),
        (["--teacher", "missing.onnx", "--data", DATA], "missing.onnx: no such file"),
    ],
)
def test_bad_input_is_one_line(cut: Path, tmp_path: Path, cli: Run, more: list[str], said: str) -> None:
    done = cli("distill", str(cut), "-o", str(tmp_path / "out.onnx"), *more)
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1 and said in done.err
    assert not (tmp_path / "out.onnx").exists()


def test_the_output_is_not_the_teacher(cut: Path, cli: Run) -> None:
    done = cli("distill", str(cut), "--teacher", str(cut), "--data", DATA, "-o", str(cut))
    assert done.code == 2 and "also an input" in done.err
    done = cli("distill", str(cut), "--teacher", str(cut), "--data", DATA, "-o", "out.onnx", "--checkpoint", str(cut))
    assert done.code == 2 and "also an input" in done.err


def other(name: str, size: int) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Flatten", [name], ["f"]), helper.make_node("Gemm", ["f", "w"], ["logits"])], "other",
        [helper.make_tensor_value_info(name, 1, ["N", 1, 8, 8])], [helper.make_tensor_value_info("logits", 1, ["N", size])],
        [numpy_helper.from_array(np.ones((64, size), np.float32), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_a_teacher_of_other_inputs_or_classes() -> None:
    with pytest.raises(ModelError, match="has no input"):
        onnxcompress.distill(other("pixels", 10), teacher=MODEL, data=DATA)
    with pytest.raises(ModelError, match=r"'logits' is \[.*, 7\] in the student"):
        onnxcompress.distill(other("image", 7), teacher=MODEL, data=DATA, limit=32)


def test_data_of_another_shape(cut: Path) -> None:
    with pytest.raises(DataError):
        onnxcompress.distill(cut, teacher=MODEL, data={"image": np.zeros((8, 3), np.float32)})


def test_settings_out_of_range(cut: Path) -> None:
    with pytest.raises(SettingError, match="epochs is 0; give a whole number that is at least 1"):
        onnxcompress.distill(cut, teacher=MODEL, data=DATA, epochs=0)


def test_a_coded_student_is_dense_again_and_the_report_says_so(tmp_path: Path) -> None:
    place = tmp_path / "coded.onnx"
    onnxcompress.cluster(MODEL, bits=2, same=True, data=DATA, assign="nearest").save(place)
    result = onnxcompress.distill(place, teacher=MODEL, data=DATA, epochs=1, rate=1e-3)
    assert any("coded are dense again" in note for note in result.report.notes)
    assert not [line for line in onnxcompress.inspect(result.model).layers if line.encoding]


@pytest.mark.parametrize("more", [{}, {"move_symbols": True}])
def test_a_coded_student_keeps_its_form_where_asked(tmp_path: Path, more: dict[str, bool]) -> None:
    """Books train: the loss falls, and the file is as small as it was."""
    place, better = tmp_path / "coded.onnx", tmp_path / "better.onnx"
    onnxcompress.cluster(MODEL, bits=2, same=True, data=DATA, assign="nearest").save(place)
    result = onnxcompress.distill(place, teacher=MODEL, data=DATA, epochs=6, rate=2e-3, keep_encoding=True, **more)
    result.save(better)
    moving = "symbols, books" if more else "symbols stay, books"
    assert any(f"coded weights: {moving}" in note for note in result.report.notes)
    assert better.stat().st_size < 1.1 * place.stat().st_size
    curve = result.plan.decisions
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    again = onnxcompress.compare(MODEL, better, data=DATA)
    assert result.comparison is not None and again.agreement == result.comparison.agreement


def test_zeros_of_a_pruned_student_stay(tmp_path: Path) -> None:
    sparse = onnxcompress.sparsify(MODEL, amount=0.6).model
    made = onnxcompress.distill(sparse, teacher=MODEL, data=DATA, epochs=1, keep_encoding=True)
    assert any("pruned weights: their zeros stay" in note for note in made.report.notes)
    for name in sparse.initializers:
        before, after = sparse.array(name), made.model.array(name)
        if before.ndim > 1 and (before == 0).mean() > 0.1:
            assert (after[before == 0] == 0).all() and not np.array_equal(before, after)


def test_binary_weights_come_within_a_point_of_the_original() -> None:
    """BinaryConnect's claim, on the sample task: matrices of one bit and a scale a channel, from symbols that nothing made up for."""
    binary = onnxcompress.binarize(MODEL, terms=1)
    before = onnxcompress.compare(MODEL, binary.model, data=DATA, labels=LABELS).score
    assert before is not None and before.drop > 0.05
    made = onnxcompress.distill(
        binary.model, teacher=MODEL, data=DATA, labels=LABELS, epochs=15, rate=5e-3, move_symbols=True
    )
    assert made.comparison is not None and made.comparison.score is not None
    assert made.comparison.score.drop <= 0.01
