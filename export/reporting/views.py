"""What differs between tasks on the page, one row of VIEWS each: which photos stand out, and how labels are told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.metrics import said_labels
from edgetl.outputs import OutputSpec, Task
from export.reporting.blocks import Block, percent, value
from export.reporting.classification import class_blocks
from export.reporting.material import Material
from export.reporting.multi_label import label_blocks
from export.reporting.regression import target_blocks

Outputs = NDArray[np.float32]
NEAR = 0.1
"""Numbers count as the same that differ by less than this share of their standard deviation (`edgetl.comparison`)."""
NAMED = 4
"""Labels or targets that a photo's line names at most."""


@dataclass(frozen=True)
class View:
    """How the photos and figures of one task are shown."""

    wrong: Callable[[NDArray[Any], Outputs, OutputSpec], NDArray[np.float64]]
    """(labels, outputs [n, k], spec) -> [n]: how bad each answer is; 0 is right."""
    apart: Callable[[Outputs, Outputs, OutputSpec], NDArray[np.float64]]
    """(outputs, outputs, spec) -> [n]: how far two answers are apart; 0 is the same."""
    told: Callable[[Outputs], NDArray[np.int64]]
    """outputs [n, k] -> [n]: which output a map of where the network looks is about."""
    truth: Callable[[Any, OutputSpec], str]
    """(one label, spec) -> words."""
    said: Callable[[NDArray[np.float32], OutputSpec], str]
    """(outputs of one photo [k], spec) -> words with scores."""
    same: str
    """When two answers count as the same: of a photo, both ..."""
    map: str
    """What a map of where the network looks is about."""
    blocks: Callable[[Material], tuple[Block, ...]]
    """What it gets wrong, in tables and charts."""


def _wrong_class(labels: NDArray[Any], outputs: Outputs, spec: OutputSpec) -> NDArray[np.float64]:
    """Score of the wrong class; of ordered classes the distance counts first."""
    named = outputs.argmax(axis=1)
    steps = np.abs(named - labels) if spec.task == "ordinal" else named != labels
    return np.where(named == labels, 0.0, steps + outputs.max(axis=1))


def _other_class(ours: Outputs, theirs: Outputs, spec: OutputSpec) -> NDArray[np.float64]:
    differ = ours.argmax(axis=1) != theirs.argmax(axis=1)
    return np.where(differ, np.abs(ours.astype(np.float64) - theirs).max(axis=1), 0.0)


def _wrong_labels(labels: NDArray[Any], outputs: Outputs, spec: OutputSpec) -> NDArray[np.float64]:
    """How far scores are on the wrong side of their thresholds, summed."""
    wrong = said_labels(outputs, spec) != (labels > 0.5)
    far = np.abs(outputs.astype(np.float64) - np.asarray(spec.thresholds)) + 1e-9
    return np.asarray((wrong * far).sum(axis=1))


def _other_labels(ours: Outputs, theirs: Outputs, spec: OutputSpec) -> NDArray[np.float64]:
    differ = said_labels(ours, spec) != said_labels(theirs, spec)
    return np.asarray((differ * np.abs(ours.astype(np.float64) - theirs)).max(axis=1))


def _wrong_numbers(labels: NDArray[Any], outputs: Outputs, spec: OutputSpec) -> NDArray[np.float64]:
    """Largest error, in standard deviations of the target."""
    return np.asarray((np.abs(outputs.astype(np.float64) - labels) / np.asarray(spec.deviations)).max(axis=1))


def _other_numbers(ours: Outputs, theirs: Outputs, spec: OutputSpec) -> NDArray[np.float64]:
    distance = (np.abs(ours.astype(np.float64) - theirs) / np.asarray(spec.deviations)).max(axis=1)
    return np.where(distance < NEAR, 0.0, distance)


def _class_said(scores: NDArray[np.float32], spec: OutputSpec) -> str:
    return f"{spec.names[int(scores.argmax())]} {percent(float(scores.max()))}"


def _labels_true(label: NDArray[Any], spec: OutputSpec) -> str:
    return _shortened([name for name, there in zip(spec.names, label, strict=True) if there > 0.5]) or "none"


def _labels_said(scores: NDArray[np.float32], spec: OutputSpec) -> str:
    said = said_labels(scores[None], spec)[0]
    told = [f"{name} {percent(float(s))}" for name, s, here in zip(spec.names, scores, said, strict=True) if here]
    best = int(scores.argmax())
    return _shortened(told) or f"none (nearest {spec.names[best]} {percent(float(scores[best]))})"


def _numbers(numbers: NDArray[Any], spec: OutputSpec) -> str:
    if len(spec.names) == 1:
        return value(float(numbers[0]))
    return _shortened([f"{name} {value(float(number))}" for name, number in zip(spec.names, numbers, strict=True)])


def _shortened(words: list[str]) -> str:
    return ", ".join(words[:NAMED]) + (f" and {len(words) - NAMED} more" if len(words) > NAMED else "")


def _class_name(label: Any, spec: OutputSpec) -> str:
    return spec.names[int(label)]


def _strongest(outputs: Outputs) -> NDArray[np.int64]:
    return np.asarray(outputs.argmax(axis=1), np.int64)


def _first(outputs: Outputs) -> NDArray[np.int64]:
    return np.zeros(len(outputs), np.int64)


_CLASSES = View(
    _wrong_class,
    _other_class,
    _strongest,
    _class_name,
    _class_said,
    "name the same class",
    "the places that speak for its answer",
    class_blocks,
)
VIEWS: dict[Task, View] = {
    "classification": _CLASSES,
    "ordinal": _CLASSES,
    "multi_label": View(
        _wrong_labels,
        _other_labels,
        _strongest,
        _labels_true,
        _labels_said,
        "say the same labels",
        "the places that speak for the label with the highest score",
        label_blocks,
    ),
    "regression": View(
        _wrong_numbers,
        _other_numbers,
        _first,
        _numbers,
        _numbers,
        f"give values within {NEAR:g} standard deviations",
        "the places that raise its value of {first}",
        target_blocks,
    ),
}
