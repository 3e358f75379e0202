"""Temperature scaling: what is fitted is what scores were spoilt by, and folding it changes no class."""

import keras
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, softmax

from edgetl.calibration import (
    Temperature,
    apply_temperature,
    fit_temperature,
    fold_temperature,
    judge_temperature,
)
from edgetl.config import from_json, to_json
from edgetl.errors import ConfigError
from edgetl.metrics import log_loss, said_labels
from edgetl.outputs import OutputSpec, Task

COUNT = 3
SPECS: dict[Task, OutputSpec] = {
    "classification": OutputSpec("classification", ("a", "b", "c")),
    "ordinal": OutputSpec("ordinal", ("a", "b", "c")),
    "multi_label": OutputSpec("multi_label", ("a", "b", "c"), thresholds=(0.3, 0.5, 0.9)),
}


def spoilt(task: Task, temperature: float, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn as scores say, and these scores made `temperature` times too sure."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, COUNT))
    if task == "multi_label":
        labels = (rng.random((n, COUNT)) < expit(logits)).astype(np.float32)
        return labels, expit(logits * temperature).astype(np.float32)
    drawn = rng.random(n)[:, None] > softmax(logits, axis=1).cumsum(axis=1)
    return drawn.sum(axis=1).clip(max=COUNT - 1), softmax(logits * temperature, axis=1).astype(np.float32)


@pytest.mark.parametrize("task", SPECS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fitted_temperature_is_the_one_that_scores_were_spoilt_by(task: Task, temperature: float) -> None:
    labels, outputs = spoilt(task, temperature)
    # 20,000 photos: the temperature is known to 1 or 2 %.
    found = fit_temperature(labels, outputs, SPECS[task])
    assert found == pytest.approx(temperature, rel=0.05)
    told = judge_temperature(labels, outputs, found, SPECS[task])
    assert told.calibration_error_after < 0.015, "20,000 photos in 15 bins: shares are known to about 1 %"
    assert told.log_loss_after <= told.log_loss_before
    if temperature != 1:
        assert told.calibration_error_before > 3 * told.calibration_error_after
    assert from_json(Temperature, to_json(told)) == told


@pytest.mark.parametrize("task", SPECS)
def test_no_other_temperature_has_a_smaller_loss(task: Task) -> None:
    labels, outputs = spoilt(task, 2.0, n=300)
    spec = SPECS[task]
    found = fit_temperature(labels, outputs, spec)

    def loss(temperature: np.ndarray) -> float:
        return log_loss(labels, apply_temperature(outputs, float(temperature[0]), spec), spec)

    other = minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-10})
    assert loss(np.array([found])) == pytest.approx(other.fun, abs=1e-7)  # float32 scores
    assert found == pytest.approx(other.x[0], rel=1e-2)


@pytest.mark.parametrize("task", SPECS)
def test_zeros_of_integer_outputs_spoil_nothing(task: Task) -> None:
    labels, outputs = spoilt(task, 3.0)
    stored = np.clip(np.round(outputs * 256), 0, 255).astype(np.float32) / 256
    assert (stored == 0).any()
    exact = fit_temperature(labels, outputs, SPECS[task])
    # Scores below 1/512 are all alike now: what they weigh is lost, a few percent of the temperature.
    assert fit_temperature(labels, stored, SPECS[task]) == pytest.approx(exact, rel=0.1)
    assert np.isfinite(apply_temperature(stored, exact, SPECS[task])).all()


def test_photos_without_a_mistake_end_at_the_limit() -> None:
    outputs = np.array([[0.9, 0.05, 0.05]] * 5, np.float32)
    assert 0.2 <= fit_temperature(np.zeros(5, np.int64), outputs, SPECS["classification"]) < 0.21
    wrong = np.ones(5, np.int64)
    assert 4.9 < fit_temperature(wrong, outputs, SPECS["classification"]) <= 5
    hard = np.eye(3, dtype=np.float32)
    assert np.isfinite(fit_temperature(np.arange(3), hard, SPECS["classification"]))


def test_numbers_have_no_temperature() -> None:
    with pytest.raises(ValueError, match="regression"):
        fit_temperature(np.ones((2, 1), np.float32), np.ones((2, 1), np.float32), OutputSpec("regression", ("x",)))


def test_labels_said_stay_the_same_when_their_thresholds_move_along() -> None:
    labels, outputs = spoilt("multi_label", 3.0, n=500)
    spec = SPECS["multi_label"]
    temperature = fit_temperature(labels, outputs, spec)
    along = apply_temperature(np.array([spec.thresholds], np.float32), temperature, spec)[0]
    moved = OutputSpec(spec.task, spec.names, thresholds=tuple(along.tolist()))
    assert moved.thresholds != pytest.approx(spec.thresholds, abs=0.01)
    assert moved.thresholds[1] == pytest.approx(0.5)
    scaled = apply_temperature(outputs, temperature, spec)
    np.testing.assert_array_equal(said_labels(scaled, moved), said_labels(outputs, spec))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_folded_temperature_says_what_dividing_logits_says(activation: str) -> None:
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Dense(COUNT, activation=activation)(inputs))
    model.layers[-1].bias.assign([0.3, -0.2, 0.1])
    pixels = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    before = model.predict(pixels, verbose=0)
    fold_temperature(model, 2.5)
    spec = SPECS["classification" if activation == "softmax" else "multi_label"]
    after = model.predict(pixels, verbose=0)
    np.testing.assert_allclose(after, apply_temperature(before, 2.5, spec), atol=1e-6)  # float32 scores below 1
    assert len(model.layers) == 2
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()


def test_a_model_that_ends_in_something_else_is_refused() -> None:
    inputs = keras.Input((5,))
    for layer, word in ((keras.layers.Dense(2), "Dense linear"), (keras.layers.ReLU(), "ReLU")):
        model = keras.Model(inputs, layer(inputs))
        with pytest.raises(ConfigError, match=f"Received: {word}"):
            fold_temperature(model, 2.0)
