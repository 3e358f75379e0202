"""Ranges of activations: measured on training photos, written into the float model that becomes an integer one.

The float twin of an integer artifact (same graph, float32) runs through the interpreter with its intermediate results
kept. What was seen becomes the `min` and `max` of its tensors, where TensorFlow's quantizer looks for them. So one pass
serves any number of conversions, and ranges need not be the plain extremes that TFLiteConverter takes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetl import data
from edgetl.console import progress
from export.flatbuffer import operators, pack, unpack
from export.tensors import Tensors, normalized

BINS = 2048
"""Of the histogram of one tensor, from its smallest value to its largest."""
LEVELS = 256
"""Of an int8 activation."""
COPYING = ("CONCATENATION", "PAD", "RESHAPE")
"""Operators that give their input's values on, and whose int8 form needs one scale on both sides."""
SHRINKS = np.linspace(1.0, 0.2, 41)
"""Shares of the full range among which the least squared error is looked for."""
T = TypeVar("T")
Range = tuple[float, float]
Histogram = NDArray[np.int64]


class Calibration:
    """A float twin and what its activations are on photos; passes are made when first needed."""

    def __init__(self, twin: bytes, photos: Sequence[NDArray[np.uint8]], scale: float, offset: float) -> None:
        """Remember what to measure.

        Args:
            twin: float .tflite that expects `pixels * scale + offset`.
            photos: uint8 [h, w, 3], of the training split.
            scale: of raw pixels.
            offset: likewise.
        """
        self.twin = twin
        self.photos = photos
        self._border = (offset, 255.0 * scale + offset)
        self._scale, self._offset = scale, offset

    @cached_property
    def extremes(self) -> dict[int, Range]:
        """Smallest and largest value of each tensor, by index."""

        def of(tensors: Tensors, photos: Sequence[NDArray[np.uint8]]) -> dict[int, Range]:
            found: dict[int, Range] = {}
            for image in normalized(photos, self._scale, self._offset):
                for index, values in tensors.run(image):
                    low, high = found.get(index, (np.inf, -np.inf))
                    found[index] = min(low, float(values.min())), max(high, float(values.max()))
            return found

        parts = self._in_threads("calibrate", of)
        return {i: (min(part[i][0] for part in parts), max(part[i][1] for part in parts)) for i in parts[0]}

    @cached_property
    def histograms(self) -> dict[int, Histogram]:
        """Counts of values in BINS equal steps over the extremes of each tensor, by index."""
        extremes = self.extremes

        def of(tensors: Tensors, photos: Sequence[NDArray[np.uint8]]) -> dict[int, Histogram]:
            found = {index: np.zeros(BINS, np.int64) for index in tensors.names}
            for image in normalized(photos, self._scale, self._offset):
                for index, values in tensors.run(image):
                    low, high = extremes[index]
                    if high > low:
                        bins = (values.ravel() - np.float32(low)) * np.float32(BINS / (high - low))
                        found[index] += np.bincount(np.clip(bins, 0, BINS - 1).astype(np.intp), minlength=BINS)
            return found

        parts = self._in_threads("calibrate, distributions", of)
        return {i: np.sum([part[i] for part in parts], axis=0) for i in parts[0]}

    def ranges(self, method: str) -> dict[int, Range]:
        """Ranges of all tensors, by index.

        Args:
            method: a row of METHODS.
        """
        choose = METHODS[method]
        found = self.extremes
        if choose is not None:
            found = {i: choose(self.histograms[i], *found[i]) if found[i][1] > found[i][0] else found[i] for i in found}
        # Raw pixels are valid for the input tensor only if its range is theirs, whatever these photos hold.
        return found | {index: self._border for index in self._pixels}

    def annotated(self, method: str) -> bytes:
        """The twin with ranges in its tensors, ready for TensorFlow's quantizer."""
        from ai_edge_litert import schema_py_generated as schema

        model = unpack(self.twin)
        for index, (low, high) in self.ranges(method).items():
            parameters = schema.QuantizationParametersT()
            parameters.min, parameters.max = np.array([low], np.float32), np.array([high], np.float32)
            model.subgraphs[0].tensors[index].quantization = parameters
        return pack(model)

    @cached_property
    def _pixels(self) -> set[int]:
        """The input tensor, and those into which operators only copy it: the quantizer gives all of them one scale."""
        graph = unpack(self.twin).subgraphs[0]
        found = {int(graph.inputs[0])}
        for written, operator in zip(operators(self.twin), graph.operators, strict=True):
            if written.name in COPYING and found & set(map(int, operator.inputs)):
                found |= set(map(int, operator.outputs))
        return found

    def _in_threads(self, title: str, of: Callable[[Tensors, Sequence[NDArray[np.uint8]]], T]) -> list[T]:
        """Divide the photos among threads, one interpreter each."""
        workers = min(data.default_workers(), len(self.photos))
        parts = [self.photos[start::workers] for start in range(workers)]
        with progress(title), ThreadPoolExecutor(workers) as threads:
            return list(threads.map(of, [Tensors(self.twin) for _ in parts], parts))


def _percentile(share: float) -> Callable[[Histogram, float, float], Range]:
    """Leave out the outermost values, as many on both sides as the share says; zero stays in (it must be exact)."""

    def choose(histogram: Histogram, low: float, high: float) -> Range:
        edges = np.linspace(low, high, BINS + 1)
        inside = np.cumsum(histogram) / histogram.sum()
        first = int(np.searchsorted(inside, (1 - share) / 2, side="right"))
        last = int(np.searchsorted(inside, 1 - (1 - share) / 2))
        return min(0.0, float(edges[first])), max(0.0, float(edges[min(last, BINS - 1) + 1]))

    return choose


def _least_squares(histogram: Histogram, low: float, high: float) -> Range:
    """The share of the range with the least squared error: what is cut off against the width of a step."""
    low, high = min(0.0, low), max(0.0, high)
    edges = np.linspace(low, high, BINS + 1)
    centres, counts = (edges[:-1] + edges[1:]) / 2, histogram.astype(np.float64)
    errors = []
    for shrink in SHRINKS:
        step = shrink * (high - low) / (LEVELS - 1)
        cut = centres - np.clip(centres, shrink * low, shrink * high)
        errors.append(float((counts * (cut**2 + (cut == 0) * step**2 / 12)).sum()))
    best = float(SHRINKS[int(np.argmin(errors))])
    return best * low, best * high


METHODS: dict[str, Callable[[Histogram, float, float], Range] | None] = {
    "min-max": None,
    "percentile-99.99": _percentile(0.9999),
    "percentile-99.9": _percentile(0.999),
    "mse": _least_squares,
}
"""How a range comes out of what was seen; None takes the extremes."""
