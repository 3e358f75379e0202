"""What models say of a split: the run's Keras model and .tflite files, on all cores, photos decoded once for all.

Invocations of one interpreter are as fast with one photo as with many, and two interpreters of one thread each are
faster than one of two: photos are dealt to a pool. A core never waits for another: while the last photos of a batch are
looked at, the next ones are decoded.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl import data
from edgetl.console import Bar, progress
from edgetl.errors import ArtifactError, DatasetError
from edgetl.features import Forward, forward_of
from edgetl.robustness import CORRUPTIONS, corrupt
from edgetl.rundir import RunDir
from export.artifacts import device_errors, open_pool

if TYPE_CHECKING:
    from export.device.interpreter import Pool

KEEP_BYTES = 1_000_000_000
"""Decoded photos that an `EvaluationSet` keeps in memory: 6,600 of 224 x 224 pixels."""
PART = 8
"""Photos that a thread takes at a time: few enough that all end at about the same moment."""
AHEAD = 2
"""Batches that wait for interpreters while the next one is decoded."""

Spoilt = tuple[str, int] | None
"""Row of CORRUPTIONS and strength; None leaves photos as they are."""
Outputs = list[NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What several models say of the same photos."""

    examples: data.Examples
    """Those that could be read."""
    keras: NDArray[np.float32]
    """[n, k], outputs of the run's Keras model."""
    outputs: tuple[NDArray[np.float32], ...]
    """[n, k] of each model, dequantized, in the order they were given."""
    unreadable: tuple[str, ...]
    """Ids of photos that could not be read, left out for all alike."""
    runtime: str
    """Interpreter and its version; empty where no model was run."""

    @property
    def labels(self) -> NDArray[Any]:
        """What is true of the photos (`Examples.labels`)."""
        return self.examples.labels

    @property
    def every(self) -> tuple[NDArray[np.float32], ...]:
        """Outputs of the Keras model, then of the others."""
        return (self.keras, *self.outputs)


class EvaluationSet:
    """The photos of one split, for one model after the other.

    What the Keras model says of them is computed in the first pass and kept. So are the decoded photos, in memory, if
    all of them fit in `keep_bytes`; more than that are read and decoded again in each pass, once for all its models.
    """

    def __init__(
        self,
        run: RunDir,
        examples: data.Examples,
        *,
        workers: int = 0,
        keep_bytes: int = KEEP_BYTES,
        forward: Forward | None = None,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            run: whose Keras model is the reference.
            examples: photos of the run, of any split.
            workers: threads, one interpreter each; 0 means one per core.
            keep_bytes: what decoded photos may take in memory; 0 keeps none, as for a single pass.
            forward: the Keras model, raw pixels to outputs, where it is loaded already (`keras_forward`).
        """
        self.run, self.examples, self.workers = run, examples, workers or data.default_workers()
        self._fits = len(examples) * math.prod(run.inputs.shape) <= keep_bytes
        self._forward = forward
        self._kept: list[data.Batch] | None = None
        self._keras: NDArray[np.float32] | None = None
        self._unreadable: tuple[str, ...] | None = None

    def predictions(self, models: Sequence[bytes | Path], *, label: str = "evaluate") -> Predictions:
        """Run models on the photos that can be read.

        Args:
            models: .tflite files, as paths or as their bytes; may be none, for what Keras says alone.
            label: of the progress bar.

        Raises:
            DatasetError: photos are gone, can't be read or were changed since the run.
            ArtifactError: a model is damaged, is not one of this run's, or gives outputs that are not finite.
        """
        pools = [self._open(model) for model in models]
        forward = None if self._keras is not None else self._keras_forward()
        indices, (found,) = self._ask(pools, forward, [None], label)
        if self._keras is None:
            self._keras = found.pop()
        return self._said(models, pools, indices, self._keras, found)

    def spoilt(self, models: Sequence[bytes | Path], *, label: str = "robustness") -> dict[str, list[Predictions]]:
        """Run the Keras model and others on photos that are spoilt in every way, decoded once.

        Args:
            models: .tflite files, as paths or as their bytes.
            label: of the progress bar.

        Returns:
            Row of CORRUPTIONS -> what is said at strengths 1, 2, 3.

        Raises:
            DatasetError: photos are gone, can't be read or were changed since the run.
            ArtifactError: a model is damaged, is not one of this run's, or gives outputs that are not finite.
        """
        pools = [self._open(model) for model in models]
        variants = [(kind, strength) for kind in CORRUPTIONS for strength in (1, 2, 3)]
        indices, asked = self._ask(pools, self._keras_forward(), variants, label)
        found: dict[str, list[Predictions]] = {kind: [] for kind in CORRUPTIONS}
        for (kind, _), outputs in zip(variants, asked, strict=True):
            keras = outputs.pop()
            found[kind].append(self._said(models, pools, indices, keras, outputs))
        return found

    def _ask(
        self, pools: Sequence["Pool"], forward: Forward | None, variants: Sequence[Spoilt], label: str
    ) -> tuple[NDArray[np.int64], list[Outputs]]:
        """Show all photos to all models.

        Returns:
            Positions of the photos that could be read; for each variant the outputs of each pool, then of `forward`.
        """
        indices: list[NDArray[np.int64]] = []
        said: list[list[Outputs]] = [[[] for _ in range(len(pools) + bool(forward))] for _ in variants]
        with (
            _threads(self.workers) as threads,
            progress(label, len(self.examples) * len(variants)) as bar,
            device_errors(),
        ):
            waiting = _Waiting(bar)
            for batch in self._batches():
                bar.advance(len(batch.unreadable) * len(variants))
                indices.append(batch.indices)
                for variant, collected in zip(variants, said, strict=True):
                    pixels = self._pixels(batch, variant, threads)
                    parts = [pixels[start : start + PART] for start in range(0, len(pixels), PART)]
                    for pool, into in zip(pools, collected, strict=False):
                        waiting.add([threads.submit(pool.run, part) for part in parts], into)
                    if forward and len(pixels):
                        collected[-1].append(forward(pixels))
                    waiting.counted(len(pixels))
                    waiting.gather(AHEAD)
            waiting.gather(0)
        return np.concatenate(indices), [[np.concatenate(each) for each in collected] for collected in said]

    def _pixels(self, batch: data.Batch, variant: Spoilt, threads: ThreadPoolExecutor) -> data.Pixels:
        if variant is None:
            return batch.pixels
        kind, strength = variant
        ids = [self.examples.items[index].id for index in batch.indices]
        made = list(threads.map(lambda pixels, photo: corrupt(pixels, kind, strength, photo), batch.pixels, ids))
        return np.stack(made) if made else batch.pixels

    def _said(
        self,
        models: Sequence[bytes | Path],
        pools: Sequence["Pool"],
        indices: NDArray[np.int64],
        keras: NDArray[np.float32],
        outputs: Outputs,
    ) -> Predictions:
        for model, numbers in zip(models, outputs, strict=True):
            if not np.isfinite(numbers).all():
                raise ArtifactError(f"{_name(model)}: outputs are not finite. Deploy another scheme")
        runtime = pools[0].runtime if pools else ""
        return Predictions(self.examples.select(indices), keras, tuple(outputs), self._unreadable or (), runtime)

    def _keras_forward(self) -> Forward:
        self._forward = self._forward or keras_forward(self.run)
        return self._forward

    def _open(self, model: bytes | Path) -> "Pool":
        pool = open_pool(model, self.workers)
        outputs, wanted = math.prod(pool.output.shape), len(self.run.output_names)
        if outputs != wanted:
            raise ArtifactError(f"{_name(model)}: gives {outputs} outputs, the run has {wanted}. Convert it again")
        return pool

    def _batches(self) -> Iterator[data.Batch]:
        """All photos, checked against the run: from memory, or from disk and then into memory if they fit."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[data.Batch] = []
        unreadable: list[data.Unreadable] = []
        for batch in data.decoded(self.examples, self.run.inputs, workers=self.workers):
            self.run.refuse_changed(self.examples.select(batch.indices), batch.sha256)
            unreadable += batch.unreadable
            if self._fits:
                kept.append(batch)
            yield batch
        ids = tuple(failure.id for failure in unreadable)
        if self._unreadable is None:
            data.check_unreadable(unreadable, len(self.examples))
            self._unreadable = ids
        elif ids != self._unreadable:
            # What Keras said in the first pass would stand beside other photos.
            changed = sorted(set(ids) ^ set(self._unreadable))
            raise DatasetError(f"{self.examples.root / changed[0]}: came or went meanwhile. Run the same command again")
        if self._fits:
            self._kept = kept


class _Waiting:
    """Work in progress, gathered in its order; how many photos it stands for is counted when all of it is done."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._batches: deque[tuple[list[tuple[Future[NDArray[np.float32]], Outputs]], int]] = deque()
        self._adding: list[tuple[Future[NDArray[np.float32]], Outputs]] = []

    def add(self, parts: Sequence[Future[NDArray[np.float32]]], into: Outputs) -> None:
        """Results that are to be appended to a list."""
        self._adding += [(part, into) for part in parts]

    def counted(self, photos: int) -> None:
        """End a batch: what was added since the last one stands for so many photos."""
        self._batches.append((self._adding, photos))
        self._adding = []

    def gather(self, left: int) -> None:
        """Wait until no more than so many batches are in progress."""
        while len(self._batches) > left:
            parts, photos = self._batches.popleft()
            for part, into in parts:
                into.append(part.result())
            self._bar.advance(photos)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that drop what has not begun when the block fails: an interrupted command ends at once."""
    threads = ThreadPoolExecutor(count, thread_name_prefix="evaluate")
    try:
        yield threads
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _name(model: bytes | Path) -> str:
    return str(model) if isinstance(model, Path) else "the model"


def keras_forward(run: RunDir) -> Forward:
    """Load a run's Keras model: raw pixels [n, h, w, 3] -> outputs [n, k]."""
    with progress("load the Keras model"):
        return forward_of(run.load_model())
