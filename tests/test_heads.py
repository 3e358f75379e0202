"""Penalties on the head: they belong to the output layer alone, count in training, and are nothing to whoever loads."""

from pathlib import Path

import keras
import numpy as np
import pytest

from edgetl.heads import HEADS, OUTPUT_LAYER, attach, build_head, finish, load
from edgetl.outputs import Task
from edgetl.trainee import copy_in_precision
from export.device.interpreter import Model
from export.flatbuffer import operators
from export.saved_model import float_tflite


@pytest.fixture
def backbone() -> keras.Model:
    images = keras.Input((4, 4, 3), name="images")
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(images), name="tiny")


@pytest.mark.parametrize(("l1", "l2"), [(0.5, 0.0), (0.0, 0.25), (0.5, 0.25)])
def test_penalties_are_those_of_the_output_layers_kernel(l1: float, l2: float) -> None:
    head = build_head("classification", 3, 2, hidden_units=(4,), dropout=0.1, l1=l1, l2=l2)
    penalized = [layer.name for layer in head.layers if getattr(layer, "kernel_regularizer", None)]
    assert penalized == [OUTPUT_LAYER]
    kernel = head.get_layer(OUTPUT_LAYER).kernel.numpy().astype(np.float64)
    expected = l1 * np.abs(kernel).sum() + l2 * (kernel**2).sum()
    assert expected > 0.01
    assert float(sum(head.losses)) == pytest.approx(expected, rel=1e-5)  # float32 sums
    assert head.get_layer(OUTPUT_LAYER).bias_regularizer is None


def test_without_penalties_there_is_no_regularizer() -> None:
    head = build_head("classification", 3, 2)
    assert head.get_layer(OUTPUT_LAYER).kernel_regularizer is None and not head.losses


def test_a_penalized_model_loads_in_safe_mode_and_converts(backbone: keras.Model, tmp_path: Path) -> None:
    model = attach(backbone, build_head("classification", 3, 2, dropout=0.2, l1=0.5, l2=0.25))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    found = again.get_layer(OUTPUT_LAYER).kernel_regularizer.get_config()
    assert (found["l1"], found["l2"]) == pytest.approx((0.5, 0.25))
    photo = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    content = float_tflite(again)
    (tmp_path / "x.tflite").write_bytes(content)
    expected = model(photo[None].astype(np.float32)).numpy()[0]
    # A mean of 16 numbers and six products in float32.
    np.testing.assert_allclose(Model(tmp_path / "x.tflite").predict(photo), expected, atol=1e-5)
    plain = attach(backbone, build_head("classification", 3, 2))
    assert [o.name for o in operators(content)] == [o.name for o in operators(float_tflite(plain))]


# --- forms that train otherwise than they are saved -----------------------------------------------------------------

DEVIATIONS = {"regression": (0.01, 1.0, 5000.0)}


@pytest.mark.parametrize("task", HEADS)
def test_a_finished_model_says_the_same(backbone: keras.Model, task: Task) -> None:
    keras.utils.set_random_seed(0)
    head = build_head(task, 3, 3, hidden_units=(4,), l2=0.1, deviations=DEVIATIONS.get(task, ()))
    model = attach(backbone, head)
    model.layers[-1].bias.assign([0.5, -0.25, 0.125])
    finished = finish(model)
    photos = np.random.default_rng(0).uniform(0, 3, (20, 4, 4, 3)).astype(np.float32)
    trained, saved = (np.asarray(each(photos)) for each in (model, finished))
    assert np.ptp(trained, axis=0).min() > 0, "a model that tells photos apart"
    units = np.abs(trained).max(axis=0) if task == "regression" else 1.0
    np.testing.assert_allclose(saved / units, trained / units, atol=1e-6)
    assert finished.name == f"tiny_{task}" and finished.layers[-2] is model.layers[-2]
    assert finish(finished) is finished


@pytest.mark.parametrize("task", HEADS)
def test_penalties_and_precision_are_for_every_task(backbone: keras.Model, task: Task) -> None:
    model = attach(backbone, build_head(task, 3, 3, l1=0.5, l2=0.25, deviations=DEVIATIONS.get(task, ())))
    kernel = model.layers[-1].kernel.numpy().astype(np.float64)
    assert float(sum(model.losses)) == pytest.approx(0.5 * np.abs(kernel).sum() + 0.25 * (kernel**2).sum(), rel=1e-5)
    copy = copy_in_precision(model, "mixed_bfloat16")
    assert float(sum(copy.losses)) == pytest.approx(float(sum(model.losses)), rel=1e-5)
    assert copy.layers[-1].dtype_policy.name == "float32"
    photos = np.full((2, 4, 4, 3), 100, np.float32)
    # Features are rounded to bfloat16, 0.4 %, in front of the last layer.
    np.testing.assert_allclose(copy(photos), model(photos), rtol=0.01, atol=0.01)


def test_ordinal_scores_move_along_the_order() -> None:
    head = build_head("ordinal", 1, 4)
    load(head, np.array([[-1.5, -0.5, 0.5, 1.5]]), np.zeros(4))
    probabilities = np.asarray(head(np.linspace(-4, 4, 9, dtype=np.float32)[:, None]))
    ranks = probabilities @ np.arange(4)
    assert (np.diff(ranks) > 0).all() and probabilities[0].argmax() == 0 and probabilities[-1].argmax() == 3
    # Log odds of each class against the one before it are the score, 4 at the last point.
    np.testing.assert_allclose(np.diff(np.log(probabilities[-1])), [4, 4, 4], rtol=1e-4)
