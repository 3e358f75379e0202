"""`check`: does this device give what the host gave, on photos of the test split?

Two things can differ: the pixels (another version of Pillow or of its JPEG decoder) and the kernels (another runtime or
processor). The bundle tells of each photo what the host's pixels hash to and what its model said.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from .contents import Bounds, Bundle, Sample, SamplePhoto, read_sample
from .errors import DeviceError
from .interpreter import Model
from .outcome import Circumstances, Outcome, circumstances, finite, shown_circumstances, table
from .preprocess import read


@dataclass(frozen=True)
class CheckedPhoto:
    """One photo of the sample."""

    path: str
    label: int
    """Index of its class."""
    host: int
    """What the host named it."""
    named: int
    """What this device named it."""
    same_pixels: bool
    """Whether the model saw the very pixels that it saw on the host."""
    max_difference: float
    """Of any score to the host's."""


@dataclass(frozen=True)
class CheckReport:
    """What `check` found."""

    photos: tuple[CheckedPhoto, ...]
    top1: float
    """Share named rightly here."""
    host_top1: float
    """Share of the same photos that the host named rightly."""
    agreement: float
    """Share that both name alike."""
    max_difference: float
    """Of any score of any photo."""
    same_pixels: int
    """Number of photos whose pixels are the host's."""
    bounds: Bounds
    """What was allowed."""
    passed: bool
    circumstances: Circumstances
    command: str = "check"
    schema_version: int = 1


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
        DeviceError: the sample is damaged or Pillow is missing; the model can't be run.
    """
    sample = read_sample(folder)
    chosen = [(photo, expected) for photo in sample.photos if (expected := _expected(photo, options.kernels))]
    if not chosen or options.kernels not in sample.bounds:
        raise DeviceError(f"{folder}: holds no expected scores for {options.kernels} kernels. Make the bundle again")
    model = Model(folder / bundle.model, threads=options.threads, kernels=options.kernels, sha256=bundle.sha256)
    photos = []
    for photo, expected in chosen:
        if not photo.path or Path(photo.path).is_absolute() or ".." in Path(photo.path).parts:
            raise DeviceError(f"{photo.path}: not a path within the bundle. Copy the bundle again")
        pixels = read(folder / photo.path, bundle.inputs)
        scores = finite(model.predict(pixels).tolist(), bundle.model)
        if len(expected) != len(scores):
            raise DeviceError(
                f"{photo.path}: {len(expected)} expected scores, not {len(scores)}. Make the bundle again"
            )
        photos.append(
            CheckedPhoto(
                path=photo.path,
                label=photo.label,
                host=expected.index(max(expected)),
                named=scores.index(max(scores)),
                same_pixels=hashlib.sha256(pixels.tobytes()).hexdigest() == photo.pixels_sha256,
                max_difference=max(abs(here - there) for here, there in zip(scores, expected)),  # noqa: B905
            )
        )
    report = _judged(tuple(photos), sample.bounds[options.kernels], circumstances(model))
    return Outcome(report, (*_shown(report, bundle, sample),), report.passed)


def _expected(photo: SamplePhoto, kernels: str) -> Optional[tuple[float, ...]]:
    return photo.reference_scores if kernels == "reference" else photo.scores


def _judged(photos: tuple[CheckedPhoto, ...], bounds: Bounds, found: Circumstances) -> CheckReport:
    count = len(photos)
    same = sum(photo.named == photo.host for photo in photos)
    return CheckReport(
        photos=photos,
        top1=sum(photo.named == photo.label for photo in photos) / count,
        host_top1=sum(photo.host == photo.label for photo in photos) / count,
        agreement=same / count,
        max_difference=max(photo.max_difference for photo in photos),
        same_pixels=sum(photo.same_pixels for photo in photos),
        bounds=bounds,
        # Of a small sample one photo may be named otherwise: its best two can be nearer than what is allowed.
        passed=count - same <= max(1, (1 - bounds.min_agreement) * count)
        and all(_close(photo, bounds) for photo in photos),
        circumstances=found,
    )


def _close(photo: CheckedPhoto, bounds: Bounds) -> bool:
    return photo.max_difference <= (bounds.same_pixels if photo.same_pixels else bounds.other_pixels)


def _shown(report: CheckReport, bundle: Bundle, sample: Sample) -> list[str]:
    count, host = len(report.photos), bundle.host
    whole = f"{100 * host.top1:.2f} on all {host.samples} test photos"
    rows = [
        ["", "here", "host", "bound"],
        ["photos", str(count), str(count), ""],
        ["top-1 %", f"{100 * report.top1:.2f}", f"{100 * report.host_top1:.2f}", ""],
        ["same class %", f"{100 * report.agreement:.2f}", "", f">= {100 * report.bounds.min_agreement:.2f}"],
        ["largest difference of a score", f"{report.max_difference:.6f}", "", f"<= {report.bounds.same_pixels:g}"],
        ["same pixels", str(report.same_pixels), "", ""],
    ]
    lines = [*table(rows), f"host: {sample.runtime}, Pillow {sample.pillow}; top-1 {whole}"]
    if report.same_pixels < count:
        lines.append(
            f"{count - report.same_pixels} photo(s) became other pixels here: "
            f"Pillow {report.circumstances.versions.get('pillow', '(none)')} here, {sample.pillow} on the host; "
            f"their scores may differ by {report.bounds.other_pixels:g}"
        )
    return [*lines, shown_circumstances(report.circumstances), "PASSED" if report.passed else "FAILED"]
