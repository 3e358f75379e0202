"""What a search does, from what its command says: the settings that trials share, and the space they are drawn from."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from edgetl.console import log
from edgetl.errors import ConfigError, RunError
from edgetl.rundir import RunDir, read_json, sealed
from edgetl.search import space
from edgetl.search.space import Value, applied
from edgetl.search.study import Plan
from recipes import experiment
from recipes.experiment import Experiment
from recipes.searching.shapes import device_space
from recipes.searching.trials import RECIPES

if TYPE_CHECKING:
    from recipes.search import Config

SPACE = "space.json"
OF_ALL = frozenset(each.name for each in fields(Experiment)) - {"backbone", "image_size", "resize", "width"}
"""Settings of every recipe that can't be searched: they say what is learned, of which photos, and where things lie."""


@dataclass(frozen=True)
class Space:
    """What `space.json` holds: what the search began with."""

    knobs: tuple[space.Knob, ...]
    schema_version: int = 1


def base_settings(config: "Config") -> Any:
    """The recipe's settings that all trials share.

    Raises:
        ConfigError: names the option that can't work.
    """
    check(config)
    recipe = RECIPES[config.recipe]
    shared = {each.name: getattr(config, each.name) for each in fields(Experiment)}
    settings = experiment.elsewhere(recipe.config(**shared))
    names = {each.name for each in fields(recipe.config)} - OF_ALL - recipe.barred
    given = fixed(config)
    for name in given:
        if name not in names:
            there = ", ".join(sorted(names))
            raise ConfigError(f"--fixed {name}: {config.recipe} has no such setting. There are: {there}")
    try:
        settings = applied(settings, given)
        recipe.check(settings)
    except ConfigError as error:
        raise ConfigError(f"--fixed {' '.join(config.fixed)}: {error}" if given else str(error)) from None
    return settings


def fixed(config: "Config") -> dict[str, Value]:
    """What --fixed says, by name of the setting.

    Raises:
        ConfigError: it can't be read, or names a setting twice.
    """
    given: dict[str, Value] = {}
    for text in config.fixed:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ConfigError(f"--fixed {text}: not understood. Write name=value, such as epochs=8")
        if name in given:
            raise ConfigError(f"--fixed: {name} is there twice. Keep one")
        given[name] = value.strip()
    return given


def check(config: "Config") -> None:
    """Refuse settings of the search itself that can't work.

    Raises:
        ConfigError: names the option, what it got, and what it takes.
    """
    experiment.check_common(config)
    for name, number in [("trials", config.trials), ("ahead", config.ahead)]:
        if number < 1:
            raise ConfigError(f"--{name} {number}: must be at least 1")
    if config.processes < 0 or config.repeats < -1:
        raise ConfigError(
            f"--processes {config.processes} --repeats {config.repeats}: need at least 0 processes (0 chooses) and -1 "
            "repeats (-1 chooses)"
        )
    if config.repeats == 1:
        raise ConfigError("--repeats 1: tells nothing of luck. Use at least 2, or 0 for none")
    for name, limit in (("max-latency-ms", config.max_latency_ms), ("max-size-kb", config.max_size_kb)):
        if limit is not None and not 0 < limit < float("inf"):
            raise ConfigError(f"--{name} {limit}: must be positive")
    if not config.objectives or len(set(config.objectives)) < len(config.objectives):
        raise ConfigError(f"--objectives {' '.join(config.objectives)}: name each of them once, and at least one")
    if config.method == "grid" and not config.space:
        raise ConfigError("--method grid: needs to know its points. Write --space name=choice(a,b,...) for each knob")


def needed(config: "Config") -> bool:
    """Whether size and latency of networks must be known."""
    wanted = {"latency_ms", "size_kb"} & set(config.objectives)
    return bool(wanted) or config.max_latency_ms is not None or config.max_size_kb is not None


def default_space(config: "Config", base: Any) -> tuple[space.Knob, ...]:
    """What varies where nobody says otherwise: what `--fixed` sets does not."""
    given = fixed(config)
    texts = [*RECIPES[config.recipe].space, *(device_space(base) if needed(config) else ())]
    return tuple(knob for knob in space.read(texts) if knob.name not in given)


def planned(config: "Config", base: Any) -> Plan:
    """Read the space, check it against the recipe, and say what the study does.

    Raises:
        ConfigError: names the knob.
    """
    recipe, knobs = RECIPES[config.recipe], space.read(config.space) or default_space(config, base)

    def refuse(settings: Any) -> None:
        recipe.check(settings)
        experiment.row_and_spec(settings)

    if both := sorted(fixed(config).keys() & {knob.name for knob in knobs}):
        raise ConfigError(f"--fixed and --space both have {', '.join(both)}. Keep one")
    space.check(
        knobs,
        base,
        refuse,
        barred=OF_ALL | recipe.barred,
        why="it says what is learned, of which photos, or where things lie",
    )
    names = {knob.name for knob in knobs}
    if names and names <= recipe.of_mlp and base.head == "linear":
        raise ConfigError(
            f"--space {' '.join(sorted(names))}: all trials would be the same, for a linear head has none of that. It "
            "works with head=mlp: add --fixed head=mlp"
        )
    first = None if config.method == "grid" else first_of(base, knobs)
    epochs = max([int(end) for knob in knobs if knob.name == "epochs" for end in knob.ends()] or [base.epochs])
    plan = Plan(tuple(knobs), config.method, config.objectives, config.seed, config.ahead, epochs, config.prune, first)
    if plan.most is not None and plan.most > config.trials:
        log.info("the grid has %d points, of which --trials %d are tried", plan.most, config.trials)
    return plan


def settled(config: "Config", plan: Plan, run: RunDir) -> Plan:
    """The plan with the knobs that the search began with: a default space may change with the weights that are here.

    Raises:
        RunError: a space that was named is another one now.
    """
    if not (run.path / SPACE).is_file():
        run.write(SPACE, sealed(Space(plan.knobs)))
    began = read_json(Space, run.path / SPACE).knobs
    if config.space and began != plan.knobs:
        raise RunError(
            f"{run.path}: began with another --space ({run.path / SPACE}). Restore it, or choose another --out"
        )
    return (
        plan
        if began == plan.knobs
        else dataclasses.replace(plan, knobs=began, first=first_of(base_settings(config), began))
    )


def first_of(base: Any, knobs: Sequence[space.Knob]) -> dict[str, Value] | None:
    """The recipe's defaults as a trial; None where the space does not hold them."""
    usual = {knob.name: getattr(base, knob.name) for knob in knobs}
    if not all(knob.holds(usual[knob.name]) for knob in knobs):
        return None
    return {knob.name: space.written(usual[knob.name]) if knob.choices else usual[knob.name] for knob in knobs}
