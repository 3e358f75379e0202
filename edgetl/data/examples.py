"""Labelled examples: what every source gives, and everything else takes."""

import dataclasses
import logging
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DatasetError
from edgetl.outputs import OutputSpec, Task

log = logging.getLogger(__name__)

SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}
"""What the parts are called in data sets, in lower case."""
Label = int | tuple[int, ...] | tuple[float, ...]
"""By task: the index of a class; the indices of all labels that are true; the value of each target."""
MAX_BINS = 10
"""Numbers are divided in proportion to so many quantiles, as classes are; to fewer where each would have fewer
examples than this."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled file."""

    id: str
    """Unique name: the posix path relative to the root."""
    path: Path
    """Where the bytes are."""
    label: Label
    split: SplitName | None = None
    """The part that the data set itself assigns; None leaves the choice to `split`."""
    group: str = ""
    """Examples of one group, say all photos of a day, stay on one side of every division; empty: alone."""
    weight: float = 1.0
    """How much it counts in training, above 0; figures count all alike."""
    values: tuple[str, ...] = ()
    """What else is known of it, in the order of `Examples.columns`."""
    line: int = dataclasses.field(default=0, compare=False)
    """Of the table that it comes from, for messages; 0: of none."""

    @property
    def place(self) -> str:
        """Where the user finds it, for a message."""
        return f"line {self.line}: {self.id}" if self.line else self.id


@dataclass(frozen=True)
class Examples:
    """Labelled examples of one data set, or of one part of it."""

    source: str
    """What the user asked for: a folder or the name of a data set."""
    root: Path
    """The folder that ids are relative to."""
    output_names: tuple[str, ...]
    """Of classes (sorted, so that label numbers follow from the names alone; ordinal: from low to high), labels or
    targets."""
    items: tuple[Example, ...]
    """The examples, sorted by id."""
    task: Task = "classification"
    columns: tuple[str, ...] = ()
    """Names of what else is known of each example: figures can be taken apart by them."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)

    @property
    def location(self) -> str:
        """What `load` takes to find them again from any working directory: a name, or an absolute path."""
        path = Path(self.source).expanduser()
        return str(path.resolve()) if self.root in (path, path.parent) else self.source

    @property
    def outputs(self) -> OutputSpec:
        """What a model of these labels says."""
        return OutputSpec(self.task, self.output_names)

    @cached_property
    def labels(self) -> NDArray[Any]:
        """Labels of all examples, read-only.

        classification, ordinal: int64 [n], indices; multi_label: float32 [n, k], 1 where a label is true, else 0;
        regression: float32 [n, k], in the targets' own units.
        """
        given: list[Any] = [item.label for item in self.items]
        if self.outputs.exclusive:
            labels: NDArray[Any] = np.array(given, dtype=np.int64)
        elif self.task == "regression":
            labels = np.array(given, dtype=np.float32).reshape(len(given), len(self.output_names))
        else:
            labels = np.zeros((len(given), len(self.output_names)), np.float32)
            for row, indices in zip(labels, given, strict=True):
                row[list(indices)] = 1
        labels.setflags(write=False)
        return labels

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """Weight of each example in training, float32 [n], read-only."""
        weights = np.fromiter((item.weight for item in self.items), dtype=np.float32, count=len(self.items))
        weights.setflags(write=False)
        return weights

    @cached_property
    def strata(self) -> NDArray[np.int64]:
        """Which examples are of one kind, int64 [n]: divisions keep the proportions of these.

        The class; of several labels the rarest (0 where none is true), so that rare ones are divided, too; of numbers
        the quantile of the first target.
        """
        if self.outputs.exclusive or not self.items:
            return self.labels.astype(np.int64)
        if self.task == "regression":
            bins = max(1, min(MAX_BINS, len(self) // MAX_BINS))
            edges = np.quantile(self.labels[:, 0], np.linspace(0, 1, bins + 1)[1:-1])
            return np.searchsorted(edges, self.labels[:, 0], side="right").astype(np.int64)
        counts = self.labels.sum(axis=0)
        rarity = np.where(self.labels > 0, counts, np.inf)
        return np.where(self.labels.any(axis=1), rarity.argmin(axis=1) + 1, 0).astype(np.int64)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of examples of each class or label, 0 for one that has none here; of each target, all."""
        if self.outputs.exclusive:
            counts = np.bincount(self.labels, minlength=len(self.output_names))
        elif self.task == "multi_label":
            counts = self.labels.sum(axis=0)
        else:
            counts = np.full(len(self.output_names), len(self))
        return {name: int(count) for name, count in zip(self.output_names, counts, strict=True)}

    def label_text(self, example: Example) -> str:
        """Write a label down as a manifest does: names, joined by `|`; or numbers, with every digit."""
        label = example.label
        if isinstance(label, int):
            return self.output_names[label]
        if self.task == "regression":
            return "|".join(repr(float(value)) for value in label)
        return "|".join(self.output_names[int(index)] for index in label)

    def with_items(self, items: Sequence[Example]) -> "Examples":
        """Make the same with other examples, in the order given."""
        return dataclasses.replace(self, items=tuple(items))

    def select(self, which: Sequence[str] | Sequence[int] | NDArray[np.integer]) -> "Examples":
        """Take some examples, in the order asked for.

        Args:
            which: ids, or positions 0..len-1.

        Raises:
            DatasetError: an id or a position does not exist.
        """
        by_id = {item.id: item for item in self.items} if any(isinstance(key, str) for key in which) else {}
        try:
            return self.with_items([by_id[key] if isinstance(key, str) else self._at(int(key)) for key in which])
        except (KeyError, IndexError) as error:
            raise DatasetError(f"{self.source}: no example {error.args[0]!r} among {len(self)}") from None

    def absolute(self) -> "Examples":
        """The same for processes with another working directory: of a cluster, say."""
        items = [dataclasses.replace(item, path=item.path.absolute()) for item in self.items]
        return dataclasses.replace(self, source=self.location, root=self.root.absolute(), items=tuple(items))

    def _at(self, position: int) -> Example:
        if not 0 <= position < len(self.items):
            raise IndexError(position)
        return self.items[position]


def parse_label(text: str, task: Task, number: dict[str, int]) -> Label:
    """Read what `Examples.label_text` wrote.

    Args:
        text: the label.
        task: its kind.
        number: name -> position.

    Raises:
        KeyError: a name is unknown.
        ValueError: not numbers, or not as many as there are names.
    """
    if task == "regression":
        values = tuple(float(part) for part in text.split("|"))
        if len(values) != len(number) or not np.isfinite(values).all():
            raise ValueError(text)
        return values
    if task == "multi_label":
        return tuple(sorted({number[name] for name in text.split("|") if name}))
    return number[text]


def ordered(names: Collection[str], class_order: Sequence[str], where: str) -> tuple[str, ...]:
    """Put the names of ordinal classes into their order, from low to high, and say which it is.

    Args:
        names: all that occur.
        class_order: the order; empty: numbers by their value, other names as people count (9 before 10).
        where: the data set, for the message.

    Raises:
        DatasetError: `class_order` lacks a name, or has one that does not occur, or one twice.
    """
    given = tuple(class_order)
    if given and (set(given) != set(names) or len(given) != len(names)):
        raise DatasetError(
            f"{where}: --class-order is {', '.join(given)}; the classes are {', '.join(sorted(names))}. "
            "Name each of them once, from low to high"
        )
    order = given or tuple(sorted(names, key=_natural))
    log.info("%s: the order of the classes is %s", where, " < ".join(order))
    return order


def _natural(name: str) -> tuple[Any, ...]:
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return (0, value, name)
    # re.split with a group alternates text and digits, so that like is compared with like.
    parts = re.split(r"(\d+)", name)
    return (1, *(int(part) if at % 2 else part for at, part in enumerate(parts)), name)
