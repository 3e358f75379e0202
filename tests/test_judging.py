"""Judging epochs: on which photos, what is measured, what is said and how often."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tiny_training import OUTPUTS, PixelSource, labels_of, one_phase, tiny_training

from edgetl import judging
from edgetl.batches import Batches
from edgetl.errors import ConfigError
from edgetl.history import Epoch, Watch
from edgetl.judging import PROBE, Judge, Validation, remarks


class Seen(PixelSource):
    """Photos that remember which of them were asked for."""

    def __init__(self, labels: np.ndarray) -> None:
        super().__init__(labels)
        self.rows: list[int] = []

    def gather(self, rows: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, ...]:
        assert not views.any(), "the photo as it is"
        self.rows += rows.tolist()
        return super().gather(rows, views)


def judge_of(probabilities: Any, train: int, validation: int, seed: int = 0) -> tuple[Judge, Seen, Seen]:
    """A judge of a model that gives every photo the same probabilities."""
    sources = Seen(labels_of(train)), Seen(labels_of(validation))

    def model(inputs: tuple[tf.Tensor, ...], training: bool) -> tf.Tensor:
        assert not training
        return tf.tile(tf.constant([probabilities], tf.float32), [tf.shape(inputs[0])[0], 1])

    batches = Batches(sources[0], labels_of(train), OUTPUTS, 4, 0)
    return Judge(model, batches, Validation(sources[1], labels_of(validation)), seed), *sources


def row_of(judge: Judge, train_loss: float | None = 1.0) -> Epoch:
    return judge.row("all", 2, train_loss, (1e-2, 1e-3), 0.5)


@pytest.mark.parametrize(
    ("train", "validation", "most", "clean"), [(300, 70, 256, 70), (300, 70, 30, 30), (9, 70, 256, 9)]
)
def test_always_the_same_photos(
    monkeypatch: pytest.MonkeyPatch, train: int, validation: int, most: int, clean: int
) -> None:
    monkeypatch.setattr(judging, "MAX_CLEAN", most)
    choices = []
    for seed in (0, 0, 1):
        judge, trained, judged = judge_of([0.5, 0.3, 0.2], train, validation, seed)
        row_of(judge)
        row_of(judge)
        once = trained.rows[: len(trained.rows) // 2]
        assert trained.rows == once + once and len(once) == len(set(once)) == clean
        assert judged.rows == 2 * list(range(validation))  # more than EVALUATION_BATCH
        choices.append(once)
    assert choices[0] == choices[1]
    assert (choices[0] == choices[2]) == (clean == train)


def test_a_row_holds_what_was_measured_and_what_was_told() -> None:
    judge, _, _ = judge_of([0.5, 0.3, 0.2], 4, 3)
    row = row_of(judge, 1.5)
    assert (row.phase, row.epoch, row.train_loss, row.seconds) == ("all", 2, 1.5, 0.5)
    assert (row.head_learning_rate, row.backbone_learning_rate) == (1e-2, 1e-3)
    assert row.images_per_second == 8  # four in half a second
    # One photo of each class; float32 probabilities have a relative error of 6e-8.
    assert row.validation_loss == pytest.approx(-np.log([0.5, 0.3, 0.2]).mean(), rel=1e-6)
    assert row.validation_primary == pytest.approx(1 / 3)
    first = judge.row(PROBE, 0, None, (0.0, 0.0), 0.0)
    assert first.train_loss == first.fit_loss > 0 and first.images_per_second == 0


@pytest.mark.parametrize("certain", [1.0, 1.0000001])  # the next float32 above 1, as softmax may give it
def test_no_loss_is_below_zero_or_prints_so(certain: float) -> None:
    judge, _, _ = judge_of([certain, 0, 0], 1, 1)
    row = row_of(judge)
    assert row.validation_loss == row.fit_loss == 0 and f"{row.validation_loss:.3f}" == "0.000"
    (line,) = remarks((), row, "top-1")
    assert "validation loss 0.000, top-1 100.0 %" in line
    wrong, _, _ = judge_of([0, certain, 0], 1, 1)
    assert row_of(wrong).validation_loss == pytest.approx(-np.log(1e-7))  # finite


@pytest.mark.parametrize(("probability", "train_loss"), [(np.nan, 1.0), (0.5, np.inf)])
def test_losses_that_are_no_numbers_are_divergence(probability: float, train_loss: float) -> None:
    judge, _, _ = judge_of([probability, 0.3, 0.2], 4, 3)
    with pytest.raises(ConfigError, match=r"training diverged: .* \(all, epoch 2\).*--head-lr"):
        row_of(judge, train_loss)


@pytest.mark.parametrize("stop_after", [None, 2, 3])
def test_a_warning_is_said_once_also_across_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stop_after: int | None
) -> None:
    since = [None, 1, 1, 2, 2]
    monkeypatch.setattr(
        judging,
        "watch",
        lambda rows, primary: Watch(
            0, 0, 0, since[len(rows) - 1], since[len(rows) - 1] and f"overfits, {len(rows)} rows"
        ),
    )

    def stop(history: tuple[Epoch, ...]) -> None:
        if len(history) == stop_after:
            raise KeyboardInterrupt

    with caplog.at_level(logging.INFO, "edgetl"):
        if stop_after:
            with pytest.raises(KeyboardInterrupt):
                tiny_training(tmp_path / "c.npz", one_phase(4), on_epoch=stop).run()
        tiny_training(tmp_path / "c.npz", one_phase(4)).run()
    assert [m for m in caplog.messages if "overfits" in m] == ["overfits, 2 rows", "overfits, 4 rows"]
    assert sum("| validation loss" in m for m in caplog.messages) == 5, "each row once"
