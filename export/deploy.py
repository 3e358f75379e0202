"""A bundle to a device, its figures back: `python -m export.deploy RUN --ssh user@host`, or `... --adb`.

Over ssh the device gets the bundle and, if its Python lacks the packages, a virtual environment; there the device
program tells what it finds, checks and measures. On Android a `benchmark_model` measures. Reports go to RUN/devices.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from edgetl.config import checked, command, from_json, to_json
from edgetl.console import log, progress
from edgetl.errors import ArtifactError, ConfigError
from edgetl.rundir import LABELS, RunDir, open_run, sealed, sha256_of
from export import android
from export.artifacts import Artifact, device_errors, find_artifacts
from export.bundle import BUNDLES
from export.device.contents import BUNDLE, PROGRAM, Bundle, read_bundle
from export.devices import (
    COMMANDS,
    REPORTS,
    DeviceRow,
    android_row,
    device_folder,
    device_row,
    save,
    shown,
    subjects,
)
from export.remote import Content, Remote, connected, listed
from export.schemes import COMPRESSIONS, SCHEMES
from export.ssh import Link, RemoteError, clipped, lines_of

PROG = "python -m export.deploy"
REQUIREMENTS = (
    ("ai-edge-litert", "numpy", "pillow"),
    ("tflite-runtime", "numpy<2", "pillow"),
)
"""What the device program runs on; the second where there are no wheels of the first: 32-bit Arm, old Pythons."""
VENV_BYTES = 300_000_000
"""What a virtual environment with these takes, and pip while it makes it."""
PROBE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from edgetl_device.runtime import find_runtime; "
    "import numpy, PIL.Image; print(find_runtime().name)"
)
"""Imports in earnest what the device program imports."""
KINDS = (
    "venv",
    "wheels",
    *(f"{prefix}{name}" for prefix in ("", *(f"{each}_" for each in COMPRESSIONS)) for name in SCHEMES),
)
"""What names of all that is put there begin with."""
ONLY_SSH = ("port", "identity", "ssh_config", "python", "remote_dir", "wheels", "clean")
ONLY_ADB = ("serial", "benchmark_model")
NO_INDEX = ("Retrying (", "Failed to establish a new connection", "Temporary failure in name resolution")
"""How pip says that it has no way to the network."""


@dataclass(frozen=True)
class Config:
    """Run a bundle on a device and bring its figures back."""

    run: Positional[Path]
    """Run directory (the --out of a recipe) with a bundle."""
    ssh: str = ""
    """`user@host`, or a name of your ssh configuration."""
    adb: bool = False
    """An Android device instead, with --benchmark-model."""
    scheme: str = "int8"
    """Which bundle."""
    name: str = ""
    """What to call the device in reports; default is the host (and port), or the phone's model and serial."""
    threads: tuple[int, ...] = ()
    """Numbers of CPU threads to measure; default is what the device program finds sensible, on Android 1."""
    port: int | None = None
    """Of the ssh server."""
    identity: Path | None = None
    """File of the private key."""
    ssh_config: Path | None = None
    """Instead of ~/.ssh/config."""
    python: str = "python3"
    """The device's Python, 3.9 or later."""
    remote_dir: str = "edgetl"
    """Where everything goes there; relative to the home directory."""
    wheels: Path | None = None
    """Folder of wheels to install there, for a device without internet."""
    clean: bool = False
    """Delete all of ours there at the end, however it comes; else the next time is quicker."""
    serial: str = ""
    """Of the Android device, where several are connected."""
    benchmark_model: Path | None = None
    """TFLite's benchmark_model, built for the Android device."""


@dataclass(frozen=True)
class Deployed:
    """What a device found out."""

    folder: Path
    """Where the reports are."""
    row: DeviceRow


def main(config: Config) -> Deployed:
    """Run a bundle on a device and write its reports.

    Raises:
        ConfigError: a setting that can't work.
        RunError: the run is missing or damaged.
        ArtifactError: no bundle, or one of another file than the run's artifact.
        RemoteError: the device can't be reached, or can't do what it is asked.
    """
    config = checked(config)
    _check(config)
    run = open_run(config.run)
    (artifact,) = find_artifacts(run, (config.scheme,))
    folder, bundle = _bundle(run, artifact)
    if config.adb:
        return _over_adb(config, run, artifact, folder / bundle.model)
    link = Link(config.ssh, config.port, config.identity, config.ssh_config, config.python)
    link.check()
    destination = device_folder(run, config.name or link.name, config.scheme)
    with connected(link) as remote:
        reports = _over_ssh(remote, config, folder, bundle)
    save(destination, reports)
    return Deployed(destination, device_row(destination.parent.name, *reports.values()))


def _check(config: Config) -> None:
    if bool(config.ssh) == config.adb:
        raise ConfigError("name one device: --ssh user@host, or --adb")
    if config.adb and not config.benchmark_model:
        raise ConfigError("--adb needs --benchmark-model FILE, TFLite's benchmark_model built for the device")
    wrong = [name for name in (ONLY_SSH if config.adb else ONLY_ADB) if getattr(config, name) != getattr(Config, name)]
    if wrong:
        mode, other = ("--adb", "--ssh") if config.adb else ("--ssh", "--adb")
        raise ConfigError(f"--{wrong[0].replace('_', '-')} goes with {other}, not with {mode}. Leave it out")
    for name in ("python", "remote_dir"):
        if not getattr(config, name).strip():
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)!r}: is empty. Leave it out")
    if config.port is not None and not 1 <= config.port <= 65535:
        raise ConfigError(f"--port {config.port}: expected 1 to 65535")
    if any(number < 1 for number in config.threads):
        raise ConfigError(f"--threads {' '.join(map(str, config.threads))}: must be at least 1")
    if config.wheels and not any(config.wheels.glob("*.whl")):
        raise ConfigError(f"--wheels {config.wheels}: no .whl files there")


def _bundle(run: RunDir, artifact: Artifact) -> tuple[Path, Bundle]:
    """The bundle of an artifact, whole and up to date."""
    folder = run.path / BUNDLES / artifact.scheme
    again = f"python -m export.bundle {run.path} --scheme {artifact.scheme}"
    if not (folder / BUNDLE).is_file():
        raise ArtifactError(f"{folder}: no bundle. Make it with {again}")
    with device_errors():
        bundle = read_bundle(folder)
    if bundle.sha256 != artifact.sha256:
        raise ArtifactError(f"{folder}: made of another file than {artifact.path} is now. Run {again}")
    for name, sha256 in bundle.files.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != sha256:
            raise ArtifactError(f"{folder / name}: missing or changed since the bundle was made. Run {again}")
    return folder, bundle


def _over_adb(config: Config, run: RunDir, artifact: Artifact, model: Path) -> Deployed:
    assert config.benchmark_model
    if config.name:
        device_folder(run, config.name, config.scheme)  # refuse a bad name before minutes of work
    with progress("benchmark_model"):
        report = android.measure(
            artifact, model, config.benchmark_model, serial=config.serial, threads=config.threads or (1,)
        )
    name = config.name or f"{report.device.model} {report.device.serial}".strip().replace("/", "-")
    folder = device_folder(run, name, config.scheme)
    save(folder, {"android": report})
    return Deployed(folder, android_row(name, report))


def _over_ssh(remote: Remote, config: Config, folder: Path, bundle: Bundle) -> dict[str, Any]:
    """Copy, install, run.

    Returns:
        Each of COMMANDS -> its report.
    """
    contents = needed(folder, bundle)
    bundle_name = f"{config.scheme}-{contents[0].sha256[:12]}"
    device = remote.ask("look", root=config.remote_dir, kinds=KINDS, bundle=bundle_name, clean=config.clean)
    there = f"{device['root']}/{bundle_name}"
    _copy(remote, there, contents, device["free_bytes"], "bundle")
    python = _python(remote, config, device, there)
    reports = {}
    for name in COMMANDS:
        threads = [str(number) for number in config.threads] if name == "benchmark" else []
        arguments = [python, f"{there}/{PROGRAM}", name, *(["--threads", *threads] if threads else [])]
        with progress(f"{name} on {remote.link.name}"):
            done = remote.ask("run", arguments=arguments, folder=there, report=f"reports/{name}.json")
        reports[name] = _report(remote, name, done, bundle)
    return reports


def needed(folder: Path, bundle: Bundle) -> list[Content]:
    """What the device program needs of a bundle, `bundle.json` first, which names just these files."""
    names = [name for name in bundle.files if name in (bundle.model, LABELS, PROGRAM) or name.startswith("sample/")]
    files = [Content(name, folder / name, (folder / name).stat().st_size, bundle.files[name]) for name in names]
    about = sealed(replace(bundle, files={name: bundle.files[name] for name in names})).encode()
    return [Content(BUNDLE, about, len(about), hashlib.sha256(about).hexdigest()), *files]


def _copy(remote: Remote, folder: str, contents: Sequence[Content], free_bytes: int, what: str) -> None:
    if remote.ask("has", folder=folder, files=listed(contents))["intact"]:
        log.info("%s: the %s is there", remote.link.name, what)
        return
    size = sum(content.size for content in contents)
    if size > free_bytes:
        raise RemoteError(
            f"{remote.link.host}: {free_bytes / 1e6:.1f} MB free at {folder}, the {what} takes {size / 1e6:.1f}. Free "
            "some space there, or choose another --remote-dir"
        )
    with progress(f"copy {what} to {remote.link.name}", len(contents)) as bar:
        remote.send(folder, contents, bar.advance)


def _python(remote: Remote, config: Config, device: dict[str, Any], bundle: str) -> str:
    """Find a Python there that has what the device program needs, or make a virtual environment.

    Returns:
        The path of the program.
    """
    probe = ["-c", PROBE, f"{bundle}/{PROGRAM}"]
    wheels = _wheels(config)
    needs = to_json((REQUIREMENTS, remote.python, device["machine"], listed(wheels)))
    key = hashlib.sha256(needs.encode()).hexdigest()[:12]
    venv, store = f"{device['root']}/venv-{key}", f"{device['root']}/wheels-{key}"
    for python, where in (
        (device["executable"], "of its own"),
        (f"{venv}/bin/python", "in the environment made before"),
    ):
        # The shell turns a program that is not there into an exit status.
        found = remote.ask("run", arguments=["sh", "-c", 'exec "$0" "$@"', python, *probe], folder=bundle)
        if found["status"] == 0:
            log.info("%s: %s, %s", remote.link.name, found["output"].splitlines()[-1], where)
            return python
    if not device["can_venv"]:
        raise RemoteError(
            f"{remote.link.host}: no venv module there. Install it (Debian: sudo apt install python3-venv)"
        )
    if device["free_bytes"] < VENV_BYTES:
        raise RemoteError(
            f"{remote.link.host}: {device['free_bytes'] / 1e6:.0f} MB free, a virtual environment takes "
            f"{VENV_BYTES / 1e6:.0f}. Free some space there, or choose another --remote-dir"
        )
    if wheels:
        _copy(remote, store, wheels, device["free_bytes"] - VENV_BYTES, "wheels")
    _make_venv(remote, venv, store if wheels else "", probe, device["machine"])
    return f"{venv}/bin/python"


def _make_venv(remote: Remote, venv: str, wheels: str, probe: list[str], machine: str) -> None:
    index = ["--no-index", "--find-links", wheels] if wheels else []
    pip = ["--disable-pip-version-check", "--no-cache-dir", "--retries", "1", "--only-binary", ":all:", *index]
    with progress(f"install packages on {remote.link.name}"):
        done = remote.ask("make_venv", folder=venv, pip=pip, choices=REQUIREMENTS, probe=probe)
    if wheels:
        remote.ask("remove", folder=wheels)
    if done["status"] == 0:
        return
    cut_off = any(sign in done["output"] for sign in NO_INDEX)
    lines = lines_of(done["output"]) or ["it printed nothing"]
    last = [line for line in lines if line.startswith("ERROR:")][-1:] or lines[-1:]
    version = ".".join(map(str, remote.python))
    if cut_off:
        advice = (
            f"It has no way to the package index: download wheels of {', '.join(REQUIREMENTS[0])} for Python {version} "
            f"on {machine} (pip download) and name their folder with --wheels"
        )
    elif done["step"] == "pip":
        advice = f"It is Python {version} on {machine}; name another one with --python, or --wheels FOLDER"
    else:
        advice = "Name another Python with --python"
    raise RemoteError(f"{remote.link.host}: {done['step']} failed there: {clipped(last[0].rstrip('.'))}. {advice}")


def _wheels(config: Config) -> list[Content]:
    paths = sorted(config.wheels.glob("*.whl")) if config.wheels else []
    return [Content(path.name, path, path.stat().st_size, sha256_of(path)) for path in paths]


def _report(remote: Remote, name: str, done: dict[str, Any], bundle: Bundle) -> Any:
    """Read what the device program wrote, and make sure that it is about the bundle's file."""
    where = f"{remote.link.host}: {name}"
    # A check that failed is status 1, and so is a program that crashed.
    if not done["report"] or done["status"] not in ((0, 1) if name == "check" else (0,)):
        lines = lines_of(done["output"])
        last = lines[-1] if lines else f"exit status {done['status']}"
        raise RemoteError(f"{where} failed there: {clipped(last)}")
    try:
        report = from_json(REPORTS[name], done["report"], source=where)
    except ConfigError as error:
        raise RemoteError(f"{error}. The bundle is from another version; make it again") from error
    if subjects(report) != {bundle.sha256}:
        raise RemoteError(f"{where}: about another file than {bundle.model}. Run the same command again")
    return report


def show(deployed: Deployed) -> str:
    """The device's line of the report."""
    return "\n".join([*shown([deployed.row]), f"written: {deployed.folder}"])


def status(deployed: Deployed) -> int:
    """1 if the device differs too much from the host."""
    return int(deployed.row.passed is False)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show, status=status))
