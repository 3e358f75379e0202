"""Labels that look wrong: confident learning on stored features (Northcutt et al., JAIR 2021, arXiv 1911.00068).

A linear probe that has not seen a photo says how probable each class is. A class is believed from the mean probability
on that it gives to the photos that carry its label; where another class than the label is believed, there is doubt.
On `elpv` cleanlab's filter `confident_learning` finds the very same photos, at the cost of pandas and 3 s of imports.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgetl.audit.findings import LabelIssue
from edgetl.cross_validation import assign
from edgetl.data import Examples
from edgetl.errors import DatasetError
from edgetl.probe import L2_GRID, fit_linear_probe
from edgetl.rows import RowsLike

FOLDS = 5


BELIEVED = 0.9
"""From this probability on a class is believed even where the mean is higher: among photos that are all but certain a
wrong label would be overlooked else."""
MAX_DOUBTED = 0.25
"""Where more photos than this share are doubted, 0..1, it is the features that can't tell the classes apart."""


def find(features: RowsLike, examples: Examples, seed: int = 0) -> tuple[list[LabelIssue], str]:
    """List doubtful labels, most doubtful first.

    Args:
        features: [n, d].
        examples: theirs. Copies should be left out: they would vouch for one another.
        seed: of the folds.

    Returns:
        The doubtful labels, and what was not judged and why; else empty.
    """
    features, examples, rare = _without_rare(features, examples)
    if reason := _reason_to_skip(examples):
        return [], reason
    try:
        outputs = out_of_fold(features, examples, seed)
    except DatasetError:
        return [], f"labels: fewer than {FOLDS} groups with some class or label, cross-validation needs as many"
    names = examples.output_names
    if examples.outputs.exclusive:
        issues = _doubts(examples, examples.labels, outputs, names)
    else:
        issues = []
        for name, given, true in zip(names, examples.labels.T, outputs.T, strict=True):
            both = np.stack([1 - true, true], 1)
            issues += _doubts(examples, given.astype(np.int64), both, (f"not {name}", name))
    doubted = len({issue.id for issue in issues})
    if doubted > MAX_DOUBTED * len(examples):
        return [], f"labels: features doubt {doubted} of {len(examples)}: they can't tell the classes apart here"
    return sorted(issues, key=lambda issue: issue.given_confidence - issue.confidence), rare


def _without_rare(features: RowsLike, examples: Examples) -> tuple[RowsLike, Examples, str]:
    """Leave out classes with too few photos for the folds where two others are left: they must not hide the rest."""
    counts = examples.counts
    common = [name for name, count in counts.items() if count >= FOLDS]
    rare = [name for name, count in counts.items() if count < FOLDS]
    if not examples.outputs.exclusive or not rare or len(common) < 2:
        return features, examples, ""
    number = {examples.output_names.index(name): at for at, name in enumerate(common)}
    rows = np.flatnonzero(np.isin(examples.labels, list(number)))
    labels = [number[label] for label in examples.labels[rows].tolist()]
    items = [replace(examples.items[row], label=label) for row, label in zip(rows.tolist(), labels, strict=True)]
    told = ", ".join(rare[:5]) + (", ..." if len(rare) > 5 else "")
    return (
        features[rows],
        replace(examples, output_names=tuple(common), items=tuple(items)),
        f"labels of {told}: fewer than {FOLDS} photos each, cross-validation needs as many",
    )


def _reason_to_skip(examples: Examples) -> str:
    """Say why labels can't be judged; empty where they can."""
    if examples.task == "regression":
        return "labels: numbers are not judged"
    few = {name: n for name, n in examples.counts.items() if min(n, _others(examples, n)) < FOLDS}
    if few:
        name, count = min(few.items(), key=lambda item: item[1])
        return f"labels: {name} has {count} of {len(examples)} photos, cross-validation needs {FOLDS} with and without"
    return ""


def out_of_fold(features: RowsLike, examples: Examples, seed: int = 0) -> NDArray[np.float32]:
    """What a linear probe that has not seen a photo says of it, [n, k]; its L2 strength is chosen on the first fold."""
    fold_of = assign(examples, FOLDS, seed)
    outputs = np.zeros((len(examples), len(examples.output_names)), np.float32)
    strengths = L2_GRID
    for fold in range(FOLDS):
        train, held = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
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
    believed = np.where(probabilities >= np.minimum(means, BELIEVED), probabilities, -1.0)
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
