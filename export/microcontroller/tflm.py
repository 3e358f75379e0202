"""The program that runs tflite-micro: `python tflm.py run MODEL ARENA INPUTS OUTPUTS`, `... search MODEL LOWEST`.

A process of its own, since tflite-micro ends in native code where an arena is too small or a graph is strange.
It imports nothing of ours.
"""

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
from tflite_micro.python.tflite_micro import runtime

ALIGNMENT = 16
"""Bytes; of an arena, and of tensors in it."""
SPAN = 1 << 16
"""Bytes; what planning an arena may need for a moment beyond what is recorded. A kilobyte was the most seen."""


def run(model: bytes, arena_bytes: int, inputs: str, outputs: str) -> None:
    """Invoke a model on each of some inputs, and print what it took of the arena (to standard error).

    Args:
        model: content of a .tflite file.
        arena_bytes: size of the arena.
        inputs: .npy, [n, *shape of the input tensor], of its type; n may be 0.
        outputs: .npy to write, [n, *shape of the output tensor].
    """
    interpreter = runtime.Interpreter.from_bytes(model, arena_size=arena_bytes)
    found = []
    for one in np.load(inputs):
        interpreter.set_input(one, 0)
        interpreter.invoke()
        found.append(interpreter.get_output(0))
    np.save(outputs, np.array(found))
    interpreter.print_allocations()


def search(model: bytes, recorded: int) -> None:
    """Print the smallest arena, bytes, in which a model can be loaded.

    Args:
        model: content of a .tflite file.
        recorded: what it took of a large arena: no less will do.
    """
    fits = -(-recorded // ALIGNMENT)  # nearly always: only planning for tiny models needs more than running them
    fails = fits - 1
    if not _fits(model, fits * ALIGNMENT):
        fails, fits = fits, fits + SPAN // ALIGNMENT
        if not _fits(model, fits * ALIGNMENT):
            sys.exit(f"no arena of {recorded} to {fits * ALIGNMENT} bytes suffices")
    while fits - fails > 1:
        middle = (fits + fails) // 2
        fails, fits = (fails, middle) if _fits(model, middle * ALIGNMENT) else (middle, fits)
    print(fits * ALIGNMENT)


def _fits(model: bytes, arena_bytes: int) -> bool:
    """Whether a copy of this process survives it."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    with contextlib.suppress(BaseException):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        runtime.Interpreter.from_bytes(model, arena_size=arena_bytes)
        os._exit(0)
    os._exit(1)


if __name__ == "__main__":
    verb, path, number, *files = sys.argv[1:]
    content = Path(path).read_bytes()
    if verb == "run":
        run(content, int(number), *files)
    else:
        search(content, int(number))
