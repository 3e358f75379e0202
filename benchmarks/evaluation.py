"""Is evaluation as fast as the cores? `python -m benchmarks.evaluation RUN`.

Against the loop that everybody writes: one photo after the other, decoded, shown to one interpreter with one thread.
Same process, same files, in turns; only ratios within one turn are compared, because a shared machine changes its speed
between turns. Both sides decode their photos in each turn, and their outputs have to be the same numbers.

The Keras model has no part in it: what it says is asked once, before.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

from edgetl import data
from edgetl.config import checked, command
from edgetl.errors import ArtifactError, ConfigError
from edgetl.rundir import open_run
from export.artifacts import find_artifacts, open_artifact
from export.predictions import EvaluationSet

PROG = "python -m benchmarks.evaluation"
TARGET = 1.8
"""Times as fast on 2 idle cores."""


@dataclass(frozen=True)
class Config:
    """Compare evaluation on all cores with a loop over single photos."""

    run: Positional[Path]
    """Run directory with artifacts."""
    scheme: str = "int8"
    """Which of them."""
    rounds: int = 5
    """Turns, at least 1."""
    photos: int = 1000
    """Of the test split, at most."""


@dataclass(frozen=True)
class Findings:
    """Seconds of each turn, after one that does not count."""

    photos: int
    cores: int
    loop_s: tuple[float, ...]
    ours_s: tuple[float, ...]
    loop_cpu_s: tuple[float, ...]
    ours_cpu_s: tuple[float, ...]
    """Time that cores have worked, all threads together: what a busy machine does not change much."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """How many times as fast as the loop."""
        return tuple(loop / ours for loop, ours in zip(self.loop_s, self.ours_s, strict=True))

    @property
    def costs(self) -> tuple[float, ...]:
        """How much more work than the loop does."""
        return tuple(ours / loop for loop, ours in zip(self.loop_cpu_s, self.ours_cpu_s, strict=True))


def main(config: Config) -> Findings:
    """Measure.

    Raises:
        ConfigError: a number is out of range.
        ArtifactError: the artifact is missing, or the two sides say different things.
    """
    config = checked(config)
    if config.rounds < 1 or config.photos < 1:
        raise ConfigError("need at least 1 round and 1 photo")
    run = open_run(config.run)
    (artifact,) = find_artifacts(run, [config.scheme])
    path = run.export_path / artifact.path
    test = run.splits().test
    some = test.with_items(test.items[: config.photos])
    untold = np.zeros((len(some), len(run.output_names)), np.float32)
    ours = EvaluationSet(run, some, keep_bytes=0, forward=lambda pixels: untold[: len(pixels)])

    def loop() -> NDArray[np.float32]:
        model = open_artifact(path)
        return np.stack([model.predict(data.read_image(photo.path, run.inputs)) for photo in some])

    def pooled() -> NDArray[np.float32]:
        return ours.predictions([path], label="ours").outputs[0]

    turns = []
    for turn in range(config.rounds + 1):
        # One side must not always come second, where the caches are warm.
        timed = [_timed(side) for side in ((loop, pooled) if turn % 2 else (pooled, loop))]
        theirs, mine = timed if turn % 2 else timed[::-1]
        if not np.array_equal(theirs.outputs, mine.outputs):
            raise ArtifactError(f"{path}: the two sides say different things, by {_gap(theirs.outputs, mine.outputs)}")
        turns.append((theirs.seconds, mine.seconds, theirs.cpu_s, mine.cpu_s))
    return Findings(len(some), data.default_workers(), *zip(*turns[1:], strict=True))


class _Timed(NamedTuple):
    seconds: float
    cpu_s: float
    outputs: NDArray[np.float32]


def _timed(side: Callable[[], NDArray[np.float32]]) -> _Timed:
    start, cpu = time.perf_counter(), time.process_time()
    outputs = side()
    return _Timed(time.perf_counter() - start, time.process_time() - cpu, outputs)


def _gap(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    return float(np.abs(first - second).max())


def show(found: Findings) -> str:
    """Both sides and their ratio, with its spread."""

    def told(seconds: tuple[float, ...]) -> str:
        each = [1000 * one / found.photos for one in seconds]
        return f"{statistics.median(each):.2f} ms a photo ({min(each):.2f} to {max(each):.2f})"

    ratios = found.ratios
    return (
        f"{found.photos} photos, {found.cores} core(s), {len(ratios)} turns; outputs equal to the last bit\n"
        f"loop over photos  {told(found.loop_s)}\n"
        f"evaluation        {told(found.ours_s)}\n"
        f"ratio             {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"target {TARGET} on 2 idle cores\n"
        f"work of all cores  {statistics.median(found.costs):.3f} times the loop's "
        f"({min(found.costs):.3f} to {max(found.costs):.3f})"
    )


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
