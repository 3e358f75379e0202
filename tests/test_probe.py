"""Heads: the linear probe against scikit-learn, hidden layers by Keras, and both folded back to raw features."""

from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

from edgetl import probe as probe_module
from edgetl.errors import EdgetlError
from edgetl.features import Scaling
from edgetl.heads import HEADS, OUTPUT_LAYER, attach, build_head, finish, load
from edgetl.metrics import score
from edgetl.outputs import OutputSpec, Task
from edgetl.probe import L2_GRID, LinearProbe, fit_linear_probe
from edgetl.training import HeadTraining, train_head

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def outputs_of(classes: int) -> OutputSpec:
    return OutputSpec("classification", tuple(str(index) for index in range(classes)))


def table(classes: int, n: int = 120, d: int = 12, noise: float = 1.5, seed: int = 0, decades: float = 3) -> Split:
    """Training and validation features around one centre per class; columns differ by so many powers of ten."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, d))
    labels = np.arange(n) % classes
    values = (centres[labels] + noise * random.normal(size=(n, d))) * np.logspace(-decades / 2, decades / 2, d) + 3
    values = values.astype(np.float32)
    return values[: n // 2], labels[: n // 2], values[n // 2 :], labels[n // 2 :]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def probabilities(probe: LinearProbe, values: np.ndarray) -> np.ndarray:
    return softmax(values.astype(np.float64) @ probe.kernel + probe.bias)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_folded_probe_gives_scikit_learns_probabilities(classes: int) -> None:
    x, y, vx, vy = table(classes)
    probe = fit_linear_probe(x, y, vx, vy, inverse_l2=(0.01,))
    assert probe.kernel.shape == (12, classes) and probe.bias.shape == (classes,)
    assert probe.kernel.dtype == probe.bias.dtype == np.float32
    scaling = Scaling.of(x)
    # The same solver with the same settings, from the same start: what is left is rounding of the folded weights to
    # float32, 6e-8 of logits that reach some tens on columns of up to 100.
    model = LogisticRegression(C=0.01, solver="lbfgs", max_iter=1000, tol=1e-3).fit(scaling.apply(x), y)
    np.testing.assert_allclose(probabilities(probe, vx), model.predict_proba(scaling.apply(vx)), atol=2e-5)


def test_strength_is_chosen_by_validation_log_loss() -> None:
    x, y, vx, vy = table(3, n=60, d=40, noise=4.0)
    probe = fit_linear_probe(x, y, vx, vy)
    alone = {c: log_loss(vy, probabilities(fit_linear_probe(x, y, vx, vy, inverse_l2=(c,)), vx)) for c in L2_GRID}
    best = min(alone, key=lambda c: alone[c])
    assert min(L2_GRID) < best < max(L2_GRID), "the case must have its best inside the grid"
    assert probe.inverse_l2 == best
    # A warm start ends within the solver's tolerance of a cold one.
    assert log_loss(vy, probabilities(probe, vx)) == pytest.approx(alone[best], rel=5e-3)


def test_validation_decides_not_training() -> None:
    x, y, vx, vy = table(2, noise=3.0)
    strict = fit_linear_probe(x, y, vx, 1 - vy).inverse_l2  # labels turned around: the less is learned the better
    assert strict == L2_GRID[0]
    assert fit_linear_probe(x, y, x, y).inverse_l2 == L2_GRID[-1]


def test_a_dead_feature_changes_nothing() -> None:
    x, y, vx, vy = table(3, decades=0)
    plain = fit_linear_probe(x, y, vx, vy, inverse_l2=(0.1,))
    dead = [np.insert(part, 5, 7.0, axis=1).astype(np.float32) for part in (x, vx)]
    probe = fit_linear_probe(dead[0], y, dead[1], vy, inverse_l2=(0.1,))
    assert np.isfinite(probe.kernel).all() and np.isfinite(probe.bias).all()
    assert np.abs(probe.kernel[5]).max() < 1e-6  # nothing to learn from it, and L2 holds it at 0
    # The scales of the others move a little, with the median deviation; the penalty with them.
    np.testing.assert_allclose(probabilities(probe, dead[1]), probabilities(plain, vx), atol=0.01)
    dead[1][:, 5] += 1000.0  # on the device it fires
    assert np.abs(probabilities(probe, dead[1]) - probabilities(probe, np.insert(vx, 5, 7.0, axis=1))).max() < 0.01


# --- other tasks ----------------------------------------------------------------------------------------------------


def scaled(x: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    scaling = Scaling.of(x)
    return [scaling.apply(part).astype(np.float64) for part in (x, *others)]


WEIGHTS = np.random.default_rng(5).uniform(0.2, 3.0, 60).astype(np.float32)
weighted = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])


@weighted
def test_two_ordered_classes_are_two_classes(weights: np.ndarray | None) -> None:
    x, y, vx, vy = table(2, noise=3.0)
    parts = x, y, vx, vy
    plain, ordered = (
        fit_linear_probe(*parts, task=task, weights=weights, inverse_l2=(0.01,))
        for task in ("classification", "ordinal")  # type: ignore[arg-type]
    )
    # The same minimum, by two solvers that stop where the gradient is 1e-3 of a loss with curvatures of about 0.1.
    np.testing.assert_allclose(ordered.outputs(vx), plain.outputs(vx), atol=0.01)
    if weights is not None:
        alike = fit_linear_probe(*parts, task="ordinal", inverse_l2=(0.01,))
        assert np.abs(alike.outputs(vx) - ordered.outputs(vx)).max() > 0.02, "the weights must matter in this case"


def test_ordinal_probe_finds_the_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_TOLERANCE", 1e-7)
    x, _, vx, _ = table(2, d=4, decades=1)
    rng = np.random.default_rng(0)
    y, vy = (np.digitize(part[:, 0] + rng.normal(0, 1, len(part)), [1.5, 3, 4]) for part in (x, vx))
    assert set(y) == {0, 1, 2, 3}
    probe = fit_linear_probe(x, y, vx, vy, task="ordinal", inverse_l2=(0.1,))
    (values,) = scaled(x)

    def loss(parameters: np.ndarray) -> float:
        logits = (values @ parameters[:4])[:, None] * np.arange(4) + parameters[4:]  # other positions, the same model
        chosen = (logits - logsumexp(logits, axis=1, keepdims=True))[np.arange(len(y)), y]
        return float(-0.1 * chosen.sum() + (parameters[:4] ** 2).sum() / 2)

    found = minimize(loss, np.zeros(8), method="BFGS", options={"gtol": 1e-5})  # derivatives by differences
    logits = (values @ found.x[:4])[:, None] * np.arange(4) + found.x[4:]
    np.testing.assert_allclose(probe.outputs(x), softmax(logits), atol=1e-4)  # as far as differences tell
    steps = np.diff(probe.kernel, axis=1)
    # One score for all classes: the columns are equally far apart, as far as float32 tells.
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:, :1], steps.shape), rtol=1e-5)


@weighted
def test_labels_are_regressions_of_their_own(weights: np.ndarray | None) -> None:
    x, y, vx, vy = table(3, noise=3.0)
    labels, others = ((part[:, None] == [0, 2]).astype(np.float32) for part in (y, vy))
    probe = fit_linear_probe(x, labels, vx, others, task="multi_label", weights=weights, inverse_l2=(0.01,))
    train, validation = scaled(x, vx)
    relative = None if weights is None else weights / weights.mean()
    for k in range(2):
        model = LogisticRegression(C=0.01, max_iter=1000, tol=1e-3).fit(train, labels[:, k], relative)
        # One solver on float32 and on float64 features, each stopped at a gradient of 1e-3.
        np.testing.assert_allclose(probe.outputs(vx)[:, k], model.predict_proba(validation)[:, 1], atol=0.01)


def test_labels_that_are_always_or_never_true_keep_their_odds() -> None:
    x, y, vx, vy = table(2)
    labels, others = (np.stack([part, 0 * part, 0 * part + 1], axis=1).astype(np.float32) for part in (y, vy))
    probe = fit_linear_probe(x, labels, vx, others, task="multi_label")
    assert not probe.kernel[:, 1:].any()
    # Jeffreys' estimate of a share after 60 photos; one position of float32 rounding.
    np.testing.assert_allclose(probe.outputs(vx)[:, 1:], [[0.5 / 61, 60.5 / 61]] * 60, rtol=1e-6)
    # 0.81 of the validation photos at random would be four standard deviations above a half.
    assert ((probe.outputs(vx)[:, 0] > 0.5) == vy).mean() > 0.8


@weighted
def test_numbers_are_ridge_regression(weights: np.ndarray | None) -> None:
    x, _, vx, _ = table(2)
    targets = np.random.default_rng(0).normal(size=(12, 2)) / np.logspace(-1.5, 1.5, 12)[:, None] * [1, 1000]
    y, vy = ((part @ targets + [5, 0]).astype(np.float32) for part in (x, vx))
    probe = fit_linear_probe(x, y, vx, vy, task="regression", weights=weights, inverse_l2=(0.1,))
    train, validation = scaled(x, vx)
    model = Ridge(alpha=10).fit(train, y, None if weights is None else weights / weights.mean())
    # Solved exactly both times; kernels are rounded to float32, on columns of up to 100.
    np.testing.assert_allclose(probe.outputs(vx) / y.std(0), model.predict(validation) / y.std(0), atol=1e-4)


def test_strength_of_ridge_is_chosen_by_validation() -> None:
    x, y, vx, vy = table(3, n=60, d=40, noise=4.0)
    parts = x, y[:, None].astype(np.float32), vx, vy[:, None].astype(np.float32)
    probe = fit_linear_probe(*parts, task="regression")
    errors = {}
    for c in L2_GRID:
        alone = fit_linear_probe(*parts, task="regression", inverse_l2=(c,))
        errors[c] = float(((alone.outputs(vx) - parts[3]) ** 2).mean())
    assert probe.inverse_l2 == min(errors, key=lambda c: errors[c]) < L2_GRID[-1]


@pytest.mark.parametrize("task", HEADS)
def test_equal_weights_are_none(task: Task) -> None:
    x, y, vx, vy = table(3)
    labels, others = (as_labels(part, task) for part in (y, vy))
    plain = fit_linear_probe(x, labels, vx, others, task=task, inverse_l2=(0.01, 0.1))
    equal = fit_linear_probe(
        x, labels, vx, others, task=task, weights=np.full(60, 0.7, np.float32), inverse_l2=(0.01, 0.1)
    )
    np.testing.assert_array_equal(plain.kernel, equal.kernel)
    np.testing.assert_array_equal(plain.bias, equal.bias)


def as_labels(classes: np.ndarray, task: Task) -> np.ndarray:
    """Labels of any task that say what class numbers say."""
    if task == "multi_label":
        return (classes[:, None] == np.arange(classes.max() + 1)).astype(np.float32)
    return (100 + 7 * classes[:, None]).astype(np.float32) if task == "regression" else classes


@pytest.mark.parametrize("task", HEADS)
def test_a_probe_is_the_head_that_is_trained_and_the_layer_that_is_saved(task: Task) -> None:
    x, y, vx, vy = table(3, decades=1)
    labels, others = as_labels(y, task), as_labels(vy, task)
    probe = fit_linear_probe(x, labels, vx, others, task=task)
    width = probe.kernel.shape[1]
    deviations = labels.std(axis=0) if task == "regression" else ()
    head = build_head(task, 12, width, deviations=deviations)
    load(head, probe.kernel, probe.bias)
    finished = finish(head)
    expected = probe.outputs(vx)
    unit = 7.0 if task == "regression" else 1.0
    for model in (head, finished):
        # The same numbers, multiplied and summed in float32 in another order.
        np.testing.assert_allclose(np.asarray(model(vx)) / unit, expected / unit, atol=2e-5)
    last = finished.layers[-1]
    assert type(last) is keras.layers.Dense and last.activation.__name__ == HEADS[task].activation
    assert last.name == HEADS[task].output_layer and finished.name == task
    assert (finished is head) == (task in ("classification", "multi_label"))


# --- layers ---------------------------------------------------------------------------------------------------------


def test_head_layers_are_those_asked_for() -> None:
    linear = build_head("classification", 10, 3)
    assert [layer.name for layer in linear.layers] == [OUTPUT_LAYER]
    deep = build_head("classification", 10, 3, hidden_units=(8, 4), dropout=0.5)
    assert [layer.name for layer in deep.layers] == [
        "head_dropout1",
        "head_dense1",
        "head_dropout2",
        "head_dense2",
        "head_dropout",
        OUTPUT_LAYER,
    ]
    assert [layer.units for layer in deep.layers if isinstance(layer, keras.layers.Dense)] == [8, 4, 3]


@pytest.mark.parametrize("task", HEADS)
def test_every_task_builds_attaches_and_saves(task: Task, tmp_path: Path) -> None:
    images = keras.Input((4, 4, 3), name="images")
    backbone = keras.Model(images, keras.layers.GlobalAveragePooling2D()(images), name="toy")
    head = build_head(task, 3, 5, hidden_units=(4,), dropout=0.2, deviations=(2.0,) * 5 * (task == "regression"))
    model = finish(attach(backbone, head))
    assert model.output_shape == (None, 5)
    assert not [layer for layer in model.layers if isinstance(layer, keras.Model)], (
        "nested: export and QAT can't see in"
    )
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras", compile=False)
    photo = np.full((2, 4, 4, 3), 100.0, np.float32)
    np.testing.assert_array_equal(model(photo), again(photo))


# --- hidden layers --------------------------------------------------------------------------------------------------

SETTINGS = HeadTraining((16,), 0.1, 3e-2, 1e-2, epochs=10, batch_size=16)


def test_mlp_learns_and_repeats_by_seed() -> None:
    x, y, vx, vy = table(3, noise=0.3)
    heads = []
    for seed in (1, 1, 2):
        heads.append(train_head(outputs_of(3), x, y, vx, vy, SETTINGS, seed=seed))
        keras.layers.Dense(3)(x)  # whatever else is made meanwhile draws from the generators of the process
    # Centres are some six standard deviations apart here: a head that learns at all is right everywhere.
    assert (heads[0].predict(vx, verbose=0).argmax(axis=1) == vy).mean() > 0.95
    for first, second in zip(heads[0].get_weights(), heads[1].get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert np.abs(heads[0].get_weights()[0] - heads[2].get_weights()[0]).max() > 1e-3


def test_folded_first_layer_gives_the_outputs_of_the_scaled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, vx, vy = table(3)
    trained: list[np.ndarray] = []
    fold = Scaling.fold

    def remember(self: Scaling, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        trained.extend([kernel, bias])
        return fold(self, kernel, bias)

    monkeypatch.setattr(Scaling, "fold", remember)
    head = train_head(outputs_of(3), x, y, vx, vy, SETTINGS)
    folded = head.predict(vx, verbose=0)
    head.layers[1].set_weights(trained)
    scaled = head.predict(Scaling.of(x).apply(vx), verbose=0)
    # float32 sums in another order, of terms up to a hundred times the result.
    np.testing.assert_allclose(folded, scaled, atol=1e-4)


def test_weights_of_the_best_epoch_are_kept() -> None:
    x, y, vx, vy = table(2, noise=3.0)
    losses: list[float] = []

    def remember(epoch: int, loss: float, head: keras.Sequential) -> None:
        losses.append(loss)
        assert epoch == len(losses) - 1 and head.output_shape == (None, 2)

    settings = HeadTraining((32,), 0.0, 5e-2, 0.0, epochs=60, batch_size=16, patience=5)
    head = train_head(outputs_of(2), x, y, vx, vy, settings, on_epoch=remember)
    assert len(losses) < 60 and int(np.argmin(losses)) == len(losses) - 6, "it must stop early in this case"
    # Keras averages in float32.
    assert score(vy, head.predict(vx, verbose=0), outputs_of(2)).log_loss == pytest.approx(min(losses), rel=1e-3)


def test_what_is_told_of_an_epoch_can_end_the_training() -> None:
    x, y, vx, vy = table(2, noise=3.0)

    def stop(epoch: int, loss: float, head: keras.Sequential) -> None:
        if epoch == 1:
            raise StopIteration(f"{loss:.3f}")

    with pytest.raises(StopIteration, match=r"\d\.\d{3}"):
        train_head(outputs_of(2), x, y, vx, vy, SETTINGS, on_epoch=stop)


def test_training_that_diverges_is_an_error() -> None:
    x, y, vx, vy = table(2)
    with pytest.raises(EdgetlError, match=r"learning.rate"):
        train_head(outputs_of(2), x, y, vx, vy, HeadTraining((8,), 0.0, 1e38, 0.0, epochs=3, batch_size=16))
