"""Training a head of Keras layers on stored features: at which rate, for how long, in which order.

Not by `fit`: of the 8.5 ms that it takes for 64 examples of 1,280 features on one core, its pipeline and the calls
between steps are more than half; a loop inside one graph takes 3 ms (`benchmarks/heads.py`). And the order in which
shards are read is ours.
"""

from collections.abc import Callable, Iterator
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
from edgetl.rows import Rows, RowsLike, as_rows
from edgetl.tasks import as_targets

quiet_tensorflow()
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

WINDOW = 16
"""Shards whose rows are shuffled together, 4,096 photos: sixty batches hold of each kind what luck brings, and 21 MB of
1,280 numbers are in memory."""

OnEpoch = Callable[[int, float, keras.Sequential], None]
"""Called after each epoch with its number from 0, its validation loss, and the head as it is, for scaled features."""


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


@dataclass(frozen=True)
class _Given:
    """Examples that are learned from, or judged by."""

    rows: Rows
    """[n, d], scaled."""
    labels: NDArray[Any]
    weights: NDArray[np.float32]
    """[n], their mean 1."""
    outputs: OutputSpec

    def window(self, pieces: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Features, targets and weights of some blocks."""
        blocks = [self.rows.piece(int(index)) for index in pieces]
        places, values = blocks[0]
        if len(blocks) > 1:
            places = np.concatenate([each for each, _ in blocks])
            values = np.concatenate([each for _, each in blocks])
        return values, as_targets(self.labels[places], self.outputs), self.weights[places]

    def windows(self, pieces: NDArray[np.int64]) -> Iterator[Any]:
        """The blocks of the pieces, so many together that their rows can be mixed."""
        return (self.window(pieces[start : start + WINDOW]) for start in range(0, len(pieces), WINDOW))


def train_head(
    outputs: OutputSpec,
    features: RowsLike,
    labels: NDArray[Any],
    validation_features: RowsLike,
    validation_labels: NDArray[Any],
    settings: HeadTraining,
    weights: NDArray[np.float32] | None = None,
    *,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> keras.Sequential:
    """Train a head with hidden layers and keep the weights of its best epoch.

    Features in memory are shuffled as a whole; those in shards by reading the shards in random order and shuffling the
    rows of `WINDOW` shards. Which order and which activations are dropped follows from the seed and the number of the
    epoch: one seed gives one head, whatever the process has done before.

    Args:
        outputs: what the head says; of targets with deviations.
        features: [n, d], raw.
        labels: as `Examples.labels` are for the task.
        validation_features: [m, d].
        validation_labels: likewise.
        settings: widths, rates, epochs.
        weights: [n], of the training examples.
        seed: of everything random, 0..2^32-1; sets that of Keras.
        on_epoch: told of each epoch; what it raises ends the training and comes out here.

    Returns:
        The head, for raw features, in the form in which it is trained.

    Raises:
        ConfigError: the weights became infinite.
    """
    keras.utils.set_random_seed(seed)  # layers draw their own seeds from it while they are built, here and in order
    train, held = as_rows(features), as_rows(validation_features)
    scaling = Scaling.of(train)
    head = build_head(
        outputs.task,
        train.width,
        len(outputs.names),
        hidden_units=settings.hidden_units,
        dropout=settings.dropout,
        deviations=outputs.deviations,
    )
    if outputs.task == "regression":  # in deviations the mean can be far from 0, where training would have to walk
        head.layers[-1].bias.assign(labels.mean(axis=0, dtype=np.float64) / outputs.deviations)
    relative = None if weights is None else relative_weights(weights)
    ones = np.ones(max(len(train), len(held)), np.float32)
    given = _Given(train.mapped(scaling.apply), labels, ones[: len(train)] if relative is None else relative, outputs)
    judged = _Given(held.mapped(scaling.apply), validation_labels, ones[: len(held)], outputs)
    _learn(_Steps(head, outputs, settings), given, judged, settings, seed, on_epoch)
    if not all(np.isfinite(weights).all() for weights in head.get_weights()):
        raise ConfigError(f"training diverged: learning rate {settings.learning_rate:g} is too high. Try a tenth of it")
    if settings.hidden_units:
        first = next(layer for layer in head.layers if layer.weights)
        first.set_weights(scaling.fold(*first.get_weights()))
    else:  # the output layer itself, whose weights may stand for others
        load(head, *scaling.fold(*finish(head).layers[-1].get_weights()))
    return head


def _learn(
    steps: "_Steps", given: _Given, judged: _Given, settings: HeadTraining, seed: int, on_epoch: OnEpoch | None
) -> None:
    """Train until the validation loss no longer falls, and leave the weights of the best epoch in the head."""
    best, kept, since = np.inf, None, 0
    with progress("head epochs", settings.epochs) as bar:
        for epoch in range(settings.epochs):
            random = np.random.default_rng((seed, epoch))
            for window in given.windows(random.permutation(given.rows.pieces)):
                steps.learn(*window, random.permutation(len(window[0])).astype(np.int32))
            losses = [float(steps.loss(*window)) for window in judged.windows(np.arange(judged.rows.pieces))]
            loss = sum(losses) / len(judged.rows)
            bar.advance()
            if on_epoch:
                on_epoch(epoch, loss, steps.head)
            if loss < best:
                best, kept, since = loss, steps.head.get_weights(), 0
            else:
                since += 1
            if since >= max(1, settings.patience):
                break
    if kept is not None:
        steps.head.set_weights(kept)


class _Steps:
    """What is compiled once for a head: the steps through a window, and the loss on one."""

    def __init__(self, head: keras.Sequential, outputs: OutputSpec, settings: HeadTraining) -> None:
        self.head, self._loss, self._batch_size = head, make_loss(outputs), settings.batch_size
        self._optimizer = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay)
        self._optimizer.build(head.trainable_variables)
        window = [
            tf.TensorSpec((None, head.input_shape[-1])),
            tf.TensorSpec((None, len(outputs.names))),
            tf.TensorSpec((None,)),
        ]
        self.learn = tf.function(self._learn, input_signature=[*window, tf.TensorSpec((None,), tf.int32)])
        self.loss = tf.function(self._sum, input_signature=window)

    def _learn(self, features: Any, targets: Any, weights: Any, order: Any) -> None:
        """Take a step for each batch of the rows in this order; the last one may be smaller."""
        for start in tf.range(0, tf.size(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            with tf.GradientTape() as tape:
                said = self.head(tf.gather(features, rows), training=True)
                loss = self._loss(tf.gather(targets, rows), said, sample_weight=tf.gather(weights, rows))
            variables = self.head.trainable_variables
            self._optimizer.apply(tape.gradient(loss, variables), variables)

    def _sum(self, features: Any, targets: Any, weights: Any) -> Any:
        """Sum of the losses of the rows."""
        mean = self._loss(targets, self.head(features, training=False), sample_weight=weights)
        return mean * tf.cast(tf.shape(features)[0], tf.float32)
