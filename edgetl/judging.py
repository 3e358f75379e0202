"""How good a model is after an epoch, on photos as they are: a row of the history, and what is said about it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import metrics
from edgetl.batches import Batches, Source
from edgetl.console import quiet_tensorflow
from edgetl.errors import ConfigError
from edgetl.history import Epoch, watch
from edgetl.tasks import mean_loss

quiet_tensorflow()
import tensorflow as tf  # noqa: E402

MAX_CLEAN = 256
"""The clean training loss is measured on as many training photos as there are for validation, at most so many: judging
costs time in every epoch, and this loss shows a gap, it decides nothing."""
EVALUATION_BATCH = 64
PROBE = "linear probe"
"""Name of the history's first row: the model before anything was thawed."""


@dataclass(frozen=True)
class Validation:
    """The photos that epochs are judged on."""

    source: Source
    labels: NDArray[Any]


class Judge:
    """Measures a model that is being trained, always on the same photos."""

    def __init__(self, model: Callable[..., Any], train: Batches, validation: Validation, seed: int) -> None:
        """Choose the training photos.

        Args:
            model: a tuple of float32 tensors -> outputs [n, k]; called with `training=False`.
            train: what it is trained on.
            validation: photos that are never trained on.
            seed: of the choice.
        """
        self._train, self._validation = train, validation
        rows = np.random.default_rng(seed).permutation(len(train.labels))
        self._clean_rows = np.sort(rows[: min(len(validation.labels), MAX_CLEAN)])
        self._forward = tf.function(
            lambda *inputs: model(tuple(tf.cast(tensor, tf.float32) for tensor in inputs), training=False),
            input_signature=validation.source.signature(),
        )

    def row(
        self, phase: str, epoch: int, train_loss: float | None, rates: tuple[float, float], seconds: float
    ) -> Epoch:
        """Measure the model as it is now.

        Args:
            phase: its name, or PROBE.
            epoch: counted from 1 within the phase; 0 before any training.
            train_loss: as it was optimized; None before any training.
            rates: learning rates of the head and of the last thawed block.
            seconds: that the epoch took.

        Raises:
            ConfigError: a loss is not finite.
        """
        fit_loss, fit_primary = self._measure(self._train.source, self._clean_rows, self._train.labels)
        rows = np.arange(len(self._validation.labels))
        loss, judged = self._measure(self._validation.source, rows, self._validation.labels)
        row = Epoch(
            phase=phase,
            epoch=epoch,
            head_learning_rate=rates[0],
            backbone_learning_rate=rates[1],
            train_loss=fit_loss if train_loss is None else train_loss,
            fit_loss=fit_loss,
            fit_primary=fit_primary,
            validation_loss=loss,
            validation_primary=judged,
            images_per_second=self._train.steps * self._train.size / seconds if epoch else 0.0,
            seconds=seconds,
        )
        if not math.isfinite(row.validation_loss + row.train_loss):
            raise diverged(f"{phase}, epoch {epoch}", "validation loss is not a number")
        return row

    def _measure(self, source: Source, rows: NDArray[np.int64], labels: NDArray[Any]) -> tuple[float, float]:
        """Loss and primary figure on photos as they are; NaN where the model says no numbers any more."""
        parts = []
        for start in range(0, len(rows), EVALUATION_BATCH):
            part = rows[start : start + EVALUATION_BATCH]
            parts.append(self._forward(*source.gather(part, np.zeros_like(part))).numpy())
        said = np.concatenate(parts)
        if not np.isfinite(said).all():
            return math.nan, math.nan
        true, outputs = labels[rows], self._train.outputs
        return mean_loss(true, said, outputs), metrics.primary(true, said, outputs)


def remarks(before: Sequence[Epoch], row: Epoch, primary: str) -> tuple[str, ...]:
    """Say what a new row shows, and warn of overfitting where the rows before gave no reason to yet.

    Args:
        before: the history without it: what was said follows from it, also in a process that has only just resumed.
        row: the new one.
        primary: name of the primary figure.
    """
    verdict = watch([*before, row], primary)
    if verdict.line is None or (before and watch(before, primary).since == verdict.since):
        return (_line(row, primary),)
    return _line(row, primary), verdict.line


def diverged(where: str, what: str) -> ConfigError:
    """Make the error of a training that can't go on."""
    return ConfigError(
        f"training diverged: {what} ({where}). Train into a new --out with a tenth of --head-lr and --backbone-lr "
        "(python -m recipes.find_learning_rate suggests them), or with --clip-norm 1"
    )


def _line(row: Epoch, primary: str) -> str:
    parts = [
        f"{row.phase}, epoch {row.epoch}" if row.epoch else row.phase,
        f"training loss {row.fit_loss:.3f}, {primary} {100 * row.fit_primary:.1f} %",
        f"validation loss {row.validation_loss:.3f}, {primary} {100 * row.validation_primary:.1f} %",
    ]
    if row.epoch:
        parts += [
            f"rates {row.head_learning_rate:.1e}, {row.backbone_learning_rate:.1e}",
            f"{row.images_per_second:.0f} images/s",
        ]
    return " | ".join(parts)
