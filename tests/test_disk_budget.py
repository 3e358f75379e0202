"""One disk budget: what does not fit is told beforehand, the least recently used goes, never what is in use."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from photos import make_photo_folder
from tiny_activations import WIDTH, entries, everything, files, never, run

from edgetl import activations
from edgetl.errors import ConfigError, DiskSpaceError

ENTRY = 11 * 3 * WIDTH * 2 + 3 * 32


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "SHARD_ROWS", 4)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photo_folder(tmp_path / "photos", {"cat": 5, "dog": 6}, size=(16, 12))


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
    usage = shutil.disk_usage(photos)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=ENTRY - 1))
    with pytest.raises(
        DiskSpaceError, match=r"has .* KB free\. Take fewer views \(--views 2 fits\).*free some disk space"
    ):
        run(photos, never)
    run(photos, views=2).close()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
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
        with pytest.raises(DiskSpaceError, match="are in use, by this run's other photos or by other runs"):
            run(photos, never, preset="light", seed=2, budget_bytes=2 * ENTRY - 1)
        assert len(files(photos)) == 6  # refused before anything was deleted
        np.testing.assert_array_equal(everything(used), expected)
    run(photos, preset="light", seed=2, budget_bytes=ENTRY).close()
    assert len(files(photos)) == 3
