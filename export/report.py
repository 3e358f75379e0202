"""Everything that was measured on a run, in one table and one file: `python -m export.report RUN`. Measures nothing."""

import json
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from tyro.conf import Positional

from edgetl.config import checked, command, to_json
from edgetl.errors import ArtifactError
from edgetl.rundir import METRICS, RunDir, open_run, read_json, write_atomic
from export.artifacts import Artifact, find_artifacts
from export.benchmark import LatencyReport
from export.evaluate import EVALUATION, ArtifactScores, EvaluationReport
from export.schemes import SCHEMES

PROG = "python -m export.report"
REPORT = "report.json"
_ORDER = {name: index for index, name in enumerate(SCHEMES)}


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
    top1: float
    top1_low: float
    top1_high: float
    """95 % Wilson interval."""
    top1_drop: float
    """Accuracy lost against the float32 artifact (against Keras where there is none); negative: gained."""
    agreement: float
    """Share of test photos on which the artifact and Keras name the same class."""
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
    device: str
    threads: int
    kernels: str
    """Of the latencies; empty and 0 where there are none."""
    noisy: bool
    """Whether the machine was too busy for the latencies to be trusted."""
    artifacts: tuple[ReportRow, ...]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    """What the recipe says of the training, such as what was thawed and whether it overfitted."""
    schema_version: int = 1


def main(config: Config) -> Report:
    """Join artifacts, evaluation and latencies by their hashes and write RUN/report.json.

    Raises:
        RunError: the run or one of its reports is missing or damaged.
        ArtifactError: a report is about another file than the one that is there.
    """
    config = checked(config)
    run = open_run(config.run)
    artifacts = sorted(find_artifacts(run), key=lambda artifact: _ORDER.get(artifact.scheme, len(_ORDER)))
    if not (run.export_path / EVALUATION).is_file():
        raise ArtifactError(f"{run.export_path}: not evaluated yet. Run python -m export.evaluate {run.path}")
    evaluation = read_json(EvaluationReport, run.export_path / EVALUATION)
    latencies = {artifact.scheme: _latency(run, artifact) for artifact in artifacts}
    scored = {scores.sha256: scores for scores in evaluation.artifacts}
    reference = next((s.scores.top1 for s in evaluation.artifacts if s.scheme == "float32"), evaluation.keras.top1)
    for artifact in artifacts:
        if artifact.sha256 not in scored:
            raise ArtifactError(
                f"{artifact.path}: not evaluated since it was made. Run python -m export.evaluate {run.path}"
            )
    timed = [latency for latency in latencies.values() if latency]
    circumstances = {(latency.device, latency.threads, latency.kernels) for latency in timed}
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
        keras_top1=evaluation.keras.top1,
        device=device,
        threads=threads,
        kernels=kernels,
        noisy=any(latency.noisy for latency in timed),
        artifacts=tuple(_row(a, scored[a.sha256], latencies[a.scheme], reference) for a in artifacts),
        versions=evaluation.versions,
        notes=_notes(run),
    )
    write_atomic(run.path / REPORT, to_json(report))
    return report


def _notes(run: RunDir) -> tuple[str, ...]:
    """What the recipe left to say, if it did."""
    return tuple(json.loads((run.path / METRICS).read_bytes()).get("notes", ()))


def _latency(run: RunDir, artifact: Artifact) -> LatencyReport | None:
    path = run.export_path / f"{artifact.scheme}.latency.json"
    if not path.is_file():
        return None
    latency = read_json(LatencyReport, path)
    if latency.sha256 != artifact.sha256:
        raise ArtifactError(f"{artifact.path}: not timed since it was made. Run python -m export.benchmark {run.path}")
    return latency


def _row(artifact: Artifact, result: ArtifactScores, latency: LatencyReport | None, reference: float) -> ReportRow:
    scores = result.scores
    return ReportRow(
        scheme=artifact.scheme,
        path=f"export/{artifact.path}",
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        top1=scores.top1,
        top1_low=scores.top1_low,
        top1_high=scores.top1_high,
        top1_drop=reference - scores.top1,
        agreement=result.agreement,
        latency_ms_median=latency.median_ms if latency else None,
        latency_ms_p90=latency.p90_ms if latency else None,
        samples=scores.samples,
    )


def show(report: Report) -> str:
    """The table for the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("scheme", no_wrap=True)
    for title in ("size MB", "top-1 %", "95 % interval", "drop", "as Keras %", "ms median", "ms p90"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in report.artifacts:
        table.add_row(
            row.scheme,
            f"{row.size_bytes / 1e6:.2f}",
            f"{100 * row.top1:.2f}",
            f"{100 * row.top1_low:.1f}-{100 * row.top1_high:.1f}",
            f"{100 * row.top1_drop:+.2f}",
            f"{100 * row.agreement:.2f}",
            *("-" if ms is None else f"{ms:.2f}" for ms in (row.latency_ms_median, row.latency_ms_p90)),
        )
    buffer = StringIO()
    Console(file=buffer, width=120).print(table)
    samples = report.artifacts[0].samples
    lines = [
        *(line.rstrip() for line in buffer.getvalue().splitlines()),
        f"{samples} test photos of {report.data}; Keras itself: {100 * report.keras_top1:.2f} %",
        _circumstances(report),
        *report.notes,
        f"files: {report.run}/export/<scheme>.tflite; figures: {report.run}/{REPORT}",
    ]
    return "\n".join(lines)


def _circumstances(report: Report) -> str:
    if not report.threads:
        return f"latency: not measured here; python -m export.benchmark {report.run}"
    busy = "; the machine was busy: do not trust the times" if report.noisy else ""
    return f"latency: {report.threads} thread(s), {report.kernels}, {report.device}{busy}"


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
