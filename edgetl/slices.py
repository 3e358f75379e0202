"""Figures taken apart by what else is known of the photos: is the model worse on one camera or site than on the rest?

A figure of few photos moves by chance, and the worst of many slices looks bad even where nothing is wrong. So the slice
that is most behind is held against what the worst slice would be if photos were dealt to the slices at random: a
permutation test of the largest gap over all slices of all columns (Westfall and Young 1993). Of two columns that go
together, say camera and site, it can't tell which one matters.
"""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.bootstrap import interval, resampled
from edgetl.data import Examples
from edgetl.metrics import said_labels, wilson_interval
from edgetl.outputs import OutputSpec

LEAST_PHOTOS = 20
"""A figure of fewer has an interval of over 40 points. Values that are rarer go into one slice together."""
QUARTILES = 4
DISTINCT = 10
"""Numbers are cut at their quartiles if there are more different ones than this. One that fills two of the quartiles is
a slice by itself."""
OTHERS = "(others)"
EMPTY = "(none)"
PERMUTATIONS = 1000
BLOCK = 4_000_000
"""Values that are permuted at once: 16 MB."""
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Slice:
    """The photos with one value in a column."""

    value: str
    """The value; of a number its range; EMPTY; or OTHERS for all that are too rare."""
    samples: int
    figure: float
    """Mean merit (`merits`): top-1 of classes, F1 of the labels of a photo, R2 against the variance of all photos."""
    low: float
    high: float
    """95 % interval of `figure`: Wilson's of a share, else a bootstrap; of fewer than LEAST_PHOTOS by the variance of
    all."""
    recalls: tuple[float | None, ...]
    """Recall of each class or label within the slice; None for one that has no photo there. Empty for numbers."""


@dataclass(frozen=True)
class Disparity:
    """The slice of a column that is most behind the rest."""

    value: str
    gap: float
    """Mean of all other photos less that of the slice: positive, the slice is behind."""
    low: float
    high: float
    """95 % interval of `gap`, as if this slice had been chosen beforehand."""
    p: float
    """How often chance alone would put the worst of all slices of all columns as far behind."""


@dataclass(frozen=True)
class SliceColumn:
    """One model's figures by the values of one column."""

    column: str
    slices: tuple[Slice, ...]
    worst: Disparity
    """By the figure itself."""
    most_lost: Disparity | None
    """By what was lost against the reference model, photo by photo; None of the reference."""


@dataclass(frozen=True, eq=False)
class Cut:
    """How a column divides photos."""

    column: str
    values: tuple[str, ...]
    index: NDArray[np.int64]
    """[n], position in `values`."""


def cuts(examples: Examples) -> tuple[Cut, ...]:
    """Divide photos by each column; columns that give a single slice are left out."""
    found = []
    for place, column in enumerate(examples.columns):
        given = [example.values[place] for example in examples]
        values = _pooled(_ranges(given))
        names = tuple(sorted(set(values), key=lambda value: (value in (OTHERS, EMPTY), _natural(value))))
        if len(names) > 1:
            number = {name: index for index, name in enumerate(names)}
            found.append(Cut(column, names, np.array([number[value] for value in values], np.int64)))
    return tuple(found)


def slice_figures(
    columns: tuple[Cut, ...],
    labels: NDArray[Any],
    outputs: NDArray[np.float32],
    spec: OutputSpec,
    reference: NDArray[np.float32] | None = None,
) -> tuple[SliceColumn, ...]:
    """Take the figures of a model apart.

    Args:
        columns: how (`cuts`), of the same photos.
        labels: see `edgetl.metrics.score`.
        outputs: [n, k] of the model.
        spec: what they stand for.
        reference: [n, k] of the model that this one was made of, if it was.
    """
    merit = merits(labels, outputs, spec)
    behind = _disparities(columns, merit)
    lost = _disparities(columns, merit - merits(labels, reference, spec)) if reference is not None else None
    return tuple(
        SliceColumn(
            cut.column,
            tuple(
                _slice(value, cut.index == index, merit, labels, outputs, spec)
                for index, value in enumerate(cut.values)
            ),
            behind[number],
            lost[number] if lost else None,
        )
        for number, cut in enumerate(columns)
    )


def merits(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> NDArray[np.float64]:
    """What each photo contributes to a mean that can be taken over any of them, [n]; at most 1, more is better.

    Classes: whether the right one is named, whose mean is top-1. Numbers: 1 less the squared error over the variance of
    all photos, whose mean is R2; within a slice that is narrower than the whole, an R2 of its own would be lower for
    nothing. Labels: F1 of what is said of the one photo, 1 where rightly nothing is; a macro F1 would hang on which
    labels the slice has.
    """
    if spec.exclusive:
        return np.asarray(outputs.argmax(axis=1) == labels, np.float64)
    if spec.task == "multi_label":
        said, true = said_labels(outputs, spec), labels > 0.5
        both = said.sum(axis=1) + true.sum(axis=1)
        return np.asarray(np.where(both > 0, 2 * (said & true).sum(axis=1) / np.maximum(both, 1), 1.0))
    spread = labels.var(axis=0, dtype=np.float64)
    wrong = (outputs.astype(np.float64) - labels) ** 2
    return np.asarray(1 - (wrong / np.where(spread > 0, spread, 1)).mean(axis=1))


def _slice(
    value: str,
    which: NDArray[np.bool_],
    merit: NDArray[np.float64],
    labels: NDArray[Any],
    outputs: NDArray[np.float32],
    spec: OutputSpec,
) -> Slice:
    own = merit[which]
    figure = float(own.mean())
    if spec.exclusive:
        low, high = wilson_interval(int(own.sum()), len(own))
    elif len(own) < LEAST_PHOTOS:
        error = _Z * _variance(own, merit) ** 0.5
        low, high = max(figure - error, 0.0 if spec.task == "multi_label" else -math.inf), min(figure + error, 1.0)
    else:
        low, high = interval(resampled(own[:, None], lambda sums: sums[:, 0] / len(own)), figure)
    return Slice(value, len(own), figure, low, high, _recalls(labels[which], outputs[which], spec))


def _variance(own: NDArray[np.float64], merit: NDArray[np.float64]) -> float:
    """Of the mean merit of some photos.

    Fewer than LEAST_PHOTOS can be alike by chance, a single one always is: they are held to vary at least as all do.
    """
    least = merit.var() if len(own) < LEAST_PHOTOS else 0.0
    return float(max(own.var(), least) / len(own))


def _recalls(labels: NDArray[Any], outputs: NDArray[np.float32], spec: OutputSpec) -> tuple[float | None, ...]:
    if spec.task == "regression":
        return ()
    if spec.exclusive:
        every = np.eye(len(spec.names), dtype=bool)
        true, said = every[labels], every[outputs.argmax(axis=1)]
    else:
        true, said = labels > 0.5, said_labels(outputs, spec)
    samples, right = true.sum(axis=0), (true & said).sum(axis=0)
    return tuple(float(hits / count) if count else None for hits, count in zip(right, samples, strict=True))


def _disparities(columns: tuple[Cut, ...], merit: NDArray[np.float64]) -> tuple[Disparity, ...]:
    """The worst slice of each column."""
    if not columns:
        return ()
    member = np.hstack([cut.index[:, None] == np.arange(len(cut.values)) for cut in columns])
    counts = member.sum(axis=0)
    gaps = _gaps(merit[None], member)[0]
    noise = merit.std() * np.sqrt(1 / counts + 1 / (len(merit) - counts))
    # Where all photos fare alike, nobody is behind.
    strength = np.divide(gaps, noise, out=np.zeros_like(gaps), where=noise > 1e-12)
    chance = _largest_by_chance(merit, member, noise)
    found, first = [], 0
    for cut in columns:
        worst = first + int(strength[first : first + len(cut.values)].argmax())
        inside = member[:, worst]
        error = sum(_variance(part, merit) for part in (merit[inside], merit[~inside])) ** 0.5
        gap = float(gaps[worst])
        p = (1 + int((chance >= strength[worst] - 1e-9).sum())) / (1 + len(chance))
        found.append(Disparity(cut.values[worst - first], gap, gap - _Z * error, gap + _Z * error, p))
        first += len(cut.values)
    return tuple(found)


def _gaps(merit: NDArray[np.floating[Any]], member: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of all other photos less that of each slice: [m, n] merits, [n, s] members -> [m, s]."""
    counts, total = member.sum(axis=0), merit.sum(axis=1, keepdims=True, dtype=np.float64)
    inside = np.asarray(merit @ member.astype(merit.dtype), np.float64)
    return np.asarray((total - inside) / (len(member) - counts) - inside / counts)


def _largest_by_chance(
    merit: NDArray[np.float64], member: NDArray[np.bool_], noise: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The largest gap of any slice, in standard errors, with photos dealt at random; [PERMUTATIONS]."""
    random, found = np.random.default_rng(0), []
    block = max(1, min(PERMUTATIONS, BLOCK // len(merit)))
    for start in range(0, PERMUTATIONS, block):
        count = min(block, PERMUTATIONS - start)
        dealt = random.permuted(np.tile(merit.astype(np.float32), (count, 1)), axis=1)
        gaps = _gaps(dealt, member)
        found.append(np.divide(gaps, noise, out=np.zeros_like(gaps), where=noise > 1e-12).max(axis=1))
    return np.concatenate(found)


def _ranges(values: list[str]) -> list[str]:
    """Numbers by their quartiles, anything else as it is."""
    try:
        numbers = np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return [value or EMPTY for value in values]
    known = numbers[np.isfinite(numbers)]
    if len(np.unique(known)) <= DISTINCT:
        return [value or EMPTY for value in values]
    edges, times = np.unique(np.quantile(known, np.linspace(0, 1, QUARTILES + 1)), return_counts=True)
    # Whole numbers in full, and as many digits as tell the edges apart: with 4, the days of a year are all alike.
    least = min(max(4, len(f"{np.abs(edges).max():.0f}")), 17)
    written = next(w for d in range(least, 18) if len(set(w := [f"{edge:.{d}g}" for edge in edges])) == len(edges))
    ranges = [f"{low} to {high}" for low, high in pairwise(written)]
    place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(ranges) - 1)
    names = np.where(np.isfinite(numbers), np.array(ranges)[place], EMPTY).tolist()
    tied = {edge: name for edge, name, count in zip(edges.tolist(), written, times, strict=True) if count > 2}
    return [tied.get(number, name) for number, name in zip(numbers.tolist(), names, strict=True)]


def _pooled(values: list[str]) -> list[str]:
    """Values with too few photos as one."""
    counts = Counter(values)
    return [OTHERS if counts[value] < LEAST_PHOTOS else value for value in values]


def _natural(value: str) -> tuple[float, str]:
    """Numbers and ranges by size, then text."""
    try:
        return float(value.split(" ")[0]), value
    except ValueError:
        return float("inf"), value
