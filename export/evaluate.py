"""Score every artifact of a run on its test split, through the interpreter: `python -m export.evaluate RUN`.

The very file that ships is given the pixels that training's own pipeline prepares, and judged by the one scorer in
`edgetl.metrics`, next to the Keras model on the same photos.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

from edgetl import data
from edgetl.config import checked, command, to_json
from edgetl.console import progress, quiet_tensorflow
from edgetl.errors import ArtifactError, ConfigError, RunError
from edgetl.features import Forward
from edgetl.metrics import Scores, agreement, score
from edgetl.rundir import RunDir, installed_versions, open_run, read_json, sha256_of, write_atomic
from export.artifacts import Artifact, find_artifacts

PROG = "python -m export.evaluate"
EVALUATION = "evaluation.json"


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
    agreement: float
    """Share of photos, 0..1, on which the artifact and Keras name the same class."""
    max_difference: float
    """Largest absolute difference of a probability to Keras, 0..1."""


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
    schema_version: int = 1


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
    test = run.splits(config.data).test
    workers = config.workers or data.default_workers()
    labels, outputs, unreadable, runtime = _predict(run, artifacts, test, workers)
    keras_outputs, *artifact_outputs = outputs
    for artifact, probabilities in zip(artifacts, artifact_outputs, strict=True):
        if not np.isfinite(probabilities).all():
            raise ArtifactError(f"{artifact.path}: outputs are not finite. Deploy another scheme")
    scored = [
        ArtifactScores(
            scheme=artifact.scheme,
            sha256=artifact.sha256,
            scores=score(labels, probabilities),
            agreement=agreement(probabilities, keras_outputs),
            max_difference=float(np.abs(probabilities - keras_outputs).max()),
        )
        for artifact, probabilities in zip(artifacts, artifact_outputs, strict=True)
    ]
    report = EvaluationReport(
        run_sha256=run.model_sha256,
        data_sha256=run.manifest.data_sha256,
        split="test",
        keras=score(labels, keras_outputs),
        artifacts=tuple(scored + _still_valid(run, scored, unreadable)),
        unreadable=unreadable,
        kernels="xnnpack",
        runtime=runtime,
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


def _predict(
    run: RunDir, artifacts: Sequence[Artifact], test: data.Examples, workers: int
) -> tuple[NDArray[np.int64], list[NDArray[np.float32]], tuple[str, ...], str]:
    """Outputs [n, classes] of Keras (first) and of each artifact on the photos that can be read."""
    from export.artifacts import open_pool

    pools = [open_pool(run.export_path / artifact.path, workers) for artifact in artifacts]
    keras_forward = _keras_forward(run)
    labels: list[NDArray[np.int64]] = []
    outputs: list[list[NDArray[np.float32]]] = [[] for _ in range(len(pools) + 1)]
    unreadable: list[data.Unreadable] = []
    with ThreadPoolExecutor(workers) as threads, progress("evaluate", len(test)) as bar:
        for batch in data.decoded(test, run.inputs):
            unreadable += batch.unreadable
            bar.advance(len(batch.pixels) + len(batch.unreadable))
            if not len(batch.pixels):
                continue
            run.refuse_changed(test.select(batch.indices), batch.sha256)
            labels.append(test.labels[batch.indices])
            outputs[0].append(keras_forward(batch.pixels))
            parts = np.array_split(batch.pixels, min(workers, len(batch.pixels)))
            for pool, collected in zip(pools, outputs[1:], strict=True):
                collected.extend(threads.map(pool.run, parts))
    data.check_unreadable(unreadable, len(test))
    return (
        np.concatenate(labels),
        [np.concatenate(parts) for parts in outputs],
        tuple(failure.id for failure in unreadable),
        pools[0].runtime,
    )


def _keras_forward(run: RunDir) -> Forward:
    quiet_tensorflow()
    import keras
    import tensorflow as tf

    with progress("load the Keras model"):
        model = keras.saving.load_model(run.model_path, compile=False)
    compiled = tf.function(lambda images: model(images, training=False), reduce_retracing=True)
    return lambda pixels: np.asarray(compiled(tf.cast(pixels, tf.float32)))


def show(report: EvaluationReport) -> str:
    """One line per artifact."""
    rows = [("keras", report.keras, 1.0)] + [(a.scheme, a.scores, a.agreement) for a in report.artifacts]
    return "\n".join(
        f"{name:14} top-1 {100 * s.top1:.2f} % ({100 * s.top1_low:.1f}-{100 * s.top1_high:.1f}), macro F1 "
        f"{100 * s.f1:.2f} %, log loss {s.log_loss:.4f}, as Keras {100 * same:.2f} %"
        for name, s, same in rows
    )


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
