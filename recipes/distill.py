"""A small network learns from a large one that was fine-tuned: more accuracy than from the labels alone.

`python -m recipes.distill --teacher runs/large --student EfficientNetLite0 --out runs/small`

The student is fine-tuned as by `recipes.fine_tune`, from its linear probe on, on the teacher's own split, and most of
its loss is the distance to what the teacher says (Hinton et al. 2015) of the very views that it sees. The teacher's
word is computed once and stored. Photos without labels help: the teacher says something of them, too.
"""

import math
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from tyro.conf import Suppress, arg

from edgetl import data, results, rundir
from edgetl.backbones import registry
from edgetl.comparison import agreement
from edgetl.config import checked, command
from edgetl.console import progress
from edgetl.errors import ConfigError
from edgetl.metrics import said_labels
from edgetl.outputs import OutputSpec, Task
from edgetl.rundir import RunDir
from edgetl.scores import Scores, summary
from edgetl.tasks import UNTUNED
from recipes import fine_tune, lessons
from recipes.lessons import Lessons

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgetl.history import Epoch

RECIPE = "distill"
PROG = f"python -m recipes.{RECIPE}"
SETTLED = (
    "validation_fraction",
    "test_fraction",
    "task",
    "label",
    "targets",
    "class_order",
    "group",
    "exclude",
)
"""Options of fine-tuning that the teacher's run has settled; `export.reporting.origins` lists them, too."""


@dataclass(frozen=True, kw_only=True)
class Config(fine_tune.Config):
    """Distil a fine-tuned network into a smaller one, which learns what the large one says of each photo.

    Photos, labels and their division are the teacher's, so that no test photo of the one was seen by the other; --data
    only says where the photos are now, if they were moved. All further options are those of fine-tuning.
    """

    teacher: Path
    """Run directory of the teacher, finished."""
    backbone: Annotated[str, arg(name="student", aliases=("--backbone",))] = "EfficientNetLite0"
    """Pretrained network that learns; `edgetl backbones` lists all."""
    data: str = ""
    """Where the teacher's photos are now; where they were, by default."""
    seed: int = 0
    """Of everything random; the split is the teacher's."""
    temperature: float = 4.0
    """Divides the logits of teacher and student before they are compared: the higher, the more classes that are both
    improbable count. Not for regression."""
    label_weight: float = 0.1
    """Share of the labels' own loss, 0..1; the rest is the distance to what the teacher says."""
    hint_weight: float = 0.0
    """Of hints (FitNets): how well a linear layer, not part of the model, guesses the teacher's features from the
    student's; 1 is a start. 0 is off."""
    unlabelled: str = ""
    """Folder of photos without labels, in folders however deep: the student trains on them with the teacher's word."""
    validation_fraction: Annotated[float, Suppress] = 0.15
    test_fraction: Annotated[float, Suppress] = 0.0  # what was not held out from the teacher can't be now
    task: Annotated[Task | Literal["auto"], Suppress] = "auto"
    label: Annotated[str, Suppress] = ""
    targets: Annotated[tuple[str, ...], Suppress] = ()
    class_order: Annotated[tuple[str, ...], Suppress] = ()
    group: Annotated[str, Suppress] = ""
    exclude: Annotated[Path | None, Suppress] = None


@dataclass(frozen=True)
class Metrics(fine_tune.Metrics):
    """What `metrics.json` holds: the student, and how it compares with its teacher."""

    teacher_validation: Scores
    """The teacher, on the same validation photos."""
    teacher_agreement: float
    """Share of the validation photos, 0..1, of which both say the same; see `edgetl.comparison.Comparison`."""


def main(config: Config) -> RunDir:
    """Run the experiment.

    Returns:
        The student's finished run directory: ready for `export.convert`.

    Raises:
        EdgetlError: see `edgetl.errors`; a checkpoint that was written stays.
        KeyboardInterrupt: the state in the middle of the epoch has been saved.
    """
    config = checked(config)
    check(config)
    teacher = lessons.find_teacher(config)
    config = replace(config, data=teacher.examples.source)
    with rundir.writing(config.out, RECIPE, config) as run:
        if run.finished:
            finished = fine_tune.reopen(run, teacher.examples, Metrics)
            lessons.refuse_other_teacher(finished, teacher.run.model_sha256)
            return finished
        with fine_tune.prepare(config, teacher.examples, run, teacher) as ready:
            training = fine_tune.training_of(config, run, ready)
            # From here on the directory belongs to these settings: nothing above may write into it.
            run.write(rundir.SPLITS, data.write_csv(ready.splits, results.hashes_of(ready.table)))
            run.write(lessons.RECORD, rundir.sealed(lessons_of(ready).record))
            history = training.run()
        save(config, run, ready, history)
    return rundir.open_run(run.path)


def check(config: Config) -> None:
    """Refuse settings that can't work, before anything is loaded.

    Raises:
        ConfigError: names the option, what it got, and what it takes.
        BackboneError: no such student.
        RunError: --resume, and there is nothing to go on with.
    """
    for each in fields(Config):
        if each.name in SETTLED and getattr(config, each.name) != each.default:
            option = each.name.replace("_", "-")
            raise ConfigError(f"--{option} {getattr(config, each.name)}: settled by the teacher's run. Leave it out")
    fine_tune.check(config)
    registry.get(config.backbone)
    if not 0 < config.temperature < math.inf:
        raise ConfigError(f"--temperature {config.temperature}: must be positive, such as 4")
    if not 0 <= config.label_weight <= 1:
        raise ConfigError(f"--label-weight {config.label_weight}: a share from 0 to 1 is needed, such as 0.1")
    if not 0 <= config.hint_weight < math.inf:
        raise ConfigError(f"--hint-weight {config.hint_weight}: must not be negative; 0 is off")
    if config.unlabelled and config.label_weight == 1 and not config.hint_weight:
        raise ConfigError(
            "--label-weight 1: leaves nothing to learn from --unlabelled photos. Choose less, such as 0.1"
        )
    if config.unlabelled and config.class_balance == "sampling":
        raise ConfigError("--class-balance sampling: --unlabelled photos have no class. Choose weights, or none")
    if config.views == 0:
        raise ConfigError("--views 0: what the teacher says is stored, once for each view. Choose at least 1, or -1")
    fine_tune.check_resume(config)


def lessons_of(ready: fine_tune.Prepared) -> Lessons:
    """The teacher's part in what training starts from, which is there in this recipe."""
    if ready.lessons is None:
        raise ValueError("Expected what was prepared with a teacher.")
    return ready.lessons


def save(config: Config, run: RunDir, ready: fine_tune.Prepared, history: "Sequence[Epoch]") -> None:
    """Score the student, compare it with its teacher, and write the run."""
    taught = lessons_of(ready)
    done = fine_tune.scored(config, ready)
    with progress("compare with the teacher", len(ready.splits.validation)) as bar:
        said = fine_tune.predict(done.model, ready.spec, ready.splits.validation, bar)
    same = agreed(taught, said, done.outputs)
    plain = fine_tune.metrics_of(config, ready, history, done)
    metrics = Metrics(
        **{**vars(plain), "notes": (*notes(config, taught, same), *plain.notes)},
        teacher_validation=taught.validation,
        teacher_agreement=same,
    )
    further = {lessons.RECORD: rundir.sealed(taught.record)}
    fine_tune.seal(config, run, ready, history, done, metrics, RECIPE, further)


def agreed(taught: Lessons, said: "NDArray[np.float32]", outputs: OutputSpec) -> float:
    """Share of the validation photos of which student and teacher say the same; labels each by its own thresholds."""
    theirs = taught.said
    if outputs.task == "multi_label":
        pairs = ((theirs, taught.teacher.run.outputs), (said, outputs))
        theirs, said = (said_labels(each, spec).astype(np.float32) for each, spec in pairs)
        outputs = replace(outputs, thresholds=(UNTUNED,) * len(outputs.names))
    return agreement(theirs, said, outputs)


def notes(config: Config, taught: Lessons, same: float) -> tuple[str, ...]:
    """What a reader should know about the teacher."""
    run = taught.teacher.run
    hints = f", hints {config.hint_weight:g}" if config.hint_weight else ""
    extra = f"; {len(taught.unlabelled)} photos without labels" if taught.unlabelled else ""
    return (
        f"distilled from {config.teacher} (model sha256 {run.model_sha256[:12]}), temperature {config.temperature:g}, "
        f"label weight {config.label_weight:g}{hints}{extra}",
        f"the teacher on validation: {summary(taught.validation)}; the student says the same of "
        f"{100 * same:.1f} % of these photos",
    )


def show(run: RunDir) -> str:
    """What came out and what to do next."""
    return fine_tune.show(run, Metrics)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
