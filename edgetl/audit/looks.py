"""One pass over all photos: each is read and decoded once, small, and leaves half a kilobyte of numbers.

They are stored in shards beside the features, and under the same names: a photo is looked at again if it has changed.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.console import Bar, progress
from edgetl.data import Example, Examples, Pixels, Unreadable, default_workers, read_image
from edgetl.data.images import opened, read_file
from edgetl.errors import UnreadableImageError
from edgetl.features import SHARD_ROWS, photos_key
from edgetl.inputs import ImageInput
from edgetl.rundir import sweep, write_atomic
from edgetl.shards import read_shard

SIDE = 120
"""Photos are judged at this size, pixels: blur that can't be seen here hardly shows at what edge models take, and
a JPEG of 500x500 is still decoded at half its size (128 would need the whole: 1.8 ms instead of 1.0)."""
THUMBNAIL = 16
"""Side of the grey thumbnail that tells copies from look-alikes, pixels."""
LAYOUT_VERSION = 1
"""Part of the place of stored looks: raise it when the same photos would give other numbers."""
_ANIMATED = ("GIF", "WEBP", "PNG")
_MOST_READS = 3_000_000
"""Frames of a GIF are counted in pieces of at most 255 bytes, of two reads: those of 380 MB, in 2 s."""
_PERCEIVED = np.array([0.241, 0.691, 0.068], np.float32)
"""Weights of squared red, green and blue in brightness, as cleanvision has them, so that its limits hold."""

LOOK = np.dtype(
    [
        ("width", np.uint32),  # as stored, pixels
        ("height", np.uint32),
        ("bytes", np.uint64),
        ("format", "U4"),
        ("mode", "U6"),
        ("frames", np.uint32),  # 0: broken behind the first, or too many pieces to count
        ("bright", np.float32),  # 99th percentile of brightness, 0..1: low in dark photos
        ("dark", np.float32),  # 5th percentile: high in washed-out photos
        ("deviation", np.float32),  # standard deviation of grey, 0..128
        ("sharpness", np.float32),  # deviation of the Laplacian against that of grey
        ("hash", np.uint64),  # perceptual
        ("colour", np.float32, (3,)),  # mean red, green, blue, 0..255
        ("thumbnail", np.uint8, (THUMBNAIL, THUMBNAIL)),
        ("sha256", np.uint8, (32,)),
    ]
)
"""What is kept of one photo."""


@dataclass(frozen=True, eq=False)
class Looks:
    """What a pass over all photos has left."""

    examples: Examples
    """Those that could be read."""
    rows: NDArray[np.void]
    """One `LOOK` for each, [n]."""
    unreadable: tuple[Unreadable, ...]

    def of(self, part: Examples) -> "Looks":
        """What was seen of some of the examples, in the order that all have."""
        ids = {example.id for example in part}
        kept = np.flatnonzero([example.id in ids for example in self.examples])
        unreadable = tuple(each for each in self.unreadable if each.id in ids)
        return Looks(self.examples.select(kept), self.rows[kept], unreadable)


def look_at(examples: Examples, workers: int | None = None, cache: Path | None = None) -> Looks:
    """Read every photo once. What training can't decode is unreadable here: it is the same decoder.

    Args:
        examples: what to read. Give all, and take `Looks.of` some: stored shards are those of the same neighbours.
        workers: threads; default one per core.
        cache: directory of all caches; without one nothing is stored.
    """
    starts = range(0, len(examples), SHARD_ROWS)
    parts = {start: examples.select(range(start, min(start + SHARD_ROWS, len(examples)))) for start in starts}
    paths = {start: _path(cache, part) for start, part in parts.items()} if cache else {}
    shards = {start: seen for start, path in paths.items() if (seen := _stored(path, parts[start])) is not None}
    missing = [start for start in starts if start not in shards]
    if missing:
        for folder in {path.parent for path in paths.values()}:
            sweep(folder)
        todo = sum(len(parts[start]) for start in missing)
        with progress("look at photos", todo) as bar, ThreadPoolExecutor(workers or default_workers()) as pool:
            for start in missing:  # one shard is in work at a time: that bounds the memory
                shards[start] = _seen(parts[start], pool, bar)
                if start in paths:
                    paths[start].parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(paths[start], _to_bytes(shards[start]))
    return _joined(examples, [shards[start] for start in starts])


def _path(cache: Path, part: Examples) -> Path:
    return cache.expanduser() / "looks" / str(LAYOUT_VERSION) / f"{photos_key(part, 0)}.npz"


def _to_bytes(seen: Looks) -> bytes:
    failed = json.dumps([asdict(each) for each in seen.unreadable]).encode()
    buffer = io.BytesIO()
    np.savez(buffer, rows=seen.rows, unreadable=np.frombuffer(failed, np.uint8))
    return buffer.getvalue()


def _stored(path: Path, part: Examples) -> Looks | None:
    def parse(stored: Mapping[str, NDArray[Any]]) -> Looks:
        rows = stored["rows"]
        seen = _looks(part, rows, [Unreadable(**each) for each in json.loads(stored["unreadable"].tobytes())])
        if rows.dtype != LOOK or rows.shape != (len(seen.examples),):
            raise ValueError("other rows than those of the photos")
        return seen

    return read_shard(path, parse, "looks: %s is damaged and its photos will be looked at again")


def _looks(examples: Examples, rows: NDArray[np.void], unreadable: Iterable[Unreadable]) -> Looks:
    failed = {each.id: each for each in unreadable}
    kept = [index for index, example in enumerate(examples) if example.id not in failed]
    return Looks(examples.select(kept), rows, tuple(failed.values()))


def _joined(examples: Examples, shards: list[Looks]) -> Looks:
    rows = np.concatenate([np.zeros(0, LOOK), *(seen.rows for seen in shards)])
    return _looks(examples, rows, [each for seen in shards for each in seen.unreadable])


def _seen(part: Examples, pool: ThreadPoolExecutor, bar: Bar) -> Looks:
    rows: list[NDArray[np.void]] = []
    unreadable: list[Unreadable] = []
    futures = [pool.submit(_attempt, example) for example in part]
    try:
        for future in futures:
            found = future.result()
            if isinstance(found, Unreadable):
                unreadable.append(found)
            else:
                rows.append(found)
            bar.advance()
    finally:
        for future in futures:
            future.cancel()
    return _looks(part, np.stack(rows) if rows else np.zeros(0, LOOK), unreadable)


def _attempt(example: Example) -> NDArray[np.void] | Unreadable:
    try:
        return look(read_file(example.path))
    except UnreadableImageError as error:
        return Unreadable(example.id, str(error))


def look(data: bytes) -> NDArray[np.void]:
    """Measure one photo.

    Args:
        data: the bytes of its file.

    Returns:
        One `LOOK`, shape ().

    Raises:
        UnreadableImageError: the photo can't be decoded.
    """
    pixels = read_image(data, ImageInput(SIDE, SIDE))
    row = np.zeros((), LOOK)
    with opened(data, _MOST_READS) as image:
        row["width"], row["height"] = image.size
        row["format"], row["mode"] = image.format, image.mode
        row["frames"] = _frames(image)
    row["bytes"] = len(data)
    row["sha256"] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    _measure(pixels, row)
    return row


def _frames(image: Image.Image) -> int:
    """How many there are; 0 where what follows the first, all that training reads, is broken or takes too long."""
    try:
        return int(getattr(image, "n_frames", 1)) if image.format in _ANIMATED else 1
    except Exception:  # Pillow walks through all of them, and what a flipped bit raises there is anything
        return 0


def _measure(pixels: Pixels, row: NDArray[np.void]) -> None:
    import imagehash

    grey = Image.fromarray(pixels).convert("L")
    levels = np.asarray(grey, np.float32)
    brightness = np.sqrt(np.square(pixels.astype(np.float32)) @ _PERCEIVED) / 255
    row["dark"], row["bright"] = np.percentile(brightness, [5, 99])
    row["deviation"] = levels.std()
    row["sharpness"] = _laplacian(levels).std() / (levels.std() + 1)  # one level of noise does not make a photo sharp
    row["colour"] = pixels.mean((0, 1))
    row["thumbnail"] = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    row["hash"] = np.packbits(imagehash.phash(grey).hash).view(np.uint64)[0]


def _laplacian(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    inner = levels[1:-1, 1:-1]
    return 4 * inner - levels[:-2, 1:-1] - levels[2:, 1:-1] - levels[1:-1, :-2] - levels[1:-1, 2:]
