"""Learning rates over time: fixed schedules, one that follows the validation loss, and the rate of an optimizer."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgetl.console import quiet_tensorflow
from edgetl.errors import ConfigError

quiet_tensorflow()
import keras  # noqa: E402

Schedule = Literal["cosine", "constant", "plateau"]
_SCHEDULES = get_args(Schedule)


def schedule(kind: Schedule, learning_rate: float, warmup_steps: int, total_steps: int) -> Any:
    """Make a learning rate, or a schedule of it, for `edgetl.optimizers.make_optimizer`.

    With warm-up, step s = 0, 1, ... has (s + 1) / (warmup_steps + 1) of the rate: the first step already learns.

    Args:
        kind: `cosine`: after warm-up down to 0 at `total_steps`, along half a cosine; `constant`; or `plateau`: a rate
            that the training loop lowers, see `Plateau`.
        learning_rate: the highest.
        warmup_steps: 0 for none. `plateau` has none: a rate that is set from outside can't follow a schedule as well.
        total_steps: of the whole phase, more than `warmup_steps`.

    Returns:
        A float, which `set_learning_rate` may change later, or a Keras schedule.

    Raises:
        ConfigError: the kind is unknown, the rate not positive, or the warm-up does not fit.
    """
    check_rate(learning_rate)
    if kind not in _SCHEDULES:
        raise ConfigError(f"schedule {kind!r}: unknown. Choose one of {', '.join(_SCHEDULES)}")
    if not 0 <= warmup_steps < total_steps:
        raise ConfigError(f"warm-up of {warmup_steps} steps: must be shorter than the phase, {total_steps} steps")
    if kind == "plateau" and warmup_steps:
        raise ConfigError(f"schedule plateau: has no warm-up, got {warmup_steps} steps. Set it to 0 or choose constant")
    first = learning_rate / (warmup_steps + 1)
    if kind == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            first, total_steps - warmup_steps, warmup_target=learning_rate, warmup_steps=warmup_steps
        )
    if warmup_steps:
        return keras.optimizers.schedules.PolynomialDecay(first, warmup_steps, learning_rate)
    return float(learning_rate)


def check_rate(learning_rate: float) -> None:
    """Refuse a learning rate that can't work.

    Raises:
        ConfigError: it is not positive, or not finite.
    """
    if not 0 < learning_rate < math.inf:
        raise ConfigError(f"learning rate {learning_rate:g}: must be positive, such as 1e-3")


@dataclass
class Plateau:
    """Tells when to lower the learning rate: after `patience` epochs in a row without a lower validation loss.

    Its fields are its state: `dataclasses.asdict` gives plain numbers for JSON, `Plateau(**them)` goes on from there.
    """

    factor: float = 0.3
    patience: int = 2
    best: float | None = None
    """Lowest validation loss so far; None before the first epoch."""
    waited: int = 0
    """Epochs since then, or since the rate was last lowered."""

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        if not (0 < self.factor < 1 and self.patience >= 1):
            raise ConfigError(f"plateau: factor {self.factor:g} must be between 0 and 1, patience {self.patience} >= 1")

    def update(self, validation_loss: float) -> float:
        """Take in an epoch's loss and give the factor for the learning rate, 1.0 or `factor`; NaN is no improvement."""
        if validation_loss < (math.inf if self.best is None else self.best):
            self.best, self.waited = float(validation_loss), 0
            return 1.0
        self.waited += 1
        if self.waited < self.patience:
            return 1.0
        self.waited = 0
        return self.factor


def current_learning_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Learning rate of the next step, for multiplier 1."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def set_learning_rate(optimizer: keras.optimizers.Optimizer, value: float) -> None:
    """Change the learning rate of an optimizer that was made with a float; TypeError where it has a schedule."""
    optimizer.learning_rate = float(value)
