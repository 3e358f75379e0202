"""Two processes at once: on one run directory the second refuses and the first is not disturbed; a cache is shared.

The first is stopped while it holds what both want, so that nothing depends on which of them is faster, and goes on when
the second has been seen to refuse or to wait.
"""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lives import Life, Stage, World, begun, check_end, files, told

from edgetl import rundir
from edgetl.rundir import open_run

pytestmark = pytest.mark.slow
REFUSED = ": another process is writing this run. Wait for it or use another run directory\n"


def stop(life: Life, holds: Callable[[], bool]) -> None:
    """Stop a process as soon as it holds what both want."""
    deadline = time.monotonic() + 200
    while not holds():
        assert life.process.poll() is None and time.monotonic() < deadline, life.said
        time.sleep(0.002)
    life.signal(signal.SIGSTOP)
    assert life.process.poll() is None


def goes_on(life: Life) -> None:
    life.signal(signal.SIGCONT)
    assert life.process.wait(300) == 0, life.said


def refused(world: World, words: tuple[str, ...], where: Path) -> float:
    """Run a second command; it would never end if it waited for the first.

    Returns:
        Seconds until it refused.
    """
    started = time.monotonic()
    with begun(world, (*words, "--quiet")) as second:
        assert second.process.wait(60) == 2, (words, second.said)
    assert second.said == f"python -m {words[0]}: {where}{REFUSED}"
    return time.monotonic() - started


@pytest.mark.parametrize("recipe", ["extraction", "tuning"])
def test_a_second_recipe_is_refused_and_the_first_ends_undisturbed(
    recipe: str, world: World, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    stage: Stage = request.getfixturevalue(recipe)
    world.restore(stage.before)
    with begun(world, stage.words) as first:
        stop(first, (world.run / rundir.CONFIG).is_file)
        seconds = refused(world, stage.words, world.run)
        goes_on(first)
    check_end(world, stage, recipe)
    record_property(f"second {stage.words[0]} refused after, seconds", round(seconds, 1))


@pytest.mark.parametrize("command", ["conversion", "evaluation"])
def test_no_command_writes_a_run_that_another_one_is_writing(
    command: str,
    world: World,
    extraction: Stage,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    stage: Stage = request.getfixturevalue(command)
    world.restore(stage.before)
    others = [world.export(name) for name in ("convert", "optimize", "evaluate", "benchmark", "layers", "report")]
    with begun(world, stage.words) as first:
        stop(first, lambda: "start TensorFlow" in first.said)
        seconds = [refused(world, words, world.run) for words in (*others, extraction.words)]
        goes_on(first)
    check_end(world, stage, command)
    record_property(f"commands refused beside {stage.words[0]}", len(seconds))
    record_property(f"commands refused beside {stage.words[0]}, seconds at most", round(max(seconds), 1))


def test_two_trainings_share_one_empty_cache(world: World, tuning: Stage) -> None:
    """The second takes the features of the first, and waits for its activations."""
    world.restore(tuning.before)
    activations, other = world.path / "cache" / "activations", world.path / "other"
    words = tuple(str(other) if word == str(world.run) else word for word in tuning.words)
    with begun(world, tuning.words) as first:
        stop(first, lambda: bool(list(activations.glob("*/.*.f16.*"))))
        with begun(world, words) as second:
            deadline = time.monotonic() + 200
            while "another process is computing them; waiting for it" not in second.said:
                assert second.process.poll() is None and time.monotonic() < deadline, second.said
                time.sleep(0.02)
            goes_on(first)
            assert second.process.wait(300) == 0, second.said
    open_run(other)
    for path in files(other):
        if path.name not in (rundir.CONFIG, rundir.MANIFEST):  # the one names the directory, the other has its hash
            assert told(path) == told(tuning.whole / "run" / path.name), path
    assert {path.name for path in files(other)} == {path.name for path in files(world.run)}
    shutil.rmtree(other)
    check_end(world, tuning, "the first")
