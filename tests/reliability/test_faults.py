"""Damaged files, full and read-only disks, small memory, and clocks that lie.

Promised: what edgetl has stored is what it reads, or is made again, or is refused in one line with status 2; nothing
under its final name is half of anything; what failed for want of room goes on to the same result once there is room.

Every file that commands leave is found in their folders, and must be in a table here that says how it is protected.
Bits to flip and places to cut are drawn from a generator whose seed is the file's name and the number of the draw.
"""

import dataclasses
import fnmatch
import json
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from photos import make_photo_folder
from test_commands import TINY, log_as_before, run, snapshot
from test_recipe_fine_tune import interrupt_at_step
from tiny_runs import tiny_run

from edgetl import data, rundir
from edgetl.backbones import registry
from edgetl.config import checked, parse
from edgetl.cross_validation import FoldOutputs
from edgetl.errors import RunError
from edgetl.rundir import RunDir, read_json
from edgetl.search.outcome import Outcome
from edgetl.search.study import _opened
from recipes import choose_backbone, search
from recipes.fine_tune import CHECKPOINT
from recipes.searching.explore import stored

pytestmark = pytest.mark.slow
__all__ = ["log_as_before"]

FLIPS, CUTS = 12, 3
"""Of each stored file."""


def damages(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """Copies of a file with one bit flipped, and copies that are cut off."""
    for draw in range(FLIPS):
        place = random.Random(f"{name} flip {draw}").randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield f"{name}: flip {draw}, bit {place}", bytes(flipped)
    for draw in range(CUTS):
        size = random.Random(f"{name} cut {draw}").randrange(len(content)) if draw else 0
        yield f"{name}: cut {draw}, to {size} bytes", content[:size]


def outcome(capfd: pytest.CaptureFixture[str], name: str, *arguments: object) -> tuple[int, list[str]]:
    """Status of a command, and its lines on standard error."""
    capfd.readouterr()
    status = run(name, *arguments, "--quiet")
    err = capfd.readouterr().err
    assert "Traceback" not in err, err
    # TensorFlow was imported by tests, before its start-up lines could be silenced.
    return status, [line for line in err.splitlines() if not re.match(r"[EWI]\d{4} ", line)]


# --- stored files of a run and its export folder --------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A tiny run with all that export leaves in it; read only."""
    made = tiny_run(tmp_path_factory.mktemp("faults"), "classification")
    assert run("convert", made.path, "--schemes", "float32", "int8", "--calibration-images", "12", "--quiet") == 0
    assert run("evaluate", made.path, "--quiet") == 0
    assert run("benchmark", made.path, "--runs", "3", "--warmup", "1", "--quiet") == 0
    assert run("report", made.path, "--quiet") == 0
    return made


OPENED = (*rundir.RESULTS, rundir.MANIFEST)
"""Files that every command on a run checks; the manifest by its own seal."""
PROTECTED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(OPENED, ("evaluate", "RUN")),
    "export/float32.tflite": ("evaluate", "RUN"),
    "export/int8.tflite": ("benchmark", "RUN", "--runs", "1"),
    "export/float32.json": ("evaluate", "RUN"),
    "export/int8.json": ("bundle", "RUN"),
    "export/evaluation.json": ("report", "RUN"),
    "export/predictions.npz": ("report", "RUN"),
    "export/float32.latency.json": ("report", "RUN"),
    "export/int8.latency.json": ("report", "RUN"),
}
"""File -> a command that reads it."""
ENDS = ("report.json", "report.html", "MODEL_CARD.md")
"""Results that no command reads."""


def test_every_file_of_a_run_is_protected(exported: RunDir) -> None:
    found = set(snapshot(exported.path))
    assert set(PROTECTED) <= found
    assert found - set(PROTECTED) == set(ENDS), "files without a hash or a seal"


def test_a_damaged_file_of_a_run_is_refused(
    exported: RunDir,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    copy, count = tmp_path / "run", 0
    shutil.copytree(exported.path, copy)
    for name, words in PROTECTED.items():
        whole = (copy / name).read_bytes()
        for case, content in damages(name, whole):
            (copy / name).write_bytes(content)
            before = snapshot(copy)
            status, lines = outcome(capfd, *(str(copy) if word == "RUN" else word for word in words))
            assert (status, len(lines)) == (2, 1), (case, lines)
            assert snapshot(copy) == before, case
            count += 1
        (copy / name).write_bytes(whole)
    assert run("report", copy, "--quiet") == 0  # it was the damage that was refused
    record_property(f"damaged copies of {len(PROTECTED)} files of a run, all refused", count)


# --- what recipes keep for the next time ----------------------------------------------------------------------------


class House:
    """Commands on one folder of photos, with one cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.photos = make_photo_folder(root / "photos", {"cat": 12, "dog": 12}, size=(40, 32))

    def words(self, name: str, out: str) -> list[object]:
        """Arguments of a command that writes ROOT/<out>."""
        more = {
            "fine-tune": ["--epochs", "2", "--views", "2", "--thaw", "top"],
            "search": ["--trials", "2", "--processes", "1"],
            "cross-validate": ["--folds", "2"],
            "choose": ["--runs", "2"],
        }
        network = ["--backbones", *TINY[1:]] if name == "choose" else [] if name == "audit" else TINY
        options = ["--data", self.photos, "--cache", self.root / "cache", "--out", self.root / out]
        return [*options, *network, *more.get(name, [])]

    def run(self, name: str, out: str) -> None:
        assert run(name, *self.words(name, out), "--quiet") == 0, name


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """All that recipes leave, once; each test puts back what it damages."""
    made = House(tmp_path_factory.mktemp("house"))
    for name in ("audit", "fine-tune", "search", "cross-validate", "choose"):
        made.run(name, name)
    return made


KEPT = {
    "cache/features/*/*.npz": "checksums of the zip format",
    "cache/looks/*/*.npz": "checksums of the zip format",
    "cache/activations/*/*.f16": "a sha256 at its end",
    "cache/activations/*.lock": "empty",
    "audit/audit.json": "a seal",
    "audit/exclude.csv": "its sha256 in audit.json",
    "search/space.json": "a seal",
    "search/trials/*.json": "a seal",
    "search/study.db": "written anew from the trials",
    "cross-validate/fold*.npz": "checksums of the zip format",
    "choose/MobileNetV3Small.json": "a seal",
    "choose/MobileNetV3Small.npz": "checksums of the zip format",
    "choose/MobileNetV3Small.tflite": "its sha256 in the .npz",
    "*/config.json": "compared with the settings of the command",
}
"""What a later command reads, and how damage is noticed."""
UNREAD = (
    "audit/audit.html",
    "choose/*.latency.json",
    "choose/backbones.*",
    "cross-validate/folds.*",
    "cross-validate/predictions.npz",
    "search/search.*",
    "search/trials.csv",
)
"""Results that no command reads."""
RUNS = ("fine-tune", "search/best-*")
"""Finished runs: their manifests vouch for all of their files but the picture of the curves, which nothing reads."""


def test_every_file_of_recipes_is_protected(house: House) -> None:
    found = set(snapshot(house.root))
    for pattern in (*KEPT, *UNREAD, "photos/*"):
        there = set(fnmatch.filter(found, pattern))
        assert there, pattern
        found -= there
    for path in (path for pattern in RUNS for path in house.root.glob(pattern)):
        vouched = {*rundir.open_run(path).manifest.files, rundir.MANIFEST, "curves.png"}
        found -= {str((path / name).relative_to(house.root)) for name in vouched}
    assert not found, "files without a hash or a seal"


@contextmanager
def damaged(path: Path, content: bytes) -> Iterator[None]:
    """Put other content in a file for a while."""
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_damaged_caches_are_made_again(
    kind: str, house: House, capfd: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    paths = [path for pattern in list(KEPT)[:3] for path in house.root.glob(pattern)]
    assert len(paths) >= 3
    for path in paths:
        _case, content = next(each for each in damages(path.name, path.read_bytes()) if kind in each[0])
        path.write_bytes(content)
    capfd.readouterr()
    house.run("fine-tune", f"tuned-{kind}")
    house.run("audit", f"audit-{kind}")
    told = [line for line in capfd.readouterr().err.splitlines() if "is damaged and" in line]
    for folder in ("features", "looks", "activations"):  # those of a backbone that is not asked for stay damaged
        assert any(f"/{folder}/" in line for line in told), told
    model, listed = (house.root / f"{name}-{kind}" for name in ("tuned", "audit"))
    assert (model / rundir.MODEL).read_bytes() == (house.root / "fine-tune" / rundir.MODEL).read_bytes()
    assert (listed / "exclude.csv").read_bytes() == (house.root / "audit/exclude.csv").read_bytes()
    assert (listed / "audit.json").read_bytes() == (house.root / "audit/audit.json").read_bytes()
    record_property(f"files of caches damaged ({kind}) and made again", len(told))


def test_a_damaged_checkpoint_starts_anew(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 1)
        assert run("fine-tune", *house.words("fine-tune", "stopped"), "--quiet") == 130
    path = house.root / "stopped" / CHECKPOINT
    _, content = next(damages(path.name, path.read_bytes()))
    path.write_bytes(content)
    house.run("fine-tune", "stopped")
    whole = house.root / "fine-tune" / rundir.MODEL
    assert (house.root / "stopped" / rundir.MODEL).read_bytes() == whole.read_bytes()


def test_damaged_parts_of_a_search_are_done_again(
    house: House, record_property: Callable[[str, object], None], capfd: pytest.CaptureFixture[str]
) -> None:
    search, count = RunDir(house.root / "search"), 0
    trials = sorted((search.path / "trials").glob("*.json"))
    key = read_json(Outcome, trials[0]).splits_sha256
    for trial in trials:
        for case, content in damages(trial.name, trial.read_bytes()):
            with damaged(trial, content):
                assert set(stored(search, key)) == {0, 1} - {int(trial.stem)}, case
                count += 1
    for case, content in damages("space.json", (search.path / "space.json").read_bytes()):
        with damaged(search.path / "space.json", content):
            status, lines = outcome(capfd, "search", *house.words("search", "search"))
            assert (status, len(lines)) == (2, 1), (case, lines)
            count += 1
    before = snapshot(search.path)
    for path in (trials[1], search.path / "study.db"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    house.run("search", "search")
    after = snapshot(search.path)
    for name in ("best-0000/model.keras", "best-0000/splits.csv", "space.json"):
        assert after[name] == before[name]
    assert read_json(Outcome, trials[1]).seconds > 0
    assert sqlite3.connect(search.path / "study.db").execute("select count(*) from trials").fetchone() == (2,)
    record_property("damaged files of a search, done again or refused", count + 2)


def test_no_bit_of_the_database_matters(house: House, tmp_path: Path) -> None:
    """Optuna's tools read it, edgetl does not: a search goes on whatever is in it."""
    shared = SimpleNamespace(directions=["maximize"], objectives=("accuracy",))
    whole, path = (house.root / "search/study.db").read_bytes(), tmp_path / "study.db"
    for _, content in damages("study.db", whole):
        path.write_bytes(content)
        _opened(shared, path)  # type: ignore[arg-type]


def test_damaged_parts_of_other_recipes_are_made_again_or_refused(
    house: House, capfd: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    count = 0
    folds = house.root / "cross-validate/fold1.npz"
    known = FoldOutputs.from_bytes(folds.read_bytes())
    for case, content in damages(folds.name, folds.read_bytes()):
        try:
            found = FoldOutputs.from_bytes(content)
        except ValueError:
            found = None
        # A flipped date in a zip's header, say, changes nothing.
        same = found and (found.model, found.ids, found.splits_sha256) == (known.model, known.ids, known.splits_sha256)
        assert found is None or (same and np.array_equal(found.outputs, known.outputs)), case
        count += 1
    choice, row = RunDir(house.root / "choose"), registry.of_width("MobileNetV3Small", 1.0)
    sample = choose_backbone.reread  # what is kept is taken only for the same photos
    examples = data.load(str(house.photos))
    trial = sample(choice, row, examples)
    assert trial is not None
    for suffix in (".json", ".npz", ".tflite"):
        path = choice.path / f"{row.name}{suffix}"
        for case, content in damages(path.name, path.read_bytes()):
            with damaged(path, content):
                found_trial = sample(choice, row, examples)
                if found_trial is not None:
                    assert suffix == ".npz", case
                    assert found_trial.candidate == trial.candidate and found_trial.ids == trial.ids, case
                    assert np.array_equal(found_trial.said, trial.said), case
                count += 1
    for name in ("audit.json", "exclude.csv"):
        path = house.root / "audit" / name
        for case, content in damages(name, path.read_bytes()):
            with damaged(path, content):
                status, lines = outcome(capfd, "audit", *house.words("audit", "audit"))
                assert (status, len(lines)) == (2, 1), (case, lines)
                count += 1
    record_property("damaged files of other recipes, found or harmless", count)


def test_damaged_settings_are_other_settings(house: House, record_property: Callable[[str, object], None]) -> None:
    path, count = house.root / "search/config.json", 0
    config = parse(search.Config, [str(word) for word in house.words("search", "search")], prog="search")
    config = checked(config)
    free = {each.name for each in dataclasses.fields(config) if not each.metadata.get("affects_result", True)}
    whole = json.loads(path.read_bytes())

    def matters(stored: dict[str, object]) -> dict[str, object]:
        """None is what a setting is that is not there."""
        return {name: value for name, value in stored.items() if name not in free and value is not None}

    for case, content in damages("config.json", path.read_bytes()):
        with damaged(path, content):
            try:
                with rundir.writing(path.parent, "search", config):
                    assert matters(json.loads(content)) == matters(whole), case
            except RunError:
                count += 1
    record_property("damaged settings refused; the others differ where it does not matter", count)
