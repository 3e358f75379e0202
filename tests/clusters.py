"""Tasks for processes of this machine and of a cluster."""

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from edgetl.errors import DatasetError
from edgetl.search.outcome import Outcome


def added(shared: int, number: int) -> int:
    """A task."""
    return shared + number


def process(shared: Any) -> int:
    """Where a task runs."""
    time.sleep(0.3)
    return os.getpid()


def limits(shared: Any) -> dict[str, str]:
    """What a task may use."""
    return {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")}


def refused(shared: Any) -> None:
    """A task that fails on purpose."""
    raise DatasetError("no such photo")


def killed_once(marks: Path, name: str) -> str:
    """A task whose process dies the first time."""
    if not (marks / name).exists():
        (marks / name).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def busy_in_c(marks: Path, name: str) -> str:
    """A task that is inside of one long call of C, in which no signal is looked at; `first` dies the first time."""
    if name == "first":
        while not (marks / "other").exists():
            time.sleep(0.01)
        return killed_once(marks, name)
    (marks / "other").touch()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)
    return name


def killed(shared: Any) -> None:
    """A task that kills its process whenever it runs."""
    os.kill(os.getpid(), signal.SIGKILL)


def trial(shared: Any, number: int, params: dict[str, Any], *_: object) -> Outcome:
    """A trial of a search; the second always kills its process, and leaves a checkpoint."""
    if number == 1:
        (shared.folder / "0001").mkdir(exist_ok=True)
        killed(shared)
    return Outcome(number, params, "complete", shared.splits_sha256, {"accuracy": 1 / (1 + number)})


def stubborn(marks: Path) -> None:
    """A task that notes when it is asked to end, and when it has."""
    try:
        (marks / "began").write_text(str(os.getpid()))
        time.sleep(60)
    except KeyboardInterrupt:
        (marks / "saved").touch()
        raise
