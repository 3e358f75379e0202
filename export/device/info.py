"""`info`: what this bundle and this device are. Imports neither numpy nor an interpreter, so it answers at once."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Optional

from .contents import Bundle, altered
from .errors import DeviceError
from .host import Host, describe_host
from .outcome import Outcome
from .runtime import RUNTIMES, advice


@dataclass(frozen=True)
class InfoReport:
    """What `info` found."""

    scheme: str
    file: str
    sha256: str
    size_bytes: int
    task: str
    """Of the outputs: `classification`, `ordinal`, `multi_label` or `regression`."""
    names: int
    """Of classes, labels or targets."""
    damaged: tuple[str, ...]
    """Files of the bundle that are missing or not what they were."""
    packages: dict[str, Optional[str]]
    """What the device program can use -> its version, None where it is not installed."""
    advice: tuple[str, ...]
    """What to do before the other commands can work; none if nothing."""
    device: Host
    command: str = "info"
    schema_version: int = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command: none."""


def run(bundle: Bundle, folder: Path, options: argparse.Namespace) -> Outcome:
    """Describe the bundle and the device.

    Raises:
        DeviceError: the model is missing or not the one that the bundle was made with.
    """
    damaged = altered(bundle, folder)
    if bundle.model in damaged:
        raise DeviceError(f"{folder / bundle.model}: missing or damaged (sha256 differs). Copy the bundle again")
    packages = {name: _version(name, module) for name, module in _packages()}
    missing = []
    if not any(packages[name] for name, *_ in RUNTIMES):
        missing.append(f"no TFLite interpreter is installed. {advice()}")
    if not packages["numpy"]:
        missing.append("numpy is not installed. Install with: pip install numpy")
    if not packages["pillow"]:
        missing.append("photos need Pillow (frames as .npy do not). Install with: pip install pillow")
    report = InfoReport(
        scheme=bundle.scheme,
        file=bundle.model,
        sha256=bundle.sha256,
        size_bytes=bundle.size_bytes,
        task=bundle.outputs.task,
        names=len(bundle.outputs.names),
        damaged=damaged,
        packages=packages,
        advice=tuple(missing),
        device=describe_host(),
    )
    return Outcome(report, tuple(_shown(report, bundle)))


def _packages() -> list[tuple[str, str]]:
    return [*((name, module.split(".")[0]) for name, module, *_ in RUNTIMES), ("numpy", "numpy"), ("pillow", "PIL")]


def _version(package: str, module: str) -> Optional[str]:
    """Version of a package; it is not imported, so it may yet turn out not to work."""
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except (ImportError, ValueError):  # something keeps it from being imported
        return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a variant under another name, such as tensorflow-cpu
        return "(version unknown)"


def _shown(report: InfoReport, bundle: Bundle) -> list[str]:
    inputs, host, latency = bundle.inputs, bundle.host, bundle.latency
    frame = f"{inputs.get('height')} x {inputs.get('width')} pixels, {inputs.get('resize')}, {bundle.input_type}"
    names = ", ".join(bundle.outputs.names[:5]) + (", ..." if report.names > 5 else "")
    rows = [
        ["model", f"{report.file}, {report.size_bytes / 1e6:.2f} MB, {report.scheme}"],
        ["takes", frame],
        ["says", f"{report.task}, {report.names} name(s): {names}"],
    ]
    if host and bundle.float32:
        interval = f"{100 * host.low:.1f}-{100 * host.high:.1f}"
        rows += [
            [f"{host.metric} on the host", f"{100 * host.value:.2f} % ({interval}) of {host.samples} test photos"],
            ["float32 model", f"{100 * bundle.float32.value:.2f} %"],
        ]
    else:
        rows.append([f"{bundle.outputs.metric} on the host", "unknown: no photos were held out for testing"])
    if latency:
        remark = "; noisy" if latency.noise else ""
        rows.append(
            [
                "latency on the host",
                f"{latency.median_ms:.2f} ms, {latency.threads} thread(s), {latency.device}{remark}",
            ]
        )
    device = report.device
    rows += [
        ["this device", f"{device}, Python {device.python}"],
        *([name, version or "not installed"] for name, version in report.packages.items()),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {text}" for name, text in rows]
    lines += [f"damaged: {name} is missing or not what it was. Copy the bundle again" for name in report.damaged]
    return [*lines, *report.advice]
