"""Every model on the same photos, by the one scorer: recomputed by hand, kept, merged, and refused when stale."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from editing import vouch
from photos import make_photo_folder
from tiny_runs import tiny_run

from edgetl import data, slices
from edgetl.calibration import apply_temperature, fit_temperature
from edgetl.comparison import compare
from edgetl.config import from_json, to_json
from edgetl.errors import ArtifactError, DatasetError, RunError
from edgetl.metrics import log_loss, primary, score
from edgetl.outputs import OutputSpec, Task
from edgetl.robustness import CORRUPTIONS, corrupt
from edgetl.rundir import MANIFEST, RunDir, read_json, sha256_of
from edgetl.scores import PRIMARY
from export import convert, evaluate, predictions
from export.device.interpreter import Model
from export.evaluate import EVALUATION, PREDICTIONS, Config, EvaluationReport, predictions_of
from export.predictions import EvaluationSet


@pytest.fixture(scope="module", params=PRIMARY)
def evaluated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A tiny run of each task, converted, evaluated with everything there is; read only."""
    task: Task = request.param
    run = with_column(tiny_run(tmp_path_factory.mktemp("evaluated") / task, task))
    convert.main(convert.Config(run.path, schemes=("float32", "int8"), calibration_images=12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "LEAST_PHOTOS", 5)  # of the 20 there are
        evaluate.main(Config(run.path, robustness=True))
    return run


def with_column(run: RunDir) -> RunDir:
    """Add what can be cut by to a run: `site`, a or b in turns."""
    splits = run.path / "splits.csv"
    first, *rows = splits.read_text().splitlines()
    changed = [f"{first},site", *(f"{row},{'ab'[number % 2]}" for number, row in enumerate(rows))]
    splits.write_text("\n".join(changed) + "\n")
    vouch(run.path / MANIFEST, "splits.csv", sha256_of(splits))
    return RunDir(run.path)


def report_of(run: RunDir) -> EvaluationReport:
    return read_json(EvaluationReport, run.export_path / EVALUATION)


def by_hand(run: RunDir, photos: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of Keras, float32 and int8, photo by photo."""
    model = keras.saving.load_model(run.model_path, compile=False)
    said = [np.asarray(model.predict(np.stack(photos).astype(np.float32), verbose=0))]
    for scheme in ("float32", "int8"):
        single = Model(run.export_path / f"{scheme}.tflite")
        said.append(np.stack([single.predict(photo) for photo in photos]))
    return said


# --- all tasks ------------------------------------------------------------------------------------------------------


def test_figures_of_every_task_are_those_of_the_files(evaluated: RunDir) -> None:
    test, spec, report = evaluated.splits().test, evaluated.outputs, report_of(evaluated)
    said = by_hand(evaluated, [data.read_image(each.path, evaluated.inputs) for each in test])
    stored = predictions_of(evaluated, report)
    assert stored.ids == tuple(each.id for each in test) and len(stored.ids) == 20
    np.testing.assert_array_equal(stored.labels, test.labels)
    assert list(stored.schemes) == ["float32", "int8"]
    # Keras runs batches here and there of other sizes: float32 sums in another order; numbers go up to 50.
    np.testing.assert_allclose(stored.keras, said[0], rtol=1e-5, atol=1e-5)
    for scheme, expected in zip(("float32", "int8"), said[1:], strict=True):
        np.testing.assert_array_equal(stored.schemes[scheme], expected)
    # What stands in the report follows from what is stored.
    assert report.keras == score(test.labels, stored.keras, spec)
    for artifact in report.artifacts:
        outputs = stored.schemes[artifact.scheme]
        assert artifact.scores == score(test.labels, outputs, spec)
        assert artifact.against_keras == compare(test.labels, stored.keras, outputs, spec)
    assert from_json(EvaluationReport, to_json(report)) == report
    assert report.keras.primary > 0.3, "the network has learned something"


def test_temperatures_are_fitted_on_validation_and_judged_on_test(evaluated: RunDir) -> None:
    splits, spec, report = evaluated.splits(), evaluated.outputs, report_of(evaluated)
    found = [report.keras_details, *(each.details for each in report.artifacts)]
    if spec.task == "regression":
        assert [each.temperature for each in found] == [None] * 3
        return
    fitted = by_hand(evaluated, [data.read_image(each.path, evaluated.inputs) for each in splits.validation])
    stored = predictions_of(evaluated, report)
    for details, said, test in zip(found, fitted, (stored.keras, *stored.schemes.values()), strict=True):
        assert details.temperature
        temperature = fit_temperature(splits.validation.labels, said, spec)
        # The search stops at 1e-4 of the logarithm, and float32 sums differ.
        assert details.temperature.temperature == pytest.approx(temperature, rel=1e-2)
        scaled = apply_temperature(test, details.temperature.temperature, spec)
        assert details.temperature.log_loss_after == pytest.approx(log_loss(stored.labels, scaled, spec))
        assert details.temperature.log_loss_before == pytest.approx(log_loss(stored.labels, test, spec))


def test_robustness_is_measured_on_photos_spoilt_one_by_one(evaluated: RunDir) -> None:
    test, spec, report = evaluated.splits().test, evaluated.outputs, report_of(evaluated)
    plain = [data.read_image(each.path, evaluated.inputs) for each in test]
    rows = [report.keras_details.robustness, *(each.details.robustness for each in report.artifacts)]
    for row, scores in zip(rows, (report.keras, *(each.scores for each in report.artifacts)), strict=True):
        assert row and [each.kind for each in row.corrupted] == list(CORRUPTIONS)
        assert row.clean == pytest.approx(scores.primary)
        every = [figure for each in row.corrupted for figure in each.primary]
        assert row.mean_drop == pytest.approx(row.clean - np.mean(every))
    for place, kind in enumerate(CORRUPTIONS):
        said = by_hand(evaluated, [corrupt(one, kind, 3, photo.id) for one, photo in zip(plain, test, strict=True)])
        for row, outputs in zip(rows, said, strict=True):
            assert row
            # Keras runs other batches here: one of 20 photos may fall on the other side.
            near = 1e-6 if row is not rows[0] else 0.06
            assert row.corrupted[place].primary[2] == pytest.approx(primary(test.labels, outputs, spec), abs=near)


def test_slices_are_those_of_the_test_photos(evaluated: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "LEAST_PHOTOS", 5)
    test, spec, report = evaluated.splits().test, evaluated.outputs, report_of(evaluated)
    assert test.columns == ("site",)
    said = predictions_of(evaluated, report)
    (column,) = report.keras_details.slices
    assert [(part.value, part.samples) for part in column.slices] == [("a", 10), ("b", 10)]
    first = slices.merits(test.labels, said.keras, spec)[::2]
    assert column.slices[0].figure == pytest.approx(first.mean()) and column.most_lost is None
    for artifact in report.artifacts:
        outputs = said.schemes[artifact.scheme]
        expected = slices.slice_figures(slices.cuts(test), test.labels, outputs, spec, said.keras)
        assert artifact.details.slices == expected and expected[0].most_lost


def test_everything_is_said_in_lines_that_fit(evaluated: RunDir) -> None:
    report = report_of(evaluated)
    shown = evaluate.show(report)
    assert max(map(len, shown.splitlines())) <= 125
    figure = PRIMARY[evaluated.outputs.task]
    assert figure in shown.splitlines()[1] and f"points of {figure} lost" in shown
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] in (["keras"], ["float32"], ["int8"])]
    assert [row[0] for row in rows[:3]] == ["keras", "float32", "int8"]
    assert f"{100 * report.keras.primary:.2f}" in rows[0]
    int8 = report.artifacts[1].against_keras
    assert {f"{100 * int8.drop:+.2f}", f"{100 * int8.drop_low:+.2f}..{100 * int8.drop_high:+.2f}"} <= set(rows[2])
    words = " ".join(shown.split())
    assert "keras, site: worst" in words and ("knowledge bias" in words or "chance explains it" in words)
    robust = report.keras_details.robustness
    assert robust and f"{100 * robust.mean_drop:+.2f}" in shown and "quality" in shown
    for name in evaluated.outputs.names if evaluated.outputs.task == "regression" else ():
        assert name in shown


# --- what is kept ---------------------------------------------------------------------------------------------------


one_task = pytest.mark.parametrize("evaluated", ["classification"], indirect=True)
"""What is kept is kept in the same way of all."""


@pytest.fixture
def copied(evaluated: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A copy that may be changed."""
    monkeypatch.setattr(slices, "LEAST_PHOTOS", 5)
    shutil.copytree(evaluated.path, tmp_path / "copy")
    return RunDir(tmp_path / "copy")


@one_task
def test_only_some_schemes_can_be_evaluated_and_the_others_stay(copied: RunDir) -> None:
    whole, before = report_of(copied), predictions_of(copied, report_of(copied))
    found = evaluate.main(Config(copied.path, schemes=("int8",), workers=1))
    assert [each.scheme for each in found.artifacts] == ["int8", "float32"]
    # Robustness was not asked for this time: what was measured of these very files stays.
    assert sorted(found.artifacts, key=lambda each: each.scheme) == list(whole.artifacts)
    assert found.keras_details == whole.keras_details
    assert report_of(copied) == found
    after = predictions_of(copied, found)
    assert sorted(after.schemes) == ["float32", "int8"]
    for scheme, outputs in after.schemes.items():
        np.testing.assert_array_equal(outputs, before.schemes[scheme])


@one_task
def test_predictions_of_another_evaluation_are_refused_and_not_merged(copied: RunDir) -> None:
    path = copied.export_path / PREDICTIONS
    report = report_of(copied)
    assert report.predictions_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-1]), path.unlink):
        damage()
        with pytest.raises(ArtifactError, match=r"missing, or not of the evaluation.*Run python -m export\.evaluate"):
            predictions_of(copied, report)
    found = evaluate.main(Config(copied.path, schemes=("int8",)))
    assert [each.scheme for each in found.artifacts] == ["int8"], "figures without their predictions are not kept"
    assert found.keras_details.robustness and found.keras_details == report.keras_details, "robustness needs none"


@one_task
def test_equal_evaluations_are_equal_files(copied: RunDir) -> None:
    before = (copied.export_path / PREDICTIONS).read_bytes()
    evaluate.main(Config(copied.path, workers=1))
    assert (copied.export_path / PREDICTIONS).read_bytes() == before, "whatever the number of threads"


@one_task
def test_a_run_without_test_photos_cannot_be_evaluated(copied: RunDir) -> None:
    splits = copied.path / "splits.csv"
    splits.write_text(splits.read_text().replace(",test,", ",train,"))
    vouch(copied.path / MANIFEST, "splits.csv", sha256_of(splits))
    with pytest.raises(RunError, match="no photos were held out for testing"):
        evaluate.main(Config(copied.path))


# --- one split, many models -----------------------------------------------------------------------------------------


def count(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[object]:
    """Note the calls of a function."""
    calls: list[object] = []
    real = getattr(owner, name)

    def noted(*args: object, **keywords: object) -> object:
        calls.append(args)
        return real(*args, **keywords)

    monkeypatch.setattr(owner, name, noted)
    return calls


def test_models_are_scored_as_bytes_on_any_split(finished_run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    path = finished_run.export_path / "int8.tflite"
    validation = finished_run.splits().validation
    decoded, loaded = count(monkeypatch, data, "decoded"), count(monkeypatch, predictions, "keras_forward")
    photos = EvaluationSet(finished_run, validation, workers=2)
    first = photos.predictions([path.read_bytes(), finished_run.export_path / "float32.tflite"])
    again = photos.predictions([path])
    alone = photos.predictions([])
    assert (len(decoded), len(loaded)) == (1, 1), "photos decoded once, Keras asked once"
    assert (
        first.labels.tolist() == validation.labels.tolist()
        and first.examples == validation
        and 0 < len(validation) < 15
    )
    single = Model(path)
    by_one = np.stack([single.predict(data.read_image(each.path, finished_run.inputs)) for each in validation])
    np.testing.assert_array_equal(first.outputs[0], by_one)
    np.testing.assert_array_equal(again.outputs[0], by_one)
    assert again.keras is first.keras is alone.keras and again.labels.tolist() == first.labels.tolist()
    assert (alone.outputs, alone.runtime, first.runtime) == ((), "", again.runtime)
    np.testing.assert_allclose(first.outputs[1], first.keras, atol=1e-4)  # what a float32 artifact must reach


def test_photos_that_do_not_fit_are_decoded_again(finished_run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = finished_run.splits().validation
    said = np.full((len(validation), 3), 0.25, np.float32)
    asked: list[int] = []

    def forward(pixels: np.ndarray) -> np.ndarray:
        asked.append(len(pixels))
        return said[: len(pixels)]

    decoded = count(monkeypatch, data, "decoded")
    size = len(validation) * 64 * 64 * 3
    for keep_bytes, passes in ((size - 1, 2), (size, 1)):
        decoded.clear()
        asked.clear()
        photos = EvaluationSet(finished_run, validation, workers=1, keep_bytes=keep_bytes, forward=forward)
        first, second = (photos.predictions([finished_run.export_path / "int8.tflite"]) for _ in range(2))
        assert len(decoded) == passes
        assert sum(asked) == len(validation), "what Keras says is kept all the same"
        np.testing.assert_array_equal(first.keras, said)
        np.testing.assert_array_equal(first.outputs[0], second.outputs[0])


def test_a_model_of_another_run_or_none_at_all_is_refused(finished_run: RunDir, tmp_path: Path) -> None:
    photos = EvaluationSet(
        finished_run, finished_run.splits().validation, forward=lambda pixels: pixels[:, 0, 0].astype(np.float32)
    )
    with pytest.raises(ArtifactError, match="not a TFLite model"):
        photos.predictions([b"no model at all"])
    with pytest.raises(ArtifactError, match=r"gone\.tflite"):
        photos.predictions([tmp_path / "gone.tflite"])
    photos.run = dataclasses.replace(finished_run)
    photos.run.__dict__["outputs"] = OutputSpec("classification", ("cat", "dog"))
    with pytest.raises(ArtifactError, match="gives 3 outputs, the run has 2"):
        photos.predictions([finished_run.export_path / "int8.tflite"])


def test_an_artifact_that_gives_no_numbers_is_refused(run_copy: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.device.interpreter import Pool

    run = Pool.run
    monkeypatch.setattr(Pool, "run", lambda self, pixels: run(self, pixels) * np.float32("nan"))
    (run_copy.export_path / EVALUATION).unlink()
    with pytest.raises(ArtifactError, match="not finite"):
        evaluate.main(evaluate.Config(run_copy.path, schemes=("int8",)))
    assert not (run_copy.export_path / EVALUATION).exists()


# --- the photos -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's photos again, in a place where they may be damaged."""
    root = make_photo_folder(tmp_path / "photos", {"cat": 20, "dog": 20, "owl": 20})
    monkeypatch.setattr("edgetl.rundir.relocate", lambda data: root)
    return root


def test_a_photo_that_was_changed_since_is_not_evaluated(own_photos: Path, run_copy: RunDir) -> None:
    splits = run_copy.splits()
    photo = splits.test.items[3].path
    other = splits.train.items[0].path
    photo.write_bytes(other.read_bytes())
    before = (run_copy.export_path / EVALUATION).read_bytes()
    with pytest.raises(DatasetError, match=rf"{photo.name}: changed since the run was made"):
        evaluate.main(evaluate.Config(run_copy.path, schemes=("int8",)))
    photo.write_bytes(b"no photo")
    with pytest.raises(DatasetError, match="1 of 15 files can't be read"):
        evaluate.main(evaluate.Config(run_copy.path, schemes=("int8",)))
    photo.unlink()
    with pytest.raises(DatasetError, match=rf"{photo.name}: used by the run .* missing now"):
        evaluate.main(evaluate.Config(run_copy.path, schemes=("int8",)))
    assert (run_copy.export_path / EVALUATION).read_bytes() == before


def test_photos_that_come_or_go_between_two_passes_are_noticed(own_photos: Path, run_copy: RunDir) -> None:
    splits = run_copy.splits()
    many = data.Examples(splits.test.source, splits.test.root, splits.test.output_names, splits.train.items)
    photos = EvaluationSet(run_copy, many, keep_bytes=0, forward=lambda pixels: pixels[:, 0, 0].astype(np.float32))
    assert photos.predictions([]).unreadable == ()
    many.items[0].path.write_bytes(b"no photo")
    with pytest.raises(DatasetError, match=rf"{many.items[0].path.name}: came or went meanwhile"):
        photos.predictions([])
