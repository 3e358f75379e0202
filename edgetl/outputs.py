"""What a model says of a photo: the other half of the contract between training and device, beside `InputSpec`."""

from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "ordinal", "multi_label", "regression"]
"""What is learned of a photo: one class; one class of several in an order; any number of labels; numbers."""


@dataclass(frozen=True)
class OutputSpec:
    """What the numbers that come out of a model stand for."""

    task: Task
    names: tuple[str, ...]
    """Of the classes (ordinal: from low to high), the labels or the targets; the position is the output index.

    Classes and labels have scores 0..1, those of the classes sum to 1; targets have their own units.
    """
    thresholds: tuple[float, ...] = ()
    """multi_label: a label is said from this score on, 0..1."""
    deviations: tuple[float, ...] = ()
    """regression: standard deviation of each target among the training photos, in its own unit: what errors are
    measured against."""

    @property
    def exclusive(self) -> bool:
        """Whether exactly one of the names is right."""
        return self.task in ("classification", "ordinal")

    @property
    def units(self) -> tuple[float, ...]:
        """What differences of outputs are measured in: the deviation of each target; 1 for every score."""
        return self.deviations or (1.0,)
