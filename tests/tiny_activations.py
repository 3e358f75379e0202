"""Border activations of a few small photos under a front of numpy, for tests of what is stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import data
from edgetl.activations import Activations, store
from edgetl.features import Forward
from edgetl.inputs import ImageInput

SPEC = ImageInput(8, 8)
SHAPES = ((2, 2, 3), (4,))
WIDTH = 16


def forward(pixels: np.ndarray) -> np.ndarray:
    """Means of quarters and of rows."""
    values = pixels.astype(np.float32)
    quarters = values.reshape(-1, 2, 4, 2, 4, 3).mean(axis=(2, 4))
    return np.concatenate([quarters.reshape(-1, 12), values[:, ::2].mean(axis=(2, 3))], axis=1)


def never() -> Forward:
    raise AssertionError("there is nothing to compute")


def run(photos: Path, make: Callable[[], Forward] = lambda: forward, **changes: Any) -> Activations:
    arguments: dict[str, Any] = {
        "shapes": SHAPES,
        "preset": "symmetries",
        "views": 3,
        "seed": 1,
        "key": {"backbone": "toy"},
        "cache": photos.parent / "cache",
        "budget_bytes": 10**6,
        "workers": 2,
        **changes,
    }
    return store(data.load(photos), arguments.pop("spec", SPEC), make, **arguments)


def everything(stored: Activations) -> np.ndarray:
    """All values, [photos * views, WIDTH]."""
    rows, views = np.mgrid[0 : len(stored), 0 : stored.views].reshape(2, -1)
    return np.concatenate([part.reshape(len(rows), -1) for part in stored.gather(rows, views)], axis=1)


def entries(photos: Path) -> list[Path]:
    return sorted(path for path in (photos.parent / "cache" / "activations").iterdir() if path.is_dir())


def files(photos: Path) -> list[Path]:
    """All files of all entries, with those under temporary names."""
    return sorted(path for entry in entries(photos) for path in entry.iterdir())
