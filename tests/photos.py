"""Small labelled photo folders, for tests: synthetic, quick, with classes that can be told apart."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

EXTENSION_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "bmp": "BMP", "gif": "GIF", "webp": "WEBP"}


def make_photo(kind: int, number: int, size: tuple[int, int] = (64, 48), seed: int = 0) -> np.ndarray:
    """One photo, uint8 [height, width, 3]: colour and stripe direction tell the kind, the rest varies.

    Args:
        kind: class number; the hue goes around in steps of the golden ratio, the stripes turn with it.
        number: which photo of that class.
        size: (width, height), pixels.
        seed: another seed, other photos.
    """
    rng = np.random.default_rng([seed, kind, number])
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    hue = 2 * np.pi * ((kind * 0.618) % 1.0 + rng.normal(0, 0.02))
    colour = 128 + 80 * np.cos(hue - np.array([0.0, 2.1, 4.2]))
    angle = np.pi * ((kind * 0.382) % 1.0) + rng.normal(0, 0.1)
    phase = rng.uniform(0, 2 * np.pi)
    stripes = np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * 0.6 + phase)
    photo = colour * rng.uniform(0.8, 1.2) + 30 * stripes[..., None] + rng.normal(0, 8, (height, width, 3))
    return np.clip(photo, 0, 255).astype(np.uint8)


def make_photo_folder(
    root: Path,
    classes: Mapping[str, int] | None = None,
    size: tuple[int, int] = (64, 48),
    seed: int = 0,
    format: str = "jpg",
) -> Path:
    """Write root/<class>/<number>.<format> and return root.

    Args:
        root: made if missing.
        classes: class name -> number of photos; default two classes of twelve.
        size: (width, height), pixels.
        seed: another seed, other photos.
        format: extension of the files, without the dot.
    """
    classes = {"cat": 12, "dog": 12} if classes is None else classes
    root.mkdir(parents=True, exist_ok=True)
    for kind, name in enumerate(sorted(classes)):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(classes[name]):
            image = Image.fromarray(make_photo(kind, number, size, seed))
            image.save(root / name / f"{number:04d}.{format}", EXTENSION_FORMATS[format])
    return root
