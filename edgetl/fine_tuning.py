"""Training of thawed blocks, phase after phase, that can be killed at any moment and goes on to the same weights.

What is random in an epoch follows from (seed, phase, epoch): the order of the photos, augmentation, dropout.
A checkpoint after each epoch, and one where a signal stops it in the middle of one, hold everything else.
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import checkpoints
from edgetl.augment import layers_of, reseed, seed_generators
from edgetl.backbones.blocks import Block
from edgetl.balance import class_weights, label_weights
from edgetl.batches import Batches
from edgetl.checkpoints import Checkpoint, grouped
from edgetl.console import Bar, log, progress, quiet_tensorflow
from edgetl.errors import ConfigError, RunError
from edgetl.history import Epoch
from edgetl.inputs import ImageInput
from edgetl.judging import PROBE, Judge, Validation, diverged, remarks
from edgetl.learning_rate import divergence
from edgetl.losses import make_loss
from edgetl.mixing import Mixing
from edgetl.optimizers import OptimizerSettings, averaged, finalize, make_optimizer
from edgetl.optimizers import restore as restore_optimizer
from edgetl.optimizers import state as optimizer_state
from edgetl.phases import Phase
from edgetl.schedules import Plateau, Schedule, current_learning_rate, schedule, set_learning_rate
from edgetl.scores import PRIMARY
from edgetl.teaching import TaughtLoss
from edgetl.trainee import (
    BatchNormPolicy,
    Precision,
    Trainee,
    copy_in_precision,
    learning_layers,
    learning_rates,
    recalibrate,
    strategy_for,
    thaw,
    value_of,
)

quiet_tensorflow()
import keras  # noqa: E402

__all__ = ["FineTuning", "Settings", "Validation"]


@dataclass(frozen=True)
class Settings:
    """How thawed layers are trained; rates and epochs are the phases' own."""

    seed: int
    optimizer: OptimizerSettings
    """Its learning rate is replaced by the phase's."""
    schedule: Schedule = "cosine"
    warmup_epochs: float = 1.0
    batch_norm: BatchNormPolicy = "frozen"
    augment: str = "none"
    """Preset applied inside the training step; stored views have theirs already."""
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    class_weights: bool = False
    patience: int = 0
    """Epochs of the last phase without a lower validation loss after which it stops and the best weights are taken;
    0: all epochs are trained and the last weights are taken."""
    precision: Precision = "float32"
    distribute: bool = False


@dataclass(frozen=True)
class _Progress:
    """What a checkpoint holds besides arrays. Replaced as a whole: a signal comes before or after, never in between."""

    phase: int = 0
    epoch: int = 0
    """Whole epochs of the phase that are done."""
    step: int = 0
    """Steps of the next epoch that are done: not 0 after a signal."""
    seconds: float = 0.0
    """What these steps took."""
    history: tuple[Epoch, ...] = ()
    plateau: dict[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 1.0
    """Share of the phase's learning rates that the plateau has left."""
    best_loss: float = math.inf
    best_epoch: int = 0


class FineTuning:
    """One training. After `run`, the model that was handed in holds the result, float32 whatever it was trained in."""

    def __init__(
        self,
        model: keras.Model,
        blocks: Sequence[Block],
        phases: Sequence[Phase],
        train: Batches,
        validation: Validation,
        settings: Settings,
        *,
        checkpoint: Path,
        on_epoch: Callable[[Sequence[Epoch]], None] = lambda history: None,
    ) -> None:
        """Prepare, and read the checkpoint if there is one.

        Args:
            model: what is behind the border, or the whole: the inputs of the source -> outputs, its head in
                the form in which it is trained; with a second output where it is hinted at a teacher's features.
            blocks: of the backbone, from input to output; those in front of the border may be among them.
            phases: what learns when.
            train: batches of the training split.
            validation: photos that are never trained on.
            settings: how to do it.
            checkpoint: file that is written after each epoch.
            on_epoch: called with the history after each epoch.

        Raises:
            ConfigError: more than one device was asked for and is not there, or CutMix of what has no places.
            RunError: the checkpoint is of a training that began with other backbone weights.
            ValueError: a block that is to be thawed is in front of the border.
        """
        inside = {layer.name for layer in model.layers}
        thawed = {name for phase in phases for name in phase.thawed}
        if absent := [block.name for block in blocks if block.name in thawed and not inside.issuperset(block.layers)]:
            raise ValueError(f"Expected a model with all blocks that are thawed. It lacks: {absent}")
        if settings.cutmix and any(len(tensor.shape) != 4 for tensor in model.inputs):
            raise ConfigError("--cutmix: features have no places to cut. Use --mixup, or thaw blocks")
        self._result, self._phases, self._batches = model, phases, train
        self._blocks = [block for block in blocks if inside.intersection(block.layers)]
        self._settings, self._file, self._on_epoch = settings, checkpoint, on_epoch
        classes = len(train.outputs.names) if train.outputs.exclusive else 0
        weights = np.ones(classes, np.float32) if classes else None
        if settings.class_weights and classes:
            weights = class_weights(train.labels, classes)
        self._class_weights = weights
        self._label_weights = label_weights(train.labels) if settings.class_weights and not classes else None
        self._strategy = strategy_for(settings.distribute, train.size)
        with self._strategy.scope():
            copied = settings.distribute or settings.precision != "float32"
            self._model = copy_in_precision(model, settings.precision) if copied else model
            self._trainee = Trainee(
                self._model,
                layers_of(settings.augment, ImageInput(*model.input.shape[1:3]), settings.seed)
                if settings.augment != "none"
                else [],
                Mixing(settings.mixup, settings.cutmix, settings.seed),
                None if train.teaching else weights,
            )
        self._generators = seed_generators([self._trainee])
        start = self._starting_point()
        self._origin = _digest(start)
        self._pretrained = start if settings.optimizer.l2_sp else {}
        self._judge = Judge(self._trainee, train, validation, settings.seed)
        self._at = _Progress()
        self._best: list[NDArray[Any]] = []
        self._found = checkpoints.load(checkpoint)
        if self._found and not np.array_equal(self._found.group("origin"), [self._origin]):
            raise RunError(
                f"{checkpoint}: training began with other backbone weights. Restore those that --weights named, or "
                "choose another --out"
            )

    def run(self) -> tuple[Epoch, ...]:
        """Train through all phases.

        Returns:
            The history; its first row is the model as it came.

        Raises:
            ConfigError: the loss became infinite; the checkpoint of the epoch before stays.
            DatasetError: a photo can't be read any more; likewise.
            KeyboardInterrupt: after the state in the middle of the epoch was saved.
        """
        if self._found:
            rows = tuple(Epoch(**row) for row in self._found.state["history"])
            self._at = _Progress(**{**self._found.state, "history": rows})
            log.info("going on after %d epochs and %d steps", len(self._at.history) - 1, self._at.step)
        per_epoch = self._batches.steps * self._batches.size
        done = (len(self._at.history[1:]) * self._batches.steps + self._at.step) * self._batches.size
        with progress("training", sum(phase.epochs for phase in self._phases) * per_epoch, done) as self._bar:
            if not self._at.history:
                first = self._judge.row(PROBE, 0, None, (0.0, 0.0), 0.0)
                self._say(first)
                self._at = _Progress(history=(first,))
            for index in range(self._at.phase, len(self._phases)):
                self._run_phase(index)
        if self._settings.batch_norm == "recalibrate":
            self._recalibrate()
        if self._model is not self._result:
            self._result.set_weights(self._model.get_weights())
        return self._at.history

    def range_test(self, rates: NDArray[np.float64]) -> list[float]:
        """Train one step per rate, all thawed, and see what the loss does. The weights are of no use afterwards.

        Args:
            rates: of the head, rising; the backbone's keep their share of it.

        Returns:
            Training loss of each step as optimized, up to the step at which it went off.
        """
        index = len(self._phases) - 1
        optimizer = self._begin(index)
        losses: list[float] = []
        epochs = math.ceil(len(rates) / self._batches.steps)
        batches = (batch for epoch in range(epochs) for batch in self._batches.dataset(index, epoch))
        reseed(self._generators, self._settings.seed, index, 0)
        with progress("learning rate range test", len(rates)) as bar, self._batches.errors():
            for rate, (inputs, labels, *weights) in zip(rates, batches, strict=False):
                set_learning_rate(optimizer, float(rate))
                self._trainee.mean_loss.reset_state()
                losses.append(float(np.ravel(self._trainee.train_on_batch(inputs, labels, *weights))[0]))
                bar.advance()
                if divergence(losses) is not None:
                    break
        return losses

    def _starting_point(self) -> dict[str, NDArray[Any]]:
        """The backbone's weights as they came; the head is new and pulled nowhere."""
        names = [name for block in self._blocks for name in block.layers]
        return {w.path: np.array(w) for name in names for w in self._model.get_layer(name).weights}

    def _run_phase(self, index: int) -> None:
        optimizer = self._begin(index)
        while self._at.epoch < self._phases[index].epochs:
            self._run_epoch(index, optimizer)
        if self._best and index == len(self._phases) - 1:
            self._model.set_weights(self._best)
            log.info("took the weights of epoch %d, the lowest validation loss", self._at.best_epoch)
        else:
            finalize(optimizer, self._trainee.trainable_variables)
        self._at = _Progress(index + 1, history=self._at.history)

    def _begin(self, index: int) -> keras.optimizers.Optimizer:
        """Freeze and thaw, make the optimizer, and put back what a checkpoint of this phase holds."""
        phase, settings = self._phases[index], self._settings
        thaw(self._model, phase, self._blocks, settings.batch_norm)
        total = phase.epochs * self._batches.steps
        warmup = min(round(settings.warmup_epochs * self._batches.steps), total // 2)
        warmup = 0 if settings.schedule == "plateau" else warmup
        with self._strategy.scope():
            optimizer = make_optimizer(
                dataclasses.replace(settings.optimizer, learning_rate=phase.head_learning_rate),
                schedule(settings.schedule, phase.head_learning_rate, warmup, total),
                learning_rates(self._model, phase, self._blocks),
                self._pretrained,
            )
            if settings.precision == "mixed_float16":
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
            loss = make_loss(self._batches.outputs, settings.label_smoothing, settings.focal_gamma, self._label_weights)
            if self._batches.teaching:
                loss = TaughtLoss(loss, self._batches.teaching, self._class_weights)
            self._trainee.compile(optimizer, loss, jit_compile=False)
            optimizer.build(self._trainee.trainable_variables)
        if self._found and self._at.phase == index:
            self._model.set_weights(self._found.group("weights"))
            restore_optimizer(optimizer, self._found.group("optimizer"))
            for variable, numbers in zip(self._epoch_variables, self._found.group("epoch"), strict=True):
                variable.assign(numbers)
            self._best, self._found = self._found.group("best"), None
        return optimizer

    def _run_epoch(self, index: int, optimizer: keras.optimizers.Optimizer) -> None:
        """Train one epoch, or the rest of one; judge it; write the checkpoint."""
        phase, at, settings = self._phases[index], self._at, self._settings
        if not at.step:
            reseed(self._generators, settings.seed, index, at.epoch)
            self._trainee.mean_loss.reset_state()
        if settings.schedule == "plateau":
            set_learning_rate(optimizer, phase.head_learning_rate * at.rate)
        start, arrays = time.perf_counter() - at.seconds, {}
        try:
            self._fit(f"{phase.name}, epoch {at.epoch + 1} of {phase.epochs}", index)
            seconds = time.perf_counter() - start
            arrays = self._arrays(optimizer)  # here: from now on averages may stand in for weights
            rate = current_learning_rate(optimizer)
            backbone_rate = rate * phase.backbone_learning_rate / phase.head_learning_rate if phase.thawed else 0.0
            with averaged(optimizer, self._trainee.trainable_variables):
                loss = float(self._trainee.mean_loss.result())
                row = self._judge.row(phase.name, at.epoch + 1, loss, (rate, backbone_rate), seconds)
                self._say(row)
                after, best = self._after(at, row, index)
            checkpoints.save(self._file, Checkpoint(dataclasses.asdict(after), arrays | grouped(best=best)))
        except KeyboardInterrupt:
            step = self._trainee.photos // self._batches.size
            stopped = dataclasses.replace(at, step=step, seconds=time.perf_counter() - start)
            arrays = (arrays or self._arrays(optimizer)) | grouped(best=self._best)
            checkpoints.save(self._file, Checkpoint(dataclasses.asdict(stopped), arrays))
            raise
        self._at, self._best = after, best
        self._on_epoch(after.history)

    def _fit(self, title: str, index: int) -> None:
        at, steps, size = self._at, self._batches.steps, self._batches.size
        if at.step == steps:
            return
        bars = (self._bar, self._bar.part(title, steps * size, at.step * size))
        with self._batches.errors():
            self._trainee.fit(
                self._batches.dataset(index, at.epoch, at.step),
                steps_per_epoch=steps - at.step,
                shuffle=False,
                callbacks=[_Steps(bars, size, title)],
                verbose=0,
            )

    def _say(self, row: Epoch) -> None:
        for line in remarks(self._at.history, row, PRIMARY[self._batches.outputs.task]):
            self._bar.say(line)

    def _after(self, at: _Progress, row: Epoch, index: int) -> tuple[_Progress, list[NDArray[Any]]]:
        """Tell where training stands after an epoch, and the best weights so far if they are wanted."""
        settings, best = self._settings, self._best
        after = dataclasses.replace(at, epoch=at.epoch + 1, step=0, seconds=0.0, history=(*at.history, row))
        if settings.schedule == "plateau":
            plateau = Plateau(**at.plateau)
            after = dataclasses.replace(after, rate=at.rate * plateau.update(row.validation_loss))
            after = dataclasses.replace(after, plateau=dataclasses.asdict(plateau))
        if settings.patience and index == len(self._phases) - 1:
            if row.validation_loss < at.best_loss:
                best = [np.array(array) for array in self._model.get_weights()]
                after = dataclasses.replace(after, best_loss=row.validation_loss, best_epoch=row.epoch)
            elif row.epoch - at.best_epoch >= settings.patience:
                self._bar.say(f"no lower validation loss for {settings.patience} epochs: stopping")
                after = dataclasses.replace(after, epoch=self._phases[index].epochs)
        return after, best

    @property
    def _epoch_variables(self) -> list[keras.Variable]:
        """What a step changes besides weights and optimizer: the state of what is random, and the mean loss."""
        return [*(generator.state for generator in self._generators), *self._trainee.mean_loss.variables]

    def _arrays(self, optimizer: keras.optimizers.Optimizer) -> dict[str, NDArray[Any]]:
        """Copy everything that a step changes."""
        return grouped(
            origin=[self._origin],
            weights=[np.array(array) for array in self._model.get_weights()],
            optimizer=optimizer_state(optimizer),
            epoch=[value_of(variable) for variable in self._epoch_variables],
        )

    def _recalibrate(self) -> None:
        names = learning_layers(self._phases[-1], self._blocks, "train", self._model)
        layers = [self._model.get_layer(name) for name in names]
        norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
        with progress(f"recalibrate {len(norms)} BatchNorm layers"), self._batches.errors():
            recalibrate(self._trainee, norms, self._batches.dataset(len(self._phases), 0))


def _digest(weights: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    digest = hashlib.sha256()
    for path, array in weights.items():
        digest.update(f"{path}{array.shape}".encode() + array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


class _Steps(keras.callbacks.Callback):  # type: ignore[misc]
    """Moves the bars on, and stops at the first loss that is no number."""

    def __init__(self, bars: Sequence[Bar], size: int, where: str) -> None:
        super().__init__()
        self._bars, self._size, self._where = bars, size, where

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for bar in self._bars:
            bar.advance(self._size)
        if not math.isfinite(logs["loss"]):
            raise diverged(self._where, f"loss {logs['loss']}")
