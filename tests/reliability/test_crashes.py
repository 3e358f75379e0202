"""Commands killed at 50 moments: nothing half-done passes for a result, and the same command again ends the same.

Each command is a process of its own and is killed with SIGKILL. An undisturbed life of it comes first: the moments are
spread over the files that it writes, and drawn within the time from one to the next. A command is killed up to six
times in a row, later and later, before it may end. After each kill every file has the content of before or of an
undisturbed life, or is a piece of it that says so; a command that follows works or refuses in one line.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import test_commands
from lives import Moment, Stage, World, check_end, files, live, told
from PIL import Image
from test_commands import log_as_before  # noqa: F401

from edgetl import checkpoints, rundir
from edgetl.rundir import RunDir, open_run
from recipes.fine_tune import CHECKPOINT, CURVES, HISTORY

pytestmark = pytest.mark.slow
SERIES = 6
"""Kills before a command may end."""


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
    """The command that follows, on a copy; one that would work long is not begun."""

    def follow(case: str) -> None:
        if name == "convert" and RunDir(world.run).finished:
            return
        copy = world.here / "copy" / world.run.name
        if world.run.exists():
            shutil.copytree(world.run, copy)
        capsys.readouterr()
        status = test_commands.run(name, copy, *options, "--quiet")
        shutil.rmtree(copy, ignore_errors=True)
        err = capsys.readouterr().err
        assert (status == 0 and not err) or (status == 2 and err.count("\n") == 1 and "Traceback" not in err), (
            f"{case}: {status} {err}"
        )

    return follow


REPORT = ("report", "--maps", "0")


@pytest.mark.parametrize(
    ("stage", "kills", "seed", "following"),
    [
        ("extraction", 12, 1, ("convert",)),
        ("tuning", 12, 2, ("convert",)),
        ("conversion", 10, 3, REPORT),
        ("evaluation", 8, 4, REPORT),
        ("report", 8, 5, ()),
    ],
)
def test_killed_commands_go_on_to_the_same_end(
    stage: str,
    kills: int,
    seed: int,
    following: tuple[str, ...],
    world: World,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    """Fifty kills in all; a session fixture names what is killed, `following` the command that comes after it."""
    life = request.getfixturevalue(stage)
    follow = refuses_or_works(world, following[0], following[1:], capsys) if following else lambda case: None
    for name, count in kill_and_go_on(world, life, kills, seed, follow).items():
        record_property(f"killed {stage}: {name}", count)
