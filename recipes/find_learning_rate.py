"""A short training with rising learning rate that tells which rate to fine-tune with (Smith 2017).

`python -m recipes.find_learning_rate --data photos/ --out runs/rate`

It takes the settings of `recipes.fine_tune` and trains the last of its phases, one step per rate.
"""

import dataclasses
import sys
from dataclasses import dataclass

from edgetl import learning_rate, rundir
from edgetl.config import checked, command, to_json
from edgetl.errors import ConfigError
from recipes import experiment, fine_tune

RECIPE = "find_learning_rate"
PROG = f"python -m recipes.{RECIPE}"
RESULT = "learning_rate.json"
CURVE = "learning_rate.png"
SAFE = 20.0
"""How far below the rate at which the loss goes off training is stable (on elpv the best rate was found there)."""


@dataclass(frozen=True)
class Config(fine_tune.Config):
    """Find a learning rate for fine-tuning: one step per rate, from low to high; the loss tells.

    The options of fine-tuning say what is trained, all thawed blocks at once; --head-lr and --backbone-lr only count by
    their ratio, and options about epochs, phases and schedules not at all.
    """

    lowest: float = 1e-6
    """First rate of the head."""
    highest: float = 1.0
    """Last rate of the head; the test ends early where the loss goes off."""
    steps: int = 100
    """Rates tried, one batch each."""


@dataclass(frozen=True)
class RateSearch:
    """What `learning_rate.json` holds."""

    learning_rate: float | None
    """Suggested --head-lr; None where the loss never fell."""
    backbone_learning_rate: float | None
    """The --backbone-lr that goes with it."""
    reason: str
    rates: tuple[float, ...]
    """Of the head, one per step."""
    losses: tuple[float, ...]
    """Training loss of each step."""
    curve: str
    """Path of the picture."""
    schema_version: int = 1


def main(config: Config) -> RateSearch:
    """Run the test and write RUN/learning_rate.json and .png.

    Raises:
        EdgetlError: see `edgetl.errors`.
    """
    config = checked(config)
    fine_tune.check(config)
    config = dataclasses.replace(config, schedule="plateau", gradual=1)  # a rate that can be set at each step
    rates = learning_rate.rates(config.lowest, config.highest, config.steps)
    if config.resume:
        raise ConfigError("--resume: there is nothing to resume, the test takes a minute. Leave it out")
    examples = experiment.load_examples(config)
    with rundir.writing(config.out, RECIPE, config) as run:
        from edgetl.plots import learning_rate_curve

        with fine_tune.prepare(config, examples, run) as ready:
            training = fine_tune.training_of(config, run, ready)
            losses = training.range_test(rates)
        found = learning_rate.suggest(rates, losses)
        if found.learning_rate is None and found.diverged_at is not None:
            # After a good linear probe the loss often can't fall within so few steps: only the upper end tells.
            reason = (
                f"the loss of the linear probe does not fall within the test; it goes off at {found.diverged_at:.2g}, "
                f"and 1/{SAFE:.0f} of that is a good start"
            )
            found = dataclasses.replace(found, learning_rate=found.diverged_at / SAFE, reason=reason)
        run.write(CURVE, learning_rate_curve(rates, losses, found))
        result = RateSearch(
            found.learning_rate,
            found.learning_rate and found.learning_rate * config.backbone_lr / config.head_lr,
            found.reason,
            tuple(float(rate) for rate in rates[: len(losses)]),
            tuple(losses),
            str(run.path / CURVE),
        )
        run.write(RESULT, to_json(result))
    return result


def show(result: RateSearch) -> str:
    """The suggestion and the options to give."""
    lines = [result.reason, f"curve: {result.curve}"]
    if result.learning_rate is not None:
        options = f"--head-lr {result.learning_rate:.1e} --backbone-lr {result.backbone_learning_rate:.1e}"
        lines.append(f"next: python -m recipes.fine_tune {options} ...")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
