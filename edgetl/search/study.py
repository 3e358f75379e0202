"""A study by Optuna in which every trial follows from the seed and from trials before it, and from nothing else.

Trial n is drawn by what trials 0 to n - ahead have shown; those between are known to be under way. So `ahead`
trials can run at once, on however many processes, in whatever order they end, killed and resumed or not: the study
comes out the same. Whether a trial is hopeless is judged by the same trials as it was drawn by.
"""

import datetime
import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgetl.console import log
from edgetl.search.outcome import MORE_IS_BETTER, Objective, Outcome
from edgetl.search.space import Knob, Value, grid_size

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

Method = Literal["grid", "random", "tpe", "hyperband"]
NAME = "edgetl"
_STARTUP = 10
"""Random trials before TPE models what it has seen: its authors' own number."""
_WAIT = 5
"""Trials with a figure of the same epoch before their median stops any."""


@dataclass(frozen=True)
class Plan:
    """What a study does; picklable, as processes that judge trials need it."""

    knobs: tuple[Knob, ...]
    method: Method
    objectives: tuple[Objective, ...]
    seed: int
    ahead: int
    """Trials that may be under way at once."""
    epochs: int
    """Of a trial that is not stopped."""
    prune: bool
    """Whether hopeless trials are stopped."""
    first: dict[str, Value] | None
    """Trial 0, where it is not drawn."""

    @property
    def prunes(self) -> bool:
        """Whether trials are stopped: only where one figure is sought, and its curve tells it."""
        return self.prune and self.objectives[0] in ("accuracy", "int8_accuracy") and len(self.objectives) == 1

    @property
    def most(self) -> int | None:
        """Trials after which there is nothing left to try; None: never."""
        return grid_size(self.knobs) if self.method == "grid" else None

    @property
    def directions(self) -> "list[Literal['maximize', 'minimize']]":
        """Of the objectives, as Optuna calls them."""
        return ["maximize" if MORE_IS_BETTER[each] else "minimize" for each in self.objectives]

    def distributions(self) -> dict[str, Any]:
        """What Optuna draws from, by knob."""
        return {knob.name: knob.distribution(grid=self.method == "grid") for knob in self.knobs}

    def study(self, number: int) -> "optuna.Study":
        """An empty study in memory that draws and judges trial `number` as this plan says."""
        import optuna

        optuna.logging.set_verbosity(logging.WARNING)
        return optuna.create_study(
            study_name=NAME,  # by which Hyperband deals trials out to its brackets
            directions=self.directions,
            sampler=self._sampler(number),
            pruner=self._pruner(),
        )

    def _sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        from optuna import samplers

        if self.method == "grid":  # the order of its points must be the same for all trials
            return samplers.GridSampler({knob.name: knob.grid() for knob in self.knobs}, seed=self.seed)
        digest = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "little")
        if self.method == "random":
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)

    def _pruner(self) -> "optuna.pruners.BasePruner":
        from optuna import pruners

        if not self.prunes:
            return pruners.NopPruner()
        if self.method == "hyperband":
            return pruners.HyperbandPruner(max_resource=self.epochs)
        return pruners.MedianPruner(
            n_startup_trials=_WAIT, n_warmup_steps=max(1, self.epochs // 10), n_min_trials=_WAIT
        )


class Judge:
    """Says after each epoch of a trial whether it is hopeless. Lives in the process that trains."""

    def __init__(self, plan: Plan, number: int, params: dict[str, Value], before: Sequence[Outcome]) -> None:
        """Know the trial and what it is compared with.

        Args:
            plan: of the study.
            number: of the trial.
            params: of the trial.
            before: outcomes of all trials that it was drawn by, from 0 on.
        """
        self.curve: list[float] = []
        self._trial = None
        if plan.prunes:
            study = plan.study(number)
            _fill(study, plan, before, [None] * (number - len(before)))
            study.enqueue_trial(params)
            self._trial = study.ask(plan.distributions())
            self._study = study

    def hopeless(self, figure: float) -> bool:
        """Note the validation figure of the next epoch; say whether to stop."""
        self.curve.append(figure)
        if self._trial is None:
            return False
        self._trial.report(figure, len(self.curve))
        return bool(self._trial.should_prune())

    @property
    def rungs(self) -> dict[str, float]:
        """What the pruner noted for trials to come."""
        if self._trial is None:
            return {}
        noted = self._study.get_trials(deepcopy=False)[-1].system_attrs
        return {key: value for key, value in noted.items() if key.startswith("completed_rung_")}


class Study:
    """All trials so far, and the next one to try."""

    def __init__(self, plan: Plan, outcomes: Sequence[Outcome], database: Path) -> None:
        """Take up a study.

        Args:
            plan: what it does.
            outcomes: of trials 0, 1, ... without a gap.
            database: SQLite file for Optuna's own tools; made if missing, filled up if behind.
        """
        self.plan = plan
        self.outcomes: list[Outcome] = []
        self._asked: list[dict[str, Value]] = []
        self._mirror: optuna.Study | None = _opened(plan, database)
        for outcome in outcomes:
            self.tell(outcome)

    def ask(self, number: int) -> dict[str, Value]:
        """Draw trial `number`; all trials up to `number - ahead` must have been told."""
        while len(self._asked) <= number:
            self._asked.append(self._drawn(len(self._asked)))
        return self._asked[number]

    def before(self, number: int) -> Sequence[Outcome]:
        """Outcomes of the trials by which trial `number` is drawn and judged."""
        return self.outcomes[: max(0, number - self.plan.ahead + 1)]

    def tell(self, outcome: Outcome) -> None:
        """Note what came of the next trial."""
        assert outcome.number == len(self.outcomes), "trials are told in their order"
        self._asked[outcome.number :] = self._asked[outcome.number :] or [outcome.params]
        self.outcomes.append(outcome)
        if self._mirror is not None and len(self._mirror.get_trials(deepcopy=False)) < len(self.outcomes):
            try:
                self._mirror.add_trial(_frozen(self.plan, outcome))
            except Exception as error:  # of SQLAlchemy, sqlite3 or Optuna: a full disk, a lock
                log.warning("the database for Optuna's tools is not brought up to date: %s", _first_line(error))
                self._mirror = None

    def _drawn(self, number: int) -> dict[str, Value]:
        if number == 0 and self.plan.first:
            return self.plan.first
        before = self.before(number)
        study = self.plan.study(number)
        _fill(study, self.plan, before, self._asked[len(before) : number])
        return dict(study.ask(self.plan.distributions()).params)

    def best(self) -> list[Outcome]:
        """The best trial of those that are complete and keep the limits; of several objectives the Pareto front."""
        there = [each for each in self.outcomes if each.state == "complete" and each.feasible]
        if not there:
            return []
        study = self.plan.study(0)
        study.add_trials([_frozen(self.plan, each) for each in there])
        found = study.best_trials if len(self.plan.objectives) > 1 else [study.best_trial]
        return [there[trial.number] for trial in found]

    def importance(self) -> dict[str, float]:
        """Share of the first objective's variance that each knob explains (fANOVA, Hutter et al. 2014).

        Returns:
            By knob, from the largest down; empty where too few trials or equal ones tell nothing.
        """
        import optuna

        complete = [each for each in self.outcomes if each.state == "complete"]
        if len(complete) < _STARTUP or len({each.figures[self.plan.objectives[0]] for each in complete}) == 1:
            return {}
        study = self.plan.study(0)
        study.add_trials([_frozen(self.plan, each) for each in complete])
        target: Callable[[FrozenTrial], float] = lambda trial: trial.values[0]  # noqa: E731
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0), target=target
        )
        return {name: float(share) for name, share in found.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _opened(plan: Plan, database: Path) -> "optuna.Study | None":
    """The study in the database, or an empty one where that can't be read: it holds nothing that is not elsewhere."""
    import optuna
    from sqlalchemy import URL

    optuna.logging.set_verbosity(logging.WARNING)
    url = URL.create("sqlite", database=str(database)).render_as_string()
    try:
        study = optuna.create_study(storage=url, study_name=NAME, directions=plan.directions, load_if_exists=True)
        study.get_trials(deepcopy=False)
    except Exception as error:  # of SQLAlchemy, sqlite3 or Optuna, as what is damaged may be anything
        if "locked" in str(error) or not database.exists():
            log.warning("%s: can't be used (%s); the search goes on without it", database, _first_line(error))
            return None
        log.warning("%s: can't be read (%s) and is written anew", database, _first_line(error))
        database.unlink()
        study = optuna.create_study(storage=url, study_name=NAME, directions=plan.directions)
    with warnings.catch_warnings(action="ignore"):  # that names of figures are experimental: they are for display
        study.set_metric_names(list(plan.objectives))
    return study


def _fill(
    study: "optuna.Study", plan: Plan, before: Sequence[Outcome], running: Sequence[dict[str, Value] | None]
) -> None:
    """Put trials into a study: finished ones, then those under way; None: one of which nothing is to be known."""
    import optuna

    distributions = plan.distributions()
    study.add_trials([_frozen(plan, each) for each in before])
    for params in running:
        if params is None:
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
        else:
            state = optuna.trial.TrialState.RUNNING
            study.add_trial(optuna.trial.create_trial(state=state, params=params, distributions=distributions))


_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "infeasible": "PRUNED", "failed": "FAIL"}


def _frozen(plan: Plan, outcome: Outcome) -> "FrozenTrial":
    """An outcome as Optuna knows it."""
    import optuna

    complete = outcome.state == "complete"
    trial = optuna.trial.create_trial(
        state=optuna.trial.TrialState[_STATES[outcome.state]],
        values=[outcome.figures[each] for each in plan.objectives] if complete else None,
        params=outcome.params,
        distributions=plan.distributions(),
        user_attrs={**outcome.figures, **({"remark": outcome.remark} if outcome.remark else {})},
        system_attrs=dict(outcome.rungs),
        intermediate_values=dict(enumerate(outcome.curve, 1)) if plan.prunes else {},
        constraints=outcome.excess,
    )
    if trial.datetime_complete:
        trial.datetime_start = trial.datetime_complete - datetime.timedelta(seconds=outcome.seconds)
    return trial
