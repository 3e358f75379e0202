"""A .tflite file as data: what is really inside, and the one way in which edgetl writes such a file."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import flatbuffers
import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ArtifactError

IDENTIFIER = b"TFL3"
BUFFER_ALIGNMENT = 16
"""Bytes; the schema's `force_align` of weights, which the Python object API of flatbuffers does not know."""

FLOAT_TYPES = ("FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT64")
QUANTIZE = "QUANTIZE"
DEQUANTIZE = "DEQUANTIZE"


@dataclass(frozen=True)
class TensorType:
    """One tensor: its name, element type (as the schema spells it, `UINT8`), and whether it is a constant."""

    name: str
    type: str
    constant: bool
    scale: tuple[float, ...] = ()
    """real = scale * (stored - zero_point), one for all or one per channel; none where it is not quantized."""
    zero_point: tuple[int, ...] = ()


@dataclass(frozen=True)
class Operator:
    """One operator of the graph with the tensors that it reads and writes."""

    name: str
    """As the schema spells it: `CONV_2D`; custom operators by their own name."""
    custom: bool
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]

    @property
    def is_float(self) -> bool:
        """Whether it computes in floating point (QUANTIZE and DEQUANTIZE at the border included)."""
        return any(tensor.type in FLOAT_TYPES for tensor in (*self.inputs, *self.outputs))


def unpack(tflite: bytes) -> Any:
    """Read a model into the schema's object tree (`ModelT`).

    Raises:
        ArtifactError: the bytes are not a TFLite model.
    """
    from ai_edge_litert import schema_py_generated as schema

    if tflite[4:8] != IDENTIFIER:
        raise ArtifactError("not a TFLite model: identifier TFL3 is missing. Export it again")
    model = schema.ModelT.InitFromPackedBuf(tflite, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # ai-edge-quantizer appends weights to the flatbuffer; here they go back inside
            buffer.data = np.frombuffer(tflite, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def pack(model: Any) -> bytes:
    """Write an object tree as .tflite bytes; the same tree gives the same bytes."""
    builder = _SharingBuilder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def compact(tflite: bytes) -> bytes:
    """Write a model again with equal vectors stored once.

    The converter spends 8 bytes per channel and tensor on zero points that are all zero: 8 % of an int8
    EfficientNet-Lite0. Readers follow offsets and do not notice that tensors point to the same vector.
    """
    return pack(unpack(tflite))


class _SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]
    """Stores equal vectors once, and weights on the boundary that the schema asks for."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: NDArray[Any]) -> int:  # noqa: N802 (the name of the base class)
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            if x.dtype == np.uint8:
                self.Prep(BUFFER_ALIGNMENT, x.nbytes)
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]


def operators(tflite: bytes) -> tuple[Operator, ...]:
    """List the operators of a single-subgraph model in execution order.

    Raises:
        ArtifactError: the bytes are not a TFLite model.
    """
    model = unpack(tflite)
    found = []
    for graph in model.subgraphs:
        tensors = [_tensor(tensor, model.buffers) for tensor in graph.tensors]
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            custom = code.customCode is not None
            name = code.customCode.decode() if custom else _names("BuiltinOperator")[number]
            inputs = tuple(tensors[i] for i in operator.inputs if i >= 0)
            found.append(Operator(name, custom, inputs, tuple(tensors[i] for i in operator.outputs)))
    return tuple(found)


def border(tflite: bytes) -> tuple[TensorType, TensorType]:
    """The only input and the only output of a model.

    Raises:
        ArtifactError: the bytes are not a TFLite model, or have several.
    """
    model = unpack(tflite)
    (graph,) = model.subgraphs
    if (len(graph.inputs), len(graph.outputs)) != (1, 1):
        raise ArtifactError(f"{len(graph.inputs)} inputs, {len(graph.outputs)} outputs: expected one of each")
    first, last = (_tensor(graph.tensors[index], model.buffers) for index in (graph.inputs[0], graph.outputs[0]))
    return first, last


def _tensor(tensor: Any, buffers: Any) -> TensorType:
    content, quantization = buffers[tensor.buffer].data, tensor.quantization
    scale = () if quantization is None or quantization.scale is None else tuple(map(float, quantization.scale))
    return TensorType(
        name=tensor.name.decode(),
        type=_names("TensorType")[tensor.type],
        constant=content is not None and len(content) > 0,
        scale=scale,
        zero_point=tuple(map(int, quantization.zeroPoint)) if scale else (),
    )


@cache
def _names(enumeration: str) -> dict[int, str]:
    """Number -> name of one of the schema's enumerations."""
    from ai_edge_litert import schema_py_generated as schema

    members = vars(getattr(schema, enumeration)).items()
    return {value: name for name, value in members if isinstance(value, int)}
