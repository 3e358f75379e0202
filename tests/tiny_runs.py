"""Finished runs of every task, made in moments: photos of one colour each, and a network that can tell it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from edgetl import metrics, results, rundir
from edgetl.backbones.build import IMAGES, _normalize
from edgetl.backbones.registry import MINUS_1_TO_1
from edgetl.data import Examples, Splits
from edgetl.data.examples import Example, Label
from edgetl.features import Features
from edgetl.heads import attach, build_head, finish, load
from edgetl.inputs import ImageInput
from edgetl.outputs import Task
from edgetl.probe import fit_linear_probe
from edgetl.rows import Held
from edgetl.rundir import RunDir
from edgetl.tasks import training_outputs

SIDE = 20
PHOTOS = 60
NAMES: dict[Task, tuple[str, ...]] = {
    "classification": ("red", "green", "blue"),
    "ordinal": ("dark", "middle", "light"),
    "multi_label": ("much red", "much green", "much blue"),
    "regression": ("warmth", "age"),
}


@dataclass(frozen=True)
class Settings:
    """Of the recipe that there is none of."""

    backbone: str = ""


def label_of(task: Task, colour: np.ndarray) -> Label:
    """What is true of a colour, three shares of 1."""
    if task == "classification":
        return int(colour.argmax())
    if task == "ordinal":
        return int(np.digitize(colour.mean(), (0.42, 0.58)))
    if task == "multi_label":
        return tuple(int(i) for i in np.flatnonzero(colour > 0.6))
    return (float(20 + 30 * colour[0]), float(40 * colour[1] - 10 * colour[2]))


def tiny_run(folder: Path, task: Task) -> RunDir:
    """Make FOLDER/photos and a finished run of them in FOLDER/run."""
    (folder / "photos").mkdir(parents=True)
    random = np.random.default_rng(0)
    colours = random.uniform(0, 1, (PHOTOS, 3))
    items, pixels = [], []
    for number, colour in enumerate(colours):
        photo = np.clip(255 * colour + random.normal(0, 12, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        path = folder / "photos" / f"{number:02}.png"
        Image.fromarray(photo).save(path)
        items.append(Example(path.name, path, label_of(task, colour)))
        pixels.append(photo)
    found = Examples(str(folder / "photos"), folder / "photos", NAMES[task], tuple(items), task)
    splits = Splits(*(found.select(np.arange(*part)) for part in ((0, 30), (30, 40), (40, PHOTOS))))
    outputs, model = training_outputs(splits.train), _fitted(splits, np.stack(pixels))
    said = np.asarray(model(np.stack(pixels).astype(np.float32)))
    table = Features(found, Held(said), tuple(hashlib.sha256(each.path.read_bytes()).hexdigest() for each in found), ())
    validation, test = (
        metrics.score(part.labels, table.of(part).array(), outputs) for part in (splits.validation, splits.test)
    )
    with rundir.writing(folder / "run", "tiny", Settings()) as run:
        figures = results.Metrics(validation, test, "linear probe", ())
        results.save(run, "tiny", ImageInput(SIDE, SIDE), outputs, model, table, splits, figures, seed=0)
    return rundir.open_run(folder / "run")


def _fitted(splits: Splits, pixels: np.ndarray) -> keras.Model:
    """A convolution that keeps its colours, a mean, and a head fitted to the training split."""
    keras.utils.set_random_seed(0)
    images = keras.Input((SIDE, SIDE, 3), name=IMAGES)
    x = _normalize(images, MINUS_1_TO_1)
    x = keras.layers.Conv2D(48, 3, 2, "same", activation="relu6", name="first")(x)
    x = keras.layers.Conv2D(8, 1, activation="relu6", name="second")(x)
    backbone = keras.Model(images, keras.layers.GlobalAveragePooling2D(name="pool")(x), name="tiny")
    features = np.asarray(backbone(pixels.astype(np.float32)))
    train, validation = splits.train, splits.validation
    row = {name: index for index, name in enumerate(f"{number:02}.png" for number in range(PHOTOS))}
    mine, others = (features[[row[each.id] for each in part]] for part in (train, validation))
    probe = fit_linear_probe(mine, train.labels, others, validation.labels, task=train.task)
    outputs = training_outputs(train)
    head = build_head(train.task, features.shape[1], len(outputs.names), deviations=outputs.deviations)
    load(head, probe.kernel, probe.bias)
    return finish(attach(backbone, head))
