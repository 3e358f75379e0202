"""LogME: how well frozen features explain labels, told without training anything.

You et al., "LogME: Practical assessment of pre-trained models for transfer learning" (ICML 2021, arXiv 2102.11005). The
labels y are thought of as a linear function of the features F with weights drawn from N(0, 1/alpha) and noise from
N(0, 1/beta). How probable the labels are under the best alpha and beta, with all possible weights averaged over, is the
evidence. It does not overfit as the accuracy of a fitted head does, and it costs one decomposition of the features.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from edgetl.outputs import OutputSpec
from edgetl.rows import RowsLike, as_rows

GRID = 40
"""Ratios of alpha and beta that are tried."""
BEYOND = 14.0
"""How far the grid goes beyond the features' own spectrum, log units: there all is noise, or nothing."""
_SMALLEST = 1e-12
"""Noise that is always there, variance per example: features can contain the label."""


def log_evidence(features: RowsLike, targets: NDArray[np.floating]) -> float:
    """Measure how well features explain targets; larger is better.

    Values compare backbones on the same photos, nothing else.

    Args:
        features: [n, d], of a sample: the decomposition holds them in memory.
        targets: [n, k], see `targets_of`.

    Returns:
        Maximum log evidence per example, nats; the mean over the targets.
    """
    values = as_rows(features).array().astype(np.float64)
    with threadpool_limits(1, "blas"):  # as in `edgetl.probe`
        u, singular, _ = np.linalg.svd(values, full_matrices=False)
    # Directions whose length is rounding error alone explain nothing.
    kept = singular > singular[0] * max(values.shape) * np.finfo(np.float32).eps if singular[0] > 0 else singular > 0
    u, spectrum = u[:, kept], singular[kept] ** 2
    return float(np.mean([_of_one(u, spectrum, y) for y in targets.astype(np.float64).T]))


def targets_of(labels: NDArray[Any], outputs: OutputSpec) -> NDArray[np.float64]:
    """Turn labels of any task, as `Examples.labels` are, into targets [n, k].

    Classes become one target each, 1 or 0; labels are that already; numbers are standardized, so that their units
    don't matter, and a constant one is left at 0.

    Args:
        labels: class indices [n], or labels or numbers [n, k].
        outputs: what they are.
    """
    if outputs.exclusive:
        return np.asarray(np.eye(len(outputs.names))[labels])
    numbers = labels.astype(np.float64)
    if outputs.task == "multi_label":
        return numbers
    spread = numbers.std(axis=0)
    return np.asarray((numbers - numbers.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _of_one(u: NDArray[np.float64], spectrum: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Maximize over alpha and beta, in the basis of the decomposition.

    For a given ratio alpha / beta the best beta is known, so that one number is left to look for: on a grid first,
    because there can be two maxima, then between its neighbours.

    Args:
        u: [n, r], orthonormal directions of the features among the examples.
        spectrum: [r], squared singular values.
        y: [n].
    """
    from scipy.optimize import minimize_scalar

    n = len(y)
    inside = (u.T @ y) ** 2
    outside = max(float(y @ y - inside.sum()), _SMALLEST * n)

    def loss(log_ratio: float) -> float:
        left = 1 / (1 + spectrum * np.exp(-log_ratio))  # of y, in each direction
        return 0.5 * float(np.log(2 * np.pi * (outside + inside @ left) / n) + 1 - np.log(left).sum() / n)

    if not len(spectrum):
        return -loss(0.0)
    grid = np.linspace(np.log(spectrum.min()) - BEYOND, np.log(spectrum.max()) + BEYOND, GRID)
    at = int(np.argmin([loss(each) for each in grid]))
    near = grid[max(at - 1, 0)], grid[min(at + 1, GRID - 1)]
    return -min(loss(grid[at]), float(minimize_scalar(loss, bounds=near, method="bounded").fun))
