"""Times artifacts on this machine: `python -m export.benchmark RUN` or `... FILE`.

A latency means nothing without its circumstances, so a report carries threads, kernels, warm-up, machine,
versions and every single measurement.
"""

import statistics
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from edgetl.config import checked, command, to_json
from edgetl.console import progress, table_lines
from edgetl.errors import ArtifactError, ConfigError
from edgetl.rundir import write_atomic
from export.artifacts import artifact_files, device_errors

if TYPE_CHECKING:
    from export.device.interpreter import Model
    from export.device.timing import ColdStart

PROG = "python -m export.benchmark"
ROUNDS = 10
"""Artifacts take turns this often, so that a busy moment hits all alike."""
REWARM = 3
"""Invocations that bring an artifact back into the caches when its turn comes, not counted."""
DRIFT = 0.05
"""Medians of the first and second half may differ by this fraction."""
SPREAD = 0.25
"""The 10th to 90th percentile may span this fraction of the median."""


@dataclass(frozen=True)
class Config:
    """Time a run's artifacts, or any .tflite file, on this machine."""

    target: Positional[Path]
    """Run directory (the --out of a recipe), or a .tflite file."""
    schemes: tuple[str, ...] = ()
    """Which artifacts of a run; none means all that are there."""
    threads: int = 1
    """CPU threads of one invocation."""
    kernels: Literal["xnnpack", "builtin", "reference"] = "xnnpack"
    """`xnnpack` is what apps use; `builtin` has no delegate; `reference` is slow, and equal everywhere."""
    runs: int = 200
    """Invocations that are counted, per artifact."""
    warmup: int = 20
    """Invocations before them that are not, per artifact."""
    json: Path | None = None
    """Where to write the report on a single file. Reports on a run go beside its artifacts."""


@dataclass(frozen=True)
class LatencyReport:
    """How long one artifact takes on one machine."""

    path: str
    """File name."""
    scheme: str
    """File name without .tflite; the scheme, in a run."""
    sha256: str
    """Of the file."""
    size_bytes: int
    threads: int
    kernels: str
    warmup: int
    """Invocations before the first one that counts."""
    load_ms: float
    """Read the file, build the interpreter, allocate the tensors."""
    first_ms: float
    """The first invocation."""
    runs_ms: tuple[float, ...]
    """Every counted invocation, in order, on random pixels; copying them in is not part of it."""
    device: str
    """Processor or board, cores, operating system."""
    cores: int
    """Cores that the process could use."""
    versions: dict[str, str]
    """`python`, `runtime` (the interpreter) and `numpy`."""
    schema_version: int = 1

    @cached_property
    def median_ms(self) -> float:
        """Half of the invocations took longer."""
        return statistics.median(self.runs_ms)

    @cached_property
    def p10_ms(self) -> float:
        """A tenth of the invocations took less."""
        return _percentile(self.runs_ms, 10)

    @cached_property
    def p90_ms(self) -> float:
        """A tenth of the invocations took longer."""
        return _percentile(self.runs_ms, 90)

    @cached_property
    def noise(self) -> str:
        """Why the figures are not to be trusted; empty when they are."""
        reasons = []
        if self.threads > self.cores:
            reasons.append(f"{self.threads} threads on {self.cores} cores")
        half = len(self.runs_ms) // 2
        if half:
            drift = statistics.median(self.runs_ms[half:]) / statistics.median(self.runs_ms[:half]) - 1
            if abs(drift) > DRIFT:
                reasons.append(f"second half {100 * drift:+.0f} %")
        spread = (self.p90_ms - self.p10_ms) / self.median_ms
        if spread > SPREAD:
            reasons.append(f"p10 to p90 spans {100 * spread:.0f} % of the median")
        return "; ".join(reasons)

    @property
    def noisy(self) -> bool:
        """Whether there is a reason not to trust the figures."""
        return bool(self.noise)


def main(config: Config) -> tuple[LatencyReport, ...]:
    """Time artifacts, and write one report beside each artifact of a run.

    Returns:
        One report per artifact, in the order asked for.

    Raises:
        ConfigError: a number is out of range, or an option does not go with this target.
        ArtifactError: nothing to time, or a file that is damaged or breaks the input contract.
    """
    config = checked(config)
    _check(config)
    is_run = config.target.is_dir()
    paths = artifact_files(config.target / "export", config.schemes) if is_run else (config.target,)
    reports = measure(paths, config)
    if is_run:
        for path, report in zip(paths, reports, strict=True):
            write_atomic(path.with_suffix(".latency.json"), to_json(report))
    elif config.json:
        write_atomic(config.json, to_json(reports[0]))
    return reports


def measure(paths: tuple[Path, ...], config: Config) -> tuple[LatencyReport, ...]:
    """Time files in turns; `threads`, `kernels`, `runs` and `warmup` are taken from the config.

    Raises:
        ArtifactError: a file is missing, damaged, or breaks the input contract.
    """
    with device_errors():
        from export.device.timing import cold_start, time_invocations

        started = [cold_start(path, threads=config.threads, kernels=config.kernels) for path in paths]
        runs_ms: list[list[float]] = [[] for _ in paths]
        with progress("benchmark", config.runs * len(paths)) as bar:
            for turn in range(ROUNDS):
                # Whole rounds first: 23 runs are 3, 3, 3, 2, 2, ...
                count = config.runs // ROUNDS + (turn < config.runs % ROUNDS)
                if not count:
                    break
                for (model, _), collected in zip(started, runs_ms, strict=True):
                    warmup = config.warmup if turn == 0 else min(config.warmup, REWARM)
                    collected.extend(time_invocations(model, warmup=warmup, runs=count).runs_ms)
                    bar.advance(count)
    return tuple(
        _report(path, model, cold, tuple(each), config.warmup)
        for path, (model, cold), each in zip(paths, started, runs_ms, strict=True)
    )


def show(reports: tuple[LatencyReport, ...]) -> str:
    """A table of the reports, and what they were measured on."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("file", "MB", "median ms", "p90 ms", "p10-p90 ms", "load ms", "first ms"):
        table.add_column(title, justify="left" if title == "file" else "right", no_wrap=True)
    table.add_column("remark")
    for report in reports:
        figures = (report.median_ms, report.p90_ms)
        table.add_row(
            report.path,
            f"{report.size_bytes / 1e6:.2f}",
            *(f"{figure:.3f}" for figure in figures),
            f"{report.p10_ms:.3f}-{report.p90_ms:.3f}",
            f"{report.load_ms:.1f}",
            f"{report.first_ms:.2f}",
            f"noisy: {report.noise}" if report.noisy else "",
        )
    first = reports[0]
    circumstances = (
        f"{len(first.runs_ms)} runs after {first.warmup} warm-ups, {first.threads} thread(s), {first.kernels} kernels, "
        f"{first.versions['runtime']}, {first.device}"
    )
    return "\n".join([*table_lines(table, 120), circumstances])


def _check(config: Config) -> None:
    if config.runs < 1 or config.warmup < 0 or config.threads < 1:
        raise ConfigError(
            f"--runs {config.runs} --warmup {config.warmup} --threads {config.threads}: "
            "need at least 1 run, 0 warm-ups and 1 thread"
        )
    if not config.target.exists():
        raise ArtifactError(f"{config.target}: no such run or file. Give a run directory or a .tflite file")
    if config.target.is_dir() and config.json:
        raise ConfigError("--json is for a single file; reports on a run are written beside its artifacts")
    if config.schemes and not config.target.is_dir():
        raise ConfigError("--schemes chooses among a run's artifacts; give the run directory, or leave it out")


def _report(path: Path, model: "Model", cold: "ColdStart", runs_ms: tuple[float, ...], warmup: int) -> LatencyReport:
    import numpy

    from export.device.host import describe_host

    host = describe_host()
    return LatencyReport(
        path=path.name,
        scheme=path.stem,
        sha256=model.sha256,
        size_bytes=model.size_bytes,
        threads=model.threads,
        kernels=model.kernels,
        warmup=warmup,
        load_ms=cold.load_ms,
        first_ms=cold.first_ms,
        runs_ms=runs_ms,
        device=f"{host.cpu}, {host.cores} core(s), {host.system}",
        cores=host.cores,
        versions={"python": host.python, "runtime": model.runtime, "numpy": numpy.__version__},
    )


def _percentile(values: tuple[float, ...], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
