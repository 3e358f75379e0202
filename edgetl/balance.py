"""How much an example counts in training: weights of classes and labels, balanced sampling, weights that were given."""

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DatasetError


def class_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Weigh classes so that all count alike and the mean weight of an example is 1: n / (classes * count).

    Args:
        labels: [n], class indices.
        classes: number of classes.

    Returns:
        [classes].

    Raises:
        DatasetError: a class has no example.
    """
    counts = np.bincount(labels, minlength=classes)
    if empty := np.flatnonzero(counts == 0).tolist():
        raise DatasetError(f"class weights: no training example of class index {empty}. Add some, or leave it out")
    return (len(labels) / (classes * counts)).astype(np.float32)


def label_weights(labels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Do for each label what `class_weights` does for classes: photos with and without it count alike.

    Args:
        labels: [n, k], 1 where a label is true, else 0.

    Returns:
        [k, 2], weight of a photo without the label and of one with it; the mean over the photos is 1.

    Raises:
        DatasetError: a label is true of all examples or of none.
    """
    true = labels.sum(axis=0, dtype=np.float64)
    counts = np.stack([len(labels) - true, true], axis=1)
    if empty := np.flatnonzero((counts == 0).any(axis=1)).tolist():
        raise DatasetError(
            f"class weights: label index {empty} is true of all training examples or of none. Leave the label out"
        )
    return (len(labels) / (2 * counts)).astype(np.float32)


def relative_weights(weights: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Scale the weights of examples to a mean of 1, so that they leave learning rates and penalties what they are.

    Args:
        weights: [n], positive.

    Returns:
        [n]; None where all are equal: then training needs none, and its arithmetic is that without them.
    """
    if not len(weights) or (weights == weights[0]).all():
        return None
    return np.asarray(weights / weights.mean(dtype=np.float64), np.float32)


def balanced_indices(labels: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw examples, each class that occurs equally often up to one.

    A class is drawn without replacement as long as it lasts, then from all its examples again.

    Args:
        labels: [n], class indices.
        size: how many to draw.
        rng: also decides which classes get the examples left over by the division.

    Returns:
        Rows of `labels`, int64 [size], in random order.

    Raises:
        DatasetError: there are no examples.
    """
    present = np.unique(labels)
    if not len(present):
        raise DatasetError("balanced sampling: no training examples. Add some")
    counts = np.full(len(present), size // len(present))
    counts[rng.permutation(len(present))[: size % len(present)]] += 1
    drawn = [_draw(np.flatnonzero(labels == label), count, rng) for label, count in zip(present, counts, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def _draw(rows: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Take `count` rows, each as often as any other up to one."""
    rounds = -(-count // len(rows))
    return np.concatenate([rows[:0], *(rng.permutation(rows) for _ in range(rounds))])[:count]
