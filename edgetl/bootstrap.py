"""How much a figure would move with other photos of the same kind: the bootstrap (Efron 1979), vectorized.

A figure that follows from sums over the photos (hits, squared errors) is computed for all resamples at once: how often
each photo is drawn is one row of a matrix, and the sums are its product with what is summed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
BLOCK = 4_000_000
"""Draws that are held in memory at once: 50 MB."""

Statistic = Callable[[NDArray[Any]], NDArray[np.float64]]
"""Sums over the photos of each resample, [resamples, m], to a figure of each, [resamples] or [resamples, figures]."""


def resampled(
    columns: NDArray[Any], statistic: Statistic, *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Compute a figure on as many photos as there are, drawn with replacement, again and again.

    Args:
        columns: [n, m], what is summed over the photos. float32 is exact for whole numbers, up to 16 million photos,
            and twice as fast.
        statistic: sums -> figures.
        resamples: how often.
        seed: of the draws; the same one draws the same photos.

    Returns:
        The figure of each resample.
    """
    n, random = len(columns), np.random.default_rng(seed)
    block = max(1, min(resamples, BLOCK // n))
    found = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = random.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        found.append(statistic(times.astype(columns.dtype) @ columns))
    return np.concatenate(found)


def interval(figures: NDArray[np.float64], found: float) -> tuple[float, float]:
    """95 % percentile interval, widened where need be to hold what was found.

    Resamples lack some photos, a rare label all of its own: a figure can be lower in nearly all of them.

    Args:
        figures: of the resamples.
        found: on the photos themselves.
    """
    low, high = np.quantile(figures, (0.025, 0.975))
    return min(float(low), found), max(float(high), found)
