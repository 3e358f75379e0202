"""The picture of a search, as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgetl.plots import BLUE, GREEN, GREY, ORANGE, drawing, figure_of, png
from edgetl.search.outcome import MORE_IS_BETTER, Objective, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNITS: dict[Objective, tuple[str, float]] = {
    "accuracy": ("{} of validation photos, %", 100.0),
    "int8_accuracy": ("{} of the int8 file, %", 100.0),
    "latency_ms": ("latency of the int8 file, ms", 1.0),
    "size_kb": ("int8 file, kB", 1.0),
}
_MARKS = {"complete": (BLUE, "o"), "pruned": (GREY, "x"), "infeasible": (GREEN, "^")}


def search_picture(
    outcomes: Sequence[Outcome],
    objectives: Sequence[Objective],
    best: Sequence[int],
    importance: Mapping[str, float],
    primary: str,
) -> bytes:
    """Draw how the search went, or what it traded, beside what each knob matters.

    Args:
        outcomes: all trials.
        objectives: one: its figure over the trials; several: the first two against each other.
        best: numbers of the trials that stand out.
        importance: knob -> share of the variance, from the largest down; may be empty.
        primary: name of the task's figure.

    Returns:
        PNG.
    """
    with drawing:
        figure = figure_of(10, 4.2)
        axes = figure.add_subplot(1, 2, 1)
        if len(objectives) == 1:
            _progress(axes, outcomes, objectives[0], best)
        else:
            _tradeoff(axes, outcomes, objectives, best)
        name, _ = _UNITS[objectives[0]]
        axes.set_ylabel(name.format(primary))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
        _bars(figure.add_subplot(1, 2, 2), importance)
        return png(figure)


def _scatter(axes: "Axes", outcomes: Sequence[Outcome], x: Sequence[float], y: Sequence[float]) -> None:
    for state, (color, marker) in _MARKS.items():
        at = [place for place, each in enumerate(outcomes) if each.state == state]
        if at:
            xs, ys = ([values[place] for place in at] for values in (x, y))
            axes.scatter(xs, ys, color=color, marker=marker, s=28, label=f"{state} ({len(at)})", zorder=2)


def _progress(axes: "Axes", outcomes: Sequence[Outcome], objective: Objective, best: Sequence[int]) -> None:
    scale = _UNITS[objective][1]
    there = [each for each in outcomes if objective in each.figures or "accuracy" in each.figures]
    values = [scale * each.figures.get(objective, each.figures.get("accuracy", 0.0)) for each in there]
    _scatter(axes, there, [each.number for each in there], values)
    complete = [(each.number, value) for each, value in zip(there, values, strict=True) if each.state == "complete"]
    if complete:
        numbers, reached = zip(*complete, strict=True)
        running = (np.maximum if MORE_IS_BETTER[objective] else np.minimum).accumulate(reached)
        axes.step(numbers, running, where="post", color=ORANGE, linewidth=1.5, label="best so far", zorder=1)
    for number, value in complete:
        if number in best:
            axes.scatter([number], [value], s=110, facecolors="none", edgecolors=ORANGE, linewidths=2, zorder=3)
    axes.set_xlabel("trial")


def _tradeoff(axes: "Axes", outcomes: Sequence[Outcome], objectives: Sequence[Objective], best: Sequence[int]) -> None:
    second, first = objectives[1], objectives[0]
    there = [each for each in outcomes if first in each.figures and second in each.figures]
    x, y = ([_UNITS[name][1] * each.figures[name] for each in there] for name in (second, first))
    _scatter(axes, there, x, y)
    front = sorted((x[place], y[place]) for place, each in enumerate(there) if each.number in best)
    if front:
        axes.plot(*zip(*front, strict=True), color=ORANGE, linestyle="--", marker="o", markerfacecolor="none",
                  markersize=10, label="no other beats these")  # fmt: skip
    axes.set_xlabel(_UNITS[second][0])


def _bars(axes: "Axes", importance: Mapping[str, float]) -> None:
    names, shares = list(importance), [100 * share for share in importance.values()]
    axes.barh(names[::-1], shares[::-1], color=BLUE)
    axes.set_xlabel("share of the variance that a knob explains, %")
    axes.set_xlim(0, 100)
    if not names:
        axes.text(50, 0, "too few trials to tell", ha="center", va="center", color=GREY)
        axes.set_yticks([])
