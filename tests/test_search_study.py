"""A study follows from the seed and from trials before, whatever ran at once, was killed, or came back first."""

import contextlib
import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest

from edgetl.search import space
from edgetl.search.outcome import Objective, Outcome
from edgetl.search.study import Judge, Method, Plan, Study

KNOBS = space.read(["rate=loguniform(1e-5,1e-1)", "dropout=uniform(0,0.5)", "size=choice(16,32,64)", "blocks=int(1,5)"])
GRID = space.read(["rate=loguniform(1e-4,1e-2,3)", "size=choice(16,32)"])
EPOCHS = 9
PARAMS: dict[str, space.Value] = {"rate": 1e-3, "dropout": 0.2, "size": "32", "blocks": 2}


def plan_of(
    method: Method = "tpe",
    *,
    objectives: tuple[Objective, ...] = ("accuracy",),
    seed: int = 0,
    ahead: int = 4,
    prune: bool = True,
    first: dict[str, space.Value] | None = None,
) -> Plan:
    return Plan(GRID if method == "grid" else KNOBS, method, objectives, seed, ahead, EPOCHS, prune, first)


def curve(params: dict[str, space.Value]) -> list[float]:
    """What a training with these settings would reach, epoch by epoch."""
    end = 1 - abs(math.log10(float(params["rate"])) + 3) / 4 - abs(float(params.get("dropout", 0.2)) - 0.2)
    return [end * (1 - 0.5**epoch) for epoch in range(1, EPOCHS + 1)]


def tried(plan: Plan, number: int, params: dict[str, space.Value], before: Sequence[Outcome]) -> Outcome:
    judge = Judge(plan, number, params, before)
    stopped = any(judge.hopeless(figure) for figure in curve(params))
    figures = {"accuracy": judge.curve[-1], "latency_ms": float(params["size"])}
    state = "pruned" if stopped else "complete"
    return Outcome(number, params, state, "photos", figures, tuple(judge.curve), judge.rungs)


def run(plan: Plan, database: Path, count: int, before: Sequence[Outcome] = (), *, window: int = 1) -> Study:
    """Have `window` trials under way at once, each judged by the process that would train it, and told in turn."""
    study, waiting = Study(plan, before, database), {}
    asked = len(before)
    while len(study.outcomes) < count:
        while asked < count and len(waiting) < window:
            waiting[asked] = tried(plan, asked, study.ask(asked), study.before(asked))
            asked += 1
        study.tell(waiting.pop(len(study.outcomes)))
    return study


@pytest.mark.parametrize(
    "method", ["tpe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grid", "random", "hyperband"))]
)
def test_a_study_does_not_depend_on_how_many_run_at_once_or_on_being_killed(tmp_path: Path, method: Method) -> None:
    plan = plan_of(method)
    count = plan.most or 24
    one = run(plan, tmp_path / "one.db", count)
    four = run(plan, tmp_path / "four.db", count, window=4)
    killed = run(plan, tmp_path / "killed.db", count // 2, window=3)
    resumed = run(plan, tmp_path / "killed.db", count, killed.outcomes, window=2)
    assert one.outcomes == four.outcomes == resumed.outcomes
    other = run(Plan(**(vars(plan) | {"seed": 1})), tmp_path / "other.db", count)
    assert [each.params for each in other.outcomes] != [each.params for each in one.outcomes]


def test_a_grid_tries_every_point_once(tmp_path: Path) -> None:
    plan = plan_of("grid")
    assert plan.most == 6
    found = [each.params for each in run(plan, tmp_path / "study.db", 6).outcomes]
    assert len({tuple(params.items()) for params in found}) == 6


@pytest.mark.slow
def test_tpe_learns_what_random_search_does_not(tmp_path: Path) -> None:
    means = {}
    for method in ("random", "tpe"):
        scores = []
        for seed in range(3):
            outcomes = run(plan_of(method, seed=seed, prune=False), tmp_path / f"{method}{seed}.db", 40).outcomes
            scores += [each.figures["accuracy"] for each in outcomes[20:]]
        means[method] = sum(scores) / len(scores)
    assert means["tpe"] > means["random"] + 0.1


def test_hopeless_trials_are_stopped_and_good_ones_are_not(tmp_path: Path) -> None:
    outcomes = run(plan_of("random"), tmp_path / "study.db", 30).outcomes
    ends = {
        state: [curve(each.params)[-1] for each in outcomes if each.state == state] for state in ("pruned", "complete")
    }
    assert len(ends["pruned"]) >= 5
    assert max(ends["pruned"]) < max(ends["complete"])
    unpruned = run(plan_of("random", prune=False), tmp_path / "all.db", 30).outcomes
    assert {each.state for each in unpruned} == {"complete"}
    assert [each.params for each in unpruned] == [each.params for each in outcomes]


def test_hyperband_gives_most_trials_few_epochs(tmp_path: Path) -> None:
    outcomes = run(plan_of("hyperband"), tmp_path / "study.db", 30).outcomes
    # Of nine epochs one bracket stops most trials after the first, one after the third, and one stops none.
    assert sum(len(each.curve) for each in outcomes) < 0.8 * 30 * EPOCHS
    assert any(each.rungs for each in outcomes)


def test_the_first_trial_is_that_of_the_defaults(tmp_path: Path) -> None:
    first = {"rate": 1e-3, "dropout": 0.2, "size": "32", "blocks": 2}
    assert run(plan_of(first=first), tmp_path / "study.db", 3).outcomes[0].params == first


def test_optunas_own_tools_read_the_study(tmp_path: Path) -> None:
    study = run(plan_of(), tmp_path / "a folder" / "study.db", 5) if (tmp_path / "a folder").mkdir() is None else None
    loaded = optuna.load_study(study_name="edgetl", storage=f"sqlite:///{tmp_path / 'a folder' / 'study.db'}")
    assert [trial.params for trial in loaded.trials] == [each.params for each in study.outcomes]
    assert loaded.best_trial.number == study.best()[0].number
    assert loaded.metric_names == ["accuracy"]


def test_a_damaged_database_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    outcomes = run(plan_of(), path, 5).outcomes
    path.write_bytes(b"no database at all" * 100)
    run(plan_of(), path, 6, outcomes)
    assert len(optuna.load_study(study_name="edgetl", storage=f"sqlite:///{path}").trials) == 6


def test_several_objectives_give_a_front_that_no_trial_beats(tmp_path: Path) -> None:
    study = run(plan_of(objectives=("accuracy", "latency_ms")), tmp_path / "study.db", 20)
    assert {each.state for each in study.outcomes} == {"complete"}  # nothing tells which of two figures is hopeless
    front = study.best()
    for each in front:
        for other in study.outcomes:
            better = other.figures["accuracy"] > each.figures["accuracy"]
            faster = other.figures["latency_ms"] < each.figures["latency_ms"]
            no_worse = other.figures["accuracy"] >= each.figures["accuracy"]
            no_slower = other.figures["latency_ms"] <= each.figures["latency_ms"]
            assert not ((better and no_slower) or (faster and no_worse))


def test_what_exceeds_a_limit_is_never_the_best(tmp_path: Path) -> None:
    study = Study(plan_of("random", prune=False), (), tmp_path / "study.db")
    for number in range(12):
        params = study.ask(number)
        excess = {"latency_ms": float(params["size"]) / 16 - 1}  # at most 16
        figures = {"accuracy": float(params["size"])}  # the larger, the better
        study.tell(Outcome(number, params, "complete", "photos", figures, excess=excess))
    assert {each.params["size"] for each in study.outcomes} > {"16"}
    assert study.best()[0].params["size"] == "16"
    loaded = optuna.load_study(study_name="edgetl", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert loaded.best_trial.params["size"] == "16"  # Optuna's own tools know the limit as well


def test_a_trial_is_not_stopped_by_one_curve_and_trials_without_any(tmp_path: Path) -> None:
    plan = plan_of("random")
    heads = [Outcome(n, {**PARAMS}, "complete", "photos", {"accuracy": 0.9}) for n in range(5)]
    one = Outcome(5, {**PARAMS}, "complete", "photos", {"accuracy": 0.9}, (0.9,) * EPOCHS)
    judge = Judge(plan, 9, PARAMS, [*heads, one])
    assert not any(judge.hopeless(0.5) for _ in range(EPOCHS))


def test_a_database_that_is_locked_does_not_end_the_search(tmp_path: Path) -> None:
    run(plan_of(), tmp_path / "study.db", 2)
    before = (tmp_path / "study.db").read_bytes()
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        study = run(plan_of(), tmp_path / "study.db", 3)
    assert len(study.outcomes) == 3
    assert (tmp_path / "study.db").read_bytes() == before


def test_what_the_knobs_matter(tmp_path: Path) -> None:
    study = run(plan_of("random", prune=False), tmp_path / "study.db", 40)
    found = study.importance()
    assert next(iter(found)) in ("rate", "dropout")
    assert sum(found.values()) == pytest.approx(1)
    assert not run(plan_of(), tmp_path / "one.db", 1).importance()


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_the_widest_ranges_can_be_drawn_from_and_explained(tmp_path: Path, method: Method) -> None:
    knobs = space.read(["a=uniform(-1e30,1e30)", "b=int(0,1e30)", "c=loguniform(1e-30,1e30)"])
    plan = Plan(knobs, method, ("accuracy",), 0, 1, EPOCHS, False, None)
    study = Study(plan, (), tmp_path / "study.db")
    for number in range(12):
        study.tell(Outcome(number, study.ask(number), "complete", "photos", {"accuracy": number * 7 % 11 / 11}))
    assert set(study.importance()) == {"a", "b", "c"}
