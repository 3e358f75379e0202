"""Thresholds of labels: the best F1 on the photos they were chosen on, and no surprises where little is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score

from edgetl.outputs import OutputSpec
from edgetl.thresholds import tuned, untested


def spec(count: int) -> OutputSpec:
    return OutputSpec("multi_label", tuple("abcdef"[:count]))


def threshold(true: list[int], scores: list[float]) -> float:
    labels, outputs = np.array([true], np.float32).T, np.array([scores], np.float32).T
    return tuned(spec(1), labels, outputs).thresholds[0]


@settings(deadline=None)  # how fast it is depends on who else computes
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            arrays(np.bool_, n), arrays(np.float32, n, elements=st.floats(0, 1, width=16, allow_subnormal=False))
        )
    )
)
def test_no_threshold_has_a_better_f1(case: tuple[np.ndarray, np.ndarray]) -> None:
    true, scores = case
    chosen = tuned(spec(1), true[:, None].astype(np.float32), scores[:, None]).thresholds[0]
    assert 0 < chosen < 1
    if true.any() and (scores[true] > 0).any():  # a score of 0 is said from no threshold above 0 on
        every = (f1_score(true, scores >= each, zero_division=0) for each in {*scores[scores > 0], 1.0})
        assert f1_score(true, scores >= np.float32(chosen)) == pytest.approx(max(every))


def test_a_threshold_lies_halfway_between_scores() -> None:
    assert threshold([1, 1, 0, 0], [0.9, 0.75, 0.25, 0.1]) == 0.5
    assert threshold([1, 1, 0, 0], [0.5, 0.25, 0.125, 0.1]) == pytest.approx(0.1875)


def test_of_equals_the_one_nearest_to_a_half() -> None:
    # Said from 0.9 on: 2 * 1 / (1 + 2); from 0.2 on, all: 2 * 2 / (4 + 2). Both are 2/3, halfway 0.65 and 0.1.
    assert threshold([1, 0, 0, 1], [0.9, 0.4, 0.3, 0.2]) == pytest.approx(0.65)


def test_labels_that_are_always_or_never_true() -> None:
    assert threshold([1, 1], [0.9, 0.8]) == pytest.approx(0.4)  # all of them, from half the lowest score on
    assert threshold([0, 0], [0.9, 0.8]) == 0.5
    labels = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    assert untested(spec(3), labels).startswith("no validation photo has the label c: its threshold is 0.5")
    assert untested(spec(2), labels[:, :2]) == ""


def test_other_tasks_have_none() -> None:
    other = OutputSpec("classification", ("a", "b"))
    assert tuned(other, np.array([0]), np.array([[0.6, 0.4]], np.float32)) is other
    assert untested(other, np.array([0])) == ""
