"""Training with Keras: what is trained, at which rate, for how long."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.console import progress, quiet_tensorflow
from edgetl.errors import ConfigError
from edgetl.features import Scaling
from edgetl.heads import HEADS, build_head

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
    task: str,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    validation_features: NDArray[np.float32],
    validation_labels: NDArray[np.int64],
    outputs: int,
    settings: HeadTraining,
) -> keras.Sequential:
    """Train a head with hidden layers and keep the weights of its best epoch.

    Args:
        task: a key of HEADS.
        features: [n, d], raw.
        labels: [n], class indices.
        validation_features: [m, d].
        validation_labels: [m].
        outputs: number of classes.
        settings: widths, rates, epochs.

    Returns:
        The head, for raw features.

    Raises:
        ConfigError: the weights became infinite.
    """
    scaling = Scaling.of(features)
    head = build_head(task, features.shape[1], outputs, hidden_units=settings.hidden_units, dropout=settings.dropout)
    head.compile(
        keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay),
        loss=HEADS[task].loss,
        metrics=["accuracy"],
    )
    stop = keras.callbacks.EarlyStopping(patience=settings.patience, restore_best_weights=True)
    with progress("head epochs", settings.epochs) as bar:
        head.fit(
            scaling.apply(features),
            labels,
            validation_data=(scaling.apply(validation_features), validation_labels),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            callbacks=[stop, _Epochs(bar)],
            verbose=0,
        )
    if not all(np.isfinite(weights).all() for weights in head.get_weights()):
        raise ConfigError(f"training diverged: learning rate {settings.learning_rate:g} is too high. Try a tenth of it")
    first = next(layer for layer in head.layers if isinstance(layer, keras.layers.Dense))
    first.set_weights(scaling.fold(*first.get_weights()))
    return head


class _Epochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Moves a progress bar on by one per epoch."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self._bar = bar

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._bar.advance()
