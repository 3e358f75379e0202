"""The recipe as a function and as a command: quiet, repeatable, resumable."""

import dataclasses
import inspect
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from photos import make_photo_folder

from edgetl import data, features, results, rows, shards
from edgetl.backbones.build import build
from edgetl.errors import BackboneError, ConfigError, DatasetError, EdgetlError, RunError, WeightsError
from edgetl.inputs import ImageInput
from edgetl.metrics import score
from edgetl.rundir import CONFIG, METRICS, SPLITS, RunDir, open_run, read_json
from recipes import experiment
from recipes.experiment import Experiment
from recipes.feature_extraction import Config, Metrics, main

ROOT = Path(__file__).parent.parent


def config(photos: Path, out: Path, **changes: object) -> Config:
    """Random weights at a small size: nothing to load, seconds to run."""
    plain = Config(str(photos), out, backbone="MobileNet_025", weights="none", image_size=32)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def weights(run: RunDir) -> list[np.ndarray]:
    return keras.saving.load_model(run.model_path, compile=False).get_weights()


def same_weights(a: RunDir, b: RunDir) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def parts(run: RunDir) -> dict[str, list[str]]:
    splits = run.splits()
    return {name: [e.id for e in getattr(splits, name)] for name in ("train", "validation", "test")}


def test_a_call_prints_nothing_and_gives_a_verified_run(
    photo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import sys; from recipes.feature_extraction import Config, main\n"
        "main(Config(sys.argv[1], sys.argv[2], backbone='MobileNet_025', weights='none', image_size=32))\n"
    )
    out = str(tmp_path / "run")
    # A process of its own: whether TensorFlow's start-up lines can be silenced is settled at its import.
    done = subprocess.run([sys.executable, "-c", program, photo_folder, out], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    run = main(config(photo_folder, Path(out)))  # finished: nothing to do, and nothing to say
    assert open_run(run.path).output_names == ("cat", "dog", "owl")
    assert run.inputs == ImageInput(32, 32)
    metrics = read_json(Metrics, run.path / METRICS)
    assert (metrics.validation.samples, metrics.test.samples) == (9, 15)
    assert {len(names) for names in parts(run).values()} == {36, 9, 15}
    assert capfd.readouterr() == ("", "")


def test_metrics_are_those_of_the_saved_model_on_the_test_photos(trained_run: RunDir) -> None:
    splits = trained_run.splits()
    model = keras.saving.load_model(trained_run.model_path, compile=False)
    pixels = np.stack([data.read_image(e.path, trained_run.inputs) for e in splits.test]).astype(np.float32)
    found = score(splits.test.labels, model.predict(pixels, verbose=0), trained_run.outputs)
    stored = read_json(Metrics, trained_run.path / METRICS).test
    assert stored.confusion == found.confusion
    # Features come from the converted backbone, which sums in another order (1e-5), and logits are tens of them.
    assert stored.log_loss == pytest.approx(found.log_loss, abs=1e-3)
    assert stored.top1 > 0.9, "pretrained features tell these photos apart"


def test_the_model_is_flat_takes_raw_pixels_and_is_frozen_below_the_head(trained_run: RunDir) -> None:
    model = keras.saving.load_model(trained_run.model_path, compile=False)
    assert model.input_shape == (None, 64, 64, 3) and model.output_shape == (None, 3)
    assert not [layer for layer in model.layers if isinstance(layer, keras.Model)]
    backbone = build("EfficientNetLite0", ImageInput(64, 64), "imagenet")
    for before, after in zip(backbone.get_weights(), model.get_weights(), strict=False):
        np.testing.assert_array_equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_the_same_seed_twice_is_the_same_model(head: str, photo_folder: Path, tmp_path: Path) -> None:
    runs = [
        main(
            config(photo_folder, tmp_path / name, head=head, epochs=4, hidden_units=(8,), seed=5, cache=tmp_path / name)
        )
        for name in ("a", "b")  # with caches of their own: nothing is handed over
    ]
    assert same_weights(*runs)
    assert parts(runs[0]) == parts(runs[1])
    assert (runs[0].path / METRICS).read_bytes() == (runs[1].path / METRICS).read_bytes()
    if head == "mlp":
        names = [layer.name for layer in keras.saving.load_model(runs[0].model_path, compile=False).layers]
        assert [name for name in names if name.startswith("head_")] == ["head_dropout1", "head_dense1", "head_dropout"]
        assert "mlp (8,)" in read_json(Metrics, runs[0].path / METRICS).head


@pytest.mark.slow
def test_another_seed_is_another_split(photo_folder: Path, tmp_path: Path) -> None:
    first, second = (main(config(photo_folder, tmp_path / f"{seed}", seed=seed)) for seed in (1, 2))
    assert parts(first) != parts(second)
    assert {name: len(ids) for name, ids in parts(first).items()} == {n: len(ids) for n, ids in parts(second).items()}
    assert not same_weights(first, second)


@pytest.mark.slow
def test_a_split_that_the_folder_brings_is_kept(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for seed, (part, count) in enumerate({"train": 8, "val": 3, "test": 4}.items()):
        make_photo_folder(photos / part, {"cat": count, "dog": count}, seed=seed)
    found = parts(main(config(photos, tmp_path / "run", test_fraction=0.7)))
    assert {name: len(ids) for name, ids in found.items()} == {"train": 16, "validation": 6, "test": 8}
    folder = {"train": "train/", "validation": "val/", "test": "test/"}
    assert all(id_.startswith(folder[name]) for name, ids in found.items() for id_ in ids)


@pytest.mark.slow
def test_weights_from_a_file_are_used_and_told_apart(photo_folder: Path, tmp_path: Path) -> None:
    keras.utils.set_random_seed(99)
    backbone = build("MobileNet_025", ImageInput(32, 32), "none")
    file = tmp_path / "mine.weights.h5"
    backbone.save_weights(file)
    run = main(config(photo_folder, tmp_path / "run", weights=str(file), cache=tmp_path / "cache"))
    for expected, found in zip(backbone.get_weights(), weights(run), strict=False):
        np.testing.assert_array_equal(found, expected)
    keras.utils.set_random_seed(100)
    build("MobileNet_025", ImageInput(32, 32), "none").save_weights(file)
    other = main(config(photo_folder, tmp_path / "other", weights=str(file), cache=tmp_path / "cache"))
    assert len(list((tmp_path / "cache/features").iterdir())) == 2, "features of other weights must not be reused"
    assert not same_weights(run, other)


@pytest.mark.slow
def test_a_second_run_takes_its_features_from_the_cache(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = main(config(photo_folder, tmp_path / "a", cache=tmp_path / "cache"))
    monkeypatch.setattr("export.saved_model.float_tflite", lambda _: pytest.fail("there is nothing to compute"))
    second = main(config(photo_folder, tmp_path / "b", cache=tmp_path / "cache", workers=1))
    assert same_weights(first, second)


@pytest.mark.slow
def test_features_that_stay_in_their_shards_make_the_same_run(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = main(config(photo_folder, tmp_path / "held", cache=tmp_path / "cache"))
    monkeypatch.setattr(rows, "HELD_BYTES", 0)
    monkeypatch.setattr(features, "SHARD_ROWS", 8)
    stored = main(config(photo_folder, tmp_path / "stored", cache=tmp_path / "small shards"))
    assert parts(held) == parts(stored)
    for before, after in zip(weights(held), weights(stored), strict=True):
        # Sums of float32 products in another order.
        np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())
    assert stored.manifest.data_sha256 == held.manifest.data_sha256
    assert (
        read_json(Metrics, stored.path / METRICS).test.confusion
        == read_json(Metrics, held.path / METRICS).test.confusion
    )


def test_a_finished_run_is_left_as_it_is(trained_run: RunDir, photo_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run.path, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    same = Config(str(photo_folder), trained_run.path, image_size=64)
    assert main(dataclasses.replace(same, workers=1)).path == trained_run.path
    with pytest.raises(RunError, match=r"other settings \(image_size: 64 -> 65\)"):
        main(dataclasses.replace(same, image_size=65))
    with pytest.raises(RunError, match="head: linear -> mlp"):
        main(dataclasses.replace(same, head="mlp"))
    after = {path: path.read_bytes() for path in trained_run.path.rglob("*") if path.is_file()}
    assert {p.name: c for p, c in after.items()} == {p.name: c for p, c in before.items()}


def test_a_finished_run_of_a_table_that_was_edited_is_not_taken(trained_run: RunDir, photo_folder: Path) -> None:
    examples = data.load(str(photo_folder))
    assert results.reopen(trained_run, examples).path == trained_run.path
    first = examples.items[0]
    moved = "test" if trained_run.rows[first.id]["split"] == "validation" else "validation"
    for change in ({"label": 1}, {"group": "g"}, {"weight": 0.5}, {"split": moved}):
        edited = examples.with_items([dataclasses.replace(first, **change), *examples.items[1:]])  # type: ignore[arg-type]
        with pytest.raises(RunError, match=rf"another label, group, weight or split of 1 photo\(s\) \({first.id}\)"):
            results.reopen(trained_run, edited)


def test_a_finished_run_says_which_slice_columns_count(
    run_copy: RunDir, photo_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They change no result, so the run is taken; but figures would be taken apart by what nobody sees any more."""
    header, *rows = (run_copy.path / SPLITS).read_text().splitlines()
    run_copy.write(SPLITS, "\n".join([f"{header},camera", *(f"{row},north" for row in rows)]) + "\n")
    made = run_copy.manifest
    run_copy.finish(recipe=made.recipe, data=made.data, data_sha256=made.data_sha256, seed=made.seed)
    plain = data.load(str(photo_folder))
    items = tuple(dataclasses.replace(item, values=("north",)) for item in plain)
    same = dataclasses.replace(plain, items=items, columns=("camera",))
    first = dataclasses.replace(items[0], values=("south",))
    with caplog.at_level(logging.WARNING, "edgetl"):
        results.reopen(run_copy, same)
        assert not caplog.messages
        results.reopen(run_copy, same.with_items([first, *items[1:]]))
        results.reopen(run_copy, plain)
    stored = (
        f"were edited since, slices are cut by those in {run_copy.path / SPLITS}. Choose another --out for new ones"
    )
    for count, message in zip((1, len(items)), caplog.messages, strict=True):
        assert message == f"{run_copy.path}: further columns of {count} photo(s) ({first.id}) {stored}"


def test_a_damaged_finished_run_is_not_called_finished(run_copy: RunDir, photo_folder: Path) -> None:
    settings = Config(str(photo_folder), run_copy.path, image_size=64)
    stored = (run_copy.path / CONFIG).read_text()
    (run_copy.path / METRICS).write_text("{}")
    other = next(line for line in stored.splitlines() if '"out"' in line)
    (run_copy.path / CONFIG).write_text(stored.replace(other, f'  "out": "{run_copy.path}",'))
    with pytest.raises(RunError, match="changed since the run finished"):
        main(settings)


def test_settings_in_a_run_have_the_names_that_earlier_runs_have(trained_run: RunDir) -> None:
    shared = "data out backbone width weights image_size resize validation_fraction test_fraction task label targets"
    shared += " class_order group seed max_unreadable cache workers ray exclude allow_leakage"
    own = "head hidden_units dropout learning_rate weight_decay epochs batch_size calibrate_scores"
    assert [field.name for field in dataclasses.fields(Experiment)] == shared.split()
    assert set(json.loads((trained_run.path / CONFIG).read_text())) == {"recipe", *shared.split(), *own.split()}


def test_help_explains_every_option_inherited_ones_included() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "recipes.feature_extraction", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    text = " ".join(done.stdout.replace("│", " ").split())
    sources = [inspect.getsource(Experiment), inspect.getsource(Config)]
    explained = [
        " ".join(line.split('"""')[1].split())
        for source in sources
        for line in source.splitlines()[3:]
        if line.count('"""') == 2
    ]
    assert len(explained) == len(dataclasses.fields(Config))
    assert not [line for line in explained if line not in text]


# --- interruption ---------------------------------------------------------------------------------------------------

SLOW_PHOTOS = """if True:
    import os, sys, time
    from edgetl import features, shards
    from recipes import feature_extraction as recipe
    from edgetl.config import command
    features.SHARD_ROWS = 8
    read = shards.load_pixels
    def slow(example, spec):
        os.write(1, b"photo\\n")
        time.sleep(0.05)
        return read(example, spec)
    shards.load_pixels = slow
    sys.exit(command(recipe.main, recipe.Config, prog=recipe.PROG, show=recipe.show))
"""


@pytest.mark.slow
def test_ctrl_c_in_the_feature_pass_and_a_second_run(photo_folder: Path, tmp_path: Path) -> None:
    plain = ["--data", photo_folder, "--out", tmp_path / "run", "--backbone", "MobileNet_025", "--weights", "none"]
    options = [str(word) for word in [*plain, "--image-size", "32", "--cache", tmp_path / "cache"]]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_PHOTOS, *options, "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout
    for _ in range(25):  # three shards and one photo of 60
        assert process.stdout.readline() == "photo\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "python -m recipes.feature_extraction: interrupted. Run the same command again to resume.\n"
    run = RunDir(tmp_path / "run")
    assert not run.finished
    with pytest.raises(RunError, match="unfinished run"):
        open_run(run.path)
    kept = len(list((tmp_path / "cache").rglob("*.npz")))
    assert 1 <= kept < 8, "some shards, not all"
    settings = config(photo_folder, run.path, cache=tmp_path / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "SHARD_ROWS", 8)
        read = shards.load_pixels
        computed: list[str] = []

        def counted(example: data.Example, spec: ImageInput) -> object:
            computed.append(example.id)
            return read(example, spec)

        patch.setattr(shards, "load_pixels", counted)
        resumed = main(settings)
        assert len(computed) == 60 - 8 * kept
        whole = main(dataclasses.replace(settings, out=tmp_path / "whole", cache=tmp_path / "elsewhere"))
    assert same_weights(resumed, whole)
    assert parts(resumed) == parts(whole)
    assert (resumed.path / METRICS).read_bytes() == (whole.path / METRICS).read_bytes()


# --- what can't work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"backbone": "MobileNetV9"}, BackboneError, "Did you mean MobileNet"),
        ({"image_size": 31}, BackboneError, "31x31 pixels are too few, the minimum is 32x32"),
        ({"image_size": -1}, ConfigError, "--image-size -1"),
        ({"weights": "imagnet"}, WeightsError, "expected imagenet, none, or a file"),
        ({"weights": "gone.weights.h5"}, WeightsError, "no such file of weights"),
        ({"validation_fraction": 0.0}, ConfigError, "validation_fraction=0.0"),
        ({"test_fraction": 0.9}, ConfigError, "their sum below 1"),
        ({"test_fraction": float("nan")}, ConfigError, "nan"),
        ({"head": "mlp", "epochs": 0}, ConfigError, "--epochs 0: must be at least 1"),
        ({"head": "mlp", "hidden_units": (8, 0)}, ConfigError, "--hidden-units 0"),
        ({"head": "mlp", "dropout": 1.0}, ConfigError, "--dropout 1.0"),
        ({"head": "mlp", "learning_rate": float("nan")}, ConfigError, "--learning-rate nan"),
        ({"head": "mlp", "learning_rate": float("inf")}, ConfigError, "--learning-rate inf"),
        ({"head": "mlp", "weight_decay": -1.0}, ConfigError, "--weight-decay -1.0"),
        ({"max_unreadable": 2.0}, ConfigError, "--max-unreadable 2.0"),
        ({"workers": -2}, ConfigError, "--workers -2"),
    ],
)
def test_settings_that_can_not_work_are_refused_and_do_not_block_better_ones(
    changes: dict[str, object], error: type[EdgetlError], message: str, photo_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        main(config(photo_folder, tmp_path / "run", **changes))
    run = RunDir(tmp_path / "run")
    assert not run.finished and not (run.path / CONFIG).exists()


def test_a_class_too_small_for_three_parts_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photo_folder(tmp_path / "photos", {"cat": 12, "dog": 2})
    monkeypatch.setattr(experiment, "build_backbone", lambda *_: pytest.fail("too late"))
    with pytest.raises(DatasetError, match=r"class dog \(see dog/.*\) has 2 example\(s\), need at least 3"):
        main(config(photos, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_too_many_unreadable_photos(tmp_path: Path) -> None:
    photos = make_photo_folder(tmp_path / "photos")
    (photos / "cat/0003.jpg").write_bytes(b"no photo")
    with pytest.raises(DatasetError, match=r"1 of 24 files can't be read, more than 1.0%: cat/0003\.jpg"):
        main(config(photos, tmp_path / "run"))
    run = main(config(photos, tmp_path / "run", max_unreadable=0.1))  # another setting, into the same directory
    assert "cat/0003.jpg" not in [id_ for ids in parts(run).values() for id_ in ids]


@pytest.mark.slow
def test_two_runs_do_not_write_one_directory(photo_folder: Path, tmp_path: Path) -> None:
    plain = ["--data", photo_folder, "--out", tmp_path / "run", "--backbone", "MobileNet_025", "--weights", "none"]
    options = [str(word) for word in [*plain, "--image-size", "32", "--cache", tmp_path / "cache"]]
    first = subprocess.Popen([sys.executable, "-c", SLOW_PHOTOS, *options], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert first.stdout and first.stdout.readline() == "photo\n"
    started = time.monotonic()
    with pytest.raises(RunError, match="another process is writing this run"):
        main(config(photo_folder, tmp_path / "run", cache=tmp_path / "cache"))
    assert time.monotonic() - started < 60, "it must not wait"
    os.kill(first.pid, signal.SIGTERM)
    first.communicate(timeout=120)
    assert first.returncode == 130


# --- Python calls and finished runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "forest"}, "head: Input should be 'linear' or 'mlp'"),
        ({"resize": "squash"}, "resize: Input should be"),
        ({"hidden_units": 8}, "hidden_units: "),
        ({"image_size": 32.5}, "image_size: "),
        ({"seed": -1}, "--seed -1: must be between"),
        ({"seed": 2**32}, "--seed 4294967296: must be between"),
    ],
)
def test_a_call_is_checked_like_the_command_line(
    photo_folder: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        main(config(photo_folder, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_backbone_is_checked_before_the_data(tmp_path: Path) -> None:
    for changes, message in (
        ({"backbone": "MobilNet"}, "'MobilNet' is unknown. Did you mean MobileNet"),
        ({"backbone": "MobileNet", "width": 0.3}, "MobileNet: there is no width 0.3 of it, only 0.25, 0.5, 0.75, 1."),
    ):
        with pytest.raises(BackboneError, match=re.escape(message)):
            main(config(tmp_path / "nowhere", tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_out_inside_the_data_is_refused(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "photos", {"cat": 6, "dog": 6})
    with pytest.raises(ConfigError, match="lies in the data"):
        main(config(root, root / "run"))
    assert not (root / "run").exists()


@pytest.mark.slow
def test_a_finished_run_is_no_result_for_other_photos(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "photos", {"cat": 8, "dog": 8})
    first = main(config(root, tmp_path / "run"))
    moved = tmp_path / "moved"
    first.path.rename(moved)
    assert main(config(root, moved)).path == moved  # a run may be moved
    next((root / "cat").iterdir()).unlink()
    with pytest.raises(RunError, match=r"finished with other photos \(0 came, 1 went since\)"):
        main(config(root, moved))
