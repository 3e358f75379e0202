"""Optimizers with one learning rate per variable, averaged weights, and their state as arrays.

Any Keras optimizer will do: `layerwise` derives a class from it. One update is, in this order: gradients of the loss
are summed over the replicas and clipped by their global norm; then, per variable, the pull towards the starting point
is added to the gradient, the weights decay, and the optimizer makes its step, both at the variable's learning rate.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.console import quiet_tensorflow
from edgetl.errors import ConfigError, RunError
from edgetl.schedules import check_rate

quiet_tensorflow()
import keras  # noqa: E402

OPTIMIZERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "adamw": (keras.optimizers.AdamW, {}),
    "adam": (keras.optimizers.Adam, {}),
    "sgd": (keras.optimizers.SGD, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (keras.optimizers.RMSprop, {}),
    "lion": (keras.optimizers.Lion, {}),
}
"""Name -> Keras class and the arguments in which we differ from its defaults."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Everything about the optimizer but the variables."""

    name: str = "adamw"
    """A key of OPTIMIZERS."""
    learning_rate: float = 1e-3
    """Of a variable with multiplier 1: the head."""
    weight_decay: float = 0.0
    """Decoupled: every step takes the share `learning rate x weight_decay` of a weight, whatever the optimizer."""
    clip_norm: float = 0.0
    """Largest global norm of the loss gradient; 0: no clipping."""
    ema_momentum: float = 0.0
    """Momentum per step of the averaged weights, below 1; 0: no average."""
    l2_sp: float = 0.0
    """Strength of the pull towards the starting point; 0: none."""

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        if self.name not in OPTIMIZERS:
            raise ConfigError(f"optimizer {self.name!r}: unknown. Choose one of {', '.join(OPTIMIZERS)}")
        check_rate(self.learning_rate)
        for name in ("weight_decay", "clip_norm", "l2_sp"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ConfigError(f"{name} {value:g}: must be 0 (off) or positive")
        if not 0 <= self.ema_momentum < 1:
            raise ConfigError(f"ema_momentum {self.ema_momentum:g}: must be from 0 (off) to below 1, such as 0.99")


def make_optimizer(
    settings: OptimizerSettings,
    schedule: Any,
    multipliers: Mapping[str, float],
    start: Mapping[str, NDArray[Any]] | None = None,
) -> keras.optimizers.Optimizer:
    """Make an optimizer with a learning rate per variable.

    Args:
        settings: which one, and its strengths. The learning rate itself is the schedule's.
        schedule: what `edgetl.schedules.schedule` gives: a float, or a Keras schedule.
        multipliers: `variable.path` -> learning rate of the variable as a multiple of the schedule's, 0 or more. Every
            variable that gets trained must be in it; others may be.
        start: `variable.path` -> the value that `settings.l2_sp` pulls to. Variables that are not in it (a new head)
            are not pulled.

    Returns:
        The optimizer, not built. It is saved by `state`. A .keras file of a model that was compiled with it loads only
        with `compile=False`: save one that is not compiled.

    Raises:
        ConfigError: `l2_sp` without any starting point.
    """
    if settings.l2_sp and not start:
        raise ConfigError(f"l2_sp {settings.l2_sp:g}: there are no starting weights to pull to. Set it to 0")
    cls, arguments = OPTIMIZERS[settings.name]
    return layerwise(cls)(
        float(schedule) if isinstance(schedule, int) else schedule,
        multipliers=multipliers,
        start=start,
        l2_sp=settings.l2_sp,
        weight_decay=settings.weight_decay,
        global_clipnorm=settings.clip_norm or None,
        use_ema=settings.ema_momentum > 0,
        ema_momentum=settings.ema_momentum,
        **arguments,
    )


def layerwise(cls: Any) -> Any:
    """Derive from a Keras optimizer class one with a learning rate per variable, with the arguments of `_Layerwise`."""
    return type(f"Layerwise{cls.__name__}", (_Layerwise, cls), {})


@dataclass
class _Terms:
    """What is added per variable, by its index in the optimizer. Opaque to Keras, which would wrap lists and dicts."""

    multipliers: Mapping[str, float]
    start: Mapping[str, Any]
    l2_sp: float
    by_index: list[tuple[float, bool, Any]] = field(default_factory=list)
    """Multiplier, whether it decays, starting point or None."""


class _Layerwise(keras.optimizers.Optimizer):  # type: ignore[misc]
    """The part of a class made by `layerwise` that is ours; the Keras optimizer follows it in the order of bases."""

    def __init__(
        self,
        *args: Any,
        multipliers: Mapping[str, float],
        start: Mapping[str, NDArray[Any]] | None = None,
        l2_sp: float = 0.0,
        **keywords: Any,
    ) -> None:
        """Take the Keras optimizer's own arguments and three more, as `make_optimizer` explains them."""
        super().__init__(*args, **keywords)
        # Tensors now, while nothing is traced: arrays would become constants inside the graph of the training step.
        tensors = {path: keras.ops.convert_to_tensor(w) for path, w in (start or {}).items()} if l2_sp else {}
        self._terms = _Terms(multipliers, tensors, l2_sp)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Look up every variable's multiplier and starting point; the update sees bare tensors without a path."""
        if self.built:
            return
        paths = [variable.path for variable in variables]
        if twice := {path for path in paths if paths.count(path) > 1}:
            raise KeyError(f"several variables have one path: {sorted(twice)}")
        if missing := [path for path in paths if path not in self._terms.multipliers]:
            raise KeyError(f"trained variables without a learning rate multiplier: {missing}")
        self._terms.by_index = [self._terms_of(variable) for variable in variables]
        super().build(variables)

    def _terms_of(self, variable: keras.Variable) -> tuple[float, bool, Any]:
        multiplier = float(self._terms.multipliers[variable.path])
        if not 0 <= multiplier < math.inf:
            raise ValueError(f"{variable.path}: multiplier {multiplier}, must be 0 or positive")
        start = self._terms.start.get(variable.path)
        if start is not None and tuple(start.shape) != tuple(variable.shape):
            raise ValueError(f"{variable.path}: shape {variable.shape}, its starting point has {start.shape}")
        # One number per channel - biases, gammas and betas, layer scales - has little to overfit with, and decay takes
        # the scale from a normalized layer. With L2-SP the pull replaces decay towards zero (Li et al. 2018).
        return multiplier, len(variable.shape) > 1 and start is None, start

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable: a tf.Variable, under tf.distribute one replica's, found by its container's id."""
        multiplier, decays, start = self._terms.by_index[self._get_variable_index(variable)]
        rate = keras.ops.cast(learning_rate, variable.dtype) * multiplier
        if start is not None:
            # Gradient of l2_sp / 2 * |w - start|^2: Li, Grandvalet and Davoine, "Explicit inductive bias for transfer
            # learning with convolutional networks", ICML 2018. After clipping: a bound on the loss gradient must
            # neither weaken the pull nor be used up by it.
            pull = keras.ops.subtract(variable, keras.ops.cast(start, variable.dtype)) * self._terms.l2_sp
            gradient = keras.ops.cast(gradient, variable.dtype) + pull
        if decays and self.weight_decay:
            self.assign_sub(variable, keras.ops.multiply(variable, self.weight_decay) * rate)
        super().update_step(gradient, variable, rate)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Do nothing: Keras decays by the global rate, `update_step` by the variable's own."""

    def _clip_gradients(self, grads: Any) -> Any:
        """Do nothing yet: Keras clips each replica's share of the gradient, which depends on how many there are."""
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        """Clip the sum, so that one device and several make the same step."""
        grads, variables = zip(*super()._all_reduce_sum_gradients(grads_and_vars), strict=True)
        return list(zip(super()._clip_gradients(list(grads)), variables, strict=True))

    def finalize_variable_values(self, var_list: Any) -> None:
        """Do nothing: Keras would end every `fit`, one epoch here, with the average in place of the weights."""


def _inner(optimizer: Any) -> Any:
    """Take the optimizer out of a LossScaleOptimizer, which `compile` puts around it for float16."""
    return getattr(optimizer, "inner_optimizer", optimizer)


@contextmanager
def averaged(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Put the averaged weights into the variables while the block runs; afterwards they are what they were, bit by bit.

    Without an average, or before the first step, nothing changes. The average starts as the weights after the first
    step (Keras), so it never carries zeros; in the first 1 / (1 - momentum) steps it still lags behind.
    """
    # A copy for certain: the variable's own memory is about to change.
    kept = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    try:
        finalize(optimizer, variables)
        yield
    finally:
        for variable, values in zip(variables, kept, strict=True):
            variable.assign(values)


def finalize(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> None:
    """Put the averaged weights into the variables for good; nothing changes without an average."""
    inner = _inner(optimizer)
    if not (inner.built and inner.use_ema and int(keras.ops.convert_to_numpy(inner.iterations))):
        return
    for variable in variables:
        average = inner._model_variables_moving_average[inner._get_variable_index(variable)]
        variable.assign(keras.ops.convert_to_numpy(average))


def state(optimizer: keras.optimizers.Optimizer) -> list[NDArray[Any]]:
    """Copy everything that changes while it trains: step count, learning rate, moments, averaged weights."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in optimizer.variables]


def restore(optimizer: keras.optimizers.Optimizer, arrays: Sequence[NDArray[Any]]) -> None:
    """Put back what `state` gave, into an optimizer with the same settings, built over equal variables.

    Raises:
        RunError: the arrays are of another optimizer, or other variables.
        ValueError: the optimizer is not built yet.
    """
    if not optimizer.built:
        raise ValueError("restore: call optimizer.build(variables) first")
    have = [(tuple(v.shape), np.dtype(keras.backend.standardize_dtype(v.dtype))) for v in optimizer.variables]
    got = [(array.shape, array.dtype) for array in arrays]
    if have != got:
        at = next((i for i, (a, b) in enumerate(zip(have, got, strict=False)) if a != b), min(len(have), len(got)))
        raise RunError(
            f"optimizer state: {len(got)} arrays don't fit {len(have)} variables of {optimizer.name}, first at {at}. "
            "Start anew, or go on with the settings that it was saved with"
        )
    for variable, array in zip(optimizer.variables, arrays, strict=True):
        variable.assign(array)
