"""Dividing what must not be cut: groups of examples, and examples of several labels at once.

Each group goes, large ones first, where it brings all counts nearest to what was asked for: to the part in which it
lowers Pearson's chi-square most, over all classes or labels and the number of examples. Then whatever a part lacks
altogether is moved there from a part that keeps some of it; and if that does not help, because what could be moved is
the last of another kind, integer programming finds the division next to this one in which no part lacks anything.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

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
        The units of each part. One lacks a needed kind only where no division has all; it can be far from its share.
    """
    parts = _Parts(units, shares)
    for unit in _by_size(units, parts.total, seed):
        parts.add(unit, min(range(len(shares)), key=lambda at: parts.cost(unit, at)))
    for kind in sorted(needed, key=lambda kind: (parts.total[kind], kind)):
        for at in range(len(shares)):
            if not parts.counts[at][kind]:
                parts.fetch(kind, at, needed)
    if any(not counts[kind] for counts in parts.counts for kind in needed):
        return _complete(parts.units, needed) or parts.units
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


def _complete(parts: Sequence[Sequence[Unit]], needed: Collection[int]) -> list[list[Unit]] | None:
    """Find the division in which each part has all that is needed, with as few examples in other parts as possible.

    Returns:
        The units of each part; None if there is no such division.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, eye_array, kron, vstack

    pairs = [(unit, at) for at, members in enumerate(parts) for unit in members]
    units, now = [unit for unit, _ in pairs], np.array([at for _, at in pairs])
    has = csr_array([[kind in unit.kinds for unit in units] for kind in sorted(needed)], dtype=float)
    # One variable, 0 or 1, for each unit in each part, the parts of a unit side by side.
    each_once = kron(eye_array(len(units)), np.ones((1, len(parts))))
    all_there = kron(has, eye_array(len(parts)))
    stays = np.zeros((len(units), len(parts)))
    stays[np.arange(len(units)), now] = [len(unit.items) for unit in units]
    found = milp(
        -stays.ravel(),
        integrality=np.ones(stays.size),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(
            vstack([each_once, all_there]), 1, np.repeat([1, np.inf], [len(units), all_there.shape[0]])
        ),
    )
    if found.x is None:
        return None
    chosen = found.x.reshape(stays.shape).argmax(axis=1)
    return [[unit for unit, at in zip(units, chosen, strict=True) if at == part] for part in range(len(parts))]


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
