"""Features that are larger than what memory may hold are stored, and a head is fitted to them, block by block.

A process of its own makes a store of 102 MB and fits a linear head to it; its peak of resident memory is compared with
that before. The same with all features held in memory shows that the measure would tell.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from photos import make_photo_folder
from test_commands import ROOT

pytestmark = pytest.mark.slow

PHOTOS, WIDTH = 6_400, 4_000
STORE_MB = PHOTOS * WIDTH * 4 / 1e6
BLOCK_MB = 256 * WIDTH * 4 / 1e6
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from edgetl import data, features, rows
from edgetl.inputs import ImageInput
from edgetl.probe import fit_linear_probe

rows.HELD_BYTES = int(sys.argv[3])
width = int(sys.argv[4])
weights = np.random.default_rng(0).normal(0, 1, (8 * 8 * 3, width)).astype(np.float32)

def forward(pixels):
    return np.tanh(pixels.reshape(len(pixels), -1) / 255 @ weights).astype(np.float32)

def fitted(photos, cache):
    table = features.extract(
        data.load(str(photos)), ImageInput(8, 8), lambda: forward, key={}, cache=Path(cache), workers=2
    )
    labels, some = table.examples.labels, np.arange(0, len(table.rows), len(table.rows) // 64)
    few, true = table.rows[some], labels[some]
    probe = fit_linear_probe(table.rows, labels, few, true, task="classification", inverse_l2=(1e-4,))
    said = np.argmax(few.array() @ probe.kernel + probe.bias, 1)
    return len(table.rows), float((said == true).mean())

def peak():  # getrusage would tell that of the process which started this one, where it was larger
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6

fitted(Path(sys.argv[1]) / "few", sys.argv[2])  # what is loaded and built once
before = peak()
count, accuracy = fitted(Path(sys.argv[1]) / "many", sys.argv[2])
print(json.dumps([count, accuracy, peak() - before]))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few photos, and many under other names."""
    root = tmp_path_factory.mktemp("memory")
    few = make_photo_folder(root / "few", {"cat": 32, "dog": 32}, size=(8, 8), format="png")
    for label in ("cat", "dog"):
        (root / "many" / label).mkdir(parents=True)
        found = sorted((few / label).iterdir())
        for number in range(PHOTOS // 2):
            os.link(found[number % len(found)], root / "many" / label / f"{number:05}.png")
    return root


def growth(photos: Path, cache: Path, held_bytes: int) -> tuple[int, float, float]:
    """Rows, accuracy, and by how many MB the peak grew."""
    words = [sys.executable, "-c", SCRIPT, str(photos), str(cache), str(held_bytes), str(WIDTH)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    count, accuracy, megabytes = json.loads(done.stdout.splitlines()[-1])
    return count, accuracy, megabytes


def test_memory_does_not_grow_with_the_features(
    photos: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    count, accuracy, stored = growth(photos, tmp_path / "cache", 10_000_000)
    _, _, held = growth(photos, tmp_path / "cache", 1_000_000_000)
    assert count == PHOTOS and accuracy > 0.9
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.npz")) > STORE_MB * 1e6
    record_property(f"a store of {STORE_MB:.0f} MB and its head take", f"{stored:.0f} MB; held in memory {held:.0f} MB")
    assert held > STORE_MB
    # Some blocks at work, in float64 twice as large, and what is known of each photo.
    assert stored < 12 * BLOCK_MB < STORE_MB / 2
