"""Reads the tensors of a legacy (pre-zip) PyTorch checkpoint without PyTorch, and without running it.

A checkpoint is a pickle, and a pickle is a program. This reader knows five names - the ordered dictionary, the
tensor and the storages - and refuses a file that asks for any other.

Layout: five pickles (magic number, protocol, system, the dictionary, the storage keys in file order), then each
storage as a little-endian int64 count and its raw elements.
"""

import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from edgetl.errors import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


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
        with path.open("rb") as file:
            return _read(file)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    # Unpickling damaged bytes can fail in any of these ways.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise WeightsError(
            f"{path}: not a readable PyTorch checkpoint ({error or type(error).__name__}). Install the package again"
        ) from error
    except (RecursionError, MemoryError, OverflowError) as error:
        raise WeightsError(f"{path}: not a sane PyTorch checkpoint ({type(error).__name__})") from error


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    if (magic := _Plain(file).load()) != MAGIC:
        _refuse(f"magic number {magic!r}, expected {MAGIC:#x} (a legacy PyTorch file)")
    if (protocol := _Plain(file).load()) != PROTOCOL:
        _refuse(f"protocol {protocol!r}, expected {PROTOCOL}")
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
    if not isinstance(keys, list) or set(keys) != set(reader.storages) or len(keys) != len(reader.storages):
        _refuse("the list of storages does not match the tensors")
    data = {key: _read_storage(file, reader.storages[key]) for key in keys}
    return {name: _view(name, tensor, data[tensor.storage.key]) for name, tensor in tensors.items()}


class _Plain(pickle.Unpickler):
    """Numbers, strings and containers only."""

    def find_class(self, module: str, name: str) -> NoReturn:
        _refuse(f"asks to load {module}.{name}, which a file of weights has no need of")

    def persistent_load(self, pid: Any) -> Any:
        _refuse("has a storage where none belongs")


class _Checkpoint(pickle.Unpickler):
    """Plus the ordered dictionary, the tensor and the storages."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        _refuse(f"asks to load {module}.{name}, which a file of weights has no need of")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str(key), str(), int(count), None) if count >= 0:
                storage = _Storage(key, dtype, count)
            case _:
                _refuse(f"has a storage of unknown form: {str(pid)[:80]}")
        if self.storages.setdefault(key, storage) != storage:
            _refuse(f"declares storage {key} twice, differently")
        return storage


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(number) is not int or number < 0 for number in numbers):
        _refuse("has a tensor of unknown form")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.count:
        _refuse(f"has a tensor that reaches past its storage ({last} >= {storage.count})")
    if math.prod(shape) > storage.count:
        _refuse("has a tensor with more elements than its storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _read_storage(file: BinaryIO, storage: _Storage) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little", signed=True)
    if count != storage.count:
        _refuse(f"storage {storage.key} has {count} elements, declared {storage.count}; the file is damaged")
    data = file.read(count * storage.dtype.itemsize)
    if len(data) != count * storage.dtype.itemsize:
        _refuse(f"is truncated in storage {storage.key}. Install the package again")
    return np.frombuffer(data, storage.dtype)


def _view(name: str, tensor: _Tensor, data: np.ndarray) -> np.ndarray:
    """Bounds were checked when the tensor was declared."""
    strides = tuple(stride * data.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides, writeable=False)
    array = np.ascontiguousarray(view).reshape(tensor.shape)
    if not np.isfinite(array).all():
        _refuse(f"{name} holds NaN or infinity")
    return array


def _refuse(what: str) -> NoReturn:
    raise WeightsError(what)
