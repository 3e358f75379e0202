"""Settings that are better than the defaults, found by trials that share all that is frozen.

`python -m recipes.search --data photos/ --out searches/mine`

Every trial is a training of a recipe, judged on validation photos and, where asked for, by the int8 file's accuracy,
size and latency on this machine. No trial sees a test photo; the model of the best one is made and tested at the end.
"""

import dataclasses
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from edgetl import data, rundir
from edgetl.config import checked, command, to_json
from edgetl.console import log, table_lines
from edgetl.errors import EdgetlError
from edgetl.rundir import RunDir
from edgetl.scores import PRIMARY
from edgetl.search.outcome import Objective, Outcome
from edgetl.search.space import applied
from edgetl.search.study import Method, Plan, Study
from recipes import experiment
from recipes.cross_validate import splits_key
from recipes.experiment import Experiment
from recipes.searching.explore import DATABASE, DIED, TRIALS, explored, figure_of, short, title_of
from recipes.searching.judge import Repeats, Search, excluded, in_words, refuse_none, repeated, table_csv
from recipes.searching.planning import base_settings, needed, planned, settled
from recipes.searching.shapes import Shapes
from recipes.searching.trials import RECIPES, RecipeName, Shared

RECIPE = "search"
PROG = f"python -m recipes.{RECIPE}"
RESULT = "search.json"
TABLE = "trials.csv"
PICTURE = "search.png"
BEST = "best"
SHOWN = 10
"""Trials that the table shows."""


@dataclass(frozen=True)
class Config(Experiment):
    """Search for better settings of a recipe: for accuracy, or for what the device can take as well."""

    recipe: RecipeName = "feature_extraction"
    """What a trial is: a new head on stored features (a second), or fine-tuning (minutes)."""
    method: Method = "tpe"
    """How settings are drawn: tpe learns from the trials before; hyperband as well, and gives many trials few epochs;
    random; grid: all points of --space, in random order."""
    trials: int = field(default=50, metadata={"affects_result": False})
    """How many, those included that are there already; a grid has no more than its points."""
    space: tuple[str, ...] = ()
    """What varies: name=uniform(low,high), loguniform, int, logint or choice(a,b,...), or a .yaml or .json file of
    such. Names are options of the recipe. None: what usually matters, and with latency or size the network as well."""
    fixed: tuple[str, ...] = ()
    """Other options of the recipe for all trials: name=value, such as epochs=8 augment=symmetries."""
    objectives: tuple[Objective, ...] = ("accuracy",)
    """What is sought: accuracy (of validation photos; labels: F1, values: R2), int8_accuracy (of the int8 file),
    latency_ms (of that file on this machine), size_kb. Several: all trials that no other beats in everything."""
    max_latency_ms: float | None = None
    """Longest median of one invocation of the int8 file on this machine, one thread, ms."""
    max_size_kb: float | None = None
    """Largest int8 file, 1000 bytes."""
    prune: bool = True
    """Stop trials that are behind the others; where accuracy alone is sought."""
    ahead: int = 4
    """Trials that may be under way at once. A trial is drawn by what those before these have shown, so results depend
    on this number, and not on how many processes there are."""
    processes: int = field(default=0, metadata={"affects_result": False})
    """Trials at a time on this machine, one thread each; 0: one per core. With --ray the cluster decides."""
    repeats: int = field(default=-1, metadata={"affects_result": False})
    """Other divisions of the photos on which the best settings and the defaults are compared at the end, so that luck
    is not taken for skill; where one accuracy is sought. -1: 5 for feature_extraction, none for fine_tune."""


def main(config: Config) -> Search:
    """Run all trials, or those that an interrupted search has left, and make the model of the best.

    Returns:
        What OUT/search.json holds.

    Raises:
        ConfigError: settings that can't work; or no trial keeps the limits, and which comes nearest.
        EdgetlError: see `edgetl.errors`; trials that were finished stay.
    """
    config = checked(config)
    base = base_settings(config)
    plan = planned(config, base)
    examples = experiment.load_examples(config)
    with rundir.writing(config.out, RECIPE, config) as run:
        shared, splits = prepared(config, base, plan, examples, run)
        # From here on the directory belongs to these settings: nothing above may write into it.
        shared = dataclasses.replace(shared, plan=settled(config, plan, run))
        shapes = shapes_of(config, base, splits.train, run) if needed(config) else None
        study = explored(run, shared, shapes, count=config.trials, ray=config.ray, processes=config.processes)
        refuse_none(study, limits_of(config))
        best = study.best()
        made = model_of(config, base, examples, run, best[0]) if len(config.objectives) == 1 else None
        repeats, told = compared(config, run, shared, shapes, best)
        result = summed_up(config, base, shared, study, repeats, told, made, shapes, run)
        run.write(TABLE, table_csv(study.outcomes))
        draw(run, result)
        run.write(RESULT, to_json(result))
    return result


def shapes_of(config: Config, base: Any, train: data.Examples, run: RunDir) -> Shapes:
    """What measures the networks of the trials."""
    return Shapes(base, train, run.path / "shapes", RECIPES[config.recipe].shape, limits_of(config))


def prepared(config: Config, base: Any, plan: Plan, examples: data.Examples, run: RunDir) -> tuple[Shared, data.Splits]:
    """Make the one feature pass that trials share, and divide the photos."""
    row, spec = experiment.row_and_spec(base)
    wide = dataclasses.replace(base, workers=config.workers, ray=config.ray)
    table = experiment.extract(wide, row, spec, examples, experiment.build_backbone(wide, row, spec))
    splits = experiment.divide(base, table.examples)
    held_out = frozenset(item.id for item in splits.test)
    share = len(splits.validation) / (len(splits.train) + len(splits.validation))
    key, folder = splits_key(splits, table), run.path.resolve() / TRIALS
    return Shared(config.recipe, base, examples, plan, key, table, held_out, share, folder), splits


def limits_of(config: Config) -> dict[str, float]:
    """Largest value of figures, by name."""
    given = {"latency_ms": config.max_latency_ms, "size_kb": config.max_size_kb}
    return {name: limit for name, limit in given.items() if limit is not None}


def compared(
    config: Config, run: RunDir, shared: Shared, shapes: Shapes | None, best: Sequence[Outcome]
) -> tuple[Repeats | None, str]:
    """Compare the best trial with the defaults on other divisions, where that is asked for and means something.

    Returns:
        The figures, and what they say; or None, and why the defaults are no choice, if that is so.
    """
    count = config.repeats
    if count < 0:
        count = 5 if config.recipe == "feature_extraction" else 0
    (sought, *others) = config.objectives
    accuracies = {"accuracy": "", "int8_accuracy": " of the Keras models"}
    if not count or others or sought not in accuracies or best[0].params == shared.plan.first:
        return None, ""
    seeds = [config.seed + number for number in range(1, count + 1)]
    try:
        if shapes and (told := excluded(shapes.figures(shared.base), limits_of(config))):
            return None, told
        found = repeated(run, shared, best[0], seeds, ray=config.ray, processes=config.processes)
    except EdgetlError as error:  # a class too small for another division, say: the search itself is done
        log.warning("not compared with the defaults on other divisions: %s", error)
        return None, ""
    return found, in_words(found, PRIMARY[shared.examples.task] + accuracies[sought])


def model_of(config: Config, base: Any, examples: data.Examples, run: RunDir, best: Outcome) -> RunDir:
    """Train the best settings once more, into a run directory: the first time that test photos are looked at."""
    settings = dataclasses.replace(applied(base, best.params), out=run.path / f"{BEST}-{best.number:04d}", workers=0)
    log.info("trial %d is the best: its model goes to %s", best.number, settings.out)
    return RECIPES[config.recipe].run(settings, examples)


def summed_up(
    config: Config,
    base: Any,
    shared: Shared,
    study: Study,
    repeats: Repeats | None,
    told: str,
    made: RunDir | None,
    shapes: Shapes | None,
    run: RunDir,
) -> Search:
    """Put all that came out into one."""
    best = study.best()
    first = study.outcomes[0].number if study.outcomes[0].params == shared.plan.first else None
    notes = [told] if told else []
    if first is not None and best[0].number == first:
        notes.append("no trial was better than the recipe's defaults")
    notes += [
        f"trial {each.number} failed, for {DIED}; where it ends, trials after it may be others. To try it again delete "
        f"{run.path / DATABASE}, and in {run.path / TRIALS} its file and all later ones"
        for each in study.outcomes
        if each.remark.startswith(DIED)
    ]
    if shapes and shapes.noise and (config.max_latency_ms is not None or "latency_ms" in config.objectives):
        notes.append(f"latencies are noisy: {shapes.noise[0]}")
    return Search(
        recipe=config.recipe,
        data=config.data,
        data_sha256=shared.table.data_sha256,
        task=shared.examples.task,
        objectives=config.objectives,
        outcomes=tuple(study.outcomes),
        best=tuple(each.number for each in best),
        commands={each.number: command_of(config, base, each) for each in best},
        defaults=first,
        importance=study.importance(),
        repeats=repeats,
        notes=tuple(notes),
        device=shapes.devices if shapes else "",
        run=str(made.path) if made else "",
        path=str(run.path),
    )


def command_of(config: Config, base: Any, outcome: Outcome) -> str:
    """What makes the model of a trial."""
    from export.reporting.origins import recipe_words

    recipe = RECIPES[config.recipe]
    settings = dataclasses.replace(applied(base, outcome.params), out=config.out / f"{BEST}-{outcome.number:04d}")
    usual = recipe.config(config.data, config.out)
    names = [each.name for each in fields(recipe.config)]
    said = {n: getattr(settings, n) for n in names if n in ("data", "out") or getattr(settings, n) != getattr(usual, n)}
    return " ".join(recipe_words(said, config.recipe))


def draw(run: RunDir, result: Search) -> None:
    """Write the picture of the search."""
    from edgetl.search.plots import search_picture

    run.write(
        PICTURE,
        search_picture(result.outcomes, result.objectives, result.best, result.importance, PRIMARY[result.task]),
    )


def show(result: Search) -> str:
    """The best trials, what the knobs matter, and what to do next."""
    from rich.table import Table

    more = result.objectives[0] in ("accuracy", "int8_accuracy")
    there = [each for each in result.outcomes if each.state == "complete" and result.objectives[0] in each.figures]
    ranked = sorted(there, key=lambda each: each.figures[result.objectives[0]] * (-1 if more else 1))
    if len(result.objectives) > 1:
        ranked = [each for each in ranked if each.number in result.best]
    knobs = [name for name in result.outcomes[0].params if len({o.params[name] for o in result.outcomes}) > 1]
    figures = list(dict.fromkeys(name for each in ranked for name in each.figures))
    table = Table(box=None, pad_edge=False)
    for title in ("trial", *(title_of(name, result.task) for name in figures), *knobs):
        table.add_column(title, justify="right", no_wrap=True)
    for each in ranked[:SHOWN]:
        name = f"{each.number}{' (defaults)' if each.number == result.defaults else ''}"
        values = [short(each.params[knob]) for knob in knobs]
        table.add_row(name, *(figure_of(figure, each.figures[figure]) for figure in figures), *values)
    states = Counter(each.state for each in result.outcomes if each.state != "complete")
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    lines = [*table_lines(table, 160), f"{len(result.outcomes)} trials{f', {told}' if told else ''}"]
    if result.device:
        lines.append(f"latencies: {result.device}")
    if result.importance:
        lines.append("what matters: " + ", ".join(f"{knob} {share:.0%}" for knob, share in result.importance.items()))
    lines += result.notes
    lines += [f"trial {number}: {result.commands[number]}" for number in result.best[:SHOWN]]
    lines.append(
        f"next: python -m export.convert {shlex.quote(result.run)}" if result.run else "next: run one of these commands"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
