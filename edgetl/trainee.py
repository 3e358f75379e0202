"""A model while it learns: which layers may, in what precision, on how many devices, behind what augmentation.

None of this stays in the model that is saved.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.backbones.blocks import Block
from edgetl.backbones.build import NORMALIZE_LAYER
from edgetl.console import quiet_tensorflow
from edgetl.errors import ConfigError
from edgetl.heads import OUTPUT_LAYERS
from edgetl.mixing import Mixing
from edgetl.phases import Phase
from edgetl.teaching import joined

quiet_tensorflow()
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

BatchNormPolicy = Literal["frozen", "train", "recalibrate"]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]


class Trainee(keras.Model):  # type: ignore[misc]
    """A model inside the training step: augmentation, mixing and class weights are its own, and end with it."""

    def __init__(
        self,
        model: keras.Model,
        augmentation: Sequence[keras.layers.Layer],
        mixing: Mixing,
        class_weights: NDArray[np.float32] | None,
    ) -> None:
        """Wrap a model.

        Args:
            model: inputs (one tensor or several) -> outputs [n, k], and guessed features if it is hinted at any.
            augmentation: layers for pixels 0..255; none where the inputs are activations.
            mixing: of examples and their labels.
            class_weights: [classes], weight of each class in the loss; None where labels are no classes, or the loss
                weighs them itself.
        """
        super().__init__(name="trainee")
        self.model, self.augmentation, self.mixing = model, list(augmentation), mixing
        self._class_weights = class_weights

    def build(self, input_shape: Any) -> None:
        """Do nothing: the wrapped model is built."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Run the wrapped model on a tuple of float32 tensors; while it learns, guessed features come at the end."""
        said = self.model(list(inputs) if isinstance(self.model.input, list) else inputs[0], training=training)
        if not isinstance(said, list):
            return said
        outputs, guesses = said
        return joined(outputs, guesses) if training else outputs

    @property
    def mean_loss(self) -> Any:
        """Mean of the loss over the steps of the epoch so far, a Keras metric."""
        return self.metrics[0]

    @property
    def photos(self) -> int:
        """Number of photos in these steps; what a step changes is changed as a whole, this included."""
        return round(float(value_of(self.mean_loss.count)))

    def reset_metrics(self) -> None:
        """Do nothing: each `fit` begins with it, and one that goes on with a stopped epoch must not forget its loss."""

    def train_step(self, data: Any) -> Any:
        """Augment, mix, weigh; then what Keras does."""
        inputs, labels, given = (*data, None)[:3]
        inputs = tuple(tf.cast(tensor, tf.float32) for tensor in inputs)
        for layer in self.augmentation:
            inputs = (layer(inputs[0], training=True),)
        if given is not None:  # weights are mixed as labels are: as one more column of them
            labels = tf.concat([labels, given[:, None]], axis=1)
        inputs, labels = self.mixing(inputs, labels)
        if given is not None:
            labels, given = labels[:, :-1], labels[:, -1]
        weights = given
        if self._class_weights is not None:
            weights = tf.linalg.matvec(labels, tf.constant(self._class_weights))
            weights = weights if given is None else weights * given
        return super().train_step((inputs, labels, weights))


def value_of(variable: keras.Variable) -> NDArray[Any]:
    """Copy a variable's value; where every device has a part of it, as of a metric, their sum."""
    return np.array(tf.convert_to_tensor(variable.value))


def learning_layers(phase: Phase, blocks: Sequence[Block], policy: BatchNormPolicy, model: keras.Model) -> list[str]:
    """Names of the backbone's layers that learn in a phase, from input to output."""
    names = [layer for block in blocks if block.name in phase.thawed for layer in block.layers]
    if policy == "train":
        return names
    return [name for name in names if not isinstance(model.get_layer(name), keras.layers.BatchNormalization)]


def thaw(model: keras.Model, phase: Phase, blocks: Sequence[Block], policy: BatchNormPolicy) -> None:
    """Let the phase's layers and the head learn, and nothing else.

    BatchNorm is frozen by `trainable = False` on the layer itself: a model called with `training=False` inside
    another one trains its statistics in `fit` all the same (Keras issue 20285).
    """
    learning = set(learning_layers(phase, blocks, policy, model))
    fixed = {layer for block in blocks for layer in block.layers} | {NORMALIZE_LAYER}
    for layer in model.layers:
        if layer.weights:
            layer.trainable = layer.name in learning or layer.name not in fixed


def learning_rates(model: keras.Model, phase: Phase, blocks: Sequence[Block]) -> dict[str, float]:
    """Learning rate of every variable that learns, as a multiple of the head's, by `variable.path`."""
    block_of = {layer: block.name for block in blocks for layer in block.layers}
    return {
        variable.path: phase.learning_rate(block_of[layer.name]) / phase.head_learning_rate
        if layer.name in block_of
        else 1.0
        for layer in model.layers
        for variable in layer.trainable_variables
    }


def strategy_for(distribute: bool, batch_size: int) -> tf.distribute.Strategy:
    """One device, or all GPUs of this machine (logical CPUs where there are none), each with a share of the batch.

    Raises:
        ConfigError: there is one device only, or the batch can't be divided.
    """
    if not distribute:
        return tf.distribute.get_strategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        raise ConfigError(
            f"--distribute: found {len(devices)} device ({devices[0].name}), need at least 2. Leave it out"
        )
    if batch_size % len(devices):
        raise ConfigError(
            f"--distribute: {len(devices)} devices can't share batches of {batch_size} photos. Choose a --batch-size "
            f"that is a multiple of {len(devices)} and at most the number of training photos"
        )
    return _mirrored(tuple(device.name for device in devices))


@cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One strategy per process: a second would number its exchanges as the first did, and mix them up."""
    return tf.distribute.MirroredStrategy(devices)


def copy_in_precision(model: keras.Model, precision: Precision) -> keras.Model:
    """Copy a model so that it computes in another precision; its variables, and its output, stay float32."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        own = "float32" if layer.name in (*OUTPUT_LAYERS, NORMALIZE_LAYER) else precision
        if isinstance(layer, keras.layers.InputLayer):
            own = "float32"
        return type(layer).from_config({**layer.get_config(), "dtype": own})

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def recalibrate(trainee: Trainee, layers: Sequence[keras.layers.BatchNormalization], batches: tf.data.Dataset) -> None:
    """Replace BatchNorm statistics by their averages over batches, all weights unchanged (Wu and Johnson 2021).

    Dropout is off meanwhile: it would widen the variances, and there is none where the statistics are used.

    Args:
        trainee: wraps the model that the layers belong to.
        layers: whose moving mean and variance are measured again.
        batches: (inputs, ...); the inputs only are used.
    """
    before = [(layer.trainable, layer.momentum) for layer in layers]
    dropped = [(layer, layer.rate) for layer in trainee.model.layers if isinstance(layer, keras.layers.Dropout)]
    try:
        for layer, _ in dropped:
            layer.rate = 0.0
        for layer in layers:
            layer.trainable = True
        for step, (inputs, *_) in enumerate(batches):
            for layer in layers:
                layer.momentum = step / (step + 1)  # makes the moving average a plain one
            trainee(tuple(tf.cast(tensor, tf.float32) for tensor in inputs), training=True)
    finally:
        for layer, (trainable, momentum) in zip(layers, before, strict=True):
            layer.trainable, layer.momentum = trainable, momentum
        for layer, rate in dropped:
            layer.rate = rate
