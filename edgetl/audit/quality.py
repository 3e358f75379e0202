"""Photos that stand out by how they look or are stored. Limits are absolute where the eye has one, else the data's own.

Brightness limits are those of cleanvision; its blur and size scores are not used: they flag every photo of a soft
texture, and every one that is not of the commonest size.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgetl.audit.copies import MIN_DEVIATION
from edgetl.audit.findings import Finding, Kind, Spread
from edgetl.audit.looks import Looks

DARK_BELOW = 0.32
"""Brightness 0..1 that 99 % of a dark photo's pixels stay below."""
BRIGHT_ABOVE = 0.95
"""Brightness that 95 % of a washed-out photo's pixels are above."""
BLURRY_BELOW = 0.10
"""Deviation of the Laplacian against that of grey. Photos of scikit-image: 0.43 to 2.2, and 0.21 for the one that is
blurred; `elpv`: 0.13 to 0.73; blurred by 1.6 % of their size (4 of 224 pixels) photos of scenes are at 0.04 to 0.09."""
ODD_ASPECT = 2.0
"""Factor by which longer side by shorter side may differ from the data's median."""
ODD_SIZE = 3.0
"""Factor by which the side of a square of the same area may differ from the data's median."""
RARE_MODE = 0.05
"""A way of storing colours is odd where fewer photos than this share have it."""
_SUFFIXES = {
    ".jpg": ("JPEG", "MPO"),
    ".jpeg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".bmp": ("BMP",),
    ".gif": ("GIF",),
    ".webp": ("WEBP",),
}


def find(looks: Looks) -> list[Finding]:
    """List the photos that can't be read, look wrong or are stored oddly, by kind and id."""
    found = [Finding(failure.id, "unreadable", failure.reason) for failure in looks.unreadable]
    if len(looks.rows):
        found += [*_by_look(looks), *_by_shape(looks), *_by_storage(looks)]
    return found


def spread(values: ArrayLike) -> Spread:
    """Summarize numbers; zeros where there are none."""
    numbers = np.asarray(values, np.float64)
    return Spread(*(float(x) for x in np.percentile(numbers, [0, 50, 100]))) if len(numbers) else Spread(0, 0, 0)


def _by_look(looks: Looks) -> Iterator[Finding]:
    rows = looks.rows
    blank = rows["deviation"] < MIN_DEVIATION
    dark = ~blank & (rows["bright"] < DARK_BELOW)
    bright = ~blank & (rows["dark"] > BRIGHT_ABOVE)
    blurry = ~blank & ~dark & (rows["sharpness"] < BLURRY_BELOW)
    rules: list[tuple[Kind, NDArray[np.bool_], str, str]] = [
        ("blank", blank, "deviation", f"contrast {{:.1f}} of 255 levels, limit {MIN_DEVIATION:g}"),
        ("dark", dark, "bright", f"99 % of the pixels below brightness {{:.2f}}, limit {DARK_BELOW:.2f}"),
        ("bright", bright, "dark", f"95 % of the pixels above brightness {{:.2f}}, limit {BRIGHT_ABOVE:.2f}"),
        ("blurry", blurry, "sharpness", f"sharpness {{:.2f}}, limit {BLURRY_BELOW:.2f}"),
    ]
    for kind, mask, measure, detail in rules:
        for index in np.flatnonzero(mask).tolist():
            yield _finding(looks, index, kind, detail.format(rows[measure][index]))


def _by_shape(looks: Looks) -> Iterator[Finding]:
    width, height = (looks.rows[side].astype(np.float64) for side in ("width", "height"))
    aspect = np.maximum(width, height) / np.minimum(width, height)
    side = np.sqrt(width * height)
    rules: list[tuple[Kind, NDArray[np.float64], float]] = [
        ("odd_aspect", aspect, ODD_ASPECT),
        ("odd_size", side, ODD_SIZE),
    ]
    for kind, values, limit in rules:
        usual = float(np.median(values))
        for index in np.flatnonzero(np.maximum(values / usual, usual / values) > limit).tolist():
            seen = f"{width[index]:.0f}x{height[index]:.0f} pixels"
            against = f"sides {usual:.2g} to 1" if kind == "odd_aspect" else f"{usual:.0f}x{usual:.0f}"
            yield _finding(looks, index, kind, f"{seen}, usual here is {against}")


def _by_storage(looks: Looks) -> Iterator[Finding]:
    modes = Counter(looks.rows["mode"].tolist())
    usual = modes.most_common(1)[0][0]
    for index, (example, row) in enumerate(zip(looks.examples, looks.rows, strict=True)):
        suffix = PurePosixPath(example.id).suffix.lower()
        if row["format"] not in _SUFFIXES.get(suffix, (row["format"],)):
            yield _finding(looks, index, "odd_file", f"called {suffix}, holds {row['format']}")
        if row["frames"] != 1:
            many = f"{row['frames']} frames" if row["frames"] else "broken or unending behind the first frame"
            yield _finding(looks, index, "odd_file", f"{many}, of which the first is used")
        if modes[str(row["mode"])] < RARE_MODE * len(looks.rows):
            yield _finding(looks, index, "odd_file", f"colours stored as {row['mode']}, usual here is {usual}")


def _finding(looks: Looks, index: int, kind: Kind, detail: str) -> Finding:
    return Finding(looks.examples.items[index].id, kind, detail)
