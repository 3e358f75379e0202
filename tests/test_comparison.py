"""Paired statistics, against a published example, figures computed by hand, and simulation."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest

from edgetl import comparison, metrics
from edgetl.comparison import Comparison, Flips, mcnemar, paired_interval
from edgetl.config import from_json, to_json
from edgetl.outputs import OutputSpec
from edgetl.scores import ClassificationScores


def spec(count: int) -> OutputSpec:
    """That many classes."""
    return OutputSpec("classification", tuple(f"c{i}" for i in range(count)))


def compare(labels: np.ndarray, reference: np.ndarray, other: np.ndarray) -> Comparison:
    return comparison.compare(labels, reference, other, spec(reference.shape[1]))


def flips(found: Comparison) -> Flips:
    assert found.flips, "one class is right"
    return found.flips


def naming(classes: Sequence[int], of: int, confidence: float = 0.7) -> np.ndarray:
    """Probabilities that name these classes."""
    rest = (1 - confidence) / (of - 1)
    return np.where(np.eye(of)[list(classes)] == 1, confidence, rest).astype(np.float32)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two sets of probabilities; not every class need occur."""
    classes, n = draw(st.integers(2, 4)), draw(st.integers(1, 25))
    labels = draw(arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    raw = [draw(arrays(np.float32, (n, classes), elements=st.floats(2**-10, 1, width=32))) for _ in range(2)]
    first, second = (values / values.sum(axis=1, keepdims=True) for values in raw)
    return labels, first, second


def test_figures_are_those_computed_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    reference = naming([0, 0, 0, 1, 1, 1, 0, 2], of=3)
    other = naming([0, 1, 2, 0, 1, 1, 2, 2], of=3, confidence=0.6)
    found = compare(labels, reference, other)
    # Photos 1 and 2 are lost, photo 3 is gained, photo 6 is wrong twice, with another class each time.
    assert (found.samples, flips(found).lost, flips(found).gained) == (8, 2, 1)
    assert found.drop == (6 - 5) / 8
    assert found.agreement == 4 / 8
    assert found.drops == (0.25, 0.0, 0.0)
    assert flips(found).mcnemar_p == 1.0  # of three coins, two or more fall on one side always
    # 0.7 for the class that the other gives (1 - 0.6) / 2, in float32
    assert found.max_difference == pytest.approx(0.5, abs=1e-6)
    # All photos share one bin: 0.7 against 6 of 8 right, 0.6 against 5 of 8.
    assert found.calibration_error_before == pytest.approx(0.05, abs=1e-6)
    assert found.calibration_error_after == pytest.approx(0.025, abs=1e-6)
    # Of 10 photos with one more on each side: 3 and 2 of 10.
    half = 1.959964 * ((0.5 - 0.1**2) / 10) ** 0.5
    assert (found.drop_low, found.drop_high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-6)
    assert from_json(Comparison, to_json(found)) == found


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_drop_is_the_difference_of_the_scores_and_turns_its_sign_with_the_order(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    labels, reference, other = case
    found, back = compare(labels, reference, other), compare(labels, other, reference)
    before, after = (metrics.score(labels, each, spec(each.shape[1])) for each in (reference, other))
    assert isinstance(before, ClassificationScores) and isinstance(after, ClassificationScores)
    assert found.drop == pytest.approx(before.primary - after.primary)
    assert -1 <= found.drop_low <= found.drop <= found.drop_high <= 1
    assert (found.drop_low, found.drop_high) == pytest.approx((-back.drop_high, -back.drop_low))
    assert flips(found) == Flips(flips(back).gained, flips(back).lost, flips(back).mcnemar_p)
    assert found.agreement == back.agreement
    assert found.max_difference == back.max_difference
    counts = np.array(before.confusion).sum(axis=1)
    for index, drop in enumerate(found.drops):
        assert (drop is None) == (counts[index] == 0)
        if drop is not None:
            assert drop * counts[index] == pytest.approx(before.confusion[index][index] - after.confusion[index][index])
    nothing = compare(labels, reference, reference)
    assert (nothing.drop, nothing.max_difference, nothing.agreement) == (0.0, 0.0, 1.0)
    assert nothing.flips == Flips(0, 0, 1.0)
    assert from_json(Comparison, to_json(found)) == found


# --- the interval ---------------------------------------------------------------------------------------------------


def test_interval_is_the_published_one() -> None:
    # The example of ci.prop.ps(.05, 12, 4, 26, 6) in the R package statpsych, by the author of the method; eight digits
    assert paired_interval(26, 4, 48) == pytest.approx((0.2548067, 0.6251933), abs=1e-7)


@pytest.mark.parametrize(
    ("lost", "gained", "samples", "middle", "variance"),
    [
        # By hand: one photo added to each count, two to all
        (1, 7, 21, (2 - 8) / 23, ((2 + 8) / 23 - (6 / 23) ** 2) / 23),
        (6, 16, 161, (7 - 17) / 163, ((7 + 17) / 163 - (10 / 163) ** 2) / 163),
        (0, 0, 98, 0.0, 0.02 / 100),
    ],
)
def test_interval_by_hand(lost: int, gained: int, samples: int, middle: float, variance: float) -> None:
    half = 1.959964 * variance**0.5  # seven digits
    assert paired_interval(lost, gained, samples) == pytest.approx((middle - half, middle + half), abs=1e-6)


@pytest.mark.parametrize(
    ("samples", "lost", "gained"), [(30, 0.1, 0.1), (100, 0.02, 0.01), (100, 0.2, 0.05), (656, 0.01, 0.01)]
)
def test_interval_holds_the_true_drop_as_often_as_it_says(samples: int, lost: float, gained: float) -> None:
    draws = np.random.default_rng(0).multinomial(samples, [lost, gained, 1 - lost - gained], size=4000)
    ends = np.array([paired_interval(int(a), int(b), samples) for a, b, _ in draws])
    covered = ((ends[:, 0] <= lost - gained) & (lost - gained <= ends[:, 1])).mean()
    # 95 % of 4000 draws is known to 1.0 points (three standard errors). Counts are whole numbers, and the method errs
    # on the wide side where few photos change; one that is always too wide would tell nothing either.
    assert 0.94 <= covered <= 0.995


def test_interval_keeps_its_width_where_no_photo_changes_sides() -> None:
    widths = []
    for samples in (1, 10, 100, 1000):
        low, high = paired_interval(0, 0, samples)
        assert low == -high < 0
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    # The "rule of three": with none of 1000 seen, up to about 3 in 1000 are possible, on either side.
    assert 0.002 < paired_interval(0, 0, 1000)[1] < 0.004


@pytest.mark.parametrize("samples", [1, 2, 50])
def test_interval_when_all_photos_change_sides(samples: int) -> None:
    low, high = paired_interval(samples, 0, samples)
    assert high == 1.0 and -1 < low < 1
    assert paired_interval(0, samples, samples) == (-high, -low)


# --- McNemar --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "gained"), [(1, 0), (5, 0), (1, 7), (12, 12), (40, 21), (0, 30)])
def test_mcnemar_is_the_binomial_test(lost: int, gained: int) -> None:
    assert mcnemar(lost, gained) == pytest.approx(binomtest(min(lost, gained), lost + gained).pvalue)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)


# --- the edges ------------------------------------------------------------------------------------------------------


def test_one_photo() -> None:
    found = compare(np.array([0]), naming([0], of=2), naming([1], of=2))
    assert (found.drop, found.flips, found.agreement) == (1.0, Flips(1, 0, 1.0), 0.0)
    assert found.drops == (1.0, None)
    assert found.drop_high == 1.0, "one photo proves nothing"
    assert found.drop_low < 0
    assert from_json(Comparison, to_json(found)) == found


def test_a_class_that_is_absent_has_no_recall() -> None:
    found = compare(np.array([0, 2, 2]), naming([0, 2, 2], of=4), naming([0, 1, 2], of=4))
    assert found.drops == (0.0, None, 0.5, None)


@pytest.mark.parametrize("which", [0, 1])
def test_what_cannot_be_compared_is_refused(which: int) -> None:
    labels = np.array([0, 1])
    good = naming([0, 1], of=2)
    for bad, message in (
        (np.array([[0.5, 0.5], [np.nan, 0.5]], np.float32), "NaN or infinity"),
        (good[:1], r"Received: \("),
        (naming([0, 1], of=3), r"k = \d. Received"),
    ):
        given_values = (bad, good) if which == 0 else (good, bad)
        with pytest.raises(ValueError, match=message):
            compare(labels, *given_values)


def test_expected_drop_counts_differences_by_how_sure_the_reference_was() -> None:
    reference = np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8], [0.7, 0.3]], np.float32)
    other = np.array([[0.2, 0.8], [0.4, 0.6], [0.3, 0.7], [0.7, 0.3]], np.float32)
    for labels in ([0, 0, 1, 0], [1, 1, 0, 1]):  # labels have no part in it
        found = compare(np.array(labels), reference, other)
        assert found.expected_drop == pytest.approx((0.8 + 0.1) / 4)
    assert compare(np.array([0, 0, 1, 0]), reference, reference).expected_drop == 0.0


def test_expected_drop_is_the_mean_drop_where_probabilities_are_the_truth() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0.5, 1.0, 400).astype(np.float32)
    reference = np.stack([first, 1 - first], axis=1)
    other = reference.copy()
    flipped = rng.random(400) < 0.1
    other[flipped] = other[flipped][:, ::-1]
    drops = [compare((rng.random(400) > first).astype(np.int64), reference, other).drop for _ in range(400)]
    expected = compare(np.zeros(400, np.int64), reference, other).expected_drop
    # The mean of 400 draws, each of which has a standard error of about 0.013.
    assert np.mean(drops) == pytest.approx(expected, abs=4 * np.std(drops) / 20)
    assert np.std(drops) > 0.005  # which is the luck that a single measurement is made of


# --- labels and numbers ---------------------------------------------------------------------------------------------

LABELS = OutputSpec("multi_label", ("a", "b"), thresholds=(0.5, 0.5))
NUMBERS = OutputSpec("regression", ("a", "b"), deviations=(2.0, 10.0))


def noisy(spec: OutputSpec, n: int, sizes: Sequence[float], seed: int = 0) -> list[np.ndarray]:
    """What is true, and what models say that err more and more."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, 2))
    said = [truth + size * rng.normal(size=(n, 2)) for size in sizes]
    if spec.task == "multi_label":
        return [(truth > 0).astype(np.float32), *((1 / (1 + np.exp(-3 * each))).astype(np.float32) for each in said)]
    return [each.astype(np.float32) * np.float32(spec.deviations) for each in (truth, *said)]


@pytest.mark.parametrize("spec", [LABELS, NUMBERS], ids=lambda spec: spec.task)
def test_drop_of_labels_and_numbers_is_the_difference_of_the_figures(spec: OutputSpec) -> None:
    labels, reference, other = noisy(spec, 300, (0.3, 0.5))
    found = comparison.compare(labels, reference, other, spec)
    back = comparison.compare(labels, other, reference, spec)
    figures = [metrics.primary(labels, each, spec) for each in (reference, other)]
    # Sums of 300 float32 numbers of size 10.
    assert found.drop == pytest.approx(figures[0] - figures[1], abs=1e-6)
    assert found.drop == pytest.approx(np.mean([drop for drop in found.drops if drop is not None]), abs=1e-9)
    # The same photos are drawn in both directions.
    assert (found.drop_low, found.drop_high) == pytest.approx((-back.drop_high, -back.drop_low), abs=1e-9)
    assert found.drop_low < found.drop < found.drop_high
    assert found.agreement == back.agreement < 1 and found.flips is None
    assert (found.calibration_error_before is None) == (spec.task == "regression")
    nothing = comparison.compare(labels, reference, reference, spec)
    assert (nothing.drop, nothing.expected_drop, nothing.max_difference, nothing.agreement) == (0, 0, 0, 1)
    assert from_json(Comparison, to_json(found)) == found


def test_labels_by_hand() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], np.float32)
    reference = np.array([[0.9, 0.1], [0.8, 0.1], [0.1, 0.1], [0.1, 0.1]], np.float32)
    other = np.array([[0.9, 0.1], [0.4, 0.1], [0.1, 0.1], [0.1, 0.1]], np.float32)
    found = comparison.compare(labels, reference, other, LABELS)
    # F1 of a: 1 before, 2 / (1 + 2) after. Nobody has b.
    assert found.drops == (pytest.approx(1 / 3), None)
    assert found.drop == pytest.approx(1 / 6)
    assert found.agreement == 3 / 4
    assert found.max_difference == pytest.approx(0.4)
    # As the reference hopes: F1 2 x 1.7 / (2 + 1.9) before, 2 x 0.9 / (1 + 1.9) after.
    assert found.expected_drop == pytest.approx((3.4 / 3.9 - 1.8 / 2.9) / 2, abs=1e-6)


def test_numbers_by_hand() -> None:
    labels = np.array([[0, 0], [4, 20]], np.float32)  # variances 4 and 100
    other = np.array([[1, 0], [4, 20.9]], np.float32)
    found = comparison.compare(labels, labels, other, NUMBERS)
    assert found.drops == pytest.approx((1 / 8, 0.81 / 200))
    assert found.drop == found.expected_drop == pytest.approx((1 / 8 + 0.81 / 200) / 2), "the reference is right"
    assert found.agreement == 0.5, "1 is half a deviation of 2, 0.9 less than a tenth of 10"
    assert found.max_difference == pytest.approx(0.5)


def test_expected_drop_of_numbers_is_the_mean_drop_where_the_reference_is_the_mean() -> None:
    rng = np.random.default_rng(0)
    spec = OutputSpec("regression", ("x",), deviations=(1.0,))
    reference = rng.normal(size=(400, 1)).astype(np.float32)
    other = reference + rng.normal(scale=0.2, size=(400, 1)).astype(np.float32)
    found = []
    for _ in range(100):
        truth = reference + rng.normal(scale=0.5, size=(400, 1)).astype(np.float32)
        before, after = (metrics.primary(truth, each, spec) for each in (reference, other))
        found.append(before - after)
    expected = comparison.compare(truth, reference, other, spec).expected_drop
    # The mean of 100 draws; the variance of 400 photos, which it is a share of, is known to 7 %.
    assert np.mean(found) == pytest.approx(expected, rel=0.15)
    assert expected == pytest.approx(0.04 / 1.25, rel=0.2)


def test_the_interval_of_a_bootstrap_holds_the_true_drop_about_as_often_as_it_says() -> None:
    many = noisy(LABELS, 200_000, (0.3, 0.5), seed=1)
    true_drop = metrics.primary(many[0], many[1], LABELS) - metrics.primary(many[0], many[2], LABELS)
    ends = [comparison.compare(*noisy(LABELS, 200, (0.3, 0.5), seed=seed), LABELS) for seed in range(2, 62)]
    covered = np.mean([found.drop_low <= true_drop <= found.drop_high for found in ends])
    assert 0.86 <= covered <= 1.0  # 95 % of 60 is known to 2.8 points; percentiles of 200 photos are slightly narrow


def test_labels_and_numbers_need_what_they_are_measured_by() -> None:
    values = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="threshold for each of 2 labels"):
        comparison.compare(values, values, values, OutputSpec("multi_label", ("a", "b")))
    with pytest.raises(ValueError, match="deviation above 0 of each of 2"):
        comparison.compare(values, values, values, OutputSpec("regression", ("a", "b")))
