"""The figures in the report are those of the files: recomputed by hand, and refused when stale."""

import dataclasses
import gzip
import json

import keras
import numpy as np
import pytest

from edgetl import data
from edgetl.comparison import mcnemar, paired_interval
from edgetl.config import from_json, to_json
from edgetl.errors import ArtifactError, RunError
from edgetl.metrics import calibration_error
from edgetl.rundir import RunDir, read_json, sha256_of
from export import benchmark, evaluate, report
from export.artifacts import find_artifacts
from export.device.interpreter import Model
from export.device.latency import LatencyReport
from export.evaluate import EVALUATION, EvaluationReport
from export.report import Report
from export.reporting import joined
from export.schemes import SCHEMES

PROMISED = {
    "scheme",
    "path",
    "size_bytes",
    "gzip_bytes",
    "primary",
    "primary_low",
    "primary_high",
    "drop",
    "drop_low",
    "drop_high",
    "mcnemar_p",
    "agreement",
    "calibration_error",
    "latency_ms_median",
    "latency_ms_p90",
    "samples",
}


def schemes_of(run: RunDir) -> list[str]:
    return [artifact.scheme for artifact in find_artifacts(run)]


def by_hand(run: RunDir) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Labels, Keras outputs, and outputs of each artifact, photo by photo."""
    splits = run.splits()
    photos = np.stack([data.read_image(example.path, run.inputs) for example in splits.test])
    model = keras.saving.load_model(run.model_path, compile=False)
    outputs = {
        scheme: np.stack([Model(run.export_path / f"{scheme}.tflite").predict(photo) for photo in photos])
        for scheme in schemes_of(run)
    }
    return splits.test.labels, model.predict(photos.astype(np.float32), verbose=0), outputs


def test_figures_are_those_of_the_files(finished_run: RunDir) -> None:
    labels, expected, outputs = by_hand(finished_run)
    evaluation = read_json(EvaluationReport, finished_run.export_path / EVALUATION)
    written = json.loads((finished_run.path / "report.json").read_bytes())
    assert {row["scheme"] for row in written["artifacts"]} == set(outputs) >= {"float32", "float16", "int8"}
    assert len(labels) == 15
    keras_top1 = float((expected.argmax(axis=1) == labels).mean())
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
        assert row["primary"] == scores.scores.primary == pytest.approx(top1[scheme])
        assert row["primary_low"] <= row["primary"] <= row["primary_high"]
        named, right = outputs[scheme].argmax(axis=1), expected.argmax(axis=1) == labels
        lost, gained = int((right & (named != labels)).sum()), int((~right & (named == labels)).sum())
        assert row["drop"] == pytest.approx(keras_top1 - top1[scheme])
        assert (row["lost"], row["gained"]) == (lost, gained)
        assert [row["drop_low"], row["drop_high"]] == pytest.approx(paired_interval(lost, gained, 15))
        assert row["mcnemar_p"] == pytest.approx(mcnemar(lost, gained))
        assert row["agreement"] == (named == expected.argmax(axis=1)).mean()
        recalls = [(right[labels == c].mean(), (named == labels)[labels == c].mean()) for c in range(3)]
        assert row["drops"] == pytest.approx([before - after for before, after in recalls])
        assert row["calibration_error"] == pytest.approx(
            calibration_error(labels, outputs[scheme], finished_run.outputs), abs=1e-5
        )
        assert row["gzip_bytes"] == len(gzip.compress(path.read_bytes(), 9, mtime=0)) < row["size_bytes"]
        # Keras runs batches here and there of other sizes: float32 sums in another order.
        gap = np.abs(outputs[scheme] - expected).max()
        assert row["max_difference"] == scores.against_keras.max_difference == pytest.approx(gap, abs=1e-5)
        assert scores.against_keras.samples == 15
        chosen = outputs[scheme][np.arange(15), labels].astype(np.float64) / outputs[scheme].sum(axis=1)
        assert scores.scores.log_loss == pytest.approx(-np.log(np.clip(chosen, 1e-7, None)).mean(), abs=1e-5)
        times = read_json(LatencyReport, finished_run.export_path / f"{scheme}.latency.json").runs_ms
        assert len(times) == 10
        assert row["latency_ms_median"] == np.median(times)
        assert row["latency_ms_p90"] == pytest.approx(np.percentile(times, 90))
    assert written["keras_primary"] == evaluation.keras.primary == keras_top1
    assert written["keras_calibration_error"] == pytest.approx(
        calibration_error(labels, expected, finished_run.outputs), abs=1e-5
    )
    assert written["output_samples"] == {"cat": 5, "dog": 5, "owl": 5}
    assert written["run_sha256"] == sha256_of(finished_run.model_path)
    assert written["data_sha256"] == evaluation.data_sha256 == finished_run.manifest.data_sha256


def test_report_round_trips_and_names_circumstances(finished_run: RunDir) -> None:
    text = (finished_run.path / "report.json").read_text()
    found = from_json(Report, text)
    assert to_json(found) == text
    assert [row.scheme for row in found.artifacts] == [name for name in SCHEMES if name in schemes_of(finished_run)]
    assert (found.schema_version, len(found.artifacts)) == (4, len(schemes_of(finished_run)))
    assert (found.threads, found.kernels, found.recipe) == (1, "xnnpack", "feature_extraction")
    assert "core(s)" in found.device and found.versions["ai-edge-litert"]
    assert found.notes == (), "this recipe leaves none"
    evaluation = read_json(EvaluationReport, finished_run.export_path / EVALUATION)
    assert (evaluation.split, evaluation.kernels, evaluation.unreadable) == ("test", "xnnpack", ())


def test_table_is_readable_at_120_columns(finished_run: RunDir) -> None:
    made = from_json(Report, (finished_run.path / "report.json").read_bytes())
    worst = dataclasses.replace(
        made,
        artifacts=tuple(
            dataclasses.replace(
                row,
                scheme="clustered_dynamic_int8",
                size_bytes=999_990_000,
                gzip_bytes=999_990_000,
                drop=-1.0,
                drop_low=-1.0,
                drop_high=-0.9999,
                latency_ms_median=12345.678,
                latency_ms_p90=12345.678,
            )
            for row in made.artifacts
        ),
    )
    for told in (made, worst):
        shown = report.show(told)
        lines = shown.splitlines()
        table = lines[: next(number for number, line in enumerate(lines) if "test photos" in line)]
        assert max(len(line) for line in table) <= 120
        assert "…" not in shown and "..." not in shown
        for row in told.artifacts:
            assert any(line.split()[:1] == [row.scheme] for line in table)
        assert "15 test photos" in shown and "report.json" in shown
    assert " 12346" in report.show(worst) and "999.99" in report.show(worst)
    assert "-100.00..-99.99" in report.show(worst)


def test_table_shows_the_drop_with_its_interval_and_sizes_as_sent(finished_run: RunDir) -> None:
    made = from_json(Report, (finished_run.path / "report.json").read_bytes())
    row = dataclasses.replace(
        made.artifacts[0],
        size_bytes=3_670_000,
        gzip_bytes=3_280_000,
        primary=0.8537,
        primary_low=0.825,
        primary_high=0.879,
        drop=0.0046,
        drop_low=-0.00512,
        drop_high=0.01424,
        agreement=0.9817,
        calibration_error=0.0312,
        latency_ms_median=None,
        latency_ms_p90=None,
    )
    shown = report.show(dataclasses.replace(made, artifacts=(row,)))
    cells = next(line for line in shown.splitlines() if line.split()[:1] == [row.scheme]).split()
    expected = "3.67 3.28 85.37 82.5-87.9 +0.46 -0.51..+1.42 98.17 3.12 - -"
    assert cells[1:] == expected.split()


def rows_losing(finished_run: RunDir, high: float, drops: tuple[float | None, ...], samples: int) -> str:
    made = from_json(Report, (finished_run.path / "report.json").read_bytes())
    row = dataclasses.replace(made.artifacts[0], drop_high=high, drops=drops)
    return report.show(
        dataclasses.replace(made, artifacts=(row,), output_samples=dict.fromkeys(made.output_samples, samples))
    )


def test_a_class_that_lost_more_than_its_share_is_named(finished_run: RunDir) -> None:
    assert "dog lost more than its share, 30.0 points of recall (6 of 20 photos)\n" in rows_losing(
        finished_run, 0.1, (-0.2, 0.3, 0.1), 20
    )
    shown = rows_losing(finished_run, 0.05, (0.3, 0.4, 0.0), 20)
    assert "dog lost more than its share, 40.0 points of recall (8 of 20 photos); so did 1 more class(es)" in shown
    for high, drops, samples in (
        (0.35, (-0.2, 0.3, 0.1), 20),  # within the interval of the whole
        (0.01, (0.0, 0.05, None), 20),  # one photo
        (-0.3, (-0.5, -0.2, -0.4), 20),  # gained less than the others
    ):
        assert "more than its share" not in rows_losing(finished_run, high, drops, samples)


def test_schemes_stand_in_the_order_of_their_table_each_before_its_compressed_forms() -> None:
    names = ["clustered_int8", "int7", "float16", "pruned_int8", "int8", "pruned_float32", "pruned_int7", "float32"]
    assert sorted(names, key=joined.order) == [
        "float32",
        "pruned_float32",
        "float16",
        "int8",
        "pruned_int8",
        "clustered_int8",
        "int7",
        "pruned_int7",
    ]


@pytest.mark.slow
def test_compressed_artifacts_bring_a_note_on_what_shrinks(run_copy: RunDir) -> None:
    before = from_json(Report, (run_copy.path / "report.json").read_bytes())
    assert before.notes == (), "only where there is such an artifact"
    (artifact,) = find_artifacts(run_copy, ["int8"])
    for old in run_copy.export_path.glob("int8.*"):
        old.rename(old.with_name(f"pruned_{old.name}"))
    changed = dataclasses.replace(artifact, scheme="pruned_int8", path="pruned_int8.tflite")
    (run_copy.export_path / "pruned_int8.json").write_text(to_json(changed))
    evaluate.main(evaluate.Config(run_copy.path, schemes=("pruned_int8",)))
    made = report.main(report.Config(run_copy.path))
    assert made.artifacts[-1].scheme == "pruned_int8"
    notes = " ".join(made.notes)
    assert "gzip" in notes and "XNNPACK" in notes and "2/3" in notes
    assert all(note in report.show(made) for note in made.notes)
    assert from_json(Report, (run_copy.path / "report.json").read_bytes()) == made


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


@pytest.mark.slow
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
    assert rows["float16"].primary == rows["dynamic_int8"].primary
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
    for found, told in (("{}", "damaged"), ('{"schema_version": 1}', "schema_version 1, this edgetl reads 3")):
        (run_copy.export_path / EVALUATION).write_text(found)
        with pytest.raises(RunError, match=rf"evaluation\.json: .*{told}"):
            report.main(report.Config(run_copy.path))
    assert (run_copy.path / "report.json").read_bytes() == before
