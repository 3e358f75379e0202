"""Pixels that devices prepare beside training's, on every test photo, and what the model makes of the difference."""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl import data
from edgetl.rundir import open_run
from export import device_app
from export.device.interpreter import Model
from export.device.preprocess import fit

pytestmark = pytest.mark.clients

MEAN_LEVELS = 0.5
"""Of 255: what pixels may differ by on average, photo by photo."""
MAX_LEVELS = 16
"""What a single one may. Scaled decoding of JPEG differs from a full decode by up to 13 at the worst content known."""
AGREEMENT = 0.995
"""Share of photos that must keep their class."""
READ = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from edgetl_device.preprocess import read
inputs, photos = json.loads(sys.argv[2]), sorted(Path(sys.argv[3]).iterdir())
np.save(sys.argv[4], np.stack([read(photo, inputs) for photo in photos]))
"""


@pytest.fixture(scope="module")
def photos_as_taken(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every test photo as a camera would deliver it: a JPEG of 1200 x 900 pixels, far larger than the frame."""
    folder = tmp_path_factory.mktemp("taken")
    for number, example in enumerate(open_run(run).splits().test):
        with Image.open(example.path) as photo:
            large = photo.convert("RGB").resize((1200, 900), Image.Resampling.BICUBIC)
        large.save(folder / f"{number:04}.jpg", quality=90)
    return folder


def compare(run: Path, folder: Path, found: np.ndarray, schemes: tuple[str, ...] = ("int8", "float32")) -> None:
    """Fail where pixels, or what models say of them, differ by more than is promised."""
    inputs = open_run(run).inputs
    expected = np.stack([data.read_image(path, inputs) for path in sorted(folder.iterdir())])
    assert len(found) == len(expected) >= 600
    levels = np.abs(found.astype(np.int16) - expected)
    means = levels.mean(axis=(1, 2, 3))
    print(f"levels: mean {means.mean():.3f}, worst photo {means.max():.3f}, worst pixel {levels.max()}", end="")
    assert means.max() <= MEAN_LEVELS
    assert levels.max() <= MAX_LEVELS
    for scheme in schemes:
        model = Model(run / "export" / f"{scheme}.tflite")
        same = model.predict_batch(found).argmax(1) == model.predict_batch(expected).argmax(1)
        print(f"; {scheme}: same class {100 * same.mean():.2f} %", end="")
        assert same.mean() >= AGREEMENT
    print()


def test_frames_of_a_camera(run: Path, photos_as_taken: Path) -> None:
    inputs = asdict(open_run(run).inputs)
    frames = (np.asarray(Image.open(path).convert("RGB")) for path in sorted(photos_as_taken.iterdir()))
    # Training reads such a JPEG at a fraction of its size, and a frame is whole: 0.17 of a level on average, 2 at most.
    # That is enough to carry 1 % of the photos over the edge of an int8 model with two classes; float32 keeps 99.7 %.
    compare(run, photos_as_taken, np.stack([fit(frame, inputs) for frame in frames]), ("float32",))


def test_frames_are_the_very_pixels_of_lossless_photos(run: Path) -> None:
    there = open_run(run)
    test = there.splits().test
    assert len(test) >= 600
    for batch in data.decoded(test, there.inputs):
        for index, pixels in zip(batch.indices, batch.pixels, strict=True):
            with Image.open(test.items[index].path) as photo:
                frame = np.asarray(photo.convert("RGB"))
            np.testing.assert_array_equal(fit(frame, asdict(there.inputs)), pixels)


def test_photos_read_with_an_old_pillow(run: Path, photos_as_taken: Path, old_python: Path, tmp_path: Path) -> None:
    (tmp_path / "program.pyz").write_bytes(device_app.build())
    inputs = json.dumps(asdict(open_run(run).inputs))
    words = [str(tmp_path / "program.pyz"), inputs, str(photos_as_taken), str(tmp_path / "pixels.npy")]
    subprocess.run([str(old_python), "-c", READ, *words], check=True)
    compare(run, photos_as_taken, np.load(tmp_path / "pixels.npy"))
