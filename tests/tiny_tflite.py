"""Tiny .tflite files, made once per test process: a convolution, a mean over the frame, four scores."""

from functools import cache
from typing import Any

import numpy as np

SIDE = 12
OUTPUTS = 4


def pixels(n: int, seed: int = 0) -> np.ndarray:
    """Random photos, uint8 [n, SIDE, SIDE, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


def calibration_photos() -> np.ndarray:
    """The photos whose ranges the integer models know."""
    return pixels(100, seed=2)


@cache
def tiny(io: str = "float32", *, batch: int | None = 1, brightest: int = 255) -> bytes:
    """Convert the model.

    Args:
        io: type of input and output; any but float32 means fully integer.
        batch: None means dynamic.
        brightest: calibration photos span 0..brightest.
    """
    import tensorflow as tf

    random = np.random.default_rng(1)
    kernel = tf.constant(random.normal(0, 0.02, (3, 3, 3, 8)), tf.float32)
    dense = tf.constant(random.normal(0, 0.3, (8, OUTPUTS)), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((batch, SIDE, SIDE, 3), tf.float32, name="pixels")])
    def forward(images: Any) -> Any:
        return tf.nn.softmax(tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(images, kernel, 2, "VALID")), (1, 2)) @ dense)

    def calibration() -> Any:
        for photo in calibration_photos():
            image = np.minimum(photo, brightest)
            image[0, 0] = (0, brightest, brightest)
            yield [image[None].astype(np.float32)]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([forward.get_concrete_function()])
    if io != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = calibration
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(io)
    return bytes(converter.convert())


@cache
def convert(form: str) -> bytes:
    """Convert a model that the wrapper must refuse: `two inputs`, `two outputs`, `int32 input` or `flex op`."""
    import tensorflow as tf

    vector = tf.TensorSpec((1, 4), tf.float32)
    square = tf.TensorSpec((1, 3, 3), tf.float32)
    forms = {
        "two inputs": (lambda a, b: a + b, [vector, vector]),
        "two outputs": (lambda a: (a + 1.0, a * 2.0), [vector]),
        "int32 input": (lambda a: a + 1, [tf.TensorSpec((1, 4), tf.int32)]),
        "flex op": (tf.linalg.det, [square]),
    }
    function, signature = forms[form]
    concrete = tf.function(function, input_signature=signature).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    if form == "flex op":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    return bytes(converter.convert())
