"""What a model takes: the one contract between training and device.

Every model of edgetl takes raw RGB pixels, 0..255, in NHWC order. An input spec says how a photo of any
size becomes such a tensor. It is stored in the run, beside each artifact, and read from there by
whatever prepares pixels; nobody else decides on a size or a resize rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError  # by its place: export.bundle packs this file for devices

ResizeRule = Literal["stretch", "crop", "pad"]
LARGEST_SIDE = 4096
"""Pixels: activations take gigabytes from there on, and TensorFlow ends the process when it can't count them."""


@dataclass(frozen=True)
class ImageInput:
    """An RGB photo, uint8 [height, width, 3], values 0..255.

    Raises:
        ConfigError: a side is not positive, or longer than `LARGEST_SIDE`.
    """

    height: int
    """Rows, pixels."""
    width: int
    """Columns, pixels."""
    resize: ResizeRule = "stretch"
    """`stretch` ignores the aspect ratio (what phone and browser libraries do); `crop` fills the frame and
    cuts the longer side around the centre; `pad` fits the whole photo in and fills up with black."""
    kind: Literal["image"] = "image"
    """Tells the members of the family apart in JSON."""

    def __post_init__(self) -> None:
        """Refuse an empty frame, and one that no memory holds."""
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"image size {self.height}x{self.width}: both sides must be at least 1 pixel")
        if max(self.height, self.width) > LARGEST_SIDE:
            raise ConfigError(
                f"image size {self.height}x{self.width}: both sides must be at most {LARGEST_SIDE} pixels"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one example: (height, width, 3)."""
        return (self.height, self.width, 3)


InputSpec = ImageInput
"""Later a union: audio, text, video."""
