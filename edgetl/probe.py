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
from edgetl.rows import Rows, RowsLike, as_rows
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
Fit = Callable[[float], Solution]
"""C -> the best head. Each starts from the last."""
Link = Callable[[NDArray[Any], NDArray[np.float64], NDArray[Any]], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
"""What a loss makes of a block: of its scores [b, m], which are features times kernel, of the constants [p] and of its
labels, the loss of each example [b], and its derivatives by the scores [b, m] and by the constants [b, p]."""


@dataclass(frozen=True)
class _Given:
    """What a probe is fitted to."""

    rows: Rows
    """[n, d], scaled."""
    labels: NDArray[Any]
    weights: NDArray[np.float64]
    """[n], their mean 1."""


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

    def outputs(self, features: RowsLike) -> NDArray[np.float32]:
        """What the head says of raw features [n, d]: float32 [n, k], in the units of the task."""
        return _said(as_rows(features), self.kernel.astype(np.float64), self.bias, self.task).astype(np.float32)


def fit_linear_probe(
    features: RowsLike,
    labels: NDArray[Any],
    validation_features: RowsLike,
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

    Losses and gradients are summed block by block, so that features may be more than memory holds: products in float32,
    sums over the examples in float64.

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

    rows, held = as_rows(features), as_rows(validation_features)
    best: tuple[float, float, Solution] | None = None
    worse = 0
    # Matrices of a few megabytes: threads of BLAS that wait for each other on busy cores cost 20 times what they save.
    with threadpool_limits(1, "blas"), progress("linear head") as bar:
        scaling = Scaling.of(rows)
        rows, held = rows.mapped(scaling.apply), held.mapped(scaling.apply)
        relative = None if weights is None else relative_weights(weights)
        counted = np.ones(len(rows)) if relative is None else relative.astype(np.float64)
        fit, spec = _FITS[task](_Given(rows, labels, counted)), _spec(labels, task)
        for c in inverse_l2:
            solution = fit(c)
            loss = mean_loss(validation_labels, _said(held, *solution, task), spec)
            log.debug("C=%.3g: validation loss %.4f", c, loss)
            if best is None or loss < best[0]:
                best, worse = (loss, c, solution), 0
            else:
                worse += 1
            bar.advance()
            if worse == PATIENCE:
                break
    assert best is not None, "the grid is empty"
    _, c, (kernel, bias) = best
    return LinearProbe(*scaling.fold(kernel, bias), c, task)


def _said(rows: Rows, kernel: NDArray[np.float64], bias: NDArray[Any], task: Task) -> NDArray[np.float64]:
    """What a linear head says of rows, [n, k]."""
    return rows.mapped(lambda block: activate(block @ kernel + bias, task), kernel.shape[1]).array()


def _spec(labels: NDArray[Any], task: Task) -> OutputSpec:
    """What a head of these labels says."""
    count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    deviations = labels.std(axis=0, dtype=np.float64) if task == "regression" else ()
    return OutputSpec(task, tuple(str(k) for k in range(count)), deviations=tuple(deviations))


def _minimum(given: _Given, link: Link, scores: int, constants: int) -> Fit:
    """Minimize C sum(loss) + ||kernel||^2 / 2 by L-BFGS, stopped where scikit-learn stops.

    Args:
        given: what is fitted to.
        link: the loss.
        scores: m, columns of the kernel.
        constants: p, how many are added to them, without a penalty.

    Returns:
        C -> kernel [d, m] and constants [p].
    """
    from scipy.optimize import minimize

    width, count = given.rows.width, len(given.rows)
    at, shares = np.zeros(width * scores + constants), given.weights / count

    def objective(parameters: NDArray[np.float64], l2: float) -> tuple[float, NDArray[np.float64]]:
        """The weighted mean of the loss, the penalty's share, and their gradient."""
        flat, offsets = np.split(parameters, [width * scores])
        kernel, by_kernel = flat.reshape(width, scores), np.zeros((width, scores))
        total, by_constants, narrow = 0.0, np.zeros(constants), kernel.astype(np.float32)
        for places, x in given.rows.blocks():
            share = shares[places]
            losses, along, constant = link(x @ narrow, offsets, given.labels[places])
            total += float(share @ losses)
            by_kernel += x.T @ (share[:, None] * along).astype(np.float32)
            by_constants += share @ constant
        gradient = np.concatenate([(by_kernel + l2 * kernel).ravel(), by_constants])
        return total + l2 / 2 * float(flat @ flat), gradient

    def fit(c: float) -> Solution:
        nonlocal at
        options = {"maxiter": 1000, "maxls": 50, "gtol": _TOLERANCE, "ftol": 64 * np.finfo(np.float64).eps}
        at = minimize(objective, at, (1 / (c * count),), "L-BFGS-B", jac=True, options=options).x
        return at[: width * scores].reshape(width, scores), at[width * scores :]

    return fit


def _logistic(given: _Given) -> Fit:
    classes = int(given.labels.max()) + 1
    if classes == 2:  # one score, the log odds, as scikit-learn has it: with a score for each class L2 would be halved
        odds = _minimum(_Given(given.rows, given.labels[:, None], given.weights), _labels_link, 1, 1)

        def fit(c: float) -> Solution:
            kernel, bias = odds(c)
            # sigmoid(z) = softmax(-z/2, z/2)
            return kernel * [-0.5, 0.5], bias * [-0.5, 0.5]

        return fit
    return _minimum(given, _classes_link, classes, classes)


def _classes_link(scores: NDArray[Any], constants: NDArray[np.float64], labels: NDArray[Any]) -> Any:
    from scipy.special import log_softmax

    logs, rows = log_softmax(scores + constants, axis=1), np.arange(len(labels))
    wrong = np.exp(logs)
    wrong[rows, labels] -= 1
    return -logs[rows, labels], wrong, wrong


def _labels_link(scores: NDArray[Any], constants: NDArray[np.float64], labels: NDArray[Any]) -> Any:
    from scipy.special import expit

    logits = scores + constants
    wrong = expit(logits) - labels
    return (np.logaddexp(0, logits) - labels * logits).sum(axis=1), wrong, wrong


def _adjacent_categories(given: _Given) -> Fit:
    classes = int(given.labels.max()) + 1
    positions = rank_positions(classes)

    def link(scores: NDArray[Any], constants: NDArray[np.float64], labels: NDArray[Any]) -> Any:
        losses, wrong, _ = _classes_link(scores * positions, constants, labels)
        return losses, (wrong @ positions)[:, None], wrong

    score = _minimum(given, link, 1, classes)

    def fit(c: float) -> Solution:
        kernel, constants = score(c)
        return kernel * positions, constants - constants.mean()

    return fit


def _independent_labels(given: _Given) -> Fit:
    """All at once: the sum of what nothing connects is least where each is, and every row is read once for all."""
    true, count = given.labels.sum(axis=0), len(given.rows)
    varying = np.flatnonzero((true > 0) & (true < count))
    # Always or never true: nothing to tell it by, so its odds are the same everywhere (Jeffreys' estimate).
    odds = np.log((true + 0.5) / (count - true + 0.5))
    labels = np.ascontiguousarray(given.labels[:, varying])
    found = _minimum(_Given(given.rows, labels, given.weights), _labels_link, len(varying), len(varying))

    def fit(c: float) -> Solution:
        kernel, bias = np.zeros((given.rows.width, given.labels.shape[1])), odds.copy()
        kernel[:, varying], bias[varying] = found(c)
        return kernel, bias

    return fit


def _ridge(given: _Given) -> Fit:
    deviations = given.labels.std(axis=0, dtype=np.float64)
    width, targets = given.rows.width, given.labels / deviations
    mean_y = np.average(targets, axis=0, weights=given.weights)
    total, sums, spread, along = 0.0, np.zeros(width), np.zeros((width, width)), np.zeros((width, len(deviations)))
    for places, block in given.rows.blocks():
        roots = np.sqrt(given.weights[places])[:, None]
        x = block * roots  # in float64: X'X shows directions in which the features hardly vary by small differences
        total += float(roots.ravel() @ roots.ravel())
        sums += roots.ravel() @ x
        spread += x.T @ x
        along += x.T @ (roots * (targets[places] - mean_y))
    mean_x = sums / total  # next to 0 without weights, for columns are scaled: little is lost by taking it out now
    # One decomposition serves every strength: (X'X + I/C)^-1 X'y in the axes of X'X.
    spectrum, axes = np.linalg.eigh(spread - total * np.outer(mean_x, mean_x))
    along = axes.T @ along

    def fit(c: float) -> Solution:
        kernel = axes @ (along / (np.maximum(spectrum, 0.0) + 1 / c)[:, None]) * deviations
        return kernel, mean_y * deviations - mean_x @ kernel

    return fit


_FITS: dict[Task, Callable[[_Given], Fit]] = {
    "classification": _logistic,
    "ordinal": _adjacent_categories,
    "multi_label": _independent_labels,
    "regression": _ridge,
}
