"""What came of a search: the best trial, what the knobs matter, and whether it is more than luck."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetl.console import log, progress
from edgetl.cross_validation import spread
from edgetl.errors import ConfigError, RunError
from edgetl.outputs import Task
from edgetl.parallel import workers
from edgetl.rundir import RunDir, read_json, sealed
from edgetl.search.outcome import Objective, Outcome
from edgetl.search.study import Study
from recipes.searching import trials
from recipes.searching.trials import RecipeName, Shared

UNITS = {"latency_ms": "ms", "size_kb": "kB"}
"""Of figures that are no shares."""


@dataclass(frozen=True)
class Repeats:
    """The best settings and the recipe's defaults on other divisions of the photos that are not held out."""

    seeds: tuple[int, ...]
    best: tuple[float, ...]
    """Validation figure for each seed, fractions."""
    defaults: tuple[float, ...]
    gain: float
    """Mean of the differences; positive: the best settings are better."""
    low: float
    high: float
    """95 % interval of the gain; see `gain_of`."""


@dataclass(frozen=True)
class Search:
    """What `search.json` holds."""

    recipe: RecipeName
    data: str
    data_sha256: str
    task: Task
    objectives: tuple[Objective, ...]
    outcomes: tuple[Outcome, ...]
    """Of all trials, by number."""
    best: tuple[int, ...]
    """Number of the best trial; of several objectives, of all that no other beats."""
    commands: dict[int, str]
    """What makes the model of each of these, by number."""
    defaults: int | None
    """Trial of the recipe's defaults; None where the space does not hold them."""
    importance: dict[str, float]
    """Share of the first objective's variance that each knob explains, from the largest down."""
    repeats: Repeats | None
    notes: tuple[str, ...]
    device: str
    """What latencies were measured on; empty where none were."""
    run: str
    """Run directory of the best trial's model; empty where there are several best."""
    path: str
    """Where this is written."""
    schema_version: int = 1


@dataclass(frozen=True)
class _Repeat:
    """One training on another division, as it is stored."""

    splits_sha256: str
    figure: float
    schema_version: int = 1


def repeated(
    run: RunDir, shared: Shared, best: Outcome, seeds: Sequence[int], *, ray: str = "", processes: int = 0
) -> Repeats:
    """Train the best settings and the defaults on other divisions of the photos, test photos left out.

    The best of fifty trials on some hundred photos is partly the luckiest of them; most photos that validate here did
    not choose it.

    Args:
        run: the search's directory; figures are kept in it.
        shared: of the search.
        best: its best trial.
        seeds: of the divisions, at least 2.
        ray: address of a cluster; empty: this machine.
        processes: of this machine; 0: one per core.
    """
    folder = run.path / "repeats"
    folder.mkdir(exist_ok=True)
    # Keys are names of files: the defaults of a search never change, its best trial may once there are more.
    sides: dict[str, Any] = {f"trial{best.number:04d}": best.params, "defaults": {}}
    wanted = [(name, seed) for seed in seeds for name in sides]
    found: dict[tuple[str, int], float] = {}
    for name, seed in wanted:
        kept = _kept(folder / f"{name}-{seed}.json")
        if kept and kept.splits_sha256 == shared.splits_sha256:
            found[name, seed] = kept.figure
    left = [each for each in wanted if each not in found]
    if left:
        tasks = [(name, sides[name], seed) for name, seed in left]
        with (
            progress("repeats", len(wanted), len(found)) as bar,
            workers(shared, ray=ray, processes=processes) as pool,
        ):
            for place, figure in pool.map(trials.run_repeat, tasks):
                name, seed = left[place]
                run.write(f"repeats/{name}-{seed}.json", sealed(_Repeat(shared.splits_sha256, figure)))
                found[name, seed] = figure
                bar.advance()
    ours, theirs = (tuple(found[name, seed] for seed in seeds) for name in sides)
    return Repeats(tuple(seeds), ours, theirs, *gain_of(ours, theirs, shared.validation_share))


def _kept(path: Path) -> _Repeat | None:
    try:
        return read_json(_Repeat, path) if path.is_file() else None
    except RunError as error:
        log.warning("%s; it is done again", error)
        return None


def gain_of(best: Sequence[float], defaults: Sequence[float], validation_share: float) -> tuple[float, float, float]:
    """Mean of the differences of pairs, and its 95 % interval, which knows that divisions share most of their photos.

    Args:
        best: figure for each division.
        defaults: likewise.
        validation_share: of the photos of a division, the rest of which trained.
    """
    found = spread(np.subtract(best, defaults).tolist(), validation_share, 1 - validation_share)
    return found.mean, found.low, found.high


def in_words(repeats: Repeats, primary: str) -> str:
    """What the repeats say, in one line."""
    told = (
        f"on {len(repeats.seeds)} other divisions the best settings are {100 * repeats.gain:+z.2f} points of {primary} "
        f"from the defaults (95 % interval {100 * repeats.low:+z.2f} to {100 * repeats.high:+z.2f})"
    )
    if repeats.low > 0:
        return f"{told}: better than luck explains"
    return f"{told}: {'worse' if repeats.high < 0 else 'within the noise'}; the defaults do as well"


def excluded(figures: dict[str, float], limits: dict[str, float]) -> str:
    """Why the defaults are no choice, in one line; empty where they keep the limits.

    Args:
        figures: of the defaults' network; empty where it has no int8 form.
        limits: largest value of figures, by name.
    """
    if not figures:
        return "the defaults have no int8 form"
    beyond = {name: limit for name, limit in limits.items() if figures[name] > limit}
    exceeded = ", ".join(f"{figures[name]:.4g} {UNITS[name]}" for name in beyond)
    return f"the defaults exceed {options(beyond)}: {exceeded}" if beyond else ""


def options(limits: dict[str, float]) -> str:
    """Limits as a command line says them."""
    return " ".join(f"--max-{name.replace('_', '-')} {limit:g}" for name, limit in limits.items())


def refuse_none(study: Study, limits: dict[str, float]) -> None:
    """Make sure that a trial came through.

    Args:
        study: with all its trials.
        limits: largest value of figures, by name.

    Raises:
        ConfigError: none that could be trained keeps all limits, and which comes nearest; or none could be trained.
    """
    if study.best():
        return
    count = len(study.outcomes)
    failed = [each for each in study.outcomes if each.state == "failed"]
    beyond = [each for each in study.outcomes if each.state == "infeasible" and each.figures]
    if not beyond:
        remark = next((each.remark for each in [*failed, *study.outcomes] if each.remark), "")
        raise ConfigError(f"none of {count} trials could be completed: {remark}")
    wanted = f"all of {options(limits)}" if len(limits) > 1 else options(limits)
    kept = [each for each in failed if each.excess and each.feasible]
    said = f"none of {count} trials keeps {wanted}"
    if kept:
        said = f"{wanted}: kept by {len(kept)} of {count} trials, but none could be trained ({kept[0].remark})"
    nearest = min(beyond, key=lambda each: max(each.excess.values()))
    figures = ", ".join(f"{nearest.figures[name]:.4g} {UNITS[name]}" for name in limits)
    params = " ".join(f"{key}={value}" for key, value in nearest.params.items())
    raise ConfigError(
        f"{said}; the nearest{' of the others' if kept else ''}, trial {nearest.number}: {figures} ({params}). With "
        "another --out, raise what it exceeds, or offer smaller networks: --space backbone=choice(...) "
        "image_size=choice(...)"
    )


def table_csv(outcomes: Sequence[Outcome]) -> str:
    """All trials as a table for spreadsheets."""
    knobs = list(outcomes[0].params)
    figures = list(dict.fromkeys(name for each in outcomes for name in each.figures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", *knobs, *figures, "epochs", "seconds", "remark"])
    for each in outcomes:
        values = [each.params[name] for name in knobs] + [each.figures.get(name, "") for name in figures]
        writer.writerow([each.number, each.state, *values, len(each.curve), f"{each.seconds:.2f}", each.remark])
    return text.getvalue()
