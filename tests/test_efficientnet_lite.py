"""EfficientNet-Lite is the published network: its ImageNet classifier recognises real photos."""

from pathlib import Path

import keras
import numpy as np
import pytest
import skimage
import sklearn.datasets
from PIL import Image

from edgetl.backbones import efficientnet_lite, weights
from edgetl.backbones.build import build, construct
from edgetl.backbones.registry import BACKBONES
from edgetl.backbones.torch_file import read_tensors
from edgetl.errors import WeightsError
from edgetl.inputs import ImageInput

SKLEARN = Path(sklearn.datasets.__file__).parent / "images"
SKIMAGE = Path(skimage.__file__).parent / "data"
CLASSES = {
    SKIMAGE / "chelsea.png": 285,  # Egyptian cat
    SKIMAGE / "coffee.png": 967,  # espresso
    SKIMAGE / "camera.png": 872,  # tripod
    SKIMAGE / "motorcycle_left.png": 665,  # moped
    SKLEARN / "china.jpg": 698,  # palace
}
# First logits for `ramp`, computed once with these weights. Guards against a change of padding or epsilon.
LOGITS = {
    0: [0.42923, -0.13542, 0.07879, -0.25214, -1.06031, -0.23851, -1.12533, 0.46939],
    1: [-0.74306, 1.16427, -1.13180, -1.25604, -1.05117, -0.05023, -1.92022, -0.84666],
    2: [-0.92676, -0.61477, -0.48553, -0.80383, -1.79631, 0.22591, -1.63543, -0.76852],
}
# Float32 sums in another order, through some 60 layers; wrong padding on one layer moves logits by more than 0.1.
TOLERANCE = 2e-3


def spec_of(name: str) -> ImageInput:
    size = BACKBONES[name].default_size
    return ImageInput(size, size)


def classifier(number: int) -> keras.Model:
    backbone = BACKBONES[f"EfficientNetLite{number}"]
    model = construct(backbone, spec_of(backbone.name), include_top=True)
    path = weights.packaged_path(backbone.imagenet)
    efficientnet_lite.load_checkpoint(model, read_tensors(path), source=str(path))
    return model


def ramp(size: int) -> np.ndarray:
    rows, columns, channels = np.ogrid[:size, :size, :3]
    return ((rows * 3 + columns * 5 + channels * 7) % 256).astype("float32")[None]


def photo(path: Path, size: int) -> np.ndarray:
    """The middle square, as ImageNet accuracies are measured."""
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC), "float32")[None]


@pytest.mark.parametrize("number", [pytest.param(n, marks=() if n == 0 else pytest.mark.slow) for n in LOGITS])
def test_published_classifier_on_our_features(number):
    name = f"EfficientNetLite{number}"
    spec = spec_of(name)
    top = classifier(number)
    kernel, bias = top.get_layer("predictions").get_weights()
    backbone = build(name, spec)  # raw pixels in: proves the normalization along with the weights

    def logits(pixels: np.ndarray) -> np.ndarray:
        return backbone(pixels).numpy()[0] @ kernel + bias

    np.testing.assert_allclose(logits(ramp(spec.height))[:8], LOGITS[number], atol=TOLERANCE)
    np.testing.assert_allclose(top((ramp(spec.height) - 127) / 128)[0, :8], LOGITS[number], atol=TOLERANCE)
    seen = {path.name: int(logits(photo(path, spec.height)).argmax()) for path in CLASSES}
    assert seen == {path.name: expected for path, expected in CLASSES.items()}


def test_structure_of_lite0():
    model = build("EfficientNetLite0", ImageInput(224, 224), "none")
    names = [layer.name for layer in model.layers]
    assert names[:5] == ["images", "normalize", "stem_conv", "stem_bn", "stem_activation"]
    assert names[-4:] == ["top_conv", "top_bn", "top_activation", "avg_pool"]
    stages = {name[:7] for name in names if name.startswith("block")}
    repeats = {1: "a", 2: "ab", 3: "ab", 4: "abc", 5: "abc", 6: "abcd", 7: "a"}
    assert stages == {f"block{number}{letter}" for number, letters in repeats.items() for letter in letters}
    kinds = {type(layer).__name__ for layer in model.layers}
    assert kinds == {
        "InputLayer",
        "Rescaling",
        "Conv2D",
        "BatchNormalization",
        "ReLU",
        "DepthwiseConv2D",
        "Add",
        "GlobalAveragePooling2D",
    }
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {layer.epsilon for layer in norms} == {1e-3}
    assert all(layer.max_value == 6 for layer in model.layers if isinstance(layer, keras.layers.ReLU))


def test_stem_and_head_do_not_grow():
    model = construct(BACKBONES["EfficientNetLite4"], ImageInput(32, 32))
    assert model.get_layer("stem_conv").filters == 32
    assert model.get_layer("top_conv").filters == 1280
    assert "block1b_dwconv" not in {layer.name for layer in model.layers}


def test_checkpoint_of_another_member_is_refused():
    backbone = BACKBONES["EfficientNetLite0"]
    plain = construct(BACKBONES["EfficientNetLite2"], ImageInput(64, 64))
    tensors = read_tensors(weights.packaged_path(backbone.imagenet))
    with pytest.raises(
        WeightsError, match=r"lite0: layer block\w+ does not fit: expected shapes .* received|has no _blocks"
    ):
        efficientnet_lite.load_checkpoint(plain, tensors, source="lite0")
