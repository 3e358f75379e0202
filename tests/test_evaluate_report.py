"""The figures in the report are those of the files: recomputed by hand, and refused when stale."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from photos import make_photo_folder

from edgetl import data
from edgetl.config import from_json, to_json
from edgetl.errors import ArtifactError, DatasetError, RunError
from edgetl.rundir import RunDir, read_json, sha256_of
from export import benchmark, evaluate, report
from export.artifacts import find_artifacts
from export.benchmark import LatencyReport
from export.device.interpreter import Model
from export.evaluate import EVALUATION, EvaluationReport
from export.report import Report
from export.schemes import SCHEMES

PROMISED = {
    "scheme",
    "path",
    "size_bytes",
    "top1",
    "top1_low",
    "top1_high",
    "top1_drop",
    "agreement",
    "latency_ms_median",
    "latency_ms_p90",
    "samples",
}


def by_hand(run: RunDir) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Labels, Keras outputs, and outputs of each artifact, photo by photo."""
    splits = run.splits()
    photos = np.stack([data.read_image(example.path, run.inputs) for example in splits.test])
    model = keras.saving.load_model(run.model_path, compile=False)
    outputs = {
        scheme: np.stack([Model(run.export_path / f"{scheme}.tflite").predict(photo) for photo in photos])
        for scheme in SCHEMES
    }
    return splits.test.labels, model.predict(photos.astype(np.float32), verbose=0), outputs


def test_figures_are_those_of_the_files(finished_run: RunDir) -> None:
    labels, expected, outputs = by_hand(finished_run)
    evaluation = read_json(EvaluationReport, finished_run.export_path / EVALUATION)
    written = json.loads((finished_run.path / "report.json").read_bytes())
    assert {row["scheme"] for row in written["artifacts"]} == set(SCHEMES)
    assert len(labels) == 15
    top1 = {scheme: float((values.argmax(axis=1) == labels).mean()) for scheme, values in outputs.items()}
    for row, scores in zip(
        sorted(written["artifacts"], key=lambda row: row["scheme"]),
        sorted(evaluation.artifacts, key=lambda scores: scores.scheme),
        strict=True,
    ):
        scheme = row["scheme"]
        path = finished_run.path / row["path"]
        assert set(row) >= PROMISED
        assert path == finished_run.export_path / f"{scheme}.tflite"
        assert (row["sha256"], row["size_bytes"], row["samples"]) == (sha256_of(path), path.stat().st_size, 15)
        assert row["top1"] == scores.scores.top1 == pytest.approx(top1[scheme])
        assert row["top1_low"] <= row["top1"] <= row["top1_high"]
        assert row["top1_drop"] == pytest.approx(top1["float32"] - top1[scheme])
        assert row["agreement"] == (outputs[scheme].argmax(axis=1) == expected.argmax(axis=1)).mean()
        # Keras runs batches here and there of other sizes: float32 sums in another order.
        gap = np.abs(outputs[scheme] - expected).max()
        assert scores.max_difference == pytest.approx(gap, abs=1e-5)
        chosen = outputs[scheme][np.arange(15), labels].astype(np.float64) / outputs[scheme].sum(axis=1)
        assert scores.scores.log_loss == pytest.approx(-np.log(np.clip(chosen, 1e-7, None)).mean(), abs=1e-5)
        times = read_json(LatencyReport, finished_run.export_path / f"{scheme}.latency.json").runs_ms
        assert len(times) == 10
        assert row["latency_ms_median"] == np.median(times)
        assert row["latency_ms_p90"] == pytest.approx(np.percentile(times, 90))
    assert written["keras_top1"] == evaluation.keras.top1 == (expected.argmax(axis=1) == labels).mean()
    assert written["run_sha256"] == sha256_of(finished_run.model_path)
    assert written["data_sha256"] == evaluation.data_sha256 == finished_run.manifest.data_sha256


def test_report_round_trips_and_names_circumstances(finished_run: RunDir) -> None:
    text = (finished_run.path / "report.json").read_text()
    found = from_json(Report, text)
    assert to_json(found) == text
    assert [row.scheme for row in found.artifacts] == list(SCHEMES)  # in the order of the table of schemes
    assert (found.threads, found.kernels, found.recipe) == (1, "xnnpack", "feature_extraction")
    assert "core(s)" in found.device and found.versions["ai-edge-litert"]
    assert found.notes == (), "this recipe leaves none"
    evaluation = read_json(EvaluationReport, finished_run.export_path / EVALUATION)
    assert (evaluation.split, evaluation.kernels, evaluation.unreadable) == ("test", "xnnpack", ())


def test_table_is_readable_at_100_columns(finished_run: RunDir) -> None:
    made = from_json(Report, (finished_run.path / "report.json").read_bytes())
    worst = dataclasses.replace(
        made,
        artifacts=tuple(
            dataclasses.replace(row, size_bytes=999_990_000, latency_ms_median=12345.678, latency_ms_p90=12345.678)
            for row in made.artifacts
        ),
    )
    for shown in (report.show(made), report.show(worst)):
        lines = shown.splitlines()
        table = lines[: next(number for number, line in enumerate(lines) if "test photos" in line)]
        assert max(len(line) for line in table) <= 100
        assert "…" not in shown and "..." not in shown
        for scheme in SCHEMES:
            assert any(line.split()[:1] == [scheme] for line in table)
        assert "15 test photos" in shown and "report.json" in shown
    assert "12345.68" in report.show(worst) and "999.99" in report.show(worst)


def test_notes_on_the_training_stand_below_the_table(finished_run: RunDir) -> None:
    text = (finished_run.path / "report.json").read_text()
    made = dataclasses.replace(from_json(Report, text), notes=("two blocks fine-tuned", "overfitting since epoch 3"))
    assert from_json(Report, to_json(made)) == made
    plain, noted = report.show(dataclasses.replace(made, notes=())), report.show(made)
    added = [line for line in noted.splitlines() if line not in plain.splitlines()]
    assert added == ["two blocks fine-tuned", "overfitting since epoch 3"]
    assert noted.index("overfitting") > noted.index("test photos")
    without = json.loads(text)
    del without["notes"]
    assert from_json(Report, json.dumps(without)).notes == (), "as reports of earlier versions are"


def test_evaluation_says_one_line_per_artifact(finished_run: RunDir) -> None:
    evaluation = read_json(EvaluationReport, finished_run.export_path / EVALUATION)
    lines = evaluate.show(evaluation).splitlines()
    assert lines[0].startswith("keras") and len(lines) == 1 + len(SCHEMES)


def test_only_some_schemes_can_be_evaluated(run_copy: RunDir) -> None:
    whole = read_json(EvaluationReport, run_copy.export_path / EVALUATION)
    found = evaluate.main(evaluate.Config(run_copy.path, schemes=("int8",), workers=1))
    assert found.artifacts[0].scheme == "int8"
    # What was known of the others stays, so that a report can still be made.
    assert sorted(found.artifacts, key=lambda a: a.scheme) == sorted(whole.artifacts, key=lambda a: a.scheme)
    assert read_json(EvaluationReport, run_copy.export_path / EVALUATION) == found
    report.main(report.Config(run_copy.path))


# --- stale, missing, damaged ----------------------------------------------------------------------------------------


def remake(run: RunDir, scheme: str, source: str) -> None:
    """Let a scheme's artifact be another valid file, correctly described."""
    (artifact,) = find_artifacts(run, [scheme])
    content = (run.export_path / f"{source}.tflite").read_bytes()
    (run.export_path / f"{scheme}.tflite").write_bytes(content)
    changed = dataclasses.replace(
        artifact, sha256=sha256_of(run.export_path / f"{scheme}.tflite"), size_bytes=len(content)
    )
    (run.export_path / f"{scheme}.json").write_text(to_json(changed))


def test_an_artifact_that_was_made_again_needs_new_figures(run_copy: RunDir) -> None:
    remake(run_copy, "float16", "dynamic_int8")
    scores = read_json(EvaluationReport, run_copy.export_path / EVALUATION)
    known = dataclasses.replace(scores, artifacts=tuple(s for s in scores.artifacts if s.scheme != "dynamic_int8"))
    (run_copy.export_path / EVALUATION).write_text(to_json(known))
    with pytest.raises(ArtifactError, match=r"float16.*not timed since it was made\. Run python -m export\.benchmark"):
        report.main(report.Config(run_copy.path))
    benchmark.main(benchmark.Config(run_copy.path, runs=2, warmup=0))
    with pytest.raises(ArtifactError, match=r"not evaluated since it was made\. Run python -m export\.evaluate"):
        report.main(report.Config(run_copy.path))
    evaluate.main(evaluate.Config(run_copy.path))
    rows = {row.scheme: row for row in report.main(report.Config(run_copy.path)).artifacts}
    assert rows["float16"].top1 == rows["dynamic_int8"].top1
    assert rows["float16"].size_bytes == rows["dynamic_int8"].size_bytes


def test_latencies_of_different_circumstances_do_not_go_into_one_table(run_copy: RunDir) -> None:
    benchmark.main(benchmark.Config(run_copy.path, schemes=("int8",), threads=2, runs=2, warmup=0))
    with pytest.raises(ArtifactError, match=r"different circumstances .*2 thread\(s\).*Time all of them in one go"):
        report.main(report.Config(run_copy.path))


def test_a_report_needs_an_evaluation(run_copy: RunDir) -> None:
    (run_copy.export_path / EVALUATION).unlink()
    before = (run_copy.path / "report.json").read_bytes()
    with pytest.raises(ArtifactError, match=r"not evaluated yet\. Run python -m export\.evaluate"):
        report.main(report.Config(run_copy.path))
    (run_copy.export_path / EVALUATION).write_text('{"schema_version": 1}')
    with pytest.raises(RunError, match=r"evaluation\.json: .*damaged"):
        report.main(report.Config(run_copy.path))
    assert (run_copy.path / "report.json").read_bytes() == before


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

    def splits(self: RunDir, moved: str = "") -> object:
        return data.read_csv((self.path / "splits.csv").read_text(), data.load(root))[0]

    monkeypatch.setattr(RunDir, "splits", splits)
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
