"""What a device makes of outputs is what the host's scorer makes of them."""

import dataclasses
import json
import math

import numpy as np
import pytest

from edgetl import metrics
from edgetl.outputs import OutputSpec, Task
from edgetl.scores import PRIMARY
from export.device.outputs import KINDS, METRICS, Outputs
from export.device.parsing import parsed

NAMES = ("a", "b", "c")
SPECS: dict[Task, OutputSpec] = {
    "classification": OutputSpec("classification", NAMES),
    "ordinal": OutputSpec("ordinal", NAMES),
    "multi_label": OutputSpec("multi_label", NAMES, thresholds=(0.25, 0.5, 0.75)),
    "regression": OutputSpec("regression", NAMES, deviations=(0.5, 2.0, 100.0)),
}


def device(spec: OutputSpec) -> Outputs:
    return Outputs(**vars(spec))


def drawn(task: Task, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels as the scorer takes them, the same as a bundle holds them, and outputs."""
    random = np.random.default_rng(1)
    if task == "regression":
        labels = random.normal(0, SPECS[task].deviations, (n, 3)).astype(np.float32)
        return labels, labels, (labels + random.normal(0, 0.4, (n, 3))).astype(np.float32)
    scores = (random.integers(0, 257, (n, 3)) / 256).astype(np.float32)  # many are exactly at a threshold
    if task == "multi_label":
        labels = (random.random((n, 3)) < 0.4).astype(np.float32)
        return labels, labels, scores
    classes = random.integers(0, 3, n)
    return classes, np.eye(3)[classes], scores


@pytest.mark.parametrize("task", SPECS)
def test_the_primary_figure_is_that_of_the_scorer(task: Task) -> None:
    labels, truths, outputs = drawn(task)
    found = device(SPECS[task]).primary(truths.tolist(), outputs.tolist())
    assert found == pytest.approx(metrics.score(labels, outputs, SPECS[task]).primary, abs=1e-6)  # float32 sums
    assert 0.05 < found < 0.999, "neither all right nor all wrong"
    assert METRICS[task] == PRIMARY[task]
    assert set(METRICS) == set(KINDS) == set(SPECS)


def test_what_is_said() -> None:
    row = (0.25, 0.5, 0.74)
    assert device(SPECS["ordinal"]).said(row) == {"c": 0.74}
    assert device(SPECS["multi_label"]).said(row) == {"a": 0.25, "b": 0.5}, "from the threshold on"
    assert device(SPECS["multi_label"]).said((0, 0, 0)) == {}
    tenth = dataclasses.replace(SPECS["multi_label"], thresholds=(0.7,) * 3)
    (lower,) = np.float32([0.7]).tolist()  # less than 0.7 in float64, and yet the threshold itself as scores have it
    assert set(device(tenth).said((lower, 0.7, lower - 1e-7))) == {"a", "b"}
    assert device(SPECS["regression"]).said(row) == dict(zip(NAMES, row, strict=True))
    _, _, outputs = drawn("multi_label")
    said = metrics.said_labels(outputs, SPECS["multi_label"])
    names = [{name for name, yes in zip(NAMES, each, strict=True) if yes} for each in said]
    assert [set(device(SPECS["multi_label"]).said(row)) for row in outputs.tolist()] == names


def test_distances_of_values_are_in_deviations() -> None:
    assert device(SPECS["regression"]).distance((1, 2, 300), (1, 3, 200)) == 1.0
    assert device(SPECS["classification"]).distance((1, 0, 0), (0.25, 0.5, 0.25)) == 0.75
    assert math.isnan(device(SPECS["classification"]).distance((math.nan, 0, 0), (0, 0, 0)))


def test_a_constant_target_is_met_or_not() -> None:
    outputs = Outputs("regression", ("a",), (), (1.0,))
    assert outputs.primary([(5.0,), (5.0,)], [(5.0,), (5.0,)]) == 1
    assert outputs.primary([(5.0,), (5.0,)], [(5.0,), (6.0,)]) == 0


@pytest.mark.parametrize("task", SPECS)
def test_it_is_read_as_the_host_writes_it(task: Task) -> None:
    found: Outputs = parsed(Outputs, json.loads(json.dumps(dataclasses.asdict(SPECS[task]))))
    found.refuse()
    assert found == device(SPECS[task])


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (Outputs("segmentation", NAMES, (), ()), "task 'segmentation', this program knows classification"),
        (Outputs("classification", (), (), ()), "names are missing"),
        (Outputs("multi_label", NAMES, (0.5,), ()), "thresholds: 1 for 3 names of task multi_label"),
        (Outputs("multi_label", NAMES, (0.5, float("nan"), 0.5), ()), "thresholds are not all 0..1"),
        (Outputs("multi_label", NAMES, (0.5, 1e300, 0.5), ()), "thresholds are not all 0..1"),
        (Outputs("classification", NAMES, (0.5,) * 3, ()), "thresholds: 3 for 3 names of task classification"),
        (Outputs("regression", NAMES, (), ()), "deviations: 0 for 3 names"),
        (Outputs("regression", NAMES, (), (1.0, 0.0, 1.0)), "deviations are not all above 0"),
    ],
)
def test_what_cannot_be_read_is_refused(outputs: Outputs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outputs.refuse()
