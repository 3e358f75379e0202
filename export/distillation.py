"""Training towards a teacher: a network that is rounded, pruned or clustered learns to give what it gave before.

The float model is the teacher (Hinton et al. 2015, arXiv 1503.02531), so no label is needed and nothing is learned
that it did not know. Batch normalization keeps its statistics: the network is called in inference mode throughout.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl import checkpoints, data
from edgetl.checkpoints import Checkpoint, grouped
from edgetl.console import log, progress, quiet_tensorflow
from edgetl.errors import ConfigError, DatasetError
from edgetl.inputs import InputSpec
from edgetl.outputs import OutputSpec
from export.bridge import legacy_keras

quiet_tensorflow()

CLASSES = OutputSpec("classification", ())
"""What outputs are where nothing else is said: probabilities of classes, whatever their names."""
LEAST = 1e-7
"""Probabilities below it count as this one in distances."""


@dataclass(frozen=True)
class Distilling:
    """How a network is trained towards the float one."""

    epochs: int = 3
    """Times that each photo is seen."""
    learning_rate: float = 1e-4
    """Of the first step, Adam units; it falls to zero along a cosine."""
    batch_size: int = 16
    """Photos per step."""
    label_weight: float = 0.0
    """Share of the labels' own loss in the loss, 0..1; the rest is the distance to the float model's outputs."""
    seed: int = 0
    """Order of the photos."""

    def steps(self, photos: int) -> int:
        """Steps of all epochs over so many photos."""
        return self.epochs * -(-photos // self.batch_size)

    def refuse(self) -> None:
        """Refuse settings that can't work.

        Raises:
            ConfigError: names them.
        """
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(f"epochs={self.epochs}, batch_size={self.batch_size}: training needs at least 1 of each")
        if not self.learning_rate > 0 or not 0 <= self.label_weight <= 1:
            raise ConfigError(
                f"learning_rate={self.learning_rate}, label_weight={self.label_weight}: "
                "the rate must be above 0, the weight within 0..1"
            )


class Photos(Protocol):
    """Training photos in batches."""

    @property
    def count(self) -> int:
        """Photos per epoch."""
        ...

    @property
    def digest(self) -> str:
        """Hash over which photos these are, of which content; empty where it makes no difference."""
        ...

    def batches(self, epoch: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[Any]]]:
        """Pixels [n, h, w, 3] and labels, as `Examples.labels`, in the order of one epoch: each time the same."""
        ...


@dataclass(frozen=True)
class StreamedPhotos:
    """Photos of a split, decoded when they are needed."""

    examples: data.Examples
    inputs: InputSpec
    settings: Distilling
    check: Callable[[data.Examples, Sequence[str]], None] | None = None
    """Refuses photos by the sha256 of their bytes as just read: `RunDir.refuse_changed`."""
    digest: str = ""
    """Hash over ids and content of the examples: a checkpoint of other photos is not gone on from."""

    @property
    def count(self) -> int:
        """Photos per epoch."""
        return len(self.examples)

    def batches(self, epoch: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[Any]]]:
        """See `Photos`; a few that can't be read are left out, and named when the epoch ends.

        Raises:
            DatasetError: `check` refuses a photo; or, at the end of the epoch, more than a few can't be read.
        """
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.examples))
        shuffled = self.examples.select(order)
        failures: list[data.Unreadable] = []
        for batch in data.decoded(shuffled, self.inputs, batch_size=self.settings.batch_size):
            if self.check:
                self.check(shuffled.select(batch.indices), batch.sha256)
            failures += batch.unreadable
            yield batch.pixels, shuffled.labels[batch.indices]
        data.check_unreadable(failures, len(shuffled))


def few(photos: Photos, count: int) -> NDArray[np.uint8]:
    """Some photos to look at before training, [n, h, w, 3].

    Raises:
        DatasetError: none can be read.
    """
    for pixels, _ in photos.batches(0):
        if len(pixels):
            return pixels[:count]
    raise DatasetError("no photo of the training split could be read: nothing to train on. Restore the photos")


@dataclass(frozen=True, eq=False)
class Student:
    """What is trained, and towards what."""

    title: str
    """What training does to it, for progress and errors."""
    model: Any
    """tf_keras; all its trainable weights are trained, all its weights are in a checkpoint."""
    received: Callable[[Any], Any]
    """Raw pixels, float32 tensor [n, h, w, 3] -> its outputs, [n, k]."""
    expected: Callable[[Any], Any]
    """The same, of the teacher."""
    outputs: OutputSpec = CLASSES
    after_step: Callable[[], None] = lambda: None
    """Called when the weights have changed."""


@dataclass(frozen=True)
class Record:
    """The file that a training goes on from, and which training that is."""

    path: Path | None
    """None: nothing is kept."""
    key: str
    """From `key_of`."""

    @cached_property
    def stored(self) -> Checkpoint | None:
        """What an earlier process left of the same training."""
        found = checkpoints.load(self.path) if self.path else None
        if found and found.state.get("key") != self.key:
            log.info("%s belongs to another training; it is written over", self.path)
            return None
        if found:
            log.info("%s: %d epochs are done", self.path, len(found.state["losses"]))
        return found

    def save(self, losses: Sequence[float], values: Iterable[Any], facts: dict[str, Any]) -> None:
        """Write what is to be gone on from: variables, and facts as JSON holds them."""
        if self.path:
            state = {**facts, "key": self.key, "losses": list(losses)}
            checkpoints.save(self.path, Checkpoint(state, grouped(values=[value.numpy() for value in values])))


def key_of(model: Any, settings: Distilling, *more: Any) -> str:
    """Tell trainings apart: by the weights that they start from, and by everything else, as JSON holds it."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    digest.update(json.dumps([type(settings).__name__, dataclasses.asdict(settings), *more]).encode())
    return digest.hexdigest()


def train(
    student: Student, photos: Photos, settings: Distilling, record: Record, facts: dict[str, Any] | None = None
) -> tuple[float, ...]:
    """Train a student, or go on where a process was stopped.

    Args:
        student: its model is changed.
        photos: of the training split.
        settings: epochs, rates.
        record: written after each epoch; what it holds is not trained again.
        facts: what else belongs into the record.

    Returns:
        Mean loss of each epoch.

    Raises:
        ConfigError: the loss is no longer finite.
        DatasetError: no photo can be read; or what `Photos.batches` raises.
    """
    optimizer = _optimizer(settings, photos.count)
    optimizer.build(student.model.trainable_variables)
    kept = [*student.model.weights, *optimizer.variables]
    losses: list[float] = []
    if record.stored:
        for variable, value in zip(kept, record.stored.group("values"), strict=True):
            variable.assign(value)
        losses += record.stored.state["losses"]
    step = _step(student, optimizer, settings.label_weight)
    with progress(student.title, settings.epochs * photos.count, len(losses) * photos.count) as bar:
        for epoch in range(len(losses), settings.epochs):
            total, seen = 0.0, 0
            for pixels, labels in photos.batches(epoch):
                if not len(pixels):
                    continue
                loss = float(step(pixels, labels))
                _refuse_infinite(loss, student, settings, epoch)
                student.after_step()
                total, seen = total + loss * len(pixels), seen + len(pixels)
                bar.advance(len(pixels))
            if not seen:
                raise DatasetError("no photo of the training split could be read: nothing to train on")
            # The loss is that before a step; what the last step did shows in the weights only.
            with np.errstate(over="ignore"):
                size = sum(float(np.abs(x.numpy()).sum()) for x in student.model.trainable_variables)
            _refuse_infinite(size, student, settings, epoch)
            losses.append(total / seen)
            bar.say(f"{student.title}, epoch {epoch + 1}: loss {losses[-1]:.5f}")
            record.save(losses, kept, facts or {})
    return tuple(losses)


def distance(expected: Any, received: Any, outputs: OutputSpec = CLASSES) -> Any:
    """How far outputs are from those expected: what the loss of their task exceeds its least value by.

    Kullback-Leibler divergence, over the classes, or of each label summed; for numbers half the squared difference, in
    deviations, summed: the same divergence of normal distributions of that deviation.

    Args:
        expected: [n, k].
        received: [n, k].
        outputs: what they are.

    Returns:
        [n], at least 0.
    """
    import tensorflow as tf

    if outputs.task == "regression":
        return tf.reduce_sum(((expected - received) / tf.constant(outputs.units, tf.float32)) ** 2, axis=1) / 2
    if outputs.task == "multi_label":
        expected, received = (tf.stack([x, 1 - x], axis=-1) for x in (expected, received))
    expected, received = (tf.clip_by_value(x, LEAST, 1.0) for x in (expected, received))
    divergence = expected * (tf.math.log(expected) - tf.math.log(received))
    return tf.reduce_sum(divergence, axis=list(range(1, len(divergence.shape))))


def _refuse_infinite(value: float, student: Student, settings: Distilling, epoch: int) -> None:
    if not np.isfinite(value):
        raise ConfigError(
            f"learning_rate={settings.learning_rate}: the loss of {student.title} became {value} in epoch {epoch + 1}. "
            "Choose a smaller one"
        )


def _optimizer(settings: Distilling, photos: int) -> Any:
    optimizers = legacy_keras().optimizers
    return optimizers.Adam(optimizers.schedules.CosineDecay(settings.learning_rate, settings.steps(photos)))


def _step(student: Student, optimizer: Any, label_weight: float) -> Any:
    import tensorflow as tf

    variables, outputs = student.model.trainable_variables, student.outputs

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def step(pixels: Any, labels: Any) -> Any:
        raw = tf.cast(pixels, tf.float32)
        expected = student.expected(raw)
        with tf.GradientTape() as tape:
            received = student.received(raw)
            wrong = distance(_truth(labels, received, outputs), received, outputs)
            away = distance(expected, received, outputs)
            loss = tf.reduce_mean((1 - label_weight) * away + label_weight * wrong)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def _truth(labels: Any, received: Any, outputs: OutputSpec) -> Any:
    """What the outputs would be if the labels were all: the distance to it is the labels' own loss."""
    import tensorflow as tf

    if outputs.exclusive:
        return tf.one_hot(labels, tf.shape(received)[1])
    return tf.cast(labels, tf.float32)
