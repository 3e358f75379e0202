"""What a command of the device program gives back, and the circumstances without which no figure travels."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DeviceError
from .host import Host, describe_host

if TYPE_CHECKING:
    from .interpreter import Model


@dataclass(frozen=True)
class Circumstances:
    """Which file, run how, on what."""

    file: str
    """Name of the .tflite file."""
    sha256: str
    """Of that file, as loaded."""
    size_bytes: int
    threads: int
    """CPU threads of one invocation."""
    kernels: str
    """What was asked for: `xnnpack`, `builtin` or `reference`."""
    kernels_used: str
    """What computed: `builtin` where XNNPACK takes none of the operators."""
    runtime: str
    """Interpreter and its version."""
    device: Host
    versions: dict[str, str]
    """`python`, `numpy`, and `pillow` where it is installed."""
    time: str
    """When this was written down, UTC, ISO 8601."""


@dataclass(frozen=True)
class Outcome:
    """What a command found."""

    report: Any
    """A dataclass of plain values: what the JSON file holds."""
    lines: tuple[str, ...]
    """What a person reads."""
    passed: bool = True
    """Whether what was checked holds; else the exit status is 1."""


def circumstances(model: Model) -> Circumstances:
    """Describe a loaded model and the machine it runs on."""
    host = describe_host()
    versions = {"python": host.python}
    for package in ("numpy", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return Circumstances(
        file=Path(model.where).name,
        sha256=model.sha256,
        size_bytes=model.size_bytes,
        threads=model.threads,
        kernels=model.kernels,
        kernels_used=model.kernels_used,
        runtime=model.runtime,
        device=host,
        versions=versions,
        time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def shown_circumstances(found: Circumstances) -> str:
    """The line below a table."""
    return (
        f"{found.file}, {found.threads} thread(s), {shown_kernels(found)}, {found.runtime}, "
        f"Python {found.device.python}, {found.device}"
    )


def finite(scores: list[float], file: str) -> list[float]:
    """Hand scores on.

    Raises:
        DeviceError: one is not a number, or infinite.
    """
    if not all(map(math.isfinite, scores)):
        raise DeviceError(f"{file}: gives scores that are not numbers here. Try another interpreter")
    return scores


def shown_kernels(found: Circumstances) -> str:
    """What computed, and what should have."""
    other = "" if found.kernels == found.kernels_used else f" ({found.kernels} takes none of its operators here)"
    return f"{found.kernels_used} kernels{other}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns: the first to the left, the others to the right. The first row is the titles."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = [
        "  ".join(text.ljust(width) if not column else text.rjust(width) for column, (text, width) in enumerate(cells))
        for cells in (list(zip(row, widths)) for row in rows)  # noqa: B905 (Python 3.9 has no strict)
    ]
    return [line.rstrip() for line in aligned]


def check_place(path: Path) -> None:
    """Make sure, before anything is measured, that a report can be written there.

    Raises:
        DeviceError: it can't.
    """
    with _one_line_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        there = path.absolute()
        while not there.exists():
            there = there.parent
        if there != path.absolute() and not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file")
        # As files will be opened, not as whoever called a program with other rights.
        if not os.access(there, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, f"{there} can't be written to")


def write_json(report: Any, path: Path) -> None:
    """Write a report, whole or not at all; to what is no file, a pipe or a device, directly.

    Raises:
        DeviceError: the place can't be written to.
    """
    text = json.dumps(dataclasses.asdict(report), indent=2, allow_nan=False) + "\n"
    with _one_line_errors(path):
        place = path.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists() and not place.is_file():
            place.write_text(text, encoding="utf-8")
            return
        temporary = place.with_name(f".{place.name}.part")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(place)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror or error}. Choose another place with --json") from error
