"""The loss on one-hot (or mixed) labels, and two remedies for unequal classes: weights, and balanced sampling."""

import numpy as np
from numpy.typing import NDArray

from edgetl.console import quiet_tensorflow
from edgetl.errors import ConfigError, DatasetError

quiet_tensorflow()
import keras  # noqa: E402


def make_loss(label_smoothing: float = 0.0, focal_gamma: float = 0.0) -> keras.losses.Loss:
    """Make the loss of a classifier: labels [n, k] that sum to 1, probabilities [n, k] -> the mean over examples.

    Args:
        label_smoothing: share of the label that is spread evenly over all classes, from 0 to below 1. Szegedy et al.,
            "Rethinking the Inception architecture", 2016.
        focal_gamma: examples count (1 - p)^gamma, with p the probability of their class; 0 is cross-entropy. Lin et
            al., "Focal loss for dense object detection", 2017, without its factor alpha: Keras' default, 0.25, would
            scale every class alike, that is, the learning rate.

    Raises:
        ConfigError: a value is out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing {label_smoothing:g}: must be from 0 to below 1, such as 0.1")
    if not 0 <= focal_gamma < np.inf:
        raise ConfigError(f"focal_gamma {focal_gamma:g}: must be 0 (off) or positive, such as 2")
    if focal_gamma:
        return keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=focal_gamma, label_smoothing=label_smoothing)
    # Not the focal loss with gamma 0: this one takes the logits in front of the softmax, so that the gradient of an
    # example that is surely wrong does not vanish; the focal loss clips probabilities at 1e-7.
    return keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing)


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


def balanced_indices(labels: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw examples, each class that occurs equally often up to one.

    A class is drawn without replacement as long as it lasts, then from all its examples again.

    Args:
        labels: [n], class indices.
        size: how many to draw.
        rng: also decides which classes get the examples left over by the division.

    Returns:
        Rows of `labels`, [size], in random order.

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
