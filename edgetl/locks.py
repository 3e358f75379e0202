"""Folders that several processes fill: one at a time, and whoever comes later finds them filled."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)


@contextlib.contextmanager
def alone(folder: Path, waiting: str) -> Iterator[None]:
    """Check and fill a folder alone; whoever comes second waits and then finds it filled.

    Args:
        folder: it exists.
        waiting: what the log says while another process has it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s", waiting)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
