"""The arithmetic of the tasks, in numpy: from logits to outputs, and from outputs to the loss that training lowers."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.data import Examples
from edgetl.errors import ConfigError, DatasetError
from edgetl.outputs import OutputSpec, Task

UNTUNED = 0.5
"""Threshold of a label as long as, or where, there is nothing to choose it by."""
_SMALLEST = 1e-7
"""Probabilities of 0 count as this: what float32 rounds away need not be infinitely wrong."""
_REFUSED: dict[tuple[Task, str], str] = {
    ("ordinal", "label_smoothing"): "spreads a label over all classes alike, near and far",
    ("multi_label", "class_balance=sampling"): "a photo can have frequent and rare labels at once; choose weights",
    ("regression", "label_smoothing"): "numbers have no classes to spread over",
    ("regression", "focal_gamma"): "numbers have no probability",
    ("regression", "class_balance"): "numbers have no classes",
    ("regression", "calibrate_scores"): "numbers are no probabilities",
    ("regression", "cutmix"): "the number of two pasted photos is not the mean of theirs by area",
}
"""Remedies that a task does not know, and why."""


def check_remedies(task: Task, **settings: float | str | None) -> None:
    """Refuse remedies of the loss or the labels that mean nothing to a task; what is off is always right.

    Args:
        task: what is learnt.
        settings: name of the option -> its value.

    Raises:
        ConfigError: names the option, and why the task does not know it.
    """
    for name, value in settings.items():
        why = _REFUSED.get((task, name)) or _REFUSED.get((task, f"{name}={value}"))
        if why and value not in (0, None, "none"):
            raise ConfigError(f"--{name.replace('_', '-')} {value}: not for --task {task}: {why}. Leave it out")


def training_outputs(train: Examples) -> OutputSpec:
    """What a model trained on these examples says while it learns.

    Targets are learnt in their deviations; labels are said from 0.5 on until thresholds are tuned.

    Args:
        train: the training split.

    Raises:
        DatasetError: a target has one value only.
    """
    if train.task == "multi_label":
        return dataclasses.replace(train.outputs, thresholds=(UNTUNED,) * len(train.output_names))
    if train.task != "regression":
        return train.outputs
    deviations = train.labels.std(axis=0, dtype=np.float64)
    for name, deviation, values in zip(train.output_names, deviations, train.labels.T, strict=True):
        # float32 values that are equal may leave a deviation next to 0 in float64.
        if not deviation > 1e-9 * np.abs(values).max():
            raise DatasetError(
                f"{train.source}: target {name} is {values[0]:g} in all {len(train)} training examples: nothing to "
                "learn. Leave the target out, or add examples with other values"
            )
    return dataclasses.replace(train.outputs, deviations=tuple(float(each) for each in deviations))


def as_targets(labels: NDArray[Any], outputs: OutputSpec) -> NDArray[np.float32]:
    """Labels as losses take them, float32 [n, k]: classes as one-hot rows, all others as they are."""
    if outputs.exclusive:
        return np.asarray(np.eye(len(outputs.names), dtype=np.float32)[labels])
    return np.asarray(labels, np.float32)


def rank_positions(classes: int) -> NDArray[np.float64]:
    """Places of ordered classes on a line, one apart, their mean 0.

    The logit of class k is its position times one score of the photo, plus a constant of its own: the model of adjacent
    categories (Goodman 1979; Agresti, "Analysis of ordinal categorical data", 2010, chapter 4), in which the log odds
    of each class against the one before it rise alike with the score.
    """
    return np.arange(classes, dtype=np.float64) - (classes - 1) / 2


def activate(logits: NDArray[Any], task: Task) -> NDArray[Any]:
    """Turn what the last dense layer computes, [n, k], into what the model says."""
    if task == "regression":
        return logits
    if task == "multi_label":
        from scipy.special import expit

        return np.asarray(expit(logits))
    from scipy.special import softmax

    return np.asarray(softmax(logits, axis=1))


def mean_loss(labels: NDArray[Any], outputs: NDArray[Any], spec: OutputSpec) -> float:
    """Measure what training lowers, without its remedies: no smoothing, no weights.

    Args:
        labels: [n], class indices; or [n, k], labels 0..1 or values.
        outputs: [n, k], what the model says.
        spec: what it stands for; of targets with deviations.

    Returns:
        Cross-entropy in nats, of several labels their mean; of targets the squared error in deviations, their mean: 1
        for a model that says nothing but the mean of the training examples.
    """
    outputs = outputs.astype(np.float64)
    if spec.task == "regression":
        return float((((outputs - labels) / np.array(spec.deviations)) ** 2).mean())
    if spec.task == "multi_label":
        right = np.where(labels > 0.5, outputs, 1.0 - outputs)
    else:
        right = outputs[np.arange(len(labels)), labels]
    # Rounding takes float32 probabilities beyond 1; and 0 - x, for -x of 0 is -0, which prints so.
    return float(0.0 - np.log(np.clip(right, _SMALLEST, 1.0)).mean())
