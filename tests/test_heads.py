"""Penalties on the head: they belong to the output layer alone, count in training, and are nothing to whoever loads."""

from pathlib import Path

import keras
import numpy as np
import pytest

from edgetl.heads import OUTPUT_LAYER, attach, build_head
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
