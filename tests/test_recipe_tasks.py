"""Recipes on all tasks, from a table of photos to a run directory whose model ends in one dense layer."""

import csv
import json
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
from photos import make_photo
from PIL import Image

from edgetl import data, rundir
from edgetl.errors import ConfigError
from edgetl.heads import HEADS
from edgetl.metrics import score
from edgetl.outputs import OutputSpec, Task
from edgetl.rundir import RunDir, open_run, read_json
from edgetl.scores import PRIMARY
from recipes import feature_extraction, find_learning_rate, fine_tune

slow = pytest.mark.slow
TINY = {"backbone": "MobileNetV3Small", "weights": "none", "image_size": 32}
"""Random weights at a small size: nothing to load, seconds to run."""
LABELS: dict[Task, tuple[str, ...]] = {
    "classification": ("cat", "dog", "owl"),
    "ordinal": ("low", "middle", "high"),
    "multi_label": ("animal|day", "animal", "day"),
    "regression": ("10", "-20", "5"),
}
"""What the table says of the three kinds of photos."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty photos of three kinds, and a table for each task; every fourth photo counts double."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(60):
        Image.fromarray(make_photo(number % 3, number)).save(root / f"{number:02d}.png")
    for task, names in LABELS.items():
        column = {"multi_label": "labels", "regression": "target"}.get(task, "label")
        with (root / f"{task}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", column, "weight"])
            writer.writerows([f"{n:02d}.png", names[n % 3], 2 - bool(n % 4)] for n in range(60))
    return root


def options(photos: Path, task: Task) -> dict[str, object]:
    order = LABELS["ordinal"] if task == "ordinal" else ()
    return {"data": str(photos / f"{task}.csv"), "task": task, "class_order": order, "cache": photos / "cache", **TINY}


Runs = Callable[[Task], RunDir]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Runs:
    """Makes a run of feature extraction for a task, once; read only. The one of labels is calibrated."""
    folder = tmp_path_factory.mktemp("runs")

    @cache
    def run(task: Task) -> RunDir:
        settings = options(photos, task) | {"calibrate_scores": task == "multi_label"}
        return feature_extraction.main(feature_extraction.Config(out=folder / task, **settings))  # type: ignore[arg-type]

    return run


def check(run: RunDir, task: Task) -> tuple[OutputSpec, np.ndarray]:
    """What every run of a task holds: the contract of outputs, and figures of the model that is saved."""
    model = keras.saving.load_model(run.model_path, compile=False)
    last = model.layers[-1]
    assert type(last) is keras.layers.Dense and last.name == HEADS[task].output_layer
    assert last.activation.__name__ == HEADS[task].activation
    assert not [layer for layer in model.layers if isinstance(layer, keras.Model)] and model.name.endswith(f"_{task}")
    outputs, splits = run.outputs, run.splits()
    assert outputs.task == task and run.output_names == outputs.names
    pixels = np.stack([data.read_image(e.path, run.inputs) for e in splits.test]).astype(np.float32)
    said = model.predict(pixels, verbose=0)
    metrics = json.loads((run.path / rundir.METRICS).read_text())
    found = score(splits.test.labels, said, outputs)
    name = type(found).FIGURE
    # Of the head on features by the converted backbone, or of the whole model in batches of another size.
    assert metrics["test"][name] == pytest.approx(found.primary, abs=1e-3)
    return outputs, said


@pytest.mark.parametrize(
    "task", ["regression", *(pytest.param(task, marks=slow) for task in HEADS if task != "regression")]
)
def test_feature_extraction_makes_a_run_of_every_task(runs: Runs, task: Task) -> None:
    run = runs(task)
    outputs, said = check(open_run(run.path), task)
    assert len(outputs.thresholds) == (2 if task == "multi_label" else 0)
    if task == "regression":
        assert outputs.deviations == pytest.approx(run.splits().train.labels.std(axis=0))
        assert -25 < said.min() < said.max() < 15, "in the unit of the table"
    metrics = read_json(feature_extraction.Metrics, run.path / rundir.METRICS)
    assert metrics.test is not None and metrics.test.task == task
    # Random features of plain colours: better than always the same answer, which is right for a third.
    assert metrics.test.primary > (0.2 if task == "regression" else 0.4)
    shown = feature_extraction.show(run)
    assert f"test {PRIMARY[task]} " in shown
    assert ("temperature" in shown) == (task == "multi_label")


@slow
def test_calibration_takes_log_loss_down_and_keeps_the_order(runs: Runs, photos: Path, tmp_path: Path) -> None:
    settings = feature_extraction.Config(out=tmp_path / "plain", **options(photos, "multi_label"))  # type: ignore[arg-type]
    pair = feature_extraction.main(settings), runs("multi_label")
    before, after = (read_json(feature_extraction.Metrics, run.path / rundir.METRICS).validation for run in pair)
    assert after.log_loss < before.log_loss  # type: ignore[union-attr]
    assert after.primary == before.primary, "thresholds moved along"
    (_, said), (_, calibrated) = (check(run, "multi_label") for run in pair)
    for k in range(2):
        assert (np.diff(calibrated[np.argsort(said[:, k]), k]) > -1e-6).all()  # float32
    assert np.abs(said - calibrated).max() > 1e-3


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("regression", {"label_smoothing": 0.1}),
        ("regression", {"calibrate_scores": True}),
        ("regression", {"class_balance": "weights"}),
        ("ordinal", {"label_smoothing": 0.1}),
        ("multi_label", {"class_balance": "sampling"}),
    ],
)
def test_options_that_a_task_does_not_know_are_refused_at_once(
    photos: Path, tmp_path: Path, task: Task, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tune.experiment, "build_backbone", lambda *_: pytest.fail("too late"))
    config = fine_tune.Config(out=tmp_path / "run", **(options(photos, task) | changes))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"not for --task {task}"):
        fine_tune.main(config)


@slow
@pytest.mark.parametrize("task", HEADS)
def test_fine_tuning_makes_a_run_of_every_task(
    photos: Path, tmp_path: Path, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    config = fine_tune.Config(
        out=tmp_path / "run", thaw="2", epochs=2, batch_size=8, tensorboard=True,
        class_balance="none" if task == "regression" else "weights", mixup=0.2, **options(photos, task),
    )  # type: ignore[arg-type] # fmt: skip
    with caplog.at_level(logging.INFO, "edgetl"):
        run = fine_tune.main(config)
    check(run, task)
    assert "validation loss " in caplog.text and f", {PRIMARY[task]} " in caplog.text
    header, *rows = (run.path / fine_tune.HISTORY).read_text().splitlines()
    assert "fit_primary" in header and "validation_primary" in header and len(rows) == 3
    shown = fine_tune.show(run)
    assert f"validation {PRIMARY[task]} " in shown and f"linear probe {PRIMARY[task]} " in shown


@slow
@pytest.mark.parametrize("task", HEADS)
def test_hidden_layers_make_a_run_of_every_task(photos: Path, tmp_path: Path, task: Task) -> None:
    config = feature_extraction.Config(
        out=tmp_path / "run", head="mlp", hidden_units=(16,), epochs=20, **options(photos, task)
    )  # type: ignore[arg-type]
    check(feature_extraction.main(config), task)


@slow
def test_the_rate_of_a_regression_can_be_searched(photos: Path, tmp_path: Path) -> None:
    config = find_learning_rate.Config(
        out=tmp_path / "run", thaw="2", batch_size=8, steps=10, **options(photos, "regression")
    )  # type: ignore[arg-type]
    assert len(find_learning_rate.main(config).losses) > 1
