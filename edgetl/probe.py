"""The linear probe: logistic regression on frozen features, with the L2 strength chosen on validation data."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.console import log, progress
from edgetl.features import Scaling

L2_GRID = tuple(float(c) for c in np.logspace(-4, 1, 11))
"""Inverse L2 strengths (scikit-learn's C) tried, on scaled features, from strong to weak."""
PATIENCE = 2
"""Validation loss has one minimum along the grid: stop after so many strengths past it."""


@dataclass(frozen=True)
class LinearProbe:
    """Weights of softmax(features @ kernel + bias), and how they were chosen."""

    kernel: NDArray[np.float32]
    """[d, classes], for raw (not scaled) features."""
    bias: NDArray[np.float32]
    """[classes]."""
    inverse_l2: float
    """Chosen C of the grid."""


def fit_linear_probe(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    validation_features: NDArray[np.float32],
    validation_labels: NDArray[np.int64],
    *,
    inverse_l2: tuple[float, ...] = L2_GRID,
) -> LinearProbe:
    """Fit one multinomial logistic regression per L2 strength by L-BFGS and keep the one best on validation.

    Best is the lowest validation log loss: with some hundred validation photos accuracy is a coarse measure that
    picks a strength by luck. Features are scaled by the statistics of the training rows (see `Scaling`), and that is
    folded into the weights that come back. Each fit starts from the last.

    Args:
        features: [n, d].
        labels: [n], class indices; every class occurs.
        validation_features: [m, d].
        validation_labels: [m].
        inverse_l2: values of C to try, in increasing order; the search ends once two in a row were no better.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    scaling = Scaling.of(features)
    train, validation = scaling.apply(features), scaling.apply(validation_features)
    model = LogisticRegression(solver="lbfgs", warm_start=True, max_iter=1000, tol=1e-3)
    best: tuple[float, float, NDArray[np.float64], NDArray[np.float64]] | None = None
    worse = 0
    with progress("linear head") as bar:
        for c in inverse_l2:
            model.set_params(C=c).fit(train, labels)
            loss = float(log_loss(validation_labels, model.predict_proba(validation), labels=model.classes_))
            log.debug("C=%.3g: validation log loss %.4f", c, loss)
            if best is None or loss < best[0]:
                best, worse = (loss, c, model.coef_.copy(), model.intercept_.copy()), 0
            else:
                worse += 1
            bar.advance()
            if worse == PATIENCE:
                break
    assert best is not None, "the grid is empty"
    _, c, coefficients, intercept = best
    if len(coefficients) == 1:  # two classes: one row of log odds; sigmoid(z) = softmax(-z/2, z/2)
        coefficients, intercept = (np.concatenate([-a / 2, a / 2]) for a in (coefficients, intercept))
    kernel, bias = scaling.fold(coefficients.T, intercept)
    return LinearProbe(kernel, bias, c)
