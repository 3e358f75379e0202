"""The flatbuffer in which TFLite metadata is written, by the positions of its fields.

They are those of metadata_schema.fbs, version 1.1.0
(https://github.com/tensorflow/tflite-support/blob/master/tensorflow_lite_support/metadata/metadata_schema.fbs): no
package that edgetl needs ships generated code for it. Positions never change under one identifier.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import flatbuffers
import numpy as np

from edgetl.inputs import InputSpec
from edgetl.outputs import OutputSpec, Task
from edgetl.rundir import LABELS
from export.device.metadata import FILE

if TYPE_CHECKING:
    from export.metadata import Description, InputTensor

IDENTIFIER = b"M001"
MIN_PARSER_VERSION = "1.0.0"
"""Version of the schema that has all that is used here."""


class _Model(IntEnum):
    NAME, DESCRIPTION, VERSION, SUBGRAPHS, AUTHOR, LICENCE, FILES, MIN_PARSER_VERSION = range(8)


class _Subgraph(IntEnum):
    INPUTS, OUTPUTS = 2, 3


class _Tensor(IntEnum):
    NAME, DESCRIPTION, DIMENSIONS, CONTENT, PROCESS_UNITS, STATS, FILES = range(7)


class _Union(IntEnum):
    TYPE, CONTENT = range(2)


class _Normalization(IntEnum):
    MEAN, STD = range(2)


class _Stats(IntEnum):
    MAX, MIN = range(2)


class _File(IntEnum):
    NAME, DESCRIPTION, TYPE = range(3)


FEATURE_PROPERTIES, IMAGE_PROPERTIES = 1, 2
"""Members of union ContentProperties."""
NORMALIZATION_OPTIONS = 1
"""Member of union ProcessUnitOptions."""
COLOR_SPACE, RGB = 0, 1
"""Field of ImageProperties, member of ColorSpaceType."""
DESCRIPTIONS, TENSOR_AXIS_LABELS = 1, 2
"""Members of AssociatedFileType."""
NAMES: dict[Task, str] = {
    "classification": "Names of the classes",
    "ordinal": "Names of the classes, from low to high",
    "multi_label": "Names of the labels",
    "regression": "Names of the values",
}
OUTPUTS: dict[Task, str] = {
    "classification": "Probability of each class.",
    "ordinal": "Probability of each class.",
    "multi_label": "Probability of each label, each for itself.",
    "regression": "Values, in units of their own.",
}


def tables(about: "Description", tensor: "InputTensor") -> bytes:
    """A description as a flatbuffer; what is inside a table must be written before the table."""
    build = _Builder()
    subgraph = build.table(
        {
            _Subgraph.INPUTS: build.tables([_image(build, about.inputs, tensor)]),
            _Subgraph.OUTPUTS: build.tables([_output(build, about.outputs)]),
        }
    )
    provenance = _file(build, FILE, "Input contract and provenance of the model, JSON.", DESCRIPTIONS)
    texts = {
        _Model.NAME: about.name,
        _Model.DESCRIPTION: about.description,
        _Model.VERSION: about.version,
        _Model.AUTHOR: about.author,
        _Model.LICENCE: about.licence,
        _Model.MIN_PARSER_VERSION: MIN_PARSER_VERSION,
    }
    offsets: dict[int, int] = {slot: build.CreateString(text) for slot, text in texts.items() if text}
    offsets |= {_Model.SUBGRAPHS: build.tables([subgraph]), _Model.FILES: build.tables([provenance])}
    build.Finish(build.table(offsets), file_identifier=IDENTIFIER)
    return bytes(build.Output())


def _image(build: "_Builder", inputs: InputSpec, tensor: "InputTensor") -> int:
    mean, std = tensor.normalization
    options = build.table({_Normalization.MEAN: build.floats(mean), _Normalization.STD: build.floats(std)})
    text = f"RGB photo of {inputs.width}x{inputs.height} pixels, 0..255 (resized by rule: {inputs.resize})."
    low, high = (end - tensor.pixel_shift for end in tensor.pixel_range)
    return build.table(
        {
            _Tensor.NAME: build.CreateString("image"),
            _Tensor.DESCRIPTION: build.CreateString(text),
            _Tensor.CONTENT: build.union(IMAGE_PROPERTIES, build.table({}, {COLOR_SPACE: RGB})),
            _Tensor.PROCESS_UNITS: build.tables([build.union(NORMALIZATION_OPTIONS, options)]),
            _Tensor.STATS: build.stats(low, high),
        }
    )


def _output(build: "_Builder", outputs: OutputSpec) -> int:
    """Scores carry their labels where readers look for them; values of targets are no scores, their file only tells."""
    what, kind = ("values", DESCRIPTIONS) if outputs.task == "regression" else ("probability", TENSOR_AXIS_LABELS)
    names = _file(build, LABELS, f"{NAMES[outputs.task]}, one a line, in the order of the outputs.", kind)
    offsets: dict[int, int] = {
        _Tensor.NAME: build.CreateString(what),
        _Tensor.DESCRIPTION: build.CreateString(OUTPUTS[outputs.task]),
        _Tensor.CONTENT: build.union(FEATURE_PROPERTIES, build.table({})),
        _Tensor.FILES: build.tables([names]),
    }
    if outputs.task != "regression":
        offsets[_Tensor.STATS] = build.stats(0.0, 1.0)
    return build.table(offsets)


def _file(build: "_Builder", name: str, description: str, kind: int) -> int:
    texts: dict[int, int] = {_File.NAME: build.CreateString(name), _File.DESCRIPTION: build.CreateString(description)}
    return build.table(texts, {_File.TYPE: kind})


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """Writes tables from their fields: position -> offset of what was written before, or -> a number of one byte."""

    def table(self, offsets: Mapping[int, int], numbers: Mapping[int, int] | None = None) -> int:
        numbers = numbers or {}
        self.StartObject(max([*offsets, *numbers], default=-1) + 1)
        for slot, offset in offsets.items():
            self.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for slot, number in numbers.items():
            self.PrependUint8Slot(slot, number, 0)
        return int(self.EndObject())

    def union(self, kind: int, content: int) -> int:
        """A table with nothing but a union in it."""
        return self.table({_Union.CONTENT: content}, {_Union.TYPE: kind})

    def tables(self, offsets: Sequence[int]) -> int:
        """A vector of tables."""
        self.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.PrependUOffsetTRelative(offset)
        return int(self.EndVector())

    def floats(self, *values: float) -> int:
        return int(self.CreateNumpyVector(np.array(values, np.float32)))

    def stats(self, low: float, high: float) -> int:
        return self.table({_Stats.MAX: self.floats(high), _Stats.MIN: self.floats(low)})
