"""Rows in files: the same numbers as in memory, checked when they are read, and never all of them at once."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_rows import stored

from edgetl import training
from edgetl.errors import CacheError
from edgetl.features import Scaling
from edgetl.heads import HEADS
from edgetl.outputs import OutputSpec, Task
from edgetl.probe import fit_linear_probe
from edgetl.rows import Change, Held, Places, Rows, as_rows
from edgetl.shards import Shard
from edgetl.training import HeadTraining, train_head

VALUES = np.random.default_rng(0).normal(3, 2, (45, 6)).astype(np.float32)


def test_rows_in_files_are_those_in_memory(tmp_path: Path) -> None:
    rows, held = stored(tmp_path, VALUES), as_rows(VALUES)
    assert len(rows) == len(held) == 45 and rows.width == held.width == 6
    assert rows.pieces == 6 and held.pieces == 1
    np.testing.assert_array_equal(rows.array(), VALUES)
    some = np.random.default_rng(1).permutation(45)[:20]
    doubled = rows[some].mapped(lambda block: block[:, :2] * 2, 2)
    assert doubled.width == 2 and len(doubled) == 20
    for part in (doubled, held[some].mapped(lambda block: block[:, :2] * 2, 2)):
        np.testing.assert_array_equal(part[[3, 0, 3]].array(), 2 * VALUES[some[[3, 0, 3]], :2])
    places = np.concatenate([np.arange(20)[places] for places, _ in rows[some].blocks()])
    assert sorted(places) == list(range(20)), "each row is in one block"
    assert rows[np.zeros(0, np.int64)].array().shape == (0, 6)
    # A file that holds none of the rows is not read.
    (tmp_path / "000000.npz").unlink()
    others = np.flatnonzero(rows._file != 0)
    np.testing.assert_array_equal(rows[others].array(), VALUES[others])


@pytest.mark.parametrize("harm", ["gone", "flipped", "cut off", "other rows", "no file of ours"])
@pytest.mark.parametrize("read_before", [False, True])
def test_a_file_that_is_not_what_it_was_is_an_error(tmp_path: Path, harm: str, read_before: bool) -> None:
    rows = stored(tmp_path, VALUES)
    if read_before:
        rows.array()
    path = tmp_path / "000008.npz"
    whole = path.read_bytes()
    shard = Shard.read(path)
    assert shard is not None
    if harm == "gone":
        path.unlink()
    elif harm == "flipped":
        at = whole.index(shard.values.tobytes()) + 5
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    elif harm == "cut off":
        path.write_bytes(whole[:300])
    elif harm == "other rows":
        path.write_bytes(Shard(shard.values[:5], shard.sha256[:5], shard.readable[:5], ()).to_bytes())
    else:
        path.write_bytes(b"not a shard")
    with pytest.raises(
        CacheError, match=r"000008\.npz: features (are gone|were damaged) since .* Run the same command"
    ):
        rows.array()


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    rows = stored(tmp_path, VALUES)
    rows.array()
    path = tmp_path / "000008.npz"
    again = tmp_path / "again"
    again.write_bytes(path.read_bytes())
    again.replace(path)  # as another process does that fills the same cache
    np.testing.assert_array_equal(rows.array(), VALUES)


def test_scaling_of_blocks_is_that_of_all(tmp_path: Path) -> None:
    values = VALUES * np.logspace(-3, 3, 6).astype(np.float32) + 1000
    whole, found = Scaling.of(values), Scaling.of(stored(tmp_path, values))
    np.testing.assert_allclose(found.mean, values.mean(axis=0, dtype=np.float64), rtol=1e-14)  # float64 sums
    # Deviations of a millionth of the mean, in squares of float64: 1e-16 * 1e12.
    np.testing.assert_allclose(found.scale, whole.scale, rtol=1e-4)
    again = Scaling.of(stored(tmp_path, values))
    np.testing.assert_array_equal(found.scale, again.scale)


# --- heads ----------------------------------------------------------------------------------------------------------


def labels_of(task: Task, values: np.ndarray) -> np.ndarray:
    """Labels of any task that follow from the features, not without doubt."""
    noise = np.random.default_rng(2).normal(size=(len(values), 3))
    scores = values[:, :3] - values[:, :3].mean(axis=0) + 1.5 * noise
    if task == "regression":
        return (scores * [1, 10, 100]).astype(np.float32)
    if task == "multi_label":
        return (scores > 0.5).astype(np.float32)
    return np.asarray(np.digitize(scores[:, 0], [-1, 1]) if task == "ordinal" else scores.argmax(axis=1))


@pytest.mark.parametrize("weights", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("task", [*HEADS, "two classes"])
def test_a_probe_of_files_is_that_of_memory(task: Task | str, weights: bool, tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(3, 2, (150, 12)).astype(np.float32)
    kind: Task = "classification" if task == "two classes" else task  # type: ignore[assignment]
    labels = labels_of(kind, values)
    labels = (labels > 0).astype(np.int64) if task == "two classes" else labels
    rows, fit, held = stored(tmp_path, values), np.arange(0, 150, 2), np.arange(1, 150, 2)
    given = np.random.default_rng(4).uniform(0.2, 3.0, 75).astype(np.float32) if weights else None
    probes = [
        fit_linear_probe(part[fit], labels[fit], part[held], labels[held], task=kind, weights=given)
        for part in (rows, Held(values))
    ]
    assert probes[0].inverse_l2 == probes[1].inverse_l2
    unit = labels.std(axis=0) if task == "regression" else 1.0
    # The same solver on sums of float32 products in another order: it stops at the same step, or one away.
    np.testing.assert_allclose(probes[0].outputs(rows) / unit, probes[1].outputs(values) / unit, atol=1e-3)
    np.testing.assert_allclose(probes[0].outputs(rows), probes[0].outputs(values), rtol=1e-5)  # float32


SETTINGS = HeadTraining((16,), 0.1, 3e-2, 1e-2, epochs=12, batch_size=16)
SPEC = OutputSpec("classification", ("0", "1", "2"))


def test_a_head_of_files_learns_and_repeats_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WINDOW", 3)
    values = np.random.default_rng(3).normal(3, 2, (150, 12)).astype(np.float32)
    labels = (values[:, :3]).argmax(axis=1)
    rows, fit, held = stored(tmp_path, values), np.arange(0, 150, 2), np.arange(1, 150, 2)
    arguments = SPEC, rows[fit], labels[fit], rows[held], labels[held], SETTINGS
    first, again, other = (train_head(*arguments, seed=seed).get_weights() for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first[0] - other[0]).max() > 1e-3
    head = train_head(*arguments, seed=1)
    np.testing.assert_array_equal(head.get_weights()[0], first[0])  # whatever was trained meanwhile
    # Chance is a third; 75 photos at random would be right on a half of them with a probability of 0.002.
    assert (np.asarray(head(values[held])).argmax(axis=1) == labels[held]).mean() > 0.7


def test_an_epoch_takes_each_row_once_in_an_order_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WINDOW", 2)
    ids = np.arange(45, dtype=np.float32)[:, None]
    given = training._Given(stored(tmp_path, ids), np.zeros(45, np.int64), np.arange(45, dtype=np.float32), SPEC)
    orders = [
        [values[:, 0].tolist() for values, _, _ in given.windows(np.random.default_rng(epoch).permutation(6))]
        for epoch in range(2)
    ]
    for windows in orders:
        assert len(windows) == 3 and max(map(len, windows)) == 16
        assert sorted(each for window in windows for each in window) == list(range(45))
    assert orders[0] != orders[1]
    values, targets, weights = given.window(np.array([4, 1]))
    np.testing.assert_array_equal(values[:, 0], weights)
    assert targets.shape == (len(values), 3)


# --- memory ---------------------------------------------------------------------------------------------------------


class Endless(Rows):
    """Rows that nobody has ever stored: 80 blocks of 512, 42 MB in all."""

    width = 256

    def __init__(self, change: Change = lambda block: block) -> None:
        self._change = change

    def __len__(self) -> int:
        return 80 * 512

    @property
    def pieces(self) -> int:
        return 80

    def piece(self, index: int) -> tuple[Places, NDArray[np.float32]]:
        block = np.random.default_rng(index).standard_normal((512, 256), np.float32)
        return np.arange(512 * index, 512 * (index + 1)), self._change(block)

    def __getitem__(self, which: object) -> Rows:
        raise AssertionError("nobody needs some of them")

    def mapped(self, change: Change, width: int | None = None) -> Rows:
        before = self._change
        changed = Endless(lambda block: change(before(block)))
        changed.width = self.width if width is None else width
        return changed


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that numpy and Python hold at once while something runs."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("task", HEADS)
def test_a_probe_holds_one_block_at_a_time(task: Task) -> None:
    rows, random = Endless(), np.random.default_rng(0)
    labels = random.integers(0, 3, len(rows))
    if task in ("multi_label", "regression"):
        labels = random.integers(0, 2, (len(rows), 2)).astype(np.float32)
    peak = peak_bytes(lambda: fit_linear_probe(rows, labels, rows, labels, task=task, inverse_l2=(1e-4,)))
    # A block is 0.5 MB, in float64 1 MB, and there are some at work; what is said of all photos, and their weights,
    # are 0.3 MB for each column. The features would be 42 MB.
    assert peak < 12e6


def test_hidden_layers_hold_one_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WINDOW", 4)
    rows, labels = Endless(), np.random.default_rng(0).integers(0, 3, 80 * 512)
    settings = HeadTraining((4,), 0.0, 1e-3, 0.0, epochs=1, batch_size=512)
    train_head(SPEC, VALUES, labels[:45], VALUES, labels[:45], settings)  # what TensorFlow builds once is not counted
    # Two windows of 2 MB, one of them joined from its blocks; of 42 MB in all.
    assert peak_bytes(lambda: train_head(SPEC, rows, labels, rows, labels, settings)) < 16e6
