"""How long a model takes: raw measurements; whoever reads them derives medians."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from .errors import DeviceError
from .interpreter import Kernels, Model, ModelSource


@dataclass(frozen=True)
class ColdStart:
    """A model's first moments, the interpreter's own import left out."""

    load_ms: float
    """Read the file, build the interpreter, allocate the tensors."""
    first_ms: float
    """The first invocation, which may still pack weights and touch memory for the first time."""


@dataclass(frozen=True)
class Timing:
    """Raw measurements of one series of invocations."""

    warmup: int
    """Invocations before the first one that counts."""
    runs_ms: tuple[float, ...]
    """Duration of each `invoke`, in order: copying pixels in and scores out is not part of it."""


def cold_start(
    model: ModelSource, *, threads: int = 1, kernels: Kernels = "xnnpack", seed: int = 0
) -> tuple[Model, ColdStart]:
    """Load a model and run it once, timing both.

    Args:
        model: path of a .tflite file, or its bytes.
        threads: see `Model`.
        kernels: see `Model`.
        seed: of the random pixels.

    Raises:
        DeviceError: the model can't be loaded or run.
    """
    loaded = Model(model, threads=threads, kernels=kernels)
    timing = time_invocations(loaded, warmup=0, runs=1, seed=seed)
    return loaded, ColdStart(load_ms=loaded.load_ms, first_ms=timing.runs_ms[0])


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
    for _ in range(warmup):
        model.invoke()
    clock, invoke = time.perf_counter_ns, model.invoke
    runs_ns: list[int] = []
    total = 0
    while len(runs_ns) < runs or total < min_seconds * 1e9:
        start = clock()
        invoke()
        runs_ns.append(clock() - start)
        total += runs_ns[-1]
    return Timing(warmup=warmup, runs_ms=tuple(ns / 1e6 for ns in runs_ns))
