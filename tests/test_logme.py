"""LogME against the evidence computed directly, and on features of which one knows how good they are."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from edgetl.logme import log_evidence, targets_of
from edgetl.outputs import OutputSpec


def features(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Correlated columns of unequal size, as those of a network are."""
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, d)) @ random.normal(size=(d, d)) * 3 + 1).astype(np.float32)


def direct(values: np.ndarray, y: np.ndarray) -> float:
    """Log density of y under N(0, F F^T / alpha + I / beta), maximized over both by a general-purpose optimizer."""
    gram = values.astype(np.float64) @ values.T.astype(np.float64)

    def loss(logs: np.ndarray) -> float:
        covariance = gram * np.exp(-logs[0]) + np.eye(len(y)) * np.exp(-logs[1])
        return -float(multivariate_normal(np.zeros(len(y)), covariance, allow_singular=True).logpdf(y))

    starts = [
        minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
        for start in ([4, 0], [0, 2])
    ]
    return -min(float(found.fun) for found in starts) / len(y)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (20, 35)])
def test_evidence_is_that_of_the_normal_distribution(n: int, d: int) -> None:
    values, random = features(n, d), np.random.default_rng(1)
    y = values[:, :3] @ [0.3, -0.2, 0.1] + random.normal(size=n)
    # Both search until nothing changes in the sixth digit; at the maximum the evidence is flat.
    assert log_evidence(values, y[:, None]) == pytest.approx(direct(values, y), abs=1e-4)


def test_several_targets_are_averaged() -> None:
    values = features(30, 5)
    both = np.random.default_rng(2).normal(size=(30, 2))
    assert log_evidence(values, both) == pytest.approx(np.mean([log_evidence(values, y[:, None]) for y in both.T]))


def test_better_features_have_more_evidence() -> None:
    random = np.random.default_rng(3)
    labels = np.arange(120) % 3
    spec = OutputSpec("classification", ("a", "b", "c"))
    noise = random.normal(size=(120, 20))
    found = []
    for strength in (0.0, 0.5, 1.0, 2.0):
        centres = strength * random.normal(size=(3, 20))
        found.append(log_evidence((centres[labels] + noise).astype(np.float32), targets_of(labels, spec)))
    assert found == sorted(found) and found[-1] - found[0] > 0.3


def test_size_of_features_does_not_matter() -> None:
    values, y = features(30, 8), np.random.default_rng(4).normal(size=(30, 1))
    # alpha makes up for it; what is left is rounding of the features.
    assert log_evidence(values * 1000, y) == pytest.approx(log_evidence(values, y), abs=1e-5)


@pytest.mark.parametrize("values", [np.zeros((10, 4), np.float32), np.ones((10, 4), np.float32), features(10, 10)])
def test_degenerate_features_give_a_number(values: np.ndarray) -> None:
    labels = np.arange(10) % 2
    spec = OutputSpec("classification", ("a", "b"))
    assert np.isfinite(log_evidence(values, targets_of(labels, spec)))
    assert np.isfinite(log_evidence(values, np.zeros((10, 1))))


def test_targets_of_each_task() -> None:
    classes = OutputSpec("ordinal", ("low", "middle", "high"))
    np.testing.assert_array_equal(targets_of(np.array([2, 0]), classes), [[0, 0, 1], [1, 0, 0]])
    labels = np.array([[1, 0], [1, 1]], np.float32)
    np.testing.assert_array_equal(targets_of(labels, OutputSpec("multi_label", ("a", "b"))), labels)
    numbers = np.array([[1, 5], [3, 5]], np.float32)
    np.testing.assert_allclose(targets_of(numbers, OutputSpec("regression", ("a", "b"))), [[-1, 0], [1, 0]])
