"""Learning from a teacher: what it says of each stored view of a photo, and the loss that leads a student towards it.

Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531), and hints (FitNets, Romero et al. 2015, arXiv
1412.6550). The teacher sees the very views that the student sees: with others it teaches less (Beyer et al. 2022,
"Knowledge distillation: a good teacher is patient and consistent", arXiv 2106.05237).

What is stored in float16 are logits up to a constant, log p of a class and log p - log(1 - p) of a label: half
precision has no probabilities below 6e-8, and how improbable classes differ is what a teacher knows more than labels
do. Numbers are stored as deviations from their mean, whatever their unit.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.batches import Source
from edgetl.console import quiet_tensorflow
from edgetl.errors import ConfigError
from edgetl.features import Scaling
from edgetl.outputs import OutputSpec

quiet_tensorflow()
import keras  # noqa: E402
from keras import ops  # noqa: E402

HINT_LAYER = "hint"
LEAST = 1e-7
"""Scores count as at least this, and those of labels as at most 1 less this, where a logarithm is taken of them."""
_CHUNK = 1024


def spoken(model: keras.Model, outputs: OutputSpec, means: NDArray[np.float32], *, features: bool) -> keras.Model:
    """Let a finished model give what is stored of it.

    Args:
        model: raw pixels -> outputs [n, k].
        outputs: what it says; of targets with deviations.
        means: [k], of targets: what values are stored as deviations from.
        features: whether what its last layer takes is stored as well.

    Returns:
        Raw pixels -> one tensor [n, k], or [n, k + d] with the d features at the end.

    Raises:
        ConfigError: the last layer does not take one vector per photo.
    """
    said = model.outputs[0]
    if outputs.task == "regression":
        said = (said - ops.convert_to_tensor(means[None])) / np.array([outputs.deviations], np.float32)
    elif outputs.task == "multi_label":
        said = _logits(said)
    else:
        said = ops.log(ops.maximum(said, LEAST))
    if features:
        said = ops.concatenate([said, _features(model)], axis=-1)
    return keras.Model(model.inputs[0], said, name=f"{model.name}_spoken")


def features_width(model: keras.Model) -> int:
    """Number of features that the last layer of a model takes.

    Raises:
        ConfigError: it does not take one vector per photo.
    """
    return int(_features(model).shape[-1])


def _features(model: keras.Model) -> Any:
    last = next(layer for layer in reversed(model.layers) if layer.weights)
    if isinstance(last.input, list) or len(last.input.shape) != 2:
        raise ConfigError(
            f"--hint-weight: the teacher's last layer, {last.name}, takes no vector of features to hint at. "
            "Set it to 0, or choose another --teacher"
        )
    return last.input


def _logits(scores: Any) -> Any:
    """What the scores of labels are the sigmoid of."""
    if hasattr(scores, "_keras_logits"):  # where Keras' own losses look, too: exact, and with a gradient everywhere
        return scores._keras_logits
    scores = ops.clip(scores, LEAST, 1 - LEAST)
    return ops.log(scores) - ops.log(1 - scores)


def hinted(model: keras.Model, features: Any, width: int) -> keras.Model:
    """Let a student guess the teacher's features from its own, by one linear layer that is trained with it.

    The layer begins by guessing their mean, with weights of 0: so what is pretrained never sees the gradients of a
    random layer, as it never sees those of a random head.

    Args:
        model: raw pixels -> outputs.
        features: its tensor of pooled features.
        width: number of the teacher's features.

    Returns:
        Raw pixels -> outputs and guesses [n, width]; shares all layers with the model, which stays as it is.
    """
    guess = keras.layers.Dense(width, kernel_initializer="zeros", name=HINT_LAYER)
    return keras.Model(model.input, [model.output, guess(features)], name=model.name)


def joined(outputs: Any, guesses: Any) -> Any:
    """Put outputs [n, k] and guessed features [n, d] into the one tensor that a loss sees; `parted` takes it apart."""
    both = ops.concatenate([outputs, ops.cast(guesses, outputs.dtype)], axis=1)
    return _with_logits_of(outputs, both)


def parted(both: Any, k: int) -> tuple[Any, Any]:
    """The outputs and guessed features that `joined` has put together."""
    return _with_logits_of(both, both[:, :k]), both[:, k:]


def _with_logits_of(scores: Any, tensor: Any) -> Any:
    """Keep what Keras remembers of scores, so that losses are exact where a score rounds to 0 or 1."""
    if hasattr(scores, "_keras_logits"):
        tensor._keras_logits = scores._keras_logits
    return tensor


@dataclass(frozen=True)
class Teaching:
    """What a teacher says of the photos of a training, and how much it counts."""

    source: Source
    """As `spoken` gives it, of the same photos in the same views as the student's: [n, k], and features [n, d]."""
    outputs: OutputSpec
    """What the student says while it learns."""
    means: NDArray[np.float32]
    """[k], of targets, as they were given to `spoken`."""
    temperature: float
    """Divides the logits of both, above 0; numbers have none."""
    label_weight: float
    """Share of the labels' own loss, 0..1; the distance to the teacher has the rest."""
    hint_weight: float = 0.0
    """Of the mean squared error of the guessed features, which are compared in their deviations; 0 where none are."""
    scaling: Scaling | None = None
    """Of these features."""

    @property
    def width(self) -> int:
        """Columns that the teacher has in the targets of training."""
        return len(self.outputs.names) + (len(self.scaling.mean) if self.scaling else 0)

    def columns(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the student is to say, float32 [n, width]: tempered scores or values, then scaled features.

        Scores and not logits, because mixup and CutMix mix them with the labels.
        """
        stored, *features = (part.astype(np.float32) for part in self.source.gather(rows, views))
        if self.outputs.task == "regression":
            said = stored * np.array(self.outputs.deviations, np.float32) + self.means
        elif self.outputs.task == "multi_label":
            said = 1 / (1 + np.exp(-stored / self.temperature))
        else:
            odds = np.exp((stored - stored.max(axis=1, keepdims=True)) / self.temperature)
            said = odds / odds.sum(axis=1, keepdims=True)
        return np.hstack([said, *(self.scaling.apply(each) for each in features if self.scaling)])


def scaling_of(source: Source, photos: int) -> Scaling:
    """Measure the features of a teacher on photos as they are.

    Args:
        source: as `Teaching.source`, with features.
        photos: how many, from the first on.
    """
    starts = range(0, photos, _CHUNK)
    parts = [np.arange(start, min(start + _CHUNK, photos)) for start in starts]
    return Scaling.of(
        np.concatenate([source.gather(rows, np.zeros_like(rows))[1] for rows in parts]).astype(np.float32)
    )


class TaughtLoss(keras.losses.Loss):  # type: ignore[misc]
    """Labels' own loss and distance to a teacher in their shares; of photos without a label the latter alone.

    The distance is what cross-entropy exceeds its least value by: the Kullback-Leibler divergence of the tempered
    scores, over the classes or as the mean over labels, times the squared temperature, so that gradients keep their
    size whatever it is (Hinton et al. 2015). Of numbers it is their own loss: the mean squared error in deviations.
    """

    def __init__(
        self, own: keras.losses.Loss, teaching: Teaching, class_weights: NDArray[np.float32] | None = None
    ) -> None:
        """Join two losses.

        Args:
            own: of the labels; see `edgetl.losses.make_loss`.
            teaching: shares and temperature.
            class_weights: [k], in the labels' own loss; None where labels are no classes.
        """
        super().__init__(name="taught_loss")
        self._own, self._class_weights = own, class_weights
        self._outputs, self._temperature = teaching.outputs, teaching.temperature
        self._label_weight, self._hint_weight = teaching.label_weight, teaching.hint_weight

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each example, [n].

        Args:
            y_true: [n, k + width + 1]: labels, the teacher's columns, and the share of the example that has a label.
            y_pred: [n, k], or with guessed features at the end.
        """
        k = len(self._outputs.names)
        labels, taught, features, labelled = y_true[:, :k], y_true[:, k : 2 * k], y_true[:, 2 * k : -1], y_true[:, -1]
        said, guessed = parted(y_pred, k) if self._hint_weight else (y_pred, None)
        labels = labels / ops.maximum(labelled, LEAST)[:, None]  # of a photo mixed with one without: its own, whole
        own = self._own.call(labels, said)
        if self._class_weights is not None:
            own = own * ops.matmul(labels, ops.convert_to_tensor(self._class_weights))
        loss = self._label_weight * labelled * own + (1 - self._label_weight) * self._distance(taught, said)
        if guessed is not None:
            loss += self._hint_weight * ops.mean(ops.square(guessed - features), axis=-1)
        return loss

    def _distance(self, taught: Any, said: Any) -> Any:
        """From what the teacher says, [n, k] as in `Teaching.columns`, to what the student says, [n]."""
        if self._outputs.task == "regression":
            return ops.mean(ops.square((said - taught) / np.array([self._outputs.deviations], np.float32)), axis=-1)
        if self._outputs.task == "multi_label":
            logits = _logits(said) / self._temperature
            each = _entropic(taught, ops.log_sigmoid(logits)) + _entropic(1 - taught, ops.log_sigmoid(-logits))
            return self._temperature**2 * ops.mean(each, axis=-1)
        # Nothing is clipped but what float32 has no logarithm of: the gradient survives where the student is sure.
        logits = ops.log(ops.maximum(said, 1e-30)) / self._temperature
        return self._temperature**2 * ops.sum(_entropic(taught, ops.log_softmax(logits, axis=-1)), axis=-1)


def _entropic(expected: Any, log_received: Any) -> Any:
    """Terms of the divergence; those of an expected 0 are 0."""
    return expected * (ops.log(ops.maximum(expected, 1e-30)) - log_received)
