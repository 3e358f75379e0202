"""Everything that was measured on a run, in one table and one file: `python -m export.report RUN`. Measures nothing."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from edgetl.config import checked, command, to_json
from edgetl.console import table_lines
from edgetl.errors import ArtifactError
from edgetl.rundir import METRICS, RunDir, open_run, write_atomic
from edgetl.scores import MultiLabelScores, RegressionScores, Scores
from export.artifacts import Artifact, find_artifacts, gzip_size_bytes
from export.benchmark import latency_of
from export.device.latency import LatencyReport
from export.devices import DeviceLatency, DeviceRow, device_rows, shown
from export.evaluate import ArtifactScores, evaluation_of
from export.schemes import COMPRESSIONS, SCHEMES

PROG = "python -m export.report"
REPORT = "report.json"
TITLES = (
    "size\nMB",
    "gzip\nMB",
    "top-1\n%",
    "95 %\ninterval",
    "drop\n",
    "95 %\ninterval",
    "as Keras\n%",
    "calib.\nerror %",
    "ms\nmedian",
    "ms\np90",
)
COMPRESSED = (
    "pruned_, clustered_: what shrinks is what is transferred compressed (gzip), not the file",
    "pruned_: expect no speed from the zeros. XNNPACK skips them only in float models stored sparse, between a 3x3 "
    "convolution of stride 2 padded by 1 on each side and a mean over the image, where at least 2/3 of the weights of "
    "the 1x1 convolutions are zero, and not on x86 with AVX",
)
"""tensorflow/lite/delegates/xnnpack/README.md, "Sparse Inference"; google/XNNPACK issues 1419 (int8) and 3170 (x86)."""


@dataclass(frozen=True)
class Config:
    """Put a run's sizes, accuracies and latencies into one table and RUN/report.json."""

    run: Positional[Path]
    """Run directory (the --out of a recipe)."""


@dataclass(frozen=True)
class ReportRow:
    """One artifact: what it is, what it costs, what it is worth. All accuracies are fractions 0..1."""

    scheme: str
    path: str
    """Of the .tflite file, relative to the run directory."""
    sha256: str
    size_bytes: int
    gzip_bytes: int
    """Of the file after `gzip -9`: what a download or an app store transfers."""
    top1: float
    top1_low: float
    top1_high: float
    """95 % Wilson interval."""
    top1_drop: float
    """Accuracy lost against the Keras model on the same photos; negative: gained."""
    top1_drop_low: float
    top1_drop_high: float
    """95 % interval, paired (`edgetl.comparison`)."""
    lost: int | None
    gained: int | None
    """Photos that only Keras, and that only the artifact, names rightly."""
    mcnemar_p: float | None
    """How often chance alone would divide them at least as unevenly."""
    agreement: float
    """Share of test photos on which the artifact and Keras name the same class."""
    max_difference: float
    """Largest absolute difference of a probability to Keras."""
    class_drops: tuple[float | None, ...]
    """Recall lost in each class, in the order of `Report.class_samples`; None for a class without test photos."""
    calibration_error: float | None
    """How far its scores are from being probabilities (`edgetl.comparison`)."""
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
    data: str
    data_sha256: str
    run_sha256: str
    keras_top1: float
    keras_calibration_error: float | None
    class_samples: dict[str, int]
    """Class -> test photos."""
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
    schema_version: int = 3


def main(config: Config) -> Report:
    """Join artifacts, evaluation and latencies by their hashes and write RUN/report.json.

    Raises:
        RunError: the run or one of its reports is missing or damaged.
        ArtifactError: a report is about another file than the one that is there.
    """
    config = checked(config)
    run = open_run(config.run)
    artifacts = sorted(find_artifacts(run), key=lambda artifact: _order(artifact.scheme))
    latencies = {artifact.scheme: latency_of(run, artifact) for artifact in artifacts}
    evaluation, scored = evaluation_of(run, artifacts)
    timed = [latency for latency in latencies.values() if latency]
    told = [latency.circumstances for latency in timed]
    circumstances = {(str(each.device), each.threads, each.kernels) for each in told}
    if len(circumstances) > 1:
        raise ArtifactError(
            f"{run.export_path}: artifacts were timed under different circumstances "
            f"({'; '.join(f'{d}, {t} thread(s), {k}' for d, t, k in sorted(circumstances))}). "
            f"Time all of them in one go: python -m export.benchmark {run.path}"
        )
    device, threads, kernels = next(iter(circumstances), ("", 0, ""))
    report = Report(
        run=str(run.path),
        recipe=run.manifest.recipe,
        data=run.manifest.data,
        data_sha256=run.manifest.data_sha256,
        run_sha256=evaluation.run_sha256,
        keras_top1=evaluation.keras.primary,
        keras_calibration_error=evaluation.artifacts[0].against_keras.calibration_error_before,
        class_samples=_samples(evaluation.keras),
        device=device,
        threads=threads,
        kernels=kernels,
        noisy=any(latency.noisy for latency in timed),
        artifacts=tuple(_row(run, a, scored[a.scheme], latencies[a.scheme]) for a in artifacts),
        versions=evaluation.versions,
        notes=_notes(run, artifacts),
        devices=device_rows(run, artifacts),
    )
    write_atomic(run.path / REPORT, to_json(report))
    return report


def _order(scheme: str) -> tuple[int, int, str]:
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
    notes = tuple(json.loads((run.path / METRICS).read_bytes()).get("notes", ()))
    return (*notes, *COMPRESSED) if compressed else notes


def _row(run: RunDir, artifact: Artifact, result: ArtifactScores, latency: LatencyReport | None) -> ReportRow:
    scores, found = result.scores, result.against_keras
    content = (run.export_path / artifact.path).read_bytes()
    return ReportRow(
        scheme=artifact.scheme,
        path=f"export/{artifact.path}",
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        gzip_bytes=gzip_size_bytes(content),
        top1=scores.primary,
        top1_low=scores.primary_low,
        top1_high=scores.primary_high,
        top1_drop=found.drop,
        top1_drop_low=found.drop_low,
        top1_drop_high=found.drop_high,
        lost=found.flips.lost if found.flips else None,
        gained=found.flips.gained if found.flips else None,
        mcnemar_p=found.flips.mcnemar_p if found.flips else None,
        agreement=found.agreement,
        max_difference=found.max_difference,
        class_drops=found.drops,
        calibration_error=found.calibration_error_after,
        latency_ms_median=latency.median_ms if latency else None,
        latency_ms_p90=latency.p90_ms if latency else None,
        samples=scores.samples,
    )


def show(report: Report) -> str:
    """The table for the terminal, and what to know with it."""
    keras = f"{100 * report.keras_top1:.2f} %, calibration error {_percent(report.keras_calibration_error)} %"
    lines = [
        *_table(report.artifacts),
        f"{report.artifacts[0].samples} test photos of {report.data}; Keras itself: {keras}",
        "drop: points of top-1 lost against Keras; its interval is from the photos that only one of the two gets right",
        *filter(None, (_uneven(row, report.class_samples) for row in report.artifacts)),
        _circumstances(report),
        *_devices(report),
        *report.notes,
        f"files: {report.run}/export/<scheme>.tflite; figures: {report.run}/{REPORT}",
    ]
    return "\n".join(lines)


def _table(rows: Sequence[ReportRow]) -> list[str]:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("scheme", no_wrap=True)
    for title in TITLES:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.scheme,
            f"{row.size_bytes / 1e6:.2f}",
            f"{row.gzip_bytes / 1e6:.2f}",
            f"{100 * row.top1:.2f}",
            f"{100 * row.top1_low:.1f}-{100 * row.top1_high:.1f}",
            f"{100 * row.top1_drop:+.2f}",
            f"{100 * row.top1_drop_low:+.2f}..{100 * row.top1_drop_high:+.2f}",
            f"{100 * row.agreement:.2f}",
            _percent(row.calibration_error),
            *(_ms(time) for time in (row.latency_ms_median, row.latency_ms_p90)),
        )
    return table_lines(table, 121)  # the last one is the table's margin


def _devices(report: Report) -> list[str]:
    """This machine and the devices, side by side."""
    here = {
        row.scheme: DeviceLatency(report.threads, row.latency_ms_median, row.latency_ms_p90, None, None, "")
        for row in report.artifacts
        if row.latency_ms_median is not None
    }
    return shown(report.devices, here) if report.devices else []


def _samples(scores: Scores) -> dict[str, int]:
    """Test photos of each class or label; of each target all."""
    if isinstance(scores, RegressionScores):
        return {target.name: scores.samples for target in scores.targets}
    each = scores.labels if isinstance(scores, MultiLabelScores) else scores.classes
    return {one.name: one.samples for one in each}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _ms(time: float | None) -> str:
    return "-" if time is None else f"{time:.2f}" if time < 1000 else f"{time:.0f}"


def _uneven(row: ReportRow, class_samples: dict[str, int]) -> str:
    """Name the class that lost more than its share, if one did: what the overall drop hides."""
    losses = [
        (drop, round(drop * samples), samples, name)
        for drop, (name, samples) in zip(row.class_drops, class_samples.items(), strict=True)
        # A share is what the interval of the overall drop allows; one photo alone is no sign of anything.
        if drop is not None and drop > max(row.top1_drop_high, 0) and round(drop * samples) > 1
    ]
    if not losses:
        return ""
    drop, photos, samples, name = max(losses)
    more = f"; so did {len(losses) - 1} more class(es)" if len(losses) > 1 else ""
    of = f"{photos} of {samples} photos"
    return f"{row.scheme}: {name} lost more than its share, {100 * drop:.1f} points of recall ({of}){more}"


def _circumstances(report: Report) -> str:
    if not report.threads:
        return f"latency: not measured here; python -m export.benchmark {report.run}"
    busy = "; the machine was busy: do not trust the times" if report.noisy else ""
    return f"latency: {report.threads} thread(s), {report.kernels}, {report.device}{busy}"


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
