"""What a feature extraction costs per million photos: `python -m benchmarks.scaling`.

Photos are drawn (JPEGs of 96x96 pixels, five classes that overlap), and the recipe runs on them as a user would run it,
in a process of its own, on two numbers of photos and with both heads: peak memory of the process, seconds of each
stage, disk. Two numbers make a straight line, which is followed to a million. The first run is killed in the middle,
and what the next one computes again is counted. The second head finds the features stored: its run is the cost of it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from edgetl.config import command
from edgetl.data import default_workers
from edgetl.errors import EdgetlError

SIDE = 96
CLASSES = 5
PER_TASK = 500
"""Photos that a process draws at a time."""
MILLION = 1_000_000
HEADS = ("linear", "mlp")


@dataclass(frozen=True)
class Config:
    """Measure memory, time and disk of a feature extraction against the number of photos."""

    photos: tuple[int, int] = (20_000, 100_000)
    """Numbers of photos, the smaller first; a line through them means little if one is held in memory (to 12,500)."""
    epochs: int = 10
    """Of the head with hidden layers."""
    folder: Path | None = None
    """Where photos and features are put, 8 KB for each; default a temporary folder, removed at the end."""
    json: Path | None = None
    """Also write the raw figures here."""


@dataclass(frozen=True)
class Run:
    """One run of the recipe, from photos to a sealed run directory."""

    photos: int
    head: str
    peak_bytes: int
    """Largest resident set of the process."""
    total_s: float
    pass_s: float
    """Seconds of the feature pass; 0 where all features were stored."""
    passed: int
    """Photos that it computed."""
    head_s: float
    test_top1: float


@dataclass(frozen=True)
class Kill:
    """What was left of a run that was killed, and what the next one did."""

    photos: int
    shards: int
    """Of all photos."""
    kept: int
    """Shards that were whole when the process was killed."""
    computed: int
    """Shards that the next run wrote."""
    rewritten: int
    """Shards that were whole and were written again all the same."""


@dataclass(frozen=True)
class Figures:
    """Raw figures."""

    cores: int
    side: int
    drawing_s: list[float]
    runs: list[Run]
    kill: Kill
    feature_bytes: list[int]
    """On disk, for each number of photos."""
    run_bytes: list[int]
    """Of one run directory, likewise."""


def main(config: Config) -> Figures:
    """Run all."""
    small, large = config.photos
    if not 0 < small < large:
        raise EdgetlError(f"--photos {small} {large}: the smaller number comes first")
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        root = Path(folder)
        drawing = [_drawn(root / str(count), count) for count in config.photos]
        kill = _killed(root, small, config.epochs)
        runs = [kill[1], _run(root, small, "mlp", config.epochs)]
        runs += [_run(root, large, head, config.epochs) for head in HEADS]
        figures = Figures(
            cores=default_workers(),
            side=SIDE,
            drawing_s=drawing,
            runs=runs,
            kill=kill[0],
            feature_bytes=[_size(root / f"cache{count}") for count in config.photos],
            run_bytes=[_size(root / f"run{count}linear") for count in config.photos],
        )
    if config.json:
        config.json.write_text(json.dumps(asdict(figures), indent=2))
    return figures


def _drawn(folder: Path, count: int) -> float:
    """Draw photos into one folder for each class; give back the seconds."""
    start = time.perf_counter()
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    with ProcessPoolExecutor(default_workers()) as pool:
        for done in pool.map(_draw, *zip(*((folder, at, count) for at in range(0, count, PER_TASK)), strict=True)):
            print(f"\rphotos {done}/{count}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return time.perf_counter() - start


def _draw(folder: Path, start: int, count: int) -> int:
    """Stripes of a width and direction for each class, over those of another class and over clouds of any colour."""
    random = np.random.default_rng(start)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    end = min(start + PER_TASK, count)
    for number in range(start, end):
        label = number % CLASSES
        other = (label + random.integers(1, CLASSES)) % CLASSES
        share = random.uniform(0.42, 0.9)  # below one half it looks more like the other class
        clouds = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        photo = np.asarray(Image.fromarray(clouds).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
        for kind, strength in ((label, share), (other, 1 - share)):
            angle = np.pi * kind / CLASSES + random.normal(0, 0.1)
            wave = (6 + 2 * kind) * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform()
            photo = photo + 70 * strength * np.sin(2 * np.pi * wave)[..., None]
        stored = BytesIO()
        Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(stored, "JPEG", quality=80)
        (folder / f"class{label}" / f"{number:07}.jpg").write_bytes(stored.getvalue())
    return end


def _command(root: Path, count: int, head: str, epochs: int) -> list[str]:
    recipe = [sys.executable, "-m", "recipes.feature_extraction", "--data", str(root / str(count)), "--head", head]
    places = ["--out", str(root / f"run{count}{head}"), "--cache", str(root / f"cache{count}")]
    return [*recipe, *places, "--image-size", str(SIDE), "--epochs", str(epochs)]


def _run(root: Path, count: int, head: str, epochs: int) -> Run:
    """Run the recipe; its own log tells the seconds of the stages."""
    print(f"{count} photos, {head}", file=sys.stderr)
    start = time.perf_counter()
    log = root / f"{count}{head}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(_command(root, count, head, epochs), stdout=stream, stderr=stream)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    total, text = time.perf_counter() - start, log.read_text()
    if process.returncode:
        raise EdgetlError(f"the recipe ended with {process.returncode}: {text[-2000:]}")
    passed = re.search(r"^features (\d+)/\d+ \(([\d.]+) s\)", text, re.MULTILINE)
    seconds = re.search(r"^(?:linear head|head epochs [\d/]+) \(([\d.]+) s\)", text, re.MULTILINE)
    metrics = json.loads((root / f"run{count}{head}" / "metrics.json").read_text())
    assert seconds
    return Run(
        photos=count,
        head=head,
        peak_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        total_s=total,
        pass_s=float(passed[2]) if passed else 0.0,
        passed=int(passed[1]) if passed else 0,
        head_s=float(seconds[1]),
        test_top1=metrics["test"]["top1"],
    )


def _killed(root: Path, count: int, epochs: int) -> tuple[Kill, Run]:
    """Kill a run when a third of its shards are there, and run it again."""
    cache, every = root / f"cache{count}", -(-count // 256)
    print(f"{count} photos, linear, to be killed", file=sys.stderr)
    command = _command(root, count, HEADS[0], epochs)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(cache.rglob("*.npz"))) < max(1, every // 3):
        if process.poll() is not None:
            raise EdgetlError(f"the recipe ended with {process.returncode} before it could be killed")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")}
    run = _run(root, count, HEADS[0], epochs)
    there = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")}
    rewritten = sum(there[path] != changed for path, changed in kept.items())
    return Kill(count, every, len(kept), len(there.keys() - kept.keys()), rewritten), run


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _line(at: tuple[float, float], values: tuple[float, float], wanted: float) -> float:
    """Where the straight line through two points is at a third place."""
    return values[0] + (values[1] - values[0]) * (wanted - at[0]) / (at[1] - at[0])


def show(figures: Figures) -> str:
    """The runs, the kill, and a million."""
    small, large = sorted({run.photos for run in figures.runs})
    lines = [
        f"photos of {figures.side} x {figures.side}, {figures.cores} cores",
        "  photos  head    peak MB   total s   pass s  photos/s   head s   rest s   top-1 %",
    ]
    for run in figures.runs:
        rest = run.total_s - run.pass_s - run.head_s
        rate = f"{run.passed / run.pass_s:.0f}" if run.pass_s else "stored"
        lines.append(
            f"{run.photos:8}  {run.head:6} {run.peak_bytes / 1e6:8.0f} {run.total_s:9.1f} {run.pass_s:8.1f} "
            f"{rate:>9} {run.head_s:8.1f} {rest:8.1f} {100 * run.test_top1:9.2f}"
        )
    kill = figures.kill
    lines.append(
        f"killed at {kill.kept} of {kill.shards} shards; the next run computed {kill.computed}, "
        f"and {kill.rewritten} again"
    )
    first, second = ({run.head: run for run in figures.runs if run.photos == photos} for photos in (small, large))
    features, files = (
        _line((small, large), (sizes[0], sizes[1]), MILLION) / 1e9
        for sizes in (figures.feature_bytes, figures.run_bytes)
    )
    fastest = max((run for run in figures.runs if run.passed), key=lambda run: run.photos)
    lines.append(
        f"a million photos: pass {MILLION * fastest.pass_s / fastest.passed / 3600:.2f} h, features {features:.2f} GB, "
        f"run directory {files:.2f} GB"
    )
    for head in HEADS:
        a, b = first[head], second[head]
        head_s, rest_s, peak = (
            _line((small, large), values, MILLION)
            for values in (
                (a.head_s, b.head_s),
                (a.total_s - a.pass_s - a.head_s, b.total_s - b.pass_s - b.head_s),
                (a.peak_bytes, b.peak_bytes),
            )
        )
        lines.append(
            f"  {head:6} peak memory {large} : {small} photos {b.peak_bytes / a.peak_bytes:.3f}; "
            f"a million: {peak / 1e9:.2f} GB, head {head_s / 3600:.2f} h, rest {rest_s / 3600:.2f} h"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m benchmarks.scaling", show=show))
