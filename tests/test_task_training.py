"""Every task through the training loop: it learns, it resumes to the same weights, and weights of photos count."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_training import (
    OUTPUTS,
    PixelSource,
    changed,
    labels_for,
    labels_of,
    one_phase,
    timeless,
    tiny_model,
    tiny_training,
    weights_of,
)

from edgetl.balance import label_weights
from edgetl.errors import ConfigError
from edgetl.heads import HEADS, finish
from edgetl.history import Epoch
from edgetl.losses import make_loss
from edgetl.metrics import primary
from edgetl.mixing import Mixing
from edgetl.outputs import OutputSpec, Task
from edgetl.tasks import as_targets, mean_loss
from edgetl.trainee import Trainee
from edgetl.training import HeadTraining, train_head

SPECS: dict[Task, OutputSpec] = {
    "classification": OUTPUTS,
    "ordinal": OutputSpec("ordinal", OUTPUTS.names),
    "multi_label": OutputSpec("multi_label", OUTPUTS.names, thresholds=(0.5,) * 3),
    "regression": OutputSpec("regression", ("m", "g"), deviations=(0.08, 82.0)),
}


def tasks(*quick: Task) -> pytest.MarkDecorator:
    """All tasks, those that are not named among the slow tests: tracing a graph takes a second each time."""
    rest = [pytest.param(task, marks=pytest.mark.slow) for task in HEADS if task not in quick]
    return pytest.mark.parametrize("task", [*quick, *rest])


def said(model: keras.Model, colours: np.ndarray, seed: int) -> np.ndarray:
    return np.asarray(model(PixelSource(colours, seed=seed).pixels[:, 0].astype(np.float32), training=False))


@tasks("ordinal", "regression")
def test_training_lowers_the_loss_that_the_history_tells(task: Task, tmp_path: Path) -> None:
    spec, model = SPECS[task], tiny_model(outputs=SPECS[task])
    settings = {"labels": labels_of(28), "optimizer": {"weight_decay": 0.0}, "outputs": spec}
    rows = tiny_training(tmp_path / "c.npz", one_phase(8, 2e-2), model=model, **settings).run()  # type: ignore[arg-type]
    # What learns nothing stays; ordered classes, of which only the outer ones have a gradient at first, come to 0.8.
    assert rows[-1].fit_loss < 0.85 * rows[0].fit_loss
    labels = labels_for(spec, labels_of(6))
    for saved in (model, finish(model)):
        outputs = said(saved, labels_of(6), seed=1)
        # The same photos, in other batches and in float32.
        assert rows[-1].validation_loss == pytest.approx(mean_loss(labels, outputs, spec), rel=1e-4)
        assert rows[-1].validation_primary == pytest.approx(primary(labels, outputs, spec), abs=1e-4)


@tasks("regression")
def test_a_stopped_training_ends_in_the_same_weights(task: Task, tmp_path: Path) -> None:
    def stop(history: tuple[Epoch, ...]) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    model, resumed = (tiny_model(outputs=SPECS[task]) for _ in range(2))
    wanted = {"outputs": SPECS[task], "mixup": 0.4, "weights": np.linspace(0.5, 1.5, 14).astype(np.float32)}
    history = tiny_training(tmp_path / "a", one_phase(2), model=model, **wanted).run()  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path / "b", one_phase(2), on_epoch=stop, **wanted).run()  # type: ignore[arg-type]
    again = tiny_training(tmp_path / "b", one_phase(2), model=resumed, **wanted).run()  # type: ignore[arg-type]
    assert timeless(again) == timeless(history)
    assert not changed(weights_of(resumed), weights_of(model))


@tasks("classification", "regression")
def test_weights_of_photos_count_in_the_loss(task: Task, tmp_path: Path) -> None:
    """One step at a rate of 0, all photos in it: what is told is the weighted mean of the photos' losses."""
    spec, colours = SPECS[task], labels_of(14)
    weights = np.array([0.1, 1.0, 1.9], np.float32)[colours]
    phases, model = one_phase(1, 1e-9), tiny_model(0.0, spec)
    source = PixelSource(colours)
    outputs = np.asarray(model(source.pixels[:, 0].astype(np.float32)))
    targets = labels_for(spec, colours)
    losses = [mean_loss(targets[i : i + 1], outputs[i : i + 1], spec) for i in range(14)]
    training = tiny_training(
        tmp_path / "c", phases, model=model, source=source, labels=colours, batch_size=14, outputs=spec, weights=weights
    )
    row = training.run()[1]
    assert row.train_loss == pytest.approx(np.mean(losses * weights), rel=1e-4)  # float32
    assert row.train_loss != pytest.approx(np.mean(losses), rel=1e-2), "the weights must matter in this case"


def test_mixed_photos_have_mixed_weights() -> None:
    """Weights that follow from the class, once given with the photos, once as weights of classes, which labels mix."""
    colours, of_class = labels_of(6), np.array([0.2, 1.0, 1.8], np.float32)
    pixels, one_hot = PixelSource(colours).pixels[:, 0], as_targets(colours, OUTPUTS)
    found = []
    for classes, given in (
        (of_class, ()),
        (np.ones(3, np.float32), (of_class[colours],)),
        (np.ones(3, np.float32), ()),
    ):
        trainee = Trainee(tiny_model(0.0), [], Mixing(1.0, 0.0, 0), classes)
        trainee.compile(keras.optimizers.SGD(0.0), make_loss(OUTPUTS), jit_compile=False)
        trainee.fit(tf.data.Dataset.from_tensors(((pixels,), one_hot, *given)), shuffle=False, verbose=0)
        found.append(float(trainee.mean_loss.result()))
    assert found[1] == pytest.approx(found[0], rel=1e-5)  # float32
    assert found[2] != pytest.approx(found[0], rel=1e-2), "the weights must matter in this case"


def test_labels_are_balanced_in_the_loss(tmp_path: Path) -> None:
    spec, colours = SPECS["multi_label"], np.array([0] * 9 + [1] * 3 + [2] * 2)
    source, model = PixelSource(colours), tiny_model(0.0, SPECS["multi_label"])
    p = np.asarray(model(source.pixels[:, 0].astype(np.float32)))
    true = labels_for(spec, colours)
    weights = label_weights(true)
    losses = -np.where(true == 1, np.log(p) * weights[:, 1], np.log(1 - p) * weights[:, 0])
    row = tiny_training(
        tmp_path / "c", one_phase(1, 1e-9), model=model, source=source, labels=colours, batch_size=14, outputs=spec,
        class_weights=True,
    ).run()[1]  # fmt: skip
    assert row.train_loss == pytest.approx(losses.mean(), rel=1e-4)  # float32


@tasks("multi_label")
def test_the_range_test_takes_every_task(task: Task, tmp_path: Path) -> None:
    training = tiny_training(
        tmp_path / "c",
        one_phase(1),
        outputs=SPECS[task],
        schedule="plateau",
        weights=np.linspace(0.5, 1.5, 14).astype(np.float32),
    )
    losses = training.range_test(np.geomspace(1e-6, 1e-3, 10))
    assert len(losses) == 10 and np.isfinite(losses).all()


def test_what_a_task_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--focal-gamma 2\.0: not for --task regression"):
        tiny_training(tmp_path / "c", outputs=SPECS["regression"], focal_gamma=2.0).run()


@tasks("regression")
@pytest.mark.parametrize("hidden", [(8,), ()])
def test_layers_of_any_number_learn_every_task(task: Task, hidden: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    colours, spec = labels_of(120), SPECS[task]
    x = (rng.normal(size=(3, 6))[colours] * 3 + rng.normal(size=(120, 6)) + 9).astype(np.float32)
    labels = labels_for(spec, colours)
    settings = HeadTraining(hidden, 0.0, 1e-2 if hidden else 1e-1, 0.0, epochs=15, batch_size=20)
    head = train_head(spec, x[:60], labels[:60], x[60:], labels[60:], settings, np.linspace(0.5, 1.5, 60))
    outputs = np.asarray(finish(head)(x[60:]))
    nothing = np.broadcast_to(as_targets(labels, spec).mean(axis=0), outputs.shape)
    # Saying the mean of all labels is what a head that learns nothing comes to.
    assert mean_loss(labels[60:], outputs, spec) < 0.5 * mean_loss(labels[60:], nothing, spec)
