"""Training examples in batches whose order follows from (seed, phase, epoch) alone, so that a stopped epoch can go on.

Two sources: border activations, stored once (`StoredSource`), or the photos themselves, decoded anew in each
epoch (`StreamedSource`). Both give uint8 pixels or float16 activations; the training step turns them into float32.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.activations import Activations
from edgetl.balance import balanced_indices
from edgetl.console import quiet_tensorflow
from edgetl.data import Examples, default_workers, load_pixels
from edgetl.errors import DatasetError, UnreadableImageError
from edgetl.inputs import InputSpec
from edgetl.outputs import OutputSpec
from edgetl.tasks import as_targets

if TYPE_CHECKING:
    from edgetl.teaching import Teaching

quiet_tensorflow()
import tensorflow as tf  # noqa: E402

PREFETCH = 2
"""Batches made ahead. A fixed number: autotuning has stalled epochs for half a minute."""


class Source(Protocol):
    """Where the inputs of training come from."""

    @property
    def views(self) -> int:
        """Stored versions of each photo; view 0 is the photo as it is."""

    def __len__(self) -> int:
        """Number of photos."""

    def gather(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Inputs of some photos, each [n, ...], in the given versions."""

    def signature(self) -> tuple[tf.TensorSpec, ...]:
        """Shapes and types of what `gather` gives, with a batch of unknown size."""

    def close(self) -> None:
        """Let go of files and threads."""


@dataclass(frozen=True)
class StoredSource:
    """Border activations that `edgetl.activations.store` has computed."""

    activations: Activations
    shapes: tuple[tuple[int, ...], ...]
    """Of the border tensors, without the batch."""

    @property
    def views(self) -> int:
        """Stored versions of each photo."""
        return self.activations.views

    def __len__(self) -> int:
        """Number of photos."""
        return len(self.activations)

    def gather(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """float16 [n, *shape], one array per border tensor."""
        return self.activations.gather(rows, views)

    def signature(self) -> tuple[tf.TensorSpec, ...]:
        """Shapes and types of what `gather` gives."""
        return tuple(tf.TensorSpec((None, *shape), tf.float16) for shape in self.shapes)

    def close(self) -> None:
        """Let others delete what is stored, if they need the room."""
        self.activations.close()


class StreamedSource:
    """Photos, decoded by threads each time that they are asked for."""

    views = 1

    def __init__(self, examples: Examples, spec: InputSpec, workers: int | None = None) -> None:
        """Start the threads; `close` ends them."""
        self._examples, self._spec = examples, spec
        self._pool = ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="decode")

    def __len__(self) -> int:
        """Number of photos."""
        return len(self._examples)

    def gather(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """uint8 [n, h, w, 3].

        Raises:
            DatasetError: a photo that could be read before can't be read now.
        """
        return (np.stack(list(self._pool.map(self._pixels, rows))),)

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        example = self._examples.items[row]
        try:
            return load_pixels(example, self._spec)[0]
        except UnreadableImageError as error:
            raise DatasetError(
                f"{example.path}: can't be read any more ({error}). Restore the photo and run the same command again"
            ) from error

    def signature(self) -> tuple[tf.TensorSpec, ...]:
        """Shape and type of what `gather` gives."""
        return (tf.TensorSpec((None, *self._spec.shape), tf.uint8),)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Batches:
    """Batches of one training split."""

    source: Source
    labels: NDArray[Any]
    """Of the photos of the source, as `Examples.labels`; with a teacher, of its first ones: the others have none."""
    outputs: OutputSpec
    """What a model of them says while it learns."""
    batch_size: int
    seed: int
    sampling: Literal["natural", "balanced"] = "natural"
    """`natural`: each photo once per epoch. `balanced`: as many photos of each class as of any other."""
    weights: NDArray[np.float32] | None = None
    """[n], of the photos in the loss, their mean 1; None counts all alike."""
    teaching: "Teaching | None" = None
    """What a teacher says of the photos of the source."""
    _failed: list[Exception] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Photos per batch: never more than there are."""
        return min(self.batch_size, len(self.source))

    @property
    def steps(self) -> int:
        """Batches per epoch. What doesn't fill the last one is left out, other photos in each epoch."""
        return len(self.source) // self.size

    def order(self, phase: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and views of one epoch, each [steps, size]."""
        rng = np.random.default_rng((self.seed, phase, epoch))
        count = self.steps * self.size
        if self.sampling == "balanced":
            rows = balanced_indices(self.labels, count, rng)
        else:
            rows = rng.permutation(len(self.source))[:count]
        views = rng.integers(0, self.source.views, count)
        return rows.reshape(self.steps, self.size), views.reshape(self.steps, self.size)

    def dataset(self, phase: int, epoch: int, first_step: int = 0) -> tf.data.Dataset:
        """The batches of one epoch from a step on: (inputs, targets float32 [size, k or more]), and weights [size]."""
        rows, views = self.order(phase, epoch)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        options.autotune.enabled = False
        # Not from_generator, which changes malloc's settings for the whole process and keeps each generator it got.
        order = tf.data.Dataset.from_tensor_slices((rows[first_step:], views[first_step:]))
        return order.map(self._batch).prefetch(PREFETCH).with_options(options)

    def _batch(self, rows: Any, views: Any) -> tuple[tuple[Any, ...], Any]:
        inputs = self.source.signature()
        shapes = [(self._width,), *([()] if self.weights is not None else [])]
        kinds = [*(x.dtype for x in inputs), *(tf.float32 for _ in shapes)]
        tensors = tf.numpy_function(self._gather, [rows, views], kinds)
        shapes = [*(x.shape[1:] for x in inputs), *shapes]
        shaped = [tf.ensure_shape(t, (self.size, *shape)) for t, shape in zip(tensors, shapes, strict=True)]
        return tuple(shaped[: len(inputs)]), *shaped[len(inputs) :]

    def _gather(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Run outside of the graph. TensorFlow never forgets such a function: it must not hold on to one epoch."""
        try:
            weights = [] if self.weights is None else [self.weights[rows]]
            return [*self.source.gather(rows, views), self.targets(rows, views), *weights]
        except Exception as error:
            self._failed.append(error)
            raise

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise what the source has raised while the block takes batches; TensorFlow would make a traceback of it."""
        self._failed.clear()
        try:
            yield
        except tf.errors.OpError:
            if not self._failed:
                raise
            failed = self._failed[0]
        else:
            return
        raise failed

    @property
    def _width(self) -> int:
        return len(self.outputs.names) + (self.teaching.width + 1 if self.teaching else 0)

    def targets(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.float32]:
        """Labels of some photos as the loss takes them, float32 [n, k]: classes as one-hot rows.

        With a teacher [n, k + width + 1]: labels, 0 where there is none; what the teacher says of these views; and
        whether there is a label. So everything that mixes labels mixes all of it.
        """
        if self.teaching is None:
            return as_targets(self.labels[rows], self.outputs)
        known = rows < len(self.labels)
        labels = np.zeros((len(rows), len(self.outputs.names)), np.float32)
        labels[known] = as_targets(self.labels[rows[known]], self.outputs)
        return np.hstack([labels, self.teaching.columns(rows, views), known[:, None].astype(np.float32)])
