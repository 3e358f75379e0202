"""Quantization-aware training: the weights of a model adapt to the rounding of an int8 network.

The float model is the teacher, see `export.distillation`; ranges of activations are measured before the first step.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.console import progress, quiet_tensorflow, swallowed_output
from edgetl.errors import ArtifactError, ConfigError
from edgetl.outputs import OutputSpec
from export import bridge, distillation, quantizable, schemes
from export.distillation import CLASSES, Distilling, Photos, Record, Student, few, key_of
from export.fake_quantization import Folded, measured_ranges, weights_of, wrapped
from export.flatbuffer import operators
from export.normalization import integer_form
from export.quantizable import Plan, Range, lowered, pixel_range
from export.quantize import Quantized, check
from export.saved_model import frozen_saved_model, to_tflite

quiet_tensorflow()

if TYPE_CHECKING:
    import keras

_CHECKED_IMAGES = 4
_MEASURED_PHOTOS = 200
"""Of the training photos, at most, that ranges are measured on where no calibration photos are given."""
Preserve = Literal["", "sparsity", "clusters"]
MAX_CLUSTERS = 256
"""A kernel with more distinct values was not clustered."""


@dataclass(frozen=True)
class QatSettings(Distilling):
    """How a model is trained under fake quantization."""

    learning_rate: float = 2e-5
    """Of the first step, Adam units; it falls to zero along a cosine."""


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
    outputs: OutputSpec = CLASSES,
    span: Range | None = None,
    preserve: Preserve = "",
    calibration: Sequence[NDArray[np.uint8]] | None = None,
    checkpoint: Path | None = None,
) -> Trained:
    """Train a model under fake quantization.

    Args:
        model: as `export.normalization.integer_form` gives it; stays as it is.
        scale: what it expects of raw pixels.
        offset: likewise.
        photos: of the training split.
        settings: epochs, rates.
        outputs: what the model says.
        span: values that the output must be able to tell; None where it is made of scores.
        preserve: keep weights that are zero at zero (`sparsity`), or equal weights of a layer equal (`clusters`).
        calibration: raw pixels, each [h, w, 3], that the ranges of activations are measured on; None takes the first
            photos of the training's first epoch.
        checkpoint: file that is written after each epoch. One of the same training is gone on from, or, when that
            was finished, is the result; any other is written over.

    Raises:
        ConfigError: a setting is out of range, there is nothing to calibrate on, or the loss is no longer finite.
        ArtifactError: layers stand in the way, the tf_keras form differs, nothing is there to preserve.
        DatasetError: no photo can be read; or what `Photos.batches` raises.
    """
    settings.refuse()
    if calibration is not None and not len(calibration):
        raise ConfigError("calibration: no photo to measure ranges on. Give at least 1, or None for training photos")
    legacy = bridge.rebuilt(model)
    if found := quantizable.obstacles(legacy):
        raise ArtifactError(
            f"{model.name}: quantization-aware training can't give an integer network: {', '.join(found)}. "
            "Choose a scheme without training, or another backbone"
        )
    images = few(photos, _CHECKED_IMAGES).astype(np.float32) * np.float32(scale) + np.float32(offset)
    bridge.check_equal(model, legacy, images, outputs.units)
    return _Training(legacy, scale, offset, photos, settings, outputs, span, preserve, calibration).run(checkpoint)


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


def quantized(
    model: "keras.Model",
    photos: Photos,
    settings: QatSettings,
    *,
    outputs: OutputSpec = CLASSES,
    span: Range | None = None,
    preserve: Preserve = "",
    calibration: Sequence[NDArray[np.uint8]] | None = None,
    checkpoint: Path | None = None,
) -> Quantized:
    """Train a model that takes raw pixels, and convert it to integers only.

    Args:
        model: raw pixels in; stays as it is.
        photos: as for `train`, like all that follows.
        settings: epochs, rates.
        outputs: what the model says.
        span: values that it must be able to tell.
        preserve: what a compressed model must not lose.
        calibration: raw pixels that the ranges of activations are measured on.
        checkpoint: file that is written after each epoch.

    Raises:
        EdgetlError: what `train` and `to_int8` raise.
    """
    form, scale, offset = integer_form(model)
    trained = train(
        form,
        scale,
        offset,
        photos,
        settings,
        outputs=outputs,
        span=span,
        preserve=preserve,
        calibration=calibration,
        checkpoint=checkpoint,
    )
    tflite = to_int8(trained)
    return Quantized(tflite, operators(tflite))


class _Training:
    """One training; `run` may go on where a killed process stopped."""

    def __init__(
        self,
        teacher: Any,
        scale: float,
        offset: float,
        photos: Photos,
        settings: QatSettings,
        outputs: OutputSpec,
        span: Range | None,
        preserve: Preserve,
        calibration: Sequence[NDArray[np.uint8]] | None,
    ) -> None:
        self.teacher, self.photos, self.settings, self.preserve = teacher, photos, settings, preserve
        self.scale, self.offset, self.outputs, self.calibration = scale, offset, outputs, calibration
        self.pixels, self.zero = pixel_range(scale, offset)
        self.plain = lowered(teacher)
        self.plan = Plan.of(self.plain, span)

    def run(self, path: Path | None) -> Trained:
        names = [op.name for op in self.plan.ops]
        photos = (self.photos.count, self.photos.digest, self._calibration_digest())
        contract = (self.outputs.task, self.outputs.units, self.plan.span)
        key = key_of(self.teacher, self.settings, self.scale, self.offset, self.preserve, *photos, names, *contract)
        record = Record(path, key)
        measured = record.stored.state["ranges"] if record.stored else self._measured()
        ranges: dict[str, Range] = {name: (float(low), float(high)) for name, (low, high) in measured.items()}
        model = wrapped(self.plain, self.plan, ranges)
        student = Student(
            "quantization-aware training",
            model,
            # What the device computes of a raw pixel: its zero point is a whole number.
            received=lambda raw: model((raw - float(self.zero)) * self.scale, training=False),
            expected=lambda raw: self.teacher(raw * self.scale + self.offset, training=False),
            outputs=self.outputs,
            after_step=_Kept(model, self.preserve).restore,
        )
        losses = distillation.train(student, self.photos, self.settings, record, {"ranges": ranges})
        for name, variables in weights_of(model).items():
            self.plain.get_layer(name).set_weights([variable.numpy() for variable in variables])
        return Trained(self.plain, ranges, self.scale, self.offset, losses)

    def _calibration_digest(self) -> str:
        if self.calibration is None:
            return ""
        digest = hashlib.sha256()
        for pixels in self.calibration:
            digest.update(pixels.tobytes())
        return digest.hexdigest()

    def _calibration_batches(self) -> Iterator[NDArray[np.uint8]]:
        size = self.settings.batch_size
        if self.calibration is None:
            yield from (pixels for pixels, _ in islice(self.photos.batches(0), -(-_MEASURED_PHOTOS // size)))
        else:
            for start in range(0, len(self.calibration), size):
                yield np.stack(self.calibration[start : start + size])

    def _measured(self) -> dict[str, Range]:
        def images() -> Iterator[NDArray[np.float32]]:
            for pixels in self._calibration_batches():
                if len(pixels):
                    yield (pixels.astype(np.float32) - np.float32(self.zero)) * np.float32(self.scale)

        with progress("measure ranges"):
            return measured_ranges(self.plain, self.plan, self.pixels, images, self.outputs)


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
