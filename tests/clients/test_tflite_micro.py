"""TensorFlow Lite Micro takes what is written for it: bit by bit, in the memory that is stated, through a compiler."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny_artifacts
from conftest import client
from tiny_artifacts import CLASS_NAMES, NORMALIZATIONS, tiny_artifact

from edgetl.errors import ArtifactError
from edgetl.inputs import ImageInput
from edgetl.metrics import said_labels
from edgetl.outputs import Task
from edgetl.rundir import open_run
from export import families, schemes
from export.artifacts import find_artifacts
from export.device.interpreter import Model
from export.flatbuffer import operators
from export.microcontroller import interpreter, mcu
from export.quantize import Quantizer

pytestmark = pytest.mark.clients

INTEGERS = ("int8", "int8_io8")


@pytest.fixture(scope="module", autouse=True)
def tflite_micro() -> None:
    """Fail, rather than skip, where it is not installed."""
    client("tflite_micro")


def array(folder: Path, scheme: str) -> bytes:
    """The model as the C++ source spells it."""
    text = (folder / f"model_{scheme}.cc").read_text()
    (numbers,) = re.findall(r"kData\[\] = \{(.*?)\};", text, re.DOTALL)
    return bytes(int(number) for number in numbers.split(",") if number.strip())


def assert_equal_bits(flash: bytes, arena: int, model: Path, pixels: np.ndarray) -> np.ndarray:
    """tflite-micro and the reference kernels score photos alike; returns the scores."""
    reference = Model(model, kernels="reference")
    expected = reference.predict_batch(pixels)
    np.testing.assert_array_equal(mcu.invoke(flash, pixels[:, None], reference, arena), expected)
    return expected


@pytest.mark.parametrize("scheme", INTEGERS)
def test_photos_score_as_with_the_reference_kernels(scheme: str, run: Path, photos: np.ndarray, tmp_path: Path) -> None:
    (artifact,) = find_artifacts(open_run(run), (scheme,))
    model = run / "export" / artifact.path
    report = mcu.write(tmp_path, artifact, model)
    flash = array(tmp_path, scheme)
    assert hashlib.sha256(flash).hexdigest() == report.model_sha256
    scores = assert_equal_bits(flash, report.arena_bytes, model, photos[:8])  # reference kernels are slow
    assert len(np.unique(scores[:, 0])) > 4
    assert (report.max_difference, report.model_bytes) == (0.0, len(flash))
    assert len(flash) + report.stripped_bytes == artifact.size_bytes
    # Names of 164 tensors, labels and metadata.
    assert report.stripped_bytes > 30_000
    assert sum(report.operators.values()) == artifact.operators
    assert report.tflite_micro in "\n".join(mcu.show(report))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("scheme", INTEGERS)
def test_tiny_models_score_alike(scheme: str, normalization: str, tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, scheme, normalization, dense=False)
    report = mcu.write(tmp_path, artifact, model)
    scores = assert_equal_bits(array(tmp_path, scheme), report.arena_bytes, model, tiny_artifacts.pixels(200))
    assert len(np.unique(scores, axis=0)) > 10
    # The border around a photo that a normalization per channel leaves (export.normalization).
    assert report.operators.get("CONCATENATION", 0) == (0 if normalization == "one scale" else 2)


def test_a_dense_layer_rounds_twice(tmp_path: Path) -> None:
    """All that tflite-micro computes otherwise; large accumulators, as in real backbones, make it rarer still."""
    artifact, model = tiny_artifact(tmp_path, "int8")
    report = mcu.write(tmp_path, artifact, model)
    pixels, reference = tiny_artifacts.pixels(2000), Model(model, kernels="reference")
    found = mcu.invoke(array(tmp_path, "int8"), pixels[:, None], reference, report.arena_bytes)
    difference = np.abs(found - reference.predict_batch(pixels))
    # Found: 9 of 9000 dense outputs off by one step, each moving three scores by up to two steps of 1/256.
    assert (difference.max(axis=1) > 0).mean() < 0.01
    assert difference.max() <= 2 / 256


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in families.FAMILIES if name != "ConvNeXtTiny"])
def test_families_score_alike(name: str, tmp_path: Path) -> None:
    model, photos = families.subject(name)  # ConvNeXt has no integer form
    made = Quantizer(model, photos).quantize(schemes.get("int8"))
    height, width, _ = photos[0].shape
    artifact, path = tiny_artifacts.artifact(tmp_path, "int8", made.tflite, ImageInput(height, width))
    report = mcu.write(tmp_path, artifact, path)
    pixels, reference = np.stack(photos[:2]), Model(path, kernels="reference")
    found = mcu.invoke(array(tmp_path, "int8"), pixels[:, None], reference, report.arena_bytes)
    # Two steps: the dense layer rounds twice there (see above). Of these families it shows in EfficientNetV2S, by one.
    np.testing.assert_allclose(found, reference.predict_batch(pixels), rtol=0, atol=2 / 256)


@pytest.mark.parametrize("scheme", ["float32", "mixed_int8"])
def test_float_models_run_too(scheme: str, tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, scheme)
    report = mcu.write(tmp_path, artifact, model)
    # A float can tip one integer score.
    assert report.max_difference <= mcu.FLOAT_TOLERANCE + (scheme != "float32") / 256
    assert any(operator.is_float for operator in operators(model.read_bytes()))


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["int8", "float32"])
def test_no_smaller_arena_would_do(scheme: str, tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, scheme)
    report = mcu.write(tmp_path, artifact, model)
    flash, none = array(tmp_path, scheme), np.empty((0, 1, *artifact.inputs.shape), artifact.input_type)
    assert report.arena_bytes % 16 == 0 and report.arena_bytes >= report.arena_recorded_bytes
    assert interpreter.invoke(flash, none, report.arena_bytes).recorded_bytes == report.arena_recorded_bytes
    for less in (16, report.arena_bytes // 2):
        with pytest.raises(ArtifactError, match="tflite-micro"):
            interpreter.invoke(flash, none, report.arena_bytes - less)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "lacking"),
    [
        ("float16", ("DEQUANTIZE",)),
        ("dynamic_int8", ("CONV_2D",)),
        ("int4_weights", ("DEQUANTIZE",)),
    ],
)
def test_schemes_that_tflm_does_not_know_are_refused(scheme: str, lacking: tuple[str, ...], tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, scheme)
    with pytest.raises(ArtifactError) as refused:
        mcu.write(tmp_path, artifact, model)
    message = str(refused.value)
    assert message.startswith(f"{scheme}.tflite: tflite-micro ") and "Choose scheme int8" in message
    assert tuple(re.findall(r"([A-Z_0-9]{4,}) \(", message)) == lacking and "\n" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) == [model.name]


def test_every_operator_that_tflm_lacks_is_named(tmp_path: Path) -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 4, 4, 3), tf.float32)])
    def forward(images: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(tf.reduce_mean(tf.pow(tf.sign(images), 3.0) + tf.exp(images / 255), (1, 2)))

    tflite = tf.lite.TFLiteConverter.from_concrete_functions([forward.get_concrete_function()]).convert()
    found = {operator.name for operator in operators(tflite)}
    assert {"SIGN", "POW", "EXP", "MEAN", "SOFTMAX"} <= found
    artifact, model = tiny_artifacts.artifact(tmp_path, "float32", tflite, ImageInput(4, 4))
    with pytest.raises(ArtifactError, match=r"does not take SIGN \(unknown\), POW \(unknown\)\. Choose"):
        mcu.write(tmp_path, artifact, model)


# --- the compiler -----------------------------------------------------------------------------------------------------

MAIN = """
#include <cstdint>
#include <cstdio>
#include "NAME.h"
int main() {
  if (reinterpret_cast<std::uintptr_t>(NAME::kData) % 16) return 1;
  std::printf("%zu %d %d %d %.9g %d %.9g %d\\n", NAME::kArenaSize, NAME::kInputHeight, NAME::kInputWidth,
              NAME::kInputChannels, static_cast<double>(NAME::kInputScale), NAME::kInputZeroPoint,
              static_cast<double>(NAME::kOutputScale), NAME::kOutputZeroPoint);
  for (const char* name : NAME::kClassNames) std::printf("%s\\n", name);
  std::fwrite(NAME::kData, 1, NAME::kSize, stdout);
}
"""

RESOLVER = """
#ifndef STAND_IN
#define STAND_IN
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
#define TF_LITE_ENSURE_STATUS(call) do { TfLiteStatus s = (call); if (s != kTfLiteOk) return s; } while (0)
namespace tflite {
template <unsigned int kCapacity>
class MicroMutableOpResolver {
  unsigned int added_ = 0;
  TfLiteStatus Add() { return added_++ < kCapacity ? kTfLiteOk : kTfLiteError; }
 public:
  bool full() const { return added_ == kCapacity; }
METHODS
};
}
#endif
"""
"""TFLM's own header comes with no package. This one has the methods of the real one that these models could need."""

OPERATORS_MAIN = """
#include "NAME_operators.h"
int main() {
  NAME::Resolver resolver;
  return NAME::AddOperators(resolver) == kTfLiteOk && resolver.full() ? 0 : 1;
}
"""


def compiled(folder: Path, main: str, *files: str, given: bytes = b"") -> bytes:
    """What a program prints, compiled with every warning an error; `given` is what it reads."""
    assert shutil.which("g++"), "g++ is missing: apt-get install g++"
    (folder / "main.cc").write_text(main)
    strict = ("-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wconversion", "-Wtrigraphs", "-I.")
    subprocess.run(["g++", *strict, "main.cc", *files, "-o", "main"], cwd=folder, check=True)
    return subprocess.run([folder / "main"], check=True, stdout=subprocess.PIPE, input=given).stdout


@pytest.mark.parametrize("scheme", [*INTEGERS, "float32"])
def test_a_compiler_takes_the_sources(scheme: str, tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, scheme)
    report = mcu.write(tmp_path, artifact, model)
    name = f"model_{scheme}"
    printed = compiled(tmp_path, MAIN.replace("NAME", name), f"{name}.cc")
    first, *names, data = printed.split(b"\n", 1 + len(CLASS_NAMES))
    assert tuple(each.decode() for each in names) == CLASS_NAMES
    assert data == array(tmp_path, scheme) == mcu.slim(model.read_bytes())
    tensors = Model(model)
    numbers = [float(number) for number in first.split()]
    assert numbers[:4] == [report.arena_bytes, *artifact.inputs.shape]
    ends = (tensors.input.scale, tensors.input.zero_point, tensors.output.scale, tensors.output.zero_point)
    assert numbers[4:] == [np.float32(number) for number in ends]


SAYING = """
#include <cstdio>
#include "NAME.h"
int main() {
  unsigned char stored[NAME::kKINDCount];
  while (std::fread(stored, 1, sizeof stored, stdin) == sizeof stored) {
    for (int i = 0; i < NAME::kKINDCount; ++i) {
      std::printf("%.9g ", static_cast<double>(VALUE));
    }
    std::printf("\\n");
  }
}
"""


@pytest.mark.parametrize(
    ("task", "kind", "value"),
    [
        ("multi_label", "Label", "stored[i] >= NAME::kThresholds[i]"),
        ("regression", "Target", "NAME::kOutputScale * static_cast<float>(stored[i] - NAME::kOutputZeroPoint)"),
    ],
)
def test_programs_read_labels_and_values_as_the_header_says(task: Task, kind: str, value: str, tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, "int8", task=task)
    report = mcu.write(tmp_path, artifact, model)
    pixels, reference = tiny_artifacts.pixels(50), Model(model, kernels="reference")
    # The dense layer rounds twice there: one step, and a sigmoid makes no more of it.
    found = mcu.invoke(array(tmp_path, "int8"), pixels[:, None], reference, report.arena_bytes)
    np.testing.assert_allclose(found, reference.predict_batch(pixels), rtol=0, atol=1.01 * artifact.output_scale)
    assert len(np.unique(found)) > 4
    stored = np.round(found / artifact.output_scale + artifact.output_zero_point).astype(np.uint8)
    main = SAYING.replace("VALUE", value).replace("KIND", kind).replace("NAME", "model_int8")
    printed = compiled(tmp_path, main, "model_int8.cc", given=stored.tobytes())
    said = np.array([line.split() for line in printed.decode().splitlines()], np.float32)
    expected = said_labels(found, artifact.outputs) if task == "multi_label" else found
    np.testing.assert_array_equal(said, expected.astype(np.float32))


def test_the_resolver_compiles(tmp_path: Path) -> None:
    artifact, model = tiny_artifact(tmp_path, "int8", "per channel")
    mcu.write(tmp_path, artifact, model)
    known = ("Concatenation", "Conv2D", "DepthwiseConv2D", "FullyConnected", "Mean", "Quantize", "Softmax")
    header = tmp_path / "tensorflow/lite/micro/micro_mutable_op_resolver.h"
    header.parent.mkdir(parents=True)
    header.write_text(
        RESOLVER.replace("METHODS", "\n".join(f"  TfLiteStatus Add{each}() {{ return Add(); }}" for each in known))
    )
    compiled(tmp_path, OPERATORS_MAIN.replace("NAME", "model_int8"))
