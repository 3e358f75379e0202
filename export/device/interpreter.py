"""The one wrapper around the TFLite interpreter: raw pixels in, float scores out.

Host evaluation, the feature pass and the device run this same code, so what is measured on one is what runs
on the other.
"""

from __future__ import annotations

import functools
import hashlib
import os
import queue
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

import numpy as np
import numpy.typing as npt

from .errors import DeviceError
from .metadata import FILE, read_about
from .quiet import swallowed_greeting
from .runtime import find_runtime

Kernels = Literal["xnnpack", "builtin", "reference"]
ModelSource = Union[str, "os.PathLike[str]", bytes]
Pixels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]

IDENTIFIER = b"TFL3"
"""Bytes 4..8 of every TFLite flatbuffer."""

MAX_THREADS = 1024
"""Native code takes any number of 32 bits, and the machine down with it."""

RESOLVERS: dict[str, str] = {
    "xnnpack": "AUTO",
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}
"""Kernels -> member of the runtime's OpResolverType. One file gives other numbers with other kernels."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """`float32`, `uint8`, `int8`, ..."""
    scale: float
    """real = scale * (stored - zero_point); 0.0 when the tensor is not quantized."""
    zero_point: int

    def stored(self, pixels: Pixels) -> npt.NDArray[Any]:
        """Turn raw pixels, uint8, into what an input holds: less 128 for int8, else the same values."""
        return (pixels ^ np.uint8(128)).view(np.int8) if self.dtype == "int8" else pixels

    def real(self, stored: npt.NDArray[Any]) -> Scores:
        """Turn what an output holds into real numbers, float32."""
        values = stored.astype(np.float32)
        return (values - np.float32(self.zero_point)) * np.float32(self.scale) if self.scale else values


class Model:
    """A loaded model. Not safe for use by several threads at once: give each its own, or use `Pool`.

    Files that are not TFLite at all are refused. ai-edge-litert also refuses files that were cut and most files with
    altered bytes; tflite-runtime checks nothing, and a damaged file ends the process in native code. Give
    `sha256` wherever it is known: then nothing but the very file reaches native code.
    """

    def __init__(
        self, model: ModelSource, *, threads: int = 1, kernels: Kernels = "xnnpack", sha256: str | None = None
    ) -> None:
        """Load a model and allocate its tensors.

        Args:
            model: path of a .tflite file, or its bytes.
            threads: CPU threads of one invocation, at least 1.
            kernels: `xnnpack` (what apps use), `builtin` (optimized, no delegate) or `reference` (the same
                numbers on every machine).
            sha256: what the file's hash must be, hexadecimal; None means unknown.

        Raises:
            DeviceError: no interpreter here; the file is missing, damaged, not TFLite or of another hash; an operator
                is unknown; not exactly one input and one output; not static batch 1; an input type that
                does not take raw pixels, or int8 without the file saying how; what it says is damaged or does not fit.
        """
        if not 1 <= threads <= MAX_THREADS or kernels not in RESOLVERS:
            raise DeviceError(
                f"threads={threads}, kernels={kernels!r}: need 1 to {MAX_THREADS} threads, kernels of {set(RESOLVERS)}"
            )
        runtime = find_runtime()
        self.threads = threads
        self.kernels: Kernels = kernels
        self.runtime = runtime.name
        self.where = "model" if isinstance(model, bytes) else os.fspath(model)
        start = time.perf_counter_ns()
        self.content = _read(model, self.where)
        read_ns = time.perf_counter_ns() - start
        if sha256 is not None and self.sha256 != sha256:
            raise DeviceError(f"{self.where}: expected sha256 {sha256}. Received: {self.sha256}. Copy the file again")
        start = time.perf_counter_ns()  # hashing is no part of loading: apps don't
        self.about = read_about(self.content, self.where)
        resolver = getattr(runtime.resolvers, RESOLVERS[kernels])
        quiet = swallowed_greeting() if kernels == "xnnpack" else nullcontext()
        with _one_line_errors(self.where), quiet:
            self._interpreter = runtime.interpreter(
                model_content=self.content, num_threads=threads, experimental_op_resolver_type=resolver
            )
            self._interpreter.allocate_tensors()
        self.load_ms = (read_ns + time.perf_counter_ns() - start) / 1e6
        with _one_line_errors(self.where):
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self.input, source = self._only(inputs, "input")
        self.output, self._sink = self._only(outputs, "output")
        self._check_pixel_shift()
        self._check_output_names()
        self.kernels_used: Kernels = self._kernels_used()
        # A function that returns a fresh view each time. A view kept across invoke() would make it refuse.
        self._view = self._interpreter.tensor(source)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What the file calls its outputs, in their order; none where it does not say."""
        return self.about.outputs.names if self.about else ()

    @property
    def size_bytes(self) -> int:
        """Size of the file, bytes."""
        return len(self.content)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the very bytes that were loaded, hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    def predict(self, pixels: Pixels) -> Scores:
        """Run one example.

        Args:
            pixels: uint8, raw values 0..255, of the input's shape with or without the leading 1.

        Returns:
            float32 [n_outputs], dequantized where the output is integer.

        Raises:
            DeviceError: wrong shape or type, or the interpreter failed.
        """
        self.set_input(pixels)
        self.invoke()
        return self.scores()

    def predict_batch(self, pixels: Pixels) -> Scores:
        """Run examples one after the other, which is as fast as any resized batch.

        Args:
            pixels: uint8 [n, *input shape without the leading 1], raw values 0..255; n may be 0.

        Returns:
            float32 [n, n_outputs].

        Raises:
            DeviceError: wrong shape or type, or the interpreter failed.
        """
        scores = np.empty((len(pixels), int(np.prod(self.output.shape))), np.float32)
        for row, one in zip(scores, pixels):  # noqa: B905 (Python 3.9 has no strict)
            row[:] = self.predict(one)
        return scores

    def set_input(self, pixels: Pixels) -> None:
        """Put one example into the input tensor; see `predict`."""
        shape = self.input.shape
        if pixels.dtype != np.uint8 or pixels.shape not in (shape, shape[1:]):
            raise DeviceError(
                f"{self.where}: expected uint8 pixels {list(shape)} or {list(shape[1:])}. "
                f"Received: {pixels.dtype} {list(pixels.shape)}"
            )
        with _one_line_errors(self.where):  # a graph may write to its input, which has no memory then
            self._view()[...] = self.input.stored(pixels)  # casts to float32 in place

    def invoke(self) -> None:
        """Run the graph on what `set_input` put there. Releases the interpreter lock of Python."""
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise DeviceError(f"{self.where}: invocation failed: {_flat(error)}. Convert the model again") from error

    def scores(self) -> Scores:
        """Return the output of the last `invoke`, float32 [n_outputs], dequantized."""
        with _one_line_errors(self.where):  # nor may any operator write to the output
            return self.output.real(self._interpreter.get_tensor(self._sink).ravel())

    def _only(self, details: list[dict[str, Any]], role: str) -> tuple[TensorInfo, int]:
        """Describe the only input or output; refuse another number of them, and any batch but a static 1."""
        if len(details) != 1:
            raise DeviceError(f"{self.where}: expected exactly one {role}. Received: {len(details)} {role}s")
        (one,) = details
        shape = tuple(int(side) for side in one["shape"])
        signature = [int(side) for side in one.get("shape_signature", shape)]
        if -1 in signature or not shape or shape[0] != 1:
            raise DeviceError(f"{self.where}: expected an {role} of static batch 1. Received: shape {signature}")
        scale, zero_point = one["quantization"]
        dtype = np.dtype(one["dtype"]).name
        return TensorInfo(one["name"], shape, dtype, float(scale), int(zero_point)), int(one["index"])

    def _kernels_used(self) -> Kernels:
        """Tell what computes: XNNPACK may take none of the operators, as in runtimes before it took integers."""
        operators = getattr(self._interpreter, "_get_ops_details", None)  # private, and in every runtime since 2020
        if self.kernels != "xnnpack" or operators is None:
            return self.kernels
        with _one_line_errors(self.where):  # it decodes the names of all tensors
            return "xnnpack" if any(each["op_name"] == "DELEGATE" for each in operators()) else "builtin"

    def _check_pixel_shift(self) -> None:
        """Refuse an int8 input unless the file itself says that it takes pixels - 128, and any other shift."""
        dtype = self.input.dtype
        if dtype not in ("float32", "uint8", "int8"):
            raise DeviceError(f"{self.where}: expected a float32, uint8 or int8 input. Received: {dtype}")
        if dtype == "int8" and self.about is None:
            raise DeviceError(
                f"{self.where}: int8 input, and no {FILE} in the file that tells how pixels become int8. "
                "Convert with edgetl, or with a uint8 input"
            )
        expected, said = 128 if dtype == "int8" else 0, self.about.pixel_shift if self.about else 0
        if said != expected:
            raise DeviceError(
                f"{self.where}: its {FILE} says pixels - {said}, but the input is {dtype} (pixels - {expected}). "
                "Convert it again"
            )

    def _check_output_names(self) -> None:
        """Refuse names of other outputs than the model has."""
        numbers = int(np.prod(self.output.shape))
        if self.about and len(self.output_names) != numbers:
            outputs = self.about.outputs
            raise DeviceError(
                f"{self.where}: its {FILE} has {len(outputs.names)} names ({outputs.task}), the output has {numbers} "
                "numbers. Convert it again"
            )


class Pool:
    """Interpreters of one model that threads borrow.

    Native invocation releases Python's lock: two threads with one single-threaded interpreter each give more
    images per second than one interpreter with two threads.
    """

    def __init__(self, model: ModelSource, size: int, *, kernels: Kernels = "xnnpack") -> None:
        """Load the model `size` times, one CPU thread each; the file's bytes are shared.

        Args:
            model: path of a .tflite file, or its bytes.
            size: number of interpreters, at least 1; the number of cores is a good one.
            kernels: see `Model`.

        Raises:
            DeviceError: the size is below 1, or the model can't be loaded.
        """
        if size < 1:
            raise DeviceError(f"pool of {size} interpreters: need at least 1")
        first = Model(model, kernels=kernels)
        models = [first, *(Model(first.content, kernels=kernels) for _ in range(size - 1))]
        self.size = size
        self.input, self.output, self.runtime, self.about = first.input, first.output, first.runtime, first.about
        self._free: queue.SimpleQueue[Model] = queue.SimpleQueue()
        for each in models:
            each.where = first.where
            self._free.put(each)

    def run(self, pixels: Pixels) -> Scores:
        """Run examples on the next free interpreter, waiting for one if need be. Safe from any thread.

        Args:
            pixels: uint8 [n, *input shape without the leading 1], raw values 0..255.

        Returns:
            float32 [n, n_outputs].

        Raises:
            DeviceError: wrong shape or type, or the interpreter failed.
        """
        model = self._free.get()
        try:
            return model.predict_batch(pixels)
        finally:
            self._free.put(model)


def _read(model: ModelSource, where: str) -> bytes:
    """Read a model; refuse what native code should not even see."""
    if isinstance(model, bytes):
        content = model
    else:
        try:
            if not stat.S_ISREG(Path(model).stat().st_mode):  # a pipe would never end
                raise DeviceError(f"{where}: not a regular file. Give a .tflite file")
            content = Path(model).read_bytes()
        except OSError as error:
            raise DeviceError(f"{where}: {error.strerror or error}. Check the path of the .tflite file") from error
    if not content:
        raise DeviceError(f"{where}: the file is empty. Convert or copy it again")
    if content[4:8] != IDENTIFIER:
        raise DeviceError(
            f"{where}: not a TFLite model ({IDENTIFIER.decode()} expected at byte 4). Give a .tflite file"
        )
    return content


@contextmanager
def _one_line_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"{where}: the interpreter refuses it: {_flat(error)}. Copy it again, or take a newer one or int8"
        ) from error


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
