"""What all tests share: caches of their own, no network, and one finished run."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from guard import sitecustomize
from photos import make_photo_folder

from edgetl.locks import alone
from edgetl.rundir import RunDir

ROOT = Path(__file__).parent.parent
_HOME = tempfile.mkdtemp(prefix="edgetl-tests-")
# At import, before a test module imports Keras, which reads and writes its home then.
os.environ["EDGETL_CACHE"] = f"{_HOME}/edgetl"
os.environ["KERAS_HOME"] = f"{_HOME}/keras"
# Only this machine can be reached, from here on and in the Pythons that tests start.
_ATTEMPTS = Path(_HOME, "attempts.txt")
os.environ[sitecustomize.NOTES] = str(_ATTEMPTS)
_GUARD = str(Path(__file__).parent / "guard")
os.environ["PYTHONPATH"] = os.pathsep.join([_GUARD, *filter(None, [os.environ.get("PYTHONPATH")])])
# As `edgetl.console.quiet_tensorflow` does: a test module that imports Keras first would leave it to the processor, and
# the commands that tests start would then sum in another order than this process.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
# Read when Ray is imported: without it Ray talks to the address of a network card, and tests reach loopback alone.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # a head reports to its makers, and asks clouds whose machine it is on
# A busy machine is no fault: the default takes 200 ms for an example to be one.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
# Children inherit an ignored signal: whoever starts the suite in the background would see Ctrl-C do nothing in them.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def reached_for_the_network() -> Iterator[None]:
    """Fails a test that tried, itself or in a process it started, even where the refusal was swallowed."""
    yield
    attempts = _ATTEMPTS.read_text().splitlines() if _ATTEMPTS.exists() else []
    _ATTEMPTS.unlink(missing_ok=True)
    assert not attempts, f"the test reached for the network: {attempts}"


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
        if not (path / report.REPORT).is_file():  # written last
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
