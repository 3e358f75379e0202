"""Tiny artifacts as a run has them, file and description, for whatever goes from there to a device."""

import hashlib
from functools import cache
from pathlib import Path

import keras
import numpy as np

from edgetl.backbones.backbone import Normalization
from edgetl.backbones.build import IMAGES, _normalize
from edgetl.backbones.registry import CAFFE, IMAGENET_STATISTICS, MINUS_1_TO_1
from edgetl.inputs import ImageInput
from edgetl.outputs import OutputSpec, Task
from export import metadata, schemes
from export.artifacts import Artifact
from export.choices import Choices
from export.flatbuffer import border, operators
from export.quantize import Quantizer

SIDE = 20
NORMALIZATIONS = {"one scale": MINUS_1_TO_1, "per channel": IMAGENET_STATISTICS, "BGR": CAFFE}
"""The last two leave a border around the photo in integer files: two CONCATENATION with constants."""
CLASS_NAMES = ('tab"by', "lion's", "naïve ??/ \\n 100%")
"""Three names that a C++ compiler could take for something else."""
CLASSES = OutputSpec("classification", CLASS_NAMES)
OUTPUTS: dict[Task, OutputSpec] = {
    "classification": CLASSES,
    "ordinal": OutputSpec("ordinal", CLASS_NAMES),
    "multi_label": OutputSpec("multi_label", CLASS_NAMES, thresholds=(0.565, 0.595, 0.495)),
    "regression": OutputSpec("regression", CLASS_NAMES, deviations=(2.0, 1.0, 3.0)),
}
"""Three outputs of each task."""
SPAN = (-4.0, 9.0)
"""Values that models of numbers are trained with."""


def pixels(n: int, seed: int = 0) -> np.ndarray:
    """Random photos, each around a colour of its own, uint8 [n, SIDE, SIDE, 3]."""
    random = np.random.default_rng(seed)
    noisy = random.uniform(0, 255, (n, 1, 1, 3)) + random.normal(0, 40, (n, SIDE, SIDE, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def tiny_artifact(
    folder: Path, scheme: str, normalization: str = "one scale", *, dense: bool = True, task: Task = "classification"
) -> tuple[Artifact, Path]:
    """Convert a network of five layers as every model is converted, and write <scheme>.tflite.

    Args:
        folder: where to.
        scheme: row of SCHEMES that needs no training; of mixed_int8 the first convolution stays in float.
        normalization: row of NORMALIZATIONS.
        dense: whether scores come from a dense layer; else from a convolution of one pixel, which computes the same.
        task: row of OUTPUTS.
    """
    tflite = converted(scheme, normalization, dense, task)
    return artifact(folder, scheme, tflite, ImageInput(SIDE, SIDE), OUTPUTS[task])


def artifact(
    folder: Path, scheme: str, tflite: bytes, inputs: ImageInput, outputs: OutputSpec = CLASSES
) -> tuple[Artifact, Path]:
    """Write any converted model of three outputs with its description."""
    about = metadata.Description("tiny", "Tiny.", outputs, inputs, scheme)
    content = metadata.attach(tflite, about)
    path = folder / f"{scheme}.tflite"
    path.write_bytes(content)
    source, sink = border(tflite)
    described = Artifact(
        scheme=scheme,
        path=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        inputs=inputs,
        input_type=source.type.lower(),
        input_scale=source.scale[0] if source.scale else 0.0,
        input_zero_point=source.zero_point[0] if source.zero_point else 0,
        outputs=outputs,
        output_type=sink.type.lower(),
        output_scale=sink.scale[0] if sink.scale else 0.0,
        output_zero_point=sink.zero_point[0] if sink.scale else 0,
        operators=len(operators(tflite)),
        run_sha256="",
        calibration=(),
        settings={},
        versions={},
    )
    return described, path


@cache
def converted(
    scheme: str, normalization: str = "one scale", dense: bool = True, task: Task = "classification"
) -> bytes:
    """The same as bytes, without metadata."""
    row = schemes.get(scheme)
    choices = Choices(float_layers=("first",)) if row.mixed else Choices()
    return quantizer(NORMALIZATIONS[normalization], dense, task).quantize(row, choices).tflite


@cache
def quantizer(
    normalization: Normalization = MINUS_1_TO_1, dense: bool = True, task: Task = "classification"
) -> Quantizer:
    """The network of a task, with photos to calibrate on."""
    keras.utils.set_random_seed(0)
    images = keras.Input((SIDE, SIDE, 3), name=IMAGES)
    x = _normalize(images, normalization)
    # 1296 weights: the converter quantizes none of fewer than 1024 for dynamic_int8.
    x = keras.layers.Conv2D(48, 3, 2, "same", activation="relu6", name="first")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
    x = keras.layers.GlobalAveragePooling2D(keepdims=not dense)(x)
    # Scores that differ from photo to photo, and values that span SPAN.
    wide = keras.initializers.RandomNormal(stddev=10.0 if task == "regression" else 0.5)
    if dense:
        x = keras.layers.Dense(len(CLASS_NAMES), kernel_initializer=wide, bias_initializer=wide)(x)
    else:
        x = keras.layers.Conv2D(len(CLASS_NAMES), 1, kernel_initializer=wide, bias_initializer=wide)(x)
        x = keras.layers.Flatten()(x)
    outputs = OUTPUTS[task]
    if outputs.exclusive:
        x = keras.layers.Softmax()(x)
    elif task == "multi_label":
        x = keras.layers.Activation("sigmoid")(x)
    span = SPAN if task == "regression" else None
    return Quantizer(keras.Model(images, x, name="tiny"), list(pixels(16, seed=1)), units=outputs.units, span=span)
