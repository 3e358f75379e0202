"""Rows in shards, without photos: an array written as a feature pass would have stored it."""

from pathlib import Path

import numpy as np

from edgetl.rows import Stored
from edgetl.shards import Shard, ShardFile


def stored(folder: Path, values: np.ndarray, shard_rows: int = 8, seed: int = 0) -> Stored:
    """Write an array into shards, in random order, so that each shard has rows from everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    place = np.random.default_rng(seed).permutation(len(values))
    files = []
    for start in range(0, len(values), shard_rows):
        rows = values[place[start : start + shard_rows]]
        path = folder / f"{start:06}.npz"
        path.write_bytes(Shard(rows, ("0" * 64,) * len(rows), np.ones(len(rows), bool), ()).to_bytes())
        files.append(ShardFile(path, *rows.shape))
    at = np.argsort(place).astype(np.int32)
    return Stored(tuple(files), at // shard_rows, at % shard_rows, values.shape[1])
