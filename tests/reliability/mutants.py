"""Damaged and hostile .tflite files, from a seed: a model's bytes with a flip, a cut, a wild offset or a wild field.

Two kinds: bytes that are changed blindly, and models that are unpacked, given one impossible field, and packed again,
so that what checks the form of a flatbuffer finds nothing and the interpreter itself has to.
"""

import copy
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from export.flatbuffer import pack, unpack

WILD = (0, 1, -1, 2, 0x7FFFFFFF, -0x80000000, 0x10000, 1 << 20, 255, 77)
"""Numbers that a 32-bit field has no business to hold, or only by chance."""


def mutants(models: list[bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` times what was done, and the file."""
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        model = rng.choice(models)
        kind = rng.choice([*BYTES, *FIELDS])
        changed = BYTES[kind](rng, model) if kind in BYTES else _repacked(rng, model, FIELDS[kind])
        yield f"seed {seed}/{number}: {kind}", changed


def _flips(rng: random.Random, model: bytes) -> bytes:
    changed = bytearray(model)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(8, len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flips_in_front(rng: random.Random, model: bytes) -> bytes:
    changed = bytearray(model)
    for _ in range(rng.choice((1, 2, 4))):
        changed[rng.randrange(8, 256)] = rng.randrange(256)
    return bytes(changed)


def _offset(rng: random.Random, model: bytes) -> bytes:
    changed = bytearray(model)
    place = 4 * rng.randrange(2, len(model) // 4 - 1)
    struct.pack_into("<i", changed, place, rng.choice((*WILD, len(model), -len(model), rng.randrange(1 << 16))))
    return bytes(changed)


def _cut(rng: random.Random, model: bytes) -> bytes:
    return model[: rng.randrange(8, len(model))]


def _hole(rng: random.Random, model: bytes) -> bytes:
    start = rng.randrange(8, len(model))
    return model[:start] + bytes(min(rng.randrange(1, 400), len(model) - start)) + model[start + 400 :]


def _spliced(rng: random.Random, model: bytes) -> bytes:
    start, end = sorted(rng.randrange(8, len(model)) for _ in range(2))
    return model[:start] + model[end:]


BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "flipped bits": _flips,
    "bytes in front": _flips_in_front,
    "a wild offset": _offset,
    "cut": _cut,
    "zeros": _hole,
    "spliced": _spliced,
}


def _repacked(rng: random.Random, model: bytes, change: Callable[[random.Random, Any], object]) -> bytes:
    found = unpack(model)
    change(rng, found)
    return bytes(pack(found))


def _tensor(rng: random.Random, model: Any) -> Any:
    return rng.choice(model.subgraphs[0].tensors)


def _operator(rng: random.Random, model: Any) -> Any:
    return rng.choice(model.subgraphs[0].operators)


def _side(rng: random.Random, model: Any) -> None:
    tensor = _tensor(rng, model)
    shape = [int(side) for side in tensor.shape] if tensor.shape is not None else []
    if shape:
        shape[rng.randrange(len(shape))] = rng.choice(WILD)
    tensor.shape = shape


def _rank(rng: random.Random, model: Any) -> None:
    tensor = _tensor(rng, model)
    tensor.shape = [rng.choice((0, 1, 3, 1 << 16)) for _ in range(rng.randrange(9))]


def _kind(rng: random.Random, model: Any) -> None:
    _tensor(rng, model).type = rng.randrange(20)


def _buffer(rng: random.Random, model: Any) -> None:
    _tensor(rng, model).buffer = rng.choice((0, 1, 2, len(model.buffers), 0x7FFFFFFF))


def _content(rng: random.Random, model: Any) -> None:
    buffer = rng.choice([each for each in model.buffers if each.data is not None])
    buffer.data = bytes(buffer.data)[: rng.randrange(len(buffer.data) + 1)]


def _outside(rng: random.Random, model: Any) -> None:
    buffer = rng.choice(model.buffers)
    buffer.offset, buffer.size = rng.choice((1, 8, 1 << 20, 1 << 40)), rng.choice((1, 100, 1 << 33))


def _scale(rng: random.Random, model: Any) -> None:
    tensor = _tensor(rng, model)
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = [rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e-38, 1.0))] * rng.choice(
        (0, 1, 7)
    )
    tensor.quantization.zeroPoint = [rng.choice((0, 300, -(1 << 40)))] * rng.choice((0, 1, 5))
    tensor.quantization.quantizedDimension = rng.choice((0, 3, 9, -1))


def _wires(rng: random.Random, model: Any) -> None:
    operator = _operator(rng, model)
    ends = rng.choice(("inputs", "outputs"))
    numbers = [int(each) for each in getattr(operator, ends)]
    numbers[rng.randrange(len(numbers))] = rng.choice((*WILD, rng.randrange(len(model.subgraphs[0].tensors))))
    setattr(operator, ends, numbers)


def _fewer_wires(rng: random.Random, model: Any) -> None:
    operator = _operator(rng, model)
    setattr(operator, rng.choice(("inputs", "outputs")), [])


def _ends(rng: random.Random, model: Any) -> None:
    graph = model.subgraphs[0]
    setattr(graph, rng.choice(("inputs", "outputs")), rng.choice(([], [rng.choice(WILD)], [0], [0, 0])))


def _code(rng: random.Random, model: Any) -> None:
    code = rng.choice(model.operatorCodes)
    code.builtinCode = rng.choice((rng.randrange(210), 209, 32, 0x7FFFFFFF, -5))
    code.deprecatedBuiltinCode, code.version = rng.choice((0, 127, 32)), rng.choice((0, 1, 5, 999, -1))


def _custom(rng: random.Random, model: Any) -> None:
    code = rng.choice(model.operatorCodes)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = rng.choice((b"FlexRelu", b"TFLite_Detection_PostProcess", b"../../x.so", b"", None))


def _code_index(rng: random.Random, model: Any) -> None:
    _operator(rng, model).opcodeIndex = rng.choice((1, len(model.operatorCodes), 0x7FFFFFFF))


def _options(rng: random.Random, model: Any) -> None:
    operator = _operator(rng, model)
    if operator.builtinOptions is None or rng.random() < 0.3:
        operator.builtinOptions, operator.builtinOptionsType = None, 0
        return
    fields = [name for name, value in vars(operator.builtinOptions).items() if type(value) is int]
    for name in fields:
        if rng.random() < 0.5:
            setattr(operator.builtinOptions, name, rng.choice((0, -1, 1, 7, 100)))


def _order(rng: random.Random, model: Any) -> None:
    rng.shuffle(model.subgraphs[0].operators)


def _loop(rng: random.Random, model: Any) -> None:
    graph = model.subgraphs[0]
    for operator in graph.operators:
        operator.inputs = [rng.randrange(len(graph.tensors)) for _ in operator.inputs]
        operator.outputs = [rng.randrange(len(graph.tensors)) for _ in operator.outputs]


def _repeated(rng: random.Random, model: Any) -> None:
    model.subgraphs = [copy.copy(model.subgraphs[0]) for _ in range(rng.choice((0, 2, 300)))]


def _without(rng: random.Random, model: Any) -> None:
    setattr(model, rng.choice(("operatorCodes", "buffers", "subgraphs")), [])


FIELDS: dict[str, Callable[[random.Random, Any], object]] = {
    "a wild side": _side,
    "a wild rank": _rank,
    "another type": _kind,
    "another buffer": _buffer,
    "a short buffer": _content,
    "a buffer outside": _outside,
    "a wild scale": _scale,
    "a wild wire": _wires,
    "no wires": _fewer_wires,
    "wild inputs or outputs": _ends,
    "another operator": _code,
    "a foreign operator": _custom,
    "an operator that is not listed": _code_index,
    "wild options": _options,
    "another order": _order,
    "random wires": _loop,
    "several graphs": _repeated,
    "nothing where a list belongs": _without,
}
