"""Keras 3 -> tf_keras and back: the way to TensorFlow's Model Optimization Toolkit, which knows tf_keras only.

A plain functional Keras 3 model is built again in tf_keras, layer by layer and flat, with the names and weights that it
has; what is no layer in Keras 3 (`x + y`) becomes one. Nothing else imports tf_keras, and that late, after Keras.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ArtifactError
from export.tensors import gap

if TYPE_CHECKING:
    import keras

EQUAL = 1e-5
"""Largest difference of an output between the two, in its unit; same kernels, at most sums in another order."""
DEPTHWISE_SUFFIX = "_depthwise"
"""A SeparableConv2D becomes two layers: this one, and the pointwise one that keeps the name and the bias."""
_NAMED = 20
"""Layers, at most, that an error names."""


def legacy_keras() -> Any:
    """Import tf_keras, after Keras."""
    return quiet_import("tf_keras")


def quiet_import(name: str) -> Any:
    """Import tf_keras, or what imports it, after Keras and in silence."""
    import keras  # noqa: F401

    from edgetl.console import swallowed_output

    if name in sys.modules:
        return sys.modules[name]
    with swallowed_output():
        return importlib.import_module(name)


def rebuilt(model: "keras.Model") -> Any:
    """Build a Keras 3 model again in tf_keras.

    Activations inside of convolutions and dense layers become layers of their own (`<name>_<activation>`), a separable
    convolution becomes a depthwise and a pointwise one, dropout and regularizers are left out.

    Args:
        model: functional, one input; may hold functional or Sequential models. Its normalization should be outside
            (`export.quantize.prepare`).

    Returns:
        A flat functional tf_keras.Model of the same name, with the same weights.

    Raises:
        ArtifactError: layers that tf_keras has no counterpart of; the message names them all.
    """
    if missing := obstacles(model):
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ArtifactError(
            f"{model.name}: no counterpart in tf_keras for {', '.join(missing[:_NAMED])}{more}. "
            "Choose a scheme without training, or another backbone"
        )
    legacy = legacy_keras()
    inputs = legacy.Input(model.input.shape[1:], name=model.inputs[0].name)
    twins: dict[str, Any] = {}
    outputs = _through(model, inputs, lambda layer, *args, **keywords: _translate(layer, twins, args, keywords))
    copy = legacy.Model(inputs, outputs, name=model.name)
    for layer in _plain_layers(model):
        for name, values in _weights_to_legacy(layer):
            copy.get_layer(name).set_weights(values)
    return copy


def obstacles(model: "keras.Model") -> tuple[str, ...]:
    """Name the layers that tf_keras has no counterpart of, each as `name (class)`."""
    return tuple(f"{x.name} ({_kind(x)})" for x in _plain_operations(model) if _rule(x) is None)


def check_equal(
    model: "keras.Model", legacy: Any, images: NDArray[np.float32], units: Sequence[float] = (1.0,)
) -> None:
    """Refuse a rebuilt model that does not compute what the original does.

    Args:
        model: the original.
        legacy: from `rebuilt`.
        images: float32 [n, h, w, 3], as both take them.
        units: of the outputs, `OutputSpec.units`.

    Raises:
        ArtifactError: outputs are further apart than EQUAL, or not finite.
    """
    expected = np.asarray(model(images, training=False))
    apart = gap(expected, legacy(images, training=False).numpy(), units)
    if not apart <= EQUAL:
        raise ArtifactError(
            f"{model.name}: rebuilt in tf_keras, outputs differ by {apart:.3g}, allowed {EQUAL}. Not used"
        )


def copy_weights_back(legacy: Any, model: "keras.Model") -> "keras.Model":
    """Put the weights of a rebuilt and then changed model into a copy of the original.

    Args:
        legacy: has the layers that `rebuilt` gave it, wrappers stripped.
        model: the original; stays as it is.

    Returns:
        A clone with the new weights.

    Raises:
        ArtifactError: a layer is missing or its weights have other shapes.
    """
    import keras

    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    there = {layer.name: layer for layer in legacy.layers}
    for layer in _plain_layers(clone):
        names = [name for name, _ in _weights_to_legacy(layer)]
        if missing := [name for name in names if name not in there]:
            raise ArtifactError(f"{model.name}: the changed model has no layer {', '.join(missing)}. Rebuild it first")
        values = [weight for name in names for weight in there[name].get_weights()]
        expected = [tuple(weight.shape) for weight in layer.weights]
        received = [weight.shape for weight in values]
        if expected != received:
            raise ArtifactError(f"{layer.name}: weights of shapes {received} came back, expected {expected}")
        layer.set_weights(values)
    return clone


class _Rule(NamedTuple):
    """How one class is built again."""

    options: tuple[str, ...]
    """Arguments of the constructor that both share."""
    build: Callable[..., Any]
    """Takes the Keras 3 layer, the tf_keras layers made so far and the call's arguments."""


_CONVOLUTION = ("kernel_size", "strides", "padding", "dilation_rate", "use_bias")
_POOLING = ("pool_size", "strides", "padding")


def _same(layer: Any, twins: dict[str, Any], args: Any, keywords: Any) -> Any:
    """The class of the same name, with the same options; an activation inside follows as a layer."""
    options = _RULES[_kind(layer)].options
    output = _twin(twins, layer.name, type(layer).__name__, **{key: _option(layer, key) for key in options})(args[0])
    return _activation(layer, twins, output) if "use_bias" in options else output


def _separable(layer: Any, twins: dict[str, Any], args: Any, keywords: Any) -> Any:
    options = {key: _option(layer, key) for key in ("kernel_size", "strides", "padding", "depth_multiplier")}
    dilation = _option(layer, "dilation_rate")
    name = f"{layer.name}{DEPTHWISE_SUFFIX}"
    between = _twin(twins, name, "DepthwiseConv2D", **options, dilation_rate=dilation, use_bias=False)(args[0])
    pointwise = _twin(twins, layer.name, "Conv2D", filters=layer.filters, kernel_size=1, use_bias=layer.use_bias)
    return _activation(layer, twins, pointwise(between))


def _activation(layer: Any, twins: dict[str, Any], tensor: Any, name: str = "") -> Any:
    """What an `activation=` does, as a layer."""
    function = _function(layer)
    if function == "linear":
        return tensor
    name = name or f"{layer.name}_{function}"
    if function == "relu":
        return _twin(twins, name, "ReLU")(tensor)
    if function == "relu6":
        return _twin(twins, name, "ReLU", max_value=6.0)(tensor)
    return _twin(twins, name, "Activation", activation=_FUNCTIONS[function])(tensor)


def _activation_layer(layer: Any, twins: dict[str, Any], args: Any, keywords: Any) -> Any:
    return _activation(layer, twins, args[0], layer.name)


def _skip(layer: Any, twins: dict[str, Any], args: Any, keywords: Any) -> Any:
    return args[0]


def _sum(operation: Any, twins: dict[str, Any], args: Any, keywords: Any) -> Any:
    """`x + y` of two tensors, or of a tensor and a constant."""
    tensors, constants = _operands(args, keywords)
    if constants:
        return _twin(twins, operation.name, "Rescaling", scale=1.0, offset=constants[0])(tensors[0])
    return _twin(twins, operation.name, "Add")(tensors)


def _product(operation: Any, twins: dict[str, Any], args: Any, keywords: Any) -> Any:
    """`x * y` of two tensors, or of a tensor and a constant."""
    tensors, constants = _operands(args, keywords)
    if constants:
        return _twin(twins, operation.name, "Rescaling", scale=constants[0])(tensors[0])
    return _twin(twins, operation.name, "Multiply")(tensors)


def _scaled_sum(layer: Any, twins: dict[str, Any], args: Any, keywords: Any) -> Any:
    """InceptionResNet's `x + scale * y`."""
    scaled = _twin(twins, f"{layer.name}_scale", "Rescaling", scale=float(layer.scale))(args[0][1])
    return _twin(twins, layer.name, "Add")([args[0][0], scaled])


def _border(layer: Any, twins: dict[str, Any], args: Any, keywords: Any) -> Any:
    """What is left of a normalization per channel (`export.normalization`)."""
    if layer.name not in twins:
        twins[layer.name] = registered_layers()["MeanBorder"](layer.padding, layer.colour, name=layer.name)
    return twins[layer.name](args[0])


_RULES: dict[str, _Rule] = {
    "Conv2D": _Rule(("filters", "groups", *_CONVOLUTION), _same),
    "DepthwiseConv2D": _Rule(("depth_multiplier", *_CONVOLUTION), _same),
    "SeparableConv2D": _Rule((), _separable),
    "Dense": _Rule(("units", "use_bias"), _same),
    "BatchNormalization": _Rule(("axis", "momentum", "epsilon", "center", "scale"), _same),
    "LayerNormalization": _Rule(("axis", "epsilon", "center", "scale"), _same),
    "ReLU": _Rule(("max_value", "negative_slope", "threshold"), _same),
    "Activation": _Rule((), _activation_layer),
    "Softmax": _Rule(("axis",), _same),
    "Add": _Rule((), _same),
    "Multiply": _Rule((), _same),
    "Concatenate": _Rule(("axis",), _same),
    "ZeroPadding2D": _Rule(("padding",), _same),
    "Cropping2D": _Rule(("cropping",), _same),
    "MaxPooling2D": _Rule(_POOLING, _same),
    "AveragePooling2D": _Rule(_POOLING, _same),
    "GlobalAveragePooling2D": _Rule(("keepdims",), _same),
    "GlobalMaxPooling2D": _Rule(("keepdims",), _same),
    "Reshape": _Rule(("target_shape",), _same),
    "Flatten": _Rule((), _same),
    "Rescaling": _Rule(("scale", "offset"), _same),
    "Dropout": _Rule((), _skip),
    "SpatialDropout2D": _Rule((), _skip),
    "GaussianNoise": _Rule((), _skip),
    "GaussianDropout": _Rule((), _skip),
    "ActivityRegularization": _Rule((), _skip),
    "CustomScaleLayer": _Rule((), _scaled_sum),
    "MeanBorder": _Rule((), _border),
    "ops.Add": _Rule((), _sum),
    "ops.Multiply": _Rule((), _product),
}
"""By class; operations that are no layers begin with `ops.`."""


def _hard_sigmoid(x: Any) -> Any:
    """Keras 3's; that of tf_keras has other slopes."""
    import tensorflow as tf

    return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


def _hard_swish(x: Any) -> Any:
    return x * _hard_sigmoid(x)


_FUNCTIONS: dict[str, Any] = {
    "linear": "linear",
    "relu": "relu",
    "relu6": "relu6",
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "silu": "swish",
    "gelu": "gelu",
    "elu": "elu",
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _hard_swish,
}
"""Keras 3's name of an activation -> what tf_keras' Activation takes."""


@cache
def registered_functions() -> dict[str, str]:
    """Make clones of models with our functions possible; names that tf_keras serializes them under -> of Keras 3."""
    saving = legacy_keras().saving
    names = {}
    for name, function in _FUNCTIONS.items():
        if callable(function):
            saving.register_keras_serializable("edgetl", name)(function)
            names[f"edgetl>{name}"] = name
    return names


@cache
def registered_layers() -> dict[str, Any]:
    """Layers of our own in tf_keras, by class name."""
    import tensorflow as tf

    legacy = legacy_keras()

    @legacy.saving.register_keras_serializable("edgetl")
    class MeanBorder(legacy.layers.Layer):  # type: ignore[misc, name-defined]
        """Pads photos with one colour."""

        def __init__(self, padding: Any, colour: Any, **keywords: Any) -> None:
            super().__init__(**keywords)
            self.padding, self.colour = padding, colour

        def call(self, inputs: Any) -> Any:
            count = tf.shape(inputs)[0] if inputs.shape[0] is None else inputs.shape[0]
            for axis, (before, after) in enumerate(self.padding, start=1):
                shape = [count, *inputs.shape[1:]]
                strips = []
                for width in (before, after):
                    shape[axis] = width
                    colour = tf.constant(self.colour, inputs.dtype)
                    strips.append([tf.broadcast_to(colour, shape)] if width else [])
                if before or after:
                    inputs = tf.concat([*strips[0], inputs, *strips[1]], axis)
            return inputs

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "padding": self.padding, "colour": self.colour}

    return {"MeanBorder": MeanBorder}


def _kind(operation: Any) -> str:
    """Key of _RULES."""
    import keras

    prefix = "" if isinstance(operation, keras.layers.Layer) else "ops."
    return f"{prefix}{type(operation).__name__}"


def _function(layer: Any) -> str:
    return str(getattr(layer.activation, "__name__", type(layer.activation).__name__))


def _rule(operation: Any) -> _Rule | None:
    rule = _RULES.get(_kind(operation))
    if hasattr(operation, "activation") and _function(operation) not in _FUNCTIONS:
        return None
    return rule


def _option(layer: Any, name: str) -> Any:
    value = getattr(layer, name)
    if name == "axis" and isinstance(value, (list, tuple)):
        return list(value)
    return value.tolist() if isinstance(value, np.ndarray) else value


def _twin(twins: dict[str, Any], name: str, kind: str, **options: Any) -> Any:
    """One tf_keras layer per name: a layer that is called twice stays one."""
    if name not in twins:
        registered_functions()
        twins[name] = getattr(legacy_keras().layers, kind)(**options, name=name)
    return twins[name]


def _operands(args: Any, keywords: Any) -> tuple[list[Any], list[Any]]:
    """Split the operands of `x + y` into tensors and constants."""
    operands = [*args, *keywords.values()]
    constants = [each for each in operands if isinstance(each, (int, float, np.number, np.ndarray))]
    tensors = [each for each in operands if not any(each is constant for constant in constants)]
    return tensors, [np.asarray(each).tolist() for each in constants]


def _translate(operation: Any, twins: dict[str, Any], args: Any, keywords: Any) -> Any:
    return _RULES[_kind(operation)].build(operation, twins, args, keywords)


def _through(model: "keras.Model", tensor: Any, call: Callable[..., Any]) -> Any:
    """Call `call(operation, *args, **keywords)` in the order of the graph, nested models from the inside."""
    import keras

    def each(operation: Any, *args: Any, **keywords: Any) -> Any:
        if isinstance(operation, keras.Model):
            return _through(operation, args[0], call)
        return call(operation, *args, **keywords)

    graph = getattr(model, "_functional", None) or model
    return graph._run_through_graph(tensor, call_fn=each)


def _plain_operations(model: "keras.Model") -> list[Any]:
    """Operations of a model and of those inside, each once, without inputs."""
    import keras

    found: dict[int, Any] = {}
    for operation in (getattr(model, "_functional", None) or model).operations:
        inside = _plain_operations(operation) if isinstance(operation, keras.Model) else [operation]
        found |= {id(x): x for x in inside if not isinstance(x, keras.layers.InputLayer)}
    return list(found.values())


def _plain_layers(model: "keras.Model") -> list[Any]:
    return [x for x in _plain_operations(model) if getattr(x, "weights", None)]


def _weights_to_legacy(layer: Any) -> list[tuple[str, list[NDArray[Any]]]]:
    """A layer's weights by the tf_keras layers that take them; one after the other they are in the layer's order."""
    weights = layer.get_weights()
    if _kind(layer) == "SeparableConv2D":
        return [(f"{layer.name}{DEPTHWISE_SUFFIX}", weights[:1]), (layer.name, weights[1:])]
    return [(layer.name, weights)]
