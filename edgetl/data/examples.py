"""Labelled examples: what every source gives, and everything else takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DatasetError

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled file."""

    id: str
    """Unique name: the posix path relative to the root."""
    path: Path
    """Where the bytes are."""
    label: int
    """Index into the class names."""
    split: SplitName | None = None
    """The part that the data set itself assigns; None leaves the choice to `split`."""


@dataclass(frozen=True)
class Examples:
    """Labelled examples of one data set, or of one part of it."""

    source: str
    """What the user asked for: a folder or the name of a data set."""
    root: Path
    """The folder that ids are relative to."""
    class_names: tuple[str, ...]
    """Sorted, so that label numbers follow from the names alone."""
    items: tuple[Example, ...]
    """The examples, sorted by id."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)

    @property
    def location(self) -> str:
        """What `load` takes to find them again from any working directory: a name, or an absolute path."""
        return str(self.root.resolve()) if self.root == Path(self.source) else self.source

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Label of each example, int64 [n], read-only."""
        labels = np.fromiter((item.label for item in self.items), dtype=np.int64, count=len(self.items))
        labels.setflags(write=False)
        return labels

    @cached_property
    def class_counts(self) -> dict[str, int]:
        """Number of examples of each class; 0 for a class that has none here."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return {name: int(count) for name, count in zip(self.class_names, counts, strict=True)}

    def select(self, which: Sequence[str] | Sequence[int] | NDArray[np.integer]) -> "Examples":
        """Take some examples, in the order asked for.

        Args:
            which: ids, or positions 0..len-1.

        Raises:
            DatasetError: an id or a position does not exist.
        """
        by_id = {item.id: item for item in self.items} if any(isinstance(key, str) for key in which) else {}
        try:
            items = tuple(by_id[key] if isinstance(key, str) else self._at(int(key)) for key in which)
        except (KeyError, IndexError) as error:
            raise DatasetError(f"{self.source}: no example {error.args[0]!r} among {len(self)}") from None
        return Examples(self.source, self.root, self.class_names, items)

    def _at(self, position: int) -> Example:
        if not 0 <= position < len(self.items):
            raise IndexError(position)
        return self.items[position]
