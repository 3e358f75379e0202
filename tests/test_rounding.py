"""Rounding of weights: on the converter's grid, with errors that cancel, and less noise in what ships."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.datasets import load_sample_images

from edgetl.console import quiet_tensorflow
from edgetl.inputs import ImageInput
from export.device.interpreter import Model
from export.flatbuffer import unpack
from export.quantize import Quantizer
from export.rounding import STEPS, round_filters, rounded_copy
from export.schemes import SCHEMES

quiet_tensorflow()
import keras  # noqa: E402

weights = arrays(np.float32, (27, 8), elements=st.floats(-2, 2, width=32))


@settings(max_examples=50, deadline=None)
@given(weights, arrays(np.float64, (27,), elements=st.floats(0, 6)))
def test_rounded_weights_are_on_the_grid_within_a_step_and_err_less_on_the_mean(
    w: np.ndarray, mean: np.ndarray
) -> None:
    step = np.abs(w).max(axis=0) / STEPS["int8"]
    step[step == 0] = 1.0
    rounded = round_filters(w, mean)
    # float32 has 24 bits: a multiple of the step of up to 127 is off by at most 127 / 2^24 steps, twice over.
    assert np.allclose(rounded / step, np.round(rounded / step), atol=1e-4)
    assert (np.abs(rounded - w) <= step * 1.0001).all()
    assert np.abs(rounded).max() <= np.abs(w).max() * 1.0001
    nearest = np.round(w / step) * step
    ours, theirs = (np.abs(((r - w) * mean[:, None]).sum(axis=0)) for r in (rounded, nearest))
    assert (ours <= theirs + 1e-4).all()


def test_little_of_the_error_on_the_mean_is_left() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(144, 64)).astype(np.float32)
    mean = rng.uniform(0, 3, 144)
    step = np.abs(w).max(axis=0) / STEPS["int8"]
    residue = np.abs(((round_filters(w, mean) - w) * mean[:, None]).sum(axis=0)) / step
    nearest = np.abs(((np.round(w / step) * step - w) * mean[:, None]).sum(axis=0)) / step
    # Random errors of 144 weights leave several steps; what remains is too small for any single flip, under one step.
    assert np.median(residue) < 0.2 * np.median(nearest)


def test_filters_of_zeros_stay() -> None:
    assert not round_filters(np.zeros((9, 3), np.float32), np.ones(9)).any()


def folded_network() -> keras.Model:
    """Every kind of layer that is rounded, with BatchNorm behind it as in the backbones, gammas of both signs."""
    keras.utils.set_random_seed(1)
    images = keras.Input((32, 32, 3))
    x = images
    for make in (
        lambda: keras.layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False),
        lambda: keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False),
        lambda: keras.layers.SeparableConv2D(24, 3, padding="same", use_bias=False),
    ):
        x = keras.layers.BatchNormalization()(make()(x))
        x = keras.layers.ReLU(6.0)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, keras.layers.Dense(5, activation="softmax")(x))
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            sign = rng.choice([-1.0, 1.0], n)
            layer.set_weights(
                [sign * rng.uniform(0.5, 2, n), rng.normal(size=n), rng.normal(size=n), rng.uniform(0.5, 2, n)]
            )
    return model


def test_converter_finds_the_weights_on_its_own_grid() -> None:
    """Its int8 weights must be ours, not rounded a second time on another grid."""
    photos = list(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
    model = folded_network()
    ours = rounded_copy(model, np.stack(photos).astype(np.float32))
    tree = unpack(Quantizer(ours, photos, rounding=False).quantize(SCHEMES["int8"]).tflite)
    stored = [
        np.frombuffer(tree.buffers[tensor.buffer].data.tobytes(), np.int8)
        for tensor in tree.subgraphs[0].tensors
        if tensor.type == 9 and tree.buffers[tensor.buffer].data is not None
    ]
    kernels = [w for layer in ours.layers for w in layer.get_weights() if w.ndim in (2, 4)]
    assert len(stored) == len(kernels) == 5
    for kernel in kernels:
        channels = kernel.shape[-1] if kernel.shape[-1] > 1 else kernel.shape[-2]
        flat = kernel.reshape(-1, channels)
        steps = np.round(flat / (np.abs(flat).max(axis=0) / STEPS["int8"])).astype(int)
        expected = np.sort(np.abs(steps).ravel())  # a negative gamma flips signs; the layout differs by operator
        assert any(
            len(one) == len(expected) and np.array_equal(np.sort(np.abs(one.astype(int))), expected) for one in stored
        )


def test_copy_leaves_the_model_alone() -> None:
    model = folded_network()
    before = [w.copy() for w in model.get_weights()]
    rounded_copy(model, np.zeros((2, 32, 32, 3), np.float32))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.slow
def test_int8_features_of_real_photos_have_less_noise() -> None:
    """EfficientNet-Lite0, its ImageNet weights, crops of two photographs."""
    from edgetl.backbones.build import build

    crops = [
        np.asarray(Image.fromarray(photo[y : y + 160, x : x + 160]).resize((96, 96)))
        for photo in load_sample_images().images
        for y in range(0, 240, 60)
        for x in range(0, 460, 115)
    ]
    backbone = build("EfficientNetLite0", ImageInput(96, 96))
    expected = np.asarray(backbone(np.stack(crops).astype(np.float32), training=False))

    def noise(rounding: bool) -> float:
        tflite = Quantizer(backbone, crops, rounding=rounding).quantize(SCHEMES["int8"]).tflite
        received = Model(tflite, kernels="reference").predict_batch(np.stack(crops))
        return float(np.square(received - expected).sum() / np.square(expected - expected.mean(axis=0)).sum())

    # On elpv the power falls to a quarter; half leaves room for other photos and is no luck of the draw.
    assert noise(rounding=True) < 0.5 * noise(rounding=False)
