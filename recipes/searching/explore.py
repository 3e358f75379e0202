"""The loop over trials: which one is next, where it runs, and what is kept of it."""

import dataclasses

from edgetl.config import to_json
from edgetl.console import log, progress
from edgetl.errors import RunError
from edgetl.parallel import Workers, workers
from edgetl.rundir import RunDir, read_json
from edgetl.scores import PRIMARY
from edgetl.search.outcome import Outcome
from edgetl.search.space import applied
from edgetl.search.study import Study
from recipes.searching import trials
from recipes.searching.shapes import Shapes
from recipes.searching.trials import Shared

DATABASE = "study.db"
TRIALS = "trials"


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
    """
    (run.path / TRIALS).mkdir(exist_ok=True)
    done = stored(run, shared.data_sha256)
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
            bar.say(line_of(outcome, shared))
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

    def send(self, total: int) -> None:
        """Have all trials done that may be under way now."""
        while self._asked < total and self._asked - self._shared.plan.ahead < len(self._study.outcomes):
            number = self._asked
            if number not in self._done:
                self._send(number)
            self._asked += 1

    def _send(self, number: int) -> None:
        study, shared = self._study, self._shared
        params = study.ask(number)
        settings = applied(shared.base, params)
        while self._shapes and self._pool.running and self._shapes.unknown(settings):
            self._collect()  # a latency that is measured beside trainings is theirs as well
        excess = self._shapes.excess(settings) if self._shapes else {}
        figures = self._shapes.figures(settings) if self._shapes else {}
        if any(share > 0 for share in excess.values()):
            remark = "no int8 form" if not figures else "beyond " + " and ".join(k for k, v in excess.items() if v > 0)
            known = Outcome(number, params, "infeasible", shared.data_sha256, figures, excess=excess, remark=remark)
            self._keep(known)
        elif twin := next((e for e in study.before(number) if e.params == params and e.state == "complete"), None):
            self._keep(
                dataclasses.replace(twin, number=number, seconds=0.0, rungs={}, remark=f"as trial {twin.number}")
            )
        else:
            self._pool.submit(number, trials.run_trial, number, params, list(study.before(number)), figures, excess)

    def next(self) -> Outcome:
        """The outcome that the study takes next; others may have come before."""
        number = len(self._study.outcomes)
        while number not in self._done:
            self._collect()
        return self._done.pop(number)

    def _collect(self) -> None:
        _, outcome = self._pool.finished()
        self._keep(outcome)

    def _keep(self, outcome: Outcome) -> None:
        """Write it down at once: trials before it may take hours more, and the study takes them in their order."""
        self._run.write(f"{TRIALS}/{outcome.number:04d}.json", to_json(outcome))
        self._done[outcome.number] = outcome


def stored(run: RunDir, data_sha256: str) -> dict[int, Outcome]:
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
        if outcome.data_sha256 != data_sha256:
            raise RunError(
                f"{run.path}: a search of other photos or labels (trial {outcome.number}). Restore them, or choose "
                "another --out"
            )
        found[outcome.number] = outcome
    return found


def line_of(outcome: Outcome, shared: Shared) -> str:
    """One trial in words."""
    figures = " ".join(_figure(name, value, shared) for name, value in outcome.figures.items())
    state = "" if outcome.state == "complete" else f"{outcome.state}: "
    remark = f" ({state}{outcome.remark})" if outcome.remark else ""
    params = " ".join(f"{name}={_short(value)}" for name, value in outcome.params.items())
    return f"trial {outcome.number}: {figures or '-'}{remark} | {params}"


def _figure(name: str, value: float, shared: Shared) -> str:
    figure = PRIMARY[shared.examples.task]
    if name in ("accuracy", "int8_accuracy"):
        return f"{'int8 ' if name.startswith('int8') else ''}{figure} {100 * value:.2f} %"
    return f"{value:.2f} ms" if name == "latency_ms" else f"{value:.0f} kB"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
