"""Artifacts on disk: a .tflite file with a JSON file beside it that tells what it is."""

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.errors import ArtifactError, RunError
from edgetl.inputs import InputSpec
from edgetl.outputs import OutputSpec
from edgetl.rundir import MODEL, RunDir, read_json, sha256_of
from export.device.errors import DeviceError

if TYPE_CHECKING:
    from export.device.interpreter import Kernels, Model, Pool

FINEST_SOFTMAX = 2.0**-26
"""The reference kernel of a softmax counts its input in fixed point with 26 bits behind the point, and ends the process
where a step is no more than the last of them."""


@dataclass(frozen=True)
class Artifact:
    """One .tflite file of a run."""

    scheme: str
    """Row of SCHEMES."""
    path: str
    """File name, in the run's export folder."""
    sha256: str
    """Of the .tflite file."""
    size_bytes: int
    inputs: InputSpec
    input_type: str
    """What the file takes: `float32` or `uint8`, raw pixels either way; `int8`, raw pixels less 128."""
    input_scale: float
    """real = input_scale * (pixel - input_zero_point); 0.0 for a float input."""
    input_zero_point: int
    outputs: OutputSpec
    """What it says of a photo."""
    output_type: str
    """What the file gives: `float32`, `uint8` or `int8`."""
    output_scale: float
    """real = output_scale * (stored - output_zero_point), the step of all outputs; 0.0 for a float output. Values
    beyond those that the smallest and the largest stored number stand for are cut off."""
    output_zero_point: int
    operators: int
    run_sha256: str
    """Of the model.keras that it was made from."""
    calibration: tuple[str, ...]
    """Ids of the photos that ranges were measured on; none for schemes without calibration."""
    settings: dict[str, str]
    """What was chosen within the scheme: `ranges`, `float_layers`, how it was trained."""
    versions: dict[str, str]
    schema_version: int = 3


def artifact_files(folder: Path, schemes: Sequence[str] = ()) -> tuple[Path, ...]:
    """Find .tflite files in an export folder.

    Args:
        folder: RUN/export.
        schemes: which ones, in this order; none means all, by name.

    Raises:
        ArtifactError: there are none, or one that was asked for is not there.
    """
    there = {path.stem: path for path in sorted(folder.glob("*.tflite")) if path.is_file()}  # of a pipe no hash ends
    if not there:
        raise ArtifactError(f"{folder}: no artifacts. Make them with python -m export.convert {folder.parent}")
    missing = [scheme for scheme in schemes if scheme not in there]
    if missing:
        raise ArtifactError(
            f"{folder}: no artifact {', '.join(missing)}. There: {', '.join(there)}. "
            f"Make it with python -m export.convert {folder.parent}"
        )
    return tuple(there[scheme] for scheme in dict.fromkeys(schemes or there))


def find_artifacts(run: RunDir, schemes: Sequence[str] = ()) -> tuple[Artifact, ...]:
    """Read what a run's artifacts are, and check each file against its description.

    Args:
        run: the run.
        schemes: which ones, in this order; none means all, by name.

    Raises:
        ArtifactError: there are none, one is missing, or a file is not the one described beside it.
        RunError: a description is missing, damaged, or of other photos or outputs than the run's.
    """
    artifacts = []
    for path in artifact_files(run.export_path, schemes):
        artifact = read_json(Artifact, path.with_suffix(".json"))
        if sha256_of(path) != artifact.sha256:
            raise ArtifactError(
                f"{path}: not the file that {path.stem}.json describes. Run python -m export.convert {run.path} again"
            )
        if artifact.run_sha256 != run.model_sha256:
            raise ArtifactError(
                f"{path}: made from another model than the run's {MODEL}. Run python -m export.convert {run.path} again"
            )
        if (artifact.inputs, artifact.outputs) != (run.inputs, run.outputs):
            raise RunError(
                f"{path.with_suffix('.json')}: other inputs or outputs than the run's. "
                f"Run python -m export.convert {run.path} again"
            )
        artifacts.append(artifact)
    return tuple(artifacts)


def gzip_size_bytes(content: bytes) -> int:
    """Size of what `gzip -9` makes of a file: what a download or an update costs."""
    return len(gzip.compress(content, compresslevel=9, mtime=0))


@contextmanager
def device_errors() -> Iterator[None]:
    """Turn errors of the device code into edgetl's own, which commands and notebooks catch."""
    try:
        yield
    except DeviceError as error:
        raise ArtifactError(str(error)) from error


def open_artifact(path: Path, *, threads: int = 1, kernels: "Kernels" = "xnnpack") -> "Model":
    """Load a .tflite file.

    Args:
        path: the file.
        threads: CPU threads of one invocation.
        kernels: see `export.device.interpreter.Model`.

    Raises:
        ArtifactError: the file is missing, damaged, or breaks the input contract; or these kernels can't compute it.
    """
    with device_errors():
        from export.device.interpreter import Model

        if kernels == "reference":
            _refuse_flat_scores(path)
        return Model(path, threads=threads, kernels=kernels)


def _refuse_flat_scores(path: Path) -> None:
    """Refuse a softmax whose input has steps so small that the reference kernels, a microcontroller's, abort."""
    from export.flatbuffer import operators

    for op in operators(path.read_bytes()):
        steps = op.inputs[0].scale if op.name == "SOFTMAX" else ()
        if any(step <= FINEST_SOFTMAX for step in steps):
            raise ArtifactError(
                f"{path}: gives every photo the same scores (steps of {steps[0]:.1e} in front of the softmax), which "
                "reference kernels can't compute. Train the model anew: it tells nothing apart"
            )


def open_pool(model: bytes | Path, size: int, *, kernels: "Kernels" = "xnnpack") -> "Pool":
    """Load a .tflite file, or its bytes, once for each of `size` threads.

    Raises:
        ArtifactError: the file is missing, damaged, or breaks the input contract.
    """
    with device_errors():
        from export.device.interpreter import Pool

        return Pool(model, size, kernels=kernels)
