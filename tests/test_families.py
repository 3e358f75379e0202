"""The table of families says what is so: every cell is made again, and the tensors of every operator are looked at."""

import csv
import io
from collections.abc import Sequence

import pytest

from edgetl.backbones import quantization, registry
from edgetl.backbones.__main__ import Config, main, show
from edgetl.errors import EdgetlError
from export import families, schemes
from export.flatbuffer import DEQUANTIZE, FLOAT_TYPES, QUANTIZE, Operator

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
REQUIRED = (
    "EfficientNetLite0",
    "MobileNet",
    "MobileNetV2",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "InceptionV3",
    "Xception",
    "DenseNet121",
)
"""Families that must end without a float operator after quantization-aware training."""


def types(tensors: Sequence[object]) -> set[str]:
    return {tensor.type for tensor in tensors}  # type: ignore[attr-defined]


def assert_types(found: tuple[Operator, ...], scheme: schemes.Scheme) -> None:
    """Every operator of an artifact has the tensor types that its scheme promises."""
    inner = [op for op in found if op.name not in (QUANTIZE, DEQUANTIZE)]
    every = types([t for op in found for t in (*op.inputs, *op.outputs)])
    kernels = types([op.inputs[1] for op in inner if op.name in WEIGHTED])
    assert not [op.name for op in found if op.custom]
    if scheme.integer:
        assert not every & set(FLOAT_TYPES)
        assert all(types(op.outputs) <= {"INT8", "INT32", "UINT8"} for op in found)
        assert kernels == {"INT8"}
    elif scheme.mixed:
        floats = [op for op in inner if op.is_float]
        assert floats and len(floats) < len(inner) // 2
        assert {types(op.inputs[:1]).pop() for op in inner if op not in floats} <= {"INT8", "INT32"}
    elif scheme.activations == "int16":
        assert not [op.name for op in inner if op.is_float]
        assert kernels == {"INT8"} and all("INT16" in types(op.outputs) for op in inner if op.name in WEIGHTED)
    else:
        assert all(types(op.outputs) <= {"FLOAT32", "FLOAT16", "INT32"} for op in found)
        constants = types([t for op in found for t in op.inputs if t.constant])
        stored = {"float32": "FLOAT32", "float16": "FLOAT16", "int8": "INT8", "int4": "INT4"}[scheme.weights]
        assert stored in constants
        assert scheme.weights in ("int8", "int4") or constants <= {stored, "INT32"}


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_table_is_what_conversion_gives(name: str) -> None:
    (row,) = (row for row in quantization.rows() if row["backbone"] == name)
    for scheme, made in families.artifacts(name):
        if isinstance(made, EdgetlError):
            assert row[scheme] == f"refused: {families.reason(made)}"
        else:
            assert_types(made.operators, schemes.get(scheme))
            integer = not any(op.is_float for op in made.operators)
            assert row[scheme] == ("integer" if integer else "works")


def test_every_scheme_of_every_family_is_in_the_table() -> None:
    rows = quantization.rows()
    assert [row["backbone"] for row in rows] == list(families.FAMILIES)
    for row in rows:
        assert set(row) == {"backbone", *schemes.SCHEMES}
        for name, cell in row.items():
            kind, _, why = cell.partition(": ")
            assert name == "backbone" or kind in ("works", "integer") or (kind == "refused" and why)
            # What an integer scheme calls working holds no float operator, or it would not have been written.
            assert name not in ("int8", "int8_io8", "qat_int8") or kind in ("integer", "refused")


@pytest.mark.parametrize("name", REQUIRED)
def test_what_the_project_promises_of_training_is_there(name: str) -> None:
    (row,) = (row for row in quantization.rows() if row["backbone"] == name)
    assert row["qat_int8"] == row["int8"] == "integer"


def test_every_backbone_belongs_to_a_family_of_the_table() -> None:
    covered = [name for row in quantization.rows() for name in quantization.family(row["backbone"])]
    # InceptionResNetV2 is too large to convert nine times over in a test; nothing in it is unlike InceptionV3.
    assert sorted([*covered, "InceptionResNetV2"]) == sorted(registry.BACKBONES)


def test_the_list_shows_forms_with_reasons() -> None:
    text = show(main(Config(name_contains="ConvNeXtSmall", quantization=True)))
    lines = text.splitlines()
    assert "family of" in lines[0] and max(map(len, lines[:20])) <= 120
    (row,) = (line for line in lines if line.startswith("ConvNeXtTiny"))
    assert "works" in row and "- [1]" in row
    assert "[1]" in lines[-1] or any(line.startswith("[1] ") for line in lines)
    whole = show(main(Config(quantization=True)))
    assert sum(line.startswith(families.FAMILIES) for line in whole.splitlines()) == len(families.FAMILIES)


def test_csv_reads_back() -> None:
    rows = ({"backbone": "x", **dict.fromkeys(schemes.SCHEMES, "refused: a, b")},)
    assert tuple(csv.DictReader(io.StringIO(families._csv(rows)))) == rows
