"""Batches: their order is a function of numbers, their content that of the source."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from photos import make_photo_folder
from tiny_training import CLASSES, OUTPUTS, SIZE, PixelSource, labels_of

from edgetl import activations, data
from edgetl.batches import Batches, StoredSource, StreamedSource
from edgetl.data import load_pixels
from edgetl.errors import DatasetError
from edgetl.inputs import ImageInput

SPEC = ImageInput(SIZE, SIZE)


def make(count: int = 14, views: int = 3, **changes: Any) -> Batches:
    labels = labels_of(count)
    return Batches(
        **{"source": PixelSource(labels, views), "labels": labels, "outputs": OUTPUTS, "batch_size": 4, "seed": 0}
        | changes
    )


def test_each_photo_at_most_once_and_all_of_them_over_time() -> None:
    batches = make()
    seen: set[int] = set()
    for epoch in range(12):
        rows, views = batches.order(0, epoch)
        assert rows.shape == views.shape == (3, 4)
        assert len(np.unique(rows)) == 12
        seen.update(rows.ravel().tolist())
        assert set(views.ravel().tolist()) <= {0, 1, 2}
    assert seen == set(range(14))


def test_the_order_is_a_function_of_seed_phase_and_epoch() -> None:
    orders = [
        make(seed=seed).order(phase, epoch) for seed in (0, 1) for phase in (0, 1) for epoch in (0, 1) for _ in range(2)
    ]
    for first, second in zip(orders[::2], orders[1::2], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({rows.tobytes() for rows, _ in orders}) == len({views.tobytes() for _, views in orders}) == 8


def test_batches_hold_what_the_order_says_from_any_step_on() -> None:
    batches = make()
    rows, views = batches.order(1, 2)
    assert isinstance(batches.source, PixelSource)
    for first in range(4):
        taken = list(batches.dataset(1, 2, first))
        assert len(taken) == 3 - first == batches.dataset(1, 2, first).cardinality()
        for step, (inputs, labels) in enumerate(taken, start=first):
            assert inputs[0].dtype == tf.uint8 and labels.dtype == tf.float32
            np.testing.assert_array_equal(inputs[0], batches.source.pixels[rows[step], views[step]])
            np.testing.assert_array_equal(labels, np.eye(CLASSES)[rows[step] % CLASSES])
    (spec,), labels_spec = batches.dataset(0, 0).element_spec
    assert (spec.shape, labels_spec.shape) == ((4, SIZE, SIZE, 3), (4, CLASSES)), (
        "known, so that nothing is traced twice"
    )


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    batches = make(5, batch_size=64)
    assert (batches.size, batches.steps) == (5, 1)
    assert sorted(batches.order(0, 0)[0].ravel()) == [0, 1, 2, 3, 4]


def test_balanced_batches_have_as_many_of_each_class() -> None:
    labels = np.array([0] * 16 + [1] * 6 + [2] * 2)
    batches = make(labels=labels, source=PixelSource(labels), sampling="balanced")
    rows, _ = batches.order(0, 0)
    assert rows.shape == (6, 4)
    assert np.bincount(labels[rows].ravel()).tolist() == [8, 8, 8]


def test_an_error_of_the_source_comes_out_as_it_is() -> None:
    class Failing(PixelSource):
        def gather(self, rows: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, ...]:
            raise DatasetError("cat.jpg: gone")

    batches = make(source=Failing(labels_of(14)))
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"^cat\.jpg: gone$"), batches.errors():
            list(batches.dataset(0, 0))
    with pytest.raises(tf.errors.CancelledError), batches.errors():  # none of the source's: as it was
        raise tf.errors.CancelledError(None, None, "else")
    with pytest.raises(ZeroDivisionError), batches.errors():
        raise ZeroDivisionError


def test_streamed_photos_are_those_on_disk(tmp_path: Path) -> None:
    examples = data.load(make_photo_folder(tmp_path, {"cat": 3, "dog": 3}, size=(16, 12)))
    source = StreamedSource(examples, SPEC, 2)
    rows = np.array([4, 0, 0])
    (pixels,) = source.gather(rows, np.zeros_like(rows))
    assert len(source) == 6 and source.views == 1
    np.testing.assert_array_equal(pixels, [load_pixels(examples.items[row], SPEC)[0] for row in rows])
    (spec,) = source.signature()
    assert (spec.dtype, spec.shape[1:]) == (pixels.dtype, pixels.shape[1:])
    examples.items[0].path.unlink()
    with pytest.raises(DatasetError, match=rf"^{examples.items[0].path}: can't be read any more \(No such file"):
        source.gather(rows, rows)
    source.close()


def test_stored_activations_are_those_of_the_cache(tmp_path: Path) -> None:
    examples = data.load(make_photo_folder(tmp_path / "photos", {"cat": 3, "dog": 3}, size=(16, 12)))

    def forward(pixels: np.ndarray) -> np.ndarray:
        return pixels.astype(np.float32).reshape(-1, 4, SIZE * SIZE * 3 // 4).mean(axis=2)

    shapes = ((3,), (1, 1, 1))
    stored = activations.store(
        examples, SPEC, lambda: forward, shapes=shapes, preset="flips", views=2, seed=0, key={},
        cache=tmp_path / "cache", budget_bytes=10**6,
    )  # fmt: skip
    source = StoredSource(stored, shapes)
    batches = make(6, source=source, batch_size=2)
    rows, views = batches.order(0, 0)
    assert set(views.ravel()) == {0, 1}
    for step, (inputs, _) in enumerate(batches.dataset(0, 0)):
        for got, expected in zip(inputs, stored.gather(rows[step], views[step]), strict=True):
            assert got.dtype == tf.float16
            np.testing.assert_array_equal(got, expected)
    source.close()
    with pytest.raises(ValueError, match="closed"), batches.errors():
        list(batches.dataset(0, 1))
