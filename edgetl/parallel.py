"""Work in several processes at once: of this machine, or of a Ray cluster.

Every task is `function(shared, *arguments)`, with both of them importable and all of it picklable. What is shared is
handed out once per process. A process that dies costs what is under way a retry, and nothing that was done.

A task gets a fixed number of threads wherever it runs: sums of floats depend on how they are divided, so two machines
agree to the last bit only where they divide alike.
"""

import contextlib
import importlib.util
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgetl import child
from edgetl.console import log
from edgetl.data.pipeline import cores
from edgetl.errors import ConfigError

RETRIES = 3
"""Times that a task is done again because a process died; here the last of them with no other beside it."""
REACH_SECONDS = 10.0
"""How long a cluster may take to accept a connection."""
ANSWER_SECONDS = 60.0
"""How long a cluster may take to let a first process in: usually three, most of them to import Ray."""
_CONNECT = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR', namespace='edgetl')"
SAVE_SECONDS = 10.0
"""How long tasks of a cluster may take to save what they have, once they are told to end."""
_SHARED, _PID = "shared.pickle", ".pid"
ASK_FOR_MEMORY = "The system may have ended it for want of memory (see dmesg): free some, or let it do less at once"


class TaskDiedError(ConfigError):
    """A task was given up, for its process died every time; the pool goes on with the others."""

    def __init__(self, tag: int, why: str) -> None:
        """Know which.

        Args:
            tag: of the task.
            why: as far as that is known.
        """
        super().__init__(f"the process of a task died {RETRIES + 1} times. {why}")
        self.tag, self.why = tag, why


class Workers(ABC):
    """Processes that take tasks, in any number, and give results in the order in which they come."""

    @abstractmethod
    def submit(self, tag: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Have `function(shared, *arguments)` done; `tag` names the task in `finished`."""

    @abstractmethod
    def finished(self) -> tuple[int, Any]:
        """Wait for the next task that is done.

        Returns:
            Its tag and result.

        Raises:
            TaskDiedError: the process of a task died over and over.
            ConfigError: the cluster lost a task for other reasons.
            Exception: what the task raised.
        """

    @property
    @abstractmethod
    def running(self) -> int:
        """Tasks that were submitted and not yet handed out."""

    def map(self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Do all tasks; yield (place, result) as they finish."""
        for place, arguments in enumerate(tasks):
            self.submit(place, function, *arguments)
        while self.running:
            yield self.finished()


@contextmanager
def workers(shared: Any, *, ray: str = "", processes: int = 0, threads: int = 1) -> Iterator[Workers]:
    """Start processes, and end them with the block.

    Args:
        shared: first argument of every task.
        ray: address of a Ray cluster, `host:port`, `ray://host:port` or `auto`; empty: processes of this machine.
        processes: of this machine; 0 means as many as its cores let run with `threads` each.
        threads: of one task.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    started = _Ray(ray, shared, threads) if ray else _Local(shared, processes or max(1, cores() // threads), threads)
    try:
        yield started
    finally:
        started.close()


class _Local(Workers):
    """Processes of this machine, started anew by spawning: TensorFlow does not survive a fork."""

    def __init__(self, shared: Any, processes: int, threads: int) -> None:
        self._processes, self._threads = processes, threads
        self._folder = tempfile.TemporaryDirectory(prefix="edgetl-")
        with self._path(_SHARED).open("wb") as file:
            pickle.dump(shared, file, pickle.HIGHEST_PROTOCOL)
        self._tasks: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._waiting: deque[int] = deque()
        self._futures: dict[Future[Any], int] = {}
        self._deaths: Counter[int] = Counter()
        self._pool = self._new_pool()

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def _new_pool(self) -> ProcessPoolExecutor:
        spawn = get_context("spawn")
        return ProcessPoolExecutor(self._processes, spawn, initializer=_begin, initargs=(self._folder.name,))

    def submit(self, tag: int, function: Callable[..., Any], *arguments: Any) -> None:
        self._tasks[tag] = (function, arguments)
        self._waiting.append(tag)
        self._fill()

    def _fill(self) -> None:
        """Give each process one task."""
        # Children read these variables when they start, and their libraries when they are imported.
        with _environment(_thread_limits(self._threads)), _no_interrupt():
            while self._waiting and len(self._futures) < self._processes and not self._must_be_alone():
                tag = self._waiting.popleft()
                try:
                    self._futures[self._pool.submit(_call, *self._tasks[tag])] = tag
                except BrokenProcessPool:
                    self._waiting.appendleft(tag)
                    self._restart([])

    def _must_be_alone(self) -> bool:
        """Whether the next task, or one under way, is on its last try: should it die, it must be clear which did."""
        under_way = list(self._futures.values())
        return bool(under_way) and any(self._deaths[tag] >= RETRIES for tag in [self._waiting[0], *under_way])

    def finished(self) -> tuple[int, Any]:
        while True:
            done, _ = wait(self._futures, return_when=FIRST_COMPLETED)
            future = min(done, key=lambda each: self._futures[each])
            tag = self._futures.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                self._restart([tag])
                if self._deaths[tag] <= RETRIES:
                    self._fill()
                    continue
                self._waiting.remove(tag)
                del self._tasks[tag], self._deaths[tag]
                self._fill()
                raise TaskDiedError(tag, ASK_FOR_MEMORY) from None
            except BaseException:
                del self._tasks[tag]
                raise
            del self._tasks[tag], self._deaths[tag]
            self._fill()
            return tag, result

    def _restart(self, lost: list[int]) -> None:
        """One dead process breaks the whole pool, and nobody knows which: do what was under way again in another."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        broken = [each for each in self._futures if each.cancelled() or isinstance(each.exception(), BrokenProcessPool)]
        again = sorted([*lost, *(self._futures.pop(each) for each in broken)])
        self._deaths.update(again)
        log.warning("a process died; what was under way is done again")
        for process in self._path("").glob(f"*{_PID}"):
            process.unlink()
        self._waiting.extendleft(reversed(again))
        self._pool = self._new_pool()

    @property
    def running(self) -> int:
        return len(self._tasks)

    def close(self) -> None:
        if self._tasks:  # an error or Ctrl-C: let them save what they have
            for process in self._path("").glob(f"*{_PID}"):
                with contextlib.suppress(OSError):
                    os.kill(int(process.stem), signal.SIGTERM)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._folder.cleanup()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes that start meanwhile are not reached by Ctrl-C, which is their parent's business."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _thread_limits(threads: int) -> dict[str, str]:
    names = ("OMP", "OPENBLAS", "MKL")
    return {
        **{f"{name}_NUM_THREADS": str(threads) for name in names},
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": str(threads),
    }


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_folder, _busy = "", False
"""In a process of `_Local`: where what is shared lies, and whether a task is running."""


def _begin(folder: str) -> None:
    """First of all in a process: end by SIGTERM as by Ctrl-C, and end with the parent, whatever ended that one."""
    global _folder
    _folder = folder
    (Path(folder) / f"{os.getpid()}{_PID}").touch()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_watch_parent, daemon=True).start()


def _interrupt(*_: object) -> None:
    if not _busy:
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb what the task saves now
    raise KeyboardInterrupt


def _watch_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        shutil.rmtree(_folder, ignore_errors=True)
        os._exit(1)  # nobody waits for results any more; checkpoints are on disk


@lru_cache(1)
def _shared() -> Any:
    with (Path(_folder) / _SHARED).open("rb") as file:
        return pickle.load(file)  # noqa: S301 (the parent has written it, into a folder of its own)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    global _busy
    _busy = True
    try:
        return function(_shared(), *arguments)
    except KeyboardInterrupt:
        os._exit(1)  # back in its loop the process would wait for tasks, and its parent for its end
    finally:
        _busy = False


class _Ray(Workers):
    """Tasks of a Ray cluster that is there already; its own scheduler finds them a place, and a new one if it dies."""

    def __init__(self, address: str, shared: Any, threads: int) -> None:
        self._ray, self._ours = connect(address)
        if self._ray.cluster_resources().get("CPU", 0) < threads:
            raise ConfigError(f"--ray {address}: no node with {threads} core(s). Add one to the cluster")
        self._shared = self._ray.put(shared)
        limits = {"env_vars": _thread_limits(threads)}
        self._remote = self._ray.remote(num_cpus=threads, max_retries=RETRIES, runtime_env=limits)
        self._tags: dict[Any, int] = {}

    def submit(self, tag: int, function: Callable[..., Any], *arguments: Any) -> None:
        self._tags[self._remote(_apply).remote(function, self._shared, arguments)] = tag

    def finished(self) -> tuple[int, Any]:
        done, _ = self._ray.wait(list(self._tags), num_returns=1)
        tag = self._tags.pop(done[0])
        try:
            return tag, self._ray.get(done[0])
        except self._ray.exceptions.RayTaskError as error:  # what the task raised, in a wrapping
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, (self._ray.exceptions.RayError, ImportError)):  # before the task began
                line = str(cause).strip().splitlines()[-1]
                raise ConfigError(
                    f"--ray: a node can't run the task ({line}). Install the same edgetl and packages on every machine"
                ) from None
            raise cause from None
        except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.OutOfMemoryError) as error:
            raise TaskDiedError(tag, str(error).strip().partition("\n")[0]) from error
        except self._ray.exceptions.RayError as error:
            raise ConfigError(f"--ray: a task was lost {RETRIES + 1} times: {error}") from error

    @property
    def running(self) -> int:
        return len(self._tags)

    def close(self) -> None:
        for reference in self._tags:
            self._ray.cancel(reference)
        if self._tags:
            self._ray.wait(list(self._tags), num_returns=len(self._tags), timeout=SAVE_SECONDS)
        self._tags.clear()
        if self._ours:
            self._ray.shutdown()


def _apply(function: Callable[..., Any], shared: Any, arguments: tuple[Any, ...]) -> Any:
    return function(shared, *arguments)


def connect(address: str) -> tuple[Any, bool]:
    """Connect to a Ray cluster.

    Args:
        address: `host:port`, `ray://host:port`, or `auto`: the cluster that this machine is a node of.

    Returns:
        The module ray, initialized; and whether it was not before: of a connection of the caller's own.

    Raises:
        ConfigError: Ray is not installed, the address is none, or nothing answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless asked for
    check(address)
    import ray

    if ray.is_initialized():
        return ray, False
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="edgetl")
    except Exception as error:  # of many types, some of them of protobuf and grpc
        why = str(error).strip().splitlines()
        raise ConfigError(
            f"--ray {address}: no cluster can be used: {why[0] if why else type(error).__name__}"
        ) from error
    return ray, True


def check(address: str) -> None:
    """Refuse a cluster that can't be used, before anything long.

    Raises:
        ConfigError: Ray is not installed, the address is none, or no cluster answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError('--ray: Ray is not installed. Run pip install "edgetl[cluster]"')
    if address != "auto":
        _refuse_unreachable(address)
    _refuse_no_cluster(address)


def _refuse_unreachable(address: str) -> None:
    place = urlsplit(address if "//" in address else f"//{address}")
    try:
        host, port = place.hostname, place.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ConfigError(f"--ray {address}: not an address. Give host:port (ray start prints it), or auto")
    try:
        socket.create_connection((host, port), REACH_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"--ray {address}: not reachable ({error.strerror or error}). Start a cluster with ray start --head, or "
            "leave --ray out"
        ) from None


@lru_cache(1)
def _refuse_no_cluster(address: str) -> None:
    """Connect in a process of its own: where something else listens, Ray tries for minutes and hears no Ctrl-C."""
    try:
        ended = child.run([sys.executable, "-P", "-c", _CONNECT, address], patience_s=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"--ray {address}: something listens there, but no cluster has answered in {ANSWER_SECONDS:.0f} s. Give "
            "what ray start prints: 8265 is the dashboard's port, and 10001 needs ray:// before the host"
        ) from None
    if ended.status == 0:
        return
    if address == "auto":
        raise ConfigError(
            "--ray auto: this machine is no node of a cluster. Run ray start on it, give host:port, or leave --ray out"
        )
    raise ConfigError(f"--ray {address}: no cluster can be used: connecting {ended.how}")
