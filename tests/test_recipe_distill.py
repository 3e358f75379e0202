"""Distillation as a function and as a command: what it leaves behind, what it refuses, and how it goes on."""

import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache as cached
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from editing import edit, vouch
from photos import make_photo, make_photo_folder
from PIL import Image
from test_recipe_fine_tune import assert_same_weights, epochs_of, interrupt_at_step, options
from tiny_runs import tiny_run

from edgetl import data, rundir
from edgetl.comparison import agreement
from edgetl.config import command, parse, to_json
from edgetl.errors import BackboneError, ConfigError, DatasetError, EdgetlError, RunError
from edgetl.heads import HEADS
from edgetl.outputs import Task
from edgetl.rundir import RunDir, open_run, read_json
from export import adopt, convert, evaluate, report
from export.reporting.origins import NO_OPTIONS, recipe_words
from recipes import distill, experiment, feature_extraction, fine_tune, lessons, training_data
from recipes.distill import Config, Metrics, main
from recipes.fine_tune import CHECKPOINT, CURVES, HISTORY
from recipes.lessons import RECORD, Record

ROOT = Path(__file__).parent.parent
slow = pytest.mark.slow
ALL = {
    "image_size": 48,
    "thaw": "2",
    "gradual": 2,
    "epochs": 2,
    "epochs_per_group": 1,
    "batch_size": 8,
    "augment": "light",
    "views": 3,
    "mixup": 0.2,
    "hint_weight": 0.5,
}
"""A run with all that must not be left in the model; its teacher takes photos of another size."""
TINY = {"backbone": "MobileNetV3Small", "weights": "none", "image_size": 32, "thaw": "1", "epochs": 1, "batch_size": 8}
"""Random weights at a small size: nothing to load, seconds to run."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def more(trained_run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos without labels in folders, a file that is none, and a copy of one photo of each split."""
    root = make_photo_folder(tmp_path_factory.mktemp("more") / "photos", {"a": 6, "b": 6}, seed=9)
    (root / "b/readme.txt").write_text("not a photo")
    (root / "copies/deep").mkdir(parents=True)
    splits = trained_run.splits()
    for name in ("train", "validation", "test"):
        shutil.copy(getattr(splits, name).items[0].path, root / f"copies/deep/{name}.jpg")
    return root


def student(teacher: RunDir, out: Path, cache: Path, **changes: object) -> Config:
    return Config(out=out, teacher=teacher.path, cache=cache, **changes)  # type: ignore[arg-type]


def full(teacher: RunDir, out: Path, cache: Path, more: Path, **changes: object) -> Config:
    return student(teacher, out, cache, unlabelled=str(more), **ALL, **changes)


@pytest.fixture(scope="module")
def distilled(trained_run: RunDir, cache: Path, more: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run, as a Python call makes it; read only."""
    return main(full(trained_run, tmp_path_factory.mktemp("runs") / "student", cache, more))


# --- what a run leaves behind ---------------------------------------------------------------------------------------


@slow
def test_a_run_is_one_like_any_other_on_the_teachers_split(distilled: RunDir, trained_run: RunDir) -> None:
    run = open_run(distilled.path)
    assert set(run.manifest.files) == {*rundir.RESULTS, HISTORY, CURVES, RECORD}
    assert run.manifest.recipe == "distill" and run.manifest.data == trained_run.manifest.data
    assert sorted(path.name for path in run.path.iterdir() if path.name != ".lock") == sorted(
        [*run.manifest.files, rundir.MANIFEST]
    ), "no checkpoint is left"
    assert (run.path / rundir.SPLITS).read_bytes() == (trained_run.path / rundir.SPLITS).read_bytes()
    assert run.manifest.data_sha256 == trained_run.manifest.data_sha256
    assert run.outputs == trained_run.outputs and run.inputs.height == 48
    assert [(row.phase, row.epoch) for row in epochs_of(run)][1:] == [
        ("top", 1),
        ("block7a..top", 1),
        ("block7a..top", 2),
    ]


@slow
def test_nothing_of_the_teacher_is_in_the_model(distilled: RunDir, trained_run: RunDir) -> None:
    model = keras.saving.load_model(distilled.model_path, safe_mode=True)
    plain = keras.saving.load_model(trained_run.model_path, safe_mode=True)
    assert [x.name for x in model.layers if x.name != "head_dropout"] == [x.name for x in plain.layers]
    assert len(model.outputs) == 1 and not model.compiled


@slow
def test_figures_and_notes_tell_of_the_teacher(distilled: RunDir, trained_run: RunDir) -> None:
    metrics = read_json(Metrics, distilled.path / rundir.METRICS)
    before = read_json(feature_extraction.Metrics, trained_run.path / rundir.METRICS)
    assert metrics.teacher_validation.primary == before.validation.primary
    assert metrics.validation.samples == 9 and metrics.test is not None and metrics.test.top1 > 0.9
    photos = trained_run.splits().validation
    said = []
    for run in (distilled, trained_run):
        pixels = np.stack([data.read_image(each.path, run.inputs) for each in photos]).astype(np.float32)
        said.append(np.asarray(keras.saving.load_model(run.model_path, compile=False)(pixels)))
    assert metrics.teacher_agreement == agreement(said[0], said[1], distilled.outputs)
    first, second, third, *_ = metrics.notes
    assert first == (
        f"distilled from {trained_run.path} (model sha256 {trained_run.model_sha256[:12]}), temperature 4, "
        "label weight 0.1, hints 0.5; 12 photos without labels"
    )
    assert second.startswith("the teacher on validation: top-1 ") and "9 photos" in second
    assert "of 18 blocks (block7a..top) fine-tuned in 3 epochs after a linear probe" in third
    assert distill.show(distilled).splitlines()[:2] == [first, second]


@slow
def test_photos_with_labels_are_not_among_those_without(
    distilled: RunDir, trained_run: RunDir, more: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = read_json(Record, distilled.path / RECORD)
    assert record.model_sha256 == trained_run.model_sha256
    names = [f"{folder}/{number:04d}.jpg" for folder in "ab" for number in range(6)]
    assert record.unlabelled == {name: rundir.sha256_of(more / name) for name in names}
    config = full(trained_run, tmp_path / "run", cache, more)
    teacher = lessons.find_teacher(config)
    assert teacher.unlabelled is not None and len(teacher.unlabelled) == 15
    row, spec = experiment.row_and_spec(config)
    found = experiment.extract(config, row, spec, teacher.unlabelled, experiment.build_backbone(config, row, spec))
    table = experiment.extract(config, row, spec, teacher.examples, experiment.build_backbone(config, row, spec))
    kept, hashes = lessons.unseen(found, table)
    assert hashes == record.unlabelled and len(kept) == 12
    assert "3 of 15 unlabelled photos are left out: byte for byte among those with labels, 2 of validation or test" in (
        caplog.text
    )
    with pytest.raises(DatasetError, match="none of 3 photos is new"):
        lessons.unseen(
            dataclasses.replace(found, examples=found.examples.select([12, 13, 14]), sha256=found.sha256[12:]), table
        )


@slow
def test_a_run_goes_straight_through_export(distilled: RunDir, tmp_path: Path) -> None:
    shutil.copytree(distilled.path, tmp_path / "run")
    convert.main(convert.Config(tmp_path / "run", schemes=("float32", "int8"), calibration_images=12))
    evaluate.main(evaluate.Config(tmp_path / "run"))
    made = report.main(report.Config(tmp_path / "run"))
    assert [row.scheme for row in made.artifacts] == ["float32", "int8"] and made.artifacts[0].agreement == 1.0
    assert made.recipe == "distill" and made.notes[0].startswith("distilled from ")
    page = (tmp_path / "run/report.html").read_text()
    assert "It is a distilled EfficientNetLite0, trained on" in page
    settings = json.loads((distilled.path / rundir.CONFIG).read_bytes())
    again = parse(Config, shlex.split(" ".join(recipe_words(settings, "distill")))[3:], prog="distill")
    same = dataclasses.replace(again, cache=Path(settings["cache"]), workers=settings["workers"])
    assert json.loads(to_json(same)) == {k: v for k, v in settings.items() if k != "recipe"}, "the page's command works"
    assert set(NO_OPTIONS["distill"]) == set(distill.SETTLED)


# --- every task, every kind of teacher ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Task], RunDir]:
    """Makes a small teacher of a task, once; read only."""
    return cached(lambda task: tiny_run(tmp_path_factory.mktemp(task), task))


@pytest.mark.parametrize(
    "task", ["regression", *(pytest.param(task, marks=slow) for task in HEADS if task != "regression")]
)
def test_every_task_can_be_distilled(task: Task, teachers: Any, cache: Path, tmp_path: Path) -> None:
    teacher = teachers(task)
    more = make_photo_folder(tmp_path / "more", {"x": 4}, size=(20, 20))
    run = main(student(teacher, tmp_path / "run", cache, unlabelled=str(more), ema=0.9, hint_weight=0.1, **TINY))
    assert (run.outputs.task, run.outputs.names) == (task, teacher.outputs.names)
    assert run.outputs.deviations == teacher.outputs.deviations
    model = keras.saving.load_model(run.model_path, compile=False)
    assert type(model.layers[-1]) is keras.layers.Dense and model.layers[-1].name == HEADS[task].output_layer
    metrics = read_json(Metrics, run.path / rundir.METRICS)
    expected = json.loads((teacher.path / rundir.METRICS).read_text())["validation"]
    name = type(metrics.teacher_validation).FIGURE
    # The converted teacher against the Keras model: float32 in another order.
    assert metrics.teacher_validation.primary == pytest.approx(expected[name], abs=1e-4)
    assert 0 <= metrics.teacher_agreement <= 1
    assert all(np.isfinite(row.train_loss) for row in epochs_of(run))


@slow
def test_a_model_from_elsewhere_can_teach(photo_folder: Path, cache: Path, tmp_path: Path) -> None:
    inputs = keras.Input((40, 40, 3))
    x = keras.layers.Conv2D(8, 3, 2, activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(inputs, keras.layers.Softmax()(x)).save(tmp_path / "model.keras")
    teacher = adopt.adopt(tmp_path / "model.keras", str(photo_folder), tmp_path / "adopted", cache=cache)
    run = main(student(teacher, tmp_path / "run", cache, hint_weight=1.0, **TINY))
    assert run.finished and run.outputs == teacher.outputs


def test_what_was_not_held_out_from_the_teacher_is_not_held_out_now(
    trained_run: RunDir, cache: Path, tmp_path: Path
) -> None:
    config = student(trained_run, tmp_path / "run", cache)
    examples = lessons.find_teacher(config).examples
    splits = experiment.divide(config, examples.with_items([item for item in examples if item.split != "test"]))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (36, 9, 0)


@slow
def test_a_teacher_that_held_no_photo_out_leaves_none(photo_folder: Path, cache: Path, tmp_path: Path) -> None:
    settings = feature_extraction.Config(
        str(photo_folder), tmp_path / "all", test_fraction=0.0, cache=cache,
        **{name: TINY[name] for name in ("backbone", "weights", "image_size")},
    )  # type: ignore[arg-type] # fmt: skip
    teacher = feature_extraction.main(settings)
    run = main(student(teacher, tmp_path / "run", cache, **TINY))
    assert read_json(Metrics, run.path / rundir.METRICS).test is None
    assert (run.path / rundir.SPLITS).read_bytes() == (teacher.path / rundir.SPLITS).read_bytes()


# --- stopped, and gone on with --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(
    trained_run: RunDir, cache: Path, more: Path, distilled: RunDir, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What Ctrl-C left in the middle of the second epoch; read only."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at_step(patch, 7)  # 36 + 12 photos: six steps an epoch
        main(full(trained_run, out, cache, more))
    return out


@slow
def test_it_goes_on_to_the_same_weights_and_asks_the_teacher_once(
    stopped: Path, distilled: RunDir, trained_run: RunDir, cache: Path, more: Path, tmp_path: Path
) -> None:
    assert sorted(path.name for path in stopped.iterdir()) == sorted(
        [".lock", CHECKPOINT, CURVES, HISTORY, RECORD, rundir.CONFIG, rundir.SPLITS]
    )
    shutil.copytree(stopped, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "converted", lambda *_: pytest.fail("all of it is stored"))
        resumed = main(full(trained_run, tmp_path / "run", cache, more, resume=True))
    assert_same_weights(resumed, distilled)
    timeless = [dataclasses.replace(row, seconds=0, images_per_second=0) for row in epochs_of(resumed)]
    assert timeless == [dataclasses.replace(row, seconds=0, images_per_second=0) for row in epochs_of(distilled)]


@slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_goes_on_to_the_same_weights(
    how: signal.Signals, distilled: RunDir, trained_run: RunDir, cache: Path, more: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = [
        "--teacher",
        trained_run.path,
        "--out",
        out,
        "--cache",
        cache,
        "--unlabelled",
        more,
        *options(ALL),
        "--quiet",
    ]
    process = subprocess.Popen([sys.executable, "-m", "recipes.distill", *map(str, words)], cwd=ROOT)
    deadline = time.monotonic() + 300
    while not (out / CHECKPOINT).is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(how)
    process.wait(300)
    assert not (out / rundir.MANIFEST).exists(), "it was through before it was stopped"
    assert_same_weights(main(full(trained_run, out, cache, more)), distilled)


@slow
def test_other_photos_without_labels_are_named(
    stopped: Path, trained_run: RunDir, cache: Path, more: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    shutil.copytree(more, tmp_path / "more")
    Image.fromarray(make_photo(5, 5)).save(tmp_path / "more/a/0003.jpg")
    config = json.loads((stopped / rundir.CONFIG).read_bytes())
    (tmp_path / "run" / rundir.CONFIG).write_text(json.dumps({**config, "unlabelled": str(tmp_path / "more")}))
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(RunError, match=r"other unlabelled photos \(a/0003\.jpg\)"),
    ):
        patch.setattr(training_data, "stored", lambda *_: pytest.fail("too late"))
        main(full(trained_run, tmp_path / "run", cache, tmp_path / "more"))


@slow
def test_another_teacher_at_its_place_is_refused(
    stopped: Path, distilled: RunDir, trained_run: RunDir, cache: Path, more: Path, tmp_path: Path
) -> None:
    for before in (stopped, distilled.path):
        run = tmp_path / before.name
        shutil.copytree(before, run)
        edit(run / RECORD, model_sha256="0" * 64)
        if (manifest := run / rundir.MANIFEST).is_file():
            vouch(manifest, RECORD, rundir.sha256_of(run / RECORD))
        with pytest.raises(RunError, match="began with another teacher"):
            main(full(trained_run, run, cache, more))


@slow
def test_a_finished_run_is_left_as_it_is(
    distilled: RunDir, trained_run: RunDir, cache: Path, more: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tune, "prepare", lambda *_: pytest.fail("there is nothing to do"))
    assert main(full(trained_run, distilled.path, cache, more, resume=True)).path == distilled.path
    with pytest.raises(RunError, match=r"other settings \(temperature: 4\.0 -> 2\.0\)"):
        main(full(trained_run, distilled.path, cache, more, temperature=2.0))


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"temperature": 0.0}, r"--temperature 0\.0: must be positive, such as 4"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"label_weight": 1.1}, r"--label-weight 1\.1: a share from 0 to 1"),
        ({"label_weight": -0.1}, r"--label-weight -0\.1"),
        ({"hint_weight": -1.0}, r"--hint-weight -1\.0: must not be negative"),
        ({"label_weight": 1.0, "unlabelled": "x"}, "--label-weight 1: leaves nothing to learn from --unlabelled"),
        (
            {"class_balance": "sampling", "unlabelled": "x"},
            "--class-balance sampling: --unlabelled photos have no class",
        ),
        ({"views": 0}, "--views 0: what the teacher says is stored"),
        ({"validation_fraction": 0.3}, r"--validation-fraction 0\.3: settled by the teacher's run\. Leave it out"),
        ({"test_fraction": 0.25}, r"--test-fraction 0\.25: settled"),
        ({"group": "day"}, "--group day: settled"),
        ({"class_order": ("a", "b")}, "--class-order .*: settled"),
        ({"exclude": Path("x.csv")}, r"--exclude x\.csv: settled"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"backbone": "EfficientNetLite9"}, "EfficientNetLite9"),
        ({"resume": True}, "--resume: .* holds no run"),
        ({"unlabelled": "nowhere"}, "--unlabelled nowhere: no such folder"),
        ({"thaw": "all"}, "all 18 blocks are thawed, .*Thaw 17 at most"),
        ({"thaw": "0", "hint_weight": 1.0}, "--hint-weight 1: works on blocks; --thaw 0 thaws none"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_and_nothing_is_written(
    changes: dict[str, object], line: str, trained_run: RunDir, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(EdgetlError, match=line) as caught:
        main(student(trained_run, tmp_path / "run", cache, **{"image_size": 48, **changes}))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_said_before_the_teacher_is_asked(
    trained_run: RunDir, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons.Lessons, "teaching", lambda *_: pytest.fail("minutes of computing for nothing"))
    with pytest.raises(ConfigError, match=r"border activations need .*larger --disk-budget-gb$"):
        main(student(trained_run, tmp_path / "run", cache, disk_budget_gb=1e-6))
    assert not (tmp_path / "run").exists()


def test_folders_that_cannot_be_used_are_refused(trained_run: RunDir, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty: no photo in it"):
        main(student(trained_run, tmp_path / "run", cache, unlabelled=str(tmp_path / "empty")))
    photos = make_photo_folder(tmp_path / "photos", {"x": 2})
    with pytest.raises(ConfigError, match="lies among the unlabelled photos"):
        main(student(trained_run, photos / "run", cache, unlabelled=str(photos)))
    (photos / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(DatasetError, match="symbolic link link leads out of it"):
        main(student(trained_run, tmp_path / "run", cache, unlabelled=str(photos)))
    assert not (tmp_path / "run").exists() and not (photos / "run").exists()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda run: shutil.rmtree(run), "no such run directory"),
        (lambda run: (run / rundir.CONFIG).unlink(), "not a run directory"),
        (lambda run: (run / rundir.MANIFEST).unlink(), "unfinished run"),
        (lambda run: (run / rundir.MODEL).write_bytes(b"x"), "changed since the run finished"),
    ],
)
def test_a_teacher_that_is_no_sound_run_is_one_line(
    damage: Callable[[Path], object], line: str, trained_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained_run.path, tmp_path / "teacher")
    damage(tmp_path / "teacher")
    words = ["--teacher", tmp_path / "teacher", "--student", "EfficientNetLite0", "--out", tmp_path / "run", "--quiet"]
    assert command(main, Config, prog="distill", show=distill.show, argv=[str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    lines = [each for each in err.splitlines() if "cuda" not in each.lower()]
    assert out == "" and len(lines) == 1 and lines[0].startswith("distill: ") and line in lines[0]
    assert not (tmp_path / "run").exists()


def test_the_student_is_not_written_over_its_teacher(trained_run: RunDir, cache: Path) -> None:
    with pytest.raises(ConfigError, match="is the teacher"):
        main(student(trained_run, trained_run.path / ".." / trained_run.path.name, cache))
    assert open_run(trained_run.path)


@slow
def test_photos_that_changed_since_are_refused(
    trained_run: RunDir, photo_folder: Path, cache: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "moved"
    shutil.copytree(photo_folder, photos)
    changed = trained_run.splits(str(photos)).train.items[0].path
    Image.fromarray(make_photo(5, 5)).save(changed)
    with pytest.raises(DatasetError, match=f"{changed.name}: changed since the run was made"):
        main(student(trained_run, tmp_path / "run", cache, data=str(photos), **TINY))
    changed.write_bytes(b"no photo")
    with pytest.raises(DatasetError, match="the teacher has seen it, and it can't be read now"):
        main(student(trained_run, tmp_path / "run", cache, data=str(photos), max_unreadable=0.5, **TINY))
    changed.unlink()
    with pytest.raises(DatasetError, match="missing now"):
        main(student(trained_run, tmp_path / "run", cache, data=str(photos), **TINY))
    assert not (tmp_path / "run").exists()


def test_student_is_an_option_and_the_network_of_the_config() -> None:
    words = ["--teacher", "t", "--out", "o", "--student", "MobileNetV2"]
    assert parse(Config, words, prog="distill").backbone == "MobileNetV2"
    with pytest.raises(BackboneError, match="MobileNetV9"):
        distill.check(parse(Config, [*words[:-1], "MobileNetV9"], prog="distill"))
