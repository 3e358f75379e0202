"""What flows inside a .tflite file: every tensor between its operators, on photos."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetl import data
from edgetl.console import progress
from edgetl.errors import ArtifactError
from export.device.runtime import find_runtime
from export.flatbuffer import unpack

Image = TypeVar("Image", bound=NDArray[Any])
Found = TypeVar("Found")


class Tensors:
    """A model that keeps its intermediate results; the optimized built-in kernels compute it, with no delegate."""

    def __init__(self, tflite: bytes) -> None:
        """Load a model of one graph and one input.

        Raises:
            ArtifactError: the interpreter refuses it.
        """
        runtime = find_runtime()
        self.model = unpack(tflite)
        graph = self.model.subgraphs[0]
        read = {int(i) for operator in graph.operators for i in (*operator.inputs, *operator.outputs) if i >= 0}
        self.names = {
            i: graph.tensors[i].name.decode()
            for i in sorted(read)
            if (content := self.model.buffers[graph.tensors[i].buffer].data) is None or not len(content)
        }
        """Index -> name of all tensors that are no constants."""
        self.input = int(graph.inputs[0])
        try:
            self._interpreter = runtime.interpreter(
                model_content=tflite,
                num_threads=1,
                experimental_op_resolver_type=runtime.resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
            )
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(f"the interpreter refuses the model: {' '.join(str(error).split())}") from error

    def run(self, image: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Run one example.

        Args:
            image: [1, h, w, 3] as the input tensor takes it.

        Yields:
            Index and content of each tensor of `names`; the content is overwritten by the next run.
        """
        self._interpreter.set_tensor(self.input, image)
        self._interpreter.invoke()
        for index in self.names:
            yield index, self._interpreter.get_tensor(index)

    def outputs(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Run examples, [n, h, w, 3] as the input tensor takes them, and return what comes out, [n, k]."""
        (last,) = (int(index) for index in self.model.subgraphs[0].outputs)
        return np.concatenate([np.array(dict(self.run(image[None]))[last], np.float32) for image in images])


def gap(expected: NDArray[np.float32], received: NDArray[np.float32], units: Sequence[float]) -> float:
    """Largest difference of outputs [n, k], in units.

    Of targets far from zero (years, say) float32 holds fewer digits behind the point: beyond 100 units differences
    count against the value itself.

    Args:
        expected: of one form of a model.
        received: of another one.
        units: `OutputSpec.units`: one for each output, or one for all.
    """
    return float((np.abs(expected - received) / np.maximum(units, np.abs(expected) / 100)).max())


def normalized(photos: Sequence[NDArray[np.uint8]], scale: float, offset: float) -> Iterator[NDArray[np.float32]]:
    """Photos, uint8 [h, w, 3], as a float model takes them whose normalization was cut off: float32 [1, h, w, 3]."""
    for pixels in photos:
        yield pixels[None].astype(np.float32) * np.float32(scale) + np.float32(offset)


def in_threads(title: str, of: Callable[[Sequence[Image]], Found], images: Sequence[Image]) -> list[Found]:
    """Divide photos among threads, one per core.

    Args:
        title: of the progress line.
        of: what is found on a part of the photos, with interpreters of its own: they are not for two threads at once.
        images: at least one; they are dealt out in turn, each part in their order.

    Returns:
        What was found on each part.
    """
    workers = min(data.default_workers(), len(images))
    with progress(title), ThreadPoolExecutor(workers) as threads:
        return list(threads.map(of, [images[start::workers] for start in range(workers)]))
