"""Where a photo lies in the frame of a model; needs no Pillow."""

from __future__ import annotations

from ..inputs import ResizeRule

Box = tuple[float, float, float, float]
Size = tuple[int, int]


def placed(photo: Size, frame: Size, rule: ResizeRule) -> tuple[Box, Size]:
    """Say which box of a photo becomes which size in the frame.

    Args:
        photo: its (width, height), pixels.
        frame: what the model takes, likewise.
        rule: see `ImageInput.resize`.

    Returns:
        (left, top, right, bottom) in the photo, and the (width, height) that this box is resized to.
    """
    width, height = photo
    wide = width * frame[1] >= height * frame[0]
    if rule == "crop":
        inner_width = height * frame[0] / frame[1] if wide else float(width)
        inner_height = float(height) if wide else width * frame[1] / frame[0]
        left, top = max(0.0, (width - inner_width) / 2), max(0.0, (height - inner_height) / 2)
        return (left, top, min(left + inner_width, width), min(top + inner_height, height)), frame
    whole = (0.0, 0.0, float(width), float(height))
    if rule == "stretch":
        return whole, frame
    if wide:
        return whole, (frame[0], max(1, _rounded_ratio(height * frame[0], width)))
    return whole, (max(1, _rounded_ratio(width * frame[1], height)), frame[1])


def _rounded_ratio(a: int, b: int) -> int:
    return (2 * a + b) // (2 * b)
