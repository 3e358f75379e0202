"""The features of photos as training and scoring take them: block by block, so that memory does not grow with them.

A few are held in memory, as one block. Many stay in the shards in which they were computed, each pass reads them again,
and a block is what one shard has of them. They are read, not mapped: mapped pages count as the process's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.shards import ShardFile

HELD_BYTES = 64_000_000
"""Features of a data set up to this size are held in memory, 12,500 photos of 1,280 numbers. With what training makes
of them it is three times as much, a fifth of what TensorFlow takes; reading more of them anew in each pass doubles the
time of a linear head, from 2 s to 4 s for 20,000 photos."""

Places = NDArray[np.int64] | slice
"""Positions of a block's rows among all."""
Change = Callable[[NDArray[np.float32]], NDArray[Any]]
"""What is made of each block, [b, d] -> [b, k], in memory of its own."""


class Rows(ABC):
    """Rows of numbers, one for each of some photos, in their order."""

    width: int
    """How many numbers a row has."""

    @abstractmethod
    def __len__(self) -> int:
        """How many rows there are."""

    @property
    @abstractmethod
    def pieces(self) -> int:
        """How many blocks there are."""

    @abstractmethod
    def piece(self, index: int) -> tuple[Places, NDArray[Any]]:
        """One block.

        Args:
            index: 0..pieces-1.

        Returns:
            Where its rows stand, and the rows, [b, width]; leave them as they are.

        Raises:
            CacheError: a file is gone, or is not what it was.
        """

    @abstractmethod
    def __getitem__(self, which: Sequence[int] | NDArray[Any]) -> "Rows":
        """Some rows, by their positions 0..len-1, in the order asked for."""

    @abstractmethod
    def mapped(self, change: Change, width: int | None = None) -> "Rows":
        """What a function makes of these rows, `width` numbers each; by default as many as before."""

    def blocks(self) -> Iterator[tuple[Places, NDArray[Any]]]:
        """All blocks in their order, see `piece`; only one is in memory at a time."""
        return (self.piece(index) for index in range(self.pieces))

    def array(self) -> NDArray[Any]:
        """All rows in memory, [n, width]: for a few, or for few numbers of each."""
        whole: NDArray[Any] = np.zeros((0, self.width), np.float32)
        for places, block in self.blocks():
            if not len(whole):
                whole = np.empty((len(self), *block.shape[1:]), block.dtype)
            whole[places] = block
        return whole


class Held(Rows):
    """Rows in memory."""

    def __init__(self, values: NDArray[Any]) -> None:
        """Take an array, [n, width]."""
        self._values, self.width = values, values.shape[1]

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._values)

    @property
    def pieces(self) -> int:
        """One."""
        return 1

    def piece(self, index: int) -> tuple[Places, NDArray[Any]]:
        """All rows."""
        return slice(None), self._values

    def __getitem__(self, which: Sequence[int] | NDArray[Any]) -> "Held":
        """Some rows."""
        return Held(self._values[which])

    def mapped(self, change: Change, width: int | None = None) -> "Held":
        """What a function makes of these rows, computed at once."""
        return Held(change(self._values))

    def array(self) -> NDArray[Any]:
        """All rows; leave them as they are."""
        return self._values


class Stored(Rows):
    """Rows in the files of shards."""

    def __init__(
        self,
        files: tuple[ShardFile, ...],
        file: NDArray[np.int32],
        row: NDArray[np.int32],
        width: int,
        changes: tuple[Change, ...] = (),
    ) -> None:
        """Say where rows are.

        Args:
            files: of all shards.
            file: position among `files` of each row, [n].
            row: its place in the file, [n].
            width: how many numbers a row has after all changes.
            changes: what is made of each block, one after the other.
        """
        self._files, self._file, self._row, self.width, self._changes = files, file, row, width, changes

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._file)

    @property
    def pieces(self) -> int:
        """How many shards hold some of the rows."""
        return len(self._ends) - 1

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """Positions, shard by shard."""
        return np.argsort(self._file, kind="stable")

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Where in that order shards begin, and the last one ends."""
        starts = np.flatnonzero(np.diff(self._file[self._order], prepend=-1))
        return np.append(starts, len(self))

    def piece(self, index: int) -> tuple[Places, NDArray[Any]]:
        """What one shard has of the rows."""
        places = self._order[self._ends[index] : self._ends[index + 1]]
        block: NDArray[Any] = self._files[self._file[places[0]]].read()[self._row[places]]
        for change in self._changes:
            block = change(block)
        return places, block

    def __getitem__(self, which: Sequence[int] | NDArray[Any]) -> "Stored":
        """Some rows; nothing is read."""
        return Stored(self._files, self._file[which], self._row[which], self.width, self._changes)

    def mapped(self, change: Change, width: int | None = None) -> "Stored":
        """What a function will make of each block when it is read."""
        width = self.width if width is None else width
        return Stored(self._files, self._file, self._row, width, (*self._changes, change))


RowsLike = Rows | NDArray[np.float32]
"""Rows, or an array [n, d] in their place."""


def as_rows(values: RowsLike) -> Rows:
    """Take an array, [n, d], for rows in memory; rows are what they are."""
    return values if isinstance(values, Rows) else Held(values)
