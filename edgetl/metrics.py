"""Numpy arrays in, numbers out. The one scorer: Keras models and .tflite files are judged by the same code."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """How well class probabilities match class indices, on one set of examples. All fractions 0..1."""

    samples: int
    top1: float
    """Accuracy: share of examples whose most probable class is the right one."""
    top1_low: float
    top1_high: float
    """95 % Wilson score interval of `top1`."""
    balanced_accuracy: float
    precision: float
    recall: float
    f1: float
    """`precision`, `recall` and `f1` are means over the classes (macro)."""
    log_loss: float
    """Mean negative log likelihood, nats."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts, [true class][predicted class]."""


def score(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> Scores:
    """Score class probabilities against class indices.

    Args:
        labels: [n], class indices.
        probabilities: [n, classes], 0..1. Quantized outputs need not sum to exactly 1; `log_loss` renormalizes.

    Raises:
        ValueError: shapes do not fit, no example, or a value that is not finite.
    """
    check(labels, probabilities)
    from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, recall_score

    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(axis=1)
    low, high = wilson_interval(int((predicted == labels).sum()), len(labels))
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=classes, average="macro", zero_division=0
    )
    bounded = np.clip(probabilities.astype(np.float64), 1e-7, None)
    return Scores(
        samples=len(labels),
        top1=float((predicted == labels).mean()),
        top1_low=low,
        top1_high=high,
        balanced_accuracy=float(recall_score(labels, predicted, labels=np.unique(labels), average="macro")),
        precision=float(precision),
        recall=float(recall),
        f1=float(f1),
        log_loss=float(log_loss(labels, bounded / bounded.sum(axis=1, keepdims=True), labels=classes)),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion_matrix(labels, predicted, labels=classes)),
    )


def check(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> None:
    """Refuse what no figure can be computed from.

    Raises:
        ValueError: shapes do not fit, no example, or a value that is not finite.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            f"Expected labels [n] and probabilities [n, k]. Received: {labels.shape}, {probabilities.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("Expected finite probabilities. Received: NaN or infinity")


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), which keeps its coverage near 0 and 1."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def agreement(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Share of examples, 0..1, on which two sets of probabilities [n, classes] name the same class."""
    return float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
