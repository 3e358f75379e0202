"""Tasks in processes of this machine and of a real Ray cluster: the same results, and no death loses anything."""

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.local_cluster import local_cluster
from edgetl import child, parallel
from edgetl.errors import ConfigError, DatasetError
from edgetl.parallel import RETRIES, TaskDiedError, connect, workers
from tests import clusters


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes of one core each."""
    with local_cluster(2) as address:
        yield address


@pytest.fixture(params=["local", "ray"])
def place(request: pytest.FixtureRequest) -> dict[str, object]:
    """Where tasks run."""
    if request.param == "local":
        return {"processes": 2}
    return {"ray": request.getfixturevalue("cluster")}


everywhere = pytest.mark.parametrize("place", ["local", pytest.param("ray", marks=pytest.mark.slow)], indirect=True)


def test_every_task_is_done_once(place: dict[str, object]) -> None:
    with workers(100, **place) as pool:
        assert sorted(pool.map(clusters.added, [(number,) for number in range(7)])) == [(n, 100 + n) for n in range(7)]
        assert not pool.running


@everywhere
def test_tasks_run_in_two_other_processes(place: dict[str, object]) -> None:
    with workers(None, **place) as pool:
        found = {process for _, process in pool.map(clusters.process, [()] * 8)}
    assert len(found) == 2
    assert os.getpid() not in found


@everywhere
def test_a_task_has_the_threads_that_it_was_given(place: dict[str, object]) -> None:
    with workers(None, **place) as pool:
        (found,) = [limits for _, limits in pool.map(clusters.limits, [()])]
    assert found == {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}
    assert "TF_NUM_INTRAOP_THREADS" not in os.environ  # of this process


def test_what_a_task_raises_is_raised_here(place: dict[str, object]) -> None:
    with workers(None, **place) as pool, pytest.raises(DatasetError, match=r"^no such photo$"):
        list(pool.map(clusters.refused, [()]))


@pytest.mark.slow
def test_a_node_without_the_tasks_package_is_told(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def task(shared):\n    return shared\n")
    monkeypatch.syspath_prepend(tmp_path)
    task = importlib.import_module("only_here").task
    with (
        workers(None, ray=cluster) as pool,
        pytest.raises(ConfigError, match=r"a node can't run the task \(.*only_here"),
    ):
        list(pool.map(task, [()]))


@everywhere
def test_a_process_that_dies_costs_its_task_a_retry(place: dict[str, object], tmp_path: Path) -> None:
    with workers(tmp_path, **place) as pool:
        done = sorted(pool.map(clusters.killed_once, [(name,) for name in "abcd"]))
    assert done == list(enumerate("abcd"))
    assert {path.name for path in tmp_path.iterdir()} == set("abcd")


@everywhere
def test_a_task_that_always_kills_its_process_is_given_up(place: dict[str, object]) -> None:
    with workers(None, **place) as pool, pytest.raises(ConfigError, match=f"{RETRIES + 1} times"):
        list(pool.map(clusters.killed, [()]))


@everywhere
def test_the_task_that_kills_its_process_is_found_among_others_that_are_done(place: dict[str, object]) -> None:
    done, given_up = set(), []
    with workers(None, **place) as pool:
        for tag in range(6):
            pool.submit(tag, clusters.killed if tag in (1, 2) else clusters.process)
        while pool.running:
            try:
                done.add(pool.finished()[0])
            except TaskDiedError as error:
                given_up.append(error.tag)
    assert sorted(given_up) == [1, 2]
    assert done == {0, 3, 4, 5}


def test_a_process_that_dies_beside_one_that_hears_no_signal(tmp_path: Path) -> None:
    with workers(tmp_path, processes=2) as pool:
        assert sorted(pool.map(clusters.busy_in_c, [("other",), ("first",)])) == [(0, "other"), (1, "first")]


def test_an_error_ends_the_other_tasks_as_ctrl_c_would(tmp_path: Path) -> None:
    with pytest.raises(DatasetError), workers(tmp_path, processes=2) as pool:
        pool.submit(0, clusters.stubborn)
        while not (tmp_path / "began").exists():
            time.sleep(0.05)
        pool.submit(1, clusters.refused)
        pool.finished()
    assert (tmp_path / "saved").exists()


def test_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgetl.parallel import workers; from tests import clusters\n"
        "if __name__ == '__main__':\n"
        "    with workers(Path(sys.argv[1]), processes=1) as pool:\n"
        "        pool.submit(0, clusters.stubborn); print(pool.running, flush=True); pool.finished()\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    root = Path(__file__).parent.parent
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path], env=os.environ | {"PYTHONPATH": f"{root}:{os.environ['PYTHONPATH']}"}
    )
    while not (tmp_path / "began").exists() or not (child := (tmp_path / "began").read_text()):
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while _runs(int(child)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(int(child))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("address", ["nonsense", "host:", "localhost", ":6379", "host:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"not an address. Give host:port"):
        connect(address)


def test_what_listens_but_is_no_cluster_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as dashboard:  # accepts, and never says a word
        port = dashboard.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--ray 127.0.0.1:{port}: something listens there, but no .*dashboard"):
            connect(f"127.0.0.1:{port}")


def test_auto_on_a_machine_that_is_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray looks through all processes, and other tests have clusters here.
    monkeypatch.setattr(child, "run", lambda *_, **__: child.Ended(1, "", "ConnectionError: Could not find any"))
    parallel._refuse_no_cluster.cache_clear()
    with pytest.raises(ConfigError, match=r"--ray auto: this machine is no node of a cluster. Run ray start"):
        parallel.check("auto")


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = time.monotonic()
    with pytest.raises(ConfigError, match=rf"--ray 127.0.0.1:{port}: not reachable .*ray start --head"):
        connect(f"127.0.0.1:{port}")
    assert time.monotonic() - before < 15  # Ray's own patience is minutes
