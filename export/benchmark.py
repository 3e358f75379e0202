"""Times artifacts on this machine: `python -m export.benchmark RUN` or `... FILE`.

A latency means nothing without its circumstances, so a report carries threads, kernels, warm-up, machine,
versions and every single measurement.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from edgetl.config import checked, command, to_json
from edgetl.console import progress, table_lines
from edgetl.errors import ArtifactError, ConfigError
from edgetl.rundir import RunDir, held, read_json, sealed, write_atomic
from export.artifacts import Artifact, artifact_files, device_errors
from export.device.latency import RUNS, WARMUP, LatencyReport, Subject
from export.device.latency import measure as measure_subjects
from export.trial import refuse_crashing

PROG = "python -m export.benchmark"


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
    runs: int = RUNS
    """Invocations that are counted, per artifact."""
    warmup: int = WARMUP
    """Invocations before them that are not, per artifact."""
    json: Path | None = None
    """Where to write the report on a single file. Reports on a run go beside its artifacts."""


def main(config: Config) -> tuple[LatencyReport, ...]:
    """Time artifacts, and write one report beside each artifact of a run.

    Returns:
        One report per artifact, in the order asked for.

    Raises:
        ConfigError: a number is out of range, or an option does not go with this target.
        ArtifactError: nothing to time, or a file that is damaged, breaks the input contract or crashes native code.
        RunError: another process is writing the run, or a description beside an artifact is damaged.
    """
    config = checked(config)
    _check(config)
    is_run = config.target.is_dir()
    paths = artifact_files(config.target / "export", config.schemes) if is_run else (config.target,)
    with held(RunDir(config.target)) if is_run else nullcontext():
        refuse_crashing(paths, threads=config.threads, kernels=config.kernels)
        reports = measure(paths, config, tuple(_described(path) for path in paths) if is_run else ())
        if is_run:
            for path, report in zip(paths, reports, strict=True):
                write_atomic(path.with_suffix(".latency.json"), sealed(report))
        elif config.json:
            write_atomic(config.json, to_json(reports[0]))
    return reports


def measure(paths: tuple[Path, ...], config: Config, sha256: Sequence[str | None] = ()) -> tuple[LatencyReport, ...]:
    """Time files in turns; `threads`, `kernels`, `runs` and `warmup` are taken from the config.

    Args:
        paths: the files.
        config: how to time them.
        sha256: what their hashes must be, where they are known.

    Raises:
        ArtifactError: a file is missing, damaged, another than the hash says, or breaks the input contract.
    """
    subjects = [Subject(path, config.threads, known) for path, known in zip_longest(paths, sha256)]
    with device_errors(), progress("benchmark", config.runs * len(paths)) as bar:
        return measure_subjects(
            subjects, kernels=config.kernels, warmup=config.warmup, runs=config.runs, advance=bar.advance
        )


def _described(path: Path) -> str | None:
    """Hash of an artifact in the description that lies beside it; None where there is none."""
    about = path.with_suffix(".json")
    return read_json(Artifact, about).sha256 if about.is_file() else None


def latency_of(run: RunDir, artifact: Artifact) -> LatencyReport | None:
    """Read how long an artifact takes on this machine; None where it was not timed.

    Raises:
        ArtifactError: timed before it was made.
        RunError: the report is damaged.
    """
    path = run.export_path / f"{artifact.scheme}.latency.json"
    if not path.is_file():
        return None
    latency = read_json(LatencyReport, path)
    if latency.circumstances.sha256 != artifact.sha256:
        raise ArtifactError(f"{artifact.path}: not timed since it was made. Run python -m export.benchmark {run.path}")
    return latency


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
            report.circumstances.file,
            f"{report.circumstances.size_bytes / 1e6:.2f}",
            *(f"{figure:.3f}" for figure in figures),
            f"{report.p10_ms:.3f}-{report.p90_ms:.3f}",
            f"{report.load_ms:.1f}",
            f"{report.first_ms:.2f}",
            f"noisy: {report.noise}" if report.noisy else "",
        )
    first, found = reports[0], reports[0].circumstances
    below = (
        f"{len(first.runs_ms)} runs after {len(first.warmup_ms)} warm-ups, {found.threads} thread(s), {found.kernels} "
        f"kernels, {found.runtime}, {found.device}"
    )
    return "\n".join([*table_lines(table, 120), below])


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
    if config.json and (config.json.is_dir() or not config.json.absolute().parent.is_dir()):
        raise ConfigError(f"--json {config.json}: not a place for a file. Name a file in a folder that is there")
    if config.schemes and not config.target.is_dir():
        raise ConfigError("--schemes chooses among a run's artifacts; give the run directory, or leave it out")


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
