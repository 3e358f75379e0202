"""What training lowers: one loss per task, its remedies, and which of them a task knows."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.console import quiet_tensorflow
from edgetl.errors import ConfigError
from edgetl.heads import HEADS
from edgetl.outputs import OutputSpec
from edgetl.tasks import check_remedies

quiet_tensorflow()
import keras  # noqa: E402
from keras import ops  # noqa: E402


def make_loss(
    outputs: OutputSpec,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    label_weights: NDArray[np.float32] | None = None,
) -> keras.losses.Loss:
    """Make the loss of a task: labels [n, k], what the model says [n, k] -> the mean over examples.

    Cross-entropy of classes, whose labels sum to 1; the mean over labels of binary cross-entropy; the mean over targets
    of the squared error in standard deviations. The last is what R2 and RMSE are made of, and what ridge regression has
    lowered already when training begins; a robust loss such as Huber's would train towards the median, for another
    figure. What single wrong values can do is bounded by clipping the gradient.

    Args:
        outputs: what the model says; of targets with deviations.
        label_smoothing: share of the label that is spread evenly over all classes, from 0 to below 1; of several labels
            over true and false. Szegedy et al., "Rethinking the Inception architecture", 2016.
        focal_gamma: examples count (1 - p)^gamma, with p the probability of their class; 0 is cross-entropy. Lin et
            al., "Focal loss for dense object detection", 2017, without its factor alpha: Keras' default, 0.25, would
            scale every class alike, that is, the learning rate.
        label_weights: [k, 2], for several labels: weight of a photo without each and with it.

    Raises:
        ConfigError: a value is out of range, or the task does not know it.
    """
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing {label_smoothing:g}: must be from 0 to below 1, such as 0.1")
    if not 0 <= focal_gamma < np.inf:
        raise ConfigError(f"focal_gamma {focal_gamma:g}: must be 0 (off) or positive, such as 2")
    check_remedies(outputs.task, label_smoothing=label_smoothing, focal_gamma=focal_gamma)
    return LOSSES[HEADS[outputs.task].loss](outputs, label_smoothing, focal_gamma, label_weights)


def _categorical(
    outputs: OutputSpec, smoothing: float, gamma: float, label_weights: NDArray[np.float32] | None
) -> keras.losses.Loss:
    if gamma:
        return keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=gamma, label_smoothing=smoothing)
    # Not the focal loss with gamma 0: this one takes the logits in front of the softmax, so that the gradient of an
    # example that is surely wrong does not vanish; the focal loss clips probabilities at 1e-7.
    return keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)


class LabelLoss(keras.losses.Loss):  # type: ignore[misc]
    """Mean over labels of binary cross-entropy, each true or false label with a weight. Keras' own has no weights."""

    def __init__(
        self, outputs: OutputSpec, smoothing: float, gamma: float, label_weights: NDArray[np.float32] | None
    ) -> None:
        """See `make_loss`."""
        super().__init__(name="label_loss")
        self._smoothing, self._gamma = smoothing, gamma
        self._weights = None if label_weights is None else label_weights.T[:, None]

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each example, [n]."""
        smooth = y_true * (1 - self._smoothing) + self._smoothing / 2
        losses = ops.binary_crossentropy(smooth, y_pred)  # takes the logits in front of the sigmoid, as above
        if self._gamma:
            losses *= (1 - y_true * y_pred - (1 - y_true) * (1 - y_pred)) ** self._gamma
        if self._weights is not None:
            without, with_it = self._weights
            losses *= without + y_true * (with_it - without)
        return ops.mean(losses, axis=-1)


class SquaredError(keras.losses.Loss):  # type: ignore[misc]
    """Mean over targets of the squared error in standard deviations: targets of all units count alike."""

    def __init__(self, outputs: OutputSpec, *_: Any) -> None:
        """See `make_loss`."""
        super().__init__(name="squared_error")
        self._deviations = np.array([outputs.deviations], np.float32)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each example, [n]."""
        return ops.mean(ops.square((y_pred - y_true) / self._deviations), axis=-1)


LOSSES: dict[str, Callable[..., keras.losses.Loss]] = {
    "categorical_crossentropy": _categorical,
    "binary_crossentropy": LabelLoss,
    "squared_error": SquaredError,
}
