"""Ranges of activations: measured on training photos, written into the float model that becomes an integer one.

The float twin of an integer artifact (same graph, float32) runs through the interpreter with its intermediate results
kept. What was seen becomes the `min` and `max` of its tensors, where TensorFlow's quantizer looks for them. So one pass
serves any number of conversions, and ranges need not be the plain extremes that TFLiteConverter takes.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from export.flatbuffer import operators, pack, unpack
from export.tensors import Tensors, in_threads, normalized

BINS = 2048
"""Of the histogram of one tensor, from its smallest value to its largest."""
LEVELS = 256
"""Of an int8 activation."""
COPYING = ("CONCATENATION", "PAD", "RESHAPE")
"""Operators that give their input's values on, and whose int8 form needs one scale on both sides."""
ODD_PHOTOS = 0.02
"""Share of photos whose extremes may lie outside of a range."""
SHRINKS = np.linspace(1.0, 0.2, 41)
"""Shares of the full range among which the least squared error is looked for."""
Range = tuple[float, float]
Histogram = NDArray[np.int64]


class Calibration:
    """A float twin and what its activations are on photos; passes are made when first needed."""

    def __init__(
        self,
        twin: bytes,
        photos: Sequence[NDArray[np.uint8]],
        scale: float,
        offset: float,
        span: Range | None = None,
    ) -> None:
        """Remember what to measure.

        Args:
            twin: float .tflite that expects `pixels * scale + offset`.
            photos: uint8 [h, w, 3], of the training split.
            scale: of raw pixels.
            offset: likewise.
            span: values that the output must be able to tell, whatever it gave on the photos.
        """
        self.twin = twin
        self.photos = photos
        self._span = span
        self._border = (offset, 255.0 * scale + offset)
        self._scale, self._offset = scale, offset

    @cached_property
    def by_photo(self) -> dict[int, NDArray[np.float64]]:
        """Smallest and largest value of each tensor on each photo, by index, [photos, 2]."""

        def of(photos: Sequence[NDArray[np.uint8]]) -> dict[int, list[Range]]:
            tensors = Tensors(self.twin)
            found: dict[int, list[Range]] = {index: [] for index in tensors.names}
            for image in normalized(photos, self._scale, self._offset):
                for index, values in tensors.run(image):
                    found[index].append((float(values.min()), float(values.max())))
            return found

        parts = in_threads("calibrate", of, self.photos)
        return {i: np.concatenate([np.array(part[i]) for part in parts]) for i in parts[0]}

    @cached_property
    def extremes(self) -> dict[int, Range]:
        """Smallest and largest value of each tensor on all photos, by index."""
        return {i: (float(seen[:, 0].min()), float(seen[:, 1].max())) for i, seen in self.by_photo.items()}

    @cached_property
    def histograms(self) -> dict[int, Histogram]:
        """Counts of values in BINS equal steps over the extremes of each tensor, by index."""
        extremes = self.extremes

        def of(photos: Sequence[NDArray[np.uint8]]) -> dict[int, Histogram]:
            tensors = Tensors(self.twin)
            found = {index: np.zeros(BINS, np.int64) for index in tensors.names}
            for image in normalized(photos, self._scale, self._offset):
                for index, values in tensors.run(image):
                    low, high = extremes[index]
                    if high > low:
                        bins = (values.ravel() - np.float32(low)) * np.float32(BINS / (high - low))
                        found[index] += np.bincount(np.clip(bins, 0, BINS - 1).astype(np.intp), minlength=BINS)
            return found

        parts = in_threads("calibrate, distributions", of, self.photos)
        return {i: np.sum([part[i] for part in parts], axis=0) for i in parts[0]}

    def ranges(self, method: str) -> dict[int, Range]:
        """Ranges of all tensors, by index.

        Args:
            method: a row of METHODS.
        """
        found = METHODS[method](self)
        # Raw pixels are valid for the input tensor only if its range is theirs, whatever these photos hold.
        return found | self._outputs | dict.fromkeys(self._pixels, self._border)

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
    def _outputs(self) -> dict[int, Range]:
        """Ranges of an output that is a value: nothing that was seen or trained with is cut off."""
        if self._span is None:
            return {}
        graph = unpack(self.twin).subgraphs[0]
        found = {int(graph.outputs[0])}
        for written, operator in zip(reversed(operators(self.twin)), reversed(graph.operators), strict=True):
            if written.name in COPYING and found & set(map(int, operator.outputs)):
                found |= set(map(int, operator.inputs)) & set(self.extremes)
        low, high = self._span
        seen = [self.extremes[index] for index in found]
        return dict.fromkeys(found, (min(low, *(each[0] for each in seen)), max(high, *(each[1] for each in seen))))

    @cached_property
    def _pixels(self) -> set[int]:
        """The input tensor, and those into which operators only copy it: the quantizer gives all of them one scale."""
        graph = unpack(self.twin).subgraphs[0]
        found = {int(graph.inputs[0])}
        for written, operator in zip(operators(self.twin), graph.operators, strict=True):
            if written.name in COPYING and found & set(map(int, operator.inputs)):
                found |= set(map(int, operator.outputs))
        return found


Method = Callable[[Calibration], dict[int, Range]]


def _without_odd_photos(calibration: Calibration) -> dict[int, Range]:
    """Leave out, for each tensor and on each side, the extremes of the few photos with the most extreme ones."""
    found = {}
    for i, seen in calibration.by_photo.items():
        low, high = np.quantile(seen[:, 0], ODD_PHOTOS), np.quantile(seen[:, 1], 1 - ODD_PHOTOS)
        found[i] = min(0.0, float(low)), max(0.0, float(high))
    return found


def _by_histogram(choose: Callable[[Histogram, float, float], Range]) -> Method:
    """Choose the range of each tensor by its distribution; one that is constant keeps its own."""

    def ranges(calibration: Calibration) -> dict[int, Range]:
        histograms = calibration.histograms
        return {
            i: choose(histograms[i], low, high) if high > low else (low, high)
            for i, (low, high) in calibration.extremes.items()
        }

    return ranges


def percentile(share: float, histogram: Histogram, low: float, high: float) -> Range:
    """Leave out the outermost values, as many on both sides as the share says; zero stays in (it must be exact)."""
    edges = np.linspace(low, high, BINS + 1)
    inside = np.cumsum(histogram) / histogram.sum()
    first = int(np.searchsorted(inside, (1 - share) / 2, side="right"))
    last = int(np.searchsorted(inside, 1 - (1 - share) / 2))
    return min(0.0, float(edges[first])), max(0.0, float(edges[min(last, BINS - 1) + 1]))


def least_squares(histogram: Histogram, low: float, high: float) -> Range:
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


METHODS: dict[str, Method] = {
    "min-max": lambda calibration: calibration.extremes,
    "no-odd-photos": _without_odd_photos,
    "percentile-99.99": _by_histogram(partial(percentile, 0.9999)),
    "percentile-99.9": _by_histogram(partial(percentile, 0.999)),
    "mse": _by_histogram(least_squares),
}
"""How ranges come out of what was seen."""
