"""What a search costs and brings: `python -m benchmarks.search`, after `make demo` has stored elpv's features.

Fifty trials of head settings on stored features, timed; per seed, which also makes the split, the best settings found
against the recipe's defaults, on the validation photos that chose them and on other divisions; and the
trials per minute of a Ray cluster of two nodes of one core against one of one node, with the same outcomes.
"""

import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.local_cluster import local_cluster
from edgetl import rundir
from edgetl.config import command
from edgetl.search.outcome import Outcome
from edgetl.search.study import Method
from recipes import experiment, search
from recipes.searching.explore import explored
from recipes.searching.judge import Repeats, repeated
from recipes.searching.planning import base_settings, planned
from recipes.searching.trials import RecipeName


@dataclass(frozen=True)
class Config:
    """Time searches, and compare what they find with the defaults."""

    data: str = "elpv"
    """Photos."""
    recipe: RecipeName = "feature_extraction"
    """What a trial is."""
    fixed: tuple[str, ...] = ()
    """See `recipes.search`."""
    space: tuple[str, ...] = ()
    """See `recipes.search`."""
    method: Method = "tpe"
    """See `recipes.search`."""
    trials: int = 50
    """Of each search."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of searches that are compared with the defaults."""
    repeats: int = 5
    """Other divisions for each of them; 0: none."""
    cluster_trials: int = 40
    """Random ones, on one node and on two; 0: no cluster."""
    json: Path | None = None
    """Also write the raw figures here."""


@dataclass(frozen=True)
class Found:
    """One search. Figures are the primary ones of the task, fractions, of validation photos."""

    seed: int
    seconds: float
    """Of all trials, with the start of the processes; the feature pass was made before."""
    pruned: int
    best: float
    defaults: float
    repeats: Repeats | None


@dataclass(frozen=True)
class Cluster:
    """The same random trials on one node and on two."""

    trials: int
    one_node_s: float
    two_nodes_s: float
    same_as_here: bool
    """Whether all outcomes are those of local processes, bit by bit."""

    @property
    def speedup(self) -> float:
        """Trials per minute of two nodes against those of one."""
        return self.one_node_s / self.two_nodes_s


@dataclass(frozen=True)
class Figures:
    """All that was measured."""

    found: list[Found]
    cluster: Cluster | None


def main(config: Config) -> Figures:
    """Search once per seed, then on clusters."""
    figures = Figures(
        [found(config, seed) for seed in config.seeds], cluster(config) if config.cluster_trials else None
    )
    if config.json:
        config.json.write_text(json.dumps(asdict(figures), indent=2))
    return figures


def settings(config: Config, out: Path, **changes: object) -> search.Config:
    """A search of this benchmark."""
    usual = search.Config(
        config.data,
        out,
        recipe=config.recipe,
        method=config.method,
        trials=config.trials,
        fixed=config.fixed,
        space=config.space,
    )
    return dataclasses.replace(usual, **changes)  # type: ignore[arg-type]


def found(config: Config, seed: int) -> Found:
    """Search with one seed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "search"
        wanted = settings(config, out, seed=seed)
        base = base_settings(wanted)
        plan = planned(wanted, base)
        examples = experiment.load_examples(wanted)
        with rundir.writing(out, search.RECIPE, wanted) as run:
            shared, _ = search.prepared(wanted, base, plan, examples, run)
            begin = time.perf_counter()
            study = explored(run, shared, None, count=config.trials)
            seconds = time.perf_counter() - begin
            best, first = study.best()[0], study.outcomes[0]
            seeds = [100 + seed * 100 + number for number in range(config.repeats)]
            repeats = repeated(run, shared, best, seeds) if seeds and best.number != first.number else None
    pruned = sum(each.state == "pruned" for each in study.outcomes)
    row = Found(seed, seconds, pruned, best.figures["accuracy"], first.figures["accuracy"], repeats)
    print(row, file=sys.stderr, flush=True)
    return row


def cluster(config: Config) -> Cluster:
    """Do the same random trials on one node, on two, and here."""
    seconds, outcomes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for nodes in (1, 2):
            with local_cluster(nodes) as address:
                taken, done = trials_on(config, Path(folder) / f"nodes{nodes}", address)
                seconds.append(taken)
                outcomes.append(done)
        _, here = trials_on(config, Path(folder) / "here", "")
    return Cluster(config.cluster_trials, seconds[0], seconds[1], outcomes[0] == outcomes[1] == here)


def trials_on(config: Config, out: Path, address: str) -> tuple[float, list[Outcome]]:
    """Seconds of the trials on a cluster, or here, and their outcomes without the time that each took."""
    wanted = settings(config, out, method="random", trials=config.cluster_trials, prune=False)
    base = base_settings(wanted)
    plan = planned(wanted, base)
    examples = experiment.load_examples(dataclasses.replace(wanted, ray=address))
    with rundir.writing(out, search.RECIPE, wanted) as run:
        shared, _ = search.prepared(wanted, base, plan, examples, run)
        begin = time.perf_counter()
        study = explored(run, shared, None, count=config.cluster_trials, ray=address)
        seconds = time.perf_counter() - begin
    shutil.rmtree(out)
    return seconds, [dataclasses.replace(each, seconds=0.0) for each in study.outcomes]


def show(figures: Figures) -> str:
    """Tables in words."""
    lines = [_line(each) for each in figures.found]
    if len(figures.found) > 1:
        seconds = [each.seconds for each in figures.found]
        gains = [each.best - each.defaults for each in figures.found]
        lines.append(
            f"all seeds: {statistics.median(seconds):.0f} s ({min(seconds):.0f}-{max(seconds):.0f}); best less "
            f"defaults {_range(gains)} on the photos that chose it"
        )
        if pairs := [each.repeats.gain for each in figures.found if each.repeats]:
            lines.append(f"on other divisions {_range(pairs)}, means of {len(pairs)} searches")
    if figures.cluster:
        told = "the same outcomes as here" if figures.cluster.same_as_here else "OTHER outcomes"
        lines.append(
            f"{figures.cluster.trials} trials: one node {figures.cluster.one_node_s:.1f} s, two "
            f"{figures.cluster.two_nodes_s:.1f} s, {figures.cluster.speedup:.2f} x; {told}"
        )
    return "\n".join(lines)


def _line(each: Found) -> str:
    told = (
        f"; on other divisions {_points(each.repeats.gain, each.repeats.low, each.repeats.high)}"
        if each.repeats
        else ""
    )
    return (
        f"seed {each.seed}: {each.seconds:.1f} s, {each.pruned} pruned; best {100 * each.best:.2f} %, defaults "
        f"{100 * each.defaults:.2f} %{told}"
    )


def _range(gains: list[float]) -> str:
    return _points(statistics.mean(gains), min(gains), max(gains))


def _points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m benchmarks.search", show=show))
