"""Keras 3 -> tf_keras -> Keras 3, on every family that backbones come from."""

from typing import Any

import numpy as np
import pytest

from edgetl.backbones.build import build
from edgetl.console import quiet_tensorflow
from edgetl.errors import ArtifactError
from edgetl.heads import attach, build_head
from edgetl.inputs import ImageInput
from export import bridge
from export.normalization import integer_form

quiet_tensorflow()
import keras  # noqa: E402

SIZES = {
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "MobileNetV3Large": 32,
    "EfficientNetLite0": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "InceptionV3": 75,
    "Xception": 71,
    "DenseNet121": 32,
    "NASNetMobile": 32,
    "InceptionResNetV2": 75,
}
"""Smallest frames, pixels."""


def randomize(model: keras.Model, seed: int = 0) -> None:
    """Give batch normalization the statistics of some photos, and other scales and shifts than 1 and 0.

    With statistics of 0 and 1 a mistake about them would not show, and photos would not differ at the output.
    """
    random = np.random.default_rng(seed)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        n = layer.moving_mean.shape[0]
        layer.gamma is None or layer.gamma.assign(random.uniform(0.5, 1.5, n) * random.choice([-1, 1], n, p=[0.1, 0.9]))
        layer.beta is None or layer.beta.assign(random.normal(0, 0.2, n))
        layer.momentum, layer.usual = 0.0, layer.momentum
    model(random.integers(0, 256, (8, *model.input.shape[1:])).astype(np.float32), training=True)
    for layer in norms:
        layer.momentum = layer.usual
        # A gain below 1 per layer: rounding errors of the two libraries die out, as they do in trained models.
        layer.moving_variance.assign(layer.moving_variance * 2)


def classifier(name: str, size: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    backbone = build(name, ImageInput(size, size), "none")
    randomize(backbone)
    head = build_head("classification", backbone.output.shape[-1], 3, hidden_units=(4,), dropout=0.2)
    return attach(backbone, head)


def pixels(size: int, n: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def images(size: int, n: int = 2) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (n, size, size, 3)).astype(np.float32)


CHEAP = ("MobileNetV3Small",)
"""Has every kind of operation; the others run with the slow tests."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in CHEAP else pytest.mark.slow) for name in SIZES]
)
def test_family_computes_the_same_in_tf_keras(name: str) -> None:
    model, scale, offset = integer_form(classifier(name, SIZES[name]))
    legacy = bridge.rebuilt(model)
    photos = pixels(SIZES[name]).astype(np.float32) * np.float32(scale) + np.float32(offset)
    bridge.check_equal(model, legacy, photos)
    assert not any(isinstance(layer, bridge.legacy_keras().Model) for layer in legacy.layers)
    names = {layer.name for layer in legacy.layers}
    assert {layer.name for layer in model.layers if layer.weights} <= names
    # Weights that were changed there come back, all of them.
    legacy.set_weights([weight * np.float32(0.9) for weight in legacy.get_weights()])
    back = bridge.copy_weights_back(legacy, model)
    for before, after in zip(model.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before * np.float32(0.9))
    bridge.check_equal(back, legacy, photos)


def small(*layers: Any, size: int = 8) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((size, size, 3), name="images")
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name="small")


def test_operations_nested_models_and_shared_layers() -> None:
    inputs = keras.Input((8, 8, 3), name="images")
    shared = keras.layers.Conv2D(4, 3, padding="same", activation="hard_sigmoid", name="shared")
    narrow = keras.layers.Conv2D(3, 1, activation="silu", name="narrow")
    x = shared(inputs)
    x = shared(narrow(x)) + x * 0.5
    x = 2.0 + x * shared(inputs)
    x = keras.layers.SeparableConv2D(5, 3, depth_multiplier=2, activation="hard_silu", name="separable")(x)
    inside = keras.Input((5,))
    nested = keras.Model(inside, keras.layers.Dense(4, activation="relu6", name="inner")(inside), name="nested")
    x = nested(keras.layers.GlobalAveragePooling2D()(x))
    head = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(2, name="last")])
    model = keras.Model(inputs, keras.layers.Softmax()(head(x)), name="odd")
    legacy = bridge.rebuilt(model)
    bridge.check_equal(model, legacy, images(8))
    kinds = [type(layer).__name__ for layer in legacy.layers]
    assert kinds.count("Conv2D") == 3, "shared, narrow, and the pointwise part of separable"
    assert "Dropout" not in kinds
    bridge.check_equal(bridge.copy_weights_back(legacy, model), legacy, images(8))
    cloned = bridge.legacy_keras().models.clone_model(legacy)
    cloned.set_weights(legacy.get_weights())
    bridge.check_equal(model, cloned, images(8))


def test_equality_would_notice_one_changed_weight() -> None:
    model = small(keras.layers.Conv2D(2, 1, name="conv"), keras.layers.Flatten(), keras.layers.Softmax())
    legacy = bridge.rebuilt(model)
    bridge.check_equal(model, legacy, images(8))
    kernel = legacy.get_layer("conv").kernel
    kernel.assign(kernel * 1.01)
    with pytest.raises(ArtifactError, match=r"outputs differ by"):
        bridge.check_equal(model, legacy, images(8))


def test_all_layers_without_counterpart_are_named() -> None:
    model = small(keras.layers.UnitNormalization(name="unit"), keras.layers.GroupNormalization(3, name="groups"))
    with pytest.raises(ArtifactError, match=r"unit \(UnitNormalization\), groups \(GroupNormalization\)"):
        bridge.rebuilt(model)


def test_activation_without_counterpart_is_named() -> None:
    model = small(keras.layers.Conv2D(2, 1, activation="celu", name="odd"), keras.layers.Flatten())
    with pytest.raises(ArtifactError, match=r"odd \(Conv2D"):
        bridge.rebuilt(model)


@pytest.mark.slow
def test_convnext_is_refused_with_its_layers() -> None:
    with pytest.raises(ArtifactError, match=r"\(LayerScale\)"):
        bridge.rebuilt(classifier("ConvNeXtTiny", 32))


def test_weights_of_other_shapes_do_not_come_back() -> None:
    model = small(keras.layers.Conv2D(2, 1, name="conv"), keras.layers.Flatten())
    other = bridge.rebuilt(small(keras.layers.Conv2D(3, 1, name="conv"), keras.layers.Flatten()))
    with pytest.raises(ArtifactError, match=r"conv: weights of shapes"):
        bridge.copy_weights_back(other, model)
    renamed = bridge.rebuilt(small(keras.layers.Conv2D(2, 1, name="conv2"), keras.layers.Flatten()))
    with pytest.raises(ArtifactError, match="no layer conv"):
        bridge.copy_weights_back(renamed, model)
