"""What is inside a .tflite file, and the packer that writes it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tflite import convert, pixels, tiny, usable

from edgetl.errors import ArtifactError
from export.artifacts import FINEST_SOFTMAX, open_artifact
from export.device.interpreter import Kernels, Model
from export.flatbuffer import BUFFER_ALIGNMENT, compact, operators, pack, unpack


def names(tflite: bytes) -> list[str]:
    return [operator.name for operator in operators(tflite)]


def test_operators_of_a_float_model() -> None:
    found = operators(tiny("float32"))
    assert [operator.name for operator in found] == ["CONV_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]
    assert all(operator.is_float and not operator.custom for operator in found)
    image, kernel, _bias = found[0].inputs
    assert (image.type, image.constant) == ("FLOAT32", False)
    assert (kernel.type, kernel.constant) == ("FLOAT32", True)
    assert found[-1].outputs[0].type == "FLOAT32"


def test_operators_of_an_integer_model() -> None:
    found = operators(tiny("uint8"))
    assert not [operator.name for operator in found if operator.is_float]
    assert (found[0].name, found[-1].name) == ("QUANTIZE", "QUANTIZE")
    assert found[0].inputs[0].type == found[-1].outputs[0].type == "UINT8"
    convolution = next(operator for operator in found if operator.name == "CONV_2D")
    assert [tensor.type for tensor in convolution.inputs] == ["INT8", "INT8", "INT32"]


def test_a_flex_operator_is_custom_and_goes_by_its_own_name() -> None:
    (flex,) = [operator for operator in operators(convert("flex op")) if operator.custom]
    assert flex.name == "FlexMatrixDeterminant"


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 100, b"PK\3\4" + b"\0" * 50])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="not a TFLite model"):
        unpack(data)
    with pytest.raises(ArtifactError, match="not a TFLite model"):
        operators(data)


# --- the packer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
@pytest.mark.parametrize("io", ["float32", "uint8", "int8"])
def test_compact_changes_no_bit_of_the_outputs(io: str, kernels: Kernels) -> None:
    original, packed = tiny(io), compact(tiny(io))
    photos = pixels(20)
    expected = Model(usable(original, io), kernels=kernels).predict_batch(photos)
    np.testing.assert_array_equal(Model(usable(packed, io), kernels=kernels).predict_batch(photos), expected)
    assert np.ptp(expected) > 0.1, "outputs that say something"
    assert operators(packed) == operators(original)


@pytest.mark.parametrize("io", ["float32", "uint8"])
def test_compact_is_idempotent_and_deterministic(io: str) -> None:
    once = compact(tiny(io))
    assert compact(once) == once
    assert compact(tiny(io)) == once
    assert once[4:8] == b"TFL3"


def constant_offsets(tflite: bytes) -> list[int]:
    """Where the bytes of each constant buffer begin in the file."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(tflite, 0)
    found = []
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        if not buffer.DataIsNone() and buffer.DataLength():
            field = buffer._tab.Offset(4)
            found.append(buffer._tab.Vector(field))
    return found


@pytest.mark.parametrize("io", ["float32", "uint8"])
def test_constants_lie_on_the_boundary_that_kernels_ask_for(io: str) -> None:
    offsets = constant_offsets(compact(tiny(io)))
    assert len(offsets) >= 3
    assert all(offset % BUFFER_ALIGNMENT == 0 for offset in offsets), offsets


def test_alignment_holds_whatever_the_sizes_of_neighbours() -> None:
    model = unpack(tiny("float32"))
    for index, buffer in enumerate(model.buffers):
        if buffer.data is None:
            buffer.data = np.arange(1, index + 2, dtype=np.uint8)  # odd sizes everywhere
    packed = pack(model)
    assert len(constant_offsets(packed)) == len(model.buffers)
    assert all(offset % BUFFER_ALIGNMENT == 0 for offset in constant_offsets(packed))


def quantizations(tflite: bytes) -> list[Any]:
    tensors = unpack(tflite).subgraphs[0].tensors
    return [(t.name, t.quantization.scale, t.quantization.zeroPoint) for t in tensors if t.quantization]


def test_a_per_channel_model_gets_smaller_and_keeps_its_scales(finished_run: Any) -> None:
    wide = unpack((finished_run.export_path / "int8.tflite").read_bytes())
    per_channel = sum(8 * (len(t.quantization.scale) - 1) for t in wide.subgraphs[0].tensors if _has_channels(t))
    packed = pack(wide)
    plain = _plain_pack(wide)
    assert per_channel > 100_000, "a model with many channels"
    # Most zero vectors are of few lengths, so nearly all of these bytes go.
    assert len(plain) - len(packed) > 0.8 * per_channel
    for (name, scale, zero), (other, other_scale, other_zero) in zip(
        quantizations(plain), quantizations(packed), strict=True
    ):
        assert name == other
        np.testing.assert_array_equal(scale, other_scale)
        np.testing.assert_array_equal(zero, other_zero)


def _has_channels(tensor: Any) -> bool:
    scale = tensor.quantization.scale if tensor.quantization else None
    return scale is not None and len(scale) > 1


def _plain_pack(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("aborts", [True, False])
def test_scores_that_end_a_process_are_refused(aborts: bool, tmp_path: Path) -> None:
    model = unpack((Path(__file__).parent / "golden/schema2/run/export/int8.tflite").read_bytes())
    graph = model.subgraphs[0]
    codes = [model.operatorCodes[op.opcodeIndex].builtinCode for op in graph.operators]
    (softmax,) = [op for op, code in zip(graph.operators, codes, strict=True) if code == 25]  # the schema's number
    step = FINEST_SOFTMAX * (1 if aborts else 1.001)
    graph.tensors[softmax.inputs[0]].quantization.scale = np.array([step], np.float32)
    path = tmp_path / "flat.tflite"
    path.write_bytes(pack(model))
    code = (
        "import sys; from ai_edge_litert.interpreter import Interpreter, OpResolverType as Resolver; "
        "Interpreter(sys.argv[1], experimental_op_resolver_type=Resolver.BUILTIN_REF).allocate_tensors()"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert done.returncode == (-6 if aborts else 0), "what is refused is what aborts, no more"
    open_artifact(path)
    if aborts:
        with pytest.raises(ArtifactError, match=r"flat\.tflite: gives every photo the same scores"):
            open_artifact(path, kernels="reference")
    else:
        open_artifact(path, kernels="reference")
