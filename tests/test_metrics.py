"""The one scorer, against scikit-learn called directly and against published values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from edgetl.config import from_json, to_json
from edgetl.metrics import Scores, agreement, score, wilson_interval


@st.composite
def judged(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities; not every class need occur."""
    classes, n = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    labels = draw(arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    raw = draw(arrays(np.float32, (n, classes), elements=st.floats(2**-10, 1, width=32)))
    return labels, raw / raw.sum(axis=1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(judged())
def test_scores_are_scikit_learns(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(axis=1)
    found = score(labels, probabilities)
    assert found.samples == len(labels)
    assert found.top1 == pytest.approx(sk.accuracy_score(labels, predicted))
    present = np.unique(labels)
    recalls = [(predicted[labels == c] == c).mean() for c in present]
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls))
    common = {"labels": classes, "average": "macro", "zero_division": 0}
    assert found.precision == pytest.approx(sk.precision_score(labels, predicted, **common))
    assert found.recall == pytest.approx(sk.recall_score(labels, predicted, **common))
    assert found.f1 == pytest.approx(sk.f1_score(labels, predicted, **common))
    # float32 probabilities sum to 1 within a few 1e-7; the logarithm is exact to the same relative size.
    by_hand = -np.log(probabilities[np.arange(len(labels)), labels].astype(np.float64)).mean()
    assert found.log_loss == pytest.approx(by_hand, abs=1e-5)
    assert np.array(found.confusion).tolist() == sk.confusion_matrix(labels, predicted, labels=classes).tolist()
    assert found.top1_low <= found.top1 <= found.top1_high
    assert from_json(Scores, to_json(found)) == found


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3 (four digits)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson_interval(successes, trials)
    assert found == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == (pytest.approx(1 - found[1]), pytest.approx(1 - found[0]))


def test_unnormalized_and_zero_probabilities_give_a_finite_loss() -> None:
    # uint8 outputs sum to 255/256 or 257/256, and a wrong class can get exactly 0.
    found = score(np.array([0, 1]), np.array([[255 / 256, 0.0], [1.0, 0.0]], np.float32))
    assert np.isfinite(found.log_loss)
    assert found.log_loss == pytest.approx(-np.log(1e-7) / 2, rel=1e-3)  # clipped at 1e-7
    assert score(np.array([0]), np.array([[0.5, 0.25]], np.float32)).log_loss == pytest.approx(np.log(1.5))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        score(np.array([0, 1]), np.array([[0.5, 0.5], [bad, 0.5]], np.float32))


@pytest.mark.parametrize("shapes", [((0,), (0, 2)), ((3,), (2, 2)), ((2,), (2,)), ((2, 1), (2, 2))])
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"Received: \("):
        score(np.zeros(shapes[0], np.int64), np.zeros(shapes[1], np.float32))


def test_agreement_counts_equal_choices() -> None:
    ours = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], np.float32)
    theirs = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.1, 0.9]], np.float32)
    assert agreement(ours, theirs) == 0.75
    assert agreement(ours, ours) == 1.0
