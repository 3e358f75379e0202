"""An artifact on an Android device, timed by the `benchmark_model` that the user names, through adb."""

import contextlib
import datetime
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl.errors import ConfigError
from edgetl.rundir import sha256_of
from export.artifacts import Artifact
from export.device.latency import RUNS, WARMUP
from export.ssh import RemoteError, clipped, lines_of

FOLDER = "/data/local/tmp"
"""Where an unrooted device lets adb run programs."""
SECONDS, RUN_SECONDS = 120, 3600
"""What adb may take, and what benchmark_model may: a device that is pulled out is no end to adb."""
MACHINES = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a", 243: "riscv64"}
"""e_machine of an ELF file -> Android's name for it."""
PROPERTIES = (
    "ro.product.manufacturer",
    "ro.product.model",
    "ro.build.version.release",
    "ro.soc.model",
    "ro.product.cpu.abilist",
)
STATES = {
    "unauthorized": "has not been told to trust this computer. Unlock it and confirm the dialog",
    "offline": "is offline. Plug it in again",
}
ADVICE = {
    "No space left": "Free some space on the device",
    "Exec format|not executable|e_machine|32-bit instead|64-bit instead|CANNOT LINK|inaccessible or not found": (
        "Is it built for this device's processor and for Android?"
    ),
}
_NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"


@dataclass(frozen=True)
class AndroidDevice:
    """A phone, as it describes itself."""

    serial: str
    model: str
    android: str
    """Version."""
    processor: str
    """Empty where it does not tell."""
    abis: tuple[str, ...]
    """Kinds of programs that it runs, best first."""

    def __str__(self) -> str:
        processor = f", {self.processor}" if self.processor else ""
        return f"{self.model}{processor}, Android {self.android}, {self.abis[0] if self.abis else 'unknown processor'}"


@dataclass(frozen=True)
class AndroidTiming:
    """What benchmark_model printed, in ms; None where its version does not tell. It keeps single runs to itself."""

    threads: int
    init_ms: float
    first_ms: float
    warmup_mean_ms: float
    runs: int
    """Invocations that count."""
    mean_ms: float
    min_ms: float | None
    max_ms: float | None
    std_ms: float | None
    p5_ms: float | None
    median_ms: float | None
    p95_ms: float | None
    added_mb: float | None
    """Memory that the model took, by its own word approximate, 10^6 bytes or 2^20: it does not say which."""


@dataclass(frozen=True)
class AndroidReport:
    """How long an artifact takes on an Android device."""

    device: AndroidDevice
    scheme: str
    sha256: str
    """Of the .tflite file."""
    size_bytes: int
    tool: str
    """File name of the benchmark_model."""
    tool_sha256: str
    kernels: str
    """What was asked for."""
    timings: tuple[AndroidTiming, ...]
    """One per number of threads."""
    time: str
    """UTC, ISO 8601."""
    schema_version: int = 1


def measure(
    artifact: Artifact, model: Path, tool: Path, *, serial: str = "", threads: Sequence[int] = (1,)
) -> AndroidReport:
    """Push an artifact and the tool, run it, and take both away again.

    Args:
        artifact: what the file is.
        model: the file.
        tool: a benchmark_model for the device.
        serial: of the device, as `adb devices` lists it; may be empty where only one is connected.
        threads: numbers of CPU threads, one measurement each.

    Raises:
        ConfigError: no adb, no such tool, or one for another processor.
        RemoteError: no device, several, or one that refuses.
    """
    if not tool.is_file():
        raise ConfigError(f"--benchmark-model {tool}: no such file")
    found = describe(_choose(serial))
    machine = _machine(tool)
    if machine and found.abis and machine not in found.abis:
        raise ConfigError(f"--benchmark-model {tool}: built for {machine}, the device runs {', '.join(found.abis)}")
    tool_sha256 = sha256_of(tool)
    folder = f"{FOLDER}/edgetl-{artifact.sha256[:12]}-{tool_sha256[:12]}"
    with _pushed(found.serial, folder, {model: "model.tflite", tool: "benchmark_model"}):
        timings = [_timing(found.serial, folder, number) for number in threads]
    return AndroidReport(
        device=found,
        scheme=artifact.scheme,
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        tool=tool.name,
        tool_sha256=tool_sha256,
        kernels="xnnpack",
        timings=tuple(timings),
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def parse(output: str, threads: int) -> AndroidTiming:
    """Read what benchmark_model printed.

    Args:
        output: all of it; lines may begin with a logger's prefix.
        threads: what it was run with.

    Raises:
        RemoteError: the line with the timings is missing.
    """
    summary = re.search(
        rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, "
        rf"Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}",
        output,
    )
    # One line of statistics for the warm-up, one for the invocations that count.
    counted = re.findall(r"\bcount=(\d+) ([^\n]*)", output[: summary.start()] if summary else "")
    if not summary or not counted:
        lines = lines_of(output)
        raise RemoteError(_line("benchmark_model gave no timings", lines[-1] if lines else "it printed nothing"))
    init, first, warmup, mean = (float(us) / 1000 for us in summary.groups())
    runs, statistics = counted[-1]
    told = {name: float(us) / 1000 for name, us in re.findall(rf"\b(\w+)={_NUMBER}", statistics)}
    memory = re.search(rf"[Mm]emory footprint[^\n]*\(MB\)[^\n]*: init={_NUMBER} overall={_NUMBER}", output)
    return AndroidTiming(
        threads=threads,
        init_ms=init,
        first_ms=first,
        warmup_mean_ms=warmup,
        runs=int(runs),
        mean_ms=mean,
        # Where all invocations took equally long it prints only `curr`.
        min_ms=told.get("min"),
        max_ms=told.get("max"),
        std_ms=told.get("std"),
        p5_ms=told.get("p5"),
        median_ms=told.get("median"),
        p95_ms=told.get("p95"),
        added_mb=float(memory[2]) if memory else None,
    )


def describe(serial: str) -> AndroidDevice:
    """Ask a device what it is.

    Raises:
        RemoteError: it is gone.
    """
    values = _shell(serial, "; ".join(f"getprop {name}" for name in PROPERTIES)).split("\n")
    maker, model, version, processor, abis = [*(value.strip() for value in values), *("" for _ in PROPERTIES)][:5]
    return AndroidDevice(serial, f"{maker} {model}".strip(), version, processor, tuple(filter(None, abis.split(","))))


def _choose(serial: str) -> str:
    lines = _adb("devices").splitlines()
    there = dict(line.split("\t", 1) for line in lines if "\t" in line)
    if not there:
        raise RemoteError("adb: no device. Connect one by USB, with USB debugging turned on in its developer options")
    if not serial and len(there) > 1:
        raise RemoteError(f"adb: several devices ({', '.join(there)}). Choose one with --serial")
    chosen = serial or next(iter(there))
    if chosen not in there:
        raise RemoteError(f"adb: no device {chosen}. There: {', '.join(there)}")
    if there[chosen] != "device":
        raise RemoteError(f"{chosen}: {STATES.get(there[chosen], f'can not be used ({there[chosen]})')}")
    return chosen


def _machine(tool: Path) -> str:
    """What kind of processor a program is for; empty where it does not say."""
    with tool.open("rb") as file:
        head = file.read(20)
    return MACHINES.get(int.from_bytes(head[18:20], "little"), "") if head.startswith(b"\x7fELF") else ""


@contextlib.contextmanager
def _pushed(serial: str, folder: str, files: dict[Path, str]) -> Iterator[None]:
    quoted = shlex.quote(folder)
    _shell(serial, f"rm -rf {quoted} && mkdir -p {quoted}")
    try:
        for path, name in files.items():
            _adb("-s", serial, "push", str(path), f"{folder}/{name}")
        yield
    finally:
        # The device's own shell may outlive ours: what still runs is ended by its id, which it left in a file.
        end = f"[ -f {quoted}/pid ] && kill $(cat {quoted}/pid) 2>/dev/null; rm -rf {quoted}"
        with contextlib.suppress(RemoteError):
            _shell(serial, end)


def _timing(serial: str, folder: str, threads: int) -> AndroidTiming:
    options = {
        "graph": "model.tflite",
        "num_threads": threads,
        "use_xnnpack": "true",
        "num_runs": RUNS,
        "warmup_runs": WARMUP,
    }
    words = " ".join(f"--{name}={value}" for name, value in options.items())
    run = f"chmod 755 benchmark_model && sh -c 'echo $$ > pid; exec ./benchmark_model {words}'"
    output = _shell(serial, f"cd {shlex.quote(folder)} && {run} 2>&1; status=$?; rm -f pid; exit $status", RUN_SECONDS)
    return parse(output, threads)


def _shell(serial: str, command: str, seconds: float = SECONDS) -> str:
    return _adb("-s", serial, "shell", command, seconds=seconds)


def _adb(*arguments: str, seconds: float = SECONDS) -> str:
    words = ["adb", *arguments]
    what = f"adb {arguments[2] if arguments[0] == '-s' else arguments[0]}"
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,  # after Ctrl-C there is still an adb to clean up with
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError:
        raise ConfigError("no adb here. Install Android's platform tools (Debian: apt install adb)") from None
    except subprocess.TimeoutExpired:
        raise RemoteError(f"{what}: no answer within {seconds:g} s. Connect the device again") from None
    text = done.stdout.decode(errors="replace").replace("\r\n", "\n")
    if done.returncode:
        said = lines_of(text + done.stderr.decode(errors="replace"))
        raise RemoteError(_line(f"{what} failed", _telling(said)))
    return text


def _telling(lines: Sequence[str]) -> str:
    """The line that says what is wrong: the last one with a known meaning, else the last one."""
    known = [line for line in lines if any(re.search(pattern, line) for pattern in ADVICE)]
    return next(iter([*known[-1:], *lines[-1:]]), "it printed nothing")


def _line(what: str, why: str) -> str:
    advice = next((text for pattern, text in ADVICE.items() if re.search(pattern, why)), "Try it by hand")
    return f"{what}: {clipped(why.rstrip('.'))}. {advice}"
