"""LogME: how well frozen features explain labels, told without training anything.

You et al., "LogME: Practical assessment of pre-trained models for transfer learning" (ICML 2021, arXiv 2102.11005). The
labels y are thought of as a linear function of the features F with weights drawn from N(0, 1/alpha) and noise from
N(0, 1/beta). How probable the labels are under the best alpha and beta, with all possible weights averaged over, is the
evidence. It does not overfit as the accuracy of a fitted head does, and it costs one decomposition of the features.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.outputs import OutputSpec

ITERATIONS = 100
"""At most; the fixed point is usually reached within ten."""
TOLERANCE = 1e-6
"""Change of alpha / beta, relative, at which it is reached."""
_SMALLEST = 1e-12


def log_evidence(features: NDArray[np.float32], targets: NDArray[np.floating]) -> float:
    """Measure how well features explain targets; larger is better.

    Values compare backbones on the same photos, nothing else.

    Args:
        features: [n, d].
        targets: [n, k], see `targets_of`.

    Returns:
        Maximum log evidence per example, nats; the mean over the targets.
    """
    u, singular, _ = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    # Directions whose length is rounding error alone explain nothing.
    kept = singular > singular[0] * max(features.shape) * np.finfo(np.float32).eps if singular[0] > 0 else singular > 0
    u, spectrum = u[:, kept], singular[kept] ** 2
    return float(np.mean([_of_one(u, spectrum, y, features.shape[1]) for y in targets.astype(np.float64).T]))


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


def _of_one(u: NDArray[np.float64], spectrum: NDArray[np.float64], y: NDArray[np.float64], width: int) -> float:
    """Maximize over alpha and beta by the fixed point of MacKay (1992), in the basis of the decomposition.

    Args:
        u: [n, r], orthonormal directions of the features among the examples.
        spectrum: [r], squared singular values.
        y: [n].
        width: d, of the features.
    """
    n = len(y)
    inside = (u.T @ y) ** 2
    outside = max(float(y @ y - inside.sum()), 0.0)
    alpha = beta = 1.0
    for _ in range(ITERATIONS):
        before = alpha / beta
        weights, residuals = _weights_and_residuals(inside, outside, spectrum, before)
        effective = float((spectrum / (spectrum + before)).sum())
        alpha = max(effective, _SMALLEST) / max(weights, _SMALLEST)
        beta = max(n - effective, _SMALLEST) / max(residuals, _SMALLEST)
        if abs(alpha / beta - before) <= TOLERANCE * before:
            break
    weights, residuals = _weights_and_residuals(inside, outside, spectrum, alpha / beta)
    log_determinant = np.log(alpha + beta * spectrum).sum() + (width - len(spectrum)) * np.log(alpha)
    evidence = n * np.log(beta / (2 * np.pi)) + width * np.log(alpha) - log_determinant
    return float(evidence - beta * residuals - alpha * weights) / (2 * n)


def _weights_and_residuals(
    inside: NDArray[np.float64], outside: float, spectrum: NDArray[np.float64], ratio: float
) -> tuple[float, float]:
    """Squared lengths of the mean weights and of what they leave of y, at a ratio alpha / beta."""
    weights = float((inside * spectrum / (spectrum + ratio) ** 2).sum())
    return weights, float((inside * (ratio / (spectrum + ratio)) ** 2).sum()) + outside
