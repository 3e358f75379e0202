"""One shard of features: how it is computed, what its file holds, and how its rows are read again and again.

A shard is one .npz file without compression. Its checksums tell flipped bits; once they have been checked, the rows are
read from their place in the file as long as the file is the same: 0.1 ms for 256 rows of 1,280 numbers instead of 3 ms,
and a linear head reads each shard some hundred times.
"""

import functools
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetl.console import log
from edgetl.data import Example, Unreadable, default_workers, load_pixels
from edgetl.errors import CacheError, UnreadableImageError
from edgetl.inputs import InputSpec

if TYPE_CHECKING:
    from edgetl.features import Forward

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """One shard that is to be computed. Picklable, so that it can be sent elsewhere."""

    start: int
    """Position of its first photo among all."""
    items: tuple[Example, ...]
    spec: InputSpec
    """How a photo becomes a tensor."""


Compute = Callable[[Sequence[Work], Callable[[int], None]], Iterator[tuple[int, bytes]]]
"""Shards to compute, and whom to tell of so many photos done -> start and content of each, in any order."""


@dataclass(frozen=True)
class Shard:
    """What a file holds. The number of rows is that of the readable photos."""

    values: NDArray[np.float32]
    """[readable, d]."""
    sha256: tuple[str, ...]
    """Of the bytes of each readable photo, hex."""
    readable: NDArray[np.bool_]
    """[photos]."""
    unreadable: tuple[Unreadable, ...]

    def to_bytes(self) -> bytes:
        """Content of the file."""
        buffer = BytesIO()
        np.savez(
            buffer,
            values=self.values,
            sha256=np.array(self.sha256, dtype="U64"),
            readable=self.readable,
            unreadable=np.frombuffer(json.dumps([asdict(u) for u in self.unreadable]).encode(), np.uint8),
        )
        return buffer.getvalue()

    @classmethod
    def parse(cls, stored: Mapping[str, NDArray[Any]]) -> "Shard":
        """Take the arrays of a file; raises anything on others."""
        return cls(
            stored["values"],
            tuple(str(h) for h in stored["sha256"]),
            stored["readable"],
            tuple(Unreadable(**u) for u in json.loads(stored["unreadable"].tobytes())),
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> "Shard":
        """Read what `to_bytes` gave."""
        with np.load(BytesIO(content), allow_pickle=False) as stored:
            return cls.parse(stored)

    @classmethod
    def read(cls, path: Path) -> "Shard | None":
        """Read a file, if it is there and whole."""
        return read_shard(path, cls.parse, "features: %s is damaged and will be computed again")


def read_shard(path: Path, parse: Callable[[Mapping[str, NDArray[Any]]], T], damaged: str) -> T | None:
    """Read a stored .npz file, if it is there and whole.

    Args:
        path: the file.
        parse: makes something of its arrays, by name; may raise anything on arrays that are not what was stored.
        damaged: what the log says of one that can't be used; `%s` stands for the path.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        with np.load(BytesIO(content), allow_pickle=False) as stored:
            return parse(stored)
    except Exception:  # a flipped bit can ask zipfile for encryption, compression or anything else that it can't do
        log.warning(damaged, path)
        return None


def in_threads(forward: "Forward", workers: int | None = None) -> Compute:
    """Compute shards here, one after the other, each by all threads.

    Each thread decodes photos and runs the forward function on them, so that decoding and inference share the cores
    without a queue between them.

    Args:
        forward: called from several threads at once.
        workers: threads; default one per core.
    """

    def compute(shards: Sequence[Work], advance: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
        with ThreadPoolExecutor(workers or default_workers()) as pool:
            for work in shards:
                yield work.start, _computed(work, forward, pool, advance).to_bytes()

    return compute


def compute_alone(work: Work, make_forward: "Callable[[], Forward]", workers: int | None = None) -> bytes:
    """Compute one shard in a process that knows nothing of the pass, and nothing of its cache.

    Args:
        work: the shard.
        make_forward: as `edgetl.features.extract` takes it; picklable and hashable. What an equal one made is kept for
            the next shard.
        workers: threads; default one per core.

    Returns:
        Content of its file.
    """
    with ThreadPoolExecutor(workers or default_workers()) as pool:
        return _computed(work, _made(make_forward), pool, lambda count: None).to_bytes()


@functools.lru_cache(maxsize=1)
def _made(make_forward: "Callable[[], Forward]") -> "Forward":
    return make_forward()


def _computed(work: Work, forward: "Forward", pool: ThreadPoolExecutor, advance: Callable[[int], None]) -> Shard:
    def one(example: Example) -> tuple[NDArray[np.float32], str] | Unreadable:
        try:
            pixels, sha256 = load_pixels(example, work.spec)
        except UnreadableImageError as error:
            return Unreadable(example.id, str(error))
        finally:
            advance(1)
        return forward(pixels[None])[0], sha256

    futures = [pool.submit(one, example) for example in work.items]
    try:
        results = [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    good = [r for r in results if not isinstance(r, Unreadable)]
    return Shard(
        np.stack([values for values, _ in good]) if good else np.zeros((0, 0), np.float32),
        tuple(sha256 for _, sha256 in good),
        np.array([not isinstance(r, Unreadable) for r in results]),
        tuple(r for r in results if isinstance(r, Unreadable)),
    )


class ShardFile:
    """The rows of one shard, read from its file whenever they are asked for."""

    def __init__(self, path: Path, rows: int, width: int) -> None:
        """Name a file that holds so many rows of so many numbers; it is checked when it is first read."""
        self.path, self.rows, self.width = path, rows, width
        self._checked: tuple[int, ...] = ()
        self._offset = 0

    def read(self) -> NDArray[np.float32]:
        """Read all rows, float32 [rows, width], into memory of their own.

        Raises:
            CacheError: the file is gone, or is not what it was.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                if _state(file.fileno()) != self._checked:
                    self._check(file.fileno())
                values = np.empty((self.rows, self.width), np.float32)
                file.seek(self._offset)
                if file.readinto(values.data) == values.nbytes:
                    return values
        except FileNotFoundError:
            raise CacheError(f"{self.path}: features are gone since they were computed{_SEEN}. {_AGAIN}") from None
        raise CacheError(f"{self.path}: features were cut off since they were computed. {_AGAIN}")

    def _check(self, descriptor: int) -> None:
        """Check the whole file by its checksums, and find the place of the rows."""
        state = _state(descriptor)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read()
        try:
            with np.load(BytesIO(content), allow_pickle=False) as stored:
                values = Shard.parse(stored).values
            self._offset = _place(content, "values.npy")
            found = np.frombuffer(content, np.float32, values.size, self._offset).reshape(values.shape)
            if values.shape != (self.rows, self.width) or not np.array_equal(found, values, equal_nan=True):
                raise ValueError(f"{values.dtype} {values.shape}")
        except Exception:  # as in `read_shard`
            raise CacheError(f"{self.path}: features were damaged since they were computed. {_AGAIN}") from None
        self._checked = state


_SEEN = ", or this is another machine of a cluster, which needs the same cache"
_AGAIN = "Run the same command again: what is missing is computed anew"


def _state(descriptor: int) -> tuple[int, ...]:
    """What differs when a file was replaced or written to."""
    stat = os.fstat(descriptor)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _place(content: bytes, name: str) -> int:
    """Where in a .npz file without compression the numbers of one of its arrays begin."""
    with zipfile.ZipFile(BytesIO(content)) as stored:
        header = stored.getinfo(name).header_offset
    names, extra = struct.unpack_from("<HH", content, header + 26)  # lengths in zip's local file header
    array = BytesIO(content)
    array.seek(header + 30 + names + extra)
    major, _ = np.lib.format.read_magic(array)
    (np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0)(array)
    return array.tell()
