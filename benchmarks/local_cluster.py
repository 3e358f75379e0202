"""A real Ray cluster on this machine: nodes of one core each, on the loopback address alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def local_cluster(nodes: int) -> Iterator[str]:
    """Start so many nodes, and hand out the address of the cluster."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Without it Ray turns a loopback address into that of a network card, also where there is one node alone.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    usual = {"num_cpus": 1, "object_store_memory": 200 * 2**20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **usual})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**usual)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()
