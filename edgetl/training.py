"""Training with Keras: what is trained, at which rate, for how long."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.balance import relative_weights
from edgetl.console import progress, quiet_tensorflow
from edgetl.errors import ConfigError
from edgetl.features import Scaling
from edgetl.heads import build_head, finish, load
from edgetl.losses import make_loss
from edgetl.outputs import OutputSpec
from edgetl.tasks import as_targets

quiet_tensorflow()
import keras  # noqa: E402


@dataclass(frozen=True)
class HeadTraining:
    """How a head with hidden layers is trained on stored features."""

    hidden_units: tuple[int, ...]
    dropout: float
    """Share of activations dropped, 0..1."""
    learning_rate: float
    """AdamW units."""
    weight_decay: float
    """Decoupled decay per step, as a share of the learning rate."""
    epochs: int
    """At most; training stops when validation loss has not improved for `patience` epochs."""
    batch_size: int
    patience: int = 10


def train_head(
    outputs: OutputSpec,
    features: NDArray[np.float32],
    labels: NDArray[Any],
    validation_features: NDArray[np.float32],
    validation_labels: NDArray[Any],
    settings: HeadTraining,
    weights: NDArray[np.float32] | None = None,
) -> keras.Sequential:
    """Train a head with hidden layers and keep the weights of its best epoch.

    Args:
        outputs: what the head says; of targets with deviations.
        features: [n, d], raw.
        labels: as `Examples.labels` are for the task.
        validation_features: [m, d].
        validation_labels: likewise.
        settings: widths, rates, epochs.
        weights: [n], of the training examples.

    Returns:
        The head, for raw features, in the form in which it is trained.

    Raises:
        ConfigError: the weights became infinite.
    """
    scaling = Scaling.of(features)
    head = build_head(
        outputs.task,
        features.shape[1],
        len(outputs.names),
        hidden_units=settings.hidden_units,
        dropout=settings.dropout,
        deviations=outputs.deviations,
    )
    if outputs.task == "regression":  # in deviations the mean can be far from 0, where training would have to walk
        head.layers[-1].bias.assign(labels.mean(axis=0, dtype=np.float64) / outputs.deviations)
    head.compile(keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay), make_loss(outputs))
    stop = keras.callbacks.EarlyStopping(patience=settings.patience, restore_best_weights=True)
    with progress("head epochs", settings.epochs) as bar:
        head.fit(
            scaling.apply(features),
            as_targets(labels, outputs),
            sample_weight=None if weights is None else relative_weights(weights),
            validation_data=(scaling.apply(validation_features), as_targets(validation_labels, outputs)),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            callbacks=[stop, _Epochs(bar)],
            verbose=0,
        )
    if not all(np.isfinite(weights).all() for weights in head.get_weights()):
        raise ConfigError(f"training diverged: learning rate {settings.learning_rate:g} is too high. Try a tenth of it")
    if settings.hidden_units:
        first = next(layer for layer in head.layers if layer.weights)
        first.set_weights(scaling.fold(*first.get_weights()))
    else:  # the output layer itself, whose weights may stand for others
        load(head, *scaling.fold(*finish(head).layers[-1].get_weights()))
    return head


class _Epochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Moves a progress bar on by one per epoch."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self._bar = bar

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._bar.advance()
