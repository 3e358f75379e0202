"""A process that evaluates and converts again and again stays as large as it was.

In a process of its own, as a notebook or a service would: 200 evaluations and 50 conversions of a tiny run, after some
that fill caches. Memory may grow by MEGABYTES in all; not one file, thread or temporary file may be more.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_commands import ROOT

pytestmark = pytest.mark.slow

MEGABYTES = 8
"""The allocator alone moves a process of 800 MB by 1 to 2. An interpreter of the tiny model is 0.1, and its Keras model
as much: one of these lost in each call would be 18 MB in 180 evaluations."""
SCRIPT = """
import gc, json, os, sys
from pathlib import Path
from tiny_runs import tiny_run
from export import convert, evaluate

def held():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    there = [len(os.listdir(each)) for each in ("/proc/self/fd", "/proc/self/task", os.environ["TMPDIR"])]
    return [pages * os.sysconf("SC_PAGE_SIZE") / 1e6, *there]

run = tiny_run(Path(sys.argv[1]), "classification")
conversion = convert.Config(run.path, schemes=("int8",), calibration_images=12)
convert.main(conversion)
command, settings = (convert, conversion) if sys.argv[2] == "convert" else (evaluate, evaluate.Config(run.path))
for number in range(int(sys.argv[3])):
    command.main(settings)
    print(json.dumps(held()), flush=True)
"""


@pytest.mark.parametrize(("command", "calls", "warmup"), [("evaluate", 200, 20), ("convert", 50, 5)])
def test_a_process_stays_as_it_is(
    command: str, calls: int, warmup: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "TMPDIR": str(tmp_path / "temporary"),
    }
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), command, str(calls)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    held = np.array([json.loads(line) for line in done.stdout.splitlines()])
    assert len(held) == calls
    memory, others = held[warmup:, 0], held[warmup:, 1:]
    # Of the first and the last tenth, as single values jump with the allocator.
    part = max(2, len(memory) // 10)
    growth = float(np.median(memory[-part:]) - np.median(memory[:part]))
    slope = float(np.polyfit(np.arange(len(memory)), memory, 1)[0])
    files, threads, temporary = others[-1].astype(int)
    told = f"{memory[0]:.0f} MB, {growth:+.1f} MB at the end, {1000 * slope:+.1f} kB a call"
    record_property(f"{calls} calls of {command}", f"{told}; {files} files, {threads} threads, {temporary} temporary")
    assert growth < MEGABYTES, (growth, slope)
    assert (others[-1] <= others[0]).all(), (others[0], others[-1])
