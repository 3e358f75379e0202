"""The per-layer report: planted faults are found, exact operators have no error, the command writes what it says."""

import csv
import dataclasses
import io
import json
import math
from functools import cache

import keras
import numpy as np
import pytest
from editing import edit

from edgetl.config import command
from edgetl.errors import ArtifactError
from edgetl.plots import quantization_errors
from edgetl.rundir import RunDir
from export import layers, schemes
from export.artifacts import find_artifacts
from export.choices import Choices
from export.flatbuffer import operators
from export.layers import Config, LayerError, layer_errors, most_harmful, to_csv
from export.quantize import Quantizer

SIDE = 16
PHOTOS = list(np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 3), dtype=np.uint8))


@cache
def quantizer(outlier: float) -> Quantizer:
    """A small network; one channel of layer `bad` is `outlier` times as large as it should be, and divided again."""
    keras.utils.set_random_seed(1)
    images = keras.Input((SIDE, SIDE, 3), name="images")
    x = keras.layers.Rescaling(1 / 127.5, -1.0, name="normalize")(images)
    x = keras.layers.Conv2D(8, 3, activation="relu", name="first")(x)
    x = keras.layers.MaxPooling2D(name="pool")(x)
    x = keras.layers.Conv2D(8, 3, name="bad")(x)
    x = keras.layers.Conv2D(8, 1, activation="relu", name="after")(x)
    x = keras.layers.Reshape((25, 8), name="reshape")(x)
    x = keras.layers.GlobalAveragePooling1D(name="pooled")(x)
    model = keras.Model(images, keras.layers.Dense(4, activation="softmax", name="scores")(x))
    bad, after = model.get_layer("bad"), model.get_layer("after")
    gain = np.ones(8, np.float32)
    gain[3] = outlier
    bad.set_weights([bad.get_weights()[0] * gain, bad.get_weights()[1]])
    after.set_weights([after.get_weights()[0] / gain[:, None], after.get_weights()[1]])
    return Quantizer(model, PHOTOS)


@cache
def measured(outlier: float = 1.0, ranges: str = "min-max") -> tuple[LayerError, ...]:
    return layer_errors(quantizer(outlier), None, PHOTOS, ranges)


def named(errors: tuple[LayerError, ...], layer: str) -> LayerError:
    (found,) = (error for error in errors if layer in error.layers)
    return found


def test_a_layer_with_one_enormous_channel_is_found() -> None:
    whole, spoilt = measured(), measured(300.0)
    assert most_harmful(spoilt)[0] == "bad"
    assert max(spoilt, key=lambda error: error.effect).layers == ("bad",)
    # 255 steps for a channel 300 times as large as the others leave those less than one step.
    assert named(spoilt, "bad").effect > 5 * max(error.effect for error in whole)
    worst = min(spoilt, key=lambda error: error.accumulated_sqnr_db)
    # What it spoils is seen from the layer on that brings the channels to one size again.
    assert worst.position > named(spoilt, "bad").position
    assert named(spoilt, "after").accumulated_sqnr_db < named(whole, "after").accumulated_sqnr_db - 15
    assert named(spoilt, "after").own_sqnr_db > named(spoilt, "after").accumulated_sqnr_db + 15, "not its own fault"


def test_what_each_operator_adds() -> None:
    errors = measured()
    assert [error.position for error in errors] == list(range(len(operators(quantizer(1.0).twin))))
    exact = [error for error in errors if error.operator in ("MAX_POOL_2D", "RESHAPE")]
    assert len(exact) == 2
    for error in exact:
        assert (error.own_steps, error.own_sqnr_db, error.effect) == (0.0, math.inf, 0.0)
        assert error.accumulated_steps > 0, "what it is given has an error"
    for error in errors:
        if error.operator == "CONV_2D":
            # Rounding of evenly spread values: sqrt(1/12) steps; zeros of a ReLU are exact, arithmetic adds a little.
            assert 0.1 < error.own_steps < 0.35, error
        assert error.type == "INT8" and error.scale > 0 and 0 <= error.range_used <= 1
    assert named(errors, "bad").layers == ("bad",) and named(errors, "bad").readers == ("CONV_2D after",)
    assert errors[-1].operator == "SOFTMAX" and errors[-1].readers == ()
    # What is alone in the network so far has no other error than its own, but for the half step by which a whole
    # zero point can't meet an offset of -127.5.
    assert named(errors, "first").accumulated_steps < named(errors, "first").own_steps + 0.6


def test_values_are_cut_off_only_where_the_range_says_so() -> None:
    assert all(error.saturation == 0 for error in measured())  # photos are those of the calibration
    cut = measured(ranges="percentile-99.9")
    convolutions = [error for error in cut if error.operator == "CONV_2D"]
    assert any(error.saturation > 0 for error in convolutions)
    # Zeros of a ReLU are stored as -128, a tenth of all values at least, and none of them is cut off.
    assert all(error.saturation < 0.01 for error in cut)


def test_mixed_artifacts_show_what_is_left_in_float() -> None:
    mixed = quantizer(300.0).quantize(schemes.get("mixed_int8"), Choices(float_layers=("bad", "after"))).tflite
    errors = layer_errors(quantizer(300.0), mixed, PHOTOS)
    assert {error.layers for error in errors if error.is_float} == {("bad",), ("after",)}
    assert named(errors, "after").accumulated_sqnr_db > named(measured(300.0), "after").accumulated_sqnr_db + 15
    # What an operator adds as int8 is told in either case: the search goes on from there.
    assert named(errors, "bad").own_steps == pytest.approx(named(measured(300.0), "bad").own_steps)


def test_another_network_is_refused() -> None:
    other = quantizer(1.0).quantize(schemes.get("int8"), Choices(ranges="mse")).tflite
    with pytest.raises(ArtifactError, match=r"zero point .* Convert the run again"):
        layer_errors(quantizer(1.0), other, PHOTOS)


def test_own_errors_are_those_of_tensorflows_debugger() -> None:
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize

    twin, scale = quantizer(1.0), quantizer(1.0).prepared[1]
    debug = bytes(mlir_quantize(twin.annotated("min-max"), enable_numeric_verify=True))
    # Pixels as the integer input tensor reads them: its zero point is -1 for an offset of -127.5.
    images = [[(photo[None].astype(np.float32) - 127) * np.float32(scale)] for photo in PHOTOS]
    with pytest.warns(UserWarning):
        debugger = tf.lite.experimental.QuantizationDebugger(
            quant_debug_model_content=debug, debug_dataset=lambda: iter(images)
        )
        debugger.run()
    theirs = [found["mean_squared_error"] for found in debugger.layer_statistics.values()]
    ours = [(error.own_steps * error.scale) ** 2 for error in measured()]
    # It runs on XNNPACK, which rounds some values the other way; behind the mean there are 4 to 8 values per photo.
    np.testing.assert_allclose(ours[:5], theirs[:5], rtol=0.05, atol=1e-12)
    np.testing.assert_allclose(ours[5:], theirs[5:], rtol=0.5)


def test_csv_holds_every_operator() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(measured()))))
    assert [row["tensor"] for row in rows] == [op.outputs[0].name for op in operators(quantizer(1.0).twin)]
    assert list(rows[0]) == [field.name for field in dataclasses.fields(LayerError)]
    assert float(rows[0]["own_steps"]) == measured()[0].own_steps and rows[0]["shape"] == "1x14x14x8"
    assert {float(row["own_sqnr_db"]) for row in rows if row["operator"] == "RESHAPE"} == {math.inf}


def test_the_command_measures_the_file_on_disk_as_it_was_made(
    run_copy: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(made: Quantizer, tflite: bytes, photos: list[np.ndarray], ranges: str) -> tuple[LayerError, ...]:
        asked.append((made, tflite, len(photos), ranges))
        return measured(300.0)

    monkeypatch.setattr(layers, "layer_errors", measure)
    arguments = [str(run_copy.path), "--images", "6", "--top", "5"]
    assert command(layers.main, Config, prog="layers", show=layers.show, argv=arguments) == 0
    ((made, tflite, count, ranges),) = asked
    (artifact,) = find_artifacts(run_copy, ("int8",))
    assert tflite == (run_copy.export_path / "int8.tflite").read_bytes()
    assert (len(made.photos), count, ranges) == (len(artifact.calibration), 6, "min-max")
    shown = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in shown if str(run_copy.path) not in line) <= 120
    rows = [line for line in shown if "CONV_2D" in line]
    assert len(rows) == 3 and rows[0].split()[:3] == ["2", "bad", "CONV_2D"], "the worst stands first"
    assert any("the worst 5 of 8 operators by effect" in line for line in shown)
    stored = list(csv.DictReader(io.StringIO((run_copy.export_path / "int8.layers.csv").read_text())))
    assert [row["tensor"] for row in stored] == [error.tensor for error in measured(300.0)]
    assert (run_copy.export_path / "int8.layers.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_command_on_a_run(run_copy: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(run_copy.path), "--images", "3"]
    assert command(layers.main, Config, prog="layers", show=layers.show, argv=arguments) == 0
    assert "the worst 20 of" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO((run_copy.export_path / "int8.layers.csv").read_text())))
    assert len(rows) == len(operators((run_copy.export_path / "int8.tflite").read_bytes())) - 2  # the border's QUANTIZE
    # A file whose description tells of other ranges than it has.
    path = run_copy.export_path / "int8.json"
    edit(path, settings=json.loads(path.read_text())["settings"] | {"ranges": "mse"})
    assert command(layers.main, Config, prog="layers", argv=arguments) == 2
    assert "Convert the run again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scheme", "int7"], "unknown scheme 'int7'"),
        (["--scheme", "float16"], "its activations are no int8"),
        (["--scheme", "int16x8"], "its activations are no int8"),
        (["--scheme", "qat_int8"], "was trained on"),
        (["--scheme", "pruned_int8"], "was trained on"),
        (["--scheme", "int8_io8"], "no artifact int8_io8"),
        (["--images", "0"], "--images 0: give at least 1"),
        (["--top", "-1"], "--top -1: give at least 0"),
    ],
)
def test_bad_input(finished_run: RunDir, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(layers.main, Config, prog="layers", argv=[str(finished_run.path), *arguments]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


@pytest.mark.parametrize("count", [1, 100, pytest.param(250, marks=pytest.mark.slow)])
def test_plot(count: int) -> None:
    random = np.random.default_rng(0)
    own, accumulated = random.uniform(20, 50, (2, count))
    own[::7] = math.inf
    effects, floats = random.exponential(0.01, count), random.random(count) < 0.1
    names = [f"layer$_{i}" for i in range(count)]

    def draw(effects: list[float]) -> bytes:
        return quantization_errors(list(own), list(accumulated), effects, list(floats), names, "int8 of a run")

    png = draw(list(effects))
    assert png[:4] == b"\x89PNG" and png == draw(list(effects))
    assert png != draw([0.0] * count)
