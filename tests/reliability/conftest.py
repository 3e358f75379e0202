"""The counts of these tests, which `docs/reliability.md` states, are printed at the end of a run; what some share."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lives import Stage, World, live, undisturbed
from photos import make_photo_folder

BOUND_SECONDS = 1800
"""For all of these tests together."""
_began: list[float] = []


def pytest_runtest_setup() -> None:
    """Fail what is left once the time is over, instead of taking a machine for hours."""
    _began[:] = _began or [time.monotonic()]
    if time.monotonic() - _began[0] > BOUND_SECONDS:
        pytest.fail(f"the reliability tests have {BOUND_SECONDS / 60:.0f} minutes, and these are over")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have counted with pytest's `record_property`, and what could not be shown here."""
    lines = [line for report in terminalreporter.getreports("passed") for line in _counts(report.user_properties)]
    skipped = terminalreporter.getreports("skipped")
    lines += [f"not shown here: {each.nodeid}: {each.longrepr[2]}" for each in skipped if "reliability" in each.nodeid]
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.write_line(line)


def _counts(properties: list[tuple[str, object]]) -> Iterator[str]:
    for name, value in properties:
        yield f"{name}: {value}"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    here = tmp_path_factory.mktemp("crashes")
    make_photo_folder(here / "photos", {"cat": 12, "dog": 12})
    (here / "tmp").mkdir()
    (here / "world").mkdir()
    return World(here)


@pytest.fixture(scope="session")
def empty(world: World) -> Path:
    return world.save("empty")


@pytest.fixture(scope="session")
def extraction(world: World, empty: Path) -> Stage:
    return undisturbed(world, empty, world.recipe("feature_extraction"))


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def evaluation(world: World, conversion: Stage) -> Stage:
    return undisturbed(world, conversion.whole, world.export("evaluate"))


@pytest.fixture(scope="session")
def report(world: World, evaluation: Stage) -> Stage:
    return undisturbed(world, evaluation.whole, world.export("report", "--maps", "0"))


@pytest.fixture(scope="session")
def tuning(world: World, empty: Path) -> Stage:
    return undisturbed(world, empty, world.recipe("fine_tune", "--epochs", "2"))
