"""The program that reads all of an HDF5 file: `python hdf5_trial.py FILE MOST_BYTES`.

A process of its own, since libhdf5 never ends on some damaged files, where nothing can interrupt it, and a small file
can lead to one group in more ways than anybody can walk. It imports nothing of ours.
"""

import contextlib
import io
import sys
import zipfile
from typing import Any

import h5py


def walk(group: h5py.Group, most_bytes: int) -> None:
    """Read names, attributes and arrays as loading does, on every way to them; links are left alone.

    Args:
        group: where to begin.
        most_bytes: of an array that is read.
    """
    for name in group:
        with contextlib.suppress(Exception):  # what can't be read here is told by whoever loads; the rest may hang
            read(group, name, most_bytes)


def read(group: h5py.Group, name: str, most_bytes: int) -> None:
    """Read what a group has under a name."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return
    item = group[name]
    with contextlib.suppress(Exception):
        dict(item.attrs)
    if isinstance(item, h5py.Group):
        walk(item, most_bytes)
    elif isinstance(item, h5py.Dataset) and not (item.external or item.is_virtual) and item.nbytes <= most_bytes:
        item[()]


if __name__ == "__main__":
    source: Any = sys.argv[1]
    if source.endswith(".keras"):
        with zipfile.ZipFile(source) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(source, "r") as file:
        dict(file.attrs)
        walk(file, int(sys.argv[2]))
