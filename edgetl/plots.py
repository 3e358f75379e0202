"""Pictures of a training, as PNG bytes: the same numbers give the same bytes."""

import io
import logging
import math
import textwrap
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.history import Epoch, numbers
from edgetl.learning_rate import DIVERGED, Suggestion
from edgetl.outputs import Task
from edgetl.scores import PRIMARY, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
# Okabe and Ito's colours, which colour-blind people tell apart; lines differ in style as well.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"
FEW = 15
"""Up to so many epochs, each gets a marker."""
WORST = 8
"""Operators of a quantized network that are named."""
drawing = threading.Lock()
"""Held while drawing: matplotlib's parser of mathematical text, which labels logarithmic axes, is not thread-safe."""


def training_curves(epochs: Sequence[Epoch], title: str, task: Task = "classification") -> bytes:
    """Draw a history: loss, primary figure and learning rates over epochs, with the phases marked.

    Args:
        epochs: at least one row.
        title: stands above.
        task: what was learnt.

    Returns:
        PNG.

    Raises:
        ValueError: no row.
    """
    if not epochs:
        raise ValueError("Expected at least one epoch. Received: none")
    with drawing:
        key = _phase_key(epochs)
        figure = figure_of(11, 6.2 + 0.14 * key.count("\n"))
        grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
        loss, primary = (figure.add_subplot(grid[0, column]) for column in (0, 1))
        rate = figure.add_subplot(grid[1, :])
        figure.suptitle("\n".join(textwrap.wrap(title, 100)), fontsize=12, parse_math=False)
        figure.supxlabel(key, fontsize=8, color="#444444", parse_math=False)
        _losses(loss, epochs, "loss, share of the variance" if task == "regression" else "loss, nats")
        _primary(primary, epochs, f"{PRIMARY[task]}, %")
        _rates(rate, epochs)
        for axes in (loss, primary, rate):
            _phases(axes, epochs, named=axes is not rate)
        return png(figure)


def learning_rate_curve(
    rates: NDArray[np.float64], losses: Sequence[float] | NDArray[np.float64], suggestion: Suggestion
) -> bytes:
    """Draw a learning-rate range test: loss over rate, and the rate that it suggests.

    Args:
        rates: [n], learning rates.
        losses: [m], m <= n, training loss of each step.
        suggestion: what `edgetl.learning_rate.suggest` made of them.

    Returns:
        PNG.
    """
    raw, smoothed = np.asarray(losses, np.float64), suggestion.smoothed
    tried = rates[: len(raw)]
    with drawing:
        figure = figure_of(7.5, 4.6)
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.plot(tried, raw, color=GREY, linewidth=0.8, alpha=0.55, label="each step")
        axes.plot(tried, smoothed, color=BLUE, linewidth=2.2, label="smoothed")
        if suggestion.learning_rate is not None:
            name = f"suggestion: {suggestion.learning_rate:.2g}"
            axes.axvline(suggestion.learning_rate, color=ORANGE, linewidth=1.2, linestyle="--")
            at = int(np.abs(np.log(tried / suggestion.learning_rate)).argmin())
            axes.plot([tried[at]], [smoothed[at]], "o", color=ORANGE, markersize=8, label=name, zorder=3)
        if suggestion.diverged_at is not None:
            name = f"diverged from {suggestion.diverged_at:.2g} on"
            axes.axvspan(suggestion.diverged_at, rates[-1], color=GREY, alpha=0.15, linewidth=0, label=name)
        axes.set_xlim(rates[0], rates[-1])
        axes.set_ylim(*_loss_range(raw, smoothed))
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss, nats")
        axes.set_title("\n".join(textwrap.wrap(suggestion.reason, 85)), fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, framealpha=0.9)
        return png(figure)


def quantization_errors(
    own: Sequence[float],
    accumulated: Sequence[float],
    effects: Sequence[float],
    floats: Sequence[bool],
    names: Sequence[str],
    title: str,
) -> bytes:
    """Draw what each operator of a quantized network adds to its error, in execution order.

    Args:
        own: [n], signal to noise of the error that an operator adds, dB; infinite where there is none.
        accumulated: [n], of all error that has piled up until there.
        effects: [n], mean absolute change of a probability when an operator's result alone is rounded.
        floats: [n], which operators compute in floating point.
        names: [n], of the operators; the worst are named.
        title: stands above.

    Returns:
        PNG.
    """
    x = np.arange(len(own))
    worst = [int(i) for i in np.argsort(effects)[::-1][:WORST] if effects[i] > 0]
    with drawing:
        figure = figure_of(11, 6.6)
        grid = figure.add_gridspec(2, 1, height_ratios=(2, 1))
        noise = figure.add_subplot(grid[0])
        effect = figure.add_subplot(grid[1], sharex=noise)
        figure.suptitle("\n".join(textwrap.wrap(title, 100)), fontsize=12, parse_math=False)
        key = "   ".join(f"{n}\u00a0{names[i]}".replace(" ", "\u00a0") for n, i in enumerate(sorted(worst), start=1))
        key = "\n".join(textwrap.wrap(f"largest effects:   {key}", 150)) if worst else ""
        figure.supxlabel(key, fontsize=8, color="#444444", parse_math=False)
        for values, label, color, style in (
            (own, "added by the operator itself", GREY, ":"),
            (accumulated, "accumulated", BLUE, "-"),
        ):
            shown = np.where(np.isfinite(values), values, np.nan)
            marker = "o" if len(x) <= 80 else "."
            noise.plot(x, shown, color=color, linestyle=style, linewidth=1.2, marker=marker, markersize=3, label=label)
        effect.bar(x, 100 * np.asarray(effects, np.float64), width=0.8, color=ORANGE)
        for number, index in enumerate(sorted(worst), start=1):
            at = (index, 100 * effects[index])
            effect.annotate(str(number), at, (0, 2), textcoords="offset points", ha="center", fontsize=8)
        for axes in (noise, effect):
            for i, index in enumerate(np.flatnonzero(floats).tolist()):
                name = "in float" if i == 0 and axes is noise else None
                axes.axvspan(index - 0.5, index + 0.5, color=GREEN, alpha=0.2, linewidth=0, zorder=0, label=name)
            axes.set_xlim(-1, len(x))
            axes.grid(alpha=0.25)
        effect.margins(y=0.18)
        effect.set_ylim(bottom=0)
        noise.set_ylabel("signal to noise, dB")
        effect.set_ylabel("effect, points")
        effect.set_xlabel("operator, in execution order")
        noise.legend(
            fontsize=8, ncols=3, frameon=False, loc="lower right", bbox_to_anchor=(1, 0.98)
        )  # no line lies there
        return png(figure)


@dataclass(frozen=True)
class Tradeoff:
    """A model as a point: what it can against what it costs."""

    name: str
    latency_ms: float
    size_bytes: int
    scores: Scores


def tradeoffs(points: Sequence[Tradeoff], marked: str, title: str) -> bytes:
    """Draw the primary figure over latency, with its interval; the area of a point is the size of the file.

    A line joins those that no other beats in both (the Pareto front).

    Args:
        points: at least one, all of one task.
        marked: name of the one that stands out.
        title: stands above.

    Returns:
        PNG.
    """
    front, best = [], -math.inf
    for point in sorted(points, key=lambda each: (each.latency_ms, -each.scores.primary)):
        if point.scores.primary > best:
            front.append(point)
            best = point.scores.primary
    with drawing:
        figure = figure_of(7.5, 5)
        axes = figure.add_subplot()
        line = [(point.latency_ms, 100 * point.scores.primary) for point in front]
        axes.plot(*zip(*line, strict=True), color=GREY, linewidth=1.2, linestyle="--", zorder=1)
        for point in points:
            x, y = point.latency_ms, 100 * point.scores.primary
            color = ORANGE if point.name == marked else BLUE
            ends = [[y - 100 * point.scores.primary_low], [100 * point.scores.primary_high - y]]
            axes.errorbar([x], [y], yerr=ends, color=color, alpha=0.45, linewidth=1, capsize=3, zorder=2)
            axes.scatter([x], [y], s=point.size_bytes / 2e4, color=color, edgecolors="white", zorder=3)
            name = f"{point.name}, {point.size_bytes / 1e6:.1f} MB"
            weight = "bold" if point.name == marked else "normal"
            left = x > (min(each.latency_ms for each in points) + max(each.latency_ms for each in points)) / 2
            side, at = ("right", (-9, 9)) if left else ("left", (9, 9))
            axes.annotate(
                name, (x, y), at, textcoords="offset points", ha=side, fontsize=8, weight=weight, parse_math=False
            )
        axes.margins(x=0.25, y=0.1)
        axes.set_xlabel("latency of one photo, ms (int8, this machine)")
        axes.set_ylabel(f"{PRIMARY[points[0].scores.task]}, % (bars: 95 % interval)")
        axes.set_title("\n".join(textwrap.wrap(title, 85)), fontsize=10, parse_math=False)
        axes.grid(alpha=0.25)
        return png(figure)


def figure_of(width: float, height: float) -> "Figure":
    """An empty figure that belongs to nobody else: pyplot would keep it, in one list for all threads."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache on standard error
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: "Figure") -> bytes:
    """The same numbers give the same bytes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a box in the title is all it costs
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})  # no version: same numbers, same bytes
    return file.getvalue()


def _losses(axes: "Axes", epochs: Sequence[Epoch], label: str) -> None:
    x = numbers(epochs)
    validation = [epoch.validation_loss for epoch in epochs]
    best = int(np.argmin(validation))
    marker = _marker(epochs)
    trained = [epoch.train_loss if epoch.epoch > 0 else np.nan for epoch in epochs]  # nothing was optimized before
    if len(epochs) > 1 or epochs[0].epoch > 0:
        name = "training, as optimized"
        axes.plot(x, trained, color=GREY, linestyle=":", linewidth=1.5, marker=marker, markersize=3, label=name)
    fit = [epoch.fit_loss for epoch in epochs]
    axes.plot(x, fit, color=BLUE, linestyle="--", marker=marker, markersize=4, label="training photos as they are")
    name = f"validation, lowest {validation[best]:.3f} after epoch {x[best]}"
    axes.plot(x, validation, color=ORANGE, linewidth=2, marker=marker, markersize=4, label=name)
    axes.plot([x[best]], [validation[best]], "o", color=ORANGE, markersize=8, markerfacecolor="white", zorder=3)
    axes.set_ylabel(label)
    axes.set_xlabel("epoch")
    _legend(axes, epochs)


def _primary(axes: "Axes", epochs: Sequence[Epoch], label: str) -> None:
    x, marker = numbers(epochs), _marker(epochs)
    fit, validation = (
        [100 * getattr(epoch, name) for epoch in epochs] for name in ("fit_primary", "validation_primary")
    )
    axes.plot(x, fit, color=BLUE, linestyle="--", marker=marker, markersize=4, label="training photos as they are")
    name = f"validation, last {validation[-1]:.1f} %"
    axes.plot(x, validation, color=ORANGE, linewidth=2, marker=marker, markersize=4, label=name)
    axes.set_ylabel(label)
    axes.set_xlabel("epoch")
    _legend(axes, epochs)


def _legend(axes: "Axes", epochs: Sequence[Epoch]) -> None:
    if len(epochs) <= 2:
        axes.margins(y=0.5)  # room for the legend between so few points
    axes.legend(fontsize=8, framealpha=0.9)


def _rates(axes: "Axes", epochs: Sequence[Epoch]) -> None:
    from matplotlib.ticker import NullFormatter

    axes.set_ylabel("learning rate")
    x, marker = numbers(epochs), _marker(epochs)
    drawn = False
    for name, label, color, style in (
        ("head_learning_rate", "head", GREEN, "-"),
        ("backbone_learning_rate", "backbone, last block", PURPLE, "--"),
    ):
        values = np.array([getattr(epoch, name) for epoch in epochs])
        if (values > 0).any():  # 0, nothing learnt, has no place on a logarithmic axis
            shown = np.where(values > 0, values, np.nan)
            axes.plot(x, shown, color=color, linestyle=style, marker=marker, markersize=3, label=label)
            drawn = True
    if drawn:
        axes.set_yscale("log")
        axes.set_ylim(
            *_decades(
                [epoch.head_learning_rate for epoch in epochs], [epoch.backbone_learning_rate for epoch in epochs]
            )
        )
        axes.yaxis.set_minor_formatter(NullFormatter())  # so slim a panel has room for powers of ten only
        axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.96), ncols=2, frameon=False)
    else:
        axes.set_yticks([])


def _decades(*rates: Sequence[float]) -> tuple[float, float]:
    """Whole powers of ten around positive rates, five at most: a schedule may end next to 0."""
    positive = [rate for group in rates for rate in group if rate > 0]
    high = math.floor(math.log10(max(positive))) + 1
    low = max(math.floor(math.log10(min(positive))), high - 5)
    return 10.0**low, 10.0**high


def _marker(epochs: Sequence[Epoch]) -> str:
    return "o" if len(epochs) <= FEW else ""


def _runs(epochs: Sequence[Epoch]) -> list[tuple[str, int, int]]:
    """Phases in order: name, numbers of the first and the last epoch. One starts anew where epochs do."""
    starts = np.cumsum(
        [
            epoch.epoch <= 1 and not (i and epochs[i - 1].epoch == 0 and epochs[i - 1].phase == epoch.phase)
            for i, epoch in enumerate(epochs)
        ]
    )
    named = zip(numbers(epochs), epochs, starts, strict=True)
    groups = [list(group) for _, group in groupby(named, key=lambda each: (each[1].phase, each[2]))]
    return [(group[0][1].phase, group[0][0], group[-1][0]) for group in groups]


def _phases(axes: "Axes", epochs: Sequence[Epoch], *, named: bool) -> None:
    """Shade every other phase and number them: names, which can be long, stand in the key below."""
    from matplotlib.ticker import MaxNLocator

    runs = _runs(epochs)
    for index, (_, first, last) in enumerate(runs):
        if index % 2:
            axes.axvspan(first - 0.5, last + 0.5, color=GREY, alpha=0.12, linewidth=0, zorder=0)
        if named and len(runs) > 1:
            where = axes.get_xaxis_transform()
            axes.text(
                (first + last) / 2,
                1.01,
                str(index + 1),
                transform=where,
                ha="center",
                va="bottom",
                fontsize=8,
                color=GREY,
            )
    axes.set_xlim(runs[0][1] - 0.5, runs[-1][2] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)


def _phase_key(epochs: Sequence[Epoch]) -> str:
    runs = _runs(epochs)
    names = [f"{index}\u00a0{name}".replace(" ", "\u00a0") for index, (name, _, _) in enumerate(runs, start=1)]
    text = "   ".join(names) if len(runs) > 1 else f"phase: {runs[0][0]}"
    lines = textwrap.wrap(("phases:   " if len(runs) > 1 else "") + text, 150)
    return "\n".join(lines)


def _loss_range(raw: NDArray[np.float64], smoothed: NDArray[np.float64]) -> tuple[float, float]:
    """Limits that show where the loss falls; what explodes is cut off a little above where it started."""
    curve = smoothed[np.isfinite(smoothed)]
    if not len(curve):
        return 0.0, 1.0
    inside = raw[: len(curve)]
    low, high = min(curve.min(), inside.min()), max(curve[0], min(curve.max(), DIVERGED * curve.min()))
    top = max(float(np.quantile(inside, 0.9)), high)
    margin = 0.08 * (top - low) or 0.1 * abs(low) or 0.1
    return float(low - margin), float(min(top, 1.5 * high) + margin)
