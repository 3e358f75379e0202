"""Border activations: what the frozen front of a model makes of each photo, computed once, read by every epoch.

An entry holds the views of some photos under one key, as float16 in shards of 256 photos. A shard is written under its
final name only when complete and ends in its sha256, so an interrupted pass continues at the last shard and damage is
found. Entries share one disk budget, see `edgetl.disk_budget`.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgetl import augment
from edgetl.console import Bar, log, progress
from edgetl.data import Example, Examples, default_workers, load_pixels
from edgetl.disk_budget import Entry, check_budget, lock_file, make_room
from edgetl.errors import ConfigError, UnreadableImageError
from edgetl.features import Forward, photos_key
from edgetl.inputs import InputSpec
from edgetl.locks import alone
from edgetl.rundir import new_file

SHARD_ROWS = 256
LAYOUT_VERSION = 1
"""Part of every key: raise it when the stored values would change for the same photos."""
_HASH_BYTES = 32
_VALUE_BYTES = 2
_OPEN_SHARDS = 256
"""Memory maps held at a time: each costs a file descriptor, of which a process often has 1024."""


@dataclass(frozen=True)
class _Layout:
    """What is stored, and under which names."""

    examples: Examples
    spec: InputSpec
    shapes: tuple[tuple[int, ...], ...]
    preset: str
    views: int
    seed: int
    folder: Path
    title: str
    streams: bool

    @cached_property
    def width(self) -> int:
        """Values of one view."""
        return _width(self.shapes)

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """One shard after the other."""
        starts = range(0, len(self.examples), SHARD_ROWS)
        parts = [self.examples.select(range(s, s + self.rows(i))) for i, s in enumerate(starts)]
        return tuple(self.folder / f"{i:05d}-{photos_key(part, 0)}.f16" for i, part in enumerate(parts))

    def rows(self, shard: int) -> int:
        """Photos of a shard."""
        return min(SHARD_ROWS, len(self.examples) - shard * SHARD_ROWS)

    def file_bytes(self, shard: int) -> int:
        """Size of a shard's file."""
        return size_bytes(self.rows(shard), self.views, self.shapes)

    @property
    def entry(self) -> Entry:
        """What the disk budget has to know."""
        photos = len(self.examples)
        size = size_bytes(photos, self.views, self.shapes)
        return Entry(self.folder, size, photos, self.views, self.width * _VALUE_BYTES, self.streams)


class Activations:
    """Stored views of photos, memory-mapped. While it is open, its files are not deleted to make room."""

    def __init__(self, layout: _Layout, lock: BinaryIO) -> None:
        """Take over a complete entry, and the lock that protects it."""
        self._layout = layout
        self._lock = lock
        self._shard = lru_cache(_OPEN_SHARDS)(self._map)

    @property
    def views(self) -> int:
        """Views of each photo."""
        return self._layout.views

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self._layout.entry.size_bytes

    def __len__(self) -> int:
        """Photos."""
        return len(self._layout.examples)

    def gather(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[NDArray[np.float16], ...]:
        """Read one view of each of some photos. Thread-safe.

        Args:
            rows: places in the examples, [b].
            views: which view of each, [b].

        Returns:
            One array [b, *shape] for each border tensor.
        """
        values = np.empty((len(rows), self._layout.width), np.float16)
        for place, (row, view) in enumerate(zip(rows.tolist(), views.tolist(), strict=True)):
            if row < 0 or view < 0:
                raise IndexError(f"row {row}, view {view}")
            values[place] = self._shard(row // SHARD_ROWS)[row % SHARD_ROWS, view]
        ends = np.cumsum([math.prod(shape) for shape in self._layout.shapes])[:-1]
        parts = np.split(values, ends, axis=1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self._layout.shapes, strict=True))

    def close(self) -> None:
        """Let go of the files; others may delete them from now on."""
        self._shard.cache_clear()
        self._lock.close()

    def __enter__(self) -> "Activations":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _map(self, shard: int) -> NDArray[np.float16]:
        if self._lock.closed:
            raise ValueError("activations are closed")
        shape = (self._layout.rows(shard), self._layout.views, self._layout.width)
        return np.asarray(np.memmap(self._layout.paths[shard], np.float16, "r", shape=shape))


def store(
    examples: Examples,
    spec: InputSpec,
    make_forward: Callable[[], Forward],
    *,
    shapes: tuple[tuple[int, ...], ...],
    preset: str,
    views: int,
    seed: int,
    key: dict[str, str],
    cache: Path,
    budget_bytes: int,
    workers: int | None = None,
    title: str = "border activations",
    streams: bool = True,
) -> Activations:
    """Compute the border activations of all views of all examples, or open those that an earlier pass stored.

    Args:
        examples: photos, all of them readable.
        spec: how a photo becomes a tensor.
        make_forward: builds the front, pixels [n, h, w, 3] -> border tensors [n, d], each flattened, side by side;
            called only if something is left to compute.
        shapes: of the border tensors, without the batch.
        preset: a name of `edgetl.augment.PRESETS`.
        views: views of each photo, at least 1; the first is the photo itself.
        seed: of random views.
        key: what activations depend on besides: backbone, weights, border.
        cache: directory of all caches.
        budget_bytes: what all entries may take together.
        workers: threads; default one per core.
        title: what progress and messages call them.
        streams: whether messages may advise to do without, by `--views 0`.

    Returns:
        The activations, open; close them after use.

    Raises:
        ConfigError: no such views, more than the budget, or values that float16 can't hold.
        DiskSpaceError: entries in use, or a full disk, leave too little room.
        UnreadableImageError: a photo can't be read.
        OSError: the disk is full, or can't be written.
    """
    check_views(preset, views)
    root = cache.expanduser() / "activations"
    root.mkdir(parents=True, exist_ok=True)
    name = _entry_key(examples, spec, shapes, preset, views, seed, key)
    layout = _Layout(examples, spec, shapes, preset, views, seed, root / name, title, streams)
    check_budget(layout.entry, budget_bytes)
    with contextlib.ExitStack() as on_error:
        lock = on_error.enter_context(lock_file(layout.folder).open("ab"))
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(lock.fileno())  # the time of the last use
        layout.folder.mkdir(exist_ok=True)
        with alone(layout.folder, "border activations: another process is computing them; waiting for it"):
            missing = _missing(layout)
            if len(missing) < len(layout.paths):
                done = sum(layout.rows(shard) for shard in range(len(layout.paths)) if shard not in missing)
                log.info("%s: %d of %d photos taken from %s", title, done, len(examples), layout.folder)
            make_room(layout.entry, sum(layout.file_bytes(shard) for shard in missing), budget_bytes)
            if missing:
                _compute(layout, missing, make_forward(), workers or default_workers())
        on_error.pop_all()
    return Activations(layout, lock)


def size_bytes(photos: int, views: int, shapes: Sequence[tuple[int, ...]]) -> int:
    """Tell what `store` would need on disk.

    Args:
        photos: how many.
        views: views of each photo.
        shapes: of the border tensors, without the batch.
    """
    return photos * views * _width(shapes) * _VALUE_BYTES + -(-photos // SHARD_ROWS) * _HASH_BYTES


def _width(shapes: Sequence[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def check_views(preset: str, views: int) -> None:
    """Refuse views that `store` could not make.

    Args:
        preset: a name of `edgetl.augment.PRESETS`.
        views: views of each photo.

    Raises:
        ConfigError: the preset is unknown, or has fewer views than that.
    """
    if preset not in augment.PRESETS:
        raise ConfigError(f"augmentation {preset!r}: unknown. Choose one of {', '.join(augment.PRESETS)}")
    exact = augment.PRESETS[preset].exact_views
    if views < 1 or (exact is not None and views > exact):
        most = "" if exact is None else f" and at most {exact}, all that there are"
        raise ConfigError(f"--views {views}: augmentation {preset!r} needs at least 1{most}. Change --views")


def _entry_key(
    examples: Examples,
    spec: InputSpec,
    shapes: tuple[tuple[int, ...], ...],
    preset: str,
    views: int,
    seed: int,
    key: dict[str, str],
) -> str:
    """Name an entry by what its values depend on. Photos are named here, and their content in the names of shards."""
    made: list[Any] = ["none"] if views == 1 else [preset]
    if views > 1 and augment.PRESETS[preset].exact_views is None:
        made += [seed, version("keras")]  # how its layers draw
    settings = json.dumps([LAYOUT_VERSION, SHARD_ROWS, asdict(spec), shapes, views, made, key], sort_keys=True)
    digest = hashlib.sha256(settings.encode())
    digest.update(str(examples.root.resolve()).encode(errors="surrogateescape"))
    for example in examples:
        elsewhere = "" if example.path == examples.root / example.id else f"\0{example.path.absolute()}"
        digest.update(f"\n{example.id}{elsewhere}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _missing(layout: _Layout) -> list[int]:
    """Find the shards that are not there or damaged, and delete what an interrupted pass or changed photos left."""
    for path in layout.folder.iterdir():
        if path not in layout.paths:
            path.unlink()
    there = [shard for shard, path in enumerate(layout.paths) if path.is_file()]
    if not there:
        return list(range(len(layout.paths)))
    whole = set()
    with progress("check stored activations", len(there)) as bar:
        for shard in there:
            if _is_whole(layout.paths[shard], layout.file_bytes(shard)):
                whole.add(shard)
            else:
                log.warning("%s: %s is damaged and will be computed again", layout.title, layout.paths[shard])
                layout.paths[shard].unlink()
            bar.advance()
    return [shard for shard in range(len(layout.paths)) if shard not in whole]


def _is_whole(path: Path, size: int) -> bool:
    if path.stat().st_size != size:
        return False
    digest, left = hashlib.sha256(), size - _HASH_BYTES
    with path.open("rb") as file:
        while left:
            block = file.read(min(left, 1 << 20))
            if not block:
                return False
            digest.update(block)
            left -= len(block)
        return file.read() == digest.digest()


def _compute(layout: _Layout, missing: list[int], forward: Forward, workers: int) -> None:
    views = sum(layout.rows(shard) for shard in missing) * layout.views
    with progress(layout.title, views) as bar, ThreadPoolExecutor(workers, "front") as pool:
        for shard in missing:
            photos = layout.examples.items[shard * SHARD_ROWS :][: layout.rows(shard)]
            one = partial(_views_of, layout=layout, forward=forward, bar=bar)
            with new_file(layout.paths[shard]) as file, contextlib.closing(_in_order(one, photos, pool, workers)) as r:
                digest = hashlib.sha256()
                for values in r:
                    file.write(values.data)
                    digest.update(values.data)
                file.write(digest.digest())


def _in_order(
    one: Callable[[Example], NDArray[np.float16]], photos: tuple[Example, ...], pool: ThreadPoolExecutor, workers: int
) -> Generator[NDArray[np.float16], None, None]:
    """Results in the order of the photos, few at a time: a shard may be larger than the memory."""
    waiting, running = iter(photos), deque[Future[NDArray[np.float16]]]()
    try:
        for _ in photos:
            running.extend(pool.submit(one, photo) for photo in islice(waiting, 2 * workers - len(running)))
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _views_of(example: Example, layout: _Layout, forward: Forward, bar: Bar) -> NDArray[np.float16]:
    """Compute [views, d] of one photo."""
    try:
        pixels, _ = load_pixels(example, layout.spec)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{example.path}: {error}. Restore or remove the photo, then run again") from error
    number = int.from_bytes(hashlib.sha256(example.id.encode(errors="surrogateescape")).digest()[:8], "little")
    values = np.empty((layout.views, layout.width), np.float16)
    for index in range(layout.views):
        seen = augment.view(layout.preset, pixels[None], index, photos=[number], seed=layout.seed)
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            values[index] = forward(seen)[0]
        if not np.isfinite(values[index]).all():
            advice = (
                "Use --views 0 to compute them in every epoch" if layout.streams else "Thaw other blocks with --thaw"
            )
            raise ConfigError(
                f"{example.path}: {layout.title} are not finite or beyond 65504, the end of float16, "
                f"and can't be stored. {advice}"
            )
        bar.advance()
    return values
