"""What is really inside a .tflite file: operators and tensor types, read from the flatbuffer itself."""

from dataclasses import dataclass
from typing import Any

from edgetl.errors import ArtifactError

FLOAT_TYPES = ("FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT64")
QUANTIZE = "QUANTIZE"


@dataclass(frozen=True)
class TensorType:
    """One tensor: its name, element type (as the schema spells it, `UINT8`), and whether it is a constant."""

    name: str
    type: str
    constant: bool


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


def operators(tflite: bytes) -> tuple[Operator, ...]:
    """List the operators of a single-subgraph model in execution order.

    Raises:
        ArtifactError: the bytes are not a TFLite model.
    """
    from ai_edge_litert import schema_py_generated as schema

    if tflite[4:8] != b"TFL3":
        raise ArtifactError("not a TFLite model: identifier TFL3 is missing. Export it again")
    model = schema.ModelT.InitFromPackedBuf(tflite, 0)
    code_names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    type_names = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    found = []
    for graph in model.subgraphs:
        tensors = [_tensor(tensor, model.buffers, type_names) for tensor in graph.tensors]
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            custom = code.customCode is not None
            name = code.customCode.decode() if custom else code_names[number]
            inputs = tuple(tensors[i] for i in operator.inputs if i >= 0)
            found.append(Operator(name, custom, inputs, tuple(tensors[i] for i in operator.outputs)))
    return tuple(found)


def _tensor(tensor: Any, buffers: Any, type_names: dict[int, str]) -> TensorType:
    data = buffers[tensor.buffer].data
    return TensorType(tensor.name.decode(), type_names[tensor.type], data is not None and len(data) > 0)
