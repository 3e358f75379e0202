"""What two models say of the same photos: what the second lost, and how sure one can be of it.

The photos are the same, so only those on which one is right and the other wrong tell anything; the intervals of two
accuracies taken apart overlap long before a loss stops being one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.bootstrap import interval, resampled
from edgetl.metrics import calibration_error, check, f1_of, primary_columns, r2_of, said_labels
from edgetl.outputs import OutputSpec, Task

SAME = 0.1
"""Numbers agree that differ by less than this share of the target's standard deviation."""
_Z = NormalDist().inv_cdf(0.975)
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Flips:
    """Photos on which one of two classifiers is right and the other wrong."""

    lost: int
    """Photos that the reference names rightly and the other wrongly."""
    gained: int
    """Photos that the reference names wrongly and the other rightly."""
    mcnemar_p: float
    """How often chance alone would divide `lost + gained` photos at least as unevenly; see `mcnemar`."""


@dataclass(frozen=True)
class Comparison:
    """What one model does on the photos of another, the reference. A loss is positive.

    Drops are of the task's primary figure (`edgetl.scores.PRIMARY`): fractions of 1.
    """

    samples: int
    drop: float
    """Figure of the reference minus that of the other; negative: gained."""
    drop_low: float
    drop_high: float
    """95 % interval of `drop`, paired: `paired_interval` where one class is right, else a bootstrap of the photos."""
    expected_drop: float
    """What the differences would cost if what the reference says were the truth. Labels don't enter, nor the luck of
    who was right on a few photos; of a reference that is too sure of itself it is an upper estimate.

    Classes: mean of the reference's probability of its own class less that of the other's class. Labels: F1 as both
    would have it if each label were true as often as the reference's score says. Numbers: R2 that is lost by being
    elsewhere than the mean of what is possible, squared differences over the variance of the truth."""
    expected_drop_error: float
    """Standard error of `expected_drop`: how much other photos of the same kind would move it."""
    agreement: float
    """Share of photos on which both name the same class, say the same set of labels, or give numbers that all differ
    by less than a tenth of the target's standard deviation; right or wrong."""
    max_difference: float
    """Largest absolute difference of a score; of numbers, in standard deviations of the target."""
    drops: tuple[float | None, ...]
    """Lost in each output: recall of a class, F1 of a label, R2 of a target; None for one that has no photo here."""
    calibration_error_before: float | None
    """Of the reference; see `edgetl.metrics.calibration_error`. None for numbers."""
    calibration_error_after: float | None
    """Of the other."""
    flips: Flips | None
    """None where not exactly one class is right."""


def compare(
    labels: NDArray[Any], reference: NDArray[np.float32], other: NDArray[np.float32], spec: OutputSpec
) -> Comparison:
    """Compare two models on the same photos.

    Args:
        labels: see `edgetl.metrics.score`.
        reference: [n, k], what is said before, say by the Keras model.
        other: [n, k], what is said after, say by an artifact.
        spec: what outputs stand for; with thresholds of labels and deviations of targets.

    Raises:
        ValueError: shapes do not fit, no example, a value that is not finite, no thresholds or no deviations.
    """
    check(labels, reference, spec)
    check(labels, other, spec)
    return _COMPARISONS[spec.task](labels, reference, other, spec)


def _classes(
    labels: NDArray[Any], reference: NDArray[np.float32], other: NDArray[np.float32], spec: OutputSpec
) -> Comparison:
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
        agreement=agreement(reference, other, spec),
        max_difference=float(np.abs(reference.astype(np.float64) - other).max()),
        drops=tuple(
            float(change[labels == index].mean()) if (labels == index).any() else None
            for index in range(reference.shape[1])
        ),
        calibration_error_before=calibration_error(labels, reference, spec),
        calibration_error_after=calibration_error(labels, other, spec),
        flips=Flips(lost, gained, mcnemar(lost, gained)),
    )


def _labels(
    labels: NDArray[Any], reference: NDArray[np.float32], other: NDArray[np.float32], spec: OutputSpec
) -> Comparison:
    drops, low, high, _ = _paired([primary_columns(labels, each, spec)[0] for each in (reference, other)], f1_of)
    said = (said_labels(each, spec) for each in (reference, other))
    hoped = [np.hstack([reference * each, reference + each]) for each in said]
    expected, _, _, error = _paired(hoped, f1_of)
    there = labels.max(axis=0) > 0.5
    return Comparison(
        samples=len(labels),
        drop=float(drops.mean()),
        drop_low=low,
        drop_high=high,
        expected_drop=float(expected.mean()),
        expected_drop_error=error,
        agreement=agreement(reference, other, spec),
        max_difference=float(np.abs(reference.astype(np.float64) - other).max()),
        drops=tuple(float(drop) if some else None for drop, some in zip(drops, there, strict=True)),
        calibration_error_before=calibration_error(labels, reference, spec),
        calibration_error_after=calibration_error(labels, other, spec),
        flips=None,
    )


def _numbers(
    labels: NDArray[Any], reference: NDArray[np.float32], other: NDArray[np.float32], spec: OutputSpec
) -> Comparison:
    drops, low, high, _ = _paired([primary_columns(labels, each, spec)[0] for each in (reference, other)], r2_of)
    apart = reference.astype(np.float64) - other
    spread = labels.var(axis=0, dtype=np.float64)
    costs = (apart**2 / np.where(spread > 0, spread, np.inf)).mean(axis=1)
    return Comparison(
        samples=len(labels),
        drop=float(drops.mean()),
        drop_low=low,
        drop_high=high,
        expected_drop=float(costs.mean()),
        expected_drop_error=float(costs.std() / len(labels) ** 0.5),
        agreement=agreement(reference, other, spec),
        max_difference=float((np.abs(apart) / _deviations(spec)).max()),
        drops=tuple(float(drop) for drop in drops),
        calibration_error_before=None,
        calibration_error_after=None,
        flips=None,
    )


_COMPARISONS: dict[Task, Callable[[NDArray[Any], NDArray[np.float32], NDArray[np.float32], OutputSpec], Comparison]] = {
    "classification": _classes,
    "ordinal": _classes,
    "multi_label": _labels,
    "regression": _numbers,
}


def _paired(
    columns: Sequence[NDArray[Any]], figures: Callable[[NDArray[Any]], NDArray[np.float64]]
) -> tuple[NDArray[np.float64], float, float, float]:
    """Difference of two figures, each of sums over the same photos (`edgetl.bootstrap`).

    Returns:
        The difference of each output; of their mean the low and high end of the interval, and the standard error.
    """

    def difference(sums: NDArray[Any]) -> NDArray[np.float64]:
        before, after = np.split(sums, 2, axis=1)
        return figures(before) - figures(after)

    both = np.hstack(columns)
    each = difference(both.sum(axis=0, dtype=np.float64)[None])[0]
    drawn = resampled(both, lambda sums: difference(sums).mean(axis=1))
    return each, *interval(drawn, float(each.mean())), float(drawn.std())


def agreement(ours: NDArray[np.float32], theirs: NDArray[np.float32], spec: OutputSpec) -> float:
    """Share of photos, 0..1, of which two models say the same; see `Comparison.agreement`.

    Raises:
        ValueError: numbers without their deviations.
    """
    if spec.exclusive:
        same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    elif spec.task == "multi_label":
        same = (said_labels(ours, spec) == said_labels(theirs, spec)).all(axis=1)
    else:
        same = (np.abs(ours.astype(np.float64) - theirs) < SAME * _deviations(spec)).all(axis=1)
    return float(same.mean())


def _deviations(spec: OutputSpec) -> NDArray[np.float64]:
    if len(spec.deviations) != len(spec.names) or min(spec.deviations) <= 0:
        raise ValueError(
            f"Expected a deviation above 0 of each of {len(spec.names)} targets. Received: {spec.deviations}"
        )
    return np.array(spec.deviations)


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
