"""What a model says of a photo: the other half of the contract between training and device, beside `InputSpec`."""

import math
from dataclasses import dataclass
from typing import Literal

from edgetl.errors import ConfigError
from edgetl.printable import is_line

Task = Literal["classification", "ordinal", "multi_label", "regression"]
"""What is learned of a photo: one class; one class of several in an order; any number of labels; numbers."""


@dataclass(frozen=True)
class OutputSpec:
    """What the numbers that come out of a model stand for.

    Raises:
        ConfigError: a name that is no line of text or there twice; thresholds or deviations that can't be.
    """

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

    def __post_init__(self) -> None:
        """Refuse what could not be written down, told apart or computed with: the file may be a stranger's."""
        for name in self.names:
            if not (name and is_line(name)):
                raise ConfigError(f"output name {name!r}: must be one line of text. Rename it and train again")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ConfigError(f"output name {twice!r}: there twice. Rename one of them and train again")
        for what, values in (("thresholds", self.thresholds), ("deviations", self.deviations)):
            if values and len(values) != len(self.names):
                raise ConfigError(f"{len(values)} {what} for {len(self.names)} names: need one of each, or none")
        if not all(0 <= each <= 1 for each in self.thresholds):
            raise ConfigError(f"thresholds {self.thresholds}: each must be from 0 to 1")
        if not all(0 < each < math.inf for each in self.deviations):
            raise ConfigError(f"deviations {self.deviations}: each must be above 0 and finite")

    @property
    def exclusive(self) -> bool:
        """Whether exactly one of the names is right."""
        return self.task in ("classification", "ordinal")

    @property
    def units(self) -> tuple[float, ...]:
        """What differences of outputs are measured in: the deviation of each target; 1 for every score."""
        return self.deviations or (1.0,)
