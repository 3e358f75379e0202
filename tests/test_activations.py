"""Border activations: equal to a forward pass of the views, computed once, whole after anything."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import make_photo_folder
from tiny_activations import SHAPES, SPEC, WIDTH, entries, everything, files, forward, never, run

from edgetl import activations, augment, data
from edgetl.activations import Activations, check_views, size_bytes
from edgetl.errors import ConfigError, UnreadableImageError
from edgetl.inputs import ImageInput

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "SHARD_ROWS", 4)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photo_folder(tmp_path / "photos", {"cat": 5, "dog": 6}, size=(16, 12))


class Counting:
    """A forward function that counts its calls, and may fail at one of them."""

    def __init__(self, fail_at: int = -1, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.calls, self.fail_at, self.error, self.lock = 0, fail_at, error, threading.Lock()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        with self.lock:
            if self.calls == self.fail_at:
                raise self.error
            self.calls += 1
        return forward(pixels)


@pytest.mark.parametrize(("preset", "views"), [("none", 1), ("flips", 2), ("symmetries", 8), ("light", 3)])
def test_activations_are_those_of_the_views(photos: Path, preset: str, views: int) -> None:
    examples = data.load(photos)
    numbers = [int.from_bytes(activations.hashlib.sha256(e.id.encode()).digest()[:8], "little") for e in examples]
    with run(photos, preset=preset, views=views) as stored:
        assert len(stored) == 11 and stored.views == views
        assert stored.size_bytes == size_bytes(11, views, SHAPES) == sum(path.stat().st_size for path in files(photos))
        found = everything(stored).reshape(11, views, WIDTH)
    for row, example in enumerate(examples):
        pixels = data.read_image(example.path, SPEC)[None]
        for number in range(views):
            seen = augment.view(preset, pixels, number, photos=[numbers[row]], seed=1)
            np.testing.assert_array_equal(found[row, number], forward(seen)[0].astype(np.float16))


def test_gather_keeps_the_order_and_shapes(photos: Path) -> None:
    with run(photos) as stored:
        rows, views = np.array([10, 0, 4, 4, 10]), np.array([0, 2, 1, 0, 2])
        maps, flat = stored.gather(rows, views)
        assert maps.shape == (5, 2, 2, 3) and flat.shape == (5, 4) and maps.dtype == flat.dtype == np.float16
        whole = everything(stored).reshape(11, 3, WIDTH)
        np.testing.assert_array_equal(maps.reshape(5, 12), whole[rows, views, :12])
        np.testing.assert_array_equal(flat, whole[rows, views, 12:])
        for outside in [(11, 0), (-1, 0), (0, 3), (0, -1)]:
            with pytest.raises(IndexError):
                stored.gather(np.array(outside[:1]), np.array(outside[1:]))
    with pytest.raises(ValueError, match="closed"):
        stored.gather(rows, views)


def test_more_shards_than_maps(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_OPEN_SHARDS", 1)
    with run(photos) as stored:
        few = everything(stored)
    monkeypatch.undo()
    monkeypatch.setattr(activations, "SHARD_ROWS", 4)
    with run(photos, never) as stored:
        np.testing.assert_array_equal(everything(stored), few)


def test_a_second_pass_computes_nothing(photos: Path) -> None:
    with run(photos) as first, run(photos, never, workers=1) as second:
        np.testing.assert_array_equal(everything(first), everything(second))


@pytest.mark.parametrize("after", [0, 5, 12, 26])
def test_an_interrupted_pass_resumes_at_its_shard(photos: Path, after: int, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(photos, lambda: Counting(after), workers=1)
    done = after // 12  # 4 photos x 3 views
    assert len(files(photos)) == done and all(path.suffix == ".f16" for path in files(photos))
    counting = Counting()
    with run(photos, lambda: counting) as resumed, run(photos, cache=tmp_path / "other") as expected:
        np.testing.assert_array_equal(everything(resumed), everything(expected))
    assert counting.calls == 33 - 12 * done


def test_damage_is_found_and_repaired(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    with run(photos) as stored:
        expected = everything(stored)
    shard = files(photos)[1]
    whole = shard.read_bytes()
    damages = [whole[:-1], whole[:50], b"", whole + b"\0"]
    for position in (0, 100, len(whole) - 40, len(whole) - 1):  # values, and the hash itself
        flipped = bytearray(whole)
        flipped[position] ^= 4
        damages.append(bytes(flipped))
    for damage in damages:
        shard.write_bytes(damage)
        caplog.clear()
        counting = Counting()
        with run(photos, lambda counting=counting: counting) as stored:  # type: ignore[misc]
            np.testing.assert_array_equal(everything(stored), expected)
        assert counting.calls == 12  # that shard alone
        assert f"{shard} is damaged and will be computed again" in caplog.text
        assert shard.read_bytes() == whole


def test_a_changed_photo_costs_its_shard_and_leaves_no_old_one(photos: Path) -> None:
    run(photos).close()
    photo = photos / "cat" / "0000.jpg"
    photo.write_bytes((photos / "dog" / "0000.jpg").read_bytes())
    counting = Counting()
    with run(photos, lambda: counting) as stored:
        np.testing.assert_array_equal(stored.gather(np.array([0]), np.array([0]))[0].shape, (1, 2, 2, 3))
        assert stored.size_bytes == sum(path.stat().st_size for path in files(photos))
    assert counting.calls == 12 and len(files(photos)) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"preset": "medium"},
        {"views": 2},
        {"key": {"backbone": "other"}},
        {"spec": ImageInput(8, 8, "crop")},
        {"shapes": ((16,),)},
    ],
    ids=str,
)
def test_what_matters_makes_another_entry(photos: Path, changes: dict[str, Any]) -> None:
    run(photos, preset="light").close()
    run(photos, **{"preset": "light", **changes}).close()
    assert len(entries(photos)) == 2


def test_other_photos_make_another_entry(photos: Path) -> None:
    run(photos).close()
    make_photo_folder(photos, {"cat": 6, "dog": 6}, size=(16, 12))
    run(photos).close()
    assert len(entries(photos)) == 2


def test_what_does_not_matter_makes_none(photos: Path) -> None:
    run(photos, preset="symmetries", seed=1).close()
    run(photos, never, preset="symmetries", seed=2).close()  # nothing is drawn
    run(photos, preset="light", views=1, seed=1).close()
    run(photos, never, preset="none", views=1, seed=2).close()  # the photo itself


@pytest.mark.parametrize(("preset", "views"), [("none", 2), ("flips", 3), ("symmetries", 9), ("light", 0)])
def test_views_that_do_not_exist(photos: Path, preset: str, views: int) -> None:
    refused = rf"--views {views}: augmentation '{preset}' needs at least 1.*Change --views"
    with pytest.raises(ConfigError, match=refused):
        check_views(preset, views)
    with pytest.raises(ConfigError, match=refused):
        run(photos, never, preset=preset, views=views)


@pytest.mark.parametrize("value", [65600.0, -1e9, np.inf, np.nan])
def test_values_beyond_float16_stop_the_pass(photos: Path, value: float) -> None:
    def large(pixels: np.ndarray) -> np.ndarray:
        return np.where(np.arange(WIDTH) == 7, np.float32(value), forward(pixels))

    with pytest.raises(ConfigError, match=r"jpg: border activations.*65504.*--views 0"):
        run(photos, lambda: large)
    assert not files(photos)


def test_an_unreadable_photo_is_named(photos: Path) -> None:
    (photos / "dog" / "0002.jpg").write_bytes(b"no photo")
    with pytest.raises(UnreadableImageError, match=r"dog/0002\.jpg: .*Restore or remove"):
        run(photos)


def test_a_disk_that_fills_up_leaves_no_half_file(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(activations.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left") as caught:
        run(photos)
    assert caught.value.filename.endswith(".f16")
    assert len(files(photos)) == 1 and files(photos)[0].suffix == ".f16"
    counting = Counting()
    run(photos, lambda: counting).close()
    assert counting.calls == 33 - 12


def test_a_second_process_waits_and_computes_nothing(photos: Path) -> None:
    """In threads: flock goes by open files, not by processes."""
    started, go = threading.Event(), threading.Event()

    def slow(pixels: np.ndarray) -> np.ndarray:
        started.set()
        assert go.wait(30)
        return forward(pixels)

    results: list[Activations] = []
    first = threading.Thread(target=lambda: results.append(run(photos, lambda: slow)))
    first.start()
    assert started.wait(30)
    second = threading.Thread(target=lambda: results.append(run(photos, never)))
    second.start()
    time.sleep(0.2)
    assert not results
    go.set()
    for thread in (first, second):
        thread.join(30)
    np.testing.assert_array_equal(everything(results[0]), everything(results[1]))
    for stored in results:
        stored.close()


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_activations as t
from pathlib import Path
t.activations.SHARD_ROWS = 4
calls = []
def forward(pixels):
    calls.append(1)
    if len(calls) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return t.forward(pixels)
t.run(Path({photos!r}), lambda: forward, workers=1)
"""


@pytest.mark.slow
def test_a_killed_pass_goes_on(photos: Path) -> None:
    code = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), photos=str(photos))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert [path.suffix == ".f16" for path in files(photos)].count(False) == 1  # the temporary file of the second
    counting = Counting()
    with run(photos, lambda: counting) as stored:
        assert counting.calls == 33 - 12
        assert len(files(photos)) == 3 and all(path.suffix == ".f16" for path in files(photos))
        assert len(everything(stored)) == 33
