"""What the tests with real clients share: one run on real photos, and what the interpreter says about 64 of them."""

import importlib
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgetl import data
from edgetl.rundir import open_run

ROOT = Path(__file__).parent.parent.parent
SCHEMES = ("float32", "float16", "dynamic_int8", "int8", "int8_io8")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on elpv, EfficientNetLite0 at 224 pixels, two classes. Read only: copy before you write.

    Holds export/<scheme>.tflite with its .json for every one of SCHEMES, and export/evaluation.json. The head is
    trained on frozen features, the rest is what users get: a minute on two cores. The environment variable EDGETL_RUN
    names a run to take instead; tests that need a scheme which that one lacks fail with the command that makes it.
    """
    if given := os.environ.get("EDGETL_RUN"):
        return open_run(given).path
    from export import convert, evaluate
    from recipes import feature_extraction

    path = tmp_path_factory.mktemp("runs") / "elpv"
    feature_extraction.main(feature_extraction.Config("elpv", path))
    convert.main(convert.Config(path, SCHEMES))
    evaluate.main(evaluate.Config(path))
    return path


@pytest.fixture(scope="session")
def photos(run: Path) -> np.ndarray:
    """The same 64 photos of the test split for every client, as training's pipeline prepares them.

    uint8 [64, 224, 224, 3], both classes about as often as they are there.
    """
    there = open_run(run)
    chosen = data.stratified_subset(there.splits().test, 64, seed=0)
    pixels = np.concatenate([batch.pixels for batch in data.decoded(chosen, there.inputs)])
    assert pixels.shape == (64, *there.inputs.shape)
    return pixels


@pytest.fixture(scope="session")
def old_python() -> Path:
    """Python 3.9 with tflite-runtime 2.14, NumPy 1, Pillow 8 and the Task Library: .venv-old, of requirements-old.lock.

    EDGETL_OLD_PYTHON names another. Where no Python 3.9 can be had, only `test_layering` looks at the syntax.
    """
    python = Path(os.environ.get("EDGETL_OLD_PYTHON", ROOT / ".venv-old" / "bin" / "python"))
    if python.is_file():
        return python
    uv = shutil.which("uv", path=f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}")
    if uv is None:
        pytest.fail(f"{python} is missing. Run these tests with: make test-clients")
    offline = {**os.environ, "PYENV_VERSION": "3.9"}  # pyenv's shims find nothing that is not selected
    found = subprocess.run([uv, "python", "find", "--no-python-downloads", "3.9"], env=offline, capture_output=True)
    if found.returncode:
        pytest.skip("no Python 3.9 on this machine: that device code runs there is not tested, only its syntax is")
    pytest.fail(f"{python} is missing, though there is a Python 3.9. Run these tests with: make test-clients")


def client(name: str) -> ModuleType:
    """Import a client; a missing one fails the test, it does not skip it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.fail(f"{error}: these tests need the clients. Run them with: make test-clients")
