"""The same seed on the same machine makes the same bytes.

A chain of commands, from photos to a bundle, runs in processes of its own with three seeds of Python's hashes, each
with a cache of its own. Every file that they leave is compared, byte by byte but for the times in it, see `timeless`.
"""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from photos import make_photo_folder
from test_commands import ROOT, TINY, snapshot

pytestmark = pytest.mark.slow

SEEDS = ("0", "1", "12345")
"""Of Python's hashes."""
CHAIN = [
    ["convert", "tiny/run", "--schemes", "float32", "float16", "dynamic_int8", "int8", "--calibration-images", "12"],
    ["evaluate", "tiny/run", "--robustness"],
    ["report", "tiny/run", "--maps", "2"],
    ["layers", "tiny/run", "--images", "8"],
    ["bundle", "tiny/run", "--photos", "3", "--no-web"],
    ["audit", "--data", "DATA", "--out", "audit"],
    ["recipe", "--data", "DATA", "--out", "run", *TINY, "--head", "mlp", "--epochs", "5"],
    ["fine-tune", "--data", "DATA", "--out", "tuned", *TINY, "--epochs", "1", "--thaw", "top", "--augment", "light"],
    ["distill", "--teacher", "run", "--out", "taught", "--student", *TINY[1:], "--epochs", "1", "--thaw", "top"],
    ["cross-validate", "--data", "DATA", "--out", "folds", *TINY, "--folds", "2", "--refit"],
    ["search", "--data", "DATA", "--out", "search", *TINY, "--trials", "2", "--processes", "1"],
]
SCRIPT = """
import json, sys
from pathlib import Path
from test_commands import run
from tiny_runs import tiny_run
tiny_run(Path("tiny"), "classification")
for words in json.loads(sys.argv[1]):
    assert run(*words, "--quiet") == 0, words
"""
DATABASE = "search/study.db"
"""Holds when trials ended, as Optuna's tools want it; edgetl reads nothing of it."""


def timeless(name: str, content: bytes) -> object:
    """What is left of a file without the times in it, which are all that may differ.

    These are: in JSON `seconds`, the seal over it, and the hash of a history in a manifest; the columns of seconds and
    of images per second in tables; the minute at which a page was made.
    """
    if name.endswith(".json"):
        return without_times(json.loads(content))
    if name.endswith(("history.csv", "trials.csv")):
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        return [{column: value for column, value in row.items() if column not in TIMES} for row in rows]
    if name.endswith("report.html"):
        return re.sub(rb"on \d{4}-\d\d-\d\d \d\d:\d\d UTC", b"", content)
    return content


TIMES = ("seconds", "images_per_second", "seal", "history.csv")


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def made(folder: Path, photos: Path, hash_seed: str) -> dict[str, bytes]:
    """Run the chain in a process, and read what it leaves; all do it in one place, which some of the files name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    chain = [[str(photos) if word == "DATA" else word for word in words] for words in CHAIN]
    environment = os.environ | {
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "EDGETL_CACHE": "cache",
    }
    subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(chain)], cwd=folder, env=environment, check=True)
    return snapshot(folder)


def test_the_same_seed_is_the_same_bytes(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    photos = make_photo_folder(tmp_path / "photos", {"cat": 12, "dog": 12}, size=(40, 32))
    first, *others = (made(tmp_path / "here", photos, seed) for seed in SEEDS)
    exact = set(first)
    for other in others:
        assert set(other) == set(first)
        exact -= {name for name in first if first[name] != other[name]}
        differ = [name for name in first if timeless(name, first[name]) != timeless(name, other[name])]
        assert set(differ) <= {DATABASE}, differ
    assert {name for name in first if name.endswith((".keras", ".tflite", ".npz", ".png"))} <= exact
    record_property(f"files of {len(SEEDS)} processes", f"{len(first)}, equal byte by byte {len(exact)}")
