"""One forward pass of a frozen backbone over all photos, stored once, reused by every later trial.

Rows are computed in shards of 256 photos. A shard is one .npz file, written under its final name only when
complete (the checksums of the zip format tell flipped bits), so an interrupted pass continues at the last shard,
and two processes may fill one cache at the same time.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetl.console import Bar, log, progress
from edgetl.data import Example, Examples, Unreadable, check_unreadable, default_workers, load_pixels
from edgetl.errors import UnreadableImageError
from edgetl.inputs import InputSpec
from edgetl.rundir import write_atomic

if TYPE_CHECKING:
    import keras

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Raw pixels [n, h, w, 3] -> features [n, d]. Called from several threads at once."""

T = TypeVar("T")

SHARD_ROWS = 256
LAYOUT_VERSION = 1
"""Part of every key: raise it when the stored rows would change for the same photos."""


@dataclass(frozen=True)
class Features:
    """Features of the photos that could be read, in the order of `examples`."""

    examples: Examples
    values: NDArray[np.float32]
    """[n, d]."""
    sha256: tuple[str, ...]
    """Hash of each photo's bytes, hex."""
    unreadable: tuple[Unreadable, ...]

    @property
    def data_sha256(self) -> str:
        """Hash over (id, label, content) of every photo used: two runs saw the same data if it is equal."""
        label = self.examples.label_text
        rows = (f"{e.id}\0{label(e)}\0{h}\n" for e, h in zip(self.examples, self.sha256, strict=True))
        return hashlib.sha256("".join(rows).encode(errors="surrogateescape")).hexdigest()

    def of(self, part: Examples) -> NDArray[np.float32]:
        """Rows [m, d] of some of the examples, in their order."""
        row = {example.id: index for index, example in enumerate(self.examples)}
        return self.values[[row[example.id] for example in part]]


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
    def of(cls, values: NDArray[np.float32]) -> "Scaling":
        """Measure the columns of [n, d]."""
        std = values.std(axis=0, dtype=np.float64)
        usual = float(np.median(std))
        # Below a millionth of a millionth nothing varies, and a weight divided by it would leave float32.
        return cls(values.mean(axis=0, dtype=np.float64), np.hypot(std, usual if usual > 1e-12 else 1.0))

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale [n, d]."""
        mean, scale = self.mean.astype(np.float32), self.scale.astype(np.float32)
        return (values - mean) / scale

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
) -> Features:
    """Compute the features of all examples, or read those that an earlier pass stored.

    Each worker thread decodes photos and runs the forward function on them, so that decoding and inference share
    the cores without a queue between them.

    Args:
        examples: photos; those that can't be read are left out of the result and listed.
        spec: how a photo becomes a tensor.
        make_forward: builds the forward function; called only if something is left to compute.
        key: what the features depend on besides data and spec: backbone, weights.
        cache: directory of all feature caches.
        workers: threads; default one per core.
        max_unreadable: share of unreadable photos, 0..1, above which the pass stops.

    Raises:
        DatasetError: more unreadable photos than allowed.
    """
    folder = cache.expanduser() / "features" / _settings_key(spec, key)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(examples), SHARD_ROWS)
    paths = {start: folder / f"{photos_key(examples, start)}.npz" for start in starts}
    shards = {start: _read_shard(paths[start]) for start in starts}
    missing = [start for start in starts if shards[start] is None]
    if len(missing) < len(starts):
        kept = sum(len(shard.readable) for shard in shards.values() if shard is not None)
        log.info("features: %d of %d photos taken from the cache %s", kept, len(examples), folder)
    if missing:
        forward = make_forward()
        todo = sum(min(SHARD_ROWS, len(examples) - start) for start in missing)
        with progress("features", todo) as bar, ThreadPoolExecutor(workers or default_workers()) as pool:
            for start in missing:
                rows = examples.items[start : start + SHARD_ROWS]
                shard = _compute_shard(rows, spec, forward, pool, bar)
                write_atomic(paths[start], shard.to_bytes())
                shards[start] = shard
                failed = [u for s in shards.values() if s is not None for u in s.unreadable]
                if len(failed) > max_unreadable * len(examples):
                    check_unreadable(failed, len(examples), max_unreadable)
    return _join(examples, [shard for shard in shards.values() if shard is not None], max_unreadable)


@dataclass(frozen=True)
class _Shard:
    values: NDArray[np.float32]  # [readable, d]
    sha256: tuple[str, ...]
    readable: NDArray[np.bool_]  # [rows]
    unreadable: tuple[Unreadable, ...]

    def to_bytes(self) -> bytes:
        buffer = BytesIO()
        np.savez(
            buffer,
            values=self.values,
            sha256=np.array(self.sha256, dtype="U64"),
            readable=self.readable,
            unreadable=np.frombuffer(json.dumps([asdict(u) for u in self.unreadable]).encode(), np.uint8),
        )
        return buffer.getvalue()


def read_shard(path: Path, parse: Callable[[Mapping[str, NDArray[Any]]], T], damaged: str) -> T | None:
    """Read a stored .npz file, if it is there and whole.

    Args:
        path: the file.
        parse: makes something of its arrays, by name; may raise anything on arrays that are not what was stored.
        damaged: what the log says of one that can't be used; `%s` stands for the path.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        with np.load(BytesIO(content), allow_pickle=False) as stored:
            return parse(stored)
    except Exception:  # a flipped bit can ask zipfile for encryption, compression or anything else that it can't do
        log.warning(damaged, path)
        return None


def _read_shard(path: Path) -> _Shard | None:
    def parse(stored: Mapping[str, NDArray[Any]]) -> _Shard:
        return _Shard(
            stored["values"],
            tuple(str(h) for h in stored["sha256"]),
            stored["readable"],
            tuple(Unreadable(**u) for u in json.loads(stored["unreadable"].tobytes())),
        )

    return read_shard(path, parse, "features: %s is damaged and will be computed again")


def _compute_shard(
    rows: tuple[Example, ...], spec: InputSpec, forward: Forward, pool: ThreadPoolExecutor, bar: Bar
) -> _Shard:
    def one(example: Example) -> tuple[NDArray[np.float32], str] | Unreadable:
        try:
            pixels, sha256 = load_pixels(example, spec)
        except UnreadableImageError as error:
            return Unreadable(example.id, str(error))
        finally:
            bar.advance()
        return forward(pixels[None])[0], sha256

    futures = [pool.submit(one, example) for example in rows]
    try:
        results = [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    good = [r for r in results if not isinstance(r, Unreadable)]
    return _Shard(
        np.stack([values for values, _ in good]) if good else np.zeros((0, 0), np.float32),
        tuple(sha256 for _, sha256 in good),
        np.array([not isinstance(r, Unreadable) for r in results]),
        tuple(r for r in results if isinstance(r, Unreadable)),
    )


def _join(examples: Examples, shards: list[_Shard], max_unreadable: float) -> Features:
    unreadable = tuple(u for shard in shards for u in shard.unreadable)
    check_unreadable(unreadable, len(examples), max_unreadable)
    kept = np.flatnonzero(np.concatenate([shard.readable for shard in shards]))
    values = np.concatenate([shard.values for shard in shards if len(shard.values)])
    sha256 = tuple(h for shard in shards for h in shard.sha256)
    return Features(examples.select(kept), values, sha256, unreadable)


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
