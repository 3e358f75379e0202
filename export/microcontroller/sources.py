"""A model as C++ sources, in the form of TensorFlow Lite Micro's own examples (C++11)."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.device.interpreter import TensorInfo

ARRAY_LINE = 32
"""Bytes of the model on a line."""
METHODS = {
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}
"""Operators that MicroMutableOpResolver spells in another way than all the rest."""


def header(
    name: str, *, frame: tuple[int, int, int], ends: "tuple[TensorInfo, TensorInfo]", arena: int, names: int
) -> str:
    """Declare a model and what a program must know to run it.

    Args:
        name: of the files and the namespace.
        frame: height, width and channels of a photo.
        ends: input and output.
        arena: bytes.
        names: number of classes.
    """
    height, width, channels = frame
    source, sink = ends
    guard = f"{name.upper()}_H_"
    fill = "pixel - 128" if source.dtype == "int8" else "pixel"
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

// Output: {sink.dtype}, one score per class; probability = {_score(sink)}.
constexpr float kOutputScale = {_float(sink.scale)};
constexpr int kOutputZeroPoint = {sink.zero_point};
constexpr int kClassCount = {names};
extern const char* const kClassNames[kClassCount];  // UTF-8

}}  // namespace {name}

#endif  // {guard}
"""


def source(name: str, tflite: bytes, output_names: tuple[str, ...]) -> str:
    """Define what `header` declares.

    Args:
        name: of the files and the namespace.
        tflite: the model.
        output_names: the position is the output index.
    """
    lines = [tflite[start : start + ARRAY_LINE] for start in range(0, len(tflite), ARRAY_LINE)]
    rows = "\n".join(",".join(map(str, line)) + "," for line in lines)
    classes = "\n".join(f"    {_string(each)}," for each in output_names)
    return f"""#include "{name}.h"

namespace {name} {{

const std::size_t kSize = {len(tflite)};

const char* const kClassNames[kClassCount] = {{
{classes}
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
