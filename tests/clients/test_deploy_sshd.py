"""The whole way to a device and back, through a real sshd on this machine, and all that can go wrong on it."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bundles import tell

from edgetl.rundir import open_run, read_json
from export import bundle, deploy, devices, remote, report
from export.device.check import CheckReport
from export.ssh import Link

pytestmark = pytest.mark.clients

PHOTOS = 8


def program(name: str) -> str:
    """Find a program; a missing one fails the test, it does not skip it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return found or pytest.fail(f"{name} is not installed (Debian: apt install openssh-server openssh-client)")


def made_key(path: Path) -> Path:
    subprocess.run([program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@dataclass(frozen=True)
class Server:
    """A running sshd, and how clients of these tests reach it as host `board`."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def sessions(self) -> list[int]:
        """Processes that serve a connection."""
        return children(self.process.pid)


def children(process: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """An sshd of the current user's, with a new host key and one key that is let in."""
    folder = Path(tempfile.mkdtemp(prefix="edgetl-sshd-"))  # sshd wants nobody else to be able to write to its path
    host, user = made_key(folder / "host_key"), made_key(folder / "user_key")
    shutil.copy(f"{user}.pub", folder / "authorized_keys")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile {folder}/pid\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nStrictModes no\n"
    )
    host_key = Path(f"{host}.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    (folder / "ssh_config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n"
        f"Host *\n  IdentityFile {user}\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n"
        "  GlobalKnownHostsFile /dev/null\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program("sshd"), "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield Server(process, port, folder)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shipped(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a bundle; read only."""
    path = tmp_path_factory.mktemp("shipped") / "run"
    shutil.copytree(run, path)
    for stale in path.glob("export/*.latency.json"):
        stale.unlink()
    bundle.main(bundle.Config(path, photos=PHOTOS, web=False))
    return path


@pytest.fixture
def there(shipped: Path, tmp_path: Path) -> Path:
    """A copy of that run that may be written to."""
    shutil.copytree(shipped, tmp_path / "run")
    return tmp_path / "run"


def settings(server: Server, run: Path, root: Path | str, **changes: object) -> deploy.Config:
    given = {"ssh": "board", "ssh_config": server.config, "python": sys.executable, "threads": (1,)}
    return deploy.Config(run, remote_dir=str(root), **(given | changes))  # type: ignore[arg-type]


def command(server: Server, run: Path, root: Path | str, *options: str, python: str = sys.executable) -> list[str]:
    words = [sys.executable, "-m", "export.deploy", str(run), "--ssh", "board", "--ssh-config", str(server.config)]
    return [*words, "--python", python, "--remote-dir", str(root), "--threads", "1", *options]


def refused(words: list[str]) -> str:
    """Run a command that must fail with one line and exit status 2."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done
    lines = [
        line for line in done.stderr.splitlines() if not re.search(r"\(\d+\.\d s\)$|: the bundle is there|own$", line)
    ]
    assert len(lines) == 1, done.stderr
    return lines[0]


def nothing_left(server: Server, root: Path) -> None:
    """Neither a session nor a process that names the device's folder, nor half of anything in it."""
    for _ in range(100):  # the server takes a moment to notice that a connection has ended
        listing = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
        running = [line for line in listing.splitlines() if str(root) in line]
        if not server.sessions() and not running:
            break
        time.sleep(0.1)
    assert not server.sessions() and not running
    assert not list(root.glob(".*"))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_figures_come_back_and_into_the_report(server: Server, there: Path, tmp_path: Path) -> None:
    root = tmp_path / "a device's folder"
    done = deploy.main(settings(server, there, root, name="Kitchen Pi", threads=(1, 2)))
    assert done.folder == there / "devices" / "Kitchen Pi" / "int8"
    assert files(done.folder) == {"info.json", "check.json", "benchmark.json"}
    check = read_json(CheckReport, done.folder / "check.json")
    # The same interpreter on the same machine: bit-equal, on the very pixels.
    assert check.passed and check.max_difference == 0 and check.same_pixels == len(check.photos) >= PHOTOS
    (copied,) = root.iterdir()
    held = json.loads((copied / "bundle.json").read_bytes())["files"]
    assert files(copied) == {*held, "bundle.json", *(f"reports/{name}.json" for name in devices.COMMANDS)}
    assert not {name.split("/")[0] for name in held} & {"phone", "web"}
    made = report.main(report.Config(there))
    (row,) = made.devices
    assert row == done.row and row.samples == len(check.photos)
    assert [each.threads for each in row.latencies if each.median_ms] == [1, 2]
    shown = report.show(made)
    assert "Kitchen Pi" in shown and "PASSED" in shown
    nothing_left(server, root)


def test_second_time_copies_nothing_and_a_damaged_copy_is_replaced(server: Server, there: Path, tmp_path: Path) -> None:
    root = tmp_path / "device"
    deploy.main(settings(server, there, root))
    (copied,) = root.iterdir()
    model = copied / "int8.tflite"
    first, inode = model.read_bytes(), model.stat().st_ino
    deploy.main(settings(server, there, root))
    assert model.stat().st_ino == inode
    model.write_bytes(first[:-1])
    leftover = root / ".int8-0123456789ab.999999999.part"  # no system counts processes this far
    leftover.mkdir()
    deploy.main(settings(server, there, root, clean=True))
    assert not root.exists()
    assert read_json(CheckReport, there / "devices" / "board" / "int8" / "check.json").passed


def test_environment_is_made_with_pip_from_wheels_and_used_again(server: Server, there: Path, tmp_path: Path) -> None:
    wheels, root = tmp_path / "wheels", tmp_path / "device"
    base = str(Path(sys.base_prefix) / "bin" / "python3")  # knows none of our packages
    fetch = [base, "-m", "pip", "download", "-q", "--only-binary=:all:", "-d", str(wheels), *deploy.REQUIREMENTS[0]]
    # The index is asked on purpose, by pip alone: the guard, which children take from this path, is left out.
    subprocess.run(fetch, check=True, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    done = deploy.main(settings(server, there, root, python=base, wheels=wheels))
    (venv,) = root.glob("venv-*")
    assert {path.name.split("-")[0] for path in root.iterdir()} == {"venv", "int8"}  # the wheels are gone again
    assert done.row.passed and done.row.runtime.startswith("ai-edge-litert")
    made = venv.stat().st_ino
    again = deploy.main(settings(server, there, root, python=base, wheels=wheels))
    assert venv.stat().st_ino == made and again.row.runtime == done.row.runtime
    nothing_left(server, root)


def test_no_wheels_that_fit_is_one_line_and_leaves_no_environment(server: Server, there: Path, tmp_path: Path) -> None:
    wheels, root = tmp_path / "wheels", tmp_path / "device"
    wheels.mkdir()
    (wheels / "other-1.0-py3-none-any.whl").write_bytes(b"")
    base = str(Path(sys.base_prefix) / "bin" / "python3")
    line = refused(command(server, there, root, "--wheels", str(wheels), python=base))
    # The second and last choice; the first one was not there either.
    assert "pip failed there: ERROR: No matching distribution found for tflite-runtime" in line and "--wheels" in line
    assert {path.name.split("-")[0] for path in root.iterdir()} == {"int8"}
    nothing_left(server, root)


def test_device_without_internet_is_told_the_way_out(server: Server, there: Path, tmp_path: Path) -> None:
    base = Path(sys.base_prefix) / "bin" / "python3"
    offline = tmp_path / "offline"
    offline.write_text(f'#!/bin/sh\nPIP_INDEX_URL=http://127.0.0.1:1/ exec {base} "$@"\n')
    offline.chmod(0o755)
    line = refused(command(server, there, tmp_path / "device", python=str(offline)))
    assert "no way to the package index: download wheels of ai-edge-litert, numpy, pillow for Python 3." in line
    nothing_left(server, tmp_path / "device")


def test_failed_check_is_reported_and_brought_back(server: Server, there: Path, tmp_path: Path) -> None:
    expected = there / "bundles" / "int8" / "sample" / "expected.json"
    sample = json.loads(expected.read_bytes())
    for photo in sample["photos"]:
        photo["scores"].reverse()  # another class each
    expected.write_text(json.dumps(sample))
    tell(there / "bundles" / "int8")
    done = subprocess.run(command(server, there, tmp_path / "device"), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "FAILED" in done.stdout, done
    assert files(there / "devices" / "board" / "int8") == {"info.json", "check.json", "benchmark.json"}
    assert not report.main(report.Config(there)).devices[0].passed


def stand_in(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


OLD = """
import sys
sys.version_info = (3, 7, 17)
sys.argv = sys.argv[1:]
exec(sys.argv[1])
"""
BARE = """
import sys
sys.modules["ensurepip"] = None
sys.executable = "/nonexistent/python"
exec(sys.argv[2])
"""


def test_python_that_is_missing_too_old_or_bare(server: Server, there: Path, tmp_path: Path) -> None:
    root = tmp_path / "device"
    line = refused(command(server, there, root, python="/nonexistent/python"))
    assert "board: no Python there as /nonexistent/python" in line and "--python" in line
    line = refused(command(server, there, root, python=stand_in(tmp_path / "python's old", OLD)))
    assert "is Python 3.7, the device program needs 3.9" in line
    assert not root.exists()
    line = refused(command(server, there, root, python=stand_in(tmp_path / "bare", BARE)))
    assert "no venv module there" in line and "python3-venv" in line
    assert not (there / "devices").exists()
    nothing_left(server, root)


def test_doors_that_stay_shut(server: Server, there: Path, tmp_path: Path) -> None:
    def said(*options: str) -> str:
        return refused(command(server, there, tmp_path / "device", *options))

    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    assert "nothing listens there" in said("--port", str(closed))
    other = made_key(tmp_path / "other_key")
    text = server.config.read_text()
    stranger, empty = tmp_path / "stranger", tmp_path / "empty"
    stranger.write_text(text.replace(str(server.folder / "user_key"), str(other)))
    assert "does not let you in" in said("--ssh-config", str(stranger))
    empty.write_text(text.replace(str(server.known_hosts), str(tmp_path / "none")))
    assert "its host key is unknown here" in said("--ssh-config", str(empty))
    changed = tmp_path / "changed"
    changed.write_text(f"[127.0.0.1]:{server.port} {Path(f'{other}.pub').read_text()}")
    empty.write_text(text.replace(str(server.known_hosts), str(changed)))
    line = said("--ssh-config", str(empty))
    assert "its host key is not the one known here" in line and f"delete {changed}:1" in line
    assert "ed25519" in changed.read_text()  # untouched
    assert "unknown host name" in said("--ssh", "no-such-host.invalid")
    assert not (there / "devices").exists() and not (tmp_path / "device").exists()


def test_full_device(server: Server, there: Path, tmp_path: Path) -> None:
    # No file may grow beyond 1 MB there (a unit is 512 or 1024 bytes): writing fails in the middle of the model.
    limited = tmp_path / "limited"
    limited.write_text(f'#!/bin/sh\nulimit -f 1000\nexec {shlex.quote(sys.executable)} "$@"\n')
    limited.chmod(0o755)
    root = tmp_path / "device"
    line = refused(command(server, there, root, python=str(limited)))
    assert "File too large" in line and "Free some space there" in line and "connection" not in line
    assert not list(root.glob("*"))
    nothing_left(server, root)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a small file system")
def test_device_without_space(server: Server, there: Path, tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", root], check=True)
    try:
        line = refused(command(server, there, root))
        assert re.search(r"1\.0 MB free at .*, the bundle takes \d+\.\d", line), line
        assert not list(root.iterdir())
    finally:
        subprocess.run(["umount", root], check=True)


SLOW_NETWORK = """
import socket, sys, threading, time
there = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def back():
    while chunk := there.recv(65536):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
threading.Thread(target=back, daemon=True).start()
while chunk := sys.stdin.buffer.read1(65536):
    there.sendall(chunk)
    time.sleep(len(chunk) / 1_000_000)
"""


def test_connection_that_breaks_in_the_middle_of_a_transfer(server: Server, there: Path, tmp_path: Path) -> None:
    root, slow, config = tmp_path / "device", tmp_path / "slow.py", tmp_path / "config"
    slow.write_text(SLOW_NETWORK)  # 1 MB/s: the bundle takes seconds
    config.write_text(f"ProxyCommand {sys.executable} {slow} {server.port}\n{server.config.read_text()}")
    process = subprocess.Popen(
        command(server, there, root, "--ssh-config", str(config)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until(lambda: list(root.glob(".int8-*.part/bundle.json")))
    for session in server.sessions():
        os.kill(session, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and not out, err
    assert "connection lost while copying files" in err.decode().splitlines()[-1]
    assert not (there / "devices").exists()
    nothing_left(server, root)


def until(holds: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def checking(root: Path) -> list[str]:
    listing = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if f"{root}/" in line and line.endswith("edgetl-device.pyz check")]


SLEEPING = """
import sys, time
if "check" in sys.argv:
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the worst of programs
    time.sleep(600)
"""


@pytest.mark.parametrize(("end", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_whatever_ends_the_command_ends_the_device_program(
    server: Server, there: Path, tmp_path: Path, end: signal.Signals, status: int
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLEEPING)
    slow = tmp_path / "slow"
    slow.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site exec {shlex.quote(sys.executable)} "$@"\n')
    slow.chmod(0o755)
    root = tmp_path / "device"
    process = subprocess.Popen(command(server, there, root, "--clean", python=str(slow)), stderr=subprocess.PIPE)
    until(lambda: checking(root))
    process.send_signal(end)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    if status > 0:
        assert "interrupted" in err.decode().splitlines()[-1]
    nothing_left(server, root)
    assert not root.exists()  # --clean holds, whatever the end
    assert not (there / "devices").exists()
    assert open_run(there)


def test_login_that_leaves_a_job_with_our_output_delays_nothing(server: Server, there: Path, tmp_path: Path) -> None:
    key = made_key(tmp_path / "key")
    job = tmp_path / "job"
    forced = f'sleep 60 & echo $! > {job}; eval "$SSH_ORIGINAL_COMMAND"'.replace('"', '\\"')
    with (server.folder / "authorized_keys").open("a") as keys:
        keys.write(f'command="{forced}" {Path(f"{key}.pub").read_text()}')
    config = tmp_path / "config"
    config.write_text(server.config.read_text().replace(str(server.folder / "user_key"), str(key)))

    def in_time(begin: float) -> bool:
        os.kill(int(job.read_text()), signal.SIGTERM)  # it is there: else this raises
        return time.monotonic() - begin < 15  # two seconds for ssh, and this program's start; the job takes 60

    begin = time.monotonic()
    line = refused(command(server, there, tmp_path / "device", "--ssh-config", str(config), python="/none/python"))
    assert "no Python there as /none/python" in line and in_time(begin)
    begin = time.monotonic()
    with remote.connected(Link("board", config=config, python=sys.executable)) as device:
        assert device.python == sys.version_info[:2]
    assert in_time(begin)
