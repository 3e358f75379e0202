"""tflite-micro, asked from here: does it take a model, in how much memory, with which outputs."""

import importlib.metadata
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import child
from edgetl.errors import ArtifactError, ConfigError
from export.flatbuffer import operators, pack, unpack

PROGRAM = Path(__file__).with_name("tflm.py")
AMPLE = 1 << 29
"""Bytes; an arena for any model that could be meant. What is not used of it is never touched."""
UNKNOWN = re.compile(r"Didn't find op for builtin opcode '(\w+)'|Failed to get registration from op code (\S+)")
UNFIT = re.compile(r"Node \S+ \(number \d+\) failed to prepare")
RECORDED = re.compile(r"Arena allocation total (\d+) bytes")
PLACE = re.compile(r"^\S+\.(?:cc|h)(?::\d+)? ")
"""Where in its own sources the library gave up: says nothing to those who read a message."""


@dataclass(frozen=True)
class Invoked:
    """What came of running a model."""

    outputs: NDArray[Any]
    """[n, *shape of the output tensor], of its type."""
    recorded_bytes: int
    """What the interpreter took of the arena."""


def version() -> str:
    """Which tflite-micro is installed.

    Raises:
        ConfigError: none is.
    """
    try:
        return importlib.metadata.version("tflite-micro")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("--target mcu needs tflite-micro. Install it with pip install 'edgetl[mcu]'") from None


def invoke(tflite: bytes, inputs: NDArray[Any], arena_bytes: int) -> Invoked:
    """Run a model.

    Args:
        tflite: a model with one input and one output.
        inputs: [n, *shape of the input tensor], of its type; n may be 0.
        arena_bytes: size of the arena.

    Raises:
        ArtifactError: tflite-micro does not take the model, or not in such an arena.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, given, found = (Path(folder) / name for name in ("model.tflite", "inputs.npy", "outputs.npy"))
        model.write_bytes(tflite)
        np.save(given, inputs)
        ended = _program("run", model, arena_bytes, given, found)
        recorded = RECORDED.search(ended.errors)
        if ended.status or recorded is None:
            raise ArtifactError(f"tflite-micro {ended.how}")
        return Invoked(np.load(found), int(recorded[1]))


def smallest_arena(tflite: bytes, recorded_bytes: int) -> int:
    """Find how small an arena may be, bytes, a multiple of 16.

    Args:
        tflite: a model that `invoke` takes.
        recorded_bytes: what it took then.

    Raises:
        ArtifactError: the model can't be loaded into anything near that.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.tflite"
        model.write_bytes(tflite)
        ended = _program("search", model, recorded_bytes)
    if ended.status:
        raise ArtifactError(f"tflite-micro {ended.how}")
    return int(ended.output)


def refused(tflite: bytes) -> dict[str, str]:
    """Tell which operators tflite-micro does not take.

    It names no more than the first one. So each kind is tried apart, in a model from which all others were taken out.

    Returns:
        Operator -> why, in the order of the graph.
    """
    whole, kinds, found = unpack(tflite), [operator.name for operator in operators(tflite)], {}
    (graph,) = whole.subgraphs
    nodes = graph.operators
    with tempfile.TemporaryDirectory() as folder:
        model, none, unused = (Path(folder) / name for name in ("model.tflite", "inputs.npy", "outputs.npy"))
        np.save(none, np.empty(0))
        for kind in dict.fromkeys(kinds):
            graph.operators = [node for node, its in zip(nodes, kinds, strict=True) if its == kind]
            model.write_bytes(pack(whole))
            said = _program("run", model, AMPLE, none, unused).errors
            if UNKNOWN.search(said):
                found[kind] = "unknown"
            elif UNFIT.search(said):
                found[kind] = _reason(said.splitlines())
    return found


def _reason(lines: Sequence[str]) -> str:
    """The line before the one that says which node could not be prepared."""
    place = next(number for number, line in enumerate(lines) if UNFIT.search(line))
    return PLACE.sub("", lines[place - 1]).rstrip(". ") if place else "not in this form"


def _program(*arguments: object) -> child.Ended:
    # -P: a module beside the program must not stand in for one that a library imports.
    return child.run([sys.executable, "-P", str(PROGRAM), *map(str, arguments)])
