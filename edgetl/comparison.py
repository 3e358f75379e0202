"""Two sets of class probabilities on the same photos: what the second lost, and how sure one can be of it.

The photos are the same, so only those on which one is right and the other wrong tell anything; the intervals of two
accuracies taken apart overlap long before a loss stops being one.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgetl.metrics import agreement, check

CALIBRATION_BINS = 15
"""Guo et al. 2017."""
_Z = NormalDist().inv_cdf(0.975)
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Comparison:
    """What one model does on the photos of another, the reference. All fractions 0..1, a loss is positive."""

    samples: int
    drop: float
    """Top-1 of the reference minus top-1 of the other; negative: gained."""
    drop_low: float
    drop_high: float
    """95 % interval of `drop`, paired; see `paired_interval`."""
    expected_drop: float
    """What the photos on which the two differ would cost if the reference's probabilities were the truth: the mean of
    its probability of its own class less that of the other's class, 0..1. Labels don't enter, nor the luck of who was
    right on a few photos; of a reference that is too sure of itself it is an upper estimate."""
    expected_drop_error: float
    """Standard error of `expected_drop`: how much other photos of the same kind would move it."""
    lost: int
    """Photos that the reference names rightly and the other wrongly."""
    gained: int
    """Photos that the reference names wrongly and the other rightly."""
    mcnemar_p: float
    """How often chance alone would divide `lost + gained` photos at least as unevenly; see `mcnemar`."""
    agreement: float
    """Share of photos on which both name the same class, right or wrong."""
    max_difference: float
    """Largest absolute difference of a probability."""
    class_drops: tuple[float | None, ...]
    """Recall lost in each class; None for a class that has no photo here."""
    calibration_error_before: float
    """Of the reference; see `calibration_error`."""
    calibration_error_after: float
    """Of the other."""


def compare(labels: NDArray[np.int64], reference: NDArray[np.float32], other: NDArray[np.float32]) -> Comparison:
    """Compare two models on the same photos.

    Args:
        labels: [n], class indices.
        reference: [n, classes], probabilities 0..1 before, say of the Keras model.
        other: [n, classes], probabilities 0..1 after, say of an artifact.

    Raises:
        ValueError: shapes do not fit, no example, or a value that is not finite.
    """
    check(labels, reference)
    check(labels, other)
    if reference.shape != other.shape:
        raise ValueError(f"Expected equally many classes. Received: {reference.shape}, {other.shape}")
    before, after = reference.argmax(axis=1) == labels, other.argmax(axis=1) == labels
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    low, high = paired_interval(lost, gained, len(labels))
    change = before.astype(np.int64) - after
    costs = reference.max(axis=1) - reference[np.arange(len(labels)), other.argmax(axis=1)]
    return Comparison(
        samples=len(labels),
        drop=(lost - gained) / len(labels),
        drop_low=low,
        drop_high=high,
        expected_drop=float(costs.mean()),
        expected_drop_error=float(costs.std() / len(labels) ** 0.5),
        lost=lost,
        gained=gained,
        mcnemar_p=mcnemar(lost, gained),
        agreement=agreement(reference, other),
        max_difference=float(np.abs(reference.astype(np.float64) - other).max()),
        class_drops=tuple(
            float(change[labels == index].mean()) if (labels == index).any() else None
            for index in range(reference.shape[1])
        ),
        calibration_error_before=calibration_error(labels, reference),
        calibration_error_after=calibration_error(labels, other),
    )


def paired_interval(lost: int, gained: int, samples: int) -> tuple[float, float]:
    """95 % interval of a difference of two proportions on the same samples.

    The adjusted Wald interval of Bonett and Price 2012 (Journal of Educational and Behavioral Statistics 37, 479-488):
    one sample is added to each of the two discordant counts. Unlike a bootstrap it keeps its width when no sample
    changes sides: 0 of 100 photos lost does not prove that none ever will be.

    Args:
        lost: samples right before and wrong after.
        gained: samples wrong before and right after.
        samples: all, at least 1.

    Returns:
        Low and high end, -1..1; `(lost - gained) / samples` lies between.
    """
    p_lost, p_gained = (lost + 1) / (samples + 2), (gained + 1) / (samples + 2)
    middle = p_lost - p_gained
    half = _Z * ((p_lost + p_gained - middle**2) / (samples + 2)) ** 0.5
    return max(middle - half, -1.0), min(middle + half, 1.0)


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p-value of McNemar's test in its exact form: if only chance decides, each side gets half.

    Args:
        lost: samples right before and wrong after.
        gained: samples wrong before and right after.

    Returns:
        0..1; 1 where no sample changed sides.
    """
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def calibration_error(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599): how far scores are from being probabilities.

    Photos are put into 15 bins of equal width by the score of the class they are given, and in each the mean score is
    held against the share that is right. The scores are taken as they are, as the device reads them, even where those
    of an integer output do not sum to 1. With few photos per bin it is too high, for all models alike.

    Args:
        labels: [n], class indices.
        probabilities: [n, classes], 0..1.

    Returns:
        Mean distance over the photos, 0..1.

    Raises:
        ValueError: shapes do not fit, no example, or a value that is not finite.
    """
    check(labels, probabilities)
    score = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    # Bins are closed above, as in the paper: ]0, 1/15], ..., ]14/15, 1].
    place = np.clip(np.ceil(score * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1).astype(np.int64)
    excess = np.bincount(place, weights=score - right, minlength=CALIBRATION_BINS)
    return float(np.abs(excess).sum() / len(labels))
