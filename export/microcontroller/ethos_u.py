"""A model for Arm's Ethos-U: compiled by Vela, which estimates what it costs and says what the NPU does not compute.

Vela is told what the chip around the NPU is like by two names, system configuration and memory mode; a latency means
nothing without them.
"""

import csv
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl import child
from edgetl.console import progress, table_lines
from edgetl.errors import ArtifactError, ConfigError
from edgetl.rundir import write_atomic
from export.artifacts import Artifact
from export.flatbuffer import operators

ACCELERATORS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
"""One of each kind, by its number of multiply-accumulate units."""
NPU_OPERATOR = "ethos-u"
"""The custom operator that stands for all that the NPU computes."""
REASON = re.compile(r"operator: \w+, ofm: '.*'\n(?:Reason: )?(.*)")
TENSOR = re.compile(r" \([^()]*\)$")
"""A tensor's name behind a reason; it tells apart what is the same to a reader."""


@dataclass(frozen=True)
class Compilation:
    """What Vela made of a model for one accelerator, and its estimates for that."""

    accelerator: str
    path: str
    """File name."""
    size_bytes: int
    system_config: str
    """Clock and memories of the chip that is assumed, a section of Vela's `vela.ini`."""
    memory_mode: str
    """Which of these memories holds what."""
    clock_mhz: float
    latency_ms: float
    """One inference on the NPU; operators on the CPU are not part of it."""
    inferences_per_second: float
    sram_kib: float
    """On-chip memory used."""
    dram_kib: float
    on_chip_flash_kib: float
    off_chip_flash_kib: float
    npu_operators: dict[str, int]
    """Operators of the artifact that the NPU computes: kind -> how many."""
    cpu_operators: dict[str, int]
    """Those that are left to the CPU."""
    reasons: tuple[str, ...]
    """Why, in Vela's words."""

    @property
    def npu_share(self) -> float:
        """Fraction of the artifact's operators that the NPU computes."""
        npu, cpu = sum(self.npu_operators.values()), sum(self.cpu_operators.values())
        return npu / (npu + cpu)


@dataclass(frozen=True)
class NpuReport:
    """What Vela made of a model."""

    compilations: tuple[Compilation, ...]
    vela: str
    """Its version."""
    schema_version: int = 1


def write(
    folder: Path,
    artifact: Artifact,
    model: Path,
    *,
    accelerators: Sequence[str] = ACCELERATORS,
    allow_cpu: bool = False,
) -> NpuReport:
    """Compile a model for Ethos-U, <scheme>_<accelerator>_vela.tflite for each accelerator.

    Args:
        folder: where to; exists.
        artifact: what the model is.
        model: the .tflite file.
        accelerators: `ethos-u55-128`, or with the names of a system configuration and a memory mode of Vela's
            vela.ini, `ethos-u55-128:Ethos_U55_Deep_Embedded:Shared_Sram`; Vela chooses where they are left out.
        allow_cpu: whether operators may be left to the CPU; not all of them.

    Raises:
        ConfigError: Vela is not installed; an accelerator is none, or is named twice.
        ArtifactError: Vela does not take the model, or leaves operators to the CPU that may not be.
    """
    chosen = [_chosen(text) for text in accelerators]
    if len({accelerator for accelerator, _ in chosen}) < max(len(chosen), 1):
        raise ConfigError(f"accelerators {' '.join(accelerators) or 'none'}: name at least one, and each once")
    vela = program()
    content = model.read_bytes()
    made = []
    with tempfile.TemporaryDirectory() as temporary, progress("vela", len(chosen)) as bar:
        for accelerator, options in chosen:
            copy = Path(temporary) / f"{artifact.scheme}_{accelerator}.tflite"
            copy.write_bytes(content)
            ended = child.run([vela, str(copy), "--output-dir", temporary, *options])
            made.append(_read(copy, accelerator, ended, content, artifact))
            if made[-1].cpu_operators and not (allow_cpu and made[-1].npu_operators):
                raise _refusal(made[-1], artifact)
            bar.advance()
        for each in made:
            write_atomic(folder / each.path, (Path(temporary) / each.path).read_bytes())
    return NpuReport(tuple(made), child.run([vela, "--version"]).output.strip())


def program() -> str:
    """Find Vela beside this Python, or else where the shell would.

    Raises:
        ConfigError: it is not there.
    """
    beside = Path(sys.executable).with_name("vela")
    found = str(beside) if beside.is_file() else shutil.which("vela")
    if found is None:
        raise ConfigError("--target ethos-u needs Vela. Install it with pip install 'edgetl[ethos-u]'")
    return found


def show(report: NpuReport) -> list[str]:
    """A table of the compilations, and what they assume."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("accelerator", "NPU\n%", "ms\n", "per s\n", "SRAM\nKiB", "DRAM\nKiB", "flash\nKiB", "assumed"):
        table.add_column(title, justify="left" if title in ("accelerator", "assumed") else "right", no_wrap=True)
    for each in report.compilations:
        table.add_row(
            each.accelerator,
            f"{100 * each.npu_share:.1f}",
            f"{each.latency_ms:.2f}",
            f"{each.inferences_per_second:.1f}",
            f"{each.sram_kib:.0f}",
            f"{each.dram_kib:.0f}",
            f"{each.on_chip_flash_kib + each.off_chip_flash_kib:.0f}",
            f"{each.system_config}, {each.memory_mode}, {each.clock_mhz:.0f} MHz",
        )
    left = [
        f"{each.accelerator}: on the CPU, and not in these times: {_counted(each.cpu_operators)}"
        for each in report.compilations
        if each.cpu_operators
    ]
    return [*table_lines(table, 120), *left, f"estimates of Vela {report.vela}, not measured on a chip"]


def _chosen(text: str) -> tuple[str, list[str]]:
    """`ACCELERATOR[:SYSTEM[:MEMORY]]` -> the accelerator, and Vela's options."""
    accelerator, *names = text.split(":")
    if not re.fullmatch(r"ethos-u\d+-\d+", accelerator) or len(names) > 2 or not all(names):
        raise ConfigError(
            f"accelerator {text!r}: expected ethos-u55-128 or the like, or ethos-u55-128:SYSTEM_CONFIG:MEMORY_MODE"
        )
    options = ["--accelerator-config", accelerator]
    for option, name in zip(("--system-config", "--memory-mode"), names, strict=False):
        options += [option, name]
    return accelerator, options


def _read(copy: Path, accelerator: str, ended: child.Ended, content: bytes, artifact: Artifact) -> Compilation:
    """Gather what Vela left beside the copy that it was given."""
    compiled = copy.with_name(f"{copy.stem}_vela.tflite")
    summaries = list(copy.parent.glob(f"{copy.stem}_summary_*.csv"))
    if ended.status or not compiled.is_file() or len(summaries) != 1:
        raise ArtifactError(
            f"{artifact.path}: Vela for {accelerator} {ended.how}. Choose scheme int8, or names that vela --help knows"
        )
    with summaries[0].open(newline="") as file:
        (row,) = csv.DictReader(file)
    tflite = compiled.read_bytes()
    left = Counter(each.name for each in operators(tflite) if each.name != NPU_OPERATOR)
    reasons = (TENSOR.sub("", reason) for reason in REASON.findall(ended.output + ended.errors))
    return Compilation(
        accelerator=accelerator,
        path=compiled.name,
        size_bytes=len(tflite),
        system_config=row["system_config"],
        memory_mode=row["memory_mode"],
        clock_mhz=float(row["core_clock"]) / 1e6,
        latency_ms=1000 * float(row["inference_time"]),
        inferences_per_second=float(row["inferences_per_second"]),
        sram_kib=float(row["sram_memory_used"]),
        dram_kib=float(row["dram_memory_used"]),
        on_chip_flash_kib=float(row["on_chip_flash_memory_used"]),
        off_chip_flash_kib=float(row["off_chip_flash_memory_used"]),
        npu_operators=dict(Counter(each.name for each in operators(content)) - left),
        cpu_operators=dict(left),
        reasons=tuple(dict.fromkeys(reasons)),
    )


def _refusal(made: Compilation, artifact: Artifact) -> ArtifactError:
    what, why = _counted(made.cpu_operators), "; ".join(made.reasons)
    if not made.npu_operators:
        return ArtifactError(
            f"{artifact.path}: on {made.accelerator} the NPU computes no operator: {what} ({why}). Choose scheme int8"
        )
    return ArtifactError(
        f"{artifact.path}: on {made.accelerator} these operators fall back to the CPU: {what} ({why}). "
        "Choose scheme int8, or allow it with --allow-cpu"
    )


def _counted(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in kinds.items())
