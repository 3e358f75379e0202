"""Disks that are full or read-only: one line that says what to do, status 2, nothing wrong under a final name.

A small file system in memory is mounted and filled up to a few bytes, so that writes fail in the kernel, wherever they
come from. Once there is room the same command ends as if nothing had been.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from photos import make_photo_folder
from test_commands import ROOT, TINY, log_as_before, run, snapshot
from tiny_runs import tiny_run

from edgetl.rundir import RunDir, open_run

pytestmark = pytest.mark.slow
__all__ = ["log_as_before"]

DISK_KB = 24_000
MADE = re.compile(rb"on \d{4}-\d\d-\d\d \d\d:\d\d UTC")


class Disk:
    """A small file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, room: int) -> None:
        """Leave so many bytes."""
        self.empty()
        free = shutil.disk_usage(self.path).free
        with (self.path / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - room))

    def empty(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    def read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "tmpfs", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount: run the tests under `unshare --user --map-root-user --mount`")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A tiny run that was converted, evaluated and reported; read only."""
    made = tiny_run(tmp_path_factory.mktemp("disk"), "classification")
    for words in COMMANDS:
        assert run(words[0], made.path, *words[1:], "--quiet") == 0
    return made


COMMANDS = (
    ["convert", "--schemes", "float32", "int8", "--calibration-images", "12", "--seed", "1"],
    ["evaluate"],
    ["report", "--maps", "0"],
)


def refused(capfd: pytest.CaptureFixture[str], advice: str, name: str, *arguments: object) -> None:
    capfd.readouterr()
    assert run(name, *arguments, "--quiet") == 2, name
    # In this process TensorFlow was imported before its start-up lines could be silenced.
    lines = [line for line in capfd.readouterr().err.splitlines() if not re.match(r"[EWI]\d{4} ", line)]
    lines = [line for line in lines if "the search goes on without it" not in line]
    assert len(lines) == 1 and re.search(advice, lines[0], re.IGNORECASE), lines


def undated(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: MADE.sub(b"", content) for name, content in files.items()}


@pytest.mark.parametrize("step", range(len(COMMANDS)), ids=[words[0] for words in COMMANDS])
def test_a_full_disk_and_then_room(
    step: int,
    exported: RunDir,
    disk: Disk,
    capfd: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    name, *options = COMMANDS[step]
    copy = disk.path / "run"
    shutil.copytree(exported.path, copy)
    # What the command makes is gone, so that it has all of it to write.
    for path in [path for pattern in MADE_BY[name] for path in copy.rglob(pattern)]:
        path.unlink()
    start = snapshot(copy)
    assert run(name, copy, *options, "--quiet") == 0
    wanted = undated(snapshot(copy))
    need = sum(len(content) for file, content in wanted.items() if file not in start)
    assert need > 4096
    rooms = (0, need // 3, need // 2)
    for room in rooms:
        for file in set(wanted) - set(start):
            (copy / file).unlink(missing_ok=True)
        disk.fill(room // 4096 * 4096)
        refused(capfd, "free some disk space", name, copy, *options)
        left = undated(snapshot(copy))
        assert all(content == wanted[file] for file, content in left.items()), room
        assert not [path for path in copy.rglob(".*") if path.name != ".lock"], "half a file is left"
    disk.empty()
    assert run(name, copy, *options, "--quiet") == 0
    assert undated(snapshot(copy)) == wanted
    record_property(f"full disks under {name}", len(rooms))


MADE_BY = {
    "convert": ("*.tflite", "float32.json", "int8.json"),
    "evaluate": ("evaluation.json", "predictions.npz"),
    "report": ("report.*", "MODEL_CARD.md"),
}
"""Command -> its files."""


RECIPES = {
    "recipe": [],
    "fine-tune": ["--epochs", "1", "--views", "1", "--thaw", "top"],
    "search": ["--trials", "2", "--processes", "1"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_on_a_full_disk_and_then_room(
    name: str, disk: Disk, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = make_photo_folder(tmp_path / "photos", {"cat": 10, "dog": 10}, size=(40, 32))
    out = disk.path / "out"
    words = ["--data", photos, "--out", out, "--cache", disk.path / "cache", *TINY, *RECIPES[name]]
    for room in (0, 400_000):  # nothing can be written; features can, the model can't
        disk.fill(room)
        refused(capfd, "free some disk space", name, *words)
        assert not list(out.rglob("manifest.json")) and not list(out.rglob("model.keras"))
    disk.empty()
    assert run(name, *words, "--quiet") == 0
    open_run(next(out.glob("best-*")) if name == "search" else out)


def test_a_disk_that_may_only_be_read(
    exported: RunDir, disk: Disk, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported.path, disk.path / "run")
    photos = make_photo_folder(tmp_path / "photos", {"cat": 10, "dog": 10}, size=(40, 32))
    before = snapshot(disk.path)
    disk.read_only()
    for words in COMMANDS:
        refused(capfd, "read-only", words[0], disk.path / "run", *words[1:])
    for name, options in RECIPES.items():
        common = ["--data", photos, *TINY, *options]
        refused(capfd, "read-only", name, *common, "--out", disk.path / "out", "--cache", tmp_path / "cache")
    refused(
        capfd, "read-only", "recipe", "--data", photos, *TINY, "--out", tmp_path / "out", "--cache", disk.path / "cache"
    )
    assert snapshot(disk.path) == before


def test_a_limit_on_the_size_of_files(exported: RunDir, tmp_path: Path) -> None:
    """What batch systems set; the kernel then refuses in the middle of a write."""
    shutil.copytree(exported.path, tmp_path / "run")
    before = snapshot(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "export.evaluate", str(tmp_path / "run"), "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)),
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1 and "ulimit -f" in done.stderr
    assert snapshot(tmp_path / "run") == before
