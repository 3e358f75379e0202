"""What a task puts on top of a backbone: layers, loss, and the kind of its labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.console import quiet_tensorflow

quiet_tensorflow()
import keras  # noqa: E402

OUTPUT_LAYER = "probabilities"


@dataclass(frozen=True)
class Head:
    """One task: what the last layer does and how it is trained."""

    task: str
    activation: str
    """Activation of the output layer."""
    loss: str
    """Keras loss for the labels as `label_kind` says."""
    label_kind: str
    """`class index`: one integer per example."""


HEADS: dict[str, Head] = {
    "classification": Head("classification", "softmax", "sparse_categorical_crossentropy", "class index"),
}


def build_head(
    task: str,
    features: int,
    outputs: int,
    *,
    hidden_units: Sequence[int] = (),
    dropout: float = 0.0,
    l1: float = 0.0,
    l2: float = 0.0,
) -> keras.Sequential:
    """Build the layers on top of pooled features.

    Args:
        task: a key of HEADS.
        features: width d of the features.
        outputs: number of classes.
        hidden_units: widths of ReLU layers between features and output; none gives a linear head.
        dropout: share of activations dropped before each dense layer while training, 0..1.
        l1: penalty on the sum of the output layer's absolute weights; 0 is off.
        l2: penalty on the sum of their squares; 0 is off.

    Returns:
        A model, float32 [n, features] -> [n, outputs].
    """
    layers: list[Any] = [keras.Input((features,), name="features")]
    for index, units in enumerate(hidden_units, start=1):
        layers += [keras.layers.Dropout(dropout, name=f"head_dropout{index}")] if dropout else []
        layers.append(keras.layers.Dense(units, activation="relu", name=f"head_dense{index}"))
    layers += [keras.layers.Dropout(dropout, name="head_dropout")] if dropout else []
    penalty = keras.regularizers.L1L2(l1, l2) if l1 or l2 else None
    activation = HEADS[task].activation
    layers.append(keras.layers.Dense(outputs, activation=activation, kernel_regularizer=penalty, name=OUTPUT_LAYER))
    return keras.Sequential(layers, name="head")


def attach(backbone: keras.Model, head: keras.Sequential) -> keras.Model:
    """Put a head onto a backbone, layer by layer: one flat model, raw pixels [n, h, w, 3] -> outputs [n, k]."""
    x = backbone.output
    for layer in head.layers:
        x = layer(x)
    return keras.Model(backbone.input, x, name=f"{backbone.name}_{HEADS['classification'].task}")
