"""Keras model -> frozen SavedModel -> .tflite bytes. The one way to the converter.

The model is traced with a static batch of one, its variables are frozen into constants, the frozen graph is saved as a
SavedModel with a signature, and TFLiteConverter reads that. Freezing first makes the export 3-4 times faster than
`keras.export` (nothing is traced twice), and leaves no variable that could end up as a VAR_HANDLE.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.console import swallowed_output
from edgetl.errors import ArtifactError, DiskSpaceError
from export.flatbuffer import compact

if TYPE_CHECKING:
    import keras

INPUT_NAME = "images"
OUTPUT_NAME = "outputs"


@contextmanager
def frozen_saved_model(model: "keras.Model") -> Iterator[Path]:
    """Freeze a Keras model with one image input into a SavedModel with static batch 1, for the time of the block.

    Args:
        model: input [None, h, w, 3], output [None, k].

    Yields:
        Path of the SavedModel; its signature `serving_default` maps `images` to `outputs`.

    Raises:
        DiskSpaceError: no room for temporary files.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = tf.TensorSpec((1, *model.input.shape[1:]), tf.float32, name=INPUT_NAME)
    traced = tf.function(lambda images: model(images, training=False)).get_concrete_function(signature)
    graph = convert_variables_to_constants_v2(traced)
    module = tf.Module()
    module.serve = tf.function(lambda images: {OUTPUT_NAME: graph(images)[0]}, input_signature=[signature])
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        # Gradients are of no use in a frozen graph, and those of swish (EfficientNet) can't be saved from one.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        try:
            tf.saved_model.save(module, folder, signatures={"serving_default": module.serve}, options=options)
        except tf.errors.OpError as error:
            raise DiskSpaceError(
                f"{tempfile.gettempdir()}: can't write there ({error.message}). Make room or point TMPDIR elsewhere"
            ) from error
        yield Path(folder)


def to_tflite(saved_model: Path, configure: Callable[[Any], None] = lambda converter: None) -> bytes:
    """Convert a SavedModel with built-in operators only.

    Args:
        saved_model: from `frozen_saved_model`.
        configure: sets the quantization options of the TFLiteConverter.

    Raises:
        ArtifactError: the converter refuses the model.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    configure(converter)
    try:
        return compact(bytes(converter.convert()))
    except (ConverterError, tf.errors.OpError, RuntimeError, ValueError) as error:  # calibration raises plain ones
        raise ArtifactError(f"the converter refuses the model: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Say which operators have no built-in form and which Keras layers they are in, or what else is wrong."""
    lacking = re.findall(r'"(\w+):", "([^"@]+)@[^"]*"[^\n]*is neither a custom op nor a flex op', str(error))
    if not lacking:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"{lines[0]}. Try another scheme or backbone"
    # "model_1/layer_1/op": each name has the number of its call behind it.
    found = {f"{operator} in layer {re.sub(r'_[0-9]+$', '', scope.split('/')[1])}" for operator, scope in lacking}
    return (
        f"no built-in operator for {', '.join(sorted(found))}. Replace the layer; devices have built-in operators only"
    )


def float_tflite(model: "keras.Model") -> bytes:
    """Convert a Keras model, raw pixels in, to float32 .tflite bytes: the fastest forward pass on a CPU."""
    with swallowed_output(), frozen_saved_model(model) as saved_model:
        return to_tflite(saved_model)
