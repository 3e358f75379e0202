"""Scores that mean what they say: temperature scaling (Guo et al. 2017, arXiv 1706.04599).

Logits are divided by one number, the temperature, that is fitted on validation photos: above 1 the model was too sure.
The class that is named stays the same, only its score changes; thresholds of labels have to move along. Logits are what
scores leave of them: log p, up to a constant that softmax takes out again; log p - log(1 - p) of a sigmoid.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ConfigError
from edgetl.metrics import LEAST_PROBABILITY, calibration_error, log_loss
from edgetl.outputs import OutputSpec

if TYPE_CHECKING:
    import keras

RANGE = (0.2, 5.0)
"""Temperatures that are tried; networks are found at 1 to 3. Few photos, all named rightly, would ask for next to 0."""
HALF_STEP = 1 / 512
"""Half of what separates two scores of 8 bits: what 0 stands for at most."""


@dataclass(frozen=True)
class Temperature:
    """What temperature scaling, fitted on one set of photos, makes of the scores on another."""

    temperature: float
    """Above 1: the model is too sure of itself."""
    log_loss_before: float
    log_loss_after: float
    """Nats; see `edgetl.metrics.log_loss`."""
    calibration_error_before: float
    calibration_error_after: float
    """0..1; see `edgetl.metrics.calibration_error`."""


def fit_temperature(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> float:
    """Find the temperature with the least log loss.

    Args:
        labels: of validation photos; see `edgetl.metrics.score`.
        outputs: [n, k], scores 0..1 of a softmax or a sigmoid. Integer outputs say exactly 0 of what is not quite
            impossible: 0 is taken for half of the least score above it, at most HALF_STEP.
        spec: what they stand for; thresholds are not needed.

    Returns:
        The temperature, within RANGE.

    Raises:
        ValueError: shapes do not fit, no example, a value that is not finite, or the outputs are no scores.
    """
    from scipy.optimize import minimize_scalar

    log_loss(labels, outputs, spec)  # refuses what can't be fitted
    logits = _logits(outputs, spec)

    def loss(exponent: float) -> float:
        return log_loss(labels, _scores(logits / np.exp(exponent), spec), spec)

    # Convex in 1 / temperature: one valley, also over the logarithm of it.
    found = minimize_scalar(loss, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def apply_temperature(outputs: NDArray[np.float32], temperature: float, spec: OutputSpec) -> NDArray[np.float32]:
    """What a model would say, [n, k], with its logits divided by `temperature`."""
    return _scores(_logits(outputs, spec) / temperature, spec)


def judge_temperature(
    labels: NDArray[Any], outputs: NDArray[np.float32], temperature: float, spec: OutputSpec
) -> Temperature:
    """Tell what a temperature does on photos that it was not fitted to.

    Raises:
        ValueError: shapes do not fit, no example, a value that is not finite, or the outputs are no scores.
    """
    scaled = apply_temperature(outputs, temperature, spec)
    return Temperature(
        temperature,
        log_loss(labels, outputs, spec),
        log_loss(labels, scaled, spec),
        calibration_error(labels, outputs, spec),
        calibration_error(labels, scaled, spec),
    )


def fold_temperature(model: "keras.Model", temperature: float) -> None:
    """Write a temperature into a model: the weights of its last layer are divided by it. No operation is added.

    Args:
        model: ends in a Dense layer with softmax or sigmoid; changed in place.
        temperature: above 0.

    Raises:
        ConfigError: the model ends in something else.
    """
    import keras

    last = model.layers[-1]
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    if not isinstance(last, keras.layers.Dense) or activation not in ("softmax", "sigmoid"):
        raise ConfigError(
            f"{model.name}: its scores can't be calibrated: expected a last layer Dense with softmax or sigmoid. "
            f"Received: {type(last).__name__} {activation}".rstrip()
        )
    last.set_weights([weights / np.float32(temperature) for weights in last.get_weights()])


def _logits(outputs: NDArray[np.float32], spec: OutputSpec) -> NDArray[np.float64]:
    scores = outputs.astype(np.float64)
    least = np.clip(scores[scores > 0].min(initial=1.0) / 2, LEAST_PROBABILITY, HALF_STEP)
    if spec.exclusive:
        return np.asarray(np.log(np.maximum(scores, least)))
    bounded = np.clip(scores, least, 1 - least)
    return np.log(bounded) - np.log1p(-bounded)


def _scores(logits: NDArray[np.float64], spec: OutputSpec) -> NDArray[np.float32]:
    from scipy.special import expit, softmax

    scores = softmax(logits, axis=1) if spec.exclusive else expit(logits)
    return np.asarray(scores, np.float32)
