"""Name + input spec + weights -> a flat Keras model from raw pixels to features.

Whatever a constructor does inside - normalize, nest a Sequential, number its layers after what the process built
before - the result has one form: `images` -> `normalize` -> the layers of the architecture, all at top level, with
names that depend on the architecture alone. So weights are matched by name between processes, blocks are thawed by
name, and export finds the normalization and can leave it out.
"""

import importlib
import inspect
import re
from typing import Any

from edgetl.backbones.backbone import Backbone, Normalization
from edgetl.backbones.registry import get
from edgetl.backbones.weights import load_after, load_before, locate
from edgetl.console import quiet_tensorflow
from edgetl.errors import BackboneError
from edgetl.inputs import ImageInput

quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402

IMAGES = "images"
"""Name of the input."""
NORMALIZE_LAYER = "normalize"
"""Name of the layer from raw pixels to the range that the weights expect; every backbone has it."""
_PREPROCESSING = (keras.layers.Rescaling, keras.layers.Normalization)


def build(name: str, spec: ImageInput, weights: str = "imagenet") -> keras.Model:
    """Build a backbone without its classifier.

    Args:
        name: a name of `edgetl.backbones.registry.BACKBONES`, in any spelling that `get` accepts.
        spec: size of the photos; need not be square.
        weights: `imagenet`, `none` (random; seed with `keras.utils.set_random_seed` before), or a file.

    Returns:
        A flat functional model, float32 [None, height, width, 3] RGB 0..255 -> [None, features], the global average
        of the last activations.

    Raises:
        BackboneError: the name is unknown or the photos are too small.
        WeightsError: the weights can't be had, or don't fit.
    """
    backbone = get(name)
    if min(spec.height, spec.width) < backbone.min_size:
        raise BackboneError(
            f"{backbone.name}: {spec.height}x{spec.width} pixels are too few, the minimum is "
            f"{backbone.min_size}x{backbone.min_size}. Choose a larger size or another backbone"
        )
    path = locate(backbone, spec, weights)  # first: what can't be had is said at once
    plain = construct(backbone, spec)
    load_before(plain, backbone, path)
    model = _flatten(plain, backbone)
    load_after(model, path, skip=NORMALIZE_LAYER)
    return model


def construct(backbone: Backbone, spec: ImageInput, **options: Any) -> keras.Model:
    """Call the constructor as its authors meant it, with random weights and its own normalization off if it can be."""
    module, _, function = backbone.constructor.partition(":")
    constructor = getattr(importlib.import_module(module), function)
    accepted = inspect.signature(constructor).parameters
    usual = {"include_top": False, "include_preprocessing": False, "weights": None, "pooling": "avg"}
    defaults = usual | {"alpha": backbone.width}
    known = {key: value for key, value in defaults.items() if key in accepted}
    return constructor(**{**known, "input_shape": spec.shape, **options})


def _flatten(plain: keras.Model, backbone: Backbone) -> keras.Model:
    """Copy a constructor's model, weights included, behind our own input and normalization."""
    images = keras.Input(plain.input_shape[1:], dtype="float32", name=IMAGES)
    normalized = _normalize(images, backbone.normalization)
    names = _stable_names(plain)
    copies: dict[int, keras.layers.Layer] = {}

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        return layer  # replaced where it is called: one Sequential becomes several layers

    def call(layer: Any, first: Any, *rest: Any, **keywords: Any) -> Any:
        first = normalized if first is images else first
        if isinstance(layer, _PREPROCESSING):
            return first
        if isinstance(layer, keras.Sequential):
            for part in layer.layers:
                first = call(part, first)
            return first
        if not isinstance(layer, keras.layers.Layer):
            return _renamed(layer, first, *rest, **keywords)(first, *rest, **keywords)
        if id(layer) not in copies:
            copies[id(layer)] = type(layer).from_config(
                {**layer.get_config(), "name": names.get(layer.name, layer.name)}
            )
        output = copies[id(layer)](first, *rest, **keywords)
        copies[id(layer)].set_weights(layer.get_weights())
        return output

    clone = keras.models.clone_model(plain, input_tensors=images, clone_function=copy, call_function=call)
    return keras.Model(images, clone.output, name=backbone.name)


def _stable_names(model: keras.Model) -> dict[str, str]:
    """Map names that Keras numbered process-wide (`conv2d_94`) to those of a fresh process (`conv2d`)."""
    numbered: dict[str, list[tuple[int, str]]] = {}
    for layer in model.layers:
        kind = _snake_case(type(layer).__name__)
        if match := re.fullmatch(rf"{kind}(?:_(\d+))?", layer.name):
            numbered.setdefault(kind, []).append((int(match[1] or 0), layer.name))
    return {
        name: f"{kind}_{index}" if index else kind
        for kind, names in numbered.items()
        for index, (_, name) in enumerate(sorted(names))
    }


def _renamed(operation: keras.Operation, *arguments: Any, **keywords: Any) -> keras.Operation:
    """Copy an operation that is no layer (`x + y`), named after the last tensor that it takes: `..._identity_add`.

    Such operations never have names of their own, only numbers, which would not say which block they end.
    """
    tensors = [each for each in keras.tree.flatten((arguments, keywords)) if isinstance(each, keras.KerasTensor)]
    maker = tensors[-1]._keras_history.operation.name
    name = f"{maker}_{_snake_case(type(operation).__name__)}"
    return type(operation).from_config({**operation.get_config(), "name": name})


def _snake_case(name: str) -> str:
    """`BatchNormalization` -> `batch_normalization`, `ReLU` -> `re_lu`, `Conv2D` -> `conv2d`, as Keras does."""
    name = re.sub("(.)([A-Z][a-z0-9]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _normalize(images: Any, normalization: Normalization) -> Any:
    """Apply scale and offset with built-in layers only, so that a saved model loads in safe mode."""
    if not normalization.bgr:
        scale: Any = list(normalization.scale)
        offset: Any = list(normalization.offset)
        if normalization.uniform:
            scale, offset = scale[0], offset[0]
        return keras.layers.Rescaling(scale, offset, dtype="float32", name=NORMALIZE_LAYER)(images)
    swap = keras.layers.Conv2D(3, 1, dtype="float32", trainable=False, name=NORMALIZE_LAYER)
    output = swap(images)
    kernel = np.diag(normalization.scale)[::-1]  # row: channel in (RGB), column: channel out (BGR)
    swap.set_weights([kernel[None, None], np.array(normalization.offset)])
    return output
