"""What an audit costs against decoding the same photos, what it holds in memory, and what it finds of what was planted.

    python -m benchmarks.audit --json audit.json

Photos: all of `elpv`, enlarged, and generated scenes, as JPEGs of 500x500. The planted set is 2,000 photos of `elpv`:
cells look so alike that copies are hard to tell from neighbours. Every pass runs in a process of its own, so that its
peak memory is its own; decoding and auditing take turns.
"""

import dataclasses
import io
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgetl.audit import copies
from edgetl.audit.findings import Audit
from edgetl.audit.looks import look_at
from edgetl.config import command
from edgetl.console import progress
from edgetl.data import Examples, Pixels, default_workers, load
from recipes import audit

QUALITY = 90


@dataclass(frozen=True)
class Config:
    """Time the audit and count what it finds."""

    photos: int = 10_000
    """How many to time it on."""
    size: int = 500
    """Their side, pixels."""
    folder: Path | None = None
    """Where the photos are kept for the next time; by default they are deleted."""
    seed: int = 0
    """Of photos and of what is planted."""
    json: Path | None = None
    """Where to write the raw figures, if anywhere."""


@dataclass(frozen=True)
class Pass:
    """One pass over the photos, in a process of its own."""

    what: str
    photos: int
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Planted:
    """What was hidden in a data set: ids."""

    exact: dict[str, str]
    """Copy -> original."""
    near: dict[str, str]
    flipped: tuple[str, ...]
    corrupt: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """How much of it an audit found."""

    photos: int
    exact: int
    near: int
    flipped: int
    corrupt: int
    false_near: int
    """Photos in groups of copies though nobody copied them, those that the data had before included."""
    doubted: int
    """Labels named as doubtful, flipped or not."""
    planted: Planted


@dataclass(frozen=True)
class Figures:
    """All that was measured."""

    passes: tuple[Pass, ...]
    found: Found


def main(config: Config) -> Figures:
    """Time, then plant and look for it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = (config.folder or Path(scratch)).expanduser()
        write_photos(folder / "speed", config.photos, config.size, config.seed)
        passes = [
            measured(what, folder / "speed", count) for count in (config.photos // 4, config.photos) for what in WHAT
        ]
        planted = plant(Path(scratch) / "planted", config.seed)
        result = audit.main(audit.Config(str(Path(scratch) / "planted"), Path(scratch) / "audit", seed=config.seed))
        figures = Figures(tuple(passes), compared(result.audit, planted))
    if config.json:
        config.json.write_text(json.dumps(dataclasses.asdict(figures), indent=2) + "\n")
    return figures


def write_photos(folder: Path, count: int, size: int, seed: int) -> None:
    """Write JPEGs into two class folders; those that are there stay."""
    cells = [example.path for example in load("elpv")]

    def write(number: int) -> None:
        path = folder / ("even", "odd")[number % 2] / f"{number:05d}.jpg"
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < len(cells):
            photo = Image.open(cells[number]).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        else:
            photo = Image.fromarray(scene(np.random.default_rng([seed, number]), size))
        photo.save(path, "JPEG", quality=QUALITY)

    with progress("write photos", count) as bar, ThreadPoolExecutor(default_workers()) as pool:
        for _ in pool.map(write, range(count)):
            bar.advance()


def scene(rng: np.random.Generator, size: int) -> Pixels:
    """Colour noise with the spectrum of photos: strong where coarse, weak where fine."""
    total = np.zeros((size, size, 3), np.float32)
    for cells in (3, 6, 12, 24, 48, 96, 192):
        for channel in range(3):
            grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
            total[..., channel] += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)) / cells**0.7
    total -= total.min((0, 1))
    scaled: Pixels = (255 * total / total.max((0, 1))).astype(np.uint8)
    return scaled


def measured(what: str, folder: Path, count: int) -> Pass:
    """Run one pass in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, peak_mb = pool.apply(_timed, (what, folder, count))
    return Pass(what, count, seconds, peak_mb)


def _timed(what: str, folder: Path, count: int) -> tuple[float, float]:
    examples = load(folder)
    some = examples.select(np.linspace(0, len(examples) - 1, count).astype(int))
    start = time.perf_counter()
    WHAT[what](some)
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _decode(examples: Examples) -> None:
    def one(path: Path) -> None:
        with Image.open(path) as image:
            image.convert("RGB")

    with ThreadPoolExecutor(default_workers()) as pool:
        for _ in pool.map(one, [example.path for example in examples]):
            pass


def _audit(examples: Examples) -> None:
    looks = look_at(examples)
    audit.by_looks(examples, examples, looks, copies.near(looks))


WHAT: dict[str, Callable[[Examples], None]] = {"plain decode": _decode, "audit": _audit}


def plant(
    folder: Path,
    seed: int,
    *,
    photos: int = 2000,
    exact: int = 50,
    near: int = 50,
    flipped: int = 20,
    corrupt: int = 10,
) -> Planted:
    """Write photos of `elpv` as an image folder, with copies, wrong labels and broken files among them."""
    rng = np.random.default_rng(seed)
    examples = load("elpv")
    chosen = examples.select(np.sort(rng.choice(len(examples), photos, replace=False)))
    order = rng.permutation(photos)
    ends = np.cumsum([exact, near, flipped, corrupt])
    parts = dict(zip(("exact", "near", "flipped", "corrupt"), np.split(order[: ends[-1]], ends[:-1]), strict=True))
    ids = []
    for number, example in enumerate(chosen):
        label = int(chosen.labels[number])
        name = examples.output_names[1 - label if number in parts["flipped"] else label]
        ids.append(f"{name}/{Path(example.id).name}")
        (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(example.path, folder / ids[-1])
    copied: dict[str, dict[str, str]] = {"exact": {}, "near": {}}
    for kind, found in copied.items():
        for number in parts[kind]:
            original = Path(ids[number])
            copy = original.with_name(f"{kind}_{original.stem}.{'png' if kind == 'exact' else 'jpg'}").as_posix()
            data = (folder / original).read_bytes()
            (folder / copy).write_bytes(data if kind == "exact" else encoded_anew(data, rng))
            found[copy] = original.as_posix()
    for place, number in enumerate(parts["corrupt"]):
        damage(folder / ids[number], place, rng)
    some = {kind: tuple(ids[number] for number in parts[kind]) for kind in ("flipped", "corrupt")}
    return Planted(copied["exact"], copied["near"], some["flipped"], some["corrupt"])


def encoded_anew(data: bytes, rng: np.random.Generator) -> bytes:
    """Resize a photo to 0.4-1.6 of its sides and compress it at quality 40-90."""
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    factor = rng.uniform(0.4, 1.6)
    size = int(photo.width * factor), int(photo.height * factor)
    content = io.BytesIO()
    photo.resize(size, Image.Resampling.LANCZOS).save(content, "JPEG", quality=int(rng.integers(40, 91)))
    return content.getvalue()


def damage(path: Path, kind: int, rng: np.random.Generator) -> None:
    """Break a file, each time in another of four ways: empty, cut off, zeros at its end, no photo at all."""
    data = path.read_bytes()
    cut = int(len(data) * rng.uniform(0.2, 0.9))
    path.write_bytes([b"", data[:cut], data[:cut] + bytes(len(data) - cut), b"<html>404</html>"][kind % 4])


def compared(result: Audit, planted: Planted) -> Found:
    """Count what was found."""
    group_of = {member.id: number for number, group in enumerate(result.copies) for member in group.members}
    same_bytes = {member.id: member.same_bytes_as for group in result.copies for member in group.members}
    sources = {**planted.exact, **planted.near}
    involved = {*sources, *sources.values()}
    doubted = {issue.id for issue in result.labels}
    unreadable = {finding.id for finding in result.findings if finding.kind == "unreadable"}
    return Found(
        photos=result.photos,
        exact=sum(same_bytes.get(copy, copy) == same_bytes.get(first, "") for copy, first in planted.exact.items()),
        near=sum(group_of.get(copy, -1) == group_of.get(first, -2) for copy, first in planted.near.items()),
        flipped=len(doubted & set(planted.flipped)),
        corrupt=len(unreadable & set(planted.corrupt)),
        false_near=len(set(group_of) - involved),
        doubted=len(doubted),
        planted=planted,
    )


def table(figures: Figures) -> str:
    """Figures as text; the ratio is against a plain decode of the same photos."""
    lines = [f"{'pass':14} {'photos':>7} {'seconds':>8} {'photos/s':>9} {'ratio':>6} {'peak MB':>8}"]
    for each in figures.passes:
        base = next(p for p in figures.passes if p.photos == each.photos and p.what == "plain decode")
        lines.append(
            f"{each.what:14} {each.photos:7} {each.seconds:8.1f} {each.photos / each.seconds:9.0f}"
            f" {each.seconds / base.seconds:6.2f} {each.peak_mb:8.0f}"
        )
    found, planted = figures.found, figures.found.planted
    lines += ["", f"{'planted':22} {'found':>6} {'of':>5} {'share':>7}"]
    for name, count, total in [
        ("exact copies", found.exact, len(planted.exact)),
        ("re-encoded, resized", found.near, len(planted.near)),
        ("flipped labels", found.flipped, len(planted.flipped)),
        ("corrupt files", found.corrupt, len(planted.corrupt)),
        ("not copied, yet called", found.false_near, found.photos),
    ]:
        lines.append(f"{name:22} {count:6} {total:5} {count / total:7.1%}")
    return "\n".join([*lines, f"labels doubted in all: {found.doubted}"])


if __name__ == "__main__":
    raise SystemExit(command(main, Config, prog="benchmarks.audit", show=table))
