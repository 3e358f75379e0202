"""The device program on what an old board has: Python 3.9, tflite-runtime 2.14, NumPy 1, Pillow 8."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgetl.rundir import open_run
from export import bundle
from export.device import errors
from export.device.contents import PROGRAM
from export.device.interpreter import Kernels, Model

pytestmark = pytest.mark.clients

# The folder of device code is importable as it stands: it imports nothing from outside.
PREDICT = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from device.interpreter import Model
model = Model(sys.argv[2], kernels=sys.argv[3])
assert sys.version_info[:2] == (3, 9) and np.__version__ < "2" and model.runtime == "tflite-runtime 2.14.0"
np.save(sys.argv[5], model.predict_batch(np.load(sys.argv[4])))
"""


@pytest.mark.parametrize(
    ("scheme", "kernels", "within"),
    [
        ("float32", "xnnpack", 1e-5),  # kernels of another year: sums in another order. Found: 6e-8
        ("float16", "xnnpack", 1e-5),
        ("float32", "builtin", 1e-5),
        ("int8", "builtin", 0.0),  # integer arithmetic, which has not changed
        ("int8", "reference", 0.0),
    ],
)
def test_scores_are_the_hosts(
    run: Path, photos: np.ndarray, old_python: Path, tmp_path: Path, scheme: str, kernels: Kernels, within: float
) -> None:
    model = open_run(run).export_path / f"{scheme}.tflite"
    few = photos[:: 16 if kernels == "reference" else 4]  # half a second each
    np.save(tmp_path / "photos.npy", few)
    folder = Path(errors.__file__).parent.parent
    places = [folder, model, kernels, tmp_path / "photos.npy", tmp_path / "scores.npy"]
    subprocess.run([old_python, "-c", PREDICT, *places], check=True)
    expected = Model(model, kernels=kernels).predict_batch(few)
    assert np.ptp(expected) > 0.5  # photos of both classes
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, rtol=0, atol=within)


@pytest.fixture(scope="module", params=["int8", "float32"])
def bundled(run: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A bundle, without the page for browsers."""
    out = tmp_path_factory.mktemp("bundles") / request.param
    return bundle.main(bundle.Config(run, request.param, out, photos=16, web=False)).path


def test_the_device_program_does_all_that_it_can(bundled: Path, old_python: Path, tmp_path: Path) -> None:
    here = tmp_path / "bundle"
    shutil.copytree(bundled, here)
    photos = sorted((here / "sample" / "photos").iterdir())
    for arguments in (["info"], ["predict", *photos[:2]], ["check"], ["benchmark", "--runs", "5", "--warmup", "1"]):
        done = subprocess.run(
            [old_python, here / PROGRAM, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "error::DeprecationWarning"},
        )
        assert not done.returncode, f"{arguments}: {done.stdout}{done.stderr}"
        report = json.loads((here / "reports" / f"{arguments[0]}.json").read_text())
        assert report["command"] == arguments[0] and "tflite-runtime" in json.dumps(report)
    report = json.loads((here / "reports" / "check.json").read_text())
    assert report["same_pixels"] == len(photos) == 16  # Pillow 8 prepares the very pixels of the host's
