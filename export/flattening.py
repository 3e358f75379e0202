"""A Keras model built again flat, in float32: the form that edgetl's own models have.

Models inside of it are opened, layers that only augment are left out, and what it does to pixels first becomes the
layer `normalize`. Integer artifacts then get that for nothing, and quantization-aware training meets plain layers.
"""

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.console import log
from edgetl.errors import ArtifactError

if TYPE_CHECKING:
    import keras

AUGMENTATION = re.compile(
    "AugMix|CutMix|MixUp|RandAugment|Random(Brightness|ColorDegeneration|ColorJitter|Contrast|ElasticTransform|Erasing|"
    "Flip|GaussianBlur|Grayscale|Hue|Invert|Perspective|Posterization|Rotation|Saturation|Sharpness|Shear|Translation|"
    "Zoom)"
)
"""Layers that do nothing at inference (RandomCrop is none of them: it crops the centre)."""
PIXELWISE = re.compile("Rescaling|Normalization|Add|Subtract|Multiply|Divide|TrueDivide|GetItem|Stack")
"""Classes of which normalizations are made, those of keras.applications' preprocess_input included."""


def layers_of(model: "keras.Model") -> Iterator[Any]:
    """Give the layers of a model and of those inside, none of which is a model."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        else:
            yield layer


def flattened(model: "keras.Model", path: Path) -> "keras.Model":
    """Copy a model, weights included, into the form that edgetl's own have.

    Args:
        model: functional or Sequential, one input, one output, models inside or not; stays as it is.
        path: for messages.

    Returns:
        A functional model of layers alone, in float32, without augmentation. Where it begins with operations on single
        pixels that make up a normalization, these are one layer called `normalize`.

    Raises:
        ArtifactError: a layer can't be copied.
    """
    from edgetl.backbones.build import NORMALIZE_LAYER

    if removed := [
        f"{x.name} ({type(x).__name__})" for x in layers_of(model) if AUGMENTATION.fullmatch(type(x).__name__)
    ]:
        log.info("%s: left out, since they do nothing at inference: %s", path, ", ".join(removed))
    flat = _Copier(path).copy(model)
    names, layer = _normalization(flat)
    if layer is None:
        return flat
    flat = _Copier(path, frozenset(names), layer).copy(flat)
    log.info("%s: %s at its start taken as normalization (layer %s)", path, ", ".join(names), NORMALIZE_LAYER)
    return flat


class _Copier:
    """Calls copies of a model's operations one after the other, those of models inside included."""

    def __init__(self, path: Path, replaced: frozenset[str] = frozenset(), normalize: Any = None) -> None:
        """Remember what takes the place of what.

        Args:
            path: for messages.
            replaced: names of the operations that make up the normalization.
            normalize: the layer that does the same.
        """
        from edgetl.backbones.build import IMAGES, NORMALIZE_LAYER

        self._path, self._replaced, self._normalize = path, replaced, normalize
        self._copies: dict[int, Any] = {}
        self._taken = {IMAGES, NORMALIZE_LAYER}
        self._normalized: Any = None

    def copy(self, model: "keras.Model") -> "keras.Model":
        import keras

        from edgetl.backbones.build import IMAGES

        images = keras.Input(model.inputs[0].shape[1:], dtype="float32", name=IMAGES)
        self._normalized = self._normalize(images) if self._normalize else None
        (output,) = keras.tree.flatten(self._through(model, images))
        return keras.Model(images, output, name=_valid(model.name))

    def _through(self, model: "keras.Model", tensors: Any) -> Any:
        import keras

        def call(operation: Any, *args: Any, **keywords: Any) -> Any:
            if isinstance(operation, keras.Model):
                return self._through(operation, args[0])
            if AUGMENTATION.fullmatch(type(operation).__name__):
                return args[0]
            if operation.name in self._replaced:
                return self._normalized
            return self._called(operation, model.name, args, keywords)

        graph = getattr(model, "_functional", None) or model
        return graph._run_through_graph(tensors, call_fn=call)

    def _called(self, operation: Any, model_name: str, args: Any, keywords: Any) -> Any:
        import keras

        first = id(operation) not in self._copies
        keywords = {key: value for key, value in keywords.items() if key != "training"}  # inference says False anyway
        try:
            if first:
                config = {**operation.get_config(), "name": self._name(operation.name, model_name)}
                if isinstance(operation, keras.layers.Layer):
                    config["dtype"] = "float32"
                self._copies[id(operation)] = type(operation).from_config(config)
            copy = self._copies[id(operation)]
            output = copy(*args, **keywords)
            if first and getattr(operation, "weights", None):
                copy.set_weights(operation.get_weights())
                if isinstance(copy, keras.layers.Normalization):
                    copy.finalize_state()  # which computes with what it derives from its weights
        except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(
                f"{self._path}: layer {operation.name} ({type(operation).__name__}) can't be built again in float32 "
                f"({reason}). Replace it by a plain layer"
            ) from error
        return output

    def _name(self, wanted: str, model_name: str) -> str:
        """A name that no other layer has, whatever its case: TensorFlow's scopes don't tell cases apart."""
        name = _valid(wanted)
        if name.lower() in self._taken:
            name = f"{_valid(model_name)}_{name}"
        number, plain = 1, name
        while name.lower() in self._taken:
            number, name = number + 1, f"{plain}_{number + 1}"
        self._taken.add(name.lower())
        return name


def _valid(name: str) -> str:
    """Turn a name into one that TensorFlow takes as a scope."""
    return re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9_.-]", "_", name).lstrip("_") or "layer"


def _normalization(model: "keras.Model") -> tuple[list[str], Any]:
    """Find out what a flat model does to each pixel before anything else.

    Returns:
        Names of these operations, and one layer that does the same; no names and None where there is nothing such.
    """
    import keras

    operations = [each for each in model.operations if not isinstance(each, keras.layers.InputLayer)]
    first = list(
        takewhile(lambda each: PIXELWISE.fullmatch(type(each).__name__) and len(each._inbound_nodes) == 1, operations)
    )
    for count in range(len(first), 0, -1):
        made = {id(model.inputs[0]), *(id(each.output) for each in first[:count])}
        result = first[count - 1].output
        read = [x for each in operations[count:] for node in each._inbound_nodes for x in node.input_tensors]
        if all(x is result or id(x) not in made for x in read) and (layer := _one_layer(model, result)):
            return [each.name for each in first[:count]], layer
    return [], None


def _one_layer(model: "keras.Model", result: Any) -> Any:
    """Measure what becomes of pixels, and make one layer that does it; None if that is no normalization of photos."""
    import keras

    from edgetl.backbones.build import NORMALIZE_LAYER

    shape = tuple(model.inputs[0].shape)
    if tuple(result.shape) != shape:
        return None
    constant = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)])[:, None, None, :] * np.ones((1, *shape[1:3], 1))
    noise = np.random.default_rng(0).uniform(0, 255, (1, *shape[1:]))
    images = np.concatenate([constant, noise]).astype(np.float32)
    values = np.asarray(keras.Model(model.inputs[0], result)(images, training=False), np.float64)
    offset = values[0, 0, 0]
    matrix = (values[1:4, 0, 0] - offset) / 255
    if not np.allclose(values, images @ matrix + offset, rtol=0, atol=1e-5 * np.abs(values).max()):
        return None
    matrix[np.abs(matrix) < 1e-6 * np.abs(matrix).max()] = 0
    if not ((matrix > 0).sum(axis=0) == 1).all() or not ((matrix != 0).sum(axis=1) == 1).all():
        return None  # a mixture of colours, or their negative
    scale = matrix.sum(axis=0)
    if ((-offset / scale < 0) | (-offset / scale > 255)).any():
        return None  # no pixel is zero: an input tensor's zero point can't say that
    if not np.diag(matrix).all():
        layer = keras.layers.Conv2D(3, 1, dtype="float32", trainable=False, name=NORMALIZE_LAYER)
        layer.build(shape)
        layer.set_weights([matrix[None, None], offset])
        return layer
    uniform = np.ptp(scale) <= 1e-6 * scale.max() and np.ptp(offset) <= 1e-6 * np.abs(offset).max()
    arguments = (float(scale[0]), float(offset[0])) if uniform else (scale.tolist(), offset.tolist())
    return keras.layers.Rescaling(*arguments, dtype="float32", name=NORMALIZE_LAYER)
