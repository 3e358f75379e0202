"""Border activations: equal to a forward pass of the views, computed once, whole after anything, within the budget."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import make_photo_folder

from edgetl import activations, augment, data
from edgetl.activations import Activations, store
from edgetl.errors import ConfigError, UnreadableImageError
from edgetl.features import Forward
from edgetl.inputs import ImageInput

SPEC = ImageInput(8, 8)
SHAPES = ((2, 2, 3), (4,))
WIDTH = 16
ROOT = Path(__file__).parent.parent


def forward(pixels: np.ndarray) -> np.ndarray:
    """Means of quarters and of rows."""
    values = pixels.astype(np.float32)
    quarters = values.reshape(-1, 2, 4, 2, 4, 3).mean(axis=(2, 4))
    return np.concatenate([quarters.reshape(-1, 12), values[:, ::2].mean(axis=(2, 3))], axis=1)


def never() -> Forward:
    raise AssertionError("there is nothing to compute")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "SHARD_ROWS", 4)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photo_folder(tmp_path / "photos", {"cat": 5, "dog": 6}, size=(16, 12))


def run(photos: Path, make: Callable[[], Forward] = lambda: forward, **changes: Any) -> Activations:
    arguments: dict[str, Any] = {
        "shapes": SHAPES,
        "preset": "symmetries",
        "views": 3,
        "seed": 1,
        "key": {"backbone": "toy"},
        "cache": photos.parent / "cache",
        "budget_bytes": 10**6,
        "workers": 2,
        **changes,
    }
    return store(data.load(photos), arguments.pop("spec", SPEC), make, **arguments)


def everything(stored: Activations) -> np.ndarray:
    """All values, [photos * views, WIDTH]."""
    rows, views = np.mgrid[0 : len(stored), 0 : stored.views].reshape(2, -1)
    return np.concatenate([part.reshape(len(rows), -1) for part in stored.gather(rows, views)], axis=1)


def entries(photos: Path) -> list[Path]:
    return sorted(path for path in (photos.parent / "cache" / "activations").iterdir() if path.is_dir())


def files(photos: Path) -> list[Path]:
    """All files of all entries, with those under temporary names."""
    return sorted(path for entry in entries(photos) for path in entry.iterdir())


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
        assert stored.size_bytes == sum(path.stat().st_size for path in files(photos))
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
    with pytest.raises(
        ConfigError, match=rf"--views {views}: augmentation '{preset}' needs at least 1.*Change --views"
    ):
        run(photos, never, preset=preset, views=views)


ENTRY = 11 * 3 * WIDTH * 2 + 3 * 32


def test_budget(photos: Path) -> None:
    run(photos, budget_bytes=ENTRY).close()
    with pytest.raises(ConfigError) as caught:
        run(photos, never, budget_bytes=ENTRY - 1)
    assert str(caught.value) == (
        "border activations need 1.2 KB (11 photos x 3 views x 0.0 KB) and the budget is 1.2 KB. Take fewer views "
        "(--views 2 fits): thaw fewer blocks, make room with a larger --disk-budget-gb, or stream with --views 0"
    )
    with pytest.raises(ConfigError, match="Not even one view fits"):
        run(photos, never, budget_bytes=100)
    run(photos, budget_bytes=ENTRY - 1, views=2).close()  # what was advised


def test_a_full_disk_is_refused_beforehand(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = activations.shutil.disk_usage(photos)
    monkeypatch.setattr(activations.shutil, "disk_usage", lambda path: usage._replace(free=ENTRY - 1))
    with pytest.raises(
        ConfigError, match=r"has .* KB free\. Take fewer views \(--views 2 fits\).*free some disk space"
    ):
        run(photos, never)
    run(photos, views=2).close()
    monkeypatch.setattr(activations.shutil, "disk_usage", lambda path: usage._replace(free=0))
    run(photos, never, views=2).close()  # is there already


def test_the_least_recently_used_entry_goes(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = []
    for seed in (1, 2, 3):
        run(photos, preset="light", seed=seed).close()
        names.append(next(entry for entry in entries(photos) if entry not in names))
        time.sleep(0.02)  # file times have ticks of a few ms
    run(photos, never, preset="light", seed=1).close()
    caplog.clear()
    caplog.set_level("INFO", "edgetl")
    run(photos, preset="light", seed=4, budget_bytes=3 * ENTRY).close()
    assert len(entries(photos)) == 3 and names[1] not in entries(photos)
    assert caplog.text.count("deleted to make room") == 1 and str(names[1]) in caplog.text
    with run(photos, never, preset="light", seed=1, budget_bytes=ENTRY) as alone:  # a smaller budget holds at once
        assert entries(photos) == [names[0]] and len(everything(alone)) == 33


def test_what_is_in_use_stays(photos: Path) -> None:
    with run(photos, preset="light", seed=1) as used:
        expected = everything(used)
        run(photos, preset="light", seed=2).close()
        run(photos, preset="light", seed=3, budget_bytes=2 * ENTRY).close()  # instead of the second
        assert len(entries(photos)) == 2
        with pytest.raises(ConfigError, match="are in use, by this run's other photos or by other runs"):
            run(photos, never, preset="light", seed=2, budget_bytes=2 * ENTRY - 1)
        assert len(files(photos)) == 6  # refused before anything was deleted
        np.testing.assert_array_equal(everything(used), expected)
    run(photos, preset="light", seed=2, budget_bytes=ENTRY).close()
    assert len(files(photos)) == 3


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
