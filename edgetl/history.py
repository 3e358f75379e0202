"""What each epoch of a training brought: one row per epoch, as a table on disk, and watched for overfitting."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import RunError

RECENT = 3
"""Epochs whose mean stands for where training is now, and the fewest after the best one that make a verdict."""
RISE = 0.05
"""Rise of the validation loss above its best that counts, as a share of the best."""
LEAST_RISE = 0.01
"""The same in nats, or as a share of a target's variance: 5 % of a loss near 0 is nothing."""
NOISE = 3.5
"""The same in standard deviations of one epoch around the curve's trend. The best is the least of many noisy values,
so that a plateau alone lies about two above it."""
TREND = 5
"""Epochs over which the trend of the gap is taken."""


@dataclass(frozen=True)
class Epoch:
    """One row of the history: an epoch of one phase."""

    phase: str
    epoch: int
    """Counted from 1 within the phase; 0 is the state before its first step."""
    head_learning_rate: float
    """At the end of the epoch."""
    backbone_learning_rate: float
    """At the end of the epoch, of the last thawed block; 0 where none is."""
    train_loss: float
    """Mean over the epoch of what was optimized: with augmentation, label smoothing and the like."""
    fit_loss: float
    """Loss (`edgetl.tasks.mean_loss`) on a fixed sample of training photos without augmentation, after the epoch."""
    fit_primary: float
    """Primary figure of the task (`edgetl.scores.PRIMARY`) on the same sample, at most 1."""
    validation_loss: float
    """Loss on the validation photos."""
    validation_primary: float
    """Primary figure on the validation photos."""
    images_per_second: float
    """Training alone, without validation."""
    seconds: float
    """The same."""


FIELDS = {field.name: field.type for field in dataclasses.fields(Epoch)}


def to_csv(epochs: Sequence[Epoch]) -> str:
    """Turn rows into a table with a header; floats keep every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows(dataclasses.astuple(epoch) for epoch in epochs)
    return text.getvalue()


def from_csv(text: str, source: str) -> tuple[Epoch, ...]:
    """Read back what `to_csv` wrote.

    Args:
        text: the table.
        source: where it comes from, for the message.

    Raises:
        RunError: a column or a row is missing, or a value is no number.
    """
    advice = "The file is damaged or from another version; restore it or train into a new --out"
    rows = list(csv.reader(io.StringIO(text)))
    if not text.endswith("\n") or rows[0] != list(FIELDS):
        raise RunError(f"{source}: no whole table of {', '.join(FIELDS)}. {advice}")
    epochs: list[Epoch] = []
    for line, row in enumerate(rows[1:], start=2):
        try:
            values = [kind(value) for kind, value in zip(FIELDS.values(), row, strict=True)]  # type: ignore[operator]
            found = Epoch(*values)
        except ValueError as error:
            raise RunError(f"{source}: line {line}: {error}. {advice}") from None
        before = epochs[-1] if epochs else None
        if found.epoch not in (0, 1) and (
            before is None or (before.phase, before.epoch + 1) != (found.phase, found.epoch)
        ):
            raise RunError(f"{source}: line {line}: epoch {found.epoch} does not follow the row before. {advice}")
        epochs.append(found)
    return tuple(epochs)


def numbers(epochs: Sequence[Epoch]) -> range:
    """Number rows on through all phases, as texts and pictures do: from 0 where the state before training leads."""
    first = epochs[0].epoch if epochs else 1
    return range(first, first + len(epochs))


@dataclass(frozen=True)
class Watch:
    """How much better the model is on photos that it trains on."""

    loss_gap: float
    """Validation loss minus clean training loss; as are both gaps, after the last epoch."""
    primary_gap: float
    """Primary figure on training photos minus that on validation photos."""
    trend: float
    """Change of the loss gap per epoch over the last epochs; 0 while there is one row only."""
    since: int | None
    """Number of the epoch after which it overfits, or None. It stays the same while that goes on; `line` does not."""
    line: str | None
    """The same in words, with what to do."""


def watch(epochs: Sequence[Epoch], primary: str) -> Watch:
    """Judge a history: does training still help, or does the model learn its photos by heart?

    It overfits when for at least three epochs the clean training loss kept falling while the validation loss rose
    above its best by more than noise. A standard error of the loss would be no measure of that noise: all epochs are
    judged on the same photos, so only what training itself jitters matters, and that shows in the history.

    Args:
        epochs: all rows so far, of all phases.
        primary: name of the primary figure.

    Raises:
        ValueError: no row.
    """
    if not epochs:
        raise ValueError("Expected at least one epoch. Received: none")
    validation = np.array([epoch.validation_loss for epoch in epochs])
    fit = np.array([epoch.fit_loss for epoch in epochs])
    last = epochs[-1]
    primary_gap = last.fit_primary - last.validation_primary
    best = _overfits_since(validation, fit)
    since = None if best is None else numbers(epochs)[best]
    line = None
    if best is not None:
        line = (
            f"overfitting since epoch {since}: training loss {fit[best]:.2f} -> {fit[-1]:.2f}, validation loss "
            f"{validation[best]:.2f} -> {validation[-1]:.2f} ({primary} gap {100 * primary_gap:.1f} points). "
            "Try a stronger --augment, more --weight-decay or --dropout, or fewer thawed blocks"
        )
    return Watch(float(validation[-1] - fit[-1]), primary_gap, _slope((validation - fit)[-TREND:]), since, line)


def _overfits_since(validation: NDArray[np.float64], fit: NDArray[np.float64]) -> int | None:
    """Index of the best epoch, if it overfits from there on."""
    if len(validation) < RECENT + 1 or not (np.isfinite(validation).all() and np.isfinite(fit).all()):
        return None
    # A mean of three neighbours, fewer at the start: the least single value would be the luckiest, not the best.
    level = np.array([validation[max(0, i - 1) : i + 2].mean() for i in range(len(validation) - 1)])
    centre = int(level.argmin())
    best = max(0, centre - 1) + int(validation[max(0, centre - 1) : centre + 2].argmin())
    if len(validation) - 1 - best < RECENT:
        return None
    needed = max(RISE * level[centre], LEAST_RISE, NOISE * _noise(validation))
    rose = validation[-RECENT:].mean() - level[centre] >= needed and validation[-1] >= (1 + RISE) * validation[best]
    fell = fit[-RECENT:].mean() < fit[best] and _slope(fit[best:]) < 0
    return best if rose and fell else None


def _noise(values: NDArray[np.float64]) -> float:
    """Standard deviation of single values around a smooth curve: third differences leave out level, slope and bend."""
    third = np.abs(np.diff(values, 3))
    return float(np.median(third) / (0.6745 * np.sqrt(20)))  # of a normal: median |x| = 0.6745 sd; 20 = 1 + 9 + 9 + 1


def _slope(values: NDArray[np.float64]) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else 0.0
