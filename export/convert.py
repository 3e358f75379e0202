"""A run's Keras model becomes .tflite files, one per scheme: `python -m export.convert RUN`.

Every artifact is converted and checked in memory before it gets its name.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

from edgetl import data
from edgetl.config import checked, command, to_json
from edgetl.console import progress, quiet_tensorflow, swallowed_output
from edgetl.errors import ConfigError, DatasetError
from edgetl.rundir import RunDir, installed_versions, open_run, write_atomic
from export import schemes
from export.artifacts import Artifact, device_errors
from export.schemes import SCHEMES, Scheme

if TYPE_CHECKING:
    from export.flatbuffer import Operator

PROG = "python -m export.convert"
CHECKED_IMAGES = 8
"""Calibration photos on which the float32 artifact is compared with Keras."""


@dataclass(frozen=True)
class Config:
    """Convert a run's model into .tflite artifacts, RUN/export/<scheme>.tflite."""

    run: Positional[Path]
    """Run directory (the --out of a recipe)."""
    schemes: tuple[str, ...] = tuple(SCHEMES)
    """Which artifacts to make."""
    calibration_images: int = 200
    """Photos of the training split, stratified by class, on which the ranges of int8 activations are measured."""
    seed: int = 0
    """Chooses the calibration photos."""
    data: str = ""
    """Where the photos are now, if they were moved since the run."""


def main(config: Config) -> tuple[Artifact, ...]:
    """Convert, check and write one artifact per scheme.

    Returns:
        What was written, in the order of `config.schemes`.

    Raises:
        ConfigError: unknown scheme, no calibration images asked for.
        RunError: the run is missing, unfinished or damaged.
        DatasetError: no calibration photo can be read.
        ArtifactError: a converted model breaks the contract of its scheme (see `export.quantize`).
    """
    config = checked(config)
    wanted = [schemes.get(name) for name in dict.fromkeys(config.schemes)]
    if not wanted:
        raise ConfigError(f"no scheme asked for. Choose from: {', '.join(schemes.SCHEMES)}")
    if config.calibration_images < 1:
        raise ConfigError(f"--calibration-images {config.calibration_images}: int8 needs at least 1 photo")
    run = open_run(config.run)
    chosen, images = calibration_images(run, config)
    quiet_tensorflow()
    import keras

    from export.quantize import Graph, check, check_equal, prepare, quantize
    from export.saved_model import frozen_saved_model

    model = keras.saving.load_model(run.model_path, compile=False)
    run.export_path.mkdir(exist_ok=True)
    written = []
    with progress("export", len(wanted)) as bar, device_errors():
        for scheme in wanted:
            with swallowed_output():
                part, scale, offset = prepare(model, scheme, images)
                with frozen_saved_model(part) as saved_model:
                    tflite = quantize(Graph(saved_model, scale, offset), scheme, images)
                found = check(tflite, scheme, scale, offset)
                if scheme.name == "float32":
                    check_equal(model, tflite, images[:CHECKED_IMAGES])
            written.append(_write(run, scheme, tflite, found, chosen))
            bar.advance()
    return tuple(written)


def calibration_images(run: RunDir, config: Config) -> tuple[data.Examples, list[NDArray[np.uint8]]]:
    """Choose and decode photos of the training split, stratified by class.

    Returns:
        The photos that could be read, and their pixels.

    Raises:
        DatasetError: the photos are no longer there, were changed, or more than a few can't be read.
    """
    train = run.splits(config.data).train
    chosen = data.stratified_subset(train, min(config.calibration_images, len(train)), config.seed)
    batches = list(data.decoded(chosen, run.inputs))
    for batch in batches:
        run.refuse_changed(chosen.select(batch.indices), batch.sha256)
    images = [pixels for batch in batches for pixels in batch.pixels]
    if not images:
        raise DatasetError(
            f"{train.root}: no calibration images could be read. Restore the photos of the training split"
        )
    data.check_unreadable([failure for batch in batches for failure in batch.unreadable], len(chosen))
    return chosen.select(np.concatenate([batch.indices for batch in batches])), images


def _write(
    run: RunDir, scheme: Scheme, tflite: bytes, found: tuple["Operator", ...], calibration: data.Examples
) -> Artifact:
    from export.device.interpreter import Model

    model = Model(tflite)
    path = run.export_path / f"{scheme.name}.tflite"
    artifact = Artifact(
        scheme=scheme.name,
        path=path.name,
        sha256=hashlib.sha256(tflite).hexdigest(),
        size_bytes=len(tflite),
        inputs=run.inputs,
        input_type=model.input.dtype,
        input_scale=model.input.scale,
        input_zero_point=model.input.zero_point,
        class_names=run.class_names,
        operators=len(found),
        run_sha256=run.model_sha256,
        calibration=tuple(e.id for e in calibration) if scheme.needs_calibration else (),
        versions=installed_versions(),
    )
    # The JSON goes first: a reader that finds a new file beside an old description sees the hashes differ.
    write_atomic(path.with_suffix(".json"), to_json(artifact))
    write_atomic(path, tflite)
    return artifact


def show(artifacts: tuple["Artifact", ...]) -> str:
    """One line per artifact written."""
    return "\n".join(f"{a.path}  {a.size_bytes / 1e6:.2f} MB  {a.operators} operators" for a in artifacts)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
