"""The linear probe: the best linear head on frozen features, with the L2 strength chosen on validation data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.balance import relative_weights
from edgetl.console import log, progress
from edgetl.features import Scaling
from edgetl.outputs import OutputSpec, Task
from edgetl.tasks import activate, mean_loss, rank_positions

L2_GRID = tuple(float(c) for c in np.logspace(-4, 1, 11))
"""Inverse L2 strengths (scikit-learn's C) tried, on scaled features, from strong to weak."""
PATIENCE = 2
"""Validation loss has one minimum along the grid: stop after so many strengths past it."""
_TOLERANCE = 1e-3
"""L-BFGS stops where no derivative of the mean loss is larger."""
METHODS: dict[Task, str] = {
    "classification": "L-BFGS",
    "ordinal": "adjacent categories by L-BFGS",
    "multi_label": "one regression per label by L-BFGS",
    "regression": "ridge",
}
"""How each task's probe is fitted, in words."""
Solution = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Kernel [d, k] and bias [k] for scaled features."""
Fit = Callable[[float], tuple[float, Callable[[], Solution]]]
"""C -> validation loss of the best head, and what hands that head out."""


@dataclass(frozen=True)
class _Given:
    """What a probe is fitted to, and chosen by."""

    train: NDArray[np.float32]
    """[n, d], scaled; as is `validation`."""
    labels: NDArray[Any]
    validation: NDArray[np.float32]
    validation_labels: NDArray[Any]
    weights: NDArray[np.float32] | None
    """[n], their mean 1; None counts all alike."""


@dataclass(frozen=True)
class LinearProbe:
    """Weights of a dense layer and what it is for, and how they were chosen."""

    kernel: NDArray[np.float32]
    """[d, k], for raw (not scaled) features."""
    bias: NDArray[np.float32]
    """[k]."""
    inverse_l2: float
    """Chosen C of the grid."""
    task: Task = "classification"

    def outputs(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the head says of raw features [n, d]: float32 [n, k], in the units of the task."""
        logits = features @ self.kernel.astype(np.float64) + self.bias
        return activate(logits, self.task).astype(np.float32)


def fit_linear_probe(
    features: NDArray[np.float32],
    labels: NDArray[Any],
    validation_features: NDArray[np.float32],
    validation_labels: NDArray[Any],
    *,
    task: Task = "classification",
    weights: NDArray[np.float32] | None = None,
    inverse_l2: tuple[float, ...] = L2_GRID,
) -> LinearProbe:
    """Fit one linear head per L2 strength and keep the one best on validation.

    classification: multinomial logistic regression by L-BFGS. ordinal: adjacent categories, see
    `edgetl.tasks.rank_positions`, by L-BFGS. multi_label: one logistic regression per label, by L-BFGS. regression:
    ridge on standardized targets, exact. Penalties are those of scikit-learn: C sum(loss) + ||kernel||^2 / 2.

    Best is the lowest validation loss: with some hundred validation photos accuracy is a coarse measure that picks a
    strength by luck. Features are scaled by the statistics of the training rows (see `Scaling`), and that is folded
    into the weights that come back. Each fit starts from the last.

    Args:
        features: [n, d].
        labels: as `Examples.labels` are for the task; every class occurs, no target is constant.
        validation_features: [m, d].
        validation_labels: likewise.
        task: what the labels are.
        weights: [n], of the training examples; the validation loss is not weighted.
        inverse_l2: values of C to try, in increasing order; the search ends once two in a row were no better.
    """
    from threadpoolctl import threadpool_limits

    scaling = Scaling.of(features)
    relative = None if weights is None else relative_weights(weights)
    given = _Given(scaling.apply(features), labels, scaling.apply(validation_features), validation_labels, relative)
    best: tuple[float, float, Solution] | None = None
    worse = 0
    # Matrices of a few megabytes: threads of BLAS that wait for each other on busy cores cost 20 times what they save.
    with threadpool_limits(1, "blas"), progress("linear head") as bar:
        fit = _FITS[task](given)
        for c in inverse_l2:
            loss, solution = fit(c)
            log.debug("C=%.3g: validation loss %.4f", c, loss)
            if best is None or loss < best[0]:
                best, worse = (loss, c, solution()), 0
            else:
                worse += 1
            bar.advance()
            if worse == PATIENCE:
                break
    assert best is not None, "the grid is empty"
    _, c, (kernel, bias) = best
    return LinearProbe(*scaling.fold(kernel, bias), c, task)


def _logistic(given: _Given) -> Fit:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    model = LogisticRegression(solver="lbfgs", warm_start=True, max_iter=1000, tol=_TOLERANCE)

    def solution() -> Solution:
        if len(model.coef_) > 1:
            return model.coef_.T.copy(), model.intercept_.copy()
        # Two classes: one row of log odds; sigmoid(z) = softmax(-z/2, z/2).
        kernel, bias = (np.concatenate([-a / 2, a / 2]) for a in (model.coef_, model.intercept_))
        return kernel.T, bias

    def fit(c: float) -> tuple[float, Callable[[], Solution]]:
        model.set_params(C=c).fit(given.train, given.labels, given.weights)
        found = model.predict_proba(given.validation)
        return float(log_loss(given.validation_labels, found, labels=model.classes_)), solution

    return fit


def _adjacent_categories(given: _Given) -> Fit:
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    labels = given.labels
    classes, width = int(labels.max()) + 1, given.train.shape[1]
    places, x = rank_positions(classes), given.train.astype(np.float64)
    shares = (np.ones(len(x)) if given.weights is None else given.weights.astype(np.float64)) / len(x)
    rows = np.arange(len(x))
    spec = OutputSpec("ordinal", tuple(str(k) for k in range(classes)))
    at = np.zeros(width + classes)

    def objective(parameters: NDArray[np.float64], l2: float) -> tuple[float, NDArray[np.float64]]:
        """The weighted mean of the loss, the penalty's share, and their gradient."""
        w, offsets = parameters[:width], parameters[width:]
        logits = (x @ w)[:, None] * places + offsets
        logs = log_softmax(logits, axis=1)
        wrong = np.exp(logs)
        wrong[rows, labels] -= 1
        wrong *= shares[:, None]
        gradient = np.concatenate([x.T @ (wrong @ places) + l2 * w, wrong.sum(axis=0)])
        return float(-shares @ logs[rows, labels] + l2 / 2 * w @ w), gradient

    def fit(c: float) -> tuple[float, Callable[[], Solution]]:
        nonlocal at
        found = minimize(
            objective, at, (1 / (c * len(x)),), "L-BFGS-B", jac=True, options={"maxiter": 1000, "gtol": _TOLERANCE}
        )
        at = found.x
        kernel, bias = at[:width, None] * places, at[width:] - at[width:].mean()
        outputs = activate(given.validation @ kernel + bias, "ordinal")
        return mean_loss(given.validation_labels, outputs, spec), lambda: (kernel, bias)

    return fit


def _independent_labels(given: _Given) -> Fit:
    from sklearn.linear_model import LogisticRegression

    labels, count = given.labels, given.labels.shape[1]
    spec = OutputSpec("multi_label", tuple(str(k) for k in range(count)))
    kernel, bias = np.zeros((given.train.shape[1], count)), np.zeros(count)
    models = {}
    for k, true in enumerate(labels.T):
        if true.min() != true.max():
            models[k] = LogisticRegression(solver="lbfgs", warm_start=True, max_iter=1000, tol=_TOLERANCE)
        else:  # always or never true: nothing to tell it by, so its odds are the same everywhere (Jeffreys' estimate)
            bias[k] = np.log((true.sum() + 0.5) / (len(true) - true.sum() + 0.5))

    def fit(c: float) -> tuple[float, Callable[[], Solution]]:
        for k, model in models.items():
            model.set_params(C=c).fit(given.train, labels[:, k], given.weights)
            kernel[:, k], bias[k] = model.coef_[0], model.intercept_[0]
        outputs = activate(given.validation @ kernel + bias, "multi_label")
        return mean_loss(given.validation_labels, outputs, spec), lambda: (kernel.copy(), bias.copy())

    return fit


def _ridge(given: _Given) -> Fit:
    deviations = given.labels.std(axis=0, dtype=np.float64)
    spec = OutputSpec("regression", tuple(str(k) for k in range(len(deviations))), deviations=tuple(deviations))
    x, y = given.train.astype(np.float64), given.labels / deviations
    shares = np.ones(len(x)) if given.weights is None else given.weights.astype(np.float64)
    mean_x, mean_y = (np.average(part, axis=0, weights=shares) for part in (x, y))
    x, y = x - mean_x, y - mean_y
    # One decomposition serves every strength: (X'X + I/C)^-1 X'y in the axes of X'X.
    spread, axes = np.linalg.eigh(x.T @ (shares[:, None] * x))
    along = axes.T @ (x.T @ (shares[:, None] * y))

    def fit(c: float) -> tuple[float, Callable[[], Solution]]:
        kernel = axes @ (along / (np.maximum(spread, 0.0) + 1 / c)[:, None]) * deviations
        bias = mean_y * deviations - mean_x @ kernel
        return mean_loss(given.validation_labels, given.validation @ kernel + bias, spec), lambda: (kernel, bias)

    return fit


_FITS: dict[Task, Callable[[_Given], Fit]] = {
    "classification": _logistic,
    "ordinal": _adjacent_categories,
    "multi_label": _independent_labels,
    "regression": _ridge,
}
