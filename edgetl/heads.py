"""What a task puts on top of a backbone: the layers that are trained, and the one dense layer that they become.

A model is saved with one dense layer and one activation at its end, whatever the task: every converter and every
device knows that. Where another form trains better, it stands there until `finish` folds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.console import quiet_tensorflow
from edgetl.outputs import Task
from edgetl.tasks import rank_positions

quiet_tensorflow()
import keras  # noqa: E402

OUTPUT_LAYER = "probabilities"
VALUES_LAYER = "values"
Weights = list[NDArray[Any]]
"""Kernel [d, k] and bias [k] of a dense layer."""


@dataclass(frozen=True)
class Head:
    """One task: what the last layer does and how it is trained."""

    task: Task
    activation: str
    """Activation of the output layer."""
    loss: str
    """Key of `edgetl.losses.LOSSES`."""
    label_form: str
    """What one example's label is while training."""
    output_layer: str = OUTPUT_LAYER
    """Its name."""


HEADS: dict[Task, Head] = {
    "classification": Head("classification", "softmax", "categorical_crossentropy", "one-hot"),
    "ordinal": Head("ordinal", "softmax", "categorical_crossentropy", "one-hot"),
    "multi_label": Head("multi_label", "sigmoid", "binary_crossentropy", "0 or 1 per label"),
    "regression": Head("regression", "linear", "squared_error", "one number per target", VALUES_LAYER),
}
OUTPUT_LAYERS = tuple({head.output_layer for head in HEADS.values()})


class RankedDense(keras.layers.Layer):  # type: ignore[misc]
    """Features -> one score -> probabilities of classes in an order; see `edgetl.tasks.rank_positions`."""

    def __init__(self, units: int, kernel_regularizer: Any = None, **keywords: Any) -> None:
        """Make a layer for so many classes."""
        super().__init__(**keywords)
        self.units, self.kernel_regularizer = units, keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape: Any) -> None:
        """Make the weights: the kernel of the score, and one constant per class."""
        shape = (input_shape[-1], 1)
        self.kernel = self.add_weight(shape=shape, regularizer=self.kernel_regularizer, name="kernel")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, x: Any) -> Any:
        """Features [n, d] -> probabilities [n, units]."""
        places = keras.ops.convert_to_tensor(rank_positions(self.units)[None], self.compute_dtype)
        return keras.activations.softmax(keras.ops.matmul(x, self.kernel) * places + self.bias)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` makes the same layer of."""
        penalty = keras.regularizers.serialize(self.kernel_regularizer)
        return {**super().get_config(), "units": self.units, "kernel_regularizer": penalty}

    def folded(self, kernel: NDArray[Any], bias: NDArray[Any]) -> Weights:
        """Turn own weights into those of a dense layer with softmax."""
        return [kernel * rank_positions(self.units), bias]

    def unfolded(self, kernel: NDArray[Any], bias: NDArray[Any]) -> Weights:
        """Turn those of a dense layer, whose columns differ as positions do, into own ones."""
        places = rank_positions(self.units)
        return [(kernel @ places / (places @ places))[:, None], bias]


class ScaledDense(keras.layers.Dense):  # type: ignore[misc]
    """A dense layer that computes in standard deviations of each target, and gives the targets' own units.

    Weights then have the size that initializers, rates and penalties expect, whatever the units.
    """

    def __init__(self, units: int, deviations: Sequence[float], **keywords: Any) -> None:
        """Make a layer for so many targets, [units]."""
        super().__init__(units, **keywords)
        self.deviations = tuple(deviations)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Features [n, d] -> values [n, units]."""
        values = super().call(inputs, training=training)
        return values * keras.ops.convert_to_tensor(np.array(self.deviations)[None], self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` makes the same layer of."""
        return {**super().get_config(), "deviations": self.deviations}

    def folded(self, kernel: NDArray[Any], bias: NDArray[Any]) -> Weights:
        """Turn own weights into those of a dense layer in the targets' units."""
        return [kernel * np.array(self.deviations), bias * np.array(self.deviations)]

    def unfolded(self, kernel: NDArray[Any], bias: NDArray[Any]) -> Weights:
        """Turn those of a dense layer in the targets' units into own ones."""
        return [kernel / np.array(self.deviations), bias / np.array(self.deviations)]


def build_head(
    task: Task,
    features: int,
    outputs: int,
    *,
    hidden_units: Sequence[int] = (),
    dropout: float = 0.0,
    l1: float = 0.0,
    l2: float = 0.0,
    deviations: Sequence[float] = (),
) -> keras.Sequential:
    """Build the layers on top of pooled features, in the form in which they are trained.

    Args:
        task: a key of HEADS.
        features: width d of the features.
        outputs: number of classes, labels or targets.
        hidden_units: widths of ReLU layers between features and output; none gives a linear head.
        dropout: share of activations dropped before each dense layer while training, 0..1.
        l1: penalty on the sum of the output layer's absolute weights; 0 is off.
        l2: penalty on the sum of their squares; 0 is off.
        deviations: [outputs], standard deviation of each target: for regression, and only for it.

    Returns:
        A model, float32 [n, features] -> [n, outputs].
    """
    layers: list[Any] = [keras.Input((features,), name="features")]
    for index, units in enumerate(hidden_units, start=1):
        layers += [keras.layers.Dropout(dropout, name=f"head_dropout{index}")] if dropout else []
        layers.append(keras.layers.Dense(units, activation="relu", name=f"head_dense{index}"))
    layers += [keras.layers.Dropout(dropout, name="head_dropout")] if dropout else []
    penalty = keras.regularizers.L1L2(l1, l2) if l1 or l2 else None
    name, activation = HEADS[task].output_layer, HEADS[task].activation
    if task == "ordinal":
        layers.append(RankedDense(outputs, kernel_regularizer=penalty, name=name))
    elif task == "regression":
        layers.append(ScaledDense(outputs, deviations, kernel_regularizer=penalty, name=name))
    else:
        layers.append(keras.layers.Dense(outputs, activation=activation, kernel_regularizer=penalty, name=name))
    return keras.Sequential(layers, name=task)


def load(head: keras.Model, kernel: NDArray[Any], bias: NDArray[Any]) -> None:
    """Put the weights of a dense layer, say a linear probe's, into the output layer of a head.

    Args:
        head: in the form in which it is trained, or in which it is saved.
        kernel: [d, k].
        bias: [k].
    """
    last = head.layers[-1]
    last.set_weights(last.unfolded(kernel, bias) if _trains_otherwise(last) else [kernel, bias])


def attach(backbone: keras.Model, head: keras.Model) -> keras.Model:
    """Put a head onto a backbone, layer by layer: one flat model, raw pixels [n, h, w, 3] -> outputs [n, k]."""
    x = backbone.output
    for layer in head.layers:
        x = x if isinstance(layer, keras.layers.InputLayer) else layer(x)
    return keras.Model(backbone.input, x, name=f"{backbone.name}_{head.name}")


def finish(model: keras.Model) -> keras.Model:
    """Give a model, or a head alone, the form in which it is saved: a dense layer and its activation come last.

    Returns:
        The model itself where it has that form; else one that shares all layers but the last, and says the same but
        for rounding.
    """
    last, node, _ = model.outputs[0]._keras_history  # not `last.input`: the head alone was a model before
    if not _trains_otherwise(last):
        return model
    (before,) = last._inbound_nodes[node].input_tensors
    activation = "softmax" if isinstance(last, RankedDense) else "linear"
    dense = keras.layers.Dense(last.units, activation=activation, name=last.name)
    finished = keras.Model(model.inputs[0], dense(before), name=model.name)
    dense.set_weights(last.folded(*(np.array(weight, np.float64) for weight in last.get_weights())))
    return finished


def _trains_otherwise(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, (RankedDense, ScaledDense))
