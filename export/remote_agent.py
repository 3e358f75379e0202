"""Runs on a device at the other end of an ssh connection: does what lines on standard input ask for, one at a time.

It is sent there as source and run by the device's own Python (3.9 or later, standard library only), so nothing has to
be there before. A request is one line of JSON, for `receive` followed by bytes; an answer is one line of JSON with a
mark before it. While the host waits it sends an empty line now and then. When standard input ends or falls silent, this
ends, and with it all that it has started: a host that was killed, or lost its network, leaves nothing running.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
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
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MARK = "edgetl-agent"
"""Before each answer: a login script, or what it left running, may print lines too."""
SILENT_SECONDS = 100
"""A host that sends nothing for this long is gone, whatever the network believes."""
PATIENCE_SECONDS = 3
"""What is told to end has this long to do it."""
OURS = re.compile(r"(?P<part>\.)?(?P<kind>\w+)-[0-9a-f]{12}(?(part)\.\w+\.part)")
"""Names of what is put here, and what is not whole yet. The folder may be the user's: nothing else is touched."""
KEPT = 200_000
"""Bytes of a program's output that are worth keeping: the last ones."""


class HostGoneError(Exception):
    """Nobody is listening any more."""


def look(root: str, kinds: list[str], bundle: str, clean: bool) -> dict[str, Any]:
    """Tell what this device is. Remove what nobody needs: what was left half done, and other bundles of this kind.

    Args:
        root: folder of all that is put here; this process alone uses it from now on.
        kinds: what names in it may begin with.
        bundle: name of the bundle that will be used.
        clean: at the end, however it comes, remove all that was ever put here.
    """
    folder = _absolute(root)
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    if clean:
        AT_END.append(lambda: _clear(folder, kinds))
    passing = ("wheels", bundle.rpartition("-")[0])
    _sweep(folder, kinds, lambda name: bool(name["part"]) or (name["kind"] in passing and name[0] != bundle))
    return {
        "root": str(folder),
        "executable": sys.executable,
        "machine": platform.machine(),
        "free_bytes": shutil.disk_usage(folder).free,
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
    path = Path(folder) / report
    if report:  # one of an earlier time must not pass for what this program says
        path.unlink(missing_ok=True)
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
            if sys.stdin in ready:  # the host asks for nothing while it waits
                if not os.read(sys.stdin.fileno(), 65536):
                    raise HostGoneError
                _heard()
            if child.stdout not in ready:
                continue
            chunk = os.read(child.stdout.fileno(), 65536)
            if not chunk:
                break
            output = (output + chunk)[-KEPT:]
        child.wait()
    finally:
        _end(child)
    text = path.read_text(encoding="utf-8") if report and path.is_file() else ""
    return {"status": child.returncode, "output": output.decode(errors="replace"), "report": text}


def make_venv(folder: str, pip: list[str], choices: list[list[str]], probe: list[str]) -> dict[str, Any]:
    """Make a virtual environment that gets its name when everything in it works.

    Args:
        folder: where.
        pip: arguments of `pip install`.
        choices: requirements, the name of a package first; the next ones count where there is no such package.
        probe: arguments that its Python must end with status 0 for.
    """
    done: dict[str, Any] = {}

    def step(name: str, *arguments: str) -> bool:
        done.update(step=name, **run(list(arguments), str(Path(folder).parent)))
        return not done["status"]

    with contextlib.suppress(_AbandonedError), _replacing(Path(folder)) as part:
        python = str(part / "bin" / "python")
        made = step("venv", sys.executable, "-m", "venv", str(part))
        for choice in choices if made else ():
            made = step("pip", python, "-m", "pip", "install", *pip, *choice)
            if made or f"No matching distribution found for {choice[0]}" not in done["output"]:
                break
        if not made or not step("probe", python, *probe):
            raise _AbandonedError
    return done


def remove(folder: str) -> dict[str, Any]:
    """Delete a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    return {}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "look": look,
    "has": has,
    "receive": receive,
    "run": run,
    "make_venv": make_venv,
    "remove": remove,
}
AT_END: list[Callable[[], object]] = []
"""What is still to be done when the connection has ended."""


class _AbandonedError(Exception):
    """A step failed; what was made so far goes."""


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give a new folder the name when the block ends without an error; else leave nothing of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(".part", f".{folder.name}.", folder.parent))
    try:
        yield part
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _copy(file: Any, size: int) -> None:
    stream: Any = sys.stdin.buffer
    while size:
        chunk = stream.read1(min(size, 1 << 20))
        if not chunk:
            raise HostGoneError
        _heard()
        file.write(chunk)
        size -= len(chunk)


def _end(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):  # the second one for what the program started and left behind
        with contextlib.suppress(OSError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_SECONDS)


def _absolute(root: str) -> Path:
    try:
        return (Path.home() / Path(root).expanduser()).absolute()
    except RuntimeError:  # of a user who is not there
        raise OSError(errno.ENOENT, "no such home directory", root) from None


def _lock(folder: Path) -> None:
    try:
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
    except BlockingIOError:
        raise OSError(errno.EWOULDBLOCK, "another deployment is running there", str(folder)) from None
    except OSError:  # a file system that knows no locks
        pass


def _sweep(folder: Path, kinds: list[str], unneeded: Callable[[re.Match[str]], bool]) -> None:
    """Remove what is ours and not needed."""
    for path in folder.iterdir():
        name = OURS.fullmatch(path.name)
        if name and name["kind"] in kinds and unneeded(name):
            shutil.rmtree(path, ignore_errors=True)


def _clear(folder: Path, kinds: list[str]) -> None:
    _sweep(folder, kinds, lambda _: True)
    with contextlib.suppress(OSError):  # the user keeps other things there
        folder.rmdir()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _heard() -> None:
    """The host is there: be patient again."""
    signal.setitimer(signal.ITIMER_REAL, SILENT_SECONDS)


def _stop(*_: object) -> None:
    _on_signals(signal.SIG_IGN)  # the first one is enough, the rest must not disturb the end
    raise HostGoneError


def _on_signals(handler: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, handler)


def serve() -> None:
    """Do what standard input asks for until it ends, or until something goes wrong."""
    _on_signals(_stop)
    try:
        while True:
            _heard()
            line = sys.stdin.buffer.readline()
            if not line:
                return
            if line.strip() and not _answered(json.loads(line)):
                return
    except (HostGoneError, BrokenPipeError):
        pass
    finally:
        _on_signals(signal.SIG_IGN)
        for last in AT_END:
            last()


def _answered(request: dict[str, Any]) -> bool:
    """Do one thing, and tell whether it worked."""
    try:
        answer = COMMANDS[request.pop("command")](**request)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        answer = {"error": f"{where}{error.strerror or error}", "errno": error.errno}
    sys.stdout.write(f"{MARK} {json.dumps(answer)}\n")
    sys.stdout.flush()
    return "error" not in answer


if __name__ == "__main__":
    serve()
