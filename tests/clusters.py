"""A real Ray cluster on this machine, and tasks for it and for local processes."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgetl.errors import DatasetError


@contextmanager
def ray_cluster(nodes: int) -> Iterator[str]:
    """Start so many nodes of one core each, and hand out the address of the cluster."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # of loopback alone
    import ray
    from ray.cluster_utils import Cluster

    usual = {"object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.1"}  # tests reach no other address
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **usual})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1, **usual)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def added(shared: int, number: int) -> int:
    """A task."""
    return shared + number


def process(shared: Any) -> int:
    """Where a task runs."""
    time.sleep(0.3)
    return os.getpid()


def limits(shared: Any) -> dict[str, str]:
    """What a task may use."""
    return {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")}


def refused(shared: Any) -> None:
    """A task that fails on purpose."""
    raise DatasetError("no such photo")


def killed_once(marks: Path, name: str) -> str:
    """A task whose process dies the first time."""
    if not (marks / name).exists():
        (marks / name).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def killed(shared: Any) -> None:
    """A task that kills its process whenever it runs."""
    os.kill(os.getpid(), signal.SIGKILL)


def stubborn(marks: Path) -> None:
    """A task that notes when it is asked to end, and when it has."""
    try:
        (marks / "began").write_text(str(os.getpid()))
        time.sleep(60)
    except KeyboardInterrupt:
        (marks / "saved").touch()
        raise
