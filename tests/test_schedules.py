"""Learning rates over time against their formulas; what lowers them, and what survives JSON."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from edgetl.errors import ConfigError
from edgetl.schedules import Plateau, schedule


def test_cosine_warms_up_from_a_first_step_that_learns_and_ends_at_zero() -> None:
    rates = [float(schedule("cosine", 0.4, 3, 11)(step)) for step in range(12)]
    expected = [0.1, 0.2, 0.3] + [0.2 * (1 + np.cos(np.pi * step / 8)) for step in range(9)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-8)  # float32
    assert rates[3] == np.float32(0.4) and rates[10] > 0
    np.testing.assert_allclose(float(schedule("cosine", 0.4, 0, 8)(0)), 0.4, rtol=1e-7)


def test_constant_and_plateau() -> None:
    assert schedule("constant", 0.4, 0, 8) == schedule("plateau", 0.4, 0, 8) == 0.4
    rates = [float(schedule("constant", 0.4, 3, 8)(step)) for step in range(8)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3] + 5 * [0.4], rtol=1e-6)  # float32


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("cosin", 0.1, 0, 5), "cosine, constant, plateau"),
        (("cosine", 0.1, 5, 5), "5 steps"),
        (("constant", 0.0, 0, 5), "learning rate 0"),
        (("plateau", 0.1, 2, 5), "no warm-up"),
    ],
)
def test_schedules_that_cannot_work_are_refused(arguments: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        schedule(*arguments)


def test_plateau_lowers_after_so_many_epochs_without_gain_and_survives_json() -> None:
    losses = [1.0, 0.9, 0.95, 0.9, 0.91, float("nan"), 0.8, 0.85, 0.85]
    factors = []
    plateau = Plateau(factor=0.3, patience=2)
    for loss in losses:
        factors.append(plateau.update(loss))
        plateau = Plateau(**json.loads(json.dumps(dataclasses.asdict(plateau))))
    assert factors == [1.0, 1.0, 1.0, 0.3, 1.0, 0.3, 1.0, 1.0, 0.3]
    assert plateau.best == 0.8
    with pytest.raises(ConfigError):
        Plateau(factor=1.0)
