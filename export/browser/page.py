"""Fills the folder of a bundle that any static web server can show: page, runtime, model, and what the model is."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.config import to_json
from edgetl.errors import ArtifactError
from edgetl.inputs import InputSpec
from edgetl.outputs import OutputSpec
from export import metadata
from export.artifacts import Artifact, open_artifact
from export.browser import litert_js

if TYPE_CHECKING:
    from export.device.interpreter import Model

STATIC = Path(__file__).with_name("static")
DESCRIPTION = "model.json"
INPUT_TYPES = ("float32", "uint8")
"""What LiteRT.js takes."""


@dataclass(frozen=True)
class Tensor:
    """What the numbers of a tensor mean: real = scale * (stored - zero_point); scale 0.0 where it is not quantized."""

    type: str
    scale: float
    zero_point: int


@dataclass(frozen=True)
class PageModel:
    """All that the page knows of its model."""

    name: str
    description: str
    licence: str
    """Of the pretrained weights; empty where none is known."""
    file: str
    sha256: str
    size_bytes: int
    inputs: InputSpec
    input: Tensor
    """It takes raw pixels 0..255, whatever its type."""
    output: Tensor
    outputs: OutputSpec
    """What it says of a photo."""
    runtime: str
    schema_version: int = 2


def write(folder: Path, artifact: Artifact, model: Path) -> None:
    """Fill a folder with a page that shows what this model says of photos, without any other host.

    Args:
        folder: exists, empty.
        artifact: what the model is.
        model: the .tflite file.

    Raises:
        ArtifactError: the model takes int8; LiteRT.js can't be had; the file is not a model.
    """
    if artifact.input_type not in INPUT_TYPES:
        raise ArtifactError(
            f"{artifact.scheme}: browsers take {' or '.join(INPUT_TYPES)} inputs. Received: {artifact.input_type}. "
            "Bundle another scheme, such as int8, or leave the web page out with --no-web"
        )
    loaded = open_artifact(model)
    described = _described(artifact, loaded)
    litert_js.unpack(folder / "litert")
    shutil.copytree(STATIC, folder, dirs_exist_ok=True)
    (folder / described.file).write_bytes(loaded.content)
    (folder / DESCRIPTION).write_text(to_json(described), encoding="utf-8")


def _described(artifact: Artifact, model: "Model") -> PageModel:
    about = metadata.read(model.content)
    return PageModel(
        name=about.name if about else artifact.scheme,
        description=about.description if about else "",
        licence=about.licence if about else "",
        file=f"{artifact.scheme}.tflite",
        sha256=model.sha256,
        size_bytes=model.size_bytes,
        inputs=artifact.inputs,
        input=Tensor(model.input.dtype, model.input.scale, model.input.zero_point),
        output=Tensor(model.output.dtype, model.output.scale, model.output.zero_point),
        outputs=artifact.outputs,
        runtime=litert_js.RUNTIME,
    )
