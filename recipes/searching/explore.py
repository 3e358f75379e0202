"""The loop over trials: which one is next, where it runs, and what is kept of it."""

import dataclasses
import shutil

from edgetl.console import log, progress
from edgetl.errors import EdgetlError, RunError
from edgetl.outputs import Task
from edgetl.parallel import RETRIES, TaskDiedError, Workers, workers
from edgetl.rundir import RunDir, read_json, sealed
from edgetl.scores import PRIMARY
from edgetl.search.outcome import Outcome
from edgetl.search.space import Value, applied
from edgetl.search.study import Study
from recipes.experiment import Experiment
from recipes.searching import trials
from recipes.searching.judge import UNITS
from recipes.searching.shapes import Shapes
from recipes.searching.trials import RECIPES, UNFIT, Shared

DATABASE = "study.db"
TRIALS = "trials"
DIED = f"its process died {RETRIES + 1} times"
"""How the remark of a trial begins that failed for no reason of its settings, perhaps."""


def explored(
    run: RunDir, shared: Shared, shapes: Shapes | None, *, count: int, ray: str = "", processes: int = 0
) -> Study:
    """Run the trials that are not there yet.

    Args:
        run: the search's directory.
        shared: what all trials have in common.
        shapes: what networks cost on the device; None where nobody asks.
        count: of trials, those included that are there.
        ray: address of a cluster; empty: this machine.
        processes: of this machine; 0: one per core.

    Raises:
        RunError: those that are there are of other photos.
        EdgetlError: what is not for settings to answer for, such as a full disk; the same call goes on.
    """
    (run.path / TRIALS).mkdir(exist_ok=True)
    done = stored(run, shared.splits_sha256)
    begun = next(number for number in range(len(done) + 1) if number not in done)
    study = Study(shared.plan, [done.pop(number) for number in range(begun)], run.path / DATABASE)
    total = min(count, shared.plan.most or count)
    if begun:
        log.info("%d trials were done before", begun + len(done))
    with progress("trials", total, min(begun, total)) as bar, workers(shared, ray=ray, processes=processes) as pool:
        loop = _Loop(run, shared, shapes, study, pool, done)
        while len(study.outcomes) < total:
            loop.send(total)
            outcome = loop.next()
            study.tell(outcome)
            bar.advance()
            bar.say(line_of(outcome, shared.examples.task))
    return study


class _Loop:
    """Trials that are under way, and those that ended before their turn."""

    def __init__(
        self,
        run: RunDir,
        shared: Shared,
        shapes: Shapes | None,
        study: Study,
        pool: Workers,
        done: dict[int, Outcome],
    ) -> None:
        self._run, self._shared, self._shapes, self._study, self._pool = run, shared, shapes, study, pool
        self._done, self._asked = done, len(study.outcomes)
        self._sent: dict[int, Outcome] = {}

    def send(self, total: int) -> None:
        """Have all trials done that may be under way now."""
        while self._asked < total and self._asked - self._shared.plan.ahead < len(self._study.outcomes):
            number = self._asked
            if number not in self._done:
                self._send(number)
            self._asked += 1

    def _send(self, number: int) -> None:
        params = self._study.ask(number)
        try:
            settings = applied(self._shared.base, params)
            RECIPES[self._shared.recipe].check(settings)  # each value can work; here all of them together
        except UNFIT as error:
            self._fail(number, params, error)
            return
        while self._shapes and self._pool.running and self._shapes.unknown(settings):
            self._collect()  # a latency that is measured beside trainings is theirs as well
        try:
            self._train(number, params, settings)
        except UNFIT as error:
            self._fail(number, params, error)

    def _fail(self, number: int, params: dict[str, Value], error: EdgetlError) -> None:
        remark = " ".join(str(error).split())
        self._keep(Outcome(number, params, "failed", self._shared.splits_sha256, remark=remark))

    def _train(self, number: int, params: dict[str, Value], settings: Experiment) -> None:
        """Have a trial trained, unless what becomes of it is known before."""
        study, shared = self._study, self._shared
        excess = self._shapes.excess(settings) if self._shapes else {}
        figures = self._shapes.figures(settings) if self._shapes else {}
        if any(share > 0 for share in excess.values()):
            refused = self._shapes.of(settings).refused if self._shapes else ""
            remark = refused or "beyond " + " and ".join(k for k, v in excess.items() if v > 0)
            known = Outcome(number, params, "infeasible", shared.splits_sha256, figures, excess=excess, remark=remark)
            self._keep(known)
        elif twin := next((e for e in study.before(number) if e.params == params and e.state == "complete"), None):
            self._keep(
                dataclasses.replace(twin, number=number, seconds=0.0, rungs={}, remark=f"as trial {twin.number}")
            )
        else:
            self._sent[number] = Outcome(number, params, "failed", shared.splits_sha256, figures, excess=excess)
            self._pool.submit(number, trials.run_trial, number, params, list(study.before(number)), figures, excess)

    def next(self) -> Outcome:
        """The outcome that the study takes next; others may have come before."""
        number = len(self._study.outcomes)
        while number not in self._done:
            self._collect()
        return self._done.pop(number)

    def _collect(self) -> None:
        try:
            _, outcome = self._pool.finished()
        except TaskDiedError as error:  # tried again and again it would end every resumption of the search as well
            outcome = dataclasses.replace(self._sent[error.tag], remark=f"{DIED}. {error.why}")
            log.warning("trial %d is given up: %s", error.tag, outcome.remark)
            shutil.rmtree(self._shared.folder / f"{error.tag:04d}", ignore_errors=True)  # its checkpoint
        self._keep(outcome)

    def _keep(self, outcome: Outcome) -> None:
        """Write it down at once: trials before it may take hours more, and the study takes them in their order."""
        self._run.write(f"{TRIALS}/{outcome.number:04d}.json", sealed(outcome))
        self._done[outcome.number] = outcome


def stored(run: RunDir, splits_sha256: str) -> dict[int, Outcome]:
    """Read what earlier processes have finished, by number of the trial.

    Raises:
        RunError: it is of other photos.
    """
    found = {}
    for path in sorted((run.path / TRIALS).glob("*.json")):
        try:
            outcome = read_json(Outcome, path)
        except RunError as error:
            log.warning("%s; the trial is done again", error)
            continue
        if outcome.splits_sha256 != splits_sha256:
            raise RunError(
                f"{run.path}: a search of other photos, labels, groups or splits (trial {outcome.number}). Restore "
                "them, or choose another --out"
            )
        found[outcome.number] = outcome
    return found


def line_of(outcome: Outcome, task: Task) -> str:
    """One trial in words."""
    figures = ", ".join(f"{title_of(name, task)} {figure_of(name, value)}" for name, value in outcome.figures.items())
    state = "" if outcome.state == "complete" else f"{outcome.state}: "
    remark = f" ({state}{outcome.remark})" if outcome.remark else ""
    params = " ".join(f"{name}={short(value)}" for name, value in outcome.params.items())
    return f"trial {outcome.number}: {figures or '-'}{remark} | {params}"


def title_of(name: str, task: Task) -> str:
    """What a figure is called in tables: the task's own name, and its unit."""
    return {"accuracy": f"{PRIMARY[task]} %", "int8_accuracy": f"int8 {PRIMARY[task]} %", **UNITS}[name]


def figure_of(name: str, value: float) -> str:
    """A figure as tables show it."""
    if name in ("accuracy", "int8_accuracy"):
        return f"{100 * value:.2f}"
    return f"{value:.2f}" if name == "latency_ms" else f"{value:.0f}"


def short(value: object) -> str:
    """A knob's value as tables show it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
