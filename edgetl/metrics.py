"""Numpy arrays in, numbers out. The one scorer: Keras models and .tflite files are judged by the same code."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.bootstrap import interval, resampled
from edgetl.outputs import OutputSpec, Task
from edgetl.scores import (
    ClassificationScores,
    Figure,
    MultiLabelScores,
    OrdinalScores,
    OutputScores,
    RegressionScores,
    Scores,
    TargetScores,
)

LEAST_PROBABILITY = 1e-7
"""Where logarithms are taken: an integer output can say exactly 0."""
CALIBRATION_BINS = 15
"""Guo et al. 2017."""


def score(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> Scores:
    """Score what a model says against what is true.

    Args:
        labels: classification, ordinal: int [n], class indices; multi_label: [n, k] of 0 and 1; regression: [n, k] in
            the targets' units.
        outputs: [n, k] of the model: probabilities or scores 0..1, or numbers in the targets' units. Quantized
            probabilities need not sum to exactly 1; `log_loss` renormalizes.
        spec: what the outputs stand for; of several labels with their thresholds.

    Raises:
        ValueError: shapes do not fit, no example, a value that is not finite, or no thresholds.
    """
    check(labels, outputs, spec)
    return _SCORERS[spec.task](labels, outputs, spec)


def primary(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> float:
    """The figure that models are chosen by, alone and at once; see `score`.

    Raises:
        ValueError: as `score` does.
    """
    check(labels, outputs, spec)
    if spec.exclusive:
        return float((outputs.argmax(axis=1) == labels).mean())
    columns, figure = primary_columns(labels, outputs, spec)
    return float(figure(columns.sum(axis=0, dtype=np.float64)[None]).mean())


def primary_figure(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> Figure:
    """The same with its interval: Wilson's for a share of examples, else a bootstrap.

    Raises:
        ValueError: as `score` does.
    """
    value = primary(labels, outputs, spec)
    if spec.exclusive:
        return Figure(value, *wilson_interval(int((outputs.argmax(axis=1) == labels).sum()), len(labels)))
    columns, figure = primary_columns(labels, outputs, spec)
    return Figure(value, *interval(resampled(columns, lambda sums: figure(sums).mean(axis=1)), value))


def primary_columns(
    labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec
) -> tuple[NDArray[Any], Callable[[NDArray[Any]], NDArray[np.float64]]]:
    """What F1 and R2 follow from, for `edgetl.bootstrap`: what to sum over the examples, and the figures of the sums.

    Returns:
        [n, m], and a function from sums [resamples, m] to figures [resamples, k], one for each label or target.
    """
    if spec.task == "multi_label":
        said, true = said_labels(outputs, spec), labels > 0.5
        return np.hstack([said & true, said.astype(np.int8) + true]).astype(np.float32), f1_of
    truth = labels - labels.mean(axis=0, dtype=np.float64)  # small numbers: the difference of squares stays exact
    errors = np.asarray(outputs, np.float64) - labels
    return np.hstack([errors**2, truth, truth**2, np.ones((len(labels), 1))]), r2_of


def f1_of(sums: NDArray[Any]) -> NDArray[np.float64]:
    """F1 of each label, [resamples, k], of its hits and of how often it is said plus how often it is true; 0/0 is 0."""
    hits, both = np.split(np.asarray(sums, np.float64), 2, axis=1)
    return 2 * hits / np.maximum(both, 1e-12)


def r2_of(sums: NDArray[Any]) -> NDArray[np.float64]:
    """R2 of each target, [resamples, k], of squared errors, values, their squares, and the number of examples."""
    errors, values, squares = np.split(sums[:, :-1], 3, axis=1)
    spread = squares - values**2 / sums[:, -1:]
    varies = spread > 1e-12 * np.maximum(squares, np.finfo(np.float64).tiny)  # what rounding leaves of a constant
    return np.where(varies, 1 - errors / np.where(varies, spread, 1), np.where(errors > 0, 0.0, 1.0))


def said_labels(outputs: NDArray[np.float32], spec: OutputSpec) -> NDArray[np.bool_]:
    """Which labels are said, [n, k]: those whose score reaches the threshold."""
    return np.asarray(outputs >= np.asarray(spec.thresholds, np.float32))


def _class_figures(labels: NDArray[Any], probabilities: NDArray[np.float32], spec: OutputSpec) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix

    count = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    true, said = (np.eye(count, dtype=bool)[indices] for indices in (labels, predicted))
    each = tuple(_output_scores(true, said, probabilities, spec))
    low, high = wilson_interval(int((predicted == labels).sum()), len(labels))
    k = 1 if count < 3 else 2 if count < 10 else 5
    return {
        "samples": len(labels),
        "top1": float((predicted == labels).mean()),
        "top1_low": low,
        "top1_high": high,
        "k": k,
        "top_k": float((_ranks(labels, probabilities) < k).mean()),
        "balanced_accuracy": float(np.mean([one.recall for one in each if one.samples])),
        **_macro(each),
        "log_loss": log_loss(labels, probabilities, spec),
        "brier": float(((probabilities.astype(np.float64) - true) ** 2).sum(axis=1).mean()),
        "calibration_error": calibration_error(labels, probabilities, spec),
        "classes": each,
        "confusion": tuple(
            tuple(int(n) for n in row) for row in confusion_matrix(labels, predicted, labels=np.arange(count))
        ),
    }


def _classification(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> Scores:
    return ClassificationScores(**_class_figures(labels, outputs, spec))


def _ordinal(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> Scores:
    from sklearn.metrics import cohen_kappa_score

    predicted = outputs.argmax(axis=1)
    lone = len(np.union1d(labels, predicted)) == 1
    classes = np.arange(outputs.shape[1])
    kappa = None if lone else float(cohen_kappa_score(labels, predicted, labels=classes, weights="quadratic"))
    steps = float(np.abs(predicted - labels).mean())
    return OrdinalScores(**_class_figures(labels, outputs, spec), mean_steps=steps, kappa=kappa)


def _multi_label(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> Scores:
    true, said = labels > 0.5, said_labels(outputs, spec)
    each = tuple(_output_scores(true, said, outputs, spec))
    hits, named, there = int((true & said).sum()), int(said.sum()), int(true.sum())
    figure = primary_figure(labels, outputs, spec)
    return MultiLabelScores(
        samples=len(labels),
        f1_low=figure.low,
        f1_high=figure.high,
        **_macro(each),
        micro_precision=hits / named if named else 0.0,
        micro_recall=hits / there if there else 0.0,
        micro_f1=2 * hits / (named + there) if named + there else 0.0,
        subset_accuracy=float((true == said).all(axis=1).mean()),
        hamming_loss=float((true != said).mean()),
        log_loss=log_loss(labels, outputs, spec),
        brier=float(((outputs.astype(np.float64) - true) ** 2).mean()),
        calibration_error=calibration_error(labels, outputs, spec),
        labels=each,
    )


def _regression(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> Scores:
    figure = primary_figure(labels, outputs, spec)
    errors = outputs.astype(np.float64) - labels
    columns, r2 = primary_columns(labels, outputs, spec)
    each = zip(spec.names, errors.T, r2(columns.sum(axis=0)[None])[0], strict=True)
    targets = tuple(
        TargetScores(
            name=name,
            mae=float(np.abs(error).mean()),
            rmse=float((error**2).mean() ** 0.5),
            r2=float(explained),
            bias=float(error.mean()),
        )
        for name, error, explained in each
    )
    return RegressionScores(len(labels), figure.value, figure.low, figure.high, targets)


_SCORERS: dict[Task, Callable[[NDArray[Any], NDArray[np.float32], OutputSpec], Scores]] = {
    "classification": _classification,
    "ordinal": _ordinal,
    "multi_label": _multi_label,
    "regression": _regression,
}


def _ranks(labels: NDArray[Any], probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many classes come before the right one, [n]; of equal scores the first in order, as argmax has it."""
    own = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    return np.asarray(((probabilities > own) | (earlier & (probabilities == own))).sum(axis=1), np.int64)


def _output_scores(
    true: NDArray[np.bool_], said: NDArray[np.bool_], scores: NDArray[np.float32], spec: OutputSpec
) -> Iterator[OutputScores]:
    for name, is_so, is_said, values in zip(spec.names, true.T, said.T, scores.T, strict=True):
        samples, named, right = int(is_so.sum()), int(is_said.sum()), int((is_so & is_said).sum())
        precision, recall = right / named if named else 0.0, right / samples if samples else 0.0
        f1 = 2 * right / (samples + named) if samples + named else 0.0
        yield OutputScores(name, samples, named, right, precision, recall, f1, *_areas(is_so, values))


def _areas(true: NDArray[np.bool_], scores: NDArray[np.float32]) -> tuple[float | None, float | None]:
    """ROC-AUC and average precision, of one sort of the scores."""
    from sklearn.metrics import roc_curve

    positives = int(true.sum())
    if positives in (0, len(true)):
        return None, None
    false_share, true_share, _ = roc_curve(true, scores, drop_intermediate=False)
    hits, misses = true_share[1:] * positives, false_share[1:] * (len(true) - positives)
    precision = np.diff(true_share) * hits / (hits + misses)
    return float(np.trapezoid(true_share, false_share)), float(precision.sum())


def _macro(each: tuple[OutputScores, ...]) -> dict[str, Any]:
    """Means over classes or labels."""

    def mean(name: str) -> float | None:
        values = [getattr(one, name) for one in each if getattr(one, name) is not None]
        return float(np.mean(values)) if values else None

    return {name: mean(name) for name in ("precision", "recall", "f1", "roc_auc", "average_precision")}


def log_loss(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> float:
    """Mean negative log likelihood, nats: of the right classes, or over all pairs of an example and a label.

    Args:
        labels: see `score`.
        outputs: [n, k], scores 0..1, taken for at least LEAST_PROBABILITY; those of classes are made to sum to 1.
        spec: what they stand for; thresholds are not needed.

    Raises:
        ValueError: shapes do not fit, no example, a value that is not finite, or the outputs are no scores.
    """
    _check_scores(labels, outputs, spec)
    scores = np.clip(outputs.astype(np.float64), LEAST_PROBABILITY, None)
    if spec.exclusive:
        right = scores[np.arange(len(labels)), labels]
        return float((np.log(scores.sum(axis=1)) - np.log(right)).mean())
    scores = np.minimum(scores, 1 - LEAST_PROBABILITY)
    return float(-np.where(labels > 0.5, np.log(scores), np.log1p(-scores)).mean())


def calibration_error(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599): how far scores are from being probabilities.

    Photos are put into 15 bins of equal width by the score of the class they are given, and in each the mean score is
    held against the share that is right; of several labels every score counts, against whether its label is true. The
    scores are taken as they are, as the device reads them, even where those of an integer output do not sum to 1. With
    few photos per bin it is too high, for all models alike.

    Args:
        labels: see `score`.
        outputs: [n, k], scores 0..1.
        spec: what they stand for; thresholds are not needed.

    Returns:
        Mean distance over the photos, 0..1.

    Raises:
        ValueError: shapes do not fit, no example, a value that is not finite, or the outputs are no scores.
    """
    scores, right = confidences(labels, outputs, spec)
    # Bins are closed above, as in the paper: ]0, 1/15], ..., ]14/15, 1].
    place = np.clip(np.ceil(scores * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1).astype(np.int64)
    excess = np.bincount(place, weights=scores - right, minlength=CALIBRATION_BINS)
    return float(np.abs(excess).sum() / len(scores))


def confidences(
    labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores that should be probabilities, and whether what each of them is about is so; see `calibration_error`.

    Raises:
        ValueError: shapes do not fit, no example, a value that is not finite, or the outputs are no scores.
    """
    _check_scores(labels, outputs, spec)
    if spec.exclusive:
        return outputs.max(axis=1).astype(np.float64), outputs.argmax(axis=1) == labels
    return outputs.astype(np.float64).ravel(), labels.ravel() > 0.5


def check(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> None:
    """Refuse what no figure can be computed from.

    Raises:
        ValueError: shapes do not fit, no example, a value that is not finite, or no thresholds.
    """
    _check_shapes(labels, outputs, spec)
    if spec.task == "multi_label" and len(spec.thresholds) != len(spec.names):
        raise ValueError(f"Expected a threshold for each of {len(spec.names)} labels. Received: {spec.thresholds}")


def _check_shapes(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> None:
    """The same, where thresholds are not needed."""
    expected = outputs.shape[:1] if spec.exclusive else outputs.shape
    if outputs.ndim != 2 or outputs.shape[1] != len(spec.names) or labels.shape != expected or not len(labels):
        wanted = "[n]" if spec.exclusive else "[n, k]"
        raise ValueError(
            f"Expected labels {wanted} and outputs [n, k], k = {len(spec.names)}. "
            f"Received: {labels.shape}, {outputs.shape}"
        )
    if not (np.isfinite(outputs).all() and np.isfinite(labels).all()):
        raise ValueError("Expected finite numbers. Received: NaN or infinity")


def _check_scores(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> None:
    """The same of scores only."""
    _check_shapes(labels, outputs, spec)
    if spec.task == "regression":
        raise ValueError("Expected scores 0..1. Received: regression")


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), which keeps its coverage near 0 and 1."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)
