"""Losses against their formulas; class weights and balanced sampling."""

import keras
import numpy as np
import pytest

from edgetl.balance import balanced_indices, class_weights, label_weights, relative_weights
from edgetl.errors import ConfigError, DatasetError
from edgetl.losses import make_loss
from edgetl.outputs import OutputSpec, Task

OUTPUTS = OutputSpec("classification", tuple("abcd"))


def batch(n: int = 50, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """One-hot labels and probabilities between 0.01 and 0.97, where nothing is clipped."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, k))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.eye(k)[rng.integers(0, k, n)], probabilities


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_loss_is_the_formula(smoothing: float, gamma: float) -> None:
    labels, p = batch()
    soft = labels * (1 - smoothing) + smoothing / labels.shape[1]
    expected = -(soft * (1 - p) ** gamma * np.log(p)).sum(axis=1).mean()
    loss = make_loss(OUTPUTS, smoothing, gamma)(labels.astype(np.float32), p.astype(np.float32))
    assert float(loss) == pytest.approx(expected, rel=1e-5)  # float32, a mean of 50 terms of about 1


def test_focal_loss_goes_over_into_cross_entropy() -> None:
    labels, p = (array.astype(np.float32) for array in batch())
    # d(1 - p)^gamma / dgamma = log(1 - p), at most 3.5 here: 1e-6 * 3.5 relative, and float32 rounding.
    assert float(make_loss(OUTPUTS, 0.1, 1e-6)(labels, p)) == pytest.approx(
        float(make_loss(OUTPUTS, 0.1)(labels, p)), rel=1e-5
    )


def test_mixed_labels_and_example_weights() -> None:
    labels, p = batch()
    mixed = 0.3 * labels + 0.7 * labels[::-1]
    weights = np.linspace(0, 2, len(p))
    expected = (-(mixed * np.log(p)).sum(axis=1) * weights).mean()
    got = make_loss(OUTPUTS)(mixed.astype(np.float32), p.astype(np.float32), weights.astype(np.float32))
    assert float(got) == pytest.approx(expected, rel=1e-5)  # float32


def test_cross_entropy_still_teaches_where_the_model_is_surely_wrong() -> None:
    inputs = keras.Input((2,))
    layer = keras.layers.Dense(2, activation="softmax", use_bias=False, kernel_initializer="identity")
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", make_loss(OUTPUTS))
    model.optimizer.learning_rate = 1.0
    # logits (40, 0), label 1: the probability of the label is 4e-18, below Keras' clipping at 1e-7
    model.fit(np.array([[40.0, 0.0]]), np.array([[0.0, 1.0]]), verbose=0)
    # dL/dlogits = p - label = (1, -1) to 4e-18; times the input, times the rate
    np.testing.assert_allclose(layer.get_weights()[0], [[1 - 40, 40], [0, 1]], rtol=1e-6)


def test_ordered_classes_have_the_loss_of_classes() -> None:
    labels, p = (array.astype(np.float32) for array in batch())
    ordered = OutputSpec("ordinal", OUTPUTS.names)
    assert float(make_loss(ordered)(labels, p)) == float(make_loss(OUTPUTS)(labels, p))


LABELS = OutputSpec("multi_label", tuple("abcd"))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("balance", [False, True])
def test_loss_of_labels_is_the_formula(smoothing: float, gamma: float, balance: bool) -> None:
    rng = np.random.default_rng(0)
    labels, p = (rng.random((50, 4)) < 0.3).astype(np.float32), rng.uniform(0.02, 0.98, (50, 4))
    weights = label_weights(labels) if balance else None
    soft = labels * (1 - smoothing) + smoothing / 2
    losses = -(soft * np.log(p) + (1 - soft) * np.log(1 - p))
    losses *= (1 - np.where(labels == 1, p, 1 - p)) ** gamma
    if weights is not None:
        losses *= np.where(labels == 1, weights[:, 1], weights[:, 0])
    loss = make_loss(LABELS, smoothing, gamma, weights)(labels, p.astype(np.float32))
    assert float(loss) == pytest.approx(losses.mean(), rel=1e-5)  # float32, a mean of 200 terms of about 1
    examples = np.linspace(0, 2, 50)
    loss = make_loss(LABELS, smoothing, gamma, weights)(labels, p.astype(np.float32), examples.astype(np.float32))
    assert float(loss) == pytest.approx((losses.mean(axis=1) * examples).mean(), rel=1e-5)


def test_labels_still_teach_where_the_model_is_surely_wrong() -> None:
    inputs = keras.Input((1,))
    layer = keras.layers.Dense(1, activation="sigmoid", use_bias=False, kernel_initializer="ones")
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(1.0), make_loss(OutputSpec("multi_label", ("a",))))
    model.fit(np.array([[40.0]]), np.array([[0.0]]), verbose=0)  # logit 40, label 0
    # dL/dlogit = p - label = 1 to 4e-18; times the input, times the rate
    np.testing.assert_allclose(layer.get_weights()[0], [[1 - 40]], rtol=1e-6)


def test_errors_of_targets_are_measured_in_their_deviations() -> None:
    spec = OutputSpec("regression", ("m", "g"), deviations=(0.5, 200.0))
    truth, said = np.array([[1, 1000], [2, 1200]], np.float32), np.array([[1.5, 1000], [2, 800]], np.float32)
    assert float(make_loss(spec)(truth, said)) == pytest.approx((1 + 0 + 0 + 4) / 4)


@pytest.mark.parametrize(("task", "arguments"), [("ordinal", [0.1]), ("regression", [0.1]), ("regression", [0.0, 2.0])])
def test_remedies_that_mean_nothing_are_refused(task: Task, arguments: list[float]) -> None:
    with pytest.raises(ConfigError, match=f"not for --task {task}"):
        make_loss(OutputSpec(task, ("a", "b"), deviations=(1.0, 1.0)), *arguments)


def test_label_weights_balance_each_label_and_keep_the_mean() -> None:
    labels = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    weights = label_weights(labels)
    np.testing.assert_allclose(weights, [[2 / 3, 2], [2, 2 / 3]], rtol=1e-6)  # float32
    assert np.where(labels == 1, weights[:, 1], weights[:, 0]).mean(axis=0) == pytest.approx([1, 1])
    with pytest.raises(DatasetError, match=r"label index \[0, 1\]"):
        label_weights(labels[1:])


def test_given_weights_become_relative_and_equal_ones_none() -> None:
    assert relative_weights(np.full(3, 0.1, np.float32)) is None
    assert relative_weights(np.zeros(0, np.float32)) is None
    np.testing.assert_allclose(relative_weights(np.array([1, 2, 3], np.float32)), [0.5, 1, 1.5], rtol=1e-6)


@pytest.mark.parametrize("arguments", [(-0.1, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, float("nan"))])
def test_values_out_of_range_are_refused(arguments: tuple[float, float]) -> None:
    with pytest.raises(ConfigError):
        make_loss(OUTPUTS, *arguments)


def test_class_weights_balance_classes_and_keep_the_mean() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    weights = class_weights(labels, 3)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [100 / 180, 100 / 90, 100 / 30], rtol=1e-7)  # rounded to float32
    totals = np.bincount(labels, weights[labels])
    np.testing.assert_allclose(totals, totals[0], rtol=1e-6)  # float32
    assert weights[labels].mean() == pytest.approx(1, rel=1e-6)  # float32
    with pytest.raises(DatasetError, match=r"index \[1, 3\]"):
        class_weights(np.array([0, 2, 2]), 4)


@pytest.mark.parametrize("size", [0, 1, 7, 30, 31, 32, 90, 301])
def test_balanced_indices(size: int) -> None:
    labels = np.repeat([0, 2, 5], [60, 30, 10])  # classes without examples in between
    drawn = balanced_indices(labels, size, np.random.default_rng(size))
    assert drawn.dtype == np.int64 and drawn.shape == (size,)
    counts = np.bincount(labels[drawn], minlength=6)[[0, 2, 5]]
    assert counts.max() - counts.min() <= 1 and counts.sum() == size
    for label in (0, 2, 5):  # no example comes again before all of its class have come
        times = np.bincount(drawn, minlength=len(labels))[labels == label]
        assert times.max() - times.min() <= 1
    again = balanced_indices(labels, size, np.random.default_rng(size))
    np.testing.assert_array_equal(drawn, again)


def test_balanced_indices_are_shuffled_and_use_every_example_over_time() -> None:
    labels = np.repeat([0, 1], [80, 20])
    rng = np.random.default_rng(0)
    drawn = [balanced_indices(labels, 41, rng) for _ in range(60)]
    assert all((np.diff(labels[rows]) != 0).sum() > 5 for rows in drawn)  # sorted by class there would be one change
    assert len(np.unique(np.concatenate(drawn))) == 100  # 80 * 0.75^60 = 3e-6 are left out
    extra = [np.bincount(labels[rows])[0] for rows in drawn]
    assert set(extra) == {20, 21}  # the odd one goes to either class
    with pytest.raises(DatasetError):
        balanced_indices(np.zeros(0, np.int64), 3, rng)
