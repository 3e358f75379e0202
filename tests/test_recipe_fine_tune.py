"""Fine-tuning as a function and as a command: what it leaves behind, how it stops, and that it goes on to the same."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from photos import make_photo, make_photo_folder
from PIL import Image

from edgetl import augment, fine_tuning, history, optimizers, rundir, schedules
from edgetl.config import command
from edgetl.errors import ConfigError, RunError
from edgetl.rundir import RunDir, open_run, read_json
from export import convert, evaluate, report
from export.artifacts import find_artifacts
from export.device.interpreter import Model
from export.flatbuffer import operators
from recipes import find_learning_rate, fine_tune, training_data
from recipes.fine_tune import CHECKPOINT, CURVES, HISTORY, Config, Metrics, main

ROOT = Path(__file__).parent.parent
slow = pytest.mark.slow
PNG = b"\x89PNG\r\n\x1a\n"
PRETRAINED = {
    "image_size": 64,
    "thaw": "3",
    "gradual": 2,
    "epochs": 2,
    "epochs_per_group": 1,
    "batch_size": 8,
    "augment": "medium",
    "views": 3,
    "mixup": 0.2,
    "cutmix": 0.2,
    "l1": 1e-5,
    "l2": 1e-4,
}
"""A run with all that must not be left in the model."""
TINY = {
    "backbone": "MobileNetV3Small",
    "weights": "none",
    "image_size": 32,
    "thaw": "1",
    "epochs": 1,
    "batch_size": 8,
}
"""Random weights at a small size: nothing to load, seconds to run."""


def options(settings: dict[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def tiny(photos: Path, out: Path, **changes: object) -> Config:
    return Config(str(photos), out, **{**TINY, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve photos."""
    return make_photo_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def tuned(photo_folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run, as a Python call makes it; read only."""
    out = tmp_path_factory.mktemp("runs") / "tuned"
    return main(Config(str(photo_folder), out, cache=cache, tensorboard=True, **PRETRAINED))  # type: ignore[arg-type]


def weights(run: RunDir) -> dict[str, np.ndarray]:
    model = keras.saving.load_model(run.model_path, compile=False)
    return {variable.path: np.array(variable) for variable in model.weights}


def assert_same_weights(a: RunDir, b: RunDir) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for path, values in first.items():
        np.testing.assert_array_equal(values, second[path], err_msg=path)


def epochs_of(run: RunDir) -> tuple[history.Epoch, ...]:
    return history.from_csv((run.path / HISTORY).read_text(), HISTORY)


# --- what a run leaves behind ---------------------------------------------------------------------------------------


def test_a_run_holds_everything_and_the_manifest_vouches_for_it(tuned: RunDir) -> None:
    run = open_run(tuned.path)
    assert set(run.manifest.files) == {*rundir.RESULTS, HISTORY, CURVES}
    assert run.manifest.recipe == "fine_tune"
    assert sorted(path.name for path in run.path.iterdir() if path.name != ".lock") == sorted(
        [*run.manifest.files, rundir.MANIFEST, fine_tune.TENSORBOARD]
    ), "no checkpoint is left"
    assert (run.path / CURVES).read_bytes().startswith(PNG)
    metrics = read_json(Metrics, run.path / rundir.METRICS)
    assert (metrics.validation.samples, metrics.test.samples, metrics.probe_validation.samples) == (9, 15, 9)
    assert metrics.test.top1 > 0.9, "pretrained features tell these photos apart"
    assert metrics.notes[0].startswith("3 of 18 blocks (block6d..top) fine-tuned in 3 epochs after a linear probe")
    assert metrics.notes[0].endswith("augmentation: medium, 3 stored views")


def test_gradual_thawing_is_two_phases_in_the_history(tuned: RunDir) -> None:
    rows = epochs_of(tuned)
    assert [(row.phase, row.epoch) for row in rows] == [
        (fine_tuning.PROBE, 0),
        ("block7a..top", 1),
        ("block6d..top", 1),
        ("block6d..top", 2),
    ]
    metrics = read_json(Metrics, tuned.path / rundir.METRICS)
    assert rows[-1].validation_primary == metrics.validation.top1
    # The tail from float16 activations against the whole model: half a unit in the eleventh bit, through three blocks.
    assert rows[-1].validation_loss == pytest.approx(metrics.validation.log_loss, rel=0.02, abs=2e-3)
    assert rows[0].validation_loss == pytest.approx(metrics.probe_validation.log_loss, rel=0.02, abs=2e-3)


def test_what_is_frozen_is_as_it_came_and_what_is_thawed_is_not(tuned: RunDir, trained_run: RunDir) -> None:
    before, after = weights(trained_run), weights(tuned)  # of the frozen backbone, and of the fine-tuned one
    assert before.keys() == after.keys()
    same = {path for path in before if np.array_equal(before[path], after[path])}
    thawed = ("block6d_", "block7a_", "top_", "probabilities")
    expected = {path for path in before if not path.startswith(thawed) or "bn" in path.split("/")[0]}
    assert same == expected
    assert len(before) - len(expected) == 3 + 3 + 1 + 2, "convolutions of block6d, block7a and top; the head"


def test_nothing_of_training_is_in_the_model_or_the_artifacts(tuned: RunDir, trained_run: RunDir) -> None:
    model = keras.saving.load_model(tuned.model_path, safe_mode=True)  # as saved, regularizer included
    plain = keras.saving.load_model(trained_run.model_path, safe_mode=True)
    names = [layer.name for layer in model.layers if layer.name != "head_dropout"]  # idle unless it is trained again
    assert names == [layer.name for layer in plain.layers]
    penalty = model.get_layer("probabilities").kernel_regularizer.get_config()
    assert (penalty["l1"], penalty["l2"]) == pytest.approx((1e-5, 1e-4))
    assert not model.compiled and {str(variable.dtype) for variable in model.weights} == {"float32"}


@pytest.fixture(scope="module")
def exported(tuned: RunDir, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, report.Report]:
    path = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(tuned.path, path)
    convert.main(convert.Config(path, schemes=("float32", "int8"), calibration_images=12))
    evaluate.main(evaluate.Config(path))
    return RunDir(path), report.main(report.Config(path))


@slow
def test_a_run_goes_straight_through_export(
    exported: tuple[RunDir, report.Report], finished_run: RunDir, tuned: RunDir
) -> None:
    run, made = exported
    assert [row.scheme for row in made.artifacts] == ["float32", "int8"]
    assert made.recipe == "fine_tune" and made.artifacts[0].agreement == 1.0
    for artifact in find_artifacts(run):
        found = operators((run.path / "export" / artifact.path).read_bytes())
        other = operators((finished_run.path / "export" / artifact.path).read_bytes())
        assert [op.name for op in found] == [op.name for op in other], "training must leave no operation behind"
    photo = make_photo(0, 0, (64, 64))
    expected = keras.saving.load_model(tuned.model_path, compile=False)(photo[None].astype(np.float32)).numpy()[0]
    # Converters fuse BatchNorm into convolutions: float32 in another order.
    np.testing.assert_allclose(Model(run.path / "export/float32.tflite").predict(photo), expected, atol=1e-4)


@slow
def test_the_report_repeats_the_notes(exported: tuple[RunDir, report.Report]) -> None:
    run, made = exported
    notes = read_json(Metrics, run.path / rundir.METRICS).notes
    assert made.notes == notes and notes
    assert json.loads((run.path / report.REPORT).read_bytes())["notes"] == list(notes)
    shown = report.show(made).splitlines()
    assert shown.index(notes[0]) > max(number for number, line in enumerate(shown) if line.split()[:1] == ["int8"])


def test_tensorboard_can_read_its_events(tuned: RunDir) -> None:
    found: dict[tuple[int, str], float] = {}
    for file in sorted((tuned.path / fine_tune.TENSORBOARD).iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                found[event.step, value.tag] = float(tf.make_ndarray(value.tensor))
    rows = epochs_of(tuned)
    for step, row in enumerate(rows):
        assert found[step, "validation_loss"] == pytest.approx(row.validation_loss)  # stored as float32
        assert found[step, "head_learning_rate"] == pytest.approx(row.head_learning_rate)
    assert {step for step, _ in found} == {0, 1, 2, 3}


def test_the_result_says_what_to_do_next(tuned: RunDir) -> None:
    *_, validation, test, following = fine_tune.show(tuned).splitlines()
    assert validation.startswith("validation top-1 100.00 % (") and ", linear probe top-1 " in validation
    assert test.startswith("test top-1 ") and "15 photos" in test
    assert following == f"next: python -m export.convert {tuned.path}"


# --- again, and with other settings ---------------------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is(tuned: RunDir, photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tune, "prepare", lambda *_: pytest.fail("there is nothing to do"))
    same = Config(str(photo_folder), tuned.path, **PRETRAINED)  # type: ignore[arg-type]
    before = {path.name: path.read_bytes() for path in tuned.path.iterdir() if path.is_file()}
    assert main(same).path == tuned.path
    assert main(dataclasses.replace(same, resume=True, workers=1, disk_budget_gb=3.0)).path == tuned.path
    with pytest.raises(RunError, match=r"other settings \(backbone_lr: 0\.\d+ -> 0\.5; thaw: 3 -> 4\)"):
        main(dataclasses.replace(same, thaw="4", backbone_lr=0.5))
    with pytest.raises(RunError, match=r"other settings \(.*recipe: fine_tune -> find_learning_rate"):
        find_learning_rate.main(find_learning_rate.Config(str(photo_folder), tuned.path))
    assert {path.name: path.read_bytes() for path in tuned.path.iterdir() if path.is_file()} == before


def test_resume_needs_a_run(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(few), "--out", str(tmp_path / "none"), "--resume", "--quiet"]
    assert command(main, Config, prog="fine-tune", show=fine_tune.show, argv=words) == 2
    assert capsys.readouterr() == (
        "",
        f"fine-tune: --resume: {tmp_path}/none holds no run to go on with. Leave it out to start one\n",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_too_small_a_disk_budget_says_what_helps_and_does_not_block_it(
    few: Path, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = tiny(few, tmp_path / "run", cache=cache, augment="light")
    words = [
        r"need \d+\.\d KB \(\d+ photos x 8 views x",
        r"the budget is 1\.0 KB",
        "--thaw|thaw fewer",
        "--disk-budget-gb",
    ]
    with pytest.raises(ConfigError, match=".*".join([*words, "--views 0"])) as caught:
        main(dataclasses.replace(settings, disk_budget_gb=1e-6))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    with caplog.at_level(logging.INFO, "edgetl"):
        run = main(dataclasses.replace(settings, disk_budget_gb=1e-6, views=0))
    assert "--views 0: photos are decoded and augmented anew in each epoch" in caplog.text
    assert [row.epoch for row in epochs_of(run)] == [0, 1]
    layers = [type(layer).__name__ for layer in keras.saving.load_model(run.model_path).layers]
    assert "Rescaling" in layers and not [name for name in layers if name.startswith("Random")]


@slow  # the first start is the one above; this one stores
def test_a_larger_disk_budget_is_taken_after_a_refusal(few: Path, tmp_path: Path, cache: Path) -> None:
    settings = tiny(few, tmp_path / "run", cache=cache)
    with pytest.raises(ConfigError, match="the budget is"):
        main(dataclasses.replace(settings, disk_budget_gb=1e-6))
    assert main(dataclasses.replace(settings, disk_budget_gb=1.0)).finished


def test_what_is_refused_last_does_not_block_better_settings_either(few: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match="--distribute: found 1 device"):
        main(tiny(few, tmp_path / "run", cache=cache, distribute=True))
    with pytest.raises(ConfigError, match=r"--l2-sp 0\.1: works on blocks; --thaw 0 thaws none"):
        main(tiny(few, tmp_path / "run", cache=cache, thaw="0", l2_sp=0.1))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_everything_thawed_is_streamed(
    few: Path, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_data, "stored", lambda *_: pytest.fail("there is nothing to store"))
    with caplog.at_level(logging.INFO, "edgetl"):
        run = main(tiny(few, tmp_path / "run", cache=cache, thaw="all", epochs=1, batch_size=16))
    assert "everything is thawed, so there is nothing to store: photos are decoded and augmented anew" in caplog.text
    assert epochs_of(run)[1].phase == "stem..top"


# --- stopped, and gone on with --------------------------------------------------------------------------------------


def start(photos: Path, out: Path, cache: Path) -> "subprocess.Popen[str]":
    words = ["--data", photos, "--out", out, "--cache", cache, "--tensorboard", *options(PRETRAINED), "--quiet"]
    return subprocess.Popen(
        [sys.executable, "-m", "recipes.fine_tune", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def wait_for(process: "subprocess.Popen[str]", there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def rows_in(out: Path) -> int:
    file = out / HISTORY
    return len(file.read_text().splitlines()) - 1 if file.is_file() else 0


def stop_and_go_on(
    photos: Path, out: Path, cache: Path, there: Callable[[], bool], how: signal.Signals
) -> tuple[RunDir, int, str]:
    """Run the command, stop it, check what it left, and go on in this process."""
    process = start(photos, out, cache)
    wait_for(process, there)
    process.send_signal(how)
    _, err = process.communicate(timeout=300)
    assert not (out / rundir.MANIFEST).exists(), "it was through before it was stopped"
    with pytest.raises(RunError, match="unfinished run"):
        open_run(out)
    settings = Config(str(photos), out, cache=cache, tensorboard=True, resume=True, **PRETRAINED)  # type: ignore[arg-type]
    return main(settings), process.returncode, err


@slow
def test_a_killed_command_goes_on_to_the_same_weights(
    tuned: RunDir, photo_folder: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    with caplog.at_level(logging.INFO, "edgetl"):
        resumed, status, err = stop_and_go_on(photo_folder, out, cache, (out / CHECKPOINT).is_file, signal.SIGKILL)
    assert (status, err) == (-signal.SIGKILL, "")
    assert "going on after" in caplog.text
    assert_same_weights(resumed, tuned)
    assert (out / rundir.SPLITS).read_bytes() == (tuned.path / rundir.SPLITS).read_bytes()
    timeless = [dataclasses.replace(row, seconds=0, images_per_second=0) for row in epochs_of(resumed)]
    assert timeless == [dataclasses.replace(row, seconds=0, images_per_second=0) for row in epochs_of(tuned)]
    assert not (out / CHECKPOINT).exists()


@slow
@pytest.mark.parametrize(
    ("how", "rows"), [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGINT, 3), (signal.SIGKILL, 3)]
)
def test_stopped_anywhere_it_goes_on_to_the_same_weights(
    how: signal.Signals, rows: int, tuned: RunDir, photo_folder: Path, cache: Path, tmp_path: Path
) -> None:
    """One row: before the first epoch is through, or in it."""
    out = tmp_path / "run"
    there = (out / rundir.SPLITS).is_file if rows == 1 else lambda: rows_in(out) >= rows
    resumed, status, err = stop_and_go_on(photo_folder, out, cache, there, how)
    assert status == (-how if how == signal.SIGKILL else 130)
    if how != signal.SIGKILL:
        assert err == "python -m recipes.fine_tune: interrupted. Run the same command again to resume.\n"
    assert_same_weights(resumed, tuned)


def interrupt_at_step(patch: pytest.MonkeyPatch, step: int) -> None:
    real, steps = fine_tuning._Steps.on_train_batch_end, [0]

    def counted(self: fine_tuning._Steps, batch: int, logs: object = None) -> None:
        real(self, batch, logs)
        steps[0] += 1
        if steps[0] == step:
            raise KeyboardInterrupt

    patch.setattr(fine_tuning._Steps, "on_train_batch_end", counted)


@pytest.fixture(scope="module")
def stopped(few: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Ctrl-C left in the middle of the first epoch; read only."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at_step(patch, 1)
        main(tiny(few, out, cache=cache))
    return out


def test_ctrl_c_leaves_a_checkpoint_and_no_run(stopped: Path) -> None:
    assert sorted(path.name for path in stopped.iterdir()) == [".lock", CHECKPOINT, rundir.CONFIG, rundir.SPLITS]
    with pytest.raises(RunError, match=r"unfinished run\. Run its recipe again with the same settings"):
        open_run(stopped)


def test_other_settings_are_named(few: Path, stopped: Path) -> None:
    before = (stopped / CHECKPOINT).read_bytes()
    with pytest.raises(RunError, match=r"other settings \(epochs: 1 -> 2\)\. Choose another --out"):
        main(tiny(few, stopped, epochs=2, resume=True))
    with pytest.raises(RunError, match=r"other settings \(augment: \w+ -> strong; seed: 0 -> 1\)"):
        main(tiny(few, stopped, seed=1, augment="strong"))
    assert (stopped / CHECKPOINT).read_bytes() == before


def change(photos: Path) -> None:
    Image.fromarray(make_photo(5, 5)).save(photos / "cat/0003.jpg")


def remove(photos: Path) -> None:
    (photos / "cat/0003.jpg").unlink()


def add(photos: Path) -> None:
    shutil.copy(photos / "cat/0003.jpg", photos / "cat/0099.jpg")


@pytest.mark.parametrize(
    ("what", "line"),
    [
        (change, r"\(cat/0003\.jpg has changed\)"),
        pytest.param(remove, r"\(cat/0003\.jpg is gone\)", marks=slow),
        pytest.param(add, r"\(cat/0099\.jpg is new\)", marks=slow),
    ],
)
def test_other_photos_are_named_before_anything_long(
    what: Callable[[Path], None], line: str, few: Path, stopped: Path, cache: Path, tmp_path: Path
) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(few, photos)
    shutil.copytree(stopped, run)
    settings = tiny(photos, run, cache=cache)
    stored = json.loads((run / rundir.CONFIG).read_bytes())
    (run / rundir.CONFIG).write_text(json.dumps({**stored, "data": str(photos)}))
    what(photos)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError, match=f"began with other photos {line}"):
        patch.setattr(training_data, "stored", lambda *_: pytest.fail("too late"))
        main(settings)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@slow
@pytest.mark.parametrize(
    "changes", [{"views": 0}, {"thaw": "all"}, {"ema": 0.9}, {"patience": 1, "epochs": 3}], ids=str
)
def test_interrupted_in_the_middle_of_an_epoch(
    changes: dict[str, object], few: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 2, "batch_size": 4, "augment": "medium", **changes}
    whole = main(tiny(few, tmp_path / "whole", cache=cache, **settings))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at_step(patch, 5)  # 14 photos: 3 steps an epoch
        main(tiny(few, tmp_path / "parts", cache=cache, **settings))
    assert_same_weights(main(tiny(few, tmp_path / "parts", cache=cache, **settings)), whole)


# --- the learning rate ----------------------------------------------------------------------------------------------


@slow
def test_the_rate_finder_writes_figures_and_a_picture_and_says_which_options(
    photo_folder: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rate"
    words = ["--data", photo_folder, "--out", out, "--cache", cache, "--image-size", "64", "--thaw", "2", "--quiet"]
    # The probe fits its photos: with label smoothing there is something to learn. All 36 in every batch: little noise.
    words += ["--augment", "none", "--label-smoothing", "0.3", "--batch-size", "36", "--steps", "40"]
    words += ["--head-lr", "0.002", "--backbone-lr", "0.001"]
    found = find_learning_rate
    assert command(found.main, found.Config, prog="rate", show=found.show, argv=[str(word) for word in words]) == 0
    shown, err = capsys.readouterr()
    result = read_json(found.RateSearch, out / found.RESULT)
    assert not [line for line in err.splitlines() if "cuda" not in line.lower()]
    assert (out / found.CURVE).read_bytes().startswith(PNG) and str(out / found.CURVE) in shown
    assert len(result.losses) == len(result.rates) <= 40 and len(result.losses) >= 10
    assert result.rates[0] == pytest.approx(1e-6)
    assert np.isfinite(result.losses).all()
    assert result.learning_rate is not None, result.reason
    assert result.backbone_learning_rate == pytest.approx(result.learning_rate / 2)
    assert f"--head-lr {result.learning_rate:.1e} --backbone-lr {result.backbone_learning_rate:.1e}" in shown
    assert sorted(path.name for path in out.iterdir()) == [".lock", rundir.CONFIG, found.RESULT, found.CURVE]


def test_rates_at_which_nothing_falls_give_no_suggestion(few: Path, tmp_path: Path, cache: Path) -> None:
    found = find_learning_rate
    settings = {**TINY, "cache": cache, "lowest": 1e-12, "highest": 1e-11, "steps": 12}
    result = found.main(found.Config(str(few), tmp_path / "rate", **settings))  # type: ignore[arg-type]
    assert result.learning_rate is None and result.backbone_learning_rate is None
    shown = found.show(result)
    assert "no learning rate lowered the loss between 1e-12 and 1e-11. Try higher ones" in shown
    assert "--head-lr" not in shown
    assert (tmp_path / "rate" / found.CURVE).is_file()


# --- the settings ---------------------------------------------------------------------------------------------------


def test_choices_are_those_of_the_modules() -> None:
    kinds = typing.get_type_hints(Config)
    assert set(typing.get_args(kinds["augment"])) == set(augment.PRESETS)
    assert set(typing.get_args(kinds["optimizer"])) == set(optimizers.OPTIMIZERS)
    assert kinds["schedule"] == schedules.Schedule
    assert set(typing.get_args(kinds["batch_norm"])) == set(fine_tune.BATCH_NORM)
    inside = typing.get_type_hints(fine_tuning.Settings)
    assert kinds["precision"] == inside["precision"] and kinds["batch_norm"] == inside["batch_norm"]


@pytest.mark.parametrize(
    ("changes", "streamed", "said"),
    [
        ({"augment": "none"}, False, "none"),
        ({"augment": "flips"}, False, "flips, 2 stored views"),
        ({"augment": "light"}, False, "light, 8 stored views"),
        ({"augment": "light"}, True, "light, anew in each epoch"),
        ({"augment": "light", "views": 1}, False, "none, for --views 1 is the photo itself"),
    ],
)
def test_what_is_said_of_augmentation_is_what_is_done(changes: dict[str, object], streamed: bool, said: str) -> None:
    assert training_data.augmentation(tiny(Path("d"), Path("o"), **changes), streamed=streamed) == said


def test_help_comes_at_once() -> None:
    before = sum(os.times()[2:4])
    done = subprocess.run(
        [sys.executable, "-m", "recipes.cli", "fine-tune", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    seconds = sum(os.times()[2:4]) - before  # of the processor, so that a busy machine makes no difference
    assert done.returncode == 0 and "--backbone-lr" in done.stdout
    assert seconds < 2, "it takes half a second; importing TensorFlow takes five"
