"""`benchmark`: how long the model takes here, from the first moment on, with how many threads."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from .contents import Bundle
from .energy import Energy, Meter
from .errors import DeviceError
from .host import describe_host
from .latency import RUNS, WARM, WARMUP, LatencyReport, Subject, measure
from .outcome import Outcome, shown_kernels, table
from .runtime import find_runtime
from .telemetry import Memory, Telemetry

SECONDS = 2.0
"""How long each number of threads is measured at least: long enough to see what else the machine does."""


@dataclass(frozen=True)
class BenchmarkReport:
    """What `benchmark` measured."""

    import_ms: float
    """Import numpy and the interpreter."""
    latencies: tuple[LatencyReport, ...]
    """One per number of threads."""
    command: str = "benchmark"
    schema_version: int = 1

    @property
    def cold_ms(self) -> float:
        """From an idle Python to the first result."""
        return self.import_ms + self.latencies[0].load_ms + self.latencies[0].first_ms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--threads", type=int, nargs="+", metavar="N", help="numbers of threads (default: 1, 2, 4, ... up to the cores)"
    )
    parser.add_argument(
        "--kernels",
        choices=("xnnpack", "builtin", "reference"),
        default="xnnpack",
        help="xnnpack: what apps use; builtin: no delegate; reference: slow, equal everywhere (default: %(default)s)",
    )
    parser.add_argument(
        "--runs", type=int, default=RUNS, metavar="N", help="invocations that count, at least (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="S",
        help="... and go on until they took this long; likewise for energy (default: %(default)s)",
    )
    parser.add_argument(
        "--warmup", type=int, default=WARMUP, metavar="N", help="invocations before them (default: %(default)s)"
    )
    parser.add_argument(
        "--meter",
        type=Path,
        metavar="FILE",
        help="where the system shows energy: energy_uj or energy<N>_input (microjoules so far), power<N>_input or "
        "power<N>_average (microwatts)",
    )


def run(bundle: Bundle, folder: Path, options: argparse.Namespace) -> Outcome:
    """Time the bundle's model.

    Args:
        bundle: what the folder holds.
        folder: of the bundle.
        options: of `add_arguments`.

    Raises:
        DeviceError: an option is out of range, the meter can't be read, or the model can't be loaded or run.
    """
    threads = tuple(dict.fromkeys(options.threads or default_threads(describe_host().cores)))
    _check(options, threads)
    meter = Meter(options.meter) if options.meter else None
    begin = time.perf_counter()
    find_runtime()
    import_ms = (time.perf_counter() - begin) * 1000
    with _progress(options.runs * len(threads)) as advance:
        latencies = measure(
            [Subject(folder / bundle.model, number, bundle.sha256) for number in threads],
            kernels=options.kernels,
            warmup=options.warmup,
            runs=options.runs,
            min_seconds=options.seconds,
            meter=meter,
            advance=advance,
        )
    report = BenchmarkReport(import_ms, latencies)
    return Outcome(report, tuple(shown(report)))


def default_threads(cores: int) -> list[int]:
    """1 and the powers of two up to the number of cores."""
    return [1 << power for power in range(cores.bit_length())]


def shown(report: BenchmarkReport) -> list[str]:
    """A table of the numbers of threads, and what to know with it."""
    first = report.latencies[0]
    titles = ["threads", "load ms", "first ms", "median ms", "p5", "p90", "p99", "images/s"]
    titles += ["mJ", "above idle"] if first.energy else []
    found, around = first.circumstances, first.surroundings
    return [
        *table([titles, *(_row(each) for each in report.latencies)]),
        f"{found.file}, {shown_kernels(found)}, {found.runtime}, Python {found.device.python}, {found.device}",
        f"cold start: {report.cold_ms:.0f} ms (import {report.import_ms:.0f}, load {first.load_ms:.1f}, first image "
        f"{first.first_ms:.1f}); Python's own start comes before",
        *(_shown_warmup(each) for each in report.latencies),
        *_shown_memory(first.memory),
        *_shown_telemetry(around.before, around.after),
        *_shown_energy(first.energy),
        *(f"noisy, {each.circumstances.threads} thread(s): {each.noise}" for each in report.latencies if each.noisy),
    ]


def _row(report: LatencyReport) -> list[str]:
    times = (report.median_ms, report.p5_ms, report.p90_ms, report.p99_ms)
    energy = report.energy
    return [
        str(report.circumstances.threads),
        f"{report.load_ms:.1f}",
        f"{report.first_ms:.2f}",
        *(f"{ms:.3f}" for ms in times),
        f"{1000 / report.median_ms:.1f}",
        *([f"{energy.mj:.2f}", f"{energy.above_idle_mj:.2f}"] if energy else []),
    ]


def _shown_warmup(report: LatencyReport) -> str:
    curve, warm = (report.first_ms, *report.warmup_ms), report.warm_after
    tenth = f", tenth {curve[9]:.2f}" if len(curve) > 9 else ""
    when = f"not yet after {len(curve)}" if warm is None else f"after {warm}"
    return (
        f"warm-up, {report.circumstances.threads} thread(s): first {curve[0]:.2f}{tenth}, median "
        f"{report.median_ms:.2f} ms; within {100 * WARM:.0f} % of the median {when} invocation(s)"
    )


def _shown_memory(memory: Memory) -> list[str]:
    if memory.peak_bytes is None:
        return []
    added = "" if memory.added_bytes is None else f", of which the model took {memory.added_bytes / 1e6:.0f} MB"
    return [f"memory: peak {memory.peak_bytes / 1e6:.0f} MB{added}"]


def _shown_telemetry(before: Telemetry, after: Telemetry) -> list[str]:
    told = []
    if before.temperature_c is not None and after.temperature_c is not None:
        told.append(f"{before.temperature_c:.0f} -> {after.temperature_c:.0f} C")
    if before.frequency_mhz is not None and after.frequency_mhz is not None:
        told.append(f"{before.frequency_mhz:.0f} -> {after.frequency_mhz:.0f} MHz")
    return [f"processor: {', '.join(told)}"] if told else []


def _shown_energy(energy: Optional[Energy]) -> list[str]:
    if not energy:
        return []
    how = f"power read {energy.readings_per_s:.0f} times a second" if energy.readings_per_s else "a counter"
    return [
        f"mJ per image: all that is behind the meter ({how}); above idle: without the {energy.idle_watts:.2f} W of "
        "doing nothing"
    ]


def _check(options: argparse.Namespace, threads: Sequence[int]) -> None:
    if min(threads) < 1 or options.runs < 1 or options.warmup < 0 or not 0 <= options.seconds < float("inf"):
        raise DeviceError(
            f"--threads {' '.join(map(str, threads))} --runs {options.runs} --warmup {options.warmup} "
            f"--seconds {options.seconds}: need at least 1 thread, 1 run, 0 warm-ups and 0 seconds"
        )
    if options.meter and not options.seconds:
        raise DeviceError(f"--meter {options.meter} --seconds 0: give the meter some seconds to count")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """Count invocations on one line, where somebody watches."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    done = 0

    def show() -> None:
        print(f"\r{done} of {total} invocations", end="", file=sys.stderr, flush=True)

    def advance(n: int) -> None:
        nonlocal done
        done += n
        show()

    try:
        show()
        yield advance
    finally:
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
