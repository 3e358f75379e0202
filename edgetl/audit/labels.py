"""Labels that look wrong: confident learning on stored features (Northcutt et al., JAIR 2021, arXiv 1911.00068).

A linear probe that has not seen a photo says how probable each class is. A class is believed from the mean probability
on that it gives to the photos that carry its label; where another class than the label is believed, there is doubt.
(cleanlab's filter `confident_learning` finds the very same photos; it costs pandas and three seconds of imports.)
"""

import numpy as np
from numpy.typing import NDArray

from edgetl.audit.findings import LabelIssue
from edgetl.data import Examples
from edgetl.probe import L2_GRID, fit_linear_probe

FOLDS = 5


def reason_to_skip(examples: Examples) -> str:
    """Say why labels can't be judged; empty where they can."""
    if examples.task == "regression":
        return "labels: numbers are not judged"
    few = {name: n for name, n in examples.counts.items() if min(n, _others(examples, n)) < FOLDS}
    if few:
        name, count = min(few.items(), key=lambda item: item[1])
        return f"labels: {name} has {count} of {len(examples)} photos, cross-validation needs {FOLDS}"
    return ""


def find(features: NDArray[np.float32], examples: Examples, seed: int = 0) -> list[LabelIssue]:
    """List doubtful labels, most doubtful first.

    Args:
        features: [n, d].
        examples: theirs; classes, or several labels. Copies should be left out: they would vouch for one another.
        seed: of the folds.
    """
    outputs = out_of_fold(features, examples, seed)
    names = examples.output_names
    if examples.outputs.exclusive:
        issues = _doubts(examples, examples.labels, outputs, names)
    else:
        issues = []
        for name, given, true in zip(names, examples.labels.T, outputs.T, strict=True):
            both = np.stack([1 - true, true], 1)
            issues += _doubts(examples, given.astype(np.int64), both, (f"not {name}", name))
    return sorted(issues, key=lambda issue: issue.given_confidence - issue.confidence)


def out_of_fold(features: NDArray[np.float32], examples: Examples, seed: int = 0) -> NDArray[np.float32]:
    """What a linear probe that has not seen a photo says of it, [n, k]; its L2 strength is chosen on the first fold."""
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    outputs = np.zeros((len(examples), len(examples.output_names)), np.float32)
    strengths = L2_GRID
    for train, held in folds.split(features, examples.strata):
        probe = fit_linear_probe(
            features[train],
            examples.labels[train],
            features[held],
            examples.labels[held],
            task=examples.task,
            inverse_l2=strengths,
        )
        strengths = (probe.inverse_l2,)
        outputs[held] = probe.outputs(features[held])
    return outputs


def confident(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """Choose the class that is believed for each photo: the given one where none is.

    Args:
        labels: [n], 0..k-1; every class occurs.
        probabilities: [n, k], of models that have not seen the photo.

    Returns:
        int64 [n].
    """
    means = [probabilities[labels == k, k].mean() for k in range(probabilities.shape[1])]
    believed = np.where(probabilities >= np.array(means), probabilities, -1.0)
    return np.where(believed.max(1) >= 0, believed.argmax(1), labels)


def _doubts(
    examples: Examples, labels: NDArray[np.int64], probabilities: NDArray[np.float32], names: tuple[str, ...]
) -> list[LabelIssue]:
    suggested = confident(labels, probabilities)
    return [
        LabelIssue(
            examples.items[i].id,
            names[labels[i]],
            names[suggested[i]],
            float(probabilities[i, suggested[i]]),
            float(probabilities[i, labels[i]]),
        )
        for i in np.flatnonzero(suggested != labels)
    ]


def _others(examples: Examples, count: int) -> int:
    """Photos without a label that `count` photos have; classes have each other for that."""
    return len(examples) - count if examples.task == "multi_label" else count
