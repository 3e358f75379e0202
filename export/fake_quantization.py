"""Fake quantization of a planned model: in training through TFMOT, in conversion by the folded form.

Ranges of activations are measured on photos before the first step and stay; weights adapt to them. Ranges of weights
are those of the converter, the largest absolute weight of each output channel, at every step anew. Training calls the
model in inference mode throughout, so batch normalization keeps its statistics, as its folded form must.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.outputs import OutputSpec
from export.bridge import legacy_keras, quiet_import
from export.distillation import CLASSES, distance
from export.quantizable import AFFINE, WEIGHTED, Op, Plan, Range

OUTLIERS = (0.0, 0.01, 0.02, 0.05, 0.1)
"""Shares of photos whose extremes may lie outside of a range: one odd photo would make the steps coarse for all. The
one is taken that keeps outputs nearest to the float model's. Untrained, on elpv, 0.02 against 0: MobileNetV3Small
0.008 instead of 0.035; EfficientNet-Lite0 no difference."""


@cache
def _tfmot() -> Any:
    return quiet_import("tensorflow_model_optimization").quantization.keras


@cache
def _config_class() -> Any:
    """How TFMOT quantizes one layer: its kernel per channel, its output in a range that is known."""
    import tensorflow as tf

    tfmot = _tfmot()

    class PerChannel(tfmot.quantizers.Quantizer):  # type: ignore[misc, name-defined]
        """Kernels: symmetric, one scale per output channel."""

        def __init__(self, depthwise: bool) -> None:
            self.depthwise = depthwise

        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            return {}

        def __call__(self, inputs: Any, training: bool, weights: Any, **_: Any) -> Any:
            # A depthwise kernel is [h, w, channels, multiplier]: both last axes are output channels.
            outputs = inputs.shape[-1] * (inputs.shape[-2] if self.depthwise else 1)
            flat = tf.reshape(inputs, (-1, outputs))
            largest = tf.stop_gradient(tf.maximum(tf.reduce_max(tf.abs(flat), axis=0), 1e-8))
            rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(
                flat, -largest, largest, narrow_range=True
            )
            return tf.reshape(rounded, inputs.shape)

        def get_config(self) -> dict[str, Any]:
            return {"depthwise": self.depthwise}

    class Fixed(tfmot.quantizers.Quantizer):  # type: ignore[misc, name-defined]
        """Activations: a range that was measured before."""

        def __init__(self, low: float, high: float) -> None:
            self.low, self.high = low, high

        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            return {}

        def __call__(self, inputs: Any, training: bool, weights: Any, **_: Any) -> Any:
            return tf.quantization.fake_quant_with_min_max_args(inputs, self.low, self.high)

        def get_config(self) -> dict[str, Any]:
            return {"low": self.low, "high": self.high}

    class Quantized(tfmot.QuantizeConfig):  # type: ignore[misc, name-defined]
        """One layer of a plan."""

        def __init__(self, kernel: str = "", bounds: Any = None) -> None:
            self.kernel, self.bounds = kernel, bounds

        def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
            quantizer = PerChannel(self.kernel == "depthwise_kernel")
            return [(getattr(layer, self.kernel), quantizer)] if self.kernel else []

        def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
            return []

        def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:
            if self.kernel:
                setattr(layer, self.kernel, quantize_weights[0])

        def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:
            pass

        def get_output_quantizers(self, layer: Any) -> list[Any]:
            return [Fixed(*self.bounds)] if self.bounds else []

        def get_config(self) -> dict[str, Any]:
            return {"kernel": self.kernel, "bounds": self.bounds}

    return Quantized


@cache
def _scheme() -> Any:
    """A scheme for `quantize_apply` that rearranges nothing: the plan knows what becomes one kernel."""
    scheme = quiet_import("tensorflow_model_optimization.python.core.quantization.keras.quantize_scheme")

    class Planned(scheme.QuantizeScheme):  # type: ignore[misc, name-defined]
        """Layout and registry in one."""

        def get_layout_transformer(self) -> Any:
            return self

        def get_quantize_registry(self) -> Any:
            return self

        def apply(self, model: Any, layer_quantize_map: Any) -> Any:
            return model, layer_quantize_map

        def supports(self, layer: Any) -> bool:
            return False

    return Planned()


def wrapped(model: Any, plan: Plan, ranges: dict[str, Range]) -> Any:
    """Put TFMOT's fake quantization into a model.

    Args:
        model: from `lowered`; stays as it is.
        plan: its plan.
        ranges: layer -> range, for layers of `plan.quantized`.

    Returns:
        A tf_keras.Model with the same weights, to be called with training=False also while it is trained.
    """
    config = _config_class()

    def annotate(layer: Any) -> Any:
        kernel = WEIGHTED.get(type(layer).__name__, "")
        copy = type(layer).from_config(layer.get_config())
        return _tfmot().quantize_annotate_layer(copy, config(kernel, ranges.get(layer.name)))

    with _tfmot().quantize_scope({"Quantized": config}):
        annotated = legacy_keras().models.clone_model(model, clone_function=annotate)
        annotated.set_weights(model.get_weights())
        return _tfmot().quantize_apply(annotated, scheme=_scheme())


def weights_of(model: Any) -> dict[str, list[Any]]:
    """Variables of each layer of a wrapped model, in the order of the layer's own `weights`.

    A wrapper replaces the kernel of its layer by a rounded tensor, so the layer can't be asked.
    """
    found = {}
    for wrapper in model.layers:
        if hasattr(wrapper, "quantize_config"):
            own = [x for x in wrapper.weights if not x.name.split(":")[0].endswith("optimizer_step")]
            found[wrapper.layer.name] = sorted(
                own, key=lambda x: _ORDER.get(x.name.split(":")[0].rpartition("/")[2], 0)
            )
    return found


_ORDER = {"bias": 1, "beta": 1, "moving_mean": 2, "moving_variance": 3}


def measured_ranges(
    model: Any,
    plan: Plan,
    pixels: Range,
    batches: Callable[[], Iterable[NDArray[np.float32]]],
    outputs: OutputSpec = CLASSES,
) -> dict[str, Range]:
    """Choose ranges of activations on photos; see OUTLIERS.

    Args:
        model: from `lowered`.
        plan: its plan.
        pixels: range of the input.
        batches: gives float32 [n, h, w, 3], as the model takes them, the same each time it is called.
        outputs: what the model says.

    Returns:
        Layer -> range, for layers of `plan.quantized`.
    """
    import tensorflow as tf

    seen = _extremes(model, plan.measured, batches())
    candidates = []
    for share in OUTLIERS:
        low, high = np.quantile(seen[:, 0], share, axis=1), np.quantile(seen[:, 1], 1 - share, axis=1)
        measured = {name: (float(low[i]), float(high[i])) for i, name in enumerate(plan.measured)}
        candidates.append(plan.ranges(measured, pixels))

    folded = Folded(model, plan, {})

    @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
    def gap(images: Any, ranges: Any) -> Any:
        bounds = {name: (ranges[i, 0], ranges[i, 1]) for i, name in enumerate(plan.quantized)}
        return tf.reduce_sum(distance(model(images, training=False), folded.within(bounds, images), outputs))

    gaps = np.zeros(len(candidates))
    for images in batches():
        gaps += [float(gap(images, tf.constant([each[x] for x in plan.quantized]))) for each in candidates]
    return candidates[int(np.argmin(gaps))]


def _extremes(model: Any, names: Sequence[str], batches: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Smallest and largest value of each layer on each photo, [layers, 2, photos]."""
    import tensorflow as tf

    inside = legacy_keras().Model(model.input, [model.get_layer(name).output for name in names])

    @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
    def extremes(images: Any) -> Any:
        found = [tf.reshape(x, (tf.shape(x)[0], -1)) for x in tf.nest.flatten(inside(images, training=False))]
        return tf.stack([[tf.reduce_min(x, axis=1), tf.reduce_max(x, axis=1)] for x in found])

    return np.concatenate([extremes(images).numpy() for images in batches], axis=2)


class Folded:
    """A trained model as the converter takes it: float weights, folded; fake quantization behind every kernel."""

    def __init__(self, model: Any, plan: Plan, ranges: dict[str, Range]) -> None:
        """Keep what `__call__` needs.

        Args:
            model: from `lowered`, trained or not.
            plan: its plan.
            ranges: layer -> range, for layers of `plan.quantized`.
        """
        self.input = model.input
        self._input_name = model.input_names[0]
        self._plan = plan
        self._ranges = ranges
        self._constants = {chain[0].name: folded_weights(chain) for chain in plan.chains if _has_weights(chain[0])}

    def __call__(self, images: Any, training: bool = False) -> Any:
        """Compute the outputs, [n, h, w, 3] -> [n, k]."""
        return self.within(self._ranges, images)

    def within(self, ranges: Mapping[str, tuple[Any, Any]], images: Any) -> Any:
        """Compute the outputs with other ranges."""
        import tensorflow as tf

        tensors = {self._input_name: images}
        for chain in self._plan.chains:
            root, end = chain[0], chain[-1]
            taken = [tensors[name] for name in root.inputs]
            with tf.name_scope(root.name):
                x = self._compute(root, taken)
                for op in chain[1:]:
                    if op.kind == "ReLU":
                        x = tf.nn.relu(x) if op.layer.max_value is None else tf.nn.relu6(x)
                if end.name in ranges:
                    low, high = ranges[end.name]
                    x = tf.quantization.fake_quant_with_min_max_vars(x, low, high)
            tensors[end.name] = x
        return tensors[self._plan.output]

    def _compute(self, root: Op, taken: list[Any]) -> Any:
        import tensorflow as tf

        if root.name not in self._constants:
            return root.layer(taken if len(taken) > 1 else taken[0])
        kernel, bias = self._constants[root.name]
        if root.kind == "Dense":
            return tf.matmul(taken[0], kernel) + bias
        strides, padding, dilation = (1, 1), "VALID", (1, 1)
        if root.kind != "BatchNormalization":
            strides, padding, dilation = root.layer.strides, root.layer.padding.upper(), root.layer.dilation_rate
        if root.kind == "Conv2D":
            return tf.nn.conv2d(taken[0], kernel, strides, padding, dilations=dilation) + bias
        return tf.nn.depthwise_conv2d(taken[0], kernel, [1, *strides, 1], padding, dilations=dilation) + bias


def _has_weights(root: Op) -> bool:
    return root.kind in WEIGHTED or root.kind == "BatchNormalization"


def folded_weights(chain: tuple[Op, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Kernel and bias of a convolution, dense layer or batch normalization with the constants that follow it."""
    root = chain[0]
    if root.kind == "BatchNormalization":
        scale, bias = _affine(root)
        kernel = scale.reshape(1, 1, -1, 1)
    else:
        kernel = np.asarray(root.layer.get_weights()[0], np.float64)
        outputs = kernel.shape[-1] * (kernel.shape[-2] if root.kind == "DepthwiseConv2D" else 1)
        bias = np.asarray(root.layer.get_weights()[1], np.float64) if root.layer.use_bias else np.zeros(outputs)
    for op in chain[1:]:
        if op.kind in AFFINE:
            scale, shift = _affine(op)
            depthwise = root.kind in ("DepthwiseConv2D", "BatchNormalization")
            shape = kernel.shape[-2:] if depthwise and scale.ndim else scale.shape
            kernel, bias = kernel * scale.reshape(shape), bias * scale + shift
    return kernel.astype(np.float32), bias.astype(np.float32)


def _affine(op: Op) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and shift of a batch normalization with fixed statistics, or of a Rescaling."""
    if op.kind == "Rescaling":
        return np.asarray(op.layer.scale, np.float64), np.asarray(op.layer.offset, np.float64)
    layer = op.layer
    mean, variance = (np.asarray(x, np.float64) for x in (layer.moving_mean, layer.moving_variance))
    scale = 1 / np.sqrt(variance + layer.epsilon)
    if layer.gamma is not None:
        scale = scale * np.asarray(layer.gamma, np.float64)
    beta = 0.0 if layer.beta is None else np.asarray(layer.beta, np.float64)
    return scale, beta - mean * scale
