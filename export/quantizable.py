"""A tf_keras model as integer kernels will compute it: which operations become one, and which tensors share a range.

The plan is made from the graph alone, before anything is trained, and says what can't be done. Training and
conversion (`export.fake_quantization`) both follow it, so they round at the same places:

- batch normalization and constants that follow a convolution go into its weights; a batch normalization that follows
  something else (ResNet V2, DenseNet) becomes a 1x1 depthwise convolution, exact, since each channel has a grid of its
  own; ReLU and ReLU6 go into whatever they follow;
- pooling, padding, cropping, reshaping and concatenation don't rescale: what they take and give has one range
  (Jacob et al. 2018, arXiv 1712.05877, appendix A.3 on concatenation). So no QUANTIZE is left inside.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgetl.console import quiet_tensorflow
from export.bridge import legacy_keras, registered_functions

quiet_tensorflow()

PIXELS = "raw_pixels"
"""Name of the layer behind the input; its range is that of pixels 0..255."""
STEPS = 255
"""Steps of an 8-bit range."""
LEAST_STEP = 1e-6
"""Of a range: a layer that gave nothing but zeros (dead ReLUs) has none of its own, and kernels refuse outputs whose
step is more than 256 times finer than the product of those that they are computed from."""

Range = tuple[float, float]
"""Smallest and largest real value; zero is inside, on the grid."""

WEIGHTED = {"Conv2D": "kernel", "DepthwiseConv2D": "depthwise_kernel", "Dense": "kernel"}
"""Layers with a kernel -> its attribute."""
AFFINE = ("BatchNormalization", "Rescaling")
_ARITHMETIC = ("Add", "Multiply")
_SAME_RANGE = (
    "MaxPooling2D",
    "AveragePooling2D",
    "GlobalMaxPooling2D",
    "ZeroPadding2D",
    "Cropping2D",
    "Reshape",
    "Flatten",
    "Concatenate",
    "MeanBorder",
)
_ROUNDS = ("AveragePooling2D", "MeanBorder")
"""Those among them that bring in values between the steps."""
_OWN_RANGE = ("ReLU", "GlobalAveragePooling2D")
_FUNCTIONS: dict[str, Range | None] = {
    "linear": None,
    "sigmoid": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
    "softmax": (0.0, 255 / 256),
    "hard_silu": None,
}
"""What an Activation may be -> its range where the kernels fix it."""


@dataclass(frozen=True, eq=False)
class Op:
    """One layer of a tf_keras model with the layers that it reads."""

    name: str
    kind: str
    """Class of the layer."""
    layer: Any
    inputs: tuple[str, ...]

    @property
    def function(self) -> str:
        """Keras 3's name of an Activation's function; empty for other layers."""
        if self.kind != "Activation":
            return ""
        name = self.layer.get_config()["activation"]
        name = name if isinstance(name, str) else str(name["config"])
        return registered_functions().get(name, name)


def ops(model: Any) -> tuple[Op, ...]:
    """List the layers of a flat functional tf_keras model in the order of computation, without the input."""
    import tensorflow as tf

    found = []
    for layer in model.layers:
        if type(layer).__name__ == "InputLayer":
            continue
        sources = [x._keras_history.layer.name for x in tf.nest.flatten(layer.input)]
        found.append(Op(layer.name, type(layer).__name__, layer, tuple(sources)))
    return tuple(found)


def obstacles(model: Any) -> tuple[str, ...]:
    """Name the layers of a model from `bridge.rebuilt` that integer kernels can't be trained for.

    Returns:
        Each as `name (class: reason)`; empty when there is none.
    """
    shared = [f"{x.name} ({type(x).__name__}: called more than once)" for x in model.layers if _calls(x) > 1]
    return tuple(shared) or tuple(
        f"{op.name} ({op.kind}: {reason})" for op in ops(model) if (reason := _obstacle(op, model))
    )


def _calls(layer: Any) -> int:
    return len(layer.inbound_nodes)


def _obstacle(op: Op, model: Any) -> str:
    if op.kind == "Activation":
        if op.function in ("swish", "silu", "hard_sigmoid"):
            return ""  # become operations that are known
        if op.function == "softmax" and model.output._keras_history.layer is not op.layer:
            return "softmax before the end"
        return "" if op.function in _FUNCTIONS else f"no integer kernel for {op.function}"
    if op.kind == "ReLU":
        config = op.layer.get_config()
        plain = not config["negative_slope"] and not config["threshold"] and config["max_value"] in (None, 6.0)
        return "" if plain else "not a plain ReLU or ReLU6"
    if op.kind == "BatchNormalization" and len(op.layer.input.shape) != 4 and _kind_of_input(op) not in WEIGHTED:
        return "behind vectors that no dense layer made"
    known = (*WEIGHTED, *AFFINE, *_ARITHMETIC, *_SAME_RANGE, *_OWN_RANGE, "Softmax")
    return "" if op.kind in known else "no integer form"


def _kind_of_input(op: Op) -> str:
    return type(op.layer.input._keras_history.layer).__name__


def lowered(model: Any) -> Any:
    """Build a model from `bridge.rebuilt` again with a layer behind the input for its range, and plain operations only.

    Swish becomes a sigmoid and a product, hard sigmoid a shift, a ReLU6 and a scale.
    """
    layers = legacy_keras().layers
    inputs = legacy_keras().Input(model.input.shape[1:], name=model.input_names[0])
    tensors = {model.input_names[0]: layers.Activation("linear", name=PIXELS)(inputs)}
    for op in ops(model):
        taken = [tensors[name] for name in op.inputs]
        x = taken[0] if len(taken) == 1 else taken
        if op.function in ("swish", "silu"):
            gate = layers.Activation("sigmoid", name=f"{op.name}_sigmoid")(x)
            tensors[op.name] = layers.Multiply(name=op.name)([x, gate])
        elif op.function == "hard_sigmoid":
            x = layers.Rescaling(1.0, 3.0, name=f"{op.name}_shift")(x)
            x = layers.ReLU(6.0, name=f"{op.name}_relu6")(x)
            tensors[op.name] = layers.Rescaling(1 / 6, name=op.name)(x)
        else:
            copy = type(op.layer).from_config(op.layer.get_config())
            tensors[op.name] = copy(x)
            copy.set_weights(op.layer.get_weights())
    return legacy_keras().Model(inputs, tensors[model.output._keras_history.layer.name], name=model.name)


@dataclass(frozen=True, eq=False)
class Plan:
    """What integer kernels make of a model from `lowered`."""

    ops: tuple[Op, ...]
    output: str
    """Name of the last layer."""
    span: Range | None = None
    """Values that the last layer must be able to tell, whatever it gives on photos; None where it is made of scores."""

    @classmethod
    def of(cls, model: Any, span: Range | None = None) -> "Plan":
        """Plan a model."""
        return cls(ops(model), model.output._keras_history.layer.name, span)

    @cached_property
    def by_name(self) -> dict[str, Op]:
        """Operations by name."""
        return {op.name: op for op in self.ops}

    @cached_property
    def readers(self) -> dict[str, list[Op]]:
        """Name -> the operations that read it."""
        found: dict[str, list[Op]] = {op.name: [] for op in self.ops}
        for op in self.ops:
            for name in op.inputs:
                found.setdefault(name, []).append(op)
        return found

    @cached_property
    def chains(self) -> tuple[tuple[Op, ...], ...]:
        """Operations that become one kernel each, in the order of computation."""
        chain_of: dict[str, list[Op]] = {}
        chains: list[list[Op]] = []
        for op in self.ops:
            chain = chain_of.get(op.inputs[0], []) if len(op.inputs) == 1 else []
            if chain and len(self.readers[op.inputs[0]]) == 1 and op.inputs[0] != self.output and _joins(chain, op):
                chain.append(op)
            else:
                chain = [op]
                chains.append(chain)
            chain_of[op.name] = chain
        return tuple(tuple(chain) for chain in chains)

    @cached_property
    def group_of(self) -> dict[str, str]:
        """End of a chain -> the name that stands for all whose range is the same."""
        parent = {chain[-1].name: chain[-1].name for chain in self.chains}

        def root(name: str) -> str:
            while parent[name] != name:
                name = parent[name]
            return name

        for chain in self.chains:
            if chain[0].kind in _SAME_RANGE:
                for name in chain[0].inputs:
                    parent[root(chain[-1].name)] = root(name)
        return {name: root(name) for name in parent}

    @cached_property
    def fixed(self) -> dict[str, Range]:
        """Groups whose range does not depend on photos; that of pixels is not among them."""
        ends = [chain[-1] for chain in self.chains]
        return {self.group_of[op.name]: fixed for op in ends if (fixed := _FUNCTIONS.get(op.function))}

    @cached_property
    def measured(self) -> tuple[str, ...]:
        """Layers whose values set ranges."""
        return tuple(
            chain[-1].name
            for chain in self.chains
            if chain[0].kind not in _SAME_RANGE and self.group_of[chain[-1].name] not in self.fixed
        )

    @cached_property
    def quantized(self) -> tuple[str, ...]:
        """Layers behind which values are rounded: ends of chains but for those that only pass values on.

        What the kernels fix at the very end (softmax, sigmoid) is left to them.
        """
        return tuple(
            chain[-1].name
            for chain in self.chains
            if (chain[0].kind not in _SAME_RANGE or chain[0].kind in _ROUNDS)
            and (chain[-1].name != self.output or self.group_of[self.output] not in self.fixed)
        )

    def ranges(self, measured: dict[str, Range], pixels: Range) -> dict[str, Range]:
        """Range of every layer of `quantized`.

        Args:
            measured: smallest and largest value of each layer of `measured`.
            pixels: of the input.
        """
        groups: dict[str, Range] = {self.group_of[self.output]: self.span} if self.span else {}
        for name, (low, high) in measured.items():
            before = groups.get(self.group_of[name], (0.0, 0.0))
            groups[self.group_of[name]] = (min(before[0], low), max(before[1], high))
        nudged = {name: on_grid(*each) for name, each in groups.items()}
        nudged |= self.fixed | {self.group_of[PIXELS]: pixels}
        return {name: nudged[self.group_of[name]] for name in self.quantized}


def _joins(chain: list[Op], op: Op) -> bool:
    """Whether an operation is computed by the kernel of what comes before."""
    root, last = chain[0], chain[-1]
    if op.kind in AFFINE:
        return root.kind in (*WEIGHTED, "BatchNormalization") and last.kind != "ReLU"
    return op.kind == "ReLU" and root.kind in (*WEIGHTED, *AFFINE, *_ARITHMETIC) and last.kind != "ReLU"


def on_grid(low: float, high: float) -> Range:
    """Shift a range by less than half a step so that zero is one of its 256 values."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = max((high - low) / STEPS, LEAST_STEP)
    zero = round(-low / step)
    return -zero * step, (STEPS - zero) * step


def pixel_range(scale: float, offset: float) -> tuple[Range, int]:
    """Range of the input for which raw pixels are valid, and its zero point: value = scale * (pixel - zero point)."""
    zero = min(max(round(-offset / scale), 0), STEPS)
    return (-zero * scale, (STEPS - zero) * scale), zero
