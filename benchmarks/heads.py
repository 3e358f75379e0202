"""Our heads against those they replace: `python -m benchmarks.heads`.

On features of the size of elpv's, in one process, in turns: the linear probe of a grid of L2 strengths against
scikit-learn's LogisticRegression on the same grid, with its features in memory and in shards; and hidden layers against
Keras' `fit`. A single epoch of those is mostly tracing, which every new head needs.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.config import command
from edgetl.console import quiet_tensorflow
from edgetl.features import Scaling
from edgetl.outputs import OutputSpec
from edgetl.rows import Held, Stored
from edgetl.shards import Shard, ShardFile

TRAIN, VALIDATION, WIDTH = 1574, 394, 1280
SHARD_ROWS = 256
BATCH, UNITS, RATE, DECAY, DROPOUT = 64, 256, 1e-3, 1e-2, 0.3


@dataclass(frozen=True)
class Config:
    """Measure heads against scikit-learn and Keras."""

    rounds: int = 5
    """How often each side runs."""
    epochs: int = 20
    """Of hidden layers."""


@dataclass(frozen=True)
class Figures:
    """Raw seconds of every round, by side."""

    seconds: dict[str, list[float]]
    epochs: int


def main(config: Config) -> Figures:
    """Run all sides in turns."""
    quiet_tensorflow()
    import tensorflow as tf

    from edgetl.probe import fit_linear_probe

    tf.config.threading.set_intra_op_parallelism_threads(1)  # one core: what a search gives to each of its processes
    tf.config.threading.set_inter_op_parallelism_threads(1)
    values, labels = _table()
    fit, held = np.arange(TRAIN), np.arange(TRAIN, TRAIN + VALIDATION)
    spec = OutputSpec("classification", ("0", "1"))
    with tempfile.TemporaryDirectory() as folder:
        rows, stored = Held(values), _stored(Path(folder), values)
        sides: dict[str, Callable[[], object]] = {
            "probe, in memory": lambda: fit_linear_probe(rows[fit], labels[fit], rows[held], labels[held]),
            "probe, in shards": lambda: fit_linear_probe(stored[fit], labels[fit], stored[held], labels[held]),
            "probe, scikit-learn": lambda: _scikit_learn(values[fit], labels[fit], values[held], labels[held]),
            "hidden, ours, 1 epoch": lambda: _ours(spec, rows, labels, 1),
            "hidden, fit, 1 epoch": lambda: _keras(spec, values, labels, 1),
            "hidden, ours": lambda: _ours(spec, rows, labels, config.epochs),
            "hidden, fit": lambda: _keras(spec, values, labels, config.epochs),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(config.rounds):
            for name, side in sides.items():
                start = time.perf_counter()
                side()
                seconds[name].append(time.perf_counter() - start)
    return Figures(seconds, config.epochs)


def _table() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Two classes that overlap, in features as a rectifier leaves them."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, TRAIN + VALIDATION)
    centres = random.normal(0, 0.06, (2, WIDTH))
    values = np.maximum(centres[labels] + random.normal(size=(len(labels), WIDTH)), 0)
    return values.astype(np.float32), labels


def _stored(folder: Path, values: NDArray[np.float32]) -> Stored:
    """The same in shards, as a feature pass leaves them."""
    files = []
    for start in range(0, len(values), SHARD_ROWS):
        rows = values[start : start + SHARD_ROWS]
        path = folder / f"{start}.npz"
        path.write_bytes(Shard(rows, ("0" * 64,) * len(rows), np.ones(len(rows), bool), ()).to_bytes())
        files.append(ShardFile(path, *rows.shape))
    at = np.arange(len(values), dtype=np.int32)
    return Stored(tuple(files), at // SHARD_ROWS, at % SHARD_ROWS, values.shape[1])


def _scikit_learn(x: Any, labels: Any, validation: Any, validation_labels: Any) -> None:
    """The same grid, each fit from the last, until two in a row were no better."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from threadpoolctl import threadpool_limits

    from edgetl.probe import L2_GRID, PATIENCE

    scaling, losses = Scaling.of(x), []
    x, validation = scaling.apply(x), scaling.apply(validation)
    with threadpool_limits(1, "blas"):
        model = LogisticRegression(solver="lbfgs", warm_start=True, max_iter=1000, tol=1e-3)
        for c in L2_GRID:
            model.set_params(C=c).fit(x, labels)
            losses.append(log_loss(validation_labels, model.predict_proba(validation)))
            if len(losses) - int(np.argmin(losses)) > PATIENCE:
                break


def _ours(spec: OutputSpec, rows: Held, labels: NDArray[np.int64], epochs: int) -> None:
    from edgetl.training import HeadTraining, train_head

    settings = HeadTraining((UNITS,), DROPOUT, RATE, DECAY, epochs, BATCH, patience=epochs)
    fit, held = np.arange(TRAIN), np.arange(TRAIN, TRAIN + VALIDATION)
    train_head(spec, rows[fit], labels[fit], rows[held], labels[held], settings)


def _keras(spec: OutputSpec, values: NDArray[np.float32], labels: NDArray[np.int64], epochs: int) -> None:
    import keras

    from edgetl.heads import build_head
    from edgetl.losses import make_loss
    from edgetl.tasks import as_targets

    scaled, targets = Scaling.of(values[:TRAIN]).apply(values), as_targets(labels, spec)
    head = build_head(spec.task, WIDTH, len(spec.names), hidden_units=(UNITS,), dropout=DROPOUT)
    head.compile(keras.optimizers.AdamW(RATE, weight_decay=DECAY), make_loss(spec))
    judged = scaled[TRAIN:], targets[TRAIN:]
    head.fit(
        scaled[:TRAIN], targets[:TRAIN], validation_data=judged, epochs=epochs, batch_size=BATCH, verbose=0,
        callbacks=[keras.callbacks.EarlyStopping(patience=epochs, restore_best_weights=True)],
    )  # fmt: skip


def show(figures: Figures) -> str:
    """Medians, ranges and ratios."""
    seconds = figures.seconds
    lines = [f"{TRAIN} x {WIDTH} features, one core; median (range) over {len(seconds['hidden, fit'])} rounds"]
    for name, values in seconds.items():
        lines.append(f"{name:22} {statistics.median(values):7.3f} s  ({min(values):.3f}-{max(values):.3f})")

    def ratio(over: str, under: str) -> str:
        each = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
        return f"{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})"

    def step(name: str) -> float:
        """Milliseconds of a step: of all epochs without the first, which holds the tracing."""
        more = statistics.median(seconds[name]) - statistics.median(seconds[f"{name}, 1 epoch"])
        return 1000 * more / ((figures.epochs - 1) * -(-TRAIN // BATCH))

    lines += [
        f"probe, scikit-learn : ours in memory   {ratio('probe, scikit-learn', 'probe, in memory')}",
        f"probe, in shards : in memory           {ratio('probe, in shards', 'probe, in memory')}",
        f"{figures.epochs} epochs, fit : ours                  {ratio('hidden, fit', 'hidden, ours')}",
        f"a step of {BATCH}, ms, fit / ours           {step('hidden, fit'):.1f} / {step('hidden, ours'):.1f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m benchmarks.heads", show=show))
