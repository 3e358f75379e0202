"""Dividing what must not be cut: groups of examples, and examples of several labels at once.

Each group goes, large ones first, where it brings all counts nearest to what was asked for: to the part in which it
lowers Pearson's chi-square most, over all classes or labels and the number of examples. Then whatever a part lacks
altogether is moved there from a part that keeps some of it.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edgetl.data.examples import Example, Examples

EXAMPLE = -1
"""The kind that every example is of: by it a part has its size."""
_UNLABELLED = -2


@dataclass
class Unit:
    """Examples that stay together."""

    name: str
    items: list[Example] = field(default_factory=list)
    kinds: Counter[int] = field(default_factory=Counter)
    """How many of its examples are of each kind: class or label by index, quantile, `EXAMPLE`."""


def units_of(examples: Examples) -> list[Unit]:
    """Put examples of one group together; those of none are alone."""
    units: dict[tuple[bool, str], Unit] = {}
    for item, kinds in zip(examples, _kinds(examples), strict=True):
        key = (True, item.group) if item.group else (False, item.id)
        unit = units.setdefault(key, Unit(key[1]))
        unit.items.append(item)
        unit.kinds.update(kinds)
    return list(units.values())


def required(examples: Examples) -> list[int]:
    """The kinds that no part may lack: all classes or labels that occur; of numbers only some example."""
    if examples.task == "regression":
        return [EXAMPLE]
    return [*(index for index, count in enumerate(examples.counts.values()) if count), EXAMPLE]


def spread(units: Sequence[Unit], shares: Sequence[float], needed: Collection[int], seed: int) -> list[list[Unit]]:
    """Divide units.

    Args:
        units: in any order.
        shares: of each part, summing to 1.
        needed: kinds that each part should have.
        seed: another seed, another division, where more than one is as good.

    Returns:
        The units of each part. One can lack a needed kind, or be far from its share, where the units allow no better.
    """
    parts = _Parts(units, shares)
    for unit in _by_size(units, parts.total, seed):
        parts.add(unit, min(range(len(shares)), key=lambda at: parts.cost(unit, at)))
    for kind in sorted(needed, key=lambda kind: (parts.total[kind], kind)):
        for at in range(len(shares)):
            if not parts.counts[at][kind]:
                parts.fetch(kind, at, needed)
    return parts.units


class _Parts:
    """A division in the making."""

    def __init__(self, units: Iterable[Unit], shares: Sequence[float]) -> None:
        self.shares = shares
        self.total: Counter[int] = Counter()
        for unit in units:
            self.total.update(unit.kinds)
        self.units: list[list[Unit]] = [[] for _ in shares]
        self.counts: list[dict[int, int]] = [defaultdict(int) for _ in shares]

    def add(self, unit: Unit, at: int, sign: int = 1) -> None:
        """Put a unit into a part, or take it out again."""
        if sign > 0:
            self.units[at].append(unit)
        else:
            self.units[at].remove(unit)
        for kind, count in unit.kinds.items():
            self.counts[at][kind] += sign * count

    def cost(self, unit: Unit, at: int, sign: int = 1) -> float:
        """What chi-square, sum((count - wanted)^2 / wanted), grows by when the unit comes to a part or leaves it."""
        share, counts = self.shares[at], self.counts[at]
        terms = [
            count * (2 * sign * (counts[kind] - share * self.total[kind]) + count) / (share * self.total[kind])
            for kind, count in unit.kinds.items()
        ]
        return math.fsum(terms)  # exact: the order of the kinds, which is that of the examples, must not tell in a tie

    def fetch(self, kind: int, to: int, needed: Collection[int]) -> None:
        """Move the unit with a kind that costs least, of those that other parts can do without."""
        found = [
            (self.cost(unit, to) + self.cost(unit, at, -1), at, position)
            for at in range(len(self.units))
            if at != to
            for position, unit in enumerate(self.units[at])
            if kind in unit.kinds and all(self.counts[at][k] > n for k, n in unit.kinds.items() if k in needed)
        ]
        if found:
            _, at, position = min(found)
            unit = self.units[at][position]
            self.add(unit, at, -1)
            self.add(unit, to)


def _by_size(units: Iterable[Unit], total: Mapping[int, int], seed: int) -> list[Unit]:
    """Large units first, and among those within a factor of two the ones with the rarest kind; else by hash."""

    def key(unit: Unit) -> tuple[int, int, bytes, str]:
        hashed = hashlib.sha256(f"{seed}\0{unit.name}".encode()).digest()
        return -len(unit.items).bit_length(), min(total[kind] for kind in unit.kinds), hashed, unit.name

    return sorted(units, key=key)


def _kinds(examples: Examples) -> list[tuple[int, ...]]:
    if examples.task == "multi_label":
        return [(*(item.label or (_UNLABELLED,)), EXAMPLE) for item in examples]  # type: ignore[misc]
    return [(stratum, EXAMPLE) for stratum in examples.strata.tolist()]
