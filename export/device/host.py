"""What machine this is: no latency travels without it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """A machine."""

    cpu: str
    """Processor, or board where the board says more (`Raspberry Pi 4 Model B Rev 1.4`)."""
    cores: int
    """Cores that this process may use."""
    system: str
    """Operating system, release and architecture."""
    python: str

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} core(s), {self.system}"


def describe_host() -> Host:
    """Describe the machine that this process runs on."""
    return Host(
        cpu=_board() or _processor() or platform.processor() or "unknown",
        cores=_cores(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _board() -> str:
    return _text("/proc/device-tree/model").rstrip("\0").strip()


def _processor() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
