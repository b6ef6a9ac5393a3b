"""A real Ray cluster of two nodes on this machine, for tests: the one of `make cluster`, in a directory of its own.

with two_nodes() as cluster:
    cluster.dashboard          "http://127.0.0.1:PORT", for `ray job submit --address` and JobSubmissionClient
    cluster.gcs                "127.0.0.1:PORT", for RAY_ADDRESS
    cluster.environment        for subprocesses: this one's, and the token
    cluster.nodes[1].kill()    every process of the worker node at once; nodes[0] is the head
    cluster.add_node()         another one
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.local_cluster import Cluster


@contextmanager
def two_nodes(cpus: int = 4) -> Iterator[Cluster]:
    """Two nodes with so many logical CPUs each; killed at the end, with whatever still runs on them."""
    # Not pytest's tmp_path: Ray's sockets lie in there, and a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        cluster = Cluster.start(Path(directory), nodes=2, cpus=cpus)
        try:
            yield cluster
        finally:
            for node in cluster.nodes:
                node.kill()
