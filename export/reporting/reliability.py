"""Whether scores can be read as probabilities."""

import numpy as np
from numpy.typing import NDArray

from edgetl.metrics import confidences
from export.reporting import charts
from export.reporting.blocks import Block, Charts, Text, percent
from export.reporting.material import Material

BINS = 10
SURE_ENOUGH = 0.05
"""A temperature that differs from 1 by less changes no score by more than a point or so."""
FEWEST = 10
"""Scores in a bin, below which its share says more of luck than of the model."""


def reliability_blocks(material: Material) -> tuple[Block, ...]:
    """The diagram of Keras and of the quantized artifact, and what it says."""
    said, scheme = material.said, material.quantized
    series = []
    for name, outputs, style in ((scheme, said.schemes[scheme], "main"), ("Keras", said.keras, "other")):
        scores, right = confidences(said.labels, outputs, material.spec)
        series.append(charts.Series(name, *_bins(scores, right), style))
    drawn = (
        charts.reliability(
            "Score given against share that is right",
            series,
            f"Bins of {100 // BINS} points with at least {FEWEST} scores. Below the diagonal scores promise too much.",
        ),
        _histogram(confidences(said.labels, said.schemes[scheme], material.spec)[0], scheme),
    )
    row, before = material.report.row(scheme), material.report.keras_calibration_error
    after = row.calibration_error
    told = Text(
        f"Mean distance between score and share that is right (calibration error): Keras {percent(before)}, "
        f"{scheme} {percent(after)}. A threshold on the score, such as \u201cask a person below 80 %\u201d, means what "
        "it says only where this is small."
    )
    return (told, *_temperature(material), Charts(drawn))


def _temperature(material: Material) -> tuple[Block, ...]:
    """What one number more would make of the scores."""
    found = material.result(material.shipped).details.temperature
    if found is None or abs(found.temperature - 1) < SURE_ENOUGH:
        return ()
    before, after = percent(found.calibration_error_before), percent(found.calibration_error_after)
    if found.calibration_error_after >= found.calibration_error_before or found.log_loss_after >= found.log_loss_before:
        return (
            Text(
                f"A temperature would not help: {found.temperature:.2f}, fitted on validation photos, would change the "
                f"calibration error from {before} to {after}."
            ),
        )
    sure = "too sure of itself" if found.temperature > 1 else "not sure enough of itself"
    return (
        Text(
            f"{material.shipped} is {sure}: dividing its logits by {found.temperature:.2f}, fitted on validation "
            f"photos, would change the calibration error from {before} to {after}, and no answer. --calibrate-scores "
            "of the recipe writes it into the model."
        ),
    )


def _bins(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[list[float], list[float]]:
    """Mean score and share that is right of each bin that holds enough."""
    place = np.clip(np.ceil(scores * BINS) - 1, 0, BINS - 1).astype(np.int64)
    full = [index for index in range(BINS) if (place == index).sum() >= FEWEST]
    return [float(scores[place == i].mean()) for i in full], [float(right[place == i].mean()) for i in full]


def _histogram(scores: NDArray[np.float64], scheme: str) -> charts.Chart:
    """How often each score is given."""
    low = min(np.floor(BINS * scores.min() + 1e-9), BINS - 1) / BINS
    edges = np.linspace(low, 1, round((1 - low) * 2 * BINS) + 1)
    counts, _ = np.histogram(np.clip(scores, low, 1), edges)
    names = [f"{100 * a:.0f} to {100 * b:.0f} %: {n}" for a, b, n in zip(edges, edges[1:], counts, strict=False)]
    return charts.bars(
        f"How sure {scheme} is", counts.tolist(), names, "score given, %", "scores", ends=(100 * float(low), 100.0)
    )
