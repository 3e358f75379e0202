"""Keeps the interpreter's greeting off standard error."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GREETING = b"INFO: Created TensorFlow Lite XNNPACK delegate"
_lock = threading.Lock()
_greeted = False


@contextmanager
def swallowed_greeting() -> Iterator[None]:
    """Divert standard error while the first XNNPACK model of the process is built.

    Native code writes its greeting past Python, once per process, whatever the log level. So the descriptor
    is diverted for the first load only, and everything else that was written meanwhile is passed on.
    """
    global _greeted
    with _lock:
        first, _greeted = not _greeted, True
    try:
        saved = os.dup(2) if first else -1
    except OSError:  # there is no standard error
        saved = -1
    if saved < 0:
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            kept = [line for line in sink.read().splitlines(keepends=True) if not line.startswith(GREETING)]
            if kept:
                os.write(2, b"".join(kept))
