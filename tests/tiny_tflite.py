"""Tiny .tflite files, made once per test process: a convolution, a mean over the frame, four scores."""

import io
import json
import zipfile
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


ABOUT: dict[str, Any] = {
    "schema_version": 2,
    "outputs": {
        "task": "classification",
        "names": [f"class {number}" for number in range(OUTPUTS)],
        "thresholds": [],
        "deviations": [],
    },
    "inputs": {"kind": "image", "height": SIDE, "width": SIDE, "resize": "stretch"},
    "input_tensor": {"pixel_shift": 0},
}
"""The least that `edgetl.json` must say."""


def with_files(tflite: bytes, files: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Append a zip to a model, as users of TFLite metadata do."""
    whole = io.BytesIO(tflite)
    whole.seek(0, io.SEEK_END)
    with zipfile.ZipFile(whole, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return whole.getvalue()


def with_json(tflite: bytes, shift: int = 0, **changes: Any) -> bytes:
    """Append an `edgetl.json` to a model; `changes` replace what ABOUT says."""
    about = {**ABOUT, "input_tensor": {"pixel_shift": shift}, **changes}
    return with_files(tflite, {"edgetl.json": json.dumps(about).encode()})


def usable(tflite: bytes, io: str) -> bytes:
    """What device code takes: int8 input only with the file's own word that it takes pixels - 128."""
    return with_json(tflite, 128) if io == "int8" else tflite


@cache
def mean(io: str = "float32", *, scale: float = 1.0, zero_point: int = 0, classes: int = 3) -> bytes:
    """Build, without TensorFlow, a model of one operator: the mean of each channel of [1, SIDE, SIDE, 3].

    Args:
        io: type of input and output.
        scale: of integer tensors.
        zero_point: likewise.
        classes: length of the output; 3 for a model that can run.
    """
    from ai_edge_litert import schema_py_generated as schema

    from export.flatbuffer import pack

    def tensor(name: str, shape: tuple[int, ...], kind: str, buffer: int = 0) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer = name.encode(), np.array(shape, np.int32), buffer
        made.type = getattr(schema.TensorType, kind.upper())
        if kind in ("uint8", "int8"):
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = np.array([scale], np.float32)
            made.quantization.zeroPoint = np.array([zero_point], np.int64)
        return made

    code, operator, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.MEAN
    code.version = 2
    operator.inputs, operator.outputs = [0, 1], [2]
    operator.builtinOptionsType, operator.builtinOptions = (
        schema.BuiltinOptions.ReducerOptions,
        schema.ReducerOptionsT(),
    )
    graph.tensors = [
        tensor("pixels", (1, SIDE, SIDE, 3), io),
        tensor("axes", (2,), "int32", 2),
        tensor("means", (1, classes), io),
    ]
    graph.inputs, graph.outputs, graph.operators, graph.name = [0], [2], [operator], b"main"
    # Buffer 0 is empty by convention; 1 is an entry of the metadata that other tools write and that must survive.
    model.buffers = [schema.BufferT() for _ in range(3)]
    model.buffers[1].data = np.frombuffer(b"1.5.0".ljust(16, b"\0"), np.uint8)
    model.buffers[2].data = np.array([1, 2], np.int32).view(np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = b"min_runtime_version", 1
    model.version, model.operatorCodes, model.subgraphs, model.metadata = 3, [code], [graph], [entry]
    return pack(model)


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
