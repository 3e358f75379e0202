"""What the machine does while something is measured: other load, heat, memory. None where the system does not tell."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

ROOT = Path("/")
"""Where /proc and /sys are."""
PI_THROTTLED = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
"""Lowest bits of a Raspberry Pi's get_throttled: how it slows itself down at this moment."""
PROCESSOR_ZONE = re.compile(r"cpu|pkg|soc|core|tsens|^(big|mid|little)", re.IGNORECASE)
"""What the thermal zones of processors are called on PCs, boards and phones. Others are batteries, modems, cases."""


@dataclass(frozen=True)
class Telemetry:
    """What the system tells at one moment."""

    temperature_c: Optional[float]
    """Of the hottest thermal zone of the processor."""
    frequency_mhz: Optional[float]
    """Of the fastest core."""
    throttled: tuple[str, ...]
    """How the board slows itself down at this moment, of PI_THROTTLED."""
    throttlings: Optional[int]
    """How often cores have slowed themselves down since the system was started, all cores together."""


@dataclass(frozen=True)
class Surroundings:
    """What the machine did while something was measured."""

    seconds: float
    others: Optional[float]
    """Share of all cores' time, 0..1, that other processes took and, on a virtual machine, other machines."""
    before: Telemetry
    after: Telemetry

    @property
    def slowed_by(self) -> str:
        """How the processor slowed itself down; empty where it did not, or does not tell."""
        if self.after.throttled or self.before.throttled:
            return ", ".join(dict.fromkeys(self.before.throttled + self.after.throttled))
        return "throttled" if (self.after.throttlings or 0) > (self.before.throttlings or 0) else ""


@dataclass(frozen=True)
class Memory:
    """Resident memory of the process."""

    peak_bytes: Optional[int]
    """The most it has had so far."""
    added_bytes: Optional[int]
    """How much of that was not there before: the model, its interpreter and its working memory."""


@dataclass(frozen=True)
class Ticks:
    """What all cores together have done since the system was started, in the system's ticks."""

    busy: int
    total: int
    cores: int


class Watch:
    """Watches the machine from its creation until `stop`."""

    def __init__(self, root: Path = ROOT) -> None:
        """Begin.

        Args:
            root: where /proc and /sys are.
        """
        self._root = root
        self._before = telemetry(root)
        self._processor = processor_ticks(root)
        self._wall, self._own = time.perf_counter(), time.process_time()

    def stop(self) -> Surroundings:
        """Tell what happened since."""
        seconds, own = time.perf_counter() - self._wall, time.process_time() - self._own
        others = _others(self._processor, processor_ticks(self._root), own)
        return Surroundings(seconds, others, self._before, telemetry(self._root))


def telemetry(root: Path = ROOT) -> Telemetry:
    """Read temperature, clock and throttling.

    Args:
        root: where /proc and /sys are.
    """
    zones = root.glob("sys/class/thermal/thermal_zone*")
    degrees = [_number(zone / "temp") for zone in zones if PROCESSOR_ZONE.search(_text(zone / "type"))]
    clocks = [_number(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    counts = [
        _number(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    ]
    hottest, fastest, throttlings = _most(degrees), _most(clocks), [count for count in counts if count is not None]
    bits = _number(root / "sys/devices/platform/soc/soc:firmware/get_throttled", base=16) or 0
    return Telemetry(
        temperature_c=None if hottest is None else hottest / 1000,
        frequency_mhz=None if fastest is None else fastest / 1000,
        throttled=tuple(what for bit, what in enumerate(PI_THROTTLED) if bits >> bit & 1),
        throttlings=sum(throttlings) if throttlings else None,
    )


def processor_ticks(root: Path = ROOT) -> Optional[Ticks]:
    """Read what the cores have done since the system was started; None where it does not tell, as on Android."""
    lines = [line.split() for line in _text(root / "proc/stat").splitlines() if line.startswith("cpu")]
    if not lines or len(lines[0]) < 9:
        return None
    # The two fields after these, time spent on guests, are counted among the first two already.
    user, nice, system, idle, waiting, hard, soft, stolen = (int(word) for word in lines[0][1:9])
    busy = user + nice + system + hard + soft + stolen
    return Ticks(busy, busy + idle + waiting, cores=len(lines) - 1)


def _others(then: Optional[Ticks], now: Optional[Ticks], own_seconds: float) -> Optional[float]:
    if not then or not now or now.total <= then.total:
        return None
    own = own_seconds * os.sysconf("SC_CLK_TCK")
    # Each core counts whole ticks (10 ms): of a short time one tick each may be chance, and is not held against others.
    others = now.busy - then.busy - own - now.cores
    return min(max(others / (now.total - then.total), 0.0), 1.0)


def resident_bytes(root: Path = ROOT) -> Optional[int]:
    """Read how much memory the process has now, or where the system does not tell, at most had so far."""
    return _status(root, "VmRSS") or peak_bytes(root)


def peak_bytes(root: Path = ROOT, system: str = sys.platform) -> Optional[int]:
    """Read how much memory the process has had at most.

    Args:
        root: where /proc is.
        system: as sys.platform names it.
    """
    told = _status(root, "VmHWM")  # getrusage inherits the peak of the process that started this one
    if told:
        return told
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if system == "darwin" else most * 1024


def memory_since(before: Optional[int], root: Path = ROOT) -> Memory:
    """Compare memory with what `resident_bytes` said before."""
    peak = peak_bytes(root)
    return Memory(peak, None if peak is None or before is None else max(peak - before, 0))


def _status(root: Path, name: str) -> Optional[int]:
    found = re.search(rf"^{name}:\s*(\d+) kB$", _text(root / "proc/self/status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _most(values: Iterable[Optional[int]]) -> Optional[int]:
    # Zones of sensors that are off say 0 or less.
    return max((value for value in values if value is not None and value > 0), default=None)


def _number(path: Path, base: int = 10) -> Optional[int]:
    try:
        return int(_text(path), base)
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not there, not for us, or the driver has no answer at the moment
        return ""
