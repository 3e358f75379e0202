"""Mixup and CutMix: labels follow pixels."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.errors import ConfigError
from edgetl.mixing import Mixing


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="alpha must be 0"):
        Mixing(-0.1, 0, seed=0)
    with pytest.raises(ConfigError, match="CutMix needs tensors"):
        Mixing(0, 1.0, seed=0)((tf.ones((4, 8)),), tf.eye(4))


def marked(n: int, *shape: int) -> np.ndarray:
    """A tensor whose values name the example."""
    return np.broadcast_to(np.eye(n, dtype=np.float32).reshape(n, *(1 for _ in shape[:-1]), n), (n, *shape[:-1], n))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(0.2, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.3), (0.4, 1.0)]),
    st.integers(1, 8),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 1000),
)
def test_labels_are_the_shares_of_the_pixels(
    alphas: tuple[float, float], n: int, size: tuple[int, int], seed: int
) -> None:
    """Photo i is all e_i, so its mean after mixing is what its label has to be."""
    (images,), labels = Mixing(*alphas, seed=seed)((marked(n, *size, n),), np.eye(n, dtype=np.float32))
    assert images.shape == (n, *size, n) and labels.shape == (n, n)
    labels = np.array(labels)
    np.testing.assert_allclose(np.array(images).mean(axis=(1, 2)), labels, atol=1e-5)  # float32 sums of 144 values
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    assert labels.min() >= 0


def test_cutmix_pastes_one_box() -> None:
    n = 32
    (images,), labels = Mixing(0, 1.0, seed=5)((marked(n, 14, 14, n),), np.eye(n, dtype=np.float32))
    images = np.array(images)
    assert set(np.unique(images)) == {0, 1}
    foreign = images[np.arange(n), :, :, np.arange(n)] == 0
    for mask in foreign[foreign.any(axis=(1, 2))]:
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        np.testing.assert_array_equal(mask, rows[:, None] & columns[None])
        assert (
            np.diff(np.flatnonzero(rows)).max(initial=1) == 1 and np.diff(np.flatnonzero(columns)).max(initial=1) == 1
        )
    assert foreign.any() and len(np.unique(foreign.mean(axis=(1, 2)))) > 5
    assert (np.array(labels).max(axis=1) < 1).any()


def test_mixup_draws_one_weight_per_example() -> None:
    _, labels = Mixing(1.0, 0, seed=5)((marked(32, 4, 4, 32),), np.eye(32, dtype=np.float32))
    own = np.diag(np.array(labels))
    assert len(np.unique(own)) > 16 and own.min() < 0.3 and own.max() > 0.7


@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 1.0)])
def test_border_tensors_are_mixed_alike(alphas: tuple[float, float]) -> None:
    n = 16
    (fine, coarse), labels = Mixing(*alphas, seed=2)((marked(n, 14, 12, n), marked(n, 7, 6, n)), np.eye(n))
    np.testing.assert_array_equal(np.array(fine)[:, ::2, ::2], coarse)
    np.testing.assert_array_equal(np.array(fine)[:, 1::2, 1::2], coarse)
    np.testing.assert_allclose(np.array(fine).mean(axis=(1, 2)), labels, atol=1e-5)  # float32 sums


def test_flat_activations_take_mixup() -> None:
    (flat,), labels = Mixing(0.5, 0, seed=2)((np.eye(8, dtype=np.float16),), np.eye(8, dtype=np.float32))
    assert flat.dtype == tf.float16
    np.testing.assert_allclose(flat, labels, atol=1e-3)  # the step of float16 below 1


def test_both_take_turns() -> None:
    mixing = Mixing(1.0, 1.0, seed=3)
    kinds = [set(np.unique(mixing((marked(8, 6, 6, 8),), np.eye(8))[0][0])) <= {0, 1} for _ in range(30)]
    assert 6 < sum(kinds) < 24  # 15 +- 2.7 expected


def test_off_is_off() -> None:
    images = marked(4, 3, 3, 4)
    (same,), labels = Mixing(0, 0, seed=0)((images,), np.eye(4))
    np.testing.assert_array_equal(same, images)
    np.testing.assert_array_equal(labels, np.eye(4))


def test_tiny_alpha_gives_no_nan() -> None:
    """Both gammas of a Beta(0.01, 0.01) underflow in about one of six draws of float32."""
    (images,), labels = Mixing(0.01, 0.0, seed=0)((marked(64, 2, 2, 64),), np.eye(64, dtype=np.float32))
    assert np.isfinite(np.array(images)).all() and np.isfinite(np.array(labels)).all()
