"""`check`: does this device give what the host gave, on the photos of the bundle?

Two things can differ: the pixels (another version of Pillow or of its JPEG decoder) and the kernels (another runtime or
processor). The bundle tells of each photo what the host's pixels hash to and what its model said.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from .contents import Bounds, Bundle, Sample, SamplePhoto, altered, read_sample, refuse_others
from .errors import DeviceError
from .interpreter import Model, Pixels
from .outcome import Circumstances, Outcome, circumstances, finite, shown_circumstances, table
from .outputs import Outputs
from .preprocess import read

SAID = {
    "class": ("same class", "score"),
    "label": ("same labels", "score"),
    "target": ("within bounds", "value, in deviations"),
}
"""Kind of the names -> what agreement means, and what a number is."""


@dataclass(frozen=True)
class CheckedPhoto:
    """One photo of the sample."""

    path: str
    right: dict[str, float]
    """Name -> number of what is true of it: 1 for its class or labels; the values of targets."""
    host: dict[str, float]
    """What the host said, likewise: the class with its score; the labels that reach their thresholds; targets."""
    here: dict[str, float]
    """What this device said."""
    same: bool
    """Whether both say the same: the same class, the same labels, or values within the bounds."""
    same_pixels: bool
    """Whether the model saw the very pixels that it saw on the host."""
    max_difference: float
    """Of any score to the host's; of targets, in their deviations."""


@dataclass(frozen=True)
class CheckReport:
    """What `check` found."""

    task: str
    """`classification`, `ordinal`, `multi_label` or `regression`."""
    photos: tuple[CheckedPhoto, ...]
    metric: str
    """What `score` is: `top-1`, `F1` or `R2`."""
    score: float
    """How well the model does here, a fraction, at most 1."""
    host_score: float
    """How well it did on the same photos on the host."""
    agreement: float
    """Share of photos of which both say the same."""
    max_difference: float
    """Of any score of any photo; of targets, in their deviations."""
    same_pixels: int
    """Number of photos whose pixels are the host's."""
    bounds: Bounds
    """What was allowed."""
    passed: bool
    circumstances: Circumstances
    command: str = "check"
    schema_version: int = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--kernels",
        choices=("xnnpack", "builtin", "reference"),
        default="xnnpack",
        help="reference is slow and equal everywhere: the difference must be 0 (default xnnpack)",
    )


def run(bundle: Bundle, folder: Path, options: argparse.Namespace) -> Outcome:
    """Compare with the host.

    Raises:
        DeviceError: a file of the bundle is damaged or Pillow is missing; the model can't be run.
    """
    sample = read_sample(folder)
    chosen = [(photo, expected) for photo in sample.photos if (expected := _expected(photo, options.kernels))]
    if not chosen or options.kernels not in sample.bounds:
        raise DeviceError(f"{folder}: holds no expected scores for {options.kernels} kernels. Make the bundle again")
    model = Model(folder / bundle.model, threads=options.threads, kernels=options.kernels, sha256=bundle.sha256)
    refuse_others(bundle, model.about, folder)
    if changed := [name for name in altered(bundle, folder) if (folder / name).exists()]:
        raise DeviceError(f"{folder / changed[0]}: damaged (sha256 differs). Copy the bundle again")
    bounds, outputs = sample.bounds[options.kernels], bundle.outputs
    photos, rows = [], []
    for photo, expected in chosen:
        if not photo.path or Path(photo.path).is_absolute() or ".." in Path(photo.path).parts:
            raise DeviceError(f"{photo.path}: not a path within the bundle. Copy the bundle again")
        pixels = read(folder / photo.path, bundle.inputs)
        scores = finite(model.predict(pixels).tolist(), bundle.model)
        if not len(expected) == len(scores) == len(photo.truth) == len(outputs.names):
            raise DeviceError(
                f"{photo.path}: {len(expected)} expected scores, not {len(scores)}. Make the bundle again"
            )
        rows.append(scores)
        photos.append(_checked(photo, pixels, scores, expected, outputs, bounds))
    truths, host = [photo.truth for photo, _ in chosen], [expected for _, expected in chosen]
    figures = outputs.primary(truths, rows), outputs.primary(truths, host)
    report = _judged(photos, figures, outputs, bounds, circumstances(model))
    return Outcome(report, tuple(_shown(report, bundle, sample)), report.passed)


def _expected(photo: SamplePhoto, kernels: str) -> Optional[tuple[float, ...]]:
    return photo.reference_scores if kernels == "reference" else photo.scores


def _checked(
    photo: SamplePhoto,
    pixels: Pixels,
    scores: list[float],
    expected: tuple[float, ...],
    outputs: Outputs,
    bounds: Bounds,
) -> CheckedPhoto:
    same_pixels = hashlib.sha256(pixels.tobytes()).hexdigest() == photo.pixels_sha256
    host, here, difference = outputs.said(expected), outputs.said(scores), outputs.distance(scores, expected)
    return CheckedPhoto(
        path=photo.path,
        right=outputs.right(photo.truth),
        host=host,
        here=here,
        same=set(host) == set(here) if outputs.task != "regression" else difference <= _allowed(bounds, same_pixels),
        same_pixels=same_pixels,
        max_difference=difference,
    )


def _judged(
    photos: list[CheckedPhoto], figures: tuple[float, float], outputs: Outputs, bounds: Bounds, found: Circumstances
) -> CheckReport:
    count = len(photos)
    same = sum(photo.same for photo in photos)
    return CheckReport(
        task=outputs.task,
        photos=tuple(photos),
        metric=outputs.metric,
        score=figures[0],
        host_score=figures[1],
        agreement=same / count,
        max_difference=max(photo.max_difference for photo in photos),
        same_pixels=sum(photo.same_pixels for photo in photos),
        bounds=bounds,
        # Of a small sample one photo may be named otherwise: its best two can be nearer than what is allowed.
        passed=count - same <= max(1, (1 - bounds.min_agreement) * count)
        and all(photo.max_difference <= _allowed(bounds, photo.same_pixels) for photo in photos),
        circumstances=found,
    )


def _allowed(bounds: Bounds, same_pixels: bool) -> float:
    return bounds.same_pixels if same_pixels else bounds.other_pixels


def _shown(report: CheckReport, bundle: Bundle, sample: Sample) -> list[str]:
    count, host = len(report.photos), bundle.host
    whole = f"{100 * host.value:.2f} on all {host.samples} test photos" if host else "unknown: no test photos"
    what, of = SAID[bundle.outputs.kind]
    rows = [
        ["", "here", "host", "bound"],
        ["photos", str(count), str(count), ""],
        [f"{report.metric} %", f"{100 * report.score:.2f}", f"{100 * report.host_score:.2f}", ""],
        [f"{what} %", f"{100 * report.agreement:.2f}", "", f">= {100 * report.bounds.min_agreement:.2f}"],
        [f"largest difference of a {of}", f"{report.max_difference:.6f}", "", f"<= {report.bounds.same_pixels:g}"],
        ["same pixels", str(report.same_pixels), "", ""],
    ]
    lines = [*table(rows), f"host: {sample.runtime}, Pillow {sample.pillow}; {report.metric} {whole}"]
    if report.same_pixels < count:
        lines.append(
            f"{count - report.same_pixels} photo(s) became other pixels here: "
            f"Pillow {report.circumstances.versions.get('pillow', '(none)')} here, {sample.pillow} on the host; "
            f"what the model says may differ by {report.bounds.other_pixels:g}"
        )
    return [*lines, shown_circumstances(report.circumstances), "PASSED" if report.passed else "FAILED"]
