"""OpenVINO reads the very file: float scores are the interpreter's, integer ones choose the same class."""

from pathlib import Path

import numpy as np
import pytest
from conftest import client

from edgetl.rundir import open_run
from export.device.interpreter import Model

pytestmark = pytest.mark.clients


def scores(path: Path, photos: np.ndarray) -> np.ndarray:
    """What OpenVINO makes of photos on the CPU, raw numbers of the output tensor, [n, classes]."""
    openvino = client("openvino")
    # In float32 like the file: by default OpenVINO computes in bfloat16 where the CPU can.
    model = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kind = model.input(0).get_element_type().to_dtype()
    return np.concatenate([model(photo[None].astype(kind))[0] for photo in photos])


def test_float_scores_are_the_interpreters(run: Path, photos: np.ndarray) -> None:
    path = open_run(run).export_path / "float32.tflite"
    # Its own kernels in another order: float32 rounding through some 50 layers. Found: 4e-6.
    np.testing.assert_allclose(scores(path, photos), Model(path).predict_batch(photos), rtol=0, atol=1e-4)


def test_integer_scores_choose_the_same_class(run: Path, photos: np.ndarray) -> None:
    path = open_run(run).export_path / "int8.tflite"
    found, expected = scores(path, photos), Model(path).predict_batch(photos)
    assert found.dtype == np.uint8 and len(np.unique(expected.argmax(1))) > 1
    # It computes in float between fake quantization: scores are some steps of 1/256 off (found: up to 11), and a photo
    # whose best two are nearer than both can move may change sides. Found: none of 64.
    best = np.sort(expected, axis=1)
    same = found.argmax(1) == expected.argmax(1)
    assert np.all(same | (best[:, -1] - best[:, -2] <= 0.1)) and same.mean() >= 0.95
