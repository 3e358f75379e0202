"""Runs on a device at the other end of an ssh connection: does what lines on standard input ask for, one at a time.

It is sent there as source and run by the device's own Python (3.9 or later, standard library only), so nothing has to
be there before. A request is one line of JSON, for `receive` followed by bytes; an answer is one line of JSON. When
standard input ends, it ends, and with it all that it has started: a host that was killed leaves nothing running.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

IDLE_SECONDS = 120
"""A host that asks for nothing for this long is gone, whatever the network believes."""
PATIENCE_SECONDS = 3
"""What is told to end has this long to do it."""
PART = re.compile(r"\..+-[0-9a-f]{12}\.(\d+)\.part")
"""What is not whole yet, and the process that is making it. The folder may be the user's: nothing else is touched."""
KEPT = 200_000
"""Bytes of a program's output that are worth keeping: the last ones."""


class HostGoneError(Exception):
    """Nobody is listening any more."""


def look(root: str) -> dict[str, Any]:
    """Tell what this device is, and remove what earlier connections left half done.

    Args:
        root: folder of all that is put here.
    """
    folder = _absolute(root)
    for left in folder.glob(".*.part"):
        ours = PART.fullmatch(left.name)
        if ours and not _alive(int(ours[1])):
            shutil.rmtree(left, ignore_errors=True)
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return {
        "root": str(folder),
        "executable": sys.executable,
        "machine": platform.machine(),
        "free_bytes": shutil.disk_usage(there).free,
        "can_venv": all(importlib.util.find_spec(module) for module in ("venv", "ensurepip")),
    }


def has(folder: str, files: list[list[Any]]) -> dict[str, Any]:
    """Tell whether a folder holds these files.

    Args:
        folder: where.
        files: path within it, size, sha256.
    """
    try:
        wrong = [path for path, _, sha256 in files if _sha256(Path(folder) / path) != sha256]
    except OSError:
        return {"intact": False}
    return {"intact": not wrong}


def receive(folder: str, files: list[list[Any]]) -> dict[str, Any]:
    """Take files, whose bytes follow the request, into a folder that gets its name when all are there.

    Args:
        folder: replaced if it is there.
        files: path within it, size, sha256.
    """
    with _replacing(Path(folder)) as part:
        for path, size, _ in files:
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise OSError(f"{path}: not a path within a folder")
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            with (part / path).open("wb") as file:
                _copy(file, size)
        return has(str(part), files)


def run(arguments: list[str], folder: str, report: str = "") -> dict[str, Any]:
    """Run a program to its end, or to that of the connection.

    Args:
        arguments: the program's path and its arguments.
        folder: where to run it.
        report: file in that folder which it writes, if there is one to be brought back.
    """
    child = subprocess.Popen(  # in a session of its own: it can be ended with all that it starts
        arguments,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert child.stdout
    output = b""
    try:
        while True:
            ready, _, _ = select.select([child.stdout, sys.stdin], [], [])
            if sys.stdin in ready:  # the host sends nothing while it waits: this is the end
                raise HostGoneError
            chunk = os.read(child.stdout.fileno(), 65536)
            if not chunk:
                break
            output = (output + chunk)[-KEPT:]
        child.wait()
    finally:
        _end(child)
    path = Path(folder) / report
    text = path.read_text(encoding="utf-8") if report and child.returncode in (0, 1) and path.is_file() else ""
    return {"status": child.returncode, "output": output.decode(errors="replace"), "report": text}


def make_venv(folder: str, pip: list[str], choices: list[list[str]], probe: list[str]) -> dict[str, Any]:
    """Make a virtual environment that gets its name when everything in it works.

    Args:
        folder: where.
        pip: arguments of `pip install`.
        choices: requirements; the first ones that there are packages of are taken.
        probe: arguments that its Python must end with status 0 for.
    """
    done: dict[str, Any] = {}

    def step(name: str, *arguments: str) -> bool:
        done.update(step=name, **run(list(arguments), str(Path(folder).parent)))
        return not done["status"]

    with contextlib.suppress(_AbandonedError), _replacing(Path(folder)) as part:
        python = str(part / "bin" / "python")
        made = step("venv", sys.executable, "-m", "venv", str(part))
        made = made and any(step("pip", python, "-m", "pip", "install", *pip, *choice) for choice in choices)
        if not made or not step("probe", python, *probe):
            raise _AbandonedError
    return done


def remove(folders: list[str]) -> dict[str, Any]:
    """Delete folders, and the one that they lie in if nothing is left in it."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            Path(folder).parent.rmdir()
    return {}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "look": look,
    "has": has,
    "receive": receive,
    "run": run,
    "make_venv": make_venv,
    "remove": remove,
}


class _AbandonedError(Exception):
    """A step failed; what was made so far goes."""


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give a new folder the name when the block ends without an error; else leave nothing of it."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _copy(file: Any, size: int) -> None:
    while size:
        chunk = sys.stdin.buffer.read(min(size, 1 << 20))
        if not chunk:
            raise HostGoneError
        file.write(chunk)
        size -= len(chunk)


def _end(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):  # the second one for what the program started and left behind
        with contextlib.suppress(OSError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_SECONDS)


def _absolute(root: str) -> Path:
    return (Path.home() / Path(root).expanduser()).absolute()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _stop(*_: object) -> None:
    raise HostGoneError


def serve() -> None:
    """Do what standard input asks for until it ends, or until something goes wrong."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, _stop)
    with contextlib.suppress(HostGoneError, BrokenPipeError):
        while True:
            signal.alarm(IDLE_SECONDS)
            line = sys.stdin.buffer.readline()
            signal.alarm(0)
            if not line:
                return
            request = json.loads(line)
            try:
                answer = COMMANDS[request.pop("command")](**request)
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                answer = {"error": f"{where}{error.strerror or error}", "errno": error.errno}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            if "error" in answer:
                return


if __name__ == "__main__":
    serve()
