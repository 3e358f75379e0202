"""A model as C++ sources, in the form of TensorFlow Lite Micro's own examples (C++11)."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgetl.outputs import OutputSpec, Task

if TYPE_CHECKING:
    from export.device.interpreter import TensorInfo

ARRAY_LINE = 32
"""Bytes of the model on a line."""
SAID: dict[Task, tuple[str, str]] = {
    "classification": ("Class", "one score per class; probability = {}. The class is the one with the highest."),
    "ordinal": ("Class", "one score per class, from low to high; probability = {}. The class is the highest's."),
    "multi_label": ("Label", "one score per label; probability = {}."),
    "regression": ("Target", "one value per target; value = {}; beyond what the type holds it is cut off."),
}
"""Task -> what a name is of, and what an output holds, around how it is read."""
METHODS = {
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}
"""Operators that MicroMutableOpResolver spells in another way than all the rest."""


def header(
    name: str,
    *,
    frame: tuple[int, int, int],
    ends: "tuple[TensorInfo, TensorInfo]",
    arena: int,
    outputs: OutputSpec,
    thresholds: Sequence[float] = (),
) -> str:
    """Declare a model and what a program must know to run it.

    Args:
        name: of the files and the namespace.
        frame: height, width and channels of a photo.
        ends: input and output.
        arena: bytes.
        outputs: what the model says.
        thresholds: of labels, as the output stores them.
    """
    height, width, channels = frame
    source, sink = ends
    guard = f"{name.upper()}_H_"
    fill = "pixel - 128" if source.dtype == "int8" else "pixel"
    kind, holds = SAID[outputs.task]
    return f"""// Made by edgetl; make it again instead of changing it.
#ifndef {guard}
#define {guard}

#include <cstddef>
#include <cstdint>

namespace {name} {{

// The model, aligned to 16 bytes; give it to tflite::GetModel().
extern const unsigned char kData[];
extern const std::size_t kSize;

// The smallest tensor arena, bytes, in which tflite-micro's portable kernels ran this model; the arena itself must be
// aligned to 16 bytes. Kernels written for a processor (CMSIS-NN, ESP-NN, ...) want room for intermediate results too:
// where AllocateTensors() fails, give more and read arena_used_bytes().
constexpr std::size_t kArenaSize = {arena};

// Input: {source.dtype}, RGB photo of this size, row by row, red green blue; stored = {fill}, pixel 0..255.
constexpr int kInputHeight = {height};
constexpr int kInputWidth = {width};
constexpr int kInputChannels = {channels};
constexpr float kInputScale = {_float(source.scale)};
constexpr int kInputZeroPoint = {source.zero_point};

// Output: {sink.dtype}, {holds.format(_score(sink))}
constexpr float kOutputScale = {_float(sink.scale)};
constexpr int kOutputZeroPoint = {sink.zero_point};
constexpr int k{kind}Count = {len(outputs.names)};
extern const char* const k{kind}Names[k{kind}Count];  // UTF-8
{_thresholds(sink, thresholds)}
}}  // namespace {name}

#endif  // {guard}
"""


def source(name: str, tflite: bytes, outputs: OutputSpec) -> str:
    """Define what `header` declares.

    Args:
        name: of the files and the namespace.
        tflite: the model.
        outputs: what the model says.
    """
    lines = [tflite[start : start + ARRAY_LINE] for start in range(0, len(tflite), ARRAY_LINE)]
    rows = "\n".join(",".join(map(str, line)) + "," for line in lines)
    names = "\n".join(f"    {_string(each)}," for each in outputs.names)
    kind, _ = SAID[outputs.task]
    return f"""#include "{name}.h"

namespace {name} {{

const std::size_t kSize = {len(tflite)};

const char* const k{kind}Names[k{kind}Count] = {{
{names}
}};

alignas(16) const unsigned char kData[] = {{
{rows}
}};

}}  // namespace {name}
"""


def resolver(name: str, operators: tuple[str, ...]) -> str:
    """List the operators of a model for the linker, which leaves out the code of all others.

    Args:
        name: of the files and the namespace.
        operators: each kind once, as the schema spells it.
    """
    adding = "\n".join(f"  TF_LITE_ENSURE_STATUS(resolver.Add{method(each)}());" for each in operators)
    guard = f"{name.upper()}_OPERATORS_H_"
    return f"""// Made by edgetl; make it again instead of changing it.
#ifndef {guard}
#define {guard}

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace {name} {{

// The operators of this model and no others.
using Resolver = tflite::MicroMutableOpResolver<{len(operators)}>;

inline TfLiteStatus AddOperators(Resolver& resolver) {{
{adding}
  return kTfLiteOk;
}}

}}  // namespace {name}

#endif  // {guard}
"""


def method(operator: str) -> str:
    """`DEPTHWISE_CONV_2D` -> `DepthwiseConv2D`, what follows `Add` in MicroMutableOpResolver."""
    words = operator.split("_")
    return METHODS.get(operator) or "".join(word if word[0].isdigit() else word.capitalize() for word in words)


def identifier(scheme: str) -> str:
    """What files and namespace of a scheme's model are called."""
    return "model_" + re.sub(r"\W", "_", scheme)


def _thresholds(sink: "TensorInfo", thresholds: Sequence[float]) -> str:
    """A line that declares from which stored number on each label is said; nothing for other outputs."""
    if not thresholds:
        return ""
    numbers = ", ".join(f"{int(each)}" if sink.scale else _float(each) for each in thresholds)
    kind = "int" if sink.scale else "float"
    return f"constexpr {kind} kThresholds[kLabelCount] = {{{numbers}}};  // a label is said where stored >= this\n"


def _score(sink: "TensorInfo") -> str:
    return "kOutputScale * (stored - kOutputZeroPoint)" if sink.scale else "stored"


def _float(value: float) -> str:
    """Every bit of a float, as a literal."""
    text = f"{value:.9g}"
    return f"{text}f" if set(text) & set(".e") else f"{text}.0f"


def _string(text: str) -> str:
    """UTF-8 in a literal of ASCII; three octal digits can't run into what follows, `??` starts no trigraph."""
    plain = set(range(32, 127)) - set(b'"\\?')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'
