"""Whether scores can be read as probabilities."""

import numpy as np
from numpy.typing import NDArray

from edgetl.metrics import confidences
from export.reporting import charts
from export.reporting.blocks import Block, Charts, Missing, Text, percent
from export.reporting.material import Material

BINS = 10
FEWEST = 10
"""Scores in a bin, below which its share says more of luck than of the model."""


def reliability_blocks(material: Material) -> tuple[Block, ...]:
    """The diagram of Keras and of the quantized artifact, and what it says."""
    if material.said is None:
        return (Missing("No predictions are stored.", f"python -m export.evaluate {material.run.path}"),)
    said, scheme = material.said, material.quantized
    series = []
    for name, outputs, style in ((scheme, said.schemes[scheme], "main"), ("Keras", said.keras, "other")):
        scores, right = confidences(said.labels, outputs, material.spec)
        series.append(charts.Series(name, *_bins(scores, right), style))
    chart = charts.reliability(
        "Score given against share that is right",
        series,
        f"Bins of {100 // BINS} points with at least {FEWEST} scores. Below the diagonal scores promise too much.",
    )
    row, before = material.report.row(scheme), material.report.keras_calibration_error
    after = row.calibration_error
    told = Text(
        f"Mean distance between score and share that is right (calibration error): Keras {percent(before)}, "
        f"{scheme} {percent(after)}. A threshold on the score, such as \u201cask a person below 80 %\u201d, means what "
        "it says only where this is small."
    )
    return (told, Charts((chart,)))


def _bins(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[list[float], list[float]]:
    """Mean score and share that is right of each bin that holds enough."""
    place = np.clip(np.ceil(scores * BINS) - 1, 0, BINS - 1).astype(np.int64)
    full = [index for index in range(BINS) if (place == index).sum() >= FEWEST]
    return [float(scores[place == i].mean()) for i in full], [float(right[place == i].mean()) for i in full]
