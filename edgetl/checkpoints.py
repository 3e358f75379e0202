"""The state of an unfinished training in one file, written whole or not at all.

One .npz, arrays by name plus one JSON object, and its sha256: a flipped bit in the zip's directory would hide arrays
without an error.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.console import log
from edgetl.rundir import installed_versions, new_file

_STATE = "state.json"
_HASH_BYTES = 32


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training needs to go on as if it had never stopped."""

    state: dict[str, Any]
    """Counters and history, as JSON holds them."""
    arrays: Mapping[str, NDArray[Any]]
    """Weights, optimizer state, seeds, by name."""

    def group(self, prefix: str) -> list[NDArray[Any]]:
        """Arrays `prefix/0`, `prefix/1`, ... in order."""
        count = sum(name.startswith(f"{prefix}/") for name in self.arrays)
        return [self.arrays[f"{prefix}/{index}"] for index in range(count)]


def grouped(**groups: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Name the arrays of several lists so that `Checkpoint.group` finds them again."""
    return {f"{name}/{index}": array for name, arrays in groups.items() for index, array in enumerate(arrays)}


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint over the last one.

    Raises:
        OSError: no space; the last one stays.
    """
    buffer = BytesIO()
    text = np.frombuffer(json.dumps([installed_versions(), checkpoint.state]).encode(), np.uint8)
    arrays: dict[str, Any] = {_STATE: text, **checkpoint.arrays}
    np.savez(buffer, **arrays)
    digest = hashlib.sha256(buffer.getbuffer()).digest()
    with new_file(path) as file:  # no copy in between: of a large model this is gigabytes
        file.write(buffer.getbuffer())
        file.write(digest)


def load(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None if there is none, or none that can be read (then training starts anew, and says so)."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    whole = memoryview(content)[:-_HASH_BYTES]
    if hashlib.sha256(whole).digest() != content[-_HASH_BYTES:]:
        log.warning("%s is damaged: training starts from its beginning", path)
        return None
    with np.load(BytesIO(whole), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    versions, state = json.loads(arrays.pop(_STATE).tobytes())
    now = installed_versions()
    if other := [f"{name} {versions.get(name)} -> {now.get(name)}" for name in now if versions.get(name) != now[name]]:
        log.warning(
            "%s is from other versions (%s): training goes on, but not to the very weights of a run that was never "
            "stopped",
            path,
            ", ".join(other),
        )
    return Checkpoint(state, arrays)
