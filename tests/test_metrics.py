"""The one scorer, against scikit-learn called directly and against published values."""

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from edgetl.bootstrap import interval, resampled
from edgetl.config import from_json, to_json
from edgetl.metrics import calibration_error, primary, primary_figure, score, wilson_interval
from edgetl.outputs import OutputSpec, Task
from edgetl.results import Metrics
from edgetl.scores import (
    PRIMARY,
    ClassificationScores,
    ClassScores,
    MultiLabelScores,
    OrdinalScores,
    RegressionScores,
    Scores,
    summary,
)

ROUND = 1e-9
"""Both sides compute in float64, sums of at most a few dozen terms of size 1."""


def names(count: int) -> tuple[str, ...]:
    return tuple(f"c{index}" for index in range(count))


def classes(count: int, task: Task = "classification") -> OutputSpec:
    return OutputSpec(task, names(count))


@st.composite
def judged(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities, all of them different within a row; not every class need occur."""
    count, n = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    labels = draw(arrays(np.int64, n, elements=st.integers(0, count - 1)))
    raw = draw(arrays(np.float32, (n, count), elements=st.floats(2**-10, 1, width=32), unique=True))
    return labels, raw / raw.sum(axis=1, keepdims=True)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, OutputSpec]:
    """Several labels each, few enough levels of score that many are equal, as of an integer output."""
    count, n = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    labels = draw(arrays(np.float32, (n, count), elements=st.sampled_from([0.0, 1.0])))
    levels = draw(arrays(np.int64, (n, count), elements=st.integers(0, 8)))
    thresholds = tuple(draw(st.sampled_from([0.25, 0.5, 0.8])) for _ in range(count))
    return labels, (levels / 8).astype(np.float32), OutputSpec("multi_label", names(count), thresholds=thresholds)


@st.composite
def measured(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, OutputSpec]:
    """Numbers and what a model says of them; targets may be constant."""
    count, n = draw(st.integers(1, 3)), draw(st.integers(1, 30))
    # Thousandths: float32 numbers so near each other that a computer can't tell their variance are no test of R2.
    numbers = arrays(np.int64, (n, count), elements=st.integers(-5000, 5000))
    truth, said = (draw(numbers).astype(np.float32) / 1000 + 100 * draw(st.integers(0, 1)) for _ in range(2))
    return truth, said, OutputSpec("regression", names(count), deviations=(1.0,) * count)


def sk_macro(true: np.ndarray, said: np.ndarray) -> tuple[float, float, float]:
    precision, recall, f1, _ = sk.precision_recall_fscore_support(true, said, average="macro", zero_division=0)
    return float(precision), float(recall), float(f1)


def check_areas(found: ClassScores | MultiLabelScores, true: np.ndarray, outputs: np.ndarray) -> None:
    """Areas of each class or label, and their means."""
    each = found.classes if isinstance(found, ClassScores) else found.labels
    both = [index for index in range(len(each)) if 0 < true[:, index].sum() < len(true)]
    for index, one in enumerate(each):
        if index not in both:
            assert (one.roc_auc, one.average_precision) == (None, None)
            continue
        auc = sk.roc_auc_score(true[:, index], outputs[:, index])
        assert one.roc_auc == pytest.approx(auc, abs=ROUND)
        ap = sk.average_precision_score(true[:, index], outputs[:, index])
        assert one.average_precision == pytest.approx(ap, abs=ROUND)
    if both:
        macro = sk.roc_auc_score(true[:, both], outputs[:, both], average="macro")
        assert found.roc_auc == pytest.approx(macro, abs=ROUND)
        macro = sk.average_precision_score(true[:, both], outputs[:, both], average="macro")
        assert found.average_precision == pytest.approx(macro, abs=ROUND)
    else:
        assert (found.roc_auc, found.average_precision) == (None, None)


# --- classes --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(judged())
def test_class_scores_are_scikit_learns(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    count = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    found = score(labels, probabilities, classes(count))
    assert isinstance(found, ClassificationScores)
    assert found.samples == len(labels)
    assert found.top1 == found.primary == primary(labels, probabilities, classes(count))
    assert found.top1 == pytest.approx(sk.accuracy_score(labels, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are named and do not occur
        assert found.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    common = {"labels": np.arange(count), "average": "macro", "zero_division": 0}
    assert found.precision == pytest.approx(sk.precision_score(labels, predicted, **common))
    assert found.recall == pytest.approx(sk.recall_score(labels, predicted, **common))
    assert found.f1 == pytest.approx(sk.f1_score(labels, predicted, **common))
    each = sk.precision_recall_fscore_support(labels, predicted, labels=np.arange(count), zero_division=0)
    for one, *expected in zip(found.classes, *each, strict=True):
        assert [one.precision, one.recall, one.f1, one.samples] == pytest.approx(expected)
    assert found.k == (1 if count == 2 else 2)
    top_k = sk.top_k_accuracy_score(labels, probabilities, k=found.k, labels=np.arange(count)) if count > 2 else None
    assert found.top_k == pytest.approx(found.top1 if top_k is None else top_k)
    check_areas(found, np.eye(count)[labels], probabilities)
    # float32 probabilities sum to 1 within a few 1e-7; the logarithm is exact to the same relative size.
    by_hand = -np.log(probabilities[np.arange(len(labels)), labels].astype(np.float64)).mean()
    assert found.log_loss == pytest.approx(by_hand, abs=1e-5)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    brier = sk.brier_score_loss(labels, exact, labels=np.arange(count), scale_by_half=False)
    assert found.brier == pytest.approx(brier, abs=1e-5)
    assert np.array(found.confusion).tolist() == sk.confusion_matrix(labels, predicted, labels=range(count)).tolist()
    assert found.primary_low <= found.top1 <= found.primary_high
    assert from_json(ClassificationScores, to_json(found)) == found


@settings(max_examples=20, deadline=None)
@given(judged())
def test_ordinal_scores_are_scikit_learns(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    count = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    found = score(labels, probabilities, classes(count, "ordinal"))
    assert isinstance(found, OrdinalScores)
    assert found.mean_steps == pytest.approx(sk.mean_absolute_error(labels, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kappa = sk.cohen_kappa_score(labels, predicted, labels=range(count), weights="quadratic")
    assert found.kappa == (None if np.isnan(kappa) else pytest.approx(kappa))
    plain = score(labels, probabilities, classes(count))
    assert isinstance(plain, ClassificationScores)
    assert (found.top1, found.f1, found.confusion) == (plain.top1, plain.f1, plain.confusion)
    assert from_json(OrdinalScores, to_json(found)) == found


def test_one_class_to_the_side_counts_as_one_step() -> None:
    outputs = np.eye(4, dtype=np.float32)[[0, 2, 3, 0]]
    found = score(np.array([0, 1, 3, 3]), outputs, classes(4, "ordinal"))
    assert isinstance(found, OrdinalScores)
    assert (found.top1, found.mean_steps) == (0.5, (1 + 3) / 4)
    alone = score(np.array([1, 1]), np.eye(4, dtype=np.float32)[[1, 1]], classes(4, "ordinal"))
    assert isinstance(alone, OrdinalScores)
    assert alone.kappa is None, "0/0"


def test_of_equal_scores_the_first_is_named_and_ranks_before_the_others() -> None:
    outputs = np.full((12, 12), 1 / 12, np.float32)
    found = score(np.arange(12), outputs, classes(12))
    assert isinstance(found, ClassScores)
    assert (found.k, found.top1, found.top_k) == (5, 1 / 12, 5 / 12)


def test_unnormalized_and_zero_probabilities_give_a_finite_loss() -> None:
    # uint8 outputs sum to 255/256 or 257/256, and a wrong class can get exactly 0.
    def loss(labels: list[int], outputs: list[list[float]]) -> float:
        found = score(np.array(labels), np.array(outputs, np.float32), classes(2))
        assert isinstance(found, ClassScores)
        return found.log_loss

    clipped = loss([0, 1], [[255 / 256, 0.0], [1.0, 0.0]])
    assert np.isfinite(clipped)
    assert clipped == pytest.approx(-np.log(1e-7) / 2, rel=1e-3)
    assert loss([0], [[0.5, 0.25]]) == pytest.approx(np.log(1.5))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3 (four digits)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson_interval(successes, trials)
    assert found == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == (pytest.approx(1 - found[1]), pytest.approx(1 - found[0]))


# --- several labels -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(labelled())
def test_label_scores_are_scikit_learns(case: tuple[np.ndarray, np.ndarray, OutputSpec]) -> None:
    labels, outputs, spec = case
    true, said = labels.astype(int), (outputs >= np.array(spec.thresholds, np.float32)).astype(int)
    found = score(labels, outputs, spec)
    assert isinstance(found, MultiLabelScores)
    if labels.shape[1] > 1:  # of a single column scikit-learn takes 0 for a class of its own
        assert (found.precision, found.recall, found.f1) == pytest.approx(sk_macro(true, said))
        micro = sk.precision_recall_fscore_support(true, said, average="micro", zero_division=0)[:3]
        assert (found.micro_precision, found.micro_recall, found.micro_f1) == pytest.approx(micro)
    each = [
        sk.precision_recall_fscore_support(*pair, average="binary", zero_division=0)[:3]
        for pair in zip(true.T, said.T, strict=True)
    ]
    for one, expected in zip(found.labels, each, strict=True):
        assert (one.precision, one.recall, one.f1) == pytest.approx(expected)
    assert found.f1 == found.primary == pytest.approx(primary(labels, outputs, spec), abs=ROUND)
    assert found.subset_accuracy == pytest.approx(sk.accuracy_score(true, said))
    assert found.hamming_loss == pytest.approx(sk.hamming_loss(true, said))
    check_areas(found, labels, outputs)
    bounded = np.clip(outputs.astype(np.float64), 1e-7, 1 - 1e-7)
    losses = [sk.log_loss(*pair, labels=[0, 1]) for pair in zip(true.T, bounded.T, strict=True)]
    assert found.log_loss == pytest.approx(np.mean(losses))
    briers = [sk.brier_score_loss(*pair, labels=[0, 1]) for pair in zip(true.T, outputs.T, strict=True)]
    assert found.brier == pytest.approx(np.mean(briers))
    assert found.f1_low <= found.f1 <= found.f1_high
    assert from_json(MultiLabelScores, to_json(found)) == found


def test_labels_need_their_thresholds() -> None:
    labels, outputs = np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="threshold for each of 2 labels"):
        score(labels, outputs, OutputSpec("multi_label", names(2)))


# --- numbers --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(measured())
def test_numbers_are_judged_as_scikit_learn_does(case: tuple[np.ndarray, np.ndarray, OutputSpec]) -> None:
    truth, said, spec = case
    found = score(truth, said, spec)
    assert isinstance(found, RegressionScores)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single photo, which scikit-learn gives no R2
        r2 = sk.r2_score(truth.astype(np.float64), said.astype(np.float64), multioutput="raw_values")
    mae = sk.mean_absolute_error(truth.astype(np.float64), said.astype(np.float64), multioutput="raw_values")
    rmse = sk.root_mean_squared_error(truth.astype(np.float64), said.astype(np.float64), multioutput="raw_values")
    for index, one in enumerate(found.targets):
        assert (one.mae, one.rmse) == pytest.approx((mae[index], rmse[index]), abs=1e-6)  # float32, numbers up to 105
        constant = len(np.unique(truth[:, index])) == 1
        exact = np.array_equal(truth[:, index], said[:, index])
        # A constant that is missed: scikit-learn says 0 where its mean comes out exact, else minus something huge.
        expected = float(exact) if constant else r2[index]
        assert one.r2 == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert one.bias == pytest.approx(float((said - truth)[:, index].astype(np.float64).mean()), abs=1e-4)
    assert found.r2 == found.primary == pytest.approx(np.mean([one.r2 for one in found.targets]))
    assert found.r2_low <= found.r2 <= found.r2_high
    assert from_json(RegressionScores, to_json(found)) == found


def test_a_model_that_says_the_mean_explains_nothing() -> None:
    truth = np.array([[1.0], [2.0], [6.0]], np.float32)
    spec = OutputSpec("regression", ("x",))
    assert primary(truth, np.full_like(truth, 3), spec) == pytest.approx(0, abs=ROUND)
    assert primary(truth, truth, spec) == 1
    assert primary(truth, -truth, spec) < 0


# --- intervals ------------------------------------------------------------------------------------------------------


def test_bootstrap_draws_as_many_photos_as_there_are_and_the_same_ones_again() -> None:
    values = np.random.default_rng(0).normal(size=(400, 1))
    columns = np.hstack([values, np.ones_like(values)])
    drawn = resampled(columns, lambda sums: sums[:, 0] / sums[:, 1])
    assert drawn.shape == (1000,)
    np.testing.assert_array_equal(resampled(columns, lambda sums: sums[:, 1]), 400)
    np.testing.assert_array_equal(drawn, resampled(columns, lambda sums: sums[:, 0] / sums[:, 1]))
    assert not np.array_equal(drawn, resampled(columns, lambda sums: sums[:, 0] / sums[:, 1], seed=1))
    # Standard error of a mean; that of 1000 draws is known to 2.2 %: five of its standard errors.
    assert drawn.std() == pytest.approx(values.std() / 20, rel=0.11)
    low, high = interval(drawn, float(values.mean()))
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.15)
    assert interval(drawn, 9.0)[1] == 9.0, "the figure itself is always within"


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_bootstrap_intervals_hold_the_true_figure_about_as_often_as_they_say(task: Task) -> None:
    rng = np.random.default_rng(1)
    spec = OutputSpec(task, names(2), (0.5, 0.5) if task == "multi_label" else ())

    def photos(n: int) -> tuple[np.ndarray, np.ndarray]:
        truth = rng.normal(size=(n, 2))
        said = truth + rng.normal(size=(n, 2)) / 2
        if task == "multi_label":
            return (truth > 0).astype(np.float32), (said > 0).astype(np.float32)
        return truth.astype(np.float32), said.astype(np.float32)

    true_figure = primary(*photos(100_000), spec)
    figures = [primary_figure(*photos(100), spec) for _ in range(80)]
    covered = np.mean([low <= true_figure <= high for _, low, high in figures])
    # 95 % of 80 draws is known to 2.4 points; percentile intervals of 100 photos are known to be slightly narrow.
    assert 0.86 <= covered <= 1


def test_intervals_of_many_photos_and_labels_take_seconds_and_of_few_no_time() -> None:
    rng = np.random.default_rng(0)

    def seconds(n: int, count: int) -> float:
        labels = (rng.random((n, count)) < 0.2).astype(np.float32)
        outputs = np.clip(labels * 0.5 + rng.random((n, count), dtype=np.float32) * 0.5, 0, 1)
        start = time.process_time()
        primary_figure(labels, outputs, OutputSpec("multi_label", names(count), (0.5,) * count))
        return time.process_time() - start

    assert seconds(656, 2) < 1.0  # about 0.05 s; a loop over resamples takes 5
    # 1 % of 50,000 x 1,000: about 0.2 s.
    assert seconds(5000, 100) < 4.0


# --- all tasks ------------------------------------------------------------------------------------------------------

CASES: dict[Task, tuple[np.ndarray, np.ndarray, OutputSpec]] = {
    "classification": (np.array([0, 1, 2]), np.eye(3, dtype=np.float32)[[0, 1, 1]], classes(3)),
    "ordinal": (np.array([0, 1, 2]), np.eye(3, dtype=np.float32)[[0, 1, 1]], classes(3, "ordinal")),
    "multi_label": (
        np.array([[1, 0], [0, 1]], np.float32),
        np.array([[0.9, 0.8], [0.2, 0.7]], np.float32),
        OutputSpec("multi_label", names(2), thresholds=(0.5, 0.5)),
    ),
    "regression": (
        np.array([[1, 0], [3, 1]], np.float32),
        np.array([[1.5, 0], [3, 1]], np.float32),
        OutputSpec("regression", names(2), deviations=(1.0, 1.0)),
    ),
}


@pytest.mark.parametrize("task", PRIMARY)
def test_scores_of_each_task_are_told_apart_in_json(task: Task) -> None:
    labels, outputs, spec = CASES[task]
    found: Scores = score(labels, outputs, spec)
    assert found.task == task
    assert found.primary_low <= found.primary <= found.primary_high <= 1
    assert primary_figure(labels, outputs, spec) == pytest.approx(
        (found.primary, found.primary_low, found.primary_high), abs=ROUND
    )
    whole = Metrics(found, found, "linear", ())
    again = from_json(Metrics, to_json(whole))
    assert again == whole and type(again.test) is type(found)
    assert summary(found).startswith(f"{PRIMARY[task]} {100 * found.primary:.2f} % (")


@pytest.mark.parametrize("task", PRIMARY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(task: Task, bad: float) -> None:
    labels, outputs, spec = CASES[task]
    broken = outputs.copy()
    broken[1, 0] = bad
    for function in (score, primary, primary_figure):
        with pytest.raises(ValueError, match="NaN or infinity"):
            function(labels, broken, spec)


@pytest.mark.parametrize("shapes", [((0,), (0, 2)), ((3,), (2, 2)), ((2,), (2,)), ((2, 1), (2, 2)), ((2,), (2, 3))])
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"Received: \("):
        score(np.zeros(shapes[0], np.int64), np.zeros(shapes[1], np.float32), classes(2))


# --- calibration error ----------------------------------------------------------------------------------------------


def test_calibration_error_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    scores = np.array([[0.95, 0.05]] * 4 + [[0.45, 0.55], [0.55, 0.45]], np.float32)
    # Four photos at 0.95, all right; two at 0.55, one right: (4 x 0.05 + 2 x 0.05) / 6
    assert calibration_error(labels, scores, classes(2)) == pytest.approx(0.05, abs=1e-6)
    # In another bin than the rest, so that too much here does not pay for too little there.
    wrong = np.array([1, 1, 1, 1, 1, 1])
    assert calibration_error(wrong, scores, classes(2)) == pytest.approx((4 * 0.95 + 2 * 0.05) / 6, abs=1e-6)


def test_calibration_bins_are_closed_above_and_cover_everything() -> None:
    # 5/15 belongs to the bin below, 0.34 to the next: apart the errors of +1/3 and -0.66 do not cancel.
    scores = np.array([[1 / 3, 0.3, 0.3], [0.34, 0.33, 0.33]])
    assert calibration_error(np.array([1, 0]), scores, classes(3)) == pytest.approx((1 / 3 + 0.66) / 2)
    for first, expected in ((1.0, 0.0), (0.0, 1.0), (257 / 256, 1 / 256)):
        found = calibration_error(np.array([0]), np.array([[first, 0.0]], np.float32), classes(2))
        assert found == pytest.approx(expected, abs=ROUND)


def test_of_several_labels_every_score_counts() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 1]], np.float32)
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]], np.float32)
    # 0.9 where 3 of 4 are true, 0.1 where 1 of 4 is.
    assert calibration_error(labels, scores, OutputSpec("multi_label", names(2))) == pytest.approx(0.15, abs=1e-6)
    with pytest.raises(ValueError, match="regression"):
        calibration_error(labels, scores, OutputSpec("regression", names(2)))


def test_scores_that_are_probabilities_have_a_small_calibration_error_and_bold_ones_a_large_one() -> None:
    random = np.random.default_rng(1)
    sure = random.uniform(0.5, 1, 20_000)
    labels = (random.uniform(size=20_000) > sure).astype(np.int64)
    # 20,000 photos in 8 bins: the share right in a bin is known to 1 %.
    assert calibration_error(labels, np.stack([sure, 1 - sure], 1).astype(np.float32), classes(2)) < 0.01
    bold = np.stack([np.sqrt(sure), 1 - np.sqrt(sure)], 1).astype(np.float32)
    assert calibration_error(labels, bold, classes(2)) == pytest.approx((np.sqrt(sure) - sure).mean(), abs=0.01)
