"""The fine-tuning recipe against plain Keras: `python -m benchmarks.fine_tuning`.

Four comparisons on the same photos (elpv), weights (EfficientNet-Lite0, ImageNet) and cores, each in one process:

- accuracy: the recipe over several splits, its float32 and int8 artifacts scored on the test photos, seconds per run;
- guide: the Keras transfer-learning guide as people copy it (20 epochs of the head through the frozen backbone, then
  10 of everything at 1e-5) against the recipe;
- stored: images/s of training from stored border activations against Keras `fit` with the same layers frozen, same
  optimizer, augmentation and epochs, and the accuracies that both reach; seconds in all too, ours with backbone,
  linear probe and the pass over all views, the other side's with its epochs alone;
- overhead: everything thawed, one epoch of ours against bare `fit` on the same batches; also with what ours does after
  each epoch, judging (training photos as they are included) and checkpoint, which bare `fit` is spared.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import data
from edgetl.config import command
from edgetl.console import quiet_tensorflow
from edgetl.inputs import ImageInput
from edgetl.rundir import RunDir
from recipes import fine_tune

COMPARISONS = ("accuracy", "guide", "stored", "overhead")
BATCH = 32
ACCURATE = fine_tune.Config(data="elpv", out=Path(), augment="symmetries", ema=0.99, validation_fraction=0.05)
"""The best that was found, see docs/fine_tuning.md."""
QUICK = fine_tune.Config(data="elpv", out=Path(), augment="symmetries", thaw="0.5", epochs=8)
"""Half of the blocks, half of the epochs."""


@dataclass(frozen=True)
class Config:
    """Measure the fine-tuning recipe against plain Keras."""

    only: tuple[str, ...] = COMPARISONS
    """Which of accuracy, guide, stored, overhead."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Splits for accuracies."""
    rounds: int = 3
    """How often the sides of `overhead` take turns."""
    blocks: str = "6"
    """Thawed in `stored`."""
    epochs: int = 6
    """Trained in `stored`."""
    json: Path | None = None
    """Also write the raw figures here."""


@dataclass
class Figures:
    """Raw figures of every round; accuracies are fractions."""

    cores: int
    accuracy: list[dict[str, float]] = field(default_factory=list)
    guide: dict[str, float] = field(default_factory=dict)
    stored: list[dict[str, float]] = field(default_factory=list)
    overhead: list[dict[str, float]] = field(default_factory=list)


def main(config: Config) -> Figures:
    """Run the comparisons that were asked for."""
    quiet_tensorflow()
    figures = Figures(data.default_workers())
    for name in config.only:
        match name:
            case "accuracy":
                figures.accuracy = [accuracy(ACCURATE, seed) for seed in config.seeds]
            case "guide":
                figures.guide = guide(config.seeds[0])
            case "stored":
                figures.stored = [stored(config, seed) for seed in config.seeds]
            case "overhead":
                figures.overhead = overhead(config.rounds)
    if config.json:
        config.json.write_text(json.dumps(asdict(figures), indent=2))
    return figures


def tell(row: dict[str, float]) -> dict[str, float]:
    """Print a row as soon as it is there: the whole takes hours."""
    print(" ".join(f"{name} {value:.4f}" for name, value in row.items()), file=sys.stderr, flush=True)
    return row


def accuracy(settings: fine_tune.Config, seed: int) -> dict[str, float]:
    """One split: train with an empty cache, convert, score both artifacts."""
    from export import convert, evaluate

    with tempfile.TemporaryDirectory() as folder:
        out, cache = Path(folder) / "run", Path(folder) / "cache"
        start = time.perf_counter()
        run = fine_tune.main(dataclasses.replace(settings, out=out, cache=cache, seed=seed))
        seconds = time.perf_counter() - start
        convert.main(convert.Config(run.path, schemes=("float32", "int8")))
        report = evaluate.main(evaluate.Config(run.path))
        found = {artifact.scheme: artifact for artifact in report.artifacts}
        metrics = json.loads((run.path / "metrics.json").read_text())
    return tell(
        {
            "seed": seed,
            "float32": found["float32"].scores.primary,
            "int8": found["int8"].scores.primary,
            "as_keras": found["int8"].against_keras.agreement,
            "validation": metrics["validation"]["top1"],
            "probe_validation": metrics["probe_validation"]["top1"],
            "seconds": seconds,
        }
    )


def photos(part: data.Examples, spec: ImageInput, *, shuffle: bool, keep: bool = True) -> Any:
    """What a careful Keras user writes: decoded once and kept in memory, shuffled, batched, prefetched."""
    import tensorflow as tf

    def decode(path: Any, label: Any) -> Any:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        image.set_shape((None, None, 3))
        return tf.image.resize(image, (spec.height, spec.width), antialias=True), label

    one_hot = np.eye(len(part.output_names), dtype=np.float32)[part.labels]
    pairs = tf.data.Dataset.from_tensor_slices(([str(e.path) for e in part], one_hot))
    pairs = pairs.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    pairs = pairs.cache() if keep else pairs
    pairs = pairs.shuffle(len(part), seed=0) if shuffle else pairs
    return pairs.batch(BATCH, drop_remainder=shuffle).prefetch(tf.data.AUTOTUNE)


def guide(seed: int) -> dict[str, float]:
    """The guide of Keras, and the recipe of the demo, on one split; whole runs, imports excluded."""
    import keras

    from edgetl.backbones.build import build

    ours = accuracy(QUICK, seed)
    start = time.perf_counter()
    keras.utils.set_random_seed(seed)
    spec = ImageInput(224, 224)
    splits = data.split(data.load("elpv"), seed=seed)
    train, validation, test = (
        photos(part, spec, shuffle=part is splits.train) for part in (splits.train, splits.validation, splits.test)
    )
    backbone = build("EfficientNetLite0", spec)
    backbone.trainable = False
    inputs = keras.Input(spec.shape)
    x = keras.layers.RandomFlip("horizontal")(inputs)
    x = keras.layers.RandomRotation(0.1)(x)
    x = keras.layers.Dropout(0.2)(backbone(x, training=False))
    model = keras.Model(inputs, keras.layers.Dense(len(splits.train.output_names), activation="softmax")(x))
    model.compile(keras.optimizers.Adam(), loss="categorical_crossentropy", metrics=["accuracy"])
    model.fit(train, validation_data=validation, epochs=20, verbose=0)
    head_s = time.perf_counter() - start
    after_head = model.evaluate(test, verbose=0)[1]
    start = time.perf_counter()
    backbone.trainable = True
    model.compile(keras.optimizers.Adam(1e-5), loss="categorical_crossentropy", metrics=["accuracy"])
    model.fit(train, validation_data=validation, epochs=10, verbose=0)
    seconds = head_s + time.perf_counter() - start
    return tell(
        {
            "guide_seconds": seconds,
            "guide_head_seconds": head_s,
            "guide_head_test": after_head,
            "guide_test": model.evaluate(test, verbose=0)[1],
            "recipe_seconds": ours["seconds"],
            "recipe_test": ours["float32"],
        }
    )


def stored(config: Config, seed: int) -> dict[str, float]:
    """Train the same blocks twice: from stored activations, and by `fit` through the whole model."""
    from edgetl.fine_tuning import FineTuning

    with tempfile.TemporaryDirectory() as folder:
        settings = dataclasses.replace(
            QUICK, out=Path(folder), cache=Path(folder) / "cache", seed=seed, thaw=config.blocks, epochs=config.epochs
        )
        start = time.perf_counter()
        with fine_tune.prepare(settings, data.load("elpv"), RunDir(Path(folder))) as ready:
            before = ready.model.get_weights()
            training = FineTuning(
                ready.learner,
                ready.blocks,
                ready.phases,
                ready.train,
                ready.validation,
                fine_tune.settings(settings, "classification", streamed=False),
                checkpoint=Path(folder) / "checkpoint.npz",
            )
            history = training.run()
            seconds = time.perf_counter() - start
            ours = score(ready.model, ready.splits.test, ready.spec)
            ready.model.set_weights(before)
            rates = fit_rates(settings, ready)
            theirs = score(ready.model, ready.splits.test, ready.spec)
    rate = statistics.median(row.images_per_second for row in history[2:])
    return tell(
        {
            "seed": seed,
            "stored_images_s": rate,
            "fit_images_s": statistics.median(rates[1:]),
            "stored_test": ours,
            "fit_test": theirs,
            "stored_seconds": seconds,
            "fit_seconds": sum(len(ready.train.labels) // BATCH * BATCH / rate for rate in rates),
        }
    )


def fit_rates(settings: fine_tune.Config, ready: fine_tune.Prepared) -> list[float]:
    """Images/s of each epoch of Keras `fit` with the same layers frozen, augmentation in front of the model."""
    import keras

    from edgetl.augment import layers_of
    from edgetl.losses import make_loss
    from edgetl.optimizers import finalize, make_optimizer
    from edgetl.schedules import schedule
    from edgetl.trainee import learning_rates, thaw

    (phase,) = ready.phases
    thaw(ready.model, phase, ready.blocks, settings.batch_norm)
    x = inputs = keras.Input(ready.spec.shape)
    for layer in layers_of(settings.augment, ready.spec, settings.seed):
        x = layer(x)
    model = keras.Model(inputs, ready.model(x))
    steps = len(ready.splits.train) // BATCH
    warmup = round(settings.warmup_epochs * steps)
    optimizer = make_optimizer(
        fine_tune.settings(settings, "classification", streamed=False).optimizer,
        schedule(settings.schedule, phase.head_learning_rate, warmup, steps * phase.epochs),
        learning_rates(ready.model, phase, ready.blocks),
    )
    model.compile(optimizer, make_loss(ready.train.outputs, fine_tune.label_smoothing(settings, "classification")))
    batches = photos(ready.splits.train, ready.spec, shuffle=True)
    rates = []
    for _ in range(phase.epochs):
        start = time.perf_counter()
        model.fit(batches, epochs=1, verbose=0)
        rates.append(steps * BATCH / (time.perf_counter() - start))
    finalize(optimizer, ready.model.trainable_variables)
    return rates


def score(model: Any, part: data.Examples, spec: ImageInput) -> float:
    """Top-1 on photos as they are."""
    found = np.concatenate(
        [model.predict_on_batch(batch.pixels.astype(np.float32)) for batch in data.decoded(part, spec)]
    )
    return float((found.argmax(axis=1) == part.labels).mean())


def overhead(rounds: int) -> list[dict[str, float]]:
    """Seconds of an epoch of everything: ours, and bare `fit` on the very same batches; some hundred photos."""
    import keras

    from edgetl.fine_tuning import FineTuning
    from edgetl.losses import make_loss

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        settings = dataclasses.replace(
            QUICK, out=Path(folder), thaw="all", augment="none", epochs=2 + rounds, validation_fraction=0.02,
            test_fraction=0.75, schedule="constant",
        )  # fmt: skip
        with fine_tune.prepare(settings, data.load("elpv"), RunDir(Path(folder))) as ready:
            bare = keras.models.clone_model(ready.model)
            for layer in bare.layers:
                layer.trainable = not isinstance(layer, keras.layers.BatchNormalization) and layer.name != "normalize"
            bare.compile(
                keras.optimizers.AdamW(3e-4, weight_decay=0.05, global_clipnorm=1.0),
                make_loss(ready.train.outputs, fine_tune.label_smoothing(settings, "classification")),
            )
            batches = ready.train

            def fit(epoch: int) -> None:
                pairs = batches.dataset(0, epoch).map(lambda inputs, labels: (inputs[0], labels))
                bare.fit(pairs, epochs=1, steps_per_epoch=batches.steps, verbose=0)

            seconds: list[float] = []
            whole: list[float] = []
            since = time.perf_counter()

            def take_turns(history: Any) -> None:
                nonlocal since
                whole.append(time.perf_counter() - since)
                seconds.append(timed(lambda: fit(len(history))))
                since = time.perf_counter()

            training = FineTuning(
                ready.learner, ready.blocks, ready.phases, ready.train, ready.validation,
                fine_tune.settings(settings, "classification", streamed=True),
                checkpoint=Path(folder) / "checkpoint.npz", on_epoch=take_turns,
            )  # fmt: skip
            history = training.run()
    for row, whole_s, bare_s in list(zip(history[1:], whole, seconds, strict=True))[2:]:
        rows.append(tell({"ours_s": row.seconds, "whole_s": whole_s, "fit_s": bare_s}))
    return rows


def timed(side: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def show(figures: Figures) -> str:
    """Means, ratios and ranges."""
    lines = [f"{figures.cores} cores"]

    def column(rows: list[dict[str, float]], name: str) -> list[float]:
        return [row[name] for row in rows]

    def percent(values: list[float]) -> str:
        return f"{100 * statistics.fmean(values):.2f} ({' '.join(f'{100 * v:.2f}' for v in values)})"

    if rows := figures.accuracy:
        drops = [row["float32"] - row["int8"] for row in rows]
        lines += [
            f"accuracy: top-1 %, mean (each of {len(rows)} seeds)",
            f"  linear probe, validation   {percent(column(rows, 'probe_validation'))}",
            f"  fine-tuned, validation     {percent(column(rows, 'validation'))}",
            f"  float32 .tflite, test      {percent(column(rows, 'float32'))}",
            f"  int8 .tflite, test         {percent(column(rows, 'int8'))}",
            f"  int8 drop                  {statistics.fmean(drops):+.4f}, worst {max(drops):+.4f}; "
            f"names Keras' class on {100 * statistics.fmean(column(rows, 'as_keras')):.2f} %",
            f"  minutes per seed           {' '.join(f'{s / 60:.1f}' for s in column(rows, 'seconds'))}",
        ]
    if found := figures.guide:
        lines += [
            "guide: one split, test top-1 %",
            f"  Keras guide, 20 + 10 epochs  {100 * found['guide_test']:.2f} in {found['guide_seconds']:.0f} s "
            f"(head alone {100 * found['guide_head_test']:.2f} in {found['guide_head_seconds']:.0f} s)",
            f"  recipe                       {100 * found['recipe_test']:.2f} in {found['recipe_seconds']:.0f} s",
            f"  guide : recipe, seconds      {found['guide_seconds'] / found['recipe_seconds']:.1f}",
        ]
    if rows := figures.stored:
        ratios = [row["stored_images_s"] / row["fit_images_s"] for row in rows]
        lines += [
            "stored: training from border activations against Keras fit with the same layers frozen",
            f"  images/s, ours      {statistics.median(column(rows, 'stored_images_s')):.0f}",
            f"  images/s, fit       {statistics.median(column(rows, 'fit_images_s')):.0f}",
            f"  ratio               {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"  seconds in all      {statistics.median(column(rows, 'stored_seconds')):.0f} with all preparation, fit "
            f"{statistics.median(column(rows, 'fit_seconds')):.0f} without any",
            f"  test top-1 %, ours  {percent(column(rows, 'stored_test'))}",
            f"  test top-1 %, fit   {percent(column(rows, 'fit_test'))}",
        ]
    if rows := figures.overhead:
        ratios = [row["ours_s"] / row["fit_s"] for row in rows]
        lines.append(
            f"overhead: an epoch of everything, ours : bare fit  {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f}-{max(ratios):.3f})"
        )
        ratios = [row["whole_s"] / row["fit_s"] for row in rows]
        lines.append(f"  with judging and checkpoint                      {statistics.median(ratios):.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m benchmarks.fine_tuning", show=show))
