"""Weights of a model from HDF5: legacy `.h5`, `.weights.h5`, and the weights inside a `.keras` file.

Only arrays are read. The description of the model that a legacy `.h5` or a `.keras` file carries may hold code
(a Lambda layer), and is never looked at. Links to other files are refused.
"""

import contextlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgetl import child
from edgetl.backbones import hdf5_trial
from edgetl.console import quiet_tensorflow
from edgetl.errors import WeightsError

quiet_tensorflow()

import h5py  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402

SUFFIXES = (".keras", ".h5", ".hdf5")
_INSIDE_KERAS = "model.weights.h5"
_REAL = "fiu"
"""Kinds of numbers that weights may be stored as: floats and integers. Of a complex one half would be lost."""
MOST_UNPACKED = 20
"""Times the size of the file."""
PATIENCE_S = 120.0
"""For reading a file once, and a second more for each megabyte."""


def refuse_stuck(path: Path) -> None:
    """Read a stranger's file in a process of its own first. What Python can tell of it is left to whoever opens it.

    Raises:
        WeightsError: libhdf5 crashed, or has not come to an end.
    """
    size = path.stat().st_size
    if path.suffix == ".keras":
        damage = contextlib.suppress(OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile)
        with _named(path), damage, _archive(path):
            pass  # a bomb is refused before it is unpacked
    # -P: modules in the folder where the command is given are not ours.
    command = [sys.executable, "-P", str(Path(hdf5_trial.__file__)), str(path), str(MOST_UNPACKED * size)]
    patience_s = PATIENCE_S + size / 1e6
    try:
        ended = child.run(command, patience_s=patience_s)
    except subprocess.TimeoutExpired:
        raise WeightsError(
            f"{path}: reading it was not done after {patience_s:.0f} s in a trial: damaged, or on a slow disk. "
            "Get it again, or copy it to a faster one"
        ) from None
    if ended.status < 0:
        advice = "Get it again" if ended.crashed else "Make room and try again"
        raise WeightsError(f"{path}: reading it {ended.how} in a trial. {advice}")


def is_legacy(path: Path) -> bool:
    """Tell the HDF5 layout before Keras 3, which lists layers in order, from that of Keras 3.

    Raises:
        WeightsError: the file is missing, damaged or of no known format.
    """
    with _named(path), _opened(path) as file:
        if "layer_names" in file.attrs or "model_weights" in file:
            return True
        if "layers" in file:
            return False
        raise WeightsError("HDF5, but not weights of a Keras model. Save them with model.save_weights(...)")


def load_in_order(model: keras.Model, path: Path) -> None:
    """Load a legacy file, whose layers are matched by order as Keras does.

    Args:
        model: as the constructor in `keras.applications` made it.
        path: the file, of a model without classifier.

    Raises:
        WeightsError: the number of layers or a shape differs, or the file is damaged.
    """
    with _named(path), _opened(path) as file:
        root = file if "layer_names" in file.attrs else _group(file, "model_weights")
        _fill_in_order(model, root)


def load_by_name(model: keras.Model, path: Path, *, skip: str) -> None:
    """Load a `.keras` or `.weights.h5` file, whose layers are matched by name; others in the file don't matter.

    Args:
        model: every layer of it with weights must be in the file, but for one.
        path: the file; of the backbone alone, or of any model that has the layers of the backbone.
        skip: name of that one.

    Raises:
        WeightsError: a layer is missing or has another shape, or the file is damaged.
    """
    with _named(path), _opened(path) as file:
        stored = dict(_named_layers(file))
        for layer in model.layers:
            if layer.weights and layer.name != skip:
                if layer.name not in stored:
                    raise WeightsError(f"has no layer {layer.name}. Is it of another backbone?")
                _fill(layer, stored[layer.name])


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo(_INSIDE_KERAS).file_size > MOST_UNPACKED * path.stat().st_size:
            raise WeightsError("unpacks to far more than weights do; such a file is refused")
        yield archive


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        if path.suffix == ".keras":
            with _archive(path) as archive:
                source: Any = io.BytesIO(archive.read(_INSIDE_KERAS))
        else:
            source = path
        with h5py.File(source, "r") as file:
            yield file
    # TypeError: an attribute or array of another kind, such as a number in place of a list or one without values.
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"can't be read as weights ({reason}). Is it complete?") from error


def _fill_in_order(model: keras.Model, root: h5py.Group) -> None:
    layers = [layer for layer in model.layers if layer.weights]
    stored = {name: arrays for name in _names(root, "layer_names") if (arrays := _legacy_arrays(root, name))}
    for layer, arrays in zip(layers, stored.values(), strict=False):
        _fill(layer, arrays)
    if len(stored) > len(layers):
        raise WeightsError(
            f"has {len(stored)} layers with weights, the backbone {len(layers)}; the first too many is "
            f"{list(stored)[len(layers)]}. Save the model without its classifier"
        )
    if len(stored) < len(layers):
        raise WeightsError(
            f"has {len(stored)} layers with weights, the backbone {len(layers)}; the first that is missing is "
            f"{layers[len(stored)].name}"
        )


def _legacy_arrays(root: h5py.Group, name: str) -> list[h5py.Dataset]:
    group = _group(root, name)
    return [_dataset(group, weight) for weight in _names(group, "weight_names")]


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """Read a list of names, which is cut into numbered chunks where it is too long for one attribute."""
    chunks = [attribute] if attribute in group.attrs else []
    while not chunks or chunks[-1] != attribute:
        chunk = f"{attribute}{len(chunks)}"
        if chunk not in group.attrs:
            break
        chunks.append(chunk)
    values = [value for chunk in chunks for value in group.attrs[chunk]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _named_layers(group: h5py.Group) -> Iterator[tuple[str, list[h5py.Dataset]]]:
    """Find the weights of all layers, those of nested models included, and the name that each had when saved."""
    for key in group:
        if group.get(key, getclass=True, getlink=True) is not h5py.HardLink or not isinstance(group[key], h5py.Group):
            continue
        if key == "vars" and "name" in group[key].attrs:
            variables = group[key]
            yield str(variables.attrs["name"]), [_dataset(variables, str(index)) for index in range(len(variables))]
        elif key != "optimizer":
            yield from _named_layers(group[key])


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    found = _item(parent, name)
    if not isinstance(found, h5py.Group):
        raise WeightsError(f"{name} is not a group; the file is damaged or of another format")
    return found


def _dataset(parent: h5py.Group, name: str) -> h5py.Dataset:
    found = _item(parent, name)
    if not isinstance(found, h5py.Dataset) or found.shape is None or found.external or found.is_virtual:
        raise WeightsError(f"{name} is not an array inside the file; such a file is refused")
    return found


def _item(parent: h5py.Group, name: str) -> Any:
    """Follow a path step by step: a soft or external link could lead to another file."""
    for step in name.split("/"):
        if not isinstance(parent, h5py.Group) or step not in parent:
            raise WeightsError(f"{name} is missing; the file is damaged or of another format")
        if not isinstance(parent.get(step, getlink=True), h5py.HardLink):
            raise WeightsError(f"{name} is a link; such a file is refused")
        parent = parent[step]
    return parent


def _fill(layer: keras.layers.Layer, arrays: list[h5py.Dataset]) -> None:
    """Check shapes before reading, so that a small file that unpacks to a huge array is never unpacked."""
    expected = [tuple(weight.shape) for weight in layer.weights]
    received = [tuple(array.shape) for array in arrays]
    if received != expected:
        raise WeightsError(f"layer {layer.name} does not fit: expected shapes {expected}, received {received}")
    stored = [np.asarray(array) for array in arrays]
    if not all(value.dtype.kind in _REAL and np.isfinite(value).all() for value in stored):
        raise WeightsError(f"layer {layer.name} holds values that are not finite numbers; the file is damaged")
    with np.errstate(over="ignore"):
        values = [value.astype(weight.dtype) for value, weight in zip(stored, layer.weights, strict=True)]
    if not all(np.isfinite(value).all() for value in values):
        raise WeightsError(f"layer {layer.name} holds values beyond those of {layer.weights[0].dtype}")
    layer.set_weights(values)
