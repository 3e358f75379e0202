"""The normalization of a backbone, as an integer network computes it for nothing.

Integer artifacts take raw pixels: what the input tensor's own scale and zero point can say costs no operator. They say
one scale and one offset for all channels. What is left of a normalization that differs per channel, or that swaps red
and blue, is linear and next to the first convolution, which is linear too, so it goes into that one's kernel and bias.

The one difficulty is padding. Behind the normalization a border of zeros means "the mean colour"; in front of it the
mean colour is another number for each channel. So the border is written out (`MeanBorder`, two CONCATENATION with
constants, plain copies) and the convolution pads nothing. That is exact at every pixel and in every padding that
Keras has; in int8 pixels reach the convolution unrounded, where any operator in between would round them once more.
Measured against the other forms by `python -m benchmarks.normalization`.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetl.backbones.build import IMAGES, NORMALIZE_LAYER
from edgetl.console import quiet_tensorflow

quiet_tensorflow()

import keras  # noqa: E402

Padding: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
"""((rows above, below), (columns left, right))."""


@dataclass(frozen=True)
class Affine:
    """What a `normalize` layer computes of a raw pixel: y = x @ matrix + offset."""

    matrix: NDArray[np.float64]
    """[channels in, channels out]."""
    offset: NDArray[np.float64]
    """[channels out]."""

    @property
    def mean_colour(self) -> NDArray[np.float64]:
        """The raw pixel that becomes zero, one value per channel in."""
        return np.asarray(np.linalg.solve(self.matrix.T, -self.offset), np.float64)

    @property
    def scale(self) -> float:
        """One scale for all channels, the nearest to what they have; the input tensor's."""
        return float(np.abs(self.matrix).sum(axis=0).mean())

    @property
    def zero_point(self) -> int:
        """The raw value, a whole number, nearest to the mean colour; the input tensor's."""
        return round(float(self.mean_colour.mean()))


@dataclass(frozen=True)
class Stem:
    """The layers between the normalization and the first convolution, that one included."""

    padding: Padding
    """All that is added around the photo, by a layer of its own and by the convolution."""
    layer: keras.layers.ZeroPadding2D | None
    convolution: keras.layers.Conv2D


@keras.saving.register_keras_serializable("edgetl")
class MeanBorder(keras.layers.Layer):  # type: ignore[misc]
    """Pads photos with one colour, as ZeroPadding2D pads with black."""

    def __init__(self, padding: Padding, colour: tuple[float, ...], **keywords: Any) -> None:
        """Remember what to add.

        Args:
            padding: rows and columns.
            colour: one value per channel, in units of the layer's input.
            **keywords: of `keras.layers.Layer`.
        """
        super().__init__(trainable=False, **keywords)
        self.padding = tuple(tuple(pair) for pair in padding)
        self.colour = tuple(colour)

    def call(self, inputs: Any) -> Any:
        """[n, h, w, c] -> [n, above + h + below, left + w + right, c]."""
        count, height, width, _ = keras.ops.shape(inputs)
        (above, below), (left, right) = self.padding
        inputs = self._between(inputs, 1, (count, above, width), (count, below, width))
        return self._between(inputs, 2, (count, above + height + below, left), (count, above + height + below, right))

    def _between(self, inputs: Any, axis: int, before: tuple[Any, ...], after: tuple[Any, ...]) -> Any:
        colour = keras.ops.convert_to_tensor(self.colour, inputs.dtype)
        parts = [keras.ops.broadcast_to(colour, (*shape, len(self.colour))) for shape in (before, after) if shape[axis]]
        if not parts:
            return inputs
        parts.insert(1 if before[axis] else 0, inputs)
        return keras.ops.concatenate(parts, axis=axis)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """See `call`."""
        count, *sides, channels = input_shape
        grown = (side if side is None else side + sum(pair) for side, pair in zip(sides, self.padding, strict=True))
        return (count, *grown, channels)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        config = super().get_config()
        config.pop("trainable", None)
        return {**config, "padding": self.padding, "colour": self.colour}


def integer_form(model: keras.Model) -> tuple[keras.Model, float, float]:
    """Take the normalization out of a model, as far as an integer network need not compute it.

    Args:
        model: raw pixels in; stays as it is. Flat, with its normalization in a layer called `normalize`.

    Returns:
        A model, and the scale and offset that its input expects of raw pixels. In float it gives what `model` gives,
        up to float rounding. One scale and offset for all channels: the model behind the layer, same layers. Others
        before a convolution: a copy with the rest of the normalization in that convolution (see the module). Others
        elsewhere: a copy with one convolution, `one_operator`. No such layer: the model as it is, 1 and 0.
    """
    layer = find(model)
    if layer is None:
        return model, 1.0, 0.0
    if isinstance(layer, keras.layers.Rescaling) and not np.ndim(layer.scale) and not np.ndim(layer.offset):
        # Keras would number an unnamed model, tensors are named after it, and no two conversions would give the same.
        part = keras.Model(layer.output, model.output, name=model.name)
        return part, float(layer.scale), float(layer.offset)
    stem, affine = stem_of(model, layer), affine_of(layer)
    if stem is None or (affine.mean_colour < 0).any() or (affine.mean_colour > 255).any():
        return one_operator(model)
    return _folded(model, layer, stem, affine)


def one_operator(model: keras.Model) -> tuple[keras.Model, float, float]:
    """Turn a normalization that differs per channel into one convolution of one pixel, called `normalize`.

    Leaves every other layer as it is: for those who must meet the layers of the architecture, such as
    quantization-aware training. Arguments and result as for `integer_form`; a model without such a layer, or with one
    scale and offset for all channels, is what `integer_form` makes of it.
    """
    layer = find(model)
    if not (isinstance(layer, keras.layers.Rescaling) and (np.ndim(layer.scale) or np.ndim(layer.offset))):
        return (model, 1.0, 0.0) if isinstance(layer, keras.layers.Conv2D) else integer_form(model)
    affine = affine_of(layer)
    operator = keras.layers.DepthwiseConv2D(1, trainable=False, name=NORMALIZE_LAYER)
    operator.build(layer.output.shape)
    operator.set_weights([np.diag(affine.matrix)[None, None, :, None], affine.offset])
    return copy_with(model, {layer.name: operator}), 1.0, 0.0


def find(model: keras.Model) -> keras.layers.Layer | None:
    """The layer called `normalize`, if it is one of those that `edgetl.backbones.build` makes."""
    layer = next((each for each in model.layers if each.name == NORMALIZE_LAYER), None)
    if isinstance(layer, keras.layers.Rescaling):
        return layer
    if not isinstance(layer, keras.layers.Conv2D) or (layer.kernel_size, layer.padding) != ((1, 1), "valid"):
        return None
    square = layer.filters == layer.input.shape[-1] and layer.strides == (1, 1)
    return layer if square and layer.use_bias and layer.activation is keras.activations.linear else None


def affine_of(layer: Any) -> Affine:
    """Read what a layer that `find` found computes."""
    if isinstance(layer, keras.layers.Rescaling):
        channels = layer.output.shape[-1]
        scale, offset = (np.broadcast_to(np.float64(each), channels) for each in (layer.scale, layer.offset))
        return Affine(np.diag(scale), offset)
    kernel, bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    return Affine(kernel[0, 0], bias)


def stem_of(model: keras.Model, layer: keras.layers.Layer) -> Stem | None:
    """What follows the normalization, if it is a convolution, perhaps behind a layer that pads with zeros."""
    following, zeros = _only_consumer(model, layer), None
    padding: Padding = ((0, 0), (0, 0))
    if isinstance(following, keras.layers.ZeroPadding2D):
        zeros, padding = following, following.padding
        following = _only_consumer(model, following)
    if type(following) is not keras.layers.Conv2D or following.groups != 1:
        return None
    if following.padding == "same":
        (above, below), (left, right) = padding
        more = same_padding(following)
        padding = (above + more[0][0], below + more[0][1]), (left + more[1][0], right + more[1][1])
    return Stem(padding, zeros, following)


def _only_consumer(model: keras.Model, layer: keras.layers.Layer) -> Any:
    operations = [each for each in model.operations if not isinstance(each, keras.layers.InputLayer)]
    found = [each for each in operations if any(x is layer.output for x in keras.tree.flatten(each.input))]
    return found[0] if len(found) == 1 else None


def same_padding(convolution: keras.layers.Conv2D) -> Padding:
    """What `padding="same"` adds: as little as gives one output per stride, the odd one at the end."""
    sides = convolution.input.shape[1:3]
    missing = []
    for side, kernel, stride, dilation in zip(
        sides, convolution.kernel_size, convolution.strides, convolution.dilation_rate, strict=True
    ):
        missing.append(max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0))
    height, width = missing
    return (height // 2, height - height // 2), (width // 2, width - width // 2)


def _folded(
    model: keras.Model, layer: keras.layers.Layer, stem: Stem, affine: Affine
) -> tuple[keras.Model, float, float]:
    """Split the normalization: one scale and zero point for the input tensor, the rest for the first convolution.

    The input stays near zero and near deviation 1, so the kernel keeps its size (rounding it to int8 does not act on
    the brightness of photos, training it needs no other rate), and nothing is left to the bias but a small rest.
    """
    scale, zero_point = affine.scale, affine.zero_point
    rest = Affine(affine.matrix / scale, affine.offset + zero_point * affine.matrix.sum(axis=0))
    old = stem.convolution
    config = {**old.get_config(), "padding": "valid", "use_bias": True}
    convolution = keras.layers.Conv2D.from_config(config)
    convolution.build(old.input.shape)
    kernel, *bias = (np.asarray(weight, np.float64) for weight in old.get_weights())
    bias_of_rest = np.einsum("hwof,o->f", kernel, rest.offset)
    convolution.set_weights([np.einsum("hwof,co->hwcf", kernel, rest.matrix), bias_of_rest + (bias[0] if bias else 0)])
    new: dict[str, Any] = {layer.name: None, old.name: convolution}
    if stem.layer:
        new[stem.layer.name] = None
    if np.any(stem.padding):
        colour = tuple(scale * (affine.mean_colour - zero_point))
        new[layer.name] = MeanBorder(stem.padding, colour, name=NORMALIZE_LAYER)
    return copy_with(model, new), scale, -scale * zero_point


def copy_with(model: keras.Model, new: dict[str, Any]) -> keras.Model:
    """Copy a flat model with other layers in the place of those named; None leaves a layer out."""
    copies: dict[str, Any] = {}

    def call(layer: Any, first: Any, *rest: Any, **keywords: Any) -> Any:
        return first if isinstance(layer, _Nothing) else layer(first, *rest, **keywords)

    def copy(layer: Any) -> Any:
        if layer.name in new:
            return new[layer.name] or _Nothing()
        if layer.name not in copies:
            copies[layer.name] = type(layer).from_config(layer.get_config())
        return copies[layer.name]

    images = keras.Input(model.input.shape[1:], dtype="float32", name=IMAGES)
    whole = keras.models.clone_model(model, input_tensors=images, clone_function=copy, call_function=call)
    for layer in model.layers:
        if layer.name in copies:
            copies[layer.name].set_weights(layer.get_weights())
    return keras.Model(images, whole.output, name=model.name)


class _Nothing(keras.layers.Layer):  # type: ignore[misc]
    """Stands for a layer that is left out."""
