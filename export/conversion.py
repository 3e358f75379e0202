"""What convert and optimize share: a run's model and calibration photos become artifacts under RUN/export."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetl import data
from edgetl.console import log
from edgetl.errors import ArtifactError, ConfigError, DatasetError
from edgetl.outputs import OutputSpec
from edgetl.rundir import RunDir, installed_versions, open_run, sealed, sha256_of, write_atomic
from export import metadata
from export.artifacts import Artifact
from export.calibrate import Range
from export.choices import Choices, recorded
from export.schemes import Scheme

if TYPE_CHECKING:
    import keras

    from export.distillation import Distilling, StreamedPhotos
    from export.quantize import Quantized, Quantizer

D = TypeVar("D", bound="Distilling")
COARSE = 0.25
"""Deviations of a target; see `_check_step`."""
MEASURED = (".layers.csv", ".layers.png")
"""What `export.layers` writes beside an artifact, about that very file."""
PRESERVED: dict[str, Literal["", "sparsity", "clusters"]] = {"": "", "pruned": "sparsity", "clustered": "clusters"}
"""What quantization-aware training keeps of a model that was compressed before."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """What goes into artifacts besides the model: photos, and how it is trained on where a scheme asks for it."""

    calibration_images: int = 200
    """Photos of the training split, stratified by class, on which the ranges of int8 activations are measured."""
    seed: int = 0
    """Chooses the calibration photos, and everything random in training."""
    epochs: int = 3
    """Of quantization-aware training (qat_), of pruning (pruned_) and of clustering (clustered_), each."""
    learning_rate: float = 0.0
    """Of these, Adam units, falling to zero along a cosine; 0 takes what was found to suit each."""
    sparsity: float = 0.5
    """Share of zeros that pruning leaves in each kernel, above 0 and below 1."""
    clusters: int = 16
    """Distinct values that clustering leaves in each kernel, 2 to 256."""
    data: str = ""
    """Where the photos are now, if they were moved since the run; with --model, the photos."""
    model: Path | None = None
    """A Keras model that edgetl did not train, .keras or .h5: RUN is made of it and --data first."""


def check(settings: Making) -> None:
    """Refuse settings that can't work, before anything heavy is loaded.

    Raises:
        ConfigError: names the option, what it got, and what it takes.
    """
    if settings.calibration_images < 1:
        raise ConfigError(f"--calibration-images {settings.calibration_images}: int8 needs at least 1 photo")
    if settings.epochs < 1:
        raise ConfigError(f"--epochs {settings.epochs}: training needs at least 1")
    if not 0 <= settings.learning_rate < math.inf:
        raise ConfigError(f"--learning-rate {settings.learning_rate}: must not be negative; 0 takes what suits")
    if not 0 < settings.sparsity < 1:
        raise ConfigError(f"--sparsity {settings.sparsity}: a share above 0 and below 1 is needed, such as 0.5")
    if not 2 <= settings.clusters <= 256:
        raise ConfigError(f"--clusters {settings.clusters}: 2 to 256 distinct values, such as 16")


def opened(path: Path, settings: Making) -> RunDir:
    """Open a run, or make it of a foreign model, if the settings can work.

    Raises:
        ConfigError: they can't.
        EdgetlError: no such run; or the model breaks the contract, see `export.adopt`.
    """
    check(settings)
    if settings.model is None:
        return open_run(path)
    from export.adopt import adopt

    return adopt(settings.model, settings.data, path)


class Conversion:
    """One run on its way to artifacts; what several schemes need is loaded and computed once."""

    def __init__(self, run: RunDir, settings: Making) -> None:
        """Read the calibration photos, before anything heavy is loaded.

        Args:
            run: as `opened` gives it.
            settings: as `opened` has checked them.

        Raises:
            ConfigError: fewer calibration images than classes asked for.
            DatasetError: the photos are no longer there, were changed, or more than a few can't be read.
        """
        self.run = run
        self.settings = settings
        self.splits = run.splits(settings.data)
        self.chosen, self.photos = calibration_photos(run, self.splits.train, settings)
        self._quantizers: dict[str, Quantizer] = {}
        self._models: dict[str, keras.Model] = {}

    @cached_property
    def model(self) -> "keras.Model":
        """The run's Keras model: raw pixels in."""
        return self.run.load_model()

    def compressed(self, compression: str) -> "keras.Model":
        """The run's model, pruned or clustered if a scheme asks for that.

        Raises:
            ArtifactError: the model can't be rebuilt for it.
            ConfigError: settings out of range.
        """
        if not compression:
            return self.model
        if compression not in self._models:
            from export import sparsify

            kept: Any = {"outputs": self.run.outputs, "checkpoint": self._checkpoint(compression)}
            if compression == "pruned":
                pruning = self._training(sparsify.PruningSettings(sparsity=self.settings.sparsity))
                found = sparsify.pruned(self.model, self._train(pruning), pruning, **kept)
            else:
                clustering = self._training(sparsify.ClusteringSettings(clusters=self.settings.clusters))
                found = sparsify.clustered(self.model, self._train(clustering), clustering, **kept)
            self._models[compression] = found
        return self._models[compression]

    def quantizer(self, scheme: Scheme) -> "Quantizer":
        """What quantizes the model of a scheme without further training."""
        from export.quantize import Quantizer

        key = scheme.compression
        if key not in self._quantizers:
            # Rounding moves a few weights of a cluster to the next step, and then it compresses less well.
            self._quantizers[key] = Quantizer(
                self.compressed(key),
                self.photos,
                units=self.run.outputs.units,
                span=span_of(self.splits.train),
                rounding=key != "clustered",
            )
        return self._quantizers[key]

    def _trained(self, scheme: Scheme) -> "Quantized":
        """Train with quantization taking part."""
        from export import qat

        settings = self._training(qat.QatSettings())
        return qat.quantized(
            self.compressed(scheme.compression),
            self._train(settings),
            settings,
            outputs=self.run.outputs,
            span=span_of(self.splits.train),
            preserve=PRESERVED[scheme.compression],
            calibration=self.photos,
            checkpoint=self._checkpoint(scheme.name),
        )

    def _training(self, usual: D) -> D:
        """Settings of a training, with the knobs of the command in them."""
        rate = self.settings.learning_rate or usual.learning_rate
        return dataclasses.replace(usual, epochs=self.settings.epochs, learning_rate=rate, seed=self.settings.seed)

    def _train(self, settings: "Distilling") -> "StreamedPhotos":
        from export.distillation import StreamedPhotos

        hashes = "".join(example.id + self.run.photo_sha256[example.id] for example in self.splits.train)
        return StreamedPhotos(
            self.splits.train,
            self.run.inputs,
            settings,
            check=self.run.refuse_changed,
            digest=hashlib.sha256(hashes.encode()).hexdigest(),
        )

    def _checkpoint(self, name: str) -> Path:
        self.run.export_path.mkdir(exist_ok=True)
        return self.run.export_path / f"{name}.checkpoint.npz"

    def make(self, scheme: Scheme, choices: Choices) -> "Quantized":
        """Convert under a scheme; the result has passed its checks.

        Raises:
            ConfigError: choices that the scheme does not know.
            ArtifactError: the model has no such form.
        """
        made = self._trained(scheme) if scheme.trained else self.quantizer(scheme).quantize(scheme, choices)
        _check_step(made.tflite, scheme, self.run.outputs)
        return made

    def described(self, scheme: Scheme, made: "Quantized") -> bytes:
        """The file that is written: what was made, with its metadata.

        Raises:
            ArtifactError: an output name that a file of labels can't hold.
        """
        return metadata.attach(made.tflite, metadata.describe(self.run, scheme.name))

    def recorded(self, scheme: Scheme, choices: Choices) -> dict[str, str]:
        """What was chosen within a scheme and made a difference, for the artifact's description."""
        found, settings = recorded(scheme, choices), self.settings
        if scheme.trained or scheme.compression:
            rate = f"{settings.learning_rate:g}" if settings.learning_rate else "usual"
            found |= {"epochs": str(settings.epochs), "learning_rate": rate}
        if scheme.compression == "pruned":
            found["sparsity"] = f"{settings.sparsity:g}"
        elif scheme.compression == "clustered":
            found["clusters"] = str(settings.clusters)
        return found

    def write(self, scheme: Scheme, made: "Quantized", choices: Choices) -> Artifact:
        """Add the metadata and write RUN/export/<scheme>.tflite and .json.

        Args:
            scheme: the artifact's name.
            made: what was made under it.
            choices: with which it was made.

        Raises:
            ArtifactError: an output name that a file of labels can't hold.
        """
        from export.flatbuffer import border

        tflite = self.described(scheme, made)
        first, last = border(tflite)
        self.run.export_path.mkdir(exist_ok=True)
        path = self.run.export_path / f"{scheme.name}.tflite"
        artifact = Artifact(
            scheme=scheme.name,
            path=path.name,
            sha256=hashlib.sha256(tflite).hexdigest(),
            size_bytes=len(tflite),
            inputs=self.run.inputs,
            input_type=first.type.lower(),
            input_scale=first.scale[0] if first.scale else 0.0,
            input_zero_point=first.zero_point[0] if first.scale else 0,
            outputs=self.run.outputs,
            output_type=last.type.lower(),
            output_scale=last.scale[0] if last.scale else 0.0,
            output_zero_point=last.zero_point[0] if last.scale else 0,
            operators=len(made.operators),
            run_sha256=self.run.model_sha256,
            calibration=tuple(e.id for e in self.chosen) if scheme.needs_calibration else (),
            settings=self.recorded(scheme, choices),
            versions=installed_versions(),
        )
        if not path.is_file() or sha256_of(path) != artifact.sha256:
            for measured in MEASURED:  # of the file that is replaced
                path.with_suffix(measured).unlink(missing_ok=True)
        # The JSON goes first: a reader that finds a new file beside an old description sees the hashes differ.
        write_atomic(path.with_suffix(".json"), sealed(artifact))
        write_atomic(path, tflite)
        return artifact


def span_of(train: data.Examples) -> Range | None:
    """Smallest and largest value of any target: what an integer output must be able to tell; None for scores.

    A network says on other photos what it has not said on those that ranges are measured on, and an integer output
    cuts off what is beyond its range. On elpv's probability of a defect, 20 calibration photos alone cost R2 up to 0.2,
    with what was trained on never more than 0.0005; a margin around that gains nothing, for no truth lies there. All
    targets share one range, as they share one tensor.
    """
    return (float(train.labels.min()), float(train.labels.max())) if train.task == "regression" else None


def _check_step(tflite: bytes, scheme: Scheme, outputs: OutputSpec) -> None:
    """Refuse values in steps so coarse that they tell nothing, and warn of those that cost accuracy.

    Rounding to steps adds a squared error of step^2 / 12: R2 falls by 0.083 where a step is a deviation, by half a
    point where it is a quarter of one.

    Raises:
        ArtifactError: one step is more than the deviation of a target.
    """
    from export.flatbuffer import border

    _, last = border(tflite)
    if outputs.task != "regression" or not last.scale:
        return
    step, (least, name) = last.scale[0], min(zip(outputs.deviations, outputs.names, strict=True))
    told = f"{scheme.name}: its output has one step for all values, {step:.3g}, {step / least:.2g} deviations of {name}"
    if step > least:
        raise ArtifactError(
            f"{told}. Use float16 or dynamic_int8; or train again with targets whose spreads are alike and about 0"
        )
    if step > COARSE * least:
        log.warning("%s; R2 falls by about %.3f for that alone", told, (step / least) ** 2 / 12)


def calibration_photos(
    run: RunDir, train: data.Examples, settings: Making
) -> tuple[data.Examples, Sequence[NDArray[np.uint8]]]:
    """Choose and decode photos of the training split, stratified by class.

    Returns:
        The photos that could be read, and their pixels.

    Raises:
        DatasetError: the photos are no longer there, were changed, or more than a few can't be read.
    """
    chosen = data.stratified_subset(train, min(settings.calibration_images, len(train)), settings.seed)
    found, images = read_photos(
        run,
        chosen,
        nothing=f"{train.root}: no calibration images could be read. Restore the photos of the training split",
    )
    if len(np.unique(found.labels, axis=0)) == 1:
        log.warning("all %d calibration photos have one label: ranges may not fit the others", len(found))
    return found, images


def read_photos(
    run: RunDir, examples: data.Examples, *, nothing: str = ""
) -> tuple[data.Examples, list[NDArray[np.uint8]]]:
    """Decode photos, checked against the run; a few that can't be read are left out.

    Args:
        run: whose photos they are.
        examples: which ones, at least one.
        nothing: what to say where not one can be read; by default how many, and why.

    Returns:
        The photos that could be read, and their pixels, uint8 [h, w, 3] each, in the order of `examples`.

    Raises:
        DatasetError: the photos are no longer there, were changed, or more than a few can't be read.
    """
    batches = []
    for batch in data.decoded(examples, run.inputs):
        run.refuse_changed(examples.select(batch.indices), batch.sha256)
        batches.append(batch)
    images = [pixels for batch in batches for pixels in batch.pixels]
    if nothing and not images:
        raise DatasetError(nothing)
    data.check_unreadable([failure for batch in batches for failure in batch.unreadable], len(examples))
    return examples.select(np.concatenate([batch.indices for batch in batches])), images
