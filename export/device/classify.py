"""`classify`: what the model says of photos."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

from .contents import ADVICE, Bundle
from .errors import DeviceError
from .outcome import Circumstances, Outcome, circumstances, finite, shown_circumstances, table


@dataclass(frozen=True)
class Classified:
    """One photo."""

    photo: str
    label: str
    """The class with the highest score."""
    scores: dict[str, float]
    """Class name -> score, 0..1, of all classes."""
    prepare_ms: float
    """Reading, decoding and resizing it."""
    invoke_ms: float
    """The model itself."""


@dataclass(frozen=True)
class ClassifyReport:
    """What `classify` found."""

    photos: tuple[Classified, ...]
    circumstances: Circumstances
    command: str = "classify"
    schema_version: int = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "photos",
        nargs="+",
        type=Path,
        metavar="PHOTO",
        help="JPEG, PNG, BMP, GIF or WebP (needs Pillow), or .npy: uint8 [height, width, 3], RGB",
    )
    parser.add_argument("--top", type=int, default=3, help="how many classes to name (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")


def run(bundle: Bundle, folder: Path, options: argparse.Namespace) -> Outcome:
    """Classify photos.

    Raises:
        DeviceError: an option out of its range; a photo that isn't one; the model can't be run.
    """
    from .interpreter import Model
    from .preprocess import read

    if options.top < 1:
        raise DeviceError(f"--top {options.top}: give at least 1")
    model = Model(folder / bundle.model, threads=options.threads, sha256=bundle.sha256)
    if math.prod(model.output.shape) != len(bundle.output_names):
        raise DeviceError(f"{folder}: names {len(bundle.output_names)} classes, not those of {bundle.model}. {ADVICE}")
    found = []
    for path in options.photos:
        start = time.perf_counter_ns()
        pixels = read(path, bundle.inputs)
        prepared = time.perf_counter_ns()
        scores = finite(model.predict(pixels).tolist(), bundle.model)
        done = time.perf_counter_ns()
        ranked = sorted(zip(bundle.output_names, scores), key=lambda pair: -pair[1])  # noqa: B905 (Python 3.9)
        found.append(
            Classified(str(path), ranked[0][0], dict(ranked), (prepared - start) / 1e6, (done - prepared) / 1e6)
        )
    report = ClassifyReport(tuple(found), circumstances(model))
    shown = min(options.top, len(bundle.output_names))
    titles = ["photo", *(["class", "score"] * shown), "prepare ms", "invoke ms"]
    rows = [
        [
            each.photo,
            *(cell for name, score in list(each.scores.items())[:shown] for cell in (name, f"{score:.3f}")),
            f"{each.prepare_ms:.1f}",
            f"{each.invoke_ms:.1f}",
        ]
        for each in found
    ]
    return Outcome(report, (*table([titles, *rows]), shown_circumstances(report.circumstances)))
