"""Ranges are those of the activations, of pixels at the input, and give what TFLiteConverter gives."""

from collections import Counter
from functools import cache, partial
from typing import Any

import keras
import numpy as np
import pytest
from photos import make_photo

from edgetl.console import swallowed_output
from edgetl.errors import ArtifactError, ConfigError
from edgetl.outputs import OutputSpec
from export import metadata, schemes
from export.calibrate import BINS, METHODS, Calibration, least_squares, percentile
from export.choices import Choices, refuse_choices
from export.device.interpreter import Model
from export.flatbuffer import DEQUANTIZE, FLOAT_TYPES, QUANTIZE, TensorType, border, operators, unpack
from export.quantize import Quantized, Quantizer, keras_layers
from export.saved_model import frozen_saved_model, to_tflite
from export.tensors import Tensors, normalized

SIDE = 16
PHOTOS = [make_photo(number % 3, number, (SIDE, SIDE)) for number in range(12)]


@cache
def network() -> keras.Model:
    """One of everything: normalization, convolution with BatchNorm, depthwise, addition, pooling, classifier."""
    keras.utils.set_random_seed(5)
    layers = keras.layers
    images = keras.Input((SIDE, SIDE, 3), name="images")
    x = layers.Rescaling(1 / 127.5, -1.0, name="normalize")(images)
    x = layers.Conv2D(32, 3, padding="same", use_bias=False, name="stem_conv")(x)
    x = layers.BatchNormalization(name="stem_bn")(x)
    first = layers.ReLU(6.0, name="stem_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="deep")(first)
    x = layers.Conv2D(32, 1, name="project")(x)
    x = layers.Add(name="sum")([x, first])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(48, activation="relu", name="hidden")(x)
    model = keras.Model(images, layers.Dense(3, activation="softmax", name="classifier")(x), name="net")
    model.get_layer("stem_bn").set_weights([np.full(32, v, np.float32) for v in (1.2, 0.3, 0.1, 0.8)])
    return model


@cache
def quantizer() -> Quantizer:
    return Quantizer(network(), PHOTOS)


@cache
def made(name: str, float_layers: tuple[str, ...] = ()) -> Quantized:
    return quantizer().quantize(schemes.get(name), Choices(float_layers=float_layers))


def readable(tflite: bytes, run_scheme: str = "int8_io8") -> Model:
    """An int8 input is taken only from a file that says how pixels become int8."""
    from edgetl.inputs import ImageInput

    about = metadata.Description(
        "net", "test", OutputSpec("classification", ("a", "b", "c")), ImageInput(SIDE, SIDE), run_scheme
    )
    return Model(metadata.attach(tflite, about))


# --- ranges ---------------------------------------------------------------------------------------------------------


def test_extremes_are_those_of_the_activations() -> None:
    model, scale, offset = quantizer().prepared
    inputs = np.concatenate(list(normalized(PHOTOS, scale, offset)))
    inner = keras.Model(model.input, [model.get_layer(name).output for name in ("stem_relu", "project", "sum")])
    seen = [np.asarray(one) for one in inner(inputs)]
    calibration = quantizer().calibration
    names = Tensors(quantizer().twin).names
    by_layer = {layer: i for i, name in names.items() for layer in keras_layers(name)}
    for layer, values in zip(("stem_relu", "project", "sum"), seen, strict=True):
        # Two kernels for one float computation.
        assert calibration.extremes[by_layer[layer]] == pytest.approx((values.min(), values.max()), abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_input_has_the_range_of_pixels_whatever_the_photos_hold(method: str) -> None:
    dark = [photo // 4 + 20 for photo in PHOTOS[:3]]
    calibration = Calibration(quantizer().twin, dark, 1 / 127.5, -1.0)
    index = int(unpack(quantizer().twin).subgraphs[0].inputs[0])
    assert calibration.extremes[index][1] < 0
    assert calibration.ranges(method)[index] == pytest.approx((-1.0, 1.0))


@pytest.mark.slow
def test_pixels_keep_their_range_on_the_way_to_the_first_convolution() -> None:
    """EfficientNetB0 writes its border out (`export.normalization`); one scale has to serve pixels and border."""
    from edgetl.backbones.build import build
    from edgetl.inputs import ImageInput

    keras.utils.set_random_seed(0)
    backbone = build("EfficientNetB0", ImageInput(32, 32), "none")
    model = keras.Model(backbone.input, keras.layers.Dense(3, activation="softmax")(backbone.output))
    dark = [make_photo(number % 3, number, (32, 32)) // 4 + 20 for number in range(4)]
    quantizer = Quantizer(model, dark)
    _, scale, offset = quantizer.prepared
    for method in ("min-max", "mse"):
        first, _ = border(quantizer.quantize(schemes.get("int8"), Choices(ranges=method)).tflite)
        assert first.scale == pytest.approx((scale,)) and abs(first.zero_point[0] + offset / scale) <= 0.501


def test_percentiles_leave_out_the_outermost_and_keep_zero() -> None:
    histogram = np.zeros(BINS, np.int64)
    histogram[: BINS // 2] = 1000
    histogram[-1] = 1
    choose = partial(percentile, 0.999)
    low, high = choose(histogram, 0.0, 2048.0)
    # 1,024,001 values, 512 of them (half of a thousandth) cut off at each end: the outlier and half a bin.
    assert low == 0.0 and 1023 <= high <= 1025
    assert choose(histogram, 10.0, 2058.0)[0] == 0.0
    everything = np.zeros(BINS, np.int64)
    everything[5] = 7
    assert choose(everything, -4.0, 4.0)[0] <= -4 + 6 * 8 / BINS


def test_one_odd_photo_in_fifty_does_not_make_the_steps_coarse() -> None:
    photos = [np.full((SIDE, SIDE, 3), 100 + number % 5, np.uint8) for number in range(60)]
    ordinary = Calibration(quantizer().twin, photos, 1 / 127.5, -1.0)
    odd = Calibration(quantizer().twin, [*photos[1:], PHOTOS[0]], 1 / 127.5, -1.0)
    index = next(i for i, name in Tensors(quantizer().twin).names.items() if "stem_relu" in keras_layers(name))
    assert odd.ranges("min-max")[index][1] > 1.05 * ordinary.ranges("min-max")[index][1]
    assert odd.ranges("no-odd-photos")[index] == pytest.approx(ordinary.ranges("no-odd-photos")[index], rel=0.02)


def test_least_squares_cuts_a_long_tail_and_nothing_of_a_flat_one() -> None:
    assert least_squares(np.full(BINS, 1000, np.int64), -1.0, 1.0) == (-1.0, 1.0)
    tail = np.full(BINS, 0, np.int64)
    tail[: BINS // 10], tail[-1] = 100_000, 1
    low, high = least_squares(tail, 0.0, 100.0)
    assert low == 0.0 and 10 <= high < 40


def test_ranges_of_ours_give_what_tfliteconverter_gives() -> None:
    contrasty = PHOTOS[0].copy()
    contrasty[0, 0], contrasty[0, 1] = 0, 255  # TFLiteConverter takes the input's range from the photos
    photos = [contrasty, *PHOTOS[1:]]
    quantizer = Quantizer(network(), photos)
    model, scale, offset = quantizer.prepared

    def configure(converter: Any) -> None:
        import tensorflow as tf

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image] for image in normalized(photos, scale, offset))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8

    with swallowed_output(), frozen_saved_model(model) as saved_model:
        theirs = to_tflite(saved_model, configure)
    ours = quantizer.quantize(schemes.get("int8")).tflite
    assert [op.name for op in operators(ours)] == [op.name for op in operators(theirs)]
    written = [(x.outputs[0], y.outputs[0]) for x, y in zip(operators(ours), operators(theirs), strict=True)]
    # Other kernels sum in another order.
    other = [(a, b) for a, b in written if a.type != b.type or a.scale != pytest.approx(b.scale, rel=1e-5)]
    # Their calibration reads a tensor again after the ADD that took it has written over it in place, and believes
    # that the branch ranges as widely as the sum. Ours keeps every tensor.
    (branch, theirs_of_it), *rest = other
    assert not rest and keras_layers(branch.name) == {"project"}
    total = next(b for _, b in written if "sum" in keras_layers(b.name))
    assert theirs_of_it.scale == total.scale and branch.scale[0] < 0.6 * total.scale[0]


# --- schemes --------------------------------------------------------------------------------------------------------


def types(found: Quantized) -> set[str]:
    return {tensor.type for op in found.operators for tensor in (*op.inputs, *op.outputs)}


def weights(found: Quantized) -> Counter[str]:
    return Counter(
        t.type for op in found.operators for t in op.inputs if t.constant and op.name.endswith(("2D", "CTED"))
    )


@pytest.mark.parametrize("scheme", ["int8", "int8_io8"])
def test_integer_schemes_hold_no_float_tensor(scheme: str) -> None:
    found = made(scheme)
    assert not types(found) & set(FLOAT_TYPES)
    assert types(found) <= {"INT8", "UINT8", "INT32"}
    first, last = border(found.tflite)
    assert (first.type.lower(), last.type.lower()) == (schemes.get(scheme).io,) * 2
    assert (DEQUANTIZE in {op.name for op in found.operators}) is False
    # Pixels are valid as they are: real = (stored - zero point) / 127.5, and int8 stores pixel - 128.
    shift = 128 if scheme == "int8_io8" else 0
    assert first.scale == pytest.approx((1 / 127.5,)) and abs(first.zero_point[0] + shift - 127.5) <= 0.501


def test_int8_in_and_out_gives_what_uint8_gives() -> None:
    photos = np.stack(PHOTOS)
    np.testing.assert_array_equal(
        readable(made("int8_io8").tflite).predict_batch(photos), Model(made("int8").tflite).predict_batch(photos)
    )


def test_int16x8_computes_in_16_bits_with_weights_of_8() -> None:
    found = made("int16x8")
    inner = {op.name: op for op in found.operators}
    assert inner["CONV_2D"].inputs[0].type == inner["CONV_2D"].outputs[0].type == "INT16"
    assert inner["CONV_2D"].inputs[1].type == "INT8"
    # Float only at the border, where the caller gives and takes it.
    assert {op.name for op in found.operators if op.is_float} == {QUANTIZE, DEQUANTIZE}
    photos = np.stack(PHOTOS)
    exact, ours, coarse = (Model(made(name).tflite).predict_batch(photos) for name in ("float32", "int16x8", "int8"))
    assert np.abs(ours - exact).max() < 0.02 and np.abs(ours - exact).max() <= np.abs(coarse - exact).max() + 1e-3


def test_int4_stores_four_bits_per_weight() -> None:
    found = made("int4_weights")
    assert "INT4" in types(found)
    pointwise = next(op for op in found.operators if op.name == DEQUANTIZE and op.inputs[0].type == "INT4")
    assert pointwise.outputs[0].type == "FLOAT32"
    assert {op.name for op in found.operators if op.custom} == set()
    assert len(found.tflite) < len(made("float32").tflite)
    assert np.isfinite(Model(found.tflite).predict_batch(np.stack(PHOTOS))).all()


def test_mixed_leaves_the_named_layers_in_float_and_no_other() -> None:
    found = made("mixed_int8", ("deep", "classifier"))
    floats = [op for op in found.operators if op.is_float and op.name not in (QUANTIZE, DEQUANTIZE)]
    assert sorted(op.name for op in floats) == ["DEPTHWISE_CONV_2D", "FULLY_CONNECTED"]
    assert all(keras_layers(op.outputs[0].name) & {"deep", "classifier"} for op in floats)
    assert "CONV_2D" in {op.name for op in found.operators if not op.is_float}
    assert [t.type for t in border(found.tflite)] == ["UINT8", "UINT8"]
    photos = np.stack(PHOTOS)
    exact = Model(made("float32").tflite).predict_batch(photos)
    assert np.abs(Model(found.tflite).predict_batch(photos) - exact).max() < 0.1


def test_mixed_with_everything_in_float_is_float() -> None:
    layers = ("stem_conv", "deep", "project", "sum", "pool", "hidden", "classifier")
    found = made("mixed_int8", layers)
    exact = Model(made("float32").tflite).predict_batch(np.stack(PHOTOS))
    # Weights are as they were; what is left of int8 is the softmax, whose input and output are in steps.
    assert np.abs(Model(found.tflite).predict_batch(np.stack(PHOTOS)) - exact).max() <= 1 / 256


def test_layers_that_are_not_there_are_told_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no operator computes layer nowhere\. There are: .*deep.*hidden"):
        quantizer().quantize(schemes.get("mixed_int8"), Choices(float_layers=("deep", "nowhere")))
    with pytest.raises(ConfigError, match="name the layers that stay in float with --float-layers"):
        refuse_choices([schemes.get("mixed_int8")], Choices())
    with pytest.raises(ConfigError, match=r"--ranges widest: unknown\. Choose from: min-max"):
        refuse_choices([schemes.get("int8")], Choices(ranges="widest"))
    with pytest.raises(ConfigError, match="--float-layers deep: is for mixed_int8"):
        refuse_choices([schemes.get("int8")], Choices(float_layers=("deep",)))
    with pytest.raises(ConfigError, match="--ranges mse: is for int8, int8_io8 and mixed_int8"):
        refuse_choices([schemes.get("float32"), schemes.get("qat_int8")], Choices(ranges="mse"))


def test_names_of_fused_operators_name_their_layers() -> None:
    joined = "net_1/stem_relu_1/Relu6;net_1/stem_bn_1/batchnorm/add_1;net_1/stem_conv_1/convolution1"
    assert keras_layers(joined) == {"stem_relu", "stem_bn", "stem_conv"}
    assert keras_layers("net_1/activation_1_1/Relu") == {"activation_1"}
    assert keras_layers("serving_default_images:0") == frozenset()


def test_composed_names_are_rows_of_their_own() -> None:
    pruned = schemes.get("pruned_qat_int8")
    assert (pruned.name, pruned.compression, pruned.trained) == ("pruned_qat_int8", "pruned", True)
    assert schemes.get("int8").compression == ""
    for wrong in ("pruned", "pruned_", "pruned_pruned_int8", "clustered_int9", "", "pruned_clustered_int8"):
        with pytest.raises(ConfigError, match="unknown scheme"):
            schemes.get(wrong)


@keras.saving.register_keras_serializable("edgetl-tests")
class Bessel(keras.layers.Layer):  # type: ignore[misc]
    """No built-in operator of TFLite computes this."""

    def call(self, x: Any) -> Any:
        import tensorflow as tf

        return tf.math.bessel_i1e(x)


def test_an_operator_that_devices_lack_is_told_with_its_layer() -> None:
    images = keras.Input((SIDE, SIDE, 3), name="images")
    x = keras.layers.GlobalAveragePooling2D()(Bessel(name="strange")(images))
    model = keras.Model(images, keras.layers.Dense(3, activation="softmax")(x))
    with pytest.raises(ArtifactError, match="no built-in operator for BesselI1e in layer strange"):
        Quantizer(model, PHOTOS).quantize(schemes.get("float32"))


def test_numbers_that_are_none_are_refused() -> None:
    images = keras.Input((SIDE, SIDE, 3), name="images")
    model = keras.Model(
        images, keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling2D()(images))
    )
    model.layers[-1].set_weights([np.full((3, 3), np.nan, np.float32), np.zeros(3, np.float32)])
    for scheme in ("float32", "float16"):
        with pytest.raises(ArtifactError, match=r"differ from Keras by nan|not finite"):
            Quantizer(model, PHOTOS).quantize(schemes.get(scheme))


def test_pruned_weights_stay_zero_when_the_others_are_rounded() -> None:
    model = keras.models.clone_model(network())
    model.set_weights(
        [np.where(np.abs(w) < np.median(np.abs(w)), 0, w) if w.ndim == 4 else w for w in network().get_weights()]
    )
    tree = unpack(Quantizer(model, PHOTOS).quantize(schemes.get("int8")).tflite)
    kernel = next(t for t in tree.subgraphs[0].tensors if t.type == 9 and list(t.shape) == [32, 1, 1, 32])
    stored = np.frombuffer(tree.buffers[kernel.buffer].data.tobytes(), np.int8)
    assert 0.48 <= (stored == 0).mean() <= 0.55  # half of them, and what rounds to zero by itself


def test_tensor_types_know_their_scales() -> None:
    first, last = border(made("int8").tflite)
    assert isinstance(first, TensorType) and last.scale == (1 / 256,) and last.zero_point == (0,)
