"""(model, scheme, calibration images) -> a checked artifact.

Integer artifacts are converted without the normalization layer where that layer is one scale and one offset for
all channels: the input tensor's own scale and zero point then do its work, and raw uint8 pixels are valid. Where
normalization differs per channel, or is inside the backbone, it stays in the graph and the input tensor has scale 1 and
zero point 0. Both are asserted after the conversion.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ArtifactError
from export.device.interpreter import Model
from export.flatbuffer import QUANTIZE, Operator, operators
from export.rounding import rounded_copy
from export.saved_model import to_tflite
from export.schemes import Scheme

if TYPE_CHECKING:
    import keras

ROUNDING_IMAGES = 64
"""Calibration photos, at most, that mean inputs are measured on; means settle long before ranges do."""
FLOAT_TOLERANCE = 1e-4
"""Largest difference of a probability between Keras and the float32 artifact; other kernels sum in another order."""


@dataclass(frozen=True)
class Graph:
    """A SavedModel and what was taken out of it: it expects `pixels * scale + offset`."""

    saved_model: Path
    scale: float = 1.0
    offset: float = 0.0


def without_normalization(model: "keras.Model") -> tuple["keras.Model", float, float]:
    """Cut off a normalization that is the same for all channels.

    Returns:
        The model behind it, and the scale and offset that its input now expects of raw pixels (1 and 0, and the
        model as it was, where there is nothing to cut).
    """
    import keras

    from edgetl.backbones.build import NORMALIZE_LAYER

    layer = next((x for x in model.layers if x.name == NORMALIZE_LAYER), None)
    if not isinstance(layer, keras.layers.Rescaling) or np.ndim(layer.scale) or np.ndim(layer.offset):
        return model, 1.0, 0.0
    # Keras would number an unnamed model, tensors are named after it, and no two conversions would give the same bytes.
    part = keras.Model(layer.output, model.output, name=model.name)
    return part, float(layer.scale), float(layer.offset)


def prepare(
    model: "keras.Model", scheme: Scheme, calibration: Sequence[NDArray[np.uint8]]
) -> tuple["keras.Model", float, float]:
    """Turn the run's model into the one that a scheme freezes.

    Args:
        model: raw pixels in; stays as it is.
        scheme: a row of SCHEMES.
        calibration: photos, uint8 [h, w, 3]; used where weights become int8.

    Returns:
        A model, and the scale and offset that its input expects of raw pixels.
    """
    scale, offset = 1.0, 0.0
    if scheme.io == "uint8":
        model, scale, offset = without_normalization(model)
    if scheme.weights == "int8":
        spread = calibration[:: -(-len(calibration) // ROUNDING_IMAGES)]
        model = rounded_copy(model, np.stack(spread).astype(np.float32) * np.float32(scale) + np.float32(offset))
    return model, scale, offset


def quantize(graph: Graph, scheme: Scheme, calibration: Sequence[NDArray[np.uint8]]) -> bytes:
    """Convert a graph under a scheme.

    Args:
        graph: frozen from what `prepare` returns.
        scheme: a row of SCHEMES.
        calibration: photos, uint8 [h, w, 3]; used by integer schemes only.
    """

    def configure(converter: Any) -> None:
        import tensorflow as tf

        if scheme.weights != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if scheme.weights == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if scheme.activations == "int8":
            converter.representative_dataset = lambda: _normalized(calibration, graph)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.uint8

    return to_tflite(graph.saved_model, configure)


def _normalized(calibration: Sequence[NDArray[np.uint8]], graph: Graph) -> Iterator[list[NDArray[np.float32]]]:
    """The calibration photos as the graph takes them.

    Min-max calibration sets the input tensor's range to what it has seen. Two corner pixels of the first photo are
    set to 0 and 255, so that the range is that of raw pixels whatever the photos hold.
    """
    for index, pixels in enumerate(calibration):
        image = pixels[None].astype(np.float32)
        if index == 0:
            image[0, 0, 0] = 0.0
            image[0, -1, -1] = 255.0
        yield [image * np.float32(graph.scale) + np.float32(graph.offset)]


def check(tflite: bytes, scheme: Scheme, scale: float, offset: float) -> tuple[Operator, ...]:
    """Refuse a model that breaks the contract of its scheme.

    Args:
        tflite: the model.
        scheme: what it was made for.
        scale: of raw pixels, as `prepare` returned it.
        offset: likewise.

    Returns:
        The operators of the model.

    Raises:
        ArtifactError: Flex or custom operators, leftover variables; in an integer artifact also float operators,
            inner QUANTIZE, an input or output other than uint8, or an input tensor for which raw pixels are not valid.
    """
    found = operators(tflite)
    foreign = sorted({op.name for op in found if op.custom or op.name.startswith(("VAR_HANDLE", "READ_VARIABLE"))})
    if foreign:
        raise ArtifactError(f"{scheme.name}: operators that devices lack: {', '.join(foreign)}. Nothing was written")
    if scheme.io == "uint8":
        _check_integer(tflite, found, scheme, scale, offset)
    return found


def _check_integer(
    tflite: bytes, found: tuple[Operator, ...], scheme: Scheme, expected_scale: float, expected_offset: float
) -> None:
    floats = sorted({op.name for op in found if op.is_float})
    if floats:
        raise ArtifactError(
            f"{scheme.name}: these operators stay in floating point: {', '.join(floats)}. "
            "This backbone has no integer-only form; use float16 or dynamic_int8"
        )
    inner = [op.name for op in found[1:-1] if op.name == QUANTIZE]
    if inner:
        raise ArtifactError(f"{scheme.name}: {len(inner)} QUANTIZE inside the graph. Use float16 or dynamic_int8")
    model = Model(tflite)
    if (model.input.dtype, model.output.dtype) != ("uint8", "uint8"):
        raise ArtifactError(f"{scheme.name}: input {model.input.dtype}, output {model.output.dtype}; expected uint8")
    # scale * (q - zero_point) must equal expected_scale * pixel + expected_offset for q = pixel; the zero point is a
    # whole number, so an offset such as -1 = -127.5 * 2/255 is met up to half a step.
    scale, zero_point = model.input.scale, model.input.zero_point
    if abs(scale / expected_scale - 1) > 1e-4 or abs(zero_point + expected_offset / expected_scale) > 0.501:
        raise ArtifactError(
            f"{scheme.name}: raw pixels are not valid for the input tensor (scale {scale:.6g}, zero point "
            f"{zero_point}; expected {expected_scale:.6g}, {-expected_offset / expected_scale:.4g}). Not written"
        )


def check_equal(model: "keras.Model", tflite: bytes, images: Sequence[NDArray[np.uint8]]) -> None:
    """Refuse a float32 artifact whose outputs differ from Keras.

    Raises:
        ArtifactError: not finite, or further apart than FLOAT_TOLERANCE.
    """
    expected = np.asarray(model(np.stack(images).astype(np.float32), training=False))
    received = Model(tflite).predict_batch(np.stack(images))
    gap = float(np.abs(expected - received).max())
    if not gap <= FLOAT_TOLERANCE:
        raise ArtifactError(f"float32: outputs differ from Keras by {gap:.3g}, allowed {FLOAT_TOLERANCE}. Not written")
