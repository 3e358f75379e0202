"""What all tests share: caches of their own, no network, and one finished run."""

import ipaddress
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from photos import make_photo_folder

from edgetl.locks import alone
from edgetl.rundir import RunDir

ROOT = Path(__file__).parent.parent
_HOME = tempfile.mkdtemp(prefix="edgetl-tests-")
# At import, before a test module imports Keras, which reads and writes its home then.
os.environ["EDGETL_CACHE"] = f"{_HOME}/edgetl"
os.environ["KERAS_HOME"] = f"{_HOME}/keras"
# As `edgetl.console.quiet_tensorflow` does: a test module that imports Keras first would leave it to the processor, and
# the commands that tests start would then sum in another order than this process.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
# Read when Ray is imported: without it Ray talks to the address of a network card, and tests reach loopback alone.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# Children inherit an ignored signal: whoever starts the suite in the background would see Ctrl-C do nothing in them.
signal.signal(signal.SIGINT, signal.default_int_handler)
_real_connect = socket.socket.connect
_attempts: list[str] = []


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


def _is_local(family: int, address: object) -> bool:
    if family == socket.AF_UNIX:
        return True
    host = address[0] if isinstance(address, tuple) else address
    try:
        return host == "localhost" or ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


def _guarded_connect(self: socket.socket, address: object) -> object:
    if not _is_local(self.family, address):
        _attempts.append(f"connect {address}")
        raise ConnectionRefusedError(f"tests have no network: {address}")
    return _real_connect(self, address)


_real_getaddrinfo = socket.getaddrinfo


def _guarded_getaddrinfo(host: object, *args: object, **keywords: object) -> object:
    if host is not None and not _is_local(socket.AF_INET, (host,)):
        _attempts.append(f"look up {host}")
        raise socket.gaierror(f"tests have no network: {host}")
    return _real_getaddrinfo(host, *args, **keywords)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Only this machine can be reached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _guarded_connect)
        patch.setattr(socket, "getaddrinfo", _guarded_getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def reached_for_the_network() -> Iterator[list[str]]:
    """Fails a test that tried, even where the code under test swallowed the refusal."""
    _attempts.clear()
    yield _attempts
    assert not _attempts, f"the test reached for the network: {_attempts}"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a test run share; each thing in it is made by one of them, under `alone`."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def photo_folder(shared: Path) -> Path:
    """Three classes of twenty photos; read only."""
    with alone(shared, "another process makes the photos"):
        if not (shared / "photos").is_dir():
            make_photo_folder(shared / "unfinished", {"cat": 20, "dog": 20, "owl": 20}).rename(shared / "photos")
    return shared / "photos"


@pytest.fixture(scope="session")
def trained_run(shared: Path, photo_folder: Path) -> RunDir:
    """A finished run without artifacts; read only."""
    from recipes import feature_extraction

    run = RunDir(shared / "trained")
    with alone(shared, "another process trains"):
        if not run.finished:
            feature_extraction.main(feature_extraction.Config(str(photo_folder), run.path, image_size=64))
    return run


@pytest.fixture(scope="session")
def finished_run(shared: Path, trained_run: RunDir) -> RunDir:
    """A run converted under all schemes, evaluated, timed and reported; read only."""
    from export import benchmark, convert, evaluate, report

    path = shared / "run"
    with alone(shared, "another process converts"):
        if not (path / "export" / report.REPORT).is_file():
            shutil.copytree(trained_run.path, path, dirs_exist_ok=True)
            convert.main(convert.Config(path, calibration_images=12, seed=3))
            evaluate.main(evaluate.Config(path))
            benchmark.main(benchmark.Config(path, runs=10, warmup=1))
            report.main(report.Config(path))
    return RunDir(path)


@pytest.fixture
def run_copy(tmp_path: Path, finished_run: RunDir) -> RunDir:
    """A copy of the finished run that may be damaged."""
    shutil.copytree(finished_run.path, tmp_path / "copy")
    return RunDir(tmp_path / "copy")
