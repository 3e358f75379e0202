"""Checkpoints: what goes in comes out, and nothing that is damaged is taken for whole."""

import errno
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl import checkpoints
from edgetl.checkpoints import Checkpoint, grouped, load, save

STATE: dict[str, Any] = {"phase": 1, "best": math.inf, "loss": 0.1 + 0.2, "rows": [{"name": "caf\u00e9"}], "none": None}


def example(seed: int = 0) -> Checkpoint:
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(3, 4)).astype(np.float32), np.float32(7.5) * np.ones(()), np.zeros((0, 2), np.float16)]
    counts = [np.arange(number) for number in range(12)]  # two digits: 10 comes after 9
    return Checkpoint(STATE, grouped(weights=weights, counts=counts, none=[]))


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return (
        one.state == other.state
        and one.arrays.keys() == other.arrays.keys()
        and all(a.dtype == other.arrays[n].dtype and np.array_equal(a, other.arrays[n]) for n, a in one.arrays.items())
    )


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    save(tmp_path / "c.npz", example())
    loaded = load(tmp_path / "c.npz")
    assert loaded is not None and same(loaded, example())
    assert [len(array) for array in loaded.group("counts")] == list(range(12))
    assert [array.shape for array in loaded.group("weights")] == [(3, 4), (), (0, 2)]
    assert loaded.group("none") == loaded.group("unheard") == []
    assert not same(loaded, example(seed=1))


def test_no_file_is_no_checkpoint_and_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(tmp_path / "c.npz") is None
    assert not caplog.messages


def test_every_flipped_byte_and_every_cut_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "c.npz"
    save(file, example())
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.permutation(len(whole))[:1000]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        assert load(file) is None, place
    caplog.clear()
    for length in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:length])
        assert load(file) is None
    assert caplog.messages == [f"{file} is damaged: training starts from its beginning"] * 5


def test_a_full_disk_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.npz"
    save(file, example())

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*c\.npz"):
        save(file, example(seed=1))
    loaded = load(file)
    assert loaded is not None and same(loaded, example())
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"]


def test_pickles_are_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "boom"),))

    bombs: Any = {"state.json": np.frombuffer(b"{}", np.uint8), "weights/0": np.array([Bomb()], dtype=object)}
    np.savez(tmp_path / "c.npz", **bombs)
    content = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "c.npz").write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load(tmp_path / "c.npz")
    assert not (tmp_path / "boom").exists()


def test_other_versions_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.npz"
    save(file, example())
    assert load(file) is not None and not caplog.messages
    now = checkpoints.installed_versions()
    monkeypatch.setattr(checkpoints, "installed_versions", lambda: {**now, "keras": "9.9"})
    loaded = load(file)
    assert loaded is not None and same(loaded, example())
    (line,) = caplog.messages
    assert line.startswith(f"{file} is from other versions (keras {now['keras']} -> 9.9): training goes on")
