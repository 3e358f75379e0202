"""What `report.json` holds: everything that was measured on a run, joined by the hashes of the files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.config import from_json
from edgetl.errors import ArtifactError, ConfigError, RunError
from edgetl.outputs import Task
from edgetl.rundir import METRICS, RunDir
from edgetl.scores import OutputScores, Scores
from export.artifacts import Artifact, find_artifacts, gzip_size_bytes
from export.benchmark import latency_of
from export.device.latency import LatencyReport
from export.devices import DeviceRow, device_rows
from export.evaluate import ArtifactScores, EvaluationReport, evaluation_of, outputs_of
from export.schemes import COMPRESSIONS, SCHEMES

BUDGET = 0.01
"""An artifact that loses more of the primary figure than this is not recommended: one point."""
ALIKE = 0.05
"""Latencies that differ by less than this share count as equal: what two measurements of one file differ by."""
COMPRESSED = (
    "pruned_, clustered_: what shrinks is what is transferred compressed (gzip), not the file",
    "pruned_: expect no speed from the zeros. XNNPACK skips them only in float models stored sparse, between a 3x3 "
    "convolution of stride 2 padded by 1 on each side and a mean over the image, where at least 2/3 of the weights of "
    "the 1x1 convolutions are zero, and not on x86 with AVX",
)
"""tensorflow/lite/delegates/xnnpack/README.md, "Sparse Inference"; google/XNNPACK issues 1419 (int8) and 3170 (x86)."""


@dataclass(frozen=True)
class ReportRow:
    """One artifact: what it is, what it costs, what it is worth.

    `primary` is what models of the task are chosen by (`edgetl.scores.PRIMARY`): a fraction, at most 1.
    """

    scheme: str
    path: str
    """Of the .tflite file, relative to the run directory."""
    sha256: str
    size_bytes: int
    gzip_bytes: int
    """Of the file after `gzip -9`: what a download or an app store transfers."""
    primary: float
    primary_low: float
    primary_high: float
    """95 % interval."""
    drop: float
    """Lost of `primary` against the Keras model on the same photos; negative: gained."""
    drop_low: float
    drop_high: float
    """95 % interval, paired (`edgetl.comparison`)."""
    lost: int | None
    gained: int | None
    """Photos that only Keras, and that only the artifact, names rightly; None where not exactly one class is right."""
    mcnemar_p: float | None
    """How often chance alone would divide them at least as unevenly."""
    agreement: float
    """Share of test photos of which the artifact and Keras say the same."""
    max_difference: float
    """Largest absolute difference to Keras: of a score, or of a number in its standard deviations."""
    drops: tuple[float | None, ...]
    """Lost in each output, in the order of `Report.output_samples`: recall of a class, F1 of a label, R2 of a target;
    None for one without test photos."""
    calibration_error: float | None
    """How far its scores are from being probabilities (`edgetl.metrics`); None for numbers."""
    latency_ms_median: float | None
    latency_ms_p90: float | None
    """One invocation on this machine; None where `export.benchmark` has not been run."""
    samples: int
    """Test photos scored."""


@dataclass(frozen=True)
class Report:
    """What `report.json` holds."""

    run: str
    recipe: str
    task: Task
    data: str
    data_sha256: str
    run_sha256: str
    keras_primary: float
    keras_primary_low: float
    keras_primary_high: float
    keras_calibration_error: float | None
    output_samples: dict[str, int]
    """Class or label -> test photos of it; target -> all test photos."""
    recommended: str
    """Scheme of the artifact to ship first; see `recommended`."""
    device: str
    threads: int
    kernels: str
    """Of the latencies; empty and 0 where there are none."""
    noisy: bool
    """Whether the machine was too busy for the latencies to be trusted."""
    artifacts: tuple[ReportRow, ...]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    """What the recipe says of the training, such as whether it overfitted, and what to know of the artifacts."""
    devices: tuple[DeviceRow, ...] = ()
    """What devices found out about the artifacts (`export.deploy`)."""
    schema_version: int = 4

    def row(self, scheme: str) -> ReportRow:
        """The artifact of a scheme."""
        return next(row for row in self.artifacts if row.scheme == scheme)


def join(run: RunDir) -> tuple[Report, EvaluationReport]:
    """Join artifacts, evaluation, latencies and devices.

    Returns:
        The report, and the evaluation that it is from.

    Raises:
        RunError: a report is missing or damaged.
        ArtifactError: a report is about another file than the one that is there.
    """
    artifacts = sorted(find_artifacts(run), key=lambda artifact: order(artifact.scheme))
    latencies = {artifact.scheme: latency_of(run, artifact) for artifact in artifacts}
    evaluation, scored = evaluation_of(run, artifacts)
    timed = [latency for latency in latencies.values() if latency]
    device, threads, kernels = _circumstances(run, timed)
    rows = tuple(_row(run, a, scored[a.scheme], latencies[a.scheme]) for a in artifacts)
    devices = device_rows(run, artifacts)
    keras = evaluation.keras
    report = Report(
        run=str(run.path),
        recipe=run.manifest.recipe,
        task=run.outputs.task,
        data=run.manifest.data,
        data_sha256=run.manifest.data_sha256,
        run_sha256=evaluation.run_sha256,
        keras_primary=keras.primary,
        keras_primary_low=keras.primary_low,
        keras_primary_high=keras.primary_high,
        keras_calibration_error=scored[artifacts[0].scheme].against_keras.calibration_error_before,
        output_samples=dict(zip(run.output_names, samples_of(keras), strict=True)),
        recommended=recommended(rows, devices),
        device=device,
        threads=threads,
        kernels=kernels,
        noisy=any(latency.noisy for latency in timed),
        artifacts=rows,
        versions=evaluation.versions,
        notes=_notes(run, artifacts),
        devices=devices,
    )
    return report, evaluation


def _circumstances(run: RunDir, timed: Sequence[LatencyReport]) -> tuple[str, int, str]:
    """Machine, threads and kernels of all latencies; refused where they differ."""
    told = [latency.circumstances for latency in timed]
    circumstances = {(str(each.device), each.threads, each.kernels) for each in told}
    if len(circumstances) > 1:
        raise ArtifactError(
            f"{run.export_path}: artifacts were timed under different circumstances "
            f"({'; '.join(f'{d}, {t} thread(s), {k}' for d, t, k in sorted(circumstances))}). "
            f"Time all of them in one go: python -m export.benchmark {run.path}"
        )
    return next(iter(circumstances), ("", 0, ""))


def order(scheme: str) -> tuple[int, int, str]:
    """Sort key: by row of the table of schemes, each followed by its compressed forms; unknown ones last."""
    compression = _compression(scheme)
    rows = list(SCHEMES)
    base = scheme.removeprefix(f"{compression}_")
    return rows.index(base) if base in rows else len(rows), ("", *COMPRESSIONS).index(compression), scheme


def _compression(scheme: str) -> str:
    """What the model went through first, by the name of a scheme that need not be known; empty for nothing."""
    return next((each for each in COMPRESSIONS if scheme.startswith(f"{each}_")), "")


def _notes(run: RunDir, artifacts: Sequence[Artifact]) -> tuple[str, ...]:
    """What the recipe left to say, if it did, and what a reader of the sizes should know."""
    compressed = any(_compression(artifact.scheme) for artifact in artifacts)
    path = run.path / METRICS
    try:
        found = from_json(dict[str, Any], path.read_bytes(), source=str(path)).get("notes", [])
        notes = from_json(tuple[str, ...], json.dumps(found), source=f"{path}: notes")
    except ConfigError as error:
        raise RunError(f"{error}. Restore it or run the recipe into a new --out") from None
    return (*notes, *COMPRESSED) if compressed else notes


def samples_of(scores: Scores) -> tuple[int, ...]:
    """Test photos of each class or label; of a target, all."""
    return tuple(each.samples if isinstance(each, OutputScores) else scores.samples for each in outputs_of(scores))


def _row(run: RunDir, artifact: Artifact, result: ArtifactScores, latency: LatencyReport | None) -> ReportRow:
    scores, found = result.scores, result.against_keras
    flips = found.flips
    return ReportRow(
        scheme=artifact.scheme,
        path=f"export/{artifact.path}",
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        gzip_bytes=gzip_size_bytes((run.export_path / artifact.path).read_bytes()),
        primary=scores.primary,
        primary_low=scores.primary_low,
        primary_high=scores.primary_high,
        drop=found.drop,
        drop_low=found.drop_low,
        drop_high=found.drop_high,
        lost=flips.lost if flips else None,
        gained=flips.gained if flips else None,
        mcnemar_p=flips.mcnemar_p if flips else None,
        agreement=found.agreement,
        max_difference=found.max_difference,
        drops=found.drops,
        calibration_error=found.calibration_error_after,
        latency_ms_median=latency.median_ms if latency else None,
        latency_ms_p90=latency.p90_ms if latency else None,
        samples=scores.samples,
    )


def recommended(rows: Sequence[ReportRow], devices: Sequence[DeviceRow] = ()) -> str:
    """Choose the artifact to ship first.

    Of those that lose at most BUDGET and failed on no device: the fastest, and of those as fast (ALIKE) the smallest;
    the smallest where not all were timed. Where all lose more, the one that loses least.

    Args:
        rows: at least one.
        devices: what devices found out.

    Returns:
        Its scheme.
    """
    failed = {device.scheme for device in devices if device.passed is False}
    sound = [row for row in rows if row.scheme not in failed] or list(rows)
    good = [row for row in sound if row.drop <= BUDGET]
    if not good:
        return min(sound, key=lambda row: (row.drop, row.size_bytes)).scheme
    times = {row.scheme: row.latency_ms_median for row in good}
    known = [time for time in times.values() if time is not None]
    if len(known) == len(good):
        limit = min(known) * (1 + ALIKE)
        good = [row for row in good if (times[row.scheme] or 0.0) <= limit]
    return min(good, key=lambda row: row.size_bytes).scheme
