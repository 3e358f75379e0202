"""Bytes of a photo -> pixels, by one rule for training, evaluation and devices.

Pillow decodes and resizes everywhere, so that a device with the same Pillow sees the very pixels that the
model was trained on: `export.bundle` packs this very file. Hence relative imports, Python 3.9 and Pillow 8.
What is done to a photo, in order:

1. decode the first frame; a large JPEG straight at 1/2, 1/4 or 1/8 of its size (libjpeg's scaled inverse DCT);
2. to 8 bits: 16-bit grey is divided by 257, transparency is laid on white, CMYK by its plain formula (no ICC);
3. resize with a triangle filter that is widened when shrinking (`BILINEAR`, antialiased);
4. turn as the EXIF orientation says; fill up to the frame with black where the rule is `pad`.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import UnreadableImageError
from ..inputs import ImageInput
from .geometry import Box, Size, placed

Pixels = NDArray[np.uint8]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"})
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
MAX_PIXELS = 178_956_970
"""Larger photos are refused (Pillow's own hard limit): a few bytes can claim to be gigabytes.

Decoding takes up to 8 bytes a pixel, 1.4 GB at the limit. Of WebP it is half as many pixels: its decoder takes 16."""
MAX_SIDE = 65_535
"""Pixels; what JPEG and GIF can say at most. The filter of the resize takes memory for each pixel of a side."""
MAX_SCANS = 20
"""A JPEG of `MAX_PIXELS` may have so many scans, a smaller one more: each goes over all pixels, and may be no longer
than ten bytes. libjpeg writes 10 into a progressive one, 18 of CMYK."""
MAX_FILE_BYTES = 1 << 30
"""Larger files are not read: the largest bitmap of `MAX_PIXELS` has 0.7 GB."""
MAX_READS = 600_000
"""How often Pillow may ask for bytes of a photo: up to four times for each segment, chunk, block, run or loose byte, a
microsecond or two each. A PNG of `MAX_FILE_BYTES` in the usual chunks of 8 kB takes 400,000."""
MAX_HEAD_BYTES = 18_000_000
"""What may come before the picture: Pillow goes through tables and resources of a JPEG in Python, 0.1 µs a byte. The
largest colour profile that a JPEG can hold has 16.7 MB."""
MAX_RUN_PIXELS = 1 << 24
"""Of a run-length coded bitmap, which Pillow unpacks in Python: 0.2 µs a pixel, from a few bytes a row."""
LARGE = 1 << 25
"""Photos of more pixels than this are decoded one at a time, whatever the number of threads."""
MARGIN = 2.0
"""A JPEG is decoded at a fraction of its size only down to this many times the size that is wanted.

Against a full decode pixels then differ by 0.1 to 0.5 of 255 levels on average, and by 1 on the sharpest content right
at the limit (single pixels by up to 13); from 3 on by half of that, but 8-megapixel photos would take twice as long."""

_EXIF_ORIENTATION = 0x0112
_TURN: Any = getattr(Image, "Transpose", Image)  # the enumerations came with Pillow 9.1
_BILINEAR: Any = getattr(Image, "Resampling", Image).BILINEAR
_TURNS = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)
_ROWS = 1 << 18
"""Pixels that are converted at a time: of a large photo every copy would take its memory again."""
_EXIF = b"Exif\0\0"
_FILL = b"\xff" * (1 << 16)
"""A whole read of what may stand before any marker: libjpeg goes back to its first byte with each further read."""
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
"""What begins a segment of a JPEG; the others have no length, or are within the data of a scan."""
_large: ThreadPoolExecutor
_JPEGS = ("JPEG", "MPO")
"""MPO: JPEG with further pictures behind it, as phones write."""
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")

# Pillow warns about sizes and damaged metadata on stderr, in the middle of progress bars; whether a file can be
# used is decided here. Appended: a filter that the application has set still wins.
warnings.filterwarnings("ignore", module=r"PIL\.", append=True)


class _Source(io.BytesIO):
    """The bytes of a photo, which Pillow may ask for only so often: a few bytes can cost it a loop in Python.

    Of the EXIF of a JPEG it sees the first segment alone, which holds the orientation: with each further one it copies
    all that it has.
    """

    def __init__(self, data: bytes, most_reads: int) -> None:
        """Begin before the head."""
        super().__init__(data)
        self.in_head = True
        self._most, self._left, self._exif = most_reads, most_reads, False
        self._jpeg = data.startswith(b"\xff\xd8")

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file.

        Raises:
            UnreadableImageError: too often, too far before the picture, or nothing but fill of a JPEG.
        """
        self._left -= 1
        if self._left < 0:
            raise UnreadableImageError(f"in too many small pieces, the limit is {self._most} reads")
        if self.in_head and self.tell() > MAX_HEAD_BYTES:
            raise UnreadableImageError(f"no picture in the first {MAX_HEAD_BYTES} bytes")
        data = super().read(size)
        if self._jpeg and data == _FILL:
            raise UnreadableImageError(f"damaged: {len(_FILL)} bytes of fill")
        if self.in_head and data.startswith(_EXIF):
            data, self._exif = bytes(len(data)) if self._exif else data, True
        return data


def opened(data: bytes, most_reads: int = MAX_READS) -> Image.Image:
    """Open a photo with Pillow, which reads the header alone.

    Args:
        data: the bytes of the file.
        most_reads: how often Pillow may ask for some; more are for who reads further than the first picture.

    Raises:
        UnreadableImageError: too many pieces, no picture, or nothing but fill; later reads may raise it as well.
        Exception: what Pillow raises of other damage.
    """
    source = _Source(data, most_reads)
    image = Image.open(source, formats=FORMATS)
    source.in_head = False
    return image


def read_image(source: Path | bytes, spec: ImageInput) -> Pixels:
    """Decode one photo and fit it into the frame of a model. Thread-safe.

    Args:
        source: a file, or the bytes of one. The format is told by content, not by extension.
        spec: the frame and the resize rule.

    Returns:
        RGB pixels 0..255, uint8 [height, width, 3].

    Raises:
        UnreadableImageError: empty, truncated, too large, or no JPEG, PNG, BMP, GIF or WebP; the message is
            the reason, after the path if a path was given.
    """
    if isinstance(source, bytes):
        return _decode(source, spec)
    try:
        return _decode(read_file(source), spec)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{source}: {error}") from error


def read_file(path: Path) -> bytes:
    """Read the bytes of a photo, and wait for no one: a pipe called x.jpg would never end.

    Raises:
        UnreadableImageError: not there, not a regular file, or too large for a photo; the message is the reason alone.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableImageError("not a regular file")
        if found.st_size > MAX_FILE_BYTES:
            raise UnreadableImageError(f"{found.st_size} bytes, the limit is {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from error


def _decode(data: bytes, spec: ImageInput) -> Pixels:
    if not data:
        raise UnreadableImageError("empty file (0 bytes)")
    with _pillow_errors(), opened(data) as image:
        _check_size(image, data)
        small = _alone(image, spec) if _takes_much(image) else _fitted(image, spec)
    if small.size != (spec.width, spec.height):
        canvas = Image.new("RGB", (spec.width, spec.height))
        canvas.paste(small, ((spec.width - small.width) // 2, (spec.height - small.height) // 2))
        small = canvas
    return np.array(small, dtype=np.uint8)


def _alone(image: Image.Image, spec: ImageInput) -> Image.Image:
    """The same in the thread that decodes all large photos, one after another.

    Not with a lock: the C library keeps what is freed for each thread, and four threads that took turns were left with
    0.8 GB after four photos of 36 megapixels, one thread with 0.3.
    """
    with closing(image):  # at once: pixels wait for the collector of cycles otherwise
        return _large.submit(_fitted, image, spec).result()


def _new_thread() -> None:
    global _large
    _large = ThreadPoolExecutor(1, "large photo")  # starts with its first photo


_new_thread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_thread)  # a forked process has no threads but its own


def _fitted(image: Image.Image, spec: ImageInput) -> Image.Image:
    """Decode, resize and turn: RGB, as much of the frame as the photo fills."""
    orientation = _orientation(image)
    # The turn comes last, on few pixels; until then the frame lies as the stored photo does.
    frame = (spec.height, spec.width) if orientation in _SWAPS_SIDES else (spec.width, spec.height)
    box, size = placed(image.size, frame, spec.resize)
    scale = _shrink_on_decode(image, box, size)
    image.load()
    left, top, right, bottom = (side / scale for side in box)
    small = _eight_bit(image).resize(size, _BILINEAR, box=(left, top, right, bottom)).convert("RGB")
    return small.transpose(_TURNS[orientation]) if orientation in _TURNS else small


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into UnreadableImageError."""
    try:
        yield
    except (UnreadableImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"not a photo that can be read ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"too many pixels, the limit is {MAX_PIXELS}") from error
    except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error, ...: each decoder has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"damaged: {reason}") from error


def _check_size(image: Image.Image, data: bytes) -> None:
    """Refuse, by the header alone, what would take more memory or time than any photo."""
    pixels, limit = image.width * image.height, MAX_PIXELS // (2 if image.format == "WEBP" else 1)
    if pixels > limit:
        raise UnreadableImageError(f"{image.width}x{image.height} pixels, the limit is {limit}")
    if pixels > MAX_RUN_PIXELS and _in_runs(image):
        raise UnreadableImageError(f"{image.width}x{image.height} pixels in runs, the limit is {MAX_RUN_PIXELS}")
    if max(image.size) > MAX_SIDE:
        raise UnreadableImageError(f"{image.width}x{image.height} pixels, the limit of a side is {MAX_SIDE}")
    most = MAX_SCANS * MAX_PIXELS // (pixels + (1 << 20))  # a scan without pixels has its cost, too
    if image.format in _JPEGS and data.count(b"\xff\xda") > most and (scans := _scans(data)) > most:
        raise UnreadableImageError(f"{scans} scans of {image.width}x{image.height} pixels, the limit is {most}")


def _in_runs(image: Image.Image) -> bool:
    tile: Any = getattr(image, "tile", None)
    return bool(tile) and tile[0][0] == "bmp_rle"


def _takes_much(image: Image.Image) -> bool:
    whole = image.format not in _JPEGS or "progressive" in image.info  # the others are shrunk while they are decoded
    return whole and image.width * image.height > LARGE


def _scans(data: bytes) -> int:
    """How many there are in the first picture of a JPEG."""
    at, segments, count = 2, 0, 0
    while (found := _MARKER.search(data, at)) and found[1] != b"\xd9":
        segments += 1
        if segments > MAX_READS:
            raise UnreadableImageError(f"in too many small pieces, the limit is {MAX_READS} segments")
        count += found[1] == b"\xda"
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return count


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; damaged metadata counts as upright, since the pixels may still be good."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, EOFError, ArithmeticError):
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _shrink_on_decode(image: Image.Image, box: Box, size: Size) -> int:
    """Let libjpeg decode at 1/scale of the size, and return the scale: 1, 2, 4 or 8."""
    if image.format not in _JPEGS:
        return 1
    room = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    scale = next((scale for scale in (8, 4, 2) if room >= scale * MARGIN), 1)
    if scale == 1 or image.draft(None, (image.width // scale, image.height // scale)) is None:
        return 1
    return scale


def _eight_bit(image: Image.Image) -> Image.Image:
    """Any mode that the formats can have -> L or RGB."""
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels have no known range")
    if image.mode in ("L", "RGB") and not _is_transparent(image):
        return image
    plain = Image.new("L" if image.mode.startswith("I") else "RGB", image.size)
    rows = max(1, _ROWS // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        plain.paste(_eight_bit_part(part), (0, top))
    return plain


def _eight_bit_part(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImageError(f"values {values.min()}..{values.max()}, expected 16 bits")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if _is_transparent(image):
        photo = image.convert("RGBA")
        white = Image.new("RGBA", photo.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, photo).convert("RGB")
    return image.convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    """What `has_transparency_data` of Pillow 10.1 tells."""
    if image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A"):
        return True
    return image.mode in _TRANSPARENT or "transparency" in image.info
