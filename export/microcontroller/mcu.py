"""A model for TensorFlow Lite Micro: C++ sources, with the arena that it runs in, run here before it is written."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.console import progress
from edgetl.errors import ArtifactError
from edgetl.rundir import write_atomic
from export.artifacts import Artifact, device_errors, open_artifact
from export.flatbuffer import operators, pack, unpack
from export.metadata import strip
from export.microcontroller import interpreter, sources

if TYPE_CHECKING:
    from export.device.interpreter import Model, Pixels, TensorInfo

FRAMES = 2
"""Frames of noise that the model is run on; every weight and every operator takes part in one already."""
FLOAT_TOLERANCE = 1e-5
"""Largest difference of an output, in its unit, where operators compute in float32: libraries sum and exponentiate in
another order."""
STEPS = 4
"""Of an integer score that libraries may differ by: tflite-micro's FULLY_CONNECTED rounds twice where the interpreter's
rounds once, which tips about one value in a thousand by one step, and softmax makes two of it at most in what was seen;
all other operators are equal bit by bit."""


@dataclass(frozen=True)
class McuReport:
    """What a microcontroller needs for a model, and that it runs."""

    files: tuple[str, ...]
    model_bytes: int
    """Size of the array, in flash."""
    model_sha256: str
    """Of the array."""
    stripped_bytes: int
    """How much larger the .tflite file is: names, metadata, labels."""
    arena_bytes: int
    """The smallest arena in which it ran, a multiple of 16; in RAM."""
    arena_recorded_bytes: int
    """What the interpreter says that it took of it, pointers of 64 bits included: a 32-bit processor needs less."""
    operators: dict[str, int]
    """Kind -> how many, most first."""
    frames: int
    """Photos of noise on which it was run, in an arena of exactly that size."""
    max_difference: float
    """Largest difference of a score to the reference kernels of the interpreter."""
    tflite_micro: str
    """Its version."""
    schema_version: int = 1


def write(folder: Path, artifact: Artifact, model: Path) -> McuReport:
    """Write a model as C++ sources, after tflite-micro has run it as the reference kernels do.

    Args:
        folder: where to; exists.
        artifact: what the model is.
        model: the .tflite file.

    Raises:
        ConfigError: tflite-micro is not installed.
        ArtifactError: TFLM lacks operators of the model, or computes something else.
    """
    version = interpreter.version()
    content = model.read_bytes()
    flash = slim(content)
    graph = operators(content)
    counted = dict(Counter(operator.name for operator in graph).most_common())
    reference = open_artifact(model, kernels="reference")
    shape = (FRAMES, *reference.input.shape)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with progress("run on tflite-micro"):
        try:
            arena, recorded = _arena(flash, artifact)
        except ArtifactError as error:
            raise _refusal(artifact, content, version, error) from None
        found = invoke(flash, frames, reference, arena)
        difference = _compare(found, frames, reference, artifact)
    name = sources.identifier(artifact.scheme)
    texts = {
        f"{name}.h": _header(name, artifact, reference, arena),
        f"{name}.cc": sources.source(name, flash, artifact.outputs),
        f"{name}_operators.h": sources.resolver(name, tuple(counted)),
    }
    for file, text in texts.items():
        write_atomic(folder / file, text)
    return McuReport(
        files=tuple(texts),
        model_bytes=len(flash),
        model_sha256=hashlib.sha256(flash).hexdigest(),
        stripped_bytes=len(content) - len(flash),
        arena_bytes=arena,
        arena_recorded_bytes=recorded,
        operators=counted,
        frames=FRAMES,
        max_difference=difference,
        tflite_micro=version,
    )


def slim(tflite: bytes) -> bytes:
    """Leave out what no microcontroller reads: labels, metadata, signatures, and the names of tensors."""
    model = unpack(strip(tflite))
    for entry in model.metadata or ():
        model.buffers[entry.buffer].data = None
    model.metadata = model.signatureDefs = model.description = None
    for graph in model.subgraphs:
        graph.name = None
        for tensor in graph.tensors:
            tensor.name = None
    return pack(model)


def invoke(flash: bytes, pixels: "Pixels", reference: "Model", arena_bytes: int) -> NDArray[np.float32]:
    """Run a model on tflite-micro.

    Args:
        flash: the model.
        pixels: uint8 [n, *shape of the input tensor], raw values 0..255.
        reference: the same model in the interpreter; tells what its tensors hold.
        arena_bytes: size of the arena.

    Returns:
        float32 [n, n_outputs], dequantized where the output is integer.

    Raises:
        ArtifactError: tflite-micro does not take the model, or not in such an arena.
    """
    stored = reference.input.stored(pixels).astype(reference.input.dtype)
    return reference.output.real(interpreter.invoke(flash, stored, arena_bytes).outputs.reshape(len(pixels), -1))


def show(report: McuReport) -> list[str]:
    """What a microcontroller needs, line by line."""
    kinds = ", ".join(f"{count} {name}" for name, count in report.operators.items())
    equal = "bit-equal to" if not report.max_difference else f"within {report.max_difference:.1g} of"
    return [
        f"flash   {report.model_bytes / 1024:10.1f} KiB  ({report.stripped_bytes / 1024:.1f} KiB less than the file)",
        f"arena   {report.arena_bytes / 1024:10.1f} KiB  (RAM, the smallest that works with portable kernels)",
        f"needs   {kinds}",
        f"checked {equal} the reference kernels on {report.frames} frames, tflite-micro {report.tflite_micro}",
    ]


def _arena(flash: bytes, artifact: Artifact) -> tuple[int, int]:
    """The smallest arena, and what is recorded of it, both bytes."""
    black = np.zeros((1, 1, *artifact.inputs.shape), artifact.input_type)
    recorded = interpreter.invoke(flash, black, interpreter.AMPLE).recorded_bytes
    return interpreter.smallest_arena(flash, recorded), recorded


def _refusal(artifact: Artifact, content: bytes, version: str, error: ArtifactError) -> ArtifactError:
    """Name every operator that tflite-micro does not take; where none is to blame, what it said itself."""
    lacking = ", ".join(f"{name} ({why})" for name, why in interpreter.refused(content).items())
    what = f"tflite-micro {version} does not take {lacking}" if lacking else str(error)
    return ArtifactError(f"{artifact.path}: {what}. Choose scheme int8, or where that is refused another backbone")


def _compare(found: NDArray[np.float32], frames: "Pixels", reference: "Model", artifact: Artifact) -> float:
    """Largest difference to the reference kernels; refuse more than rounding explains."""
    with device_errors():
        expected = reference.predict_batch(frames)
    difference, unit = float(np.abs(found - expected).max()), min(artifact.outputs.units)
    if not difference <= FLOAT_TOLERANCE * unit + STEPS * reference.output.scale:
        raise ArtifactError(
            f"{reference.where}: tflite-micro's scores differ by up to {difference:.3g} from those of the reference "
            "kernels. Choose another scheme"
        )
    return difference


def _header(name: str, artifact: Artifact, reference: "Model", arena: int) -> str:
    shape, outputs, ends = artifact.inputs.shape, artifact.outputs, (reference.input, reference.output)
    thresholds = [_stored(each, reference.output) for each in outputs.thresholds]
    return sources.header(name, frame=shape, ends=ends, arena=arena, outputs=outputs, thresholds=thresholds)


def _stored(threshold: float, output: "TensorInfo") -> float:
    """The least number that an output can store of those from a threshold on; one more than any where there is none."""
    if not output.scale:
        return threshold
    kind = np.iinfo(output.dtype)
    stored = np.arange(kind.min, kind.max + 1)
    return float(kind.min + np.searchsorted(output.real(stored), np.float32(threshold)))
