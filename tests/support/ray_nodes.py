"""A Ray cluster of several nodes on this machine, whose nodes and workers can be killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.s3_server import S3Server

_SOURCE = str(Path(__file__).parents[2] / "platform")
_STORE_BYTES = 100 << 20


class Nodes:
    """A head, where drivers live, and nodes with room for one worker each.

    environment: what a driver needs to join: `start("run", run_file, env=nodes.environment)`.
    """

    def __init__(self, environment: dict[str, str], head_cpus: int = 0) -> None:
        from ray.cluster_utils import Cluster

        self._variables = environment
        with self._in_environment():
            self._cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": head_cpus,
                    "object_store_memory": _STORE_BYTES,
                    "include_dashboard": False,
                },
            )
        self.environment = {**environment, "RAY_ADDRESS": self._cluster.address}
        self._nodes: list[Any] = []

    @contextmanager
    def _in_environment(self) -> Iterator[None]:
        """The cluster's variables, for what starts or asks it; not for what a test does itself."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._variables.items():
                patch.setenv(name, value)
            yield

    def add(self, cpus: int = 1, address: str | None = None) -> None:
        """Start a node and wait until the cluster has it.

        cpus: of the node.
        address: of this machine that it has; Ray Train takes nodes of one address for one.
        """
        own = {} if address is None else {"node_ip_address": address}
        with self._in_environment():
            node = self._cluster.add_node(num_cpus=cpus, object_store_memory=_STORE_BYTES, **own)
        self._nodes.append(node)

    def __len__(self) -> int:
        return len(self._nodes)

    def drain(self, index: int, seconds: int) -> None:
        """A spot notice, as an autoscaler gives it: the node will be gone after `seconds`."""
        words = ["--address", self.environment["RAY_ADDRESS"], "--node-id"]
        words += [self._nodes[index].node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        words += ["--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)]
        subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *words],
            check=True,
            capture_output=True,
            env={**os.environ, **self.environment},
        )

    def kill(self, index: int) -> None:
        """A machine is gone: SIGKILL to everything that ran on it."""
        node = self._nodes.pop(index)
        kill_tree(_raylet(node))
        self._cluster.worker_nodes.discard(node)
        node.kill_all_processes(check_alive=False, allow_graceful=False)

    def workers(self, index: int) -> list[psutil.Process]:
        """The training workers that run on a node."""
        return self.processes(index, "ray::RayTrainWorker")

    def processes(self, index: int, title: str) -> list[psutil.Process]:
        """The processes on a node whose title begins so."""
        with suppress(psutil.NoSuchProcess):
            return [
                process
                for process in _raylet(self._nodes[index]).children(recursive=True)
                if _title(process).startswith(title)
            ]
        return []

    def close(self) -> None:
        while self._nodes:
            self.kill(0)
        with self._in_environment():
            self._cluster.shutdown()


@contextmanager
def ray_nodes(
    *, count: int, environment: dict[str, str] | None = None, head_cpus: int = 0
) -> Iterator[Nodes]:
    """A cluster with `count` nodes that ends with the block. Tokens are asked for, as always.

    environment: more variables for its processes, such as those of an S3 server.
    head_cpus: CPUs of the head itself.
    """
    # A place of its own, or any driver that names no cluster would join this one.
    folder = tempfile.mkdtemp(prefix="ray-")
    paths = [_SOURCE, *filter(None, [os.environ.get("PYTHONPATH")])]
    nodes = Nodes(
        {
            "PYTHONPATH": os.pathsep.join(paths),
            "RAY_TMPDIR": folder,
            **(environment or {}),
        },
        head_cpus,
    )
    try:
        for _ in range(count):
            nodes.add()
        yield nodes
    finally:
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_head(s3_server: S3Server) -> Iterator[dict[str, str]]:
    """The variables with which commands join one cluster of the session, and see its S3 server.

    A command that starts a cluster of its own takes some seconds longer.
    """
    environment = s3_server.environment()
    with ray_nodes(count=0, environment=environment, head_cpus=os.cpu_count() or 1) as nodes:
        yield nodes.environment


def kill_tree(root: psutil.Process) -> None:
    """SIGKILL to a process and everything that it started, first seen to last."""
    with suppress(psutil.NoSuchProcess):
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


def _raylet(node: Any) -> psutil.Process:
    (info,) = node.all_processes["raylet"]
    return psutil.Process(info.process.pid)


def _title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied, IndexError):
        return process.cmdline()[0]
    return ""
