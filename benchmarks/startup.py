"""How long a command takes to say what it can do, or that it was misspelt: `python -m benchmarks.startup`.

Every command is started in a process of its own with `--help` and with a misspelt option, beside an empty Python; so is
`info` of the device program, where a bundle is named.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from edgetl.config import command
from export.device.contents import PROGRAM
from recipes.cli import COMMANDS


@dataclass(frozen=True)
class Config:
    """Time --help and a usage error of every command."""

    rounds: int = 7
    """How often each is started."""
    bundle: Path | None = None
    """A bundle, whose device program is started as well."""


def main(config: Config) -> dict[str, list[float]]:
    """Start everything in turns; seconds by command line."""
    lines = {"python -c pass": ["-c", "pass"]}
    for module, _ in COMMANDS.values():
        lines |= {f"{module} {option}": ["-m", module, option] for option in ("--help", "--hlep")}
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    with tempfile.TemporaryDirectory() as folder:
        if config.bundle:
            lines[f"{PROGRAM} info"] = [str(config.bundle / PROGRAM), "info", "--json", f"{folder}/info.json"]
            seconds[f"{PROGRAM} info"] = []
        for _ in range(config.rounds):
            for name, arguments in lines.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
                seconds[name].append(time.perf_counter() - start)
    return seconds


def show(seconds: dict[str, list[float]]) -> str:
    """Medians and ranges."""
    return "\n".join(
        f"{name:44} {statistics.median(each):.2f} s  ({min(each):.2f}-{max(each):.2f})"
        for name, each in seconds.items()
    )


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m benchmarks.startup", show=show))
