"""What a .tflite file tells about itself: to libraries that read TFLite metadata, and to edgetl's own device code.

For MediaPipe, the Task Library and Android Studio: a flatbuffer of metadata_schema.fbs in a buffer of the model, with
the outputs' names in `labels.txt` at the file's end (https://ai.google.dev/edge/litert/models/metadata). For edgetl:
`edgetl.json` beside `labels.txt`, with the input contract, the outputs with all that is needed to read them, and where
the model comes from. Neither holds a date or a path, so equal models stay equal files.
"""

import io
import json
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgetl.backbones import registry
from edgetl.config import from_json, to_json
from edgetl.errors import ArtifactError, ConfigError
from edgetl.inputs import InputSpec
from edgetl.outputs import OutputSpec, Task
from edgetl.rundir import LABELS, RunDir, installed_versions
from export.artifacts import device_errors
from export.device.metadata import FILE, MAX_JSON_BYTES, SCHEMA_VERSION, read_about
from export.flatbuffer import pack, unpack
from export.metadata_tables import tables

ENTRY = b"TFLITE_METADATA"
"""Name under which a model's list of metadata points to the buffer."""
PIXEL_RANGE = (0, 255)
INT8_SHIFT = 128
SENTENCES: dict[Task, str] = {
    "classification": "Classifies {0} into {1} classes",
    "ordinal": "Classifies {0} into {1} classes, which have an order",
    "multi_label": "Tells which of {1} labels are true of {0}",
    "regression": "Estimates {1} value(s) of {0}",
}


@dataclass(frozen=True)
class Description:
    """What a file tells about itself."""

    name: str
    """Of the model, in a word or two."""
    description: str
    """One sentence: what it says of photos, with which backbone, stored how."""
    outputs: OutputSpec
    inputs: InputSpec
    scheme: str
    """Row of SCHEMES."""
    backbone: str = ""
    """Row of BACKBONES; empty where it is none of them."""
    licence: str = ""
    """Of the pretrained weights, as the registry states it; empty where none were used or none is known."""
    author: str = ""
    version: str = ""
    """Of the model: tells two trainings apart."""
    run_sha256: str = ""
    """Of the Keras model that it was made from."""
    versions: dict[str, str] = field(default_factory=dict)
    """Packages that made it."""


@dataclass(frozen=True)
class InputTensor:
    """What the stored numbers of the input tensor mean."""

    type: str
    """`float32`, `uint8` or `int8`."""
    pixel_shift: int
    """stored = pixel - pixel_shift: 128 for int8, else 0."""
    scale: float
    """real = scale * (stored - zero_point); 0.0 when the tensor is not quantized."""
    zero_point: int
    pixel_range: tuple[int, int] = PIXEL_RANGE

    @property
    def normalization(self) -> tuple[float, float]:
        """Mean and deviation that turn a raw pixel into the real value.

        The schema wants an integer model to state what its float twin needs; quantizing that by the tensor's scale and
        zero point must give the stored number. So pixel - pixel_shift = real / scale + zero_point is solved for real.
        """
        return (float(self.zero_point + self.pixel_shift), 1 / self.scale) if self.scale else (0.0, 1.0)


def describe(run: RunDir, scheme: str) -> Description:
    """Tell what an artifact of a run is.

    Args:
        run: the run; what its settings don't say (a model that is not edgetl's names no backbone) stays empty.
        scheme: row of SCHEMES.

    Raises:
        RunError: the settings are damaged.
    """
    settings = run.settings
    row = registry.named_by(settings)
    versions = installed_versions()
    name = row.name if row else "model"
    photos, sentence = f"RGB photos of {run.inputs.width}x{run.inputs.height} pixels", SENTENCES[run.outputs.task]
    return Description(
        name=f"{name} {scheme}",
        description=f"{sentence.format(photos, len(run.output_names))}: {name}, {scheme}.",
        outputs=run.outputs,
        inputs=run.inputs,
        scheme=scheme,
        backbone=row.name if row else "",
        # Of weights in a file of the user's nobody knows the licence, and random ones have none.
        licence=row.licence if row and settings.get("weights") == "imagenet" else "",
        author=f"made with edgetl {versions.get('edgetl', '')}".rstrip(),
        version=run.model_sha256[:12],
        run_sha256=run.model_sha256,
        versions=versions,
    )


def attach(tflite: bytes, about: Description) -> bytes:
    """Write a description into a model, in place of the one that it has.

    An int8 input is vouched for: readers will feed it pixel - 128. Check scale and zero point before.

    Args:
        tflite: a model with one input, of a photo, and one output, of one number per name.
        about: the same description gives the same bytes, whatever was there before.

    Raises:
        ArtifactError: not a TFLite model, or one that the description does not fit.
    """
    model = _bare(tflite)
    tensor = _input_tensor(model, about)
    files = {LABELS: "".join(f"{name}\n" for name in about.outputs.names), FILE: _json(about, tensor)}
    _add_entry(model, tables(about, tensor))
    packed = pack(model)
    return packed + _zip(files, len(packed))


def strip(tflite: bytes) -> bytes:
    """Remove a description: the metadata's entry, its buffer, and what follows the model."""
    return pack(_bare(tflite))


def read(tflite: bytes) -> Description | None:
    """Read the description that `attach` wrote; None where there is none.

    Raises:
        ArtifactError: it is damaged, or from a later version.
    """
    with device_errors():
        found = read_about(tflite)
    if found is None:
        return None
    text = {key: value for key, value in found.everything.items() if key not in ("schema_version", "input_tensor")}
    try:
        return from_json(Description, json.dumps(text), source=FILE)
    except ConfigError as error:
        raise ArtifactError(f"{error}. Convert the model again") from error


def _bare(tflite: bytes) -> Any:
    """The object tree of a model without a description."""
    model = unpack(tflite)
    entries = list(model.metadata or ())
    ours = [entry for entry in entries if entry.name == ENTRY]
    model.metadata = [entry for entry in entries if entry.name != ENTRY] or None
    used = {0, *(entry.buffer for entry in entries if entry.name != ENTRY)}
    used |= {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    for index in sorted({entry.buffer for entry in ours} - used, reverse=True):
        if index == len(model.buffers) - 1:
            model.buffers.pop()
        else:  # others are referred to by position
            model.buffers[index].data = None
    return model


def _add_entry(model: Any, content: bytes) -> None:
    from ai_edge_litert import schema_py_generated as schema

    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(content, np.uint8)
    entry.name, entry.buffer = ENTRY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]


def _input_tensor(model: Any, about: Description) -> InputTensor:
    """What the input is; refuse a model that the description does not fit."""
    from ai_edge_litert.schema_py_generated import TensorType

    graph = model.subgraphs[0]
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ArtifactError(f"{len(graph.inputs)} inputs, {len(graph.outputs)} outputs. Expected one of each")
    source, sink = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    taken, given = [int(side) for side in source.shape], [int(side) for side in sink.shape]
    if taken != [1, *about.inputs.shape]:
        raise ArtifactError(f"input {taken}, photos of the run {list(about.inputs.shape)}. Convert again")
    if int(np.prod(given)) != len(about.outputs.names):
        raise ArtifactError(f"output {given}: {len(about.outputs.names)} names. Name every output once")
    names = {TensorType.FLOAT32: "float32", TensorType.UINT8: "uint8", TensorType.INT8: "int8"}
    if source.type not in names:
        raise ArtifactError(f"input of type {source.type} in the schema. Convert with float32, uint8 or int8 input")
    quantization = source.quantization
    scaled = quantization is not None and quantization.scale is not None and len(quantization.scale) == 1
    return InputTensor(
        type=names[source.type],
        pixel_shift=INT8_SHIFT if source.type == TensorType.INT8 else 0,
        scale=float(quantization.scale[0]) if scaled else 0.0,
        zero_point=int(quantization.zeroPoint[0]) if scaled else 0,
    )


# --- the zip ----------------------------------------------------------------------------------------------------------


def _json(about: Description, tensor: InputTensor) -> str:
    parts = {
        "schema_version": SCHEMA_VERSION,
        **json.loads(to_json(about)),
        "input_tensor": json.loads(to_json(tensor)),
    }
    text = json.dumps(parts, indent=2, ensure_ascii=False) + "\n"
    if len(text.encode()) > MAX_JSON_BYTES:
        raise ArtifactError(f"{FILE}: more than {MAX_JSON_BYTES} bytes. Shorten the names of the outputs")
    return text


def _zip(files: dict[str, str], start: int) -> bytes:
    """Files as an uncompressed zip, for a place `start` bytes into another file.

    Readers such as minizip want offsets that count from the beginning of the whole file, as they come out of appending
    to it; and uncompressed content, which they map into memory.
    """
    whole = io.BytesIO()
    whole.seek(start)
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # dated 1980-01-01 unless told otherwise
    return whole.getvalue()[start:]
