"""One forward pass of a frozen backbone over all photos, stored once, reused by every later trial.

Rows are computed in shards of 256 photos. A shard is one .npz file, written under its final name only when
complete (the checksums of the zip format tell flipped bits), so an interrupted pass continues at the last shard,
and two processes may fill one cache at the same time. No shard stays in memory: see `edgetl.rows`.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl import rows
from edgetl.console import log, progress
from edgetl.data import Examples, Unreadable, check_unreadable
from edgetl.inputs import InputSpec
from edgetl.rows import Held, Rows, RowsLike, Stored, as_rows
from edgetl.rundir import sweep, write_atomic
from edgetl.shards import Compute, Shard, ShardFile, Work, in_threads

if TYPE_CHECKING:
    import keras

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Raw pixels [n, h, w, 3] -> features [n, d]. Called from several threads at once."""

SHARD_ROWS = 256
LAYOUT_VERSION = 1
"""Part of every key: raise it when the stored rows would change for the same photos."""


@dataclass(frozen=True)
class Features:
    """Features of the photos that could be read, in the order of `examples`."""

    examples: Examples
    rows: Rows
    """[n, d], in memory or in shards."""
    sha256: tuple[str, ...]
    """Hash of each photo's bytes, hex."""
    unreadable: tuple[Unreadable, ...]

    @property
    def data_sha256(self) -> str:
        """Hash over (id, label, content) of every photo used: two runs saw the same data if it is equal."""
        label, digest = self.examples.label_text, hashlib.sha256()
        for example, sha256 in zip(self.examples, self.sha256, strict=True):
            digest.update(f"{example.id}\0{label(example)}\0{sha256}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def of(self, part: Examples) -> Rows:
        """Rows [m, d] of some of the examples, in their order."""
        row = {example.id: index for index, example in enumerate(self.examples)}
        return self.rows[np.fromiter((row[example.id] for example in part), np.int64, len(part))]


@dataclass(frozen=True)
class Scaling:
    """Scaling of features for a head's training, (x - mean) / scale; folded into its first layer afterwards.

    The scale of a feature is sqrt(std^2 + median^2), with the median of all features' standard deviations. Plain
    standardization divides by the deviation alone: features that hardly ever fire then get enormous weights, and int8,
    which has one scale for all weights of an output, has no steps left for the rest (on elpv: 0.855 -> 0.69).
    """

    mean: NDArray[np.float64]
    """[d]."""
    scale: NDArray[np.float64]
    """[d], positive."""

    @classmethod
    def of(cls, values: RowsLike) -> "Scaling":
        """Measure the columns of [n, d].

        Deviations of blocks are joined as Chan, Golub and LeVeque do ("Updating formulae and a pairwise algorithm for
        computing sample variances", 1979): a sum of squares would lose what a large mean leaves of them.
        """
        count, mean, squares = 0, np.zeros(1), np.zeros(1)
        for _, block in as_rows(values).blocks():
            own, apart = block.mean(axis=0, dtype=np.float64), block.var(axis=0, dtype=np.float64) * len(block)
            step, total = own - mean, count + len(block)
            squares = squares + apart + step**2 * (count * len(block) / total)
            mean, count = mean + step * (len(block) / total), total
        std = np.sqrt(squares / count)
        usual = float(np.median(std))
        # Below a millionth of a millionth nothing varies, and a weight divided by it would leave float32.
        return cls(mean, np.hypot(std, usual if usual > 1e-12 else 1.0))

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale [n, d]."""
        scaled = values - self.mean.astype(np.float32)
        scaled /= self.scale.astype(np.float32)
        return scaled

    def fold(self, kernel: NDArray[Any], bias: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Turn a dense layer for scaled features, [d, k] and [k], into the equal one for raw features."""
        raw = kernel / self.scale[:, None]
        return raw.astype(np.float32), (bias - self.mean @ raw).astype(np.float32)


def forward_of(model: "keras.Model") -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Compile a flat model for inference: pixels 0..255 [n, h, w, 3] of any type -> float32 [n, k]. Thread-safe."""
    import tensorflow as tf

    signature = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)

    @tf.function(input_signature=[signature])  # type: ignore[untyped-decorator]
    def compiled(images: Any) -> Any:
        return model(images, training=False)

    return lambda pixels: np.asarray(compiled(tf.cast(pixels, tf.float32)))


def default_cache() -> Path:
    """Where features lie when nobody says otherwise: $EDGETL_CACHE, else $XDG_CACHE_HOME/edgetl or ~/.cache/edgetl."""
    if named := os.environ.get("EDGETL_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgetl"


def extract(
    examples: Examples,
    spec: InputSpec,
    make_forward: Callable[[], Forward],
    *,
    key: dict[str, str],
    cache: Path,
    workers: int | None = None,
    max_unreadable: float = 0.01,
    compute: Compute | None = None,
) -> Features:
    """Compute the features of all examples, or find those that an earlier pass stored.

    Args:
        examples: photos; those that can't be read are left out of the result and listed.
        spec: how a photo becomes a tensor.
        make_forward: builds the forward function; called only if something is left to compute here.
        key: what the features depend on besides data and spec: backbone, weights.
        cache: directory of all feature caches.
        workers: threads; default one per core.
        max_unreadable: share of unreadable photos, 0..1, above which the pass stops.
        compute: computes shards elsewhere; by default threads of this process do.

    Raises:
        DatasetError: more unreadable photos than allowed.
    """
    folder = cache.expanduser() / "features" / _settings_key(spec, key)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(examples), SHARD_ROWS)
    paths = {start: folder / f"{photos_key(examples, start)}.npz" for start in starts}
    parts = {start: _Part.of(paths[start], shard) for start in starts if (shard := Shard.read(paths[start]))}
    missing = [Work(at, examples.items[at : at + SHARD_ROWS], spec) for at in starts if at not in parts]
    if parts:
        kept = sum(len(part.readable) for part in parts.values())
        log.info("features: %d of %d photos taken from the cache %s", kept, len(examples), folder)
    if missing:
        sweep(folder)
        compute = compute or in_threads(make_forward(), workers)
        failed = sum(len(part.unreadable) for part in parts.values())
        with progress("features", sum(len(work.items) for work in missing)) as bar:
            for start, content in compute(missing, bar.advance):
                write_atomic(paths[start], content)
                shard = Shard.from_bytes(content)
                parts[start] = _Part.of(paths[start], shard)
                failed += len(shard.unreadable)
                if failed > max_unreadable * len(examples):
                    unreadable = [u for at in sorted(parts) for u in parts[at].unreadable]
                    check_unreadable(unreadable, len(examples), max_unreadable)
    return _joined(examples, [parts[start] for start in starts], max_unreadable)


@dataclass(frozen=True)
class _Part:
    """What is kept in memory of a shard."""

    file: ShardFile
    sha256: tuple[str, ...]
    readable: NDArray[np.bool_]  # [photos]
    unreadable: tuple[Unreadable, ...]

    @classmethod
    def of(cls, path: Path, shard: Shard) -> "_Part":
        return cls(ShardFile(path, *shard.values.shape), shard.sha256, shard.readable, shard.unreadable)


def _joined(examples: Examples, parts: Sequence[_Part], max_unreadable: float) -> Features:
    unreadable = tuple(u for part in parts for u in part.unreadable)
    check_unreadable(unreadable, len(examples), max_unreadable)
    kept = np.flatnonzero(np.concatenate([part.readable for part in parts]))
    sha256 = tuple(h for part in parts for h in part.sha256)
    counts = [len(part.sha256) for part in parts]
    stored = Stored(
        tuple(part.file for part in parts),
        np.repeat(np.arange(len(parts), dtype=np.int32), counts),
        np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        max(part.file.width for part in parts),  # 0 where no photo could be read
    )
    held = len(stored) * stored.width * 4 <= rows.HELD_BYTES
    return Features(examples.select(kept), Held(stored.array()) if held else stored, sha256, unreadable)


def _settings_key(spec: InputSpec, key: dict[str, str]) -> str:
    settings = json.dumps([LAYOUT_VERSION, asdict(spec), key], sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:32]


def photos_key(examples: Examples, start: int) -> str:
    """Name a shard by its photos: place, size, and times of change, of which nobody can set the second.

    Hashing their content instead would cost a pass of its own. A photo that changes costs its shard alone.
    """
    digest = hashlib.sha256(str(examples.root.resolve()).encode(errors="surrogateescape"))
    for example in examples.items[start : start + SHARD_ROWS]:
        try:
            stat = example.path.stat()
            line = f"\n{example.id}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
        except OSError:
            line = f"\n{example.id}\0missing"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]
