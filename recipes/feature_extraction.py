"""Frozen backbone, new head: the fastest way from photos to a model, and the baseline for every other recipe.

`python -m recipes.feature_extraction --data photos/ --out runs/mine`
"""

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgetl import data, features, results, rundir
from edgetl.config import checked, command
from edgetl.errors import ConfigError
from edgetl.results import Metrics
from edgetl.rundir import RunDir
from edgetl.scores import summary
from edgetl.tasks import check_remedies, training_outputs
from recipes import experiment
from recipes.experiment import Experiment

if TYPE_CHECKING:
    import keras

    from edgetl.training import OnEpoch

RECIPE = "feature_extraction"
PROG = f"python -m recipes.{RECIPE}"


@dataclass(frozen=True)
class Config(Experiment):
    """Train a new head on a frozen pretrained backbone: minutes, no GPU.

    The photos go through the backbone once; the features are stored and reused by the next run.
    """

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
    calibrate_scores: bool = False
    """Fit a temperature on validation and write it into the model, so that scores are probabilities."""


def main(config: Config) -> RunDir:
    """Run the experiment.

    Returns:
        The finished run directory: ready for `export.convert`.

    Raises:
        EdgetlError: see `edgetl.errors`; nothing half-written is left that looks finished.
    """
    config = checked(config)
    check(config)
    return train_on(config, experiment.load_examples(config))


def train_on(config: Config, examples: data.Examples) -> RunDir:
    """Run the experiment on examples that were loaded already: those of a fold, say; `config` was checked."""
    check_remedies(examples.task, calibrate_scores=config.calibrate_scores)
    row, spec = experiment.row_and_spec(config)
    with rundir.writing(config.out, RECIPE, config) as run:
        if run.finished:
            return results.reopen(run, examples)
        from edgetl import heads

        backbone = experiment.build_backbone(config, row, spec)
        table = experiment.extract(config, row, spec, examples, backbone)
        splits = experiment.divide(config, table.examples)
        head, chosen = fit_head(config, table, splits)
        done = experiment.finish(
            head,
            splits,
            lambda head, part: experiment.predicted(head, table.of(part)),
            calibrate_scores=config.calibrate_scores,
        )
        model = heads.attach(backbone, done.model)
        unreadable = tuple(failure.id for failure in table.unreadable)
        metrics = Metrics(done.validation, done.test, ", ".join([chosen, *done.notes]), unreadable)
        results.save(run, RECIPE, spec, done.outputs, model, table, splits, metrics, seed=config.seed)
    return rundir.open_run(run.path)


def check(config: Config) -> None:
    """Refuse settings that can't work, before anything is loaded.

    Raises:
        ConfigError: names the option, what it got, and what it takes.
    """
    experiment.check_common(config)
    positive = [("epochs", config.epochs), ("batch-size", config.batch_size)]
    for name, value in positive + [("hidden-units", units) for units in config.hidden_units]:
        if value < 1:
            raise ConfigError(f"--{name} {value}: must be at least 1")
    if not 0 < config.learning_rate < math.inf:
        raise ConfigError(f"--learning-rate {config.learning_rate}: must be positive, such as 1e-3")
    if not 0 <= config.weight_decay < math.inf:
        raise ConfigError(f"--weight-decay {config.weight_decay}: must not be negative, such as 1e-2")
    experiment.check_share("dropout", config.dropout)


def fit_head(
    config: Config,
    table: features.Features,
    splits: data.Splits,
    on_epoch: "OnEpoch | None" = None,
) -> tuple["keras.Sequential", str]:
    """Fit the head on the training split and choose it on the validation split.

    Args:
        config: the settings.
        table: features of all photos.
        splits: of the same photos.
        on_epoch: mlp: told of each epoch, see `edgetl.training.OnEpoch`; what it raises comes out here.

    Returns:
        The head, for raw features, in the form in which it is trained; and what was chosen, in words.
    """
    if config.head == "linear":
        return experiment.fit_linear_head(table, splits)
    from edgetl.training import HeadTraining, train_head

    train = table.of(splits.train), splits.train.labels
    validation = table.of(splits.validation), splits.validation.labels
    settings = HeadTraining(
        config.hidden_units,
        config.dropout,
        config.learning_rate,
        config.weight_decay,
        config.epochs,
        config.batch_size,
    )
    outputs, weights = training_outputs(splits.train), splits.train.weights
    head = train_head(outputs, *train, *validation, settings, weights, seed=config.seed, on_epoch=on_epoch)
    return head, f"mlp {config.hidden_units}, best epoch"


def show(run: RunDir) -> str:
    """What came out and what to do next."""
    metrics = rundir.read_json(Metrics, run.path / rundir.METRICS)
    return (
        f"{metrics.head}: validation {summary(metrics.validation)}, {results.tested(metrics)}\n"
        f"next: python -m export.convert {run.path}"
    )


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
