"""Reads the tensors of a legacy (pre-zip) PyTorch checkpoint without PyTorch, and without running it.

A checkpoint is a pickle, and a pickle is a program. This reader knows four names - the ordered dictionary, the
tensor and two storages - and refuses a file that asks for any other. What it makes of them can't be changed by later
steps of the program, and every tensor is checked against the bytes that are really there.

Layout: five pickles (magic number, protocol, system, the dictionary, the storage keys in file order), then each
storage as a little-endian int64 count and its raw elements.
"""

import io
import math
import pickle
import reprlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from edgetl.errors import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict.

    Args:
        path: a file of `torch.save` in the format before PyTorch 1.6.

    Returns:
        Tensor name -> array, C-contiguous.

    Raises:
        WeightsError: the file is truncated, is of another format, or asks for anything but tensors.
    """
    try:
        # From memory: a pickle that announces more bytes than there are must not have them allocated.
        return _read(io.BytesIO(path.read_bytes()))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    # A damaged pickle is a random program: it can fail in every way that Python can.
    except Exception as error:
        raise WeightsError(
            f"{path}: not a readable PyTorch checkpoint ({error or type(error).__name__}). Install its package again"
        ) from error


class _Storage(NamedTuple):
    key: str
    dtype: str
    elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements, as the offset."""


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    if (magic := _Plain(file).load()) != MAGIC:
        _refuse(f"magic number {reprlib.repr(magic)}, expected {MAGIC:#x} (a legacy PyTorch file)")
    if (protocol := _Plain(file).load()) != PROTOCOL:
        _refuse(f"protocol {reprlib.repr(protocol)}, expected {PROTOCOL}")
    system = _Plain(file).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        _refuse("not written on a little-endian machine")
    reader = _Checkpoint(file)
    tensors = reader.load()
    keys = _Plain(file).load()
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, _Tensor) for name, tensor in tensors.items()
    ):
        _refuse("does not hold a plain dictionary of tensors")
    if not isinstance(keys, list) or sorted(keys) != sorted(reader.storages):
        _refuse("the list of storages does not match the tensors")
    data = {key: _read_storage(file, reader.storages[key]) for key in keys}
    return {name: _view(name, tensor, data[tensor.storage.key]) for name, tensor in tensors.items()}


# The unpickler written in Python: the one in C allocates a table of whatever size a damaged file names.
class _Plain(pickle._Unpickler):
    """Numbers, strings and containers only."""

    def find_class(self, module: str, name: str) -> Any:
        _refuse(f"asks to load {module}.{name}, which a file of weights has no need of")

    def persistent_load(self, pid: Any) -> Any:
        _refuse("has a storage where none belongs")


class _Checkpoint(_Plain):
    """Plus the ordered dictionary, the tensor and the storages."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild()
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", str(dtype), str(key), str(), int(count), None) if (
                dtype in STORAGES.values() and count >= 0
            ):
                storage = _Storage(key, dtype, count)
            case _:
                _refuse(f"has a storage of unknown form: {reprlib.repr(pid)}")
        if self.storages.setdefault(key, storage) != storage:
            _refuse(f"declares storage {key} twice, differently")
        return storage


class _Rebuild:
    """Stands for PyTorch's function. Without attributes, so that a pickle has nothing to set on it."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
        shape, strides = tuple(shape), tuple(strides)
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or any(type(number) is not int or number < 0 for number in numbers):
            _refuse("has a tensor of unknown form")
        return _Tensor(storage, offset, shape, strides)


def _read_storage(file: BinaryIO, storage: _Storage) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little", signed=True)
    if count != storage.elements:
        _refuse(f"storage {storage.key} has {count} elements, declared {storage.elements}; the file is damaged")
    data = file.read(count * np.dtype(storage.dtype).itemsize)
    if len(data) != count * np.dtype(storage.dtype).itemsize:
        _refuse(f"is truncated in storage {storage.key}. Install its package again")
    return np.frombuffer(data, storage.dtype)


def _view(name: str, tensor: _Tensor, data: np.ndarray) -> np.ndarray:
    elements = math.prod(tensor.shape)
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
    if elements > data.size:
        _refuse(f"{name} has more elements than its storage ({elements} > {data.size})")
    if tensor.offset > data.size or (elements and last >= data.size):
        _refuse(f"{name} reaches past its storage ({last} >= {data.size})")
    strides = tuple(step * data.itemsize for step in tensor.strides)
    view = np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides, writeable=False)
    array = np.ascontiguousarray(view).reshape(tensor.shape)
    if not np.isfinite(array).all():
        _refuse(f"{name} holds NaN or infinity")
    return array


def _refuse(what: str) -> NoReturn:
    raise WeightsError(what)
