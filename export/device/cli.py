"""The command line of `edgetl-device.pyz`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from .contents import PROGRAM, read_bundle
from .errors import DeviceError
from .outcome import check_place, write_json
from .shared import shared

COMMANDS = ("info", "predict", "check", "benchmark")
"""Modules beside this one. One that is not asked for is not imported: they cost numpy."""
HELP = {
    "info": "tell what this bundle and this device are, and what is missing",
    "predict": "tell what the model says of photos: classes, labels or values",
    "check": "compare this device with the host on the sample photos; exit status 1 if they differ too much",
    "benchmark": "measure how long the model takes here",
}
FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise DeviceError(f"{message}. See {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; default is the process's own.

    Returns:
        Exit status: 0, 1 if a check failed, 2 for an error, 130 for Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options, command = _parse(given)
        folder = Path(options.bundle) if options.bundle else Path(sys.argv[0]).resolve().parent
        bundle = read_bundle(folder)
        target = Path(options.json) if options.json else folder / "reports" / f"{options.command}.json"
        check_place(target)
        outcome = command.run(bundle, folder, options)
        _print(outcome.lines)
        write_json(outcome.report, target)
        _print([f"written: {target}"])
    except DeviceError as error:
        print(f"{PROGRAM}: {_printable(' '.join(str(error).split()))}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    return 0 if outcome.passed else FAILED


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, Any]:
    parser = _Parser(prog=PROGRAM, description="Runs an edgetl model on this device, checks it and times it.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in arguments if word in COMMANDS), None)
    module: Any = None
    for name in COMMANDS:
        each = commands.add_parser(name, help=HELP[name], description=HELP[name])
        each.add_argument("--bundle", metavar="FOLDER", help="the bundle (default: where this program lies)")
        each.add_argument("--json", metavar="FILE", help="where to write the report (default: reports/ in the bundle)")
        if name == asked:
            module = _module(name)
            module.add_arguments(each)
    return parser.parse_args(arguments), module


def _module(name: str) -> Any:
    try:
        return import_module(f"{__package__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise DeviceError("numpy is not installed. Install with: pip install numpy") from error


def _printable(line: str) -> str:
    return str(shared("printable").printable(line))


def _print(lines: Sequence[str]) -> None:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        print("\n".join(map(_printable, lines)), flush=True)
    except OSError as error:
        # The interpreter must not try again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # `head`, say, has seen enough
            raise DeviceError(f"standard output: {error.strerror or error}") from error
