"""A normalization costs an integer network no operator, and no pixel any precision, the outermost included."""

from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import skimage
from PIL import Image

from edgetl.backbones.backbone import Normalization
from edgetl.backbones.build import IMAGES, NORMALIZE_LAYER, _normalize, build
from edgetl.backbones.registry import BACKBONES, CAFFE, EFFICIENTNET_LITE, IMAGENET_STATISTICS, MINUS_1_TO_1
from edgetl.inputs import ImageInput
from export import schemes
from export.device.interpreter import Model
from export.flatbuffer import QUANTIZE, operators
from export.normalization import MeanBorder, integer_form, one_operator
from export.quantize import Quantizer

slow = pytest.mark.slow
SIDE = 48
PER_CHANNEL = [pytest.param(IMAGENET_STATISTICS, id="statistics"), pytest.param(CAFFE, id="BGR")]
ALL_KINDS = [*PER_CHANNEL, pytest.param(MINUS_1_TO_1, id="-1..1"), pytest.param(EFFICIENTNET_LITE, id="lite")]
IN_INT8 = [
    pytest.param(*each.values, id=each.id, marks=slow if each.id in ("BGR", "lite") else ()) for each in ALL_KINDS
]
"""Half a second each; BGR is also that of VGG16 among the backbones."""
BORDER = ["CONCATENATION", "CONCATENATION"]


@cache
def photos(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Real ones, uint8 [n, height, width, 3]; among them white and black."""
    paths = [Path(skimage.__file__).parent / "data" / name for name in ("astronaut.png", "chelsea.png", "rocket.jpg")]
    images = [Image.open(path).convert("RGB").resize((width, height), Image.Resampling.NEAREST) for path in paths]
    found = np.stack([np.asarray(image) for image in images])
    assert (found.min(), found.max()) == (0, 255)
    return found


def floats(pixels: np.ndarray, scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
    return pixels.astype(np.float32) * np.float32(scale) + np.float32(offset)


def network(
    normalization: Normalization, *after: keras.layers.Layer, height: int = SIDE, width: int = SIDE
) -> keras.Model:
    """Raw pixels -> `normalize` -> some layers."""
    keras.utils.set_random_seed(0)
    images = keras.Input((height, width, 3), name=IMAGES)
    x = _normalize(images, normalization)
    for layer in after:
        x = layer(x)
    return keras.Model(images, x, name="network")


def neighbourhood() -> keras.layers.Conv2D:
    """A convolution that copies: 27 filters, one for each channel of each of nine neighbours.

    One weight that is not zero per filter is exact in int8, so that nothing is rounded but what this is about.
    """
    layer = keras.layers.Conv2D(27, 3, padding="same", use_bias=False, name="copy")
    layer.build((None, None, None, 3))
    layer.set_weights([np.eye(27).reshape(3, 3, 3, 27)])
    return layer


# --- exact in float -------------------------------------------------------------------------------------------------


def stems() -> dict[str, list[keras.layers.Layer]]:
    """First layers as families have them, and some that none has."""
    layers = keras.layers
    return {
        "same": [layers.Conv2D(8, 3, padding="same", activation="relu", bias_initializer="random_normal")],
        "same, every second": [layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)],
        "same, large": [layers.Conv2D(8, 7, strides=(2, 3), padding="same")],
        "same, dilated": [layers.Conv2D(8, 3, dilation_rate=2, padding="same")],
        "one side": [layers.ZeroPadding2D(((0, 1), (0, 1))), layers.Conv2D(8, 3, strides=2, use_bias=False)],
        "all sides": [layers.ZeroPadding2D(3), layers.Conv2D(8, 7, strides=2)],
        "twice": [layers.ZeroPadding2D(((1, 0), (0, 2))), layers.Conv2D(8, 3, padding="same")],
        "patches": [layers.Conv2D(8, 4, strides=4)],
    }


SWAPPED = ("same", "one side", "patches")
"""Stems for which a swap of red and blue is tried by default: one for each kind of border."""


@pytest.mark.parametrize("size", [(20, 21), pytest.param((23, 18), marks=slow)])
@pytest.mark.parametrize(
    ("normalization", "stem"),
    [
        *(pytest.param(IMAGENET_STATISTICS, stem, id=f"statistics-{stem}") for stem in stems()),
        *(pytest.param(CAFFE, stem, id=f"BGR-{stem}", marks=() if stem in SWAPPED else slow) for stem in stems()),
    ],
)
def test_every_output_stays_borders_included(normalization: Normalization, stem: str, size: tuple[int, int]) -> None:
    model = network(normalization, *stems()[stem], height=size[0], width=size[1])
    pixels = photos(*size)
    expected = model(floats(pixels)).numpy()
    form, scale, offset = integer_form(model)
    found = form(floats(pixels, scale, offset)).numpy()
    # Sums of up to 147 products in float32, in another order.
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    kinds = [type(layer).__name__ for layer in form.layers]
    assert kinds == ["InputLayer", *(["MeanBorder"] if stem != "patches" else []), "Conv2D"]
    assert form.layers[-1].padding == "valid"
    # Black around the photo instead of the mean colour is far off, at the outermost outputs only.
    if stem != "patches":
        form.layers[1].colour = (offset,) * 3
        wrong = np.abs(form(floats(pixels, scale, offset)).numpy() - expected).max(axis=(0, 3))
        assert wrong[-1].max() > 0.1 * np.abs(expected).max() and wrong[4:-5, 4:-5].max(initial=0) < 1e-3


def first_convolution(model: keras.Model) -> Any:
    return next(x for x in model.layers if isinstance(x, keras.layers.Conv2D) and x.name != NORMALIZE_LAYER)


FAST = ("VGG16",)
"""Few layers to build, one normalization per channel, BGR; first layers of other kinds are among `stems`."""


@cache
def stem_of_backbone(name: str) -> keras.Model:
    """A backbone's layers up to its first convolution, odd by odd pixels."""
    side = BACKBONES[name].min_size | 1
    whole = build(name, ImageInput(side, side + 2), "none")
    return keras.Model(whole.input, first_convolution(whole).output, name="stem")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else slow) for name in BACKBONES])
def test_backbones_are_as_the_registry_says(name: str) -> None:
    """Raw pixels in, integers to the first convolution, nothing computed before it, no value of it other than exact."""
    row = BACKBONES[name].normalization
    model = stem_of_backbone(name)
    pixels = photos(*model.input.shape[1:3])
    form, scale, offset = integer_form(model)
    expected = model(floats(pixels)).numpy()
    np.testing.assert_allclose(
        form(floats(pixels, scale, offset)).numpy(), expected, atol=1e-5 * np.abs(expected).max()
    )
    before = [op.name for op in operators(flat_int8(model, pixels))]
    before = before[: before.index("CONV_2D")]
    if row.integer_form == "input tensor":
        assert before in ([QUANTIZE], [QUANTIZE, "PAD"])
        assert scale == pytest.approx(row.scale[0]) and offset == pytest.approx(row.offset[0])
    else:
        padded = any(type(layer) is MeanBorder for layer in form.layers)
        assert before == [QUANTIZE, *(BORDER if padded else [])]
        assert padded != name.startswith("ConvNeXt")


def flat_int8(model: keras.Model, pixels: np.ndarray) -> bytes:
    """Convert; the quantizer's own check refuses an input tensor for which raw pixels are not valid."""
    flat = keras.Model(model.input, keras.layers.Flatten(name="flat")(model.output), name=model.name)
    return Quantizer(flat, list(pixels)).quantize(schemes.get("int8")).tflite


# --- in int8 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["xnnpack", pytest.param("reference", marks=slow)])
@pytest.mark.parametrize("normalization", IN_INT8)
def test_int8_knows_every_normalized_pixel_and_what_is_around(normalization: Normalization, kernels: Any) -> None:
    tflite, pixels = copying(normalization), photos()
    model = Model(tflite, kernels=kernels)
    found = model.predict_batch(pixels).reshape(-1, SIDE, SIDE, 27)
    scale, offset = np.array(normalization.scale), np.array(normalization.offset)
    normalized = (pixels[..., ::-1] if normalization.bgr else pixels) * scale + offset
    padded = np.pad(normalized, ((0, 0), (1, 1), (1, 1), (0, 0)))
    inside = np.pad(np.ones(normalized.shape, bool), ((0, 0), (1, 1), (1, 1), (0, 0)))
    steps = [(row, column) for row in range(3) for column in range(3)]
    expected, is_pixel = (
        np.concatenate([x[:, row : row + SIDE, column : column + SIDE] for row, column in steps], axis=3)
        for x in (padded, inside)
    )
    error = np.abs(found - expected)
    # Half a step of what the convolution writes, and float32 multipliers' rest; no step of a normalized tensor before
    # it. A zero point that is a whole number may be half a step of the input away from the offset (-1..1: it is).
    step, half_input = model.output.scale, np.abs(scale).max() / 2
    shift = half_input if normalization is MINUS_1_TO_1 else 0.0
    assert error[is_pixel].max() <= 0.51 * step + shift
    # The colour around the photo is a whole number per channel, as each pixel of a photo is.
    assert error[~is_pixel].max() <= 0.51 * step + half_input
    assert is_pixel.all(axis=(0, 3)).sum() == (SIDE - 2) ** 2, "the border is looked at"
    # Black there instead, which is what padding would be without the border, is more than ten steps off.
    assert np.abs(offset).min() > 10 * step or normalization.uniform


@cache
def copying(normalization: Normalization) -> bytes:
    return flat_int8(network(normalization, neighbourhood()), photos())


@pytest.mark.parametrize("normalization", IN_INT8[:2])
def test_no_operator_but_two_copies(normalization: Normalization) -> None:
    found = operators(copying(normalization))
    assert [op.name for op in found[:4]] == [QUANTIZE, *BORDER, "CONV_2D"]
    assert not {"MUL", "ADD", "SUB", "DEPTHWISE_CONV_2D"} & {op.name for op in found}
    read = {(t.scale, t.zero_point) for op in found[1:3] for t in (*op.inputs, *op.outputs)}
    assert len(read) == 1, "copies, nothing is rounded again"
    assert copying.__wrapped__(normalization) == copying(normalization)


def test_photos_without_black_and_white_do_not_move_the_input_scale() -> None:
    model = network(IMAGENET_STATISTICS, neighbourhood())
    # The border's result is calibrated too; were its range that of the photos, the input would get it.
    dim = np.clip(photos(), 60, 190)
    whole, narrow = (Model(each).input for each in (copying(IMAGENET_STATISTICS), flat_int8(model, dim)))
    assert (narrow.scale, narrow.zero_point) == (whole.scale, whole.zero_point)
    assert whole.scale == pytest.approx(np.mean(IMAGENET_STATISTICS.scale), rel=1e-4)


# --- the rest of the contract ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ALL_KINDS)
def test_the_model_given_stays(normalization: Normalization) -> None:
    model = network(normalization, *stems()["one side"], keras.layers.GlobalAveragePooling2D())
    config, weights = model.get_config(), [weight.copy() for weight in model.get_weights()]
    before, nodes = model(floats(photos())).numpy(), [len(x._inbound_nodes) for x in model.layers]
    form, scale, offset = integer_form(model)
    assert model.get_config() == config
    assert all(map(np.array_equal, model.get_weights(), weights))
    np.testing.assert_array_equal(model(floats(photos())), before)
    assert form.name == model.name
    if normalization.uniform:
        assert set(form.layers[1:]) == set(model.layers[2:]), "the same layers"
    else:
        assert not set(form.layers) & set(model.layers)
        assert [len(x._inbound_nodes) for x in model.layers] == nodes
        again = keras.models.clone_model(form)  # what rounding does next
        again.set_weights(form.get_weights())
        pixels = floats(photos(), scale, offset)
        np.testing.assert_array_equal(again(pixels), form(pixels))


def test_a_model_without_our_normalization_comes_back() -> None:
    images = keras.Input((8, 8, 3))
    for first in (keras.layers.Conv2D(3, 1), keras.layers.Conv2D(4, 3, name=NORMALIZE_LAYER)):
        model = keras.Model(images, first(images))
        assert integer_form(model) == (model, 1.0, 0.0)
        assert one_operator(model) == (model, 1.0, 0.0)


GREY = Normalization((0.1, 0.1, 0.2), (0.0, -1.0, 0.0))
BEYOND = Normalization((0.1, 0.1, 0.2), (5.0, 0.0, 0.0))
"""Zero is a pixel of -50, which no input tensor can hold."""


@pytest.mark.parametrize("case", ["two readers", "no convolution", "grouped", "no such colour"])
def test_what_no_convolution_can_take_is_one_operator(case: str) -> None:
    layers = keras.layers
    model = network(BEYOND if case == "no such colour" else GREY, layers.Conv2D(3, 3, padding="same"))
    normalized = model.get_layer(NORMALIZE_LAYER).output
    outputs = {
        "two readers": lambda: layers.Concatenate()([normalized, model.output]),
        "no convolution": lambda: layers.MaxPooling2D()(normalized),
        "grouped": lambda: layers.Conv2D(6, 3, padding="same", groups=3)(normalized),
        "no such colour": lambda: model.output,
    }
    model = keras.Model(model.input, outputs[case](), name="network")
    form, scale, offset = integer_form(model)
    assert (scale, offset) == (1.0, 0.0)
    assert type(form.get_layer(NORMALIZE_LAYER)) is keras.layers.DepthwiseConv2D
    np.testing.assert_allclose(form(floats(photos())), model(floats(photos())), rtol=1e-5, atol=1e-4)
    assert isinstance(model.get_layer(NORMALIZE_LAYER), keras.layers.Rescaling)


@pytest.mark.parametrize("normalization", ALL_KINDS)
def test_one_operator_leaves_all_other_layers_as_they_are(normalization: Normalization) -> None:
    model = network(normalization, *stems()["one side"])
    form, scale, offset = one_operator(model)
    np.testing.assert_allclose(form(floats(photos(), scale, offset)), model(floats(photos())), rtol=1e-5, atol=1e-4)
    assert [type(x) for x in form.layers[-2:]] == [keras.layers.ZeroPadding2D, keras.layers.Conv2D]
    np.testing.assert_array_equal(form.layers[-1].kernel, model.layers[-1].kernel)


def test_the_border_is_saved_and_takes_any_number_of_photos(tmp_path: Path) -> None:
    images = keras.Input((None, None, 3))
    model = keras.Model(images, MeanBorder(((1, 0), (0, 2)), (1.0, 2.0, 3.0))(images))
    assert model.output.shape == (None, None, None, 3)
    model.save(tmp_path / "model.keras")
    pixels = floats(photos())
    for each in (model, keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)):
        found = each(pixels).numpy()
        assert found.shape == (3, SIDE + 1, SIDE + 2, 3)
        np.testing.assert_array_equal(found[:, 1:, :-2], pixels)
        np.testing.assert_array_equal(found[:, 0], np.broadcast_to((1.0, 2.0, 3.0), found[:, 0].shape))
        np.testing.assert_array_equal(found[:, :, -2:], np.broadcast_to((1.0, 2.0, 3.0), found[:, :, -2:].shape))
