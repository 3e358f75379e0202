"""The Task Library, which MediaPipe Tasks replaced, reads the same metadata."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgetl.rundir import open_run
from export.device.interpreter import Model

pytestmark = pytest.mark.clients

CLASSIFY = """
import ctypes, json, sys
import libusb_package
ctypes.CDLL(str(libusb_package.get_library_path()), ctypes.RTLD_GLOBAL)
import numpy as np
from tflite_support.task import vision
classifier = vision.ImageClassifier.create_from_file(sys.argv[1])
for photo in np.load(sys.argv[2]):
    (head,) = classifier.classify(vision.TensorImage.create_from_array(photo)).classifications
    print(json.dumps({each.category_name: each.score for each in sorted(head.categories, key=lambda each: each.index)}))
"""


@pytest.mark.parametrize(
    ("scheme", "within"),
    [("int8", 0.0), ("float32", 1e-5), ("float16", 1e-5)],  # as in test_mediapipe. Found: 6e-8
)
def test_scores_and_names_are_those_of_the_interpreter(
    run: Path, photos: np.ndarray, old_python: Path, tmp_path: Path, scheme: str, within: float
) -> None:
    path = open_run(run).export_path / f"{scheme}.tflite"
    np.save(tmp_path / "photos.npy", photos)
    done = subprocess.run(
        [old_python, "-c", CLASSIFY, path, tmp_path / "photos.npy"], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(photos) and all(tuple(each) == open_run(run).output_names for each in found)
    expected = Model(path).predict_batch(photos)
    np.testing.assert_allclose([list(each.values()) for each in found], expected, rtol=0, atol=within)
