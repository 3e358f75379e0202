"""What a bundle holds: the one definition of `bundle.json` and `sample/expected.json`.

The host writes these dataclasses, the device reads them back with nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, TypeVar

from .errors import DeviceError
from .metadata import About
from .outputs import Outputs
from .parsing import parsed
from .shared import shared

BUNDLE = "bundle.json"
EXPECTED = "sample/expected.json"
PROGRAM = "edgetl-device.pyz"
SCHEMA_VERSION = 2
"""Goes up when older device programs would misunderstand the bundle."""

ADVICE = "Copy the bundle again, or make it anew with python -m export.bundle"

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """How well a model does on the whole test split, measured on the host: a fraction, at most 1."""

    metric: str
    """Which one: `top-1`, `F1` or `R2`."""
    value: float
    low: float
    high: float
    """95 % interval."""
    samples: int


@dataclass(frozen=True)
class HostLatency:
    """How long one invocation took on the host."""

    median_ms: float
    p90_ms: float
    threads: int
    kernels: str
    runtime: str
    device: str
    noise: str
    """Why the figures are not to be trusted; empty when they are."""


@dataclass(frozen=True)
class Bundle:
    """What `bundle.json` says."""

    scheme: str
    model: str
    """Name of the .tflite file."""
    sha256: str
    """Of that file."""
    size_bytes: int
    inputs: dict[str, Any]
    """How a photo becomes the input, as edgetl's InputSpec spells it: `kind`, `height`, `width`, `resize`."""
    input_type: str
    """What the file takes: `float32` or `uint8`, raw pixels either way; `int8`, raw pixels less 128."""
    input_scale: float
    """real = input_scale * (pixel - input_zero_point); 0.0 for a float input."""
    input_zero_point: int
    outputs: Outputs
    """What it says of a photo."""
    output_type: str
    """What the file gives: `float32`, `uint8` or `int8`."""
    output_scale: float
    """real = output_scale * (stored - output_zero_point); 0.0 for a float output."""
    output_zero_point: int
    float32: Optional[Figure]
    """The Keras model that the file was made from, in float32; None where no photos were held out for testing."""
    host: Optional[Figure]
    """The file itself, likewise."""
    latency: Optional[HostLatency]
    """The file itself; None where `export.benchmark` was not run."""
    targets: dict[str, Any]
    """What was measured for `--target`: the target's name -> its report."""
    run_sha256: str
    """Of the model.keras that the file was made from."""
    files: dict[str, str]
    """Every other file of the bundle -> its sha256."""
    versions: dict[str, str]
    """Packages on the host."""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Bounds:
    """What a device may differ by from the host."""

    same_pixels: float
    """Of any score, 0..1, or of any target, in its deviations; of photos whose pixels are the host's."""
    other_pixels: float
    """Likewise, where another Pillow or JPEG decoder made other pixels."""
    min_agreement: float
    """Share of photos of which both say the same: the class, all labels, or targets within what is allowed."""


@dataclass(frozen=True)
class SamplePhoto:
    """A photo of the test split; where no photos were held out, of the validation split."""

    path: str
    """Within the bundle."""
    id: str
    """In the data set."""
    truth: tuple[float, ...]
    """What is right, in the order of the outputs: 1 for the class or the labels that are true, else 0; values."""
    pixels_sha256: str
    """Of the pixels that the host prepared, uint8 [height, width, 3] in C order."""
    scores: tuple[float, ...]
    """Of the host, XNNPACK kernels."""
    reference_scores: Optional[tuple[float, ...]]
    """Of the reference kernels, which compute the same everywhere; None where they were not run (they are slow)."""


@dataclass(frozen=True)
class Sample:
    """What `sample/expected.json` says."""

    photos: tuple[SamplePhoto, ...]
    bounds: dict[str, Bounds]
    """Kernels -> what may differ."""
    runtime: str
    """Interpreter on the host."""
    pillow: str
    """Its version on the host."""
    schema_version: int = SCHEMA_VERSION


def read_bundle(folder: Path) -> Bundle:
    """Read what a bundle is.

    Args:
        folder: of the bundle.

    Raises:
        DeviceError: no bundle there; `bundle.json` is damaged or of another version.
    """
    bundle = _read(Bundle, folder / BUNDLE)
    try:
        bundle.outputs.refuse()
        if len(set(bundle.outputs.names)) != len(bundle.outputs.names):
            raise ValueError("outputs.names are not distinct")
    except ValueError as error:
        raise DeviceError(f"{folder / BUNDLE}: {error}. {ADVICE}") from error
    return bundle


def refuse_others(bundle: Bundle, about: Optional[About], folder: Path) -> None:
    """Refuse a model that says of itself that its outputs stand for something else than the bundle has them.

    Raises:
        DeviceError: they differ.
    """
    if about and about.outputs != bundle.outputs:
        raise DeviceError(f"{folder}: has other names than {bundle.model}. {ADVICE}")


def altered(bundle: Bundle, folder: Path) -> tuple[str, ...]:
    """Name the files of a bundle that are missing or not what they were."""
    return tuple(name for name, sha256 in bundle.files.items() if _sha256(folder / name) != sha256)


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):  # a model may be larger than the device's memory
                found.update(block)
    except OSError:
        return ""
    return found.hexdigest()


def read_sample(folder: Path) -> Sample:
    """Read which photos a bundle holds and what is expected of them.

    Raises:
        DeviceError: the file is missing, damaged or of another version.
    """
    return _read(Sample, folder / EXPECTED)


def _read(kind: type[T], path: Path) -> T:
    try:
        found = json.loads(shared("seal").unsealed(path.read_bytes()).decode("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
        version = found.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {version!r:.20}, this program reads {SCHEMA_VERSION}")
        read: T = parsed(kind, found)
    except FileNotFoundError:
        raise DeviceError(
            f"{path}: not found. Keep {PROGRAM} in the folder that export.bundle made, or name that with --bundle"
        ) from None
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror or error}. {ADVICE}") from error
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise DeviceError(f"{path}: can't be used: {why}. {ADVICE}") from error
    return read
