"""What devices found out about a run's artifacts: RUN/devices/<name>/<scheme>/*.json, and one table of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.console import table_lines
from edgetl.errors import ArtifactError, ConfigError
from edgetl.rundir import RunDir, read_json, sealed, write_atomic
from export.android import AndroidReport
from export.artifacts import Artifact
from export.device.benchmark import BenchmarkReport
from export.device.check import CheckReport
from export.device.info import InfoReport

DEVICES = "devices"
"""Folder of a run."""
COMMANDS = ("info", "check", "benchmark")
"""Of the device program, in the order they are run; each writes a report of its name."""
REPORTS: dict[str, type[Any]] = {
    "info": InfoReport,
    "check": CheckReport,
    "benchmark": BenchmarkReport,
    "android": AndroidReport,
}
TITLES = (
    "host's\n%",
    "as\nhost %",
    "largest\ndifference",
    "check\n",
    "threads\n",
    "ms\nmedian",
    "ms\np90",
    "ms\nmean",
    "peak\nMB",
)


@dataclass(frozen=True)
class DeviceLatency:
    """Invocations on one number of threads, ms; None where the tool on the device does not tell."""

    threads: int
    median_ms: float | None
    p90_ms: float | None
    mean_ms: float | None
    peak_bytes: int | None
    """Resident memory of the process, once the model is warm."""
    noise: str
    """Why the figures are not to be trusted; empty when they are."""


@dataclass(frozen=True)
class DeviceRow:
    """What a device found out about an artifact. Accuracies are fractions, None where only latency was measured."""

    name: str
    """As the user calls it."""
    device: str
    scheme: str
    sha256: str
    """Of the .tflite file that ran."""
    kernels: str
    runtime: str
    time: str
    """When, UTC, ISO 8601."""
    samples: int
    """Photos of the bundle's sample."""
    metric: str
    """What the two figures are: `top-1`, `F1` or `R2`; empty where only latency was measured."""
    score: float | None
    """On the sample."""
    host_score: float | None
    """Of the host on the same photos."""
    agreement: float | None
    """Share of them of which both say the same."""
    max_difference: float | None
    """Largest absolute difference of a score to the host's; of a target, in its deviations."""
    passed: bool | None
    """Whether that is within the bundle's bounds."""
    latencies: tuple[DeviceLatency, ...]


def device_folder(run: RunDir, name: str, scheme: str) -> Path:
    """Where the reports of one device on one artifact lie.

    Args:
        run: the run.
        name: of the device; becomes a folder.
        scheme: of the artifact.

    Raises:
        ConfigError: no folder can have this name.
    """
    if not name or name.startswith((".", "-")) or re.search(r"[/\\\x00-\x1f\x7f]", name) or len(name.encode()) > 200:
        raise ConfigError(f"--name {name!r}: must be usable as a folder's name")
    return run.path / DEVICES / name / scheme


def save(folder: Path, reports: dict[str, Any]) -> None:
    """Write reports.

    Args:
        folder: see `device_folder`.
        reports: key of REPORTS -> report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, report in reports.items():
        write_atomic(folder / f"{name}.json", sealed(report))


def device_rows(run: RunDir, artifacts: Sequence[Artifact]) -> tuple[DeviceRow, ...]:
    """Read what devices found out, by device and in the order of the artifacts.

    Raises:
        RunError: a report is missing or damaged.
        ArtifactError: a report is about another file than the one that is there.
    """
    rows = []
    for device in sorted(path for path in (run.path / DEVICES).glob("*") if path.is_dir()):
        for artifact in artifacts:
            folder = device / artifact.scheme
            if (folder / "android.json").is_file():
                rows.append(android_row(device.name, _read(folder / "android.json", artifact)))
            if any((folder / f"{command}.json").is_file() for command in COMMANDS):
                found = [_read(folder / f"{command}.json", artifact) for command in COMMANDS]
                rows.append(device_row(device.name, *found))
    return tuple(rows)


def _read(path: Path, artifact: Artifact) -> Any:
    report = read_json(REPORTS[path.stem], path)
    if subjects(report) != {artifact.sha256}:
        raise ArtifactError(
            f"{path}: about another file than {artifact.path} is now. Run python -m export.deploy --scheme "
            f"{artifact.scheme} for that device again, or delete {path.parent}"
        )
    return report


def subjects(report: Any) -> set[str]:
    """Hashes of the files that a report is about."""
    if isinstance(report, BenchmarkReport):
        return {each.circumstances.sha256 for each in report.latencies}
    return {report.circumstances.sha256 if isinstance(report, CheckReport) else report.sha256}


def device_row(name: str, info: InfoReport, check: CheckReport, benchmark: BenchmarkReport) -> DeviceRow:
    """Join what the device program reported."""
    found = benchmark.latencies[0].circumstances
    latencies = [
        DeviceLatency(
            threads=each.circumstances.threads,
            median_ms=each.median_ms,
            p90_ms=each.p90_ms,
            mean_ms=sum(each.runs_ms) / len(each.runs_ms),
            peak_bytes=each.memory.peak_bytes,
            noise=each.noise,
        )
        for each in benchmark.latencies
    ]
    return DeviceRow(
        name=name,
        device=str(found.device),
        scheme=info.scheme,
        sha256=info.sha256,
        kernels=found.kernels_used,
        runtime=found.runtime,
        time=found.time,
        samples=len(check.photos),
        metric=check.metric,
        score=check.score,
        host_score=check.host_score,
        agreement=check.agreement,
        max_difference=check.max_difference,
        passed=check.passed,
        latencies=tuple(latencies),
    )


def android_row(name: str, report: AndroidReport) -> DeviceRow:
    """The same of what benchmark_model measured."""
    latencies = [
        DeviceLatency(
            threads=each.threads,
            median_ms=each.median_ms,
            p90_ms=None,
            mean_ms=each.mean_ms,
            peak_bytes=None,
            noise="",
        )
        for each in report.timings
    ]
    return DeviceRow(
        name=name,
        device=str(report.device),
        scheme=report.scheme,
        sha256=report.sha256,
        kernels=report.kernels,
        runtime=f"benchmark_model {report.tool_sha256[:12]}",
        time=report.time,
        samples=0,
        metric="",
        score=None,
        host_score=None,
        agreement=None,
        max_difference=None,
        passed=None,
        latencies=tuple(latencies),
    )


def shown(rows: Sequence[DeviceRow], here: Mapping[str, DeviceLatency] | None = None) -> list[str]:
    """A table with a line per number of threads, and what to know with it.

    Args:
        rows: what devices found out.
        here: scheme -> latency on this machine, to compare with.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("device", max_width=24, overflow="fold")
    table.add_column("scheme", no_wrap=True)
    metric = next((row.metric for row in rows if row.metric), "score")
    for title in (f"{metric}\n%", *TITLES):
        table.add_column(title, justify="right", no_wrap=True)
    nothing = ("-",) * 5
    for scheme in dict.fromkeys(row.scheme for row in rows):
        if here and scheme in here:
            table.add_row("(this machine)", scheme, *nothing, *_timed(here[scheme]))
        for row in (row for row in rows if row.scheme == scheme):
            checked = nothing if row.passed is None else _checked(row)
            for latency in row.latencies:
                table.add_row(row.name, scheme, *checked, *_timed(latency))
    return [*table_lines(table, 121), *(line for row in rows for line in _remarks(row))]


def _checked(row: DeviceRow) -> tuple[str, ...]:
    shares = (row.score, row.host_score, row.agreement)
    verdict = "PASSED" if row.passed else "FAILED"
    return (*(f"{100 * (share or 0):.2f}" for share in shares), f"{row.max_difference:.6f}", verdict)


def _timed(latency: DeviceLatency) -> list[str]:
    times = (latency.median_ms, latency.p90_ms, latency.mean_ms)
    peak = "-" if latency.peak_bytes is None else f"{latency.peak_bytes / 1e6:.0f}"
    return [str(latency.threads), *("-" if time is None else f"{time:.2f}" for time in times), peak]


def _remarks(row: DeviceRow) -> list[str]:
    sample = f"; checked on {row.samples} test photos" if row.samples else ""
    return [
        f"{row.name}: {row.device}; {row.kernels} kernels, {row.runtime}{sample}",
        *(
            f"{row.name}, {latency.threads} thread(s): noisy, do not trust the times ({latency.noise})"
            for latency in row.latencies
            if latency.noise
        ),
    ]
