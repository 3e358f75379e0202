"""The process a command runs in: its log, its progress bars, and silence where libraries chatter.

Lines go to the logger `edgetl` on standard error; progress bars appear only where that logger speaks. A
notebook is silent until `logging.getLogger("edgetl").setLevel("INFO")`; `--quiet` on a command is the opposite.
"""

import io
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from edgetl.printable import printable

log = logging.getLogger("edgetl")


class _Printable(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (its name in logging)
        return printable(super().formatMessage(record))


@contextmanager
def log_to_stderr(level: int = logging.INFO) -> Iterator[None]:
    """Show edgetl's own lines on standard error, without prefix, while the block runs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(message)s"))
    before = log.handlers, log.level, log.propagate
    log.handlers, log.propagate = [handler], False
    log.setLevel(level)
    try:
        yield
    finally:
        log.handlers, _, log.propagate = before
        log.setLevel(before[1])


def table_lines(table: Table, width: int) -> list[str]:
    """Lay a table out as lines of text, at most `width` characters wide, without blanks at their ends."""
    text = io.StringIO()
    Console(file=text, width=width, markup=False, highlight=False).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


class _RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


class Bar:
    """One progress bar: `advance(n)` as work gets done."""

    def __init__(self, progress: Progress, total: int | None, label: str, done: int = 0) -> None:
        """Attach a task of `total` items (None: unknown), some of them done before, to a running display."""
        self._progress = progress
        self._task = progress.add_task(label, total=total, completed=done)
        self._part: Bar | None = None

    def advance(self, n: int = 1) -> None:
        """Count `n` more items as done."""
        self._progress.advance(self._task, n)

    def part(self, label: str, total: int, done: int = 0) -> "Bar":
        """Show a second bar below for one part of the work, in place of that of the part before."""
        if self._part:
            self._progress.remove_task(self._part._task)
        self._part = Bar(self._progress, total, label, done)
        return self._part

    def say(self, line: str) -> None:
        """Log a line; on a terminal above the bars, which would be torn by it otherwise."""
        if self._progress.disable:
            log.info("%s", line)
        else:
            self._progress.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(label: str, total: int | None = None, done: int = 0) -> Iterator[Bar]:
    """Show one progress bar with rate and time left while the block runs.

    Args:
        label: what is being done, a few words.
        total: number of items, or None for work of unknown length (a spinner with the elapsed time).
        done: number of items that an earlier process has done.

    Yields:
        The bar. On a stream that is not a terminal one line is logged at the end instead.
    """
    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}")]
    if total is not None:
        columns += [BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn()]
    columns.append(TimeElapsedColumn())
    speaks = log.isEnabledFor(logging.INFO)
    with _own_stderr() as stream:
        console = Console(file=stream)
        terminal = console.is_terminal
        display = Progress(*columns, console=console, disable=not (speaks and terminal))
        with display:
            yield Bar(display, total, label, done)
    if speaks and not terminal:
        task = display.tasks[0]
        count = "" if total is None else f" {task.completed:.0f}/{total}"
        log.info("%s%s (%.1f s)", label, count, task.elapsed or 0.0)


@contextmanager
def _own_stderr() -> Iterator[TextIO]:
    """Standard error; where it is a terminal, by a descriptor of its own that `swallowed_output` leaves alone."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield sys.stderr
        return
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stream:
        yield stream


_descriptors = threading.RLock()
"""Held while descriptors 1 and 2 are diverted: they belong to the process, not to a thread."""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def quiet_tensorflow() -> None:
    """Keep TensorFlow's start-up lines off the terminal. Call before its first import; harmless after."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if "tensorflow" not in sys.modules:
        with progress("start TensorFlow"), swallowed_output():
            import tensorflow  # noqa: F401


@contextmanager
def swallowed_output() -> Iterator[None]:
    """Divert file descriptors 1 and 2, where C++ code of converters writes past Python, while the block runs.

    When the block raises, the last lines that it wrote are attached to the exception as a note.
    """
    with _descriptors, tempfile.TemporaryFile() as sink:
        _flush()
        try:
            saved = os.dup(1), os.dup(2)
        except OSError:  # closed: nothing to divert, nobody to disturb
            yield
            return
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            yield
        except Exception as error:
            _flush()
            sink.seek(0)
            tail = sink.read().decode(errors="replace").splitlines()[-20:]
            error.add_note("\n".join(["last output:", *tail]))
            raise
        finally:
            _flush()
            for descriptor, target in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, target)
                os.close(descriptor)
