"""Layer-wise optimizers against formulas in numpy and against Keras itself; rates, averages, state, replicas."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgetl.errors import ConfigError, RunError
from edgetl.optimizers import (
    OPTIMIZERS,
    OptimizerSettings,
    averaged,
    finalize,
    layerwise,
    make_optimizer,
    restore,
    state,
)
from edgetl.schedules import current_learning_rate, schedule, set_learning_rate

ROOT = Path(__file__).parent.parent
MULTIPLIERS = {"slow": 0.1, "fast": 1.0}
ROUNDING = {"rtol": 5e-6, "atol": 1e-7}
"""Three steps of some ten float32 operations each, relative error 6e-8 apiece, on numbers of about 1. The powers of
beta in float32 leave 1 - 0.999 known to 6e-5 relative before the square root that Adam takes of it; on steps of
0.01 that is 3e-7 of a weight."""

Arrays = dict[str, np.ndarray]


def start_values() -> Arrays:
    rng = np.random.default_rng(0)
    return {"slow": rng.normal(size=(3, 2)), "fast": rng.normal(size=(2, 4))}


def gradients(steps: int, values: Arrays, seed: int = 1) -> list[Arrays]:
    rng = np.random.default_rng(seed)
    return [{path: rng.normal(size=value.shape) for path, value in values.items()} for _ in range(steps)]


def make_variables(values: Arrays) -> list[keras.Variable]:
    variables = [keras.Variable(value.astype(np.float32), name=path) for path, value in values.items()]
    assert [variable.path for variable in variables] == list(values)
    return variables


def apply(optimizer: Any, variables: list[keras.Variable], steps: list[Arrays]) -> None:
    for step in steps:
        tensors = [keras.ops.convert_to_tensor(step[variable.path].astype(np.float32)) for variable in variables]
        optimizer.apply(tensors, variables)


def sgd_rule(rate: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    velocity: Any = 0.0

    def step(weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        nonlocal velocity
        velocity = 0.9 * velocity - rate * gradient
        return weight + 0.9 * velocity - rate * gradient

    return step


def adam_rule(rate: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    first: Any = 0.0
    second: Any = 0.0
    count = 0

    def step(weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        nonlocal first, second, count
        count += 1
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        return weight - rate * corrected * first / (np.sqrt(second) + 1e-7)

    return step


def rmsprop_rule(rate: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    mean: Any = 0.0

    def step(weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        nonlocal mean
        mean = 0.9 * mean + 0.1 * gradient**2
        return weight - rate * gradient / np.sqrt(mean + 1e-7)

    return step


def lion_rule(rate: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    first: Any = 0.0

    def step(weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        nonlocal first
        moved = weight - rate * np.sign(0.9 * first + 0.1 * gradient)
        first = 0.99 * first + 0.01 * gradient
        return moved

    return step


RULES = {"sgd": sgd_rule, "adam": adam_rule, "adamw": adam_rule, "rmsprop": rmsprop_rule, "lion": lion_rule}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "strengths", [{}, {"weight_decay": 0.5}, {"clip_norm": 0.7}, {"l2_sp": 0.3}, {"clip_norm": 0.7, "l2_sp": 0.3}]
)
def test_three_steps_are_those_of_the_formulas(name: str, strengths: dict[str, float]) -> None:
    rate, values = 0.01, start_values()
    settings = OptimizerSettings(name, rate, **strengths)
    home = {"slow": values["slow"] + 1.0}  # not the initial value: the pull must show from the first step
    steps = gradients(3, values)
    variables = make_variables(values)
    pulled = home if settings.l2_sp else {}
    apply(make_optimizer(settings, rate, MULTIPLIERS, pulled), variables, steps)

    rules = {path: RULES[name](rate * MULTIPLIERS[path]) for path in values}
    expected = dict(values)
    for step in steps:
        norm = np.sqrt(sum((g**2).sum() for g in step.values()))
        scale = min(1.0, settings.clip_norm / norm) if settings.clip_norm else 1.0
        assert not settings.clip_norm or scale < 0.5, "the case must clip"
        for path, gradient in step.items():
            weight = expected[path]
            pull = settings.l2_sp * (weight - pulled[path]) if path in pulled else 0.0
            decayed = weight * (1 - rate * MULTIPLIERS[path] * settings.weight_decay)
            expected[path] = rules[path](decayed, scale * gradient + pull)
    for variable in variables:
        np.testing.assert_allclose(np.array(variable), expected[variable.path], **ROUNDING)
        # and the steps themselves are large against the tolerance
        assert np.abs(expected[variable.path] - values[variable.path]).min() > 20 * 1e-7


KERAS = sorted(
    (
        cls
        for cls in vars(keras.optimizers).values()
        if isinstance(cls, type) and issubclass(cls, keras.optimizers.Optimizer)
    ),
    key=lambda cls: cls.__name__,
)
NO_UPDATE_OF_THEIR_OWN = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}


@pytest.mark.parametrize(
    "cls", [c for c in KERAS if c.__name__ not in NO_UPDATE_OF_THEIR_OWN], ids=lambda c: c.__name__
)
def test_any_keras_optimizer_with_a_multiplier_is_that_optimizer_at_that_rate(cls: Any) -> None:
    values = {"slow": start_values()["slow"]}
    steps = gradients(3, values)
    ours, plain = make_variables(values), make_variables(values)
    # Keras' own decay is a constant share in some classes' defaults (AdamW): both have it, at the same rate.
    apply(layerwise(cls)(0.5, multipliers={"slow": 0.25}), ours, steps)
    apply(cls(0.125), plain, steps)
    np.testing.assert_array_equal(np.array(ours[0]), np.array(plain[0]))  # 0.5 * 0.25 is exact: bit-equal
    assert not np.array_equal(np.array(ours[0]), values["slow"].astype(np.float32))


def test_with_equal_rates_it_is_keras_adamw_bit_by_bit() -> None:
    values = start_values()
    steps = gradients(4, values)
    ours, plain = make_variables(values), make_variables(values)
    settings = OptimizerSettings("adamw", 0.01, weight_decay=0.1, clip_norm=0.5)
    apply(make_optimizer(settings, 0.01, {"slow": 1.0, "fast": 1.0}), ours, steps)
    apply(keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.5), plain, steps)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_spares_what_has_one_number_per_channel(name: str) -> None:
    values = {
        "kernel": np.ones((2, 2)),
        "bias": np.ones(2),
        "depthwise": np.ones((3, 3, 2, 1)),
        "frozen": np.ones((2, 2)),
    }
    variables = make_variables(values)
    multipliers = {"kernel": 1.0, "bias": 1.0, "depthwise": 0.5, "frozen": 0.0}
    optimizer = make_optimizer(OptimizerSettings(name, weight_decay=0.5), 0.1, multipliers)
    apply(optimizer, variables, [{path: np.zeros_like(value) for path, value in values.items()}])
    after = [np.unique(np.array(variable)).item() for variable in variables]
    # Gradients of zero move nothing: what moved is decay, at the variable's own rate. One rounding to float32.
    np.testing.assert_allclose(after, [1 - 0.1 * 0.5, 1.0, 1 - 0.05 * 0.5, 1.0], rtol=1e-7)


def test_the_pull_replaces_decay_and_covers_biases() -> None:
    values = {"kernel": np.ones((2, 2)), "bias": np.ones(2), "head": np.ones((2, 2))}
    variables = make_variables(values)
    settings = OptimizerSettings("sgd", l2_sp=0.25, weight_decay=0.5)
    home = {"kernel": np.full((2, 2), 1.5), "bias": np.full(2, 0.5), "elsewhere": np.ones(7)}
    apply(
        make_optimizer(settings, 0.1, dict.fromkeys(values, 1.0), home),
        variables,
        [{path: np.zeros_like(value) for path, value in values.items()}],
    )
    after = [np.unique(np.array(variable)).item() for variable in variables]
    # The first Nesterov step is 1.9 times the gradient's. One rounding to float32 each.
    np.testing.assert_allclose(after, [1 + 0.19 * 0.25 * 0.5, 1 - 0.19 * 0.25 * 0.5, 1 - 0.1 * 0.5], rtol=2e-7)


def test_programming_errors_are_told() -> None:
    values = start_values()
    with pytest.raises(KeyError, match="fast"):
        make_optimizer(OptimizerSettings(), 0.1, {"slow": 1.0}).build(make_variables(values))
    with pytest.raises(KeyError, match="one path"):
        make_optimizer(OptimizerSettings(), 0.1, MULTIPLIERS).build(2 * make_variables(values))
    with pytest.raises(ValueError, match="slow: multiplier -1"):
        make_optimizer(OptimizerSettings(), 0.1, {"slow": -1.0, "fast": 1.0}).build(make_variables(values))
    with pytest.raises(ValueError, match="slow: shape"):
        settings = OptimizerSettings(l2_sp=0.1)
        make_optimizer(settings, 0.1, MULTIPLIERS, {"slow": np.zeros((2, 2))}).build(make_variables(values))


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"name": "adamm"}, "'adamm': unknown. Choose one of adamw, adam, sgd"),
        ({"learning_rate": 0.0}, "learning rate 0"),
        ({"learning_rate": float("nan")}, "learning rate nan"),
        ({"weight_decay": -1.0}, "weight_decay -1"),
        ({"clip_norm": float("inf")}, "clip_norm inf"),
        ({"l2_sp": -0.1}, "l2_sp"),
        ({"ema_momentum": 1.0}, "ema_momentum 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        OptimizerSettings(**setting)


def test_a_pull_without_starting_points_is_refused() -> None:
    with pytest.raises(ConfigError, match="no starting weights"):
        make_optimizer(OptimizerSettings(l2_sp=0.1), 0.1, MULTIPLIERS)


def test_learning_rate_is_read_and_set() -> None:
    values = start_values()
    optimizer = make_optimizer(OptimizerSettings("sgd"), schedule("plateau", 0.25, 0, 9), MULTIPLIERS)
    assert current_learning_rate(optimizer) == 0.25
    variables = make_variables(values)
    set_learning_rate(optimizer, 0.125)
    assert current_learning_rate(optimizer) == 0.125
    step = gradients(1, values)
    apply(optimizer, variables, step)
    expected = values["slow"] - 0.0125 * 1.9 * step[0]["slow"]
    np.testing.assert_allclose(np.array(variables[0]), expected, **ROUNDING)
    scheduled = make_optimizer(OptimizerSettings(), schedule("constant", 0.4, 3, 8), MULTIPLIERS)
    apply(scheduled, variables, step)
    np.testing.assert_allclose(current_learning_rate(scheduled), 0.2, rtol=1e-6)  # of the next step; float32
    with pytest.raises(TypeError):
        set_learning_rate(scheduled, 0.1)


# Averaged weights.


def test_average_follows_the_formula_and_leaves_no_trace() -> None:
    values = start_values()
    variables = make_variables(values)
    optimizer = make_optimizer(OptimizerSettings("sgd", ema_momentum=0.75), 0.1, MULTIPLIERS)
    with averaged(optimizer, variables):  # not even built: nothing to average
        np.testing.assert_array_equal(np.array(variables[0]), values["slow"].astype(np.float32))
    optimizer.build(variables)
    with averaged(optimizer, variables):  # built: Keras' averages are zeros, which must not be taken
        np.testing.assert_array_equal(np.array(variables[0]), values["slow"].astype(np.float32))
    expected: Any = None
    for step in gradients(4, values):
        apply(optimizer, variables, [step])
        now = [np.array(variable) for variable in variables]
        expected = now if expected is None else [0.75 * e + 0.25 * n for e, n in zip(expected, now, strict=True)]
        before = state(optimizer)
        with averaged(optimizer, list(reversed(variables))):
            for variable, average in zip(variables, expected, strict=True):
                np.testing.assert_allclose(np.array(variable), average, rtol=1e-6, atol=1e-7)  # float32
        for variable, value in zip(variables, now, strict=True):
            np.testing.assert_array_equal(np.array(variable), value)
        for a, b in zip(before, state(optimizer), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.allclose(expected[1], now[1], atol=1e-3), "the case must tell average from weights"
    with pytest.raises(RuntimeError), averaged(optimizer, variables):
        raise RuntimeError
    np.testing.assert_array_equal(np.array(variables[1]), now[1])
    stopping = [variables[0], Stopping(variables[1])]
    with pytest.raises(KeyboardInterrupt), averaged(optimizer, stopping):
        pytest.fail("the second average was never put in")
    np.testing.assert_array_equal(np.array(variables[0]), now[0])
    finalize(optimizer, variables)
    np.testing.assert_allclose(np.array(variables[1]), expected[1], rtol=1e-6, atol=1e-7)  # float32


class Stopping:
    """A variable at which Ctrl-C comes, as its average is about to be put in; its own value can be put back."""

    def __init__(self, variable: keras.Variable) -> None:
        self.variable, self.stopped = variable, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.variable, name)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return np.array(self.variable)

    def assign(self, value: Any) -> None:
        if not self.stopped:
            self.stopped = True
            raise KeyboardInterrupt
        self.variable.assign(value)


def tiny_model(name: str = "tiny", **first: Any) -> keras.Model:
    keras.utils.set_random_seed(3)
    images = keras.Input((6,), name="x")
    x = keras.layers.Dense(5, activation="relu", name="a", **first)(images)
    x = keras.layers.Dense(4, activation="relu", name="b", **first)(x)
    return keras.Model(images, keras.layers.Dense(3, activation="softmax", dtype="float32", name="c")(x), name=name)


def tiny_data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, 6)).astype(np.float32), np.eye(3, dtype=np.float32)[rng.integers(0, 3, 32)]


def rates_of(model: keras.Model) -> dict[str, float]:
    factors = {"a": 0.0, "b": 0.1, "c": 1.0}
    return {w.path: factors[w.path.split("/")[0]] for w in model.trainable_variables}


def test_fit_does_not_end_with_the_average_in_place_of_the_weights() -> None:
    results = []
    for ema_momentum in (0.0, 0.9):
        model = tiny_model()
        model.compile(make_optimizer(OptimizerSettings(ema_momentum=ema_momentum), 0.01, rates_of(model)), "mse")
        for _ in range(2):  # two epochs, as the training loop runs them
            model.fit(*tiny_data(), batch_size=8, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for plain, with_average in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, with_average)


@pytest.mark.parametrize(
    "policy",
    [
        "float32",
        pytest.param("mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param("mixed_float16", marks=pytest.mark.slow),
    ],
)
def test_fit_uses_each_variables_rate_in_any_precision(policy: str) -> None:
    model = tiny_model(dtype=policy)
    before = model.get_weights()
    settings = OptimizerSettings(weight_decay=0.1, clip_norm=1.0, ema_momentum=0.5, l2_sp=0.1)
    home = {w.path: np.array(w) for w in model.trainable_variables if not w.path.startswith("c")}
    optimizer = make_optimizer(settings, schedule("plateau", 1e-2, 0, 4), rates_of(model), home)
    if policy == "mixed_float16":  # what Keras' compile does by itself where the whole model has the policy
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "categorical_crossentropy")
    model.fit(*tiny_data(), batch_size=32, verbose=0)
    moved = {w.path: np.abs(np.array(w) - b).max() for w, b in zip(model.trainable_variables, before, strict=True)}
    assert moved["a/kernel"] == 0 and moved["a/bias"] == 0
    # Adam's first step is its rate for every weight with a gradient; decay of 0.1 adds up to a tenth times the weight
    # (about 1). float32 of w + step: 1e-7 absolute.
    assert moved["b/kernel"] == pytest.approx(1e-3, rel=0.01)
    assert moved["c/bias"] == pytest.approx(1e-2, rel=0.01)
    assert 0.9e-2 < moved["c/kernel"] < 1.2e-2
    set_learning_rate(optimizer, 5e-3)
    assert current_learning_rate(optimizer) == pytest.approx(5e-3)
    saved = state(optimizer)
    restore(optimizer, saved)
    with averaged(optimizer, model.trainable_variables):  # after one step the average is the weights
        for w, b in zip(model.trainable_variables, before, strict=True):
            assert np.abs(np.array(w) - b).max() == moved[w.path]


# State.


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "adamw" else pytest.mark.slow) for name in OPTIMIZERS]
)
def test_training_goes_on_bit_equal_from_saved_state(name: str) -> None:
    settings = OptimizerSettings(name, 0.01, weight_decay=0.1, clip_norm=0.5, ema_momentum=0.9, l2_sp=0.1)

    def fresh() -> tuple[keras.Model, Any]:
        model = tiny_model()
        home = {w.path: np.array(w) for w in model.trainable_variables}
        optimizer = make_optimizer(settings, schedule("cosine", 0.01, 2, 6), rates_of(model), home)
        model.compile(optimizer, "categorical_crossentropy")
        optimizer.build(model.trainable_variables)
        return model, optimizer

    def train(model: keras.Model) -> None:  # three steps
        x, y = tiny_data()
        model.fit(x[:24], y[:24], batch_size=8, shuffle=False, verbose=0)

    whole, whole_optimizer = fresh()
    train(whole)
    train(whole)
    first, first_optimizer = fresh()
    train(first)
    saved, weights = state(first_optimizer), first.get_weights()
    train(first)  # goes on: what was saved must be a copy
    second, second_optimizer = fresh()
    second.set_weights(weights)
    restore(second_optimizer, saved)
    train(second)
    for a, b in zip(whole.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(state(whole_optimizer), state(second_optimizer), strict=True):
        np.testing.assert_array_equal(a, b)
    unrestored, _ = fresh()
    unrestored.set_weights(weights)
    train(unrestored)
    assert any(not np.array_equal(a, b) for a, b in zip(whole.get_weights(), unrestored.get_weights(), strict=True))


def test_state_of_another_optimizer_is_refused() -> None:
    variables = make_variables(start_values())
    optimizer = make_optimizer(OptimizerSettings(), 0.1, MULTIPLIERS)
    with pytest.raises(ValueError, match="build"):
        restore(optimizer, [])
    optimizer.build(variables)
    good = state(optimizer)
    other = make_optimizer(OptimizerSettings("sgd"), 0.1, MULTIPLIERS)
    other.build(variables)
    for bad in (state(other), good[:-1], [*good[:-1], good[-1].T], [*good[:-1], good[-1].astype(np.float64)]):
        with pytest.raises(RunError, match="optimizer state"):
            restore(optimizer, bad)
    restore(optimizer, good)


REPLICAS = """
import sys
import numpy as np
from edgetl.console import quiet_tensorflow
quiet_tensorflow()
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, "tests")
from test_optimizers import OptimizerSettings, averaged, current_learning_rate, make_optimizer, rates_of
from test_optimizers import restore, schedule, state, tiny_data, tiny_model

def train(strategy):
    with strategy.scope():
        model = tiny_model()
        before = model.get_weights()
        # a tight bound: clipping each replica's share instead of the sum would change every step
        settings = OptimizerSettings("SETTING", weight_decay=0.1, clip_norm=0.05, ema_momentum=0.9, l2_sp=0.1)
        home = {w.path: np.array(w) + 1 for w in model.trainable_variables if w.path.startswith("b")}
        optimizer = make_optimizer(settings, schedule("cosine", 0.01, 3, 16), rates_of(model), home)
        model.compile(optimizer, "categorical_crossentropy")
    model.fit(*tiny_data(), batch_size=8, epochs=3, shuffle=False, verbose=0)
    return model, optimizer, before

one, one_optimizer, before = train(tf.distribute.get_strategy())
two, two_optimizer, _ = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
for variable in two.variables + two_optimizer.variables:
    first, second = (part.numpy() for part in variable.value.values)
    assert np.array_equal(first, second), variable.path
restore(two_optimizer, state(two_optimizer))
assert current_learning_rate(one_optimizer) == current_learning_rate(two_optimizer)
trained = two.get_weights()
with averaged(two_optimizer, two.trainable_variables):
    average = two.get_weights()
assert all(np.array_equal(a, b) for a, b in zip(trained, two.get_weights()))
with averaged(one_optimizer, one.trainable_variables):
    one_average = one.get_weights()
np.savez(
    sys.argv[1],
    moved=[np.abs(a - b).max() for a, b in zip(trained, before)],
    apart=[np.abs(a - b).max() for a, b in zip(trained, one.get_weights())],
    apart_averages=[np.abs(a - b).max() for a, b in zip(average, one_average)],
    lag=[np.abs(a - b).max() for a, b in zip(trained, average)],
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_two_replicas_train_as_one_device_does(name: str, tmp_path: Path) -> None:
    script = REPLICAS.replace("SETTING", name)  # a process of its own: devices are divided before TensorFlow starts
    path = tmp_path / "result.npz"
    done = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = np.load(path)
    a, b, c = result["moved"][0:2], result["moved"][2:4], result["moved"][4:6]
    assert (a == 0).all() and (b > 0).all() and (c > 0).all(), "multipliers 0, 0.1 and 1"
    # Twelve steps. The replicas' gradients are halves of one sum, added in another order: float32 rounding, 6e-8 of
    # weights below 1, which Adam's division by the root of small second moments can enlarge some times.
    assert result["apart"].max() < 2e-6 < 0.01 * min(b.min(), c.min())
    assert result["apart_averages"].max() < 2e-6 < 0.1 * result["lag"][2:].min()
