"""The feature-extraction recipe against plain Keras: `python -m benchmarks.feature_extraction`.

Everything is measured in one process on the same photos (elpv), weights (EfficientNet-Lite0, ImageNet) and cores:

- feature pass: ours (Pillow + LiteRT in threads) against tf.data (tf.io decoding, antialiased resize) + tf.function;
- whole recipe, imports excluded, against decoding once + one forward pass, each alone;
- whole recipe against Keras `fit` of a head through the frozen backbone for 20 epochs, of which some are
  measured and scaled, and the validation accuracy that each reaches.

Sides take turns; medians and ranges over the rounds are printed.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgetl import data
from edgetl.config import command
from edgetl.console import quiet_tensorflow
from edgetl.data.images import read_image
from edgetl.inputs import ImageInput

EPOCHS = 20
BATCH = 32


@dataclass(frozen=True)
class Config:
    """Measure the feature-extraction recipe against plain Keras."""

    data: str = "elpv"
    """Photos."""
    rounds: int = 3
    """How often each side of a comparison runs."""
    fit_epochs: int = 2
    """Epochs of the Keras side that are really trained for the time; 20 are reported."""
    accuracy: bool = True
    """Also train the Keras side for all 20 epochs on stored features, for its validation accuracy."""
    json: Path | None = None
    """Also write the raw figures here."""


@dataclass(frozen=True)
class Figures:
    """Raw seconds of every round, and accuracies as fractions."""

    photos: int
    cores: int
    our_pass_s: list[float]
    tf_pass_s: list[float]
    decode_s: list[float]
    forward_s: list[float]
    recipe_s: list[float]
    fit_epoch_s: list[float]
    recipe_validation_top1: float
    fit_validation_top1: float


def main(config: Config) -> Figures:
    """Run all comparisons."""
    quiet_tensorflow()
    import keras

    from edgetl.backbones.build import build
    from export.device.interpreter import Pool
    from export.saved_model import float_tflite

    spec = ImageInput(224, 224)
    examples = data.load(config.data)
    backbone = build("EfficientNetLite0", spec)
    backbone.trainable = False
    pool = Pool(float_tflite(backbone), data.default_workers())
    splits = data.split(examples, seed=0)
    sides: dict[str, Callable[[], object]] = {
        "our_pass_s": lambda: _our_pass(examples, spec, pool),
        "tf_pass_s": lambda: _tf_pass(examples, spec, backbone),
        "decode_s": lambda: _decode(examples, spec),
        "forward_s": lambda: _forward(len(examples), spec, pool),
        "recipe_s": lambda: _recipe(config.data),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(config.rounds):
        for name, side in sides.items():
            seconds[name].append(_timed(side))
            print(f"{name} {seconds[name][-1]:.1f}", file=sys.stderr)
    keras.utils.set_random_seed(0)
    fit_epoch_s, fit_top1 = _keras_fit(splits, spec, backbone, config)
    figures = Figures(
        photos=len(examples),
        cores=data.default_workers(),
        **seconds,
        fit_epoch_s=fit_epoch_s,
        recipe_validation_top1=_recipe(config.data),
        fit_validation_top1=fit_top1,
    )
    if config.json:
        config.json.write_text(json.dumps(asdict(figures), indent=2))
    return figures


def _timed(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def _our_pass(examples: data.Examples, spec: ImageInput, pool: object) -> None:
    from edgetl import features

    with tempfile.TemporaryDirectory() as cache:
        features.extract(examples, spec, lambda: pool.run, key={}, cache=Path(cache))


def _tf_pass(examples: data.Examples, spec: ImageInput, backbone: object) -> None:
    """What a careful TensorFlow user writes: parallel map, batch, prefetch, one compiled call per batch."""
    import tensorflow as tf

    def decode(path: object) -> object:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        image.set_shape((None, None, 3))
        return tf.image.resize(image, (spec.height, spec.width), antialias=True)

    forward = tf.function(lambda x: backbone(x, training=False), reduce_retracing=True)
    paths = tf.data.Dataset.from_tensor_slices([str(e.path) for e in examples])
    pipeline = paths.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    np.concatenate([forward(batch).numpy() for batch in pipeline])


def _decode(examples: data.Examples, spec: ImageInput) -> None:
    with ThreadPoolExecutor(data.default_workers()) as threads:
        for _ in threads.map(lambda e: read_image(e.path, spec), examples):
            pass


def _forward(count: int, spec: ImageInput, pool: object) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, *spec.shape), np.uint8)
    with ThreadPoolExecutor(data.default_workers()) as threads:
        for _ in threads.map(lambda _: pool.run(pixels), range(count)):
            pass


def _recipe(source: str) -> float:
    """Run the whole recipe with an empty cache; return its validation accuracy."""
    from edgetl import rundir
    from recipes import feature_extraction

    with tempfile.TemporaryDirectory() as folder:
        run = feature_extraction.main(
            feature_extraction.Config(data=source, out=Path(folder) / "run", cache=Path(folder) / "cache")
        )
        return rundir.read_json(feature_extraction.Metrics, run.path / rundir.METRICS).validation.top1


def _keras_fit(splits: data.Splits, spec: ImageInput, backbone: object, config: Config) -> tuple[list[float], float]:
    """Time epochs of `fit` through the frozen backbone; reach its accuracy on features, which is the same training."""
    import keras
    import tensorflow as tf

    def dataset(part: data.Examples, shuffle: bool) -> object:
        def decode(path: object, label: object) -> object:
            image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
            image.set_shape((None, None, 3))
            return tf.image.resize(image, (spec.height, spec.width), antialias=True), label

        pairs = tf.data.Dataset.from_tensor_slices(([str(e.path) for e in part], part.labels))
        pairs = pairs.shuffle(len(part), seed=0) if shuffle else pairs
        return pairs.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)

    def compiled(inputs: object, outputs: object) -> keras.Model:
        scores = keras.layers.Dense(len(splits.train.class_names), activation="softmax")
        model = keras.Model(inputs, scores(keras.layers.Dropout(0.2)(outputs)))
        model.compile(keras.optimizers.Adam(), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    train, validation = dataset(splits.train, True), dataset(splits.validation, False)
    through = compiled(backbone.input, backbone.output)
    epochs = [
        _timed(lambda: through.fit(train, validation_data=validation, epochs=1, verbose=0))
        for _ in range(config.fit_epochs)
    ]
    if not config.accuracy:
        return epochs, float("nan")
    rows = {name: backbone.predict(part.map(lambda x, y: x), verbose=0) for name, part in _ordered(splits, dataset)}
    stored = keras.Input(backbone.output_shape[1:])
    history = compiled(stored, stored).fit(
        rows["train"],
        splits.train.labels,
        validation_data=(rows["validation"], splits.validation.labels),
        epochs=EPOCHS,
        batch_size=BATCH,
        verbose=0,
    )
    return epochs, float(max(history.history["val_accuracy"]))


def _ordered(splits: data.Splits, dataset: Callable[[data.Examples, bool], object]) -> list[tuple[str, object]]:
    return [("train", dataset(splits.train, False)), ("validation", dataset(splits.validation, False))]


def show(figures: Figures) -> str:
    """Ratios, with medians and ranges."""

    def line(name: str, values: list[float]) -> str:
        return f"{name:28} {statistics.median(values):7.1f} s  ({min(values):.1f}-{max(values):.1f})"

    def ratio(over: list[float], under: list[float]) -> str:
        each = [a / b for a, b in zip(over, under, strict=True)]
        return f"{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})"

    passes = [a + b for a, b in zip(figures.decode_s, figures.forward_s, strict=True)]
    twenty = EPOCHS * statistics.median(figures.fit_epoch_s[1:] or figures.fit_epoch_s)
    recipe = statistics.median(figures.recipe_s)
    names = {"our_pass_s": "feature pass, ours", "tf_pass_s": "feature pass, tf.data", "recipe_s": "whole recipe"}
    return "\n".join(
        [
            f"{figures.photos} photos, {figures.cores} cores; median (range) over {len(figures.recipe_s)} rounds",
            *(line(title, getattr(figures, name)) for name, title in names.items()),
            line("decode once, alone", figures.decode_s),
            line("one forward pass, alone", figures.forward_s),
            line("Keras fit, one epoch", figures.fit_epoch_s),
            f"feature pass, images/s ours : tf.data          {ratio(figures.tf_pass_s, figures.our_pass_s)}",
            f"whole recipe : decode + forward pass           {ratio(figures.recipe_s, passes)}",
            f"whole recipe : tf.data + tf.function pass      {ratio(figures.recipe_s, figures.tf_pass_s)}",
            f"Keras fit for {EPOCHS} epochs : whole recipe          {twenty / recipe:.1f}",
            f"validation top-1 %: recipe {100 * figures.recipe_validation_top1:.2f}, "
            f"Keras fit (best of {EPOCHS} epochs) {100 * figures.fit_validation_top1:.2f}",
        ]
    )


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m benchmarks.feature_extraction", show=show))
