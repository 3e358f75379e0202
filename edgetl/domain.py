"""How far photos are from those that a backbone was pretrained on; told by what it remembers of them.

Each BatchNorm layer carries mean and variance of its channels over the pretraining photos: the one record of them that
every published file has. The same two numbers on other photos say how far off they are (Li et al., "Revisiting batch
normalization for practical domain adaptation", arXiv 1603.04779; Yin et al., arXiv 1912.08795).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras

BATCH = 8
FAR = ((0.06, "like the pretraining photos"), (0.15, "some way from the pretraining photos"))
"""Up to such a distance. Everyday photos have 0.02, stained tissue 0.10, print and textures 0.15 to 0.20, stripes of a
random generator 0.5 (EfficientNet-Lite0; `docs/choosing.md`)."""


def distance(backbone: "keras.Model", photos: Sequence[NDArray[np.uint8]]) -> float | None:
    """Measure how differently a backbone's channels behave on photos than they did in pretraining.

    The activations of each channel that a BatchNorm layer normalizes are described by mean and variance, on these
    photos and in pretraining; what counts is the Kullback-Leibler divergence of the two normal distributions. Of a
    layer the median of its channels is taken, as a few that hardly ever fire can have any.

    Args:
        backbone: raw pixels in, as `edgetl.backbones.build` makes it, with pretrained weights.
        photos: uint8 [h, w, 3]; some tens are enough, as each has thousands of activations in a channel.

    Returns:
        Mean over the layers, nats: 0 for the same statistics. None for a backbone without BatchNorm.
    """
    import keras

    from edgetl.features import forward_of

    layers = list(_normalizing(backbone))
    if not layers:
        return None
    moments = [keras.ops.mean(power, axis=(1, 2)) for layer in layers for power in (layer.input, layer.input**2)]
    forward = forward_of(keras.Model(backbone.input, keras.ops.concatenate(moments, axis=-1)))
    starts = range(0, len(photos), BATCH)
    measured = np.concatenate([forward(np.stack(photos[start : start + BATCH])) for start in starts])
    mean_of = iter(np.split(measured.mean(axis=0, dtype=np.float64), np.cumsum([m.shape[-1] for m in moments])[:-1]))
    return float(np.mean([np.median(_divergence(layer, next(mean_of), next(mean_of))) for layer in layers]))


def in_words(found: float) -> str:
    """Say what a distance means."""
    return next((words for limit, words in FAR if found <= limit), "far from the pretraining photos")


def _normalizing(backbone: "keras.Model") -> Iterator[Any]:
    import keras

    return (
        layer
        for layer in backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization) and len(layer.input.shape) == 4
    )


def _divergence(layer: Any, mean: NDArray[np.float64], mean_square: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the photos' activations from those of pretraining, nats, one per channel; both with the layer's epsilon."""
    variance = np.maximum(mean_square - mean**2, 0.0) + layer.epsilon
    known = np.asarray(layer.moving_variance, np.float64) + layer.epsilon
    shift = (mean - np.asarray(layer.moving_mean, np.float64)) ** 2
    return np.asarray((variance + shift) / known - 1 - np.log(variance / known)) / 2
