"""Every row of the registry is true, and every family gets the pixels that its weights expect."""

import importlib
import subprocess
import sys
from dataclasses import FrozenInstanceError

import keras
import numpy as np
import pytest

from edgetl.backbones.__main__ import Config, main, show
from edgetl.backbones.backbone import KerasFile
from edgetl.backbones.build import NORMALIZE_LAYER, build, construct
from edgetl.backbones.registry import BACKBONES, get, named_by, of_width
from edgetl.errors import BackboneError
from edgetl.inputs import ImageInput

slow = pytest.mark.slow
# One small member of every module of keras.applications, and of both normalizations of EfficientNetV2.
FAMILIES = [
    ("MobileNet", "mobilenet"),
    ("MobileNet_025", "mobilenet"),
    ("MobileNetV2", "mobilenet_v2"),
    pytest.param("MobileNetV2_140", "mobilenet_v2", marks=slow),
    pytest.param("MobileNetV3Small", "mobilenet_v3", marks=slow),
    pytest.param("EfficientNetB0", "efficientnet", marks=slow),
    pytest.param("EfficientNetV2B0", "efficientnet_v2", marks=slow),
    ("VGG16", "vgg16"),
    pytest.param("ConvNeXtTiny", "convnext", marks=slow),
    pytest.param("ResNet50", "resnet", marks=slow),
    pytest.param("Xception", "xception", marks=slow),
    pytest.param("VGG19", "vgg19", marks=slow),
    pytest.param("EfficientNetV2S", "efficientnet_v2", marks=slow),
    pytest.param("NASNetMobile", "nasnet", marks=slow),
    pytest.param("DenseNet121", "densenet", marks=slow),
    pytest.param("ResNet50", "resnet50", marks=slow),
    pytest.param("ResNet50V2", "resnet_v2", marks=slow),
    pytest.param("InceptionV3", "inception_v3", marks=slow),
    pytest.param("InceptionResNetV2", "inception_resnet_v2", marks=slow),
]
WIDTHS = {"MobileNet": (0.25, 0.5, 0.75), "MobileNetV2": (0.35, 0.5, 0.75, 1.3, 1.4)}
"""Besides 1."""
OTHER_WIDTHS = {f"{name}_{round(100 * width):03}" for name, widths in WIDTHS.items() for width in widths}
SMALL = {"EfficientNetLite0", "MobileNet", "MobileNetV2", "MobileNetV3Small", "VGG16", "Xception", "MobileNet_025"}
ALL = [pytest.param(name, marks=() if name in SMALL else slow) for name in BACKBONES]
KERAS = [name for name in BACKBONES if BACKBONES[name].constructor.startswith("keras.")]


def constructors() -> set[str]:
    return {name for name in dir(keras.applications) if name[0].isupper()}


def randomize(model: keras.Model) -> None:
    """Random statistics and offsets, so that neither is neutral."""
    generator = np.random.default_rng(1)
    for weight in model.weights:
        kind = weight.path.rsplit("/", 1)[-1]
        if kind in ("gamma", "moving_variance"):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif kind in ("beta", "moving_mean", "bias"):
            weight.assign(generator.normal(0, 0.1, weight.shape))


def test_the_table_has_every_constructor_of_keras():
    assert set(KERAS) == constructors() | OTHER_WIDTHS
    assert len(constructors()) == 40
    assert set(BACKBONES) - set(KERAS) == {f"EfficientNetLite{number}" for number in range(5)}
    assert all(BACKBONES[name].family in constructors() for name in KERAS)


def test_every_module_of_keras_is_a_family():
    covered = {(case.values if hasattr(case, "values") else case)[1] for case in FAMILIES}
    modules = {name for name in dir(keras.applications) if name[0].islower()}
    assert covered == modules - {"imagenet_utils"}


def test_rows_are_plausible():
    for name, row in BACKBONES.items():
        assert row.name == name
        assert 0.5 < row.top1 < 0.9
        assert row.min_size <= row.default_size
        assert row.licence
    with pytest.raises(FrozenInstanceError):
        get("mobilenet").name = "x"


@pytest.mark.parametrize("spelling", ["MobileNetV2", "mobilenetv2", "mobilenet_v2", "mobilenet-V2", "MOBILE_NET-V2"])
def test_lookup_ignores_spelling(spelling):
    assert get(spelling).name == "MobileNetV2"


def test_a_family_has_its_members_by_width():
    for name, widths in WIDTHS.items():
        for width in widths:
            found = of_width(name, width)
            assert found.name == f"{name}_{round(100 * width):03}"
            assert (found.family, found.width) == (name, width)
            assert get(f"{name}_{width:.2f}") is get(found.name.lower()) is of_width(found.name, 1) is found
            assert of_width(found.name, 1 / width) is get(name)
    assert of_width("mobilenet_v2_050", 0.7).name == "MobileNetV2_035"
    assert of_width("EfficientNetLite0", 1.0).name == "EfficientNetLite0"
    message = (
        r"^backbone MobileNetV2: there is no width 0\.6 of it, only 0\.35, 0\.5, 0\.75, 1, 1\.3, 1\.4\. Choose one"
    )
    with pytest.raises(BackboneError, match=message):
        of_width("mobilenetv2", 0.6)
    with pytest.raises(
        BackboneError, match=r"VGG16: there is no width 2 of it, only 1\. Leave it out; several have Mobi"
    ):
        of_width("vgg16", 2)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BackboneError, match="there is no width"):
            of_width("MobileNet", wrong)


def test_settings_of_a_run_name_their_backbone():
    assert named_by({"backbone": "MobileNetV2", "width": 0.35}).name == "MobileNetV2_035"
    assert named_by({"backbone": "mobilenet_v2"}).name == "MobileNetV2"  # of before there were widths
    for none in ({}, {"backbone": "custom"}, {"backbone": "MobileNetV2", "width": 0.1}):
        assert named_by(none) is None


def test_unknown_name_suggests():
    with pytest.raises(BackboneError, match=r"'mobilnet_v2' is unknown. Did you mean MobileNetV2.*lists all$"):
        get("mobilnet_v2")
    with pytest.raises(BackboneError, match=r"Did you mean EfficientNetLite0, EfficientNetLite1, EfficientNetLite2\?"):
        get("lite")
    with pytest.raises(BackboneError, match=r"'qqq' is unknown. `edgetl backbones` lists all"):
        get("qqq")


@pytest.mark.parametrize(("name", "module"), FAMILIES)
def test_raw_pixels_give_what_keras_gives_after_its_preprocessing(name, module, tmp_path):
    """Random weights travel as a legacy .h5, as the published ones do, made with Keras' own preprocessing inside."""
    spec, row = ImageInput(80, 96), BACKBONES[name]
    width = {"alpha": row.width} if row.width != 1 else {}
    constructor = getattr(keras.applications, row.family)
    theirs = constructor(include_top=False, weights=None, pooling="avg", input_shape=spec.shape, **width)
    randomize(theirs)
    statistics = [layer for layer in theirs.layers if isinstance(layer, keras.layers.Normalization) and layer.weights]
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for layer in statistics:  # EfficientNet V1
        layer.set_weights([mean, deviation**2, np.array(0)])
        layer.finalize_state()
    pixels = np.random.default_rng(2).integers(0, 256, (2, *spec.shape)).astype("float32")
    preprocess = importlib.import_module(f"keras.applications.{module}").preprocess_input
    expected = theirs(preprocess(pixels.copy())).numpy()
    for layer in statistics:  # what the published files hold, see weights._check_statistics
        layer.set_weights([mean, deviation, np.array(0)])
    file = tmp_path / "legacy.h5"
    theirs.save(file)

    ours = build(name, spec, str(file))

    found = ours(pixels).numpy()
    # Float32: our normalization multiplies where Keras divides. Unnormalized or swapped pixels differ by more than 0.1.
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected).max() > 1e-3, "the comparison would be empty"
    check_form(ours, name, spec)
    check_reload(ours, pixels, found, tmp_path / "model.keras")


def check_form(model: keras.Model, name: str, spec: ImageInput) -> None:
    row = BACKBONES[name]
    assert model.name == name
    assert model.input.name == "images"
    assert model.input_shape == (None, *spec.shape)
    assert model.output_shape == (None, row.features)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers), "nested"
    normalize = model.get_layer(NORMALIZE_LAYER)
    kinds = [type(layer).__name__ for layer in model.layers if layer is not normalize]
    assert "Rescaling" not in kinds
    assert "Normalization" not in kinds
    assert normalize.compute_dtype == "float32"
    assert not normalize.trainable_weights
    assert model.count_params() - normalize.count_params() == row.parameters


def check_reload(model: keras.Model, pixels: np.ndarray, expected: np.ndarray, path) -> None:
    model.save(path)
    again = keras.saving.load_model(path, safe_mode=True)
    np.testing.assert_array_equal(again(pixels).numpy(), expected)
    inner = keras.Model(again.get_layer(NORMALIZE_LAYER).output, again.output)  # what an integer export starts from
    normalized = again.get_layer(NORMALIZE_LAYER)(pixels)
    np.testing.assert_allclose(inner(normalized), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["MobileNetV3Small", pytest.param("InceptionV3", marks=slow)])
def test_names_do_not_depend_on_what_was_built_before(name):
    """These leave names to Keras, which counts through the process."""
    first, second = (build(name, ImageInput(75, 75), "none") for _ in range(2))
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert {"activation", "activation_1"} <= {layer.name for layer in second.layers}


def test_normalization_of_each_kind():
    black, white = np.zeros((1, 32, 32, 3), "float32"), np.full((1, 32, 32, 3), 255, "float32")
    red = np.zeros((1, 32, 32, 3), "float32")
    red[..., 0] = 255

    def apply(name: str, pixels: np.ndarray) -> np.ndarray:
        layer = build(name, ImageInput(32, 32), "none").get_layer(NORMALIZE_LAYER)
        return layer(pixels).numpy()[0, 0, 0]

    np.testing.assert_allclose(apply("EfficientNetLite0", black), [-127 / 128] * 3)
    np.testing.assert_allclose(apply("EfficientNetLite0", white), [1] * 3)
    np.testing.assert_allclose(apply("MobileNetV3Small", black), [-1] * 3)
    np.testing.assert_allclose(apply("VGG16", red), [-103.939, -116.779, 255 - 123.68], rtol=1e-6)
    assert BACKBONES["MobileNetV2"].normalization.uniform
    assert not BACKBONES["VGG16"].normalization.uniform
    assert not BACKBONES["EfficientNetB0"].normalization.uniform


@pytest.mark.parametrize("name", ALL)
def test_parameters_features_and_minimum(name):
    row = BACKBONES[name]
    side = row.min_size
    model = construct(row, ImageInput(side, side))
    skipped = sum(layer.count_params() for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    assert model.count_params() - skipped == row.parameters
    assert model.output_shape == (None, row.features)
    if name in KERAS:
        with pytest.raises(ValueError, match="at least"):
            construct(row, ImageInput(side, side - 1))


def test_too_small_is_an_error_before_anything_is_built():
    with pytest.raises(BackboneError, match=r"^Xception: 70x300 pixels are too few, the minimum is 71x71\. Choose"):
        build("xception", ImageInput(70, 300))


@pytest.mark.filterwarnings("ignore:.input_shape. is undefined")
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SMALL else slow) for n in KERAS])
def test_downloads_are_those_of_keras(name, monkeypatch):
    """URL, hash and name in the cache, asked of the constructor itself."""
    asked = []

    class StopHereError(Exception):
        pass

    def record(fname, origin, *, cache_subdir, file_hash=None):
        asked.append((fname, origin, file_hash))
        assert cache_subdir == "models"
        raise StopHereError

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", record)
    row = BACKBONES[name]
    assert isinstance(row.imagenet, KerasFile)
    for size in {row.min_size, 160, 224} if row.imagenet.sizes else {row.min_size}:
        with pytest.raises(StopHereError):
            construct(row, ImageInput(size, size), weights="imagenet")
        file = row.imagenet.for_size(size, size)
        assert asked[-1] == (file.cache_name, file.url, file.digest)


# MobileNetV3 leaves the size open where none is asked for; its files have 224 in their names.
@slow
@pytest.mark.parametrize("name", [name for name in KERAS if not name.startswith("MobileNetV3")])
def test_default_sizes_are_those_of_keras(name):
    with_top = construct(BACKBONES[name], ImageInput(1, 1), include_top=True, input_shape=None, pooling=None)
    assert with_top.input_shape[1:3] == (BACKBONES[name].default_size,) * 2


def test_listing_is_instant_and_imports_no_framework():
    code = (
        "import sys; from edgetl.backbones.__main__ import main, Config, show; show(main(Config())); "
        "print([m for m in ('keras', 'tensorflow', 'numpy', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_listing_shows_every_backbone_legibly():
    text = show(main(Config()))
    lines = text.splitlines()
    assert all(len(line) <= 120 for line in lines)
    rows = {line.split()[0]: line for line in lines[1:] if line}
    assert set(BACKBONES) <= set(rows)
    for part in ("3.4M", "75.1%", "224", "32", "-0.99..1", "Apache-2.0", "pip"):
        assert part in rows["EfficientNetLite0"]
    assert "mean 0 BGR" in rows["ResNet50"]


def test_listing_selects_by_name():
    assert [row.name for row in main(Config(name_contains="v3")).rows] == [
        "MobileNetV3Small",
        "MobileNetV3Large",
        "InceptionV3",
    ]
    with pytest.raises(BackboneError, match="'zzz'"):
        main(Config(name_contains="zzz"))
