"""What a device's camera does to photos: blur, noise, compression, light; each at three strengths.

The kinds are those of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261), here on the pixels that reach the
model, uint8 [height, width, 3]. What was trained on clean photos can lose its wits on a lens that is out of focus, and
an integer model sooner than a float one: both are asked.

What chance there is comes from the photo's id alone: the same at all strengths, for every model, on every machine.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from edgetl.data import Pixels

REFERENCE_SIDE = 224
"""Photos that ImageNet-C was made for; widths of a blur grow and shrink with the frame."""
DISPLAY_GAMMA = 2.2
"""Pixels are about the 2.2nd root of light."""


@dataclass(frozen=True)
class Corruption:
    """One way to spoil a photo."""

    apply: Callable[[Pixels, float, np.random.Generator], Pixels]
    strengths: tuple[float, float, float]
    unit: str
    """What the strengths mean."""


@dataclass(frozen=True)
class Corrupted:
    """A model's figure on photos spoilt in one way."""

    kind: str
    """Row of CORRUPTIONS."""
    primary: tuple[float, ...]
    """Figure of the task (`edgetl.scores.PRIMARY`), at strengths 1, 2, 3."""


@dataclass(frozen=True)
class Robustness:
    """A model's figures on spoilt photos."""

    clean: float
    """Figure of the task on the photos as they are."""
    corrupted: tuple[Corrupted, ...]
    mean_drop: float
    """`clean` less the mean of all the others."""


def _blur(pixels: Pixels, sigma: float, _: np.random.Generator) -> Pixels:
    scaled = sigma * min(pixels.shape[:2]) / REFERENCE_SIDE
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(scaled)))


def _noise(pixels: Pixels, deviation: float, random: np.random.Generator) -> Pixels:
    noise = random.standard_normal(pixels.shape, np.float32) * np.float32(255 * deviation)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def _jpeg(pixels: Pixels, quality: float, _: np.random.Generator) -> Pixels:
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG", quality=round(quality))
    return np.asarray(Image.open(stored))


def _brightness(pixels: Pixels, stops: float, random: np.random.Generator) -> Pixels:
    gain = 2 ** (stops * random.choice((-1, 1)) / DISPLAY_GAMMA)
    levels = np.clip(np.rint(np.arange(256) * gain), 0, 255).astype(np.uint8)
    return np.asarray(levels[pixels])


CORRUPTIONS: dict[str, Corruption] = {
    "blur": Corruption(_blur, (1.0, 2.0, 4.0), "sigma of a Gaussian, pixels of a frame of 224"),
    "noise": Corruption(_noise, (0.08, 0.18, 0.38), "deviation of Gaussian noise, shares of the range"),
    "jpeg": Corruption(_jpeg, (25.0, 15.0, 7.0), "quality"),
    "brightness": Corruption(_brightness, (0.5, 1.0, 2.0), "stops of exposure, lighter or darker by chance"),
}
"""Noise and JPEG: severities 1, 3 and 5 of ImageNet-C, and its range of blur. Its brightness only grows, and adds to
all pixels alike; a camera's exposure errs to both sides and multiplies."""


def corrupt(pixels: Pixels, kind: str, strength: int, photo: str) -> Pixels:
    """Spoil one photo. Safe from any thread.

    Args:
        pixels: uint8 [height, width, 3], 0..255.
        kind: row of CORRUPTIONS.
        strength: 1, 2 or 3.
        photo: its id, which all randomness follows from.

    Returns:
        Others of the same shape.
    """
    row = CORRUPTIONS[kind]
    seed = int.from_bytes(hashlib.sha256(f"{kind} {photo}".encode()).digest()[:8], "big")
    return row.apply(pixels, row.strengths[strength - 1], np.random.default_rng(seed))


def robustness(clean: float, figures: dict[str, tuple[float, ...]]) -> Robustness:
    """Put a model's figures together.

    Args:
        clean: on the photos as they are.
        figures: kind -> figures at strengths 1, 2, 3.
    """
    every = [figure for row in figures.values() for figure in row]
    rows = tuple(Corrupted(kind, row) for kind, row in figures.items())
    return Robustness(clean, rows, clean - float(np.mean(every)))
