"""From which score on a label is said: chosen on validation photos, for each label by itself."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from edgetl.outputs import OutputSpec
from edgetl.tasks import UNTUNED


def tuned(outputs: OutputSpec, labels: NDArray[np.float32], scores: NDArray[np.float32]) -> OutputSpec:
    """Choose the threshold of each label that gives it the highest F1; of other tasks, change nothing.

    A threshold lies halfway between two scores that occur, so that what quantization moves a little stays on its side.
    Of several with the same F1 the one nearest to 0.5 is taken; it is 0.5 where a label is true of no photo, or no
    score is above 0.

    Args:
        outputs: what the model says.
        labels: [n, k], 1 where a label is true, else 0; of photos that were not trained on.
        scores: [n, k], what the model says of them, 0..1.
    """
    if outputs.task != "multi_label":
        return outputs
    found = (_best(true > 0.5, each) for true, each in zip(labels.T, scores.T, strict=True))
    return dataclasses.replace(outputs, thresholds=tuple(found))


def untested(outputs: OutputSpec, labels: NDArray[np.float32]) -> str:
    """Say which labels have no photo to choose their threshold by; empty where all have, and for other tasks."""
    if outputs.task != "multi_label" or labels.any(axis=0).all():
        return ""
    names = ", ".join(name for name, true in zip(outputs.names, labels.T, strict=True) if not true.any())
    return f"no validation photo has the label {names}: its threshold is {UNTUNED:g}, not tested on any"


def _best(true: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    if not true.any() or not scores.any():
        return UNTUNED
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    hits = np.cumsum(true[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + hits[-1])
    below = np.append(ranked[1:], 0.0)
    cuts = (ranked + below) / 2
    possible = ranked > below  # equal scores are said together
    best = possible & (f1 >= f1[possible].max() - 1e-12)
    return float(cuts[best][np.abs(cuts[best] - UNTUNED).argmin()])
