"""Quantization-aware training: the weights of a model adapt to the rounding of an int8 network.

The float model is the teacher: training pulls the outputs of the rounded network to those of the float one on training
photos (Hinton et al. 2015, arXiv 1503.02531), so no label is needed and nothing is learned that the model did not know.
Batch normalization keeps its statistics; ranges of activations are measured before the first step.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl import checkpoints, data
from edgetl.checkpoints import Checkpoint, grouped
from edgetl.console import log, progress, quiet_tensorflow, swallowed_output
from edgetl.errors import ArtifactError, ConfigError
from edgetl.inputs import InputSpec
from export import bridge, quantizable, schemes
from export.fake_quantization import LEAST, Folded, distance, measured_ranges, weights_of, wrapped
from export.quantizable import Plan, Range, lowered, pixel_range
from export.quantize import check
from export.saved_model import frozen_saved_model, to_tflite

quiet_tensorflow()

if TYPE_CHECKING:
    import keras

_CHECKED_IMAGES = 4
Preserve = Literal["", "sparsity", "clusters"]
MAX_CLUSTERS = 256
"""A kernel with more distinct values was not clustered."""


@dataclass(frozen=True)
class QatSettings:
    """How a model is trained under fake quantization."""

    epochs: int = 3
    """Times that each photo is seen."""
    learning_rate: float = 2e-5
    """Of the first step, Adam units; it falls to zero along a cosine."""
    batch_size: int = 16
    """Photos per step."""
    label_weight: float = 0.0
    """Share of the labels' cross-entropy in the loss, 0..1; the rest is the distance to the float model's outputs."""
    calibration_photos: int = 200
    """Photos, at most, that the ranges of activations are measured on."""
    seed: int = 0
    """Order of the photos."""


class Photos(Protocol):
    """Training photos in batches."""

    count: int
    """Photos per epoch."""

    def batches(self, epoch: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Pixels [n, h, w, 3] and labels [n] in the order of one epoch, the same each time it is asked for."""
        ...


@dataclass(frozen=True)
class StreamedPhotos:
    """Photos of a split, decoded when they are needed."""

    examples: data.Examples
    inputs: InputSpec
    settings: QatSettings

    @property
    def count(self) -> int:
        """Photos per epoch."""
        return len(self.examples)

    def batches(self, epoch: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """See `Photos`; what can't be read is left out."""
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.examples))
        shuffled = self.examples.select(order)
        for batch in data.decoded(shuffled, self.inputs, batch_size=self.settings.batch_size):
            yield batch.pixels, shuffled.labels[batch.indices]


@dataclass(frozen=True, eq=False)
class Trained:
    """A model that was trained under fake quantization."""

    model: Any
    """tf_keras, float, plain layers, without fake quantization."""
    ranges: dict[str, Range]
    """Layer -> range of its int8 output."""
    scale: float
    """What the input expects of raw pixels."""
    offset: float
    losses: tuple[float, ...]
    """Mean loss of each epoch."""


def obstacles(model: "keras.Model") -> tuple[str, ...]:
    """Name the layers that stand in the way of an integer network, before anything is trained.

    Args:
        model: as `export.normalization.integer_form` gives it.

    Returns:
        Each as `name (class: reason)`; empty when the model can be trained.
    """
    return bridge.obstacles(model) or quantizable.obstacles(bridge.rebuilt(model))


def train(
    model: "keras.Model",
    scale: float,
    offset: float,
    photos: Photos,
    settings: QatSettings,
    *,
    preserve: Preserve = "",
    checkpoint: Path | None = None,
) -> Trained:
    """Train a model under fake quantization.

    Args:
        model: as `export.normalization.integer_form` gives it; stays as it is.
        scale: what it expects of raw pixels.
        offset: likewise.
        photos: of the training split.
        settings: epochs, rates.
        preserve: keep weights that are zero at zero (`sparsity`), or equal weights of a layer equal (`clusters`).
        checkpoint: file that is written after each epoch. One of the same training is gone on from, or, when that
            was finished, is the result; any other is written over.

    Raises:
        ConfigError: a setting is out of range, or the loss is no longer finite.
        ArtifactError: layers stand in the way, the tf_keras form differs, nothing is there to preserve.
    """
    _check(settings)
    legacy = bridge.rebuilt(model)
    if found := quantizable.obstacles(legacy):
        raise ArtifactError(
            f"{model.name}: quantization-aware training can't give an integer network: {', '.join(found)}. "
            "Choose a scheme without training, or another backbone"
        )
    few = next(iter(photos.batches(0)))[0][:_CHECKED_IMAGES]
    bridge.check_equal(model, legacy, few.astype(np.float32) * np.float32(scale) + np.float32(offset))
    return _Training(legacy, scale, offset, photos, settings, preserve).run(checkpoint)


def to_int8(trained: Trained, io: Literal["uint8", "int8"] = "uint8") -> bytes:
    """Convert a trained model to integers only.

    Args:
        trained: from `train`.
        io: element type of input and output.

    Raises:
        ArtifactError: the converter refuses the model, or the result breaks the contract of integer schemes.
    """
    import tensorflow as tf

    def configure(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(io)

    folded = Folded(trained.model, Plan.of(trained.model), trained.ranges)
    with swallowed_output(), frozen_saved_model(folded) as saved_model:
        tflite = to_tflite(saved_model, configure)
    check(tflite, dataclasses.replace(schemes.get("qat_int8"), io=io), trained.scale, trained.offset)
    return tflite


def _check(settings: QatSettings) -> None:
    if settings.epochs < 1 or settings.batch_size < 1 or settings.calibration_photos < 1:
        raise ConfigError(
            f"epochs={settings.epochs}, batch_size={settings.batch_size}, calibration_photos="
            f"{settings.calibration_photos}: quantization-aware training needs at least 1 of each"
        )
    if not settings.learning_rate > 0 or not 0 <= settings.label_weight <= 1:
        raise ConfigError(
            f"learning_rate={settings.learning_rate}, label_weight={settings.label_weight}: "
            "the rate must be above 0, the weight within 0..1"
        )


class _Training:
    """One training; `run` may go on where a killed process stopped."""

    def __init__(
        self, teacher: Any, scale: float, offset: float, photos: Photos, settings: QatSettings, preserve: Preserve
    ) -> None:
        self.teacher, self.photos, self.settings, self.preserve = teacher, photos, settings, preserve
        self.scale, self.offset = scale, offset
        self.pixels, self.zero = pixel_range(scale, offset)
        self.plain = lowered(teacher)
        self.plan = Plan.of(self.plain)
        self.losses: list[float] = []

    def run(self, path: Path | None) -> Trained:
        stored = self._load(path) if path else None
        ranges = stored.state["ranges"] if stored else self._measured()
        ranges = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
        student = wrapped(self.plain, self.plan, ranges)
        kernels = _Kept(student, self.preserve)
        optimizer = self._optimizer()
        optimizer.build(student.trainable_variables)
        if stored:
            for variable, value in zip(student.weights + optimizer.variables, stored.group("values"), strict=True):
                variable.assign(value)
            self.losses = list(stored.state["losses"])
        self._epochs(student, optimizer, kernels, ranges, path)
        for name, variables in weights_of(student).items():
            self.plain.get_layer(name).set_weights([variable.numpy() for variable in variables])
        return Trained(self.plain, ranges, self.scale, self.offset, tuple(self.losses))

    def _epochs(
        self, student: Any, optimizer: Any, kernels: "_Kept", ranges: dict[str, Range], path: Path | None
    ) -> None:
        step = self._step(student, optimizer)
        done = len(self.losses)
        count = self.photos.count
        with progress("quantization-aware training", self.settings.epochs * count, done * count) as bar:
            for epoch in range(done, self.settings.epochs):
                total, seen = 0.0, 0
                for pixels, labels in self.photos.batches(epoch):
                    if not len(pixels):
                        continue
                    loss = float(step(pixels, labels))
                    self._refuse_infinite(loss, epoch)
                    kernels.restore()
                    total, seen = total + loss * len(pixels), seen + len(pixels)
                    bar.advance(len(pixels))
                # The loss is that before a step; the last step of all shows in the weights only.
                self._refuse_infinite(sum(float(np.sum(np.abs(x.numpy()))) for x in student.trainable_variables), epoch)
                self.losses.append(total / max(seen, 1))
                bar.say(f"epoch {epoch + 1}: loss {self.losses[-1]:.5f}")
                if path:
                    values = [variable.numpy() for variable in student.weights + optimizer.variables]
                    state = {"key": self._key, "ranges": ranges, "losses": self.losses}
                    checkpoints.save(path, Checkpoint(state, grouped(values=values)))

    def _refuse_infinite(self, value: float, epoch: int) -> None:
        if not np.isfinite(value):
            raise ConfigError(
                f"learning_rate={self.settings.learning_rate}: the loss of quantization-aware training "
                f"became {value} in epoch {epoch + 1}. Choose a smaller one"
            )

    def _step(self, student: Any, optimizer: Any) -> Any:
        import tensorflow as tf

        variables = student.trainable_variables
        weight = self.settings.label_weight

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def step(pixels: Any, labels: Any) -> Any:
            raw = tf.cast(pixels, tf.float32)
            expected = self.teacher(raw * self.scale + self.offset, training=False)
            with tf.GradientTape() as tape:
                # What the device computes of a raw pixel: its zero point is a whole number.
                received = student((raw - float(self.zero)) * self.scale, training=False)
                of_label = tf.gather(received, labels, axis=1, batch_dims=1)
                wrong = -tf.math.log(tf.maximum(of_label, LEAST))
                loss = tf.reduce_mean((1 - weight) * distance(expected, received) + weight * wrong)
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        return step

    def _optimizer(self) -> Any:
        optimizers = bridge.legacy_keras().optimizers
        steps = self.settings.epochs * -(-self.photos.count // self.settings.batch_size)
        return optimizers.Adam(optimizers.schedules.CosineDecay(self.settings.learning_rate, steps))

    def _measured(self) -> dict[str, Range]:
        batches = -(-self.settings.calibration_photos // self.settings.batch_size)

        def images() -> Iterator[NDArray[np.float32]]:
            for pixels, _ in islice(self.photos.batches(0), batches):
                if len(pixels):
                    yield (pixels.astype(np.float32) - np.float32(self.zero)) * np.float32(self.scale)

        with progress("measure ranges"):
            return measured_ranges(self.plain, self.plan, self.pixels, images)

    @property
    def _key(self) -> str:
        """Tells trainings apart: what is trained, and how."""
        digest = hashlib.sha256()
        for weight in self.teacher.get_weights():
            digest.update(weight.tobytes())
        settings = [dataclasses.asdict(self.settings), self.scale, self.offset, self.preserve, self.photos.count]
        digest.update(json.dumps([settings, [op.name for op in self.plan.ops]]).encode())
        return digest.hexdigest()

    def _load(self, path: Path) -> Checkpoint | None:
        stored = checkpoints.load(path)
        if stored and stored.state.get("key") != self._key:
            log.info("%s belongs to another training; it is written over", path)
            return None
        if stored and len(stored.state["losses"]) > 0:
            log.info("%s: %d of %d epochs are done", path, len(stored.state["losses"]), self.settings.epochs)
        return stored


class _Kept:
    """What a compressed model must not lose in training: zeros, or equal weights."""

    def __init__(self, student: Any, preserve: Preserve) -> None:
        self._kernels: Sequence[tuple[Any, Any]] = ()
        kernels = [
            variables[0]
            for wrapper in student.layers
            if getattr(getattr(wrapper, "quantize_config", None), "kernel", "")
            for variables in [weights_of(student)[wrapper.layer.name]]
        ]
        if preserve == "sparsity":
            masks = [(kernel, kernel.numpy() != 0) for kernel in kernels]
            self._kernels = [(kernel, mask) for kernel, mask in masks if not mask.all()]
        elif preserve == "clusters":
            found = [(kernel, np.unique(kernel.numpy(), return_inverse=True)) for kernel in kernels]
            self._kernels = [(k, inverse) for k, (values, inverse) in found if len(values) <= MAX_CLUSTERS]
        if preserve and not self._kernels:
            raise ArtifactError(f"no weights to keep: the model has no {preserve}. Prune or cluster it first")
        self._preserve = preserve

    def restore(self) -> None:
        """Bring kernels back after a step."""
        for kernel, kept in self._kernels:
            values = kernel.numpy()
            if self._preserve == "sparsity":
                kernel.assign(values * kept)
            else:  # the members of a cluster move together, by the mean of what each would
                places = kept.ravel()
                means = np.bincount(places, values.ravel().astype(np.float64)) / np.bincount(places)
                kernel.assign(means[places].reshape(values.shape))
