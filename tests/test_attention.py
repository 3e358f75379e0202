"""The heat lies where the reason is, whatever the backbone and whatever the task."""

import keras
import numpy as np
import pytest

from edgetl.attention import grad_cam, last_places
from edgetl.backbones import build
from edgetl.backbones.registry import BACKBONES
from edgetl.errors import BackboneError
from edgetl.heads import attach, build_head
from edgetl.inputs import ImageInput
from edgetl.outputs import OutputSpec, Task

SIDE, PATCH = 64, 16
FAMILIES = (
    "VGG16",
    "ResNet50V2",
    "DenseNet121",
    "InceptionV3",
    "Xception",
    "NASNetMobile",
    "EfficientNetV2B0",
    "MobileNetV2",
    "ConvNeXtTiny",
)
QUICK = ("EfficientNetLite0", "MobileNetV3Small")


def patched(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey with a little noise, and a red or a blue patch somewhere.

    Returns:
        Photos; class (0 red, 1 blue); row and column of the patch.
    """
    random = np.random.default_rng(0)
    photos = random.integers(120, 136, (n, SIDE, SIDE, 3), dtype=np.uint8)
    classes, corners = random.integers(0, 2, n), random.integers(0, SIDE // PATCH, (n, 2)) * PATCH
    for photo, kind, (row, column) in zip(photos, classes, corners, strict=True):
        photo[row : row + PATCH, column : column + PATCH] = (255, 0, 0) if kind == 0 else (0, 0, 255)
    return photos, classes, corners


def small(units: int, activation: str, seed: int = 0) -> keras.Model:
    """Two convolutions, a mean over places, one dense layer."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(images)
    x = keras.layers.Conv2D(12, 3, 2, "same", activation="relu", use_bias=False)(x)
    x = keras.layers.Conv2D(16, 3, 2, "same", activation="relu", use_bias=False)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(units, activation)(x))


@pytest.fixture(scope="module")
def colours() -> keras.Model:
    """Tells red patches from blue ones."""
    photos, classes, _ = patched(96)
    model = small(2, "softmax")
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(photos.astype(np.float32), classes, epochs=12, batch_size=32, verbose=0)
    return model


@pytest.mark.parametrize(
    ("task", "activation"),
    [*(("classification", "softmax"), ("ordinal", "softmax")), ("multi_label", "sigmoid"), ("regression", "linear")],
)
def test_heat_lies_on_the_patch_that_decides(colours: keras.Model, task: Task, activation: str) -> None:
    photos, classes, corners = patched(96)
    model = small(2, activation)
    model.set_weights(colours.get_weights())
    said = model.predict(photos.astype(np.float32), verbose=0)
    assert (said.argmax(axis=1) == classes).mean() > 0.97, "or the maps explain nothing"
    heat = grad_cam(model, photos, classes.astype(np.int64), OutputSpec(task, ("red", "blue")))
    assert heat.shape == (96, 16, 16) and heat.min() == 0 and np.allclose(heat.max(axis=(1, 2)), 1)
    rows, columns = np.mgrid[0:16, 0:16] * (SIDE // 16)
    top, left = corners[:, 0, None, None], corners[:, 1, None, None]
    # Convolutions see one place beyond the patch's edge.
    near = (rows >= top - 4) & (rows < top + PATCH + 4) & (columns >= left - 4) & (columns < left + PATCH + 4)
    share = (heat * near).sum(axis=(1, 2)) / heat.sum(axis=(1, 2))
    assert near.mean() < 0.15 and np.median(share) > 0.8 and share.min() > 0.5, share


def test_a_linear_head_on_a_mean_is_explained_completely() -> None:
    """Then the map before its negative part is cut off sums to the log odds, less the bias: nothing is lost."""
    model = small(3, "softmax", seed=1)
    photos = patched(5)[0]
    maps = keras.Model(model.inputs[0], last_places(model))(photos.astype(np.float32)).numpy()
    kernel, bias = model.layers[-1].get_weights()
    logits = maps.mean(axis=(1, 2)) @ kernel + bias
    said = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for chosen in range(3):
        others = [index for index in range(3) if index != chosen]
        share = said[:, others] / said[:, others].sum(axis=1, keepdims=True)
        weights = kernel[:, chosen] - share @ kernel[:, others].T  # the slope of the log odds
        expected = np.maximum((maps * weights[:, None, None, :]).sum(axis=-1), 0)
        expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-30)
        found = grad_cam(model, photos, np.full(5, chosen), OutputSpec("classification", ("a", "b", "c")))
        np.testing.assert_allclose(found, expected, atol=1e-5)  # float32 sums in another order


def test_a_sure_answer_is_explained_all_the_same() -> None:
    model, photos = small(2, "softmax"), patched(4)[0]
    spec, zeros = OutputSpec("classification", ("a", "b")), np.zeros(4, np.int64)
    calm = grad_cam(model, photos, zeros, spec)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, bias + np.array([60.0, 0.0], np.float32)])
    assert (model.predict(photos.astype(np.float32), verbose=0)[:, 0] == 1).all(), "no slope is left in it"
    np.testing.assert_allclose(grad_cam(model, photos, zeros, spec), calm, atol=1e-4)  # e-26 keeps 7 digits


def test_a_model_without_places_is_refused() -> None:
    images = keras.Input((1, 1, 3))
    flat = keras.Model(images, keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(images)), name="flat")
    with pytest.raises(BackboneError, match="flat: no layer keeps places"):
        grad_cam(
            flat, np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1, np.int64), OutputSpec("classification", ("a", "b"))
        )


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)])
def test_every_family_has_places_to_look_at(name: str) -> None:
    side = max(64, BACKBONES[name].min_size)
    keras.utils.set_random_seed(0)
    backbone = build.build(name, ImageInput(side, side), "none")
    model = attach(backbone, build_head("classification", backbone.output_shape[-1], 3))
    photos = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    heat = grad_cam(model, photos, np.array([0, 1, 2]), OutputSpec("classification", ("a", "b", "c")))
    places = last_places(model)
    assert places.shape[-1] >= 320, "the last activations, not those of a squeeze-and-excite block"
    assert heat.shape == (3, *places.shape[1:3]) and np.isfinite(heat).all()
    assert set(heat.max(axis=(1, 2)).round(5).tolist()) <= {0.0, 1.0} and heat.max() == 1
