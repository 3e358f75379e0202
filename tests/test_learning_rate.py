"""The range test on curves whose answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetl.errors import ConfigError
from edgetl.learning_rate import divergence, rates, suggest

RATES = rates(1e-6, 1.0, 100)
LOG = np.log10(RATES)


def curve(steepest: float = 1e-3, noise: float = 0.0, seed: int = 0) -> NDArray[np.float64]:
    """A loss that falls from 2.3 to 0.8, steepest at the given rate, and explodes from about 0.2 on."""
    random = np.random.default_rng(seed)
    fall = 1.5 / (1 + np.exp(-4 * (LOG - np.log10(steepest))))
    return 2.3 - fall + np.exp(np.minimum(8 * (LOG + 0.7), 20)) + noise * random.normal(size=len(LOG))


def test_rates_are_geometric() -> None:
    assert RATES.shape == (100,) and RATES.dtype == np.float64
    assert (RATES[0], RATES[-1]) == (1e-6, 1.0)
    np.testing.assert_allclose(RATES[1:] / RATES[:-1], 10 ** (6 / 99), rtol=1e-12)  # rounding of float64


@pytest.mark.parametrize("found", [(0, 1, 50), (1, 1, 50), (1e-3, np.inf, 50), (np.nan, 1, 50), (1e-6, 1, 9)])
def test_no_range_is_refused(found: tuple[float, float, int]) -> None:
    with pytest.raises(ConfigError, match=r"no range|too few"):
        rates(*found)


@pytest.mark.parametrize("steepest", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize(
    ("noise", "factor"),
    # A step is a factor of 1.15. Smoothing adds one or two of these, three at 1e-2, where the explosion is near. Noise
    # of 0.15, a tenth of the whole fall, moved the answer by at most 2.0 in 900 tries.
    [(0.0, 1.6), (0.15, 2.5)],
)
def test_the_steepest_descent_is_suggested(steepest: float, noise: float, factor: float) -> None:
    for seed in range(10 if noise else 1):
        found = suggest(RATES, curve(steepest, noise, seed))
        assert found.learning_rate is not None
        assert steepest / factor < found.learning_rate < steepest * factor
        assert found.diverged_at is not None and 0.2 < found.diverged_at < 0.7
        assert f"{found.learning_rate:.2g}" in found.reason and f"{found.diverged_at:.2g}" in found.reason


def test_the_smoothed_curve_follows_without_lag_and_ends_where_the_loss_goes_off() -> None:
    found = suggest(RATES, curve(noise=0.15))
    assert found.smoothed.shape == RATES.shape
    end = int(np.searchsorted(RATES, found.diverged_at))
    assert np.isfinite(found.smoothed[:end]).all() and np.isnan(found.smoothed[end:]).all()
    middle = slice(10, 60)
    # Noise of 0.15 shrinks to about a third; a lag of ten steps would be off by 0.5 where the curve is steep.
    assert np.abs(found.smoothed - curve())[middle].max() < 0.15


@pytest.mark.parametrize("tail", [np.nan, np.inf, 1e300])
def test_a_tail_that_is_no_number_changes_nothing(tail: float) -> None:
    losses = curve()
    cut = 75  # before the loss explodes
    losses[cut:] = tail
    found = suggest(RATES, losses)
    assert divergence(losses) == cut
    assert found.diverged_at == RATES[cut]
    assert found.learning_rate == suggest(RATES, curve()[:cut]).learning_rate
    assert suggest(RATES, curve()[:cut]).diverged_at is None


def test_a_test_that_stops_at_divergence_says_the_same_as_one_that_goes_on() -> None:
    losses = curve(noise=0.1)
    end = divergence(losses)
    assert end is not None and divergence(losses[:end]) is None and divergence(losses[: end + 1]) == end
    whole, stopped = suggest(RATES, losses), suggest(RATES, losses[: end + 1])
    assert (whole.learning_rate, whole.diverged_at) == (stopped.learning_rate, stopped.diverged_at)


def test_divergence_is_four_times_the_best() -> None:
    assert divergence([1.0] * 50 + [3.9] * 200) is None
    assert divergence([1.0] * 50 + [4.3] * 200) is not None
    assert divergence([1.0, 500.0]) == 1
    assert divergence([np.nan, 1.0]) == 0
    assert divergence([]) is None


@pytest.mark.parametrize(
    ("name", "losses", "advice"),
    [
        ("flat", np.ones(100), "Try higher ones"),
        ("all zero", np.zeros(100), "Try higher ones"),
        ("rising", np.linspace(1, 2, 100), "Try higher ones"),
        ("exploding at once", np.geomspace(1, 1e9, 100), "Try lower ones"),
        ("no number from the start", np.full(100, np.nan), "Try lower ones"),
    ],
)
def test_a_loss_that_never_falls_gives_a_reason_and_no_rate(
    name: str, losses: NDArray[np.float64], advice: str
) -> None:
    found = suggest(RATES, losses)
    assert found.learning_rate is None, name
    assert found.reason.startswith("no learning rate lowered the loss between 1e-06 and 1") and advice in found.reason


def test_noise_alone_is_no_fall() -> None:
    random = np.random.default_rng(0)
    found = [suggest(RATES, 1 + 0.2 * random.normal(size=100)).learning_rate for _ in range(200)]
    assert sum(rate is not None for rate in found) <= 3  # about 1 in 1,000 is expected


def test_losses_must_fit_the_rates() -> None:
    with pytest.raises(ValueError, match="1 to 100 losses"):
        suggest(RATES, np.ones(101))
    with pytest.raises(ValueError, match="Received: 0"):
        suggest(RATES, [])
