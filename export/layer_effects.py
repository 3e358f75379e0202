"""What the rounding of one tensor alone does to the outputs of a network.

A copy of the float twin carries a gate behind every operator: QUANTIZE and DEQUANTIZE as int8 would do it, and a
SELECT_V2 that a switch, an input of its own, turns to the rounded or to the exact values. So one interpreter answers
for all tensors, with no conversion in between.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.device.runtime import find_runtime
from export.flatbuffer import pack, unpack
from export.tensors import in_threads

Step = tuple[float, int]
"""Scale and zero point of an int8 tensor."""


def effects(
    twin: bytes, steps: dict[str, Step], images: Sequence[NDArray[np.float32]], units: Sequence[float] = (1.0,)
) -> dict[str, float]:
    """Mean absolute change of an output, in its unit, on photos, when one tensor alone is rounded to int8.

    Scores in front of a final SOFTMAX or LOGISTIC whose standard deviation is above 1 are divided by it: behind it,
    where a model is all too sure, everything would look harmless.

    Args:
        twin: float .tflite.
        steps: tensor -> how it is rounded; tensors that are not named stay exact.
        images: as the twin takes them, [1, h, w, 3] each.
        units: of the outputs, `OutputSpec.units`.

    Returns:
        Tensor -> change, of scores 0..1; for those of `steps` that an operator writes, but for the output itself.
    """
    gated, switches, last = _gated(twin, steps)
    gates = _Gates(gated, switches)
    activation = ACTIVATIONS.get(last)
    exact = np.concatenate([gates.outputs(image) for image in images])
    centre = exact.mean(axis=1, keepdims=True) if last == "SOFTMAX" else 0.0
    temperature = max(1.0, float((exact - centre).std()))

    def finished(outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        return activation(outputs / temperature) if activation else outputs / np.asarray(units)

    def of(part: Sequence[NDArray[np.float32]]) -> dict[str, float]:
        return _Gates(gated, switches).changes(part, finished)

    sums = in_threads("effect of each layer", of, images)
    return {name: sum(part[name] for part in sums) / len(images) for name in switches}


def _gated(twin: bytes, steps: dict[str, Step]) -> tuple[bytes, dict[str, int], str]:
    """Put the gates in.

    Returns:
        The model, tensor -> index of its switch, and the last operator: where it is one of ACTIVATIONS, it was taken
        out and the outputs are those in front of it.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = unpack(twin)
    graph = model.subgraphs[0]
    kinds = schema.BuiltinOperator
    quantize, dequantize, select = (
        _code(model, *each) for each in ((kinds.QUANTIZE, 1), (kinds.DEQUANTIZE, 2), (kinds.SELECT_V2, 1))
    )
    operators: list[Any] = []
    behind: dict[int, int] = {}
    switches: dict[str, int] = {}
    for operator in graph.operators:
        operator.inputs = np.array([behind.get(int(index), int(index)) for index in operator.inputs], np.int32)
        operators.append(operator)
        exact = int(operator.outputs[0])
        name, shape = graph.tensors[exact].name.decode(), graph.tensors[exact].shape
        if name not in steps or exact == int(graph.outputs[0]):
            continue
        stored = _tensor(graph, shape, schema.TensorType.INT8, steps[name])
        rounded, chosen = (_tensor(graph, shape, schema.TensorType.FLOAT32) for _ in range(2))
        switches[name] = _tensor(graph, np.array([1], np.int32), schema.TensorType.BOOL)
        operators += [
            _operator(quantize, [exact], stored),
            _operator(dequantize, [stored], rounded),
            _operator(select, [switches[name], rounded, exact], chosen),
        ]
        behind[exact] = chosen
    code = model.operatorCodes[operators[-1].opcodeIndex]
    last = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = next((each for each in ACTIVATIONS if getattr(kinds, each) == last), "")
    if name:
        graph.outputs = np.array([operators.pop().inputs[0]], np.int32)
    graph.operators = operators
    graph.inputs = np.array([int(graph.inputs[0]), *switches.values()], np.int32)
    model.signatureDefs = []  # a signature would have to name the switches
    return pack(model), switches, name


class _Gates:
    """A gated model; all gates are open: nothing is rounded."""

    def __init__(self, gated: bytes, switches: dict[str, int]) -> None:
        runtime = find_runtime()
        self._interpreter = runtime.interpreter(
            model_content=gated,
            num_threads=1,
            experimental_op_resolver_type=runtime.resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self._interpreter.allocate_tensors()
        self._switches = switches
        (self._last,) = (each["index"] for each in self._interpreter.get_output_details())
        self._first = next(e["index"] for e in self._interpreter.get_input_details() if e["dtype"] == np.float32)
        for name in switches:
            self._turn(name, False)

    def _turn(self, name: str, on: bool) -> None:
        self._interpreter.set_tensor(self._switches[name], np.array([on]))

    def outputs(self, image: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        """Run a photo, or the one before once more."""
        if image is not None:
            self._interpreter.set_tensor(self._first, image)
        self._interpreter.invoke()
        return np.asarray(self._interpreter.get_tensor(self._last), np.float64)

    def changes(
        self, images: Sequence[NDArray[np.float32]], finished: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> dict[str, float]:
        """Sum over photos of the mean absolute change, per tensor, of what `finished` makes of the outputs."""
        found = dict.fromkeys(self._switches, 0.0)
        for image in images:
            exact = finished(self.outputs(image))
            for name in self._switches:
                self._turn(name, True)
                found[name] += float(np.abs(finished(self.outputs()) - exact).mean())
                self._turn(name, False)
        return found


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 + 0.5 * np.tanh(scores / 2))  # exp() would overflow on one side


ACTIVATIONS = {"SOFTMAX": _softmax, "LOGISTIC": _sigmoid}
"""Operators that make probabilities of scores."""


def _code(model: Any, builtin: int, version: int) -> int:
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode, code.version = builtin, version
    code.deprecatedBuiltinCode = min(builtin, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _tensor(graph: Any, shape: NDArray[np.int32], kind: int, step: Step | None = None) -> int:
    from ai_edge_litert import schema_py_generated as schema

    tensor = schema.TensorT()
    tensor.shape, tensor.type, tensor.buffer = shape, kind, 0
    tensor.name = f"gate/{len(graph.tensors)}".encode()
    if step:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.array([step[0]], np.float32)
        tensor.quantization.zeroPoint = np.array([step[1]], np.int64)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operator(code: int, inputs: Sequence[int], output: int) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    operator = schema.OperatorT()
    operator.opcodeIndex = code
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
    return operator
