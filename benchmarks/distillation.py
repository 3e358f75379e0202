"""What a teacher brings: `python -m benchmarks.distillation`.

Per seed, which also makes the split, three runs with the same settings on the same photos: the small network
fine-tuned, the large one fine-tuned, and the small one distilled from the large one. All validation and test photos of
a seed are the same for the three, so that differences are paired. Nothing is chosen on test photos.

Runs that are finished in --runs are taken as they are, so this can be stopped and started again.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from edgetl import rundir
from edgetl.config import command
from edgetl.rundir import RunDir
from edgetl.scores import PRIMARY
from recipes import distill, fine_tune

SETTINGS = fine_tune.Config(
    data="elpv", out=Path(), augment="symmetries", views=4, thaw="0.5", epochs=6, ema=0.99, validation_fraction=0.05
)
"""Of all runs: half of the blocks, stored views, a few epochs."""
SIDES = ("fine-tuned", "teacher", "distilled")


@dataclass(frozen=True)
class Config:
    """Compare a small network that learns from labels with one that learns from a teacher."""

    runs: Path = Path("runs/distillation")
    """Where the runs are, or will be."""
    data: str = SETTINGS.data
    """Photos."""
    student: str = "EfficientNetLite0"
    """The small network."""
    teacher: str = "EfficientNetLite2"
    """The large one."""
    student_runs: str = "lite0-{seed}"
    """Name of the run of the fine-tuned small network."""
    teacher_runs: str = "lite2-{seed}"
    """Name of the run of the large one."""
    distilled_runs: str = "distilled-{seed}"
    """Name of the run of the distilled one; another for other weights."""
    temperature: float = distill.Config.temperature
    label_weight: float = distill.Config.label_weight
    hint_weight: float = distill.Config.hint_weight
    """These three as in `recipes.distill`."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of splits and training."""
    json: Path | None = None
    """Also write the raw figures here."""


@dataclass(frozen=True)
class Row:
    """One seed. Figures are the primary ones of the task, fractions, in the order of `SIDES`."""

    seed: int
    validation: tuple[float, ...]
    test: tuple[float, ...]
    validation_loss: tuple[float, ...]
    """Of the last epoch: steadier than shares of a few photos."""
    agreement: float
    """Share of the validation photos of which student and teacher say the same."""


@dataclass(frozen=True)
class Figures:
    """All seeds."""

    student: str
    teacher: str
    temperature: float
    label_weight: float
    hint_weight: float
    primary: str
    rows: list[Row]


def main(config: Config) -> Figures:
    """Make what is missing, seed by seed, and read the figures."""
    rows = []
    for seed in config.seeds:
        small = fine_tuned(config, config.student, config.student_runs, seed)
        large = fine_tuned(config, config.teacher, config.teacher_runs, seed)
        taught = distilled(config, large, seed)
        rows.append(row_of(seed, small, large, taught))
        print(rows[-1], file=sys.stderr, flush=True)
    primary = PRIMARY[taught.outputs.task]
    figures = Figures(
        config.student, config.teacher, config.temperature, config.label_weight, config.hint_weight, primary, rows
    )
    if config.json:
        config.json.write_text(json.dumps(asdict(figures), indent=2))
    return figures


def fine_tuned(config: Config, backbone: str, name: str, seed: int) -> RunDir:
    """A network that learns from the labels alone."""
    out = config.runs / name.format(seed=seed)
    return fine_tune.main(dataclasses.replace(SETTINGS, data=config.data, backbone=backbone, seed=seed, out=out))


def distilled(config: Config, teacher: RunDir, seed: int) -> RunDir:
    """The small network with the same settings, and a teacher."""
    same = {f.name: getattr(SETTINGS, f.name) for f in fields(SETTINGS) if f.name not in distill.SETTLED}
    same |= {"data": "", "backbone": config.student, "seed": seed}
    same |= {"out": config.runs / config.distilled_runs.format(seed=seed), "teacher": teacher.path}
    same |= {name: getattr(config, name) for name in ("temperature", "label_weight", "hint_weight")}
    return distill.main(distill.Config(**same))


def row_of(seed: int, small: RunDir, large: RunDir, taught: RunDir) -> Row:
    """Read the figures of three runs on the same photos."""
    if len({(run.path / rundir.SPLITS).read_bytes() for run in (small, large, taught)}) > 1:
        raise ValueError(f"Expected runs with one split. Received: {small.path}, {large.path}, {taught.path}")
    found = [rundir.read_json(fine_tune.Metrics, run.path / rundir.METRICS) for run in (small, large)]
    last = rundir.read_json(distill.Metrics, taught.path / rundir.METRICS)
    metrics = (*found, last)
    losses = tuple(last_loss(run) for run in (small, large, taught))
    return Row(
        seed,
        tuple(each.validation.primary for each in metrics),
        tuple(each.test.primary for each in metrics if each.test),
        losses,
        last.teacher_agreement,
    )


def last_loss(run: RunDir) -> float:
    """Validation loss of the model as it is saved."""
    from edgetl.history import from_csv

    return from_csv((run.path / fine_tune.HISTORY).read_text(), fine_tune.HISTORY)[-1].validation_loss


def show(figures: Figures) -> str:
    """Means, spreads, and what the teacher brings, seed by seed."""
    hints = f", hints {figures.hint_weight:g}" if figures.hint_weight else ""
    lines = [
        f"{figures.student} fine-tuned, {figures.teacher} fine-tuned (teacher), {figures.student} distilled; "
        f"temperature {figures.temperature:g}, label weight {figures.label_weight:g}{hints}",
        f"{figures.primary} %: mean, deviation over {len(figures.rows)} seeds, each seed",
    ]
    for part in ("test", "validation"):
        for at, side in enumerate(SIDES):
            lines.append(f"  {part:10}  {side:10}  {spread([getattr(row, part)[at] for row in figures.rows])}")
    lines.append("difference of the distilled to the fine-tuned, paired")
    for part in ("test", "validation"):
        pairs = [getattr(row, part) for row in figures.rows]
        lines.append(f"  {part:10}  {'':10}  {spread([pair[2] - pair[0] for pair in pairs], '+')}")
    lines.append("validation loss: mean, each seed")
    for at, side in enumerate(SIDES):
        losses = [row.validation_loss[at] for row in figures.rows]
        lines.append(f"  {'':10}  {side:10}  {statistics.fmean(losses):.3f} ({' '.join(f'{x:.3f}' for x in losses)})")
    same = statistics.fmean(row.agreement for row in figures.rows)
    lines.append(f"student and teacher say the same of {100 * same:.1f} % of the validation photos")
    return "\n".join(lines)


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean, standard deviation and all of some fractions, as percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    each = " ".join(f"{100 * value:{sign}.2f}" for value in values)
    return f"{100 * statistics.fmean(values):{sign}.2f} +- {100 * deviation:.2f}  ({each})"


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m benchmarks.distillation", show=show))
