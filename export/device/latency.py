"""Latency reports: how long files take on this machine, measured alike on host and device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from .energy import Energy, Meter, measure_energy
from .outcome import Circumstances, circumstances
from .telemetry import Memory, Surroundings, Watch

if TYPE_CHECKING:
    from .interpreter import Kernels

RUNS = 200
WARMUP = 20
"""What is usual: invocations that count, and those before them."""
REPEATABLE = 0.05
"""Two runs in a row differ by at most this fraction, or one of them says that it was noisy."""
DRIFT = REPEATABLE / 2
"""Medians of the first and second half may differ by this fraction: two runs are twice as far apart as two halves."""
OTHERS = 0.05
"""Others may take this share of all cores' time."""
WARM = 0.05
"""A model is warm once an invocation takes at most this fraction longer than the median."""


@dataclass(frozen=True)
class LatencyReport:
    """How long one file takes on one machine."""

    circumstances: Circumstances
    load_ms: float
    """Read the file, build the interpreter, allocate the tensors."""
    first_ms: float
    """The first invocation."""
    warmup_ms: tuple[float, ...]
    """The invocations after it that do not count, in order: the warm-up curve."""
    runs_ms: tuple[float, ...]
    """Every counted invocation, in order, on random pixels; copying them in is not part of it."""
    memory: Memory
    """After the warm-up; told of the first of several that were timed together, as the next ones' is on top of that."""
    surroundings: Surroundings
    """While the counted invocations ran, of this file and of those that took turns with it."""
    energy: Optional[Energy] = None
    """Where a meter was named."""
    schema_version: int = 2

    def __post_init__(self) -> None:
        """Refuse a report that measured nothing."""
        if not self.runs_ms:
            raise ValueError("runs_ms is empty")

    @cached_property
    def median_ms(self) -> float:
        """Half of the invocations took longer."""
        return statistics.median(self.runs_ms)

    @property
    def p5_ms(self) -> float:
        """A twentieth of the invocations took less."""
        return self._percentile(5)

    @property
    def p10_ms(self) -> float:
        """A tenth of the invocations took less."""
        return self._percentile(10)

    @property
    def p90_ms(self) -> float:
        """A tenth of the invocations took longer."""
        return self._percentile(90)

    @property
    def p99_ms(self) -> float:
        """A hundredth of the invocations took longer."""
        return self._percentile(99)

    @cached_property
    def noise(self) -> str:
        """Why the figures are not to be trusted; empty when they are."""
        reasons = []
        threads, cores = self.circumstances.threads, self.circumstances.device.cores
        if threads > cores:
            reasons.append(f"{threads} threads on {cores} cores")
        half = len(self.runs_ms) // 2
        if half:
            drift = statistics.median(self.runs_ms[half:]) / statistics.median(self.runs_ms[:half]) - 1
            if abs(drift) > DRIFT:
                reasons.append(f"second half {100 * drift:+.0f} %")
        # Where half of the invocations lie within REPEATABLE, another mixture of the same moments has no other median.
        low, high = (self._percentile(percent) / self.median_ms - 1 for percent in (25, 75))
        if max(-low, high) > REPEATABLE:
            reasons.append(f"the middle half spans {100 * low:+.0f} to {100 * high:+.0f} % of the median")
        others = self.surroundings.others
        if others is not None and others > OTHERS:
            reasons.append(f"others took {100 * others:.0f} % of the processor")
        if self.surroundings.slowed_by:
            reasons.append(f"the processor slowed itself down ({self.surroundings.slowed_by})")
        return "; ".join(reasons)

    @property
    def noisy(self) -> bool:
        """Whether there is a reason not to trust the figures."""
        return bool(self.noise)

    @property
    def warm_after(self) -> Optional[int]:
        """Invocations before the first one within WARM of the median; None where none was before counting began."""
        curve = (self.first_ms, *self.warmup_ms)
        return next((number for number, ms in enumerate(curve) if ms <= (1 + WARM) * self.median_ms), None)

    def _percentile(self, percent: int) -> float:
        if len(self.runs_ms) == 1:
            return self.runs_ms[0]
        return statistics.quantiles(self.runs_ms, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True)
class Subject:
    """One file, run in one way."""

    path: Path
    threads: int = 1
    sha256: Optional[str] = None
    """What the file's hash must be; None means unknown."""


def measure(
    subjects: Sequence[Subject],
    *,
    kernels: Kernels = "xnnpack",
    warmup: int = WARMUP,
    runs: int = RUNS,
    min_seconds: float = 0.0,
    meter: Optional[Meter] = None,
    advance: Callable[[int], object] = lambda _: None,
) -> tuple[LatencyReport, ...]:
    """Time files, or one file with several numbers of threads: first each one's start, then all in turns.

    Args:
        subjects: what to time.
        kernels: see `Model`.
        warmup: invocations between the first one and those that count, at least 0.
        runs: invocations that count, per subject, at least 1.
        min_seconds: go on beyond `runs` until this much time was measured per subject, and measure energy for as
            long, seconds.
        meter: of the device's energy.
        advance: is told, bit by bit, how many of the `runs` of all subjects together are done.

    Raises:
        DeviceError: a file is missing, damaged, of another hash, or breaks the input contract; a number is out of
            its range; the meter can't be read.
    """
    from .timing import start, take_turns

    started = [
        start(each.path, threads=each.threads, kernels=kernels, sha256=each.sha256, warmup=warmup) for each in subjects
    ]
    watch = Watch()
    series = take_turns([each.model for each in started], runs=runs, min_seconds=min_seconds, advance=advance)
    surroundings = watch.stop()
    reports = []
    for number, (begun, runs_ms) in enumerate(zip(started, series)):  # noqa: B905 (Python 3.9 has no strict)
        energy = measure_energy(meter, begun.model.invoke, min_seconds) if meter else None
        reports.append(
            LatencyReport(
                circumstances=circumstances(begun.model),
                load_ms=begun.load_ms,
                first_ms=begun.first_ms,
                warmup_ms=begun.warmup_ms,
                runs_ms=runs_ms,
                memory=Memory(None, None) if number else begun.memory,
                surroundings=surroundings,
                energy=energy,
            )
        )
    return tuple(reports)
