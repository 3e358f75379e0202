"""A model from elsewhere becomes a run, or the contract that it breaks is named."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import make_photo_folder

from edgetl import data, features
from edgetl.console import quiet_tensorflow
from edgetl.errors import ArtifactError, ConfigError, DatasetError, RunError
from edgetl.features import forward_of
from edgetl.inputs import ImageInput
from edgetl.metrics import score
from edgetl.rundir import METRICS, RunDir, open_run, read_json
from export import adopt as module
from export.adopt import Metrics, adopt, doubts
from export.flattening import flattened
from export.foreign import load_model

quiet_tensorflow()
import keras  # noqa: E402
from keras import layers as L  # noqa: E402

SIZE = 16
SPEC = ImageInput(SIZE, SIZE)
EQUAL = 1e-5
"""Same layers in another arrangement: float32 sums of tens of numbers near 1."""


class Mine(L.Layer):  # type: ignore[misc]
    def call(self, inputs: Any) -> Any:
        return inputs


def doubled(x: Any) -> Any:
    return x * 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photo_folder(tmp_path_factory.mktemp("adopt") / "photos", {"cat": 20, "dog": 20, "owl": 20})


@pytest.fixture(scope="module")
def pixels(photos: Path) -> np.ndarray:
    return next(data.decoded(data.load(photos), SPEC, batch_size=60)).pixels.astype(np.float32)


@pytest.fixture(scope="module")
def by_colour(photos: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias that tell the classes apart by mean colours, -1..1: a trained head."""
    from sklearn.linear_model import LogisticRegression

    colours = pixels.mean(axis=(1, 2)) / 127.5 - 1
    fitted = LogisticRegression(C=100.0).fit(colours, data.load(photos).labels)
    return fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32)


@pytest.fixture
def model(by_colour: tuple[np.ndarray, np.ndarray]) -> keras.Model:
    """What people save: augmentation, rescaling and a model inside of a Sequential."""
    inside = keras.Input((SIZE, SIZE, 3))
    x = L.Conv2D(3, 1, use_bias=False, name="same")(inside)
    backbone = keras.Model(inside, L.GlobalAveragePooling2D()(L.Add()([x, x])), name="backbone")
    backbone.get_layer("same").set_weights([np.eye(3, dtype=np.float32)[None, None] / 2])
    augmentation = keras.Sequential(
        [L.RandomFlip(name="flip"), L.RandomRotation(0.1, name="turn")], name="augmentation"
    )
    head = L.Dense(3, activation="softmax", name="my head")
    whole = keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), augmentation, L.Rescaling(1 / 127.5, -1), backbone, L.Dropout(0.2), head]
    )
    head.set_weights(by_colour)
    return whole


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[keras.Model], Path]:
    def save(model: keras.Model) -> Path:
        model.save(tmp_path / "model.keras")
        return tmp_path / "model.keras"

    return save


def classifier(*layers: Any, shape: tuple[int | None, ...] = (SIZE, SIZE, 3), classes: int = 3) -> keras.Model:
    head = [L.GlobalAveragePooling2D(), L.Dense(classes, activation="softmax")]
    return keras.Sequential([keras.Input(shape), *layers, *head])


def test_a_model_becomes_a_run_like_any_other(
    model: keras.Model, photos: Path, saved: Callable[[keras.Model], Path], tmp_path: Path, pixels: np.ndarray,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, "edgetl")
    run = adopt(saved(model), str(photos), tmp_path / "run", cache=tmp_path)
    assert open_run(run.path).output_names == ("cat", "dog", "owl")
    assert (run.inputs, run.manifest.recipe) == (SPEC, "adopt")
    assert run.manifest.data == str(photos.resolve())
    splits = run.splits()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [36, 9, 15]
    assert set(run.photo_sha256) == {e.id for e in data.load(photos)} and all(run.photo_sha256.values())
    flat = keras.saving.load_model(run.model_path)
    assert [layer.name for layer in flat.layers][:2] == ["images", "normalize"]
    names = {type(layer).__name__ for layer in flat.layers}
    assert not names & {"Sequential", "Functional", "RandomFlip", "RandomRotation"}
    outputs = forward_of(flat)
    np.testing.assert_allclose(outputs(pixels), np.asarray(model(pixels, training=False)), atol=EQUAL)
    metrics = read_json(Metrics, run.path / METRICS)
    test = np.stack([data.read_image(e.path, SPEC) for e in splits.test])
    assert metrics.test.confusion == score(splits.test.labels, outputs(test), splits.test.outputs).confusion
    assert metrics.validation.top1 == 1.0  # the head was fitted to these photos
    (note,) = metrics.notes
    assert "figures flatter" in note
    for line in ("flip (RandomFlip), turn (RandomRotation)", "as normalization", "cat, dog, owl: alphabetical", note):
        assert line in caplog.text


def test_the_second_call_reopens_and_other_settings_are_refused(
    model: keras.Model, photos: Path, saved: Callable[[keras.Model], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, trained_config: Path,
) -> None:  # fmt: skip
    path, out = saved(model), tmp_path / "run"
    first = adopt(path, str(photos), out, cache=tmp_path)
    monkeypatch.setattr(module, "load_model", None)
    assert adopt(path, str(photos), out, cache=tmp_path).manifest == first.manifest
    moved = path.rename(tmp_path / "renamed.keras")  # what counts is what is in it
    assert adopt(moved, str(photos), out, cache=tmp_path).manifest == first.manifest
    with pytest.raises(RunError, match=r"other settings.*resize"):
        adopt(moved, str(photos), out, resize="pad", cache=tmp_path)
    other = make_photo_folder(tmp_path / "other", {"a": 4, "b": 4, "c": 4})
    with pytest.raises(RunError, match=r"other data \(.*photos, --data says .*other"):
        adopt(moved, str(other), out, cache=tmp_path)
    changed = classifier()
    with pytest.raises(RunError, match="another model"):
        adopt(saved(changed), str(photos), out, cache=tmp_path)
    with pytest.raises(RunError, match=r"holds a run of fine_tune\. Leave --model out"):
        adopt(moved, str(photos), trained_config, cache=tmp_path)
    (photos / "cat" / "new.jpg").write_bytes((photos / "cat" / "0000.jpg").read_bytes())
    try:
        with pytest.raises(RunError, match=r"1 came, 0 went"):
            adopt(moved, str(photos), out, cache=tmp_path)
    finally:
        (photos / "cat" / "new.jpg").unlink()


def test_only_classifiers_are_adopted(tmp_path: Path, model: keras.Model, saved: Callable[[keras.Model], Path]) -> None:
    folder = make_photo_folder(tmp_path / "measured", {"cell": 6})
    rows = "".join(f"cell/{number:04}.jpg,{number / 6}\n" for number in range(6))
    (folder / "power.csv").write_text(f"path,target_power\n{rows}")
    with pytest.raises(ConfigError, match=r"only classifiers can be adopted; .*power.csv is for regression"):
        adopt(saved(model), str(folder / "power.csv"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def trained_config(tmp_path: Path) -> Path:
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "config.json").write_text('{"recipe": "fine_tune"}')
    return folder


def test_an_interrupted_pass_goes_on(
    model: keras.Model, photos: Path, saved: Callable[[keras.Model], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(features, "SHARD_ROWS", 10)
    path, out, calls = saved(model), tmp_path / "run", [0]

    def counting(limit: float) -> None:
        def make(flat: keras.Model) -> Callable[[Any], Any]:
            run = forward_of(flat)

            def forward(images: Any) -> Any:
                if images.shape[0] == 1 and images.dtype == np.uint8:  # the pass itself
                    calls[0] += 1
                    if calls[0] > limit:
                        raise KeyboardInterrupt
                return run(images)

            return forward

        monkeypatch.setattr(module, "forward_of", make)

    counting(35)
    with pytest.raises(KeyboardInterrupt):
        adopt(path, str(photos), out, workers=1, cache=tmp_path / "cache")
    assert (out / "config.json").exists() and not RunDir(out).finished
    calls[0] = 0
    counting(np.inf)
    assert adopt(path, str(photos), out, workers=1, cache=tmp_path / "cache").finished
    assert calls[0] == 30  # three of six shards were done


def _lambda(path: Path) -> None:
    classifier(L.Lambda(lambda x: x * 2, name="twice")).save(path)


def _weights(path: Path) -> None:
    weights = path.with_name("model.weights.h5")
    classifier().save_weights(weights)
    weights.rename(path)


def _damaged(path: Path, at: float) -> None:
    classifier().save(path)
    content = bytearray(path.read_bytes())
    place = int(at * len(content))
    content[place : place + 40] = b"x" * 40
    path.write_bytes(content)


FILES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no file": ("m.keras", lambda path: None, "no such file"),
    "another kind": ("m.tflite", lambda path: path.write_bytes(b"x"), r"ends in \.keras or \.h5"),
    "directory": ("m.keras", lambda path: path.mkdir(), "a directory"),
    "no archive": ("m.keras", lambda path: path.write_bytes(b"junk"), "damaged"),
    "archive of something": ("m.keras", lambda path: _zip(path), "damaged, or not a model"),
    "a bomb": ("m.keras", lambda path: _zip(path, bytes(10**8)), "unpacks to far more than a model does"),
    "deep": ("m.keras", lambda path: _zip(path, b"[" * 200_000, "config.json"), "damaged, or not a model"),
    "flipped bytes": ("m.keras", lambda path: _damaged(path, 0.5), "damaged, or not a model"),
    "no hdf5": ("m.h5", lambda path: path.write_bytes(b"junk"), "damaged, or not a model"),
    "weights alone": ("m.h5", _weights, "holds weights alone"),
    "lambda": ("m.keras", _lambda, r"needs code to load: twice \(Lambda\)"),
    "lambda h5": ("m.h5", _lambda, "needs code to load: a Lambda layer"),
    "class": ("m.keras", lambda path: classifier(Mine(name="mine")).save(path), r"needs code to load: mine \(Mine\)\."),
    "class h5": ("m.h5", lambda path: classifier(Mine()).save(path), "needs code to load: Mine"),
    "function": ("m.keras", lambda path: classifier(L.Activation(doubled)).save(path), r"doubled \(function\)"),
    "function h5": ("m.h5", lambda path: classifier(L.Activation(doubled)).save(path), "needs code to load: doubled"),
}


def _zip(path: Path, content: bytes = b"hello", name: str = "hello.txt") -> None:
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_model_of_keras_alone(case: str, photos: Path, tmp_path: Path) -> None:
    name, make, message = FILES[case]
    make(tmp_path / name)
    with pytest.raises((ConfigError, ArtifactError), match=message) as error:
        adopt(tmp_path / name, str(photos), tmp_path / "run", cache=tmp_path)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()  # the directory is free for a better model


def _two_inputs() -> keras.Model:
    inputs = [keras.Input((SIZE, SIZE, 3)), keras.Input((SIZE, SIZE, 3))]
    x = L.GlobalAveragePooling2D()(L.Add()(inputs))
    return keras.Model(inputs, L.Dense(3, activation="softmax")(x))


def _two_outputs() -> keras.Model:
    images = keras.Input((SIZE, SIZE, 3))
    x = L.GlobalAveragePooling2D()(images)
    return keras.Model(images, [L.Dense(3)(x), L.Dense(3)(x)])


def _typed(dtype: str) -> keras.Model:
    images = keras.Input((SIZE, SIZE, 3), dtype=dtype)
    return keras.Model(images, classifier()(keras.ops.cast(images, "float32")))


def _fixed_batch() -> keras.Model:
    images = keras.Input(batch_shape=(1, SIZE, SIZE, 3))
    return keras.Model(images, L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(images)))


def _across_the_batch() -> keras.Model:
    images = keras.Input((SIZE, SIZE, 3))
    x = images / 255
    x = L.Flatten()(x - keras.ops.mean(x, axis=0, keepdims=True))
    return keras.Model(images, L.Dense(3, activation="softmax")(x))


def _ending_in(activation: str | None, scale: float = 1.0) -> keras.Model:
    images = keras.Input((SIZE, SIZE, 3))
    x = L.GlobalAveragePooling2D()(L.Rescaling(scale / 127.5, -scale)(images))
    return keras.Model(images, L.Dense(3, activation=activation)(x))


CONTRACT: dict[str, tuple[Callable[[], keras.Model], str]] = {
    "two inputs": (_two_inputs, "takes 2 inputs"),
    "two outputs": (_two_outputs, r"gives 2 outputs, expected one, probabilities \[None, 3\]"),
    "free size": (lambda: classifier(shape=(None, None, 3)), r"takes float32 \[None, None, None, 3\].*\(224, 224, 3\)"),
    "fixed batch": (_fixed_batch, r"takes float32 \[1, 16, 16, 3\].*keras\.Input\(\(16, 16, 3\)\)"),
    "grey": (lambda: classifier(shape=(SIZE, SIZE, 1)), r"takes float32 \[None, 16, 16, 1\].*layers in front"),
    "vectors": (lambda: keras.Sequential([keras.Input((7,)), L.Dense(3)]), r"takes float32 \[None, 7\]"),
    "bytes": (lambda: _typed("uint8"), r"takes uint8 \[None, 16, 16, 3\].*float32"),
    "feature map": (
        lambda: keras.Sequential([keras.Input((SIZE, SIZE, 3)), L.Conv2D(3, 1)]),
        r"gives \[None, 16, 16, 3\], expected probabilities \[None, 3\]",
    ),
    "other classes": (lambda: classifier(classes=5), r"gives 5 score\(s\) a photo, .* has 3 classes \(cat, dog, owl\)"),
    "logits": (lambda: _ending_in(None, 10.0), "no probabilities.*Softmax"),
    "sigmoid": (lambda: _ending_in("sigmoid"), "no probabilities.*Sigmoids"),
    "batch": (_across_the_batch, "depends on the other photos of the batch"),
}


@pytest.mark.parametrize("case", CONTRACT)
def test_models_that_break_the_contract(
    case: str, photos: Path, saved: Callable[[keras.Model], Path], tmp_path: Path
) -> None:
    make, message = CONTRACT[case]
    keras.utils.set_random_seed(0)
    with pytest.raises(ArtifactError, match=message) as error:
        adopt(saved(make()), str(photos), tmp_path / "run", cache=tmp_path)
    assert str(tmp_path / "model.keras") in str(error.value) and "\n" not in str(error.value)


def test_outputs_that_are_not_finite(
    model: keras.Model, photos: Path, saved: Callable[[keras.Model], Path], tmp_path: Path
) -> None:
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, bias * np.nan])
    with pytest.raises(ArtifactError, match="not finite"):
        adopt(saved(model), str(photos), tmp_path / "run", cache=tmp_path)


@pytest.mark.slow
def test_a_single_sigmoid_is_told_how_to_become_two_probabilities(
    saved: Callable[[keras.Model], Path], tmp_path: Path
) -> None:
    two = make_photo_folder(tmp_path / "two", {"cat": 6, "dog": 6})
    images = keras.Input((SIZE, SIZE, 3))
    x = L.GlobalAveragePooling2D()(L.Rescaling(1 / 255)(images))
    model = keras.Model(images, L.Dense(1, activation="sigmoid")(x))
    with pytest.raises(ArtifactError, match="gives 1 score") as error:
        adopt(saved(model), str(two), tmp_path / "run", cache=tmp_path)
    advice = re.search(r"save (keras\.Model\(.*\)) with p = model.output", str(error.value))
    assert advice
    better = eval(advice[1], {"keras": keras, "model": model, "p": model.output})
    assert adopt(saved(better), str(two), tmp_path / "run", cache=tmp_path).finished  # what is advised works


def test_places_and_photos_that_can_not_be(
    model: keras.Model, photos: Path, saved: Callable[[keras.Model], Path], tmp_path: Path
) -> None:
    path = saved(model)
    with pytest.raises(ConfigError, match="needs --data"):
        adopt(path, "", tmp_path / "run")
    with pytest.raises(ConfigError, match="lies in the data"):
        adopt(path, str(photos), photos / "run")
    with pytest.raises(DatasetError, match="no such folder"):
        adopt(path, str(tmp_path / "nowhere"), tmp_path / "run")
    junk = make_photo_folder(tmp_path / "junk", {"a": 3, "b": 3, "c": 3})
    for photo in junk.rglob("*.jpg"):
        photo.write_bytes(b"junk")
    with pytest.raises(DatasetError, match="can't be read"):
        adopt(path, str(junk), tmp_path / "run", cache=tmp_path)


def test_unreadable_photos_are_left_out_and_listed(
    model: keras.Model, saved: Callable[[keras.Model], Path], tmp_path: Path
) -> None:
    folder = make_photo_folder(tmp_path / "many", {"cat": 40, "dog": 40, "owl": 40}, size=(20, 16))
    (folder / "cat" / "0007.jpg").write_bytes(b"junk")
    run = adopt(saved(model), str(folder), tmp_path / "run", cache=tmp_path)
    assert read_json(Metrics, run.path / METRICS).unreadable == ("cat/0007.jpg",)
    assert "cat/0007.jpg" not in run.photo_sha256 and len(run.photo_sha256) == 119
    assert adopt(tmp_path / "model.keras", str(folder), run.path, cache=tmp_path).finished


def test_own_splits_are_kept_without_a_warning(
    model: keras.Model, saved: Callable[[keras.Model], Path], tmp_path: Path
) -> None:
    root = tmp_path / "split"
    for seed, part in enumerate(("train", "validation", "test")):
        make_photo_folder(root / part, {"cat": 4, "dog": 4, "owl": 4}, seed=seed)
    run = adopt(saved(model), str(root), tmp_path / "run", cache=tmp_path)
    assert {e.id.split("/")[0] for e in run.splits().test} == {"test"}
    assert read_json(Metrics, run.path / METRICS).notes == ()


def _preprocessed(family: str) -> Callable[[Any], Any]:
    return getattr(keras.applications, family).preprocess_input  # type: ignore[no-any-return]


def _adapted(x: Any) -> Any:
    layer = L.Normalization(axis=-1)
    layer.adapt(np.random.default_rng(0).uniform(0, 1, (2, 4, 4, 3)))
    return L.Rescaling([2.0, 2.1, 2.2])(layer(L.Rescaling(1 / 255)(x)))


NORMALIZATIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "tf": (_preprocessed("mobilenet_v2"), "Rescaling"),
    "torch": (_preprocessed("densenet"), "Rescaling"),
    "caffe": (_preprocessed("resnet50"), "Conv2D"),
    "adapted": (_adapted, "Rescaling"),
    "nested": (lambda x: keras.Sequential([L.RandomFlip(), L.Rescaling(1 / 255)])(x), "Rescaling"),
    "no pixel is zero": (lambda x: L.Rescaling(1 / 255, 0.5)(x), ""),
    "colours mixed": (lambda x: keras.ops.stack([x[..., 0], x[..., 0], x[..., 1]], axis=-1), ""),
    "pixels used twice": (lambda x: L.Concatenate()([x / 255, x]), ""),
    "cropped": (lambda x: x[:, 2:, 2:] / 255, ""),
    "none": (lambda x: x, ""),
}


@pytest.mark.parametrize("case", NORMALIZATIONS)
def test_what_a_model_does_to_pixels_first_becomes_one_layer(case: str, pixels: np.ndarray) -> None:
    preprocess, kind = NORMALIZATIONS[case]
    images = keras.Input((SIZE, SIZE, 3))
    x = L.Conv2D(4, 3, padding="same", name="normalize")(preprocess(images))  # a name that is ours
    plain = keras.Model(images, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    flat = flattened(plain, Path("model.keras"))
    # Sums of dozens of numbers up to 255, put together in another order.
    expected = np.asarray(plain(pixels[:4], training=False))
    np.testing.assert_allclose(forward_of(flat)(pixels[:4]), expected, rtol=EQUAL, atol=255 * EQUAL)
    found = {layer.name: type(layer).__name__ for layer in flat.layers}
    assert found.get("normalize", "") == kind
    if kind:
        assert list(found)[:2] == ["images", "normalize"]
        assert len(flat.operations) == 5  # images, normalize, convolution, pooling, dense: nothing of it is left


def test_a_negative_is_left_to_the_graph(pixels: np.ndarray) -> None:
    images = keras.Input((SIZE, SIZE, 3))
    plain = keras.Model(images, L.GlobalAveragePooling2D()(1 - images / 255))
    flat = flattened(plain, Path("model.keras"))
    assert flat.get_layer("normalize").scale == pytest.approx(1 / 255)
    assert [type(each).__name__ for each in flat.operations][2:] == ["Subtract", "GlobalAveragePooling2D"]
    np.testing.assert_allclose(forward_of(flat)(pixels), np.asarray(plain(pixels)), atol=EQUAL)


def test_layers_that_share_or_repeat_names_keep_their_weights(pixels: np.ndarray) -> None:
    def part(name: str, layer: str) -> keras.Model:
        images = keras.Input((SIZE, SIZE, 3))
        return keras.Model(images, L.Conv2D(3, 1, name=layer)(images), name=name)

    first, second = part("first", "conv"), part("second", "Conv")  # one scope for TensorFlow
    images = keras.Input((SIZE, SIZE, 3), name="photo")
    x = first(second(first(images)))  # the first one twice
    plain = keras.Model(
        {"photo": images}, {"classes": L.Dense(3, activation="softmax")(L.GlobalMaxPooling2D()(x / 255))}
    )
    flat = flattened(plain, Path("model.keras"))
    np.testing.assert_allclose(forward_of(flat)(pixels), plain({"photo": pixels})["classes"], atol=EQUAL)
    assert {"conv", "second_Conv"} <= {layer.name for layer in flat.layers}
    assert len(flat.weights) == len(plain.weights)


def test_calls_in_training_mode_are_inference_as_keras_has_it(pixels: np.ndarray) -> None:
    images = keras.Input((SIZE, SIZE, 3))
    x = L.RandomFlip()(images, training=True)
    x = L.Dropout(0.5)(L.BatchNormalization()(x, training=True), training=True)
    plain = keras.Model(images, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    flat = flattened(plain, Path("model.keras"))
    expected = np.asarray(plain(pixels, training=False))
    np.testing.assert_allclose(forward_of(flat)(pixels), expected, rtol=EQUAL, atol=255 * EQUAL)
    assert np.array_equal(flat(pixels), flat(pixels))  # without any word on training


@pytest.mark.parametrize("policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def test_mixed_precision_becomes_float32(
    policy: str, photos: Path, saved: Callable[[keras.Model], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgetl")
    keras.config.set_dtype_policy(policy)
    try:
        head = [L.GlobalAveragePooling2D(), L.Dense(3), L.Activation("softmax", dtype="float32")]
        mixed = keras.Sequential([keras.Input((SIZE, SIZE, 3)), L.Rescaling(1 / 255), L.Conv2D(4, 3), *head])
    finally:
        keras.config.set_dtype_policy("float32")
    run = adopt(saved(mixed), str(photos), tmp_path / "run", cache=tmp_path)
    flat = keras.saving.load_model(run.model_path)
    assert {layer.compute_dtype for layer in flat.layers} == {"float32"}
    assert f"computes in {policy.removeprefix('mixed_')}, now in float32" in caplog.text


def test_doubts_name_the_layer_that_is_missing_or_the_order_of_the_classes(
    photos: Path, by_colour: tuple[np.ndarray, np.ndarray]
) -> None:
    examples = data.load(photos)

    def said(rescaling: bool, order: tuple[int, ...]) -> tuple[str, ...]:
        images = keras.Input((SIZE, SIZE, 3))
        x = L.Rescaling(1 / 127.5, -1)(images) if rescaling else images
        head = L.Dense(3, activation="softmax")
        model = keras.Model(images, head(L.Activation("tanh")(L.GlobalAveragePooling2D()(x))))  # 0..255 saturates
        kernel, bias = by_colour
        head.set_weights([kernel[:, order], bias[list(order)]])
        pixels = np.concatenate([batch.pixels for batch in data.decoded(examples, SPEC)])
        return doubts(model, SPEC, examples, score(examples.labels, forward_of(model)(pixels), examples.outputs))

    assert said(True, (0, 1, 2)) == ()
    (order,) = said(True, (2, 0, 1))
    assert "100.0 % if its outputs were, in this order, owl, cat, dog" in order
    (layer,) = said(False, (0, 1, 2))
    assert re.search(
        r"no better than always naming cat \(33\.3 %\), but 100\.0 % behind keras\.layers\.Rescaling", layer
    )


@pytest.mark.slow
def test_a_model_that_learned_nothing_is_adopted_with_doubts(
    photos: Path, saved: Callable[[keras.Model], Path], tmp_path: Path
) -> None:
    model = classifier(L.Rescaling(0.0))
    run = adopt(saved(model), str(photos), tmp_path / "run", cache=tmp_path)
    _, note = read_json(Metrics, run.path / METRICS).notes
    assert "no better than always naming cat (33.3 %)" in note and "other pixels than raw 0..255" in note


@pytest.mark.slow
def test_a_whole_h5_file_works(model: keras.Model, photos: Path, tmp_path: Path, pixels: np.ndarray) -> None:
    model.save(tmp_path / "model.h5")
    run = adopt(tmp_path / "model.h5", str(photos), tmp_path / "run", cache=tmp_path)
    outputs = forward_of(load_model(run.model_path))(pixels)
    np.testing.assert_allclose(outputs, np.asarray(model(pixels, training=False)), atol=EQUAL)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["MobileNetV2", "EfficientNetB0"])
def test_a_nested_model_of_keras_applications_goes_all_the_way(
    family: str, photos: Path, saved: Callable[[keras.Model], Path], tmp_path: Path
) -> None:
    from export import convert, evaluate, report

    keras.utils.set_random_seed(1)
    backbone = getattr(keras.applications, family)(weights=None, include_top=False, input_shape=(64, 64, 3))
    layers = [L.RandomFlip(), L.Rescaling(1 / 127.5, -1)] if family == "MobileNetV2" else [L.RandomFlip()]
    model = keras.Sequential(
        [keras.Input((64, 64, 3)), *layers, backbone, L.GlobalAveragePooling2D(), L.Dense(3, activation="softmax")]
    )
    run = adopt(saved(model), str(photos), tmp_path / "run", cache=tmp_path)
    made = convert.main(convert.Config(run.path, schemes=("float32", "int8"), calibration_images=12))
    assert [artifact.input_type for artifact in made] == ["float32", "uint8"]
    assert (family == "EfficientNetB0") or made[1].input_scale == pytest.approx(2 / 255)
    evaluation = evaluate.main(evaluate.Config(run.path))
    stored = read_json(Metrics, run.path / METRICS)
    assert evaluation.keras.confusion == stored.test.confusion
    # Random weights: int8 may turn near ties, float32 may not.
    assert evaluation.artifacts[0].against_keras.agreement == 1.0
    assert report.main(report.Config(run.path)).notes == stored.notes
