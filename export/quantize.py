"""(model, scheme, calibration photos) -> a checked artifact.

Integer artifacts are converted without the normalization layer where that layer is one scale and one offset for
all channels: the input tensor's own scale and zero point then do its work, and raw pixels are valid. Where
normalization differs per channel, the first convolution takes the rest (`export.normalization`). Scale and zero point
are asserted after the conversion.

float32, float16, dynamic_int8 and int16x8 come from TFLiteConverter. int8 and mixed_int8 come from the float twin with
ranges of our own (`export.calibrate`) through the quantizer that TFLiteConverter itself calls; int4 from
ai-edge-quantizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.console import swallowed_output
from edgetl.errors import ArtifactError, ConfigError
from export.calibrate import Calibration, Range
from export.choices import USUAL, Choices
from export.device.interpreter import Model
from export.flatbuffer import DEQUANTIZE, QUANTIZE, Operator, border, compact, operators, pack, unpack
from export.normalization import integer_form
from export.rounding import STEPS, rounded_copy
from export.saved_model import frozen_saved_model, to_tflite
from export.schemes import Scheme
from export.tensors import Tensors, gap, normalized

if TYPE_CHECKING:
    import keras

ROUNDING_IMAGES = 64
"""Calibration photos, at most, that mean inputs are measured on; means settle long before ranges do."""
CHECKED_IMAGES = 8
"""Calibration photos on which artifacts are compared with Keras."""
FLOAT_TOLERANCE = 1e-4
"""Largest difference of an output, in its unit, between Keras and a float form of it; other kernels sum in another
order."""


@dataclass(frozen=True)
class Quantized:
    """A model that has passed all checks of its scheme."""

    tflite: bytes
    operators: tuple[Operator, ...]


class Quantizer:
    """One Keras model and calibration photos; what several schemes need is computed once."""

    def __init__(
        self,
        model: "keras.Model",
        photos: Sequence[NDArray[np.uint8]],
        *,
        units: Sequence[float] = (1.0,),
        span: Range | None = None,
        rounding: bool = True,
    ) -> None:
        """Remember what to quantize.

        Args:
            model: raw pixels in; stays as it is.
            photos: of the training split, uint8 [h, w, 3].
            units: of the outputs, `OutputSpec.units`.
            span: values that an integer output must be able to tell; None where it is made of scores.
            rounding: whether integer weights are rounded so that errors cancel (`export.rounding`), or each to the
                nearest step, which keeps clusters together.
        """
        self.model = model
        self.photos = photos
        self.units, self._span = units, span
        self._rounding = rounding
        self._annotated: dict[str, bytes] = {}

    def quantize(self, scheme: Scheme, choices: Choices = USUAL) -> Quantized:
        """Convert the model under a scheme that needs no training.

        Raises:
            ConfigError: no operator computes a layer that is to stay in float.
            ArtifactError: the converter refuses the model, or the result breaks the contract of its scheme.
        """
        with swallowed_output():
            if scheme.activations == "int8":
                tflite = self._integer(scheme, choices)
                _, scale, offset = self.prepared
            else:
                tflite, scale, offset = self._by_converter(scheme), 1.0, 0.0
        found = check(tflite, scheme, scale, offset)
        if scheme.mixed:
            _check_float_part(found, self._operators_of(choices.float_layers))
        if scheme.io != "int8":  # which the interpreter takes only from a file with metadata
            few = np.stack(self.photos[: CHECKED_IMAGES if scheme.io == "float32" else 1])
            received = Model(tflite).predict_batch(few)
            if scheme.weights == "float32":
                check_equal(self.model, few.astype(np.float32), received, self.units)
            if not np.isfinite(received).all():
                raise ArtifactError(f"{scheme.name}: outputs are not finite (NaN or infinity). Nothing was written")
        return Quantized(tflite, found)

    @cached_property
    def _integer_form(self) -> tuple["keras.Model", float, float]:
        model, scale, offset = integer_form(self.model)
        few = self.photos[:CHECKED_IMAGES]
        expected = np.asarray(model(np.concatenate(list(normalized(few, scale, offset))), training=False))
        check_equal(self.model, np.stack(few).astype(np.float32), expected, self.units)
        return model, scale, offset

    @cached_property
    def prepared(self) -> tuple["keras.Model", float, float]:
        """The model that integer schemes freeze, and the scale and offset that it expects of raw pixels."""
        model, scale, offset = self._integer_form
        return self._rounded(model, "int8", scale, offset), scale, offset

    @cached_property
    def twin(self) -> bytes:
        """The same as float .tflite: operator for operator what int8 computes."""
        return self._float_form(self.prepared[0])

    @cached_property
    def exact_twin(self) -> bytes:
        """The twin with its weights as they were before they were rounded to the grid of int8."""
        return self._float_form(self._integer_form[0])

    def _float_form(self, model: "keras.Model") -> bytes:
        _, scale, offset = self.prepared
        with frozen_saved_model(model) as saved_model:
            tflite = to_tflite(saved_model)
        images = np.concatenate(list(normalized(self.photos[:CHECKED_IMAGES], scale, offset)))
        check_equal(model, images, Tensors(tflite).outputs(images), self.units)
        return tflite

    @cached_property
    def calibration(self) -> Calibration:
        """What the activations of the twin are."""
        _, scale, offset = self.prepared
        return Calibration(self.twin, self.photos, scale, offset, self._span)

    def annotated(self, ranges: str) -> bytes:
        """The twin with ranges, for TensorFlow's quantizer."""
        if ranges not in self._annotated:
            self._annotated[ranges] = self.calibration.annotated(ranges)
        return self._annotated[ranges]

    def _integer(self, scheme: Scheme, choices: Choices) -> bytes:
        import tensorflow as tf
        from tensorflow.lite.python.convert import mlir_quantize
        from tensorflow.lite.python.convert_phase import ConverterError

        io = tf.dtypes.as_dtype(scheme.io)
        exempt = self._operators_of(choices.float_layers) if scheme.mixed else set()
        try:
            quantized = mlir_quantize(
                self._with_exact_weights(self.annotated(choices.ranges), exempt),
                input_data_type=io,
                output_data_type=io,
                denylisted_nodes=sorted(exempt) or None,
            )
        except ConverterError as error:
            raise ArtifactError(f"{scheme.name}: TensorFlow's quantizer refuses the model: {error}") from error
        return compact(bytes(quantized))

    def _with_exact_weights(self, twin: bytes, exempt: set[str]) -> bytes:
        """Give operators that stay in float their weights back as they were."""
        if not exempt:
            return twin
        model, exact = unpack(twin), unpack(self.exact_twin)
        graph = model.subgraphs[0]
        for operator in graph.operators:
            if graph.tensors[operator.outputs[0]].name.decode() in exempt:
                for index in operator.inputs[1:]:
                    buffer = exact.subgraphs[0].tensors[index].buffer
                    model.buffers[graph.tensors[index].buffer].data = exact.buffers[buffer].data
        return pack(model)

    def _by_converter(self, scheme: Scheme) -> bytes:
        model = self.model
        if scheme.weights in STEPS:
            model = self._rounded(model, scheme.weights, 1.0, 0.0)
        with frozen_saved_model(model) as saved_model:
            tflite = to_tflite(saved_model, lambda converter: _configure(converter, scheme, self.photos))
        return _int4_weights(tflite) if scheme.weights == "int4" else tflite

    def _rounded(self, model: "keras.Model", weights: str, scale: float, offset: float) -> "keras.Model":
        if not self._rounding:
            return model
        spread = self.photos[:: -(-len(self.photos) // ROUNDING_IMAGES)]
        return rounded_copy(model, np.concatenate(list(normalized(spread, scale, offset))), STEPS[weights])

    def _operators_of(self, layers: Sequence[str]) -> set[str]:
        """Names of the twin's operators (of what they write) that compute given Keras layers.

        Raises:
            ConfigError: no operator computes a layer.
        """
        written = (
            {op.outputs[0].name: keras_layers(op.outputs[0].name) for op in operators(self.twin)} if layers else {}
        )
        unknown = [layer for layer in layers if not any(layer in computed for computed in written.values())]
        if unknown:
            known = sorted(set().union(*written.values()))
            raise ConfigError(f"no operator computes layer {', '.join(unknown)}. There are: {', '.join(known)}")
        return {name for name, computed in written.items() if computed & set(layers)}


def keras_layers(tensor: str) -> frozenset[str]:
    """Keras layers that an operator computes, from the name of the tensor that it writes.

    The converter joins the names of what it fused: `model_1/conv_1/convolution;model_1/bn_1/batchnorm/mul1`.
    """
    scopes = (part.split("/") for part in tensor.split(";"))
    # The number of its call stands behind each layer's name.
    return frozenset(scope[1].removesuffix("_1") for scope in scopes if len(scope) > 2)


def _configure(converter: Any, scheme: Scheme, photos: Sequence[NDArray[np.uint8]]) -> None:
    """Set the options of a TFLiteConverter."""
    import tensorflow as tf

    if scheme.weights in ("float16", "int8"):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme.weights == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme.activations == "int16":
        integer = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [integer]
        converter.representative_dataset = lambda: ([image] for image in normalized(photos, 1.0, 0.0))


def _int4_weights(tflite: bytes) -> bytes:
    """Store the weights of a float model in 4 bits, one scale per channel."""
    from ai_edge_quantizer import quantizer, recipe

    worker = quantizer.Quantizer(bytearray(tflite), recipe.weight_only_wi4_afp32())
    return compact(bytes(worker.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model))


def check(tflite: bytes, scheme: Scheme, scale: float, offset: float) -> tuple[Operator, ...]:
    """Refuse a model that breaks the contract of its scheme.

    Args:
        tflite: the model.
        scheme: what it was made for.
        scale: that the model expects of raw pixels (1 where it normalizes them itself).
        offset: likewise (0).

    Returns:
        The operators of the model.

    Raises:
        ArtifactError: Flex or custom operators, leftover variables; an input or output of another type; in an integer
            artifact also float operators, inner QUANTIZE, or an input tensor for which raw pixels are not valid.
    """
    found = operators(tflite)
    foreign = sorted({op.name for op in found if op.custom or op.name.startswith(("VAR_HANDLE", "READ_VARIABLE"))})
    if foreign:
        raise ArtifactError(f"{scheme.name}: operators that devices lack: {', '.join(foreign)}. Nothing was written")
    if scheme.integer:
        _check_integer(found, scheme)
    if scheme.io != "float32":
        _check_border(tflite, scheme, scale, offset)
    return found


def _check_integer(found: tuple[Operator, ...], scheme: Scheme) -> None:
    floats = sorted({op.name for op in found if op.is_float})
    if floats:
        raise ArtifactError(
            f"{scheme.name}: these operators stay in floating point: {', '.join(floats)}. "
            "This backbone has no integer-only form; use float16 or dynamic_int8"
        )
    inner = [op.name for op in found[1:-1] if op.name == QUANTIZE]
    if inner:
        raise ArtifactError(f"{scheme.name}: {len(inner)} QUANTIZE inside the graph. Use float16 or dynamic_int8")


def _check_border(tflite: bytes, scheme: Scheme, expected_scale: float, expected_offset: float) -> None:
    first, last = border(tflite)
    if (first.type.lower(), last.type.lower()) != (scheme.io, scheme.io):
        raise ArtifactError(f"{scheme.name}: input {first.type}, output {last.type}; expected {scheme.io}")
    # scale * (stored - zero_point) must equal expected_scale * pixel + expected_offset for stored = pixel (less 128 for
    # int8); the zero point is a whole number, so an offset such as -1 = -127.5 * 2/255 is met up to half a step.
    (scale,), (zero_point,) = first.scale, first.zero_point
    expected = -expected_offset / expected_scale - (128 if scheme.io == "int8" else 0)
    if abs(scale / expected_scale - 1) > 1e-4 or abs(zero_point - expected) > 0.501:
        raise ArtifactError(
            f"{scheme.name}: raw pixels are not valid for the input tensor (scale {scale:.6g}, zero point "
            f"{zero_point}; expected {expected_scale:.6g}, {expected:.4g}). Not written"
        )


def _check_float_part(found: tuple[Operator, ...], wanted: set[str]) -> None:
    """Refuse a mixed artifact in which other operators compute in floating point than those that were named."""
    others = [op for op in found if op.is_float and op.name not in (QUANTIZE, DEQUANTIZE)]
    strange = sorted({op.name for op in others if op.outputs[0].name not in wanted})
    if strange:
        raise ArtifactError(f"mixed_int8: {', '.join(strange)} in floating point as well. Name other layers")


def check_equal(
    model: "keras.Model",
    images: NDArray[np.float32],
    received: NDArray[np.float32],
    units: Sequence[float] = (1.0,),
) -> None:
    """Refuse a float form whose outputs differ from those of the Keras model.

    Args:
        model: the Keras model.
        images: as the model takes them, [n, h, w, 3].
        received: what its float form gave for them, [n, k].
        units: of the outputs, `OutputSpec.units`.

    Raises:
        ArtifactError: not finite, or further apart than FLOAT_TOLERANCE.
    """
    apart = gap(np.asarray(model(images, training=False)), received, units)
    if not apart <= FLOAT_TOLERANCE:
        raise ArtifactError(
            f"float32: outputs differ from Keras by {apart:.3g}, allowed {FLOAT_TOLERANCE}. Not written"
        )
