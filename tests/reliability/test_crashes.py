"""Commands killed at 50 moments: nothing half-done passes for a result, and the same command again ends the same.

Each command is a process of its own and is killed with SIGKILL. An undisturbed life of it comes first: the moments are
spread over the files that it writes, and drawn within the time from one to the next. A command is killed up to six
times in a row, later and later, before it may end. After each kill every file has the content of before or of an
undisturbed life, or is a piece of it that says so; a command that follows works or refuses in one line.
"""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from itertools import pairwise
from pathlib import Path

import h5py
import pytest
import test_commands
from photos import make_photo_folder
from PIL import Image
from test_commands import log_as_before  # noqa: F401

from edgetl import checkpoints, rundir
from edgetl.rundir import RunDir, open_run
from recipes.fine_tune import CHECKPOINT, CURVES, HISTORY

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
SERIES = 6
"""Kills before a command may end."""
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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    here = tmp_path_factory.mktemp("crashes")
    make_photo_folder(here / "photos", {"cat": 12, "dog": 12})
    (here / "tmp").mkdir()
    (here / "world").mkdir()
    return World(here)


@pytest.fixture(scope="module")
def empty(world: World) -> Path:
    return world.save("empty")


@pytest.fixture(scope="module")
def extraction(world: World, empty: Path) -> Stage:
    return undisturbed(world, empty, world.recipe("feature_extraction"))


@pytest.fixture(scope="module")
def conversion(world: World, extraction: Stage) -> Stage:
    """Over artifacts of other calibration photos, which were evaluated and reported."""
    world.restore(extraction.whole)
    for words in (
        world.export("convert", "--schemes", "float32", "int8", "--calibration-images", "3"),
        world.export("evaluate"),
        world.export("report", "--maps", "0"),
    ):
        live(world, Stage(words, empty, empty))
    return undisturbed(world, world.save("reported"), world.export("convert", "--schemes", "float32", "int8"))


@pytest.fixture(scope="module")
def evaluation(world: World, conversion: Stage) -> Stage:
    return undisturbed(world, conversion.whole, world.export("evaluate"))


# --- lives ----------------------------------------------------------------------------------------------------------


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
    world.lives += 1
    with (world.here / f"stderr-{world.lives}").open("w+") as err:
        before, times, reached, due = named(world.path), [time.monotonic()], 0, None
        process = subprocess.Popen(
            [sys.executable, "-m", *stage.words],
            stdout=subprocess.DEVNULL,
            stderr=err,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(world.here / "tmp")},
            start_new_session=True,
        )
        while process.poll() is None:
            if moment and due is None and reached >= moment.files:
                due = time.monotonic() + moment.seconds
            if due is not None and time.monotonic() >= due:
                os.killpg(process.pid, signal.SIGKILL)
                break
            found = named(world.path)
            for name in sorted(
                (name for name in found if found[name] != before.get(name)), key=lambda name: found[name][1]
            ):
                if learning:
                    stage.names.append(name)
                    times.append(time.monotonic())
                elif name in stage.names[reached:]:
                    reached = stage.names.index(name, reached) + 1
            before = found
            time.sleep(0.002)
        status = process.wait()
        err.seek(0)
        assert status in (0, -signal.SIGKILL), f"{stage.words}: {status}, {err.read()}"
    if learning:
        times.append(time.monotonic())
        stage.gaps = [after - before for before, after in pairwise(times)]
    return status != 0


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


def moments(stage: Stage, count: int, rng: random.Random) -> list[Moment]:
    """Drawn from every gap between files in turn."""
    gaps = [index for _ in range(count) for index in rng.sample(range(len(stage.gaps)), len(stage.gaps))]
    return [Moment(index, rng.uniform(0, stage.gaps[index])) for index in gaps[:count]]


def kill_and_go_on(
    world: World, stage: Stage, kills: int, seed: int, follow: Callable[[str], None]
) -> dict[str, int | float]:
    """Kill so many lives, and let the command end between them.

    Returns:
        What was counted.
    """
    rng = random.Random(seed)
    left, ends, killed, before = moments(stage, kills, rng), 0, 0, world.left_over
    while left:
        world.restore(stage.before)
        series, left = sorted(left[:SERIES]), left[SERIES:]
        case = f"{stage.words[0]}, seed {seed}, end {ends}, {series}"
        assert ends < 2 * kills, case
        alive = True
        while series and alive:
            alive = live(world, stage, series[0])
            if alive:
                killed += 1
                moment = series.pop(0)
                check_files(world, stage, f"{case}, killed at {moment}")
                follow(f"{case}, killed at {moment}")
        if alive:
            assert not live(world, stage), case
        check_end(world, stage, case)
        ends += 1
        # It ended before its moment came: once more from the beginning, a little earlier.
        left += [Moment(each.files, each.seconds * rng.uniform(0.2, 0.8)) for each in series]
    return {"kills": killed, "ends like an undisturbed life": ends, "half-written files": world.left_over - before}


# --- what is found after a kill -------------------------------------------------------------------------------------


def check_files(world: World, stage: Stage, case: str) -> None:
    """Every file under its final name is of before, of an undisturbed life, or a piece of it that can be used."""
    for path in files(world.path):
        name = path.relative_to(world.path)
        if path.name.startswith("."):
            assert path.name == ".lock" or rundir._TEMPORARY.fullmatch(path.name), f"{case}: {name}"
            world.left_over += path.name != ".lock"
            continue
        known = [told(folder / name) for folder in (stage.before, stage.whole) if (folder / name).is_file()]
        if told(path) not in known:
            assert name.name in PIECES and PIECES[name.name](path, stage.whole / name), f"{case}: {name}"
    if RunDir(world.run).finished:
        open_run(world.run)


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
    """The content of a file but for times, and hashes of what has times in it."""
    content = path.read_bytes()
    if path.name == rundir.MODEL:
        with zipfile.ZipFile(BytesIO(content)) as parts:
            assert parts.testzip() is None, path
            return parts.read("config.json"), weights(parts.read("model.weights.h5"))
    if path.name == rundir.MANIFEST:
        manifest = json.loads(content)
        return {**manifest, "files": {n: h for n, h in manifest["files"].items() if n not in (rundir.MODEL, HISTORY)}}
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


def beginning(path: Path, whole: Path) -> bool:
    rows, all_rows = told(path), told(whole)
    assert isinstance(rows, list) and isinstance(all_rows, list)
    return 0 < len(rows) < len(all_rows) and rows == all_rows[: len(rows)]


def picture(path: Path, whole: Path) -> bool:
    with Image.open(path) as image, Image.open(whole) as last:
        image.load()
        return image.size == last.size


PIECES: dict[str, Callable[[Path, Path], bool]] = {
    HISTORY: beginning,
    CURVES: picture,
    CHECKPOINT: lambda path, _: checkpoints.load(path) is not None,
}


def refuses_or_works(
    world: World, name: str, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> Callable[[str], None]:
    """The command that follows; one that would work long is not begun."""

    def follow(case: str) -> None:
        if name == "convert" and RunDir(world.run).finished:
            return
        capsys.readouterr()
        status = test_commands.run(name, world.run, *options, "--quiet")
        err = capsys.readouterr().err
        assert (status == 0 and not err) or (status == 2 and err.count("\n") == 1 and "Traceback" not in err), (
            f"{case}: {status} {err}"
        )

    return follow


def tell(record_property: Callable[[str, object], None], what: str, counts: dict[str, int | float]) -> None:
    for name, count in counts.items():
        record_property(f"killed {what}: {name}", count)


# --- the commands ---------------------------------------------------------------------------------------------------


def test_feature_extraction(
    world: World,
    extraction: Stage,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    follow = refuses_or_works(world, "convert", (), capsys)
    counts = kill_and_go_on(world, extraction, 12, 1, follow)
    tell(record_property, "feature_extraction", counts)


def test_fine_tune(
    world: World, empty: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    stage = undisturbed(world, empty, world.recipe("fine_tune", "--epochs", "2"))
    follow = refuses_or_works(world, "convert", (), capsys)
    counts = kill_and_go_on(world, stage, 12, 2, follow)
    tell(record_property, "fine_tune", counts)


def test_convert(
    world: World,
    conversion: Stage,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    follow = refuses_or_works(world, "report", ("--maps", "0"), capsys)
    counts = kill_and_go_on(world, conversion, 10, 3, follow)
    tell(record_property, "convert", counts)


def test_evaluate(
    world: World,
    evaluation: Stage,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    follow = refuses_or_works(world, "report", ("--maps", "0"), capsys)
    counts = kill_and_go_on(world, evaluation, 8, 4, follow)
    tell(record_property, "evaluate", counts)


def test_report(world: World, evaluation: Stage, record_property: Callable[[str, object], None]) -> None:
    stage = undisturbed(world, evaluation.whole, world.export("report", "--maps", "0"))
    counts = kill_and_go_on(world, stage, 8, 5, lambda case: None)
    tell(record_property, "report", counts)
