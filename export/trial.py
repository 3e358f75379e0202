"""Runs .tflite files of anybody's once, in a process of its own, before they are run in this one.

No check of a file's form keeps native code from crashing: a well-formed graph can ask for what an operator never looks
for. Here that ends a child; the file is named in one line.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl import child
from edgetl.errors import ArtifactError

if TYPE_CHECKING:
    from export.device.interpreter import Kernels

PATIENCE_S = 600.0
"""For loading and running one file once; reference kernels take minutes for the largest backbones."""
_DONE = "done"


def refuse_crashing(paths: Sequence[Path], *, threads: int = 1, kernels: "Kernels" = "xnnpack") -> None:
    """Run each file once on a black photo, apart. What Python can tell of a file is left to whoever opens it.

    Args:
        paths: .tflite files.
        threads: see `export.device.interpreter.Model`.
        kernels: likewise.

    Raises:
        ArtifactError: native code crashed, or has not come to an end; names the file.
    """
    root = str(Path(__file__).parent.parent)
    # -P: modules in the folder where the command is given are not ours.
    command = [sys.executable, "-P", "-m", "export.trial", kernels, str(threads), *map(str, paths)]
    there = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []  # an empty part would be that folder
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *there])}
    try:
        ended = child.run(command, patience_s=PATIENCE_S * len(paths), environment=environment)
        how, crashed, output = ended.how, ended.crashed, ended.output
    except subprocess.TimeoutExpired as late:
        how, crashed, output = f"was not done after {late.timeout:g} s", False, (late.stdout or b"").decode()
    tried = output.split().count(_DONE)
    if tried < len(paths):
        advice = "Don't use it; make or get it again" if crashed else "Try again, or make or get it again"
        raise ArtifactError(f"{paths[tried]}: the interpreter {how} in a trial. {advice}")


def _main(kernels: "Kernels", threads: int, *paths: str) -> None:
    import numpy as np

    from export.device.errors import DeviceError
    from export.device.interpreter import Model

    for path in paths:
        try:
            model = Model(path, threads=threads, kernels=kernels)
            model.predict(np.zeros(model.input.shape, np.uint8))
        except DeviceError:  # whoever opens it says so
            pass
        print(_DONE, flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])  # type: ignore[arg-type]
