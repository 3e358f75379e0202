"""Artifacts keep the contract of their scheme: asserted on the flatbuffer and on photos."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from editing import edit
from photos import make_photo, make_photo_folder

from edgetl import data, heads
from edgetl.backbones.build import build
from edgetl.backbones.registry import BACKBONES
from edgetl.console import swallowed_output
from edgetl.errors import ArtifactError, ConfigError, DatasetError
from edgetl.inputs import ImageInput
from edgetl.probe import fit_linear_probe
from edgetl.rundir import MODEL, RunDir, read_json, sha256_of
from export import artifacts, convert, quantize, schemes
from export.artifacts import Artifact, find_artifacts
from export.conversion import calibration_photos
from export.convert import USUAL, Config
from export.device.interpreter import Model
from export.flatbuffer import FLOAT_TYPES, QUANTIZE, Operator, operators, unpack
from export.quantize import FLOAT_TOLERANCE, Quantizer, check, check_equal
from export.saved_model import frozen_saved_model, to_tflite
from export.schemes import SCHEMES

GRAPH_OVERHEAD = 150_000
"""Bytes of a file that are neither weights nor their scales: operators, tensors, names. 270 operators need 130 KB."""


def artifact_bytes(run: RunDir, scheme: str) -> bytes:
    return (run.export_path / f"{scheme}.tflite").read_bytes()


def test_photos(run: RunDir) -> np.ndarray:
    return np.concatenate([batch.pixels for batch in data.decoded(run.splits().test, run.inputs)])


test_photos.__test__ = False  # type: ignore[attr-defined]


def constant_bytes(tflite: bytes) -> int:
    """Bytes of all constants, each once."""
    return sum(len(buffer.data) for buffer in unpack(tflite).buffers if buffer.data is not None)


def scale_bytes(tflite: bytes) -> int:
    """Bytes of the scales of all tensors: one float per channel for each kernel, and for each bias."""
    quantized = [t.quantization for t in unpack(tflite).subgraphs[0].tensors if t.quantization]
    return sum(4 * len(each.scale) for each in quantized if each.scale is not None)


def expected_input(name: str) -> tuple[float, float]:
    """Scale and (real-valued) zero point of an input tensor that takes raw pixels, from the registry.

    Where channels differ, the first convolution does what is left: the tensor has their mean scale, and a whole zero
    point nearest to their mean colour.
    """
    row = BACKBONES[name].normalization
    if row.uniform and not row.bgr:
        return row.scale[0], -row.offset[0] / row.scale[0]
    colours = [-offset / scale for offset, scale in zip(row.offset, row.scale, strict=True)]
    return float(np.mean(row.scale)), float(round(np.mean(colours)))


def assert_integer_contract(tflite: bytes, backbone: str) -> None:
    found = operators(tflite)
    tensors = [tensor for op in found for tensor in (*op.inputs, *op.outputs)]
    assert not [(op.name, t) for op in found for t in (*op.inputs, *op.outputs) if t.type in FLOAT_TYPES]
    assert not [op.name for op in found if op.custom or op.name == "DEQUANTIZE"]
    assert found[0].inputs[0].type == found[-1].outputs[0].type == "UINT8"
    assert not [t for t in tensors if t.constant and t.type not in ("INT8", "INT32")]
    # Nothing but the two that translate between uint8 at the border and int8 inside.
    where = [place for place, op in enumerate(found) if op.name == QUANTIZE]
    assert set(where) <= {0, len(found) - 1}
    model = Model(tflite)
    assert (model.input.dtype, model.output.dtype) == ("uint8", "uint8")
    scale, zero_point = expected_input(backbone)
    # The range comes out of float32 arithmetic on 0 and 255; the zero point is a whole number.
    assert model.input.scale == pytest.approx(scale, rel=1e-4)
    assert abs(model.input.zero_point - zero_point) <= 0.501
    assert (model.output.scale, model.output.zero_point) == (1 / 256, 0)  # softmax, fixed by the TFLite specification
    assert len(tflite) <= 1.02 * (constant_bytes(tflite) + scale_bytes(tflite)) + GRAPH_OVERHEAD


# --- a trained run --------------------------------------------------------------------------------------------------


def test_int8_is_integer_through_and_through(finished_run: RunDir) -> None:
    assert_integer_contract(artifact_bytes(finished_run, "int8"), "EfficientNetLite0")
    tflite = artifact_bytes(finished_run, "int8")
    assert len(tflite) <= 1.02 * constant_bytes(tflite) + 300_000  # per-channel scales included, on an edge backbone
    model = Model(tflite)
    assert (model.input.scale, model.input.zero_point) == (pytest.approx(1 / 128), 127)  # met exactly by this backbone


def test_raw_pixels_into_int8_give_what_the_float_model_gives(finished_run: RunDir) -> None:
    photos = test_photos(finished_run)
    exact, quantized = (Model(artifact_bytes(finished_run, scheme)) for scheme in ("float32", "int8"))
    clear = exact.predict_batch(photos).argmax(axis=1)
    assert set(clear) == {0, 1, 2}, "the photos must be told apart"
    assert (quantized.predict_batch(photos).argmax(axis=1) == clear).all()
    # Photos laid over each other leave the model in doubt, where a small error shows. 8-bit steps in some 50 layers
    # move a probability by 0.03 on average; pixels read on the scale that calibration up to 200 would have left
    # behind (200/255, the usual mistake) move it by 0.08.
    blends = np.concatenate([photos // 2 + np.roll(photos, shift, axis=0) // 2 for shift in (5, 8)])
    expected = exact.predict_batch(blends)
    assert np.abs(quantized.predict_batch(blends) - expected).mean() < 0.05
    wrong = (blends * (200 / 255)).astype(np.uint8)
    assert np.abs(quantized.predict_batch(wrong) - expected).mean() > 0.05


def test_float32_equals_keras(finished_run: RunDir) -> None:
    photos = test_photos(finished_run)
    model = keras.saving.load_model(finished_run.model_path, compile=False)
    expected = model.predict(photos.astype(np.float32), verbose=0)
    found = Model(artifact_bytes(finished_run, "float32")).predict_batch(photos)
    # Same weights; convolutions sum in another order and BatchNorm is folded.
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


def weight_types(tflite: bytes) -> Counter[str]:
    """Element type -> bytes of constants of more than 1000 elements."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    model = unpack(tflite)
    found: Counter[str] = Counter()
    for tensor in model.subgraphs[0].tensors:
        content = model.buffers[tensor.buffer].data
        if content is not None and np.prod(tensor.shape) > 1000:
            found[names[tensor.type]] += len(content)
    return found


def test_weights_are_stored_as_the_scheme_says(finished_run: RunDir) -> None:
    types = {scheme: weight_types(artifact_bytes(finished_run, scheme)) for scheme in USUAL}
    assert set(types["float32"]) == {"FLOAT32"}
    assert set(types["float16"]) == {"FLOAT16"}
    assert set(types["int8"]) == {"INT8", "INT32"}  # INT32: biases of the layers with more than 1000 channels
    assert types["int8"]["INT32"] < 0.03 * types["int8"]["INT8"]
    # The converter leaves depthwise kernels and what has fewer than 1024 elements in float.
    assert types["dynamic_int8"]["INT8"] > 0.9 * types["dynamic_int8"].total()
    assert types["float16"]["FLOAT16"] * 2 == types["float32"]["FLOAT32"]
    sizes = {scheme: len(artifact_bytes(finished_run, scheme)) for scheme in USUAL}
    assert sizes["float16"] < 0.51 * sizes["float32"] and sizes["int8"] < 0.3 * sizes["float32"]


@pytest.mark.parametrize("scheme", ["float32", "float16", "dynamic_int8"])
def test_float_artifacts_take_and_give_float_and_use_builtin_operators(finished_run: RunDir, scheme: str) -> None:
    tflite = artifact_bytes(finished_run, scheme)
    found = operators(tflite)
    model = Model(tflite)
    assert (model.input.dtype, model.output.dtype) == ("float32", "float32")
    assert model.input.shape == (1, 64, 64, 3)
    assert not [op.name for op in found if op.custom]
    assert "CONV_2D" in {op.name for op in found}


def test_artifact_json_describes_the_file(finished_run: RunDir) -> None:
    run_sha256 = sha256_of(finished_run.path / MODEL)
    for scheme in USUAL:
        path = finished_run.export_path / f"{scheme}.tflite"
        artifact = read_json(Artifact, path.with_suffix(".json"))
        model = Model(path)
        assert (artifact.scheme, artifact.path) == (scheme, path.name)
        assert artifact.sha256 == sha256_of(path)
        assert artifact.size_bytes == path.stat().st_size
        assert artifact.inputs == finished_run.inputs == ImageInput(64, 64)
        assert (artifact.input_type, artifact.input_scale, artifact.input_zero_point) == (
            model.input.dtype,
            model.input.scale,
            model.input.zero_point,
        )
        assert artifact.outputs.names == ("cat", "dog", "owl")
        assert artifact.operators == len(operators(path.read_bytes()))
        assert artifact.run_sha256 == run_sha256
        assert artifact.versions["tensorflow"]
        assert bool(artifact.calibration) == SCHEMES[scheme].needs_calibration
    assert not list(finished_run.export_path.glob(".*")), "a temporary file was left"


@pytest.mark.slow
def test_the_same_call_makes_the_same_bytes(run_copy: RunDir) -> None:
    before = {scheme: artifact_bytes(run_copy, scheme) for scheme in ("int8",)}
    asked = ("int8", "int8")  # alone this time, and once although asked for twice
    written = convert.main(Config(run_copy.path, schemes=asked, calibration_images=12, seed=3))
    assert [artifact.scheme for artifact in written] == ["int8"]
    assert {scheme: artifact_bytes(run_copy, scheme) for scheme in before} == before


# --- calibration ----------------------------------------------------------------------------------------------------


def test_calibration_photos_are_a_recorded_stratified_seeded_part_of_train(finished_run: RunDir) -> None:
    (artifact,) = find_artifacts(finished_run, ["int8"])
    splits = finished_run.splits()
    train = {example.id: example.label for example in splits.train}
    assert len(artifact.calibration) == len(set(artifact.calibration)) == 12
    assert set(artifact.calibration) <= set(train)
    assert not set(artifact.calibration) & {example.id for part in (splits.validation, splits.test) for example in part}
    assert Counter(train[id_] for id_ in artifact.calibration) == {0: 4, 1: 4, 2: 4}
    again, images = calibration_photos(
        finished_run, finished_run.splits().train, Config(finished_run.path, calibration_images=12, seed=3)
    )
    assert tuple(example.id for example in again) == artifact.calibration
    assert len(images) == 12 and images[0].shape == (64, 64, 3) and images[0].dtype == np.uint8
    other, _ = calibration_photos(
        finished_run, finished_run.splits().train, Config(finished_run.path, calibration_images=12, seed=4)
    )
    assert {example.id for example in other} != {example.id for example in again}


def test_no_more_photos_than_train_has(finished_run: RunDir) -> None:
    train = finished_run.splits().train
    chosen, images = calibration_photos(
        finished_run, finished_run.splits().train, Config(finished_run.path, calibration_images=10_000)
    )
    assert len(chosen) == len(images) == len(train)


@pytest.fixture
def own_photos(tmp_path: Path, trained_run: RunDir, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """The run, with photos of its own that may be damaged."""
    root = make_photo_folder(tmp_path / "photos", {"cat": 20, "dog": 20, "owl": 20})
    run = RunDir(trained_run.path)
    monkeypatch.setattr("edgetl.rundir.relocate", lambda data: root)
    return run


def test_calibration_that_can_not_be_read_is_refused_or_left_off_the_list(
    own_photos: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = own_photos.splits().train
    train.items[0].path.write_bytes(b"no photo")
    with pytest.raises(DatasetError, match="1 of 36 files can't be read"):
        calibration_photos(own_photos, train, Config(own_photos.path, calibration_images=100))
    monkeypatch.setattr(data, "check_unreadable", lambda *_: None)
    chosen, images = calibration_photos(own_photos, train, Config(own_photos.path, calibration_images=100))
    assert len(chosen) == len(images) == 35 and train.items[0].id not in {example.id for example in chosen}
    for example in train:
        example.path.write_bytes(b"no photo")
    with pytest.raises(DatasetError, match=r"no calibration images could be read\. Restore the photos"):
        calibration_photos(own_photos, train, Config(own_photos.path, calibration_images=100))


# --- what must not be written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", ["check", pytest.param("check_equal", marks=pytest.mark.slow)])
def test_an_artifact_that_breaks_a_check_is_not_written(
    guard: str, trained_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ArtifactError("float32: broken on purpose")

    monkeypatch.setattr(quantize, guard, refuse)
    with pytest.raises(ArtifactError, match="broken on purpose"):
        convert.main(Config(trained_run.path, schemes=("float32",), calibration_images=3))
    assert not trained_run.export_path.exists()


def test_a_model_that_the_interpreter_refuses_is_an_artifact_error(
    trained_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "to_tflite", lambda *_: b"\0\0\0\0TFL3" + b"\0" * 100)
    monkeypatch.setattr(quantize, "operators", lambda _: ())
    with pytest.raises(ArtifactError):
        convert.main(Config(trained_run.path, schemes=("float16",), calibration_images=3))
    assert not trained_run.export_path.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"schemes": ("int9",)}, "unknown scheme 'int9'. Choose from: float32, float16, dynamic_int8, int8"),
        ({"schemes": ()}, "no scheme asked for"),
        ({"calibration_images": 0}, "--calibration-images 0: int8 needs at least 1 photo"),
        ({"calibration_images": 2}, "can't hold 3 classes"),
    ],
)
def test_settings_that_can_not_work_are_refused(config: dict[str, Any], message: str, trained_run: RunDir) -> None:
    with pytest.raises(ConfigError, match=message):
        convert.main(Config(trained_run.path, **config))


# --- checks can fail ------------------------------------------------------------------------------------------------


@cache
def tiny_graph(saturated: bool = False) -> bytes:
    """An integer model whose calibration saw 0..255, or no more than 0..200."""
    images = keras.Input((8, 8, 3), name="images")
    keras.utils.set_random_seed(0)
    x = keras.layers.Conv2D(4, 3, activation="relu")(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, keras.layers.Dense(3, activation="softmax")(x))
    photos = [make_photo(kind, 0, (8, 8)) for kind in range(3)]
    if not saturated:
        return Quantizer(model, photos).quantize(schemes.get("int8")).tflite

    def configure(converter: Any) -> None:
        import tensorflow as tf

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        clipped = [np.minimum(photo, 200)[None].astype(np.float32) for photo in photos]
        converter.representative_dataset = lambda: ([photo] for photo in clipped)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8

    with swallowed_output(), frozen_saved_model(model) as saved_model:
        return to_tflite(saved_model, configure)


def test_calibration_that_misses_white_is_noticed() -> None:
    scheme = schemes.get("int8")
    assert check(tiny_graph(), scheme, 1.0, 0.0)
    with pytest.raises(ArtifactError, match=r"raw pixels are not valid .* expected 1, -?0\)"):
        check(tiny_graph(saturated=True), scheme, 1.0, 0.0)


@pytest.mark.parametrize(("scale", "offset"), [(1 / 127.5, -1.0), (1.0, -2.0), (1.0, 3.0), (1.001, 0.0)])
def test_another_normalization_than_the_tensors_is_noticed(scale: float, offset: float) -> None:
    with pytest.raises(ArtifactError, match="raw pixels are not valid"):
        check(tiny_graph(), schemes.get("int8"), scale, offset)


def operator(name: str, *types: str, custom: bool = False) -> Operator:
    from export.flatbuffer import TensorType

    return Operator(name, custom, tuple(TensorType("t", each, False) for each in types), ())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([operator("FlexDet", "FLOAT32", custom=True)], "operators that devices lack: FlexDet"),
        ([operator("VAR_HANDLE", "RESOURCE")], "operators that devices lack: VAR_HANDLE"),
        ([operator("CONV_2D", "INT8"), operator("NEG", "FLOAT32")], "stay in floating point: NEG"),
        ([operator("CONV_2D", "INT8"), operator(QUANTIZE, "INT8"), operator("MUL", "INT8")], "1 QUANTIZE inside"),
    ],
)
def test_operators_that_break_the_contract_are_named(
    found: list[Operator], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "operators", lambda _: tuple(found))
    with pytest.raises(ArtifactError, match=message):
        check(tiny_graph(), schemes.get("int8"), 1.0, 0.0)


@pytest.mark.parametrize("wrong", [2 * FLOAT_TOLERANCE, np.nan])
def test_float_outputs_that_differ_are_refused(wrong: float, finished_run: RunDir) -> None:
    model = keras.saving.load_model(finished_run.model_path, compile=False)
    photos = test_photos(finished_run)[:2]
    received = Model(artifact_bytes(finished_run, "float32")).predict_batch(photos)
    check_equal(model, photos.astype(np.float32), received)
    with pytest.raises(ArtifactError, match="outputs differ from Keras by"):
        check_equal(model, photos.astype(np.float32), received + np.float32(wrong))


# --- artifacts beside their descriptions ----------------------------------------------------------------------------


def test_files_that_are_not_what_their_description_says_are_refused(run_copy: RunDir) -> None:
    path = run_copy.export_path / "int8.tflite"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        ArtifactError, match=r"int8\.tflite: not the file that int8\.json describes. Run python -m export"
    ):
        find_artifacts(run_copy)
    assert [artifact.scheme for artifact in find_artifacts(run_copy, ["float32"])] == ["float32"]
    path.unlink()
    with pytest.raises(ArtifactError, match=r"no artifact int8\. There: dynamic_int8, float16, float32"):
        find_artifacts(run_copy, ["int8"])
    description = run_copy.export_path / "float32.json"
    edit(description, run_sha256="0" * 64)
    with pytest.raises(ArtifactError, match=r"float32\.tflite: made from another model"):
        find_artifacts(run_copy, ["float32"])


def test_a_run_without_artifacts_says_how_to_make_them(trained_run: RunDir) -> None:
    with pytest.raises(ArtifactError, match=r"no artifacts\. Make them with python -m export\.convert"):
        find_artifacts(trained_run)


def test_errors_of_device_code_become_ours(tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_bytes(b"no model")
    for opened in (artifacts.open_artifact, lambda path: artifacts.open_pool(path, 1)):
        with pytest.raises(ArtifactError, match=r"x\.tflite: not a TFLite model"):
            opened(tmp_path / "x.tflite")


# --- backbones ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    model: keras.Model
    photos: np.ndarray


def toy(name: str, side: int) -> Toy:
    """Random weights that behave like trained ones: BatchNorm knows the photos, and the head is fitted."""
    keras.utils.set_random_seed(0)
    backbone = build(name, ImageInput(side, side), "none")
    photos = np.stack([make_photo(kind, number, (side, side)) for number in range(8) for kind in range(3)])
    labels = np.tile(np.arange(3), 8)
    norms = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
    if norms:
        backbone(photos.astype(np.float32), training=True)
    features = np.asarray(backbone(photos.astype(np.float32), training=False))
    probe = fit_linear_probe(features, labels, features, labels, inverse_l2=(0.1,))
    head = heads.build_head("classification", features.shape[1], 3)
    head.layers[-1].set_weights([probe.kernel, probe.bias])
    return Toy(heads.attach(backbone, head), photos)


def converted(model: keras.Model, scheme: str, photos: np.ndarray) -> bytes:
    return Quantizer(model, list(photos)).quantize(schemes.get(scheme)).tflite


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in (
        "VGG16",
        "DenseNet121",
        "EfficientNetB0",
        "EfficientNetV2B0",
        "MobileNet",
        "MobileNetV2",
        "MobileNetV3Small",
        "ResNet50",
        "ResNet50V2",
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNet_025", *SLOW])
def test_backbones_convert_to_float_and_to_integers(name: str) -> None:
    case = toy(name, BACKBONES[name].min_size)
    exact = converted(case.model, "float32", case.photos)
    quantized = converted(case.model, "int8", case.photos)
    assert_integer_contract(quantized, name)
    ours = Model(exact).predict_batch(case.photos).argmax(axis=1)
    assert (ours == np.tile(np.arange(3), 8)).mean() > 0.9, "the case must be one that can be told apart"
    # Random weights amplify every rounding where training would have damped it, so few of 24 photos may flip
    # (measured: 0 to 4); chance is 8, and pixels misread by the input tensor end there.
    assert (Model(quantized).predict_batch(case.photos).argmax(axis=1) == ours).sum() >= 18


@pytest.mark.slow
def test_a_backbone_without_integer_form_is_refused_by_name() -> None:
    case = toy("ConvNeXtTiny", 32)
    assert converted(case.model, "float32", case.photos)
    with pytest.raises(ArtifactError, match=r"int8: these operators stay in floating point: .*NEG.* use float16"):
        converted(case.model, "int8", case.photos)


def test_scheme_rows_are_named_by_their_key() -> None:
    assert all(name == row.name for name, row in SCHEMES.items())
    assert SCHEMES["int8"].needs_calibration and not SCHEMES["float32"].needs_calibration


def test_artifact_json_has_no_surprises(finished_run: RunDir) -> None:
    keys = set(json.loads((finished_run.export_path / "int8.json").read_bytes()))
    assert keys >= {"scheme", "path", "sha256", "size_bytes", "inputs", "outputs", "calibration", "schema_version"}


@pytest.mark.slow
def test_what_was_measured_of_an_artifact_goes_when_it_is_another(run_copy: RunDir) -> None:
    for scheme in ("float32", "int8"):
        (run_copy.export_path / f"{scheme}.layers.csv").write_text("of the old file")
    convert.main(convert.Config(run_copy.path, ("float32", "int8"), calibration_images=5))
    there = {path.name for path in run_copy.export_path.glob("*.layers.csv")}
    assert there == {"float32.layers.csv"}, "float32 is the same file as before, int8 has other ranges"
