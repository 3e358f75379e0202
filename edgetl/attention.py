"""Where a network looks: which places of a photo speak for what it says of it.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): the last activations that still have places, weighted by how much
their mean raises the output in question. It needs no layer by name, so it works on every backbone, and it is as coarse
as these activations are: 7 x 7 places on a photo of 224 x 224 pixels.
"""

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BackboneError
from edgetl.features import forward_of
from edgetl.outputs import OutputSpec

if TYPE_CHECKING:
    import keras

BATCH = 16
"""Photos at a time."""
_LEAST = 1e-30
"""Probabilities are held above this before their logarithm is taken."""


def grad_cam(
    model: "keras.Model", pixels: NDArray[np.uint8], indices: NDArray[np.int64], outputs: OutputSpec
) -> NDArray[np.float32]:
    """Map what speaks for one output of each photo.

    Of exclusive classes it is what speaks for the class against all others (its log odds): the plain logit of Grad-CAM
    also counts what speaks for all classes alike, which decides nothing. Of a label it is what raises its probability,
    of a target what raises its value.

    Args:
        model: a functional model, raw pixels -> outputs [n, k], in float32.
        pixels: [n, height, width, 3], raw pixels 0..255.
        indices: [n], which output to explain, 0..k-1.
        outputs: what these are.

    Returns:
        [n, rows, columns], 0..1, the strongest place of each photo at 1; all 0 where nothing speaks for the output.

    Raises:
        BackboneError: no activations of the model have places.
    """
    import keras

    places = last_places(model)
    forward = forward_of(keras.Model(model.inputs[0], places))
    tail = keras.Model(places, model.outputs[0])
    return np.concatenate(
        [
            _explained(tail, forward(pixels[start : start + BATCH]), indices[start : start + BATCH], outputs)
            for start in range(0, len(pixels), BATCH)
        ]
    )


def last_places(model: "keras.Model") -> Any:
    """Walk back from the output to the last symbolic tensor [n, rows, columns, channels] with more than one place.

    Raises:
        BackboneError: there is none.
    """
    waiting, seen = deque([model.outputs[0]]), set[int]()
    while waiting:
        tensor = waiting.popleft()
        if len(tensor.shape) == 4 and tensor.shape[1] * tensor.shape[2] > 1:
            return tensor
        made = tensor._keras_history
        for source in made.operation._inbound_nodes[made.node_index].input_tensors:
            if id(source) not in seen:
                seen.add(id(source))
                waiting.append(source)
    raise BackboneError(f"{model.name}: no layer keeps places, so there is nothing to map. Leave the maps out")


def _explained(
    tail: "keras.Model", maps: NDArray[np.float32], indices: NDArray[np.int64], outputs: OutputSpec
) -> NDArray[np.float32]:
    import tensorflow as tf

    activations = tf.convert_to_tensor(maps)
    with tf.GradientTape() as tape:
        tape.watch(activations)
        said = tail(activations, training=False)
        score = _evidence(said, tf.one_hot(indices, len(outputs.names)), outputs)
    weights = tf.reduce_mean(tape.gradient(score, activations), axis=(1, 2), keepdims=True)
    heat: NDArray[np.float32] = tf.nn.relu(tf.reduce_sum(weights * activations, axis=-1)).numpy()
    strongest = np.maximum(heat.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(heat / strongest)


def _evidence(said: Any, chosen: Any, outputs: OutputSpec) -> Any:
    """One number per photo that grows with the chosen output: log odds, log probability or value."""
    import tensorflow as tf

    value = tf.reduce_sum(said * chosen, axis=-1)
    if outputs.task == "regression":
        return value
    evidence = tf.math.log(tf.maximum(value, _LEAST))
    if outputs.exclusive:
        evidence -= tf.math.log(tf.maximum(tf.reduce_sum(said * (1 - chosen), axis=-1), _LEAST))
    return evidence
