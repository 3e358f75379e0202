"""What invocations cost in energy, by a meter that the system shows as a file."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from .errors import DeviceError

COUNTER = re.compile(r"energy(_uj|\d*_input)")
"""Files that count microjoules: Intel and AMD's RAPL, hwmon."""
POWER = re.compile(r"power\d*_(input|average)")
"""Files that tell microwatts: hwmon."""
POLL_SECONDS = 0.01
"""A power file is read this often, or as often as its driver can."""


@dataclass(frozen=True)
class Energy:
    """What a meter said while a model ran, idle power and all that is behind the meter included."""

    seconds: float
    """Of invocations back to back."""
    inferences: int
    joules: float
    """During these."""
    idle_watts: float
    """While nothing ran, measured for as long right before."""
    readings_per_s: Optional[float]
    """How often the power was read; None for a counter, which misses nothing."""

    @property
    def mj(self) -> float:
        """Millijoules per invocation, the idle machine included."""
        return 1000 * self.joules / self.inferences

    @property
    def above_idle_mj(self) -> float:
        """Millijoules per invocation beyond what the idle machine takes in that time."""
        return 1000 * (self.joules - self.idle_watts * self.seconds) / self.inferences


@dataclass(frozen=True)
class Reading:
    """What went through the meter while something was done."""

    seconds: float
    joules: float
    readings: int
    """Of a power file; 0 for a counter."""


class Meter:
    """A file that counts energy, or tells power."""

    def __init__(self, path: Path) -> None:
        """Open a meter.

        Args:
            path: `energy_uj` or `energy<N>_input` (microjoules so far), `power<N>_input` or `power<N>_average`
                (microwatts at this moment).

        Raises:
            DeviceError: another name, or the file can't be read.
        """
        self.path = path
        self.counts = bool(COUNTER.fullmatch(path.name))
        if not self.counts and not POWER.fullmatch(path.name):
            raise DeviceError(
                f"{path}: not known as a meter. Name a file energy_uj or energy<N>_input (microjoules so far), "
                "power<N>_input or power<N>_average (microwatts)"
            )
        self.read()

    def read(self) -> int:
        """Read microjoules or microwatts.

        Raises:
            DeviceError: the file can't be read, or does not hold a number.
        """
        return _number(self.path)

    def over(self, work: Callable[[], object]) -> Reading:
        """Measure the energy of some work.

        Raises:
            DeviceError: the meter can't be read, or counted backwards.
        """
        return self._counted(work) if self.counts else self._sampled(work)

    def _counted(self, work: Callable[[], object]) -> Reading:
        begin, before = time.perf_counter(), self.read()
        work()
        seconds, spent = time.perf_counter() - begin, self.read() - before
        if spent < 0:  # RAPL counts in 32 bits of its own units and says where it starts again
            spent += _number(self.path.with_name("max_energy_range_uj"))
        if spent < 0:
            raise DeviceError(f"{self.path}: it counted backwards. Name another meter")
        if not spent:  # nothing that is on takes none
            raise DeviceError(
                f"{self.path}: it stood still for {seconds:.1f} s. Name another meter, or raise --seconds"
            )
        return Reading(seconds, spent / 1e6, 0)

    def _sampled(self, work: Callable[[], object]) -> Reading:
        """Read the power in a thread and add it up, each reading until the next one."""
        samples: list[tuple[float, int]] = [(time.perf_counter(), self.read())]
        failed: list[DeviceError] = []
        done = threading.Event()

        def sample() -> None:
            try:
                while not done.wait(POLL_SECONDS):
                    samples.append((time.perf_counter(), self.read()))
            except DeviceError as error:
                failed.append(error)

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            work()
        finally:
            done.set()
            thread.join()
        if failed:
            raise failed[0]
        begin, end = samples[0][0], time.perf_counter()
        ends = [moment for moment, _ in samples[1:]] + [end]
        microjoules = sum(power * (until - at) for (at, power), until in zip(samples, ends))  # noqa: B905 (3.9)
        return Reading(end - begin, microjoules / 1e6, len(samples))


def measure_energy(meter: Meter, invoke: Callable[[], object], seconds: float) -> Energy:
    """Measure the energy of invocations, after that of doing nothing.

    Args:
        meter: what to read.
        invoke: runs the warm model once.
        seconds: how long to run, and to do nothing before, at least.

    Raises:
        DeviceError: the meter can't be read, or the interpreter failed.
    """
    inferences = 0

    def run() -> None:
        nonlocal inferences
        end = time.perf_counter() + seconds
        while not inferences or time.perf_counter() < end:
            invoke()
            inferences += 1

    idle = meter.over(lambda: time.sleep(seconds))
    busy = meter.over(run)
    rate = busy.readings / busy.seconds if busy.readings else None
    return Energy(busy.seconds, inferences, busy.joules, idle.joules / idle.seconds, rate)


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror or error}. Name a meter that this user may read") from error
    except ValueError as error:
        raise DeviceError(f"{path}: holds no number. Name another meter") from error
