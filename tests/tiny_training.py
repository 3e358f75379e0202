"""A model and photos so small that training them takes moments, for tests of fine-tuning."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from edgetl.backbones.blocks import Block
from edgetl.batches import Batches
from edgetl.fine_tuning import FineTuning, Settings
from edgetl.heads import build_head
from edgetl.history import Epoch
from edgetl.judging import Validation
from edgetl.optimizers import OptimizerSettings
from edgetl.outputs import OutputSpec
from edgetl.phases import Phase, plan

SIZE = 8
CLASSES = 3
OUTPUTS = OutputSpec("classification", ("red", "green", "blue"))
BLOCKS = tuple(Block(name, (f"{name}_conv", f"{name}_bn")) for name in ("one", "two", "three"))
Arrays = dict[str, np.ndarray]


def tiny_model(dropout: float = 0.2, outputs: OutputSpec = OUTPUTS) -> keras.Model:
    """Three blocks of convolution, BatchNorm and ReLU; always the same weights."""
    rng = np.random.default_rng(0)
    x = images = keras.Input((SIZE, SIZE, 3), name="images")
    x = keras.layers.Conv2D(3, 1, trainable=False, name="normalize")(x)  # what backbones for BGR have
    for width, block in zip((4, 6, 8), BLOCKS, strict=True):
        x = keras.layers.Conv2D(width, 3, padding="same", name=block.layers[0])(x)
        x = keras.layers.BatchNormalization(name=block.layers[1])(x)
        x = keras.layers.ReLU(name=f"{block.name}_relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(dropout, name="head_dropout")(x)
    (last,) = build_head(outputs.task, 8, len(outputs.names), deviations=outputs.deviations).layers
    last = type(last).from_config(last.get_config())  # whose weights are not called after the head it was in
    model = keras.Model(images, last(x))
    model.set_weights([w + rng.normal(0, 0.1, w.shape) for w in (np.zeros(v.shape) for v in model.weights)])
    model.get_layer("normalize").set_weights([np.eye(3)[None, None, ::-1] / 128, -np.ones(3)])
    for block in BLOCKS:
        conv, norm = (model.get_layer(name) for name in block.layers)
        fan_in = 9 * conv.kernel.shape[2]
        conv.set_weights([rng.normal(0, np.sqrt(2 / fan_in), w.shape) for w in conv.get_weights()])
        gamma, beta, mean, variance = norm.get_weights()
        norm.set_weights([1 + gamma, beta, mean, 1 + np.abs(variance)])
    return model


class PixelSource:
    """Photos in memory; each class has its colour. `views` versions differ by noise."""

    def __init__(self, labels: np.ndarray, views: int = 1, seed: int = 0) -> None:
        rng = np.random.default_rng((seed, 7))
        colours = np.array([[150, 100, 100], [100, 150, 100], [100, 100, 150]])[labels]
        noise = rng.normal(0, 40, (len(labels), views, SIZE, SIZE, 3))
        self.pixels = np.clip(colours[:, None, None, None] + noise, 0, 255).astype(np.uint8)

    @property
    def views(self) -> int:
        return self.pixels.shape[1]

    def __len__(self) -> int:
        return len(self.pixels)

    def gather(self, rows: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, ...]:
        return (self.pixels[rows, views],)

    def signature(self) -> tuple[tf.TensorSpec, ...]:
        return (tf.TensorSpec((None, SIZE, SIZE, 3), tf.uint8),)

    def close(self) -> None:
        pass


def labels_of(count: int) -> np.ndarray:
    """Label of each of some photos, class after class in turn."""
    return np.arange(count) % CLASSES


def labels_for(outputs: OutputSpec, colours: np.ndarray) -> np.ndarray:
    """Labels of another task that say which colour a photo has."""
    if outputs.exclusive:
        return colours
    if outputs.task == "multi_label":
        return (colours[:, None] == np.arange(CLASSES)).astype(np.float32)
    return (np.array([[0.1], [0.3], [0.2]]) * [1, -1000] + [2, 0]).astype(np.float32)[colours]


def two_phases(rate: float = 1e-2) -> tuple[Phase, ...]:
    """Two epochs of block three, then two of blocks two and three."""
    return plan(
        ("two", "three"),
        epochs=2,
        groups=2,
        epochs_per_group=2,
        head_learning_rate=rate,
        backbone_learning_rate=rate / 2,
        layer_decay=0.5,
    )


def one_phase(epochs: int = 2, rate: float = 1e-2, thawed: tuple[str, ...] = ("two", "three")) -> tuple[Phase, ...]:
    """All at once."""
    return (Phase("all", thawed, epochs, rate, rate / 2, 0.5),)


def tiny_training(
    checkpoint: Path,
    phases: tuple[Phase, ...] | None = None,
    *,
    model: keras.Model | None = None,
    source: Any = None,
    labels: np.ndarray | None = None,
    views: int = 1,
    batch_size: int = 4,
    sampling: Any = "natural",
    outputs: OutputSpec = OUTPUTS,
    weights: np.ndarray | None = None,
    optimizer: dict[str, Any] | None = None,
    on_epoch: Any = lambda history: None,
    **settings: Any,
) -> FineTuning:
    """Make a training of the tiny model on 14 photos, judged on 6 others; three steps per epoch."""
    seed = settings.pop("seed", 0)
    labels = labels_of(14) if labels is None else labels
    source = source or PixelSource(labels, views)
    return FineTuning(
        model or tiny_model(outputs=outputs),
        BLOCKS,
        phases or two_phases(),
        Batches(source, labels_for(outputs, labels), outputs, batch_size, seed, sampling, weights),
        Validation(PixelSource(labels_of(6), seed=1), labels_for(outputs, labels_of(6))),
        Settings(seed, OptimizerSettings(**(optimizer or {})), **{"warmup_epochs": 0.5, **settings}),
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )


def weights_of(model: keras.Model) -> Arrays:
    """Copies of all weights, by path."""
    return {w.path: np.array(w) for w in model.weights}


def changed(before: Arrays, after: Arrays) -> set[str]:
    """Paths of the weights that are not the same bit by bit."""
    assert before.keys() == after.keys()
    return {path for path in before if before[path].tobytes() != after[path].tobytes()}


def timeless(history: tuple[Epoch, ...]) -> list[tuple[Any, ...]]:
    """All of the history that does not depend on the clock."""
    return [
        tuple(value for name, value in vars(row).items() if name not in ("seconds", "images_per_second"))
        for row in history
    ]
