"""Lives of commands: real processes in one place, killed at a moment or left alone, and what files they leave."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from itertools import pairwise
from pathlib import Path

import h5py

from edgetl import rundir
from edgetl.rundir import open_run
from recipes.fine_tune import HISTORY

ROOT = Path(__file__).parent.parent.parent
TINY = ("--backbone", "MobileNet", "--width", "0.25", "--weights", "none", "--image-size", "32")
TIMES = ("seconds", "images_per_second")


@dataclass(frozen=True, order=True)
class Moment:
    """When to kill: so long after so many files of an undisturbed life."""

    files: int
    seconds: float


@dataclass
class World:
    """One place, so that paths are the same in all lives: world/run and world/cache."""

    here: Path
    left_over: int = 0
    """Temporary files that kills have left so far."""
    lives: int = 0

    @property
    def path(self) -> Path:
        return self.here / "world"

    @property
    def run(self) -> Path:
        return self.path / "run"

    def recipe(self, name: str, *options: str) -> tuple[str, ...]:
        where = {"--data": self.here / "photos", "--out": self.run, "--cache": self.path / "cache"}
        return (f"recipes.{name}", *(str(word) for pair in where.items() for word in pair), *TINY, *options)

    def export(self, name: str, *options: str) -> tuple[str, ...]:
        return (f"export.{name}", str(self.run), *options)

    def save(self, name: str) -> Path:
        return Path(shutil.copytree(self.path, self.here / name))

    def restore(self, saved: Path) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(saved, self.path)


@dataclass
class Stage:
    """A command, the files that it finds, and what an undisturbed life of it makes of them."""

    words: tuple[str, ...]
    before: Path
    whole: Path
    names: list[str] = field(default_factory=list)
    """Files in the order in which they got their names."""
    gaps: list[float] = field(default_factory=list)
    """Seconds from the start to the first, to the next..., from the last to the end."""


def undisturbed(world: World, before: Path, words: tuple[str, ...]) -> Stage:
    world.restore(before)
    stage = Stage(words, before, before)
    assert not live(world, stage)
    stage.whole = world.save(f"whole-{words[0]}")
    return stage


def live(world: World, stage: Stage, moment: Moment | None = None) -> bool:
    """Run the command until it ends or its moment has come; a stage without files learns them.

    Returns:
        Whether it was killed.
    """
    learning = not stage.gaps
    before, times, reached, due = named(world.path), [time.monotonic()], 0, None
    with begun(world, stage.words) as life:
        while life.process.poll() is None:
            if moment and due is None and reached >= moment.files:
                due = time.monotonic() + moment.seconds
            if due is not None and time.monotonic() >= due:
                life.signal(signal.SIGKILL)
                break
            found = named(world.path)
            for name in sorted((n for n in found if found[n] != before.get(n)), key=lambda name: found[name][1]):
                if learning:
                    stage.names.append(name)
                    times.append(time.monotonic())
                elif name in stage.names[reached:]:
                    reached = stage.names.index(name, reached) + 1
            before = found
            time.sleep(0.002)
        status = life.process.wait()
    assert status in (0, -signal.SIGKILL), f"{stage.words}: {status}, {life.said}"
    if learning:
        times.append(time.monotonic())
        stage.gaps = [after - before for before, after in pairwise(times)]
    return status != 0


@dataclass
class Life:
    """A process, and what it says on stderr."""

    process: "subprocess.Popen[bytes]"
    err: Path

    @property
    def said(self) -> str:
        return self.err.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it has started."""
        os.killpg(self.process.pid, number)


@contextmanager
def begun(world: World, words: tuple[str, ...]) -> Iterator[Life]:
    """A command at work; it does not outlive the block."""
    world.lives += 1
    err = world.here / f"stderr-{world.lives}"
    with err.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=subprocess.DEVNULL,
            stderr=file,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(world.here / "tmp")},
            start_new_session=True,
        )
    life = Life(process, err)
    try:
        yield life
    finally:
        if process.poll() is None:
            life.signal(signal.SIGKILL)
            process.wait()


def named(folder: Path) -> dict[str, tuple[int, int]]:
    """Files under their final names, with what tells that a name was given anew."""
    found = {}
    for path in folder.rglob("[!.]*"):
        try:
            stat = path.stat()
        except FileNotFoundError:  # while looking
            continue
        if path.is_file() and path.suffix != ".lock":
            found[str(path.relative_to(folder))] = (stat.st_ino, stat.st_mtime_ns)
    return found


def check_end(world: World, stage: Stage, case: str) -> None:
    """Nothing more and nothing else than after an undisturbed life."""
    ended, whole = ({path.relative_to(each) for path in files(each)} for each in (world.path, stage.whole))
    assert ended == whole, f"{case}: {ended ^ whole}"
    for name in ended:
        assert told(world.path / name) == told(stage.whole / name), f"{case}: {name}"
    open_run(world.run)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def told(path: Path) -> object:
    """The content of a file but for times, and hashes of what has them in it."""
    content = path.read_bytes()
    if path.name == rundir.MODEL:
        with zipfile.ZipFile(BytesIO(content)) as parts:  # array by array, so that a failure says which
            return parts.read("config.json"), weights(parts.read("model.weights.h5"))
    if path.name == rundir.MANIFEST:
        manifest = json.loads(content)
        del manifest["seal"]
        return {**manifest, "files": {name: hash for name, hash in manifest["files"].items() if name != HISTORY}}
    if path.name == HISTORY:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(StringIO(content.decode()))
        ]
    if path.suffix == ".html":
        return re.sub(rb"Made by edgetl \S+ on [\d-]+ [\d:]+ UTC", b"", content)
    return content


def weights(content: bytes) -> dict[str, tuple[str, bytes]]:
    found: dict[str, tuple[str, bytes]] = {}

    def take(name: str, each: object) -> None:
        if isinstance(each, h5py.Dataset):
            found[name] = (f"{each.dtype} {each.shape}", each[()].tobytes())

    with h5py.File(BytesIO(content)) as file:
        file.visititems(take)
    assert found
    return found
