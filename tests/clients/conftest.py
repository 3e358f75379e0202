"""What the tests with real clients share: one run on real photos, and what the interpreter says about 64 of them."""

import importlib
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgetl import data
from edgetl.rundir import open_run

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


def client(name: str) -> ModuleType:
    """Import a client; a missing one fails the test, it does not skip it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.fail(f"{error}: these tests need the clients. Run them with: make test-clients")
