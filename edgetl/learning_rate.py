"""The arithmetic of a learning-rate range test: one short training with rising rate tells which rates work.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", https://arxiv.org/abs/1506.01186.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ConfigError

MEMORY = 0.9
"""Weight of the past in the running average that tells divergence: about ten steps."""
SPREAD = 0.8
"""Weight of a step's neighbour in the smoothed curve, as a share of the step's own: about five steps to either side."""
DIVERGED = 4.0
"""A smoothed loss of so many times its best so far: rates from there on are too high."""
LEAST_FALL = 0.01
"""Fall of the smoothed loss that counts, as a share of where it starts."""
NOISE = 1.8
"""The same in standard deviations of single steps around the curve. Smoothing leaves a third of one at the ends and
the lowest of many is low by luck: loss that does not depend on the rate stays below."""
FEWEST = 5
"""Steps before divergence that it takes to tell anything."""


@dataclass(frozen=True, eq=False)
class Suggestion:
    """What a range test says."""

    learning_rate: float | None
    """Where the loss falls steepest; None where it never fell."""
    smoothed: NDArray[np.float64]
    """[n], losses as they were judged; NaN from divergence on."""
    diverged_at: float | None
    """Learning rate at which the loss went off, or None."""
    reason: str
    """In words, with what to do where there is no rate."""


def rates(lowest: float, highest: float, steps: int) -> NDArray[np.float64]:
    """Learning rates of the test, each the same multiple of the one before.

    Returns:
        float64 [steps], from `lowest` to `highest`.

    Raises:
        ConfigError: no such range.
    """
    if not 0 < lowest < highest < math.inf:
        raise ConfigError(f"learning rates {lowest:g} to {highest:g}: no range. Name two, such as 1e-6 and 1")
    if steps < 2 * FEWEST:
        raise ConfigError(
            f"{steps} step(s): too few for a range test, need at least {2 * FEWEST}. 100 is a good number"
        )
    return np.geomspace(lowest, highest, steps)


def divergence(losses: Sequence[float] | NDArray[np.float64]) -> int | None:
    """Tell at which step the loss went off: not finite, or smoothed over four times its best so far.

    The smoothing looks back only (exponential, bias-corrected), so that a test under way can stop at once.

    Args:
        losses: [n], of the steps so far.
    """
    average, best = 0.0, math.inf
    for index, loss in enumerate(losses):
        average = MEMORY * average + (1 - MEMORY) * float(loss)
        level = average / (1 - MEMORY ** (index + 1))
        if not math.isfinite(level) or level > DIVERGED * best:
            return index
        best = min(best, level)
    return None


def suggest(rates: NDArray[np.float64], losses: Sequence[float] | NDArray[np.float64]) -> Suggestion:
    """Choose the rate at which the loss falls steepest over the logarithm of the rate, before its minimum.

    The curve is smoothed exponentially to both sides, so that it does not lag: looking back only it would suggest
    rates several times too high.

    Args:
        rates: [n], rising.
        losses: [m] with m <= n: a test that stopped early has fewer.

    Raises:
        ValueError: more losses than rates, or none.
    """
    losses = np.asarray(losses, np.float64)
    if not 0 < len(losses) <= len(rates):
        raise ValueError(f"Expected 1 to {len(rates)} losses, one per rate. Received: {len(losses)}")
    end = divergence(losses)
    used = losses[:end]
    smoothed = np.full(len(losses), np.nan)
    smoothed[: len(used)] = curve = _smooth(used)
    diverged_at = None if end is None else float(rates[end])
    lowest = int(curve.argmin()) if len(used) else 0
    if len(used) < FEWEST or not _fell(used, curve, lowest):
        return Suggestion(
            None, smoothed, diverged_at, _no_rate(float(rates[0]), float(rates[len(losses) - 1]), diverged_at)
        )
    slopes = _smooth(np.gradient(curve, np.log(rates[: len(used)])))[: lowest + 1]
    best = float(rates[slopes.argmin()])
    reason = f"the loss falls steepest at {best:.2g} and is lowest at {rates[lowest]:.2g}"
    if diverged_at is not None:
        reason += f"; it goes off at {diverged_at:.2g}"
    return Suggestion(best, smoothed, diverged_at, reason)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means, [n] -> [n]: weights fall by SPREAD per step to either side and add up to 1 at the ends too."""
    steps = np.arange(len(values))
    weights = SPREAD ** np.abs(steps[:, None] - steps)
    means: NDArray[np.float64] = weights @ values / weights.sum(axis=1) if len(values) else values
    return means


def _fell(losses: NDArray[np.float64], curve: NDArray[np.float64], lowest: int) -> bool:
    noise = float(np.std(losses[: lowest + 1] - curve[: lowest + 1]))
    return float(curve[0] - curve[lowest]) > max(LEAST_FALL * abs(float(curve[0])), NOISE * noise)


def _no_rate(first: float, last: float, diverged_at: float | None) -> str:
    tried = f"no learning rate lowered the loss between {first:.2g} and {last:.2g}"
    if diverged_at is None:
        return f"{tried}. Try higher ones or more steps, and check the labels"
    return f"{tried}; it went off at {diverged_at:.2g}. Try lower ones or more steps"
