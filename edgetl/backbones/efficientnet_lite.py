"""EfficientNet-Lite0 to Lite4: EfficientNet without what integer kernels dislike.

No squeeze-and-excite, ReLU6 instead of swish, and a stem (32) and head (1280) that don't grow with the
width. Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog, 2020; the numbers are
those of the reference implementation (tensorflow/tpu, models/official/efficientnet/lite).

Layer names carry the stage, as in Keras' EfficientNet: `stem_conv`, `block1a_dwconv`, `block2a_expand_conv`, ...,
`top_conv`. Strided convolutions pad as TensorFlow's "same" does, so no PAD operator reaches the device.
"""

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgetl.console import quiet_tensorflow
from edgetl.errors import WeightsError

quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402


@dataclass(frozen=True)
class Stage:
    """Blocks of one kernel size and one number of channels."""

    kernel: int
    repeats: int
    channels: int
    """Channels out, before width scaling."""
    expand: int
    """Factor by which a block widens before its depthwise convolution; 1 leaves the expansion out."""
    stride: int
    """Of the first block; the others have 1."""


STAGES = (
    Stage(3, 1, 16, 1, 1),
    Stage(3, 2, 24, 6, 2),
    Stage(5, 2, 40, 6, 2),
    Stage(3, 3, 80, 6, 2),
    Stage(5, 3, 112, 6, 1),
    Stage(5, 4, 192, 6, 2),
    Stage(3, 1, 320, 6, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
BN_EPSILON = 1e-3
IMAGENET_CLASSES = 1000


def efficientnet_lite(
    width: float, depth: float, *, input_shape: tuple[int, int, int], include_top: bool = False
) -> keras.Model:
    """Build one member of the family, randomly initialised, for pixels that are normalized already.

    Args:
        width: factor on the channels of every stage.
        depth: factor on the blocks of every stage but the first and the last.
        input_shape: (height, width, 3).
        include_top: end in the 1000 ImageNet logits instead of the pooled features.

    Returns:
        float32 [None, height, width, 3] -> [None, 1280], or [None, 1000] logits.
    """
    inputs = keras.Input(input_shape)
    x = _conv(STEM_CHANNELS, 3, strides=2, name="stem_conv")(inputs)
    x = _activation(_batch_norm(x, "stem"), "stem")
    for number, stage in enumerate(STAGES, start=1):
        scaled = math.ceil(stage.repeats * depth)
        repeats = stage.repeats if number in (1, len(STAGES)) else scaled
        for index in range(repeats):
            block = f"block{number}{chr(ord('a') + index)}"
            stride = stage.stride if index == 0 else 1
            x = _block(x, stage, _round_channels(stage.channels, width), stride, block)
    x = _conv(HEAD_CHANNELS, 1, name="top_conv")(x)
    x = _activation(_batch_norm(x, "top"), "top")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if include_top:
        x = layers.Dense(IMAGENET_CLASSES, name="predictions")(x)
    return keras.Model(inputs, x)


EfficientNetLite0 = partial(efficientnet_lite, 1.0, 1.0)
EfficientNetLite1 = partial(efficientnet_lite, 1.0, 1.1)
EfficientNetLite2 = partial(efficientnet_lite, 1.1, 1.2)
EfficientNetLite3 = partial(efficientnet_lite, 1.2, 1.4)
EfficientNetLite4 = partial(efficientnet_lite, 1.4, 1.8)


def load_checkpoint(model: keras.Model, tensors: dict[str, np.ndarray], *, source: str) -> None:
    """Put a checkpoint of the PyTorch port, itself ported from the reference, into a model of this family.

    Args:
        model: with or without its classifier.
        tensors: name -> array, in PyTorch's order of axes.
        source: where they come from, for the message.

    Raises:
        WeightsError: a tensor is missing or has another shape.
    """
    layers_with_weights = [layer for layer in model.layers if layer.weights]
    blocks = sorted({match[0] for layer in layers_with_weights if (match := _BLOCK.match(layer.name))})
    for layer in layers_with_weights:
        names = _checkpoint_names(layer, blocks)
        if missing := [name for name in names if name not in tensors]:
            raise WeightsError(f"{source}: has no {missing[0]} for layer {layer.name}. Is it of another backbone?")
        values = [_to_keras(layer, tensors[name]) for name in names]
        expected = [tuple(weight.shape) for weight in layer.weights]
        received = [value.shape for value in values]
        if received != expected:
            raise WeightsError(
                f"{source}: layer {layer.name} does not fit: expected shapes {expected}, received {received}"
            )
        layer.set_weights(values)


_BLOCK = re.compile(r"block\d[a-z]")
_BATCH_NORM: tuple[str, ...] = ("weight", "bias", "running_mean", "running_var")
_CHECKPOINT_NAMES = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "_expand_conv": "_expand_conv",
    "_expand_bn": "_bn0",
    "_dwconv": "_depthwise_conv",
    "_bn": "_bn1",
    "_project_conv": "_project_conv",
    "_project_bn": "_bn2",
    "top_conv": "_conv_head",
    "top_bn": "_bn1",
    "predictions": "_fc",
}


def _checkpoint_names(layer: layers.Layer, blocks: list[str]) -> list[str]:
    """Name the layer's weights in the port, which numbers the blocks of all stages through."""
    prefix, rest = "", layer.name
    if match := _BLOCK.match(layer.name):
        prefix, rest = f"_blocks.{blocks.index(match[0])}.", layer.name[match.end() :]
    is_norm = isinstance(layer, layers.BatchNormalization)
    parts = _BATCH_NORM if is_norm else ("weight", "bias")[: len(layer.weights)]
    return [f"{prefix}{_CHECKPOINT_NAMES[rest]}.{part}" for part in parts]


def _to_keras(layer: layers.Layer, tensor: np.ndarray) -> np.ndarray:
    """Reorder the axes of a kernel; vectors stay as they are."""
    axes = {4: (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (2, 3, 1, 0), 2: (1, 0)}
    return tensor.transpose(axes.get(tensor.ndim))


def _block(x: Any, stage: Stage, channels: int, stride: int, name: str) -> Any:
    """Inverted residual: widen, depthwise, narrow; plus the input where the shape stays."""
    shortcut = x
    if stage.expand != 1:
        x = _conv(x.shape[-1] * stage.expand, 1, name=f"{name}_expand_conv")(x)
        x = _activation(_batch_norm(x, f"{name}_expand"), f"{name}_expand")
    x = layers.DepthwiseConv2D(
        stage.kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=_fan_out(),
        name=f"{name}_dwconv",
    )(x)
    x = _activation(_batch_norm(x, name), name)
    x = _batch_norm(_conv(channels, 1, name=f"{name}_project_conv")(x), f"{name}_project")
    if stride == 1 and shortcut.shape[-1] == channels:
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return x


def _conv(channels: int, kernel: int, *, name: str, strides: int = 1) -> layers.Conv2D:
    return layers.Conv2D(
        channels,
        kernel,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer=_fan_out(),
        name=name,
    )


def _fan_out() -> keras.initializers.Initializer:
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="truncated_normal")


def _batch_norm(x: Any, name: str) -> Any:
    return layers.BatchNormalization(epsilon=BN_EPSILON, name=f"{name}_bn")(x)


def _activation(x: Any, name: str) -> Any:
    return layers.ReLU(6.0, name=f"{name}_activation")(x)


def _round_channels(channels: int, width: float, divisor: int = 8) -> int:
    """Scale, then round to a multiple of 8, never down by more than 10 %."""
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * scaled else rounded + divisor
