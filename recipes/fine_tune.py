"""Linear probe, then thawed blocks: more accuracy than frozen features, without losing what they know.

`python -m recipes.fine_tune --data photos/ --out runs/mine`

First the head alone, by the linear probe of the feature-extraction recipe, so that the thawed layers never see the
gradients of a random head (LP-FT, Kumar et al. 2022). Then blocks are thawed from the output towards the input.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgetl import data, features, phases, results, rundir
from edgetl.backbones.backbone import Backbone
from edgetl.config import checked, command
from edgetl.console import Bar, log, progress
from edgetl.errors import ConfigError, RunError
from edgetl.inputs import ImageInput
from edgetl.metrics import score
from edgetl.outputs import Task
from edgetl.phases import Phase
from edgetl.rundir import RunDir
from edgetl.scores import PRIMARY, Scores, summary
from edgetl.tasks import check_remedies, training_outputs
from edgetl.thresholds import tuned
from recipes import experiment, training_data
from recipes.experiment import Experiment

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray

    from edgetl.backbones.blocks import Block
    from edgetl.batches import Batches
    from edgetl.fine_tuning import FineTuning, Settings, Validation
    from edgetl.history import Epoch
    from recipes.lessons import Lessons, Teacher

RECIPE = "fine_tune"
PROG = f"python -m recipes.{RECIPE}"
HISTORY = "history.csv"
CURVES = "curves.png"
CHECKPOINT = "checkpoint.npz"
TENSORBOARD = "tensorboard"
REMEDIES = ("label_smoothing", "focal_gamma", "cutmix", "class_balance", "calibrate_scores")
"""Options that not every task knows."""
BATCH_NORM = {
    "frozen": "statistics and scales frozen",
    "train": "trained with the thawed blocks",
    "recalibrate": "frozen in training, statistics of the thawed blocks measured again at the end",
}


@dataclass(frozen=True)
class Config(Experiment):
    """Fine-tune a pretrained backbone: linear probe first, then thawed blocks at lower learning rates."""

    resume: bool = field(default=False, metadata={"affects_result": False})
    """Insist that there is an unfinished run to go on with. The same command without it resumes as well."""
    thaw: str = "0.7"
    """What learns: a number of blocks from the output (6), a share of them (0.5), a block or layer by name (it and all
    after it), or `all`."""
    gradual: int = 1
    """Number of phases: from the output to the input, one group of blocks is thawed after another."""
    epochs: int = 16
    """Of the last phase, in which everything that is thawed learns."""
    epochs_per_group: int = 2
    """Of each phase before the last."""
    batch_size: int = 32
    """Photos per step."""
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "lion"] = "adamw"
    """`sgd` has momentum 0.9, Nesterov's."""
    head_lr: float = 1e-3
    """Learning rate of the head, in units of the optimizer."""
    backbone_lr: float = 8e-4
    """Learning rate of the last block of the backbone."""
    layer_decay: float = 0.8
    """A block learns at this share of the rate of the block after it, 0..1; 1 gives all the same rate."""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """How rates change: cosine to 0 after the warm-up, constant, or a third when validation loss stops falling."""
    warmup_epochs: float = 1.0
    """Epochs over which rates rise from 0; half a phase at most. Not for plateau."""
    batch_norm: Literal["frozen", "train", "recalibrate"] = "frozen"
    """BatchNorm layers of thawed blocks: frozen; trained; or frozen, with statistics measured again at the end."""
    augment: Literal["none", "flips", "light", "medium", "strong", "symmetries"] = "flips"
    """Changes to training photos, never part of the model; `symmetries` is for photos without an up."""
    views: int = -1
    """Stored versions of each training photo, the photo itself among them; 0 stores none and augments photos anew in
    each epoch; -1 takes all that the preset has, or 8."""
    disk_budget_gb: float = field(default=10.0, metadata={"affects_result": False})
    """Most that stored activations of all runs together may take, GB (10^9 bytes)."""
    dropout: float = 0.2
    """Share of features dropped before the head while training, 0..1."""
    l1: float = 0.0
    """L1 penalty on the head's kernel."""
    l2: float = 0.0
    """L2 penalty on the head's kernel."""
    weight_decay: float = 0.05
    """Decoupled decay per step as a share of the learning rate; biases and norms are spared."""
    l2_sp: float = 0.0
    """Pull of the backbone's weights towards the pretrained ones (Li et al. 2018)."""
    label_smoothing: float | None = None
    """Share of each label that is spread over all classes, 0..1. Default: 0.1 for classification, else 0."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off. On stored activations it is manifold mixup."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off."""
    focal_gamma: float = 0.0
    """Focal loss: weight of hard examples; 0 is plain cross-entropy."""
    class_balance: Literal["none", "weights", "sampling"] = "none"
    """For classes of unequal size: weights in the loss, or as many photos of each class in every epoch."""
    clip_norm: float = 1.0
    """Longest gradient, all variables together; longer ones are shortened. 0 is off."""
    ema: float = 0.0
    """Momentum, such as 0.99, of an average over the weights of all steps; it is judged and saved. 0 is off."""
    patience: int = 0
    """The last phase stops after so many epochs without a lower validation loss, and the best weights are taken; 0: all
    epochs are trained, and the last weights are taken."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Of the computations in training; the saved model is float32."""
    distribute: bool = False
    """Share each batch among all GPUs of this machine (tf.distribute.MirroredStrategy)."""
    calibrate_scores: bool = False
    """Fit a temperature on validation and write it into the model, so that scores are probabilities."""
    tensorboard: bool = field(default=False, metadata={"affects_result": False})
    """Write TensorBoard logs into RUN/tensorboard."""


@dataclass(frozen=True)
class Metrics(results.Metrics):
    """What `metrics.json` holds: the fine-tuned Keras model, and how it came about."""

    probe_validation: Scores
    """The linear probe alone, before anything was thawed."""
    notes: tuple[str, ...]
    """What a reader should know about the training: what was thawed, BatchNorm, overfitting."""


@dataclass(frozen=True)
class Prepared:
    """Everything that training starts from."""

    row: Backbone
    spec: ImageInput
    table: features.Features
    splits: data.Splits
    model: "keras.Model"
    """Raw pixels -> outputs, with the linear probe as head, in the form in which it is trained."""
    learner: "keras.Model"
    """The part of it behind the border, sharing its layers; all of it where nothing is stored."""
    blocks: "tuple[Block, ...]"
    phases: tuple[Phase, ...]
    train: "Batches"
    validation: "Validation"
    head: str
    """How the probe was chosen."""
    probe_validation: Scores
    lessons: "Lessons | None" = None
    """Of the teacher, if there is one."""


def main(config: Config) -> RunDir:
    """Run the experiment.

    Returns:
        The finished run directory: ready for `export.convert`.

    Raises:
        EdgetlError: see `edgetl.errors`; a checkpoint that was written stays.
        KeyboardInterrupt: the state in the middle of the epoch has been saved.
    """
    config = checked(config)
    check(config)
    check_resume(config)
    return train_on(config, experiment.load_examples(config))


def train_on(config: Config, examples: data.Examples) -> RunDir:
    """Run the experiment on examples that were loaded already: those of a fold, say; `config` was checked."""
    with rundir.writing(config.out, RECIPE, config) as run:
        if run.finished:
            return reopen(run, examples, Metrics)
        with prepare(config, examples, run) as ready:
            training = training_of(config, run, ready)
            # From here on the directory belongs to these settings: nothing above may write into it.
            run.write(rundir.SPLITS, data.write_csv(ready.splits, results.hashes_of(ready.table)))
            history = training.run()
        save(config, run, ready, history)
    return rundir.open_run(run.path)


def reopen(run: RunDir, examples: data.Examples, metrics: type[Metrics]) -> RunDir:
    """Do what `results.reopen` does, and delete the checkpoint that a kill after the last file of a run has left."""
    (run.path / CHECKPOINT).unlink(missing_ok=True)
    return results.reopen(run, examples, metrics)


def check(config: Config) -> None:
    """Refuse settings that can't work, before anything is loaded.

    Raises:
        ConfigError: names the option, what it got, and what it takes.
    """
    experiment.check_common(config)
    for name in ("epochs", "epochs_per_group", "gradual", "batch_size"):
        if getattr(config, name) < 1:
            raise ConfigError(f"--{_option(name)} {getattr(config, name)}: must be at least 1")
    for name in ("head_lr", "backbone_lr", "disk_budget_gb"):
        if not 0 < getattr(config, name) < math.inf:
            raise ConfigError(f"--{_option(name)} {getattr(config, name)}: must be positive, such as {_default(name)}")
    for name in ("warmup_epochs", "l1", "l2", "weight_decay", "l2_sp", "mixup", "cutmix", "focal_gamma", "clip_norm"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"--{_option(name)} {getattr(config, name)}: must not be negative; 0 is off")
    for name in ("dropout", "label_smoothing", "ema"):
        experiment.check_share(_option(name), getattr(config, name) or 0.0)
    if not 0 < config.layer_decay <= 1:
        raise ConfigError(
            f"--layer-decay {config.layer_decay}: a share of more than 0 and at most 1 is needed, such as 0.8"
        )
    if config.patience < 0:
        raise ConfigError(f"--patience {config.patience}: must not be negative; 0 trains all epochs")
    if config.views < -1:
        raise ConfigError(f"--views {config.views}: must be a number of versions, 0 to store none, or -1 to choose")


def check_resume(config: Config) -> None:
    """Insist that there is a run to go on with, if that was asked for.

    Raises:
        RunError: there is none.
    """
    if config.resume and not (config.out.expanduser() / rundir.CONFIG).is_file():
        raise RunError(f"--resume: {config.out} holds no run to go on with. Leave it out to start one")


def _option(name: str) -> str:
    return name.replace("_", "-")


def _default(name: str) -> object:
    return next(f.default for f in fields(Config) if f.name == name)


@contextmanager
def prepare(
    config: Config, examples: data.Examples, run: RunDir, teacher: "Teacher | None" = None
) -> Iterator[Prepared]:
    """Do all that comes before training: backbone, plan, probe, and the activations at the border.

    Args:
        config: the settings.
        examples: all photos.
        run: the directory; nothing is written into it.
        teacher: whom the student of a distillation learns from.

    Yields:
        What training starts from; stored activations are held open for the time of the block.

    Raises:
        EdgetlError: something can't be done as asked, or the run began with other photos.
    """
    from edgetl import heads
    from edgetl.backbones.blocks import blocks_of

    check_remedies(examples.task, **{name: getattr(config, name) for name in REMEDIES})
    row, spec = experiment.row_and_spec(config)
    backbone = experiment.build_backbone(config, row, spec)
    blocks = blocks_of(backbone, row)
    plan = planned(config, blocks)
    refuse_what_does_not_fit(config, plan)
    if teacher:
        teacher.refuse_plan(plan, blocks)
    table = experiment.extract(config, row, spec, examples, backbone)
    refuse_other_photos(run, table)
    splits = experiment.divide(config, table.examples)
    lessons = teacher.prepare(row, spec, table, splits, backbone, run) if teacher else None
    probe, chosen = experiment.fit_linear_head(table, splits)
    outputs = training_outputs(splits.train)
    head = heads.build_head(
        outputs.task,
        row.features,
        len(outputs.names),
        dropout=config.dropout,
        l1=config.l1,
        l2=config.l2,
        deviations=outputs.deviations,
    )
    head.set_weights(probe.get_weights())
    model = heads.attach(backbone, head)
    show_plan(config, outputs.task, model, blocks, plan)
    whole = lessons.hinted(model, backbone) if lessons else model
    with training_data.sources(config, row, spec, whole, plan, splits, lessons) as (learner, train, validation):
        labels, said = splits.validation.labels, experiment.predicted(probe, table.of(splits.validation))
        validated = score(labels, said, tuned(outputs, labels, said))
        yield Prepared(
            row, spec, table, splits, model, learner, blocks, plan, train, validation, chosen, validated, lessons
        )


def planned(config: Config, blocks: "tuple[Block, ...]") -> tuple[Phase, ...]:
    """The phases that the settings ask for."""
    return phases.plan(
        phases.thawed_blocks(config.thaw, blocks),
        epochs=config.epochs,
        groups=config.gradual,
        epochs_per_group=config.epochs_per_group,
        head_learning_rate=config.head_lr,
        backbone_learning_rate=config.backbone_lr,
        layer_decay=config.layer_decay,
    )


def refuse_what_does_not_fit(config: Config, plan: tuple[Phase, ...]) -> None:
    """Refuse settings that can't work together, before minutes of computing.

    Raises:
        ConfigError: names the option and what stands against it.
    """
    from edgetl.activations import check_views
    from edgetl.trainee import strategy_for

    if not plan[-1].thawed:
        for name, value in [("l2-sp", config.l2_sp), ("cutmix", config.cutmix)]:
            if value:
                raise ConfigError(f"--{name} {value}: works on blocks; --thaw {config.thaw} thaws none. Set it to 0")
    if config.views > 0:
        check_views(config.augment if config.views > 1 else "none", config.views)
    strategy_for(config.distribute, config.batch_size)


def show_plan(
    config: Config, task: Task, model: "keras.Model", blocks: "tuple[Block, ...]", plan: tuple[Phase, ...]
) -> None:
    """Log what will be trained when, before the long part begins."""
    from edgetl.backbones.build import NORMALIZE_LAYER
    from edgetl.trainee import learning_layers

    learning = learning_layers(plan[-1], blocks, config.batch_norm, model)
    parameters = {
        name: sum(w.value.shape.num_elements() for w in model.get_layer(name).weights if "moving_" not in w.name)
        for name in learning
    }
    in_blocks = {name for block in blocks for name in block.layers} | {NORMALIZE_LAYER}
    head = sum(layer.count_params() for layer in model.layers if layer.name not in in_blocks)
    log.info("%s", phases.describe(plan, blocks, parameters, head, "ridge" if task == "regression" else "L-BFGS"))
    log.info(
        "%s; %s schedule; BatchNorm %s; augmentation %s",
        config.optimizer,
        config.schedule,
        BATCH_NORM[config.batch_norm],
        training_data.augmentation(config, streamed=config.views == 0 or len(plan[-1].thawed) == len(blocks)),
    )


def training_of(
    config: Config, run: RunDir, ready: Prepared, on_epoch: "Callable[[Sequence[Epoch]], None] | None" = None
) -> "FineTuning":
    """Set the training up, or take it up where the checkpoint of the run left it.

    `on_epoch` is called with the history after each epoch; by default the curves in the run are brought up to date.
    """
    from edgetl.fine_tuning import FineTuning

    return FineTuning(
        ready.learner,
        ready.blocks,
        ready.phases,
        ready.train,
        ready.validation,
        settings(config, ready.train.outputs.task, streamed=ready.learner is ready.model),
        checkpoint=run.path / CHECKPOINT,
        on_epoch=on_epoch or (lambda history: show_history(config, run, ready, history)),
    )


def settings(config: Config, task: Task, *, streamed: bool) -> "Settings":
    """What training takes from the knobs."""
    from edgetl.fine_tuning import Settings
    from edgetl.optimizers import OptimizerSettings

    return Settings(
        seed=config.seed,
        optimizer=OptimizerSettings(
            name=config.optimizer,
            learning_rate=config.head_lr,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            ema_momentum=config.ema,
            l2_sp=config.l2_sp,
        ),
        schedule=config.schedule,
        warmup_epochs=config.warmup_epochs,
        batch_norm=config.batch_norm,
        augment=config.augment if streamed else "none",
        mixup=config.mixup,
        cutmix=config.cutmix,
        label_smoothing=label_smoothing(config, task),
        focal_gamma=config.focal_gamma,
        class_weights=config.class_balance == "weights",
        patience=config.patience,
        precision=config.precision,
        distribute=config.distribute,
    )


def label_smoothing(config: Config, task: Task) -> float:
    """The share that was asked for, or what suits the task."""
    if config.label_smoothing is None:
        return 0.1 if task == "classification" else 0.0
    return config.label_smoothing


def refuse_other_photos(run: RunDir, table: features.Features) -> None:
    """Insist that a run that has begun goes on with the photos that it began with.

    Raises:
        RunError: photos came, went or changed since.
    """
    if not (run.path / rundir.SPLITS).is_file():
        return
    before, now = run.photo_sha256, results.hashes_of(table)
    for id in sorted(before.keys() ^ now.keys()) or sorted(id for id in now if now[id] != before[id]):
        what = "is gone" if id not in now else "is new" if id not in before else "has changed"
        raise RunError(
            f"{run.path}: began with other photos ({id} {what}). Restore them to resume, or choose another --out"
        )


def show_history(config: Config, run: RunDir, ready: Prepared, history: "Sequence[Epoch]") -> None:
    """Bring the curves in the run directory up to date, and TensorBoard's if asked for."""
    from edgetl.history import to_csv
    from edgetl.plots import training_curves

    run.write(HISTORY, to_csv(history))
    run.write(CURVES, training_curves(history, title(config, ready), ready.train.outputs.task))
    if config.tensorboard:
        first = 0 if len(history) == 2 else len(history) - 1  # the linear probe comes along with the first epoch
        for step in range(first, len(history)):
            write_tensorboard(run.path / TENSORBOARD, step, history[step])


def title(config: Config, ready: Prepared) -> str:
    """What stands above the curves."""
    return f"{ready.row.name}, {Path(config.data).resolve().name}"


def write_tensorboard(folder: Path, step: int, row: "Epoch") -> None:
    """Add one epoch to the event files that `tensorboard --logdir` reads."""
    import tensorflow as tf

    # What tf.summary.scalar writes; that one asks for the package tensorboard, which only readers need.
    kind = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"}, data_class="DATA_CLASS_SCALAR")
    with closing(tf.summary.create_file_writer(str(folder))) as writer, writer.as_default():
        for name, value in asdict(row).items():
            if isinstance(value, float):
                tf.summary.write(name, tf.constant(value), step, kind)


def save(config: Config, run: RunDir, ready: Prepared, history: "Sequence[Epoch]") -> None:
    """Score the model and write the run."""
    done = scored(config, ready)
    seal(config, run, ready, history, done, metrics_of(config, ready, history, done))


def scored(config: Config, ready: Prepared) -> experiment.Finished:
    """Bring the model into the form in which it is saved, and tell how good it is."""
    passes = (2 if config.calibrate_scores else 1) * len(ready.splits.validation) + len(ready.splits.test)
    with progress("score the model", passes) as bar:
        return experiment.finish(
            ready.model,
            ready.splits,
            lambda model, part: predict(model, ready.spec, part, bar),
            calibrate_scores=config.calibrate_scores,
        )


def metrics_of(config: Config, ready: Prepared, history: "Sequence[Epoch]", done: experiment.Finished) -> Metrics:
    """What `metrics.json` is to hold."""
    return Metrics(
        done.validation,
        done.test,
        ready.head,
        tuple(failure.id for failure in ready.table.unreadable),
        ready.probe_validation,
        (*notes(config, ready, history), *done.notes),
    )


def seal(
    config: Config,
    run: RunDir,
    ready: Prepared,
    history: "Sequence[Epoch]",
    done: experiment.Finished,
    metrics: Metrics,
    recipe: str = RECIPE,
    further: "Mapping[str, bytes | str] | None" = None,
) -> None:
    """Write the run; the checkpoint has had its day.

    Args:
        config: the settings.
        run: the directory.
        ready: what training started from.
        history: its epochs.
        done: the model as it is saved.
        metrics: its figures.
        recipe: what made it.
        further: results that only that recipe has.
    """
    from edgetl.history import to_csv
    from edgetl.plots import training_curves

    curves = training_curves(history, title(config, ready), ready.train.outputs.task)
    extra: dict[str, bytes | str] = {HISTORY: to_csv(history), CURVES: curves, **(further or {})}
    results.save(
        run,
        recipe,
        ready.spec,
        done.outputs,
        done.model,
        ready.table,
        ready.splits,
        metrics,
        seed=config.seed,
        extra=extra,
    )
    (run.path / CHECKPOINT).unlink(missing_ok=True)


def predict(model: "keras.Model", spec: ImageInput, part: data.Examples, bar: Bar) -> "NDArray[np.float32]":
    """What the whole model says of photos as they are, [n, k].

    Raises:
        DatasetError: a photo that was read before can't be read now.
    """
    found = []
    for batch in data.decoded(part, spec):
        data.check_unreadable(batch.unreadable, len(part), 0.0)
        found.append(model.predict_on_batch(batch.pixels.astype(np.float32)))
        bar.advance(len(batch.pixels))
    return np.concatenate(found)


def notes(config: Config, ready: Prepared, history: "Sequence[Epoch]") -> tuple[str, ...]:
    """What a reader of the report should know about how the model came about."""
    from edgetl.history import watch

    thawed = ready.phases[-1].thawed
    blocks = f"{len(thawed)} of {len(ready.blocks)} blocks ({ready.phases[-1].name})" if thawed else "the head alone"
    lines = [
        f"{blocks} fine-tuned in {len(history) - 1} epochs after a linear probe; "
        f"BatchNorm: {BATCH_NORM[config.batch_norm]}; "
        f"augmentation: {training_data.augmentation(config, streamed=ready.learner is ready.model)}",
    ]
    if history[-1].validation_loss > history[0].validation_loss and (
        history[-1].validation_primary < history[0].validation_primary
    ):
        lines.append(
            "worse than the linear probe on validation. Try lower rates (recipes.find_learning_rate), fewer thawed "
            "blocks, or more photos"
        )
    if warning := watch(history, PRIMARY[ready.train.outputs.task]).line:
        lines.append(warning)
    return tuple(lines)


def show(run: RunDir, kind: type[Metrics] = Metrics) -> str:
    """What came out and what to do next; `kind` is what its `metrics.json` holds."""
    metrics = rundir.read_json(kind, run.path / rundir.METRICS)
    return "\n".join(
        [
            *metrics.notes,
            f"validation {summary(metrics.validation)}, linear probe {summary(metrics.probe_validation)}",
            results.tested(metrics),
            f"next: python -m export.convert {run.path}",
        ]
    )


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
