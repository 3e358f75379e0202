"""Examples -> batches of pixels: decoded by threads, in order, in a bounded amount of memory."""

import hashlib
import logging
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from edgetl.data.examples import Example, Examples
from edgetl.data.images import Pixels, read_file, read_image
from edgetl.errors import ConfigError, DatasetError, UnreadableImageError
from edgetl.inputs import ImageInput

log = logging.getLogger(__name__)

MAX_UNREADABLE_FRACTION = 0.01
_NAMED_IN_A_MESSAGE = 10


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be decoded."""

    id: str
    reason: str


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive examples, without those that can't be read."""

    indices: NDArray[np.int64]
    """Positions in the examples, int64 [n], rising."""
    pixels: Pixels
    """uint8 [n, height, width, 3]."""
    sha256: tuple[str, ...]
    """Hash of the bytes of each file, hexadecimal, n of them."""
    unreadable: tuple[Unreadable, ...]
    """The examples of this batch that `pixels` lacks."""


def load_pixels(example: Example, spec: ImageInput) -> tuple[Pixels, str]:
    """Read one file once: its pixels and the hash of its bytes. Thread-safe.

    Args:
        example: names the file.
        spec: the frame and the resize rule.

    Returns:
        Pixels, uint8 [height, width, 3], and the SHA-256 of the file, hexadecimal.

    Raises:
        UnreadableImageError: the file can't be opened or decoded; the message is the reason alone.
    """
    data = read_file(example.path)
    return read_image(data, spec), hashlib.sha256(data).hexdigest()


def decoded(
    examples: Examples, spec: ImageInput, *, workers: int | None = None, batch_size: int = 32
) -> Generator[Batch, None, None]:
    """Decode examples in order, a few photos ahead of the consumer.

    Decoding runs in threads (Pillow releases the GIL). At most `batch_size + 2 * workers` photos are held besides
    the batch that was handed out, however many there are. Closing the generator drops what has not begun.

    Args:
        examples: what to read.
        spec: the frame and the resize rule.
        workers: threads, at least 1; default is the number of cores that this process may use.
        batch_size: examples per batch, at least 1; the last batch may be smaller.

    Returns:
        A generator of batches; together they cover every example once, as pixels or as unreadable.

    Raises:
        ConfigError: workers or batch_size is below 1.
    """
    threads = default_workers() if workers is None else workers
    if threads < 1 or batch_size < 1:
        raise ConfigError(f"workers={threads}, batch_size={batch_size}: both must be at least 1")
    return _batches(examples, spec, threads, batch_size)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Cores that this process may use, at most 32."""
    return min(cores(), 32)


def check_unreadable(
    unreadable: Sequence[Unreadable], total: int, max_fraction: float = MAX_UNREADABLE_FRACTION
) -> None:
    """Accept a few unreadable files with a line in the log, and refuse many.

    Args:
        unreadable: files that could not be decoded.
        total: how many were tried.
        max_fraction: share that is acceptable, 0..1.

    Raises:
        DatasetError: more than `max_fraction` of the files are unreadable.
    """
    if not unreadable:
        return
    named = "; ".join(f"{item.id}: {item.reason}" for item in unreadable[:_NAMED_IN_A_MESSAGE])
    more = len(unreadable) - _NAMED_IN_A_MESSAGE
    listed = named + (f"; and {more} more" if more > 0 else "")
    count = f"{len(unreadable)} of {total} files can't be read"
    if len(unreadable) > max_fraction * total:
        raise DatasetError(f"{count}, more than {max_fraction:.1%}: {listed}. Repair or remove them")
    log.warning("%s and are left out: %s", count, listed)


def _batches(examples: Examples, spec: ImageInput, workers: int, batch_size: int) -> Generator[Batch, None, None]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting = iter(examples.items)
    running: deque[Future[tuple[Pixels, str] | Unreadable]] = deque()
    try:
        for start in range(0, len(examples), batch_size):
            size = min(batch_size, len(examples) - start)
            results: list[tuple[Pixels, str] | Unreadable] = []
            for _ in range(size):
                ahead = size - len(results) + 2 * workers - len(running)
                running.extend(pool.submit(_attempt, example, spec) for example in islice(waiting, ahead))
                results.append(running.popleft().result())
            yield _assemble(results, start, spec)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _attempt(example: Example, spec: ImageInput) -> tuple[Pixels, str] | Unreadable:
    try:
        return load_pixels(example, spec)
    except UnreadableImageError as error:
        return Unreadable(example.id, str(error))


def _assemble(results: Sequence[tuple[Pixels, str] | Unreadable], start: int, spec: ImageInput) -> Batch:
    good = [(start + place, result) for place, result in enumerate(results) if not isinstance(result, Unreadable)]
    pixels = np.empty((len(good), *spec.shape), dtype=np.uint8)
    for row, (_, (photo, _)) in enumerate(good):
        pixels[row] = photo
    return Batch(
        indices=np.array([place for place, _ in good], dtype=np.int64),
        pixels=pixels,
        sha256=tuple(digest for _, (_, digest) in good),
        unreadable=tuple(result for result in results if isinstance(result, Unreadable)),
    )
