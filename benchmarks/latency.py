"""Whether latencies can be trusted: `python -m benchmarks.latency [FILE ...]`.

- Our medians against litert-benchmark's: same file, same threads, same machine, in turns. Only ratios within one turn
  are compared, because a shared machine changes its speed between turns.
- Two runs in a row: how far apart their medians are, and whether either said that the machine was noisy where they are
  further apart than they should be.

Every run is a fresh process of the device program's code. Without files it makes a MobileNetV2, float32 and int8.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from edgetl.config import command, from_json
from edgetl.errors import ArtifactError, ConfigError
from export.device.latency import REPEATABLE, LatencyReport

PROG = "python -m benchmarks.latency"
TARGET = 0.03
"""What the two may differ by, as a fraction."""
OURS = """
import dataclasses, json, sys
from pathlib import Path
from export.device.latency import Subject, measure
path, threads, runs, warmup, seconds = sys.argv[1:]
numbers = {"runs": int(runs), "warmup": int(warmup), "min_seconds": float(seconds)}
(found,) = measure([Subject(Path(path), int(threads))], **numbers)
json.dump(dataclasses.asdict(found), sys.stdout)
"""
"""What a fresh process runs: the measurement of the device program's `benchmark`, and of `export.benchmark`."""


@dataclass(frozen=True)
class Config:
    """Compare our latency measurement with litert-benchmark's, and with itself."""

    files: Positional[tuple[Path, ...]] = ()
    """.tflite files; none means a MobileNetV2 at 224, float32 and int8, random weights."""
    threads: int = 1
    """CPU threads of one invocation."""
    rounds: int = 7
    """Turns of each."""
    runs: int = 100
    """Invocations counted per turn; in pairs, at least as many."""
    warmup: int = 20
    """Invocations before them."""
    pairs: int = 10
    """Pairs of runs in a row."""
    seconds: float = 2.0
    """How long each run of a pair goes on at least."""


@dataclass(frozen=True)
class Comparison:
    """One file."""

    path: str
    ours_ms: tuple[float, ...]
    """Median of each turn."""
    theirs_ms: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours / theirs. Each of ours stands between two of theirs: their geometric mean cancels slow drift."""
        pairs = zip(self.theirs_ms, self.theirs_ms[1:], strict=False)
        return tuple(ours / math.sqrt(a * b) for ours, (a, b) in zip(self.ours_ms, pairs, strict=True))

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class Repetition:
    """One file, timed in pairs of runs."""

    path: str
    pairs: tuple[tuple[LatencyReport, LatencyReport], ...]

    @property
    def gaps(self) -> tuple[float, ...]:
        """How much longer the slower run of each pair took, as a fraction."""
        medians = (sorted(each.median_ms for each in pair) for pair in self.pairs)
        return tuple(slow / fast - 1 for fast, slow in medians)

    @property
    def quiet_gaps(self) -> tuple[float, ...]:
        """Of the pairs in which neither run says that it was noisy."""
        pairs = zip(self.pairs, self.gaps, strict=True)
        return tuple(gap for (one, other), gap in pairs if not one.noisy and not other.noisy)


@dataclass(frozen=True)
class Findings:
    """What was measured."""

    comparisons: tuple[Comparison, ...]
    repetitions: tuple[Repetition, ...]


def main(config: Config) -> Findings:
    """Measure each file in turns, then in pairs.

    Raises:
        ConfigError: a number is out of range.
        ArtifactError: a file can't be loaded, or litert-benchmark is not installed or fails.
    """
    if min(config.runs, config.threads) < 1 or min(config.rounds, config.warmup, config.pairs, config.seconds) < 0:
        raise ConfigError("need at least 1 run, 1 thread, and no negative number")
    with tempfile.TemporaryDirectory() as folder:
        files = config.files or make_artifacts(Path(folder))
        comparisons = tuple(compare(path, config) for path in files if config.rounds)
        return Findings(comparisons, tuple(repeat(path, config) for path in files if config.pairs))


def compare(path: Path, config: Config) -> Comparison:
    """Time one file: theirs, ours, theirs, ..., theirs."""
    theirs = [their_median_ms(path, config)]
    ours = []
    for _ in range(config.rounds):
        ours.append(our_report(path, replace(config, seconds=0.0)).median_ms)  # as many invocations as theirs
        theirs.append(their_median_ms(path, config))
    return Comparison(path.name, tuple(ours), tuple(theirs))


def repeat(path: Path, config: Config) -> Repetition:
    """Time one file twice in a row, again and again."""
    pairs = [(our_report(path, config), our_report(path, config)) for _ in range(config.pairs)]
    return Repetition(path.name, tuple(pairs))


def our_report(path: Path, config: Config) -> LatencyReport:
    """One turn of the device program's measurement, in a fresh process.

    Raises:
        ArtifactError: the file can't be loaded.
    """
    numbers = (config.threads, config.runs, config.warmup, config.seconds)
    words = [sys.executable, "-c", OURS, str(path), *map(str, numbers)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ArtifactError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return from_json(LatencyReport, done.stdout)


def their_median_ms(path: Path, config: Config) -> float:
    """One turn of litert-benchmark, which rounds to 0.01 ms.

    Raises:
        ArtifactError: it is not installed beside this Python, or it fails.
    """
    program = Path(sys.executable).with_name("litert-benchmark")
    if not program.is_file():
        raise ArtifactError(f"{program}: not found. It comes with ai-edge-litert; install that into this environment")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        options = {
            "model": path,
            "num_threads": config.threads,
            "num_runs": config.runs,
            "warmup_runs": config.warmup,
            "result_json": result,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        done = subprocess.run([program, *flags], capture_output=True, text=True, check=False)
        if done.returncode or not result.is_file():
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise ArtifactError(f"{path}: litert-benchmark ended with status {done.returncode}: {last}")
        return float(json.loads(result.read_text())["latency"]["median_ms"])


def make_artifacts(folder: Path) -> tuple[Path, ...]:
    """Convert a MobileNetV2 with random weights in a process of its own, so that TensorFlow is not around later."""
    command_line = [sys.executable, "-c", f"from benchmarks.latency import convert; convert({str(folder)!r})"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ArtifactError(f"MobileNetV2 can't be converted: {done.stderr.strip().splitlines()[-1:]}")
    return (folder / "mobilenet_v2_float32.tflite", folder / "mobilenet_v2_int8.tflite")


def convert(folder: str) -> None:
    """Write the two files; see `make_artifacts`."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(weights=None, input_shape=(224, 224, 3))
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec((1, 224, 224, 3), tf.float32, name="pixels")]
    archive.add_endpoint("serve", lambda pixels: model(pixels, training=False), input_signature=signature)
    archive.write_out(f"{folder}/saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(f"{folder}/saved")
    Path(folder, "mobilenet_v2_float32.tflite").write_bytes(converter.convert())
    noise = np.random.default_rng(0).uniform(-1, 1, (8, 1, 224, 224, 3)).astype(np.float32)  # speed only, no accuracy
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([one] for one in noise)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    Path(folder, "mobilenet_v2_int8.tflite").write_bytes(converter.convert())


def show(found: Findings) -> str:
    """One line per file and question."""
    lines = []
    if found.comparisons:
        lines.append(f"{'file':30} {'ours ms':>9} {'theirs ms':>9} {'ratio':>7} {'spread':>15}")
    for each in found.comparisons:
        ours, theirs = statistics.median(each.ours_ms), statistics.median(each.theirs_ms)
        spread = f"{min(each.ratios):.3f}-{max(each.ratios):.3f}"
        verdict = "" if abs(each.ratio - 1) <= TARGET else f"  more than {100 * TARGET:.0f} % apart"
        lines.append(f"{each.path:30} {ours:9.3f} {theirs:9.3f} {each.ratio:7.3f} {spread:>15}{verdict}")
    if found.repetitions:
        lines.append(
            f"{'two runs in a row':30} {'pairs':>9} {'median gap':>11} {'largest':>8} {'quiet':>6} {'largest':>8}"
        )
    for one in found.repetitions:
        gaps, quiet = one.gaps, one.quiet_gaps
        largest = f"{max(quiet):8.3f}" if quiet else f"{'-':>8}"
        missed = sum(gap > REPEATABLE for gap in quiet)
        lines.append(
            f"{one.path:30} {len(gaps):9} {statistics.median(gaps):11.3f} {max(gaps):8.3f} {len(quiet):6} {largest}"
            + (f"  {missed} more than {100 * REPEATABLE:.0f} % apart and not called noisy" if missed else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
