"""Nothing calls anywhere unless it was asked to: the usual way, command by command, in processes that are watched.

An audit hook notes every connection, datagram and name that Python's `socket`, `http` and `urllib` are asked for, this
machine's own included. Where the system allows it, the commands also run without a network interface, so that nothing
that the hook can't see is needed either. The same watch sees a download that was asked for.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from photos import make_photo_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
WATCH = """\
import os, runpy, sys
CALLS = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
         "socket.gethostbyaddr", "urllib.Request", "http.client.connect"}
def note(event, arguments):
    if event in CALLS:
        with open(os.environ["CALLS"], "a") as file:
            print(event, *arguments, file=file)
sys.addaudithook(note)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def alone() -> list[str]:
    """What starts a program without a network interface; nothing where the system does not let us."""
    words = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        return []
    return words


def watched(calls: Path, *words: object, prefix: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a module; `calls` gets a line for each call."""
    # Without the guard of tests, which would keep from the hook what it refuses.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [*prefix, sys.executable, "-c", WATCH, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"CALLS": str(calls)},
        check=False,
    )


def test_the_usual_way_calls_nowhere(
    photo_folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    run, calls, prefix = tmp_path / "run", tmp_path / "calls.txt", alone()
    commands: list[tuple[object, ...]] = [
        ("recipes.audit", "--data", photo_folder, "--out", tmp_path / "audit", "--image-size", 64),
        ("recipes.feature_extraction", "--data", photo_folder, "--out", run, "--image-size", 64),
        ("export.convert", run, "--schemes", "float32", "int8", "--calibration-images", 12),
        ("export.evaluate", run),
        ("export.layers", run, "--images", 4),
        ("export.benchmark", run, "--runs", 5),
        ("export.report", run),
        ("export.bundle", run, "--photos", 3, "--no-web"),
    ]
    for words in commands:
        done = watched(calls, *words, prefix=prefix)
        assert done.returncode == 0, f"{words[0]}: {done.stderr}"
        assert not calls.exists(), f"{words[0]}: {calls.read_text()}"
    device = run / "bundles/int8/edgetl-device.pyz"
    for command in ("info", "check"):
        done = subprocess.run([*prefix, sys.executable, device, command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    record_property("commands that called nowhere", len(commands))
    record_property("commands that ran without a network interface", (len(commands) + 2) * bool(prefix))


ASKED: dict[str, tuple[list[str], str]] = {
    "weights": (["--backbone", "MobileNetV3Small", "--image-size", "32"], "storage.googleapis.com"),
    "data": (["--data", "ftp://data.invalid/photos/"], "data.invalid"),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_is_asked_for_is_all_that_is_called_for(what: str, tmp_path: Path) -> None:
    """Also shows that the watch sees a call. Without an interface no name can be looked up."""
    prefix = alone()
    if not prefix:
        pytest.skip("the system lets nobody take the network away from a process, so this would reach for it")
    options, host = ASKED[what]
    calls = tmp_path / "calls.txt"
    photos = make_photo_folder(tmp_path / "photos", {"cat": 5, "dog": 5}, size=(16, 12))
    data = [] if "--data" in options else ["--data", str(photos)]
    words = ["recipes.feature_extraction", *data, "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    done = watched(calls, *words, *options, "--quiet", prefix=prefix)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert host in done.stderr
    lines = calls.read_text().splitlines()
    assert lines and all(host in line for line in lines), lines
    assert not (tmp_path / "out").exists()
