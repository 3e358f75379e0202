"""What an audit says: data, written as OUT/audit.json and shown by `page`."""

from dataclasses import dataclass
from typing import Literal

from edgetl.data import Example

Kind = Literal["unreadable", "blank", "dark", "bright", "blurry", "odd_aspect", "odd_size", "odd_file"]


@dataclass(frozen=True)
class Finding:
    """Something about one photo."""

    id: str
    kind: Kind
    detail: str
    """What was measured, and what it was held against."""


@dataclass(frozen=True)
class Copy:
    """One of several photos that show the same."""

    id: str
    split: str
    """That the data set gives; empty where it gives none."""
    label: str
    same_bytes_as: str
    """The first photo of the group with the very same bytes; the photo itself where it is that."""


@dataclass(frozen=True)
class CopyGroup:
    """Copies of one photo: exact, re-encoded, resized, or shots that differ as little."""

    members: tuple[Copy, ...]

    @property
    def exact(self) -> bool:
        """Whether all files are equal byte for byte."""
        return len({member.same_bytes_as for member in self.members}) == 1

    @property
    def leaks(self) -> bool:
        """Whether the copies are in more than one of the splits that the data set brings."""
        return len({member.split or "train" for member in self.members}) > 1

    @property
    def contradicts(self) -> bool:
        """Whether the copies have different labels."""
        return len({member.label for member in self.members}) > 1


@dataclass(frozen=True)
class LabelIssue:
    """A label that the photos like it speak against."""

    id: str
    given: str
    suggested: str
    """What the features say; of several labels the one in question, as `name` or `not name`."""
    confidence: float
    """Cross-validated probability of the suggestion, 0..1."""
    given_confidence: float
    """That of the label given."""


@dataclass(frozen=True)
class Shift:
    """Whether a classifier can tell two parts of the data apart better than by chance."""

    first: str
    second: str
    accuracy: float
    """Share of held-out photos whose part was told rightly; 0.5 is chance."""
    p_value: float
    """Chance of an accuracy this high or higher if both parts were drawn alike."""
    samples: int
    """Held-out photos."""
    telling: tuple[str, ...]
    """Photos of the second part that are least like the first, most telling first."""


@dataclass(frozen=True)
class Spread:
    """How one number is distributed over the photos."""

    minimum: float
    median: float
    maximum: float


@dataclass(frozen=True)
class Audit:
    """All that was found."""

    data: str
    task: str
    output_names: tuple[str, ...]
    photos: int
    """Listed, those that can't be read included and those excluded not."""
    excluded: int
    """Left out by the list that was given."""
    counts: dict[str, dict[str, int]]
    """Split that the data set gives (`all` where it gives none) -> class or label -> photos."""
    targets: dict[str, Spread]
    """Regression: target -> its values, in its own unit."""
    width: Spread
    """Pixels, as stored; so is the height."""
    height: Spread
    aspect: Spread
    """Width by height."""
    size_bytes: Spread
    formats: dict[str, int]
    """Format, by content -> photos."""
    findings: tuple[Finding, ...]
    copies: tuple[CopyGroup, ...]
    labels: tuple[LabelIssue, ...]
    """Most doubtful first."""
    shifts: tuple[Shift, ...]
    skipped: tuple[str, ...]
    """What was not looked at, and why."""
    exclude_sha256: str = ""
    """Of the exclude.csv written with it: tells whether somebody has edited it since."""
    schema_version: int = 1

    @property
    def imbalance(self) -> float:
        """Photos of the largest class against those of the smallest, over all splits; 1.0 without classes."""
        totals = [sum(part.get(name, 0) for part in self.counts.values()) for name in self.output_names]
        return max(totals) / max(1, min(totals)) if self.task != "regression" and totals else 1.0


def given_split(example: Example, brings_splits: bool) -> str:
    """The split that the data set gives an example; what it leaves open is drawn from train."""
    return (example.split or "train") if brings_splits else ""
