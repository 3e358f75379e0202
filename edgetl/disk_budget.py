"""One budget of disk space for all entries of a cache, each a folder of files with a lock beside it.

Whoever has an entry open holds its lock, shared; to delete an entry takes the lock alone, so that what a living process
has open stays. The time of the lock file is the time of the entry's last use.
"""

import contextlib
import fcntl
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgetl.console import log
from edgetl.errors import ConfigError, DiskSpaceError

_LARGER_BUDGET = "make room with a larger --disk-budget-gb"


@dataclass(frozen=True)
class Entry:
    """What is to be stored, as far as disk space goes."""

    folder: Path
    size_bytes: int
    """Of all files of the whole entry."""
    photos: int
    views: int
    view_bytes: int
    """Of one view of one photo."""
    streams: bool = True
    """Whether there is a way without storing it, `--views 0`."""


def check_budget(entry: Entry, budget: int) -> None:
    """Refuse an entry that is larger than the budget, bytes.

    Raises:
        ConfigError: it is; says how many views fit.
    """
    if entry.size_bytes > budget:
        raise ConfigError(_no_room(entry, f"the budget is {_amount(budget)}", budget, _LARGER_BUDGET))


def make_room(entry: Entry, missing_bytes: int, budget: int) -> None:
    """Delete entries that nobody uses, those unused for longest first, until the missing part of an entry fits.

    Args:
        entry: what is to be completed; its folder is left alone.
        missing_bytes: of the entry's size, what is not on disk yet.
        budget: what all entries beside each other may take, bytes.

    Raises:
        DiskSpaceError: entries in use, or a full disk, leave too little room. Nothing was deleted.
    """
    root = entry.folder.parent
    others = [path for path in root.iterdir() if path.is_dir() and path != entry.folder]
    with contextlib.ExitStack() as held:
        idle = {path: _bytes_of(path) for path in others if _claim(path, held)}
        in_use = sum(_bytes_of(path) for path in others if path not in idle)
        free = shutil.disk_usage(root).free
        if in_use + entry.size_bytes > budget:
            used_by = "in use, by this run's other photos or by other runs"
            what = f"{_amount(in_use)} of the budget of {_amount(budget)} are {used_by}"
            raise DiskSpaceError(_no_room(entry, what, max(budget - in_use, 0), _LARGER_BUDGET))
        if free + sum(idle.values()) < missing_bytes:
            available = free + sum(idle.values()) + entry.size_bytes - missing_bytes
            raise DiskSpaceError(_no_room(entry, f"{root} has {_amount(free)} free", available, "free some disk space"))
        used = in_use + entry.size_bytes + sum(idle.values())
        for path in sorted(idle, key=lambda path: lock_file(path).stat().st_mtime_ns):
            if used <= budget and free >= missing_bytes:
                break
            log.info("border activations: %s (%s, unused for longest) deleted to make room", path, _amount(idle[path]))
            shutil.rmtree(path)
            used, free = used - idle[path], free + idle[path]


def lock_file(folder: Path) -> Path:
    """Name the lock of an entry: beside it, and never deleted, so it is always the same lock for everybody."""
    return folder.parent / f"{folder.name}.lock"


def _no_room(entry: Entry, limit: str, available: int, way_out: str) -> str:
    one_view = entry.photos * entry.view_bytes
    beside_views = entry.size_bytes - entry.views * one_view
    fits = min((available - beside_views) // one_view, entry.views - 1)
    fewer = f"Take fewer views (--views {fits} fits)" if fits > 0 else "Not even one view fits"
    size = f"{entry.photos} photos x {entry.views} views x {_amount(entry.view_bytes)}"
    advice = (
        f"thaw fewer blocks, {way_out}, or stream with --views 0"
        if entry.streams
        else f"thaw fewer blocks or {way_out}"
    )
    return f"border activations need {_amount(entry.size_bytes)} ({size}) and {limit}. {fewer}: {advice}"


def _amount(size: int) -> str:
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB")) if size >= u[0]), (1e3, "KB"))
    return f"{size / unit:.1f} {name}"


def _bytes_of(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a file that another process has just finished
            total += path.stat().st_size
    return total


def _claim(folder: Path, held: contextlib.ExitStack) -> bool:
    """Take an entry that nobody has open, so that nobody opens it while it is being deleted."""
    lock = held.enter_context(lock_file(folder).open("ab"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
