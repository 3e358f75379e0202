"""What figures there are of a model: one dataclass for each task, all of one shape.

Each has `samples`, and the figure that models of its task are chosen by: `primary`, with its 95 % interval,
`primary_low` and `primary_high`. `edgetl.metrics` computes them.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from edgetl.outputs import Task

PRIMARY: dict[Task, str] = {"classification": "top-1", "ordinal": "top-1", "multi_label": "F1", "regression": "R2"}
"""What models are chosen by: a fraction, at most 1, more is better."""


class Figure(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OutputScores:
    """How well one class or label is told from everything else. Fractions 0..1."""

    name: str
    samples: int
    """Photos of it."""
    named: int
    """Photos that are said to be of it."""
    right: int
    """Photos of it that are said to be."""
    precision: float
    """`right / named`, 0 where it is never named."""
    recall: float
    """`right / samples`, 0 where there are none."""
    f1: float
    roc_auc: float | None
    """Area under the ROC curve: how often a photo of it has a higher score than another one."""
    average_precision: float | None
    """Area under the curve of precision over recall. Both areas are None where all photos or none are of it."""


@dataclass(frozen=True)
class TargetScores:
    """How near one number comes to the truth."""

    name: str
    mae: float
    """Mean absolute error, in the target's unit."""
    rmse: float
    """Root of the mean squared error, in the target's unit."""
    r2: float
    """Share of the variance that is explained, at most 1; below 0: worse than always saying the mean. Of a target that
    is constant here: 1 if it is met exactly, else 0."""
    bias: float
    """Mean of output less truth, in the target's unit."""


class Primary:
    """The figure that models are chosen by: one of the fields."""

    FIGURE: ClassVar[str]

    @property
    def primary(self) -> float:
        """A fraction, at most 1; more is better."""
        return float(getattr(self, self.FIGURE))

    @property
    def primary_low(self) -> float:
        """Low end of its 95 % interval."""
        return float(getattr(self, f"{self.FIGURE}_low"))

    @property
    def primary_high(self) -> float:
        """High end of its 95 % interval."""
        return float(getattr(self, f"{self.FIGURE}_high"))


@dataclass(frozen=True)
class ClassScores(Primary):
    """How well class probabilities match class indices, on one set of examples. Fractions 0..1 but where noted."""

    FIGURE = "top1"
    samples: int
    top1: float
    """Accuracy: share of examples whose most probable class is the right one."""
    top1_low: float
    top1_high: float
    """95 % Wilson score interval of `top1`."""
    k: int
    top_k: float
    """Share of examples whose class is among the `k` most probable: 5 of ten and more classes, 2 of three to nine."""
    balanced_accuracy: float
    """Mean recall of the classes that occur."""
    precision: float
    recall: float
    f1: float
    """`precision`, `recall` and `f1` are means over the classes (macro)."""
    roc_auc: float | None
    average_precision: float | None
    """Means over the classes that have them; each class against the rest."""
    log_loss: float
    """Mean negative log likelihood, nats."""
    brier: float
    """Mean over the examples of the squared distance to the truth, summed over the classes; 0..2."""
    calibration_error: float
    """See `calibration_error`."""
    classes: tuple[OutputScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts, [true class][predicted class]."""


@dataclass(frozen=True)
class ClassificationScores(ClassScores):
    """One class of several."""

    task: Literal["classification"] = "classification"


@dataclass(frozen=True)
class OrdinalScores(ClassScores):
    """One class of several in an order."""

    mean_steps: float
    """How many classes lie between the one named and the right one, on average: 0 is right, 1 is next to it."""
    kappa: float | None
    """Cohen's kappa with quadratic weights: 1 is perfect, 0 is chance; None where only one class occurs on both
    sides."""
    task: Literal["ordinal"] = "ordinal"


@dataclass(frozen=True)
class MultiLabelScores(Primary):
    """How well the scores of labels match what is true, on one set of examples. Fractions 0..1 but where noted.

    A label is said from its threshold on.
    """

    FIGURE = "f1"
    samples: int
    f1: float
    """Mean over the labels (macro)."""
    f1_low: float
    f1_high: float
    """95 % bootstrap interval of `f1`."""
    precision: float
    recall: float
    """Means over the labels (macro)."""
    micro_precision: float
    micro_recall: float
    micro_f1: float
    """Over all pairs of an example and a label: frequent labels count for more."""
    subset_accuracy: float
    """Share of examples of which all labels are right."""
    hamming_loss: float
    """Share of pairs of an example and a label that are wrong."""
    roc_auc: float | None
    average_precision: float | None
    """Means over the labels that have them."""
    log_loss: float
    """Mean over the pairs, nats."""
    brier: float
    """Mean squared distance to the truth over the pairs, 0..1."""
    calibration_error: float
    """See `calibration_error`."""
    labels: tuple[OutputScores, ...]
    task: Literal["multi_label"] = "multi_label"


@dataclass(frozen=True)
class RegressionScores(Primary):
    """How near numbers come to the truth, on one set of examples."""

    FIGURE = "r2"
    samples: int
    r2: float
    """Mean over the targets."""
    r2_low: float
    r2_high: float
    """95 % bootstrap interval of `r2`."""
    targets: tuple[TargetScores, ...]
    task: Literal["regression"] = "regression"


Scores = ClassificationScores | OrdinalScores | MultiLabelScores | RegressionScores
"""Of one task; the field `task` tells which."""


def summary(scores: Scores) -> str:
    """The primary figure in words: `top-1 85.37 % (82.5 to 87.9, 656 photos)`."""
    low, high = 100 * scores.primary_low, 100 * scores.primary_high
    return f"{PRIMARY[scores.task]} {100 * scores.primary:.2f} % ({low:.1f} to {high:.1f}, {scores.samples} photos)"
