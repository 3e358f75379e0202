"""Puts weights on the grid of int8 (or int4) so that their rounding errors cancel instead of adding up.

The converter rounds every weight to the nearest of 255 steps. The errors of one filter are random, but what they
multiply is not: activations behind a ReLU have a mean far from zero, so the sum of errors acts like a bias that moves
with the brightness of the photo. Here a few weights per filter are rounded the other way, those that were closest to
the middle between two steps, until the error of the filter on its mean input is zero. The converter then finds the
weights on its own grid (largest absolute weight of the channel / 127) and leaves them as they are.

On EfficientNet-Lite0 and elpv this halves the error of int8 features (docs/export.md).

The idea of flipping roundings to cancel the sum of errors is that of SQuant (Guo et al. 2022, arXiv 2202.07471), which
works without data and so takes all inputs as equal; the mean of each input is what bias correction uses (Nagel et al.
2019, arXiv 1906.04721).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras

STEPS = {"int8": 127, "int4": 7}
"""Steps on each side of zero of a symmetric weight, by its type."""


def rounded_copy(model: "keras.Model", images: NDArray[np.float32], steps: int = STEPS["int8"]) -> "keras.Model":
    """Copy a model with the weights of all convolutions on their grid.

    Args:
        model: flat functional model, one image input.
        images: calibration photos as the model takes them, [n, h, w, 3].
        steps: of the grid on each side of zero; that of int8 for depthwise kernels in any case.
    """
    import keras

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    layers = [layer for layer in copy.layers if isinstance(layer, tuple(_rounders()))]
    for layer, mean in zip(layers, _mean_inputs(copy, layers, images), strict=True):
        _rounders()[type(layer)](layer, mean, steps)
    return copy


def round_filters(
    weights: NDArray[np.float32], means: NDArray[np.float64], steps: int = STEPS["int8"]
) -> NDArray[np.float32]:
    """Round filters to their grid with no error on their mean input.

    Args:
        weights: [inputs, filters].
        means: mean of each input, [inputs] or [inputs, filters].
        steps: of the grid on each side of zero.

    Returns:
        Weights of the same shape; each within one step (largest absolute weight of the filter / steps) of what it
        was. Those that are on the grid already, such as the zeros of a pruned filter, stay.
    """
    means = np.broadcast_to(means.reshape(len(weights), -1), weights.shape)
    step = np.abs(weights).max(axis=0, initial=0.0).astype(np.float64) / steps
    step[step == 0] = 1.0
    exact = weights / step
    rounded = np.round(exact)
    error = rounded - exact
    other_way = np.where(error > 0, -1.0, 1.0)
    gain = other_way * means
    residue = (error * means).sum(axis=0)
    # The largest weight of a filter defines its grid and stays.
    possible = (gain * residue < 0) & (np.abs(rounded) < steps) & (error != 0)
    # Squared error rises by 1 - 2|e| when a weight is rounded the other way: spend that where it buys most.
    price = np.where(possible, (1 - 2 * np.abs(error)) / np.maximum(np.abs(gain), 1e-12), np.inf)
    order = np.argsort(price, axis=0)
    for column in np.flatnonzero(possible.any(axis=0)):
        rest = residue[column]
        for row in order[: int(possible[:, column].sum()), column]:
            if abs(rest + gain[row, column]) < abs(rest):
                rounded[row, column] += other_way[row, column]
                rest += gain[row, column]
    return np.asarray(rounded * step, np.float32)


def _mean_inputs(model: "keras.Model", layers: Sequence[Any], images: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """Mean of each input channel of each layer over photos and positions."""
    import keras

    if not layers:
        return []
    means = [
        keras.layers.GlobalAveragePooling2D(name=f"mean_input_of_{layer.name}")(layer.input)
        if len(layer.input.shape) == 4
        else layer.input
        for layer in layers
    ]
    each_photo = keras.Model(model.input, means).predict(images, batch_size=8, verbose=0)
    each_photo = each_photo if isinstance(each_photo, list) else [each_photo]
    return [np.asarray(rows, np.float64).mean(axis=0) for rows in each_photo]


def _rounders() -> dict[type, Any]:
    import keras

    return {
        keras.layers.Conv2D: _round_convolution,
        keras.layers.DepthwiseConv2D: _round_depthwise,
        keras.layers.SeparableConv2D: _round_separable,
        keras.layers.Dense: _round_convolution,
    }


def _round_convolution(layer: Any, mean: NDArray[np.float64], steps: int) -> None:
    layer.kernel.assign(_round_kernel(np.asarray(layer.kernel), mean, steps))


def _round_depthwise(layer: Any, _: NDArray[np.float64], __: int) -> None:
    layer.kernel.assign(_round_depthwise_kernel(np.asarray(layer.kernel)))


def _round_separable(layer: Any, mean: NDArray[np.float64], steps: int) -> None:
    depthwise = _round_depthwise_kernel(np.asarray(layer.depthwise_kernel))
    between = (depthwise.sum(axis=(0, 1)) * mean[:, None]).ravel()
    layer.depthwise_kernel.assign(depthwise)
    layer.pointwise_kernel.assign(_round_kernel(np.asarray(layer.pointwise_kernel), between, steps))


def _round_kernel(kernel: NDArray[np.float32], mean: NDArray[np.float64], steps: int) -> NDArray[np.float32]:
    """[..., inputs, filters]: every tap of a filter sees the same mean of an input channel."""
    flat = kernel.reshape(-1, kernel.shape[-1])
    return round_filters(flat, np.resize(mean, len(flat)), steps).reshape(kernel.shape)


def _round_depthwise_kernel(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """[h, w, channels, multiplier]: one filter per channel, all of whose taps see one mean, whatever it is."""
    flat = kernel.reshape(kernel.shape[0] * kernel.shape[1], -1)
    return round_filters(flat, np.ones(len(flat))).reshape(kernel.shape)
