"""Everything a device needs, in one folder: `python -m export.bundle RUN --scheme int8`.

The artifact, its labels, the device program, photos of the test split with what the host's interpreter said of them,
code for phones, a page for browsers; with `--target` what a microcontroller needs. `bundle.json` names every file by
its hash.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from edgetl import data, metrics
from edgetl.config import checked, command, to_json
from edgetl.console import progress
from edgetl.errors import ConfigError
from edgetl.rundir import LABELS, RunDir, installed_versions, open_run, sha256_of
from export import device_app, phone, schemes
from export.artifacts import Artifact, find_artifacts, open_artifact
from export.browser import page
from export.device.contents import (
    BUNDLE,
    EXPECTED,
    PROGRAM,
    Accuracy,
    Bounds,
    Bundle,
    HostLatency,
    Sample,
    SamplePhoto,
)
from export.evaluate import ArtifactScores, EvaluationReport, evaluation_of
from export.microcontroller import ethos_u, mcu
from export.report import latency_of

PROG = "python -m export.bundle"
BUNDLES = "bundles"
"""Folder of a run."""
REPORTS = "reports"
"""Folder of a bundle that the device program writes to; it is kept when the bundle is made anew."""
REFERENCE_PHOTOS = 4
"""So many photos go through the reference kernels, too: half a second each, on a device half a minute."""
OTHER_PIXELS = 0.2
"""What a score may change by when the pixels come from another Pillow or JPEG decoder: every pixel off by one level, up
or down, moved scores of a fine-tuned EfficientNet-Lite0 by up to 0.125."""

Target = Literal["mcu", "ethos-u"]
Targets = dict[str, mcu.McuReport | ethos_u.NpuReport]


@dataclass(frozen=True)
class Config:
    """Make the folder that goes to the device."""

    run: Positional[Path]
    """Run directory (the --out of a recipe), converted and evaluated."""
    scheme: str = "int8"
    """Which artifact ships."""
    out: Path | None = None
    """The folder; default is RUN/bundles/<scheme>. A bundle that is there is replaced, its reports/ kept."""
    photos: int = 64
    """Photos of the test split to check devices with, in proportion to the classes, each at least once."""
    target: tuple[Target, ...] = ()
    """`mcu` adds C sources for TensorFlow Lite Micro, `ethos-u` models compiled for Arm's NPUs."""
    accelerators: tuple[str, ...] = ethos_u.ACCELERATORS
    """Ethos-U configurations, by Vela's names; append :SYSTEM_CONFIG and :MEMORY_MODE to name your chip's."""
    allow_cpu: bool = False
    """Accept operators that an Ethos-U leaves to the CPU."""
    web: bool = True
    """Add the page for browsers; fetches LiteRT.js with npm the first time."""
    data: str = ""
    """Where the photos are now, if they were moved since the run."""


@dataclass(frozen=True)
class Made:
    """A bundle on disk."""

    path: Path
    bundle: Bundle
    photos: int
    """In its sample."""
    targets: Targets
    """What was measured for each target."""


def main(config: Config) -> Made:
    """Write a bundle.

    Raises:
        ConfigError: a setting that can't work.
        RunError: the run or one of its reports is missing or damaged.
        DatasetError: photos of the test split are gone or were changed.
        ArtifactError: the artifact is missing, not evaluated, or can't be used on a target.
    """
    config = checked(config)
    schemes.get(config.scheme)
    run = open_run(config.run)
    (artifact,) = find_artifacts(run, (config.scheme,))
    evaluation, scores = evaluation_of(run, [artifact])
    destination = _destination(config, run)
    test = run.splits(config.data).test
    readable = [index for index, example in enumerate(test) if example.id not in set(evaluation.unreadable)]
    chosen = data.stratified_subset(test.select(readable), config.photos)
    with _replacing(destination) as folder:
        model = folder / f"{artifact.scheme}.tflite"
        shutil.copyfile(run.export_path / artifact.path, model)
        shutil.copyfile(run.path / LABELS, folder / LABELS)
        (folder / PROGRAM).write_bytes(device_app.build())
        (folder / PROGRAM).chmod(0o755)
        _write_sample(folder, run, artifact, chosen)
        targets = _write_targets(folder, artifact, model, config)
        bundle = _described(run, artifact, evaluation, scores[artifact.scheme], targets, folder)
        (folder / BUNDLE).write_text(to_json(bundle), encoding="utf-8")
    return Made(destination, bundle, len(chosen), targets)


def _destination(config: Config, run: RunDir) -> Path:
    destination = (config.out or run.path / BUNDLES / config.scheme).expanduser()
    if destination.is_dir() and any(destination.iterdir()) and not (destination / BUNDLE).is_file():
        raise ConfigError(f"{destination}: not empty and not a bundle. Choose another --out")
    if destination.exists() and not destination.is_dir():
        raise ConfigError(f"{destination}: is a file. Choose another --out")
    return destination


@contextlib.contextmanager
def _replacing(destination: Path) -> Iterator[Path]:
    """Give a new folder the name when the block ends without an error; until then the old one stays as it is."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}."
    for left in destination.parent.glob(f"{prefix}*.part"):  # of a kill
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=destination.parent, prefix=prefix, suffix=".part"))
    try:
        folder.chmod(0o755)
        yield folder
        if (destination / REPORTS).is_dir():
            shutil.copytree(destination / REPORTS, folder / REPORTS)
        if destination.exists():
            old = Path(tempfile.mkdtemp(dir=destination.parent, prefix=prefix, suffix=".part"))
            destination.replace(old)
            folder.replace(destination)
            shutil.rmtree(old, ignore_errors=True)
        else:
            folder.replace(destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_sample(folder: Path, run: RunDir, artifact: Artifact, photos: data.Examples) -> None:
    """Copy photos and write down what the artifact says of them here."""
    path = run.export_path / artifact.path
    model, reference = open_artifact(path), open_artifact(path, kernels="reference")
    # Spread over the classes, whose photos lie side by side.
    slow = {round(step * (len(photos) - 1) / max(REFERENCE_PHOTOS - 1, 1)) for step in range(REFERENCE_PHOTOS)}
    (folder / EXPECTED).parent.joinpath("photos").mkdir(parents=True)
    sample = []
    with progress("sample", len(photos)) as bar:
        for batch in data.decoded(photos, run.inputs):
            data.check_unreadable(batch.unreadable, len(photos))
            run.refuse_changed(photos.select(batch.indices), batch.sha256)
            for index, pixels in zip(batch.indices.tolist(), batch.pixels, strict=True):
                photo = photos.items[index]
                name = f"sample/photos/{index:04}{photo.path.suffix.lower()}"
                shutil.copyfile(photo.path, folder / name)
                sample.append(
                    SamplePhoto(
                        path=name,
                        id=photo.id,
                        label=photo.label,
                        pixels_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
                        scores=tuple(model.predict(pixels).tolist()),
                        reference_scores=tuple(reference.predict(pixels).tolist()) if index in slow else None,
                    )
                )
                bar.advance(1)
    expected = Sample(tuple(sample), _bounds(artifact), model.runtime, installed_versions()["pillow"])
    (folder / EXPECTED).write_text(to_json(expected), encoding="utf-8")


def _bounds(artifact: Artifact) -> dict[str, Bounds]:
    """What a device may differ by, by kernels.

    Measured on 64 photos, EfficientNet-Lite0: between kernels, float32 differs by 6e-6, int8 by 0.10, naming one photo
    in fifty otherwise; int8 on the reference kernels of any machine does not differ at all.
    """
    scheme = schemes.get(artifact.scheme)
    if scheme.weights in ("float32", "float16"):
        exact = close = Bounds(1e-3, OTHER_PIXELS, 0.95)
    else:
        exact = Bounds(0.0 if scheme.integer else 0.02, OTHER_PIXELS, 0.9)
        close = Bounds(0.15, OTHER_PIXELS, 0.9)
    return {"xnnpack": close, "builtin": close, "reference": exact}


def _write_targets(folder: Path, artifact: Artifact, model: Path, config: Config) -> Targets:
    """Add what kinds of devices need, each in a folder of its own; return what was measured for them."""
    (folder / "phone").mkdir()
    phone.write(folder / "phone", artifact)
    if config.web:
        (folder / "web").mkdir()
        page.write(folder / "web", artifact, model)
    targets: Targets = {}
    for target in dict.fromkeys(config.target):
        (folder / target).mkdir()
        if target == "mcu":
            targets[target] = mcu.write(folder / target, artifact, model)
        else:
            targets[target] = ethos_u.write(
                folder / target, artifact, model, accelerators=config.accelerators, allow_cpu=config.allow_cpu
            )
    return targets


def _described(
    run: RunDir,
    artifact: Artifact,
    evaluation: EvaluationReport,
    scores: ArtifactScores,
    targets: Targets,
    folder: Path,
) -> Bundle:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Bundle(
        scheme=artifact.scheme,
        model=f"{artifact.scheme}.tflite",
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        inputs=json.loads(to_json(artifact.inputs)),
        input_type=artifact.input_type,
        input_scale=artifact.input_scale,
        input_zero_point=artifact.input_zero_point,
        class_names=artifact.class_names,
        float32=_accuracy(evaluation.keras),
        host=_accuracy(scores.scores),
        latency=_latency(run, artifact),
        targets={target: json.loads(to_json(report)) for target, report in targets.items()},
        run_sha256=artifact.run_sha256,
        files={path.relative_to(folder).as_posix(): sha256_of(path) for path in files},
        versions=installed_versions(),
    )


def _latency(run: RunDir, artifact: Artifact) -> HostLatency | None:
    found = latency_of(run, artifact)
    if found is None:
        return None
    return HostLatency(
        median_ms=found.median_ms,
        p90_ms=found.p90_ms,
        threads=found.circumstances.threads,
        kernels=found.circumstances.kernels,
        runtime=found.circumstances.runtime,
        device=found.circumstances.device.cpu,
        noise=found.noise,
    )


def _accuracy(scores: metrics.Scores) -> Accuracy:
    return Accuracy(scores.top1, scores.top1_low, scores.top1_high, scores.samples)


def show(made: Made) -> str:
    """What is in the folder, and what to do with it."""
    bundle = made.bundle
    size = sum(path.stat().st_size for path in made.path.rglob("*") if path.is_file())
    lines = [
        f"{made.path}: {len(bundle.files)} files, {size / 1e6:.1f} MB",
        f"  {bundle.model}  top-1 {100 * bundle.host.top1:.2f} % of {bundle.host.samples} test photos "
        f"(float32 {100 * bundle.float32.top1:.2f} %)",
        f"  {PROGRAM}  on the device: python3 {PROGRAM} info | classify PHOTO ... | check | benchmark",
        f"  sample/  {made.photos} test photos with what the host said of them",
        "  phone/  MediaPipe, Kotlin and Swift",
    ]
    if "web/index.html" in bundle.files:
        lines.append("  web/  a page: python3 -m http.server, in that folder")
    for target, report in made.targets.items():
        shown = mcu.show(report) if isinstance(report, mcu.McuReport) else ethos_u.show(report)
        lines += [f"  {target}/", *(f"    {line}" for line in shown)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
