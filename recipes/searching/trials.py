"""One trial of a search: a recipe's training without its test split, stopped once it is hopeless.

These functions run in the processes of `edgetl.parallel`; nothing of them is written under a final name.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgetl import data, features, rundir
from edgetl.console import progress, quiet_tensorflow
from edgetl.errors import ArtifactError, BackboneError, ConfigError
from edgetl.metrics import primary, score
from edgetl.search.outcome import Outcome, State
from edgetl.search.space import Value, applied
from edgetl.search.study import Judge, Plan
from edgetl.tasks import training_outputs
from recipes import experiment, feature_extraction, fine_tune
from recipes.experiment import Experiment, Finished

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray

    from edgetl.history import Epoch

RecipeName = Literal["feature_extraction", "fine_tune"]
CALIBRATION_PHOTOS = 200
"""As many as `export.convert` takes."""

UNFIT = (ConfigError, BackboneError, ArtifactError)
"""What settings themselves cause, on any machine at any time: it fails their trial. All other errors may be gone
tomorrow and end the search, which the same command goes on with: trials to come must not learn from them."""


class Hopeless(Exception):  # noqa: N818 (no error: it ends a training that is behind the others)
    """Raised in the middle of a training that is to be stopped."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a search have in common."""

    recipe: RecipeName
    base: Experiment
    """Settings of the recipe, but for the knobs."""
    examples: data.Examples
    plan: Plan
    splits_sha256: str
    table: features.Features
    """Of the base's backbone; trials with another one make their own pass, or find it in the cache."""
    held_out: frozenset[str]
    """Ids of the test photos: no trial looks at them."""
    validation_share: float
    """Validation photos, as a share of all but test photos."""
    folder: Path
    """Where a trial keeps its checkpoint while it runs."""


Report = Callable[[float], None]
"""Told the validation figure after each epoch; raises Hopeless."""


@dataclass(frozen=True)
class Recipe:
    """How a recipe is searched."""

    config: type[Any]
    check: Callable[[Any], None]
    """Refuses settings that can't work."""
    train: Callable[[Shared, Any, Report], tuple[Finished, data.Splits]]
    """Settings, their `out` a folder for checkpoints -> what was trained, its model as it is saved or the head alone,
    and the splits it was made of."""
    run: Callable[[Any, data.Examples], rundir.RunDir]
    """Settings -> a finished run directory."""
    space: tuple[str, ...]
    """What varies where nobody says otherwise; the recipe's defaults are within it."""
    shape: tuple[str, ...]
    """Settings that decide on size and latency of the model."""
    barred: frozenset[str]
    """Settings of its own that can't be searched, besides those of every recipe."""
    of_mlp: frozenset[str] = frozenset()
    """Settings that do nothing where `head` is linear."""


def run_trial(
    shared: Shared,
    number: int,
    params: dict[str, Value],
    before: Sequence[Outcome],
    figures: dict[str, float],
    excess: dict[str, float],
) -> Outcome:
    """Train with the settings of one trial, and measure what the search is after.

    Args:
        shared: of all trials.
        number: of this one.
        params: values of the knobs.
        before: outcomes by which it is judged.
        figures: what is known of it before.
        excess: by which share it exceeds limits: by none.

    Raises:
        EdgetlError: what is not for these settings to answer for: a file that is gone, a full disk.
    """
    started = time.perf_counter()
    judge = Judge(shared.plan, number, params, before)

    def report(figure: float) -> None:
        if not math.isfinite(figure):
            raise ConfigError("training diverged: the model says no numbers any more")
        if judge.hopeless(figure):
            raise Hopeless

    found, state, remark = dict(figures), "complete", ""
    try:
        done, splits = trained(shared, params, f"{number:04d}", report)
        found["accuracy"] = done.validation.primary
        if "int8_accuracy" in shared.plan.objectives:
            found["int8_accuracy"] = int8_figure(shared, applied(shared.base, params), done, splits)
    except Hopeless:
        state, remark = "pruned", f"behind the others after epoch {len(judge.curve)}"
        found["accuracy"] = judge.curve[-1]
    except UNFIT as error:
        state, remark = "failed", " ".join(str(error).split())
    kind: State = state  # type: ignore[assignment]
    seconds, curve = time.perf_counter() - started, tuple(judge.curve)
    return Outcome(number, params, kind, shared.splits_sha256, found, curve, judge.rungs, excess, seconds, remark)


def run_repeat(shared: Shared, name: str, params: dict[str, Value], seed: int) -> float:
    """Validation figure of settings on another division of the photos that are not held out.

    Args:
        shared: of all trials.
        name: tells these settings from others.
        params: values of the knobs.
        seed: of the division and of everything random.
    """
    held_out = shared.held_out
    items = [dataclasses.replace(i, split="test" if i.id in held_out else None) for i in shared.table.examples]
    table = dataclasses.replace(shared.table, examples=shared.table.examples.with_items(items))
    base = dataclasses.replace(shared.base, seed=seed, validation_fraction=shared.validation_share)
    other = dataclasses.replace(shared, base=base, table=table, examples=table.examples)
    return trained(other, params, f"{name}-{seed}", lambda _: None)[0].validation.primary


def trained(shared: Shared, params: dict[str, Value], name: str, report: Report) -> tuple[Finished, data.Splits]:
    """Train in a folder that is gone afterwards; where something interrupts it the folder stays, to go on in."""
    quiet_tensorflow()
    import keras

    keras.utils.clear_session()  # a trial must not depend on those that this process has done before
    folder = shared.folder / name
    settings = applied(dataclasses.replace(shared.base, out=folder), params)
    try:
        done = RECIPES[shared.recipe].train(shared, settings, report)
    except (Hopeless, *UNFIT):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return done


def table_of(shared: Shared, settings: Experiment) -> features.Features:
    """Features of the trial's backbone: those that all share, or those of its own."""
    row, spec = experiment.row_and_spec(settings)
    if (row, spec, settings.weights) == (*experiment.row_and_spec(shared.base), shared.base.weights):
        return shared.table
    backbone = experiment.build_backbone(settings, row, spec)
    return experiment.extract(settings, row, spec, shared.examples, backbone)


def untested(splits: data.Splits) -> data.Splits:
    """The same without test photos."""
    return dataclasses.replace(splits, test=splits.test.with_items(()))


def train_head(shared: Shared, settings: feature_extraction.Config, report: Report) -> tuple[Finished, data.Splits]:
    """Do what `recipes.feature_extraction` does, without its files."""
    table = table_of(shared, settings)
    splits = untested(experiment.divide(settings, table.examples))
    outputs, labels = training_outputs(splits.train), splits.validation.labels
    scaled = table.of(splits.validation).mapped(features.Scaling.of(table.of(splits.train)).apply)

    def told(epoch: int, loss: float, head: "keras.Model") -> None:
        said = experiment.predicted(head, scaled)
        report(primary(labels, said, outputs) if np.isfinite(said).all() else math.nan)

    head, _ = feature_extraction.fit_head(settings, table, splits, told)

    def predict(head: "keras.Model", part: data.Examples) -> "NDArray[np.float32]":
        return experiment.predicted(head, table.of(part))

    return experiment.finish(head, splits, predict, calibrate_scores=settings.calibrate_scores), splits


def train_blocks(shared: Shared, settings: fine_tune.Config, report: Report) -> tuple[Finished, data.Splits]:
    """Do what `recipes.fine_tune` does, without its files but the checkpoint."""
    told = 0

    def each(history: "Sequence[Epoch]") -> None:
        nonlocal told
        epochs = history[1:]  # the first row is the linear probe
        while told < len(epochs):  # of a training that goes on, all that were judged in the process before
            told += 1
            report(epochs[told - 1].validation_primary)

    with (
        rundir.writing(settings.out, fine_tune.RECIPE, settings) as run,
        fine_tune.prepare(settings, shared.examples, run) as ready,
    ):
        fine_tune.training_of(settings, run, ready, on_epoch=each).run()
        splits = untested(ready.splits)
        with progress("score the model") as bar:
            done = experiment.finish(
                ready.model,
                splits,
                lambda model, part: fine_tune.predict(model, ready.spec, part, bar),
                calibrate_scores=settings.calibrate_scores,
            )
    return done, splits


def int8_figure(shared: Shared, settings: Experiment, done: Finished, splits: data.Splits) -> float:
    """What the int8 file of a model is worth on validation photos.

    Raises:
        ArtifactError: there is no such form.
    """
    from edgetl import heads
    from export.artifacts import open_pool
    from export.conversion import span_of
    from export.forms import int8_form

    row, spec = experiment.row_and_spec(settings)
    model = done.model
    if model.inputs[0].shape[1:] != spec.shape:  # the head alone
        model = heads.attach(experiment.build_backbone(settings, row, spec), model)
    count = max(CALIBRATION_PHOTOS, len(splits.train.output_names))
    chosen = data.stratified_subset(splits.train, count, settings.seed)
    photos = [image for batch in data.decoded(chosen, spec) for image in batch.pixels]
    tflite, refused = int8_form(model, photos, units=done.outputs.units, span=span_of(splits.train))
    if refused:
        raise ArtifactError(refused)
    pool = open_pool(tflite, 1)
    said = np.concatenate([pool.run(batch.pixels) for batch in data.decoded(splits.validation, spec)])
    return score(splits.validation.labels, said, done.outputs).primary


RECIPES: dict[RecipeName, Recipe] = {
    "feature_extraction": Recipe(
        config=feature_extraction.Config,
        check=feature_extraction.check,
        train=train_head,
        run=feature_extraction.train_on,
        space=(
            "head=choice(linear,mlp)",
            "hidden_units=choice(64,128,256)",
            "learning_rate=loguniform(1e-4,1e-2)",
            "weight_decay=loguniform(1e-4,0.3)",
            "dropout=uniform(0,0.6)",
            "batch_size=choice(32,64,128)",
        ),
        shape=("head", "hidden_units"),
        barred=frozenset({"calibrate_scores"}),
        of_mlp=frozenset({"hidden_units", "dropout", "learning_rate", "weight_decay", "epochs", "batch_size"}),
    ),
    "fine_tune": Recipe(
        config=fine_tune.Config,
        check=fine_tune.check,
        train=train_blocks,
        run=fine_tune.train_on,
        space=(
            "backbone_lr=loguniform(1e-5,3e-3)",
            "head_lr=loguniform(1e-4,1e-2)",
            "thaw=choice(0.3,0.5,0.7)",
            "batch_size=choice(16,32,64)",
            "dropout=uniform(0,0.5)",
            "weight_decay=loguniform(1e-3,0.3)",
            "augment=choice(flips,light)",
        ),
        shape=(),
        barred=frozenset({"calibrate_scores", "resume", "disk_budget_gb", "distribute", "tensorboard"}),
    ),
}
