"""MediaPipe Tasks ImageClassifier reads the very file and gives the scores that XNNPACK gives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny_artifacts
from conftest import client
from tiny_tflite import SIDE, mean

from edgetl.inputs import ImageInput
from edgetl.metrics import said_labels
from edgetl.outputs import OutputSpec
from edgetl.rundir import open_run
from export.device.interpreter import Model
from export.metadata import Description, attach

pytestmark = pytest.mark.clients

Classify = Callable[[np.ndarray], dict[str, float]]


@contextmanager
def classifier(model: Path) -> Iterator[Classify]:
    """Open a model; what comes back scores one photo, uint8 [h, w, 3], by class name, in the order of the outputs."""
    mediapipe, tasks = client("mediapipe"), client("mediapipe.tasks.python")
    options = tasks.vision.ImageClassifierOptions(base_options=tasks.BaseOptions(model_asset_path=str(model)))
    with tasks.vision.ImageClassifier.create_from_options(options) as opened:

        def classify(photo: np.ndarray) -> dict[str, float]:
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(photo))
            (head,) = opened.classify(image).classifications
            return {each.category_name: each.score for each in sorted(head.categories, key=lambda each: each.index)}

        yield classify


@pytest.mark.parametrize(
    ("scheme", "within"),
    [
        ("int8", 0.0),  # integers: there is nothing to round differently
        # The wheel brings its own XNNPACK: other kernels may sum in another order.
        ("float32", 1e-5),
        ("float16", 1e-5),
        ("dynamic_int8", 1e-5),
    ],
)
def test_scores_and_names_are_those_of_the_interpreter(
    run: Path, photos: np.ndarray, scheme: str, within: float
) -> None:
    path = open_run(run).export_path / f"{scheme}.tflite"
    model = Model(path)
    assert model.kernels == "xnnpack" and photos.shape[1:] == model.input.shape[1:]
    with classifier(path) as classify:
        found = [classify(photo) for photo in photos]
    assert all(tuple(each) == open_run(run).output_names for each in found)
    expected = model.predict_batch(photos)
    assert len(np.unique(expected.argmax(1))) > 1  # photos that the model tells apart
    np.testing.assert_allclose([list(each.values()) for each in found], expected, rtol=0, atol=within)


def tiny(folder: Path, io: str) -> Path:
    """A model whose three scores are the means of the channels, from 0 to 1."""
    about = Description(
        "mean", "means", OutputSpec("classification", ("red", "green", "blue")), ImageInput(SIDE, SIDE), io
    )
    path = folder / f"{io}.tflite"
    path.write_bytes(attach(mean(io, scale=1 / 256, zero_point=-128 if io == "int8" else 0), about))
    return path


@pytest.mark.parametrize("scheme", ["int8", "float32"])
def test_labels_have_the_scores_of_the_interpreter_each_for_itself(scheme: str, tmp_path: Path) -> None:
    """What the snippets for phones apply thresholds to."""
    artifact, path = tiny_artifacts.tiny_artifact(tmp_path, scheme, task="multi_label")
    photos = tiny_artifacts.pixels(20)
    expected = Model(path).predict_batch(photos)
    with classifier(path) as classify:
        found = [classify(photo) for photo in photos]
    assert all(tuple(each) == artifact.outputs.names for each in found)
    scores = np.array([list(each.values()) for each in found], np.float32)
    # float32: the wheel's XNNPACK may sum in another order.
    np.testing.assert_allclose(scores, expected, rtol=0, atol=0.0 if scheme == "int8" else 1e-5)
    said = scores >= np.float32(artifact.outputs.thresholds)
    np.testing.assert_array_equal(said, said_labels(expected, artifact.outputs))
    assert len(np.unique(said.sum(axis=1))) > 1, "not one label per photo"


def test_it_refuses_int8_input_for_which_no_snippet_is_written(tmp_path: Path) -> None:
    with classifier(tiny(tmp_path, "uint8")) as classify:
        assert len(classify(np.zeros((SIDE, SIDE, 3), np.uint8))) == 3
    with pytest.raises((RuntimeError, ValueError), match="INT8"), classifier(tiny(tmp_path, "int8")):
        pass


def test_it_stretches_and_skips_pixels_which_is_why_snippets_fit_photos_in_themselves(tmp_path: Path) -> None:
    wide = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
    wide[:, :SIDE, 0] = 255
    large = np.zeros((8 * SIDE, 8 * SIDE, 3), np.uint8)
    large[::8, ::8, 1] = 255
    with classifier(tiny(tmp_path, "uint8")) as classify:
        # A third of a stretched frame is red; it would be nothing of a cut one, a ninth of a padded one.
        assert classify(wide)["red"] == pytest.approx(1 / 3, abs=0.01)
        # One pixel in 64 is green. Without the other 63 the frame is all green, 255/256.
        assert classify(large)["green"] == pytest.approx(1, abs=0.01)
