"""The wrapper gives what a hand-written interpreter loop gives, and refuses what does not keep the contract."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tiny_tflite import ABOUT, OUTPUTS, SIDE, calibration_photos, convert, pixels, tiny, usable, with_files, with_json

from edgetl.errors import ArtifactError
from export.artifacts import open_artifact, open_pool
from export.device import interpreter
from export.device.errors import DeviceError
from export.device.interpreter import RESOLVERS, Kernels, Model, Pool
from export.device.outcome import circumstances, shown_circumstances
from export.device.runtime import Runtime, find_runtime

ROOT = Path(__file__).parent.parent
BY_HAND = {
    "xnnpack": OpResolverType.BUILTIN,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


def by_hand(content: bytes, photos: np.ndarray, kernels: str) -> np.ndarray:
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=BY_HAND[kernels], num_threads=1)
    interpreter.allocate_tensors()
    (source,), (sink,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for photo in photos:
        shifted = photo.astype(np.int32) - (128 if source["dtype"] is np.int8 else 0)
        interpreter.set_tensor(source["index"], shifted[None].astype(source["dtype"]))
        interpreter.invoke()
        raw = interpreter.get_tensor(sink["index"])[0].astype(np.float32)
        scale, zero_point = sink["quantization"]
        rows.append((raw - zero_point) * np.float32(scale) if scale else raw)
    return np.stack(rows)


@pytest.mark.parametrize("kernels", RESOLVERS)
@pytest.mark.parametrize("io", ["float32", "uint8", "int8"])
def test_outputs_equal_a_hand_written_loop(io: str, kernels: Kernels) -> None:
    photos = pixels(20)
    expected = by_hand(tiny(io), photos, kernels)
    model = Model(usable(tiny(io), io), kernels=kernels)
    received = model.predict_batch(photos)
    assert received.dtype == np.float32
    assert received.shape == (20, OUTPUTS)
    assert np.ptp(received, axis=0).max() > 0.05, "the outputs must depend on the photo, or equality says nothing"
    np.testing.assert_array_equal(received, expected)
    np.testing.assert_array_equal(model.predict(photos[3]), expected[3])
    np.testing.assert_array_equal(model.predict(photos[3:4]), expected[3])


def test_integer_models_take_the_same_raw_pixels_as_the_float_model() -> None:
    photos = calibration_photos()  # others can leave the calibrated ranges and saturate
    models = {io: Model(usable(tiny(io), io), kernels="reference") for io in ("float32", "uint8", "int8")}
    scores = {io: model.predict_batch(photos) for io, model in models.items()}
    # The graphs of uint8 and int8 io differ in the first and last QUANTIZE only, which are exact shifts by 128.
    np.testing.assert_array_equal(scores["uint8"], scores["int8"])
    # Half a step of the mean (0.017) through weights that sum to about 2, half a step of the logits (0.012) and the
    # weights' own rounding make about 0.06 in a logit, and softmax passes on at most half of that.
    assert np.abs(scores["uint8"] - scores["float32"]).max() < 0.03
    shifted = Model(tiny("uint8"), kernels="reference").predict_batch(photos ^ 128)
    assert np.abs(shifted - scores["float32"]).max() > 0.3, "the bound must be far from what wrong pixels give"


def test_kernels_reach_the_interpreter() -> None:
    photos = pixels(50)
    outputs = {kernels: Model(tiny(), kernels=kernels).predict_batch(photos) for kernels in ("xnnpack", "reference")}
    assert not np.array_equal(outputs["xnnpack"], outputs["reference"]), "float sums in another order must differ"
    np.testing.assert_allclose(outputs["xnnpack"], outputs["reference"], atol=1e-5)


def test_properties() -> None:
    model = Model(tiny("uint8"), threads=2, kernels="builtin")
    assert model.input.shape == (1, SIDE, SIDE, 3)
    assert (model.input.dtype, model.output.dtype) == ("uint8", "uint8")
    assert model.input.scale == pytest.approx(1.0)
    assert model.input.zero_point == 0
    assert model.output.shape == (1, OUTPUTS)
    assert Model(tiny()).input.scale == 0.0
    assert (model.threads, model.kernels) == (2, "builtin")
    assert model.runtime.startswith("ai-edge-litert 2.")
    assert model.size_bytes == len(tiny("uint8"))
    assert model.sha256 == hashlib.sha256(tiny("uint8")).hexdigest()
    assert model.load_ms > 0


def test_set_input_and_invoke_apart_equal_predict_and_input_survives_invocations() -> None:
    model = Model(tiny("uint8"))
    photo = pixels(1)
    model.set_input(photo)
    for _ in range(3):
        model.invoke()
    np.testing.assert_array_equal(model.scores(), model.predict(photo))


def test_pixels_need_not_be_contiguous_nor_writable_and_stay_as_they_are() -> None:
    photos = pixels(4)
    model = Model(usable(tiny("int8"), "int8"))
    expected = model.predict(photos[0, :, ::-1].copy())
    photos.flags.writeable = False
    kept = photos.copy()
    np.testing.assert_array_equal(model.predict(photos[0, :, ::-1]), expected)
    np.testing.assert_array_equal(photos, kept)


def test_empty_batch() -> None:
    assert Model(tiny()).predict_batch(pixels(0)).shape == (0, OUTPUTS)


@pytest.mark.parametrize(
    ("wrong", "received"),
    [
        (np.zeros((SIDE, SIDE + 1, 3), np.uint8), f"uint8 [{SIDE}, {SIDE + 1}, 3]"),
        (np.zeros((2, SIDE, SIDE, 3), np.uint8), f"uint8 [2, {SIDE}, {SIDE}, 3]"),
        (np.zeros((SIDE, SIDE), np.uint8), f"uint8 [{SIDE}, {SIDE}]"),
        (np.zeros((SIDE, SIDE, 3), np.float32), f"float32 [{SIDE}, {SIDE}, 3]"),
        (np.zeros((SIDE, SIDE, 3), np.int64), f"int64 [{SIDE}, {SIDE}, 3]"),
    ],
)
def test_wrong_pixels(wrong: np.ndarray, received: str) -> None:
    with pytest.raises(DeviceError) as caught:
        Model(tiny()).predict(wrong)
    assert f"expected uint8 pixels [1, {SIDE}, {SIDE}, 3]" in str(caught.value)
    assert received in str(caught.value)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("two inputs", "exactly one input. Received: 2 inputs"),
        ("two outputs", "exactly one output. Received: 2 outputs"),
        ("int32 input", "float32, uint8 or int8 input. Received: int32"),
        ("flex op", "Select TensorFlow op"),
    ],
)
def test_models_outside_the_contract(form: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.tflite"
    path.write_bytes(convert(form))
    with pytest.raises(DeviceError) as caught:
        Model(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dynamic_batch_is_refused() -> None:
    with pytest.raises(DeviceError, match=rf"static batch 1. Received: shape \[-1, {SIDE}, {SIDE}, 3\]"):
        Model(tiny(batch=None))
    with pytest.raises(DeviceError, match=r"static batch 1. Received: shape \[2, "):
        Model(tiny(batch=2))


# --- what the file says about itself --------------------------------------------------------------------------------


def test_a_model_that_says_nothing_has_no_output_names() -> None:
    for content in (tiny("uint8"), tiny(), with_files(tiny(), {"labels.txt": b"of others\n"})):
        model = Model(content)
        assert (model.about, model.output_names) == (None, ())


@pytest.mark.parametrize("io", ["float32", "uint8", "int8"])
def test_what_a_model_says_is_read_and_changes_no_score(io: str) -> None:
    model = Model(with_json(tiny(io), 128 if io == "int8" else 0, scheme="some"))
    assert model.output_names == tuple(ABOUT["outputs"]["names"])
    assert model.about is not None
    assert model.about.inputs == {"kind": "image", "height": SIDE, "width": SIDE, "resize": "stretch"}
    assert model.about.everything["scheme"] == "some"
    photos = pixels(5)
    np.testing.assert_array_equal(model.predict_batch(photos), by_hand(tiny(io), photos, "xnnpack"))
    assert Pool(model.content, 2).about == model.about


def test_int8_input_needs_the_word_of_the_file() -> None:
    with pytest.raises(DeviceError, match=r"int8 input, and no edgetl.json in the file .* uint8 input"):
        Model(tiny("int8"))
    with pytest.raises(DeviceError, match="int8 input, and no"):
        Model(with_files(tiny("int8"), {"labels.txt": b"a\nb\n", "below/edgetl.json": b"{}"}))
    # Whatever the scale is, the file's word counts: its maker knows what normalization is left in the graph.
    odd = Model(with_json(tiny("int8", brightest=200), 128))
    assert odd.input.scale == pytest.approx(200 / 255)
    photo = pixels(1)
    np.testing.assert_array_equal(odd.predict_batch(photo), by_hand(tiny("int8", brightest=200), photo, "xnnpack"))


@pytest.mark.parametrize(("io", "shift"), [("int8", 0), ("uint8", 128), ("float32", 128)])
def test_a_shift_that_does_not_belong_to_the_input_is_refused(io: str, shift: int) -> None:
    with pytest.raises(DeviceError, match=rf"says pixels - {shift}, but the input is {io}.*Convert it again"):
        Model(with_json(tiny(io), shift))


def test_class_names_of_another_model_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"has 2 names \(classification\), the output has 4 numbers"):
        Model(with_json(tiny(), outputs={**ABOUT["outputs"], "names": ["a", "b"]}))


@pytest.mark.parametrize("settings", [{"threads": 0}, {"kernels": "fast"}])
def test_wrong_settings(settings: dict) -> None:
    with pytest.raises(DeviceError, match="need 1 to 1024 threads"):
        Model(tiny(), **settings)


def test_files_that_are_not_models(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    with pytest.raises(DeviceError, match=r"No such file.*Check the path"):
        Model(path)
    os.mkfifo(tmp_path / "pipe.tflite")
    for other in (tmp_path, tmp_path / "pipe.tflite"):
        with pytest.raises(DeviceError, match=f"{other}: not a regular file"):
            Model(other)
    for content, says in [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(99), "not a TFLite model"),
        (b"TFL3", "not a TFLite"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DeviceError, match=says):
            Model(path)
        with pytest.raises(ArtifactError, match=says):
            open_artifact(path)
        with pytest.raises(ArtifactError, match=says):
            open_pool(path, 2)


def test_hash_guards_native_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # tflite-runtime verifies nothing: a damaged file must be stopped before any interpreter sees it.
    whole = tiny("uint8")
    right = hashlib.sha256(whole).hexdigest()
    assert Model(whole, sha256=right).sha256 == right
    path = tmp_path / "cut.tflite"
    path.write_bytes(whole[:-8])
    seen = []
    monkeypatch.setattr(interpreter, "find_runtime", lambda: Runtime("spy", lambda **_: seen.append(1), OpResolverType))
    with pytest.raises(DeviceError, match=rf"cut.tflite: expected sha256 {right}. Received: .*Copy the file again"):
        Model(path, sha256=right)
    assert not seen


CUT = """
import sys
from export.device.interpreter import Model
from export.device import interpreter
from export.device.errors import DeviceError
content = open(sys.argv[1], "rb").read()
for part in [8, 9, 16, 30, 100, *range(0, len(content), 97)][1:] + [len(content) - 1]:
    try:
        Model(content[:part])
    except DeviceError as error:
        assert "\\n" not in str(error) and str(error).startswith("model: "), error
    else:
        raise SystemExit(f"{part} of {len(content)} bytes were accepted")
broken = content.replace(b"pixels", b"p\\xffxels")  # names are UTF-8
try:
    Model(broken)
except DeviceError:
    print("refused all")
"""


def test_truncated_files_are_refused_and_native_code_survives(tmp_path: Path) -> None:
    # In a process of its own: a crash of native code must fail this test, not end the session.
    path = tmp_path / "whole.tflite"
    path.write_bytes(tiny("uint8"))
    done = subprocess.run([sys.executable, "-c", CUT, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "refused all"), done.stderr


LIGHT = """
import sys, numpy as np, os
from export.device.interpreter import Model, Pool
from export.device import timing, host
for _ in range(2):
    model = Model(sys.argv[1])
model.predict(np.zeros(model.input.shape, np.uint8))
host.describe_host()
heavy = {"tensorflow", "keras", "edgetl", "PIL", "pydantic", "rich"}
print(sorted({name.split(".")[0] for name in sys.modules} & heavy))
os.write(2, b"stderr works again")
"""


def test_wrapper_imports_nothing_heavy_and_keeps_standard_error_clean(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(tiny())
    done = subprocess.run([sys.executable, "-c", LIGHT, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "stderr works again")


@pytest.mark.parametrize("io", ["float32", "uint8"])
def test_pool_from_four_threads_equals_serial(io: str) -> None:
    photos = pixels(200)
    expected = Model(tiny(io)).predict_batch(photos)
    pool = Pool(tiny(io), 2)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            received = np.concatenate(list(threads.map(pool.run, np.array_split(photos, 20))))
            np.testing.assert_array_equal(received, expected)


def test_pool_gives_interpreters_back_after_an_error() -> None:
    pool = Pool(tiny(), 1)
    for _ in range(3):
        with pytest.raises(DeviceError, match="expected uint8"):
            pool.run(np.zeros((1, 2, 2, 3), np.uint8))
    assert pool.run(pixels(2)).shape == (2, OUTPUTS)
    with pytest.raises(DeviceError, match="at least 1"):
        Pool(tiny(), 0)


def test_pool_runs_as_many_at_once_as_it_has_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    # Both threads must be inside an interpreter at one time, or the barrier breaks.
    barrier = threading.Barrier(2)
    whole = Model.predict_batch

    def meet(self: Model, photos: np.ndarray) -> np.ndarray:
        barrier.wait(timeout=20)
        return whole(self, photos)

    monkeypatch.setattr(Model, "predict_batch", meet)
    pool = Pool(tiny(), 2)
    with ThreadPoolExecutor(2) as threads:
        assert len(list(threads.map(pool.run, [pixels(1), pixels(1)]))) == 2


def test_kernels_used_are_told() -> None:
    assert Model(tiny("uint8")).kernels_used == "xnnpack"
    assert Model(tiny("uint8"), kernels="builtin").kernels_used == "builtin"
    assert Model(tiny("uint8"), kernels="reference").kernels_used == "reference"


def test_kernels_that_take_nothing_are_not_said_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in tflite-runtime 2.14, whose XNNPACK leaves integers alone.
    runtime = find_runtime()
    builtin = SimpleNamespace(AUTO=runtime.resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    monkeypatch.setattr(interpreter, "find_runtime", lambda: dataclasses.replace(runtime, resolvers=builtin))
    found = Model(tiny("uint8"))
    assert (found.kernels, found.kernels_used) == ("xnnpack", "builtin")
    text = shown_circumstances(circumstances(found))
    assert "builtin kernels (xnnpack takes none of its operators here)" in text
