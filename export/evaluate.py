"""Score every artifact of a run on its test split, through the interpreter: `python -m export.evaluate RUN`.

The very file that ships is given the pixels that training's own pipeline prepares, and judged by the one scorer in
`edgetl.metrics`, next to the Keras model on the same photos. What each of them said is kept in `predictions.npz`.
"""

import hashlib
import io
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

from edgetl.calibration import Temperature, fit_temperature, judge_temperature
from edgetl.comparison import Comparison, compare
from edgetl.config import checked, command
from edgetl.data import Example, Examples
from edgetl.data.examples import parse_label
from edgetl.errors import ArtifactError, ConfigError, RunError
from edgetl.metrics import primary, score
from edgetl.outputs import OutputSpec
from edgetl.robustness import Robustness, robustness
from edgetl.rundir import RunDir, held, installed_versions, open_run, read_json, sealed, sha256_of, write_atomic
from edgetl.scores import OutputScores, RegressionScores, Scores, TargetScores
from edgetl.slices import SliceColumn, cuts, slice_figures
from export.artifacts import Artifact, artifact_files, find_artifacts
from export.predictions import EvaluationSet, Predictions, keras_forward
from export.trial import refuse_crashing

PROG = "python -m export.evaluate"
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.npz"
KERAS = "keras"
_ARRAYS = ("ids", "labels", KERAS)
"""In PREDICTIONS beside those of the artifacts."""


@dataclass(frozen=True)
class Config:
    """Score a run's artifacts and its Keras model on the test split."""

    run: Positional[Path]
    """Run directory (the --out of a recipe)."""
    schemes: tuple[str, ...] = ()
    """Which artifacts; none means all that are there."""
    robustness: bool = False
    """Also on photos with blur, noise, JPEG artifacts and other light, at three strengths each: 13 times the work."""
    workers: int = 0
    """Threads, one interpreter each; 0 means one per core."""
    data: str = ""
    """Where the photos are now, if they were moved since the run."""


@dataclass(frozen=True)
class Details:
    """What more there is to know of one model."""

    temperature: Temperature | None
    """Fitted on the validation split, judged on the test split; None for numbers."""
    slices: tuple[SliceColumn, ...]
    """One for each column of the data that divides the photos."""
    robustness: Robustness | None
    """None where it was not asked for."""


@dataclass(frozen=True)
class ArtifactScores:
    """One artifact on the test split."""

    scheme: str
    sha256: str
    """Of the .tflite file."""
    scores: Scores
    against_keras: Comparison
    """What the artifact lost against the Keras model, on the same photos."""
    details: Details


@dataclass(frozen=True)
class EvaluationReport:
    """All artifacts of a run on the same photos."""

    run_sha256: str
    """Of the run's model.keras."""
    data_sha256: str
    split: str
    keras: Scores
    keras_details: Details
    artifacts: tuple[ArtifactScores, ...]
    predictions_sha256: str
    """Of the file with what all of them said (`predictions_of`)."""
    unreadable: tuple[str, ...]
    """Ids of test photos that could not be read, left out for all alike."""
    kernels: str
    runtime: str
    versions: dict[str, str]
    schema_version: int = 3


@dataclass(frozen=True, eq=False)
class Stored:
    """What models said of the test split."""

    ids: tuple[str, ...]
    """Of the photos, n of them."""
    labels: NDArray[Any]
    """What is true (`edgetl.data.Examples.labels`)."""
    keras: NDArray[np.float32]
    """[n, k], outputs of the Keras model."""
    schemes: dict[str, NDArray[np.float32]]
    """Scheme -> [n, k], outputs of the artifact, dequantized."""


def main(config: Config) -> EvaluationReport:
    """Score artifacts and the Keras model, and write RUN/export/evaluation.json and predictions.npz.

    Raises:
        RunError: the run is missing, unfinished, damaged, or has no test split, or another process is writing it.
        DatasetError: photos of the test split are gone or were changed.
        ArtifactError: no artifact, or one that is damaged or gives outputs that are not finite.
    """
    config = checked(config)
    if config.workers < 0:
        raise ConfigError(f"--workers {config.workers}: give the number of threads, or 0 for one per core")
    run = open_run(config.run)
    if run.untested:
        raise RunError(f"{run.untested}: nothing can be evaluated. Go on with python -m export.bundle {run.path}")
    with held(run):
        return _evaluated(run, config)


def _evaluated(run: RunDir, config: Config) -> EvaluationReport:
    """Score, and write what was found over what an earlier evaluation has found."""
    artifacts = find_artifacts(run, config.schemes)
    splits = run.splits(config.data)
    forward = keras_forward(run)

    def photos(part: Examples) -> EvaluationSet:
        return EvaluationSet(run, part, workers=config.workers, keep_bytes=0, forward=forward)

    paths, spec = [run.export_path / artifact.path for artifact in artifacts], run.outputs
    refuse_crashing(paths)
    found = photos(splits.test).predictions(paths)
    fitted = None if spec.task == "regression" else photos(splits.validation).predictions(paths, label="validation")
    spoilt = photos(splits.test).spoilt(paths) if config.robustness else {}
    earlier = _Earlier.of(run, found)
    keras, *each = _details(spec, found, fitted, spoilt)
    scored = [
        ArtifactScores(
            scheme=artifact.scheme,
            sha256=artifact.sha256,
            scores=score(found.labels, outputs, spec),
            against_keras=compare(found.labels, found.keras, outputs, spec),
            details=earlier.completed(details, artifact.sha256),
        )
        for artifact, outputs, details in zip(artifacts, found.outputs, each, strict=True)
    ]
    kept = earlier.others(run, {artifact.scheme for artifact in artifacts})
    said = {artifact.scheme: outputs for artifact, outputs in zip(artifacts, found.outputs, strict=True)}
    said |= {result.scheme: earlier.said[result.scheme] for result in kept}
    arrays = _packed(Stored(tuple(example.id for example in found.examples), found.labels, found.keras, said))
    report = EvaluationReport(
        run_sha256=run.model_sha256,
        data_sha256=run.manifest.data_sha256,
        split="test",
        keras=score(found.labels, found.keras, spec),
        keras_details=earlier.completed(keras, run.model_sha256),
        artifacts=(*scored, *kept),
        predictions_sha256=hashlib.sha256(arrays).hexdigest(),
        unreadable=found.unreadable,
        kernels="xnnpack",
        runtime=found.runtime,
        versions=installed_versions(),
    )
    # Predictions first: figures never stand beside none, and a kill in between is noticed by the hash.
    write_atomic(run.export_path / PREDICTIONS, arrays)
    write_atomic(run.export_path / EVALUATION, sealed(report))
    return report


def _details(
    spec: OutputSpec, found: Predictions, fitted: Predictions | None, spoilt: Mapping[str, Sequence[Predictions]]
) -> Iterator[Details]:
    """Of the Keras model, then of each artifact."""
    columns = cuts(found.examples)
    for place, outputs in enumerate(found.every):
        temperature = None
        if fitted:
            best = fit_temperature(fitted.labels, fitted.every[place], spec)
            temperature = judge_temperature(found.labels, outputs, best, spec)
        figures = {
            kind: tuple(primary(each.labels, each.every[place], spec) for each in strengths)
            for kind, strengths in spoilt.items()
        }
        yield Details(
            temperature,
            slice_figures(columns, found.labels, outputs, spec, found.keras if place else None),
            robustness(primary(found.labels, outputs, spec), figures) if figures else None,
        )


@dataclass(frozen=True)
class _Earlier:
    """What an earlier evaluation of the same model on the same photos says; nothing if there is none."""

    results: tuple[ArtifactScores, ...]
    robust: dict[str, Robustness]
    """sha256 of a model -> figures on spoilt photos."""
    said: dict[str, NDArray[np.float32]]

    @classmethod
    def of(cls, run: RunDir, found: Predictions) -> "_Earlier":
        try:
            report = read_json(EvaluationReport, run.export_path / EVALUATION)
        except RunError:
            return cls((), {}, {})
        if report.run_sha256 != run.model_sha256 or report.unreadable != found.unreadable:
            return cls((), {}, {})
        details = {report.run_sha256: report.keras_details} | {one.sha256: one.details for one in report.artifacts}
        robust = {sha256: each.robustness for sha256, each in details.items() if each.robustness}
        try:
            return cls(report.artifacts, robust, predictions_of(run, report).schemes)
        except ArtifactError:  # damaged, or killed between the two files: robustness is 13 times the work and stays
            return cls((), robust, {})

    def completed(self, details: Details, sha256: str) -> Details:
        """With the robustness that was measured before, if it was not asked for this time."""
        return details if details.robustness else replace(details, robustness=self.robust.get(sha256))

    def others(self, run: RunDir, new: set[str]) -> tuple[ArtifactScores, ...]:
        """Artifacts that are still there and were not scored anew."""
        there = {path.stem: sha256_of(path) for path in artifact_files(run.export_path)}
        return tuple(one for one in self.results if there.get(one.scheme) == one.sha256 and one.scheme not in new)


def _packed(said: Stored) -> bytes:
    file = io.BytesIO()
    arrays = {"ids": np.array(said.ids), "labels": said.labels, KERAS: said.keras, **said.schemes}
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def predictions_of(run: RunDir, evaluation: EvaluationReport) -> Stored:
    """Read what the models of an evaluation said.

    Raises:
        ArtifactError: the file is missing, damaged, or not the one that belongs to the evaluation.
    """
    path, advice = run.export_path / PREDICTIONS, f"Run python -m export.evaluate {run.path}"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != evaluation.predictions_sha256:
        raise ArtifactError(f"{path}: missing, or not of the evaluation that lies beside it. {advice}")
    try:
        return _unpacked(content, _asked(run, evaluation), [each.scheme for each in evaluation.artifacts])
    except Exception as error:  # what a damaged archive or array raises differs by where it hurts
        raise ArtifactError(f"{path}: damaged ({' '.join(str(error).split())[:120]}). {advice}") from error


def _asked(run: RunDir, evaluation: EvaluationReport) -> Examples:
    """The photos that an evaluation is of, wherever they are now."""
    spec, left_out = run.outputs, set(evaluation.unreadable)
    number = {name: index for index, name in enumerate(spec.names)}
    items = tuple(
        Example(id_, run.path / id_, parse_label(row["label"], spec.task, number))
        for id_, row in run.rows.items()
        if row["split"] == evaluation.split and id_ not in left_out
    )
    return Examples(run.manifest.data, run.path, spec.names, items, spec.task)


def _unpacked(content: bytes, photos: Examples, schemes: Sequence[str]) -> Stored:
    """Read what `_packed` made, and nothing else: the hash that was checked may be a stranger's as well."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        if any(member.compress_type != zipfile.ZIP_STORED for member in arrays.zip.infolist()):
            raise ValueError("compressed, as no such file is: it may unpack to anything")
        if sorted(arrays.files) != sorted((*_ARRAYS, *schemes)):
            raise ValueError(f"holds other arrays than {', '.join((*_ARRAYS, *schemes))}")
        found = {name: arrays[name] for name in arrays.files}
    ids, labels, shape = found.pop("ids"), found.pop("labels"), (len(photos), len(photos.output_names))
    if not photos or not np.array_equal(ids, [photo.id for photo in photos]):
        raise ValueError("not the photos of the run")
    if labels.dtype != photos.labels.dtype or not np.array_equal(labels, photos.labels):
        raise ValueError("not the labels of the run")
    for name, said in found.items():
        if said.shape != shape or said.dtype != np.float32 or not np.isfinite(said).all():
            raise ValueError(f"{name} is not {shape[0]} x {shape[1]} finite numbers")
    return Stored(tuple(ids.tolist()), labels, found.pop(KERAS), found)


def evaluation_of(run: RunDir, artifacts: Sequence[Artifact]) -> tuple[EvaluationReport, dict[str, ArtifactScores]]:
    """Read what artifacts scored on the test split.

    Returns:
        The evaluation, and scheme -> scores of these very files.

    Raises:
        ArtifactError: not evaluated, or not since a file was made.
        RunError: the evaluation is damaged or of other outputs, or the run has no test split.
    """
    if run.untested:
        raise RunError(f"{run.untested}: nothing was evaluated")
    path, advice = run.export_path / EVALUATION, f"Run python -m export.evaluate {run.path}"
    if not path.is_file():
        raise ArtifactError(f"{run.export_path}: not evaluated yet. {advice}")
    evaluation = read_json(EvaluationReport, path)
    for scores in (evaluation.keras, *(each.scores for each in evaluation.artifacts)):
        if (scores.task, tuple(each.name for each in outputs_of(scores))) != (run.outputs.task, run.output_names):
            raise RunError(f"{path}: figures of other outputs than the run's. {advice}")
    scored = {each.sha256: each for each in evaluation.artifacts}
    for artifact in artifacts:
        if artifact.sha256 not in scored:
            raise ArtifactError(f"{run.export_path / artifact.path}: not evaluated since it was made. {advice}")
    return evaluation, {artifact.scheme: scored[artifact.sha256] for artifact in artifacts}


def outputs_of(scores: Scores) -> tuple[OutputScores, ...] | tuple[TargetScores, ...]:
    """What was scored of each class, label or target, in their order."""
    match scores:
        case RegressionScores():
            return scores.targets
        case _:
            return scores.labels if scores.task == "multi_label" else scores.classes


def show(report: EvaluationReport) -> str:
    """Tables for the terminal."""
    from export.evaluation_text import text

    return text(report)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
