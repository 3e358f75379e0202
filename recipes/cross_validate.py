"""Every photo is tested once, by a model that has not seen it: a figure with its spread, where one split has luck.

`python -m recipes.cross_validate --data photos/ --out runs/folds`

The photos are divided into folds. For each, a model is made of the other folds, of which a validation share chooses
what there is to choose; then the fold is its test split. `--refit` makes a model of all photos at the end.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tyro.conf import Fixed, Suppress

from edgetl import cross_validation, data, features, results, rundir
from edgetl.audit import gate
from edgetl.config import checked, command, to_json
from edgetl.console import log, quiet_tensorflow, table_lines
from edgetl.cross_validation import Fold, FoldModel, FoldOutputs, Spread
from edgetl.errors import ConfigError, RunError
from edgetl.metrics import score
from edgetl.outputs import OutputSpec
from edgetl.parallel import workers
from edgetl.rundir import RunDir
from edgetl.scores import PRIMARY, Scores, summary
from recipes import experiment, feature_extraction, fine_tune
from recipes.experiment import Experiment

if TYPE_CHECKING:
    import keras

RECIPE = "cross_validate"
PROG = f"python -m recipes.{RECIPE}"
RESULT = "folds.json"
PREDICTIONS = "predictions.npz"
TABLE = "folds.txt"
REFIT = "refit"
E = TypeVar("E", bound=Experiment)


@dataclass(frozen=True)
class Config(fine_tune.Config):
    """Cross-validate a recipe: k models, each tested on the photos that it has not seen.

    The options of fine-tuning are there for --recipe fine_tune.
    """

    recipe: Literal["feature_extraction", "fine_tune"] = "feature_extraction"
    """How the model of a fold is made: a linear head on stored features (seconds), or all of fine-tuning."""
    folds: int = 5
    """How many, each tested once."""
    processes: int = field(default=1, metadata={"affects_result": False})
    """Folds at a time, each in a process of its own with one thread; 1: one after another, with all cores; 0: one per
    core. With --ray the cluster decides."""
    refit: bool = field(default=False, metadata={"affects_result": False})
    """Make a model of all photos at the end, the same way, with none held out: OUT/refit, for `export.convert`."""
    test_fraction: Annotated[float, Fixed, Suppress] = 0.0


@dataclass(frozen=True)
class CrossValidation:
    """What `folds.json` holds."""

    recipe: str
    backbone: str
    spread: Spread
    """Of the primary figure over the folds."""
    together: Scores
    """Of all photos, each as the one model says that has not seen it."""
    folds: tuple[Fold, ...]
    unreadable: tuple[str, ...]
    """Ids of photos that could not be read, and are in no fold."""
    data_sha256: str
    notes: tuple[str, ...]
    path: str
    """Where this is written."""
    refit: str = ""
    """Run directory of the model of all photos."""
    schema_version: int = 1


def main(config: Config) -> CrossValidation:
    """Make and test the model of each fold; those that an interrupted run finished are kept.

    Returns:
        What OUT/folds.json holds.

    Raises:
        EdgetlError: see `edgetl.errors`; folds that were finished stay.
    """
    config = checked(config)
    check(config)
    examples = pooled(config)
    folds = divided(config, examples, config.folds)  # now: what can't be divided is refused before minutes of work
    with rundir.writing(config.out, RECIPE, config) as run:
        row, spec = experiment.row_and_spec(config)
        backbone = experiment.build_backbone(config, row, spec)
        table = experiment.extract(config, row, spec, examples, backbone)
        if table.unreadable:
            folds = divided(config, whole(table.examples), config.folds)
        parts = tested(config, run, table, folds)
        result = judged(config, run, table, parts)
        if config.refit:
            result = dataclasses.replace(result, refit=str(refitted(config, whole(table.examples)).path))
        run.write(TABLE, show(result) + "\n")
        run.write(RESULT, to_json(result))
    return result


def check(config: Config) -> None:
    """Refuse settings that can't work, before anything is loaded.

    Raises:
        ConfigError: names the option, what it got, and what it takes.
        RunError: --resume, and there is nothing to go on with.
    """
    fine_tune.check(narrowed(fine_tune.Config, config, config.out))
    if config.recipe == "feature_extraction":
        own = {f.name for f in fields(Experiment)} | {f.name for f in fields(Config)} - {
            f.name for f in fields(fine_tune.Config)
        }
        for each in fields(Config):
            if each.name not in own and getattr(config, each.name) != each.default:
                option = each.name.replace("_", "-")
                raise ConfigError(f"--{option}: works with --recipe fine_tune. Add that or leave --{option} out")
    if config.processes < 0:
        raise ConfigError(f"--processes {config.processes}: must not be negative; 0 takes one per core")
    if config.resume and not (config.out.expanduser() / rundir.CONFIG).is_file():
        raise RunError(f"--resume: {config.out} holds no folds to go on with. Leave it out to start")


def narrowed(kind: type[E], config: Config, out: Path, **changes: object) -> E:
    """The settings that a recipe takes, for a run directory of its own."""
    given = {f.name: getattr(config, f.name) for f in fields(kind) if f.name in {g.name for g in fields(Config)}}
    return kind(**(given | {"out": out} | changes))


def pooled(config: Experiment) -> data.Examples:
    """Find the photos; copies and groups are looked at as if the data set brought no splits, for none is heeded.

    Raises:
        DatasetError: no such data, or photos with two labels.
        ConfigError: a list of exclusions can't be used, or the run would be written among the photos.
    """
    return gate.admit(whole(experiment.find_examples(config)), config.exclude, config.allow_leakage)


def whole(examples: data.Examples) -> data.Examples:
    """The examples without the splits that the data set brings: all of them are tested."""
    return examples.with_items([dataclasses.replace(item, split=None) for item in examples])


def divided(config: Experiment, examples: data.Examples, folds: int) -> list[data.Splits]:
    """Each fold as test split once, the rest divided into training and validation as the settings say.

    Raises:
        ConfigError: fewer than 2 folds.
        DatasetError: the examples can't be divided so.
    """
    assigned = cross_validation.assign(examples, folds, config.seed)
    pairs = list(zip(examples, assigned.tolist(), strict=True))
    return [
        experiment.divide(
            config,
            examples.with_items(
                [dataclasses.replace(item, split="test") if at == fold else item for item, at in pairs]
            ),
        )
        for fold in range(folds)
    ]


def tested(config: Config, run: RunDir, table: features.Features, folds: list[data.Splits]) -> list[FoldOutputs]:
    """Make the model of each fold and ask it about the photos that it has not seen, or read what it said."""
    found = {number: said for number, splits in enumerate(folds, 1) if (said := kept(run, table, splits, number))}
    left = [number for number in range(1, len(folds) + 1) if number not in found]
    if found:
        log.info("%d of %d folds: kept", len(found), len(folds))
    for number, made in made_of(config, run, table, folds, left):
        run.write(f"fold{number}.npz", made.to_bytes())
        scores = score(folds[number - 1].test.labels, made.outputs, made.model.spec)
        log.info("fold %d of %d: %s", number, config.folds, summary(scores))
        found[number] = made
    return [found[number] for number in sorted(found)]


def kept(run: RunDir, table: features.Features, splits: data.Splits, number: int) -> FoldOutputs | None:
    """Read what an earlier process made of a fold, if it was of the same photos."""
    path = run.path / f"fold{number}.npz"
    if not path.is_file():
        return None
    try:
        found = FoldOutputs.from_bytes(path.read_bytes())
    except ValueError:
        log.warning("%s is damaged and will be made again", path)
        return None
    return found if found.splits_sha256 == splits_key(splits, table) else None


@dataclass(frozen=True)
class Folding:
    """What all folds have in common."""

    config: Config
    run: RunDir
    table: features.Features


def made_of(
    config: Config, run: RunDir, table: features.Features, folds: list[data.Splits], numbers: list[int]
) -> Iterator[tuple[int, FoldOutputs]]:
    """Make folds one after another, or several at a time in processes of their own, and yield each when it is done."""
    shared = Folding(config, run, table)
    if not config.ray and config.processes == 1:
        yield from ((number, fold_made(shared, folds[number - 1], number)) for number in numbers)
        return
    alone = Folding(experiment.elsewhere(config), RunDir(run.path.absolute()), table)
    with workers(alone, ray=config.ray, processes=config.processes) as pool:
        for place, made in pool.map(fold_made, [(folds[number - 1], number) for number in numbers]):
            yield numbers[place], made


def fold_made(shared: Folding, splits: data.Splits, number: int) -> FoldOutputs:
    """Make the model of one fold and ask it about its test photos."""
    if shared.config.recipe == "feature_extraction":
        return probed(shared.table, splits)
    return tuned(shared.config, shared.run, shared.table, splits, number)


def splits_key(splits: data.Splits, table: features.Features) -> str:
    """Tells what a fold is made of, groups and weights included, from what it was before a table was edited."""
    return hashlib.sha256(data.write_csv(splits, results.hashes_of(table)).encode()).hexdigest()


def probed(table: features.Features, splits: data.Splits) -> FoldOutputs:
    """Fit a linear head on the stored features of the other folds."""
    head, chosen = experiment.fit_linear_head(table, splits)

    def predict(head: "keras.Model", part: data.Examples) -> NDArray[np.float32]:
        return experiment.predicted(head, table.of(part))

    done = experiment.finish(head, splits, predict, calibrate_scores=False)
    return _fold_outputs(splits, chosen, done.outputs, predict(done.model, splits.test), table)


def tuned(config: Config, run: RunDir, table: features.Features, splits: data.Splits, number: int) -> FoldOutputs:
    """Fine-tune on the other folds, in a run directory of its own, which resumes like any other."""
    quiet_tensorflow()
    import keras

    from edgetl.backbones.weights import weights_sha256

    log.info("fold %d of %d", number, config.folds)
    settings = narrowed(fine_tune.Config, config, run.path / f"fold{number}", resume=False)
    made = fine_tune.train_on(settings, marked(splits))
    model = keras.saving.load_model(made.model_path, compile=False)
    said = features.extract(
        splits.test,
        made.inputs,
        lambda: experiment.converted(config, model, f"convert the model of fold {number}"),
        key={"model": weights_sha256(model)},
        cache=config.cache,
        workers=config.workers or None,
        max_unreadable=0.0,
    )
    chosen = rundir.read_json(fine_tune.Metrics, made.path / rundir.METRICS).head
    return _fold_outputs(splits, chosen, made.outputs, said.rows.array(), table)


def marked(splits: data.Splits) -> data.Examples:
    """The examples with their splits written on them, as if the data set had brought these."""
    parts = {name: getattr(splits, name) for name in get_args(data.SplitName)}
    items = [dataclasses.replace(item, split=name) for name, part in parts.items() for item in part]
    return splits.train.with_items(sorted(items, key=lambda item: item.id))


def _fold_outputs(
    splits: data.Splits, chosen: str, spec: OutputSpec, outputs: NDArray[np.float32], table: features.Features
) -> FoldOutputs:
    model = FoldModel(len(splits.train), len(splits.validation), chosen, spec)
    return FoldOutputs(model, tuple(example.id for example in splits.test), outputs, splits_key(splits, table))


def judged(config: Config, run: RunDir, table: features.Features, parts: list[FoldOutputs]) -> CrossValidation:
    """Score each fold and all together, and write what every photo was taken for."""
    examples = whole(table.examples)
    folds = []
    for number, part in enumerate(parts, 1):
        test = score(examples.select(part.ids).labels, part.outputs, part.model.spec)
        folds.append(Fold(**vars(part.model), number=number, test=test))
    outputs, spec = cross_validation.joined(parts, examples)
    fold_of = {id_: number for number, part in enumerate(parts, 1) for id_ in part.ids}
    ids = [example.id for example in examples]
    run.write(PREDICTIONS, npz(ids=ids, labels=examples.labels, outputs=outputs, fold=[fold_of[id_] for id_ in ids]))
    return CrossValidation(
        config.recipe,
        experiment.row_and_spec(config)[0].name,
        cross_validation.spread(
            [fold.test.primary for fold in folds], len(examples), sum(fold.trained for fold in folds)
        ),
        score(examples.labels, outputs, spec),
        tuple(folds),
        tuple(failure.id for failure in table.unreadable),
        table.data_sha256,
        notes(config, examples),
        str(run.path),
    )


def npz(**arrays: ArrayLike) -> bytes:
    """Content of an .npz file."""
    buffer = BytesIO()
    content: dict[str, Any] = {name: np.asarray(values) for name, values in arrays.items()}
    np.savez(buffer, **content)
    return buffer.getvalue()


def notes(config: Config, examples: data.Examples) -> tuple[str, ...]:
    """What a reader should know about the figures."""
    lines = []
    if any(item.group for item in examples):
        lines.append("photos of one group are in one fold")
    if config.refit:
        lines.append(
            "the refit learned from all photos but a validation share; none is left to test it on: what it is worth "
            "is what the folds say, whose models saw fewer photos"
        )
    return tuple(lines)


def refitted(config: Config, examples: data.Examples) -> RunDir:
    """Do once more what was done in each fold, with no photo held out for testing."""
    out = config.out / REFIT
    log.info("refit on all %d photos: %s", len(examples), out)
    if config.recipe == "feature_extraction":
        return feature_extraction.train_on(narrowed(feature_extraction.Config, config, out), examples)
    return fine_tune.train_on(narrowed(fine_tune.Config, config, out, resume=False), examples)


def show(result: CrossValidation) -> str:
    """A table of the folds, and what they say together."""
    from rich.table import Table

    primary = PRIMARY[result.together.task]
    table = Table(box=None, pad_edge=False)
    for title in ("fold", "train", "validation", "test", f"{primary} %", "95 %"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("chosen on validation")
    for fold in result.folds:
        low, high = 100 * fold.test.primary_low, 100 * fold.test.primary_high
        table.add_row(
            str(fold.number),
            str(fold.trained),
            str(fold.validated),
            str(fold.test.samples),
            f"{100 * fold.test.primary:.2f}",
            f"{low:.1f}-{high:.1f}",
            fold.chosen,
        )
    spread = result.spread
    lines = [
        f"{primary} {100 * spread.mean:.2f} % (95 % interval {100 * spread.low:.1f} to {100 * spread.high:.1f}), "
        f"deviation over the folds {100 * spread.deviation:.2f} points",
        f"all photos together: {summary(result.together)}",
        *result.notes,
        f"next: python -m export.convert {result.refit}"
        if result.refit
        else "next: the same command with --refit makes a model of all photos",
    ]
    return "\n".join([*table_lines(table, 120), *lines])


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
