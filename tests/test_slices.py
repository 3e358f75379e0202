"""Figures by slice: recomputed by hand; a planted bias is found, and noise is not sold as one."""

from pathlib import Path

import numpy as np
import pytest

from edgetl import slices
from edgetl.config import from_json, to_json
from edgetl.data import Example, Examples
from edgetl.metrics import primary
from edgetl.outputs import OutputSpec, Task
from edgetl.slices import EMPTY, OTHERS, SliceColumn, cuts, merits, slice_figures

TWO = OutputSpec("classification", ("no", "yes"))


def photos(**columns: list[str]) -> Examples:
    rows = list(zip(*columns.values(), strict=True))
    items = tuple(Example(f"{i:05}.png", Path("x"), 0, values=tuple(row)) for i, row in enumerate(rows))
    return Examples("x", Path("x"), TWO.names, items, columns=tuple(columns))


def naming(right: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[np.where(right, labels, 1 - labels)]


# --- how photos are divided -----------------------------------------------------------------------------------------


def test_text_is_cut_by_value_and_rare_values_are_pooled() -> None:
    (cut,) = cuts(photos(camera=["b"] * 30 + ["a"] * 20 + ["c"] * 19 + ["d"] * 3 + [""] * 25))
    assert cut.values == ("a", "b", EMPTY, OTHERS)
    assert np.bincount(cut.index).tolist() == [20, 30, 25, 22]


def test_numbers_are_cut_at_their_quartiles() -> None:
    (cut,) = cuts(photos(age=[str(i / 2) for i in range(100)]))
    assert np.bincount(cut.index).tolist() == [25, 25, 25, 25]
    assert cut.values == ("0 to 12.38", "12.38 to 24.75", "24.75 to 37.12", "37.12 to 49.5")
    assert (np.diff(cut.index) >= 0).all(), "in their order"
    (days,) = cuts(photos(day=[str(20240101 + i) for i in range(100)]))
    assert np.bincount(days.index).tolist() == [25] * 4 and days.values[0] == "20240101 to 20240126"
    (few,) = cuts(photos(level=["10"] * 30 + ["9"] * 30 + ["-1"] * 30))
    assert few.values == ("-1", "9", "10"), "few different numbers are values, in their order"
    (gaps,) = cuts(photos(age=[str(i) for i in range(80)] + [""] * 20))
    assert gaps.values[-1] == EMPTY and np.bincount(gaps.index).tolist() == [20] * 5


def test_a_number_that_most_photos_have_is_a_slice() -> None:
    """Quartiles alone would put all photos into one range, and the column would be left out."""
    (lowest,) = cuts(photos(area=["0"] * 80 + [str(i) for i in range(1, 21)]))
    assert (lowest.values, np.bincount(lowest.index).tolist()) == (("0", "0 to 20"), [80, 20])
    (highest,) = cuts(photos(area=["100.0"] * 80 + [str(i) for i in range(20)]))
    assert (highest.values, np.bincount(highest.index).tolist()) == (("0 to 100", "100"), [20, 80])
    (middle,) = cuts(photos(area=[str(i) for i in range(20)] + ["50"] * 60 + [str(i) for i in range(81, 101)]))
    assert (middle.values, np.bincount(middle.index).tolist()) == (("0 to 50", "50", "50 to 100"), [20, 60, 20])
    (half,) = cuts(photos(area=["7"] * 20 + [str(i) for i in range(8, 38)] + [""] * 30))
    assert half.values[0].startswith("7 to "), "in less than two quartiles it is one of many"


def test_columns_that_divide_nothing_are_left_out() -> None:
    assert cuts(photos(same=["a"] * 50, each=[f"id{i}" for i in range(50)])) == ()
    assert cuts(photos()) == ()


# --- figures --------------------------------------------------------------------------------------------------------


def test_figures_of_a_slice_are_those_of_its_photos() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    labels[:40] = 1
    right = rng.random(200) < 0.8
    outputs = naming(right, labels)
    where = np.array(["a"] * 40 + ["b"] * 160)
    (column,) = slice_figures(cuts(photos(site=where.tolist())), labels, outputs, TWO)
    for part in column.slices:
        inside = where == part.value
        assert part.samples == inside.sum()
        assert part.figure == pytest.approx(right[inside].mean()) == primary(labels[inside], outputs[inside], TWO)
        assert part.low < part.figure < part.high
        for number, recall in enumerate(part.recalls):
            of_class = inside & (labels == number)
            assert recall == (right[of_class].mean() if of_class.any() else None)
    assert column.slices[0].recalls[0] is None
    worst = where == column.worst.value
    assert column.worst.gap == pytest.approx(right[~worst].mean() - right[worst].mean()) and column.worst.gap >= 0
    assert column.worst.low < column.worst.gap < column.worst.high
    assert column.most_lost is None
    assert from_json(SliceColumn, to_json(column)) == column


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_mean_merit_is_the_primary_figure(task: Task) -> None:
    rng = np.random.default_rng(0)
    if task == "classification":
        labels, outputs, spec = rng.integers(0, 2, 300), rng.random((300, 2)).astype(np.float32), TWO
    else:
        labels = rng.normal(size=(300, 2)).astype(np.float32)
        outputs = labels + rng.normal(size=(300, 2)).astype(np.float32) / 3
        spec = OutputSpec("regression", ("x", "y"))
    # Sums of 300 numbers of size 1 in float64.
    assert merits(labels, outputs, spec).mean() == pytest.approx(primary(labels, outputs, spec), abs=1e-9)


def test_merit_of_several_labels_is_the_f1_of_the_photo() -> None:
    labels = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]], np.float32)
    outputs = np.array([[0.9, 0.1, 0.8], [0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.9, 0.1, 0.1]], np.float32)
    spec = OutputSpec("multi_label", ("a", "b", "c"), thresholds=(0.5, 0.5, 0.5))
    assert merits(labels, outputs, spec).tolist() == [0.5, 1.0, 0.0, 1.0]
    many = slice_figures(
        cuts(photos(site=["a"] * 40 + ["b"] * 40)), np.tile(labels, (20, 1)), np.tile(outputs, (20, 1)), spec
    )
    assert [part.figure for part in many[0].slices] == [0.625, 0.625]
    assert many[0].slices[0].recalls == (1.0, 0.0, None)


def test_a_gap_of_a_single_photo_is_not_sure() -> None:
    """Its own variance is 0, which would make a gap of 80 points certain to 9."""
    labels = np.zeros(81, np.int64)
    right = np.array([n % 5 > 0 for n in range(80)] + [False])
    (column,) = slice_figures(cuts(photos(site=["a"] * 40 + ["b"] * 40 + ["c"])), labels, naming(right, labels), TWO)
    assert (column.worst.value, column.worst.gap) == (OTHERS, pytest.approx(0.8))
    error = (right.var() + right[:80].var() / 80) ** 0.5
    assert column.worst.high - column.worst.gap == pytest.approx(1.96 * error, rel=1e-4)


@pytest.mark.parametrize("task", ["regression", "multi_label"])
def test_a_figure_of_a_single_photo_is_not_sure(task: Task) -> None:
    """All resamples of one photo are that photo."""
    rng = np.random.default_rng(0)
    labels = (rng.random((81, 2)) < 0.5).astype(np.float32)
    outputs = np.clip(labels + rng.normal(0, 0.4, (81, 2)), 0, 1).astype(np.float32)
    spec = OutputSpec(task, ("x", "y"), thresholds=(0.5, 0.5) if task == "multi_label" else ())
    (column,) = slice_figures(cuts(photos(site=["a"] * 40 + ["b"] * 40 + ["c"])), labels, outputs, spec)
    merit, one = merits(labels, outputs, spec), column.slices[-1]
    assert (one.value, one.samples, one.figure) == (OTHERS, 1, pytest.approx(merit[-1]))
    low, high = one.figure - 1.96 * merit.std(), one.figure + 1.96 * merit.std()
    assert (one.low, one.high) == (
        pytest.approx(max(low, 0) if task == "multi_label" else low, abs=1e-3),
        pytest.approx(min(high, 1), abs=1e-3),
    )
    assert one.high - one.low > 0.1


# --- bias and noise -------------------------------------------------------------------------------------------------


def test_a_planted_bias_is_named() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    site = rng.choice(["north", "south", "west"], 600)
    right = rng.random(600) < np.where(site == "west", 0.7, 0.9)
    columns = cuts(photos(site=site.tolist(), other=rng.choice(["p", "q"], 600).tolist()))
    found = slice_figures(columns, labels, naming(right, labels), TWO)
    assert [column.column for column in found] == ["site", "other"]
    assert (found[0].worst.value, found[0].worst.p) == ("west", pytest.approx(1 / 1001)), "none of 1000 is as bad"
    assert found[0].worst.low > 0 and abs(found[0].worst.gap - 0.2) < 0.1  # 0.2 is known to 0.035
    assert found[1].worst.p > 0.05


def test_what_an_artifact_lost_is_tested_photo_by_photo() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    site = rng.choice(["north", "south", "west"], 600)
    before = rng.random(600) < np.where(site == "north", 0.8, 0.9)  # worse to begin with, and not by the artifact
    after = before & ~((site == "west") & (rng.random(600) < 0.1))
    columns = cuts(photos(site=site.tolist()))
    (found,) = slice_figures(columns, labels, naming(after, labels), TWO, naming(before, labels))
    assert found.most_lost and (found.most_lost.value, found.most_lost.p) == ("west", pytest.approx(1 / 1001))
    lost = before.astype(float) - after
    west = site == "west"
    assert found.most_lost.gap == pytest.approx(lost[west].mean() - lost[~west].mean())
    (same,) = slice_figures(columns, labels, naming(before, labels), TWO, naming(before, labels))
    assert same.most_lost and (same.most_lost.gap, same.most_lost.p) == (0.0, 1.0)


def test_noise_is_sold_as_bias_in_one_of_twenty_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "PERMUTATIONS", 199)  # enough to tell 5 %
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(120):
        right = rng.random(150) < 0.85
        labels = rng.integers(0, 2, 150)
        columns = cuts(photos(**{name: rng.integers(0, 4, 150).astype(str).tolist() for name in "abc"}))
        found = slice_figures(columns, labels, naming(right, labels), TWO)
        alarms += min(column.worst.p for column in found) <= 0.05
    # Of 12 slices in all. 5 % of 120 is 6, with a standard error of 2.4; without the correction it is about 50.
    assert 1 <= alarms <= 13


def test_where_all_are_right_nobody_is_behind() -> None:
    labels = np.zeros(100, np.int64)
    columns = cuts(photos(site=["a"] * 50 + ["b"] * 50))
    (found,) = slice_figures(columns, labels, naming(np.ones(100, bool), labels), TWO)
    assert (found.worst.gap, found.worst.p) == (0.0, 1.0)
