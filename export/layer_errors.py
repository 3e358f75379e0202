"""What each operator of an int8 network adds to its error, and which Keras layers to leave in float.

Three figures per operator: what it adds itself and what its rounding alone does to the outputs, both against the float
twin (`Quantizer.twin`, whose weights are on the int8 grid already), and what has piled up until there, against the twin
with its weights as they were. The first comes
from TensorFlow's numeric verification, in which each float operator reads what the integer one reads; its NumericVerify
operators are taken out and the two tensors that they compare are read instead, on the kernels that run everything else.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.console import swallowed_output
from edgetl.errors import ArtifactError
from export import schemes
from export.choices import Choices
from export.flatbuffer import FLOAT_TYPES, border, operators, pack, unpack
from export.layer_effects import Step, effects
from export.tensors import Tensors, in_threads, normalized

if TYPE_CHECKING:
    from export.quantize import Quantizer

EFFECT_IMAGES = 4
"""Photos, at most, on which effects on the outputs are measured: one pass for each operator."""
VERIFY = b"NumericVerify"
STEPS = 255
"""Between the lowest and the highest stored value."""
EXACT_STEPS = 1e-4
"""Below so many steps an operator is exact: one float32 holds 255 steps to 1e-5 of a step."""
Photos = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]


@dataclass(frozen=True)
class LayerError:
    """One operator of the quantized network, named by the tensor that it writes."""

    position: int
    """In execution order, from 0."""
    operator: str
    """As the schema spells it: `CONV_2D`."""
    layers: tuple[str, ...]
    """Keras layers that it computes, in the order of the model; empty for what the converter put in."""
    tensor: str
    shape: tuple[int, ...]
    type: str
    """Element type in the artifact, as the schema spells it; FLOAT32 for layers left in float."""
    scale: float
    """One step of the stored value, in units of the float tensor (of int8, also where the artifact has float)."""
    zero_point: int
    own_steps: float
    """Error that this operator alone introduces: root mean square, in steps. 0.29 is that of rounding."""
    own_sqnr_db: float
    """The same against the spread of the float tensor, dB: 20 log10(standard deviation / error); inf: no error."""
    accumulated_steps: float
    """Error of the whole artifact at this tensor: root mean square, in steps."""
    accumulated_sqnr_db: float
    """The same against the spread of the float tensor, dB."""
    saturation: float
    """Share of values, 0..1, that the range cuts off: stored as -128 or 127, in float over a step further out."""
    range_used: float
    """Distance of the largest from the smallest value stored, as a share of all 255 steps, 0..1; 0 for float."""
    effect: float
    """Mean absolute change of an output (of a score, of a target in its deviations) when this tensor alone is rounded;
    0 for the output itself and for operators without an error of their own."""
    readers: tuple[str, ...]
    """Operators that read it, each as `CONV_2D layer`."""

    @property
    def is_float(self) -> bool:
        """Whether the artifact computes it in floating point."""
        return self.type in FLOAT_TYPES


def layer_errors(
    quantizer: "Quantizer",
    quantized: bytes | None,
    photos: Photos,
    ranges: str = "min-max",
) -> tuple[LayerError, ...]:
    """Measure each operator of a quantized network against the float twin.

    Args:
        quantizer: of the model and the photos that the network was calibrated on.
        quantized: .tflite, int8 or mixed; None measures plain int8.
        photos: to measure on, uint8 [h, w, 3] each.
        ranges: with which the network was made.

    Returns:
        One row for each operator of the twin, in execution order.

    Raises:
        ArtifactError: the network was not made from this twin with these ranges.
    """
    verified, pairs = _verified(quantizer, ranges)
    artifact = quantized or quantizer.quantize(schemes.get("int8"), Choices(ranges)).tflite
    rows = _matched(quantizer, artifact, pairs)
    _, scale, offset = quantizer.prepared
    totals = _totals((quantizer.exact_twin, artifact, verified), rows, photos, scale, offset)
    few = list(normalized(list(photos[:EFFECT_IMAGES]), scale, offset))
    steps = {row.tensor: row.step for row, total in zip(rows, totals, strict=True) if total.own_error}
    changes = effects(quantizer.twin, steps, few, quantizer.units)
    return tuple(_described(row, total, changes.get(row.tensor, 0.0)) for row, total in zip(rows, totals, strict=True))


def most_harmful(errors: Sequence[LayerError]) -> tuple[str, ...]:
    """Rank Keras layers from the most to the least worth leaving in float.

    By the effect of their operators on the outputs, summed: neither an operator's own error nor the jump of the
    accumulated one tells what becomes of it further down (docs/quantization.md has the comparison).

    Returns:
        One layer for each operator, or for all operators that compute the same layer; the first where several are
        fused into one. What the converter put in has no layer and is left out.
    """
    harm: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for error in errors:
        if error.layers:
            effect, noise = harm[error.layers[0]]
            # Where outputs don't move at all (saturated scores) the operator's own error decides.
            harm[error.layers[0]] = effect + error.effect, max(noise, 10 ** (-error.own_sqnr_db / 10))
    return tuple(sorted(harm, key=lambda layer: harm[layer], reverse=True))


@dataclass(frozen=True)
class _Pair:
    """The two tensors that a NumericVerify operator compares."""

    stored: int
    exact: int
    step: Step
    """Of the integer one."""


@dataclass(frozen=True)
class _Row:
    """One operator, and where its tensor lies in each model."""

    position: int
    operator: str
    layers: tuple[str, ...]
    tensor: str
    shape: tuple[int, ...]
    type: str
    step: Step
    readers: tuple[str, ...]
    twin: int
    artifact: int
    pair: _Pair | None
    """In the verification; None for what it does not verify."""


class _Total:
    """Sums over photos for one row."""

    def __init__(self, row: _Row) -> None:
        self.row = row
        self.count = self.clipped = 0
        self.sum = self.squares = self.own = self.accumulated = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, exact: NDArray[Any], received: NDArray[Any], pair: tuple[NDArray[Any], NDArray[Any]] | None) -> None:
        """Count one photo.

        Args:
            exact: tensor of the twin.
            received: of the artifact, as stored.
            pair: of the verification: integer tensor as stored, float tensor.
        """
        scale, zero_point = self.row.step
        self.count += exact.size
        self.sum += float(exact.sum(dtype=np.float64))
        self.squares += _squares(exact)
        if received.dtype == np.int8:
            # More than a step: 1/256 steps, which the format fixes for LOGISTIC and SOFTMAX, end one short of 1.
            over = (received == 127) & (exact > scale * (128 - zero_point))
            under = (received == -128) & (exact < scale * (-129 - zero_point))
            self.clipped += int(np.count_nonzero(over | under))
            self.low, self.high = min(self.low, int(received.min())), max(self.high, int(received.max()))
        self.accumulated += _squares(_real(received, self.row.step) - exact)
        if pair:
            self.own += _squares(_real(pair[0], self.row.step) - pair[1])

    @property
    def own_error(self) -> float:
        """Root mean square of what the operator adds, in units of the float tensor."""
        error = math.sqrt(self.own / self.count)
        return error if error > EXACT_STEPS * self.row.step[0] else 0.0

    def join(self, other: "_Total") -> "_Total":
        """Add what another thread has counted."""
        for name in ("count", "clipped", "sum", "squares", "own", "accumulated"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        return self


def _squares(values: NDArray[Any]) -> float:
    flat = values.ravel()
    return float(flat @ flat)  # blocks of float32, as BLAS sums them: good to 5 digits, and these are most of the work


def _real(stored: NDArray[Any], step: Step) -> NDArray[np.float32]:
    if stored.dtype != np.int8:
        return stored
    return (stored.astype(np.float32) - np.float32(step[1])) * np.float32(step[0])


def _verified(quantizer: "Quantizer", ranges: str) -> tuple[bytes, dict[str, _Pair]]:
    """The int8 network with each operator computed in float as well, from the same inputs.

    Returns:
        The model, and the pairs by name of the float tensor.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize

    with swallowed_output():
        debug = mlir_quantize(
            quantizer.annotated(ranges),
            input_data_type=tf.uint8,
            output_data_type=tf.uint8,
            enable_numeric_verify=True,
        )
    model = unpack(bytes(debug))
    (graph,) = model.subgraphs
    verifying = [model.operatorCodes[each.opcodeIndex].customCode == VERIFY for each in graph.operators]
    pairs = {}
    for operator, is_verifying in zip(graph.operators, verifying, strict=True):
        if is_verifying:
            stored, exact = (int(index) for index in operator.inputs)
            step = graph.tensors[stored].quantization
            pairs[graph.tensors[exact].name.decode()] = _Pair(
                stored, exact, (float(step.scale[0]), int(step.zeroPoint[0]))
            )
    graph.operators = [each for each, is_verifying in zip(graph.operators, verifying, strict=True) if not is_verifying]
    return pack(model), pairs


def _matched(quantizer: "Quantizer", artifact: bytes, pairs: dict[str, _Pair]) -> tuple[_Row, ...]:
    """Find each operator of the twin in the artifact and in the verification.

    Raises:
        ArtifactError: none of them is in the artifact, or one is there with another range.
    """
    found = operators(quantizer.twin)
    written = {(op.name, op.outputs[0].name): op.outputs[0] for op in operators(artifact)}
    twin, there = (
        {tensor.name.decode(): (index, tensor) for index, tensor in enumerate(unpack(each).subgraphs[0].tensors)}
        for each in (quantizer.twin, artifact)
    )
    order = {layer.name: index for index, layer in enumerate(quantizer.prepared[0].layers)}
    layers = {op.outputs[0].name: _layers(op.outputs[0].name, order) for op in found}
    rows = []
    for position, op in enumerate(found):
        name = op.outputs[0].name
        both = (name, f"{name}1")  # a 1 stands behind the name where the quantizer puts an operator after the output
        tensor = next((written[op.name, each] for each in both if (op.name, each) in written), None)
        pair = next((pairs[each] for each in both if each in pairs), None)
        if tensor is None or not (tensor.scale or pair):
            continue
        step = (tensor.scale[0], tensor.zero_point[0]) if tensor.scale else pair.step if pair else (1.0, 0)
        if pair and not _same(step, pair.step):
            raise ArtifactError(
                f"{name}: scale {step[0]:.6g}, zero point {step[1]} in the artifact; its description leads to "
                f"{pair.step[0]:.6g}, {pair.step[1]}. Convert the run again"
            )
        index, described = twin[name]
        readers = [other for other in found if name in (each.name for each in other.inputs)]
        rows.append(
            _Row(
                position=position,
                operator=op.name,
                layers=layers[name],
                tensor=name,
                shape=tuple(int(side) for side in described.shape),
                type=tensor.type,
                step=step,
                readers=tuple(" ".join((each.name, *layers[each.outputs[0].name][:1])) for each in readers),
                twin=index,
                artifact=there[tensor.name][0],
                pair=pair,
            )
        )
    if not rows:
        raise ArtifactError("no operator has the name of one of the run's float model. Convert the run again as int8")
    return tuple(rows)


def _same(one: Step, other: Step) -> bool:
    # Equal photos and software give equal ranges; the last digits of float32 may differ between machines.
    return abs(one[0] / other[0] - 1) < 1e-3 and abs(one[1] - other[1]) <= 1


def _layers(tensor: str, order: dict[str, int]) -> tuple[str, ...]:
    """Keras layers behind a tensor, in the order of the model."""
    from export.quantize import keras_layers

    return tuple(sorted(keras_layers(tensor), key=lambda layer: (order.get(layer, len(order)), layer)))


def _totals(
    models: tuple[bytes, bytes, bytes], rows: tuple[_Row, ...], photos: Photos, scale: float, offset: float
) -> list[_Total]:
    """Run twin, artifact and verification on photos, divided among threads."""
    signed = border(models[1])[0].type == "INT8"

    def of(part: Sequence[NDArray[np.uint8]]) -> list[_Total]:
        twin, artifact, verified = (Tensors(each) for each in models)
        wanted = {index for row in rows if row.pair for index in (row.pair.stored, row.pair.exact)}
        verified.names = {index: name for index, name in verified.names.items() if index in wanted}
        found = [_Total(row) for row in rows]
        for photo, image in zip(part, normalized(part, scale, offset), strict=True):
            stored = (photo[None].astype(np.int16) - 128).astype(np.int8) if signed else photo[None]
            exact, received = dict(twin.run(image)), dict(artifact.run(stored))
            pairs = dict(verified.run(photo[None]))
            for total in found:
                row = total.row
                pair = (pairs[row.pair.stored], pairs[row.pair.exact]) if row.pair else None
                total.add(exact[row.twin], received[row.artifact], pair)
        return found

    first, *others = in_threads("errors of each layer", of, list(photos))
    for other in others:
        for total, more in zip(first, other, strict=True):
            total.join(more)
    return first


def _described(row: _Row, total: _Total, effect: float) -> LayerError:
    deviation = math.sqrt(max(total.squares / total.count - (total.sum / total.count) ** 2, 0.0))
    own, accumulated = total.own_error, math.sqrt(total.accumulated / total.count)
    return LayerError(
        position=row.position,
        operator=row.operator,
        layers=row.layers,
        tensor=row.tensor,
        shape=row.shape,
        type=row.type,
        scale=row.step[0],
        zero_point=row.step[1],
        own_steps=own / row.step[0],
        own_sqnr_db=_decibels(deviation, own),
        accumulated_steps=accumulated / row.step[0],
        accumulated_sqnr_db=_decibels(deviation, accumulated),
        saturation=total.clipped / total.count,
        range_used=max(total.high - total.low, 0) / STEPS,
        effect=effect,
        readers=row.readers,
    )


def _decibels(deviation: float, error: float) -> float:
    if error == 0:
        return math.inf
    return 20 * math.log10(deviation / error) if deviation else -math.inf
