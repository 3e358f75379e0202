"""Frozen backbone, new head: the fastest way from photos to a model, and the baseline for every other recipe.

`python -m recipes.feature_extraction --data photos/ --out runs/mine`
"""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgetl import data, features, rundir
from edgetl.backbones import registry
from edgetl.backbones.backbone import Backbone
from edgetl.config import checked, command, to_json
from edgetl.console import log, progress, quiet_tensorflow
from edgetl.errors import ConfigError, RunError, WeightsError
from edgetl.inputs import ImageInput, InputSpec, ResizeRule
from edgetl.metrics import Scores, score
from edgetl.rundir import RunDir

if TYPE_CHECKING:
    import keras

RECIPE = "feature_extraction"
TASK = "classification"
PROG = f"python -m recipes.{RECIPE}"


@dataclass(frozen=True)
class Config:
    """Train a new head on a frozen pretrained backbone: minutes, no GPU.

    The photos go through the backbone once; the features are stored and reused by the next run.
    """

    data: str
    """Folder with one subfolder of photos per class, or with train/ validation/ test/ of such; or a data set: elpv."""
    out: Path = field(metadata={"affects_result": False})
    """Run directory to write. Run the same command again to resume an interrupted run."""
    backbone: str = "EfficientNetLite0"
    """Pretrained network; `edgetl backbones` lists all."""
    weights: str = "imagenet"
    """`imagenet`, `none` (random), or a file: .weights.h5, .h5, .keras."""
    image_size: int = 0
    """Side of the square input, pixels; 0 means the backbone's own size."""
    resize: ResizeRule = "stretch"
    """How a photo is fitted in: stretch (as phone libraries do), crop (cut the longer side), pad (black bars)."""
    validation_fraction: float = 0.15
    """Share of all photos on which the head is chosen, 0..1; ignored where the folder brings its own split."""
    test_fraction: float = 0.25
    """Share of all photos held out for the final figures, 0..1; ignored where the folder brings its own split."""
    seed: int = 0
    """Seed of the split and of everything random."""
    head: Literal["linear", "mlp"] = "linear"
    """`linear`: logistic regression by L-BFGS, L2 strength chosen on validation. `mlp`: hidden layers, AdamW."""
    hidden_units: tuple[int, ...] = (256,)
    """mlp: widths of the hidden layers."""
    dropout: float = 0.3
    """mlp: share of activations dropped while training, 0..1."""
    learning_rate: float = 1e-3
    """mlp: AdamW units."""
    weight_decay: float = 1e-2
    """mlp: AdamW's decoupled decay."""
    epochs: int = 100
    """mlp: at most; stops early when validation loss no longer falls."""
    batch_size: int = 64
    """mlp: examples per step."""
    max_unreadable: float = 0.01
    """Share of unreadable photos, 0..1, above which the run stops."""
    cache: Path = field(default_factory=features.default_cache, metadata={"affects_result": False})
    """Where features are stored for the next run. Default: $EDGETL_CACHE or ~/.cache/edgetl."""
    workers: int = field(default=0, metadata={"affects_result": False})
    """Threads that decode and run the backbone; 0 means one per core."""


@dataclass(frozen=True)
class Metrics:
    """What `metrics.json` holds: the Keras head on stored features."""

    validation: Scores
    test: Scores
    head: str
    """What was chosen on validation, in words."""
    unreadable: tuple[str, ...]
    """Ids of photos that could not be read, and are in no split."""


def main(config: Config) -> RunDir:
    """Run the experiment.

    Returns:
        The finished run directory: ready for `export.convert`.

    Raises:
        EdgetlError: see `edgetl.errors`; nothing half-written is left that looks finished.
    """
    config = checked(config)
    check(config)
    row = registry.get(config.backbone)
    spec = ImageInput(config.image_size or row.default_size, config.image_size or row.default_size, config.resize)
    examples = data.load(config.data)
    if config.out.expanduser().resolve().is_relative_to(examples.root.resolve()):
        raise ConfigError(f"--out {config.out}: lies in the data and would be taken for a class. Choose another place")
    divide(config, examples)  # what can't be divided is refused now, not after minutes of computing
    with rundir.writing(config.out, RECIPE, config) as run:
        if run.finished:
            return reopen(run, examples)
        from edgetl import heads

        backbone = build_backbone(config, row, spec)
        table = extract(config, row, spec, examples, backbone)
        splits = divide(config, table.examples)
        head, chosen = fit_head(config, table, splits)
        model = heads.attach(backbone, head)
        save(run, config, spec, model, table, splits, evaluate_head(head, table, splits, chosen))
    return rundir.open_run(run.path)


def reopen(run: RunDir, examples: data.Examples) -> RunDir:
    """Take a finished run as the result, if it is one of the photos that are there now.

    Raises:
        RunError: photos came or went since.
    """
    finished = rundir.open_run(run.path)
    known = set(finished.photo_sha256) | set(rundir.read_json(Metrics, finished.path / rundir.METRICS).unreadable)
    there = {example.id for example in examples}
    if known != there:
        raise RunError(
            f"{run.path}: finished with other photos ({len(there - known)} came, {len(known - there)} went since). "
            "Choose another --out"
        )
    log.info("%s: already finished with these settings", run.path)
    return finished


def check(config: Config) -> None:
    """Refuse settings that can't work, before anything is loaded.

    Raises:
        ConfigError: names the option, what it got, and what it takes.
    """
    positive = [("epochs", config.epochs), ("batch-size", config.batch_size)]
    for name, value in positive + [("hidden-units", units) for units in config.hidden_units]:
        if value < 1:
            raise ConfigError(f"--{name} {value}: must be at least 1")
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"--seed {config.seed}: must be between 0 and {2**32 - 1}")
    if not 0 < config.learning_rate < math.inf:
        raise ConfigError(f"--learning-rate {config.learning_rate}: must be positive, such as 1e-3")
    if not 0 <= config.weight_decay < math.inf:
        raise ConfigError(f"--weight-decay {config.weight_decay}: must not be negative, such as 1e-2")
    for name, fraction in [("dropout", config.dropout), ("max-unreadable", config.max_unreadable)]:
        if not 0 <= fraction < 1:
            raise ConfigError(f"--{name} {fraction}: a share between 0 and 1 is needed, such as 0.3")
    for name, number in [("image-size", config.image_size), ("workers", config.workers)]:
        if number < 0:
            raise ConfigError(f"--{name} {number}: must not be negative; 0 chooses by itself")


def divide(config: Config, examples: data.Examples) -> data.Splits:
    """Split the examples as the settings say."""
    return data.split(
        examples,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
    )


def build_backbone(config: Config, row: Backbone, spec: InputSpec) -> "keras.Model":
    """Load the frozen backbone: raw pixels [n, h, w, 3] -> pooled features [n, d]."""
    quiet_tensorflow()
    import keras

    from edgetl.backbones.build import build

    keras.utils.set_random_seed(config.seed)
    with progress(f"load {row.name}"):
        backbone = build(row.name, spec, config.weights)
    backbone.trainable = False
    return backbone


def extract(
    config: Config, row: Backbone, spec: InputSpec, examples: data.Examples, backbone: "keras.Model"
) -> features.Features:
    """Run all photos through the backbone once, by its converted form: the fastest forward pass on a CPU."""
    workers = config.workers or data.default_workers()

    def make_forward() -> features.Forward:
        from export.artifacts import device_errors
        from export.device.interpreter import Pool
        from export.saved_model import float_tflite

        with progress(f"convert {row.name} for the feature pass"), device_errors():
            return Pool(float_tflite(backbone), workers).run

    from edgetl.backbones.weights import weights_sha256

    table = features.extract(
        examples,
        spec,
        make_forward,
        key={
            "backbone": row.name,
            "normalization": str(row.normalization),
            "weights": weights_sha256(backbone),
        },
        cache=config.cache,
        workers=workers,
        max_unreadable=config.max_unreadable,
    )
    if not np.isfinite(table.values).all():
        raise WeightsError(f"{row.name}: features are not finite with --weights {config.weights}. Use other weights")
    return table


def fit_head(config: Config, table: features.Features, splits: data.Splits) -> tuple["keras.Sequential", str]:
    """Fit the head on the training split and choose it on the validation split.

    Returns:
        The head, for raw features, and what was chosen, in words.
    """
    from edgetl import heads
    from edgetl.probe import fit_linear_probe
    from edgetl.training import HeadTraining, train_head

    train = table.of(splits.train), splits.train.labels
    validation = table.of(splits.validation), splits.validation.labels
    classes = len(splits.train.class_names)
    if config.head == "linear":
        probe = fit_linear_probe(*train, *validation)
        head = heads.build_head(TASK, train[0].shape[1], classes)
        head.layers[-1].set_weights([probe.kernel, probe.bias])
        return head, f"linear, L-BFGS, C={probe.inverse_l2:.3g}"
    settings = HeadTraining(
        config.hidden_units,
        config.dropout,
        config.learning_rate,
        config.weight_decay,
        config.epochs,
        config.batch_size,
    )
    return train_head(TASK, *train, *validation, classes, settings), f"mlp {config.hidden_units}, best epoch"


def evaluate_head(head: "keras.Sequential", table: features.Features, splits: data.Splits, chosen: str) -> Metrics:
    """Score the head on stored features, the test split for the record only."""

    def scores(part: data.Examples) -> Scores:
        return score(part.labels, np.asarray(head(table.of(part), training=False)))

    unreadable = tuple(failure.id for failure in table.unreadable)
    return Metrics(scores(splits.validation), scores(splits.test), chosen, unreadable)


def save(
    run: RunDir,
    config: Config,
    spec: InputSpec,
    model: "keras.Model",
    table: features.Features,
    splits: data.Splits,
    metrics: Metrics,
) -> None:
    """Write every file of the run; the manifest, which makes it a finished one, comes last."""
    hashes = {example.id: sha256 for example, sha256 in zip(table.examples, table.sha256, strict=True)}
    run.write(rundir.INPUTS, to_json(spec))
    run.write(rundir.LABELS, "".join(f"{name}\n" for name in splits.train.class_names))
    run.write(rundir.SPLITS, data.write_csv(splits, hashes))
    run.write_model(model)
    run.write(rundir.METRICS, to_json(metrics))
    run.finish(recipe=RECIPE, data=table.examples.location, data_sha256=table.data_sha256, seed=config.seed)


def show(run: RunDir) -> str:
    """What came out and what to do next."""
    metrics = rundir.read_json(Metrics, run.path / rundir.METRICS)
    test = metrics.test
    return (
        f"{metrics.head}: validation top-1 {100 * metrics.validation.top1:.2f} %, test top-1 {100 * test.top1:.2f} % "
        f"({100 * test.top1_low:.1f}-{100 * test.top1_high:.1f}, {test.samples} photos)\n"
        f"next: python -m export.convert {run.path}"
    )


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
