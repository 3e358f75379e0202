"""The feature-extraction recipe against plain Keras: `python -m benchmarks.feature_extraction`.

Everything is measured in one process on the same photos (elpv), weights (EfficientNet-Lite0, ImageNet) and cores:

- feature pass: ours (Pillow + LiteRT in threads) against tf.data (tf.io decoding, antialiased resize) + tf.function;
- whole recipe, imports excluded, against decoding once + one forward pass, each alone;
- whole recipe against Keras `fit` of a head through the frozen backbone for 20 epochs, of which some are
  measured and scaled, and the accuracy that each reaches over several splits.

Sides take turns; medians and ranges over the rounds are printed.
"""

import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Splits on which the accuracies of both are compared."""
    json: Path | None = None
    """Also write the raw figures here."""


@dataclass(frozen=True)
class Accuracies:
    """Top-1 of both heads on one split, fractions."""

    seed: int
    recipe_validation: float
    recipe_test: float
    fit_validation: float
    fit_test: float
    """After the last epoch."""
    fit_best_validation: float
    """Of the epoch that was best on the validation photos themselves."""


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
    seeds: list[Accuracies]


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
    figures = Figures(
        photos=len(examples),
        cores=data.default_workers(),
        **seconds,
        fit_epoch_s=_fit_epochs(data.split(examples, seed=0), spec, backbone, config.fit_epochs),
        seeds=[_accuracies(examples, spec, backbone, pool, seed) for seed in config.seeds],
    )
    if config.json:
        config.json.write_text(json.dumps(asdict(figures), indent=2))
    return figures


def _timed(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def _our_pass(examples: data.Examples, spec: ImageInput, pool: Any) -> None:
    from edgetl import features

    with tempfile.TemporaryDirectory() as cache:
        features.extract(examples, spec, lambda: pool.run, key={}, cache=Path(cache))


def _tf_pass(examples: data.Examples, spec: ImageInput, backbone: Any) -> None:
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


def _forward(count: int, spec: ImageInput, pool: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, *spec.shape), np.uint8)
    with ThreadPoolExecutor(data.default_workers()) as threads:
        for _ in threads.map(lambda _: pool.run(pixels), range(count)):
            pass


def _recipe(source: str) -> None:
    """Run the whole recipe with an empty cache."""
    from recipes import feature_extraction

    with tempfile.TemporaryDirectory() as folder:
        out, cache = Path(folder) / "run", Path(folder) / "cache"
        feature_extraction.main(feature_extraction.Config(data=source, out=out, cache=cache))


def _dataset(part: data.Examples, spec: ImageInput, *, shuffle: bool) -> Any:
    import tensorflow as tf

    def decode(path: Any, label: Any) -> Any:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        image.set_shape((None, None, 3))
        return tf.image.resize(image, (spec.height, spec.width), antialias=True), label

    pairs = tf.data.Dataset.from_tensor_slices(([str(e.path) for e in part], part.labels))
    pairs = pairs.shuffle(len(part), seed=0) if shuffle else pairs
    return pairs.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)


def _compiled(inputs: Any, outputs: Any, classes: int) -> Any:
    """The head of the Keras guide: dropout and one dense layer, Adam."""
    import keras

    scores = keras.layers.Dense(classes, activation="softmax")
    model = keras.Model(inputs, scores(keras.layers.Dropout(0.2)(outputs)))
    model.compile(keras.optimizers.Adam(), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _fit_epochs(splits: data.Splits, spec: ImageInput, backbone: Any, epochs: int) -> list[float]:
    """Seconds of single epochs of `fit` through the frozen backbone."""
    model = _compiled(backbone.input, backbone.output, len(splits.train.output_names))
    train, validation = (_dataset(splits.train, spec, shuffle=True), _dataset(splits.validation, spec, shuffle=False))
    return [_timed(lambda: model.fit(train, validation_data=validation, epochs=1, verbose=0)) for _ in range(epochs)]


def _accuracies(examples: data.Examples, spec: ImageInput, backbone: Any, pool: Any, seed: int) -> Accuracies:
    """Both heads on one split. The backbone is frozen, so Keras' 20 epochs run on its stored outputs."""
    import keras

    from edgetl import features
    from edgetl.probe import fit_linear_probe

    ours = features.extract(examples, spec, lambda: pool.run, key={"benchmark": "ours"}, cache=features.default_cache())
    theirs = _keras_features(examples, spec, backbone)
    splits = data.split(examples, seed=seed)
    parts = splits.train, splits.validation, splits.test
    train, validation, test = (ours.of(part).array() for part in parts)
    probe = fit_linear_probe(train, splits.train.labels, validation, splits.validation.labels)
    on_validation, on_test = (
        float(((x @ probe.kernel + probe.bias).argmax(axis=1) == part.labels).mean())
        for x, part in zip((validation, test), parts[1:], strict=True)
    )
    row = {example.id: index for index, example in enumerate(examples)}
    train, validation, test = (theirs[[row[example.id] for example in part]] for part in parts)
    keras.utils.set_random_seed(seed)
    stored = keras.Input(train.shape[1:])
    model = _compiled(stored, stored, len(examples.output_names))
    labels = [part.labels for part in parts]
    fit = model.fit(
        train, labels[0], validation_data=(validation, labels[1]), epochs=EPOCHS, batch_size=BATCH, verbose=0
    )
    last = fit.history["val_accuracy"][-1], float(model.evaluate(test, labels[2], verbose=0)[1])
    return Accuracies(seed, on_validation, on_test, float(last[0]), last[1], float(max(fit.history["val_accuracy"])))


@functools.cache
def _keras_features(examples: data.Examples, spec: ImageInput, backbone: Any) -> Any:
    return backbone.predict(_dataset(examples, spec, shuffle=False).map(lambda x, _: x), verbose=0)


def show(figures: Figures) -> str:
    """Ratios, with medians and ranges."""

    def line(name: str, values: list[float]) -> str:
        return f"{name:28} {statistics.median(values):7.1f} s  ({min(values):.1f}-{max(values):.1f})"

    def ratio(over: list[float], under: list[float]) -> str:
        each = [a / b for a, b in zip(over, under, strict=True)]
        return f"{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})"

    def mean(name: str) -> str:
        return f"{100 * statistics.fmean(getattr(each, name) for each in figures.seeds):.2f}"

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
            f"top-1 %, mean over {len(figures.seeds)} splits, validation / test",
            f"  recipe                             {mean('recipe_validation')} / {mean('recipe_test')}",
            f"  Keras fit, {EPOCHS} epochs               {mean('fit_validation')} / {mean('fit_test')}"
            f"   (best epoch on validation: {mean('fit_best_validation')})",
        ]
    )


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m benchmarks.feature_extraction", show=show))
