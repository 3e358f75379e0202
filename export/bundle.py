"""Everything a device needs, in one folder: `python -m export.bundle RUN --scheme int8`.

The artifact, its labels, the device program, photos of the test split with what the host's interpreter said of them,
code for phones, a page for browsers; with `--target` what a microcontroller needs. `bundle.json` names every file by
its hash. Where no photos were held out for testing, those of the validation split check devices just as well: what is
compared is two machines; how good the model is stays unknown.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from edgetl import data
from edgetl.config import checked, command, to_json
from edgetl.errors import ArtifactError, ConfigError
from edgetl.rundir import LABELS, RunDir, installed_versions, open_run, sealed, sha256_of
from edgetl.scores import PRIMARY, Scores
from export import device_app, phone, sample, schemes
from export.artifacts import Artifact, find_artifacts
from export.benchmark import latency_of
from export.browser import page
from export.device.contents import BUNDLE, PROGRAM, Bundle, Figure, HostLatency
from export.device.outputs import Outputs
from export.evaluate import evaluation_of
from export.microcontroller import ethos_u, mcu
from export.trial import refuse_crashing

PROG = "python -m export.bundle"
BUNDLES = "bundles"
"""Folder of a run."""
REPORTS = "reports"
"""Folder of a bundle that the device program writes to; it is kept when the bundle is made anew."""

Target = Literal["mcu", "ethos-u"]
Targets = dict[str, mcu.McuReport | ethos_u.NpuReport]


@dataclass(frozen=True)
class Config:
    """Make the folder that goes to the device."""

    run: Positional[Path]
    """Run directory (the --out of a recipe), converted and, unless it has no test split, evaluated."""
    scheme: str = "int8"
    """Which artifact ships."""
    out: Path | None = None
    """The folder; default is RUN/bundles/<scheme>. A bundle that is there is replaced, its reports/ kept."""
    photos: int = 64
    """Photos of the test split (of validation, where none were held out) to check devices with, in proportion to the
    classes (labels, values), each at least once."""
    target: tuple[Target, ...] = ()
    """`mcu` adds C sources for TensorFlow Lite Micro, `ethos-u` models compiled for Arm's NPUs."""
    accelerators: tuple[str, ...] = ethos_u.ACCELERATORS
    """Ethos-U configurations, by Vela's names; append :SYSTEM_CONFIG and :MEMORY_MODE to name your chip's."""
    allow_cpu: bool = False
    """Accept operators that an Ethos-U leaves to the CPU."""
    web: bool = True
    """Add the page for browsers, where they take the scheme; fetches LiteRT.js with npm the first time."""
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
    _check(config)
    run = open_run(config.run)
    (artifact,) = find_artifacts(run, (config.scheme,))
    evaluated = None if run.untested else evaluation_of(run, [artifact])
    destination = _destination(config, run)
    chosen = _chosen(run, config, evaluated[0].unreadable if evaluated else ())
    refuse_crashing([run.export_path / artifact.path])
    with _replacing(destination) as folder:
        model = folder / f"{artifact.scheme}.tflite"
        shutil.copyfile(run.export_path / artifact.path, model)
        if sha256_of(model) != artifact.sha256:
            raise ArtifactError(f"{run.export_path / artifact.path}: made anew meanwhile. Run the same command again")
        shutil.copyfile(run.path / LABELS, folder / LABELS)
        (folder / PROGRAM).write_bytes(device_app.build())
        (folder / PROGRAM).chmod(0o755)
        sample.write(folder, run, artifact, chosen)
        targets = _write_targets(folder, artifact, model, config)
        figures = (evaluated[0].keras, evaluated[1][artifact.scheme].scores) if evaluated else None
        bundle = _described(run, artifact, figures, targets, folder)
        (folder / BUNDLE).write_text(sealed(bundle), encoding="utf-8")
    return Made(destination, bundle, len(chosen), targets)


def _check(config: Config) -> None:
    schemes.get(config.scheme)
    if config.photos < 1:
        raise ConfigError(f"--photos {config.photos}: give at least 1")
    if "ethos-u" not in config.target and (config.allow_cpu or config.accelerators != ethos_u.ACCELERATORS):
        raise ConfigError("--accelerators and --allow-cpu go with --target ethos-u")


def _chosen(run: RunDir, config: Config, unreadable: Sequence[str]) -> data.Examples:
    """Photos of the sample."""
    splits = run.splits(config.data)
    part = splits.validation if run.untested else splits.test
    readable = [index for index, example in enumerate(part) if example.id not in set(unreadable)]
    return data.stratified_subset(part.select(readable), max(config.photos, len(run.output_names)))


def _destination(config: Config, run: RunDir) -> Path:
    destination = (config.out or run.path / BUNDLES / config.scheme).expanduser().resolve()
    if destination.is_dir() and any(destination.iterdir()) and not _is_bundle(destination):
        raise ConfigError(f"{destination}: not empty and not a bundle. Choose another --out")
    if destination.exists() and not destination.is_dir():
        raise ConfigError(f"{destination}: is a file. Choose another --out")
    return destination


def _is_bundle(folder: Path) -> bool:
    """Whether we made a folder, in this version or another: only then may it be replaced."""
    try:
        found = json.loads((folder / BUNDLE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"schema_version", "scheme", "sha256", "run_sha256"} <= set(found)


@contextlib.contextmanager
def _replacing(destination: Path) -> Iterator[Path]:
    """Give a new folder the name when the block ends without an error; until then the old one stays as it is."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        _sweep(destination)
        folder, old = (stack.enter_context(_temporary(destination)) for _ in range(2))
        yield folder
        if (destination / REPORTS).is_dir():
            shutil.copytree(destination / REPORTS, folder / REPORTS)
        if not destination.exists():
            folder.replace(destination)
            return
        destination.replace(old)
        try:
            folder.replace(destination)
        except BaseException:
            old.replace(destination)
            raise


@contextlib.contextmanager
def _temporary(destination: Path) -> Iterator[Path]:
    """A new folder beside another one, locked: what is not locked was left by a kill."""
    folder = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.part")
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _sweep(destination: Path) -> None:
    name = re.compile(rf"\.{re.escape(destination.name)}\.[0-9a-f]{{8}}\.part")
    for left in destination.parent.iterdir():
        if not name.fullmatch(left.name):
            continue
        handle = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:  # another process is at it
            continue
        finally:
            os.close(handle)


def _write_targets(folder: Path, artifact: Artifact, model: Path, config: Config) -> Targets:
    """Add what kinds of devices need, each in a folder of its own; return what was measured for them."""
    (folder / "phone").mkdir()
    phone.write(folder / "phone", artifact)
    if config.web and artifact.input_type in page.INPUT_TYPES:
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
    figures: tuple[Scores, Scores] | None,
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
        outputs=Outputs(**vars(artifact.outputs)),
        output_type=artifact.output_type,
        output_scale=artifact.output_scale,
        output_zero_point=artifact.output_zero_point,
        float32=_figure(figures[0]) if figures else None,
        host=_figure(figures[1]) if figures else None,
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


def _figure(scores: Scores) -> Figure:
    return Figure(PRIMARY[scores.task], scores.primary, scores.primary_low, scores.primary_high, scores.samples)


def show(made: Made) -> str:
    """What is in the folder, and what to do with it."""
    bundle = made.bundle
    size = sum(path.stat().st_size for path in made.path.rglob("*") if path.is_file())
    whose, worth = "validation", "no photos were held out for testing: how good it is was not measured"
    if (host := bundle.host) and (exact := bundle.float32):
        whose, worth = "test", f"{host.metric} {100 * host.value:.2f} % of {host.samples} test photos"
        worth += f" (float32 {100 * exact.value:.2f} %)"
    lines = [
        f"{made.path}: {len(bundle.files)} files, {size / 1e6:.1f} MB",
        f"  {bundle.model}  {worth}",
        f"  {PROGRAM}  on the device: python3 {PROGRAM} info | predict PHOTO ... | check | benchmark",
        f"  sample/  {made.photos} {whose} photos with what the host said of them",
        "  phone/  MediaPipe, Kotlin and Swift",
    ]
    if "web/index.html" in bundle.files:
        lines.append("  web/  a page: python3 -m http.server, in that folder")
    elif bundle.input_type not in page.INPUT_TYPES:
        lines.append(f"  no web/: browsers take no {bundle.input_type} input; another scheme, int8 say, has a page")
    for target, report in made.targets.items():
        shown = mcu.show(report) if isinstance(report, mcu.McuReport) else ethos_u.show(report)
        lines += [f"  {target}/", *(f"    {line}" for line in shown)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
