"""How long models take: raw measurements; whoever reads them derives medians.

Host and device measure with this code, and models that are compared take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from .errors import DeviceError
from .interpreter import Kernels, Model, ModelSource
from .telemetry import Memory, memory_since, resident_bytes

ROUNDS = 10
"""Models take turns this often, so that a busy moment hits all alike."""
REWARM = 3
"""Invocations that bring a model back into the caches when its turn comes, not counted."""


@dataclass(frozen=True)
class Start:
    """A model's first moments, the interpreter's own import left out."""

    model: Model
    load_ms: float
    """Read the file, build the interpreter, allocate the tensors."""
    first_ms: float
    """The first invocation, which may still pack weights and touch memory for the first time."""
    warmup_ms: tuple[float, ...]
    """The invocations after it, in order: the warm-up curve."""
    memory: Memory


@dataclass(frozen=True)
class Timing:
    """Raw measurements of one series of invocations; copying pixels in and scores out is not part of them."""

    warmup_ms: tuple[float, ...]
    """Invocations before the first one that counts, in order."""
    runs_ms: tuple[float, ...]
    """Those that count, in order."""


def start(
    source: ModelSource,
    *,
    threads: int = 1,
    kernels: Kernels = "xnnpack",
    sha256: Optional[str] = None,
    warmup: int = 20,
) -> Start:
    """Load a model, run it once and warm it up, timing everything.

    Args:
        source: path of a .tflite file, or its bytes.
        threads: see `Model`.
        kernels: see `Model`.
        sha256: see `Model`.
        warmup: invocations after the first one, at least 0.

    Raises:
        DeviceError: a number out of its range, or the model can't be loaded or run.
    """
    before = resident_bytes()
    model = Model(source, threads=threads, kernels=kernels, sha256=sha256)
    timing = time_invocations(model, warmup=warmup, runs=1)
    first, *curve = timing.warmup_ms + timing.runs_ms
    return Start(model, model.load_ms, first, tuple(curve), memory_since(before))


def take_turns(
    models: Sequence[Model], *, runs: int, min_seconds: float = 0.0, advance: Callable[[int], object] = lambda _: None
) -> list[tuple[float, ...]]:
    """Time several warm models, a tenth of the runs of each at a time.

    Args:
        models: loaded and warmed up.
        runs: invocations to count per model, at least 1.
        min_seconds: go on beyond `runs` until this much time was measured per model, seconds.
        advance: is told after each turn how many of the `runs` it did.

    Returns:
        Duration of every counted invocation, ms, in order; one series per model.

    Raises:
        DeviceError: a number out of its range, or the interpreter failed.
    """
    collected: list[list[float]] = [[] for _ in models]
    turns = max(min(runs, ROUNDS), 1)
    for turn in range(turns):
        count = runs // turns + (turn < runs % turns)  # 23 runs are 3, 3, 3, 2, 2, ...
        for model, series in zip(models, collected):  # noqa: B905 (Python 3.9 has no strict)
            timing = time_invocations(model, warmup=REWARM, runs=count, min_seconds=min_seconds / turns)
            series.extend(timing.runs_ms)
            advance(count)
    return [tuple(series) for series in collected]


def time_invocations(
    model: Model, *, warmup: int = 20, runs: int = 200, min_seconds: float = 0.0, seed: int = 0
) -> Timing:
    """Time invocations on random pixels.

    Args:
        model: the loaded model.
        warmup: invocations to run first and not count, at least 0.
        runs: number of invocations to count, at least 1.
        min_seconds: go on beyond `runs` until this much time was measured, seconds.
        seed: of the random pixels.

    Raises:
        DeviceError: a number out of its range, or the interpreter failed.
    """
    if warmup < 0 or runs < 1:
        raise DeviceError(f"warmup={warmup}, runs={runs}: need warmup >= 0 and runs >= 1")
    model.set_input(np.random.default_rng(seed).integers(0, 256, model.input.shape, dtype=np.uint8))
    clock, invoke = time.perf_counter_ns, model.invoke
    measured: list[int] = []
    total = 0
    while len(measured) < warmup + runs or total < min_seconds * 1e9:
        begin = clock()
        invoke()
        measured.append(clock() - begin)
        total += measured[-1] if len(measured) > warmup else 0
    series = tuple(ns / 1e6 for ns in measured)
    return Timing(series[:warmup], series[warmup:])
