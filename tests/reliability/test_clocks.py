"""Clocks that lie: file times of 1970 or of the next century, and a clock that jumps while a command runs.

Times of files are compared and never trusted: they name what was computed, and say which entry of a cache went unused
for longest. Durations are told by clocks that nobody can set.
"""

import ast
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from photos import make_photo, make_photo_folder
from PIL import Image
from test_commands import ROOT, TINY, log_as_before, run
from tiny_runs import tiny_run

from edgetl import activations, data, features, history, rundir
from edgetl.inputs import ImageInput
from export.artifacts import find_artifacts
from export.benchmark import latency_of

pytestmark = pytest.mark.slow
__all__ = ["log_as_before"]

SPEC = ImageInput(8, 8)
TIMES = {"1970": 0, "before 1970": -(10**15), "2100": 4_102_444_800 * 10**9}


def mean_colour(pixels: np.ndarray) -> np.ndarray:
    return pixels.mean(axis=(1, 2)).astype(np.float32)


@pytest.mark.parametrize("when", TIMES)
def test_photos_of_any_time_are_computed_once_and_again_when_they_change(when: str, tmp_path: Path) -> None:
    photos = make_photo_folder(tmp_path / "photos", size=(8, 8))
    made: list[int] = []

    def extracted() -> np.ndarray:
        for path in photos.rglob("*.jpg"):
            if path.stat().st_mtime_ns != TIMES[when]:
                os.utime(path, ns=(TIMES[when], TIMES[when]))

        def forward() -> features.Forward:
            made.append(1)
            return mean_colour

        return features.extract(data.load(str(photos)), SPEC, forward, key={}, cache=tmp_path / "cache").rows.array()

    first = extracted()
    np.testing.assert_array_equal(extracted(), first)
    assert len(made) == 1
    Image.fromarray(make_photo(7, 7, (8, 8))).save(photos / "cat/0000.jpg")
    assert not np.array_equal(extracted()[0], first[0])  # the time is set back: the time of change is not
    assert len(made) == 2


@pytest.mark.parametrize("when", TIMES)
def test_entries_of_any_time_make_room(when: str, tmp_path: Path) -> None:
    photos = data.load(str(make_photo_folder(tmp_path / "photos", size=(8, 8))))
    shapes = ((3,),)
    size = activations.size_bytes(len(photos), 1, shapes)

    def stored(name: str) -> Path:
        settings = {"shapes": shapes, "preset": "none", "views": 1, "seed": 0, "key": {"name": name}}
        with activations.store(
            photos,
            SPEC,
            lambda: mean_colour,
            cache=tmp_path,
            budget_bytes=2 * size,
            **settings,  # type: ignore[arg-type]
        ) as made:
            return made._layout.folder

    first, second = stored("first"), stored("second")
    os.utime(first.parent / f"{first.name}.lock", ns=(TIMES[when], TIMES[when]))
    third = stored("third")
    gone = second if when == "2100" else first  # by the times that there are
    assert {path for path in (first, second, third) if path.exists()} == {first, second, third} - {gone}
    assert stored(gone.name) and stored("first").exists()  # what went is made again


@pytest.mark.parametrize("step", [-3600, 86_400], ids=["back", "forward"])
def test_a_clock_that_jumps_changes_nothing(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_photo_folder(tmp_path / "photos", size=(40, 32))
    made = tiny_run(tmp_path / "tiny", "classification")
    options = ["--data", photos, "--cache", tmp_path / "cache", *TINY, "--epochs", "1", "--views", "1", "--thaw", "top"]
    begin, ticks = time.time(), itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: begin + step * next(ticks))
        patch.setattr(time, "time_ns", lambda: int((begin + step * next(ticks)) * 1e9))
        assert run("fine-tune", *options, "--out", tmp_path / "run", "--quiet") == 0
        assert run("convert", made.path, "--schemes", "float32", "--quiet") == 0
        assert run("evaluate", made.path, "--quiet") == 0
        assert run("benchmark", made.path, "--runs", "3", "--warmup", "1", "--quiet") == 0
        assert next(ticks) > 1, "nobody looked at the clock"
    assert run("fine-tune", *options, "--out", tmp_path / "again", "--quiet") == 0
    model, again = ((tmp_path / name / rundir.MODEL).read_bytes() for name in ("run", "again"))
    assert model == again
    for row in history.from_csv((tmp_path / "run/history.csv").read_text(), "history.csv"):
        assert 0 <= row.seconds < 600
    latency = latency_of(made, *find_artifacts(made))
    assert latency is not None and all(0 < each < 1000 for each in latency.runs_ms)


def test_a_clock_that_was_never_set_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = make_photo_folder(tmp_path / "photos", size=(40, 32))
    monkeypatch.setattr(time, "localtime", lambda *_: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))
    assert run("recipe", "--data", photos, "--out", tmp_path / "run", *TINY) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "clock says 1970" in line and "Set it" in line
    assert not (tmp_path / "run").exists()


def test_no_duration_is_told_by_the_clock_on_the_wall(record_property: Callable[[str, object], None]) -> None:
    """Of the time of day there are only the dates of a page, and of reports of devices."""
    dates = {"export/report.py", "export/android.py", "export/device/outcome.py"}
    paths = [path for package in ("edgetl", "recipes", "export") for path in (ROOT / package).rglob("*.py")]
    for path in paths:
        called = {
            ast.unparse(each.func) for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.Call)
        }
        asked = {name for name in called if name in ("time.time", "time.time_ns") or name.endswith((".now", ".today"))}
        assert not asked or str(path.relative_to(ROOT)) in dates, (path, asked)
    record_property("modules in which no duration is a difference of dates", len(paths))
