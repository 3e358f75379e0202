"""Score every artifact of a run on its test split, through the interpreter: `python -m export.evaluate RUN`.

The very file that ships is given the pixels that training's own pipeline prepares, and judged by the one scorer in
`edgetl.metrics`, next to the Keras model on the same photos. `EvaluationSet` does the same on any split, and for
models that are no files yet.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

from edgetl import data
from edgetl.comparison import Comparison, compare
from edgetl.config import checked, command, to_json
from edgetl.console import progress, quiet_tensorflow
from edgetl.errors import ArtifactError, ConfigError, DatasetError, RunError
from edgetl.features import Forward, forward_of
from edgetl.metrics import score
from edgetl.rundir import RunDir, installed_versions, open_run, read_json, sha256_of, write_atomic
from edgetl.scores import PRIMARY, RegressionScores, Scores
from export.artifacts import Artifact, device_errors, find_artifacts

if TYPE_CHECKING:
    from export.device.interpreter import Pool

PROG = "python -m export.evaluate"
EVALUATION = "evaluation.json"
KEEP_BYTES = 1_000_000_000
"""Decoded photos that an `EvaluationSet` keeps in memory: 6,600 of 224 x 224 pixels."""


@dataclass(frozen=True)
class Config:
    """Score a run's artifacts and its Keras model on the test split."""

    run: Positional[Path]
    """Run directory (the --out of a recipe)."""
    schemes: tuple[str, ...] = ()
    """Which artifacts; none means all that are there."""
    workers: int = 0
    """Threads, one interpreter each; 0 means one per core."""
    data: str = ""
    """Where the photos are now, if they were moved since the run."""


@dataclass(frozen=True)
class ArtifactScores:
    """One artifact on the test split."""

    scheme: str
    sha256: str
    """Of the .tflite file."""
    scores: Scores
    against_keras: Comparison
    """What the artifact lost against the Keras model, on the same photos."""


@dataclass(frozen=True)
class EvaluationReport:
    """All artifacts of a run on the same photos."""

    run_sha256: str
    """Of the run's model.keras."""
    data_sha256: str
    split: str
    keras: Scores
    artifacts: tuple[ArtifactScores, ...]
    unreadable: tuple[str, ...]
    """Ids of test photos that could not be read, left out for all alike."""
    kernels: str
    runtime: str
    versions: dict[str, str]
    schema_version: int = 2


def main(config: Config) -> EvaluationReport:
    """Score artifacts and the Keras model, and write RUN/export/evaluation.json.

    Raises:
        RunError: the run is missing, unfinished or damaged.
        DatasetError: photos of the test split are gone or were changed.
        ArtifactError: no artifact, or one that is damaged or gives outputs that are not finite.
    """
    config = checked(config)
    if config.workers < 0:
        raise ConfigError(f"--workers {config.workers}: give the number of threads, or 0 for one per core")
    run = open_run(config.run)
    artifacts = find_artifacts(run, config.schemes)
    photos = EvaluationSet(run, run.splits(config.data).test, workers=config.workers, keep_bytes=0)
    found = photos.predictions([run.export_path / artifact.path for artifact in artifacts])
    scored = [
        ArtifactScores(
            scheme=artifact.scheme,
            sha256=artifact.sha256,
            scores=score(found.labels, probabilities, run.outputs),
            against_keras=compare(found.labels, found.keras, probabilities, run.outputs),
        )
        for artifact, probabilities in zip(artifacts, found.outputs, strict=True)
    ]
    report = EvaluationReport(
        run_sha256=run.model_sha256,
        data_sha256=run.manifest.data_sha256,
        split="test",
        keras=score(found.labels, found.keras, run.outputs),
        artifacts=tuple(scored + _still_valid(run, scored, found.unreadable)),
        unreadable=found.unreadable,
        kernels="xnnpack",
        runtime=found.runtime,
        versions=installed_versions(),
    )
    write_atomic(run.export_path / EVALUATION, to_json(report))
    return report


def _still_valid(run: RunDir, scored: list[ArtifactScores], unreadable: tuple[str, ...]) -> list[ArtifactScores]:
    """What an earlier evaluation says of the other artifacts, where it was made on the same photos."""
    try:
        earlier = read_json(EvaluationReport, run.export_path / EVALUATION)
    except RunError:
        return []
    if (earlier.run_sha256, earlier.unreadable) != (run.model_sha256, unreadable):
        return []
    there = {sha256_of(path) for path in run.export_path.glob("*.tflite")}
    new = {result.scheme for result in scored}
    return [result for result in earlier.artifacts if result.sha256 in there and result.scheme not in new]


def evaluation_of(run: RunDir, artifacts: Sequence[Artifact]) -> tuple[EvaluationReport, dict[str, ArtifactScores]]:
    """Read what artifacts scored on the test split.

    Returns:
        The evaluation, and scheme -> scores of these very files.

    Raises:
        ArtifactError: not evaluated, or not since a file was made.
        RunError: the evaluation is damaged.
    """
    path, advice = run.export_path / EVALUATION, f"Run python -m export.evaluate {run.path}"
    if not path.is_file():
        raise ArtifactError(f"{run.export_path}: not evaluated yet. {advice}")
    evaluation = read_json(EvaluationReport, path)
    scored = {scores.sha256: scores for scores in evaluation.artifacts}
    for artifact in artifacts:
        if artifact.sha256 not in scored:
            raise ArtifactError(f"{run.export_path / artifact.path}: not evaluated since it was made. {advice}")
    return evaluation, {artifact.scheme: scored[artifact.sha256] for artifact in artifacts}


@dataclass(frozen=True, eq=False)
class Predictions:
    """What several models say of the same photos."""

    labels: NDArray[np.int64]
    """[n], class indices."""
    keras: NDArray[np.float32]
    """[n, classes], probabilities of the run's Keras model."""
    outputs: tuple[NDArray[np.float32], ...]
    """[n, classes] of each model, dequantized, in the order they were given."""
    unreadable: tuple[str, ...]
    """Ids of photos that could not be read, left out for all alike."""
    runtime: str
    """Interpreter and its version; empty where no model was run."""


class EvaluationSet:
    """The photos of one split, for one model after the other.

    What the Keras model says of them is computed in the first pass and kept. So are the decoded photos, in memory, if
    all of them fit in `keep_bytes`; more than that are read and decoded again in each pass, once for all its models.
    """

    def __init__(
        self,
        run: RunDir,
        examples: data.Examples,
        *,
        workers: int = 0,
        keep_bytes: int = KEEP_BYTES,
        forward: Forward | None = None,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            run: whose Keras model is the reference.
            examples: photos of the run, of any split.
            workers: threads, one interpreter each; 0 means one per core.
            keep_bytes: what decoded photos may take in memory; 0 keeps none, as for a single pass.
            forward: the Keras model, raw pixels to probabilities, where it is loaded already (`keras_forward`).
        """
        self.run, self.examples, self.workers = run, examples, workers or data.default_workers()
        self._fits = len(examples) * math.prod(run.inputs.shape) <= keep_bytes
        self._forward = forward
        self._kept: list[data.Batch] | None = None
        self._keras: NDArray[np.float32] | None = None
        self._unreadable: tuple[str, ...] | None = None

    def predictions(self, models: Sequence[bytes | Path], *, label: str = "evaluate") -> Predictions:
        """Run models on the photos that can be read.

        Args:
            models: .tflite files, as paths or as their bytes; may be none, for what Keras says alone.
            label: of the progress bar.

        Raises:
            DatasetError: photos are gone, can't be read or were changed since the run.
            ArtifactError: a model is damaged, is not one of this run's, or gives outputs that are not finite.
        """
        pools = [self._open(model) for model in models]
        forward = None if self._keras is not None else self._forward or keras_forward(self.run)
        labels: list[NDArray[np.int64]] = []
        said: list[NDArray[np.float32]] = []
        outputs: list[list[NDArray[np.float32]]] = [[] for _ in pools]
        with ThreadPoolExecutor(self.workers) as threads, progress(label, len(self.examples)) as bar, device_errors():
            for batch in self._batches():
                bar.advance(len(batch.pixels) + len(batch.unreadable))
                if not len(batch.pixels):
                    continue
                labels.append(self.examples.labels[batch.indices])
                if forward:
                    said.append(forward(batch.pixels))
                parts = np.array_split(batch.pixels, min(self.workers, len(batch.pixels)))
                for pool, collected in zip(pools, outputs, strict=True):
                    collected.extend(threads.map(pool.run, parts))
        if self._keras is None:
            self._keras = np.concatenate(said)
        found = tuple(np.concatenate(collected) for collected in outputs)
        for model, probabilities in zip(models, found, strict=True):
            if not np.isfinite(probabilities).all():
                raise ArtifactError(f"{_name(model)}: outputs are not finite. Deploy another scheme")
        runtime = pools[0].runtime if pools else ""
        return Predictions(np.concatenate(labels), self._keras, found, self._unreadable or (), runtime)

    def _open(self, model: bytes | Path) -> "Pool":
        from export.device.interpreter import Pool

        with device_errors():
            pool = Pool(model, self.workers)
        outputs, classes = math.prod(pool.output.shape), len(self.run.output_names)
        if outputs != classes:
            raise ArtifactError(
                f"{_name(model)}: gives {outputs} scores, the run has {classes} classes. Convert it again"
            )
        return pool

    def _batches(self) -> Iterator[data.Batch]:
        """All photos, checked against the run: from memory, or from disk and then into memory if they fit."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[data.Batch] = []
        unreadable: list[data.Unreadable] = []
        for batch in data.decoded(self.examples, self.run.inputs):
            self.run.refuse_changed(self.examples.select(batch.indices), batch.sha256)
            unreadable += batch.unreadable
            if self._fits:
                kept.append(batch)
            yield batch
        ids = tuple(failure.id for failure in unreadable)
        if self._unreadable is None:
            data.check_unreadable(unreadable, len(self.examples))
            self._unreadable = ids
        elif ids != self._unreadable:
            # What Keras said in the first pass would stand beside other photos.
            changed = sorted(set(ids) ^ set(self._unreadable))
            raise DatasetError(f"{self.examples.root / changed[0]}: came or went meanwhile. Run the same command again")
        if self._fits:
            self._kept = kept


def _name(model: bytes | Path) -> str:
    return str(model) if isinstance(model, Path) else "the model"


def keras_forward(run: RunDir) -> Forward:
    """Load a run's Keras model: raw pixels [n, h, w, 3] -> probabilities [n, classes]."""
    quiet_tensorflow()
    import keras

    with progress("load the Keras model"):
        return forward_of(keras.saving.load_model(run.model_path, compile=False))


def show(report: EvaluationReport) -> str:
    """A line of titles, then one per model; the drop and all that follows from it is against Keras, in points."""
    wide = max(len(name) for name in ("keras", *(a.scheme for a in report.artifacts)))
    keras = report.keras
    lines = [
        f"{'':{wide}}  {PRIMARY[keras.task]:>5} %  95 % interval    drop   95 % interval  as Keras %" + _titles(keras),
        f"{'keras':{wide}}  {_shown(keras)}{'':36}{_figures(keras)}",
    ]
    for artifact in report.artifacts:
        scores, found = artifact.scores, artifact.against_keras
        interval = f"{100 * found.drop_low:+.2f}..{100 * found.drop_high:+.2f}"
        lines.append(
            f"{artifact.scheme:{wide}}  {_shown(scores)} {100 * found.drop:+7.2f}  {interval:>14}  "
            f"{100 * found.agreement:10.2f}{_figures(scores)}"
        )
    return "\n".join(lines)


def _shown(scores: Scores) -> str:
    return f"{100 * scores.primary:7.2f}  {f'{100 * scores.primary_low:.1f}-{100 * scores.primary_high:.1f}':>13}"


def _titles(scores: Scores) -> str:
    return "" if isinstance(scores, RegressionScores) else "     F1 %  log loss  calib. error %"


def _figures(scores: Scores) -> str:
    if isinstance(scores, RegressionScores):
        return ""
    return f" {100 * scores.f1:8.2f}  {scores.log_loss:8.4f}  {100 * scores.calibration_error:14.2f}"


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
