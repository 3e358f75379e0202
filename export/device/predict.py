"""`predict`: what the model says of photos."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from .contents import Bundle, refuse_others
from .errors import DeviceError
from .outcome import Circumstances, Outcome, circumstances, finite, shown_circumstances, table
from .outputs import Outputs


@dataclass(frozen=True)
class Predicted:
    """One photo."""

    photo: str
    said: dict[str, float]
    """Name -> number of what the model says: the best class; the labels that reach their thresholds; all targets."""
    scores: dict[str, float]
    """Name -> number of all outputs; of classes and labels a score, 0..1, best first."""
    prepare_ms: float
    """Reading, decoding and resizing it."""
    invoke_ms: float
    """The model itself."""


@dataclass(frozen=True)
class PredictReport:
    """What `predict` found."""

    task: str
    """`classification`, `ordinal`, `multi_label` or `regression`."""
    photos: tuple[Predicted, ...]
    circumstances: Circumstances
    command: str = "predict"
    schema_version: int = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "photos",
        nargs="+",
        type=Path,
        metavar="PHOTO",
        help="JPEG, PNG, BMP, GIF or WebP (needs Pillow), or .npy: uint8 [height, width, 3], RGB",
    )
    parser.add_argument("--top", type=int, default=3, help="how many classes to show, at most (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")


def run(bundle: Bundle, folder: Path, options: argparse.Namespace) -> Outcome:
    """Run the model on photos.

    Raises:
        DeviceError: an option out of its range; a photo that isn't one; the model can't be run.
    """
    from .interpreter import Model
    from .preprocess import read

    if options.top < 1:
        raise DeviceError(f"--top {options.top}: give at least 1")
    model = Model(folder / bundle.model, threads=options.threads, sha256=bundle.sha256)
    outputs = bundle.outputs
    refuse_others(bundle, model.about, folder)
    found = []
    for path in options.photos:
        start = time.perf_counter_ns()
        pixels = read(path, bundle.inputs)
        prepared = time.perf_counter_ns()
        scores = finite(model.predict(pixels).tolist(), bundle.model)
        done = time.perf_counter_ns()
        named = dict(zip(outputs.names, scores))  # noqa: B905 (Python 3.9)
        if outputs.task != "regression":
            named = dict(sorted(named.items(), key=lambda pair: -pair[1]))
        said, times = outputs.said(scores), ((prepared - start) / 1e6, (done - prepared) / 1e6)
        found.append(Predicted(str(path), said, named, *times))
    report = PredictReport(outputs.task, tuple(found), circumstances(model))
    return Outcome(report, (*_shown(report, outputs, options.top), shown_circumstances(report.circumstances)))


def _shown(report: PredictReport, outputs: Outputs, top: int) -> list[str]:
    """A line per photo: the best classes with their scores; all labels that are said; or a column per target."""
    if outputs.task == "regression":
        titles = list(outputs.names)
        cells = [[f"{value:.5g}" for value in each.said.values()] for each in report.photos]
    elif outputs.task == "multi_label":
        titles = ["labels"]
        cells = [
            [", ".join(f"{name} {each.scores[name]:.3f}" for name in each.scores if name in each.said) or "(none)"]
            for each in report.photos
        ]
    else:
        shown = min(top, len(outputs.names))
        titles = ["class", "score"] * shown
        cells = [
            [cell for name, score in list(each.scores.items())[:shown] for cell in (name, f"{score:.3f}")]
            for each in report.photos
        ]
    rows = [
        [each.photo, *own, f"{each.prepare_ms:.1f}", f"{each.invoke_ms:.1f}"]
        for each, own in zip(report.photos, cells)  # noqa: B905
    ]
    return table([["photo", *titles, "prepare ms", "invoke ms"], *rows])
