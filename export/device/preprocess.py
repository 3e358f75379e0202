"""Photos and camera frames -> what the model takes, by the rule of training.

The reader of photos and the geometry are training's own files. `export.bundle` packs them beside this package, under
another name; on the host they are where they always are. A frame that is an array already needs no Pillow: the
resize is computed here, to the bit as Pillow does.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DeviceError
from .shared import shared

Pixels = npt.NDArray[np.uint8]

PRECISION_BITS = 22
"""Pillow's filter weights are integers of so many binary places."""


def read(path: Path, inputs: dict[str, Any]) -> Pixels:
    """Read a photo or a frame and fit it into the model's frame.

    Args:
        path: JPEG, PNG, BMP, GIF or WebP (needs Pillow); or .npy, uint8 [height, width, 3], RGB (does not).
        inputs: as edgetl's InputSpec spells it: `kind`, `height`, `width`, `resize`.

    Returns:
        uint8 [height, width, 3].

    Raises:
        DeviceError: no photo, Pillow is missing, or an input that is no photo.
    """
    if path.suffix.lower() == ".npy":
        return fit(_frame(path), inputs)
    spec = _spec(inputs)
    try:
        images = shared("data.images")
    except ImportError as error:
        if error.name and error.name.split(".")[0] == "PIL":
            raise DeviceError(
                f"{path}: photos need Pillow. Install with: pip install pillow; or give frames as .npy files"
            ) from error
        raise
    try:
        pixels: Pixels = images.read_image(path, spec)
    except images.UnreadableImageError as error:
        raise DeviceError(f"{error}. Give a photo, or a frame as a .npy file") from error
    return pixels


def fit(frame: Pixels, inputs: dict[str, Any]) -> Pixels:
    """Fit a camera frame into the model's frame.

    Args:
        frame: RGB, uint8 [height, width, 3], upright.
        inputs: see `read`.

    Returns:
        uint8 [height, width, 3], bit-equal to what Pillow 13 makes of the same pixels; older ones
            differ by 1 level here and there.

    Raises:
        DeviceError: not such an array, or an input that is no photo.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise DeviceError(f"expected a frame uint8 [height, width, 3], RGB. Received: {frame.dtype} {[*frame.shape]}")
    spec = _spec(inputs)
    box, (width, height) = shared("data.geometry").placed(
        (frame.shape[1], frame.shape[0]), (spec.width, spec.height), spec.resize
    )
    across, down = (1, box[0], box[2], width), (0, box[1], box[3], height)
    # The order matters to the last bit, as each pass rounds to 8 bits. This is Pillow 13's; older ones go across first.
    shrinks_down = frame.shape[0] > height and frame.shape[0] - height > 2 * (frame.shape[1] - width)
    small = frame
    for axis, start, stop, size in (down, across) if shrinks_down else (across, down):
        small = _resized(small.swapaxes(0, axis), start, stop, size).swapaxes(0, axis)
    if small.shape == (spec.height, spec.width, 3):
        return np.ascontiguousarray(small)
    canvas = np.zeros((spec.height, spec.width, 3), np.uint8)
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    canvas[top : top + height, left : left + width] = small
    return canvas


def _resized(pixels: Pixels, start: float, stop: float, size: int) -> Pixels:
    """Resize the first axis: the part from start to stop becomes size pixels, by a triangle filter widened to shrink.

    The arithmetic is Pillow's (`Resample.c`, 8 bits per channel): weights in double precision, rounded to 22 binary
    places, summed exactly, rounded to 8 bits.
    """
    if size == len(pixels) and start == 0 and stop == size:
        return pixels
    low, high = np.float32(start), np.float32(stop)  # Pillow takes the box in single precision
    scale = float(high - low) / size
    reach = max(scale, 1.0)
    resized = np.empty((size, *pixels.shape[1:]), np.uint8)
    for position in range(size):
        center = float(low) + (position + 0.5) * scale
        first = max(int(center - reach + 0.5), 0)
        last = min(int(center + reach + 0.5), len(pixels))
        offsets = (np.arange(first, last) - center + 0.5) * (1.0 / reach)
        weights = np.maximum(1.0 - np.abs(offsets), 0.0)
        weights /= math.fsum(weights)
        integers = (weights * (1 << PRECISION_BITS) + 0.5).astype(np.int32)
        total = np.tensordot(integers, pixels[first:last].astype(np.int32), 1)
        resized[position] = np.clip((total + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS, 0, 255)
    return resized


def _frame(path: Path) -> Pixels:
    try:
        frame = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror or error}. Check the path") from error
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split())
        raise DeviceError(f"{path}: not a .npy file: {why}. Write frames with numpy.save") from error
    if not isinstance(frame, np.ndarray):
        raise DeviceError(f"{path}: holds several arrays. Write one frame with numpy.save")
    return frame


def _spec(inputs: dict[str, Any]) -> Any:
    if inputs.get("kind") != "image":
        raise DeviceError(f"inputs of kind {inputs.get('kind')!r}: this program prepares photos only")
    found = shared("inputs")
    try:
        spec = found.ImageInput(**inputs)
        if type(spec.height) is not int or type(spec.width) is not int:
            raise ValueError("height and width must be whole numbers")
        return spec
    except (TypeError, ValueError, shared("errors").EdgetlError) as error:
        raise DeviceError(f"inputs {inputs}: {error}. Convert the model again") from error
