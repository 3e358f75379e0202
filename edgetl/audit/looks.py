"""One pass over all photos: each is read and decoded once, small, and leaves half a kilobyte of numbers."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.console import progress
from edgetl.data import Example, Examples, Pixels, Unreadable, default_workers, read_image
from edgetl.data.images import FORMATS
from edgetl.errors import UnreadableImageError
from edgetl.inputs import ImageInput

SIDE = 120
"""Photos are judged at this size, pixels: blur that can't be seen here hardly shows at what edge models take, and
a JPEG of 500x500 is still decoded at half its size (128 would need the whole: 1.8 ms instead of 1.0)."""
THUMBNAIL = 16
"""Side of the grey thumbnail that tells copies from look-alikes, pixels."""
CHUNK = 256
"""Photos that are in work at a time: what bounds the memory."""
_ANIMATED = ("GIF", "WEBP", "PNG")
_PERCEIVED = np.array([0.241, 0.691, 0.068], np.float32)
"""Weights of squared red, green and blue in brightness, as cleanvision has them, so that its limits hold."""

LOOK = np.dtype(
    [
        ("width", np.uint32),  # as stored, pixels
        ("height", np.uint32),
        ("bytes", np.uint64),
        ("format", "U4"),
        ("mode", "U6"),
        ("frames", np.uint32),  # 0: broken behind the first
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


def look_at(examples: Examples, workers: int | None = None) -> Looks:
    """Read every photo once. What training can't decode is unreadable here: it is the same decoder.

    Args:
        examples: what to read.
        workers: threads; default one per core.
    """
    rows = np.zeros(len(examples), LOOK)
    kept: list[int] = []
    unreadable: list[Unreadable] = []
    for index, found in enumerate(_each(examples, workers or default_workers())):
        if isinstance(found, Unreadable):
            unreadable.append(found)
        else:
            rows[index] = found
            kept.append(index)
    return Looks(examples.select(kept), rows[kept], tuple(unreadable))


def _each(examples: Examples, workers: int) -> Iterator[NDArray[np.void] | Unreadable]:
    with progress("look at photos", len(examples)) as bar, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(examples), CHUNK):
            futures = [pool.submit(_attempt, example) for example in examples.items[start : start + CHUNK]]
            try:
                for future in futures:
                    yield future.result()
                    bar.advance()
            finally:
                for future in futures:
                    future.cancel()


def _attempt(example: Example) -> NDArray[np.void] | Unreadable:
    try:
        return look(example.path.read_bytes())
    except OSError as error:
        return Unreadable(example.id, error.strerror or str(error))
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
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # the header alone
        row["width"], row["height"] = image.size
        row["format"], row["mode"] = image.format, image.mode
        row["frames"] = _frames(image)
    row["bytes"] = len(data)
    row["sha256"] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    _measure(pixels, row)
    return row


def _frames(image: Image.Image) -> int:
    """How many there are; 0 where what follows the first is broken, which is all that training reads."""
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
