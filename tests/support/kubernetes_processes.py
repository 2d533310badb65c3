"""What a kubelet and KubeRay's operator would start, as processes of this machine.

Commands, flags and environment are read out of the rendered manifests. Only what a machine without
a cluster cannot have is put in their place: names of Services become addresses on 127.0.0.1, mounts
become folders, and Ray's ports are free ones, because several nodes share this machine.
"""

from __future__ import annotations

import json
import os
import secrets as random
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.kubernetes_manifests import Doc, environment
from tests.support.mlflow_server import until
from tests.support.ray_nodes import kill_tree

SOURCE = Path(__file__).parents[2] / "platform"
PATIENCE_SECONDS = 300.0
_UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}


class Machine:
    """This machine in the place of a cluster's nodes: its Secrets, its DNS and its mounts."""

    def __init__(self, objects: list[Doc], secrets: dict[str, Doc], folder: Path) -> None:
        self.objects = objects
        self.secrets = secrets
        self.folder = folder
        self.addresses: dict[str, str] = {}
        self.mounts: dict[str, Path] = {"/tmp": folder / "tmp"}
        (folder / "tmp").mkdir()
        (folder / "bin").mkdir()
        # The console script that the image's wheel brings.
        program = folder / "bin" / "perennial"
        program.write_text(f"#!{sys.executable}\nfrom perennial.cli import main\n\nmain()\n")
        program.chmod(0o755)

    def variables(self, container: Doc) -> dict[str, str]:
        """The environment of a container, and nothing of this process but where Python is."""
        found = {
            name: self.here(value)
            for name, value in environment(self.objects, container, self.secrets).items()
        }
        path = [str(self.folder / "bin"), str(Path(sys.executable).parent), "/usr/bin", "/bin"]
        modules = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
        there = {"PATH": os.pathsep.join(path), "PYTHONPATH": os.pathsep.join(modules)}
        loopback = {"NO_PROXY": "127.0.0.1", "AWS_EC2_METADATA_DISABLED": "true"}
        return found | there | {"LANG": "C.UTF-8"} | loopback

    def here(self, text: str) -> str:
        """A word of a manifest with the names of this machine."""
        for name, address in self.addresses.items():
            text = text.replace(name, address)
        for place, folder in self.mounts.items():
            if text == place or text.startswith(f"{place}/"):
                text = f"{folder}{text.removeprefix(place)}"
        return text

    def start(
        self, command: list[str], variables: dict[str, str], log: str
    ) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as sink:
            return subprocess.Popen(
                command, env=variables, stdout=sink, stderr=sink, start_new_session=True
            )


@contextmanager
def mlflow(machine: Machine, deployment: Doc) -> Iterator[str]:
    """The Deployment's container; its address. It ends with the block."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    port = free_port()
    machine.addresses["perennial-mlflow:5000"] = f"127.0.0.1:{port}"
    moved = {"--port=5000": f"--port={port}", "--host=0.0.0.0": "--host=127.0.0.1"}
    arguments = [moved.get(word, word) for word in container["args"]]
    assert set(moved) <= set(container["args"])
    command = [*container["command"], *arguments]
    process = machine.start(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        machine.variables(container),
        "mlflow.log",
    )
    probe = container["readinessProbe"]["httpGet"]["path"]
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}{probe}"), "MLflow's readiness probe")
        yield f"http://127.0.0.1:{port}"
    finally:
        kill_tree(psutil.Process(process.pid))
        process.wait()


class RayCluster:
    """A cluster, a RayJob's or one whose head watches: a head, and workers of an autoscaler."""

    def __init__(self, machine: Machine, spec: Doc) -> None:
        self._machine = machine
        self._spec = spec
        self._folder = tempfile.mkdtemp(prefix="ray-")
        self._token = random.token_hex(16)
        self.dashboard = f"http://127.0.0.1:{free_port()}"
        self._gcs = f"127.0.0.1:{free_port()}"
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._submitters: list[subprocess.Popen[bytes]] = []
        self._submission = ""
        self._log = "ray-0.log"
        head = spec["headGroupSpec"]
        self.head = head["template"]["spec"]["containers"][0]
        self.agents = [free_port()]
        self._start_node(
            head,
            "--head",
            f"--port={self._gcs.rpartition(':')[2]}",
            f"--dashboard-port={self.dashboard.rpartition(':')[2]}",
            "--dashboard-host=127.0.0.1",
            f"--ray-client-server-port={free_port()}",
            f"--temp-dir={self._folder}",
            "--no-monitor",
        )
        until(lambda: _answers(f"{self.dashboard}/api/version", self._token), "Ray's dashboard")

    def add(self, group: str) -> None:
        """A worker of a group, when its readiness probe answers."""
        (spec,) = (g for g in self._spec["workerGroupSpecs"] if g["groupName"] == group)
        self.agents.append(free_port())
        self._start_node(spec, f"--address={self._gcs}")

    def _start_node(self, group: Doc, *place: str) -> None:
        """`ray start` with the flags that the operator makes of a group."""
        container = group["template"]["spec"]["containers"][0]
        limits = container["resources"]["limits"]
        params = {
            "num-cpus": str(limits["cpu"]),
            "memory": str(_bytes(limits["memory"])),
            "metrics-export-port": str(free_port()),
            "dashboard-agent-listen-port": str(self.agents[-1]),
            **group.get("rayStartParams", {}),
        }
        if group.get("labels"):
            params["labels"] = ",".join(f"{k}={v}" for k, v in group["labels"].items())
        # Several nodes share this machine's ports and memory.
        shared = {"min-worker-port": "0", "max-worker-port": "0"}
        shared |= {"object-store-memory": str(100 << 20), "node-ip-address": "127.0.0.1"}
        flags = [f"--{name}={value}" for name, value in (params | shared).items()]
        command = [self._program("ray"), "start", "--block", *flags, *place]
        variables = self.variables(container)
        if "command" in container:  # of its own, as the annotation says; the operator's is told
            variables["KUBERAY_GEN_RAY_START_CMD"] = shlex.join(command)
            command = [self._machine.here(word) for word in container["command"]]
            command[0] = sys.executable
        log = f"ray-{len(self._nodes)}.log"
        self._nodes.append(self._machine.start(command, variables, log))
        probe = f"http://127.0.0.1:{self.agents[-1]}/api/healthz"
        until(lambda: _answers(probe, self._token), f"{probe}; see {self._machine.folder}/{log}")

    def variables(self, container: Doc) -> dict[str, str]:
        """A container's environment, with what the operator adds."""
        added = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}
        return self._machine.variables(container) | added | {"RAY_ADDRESS": self._gcs}

    def submit(self, job: Doc) -> subprocess.Popen[bytes]:
        """The submitter pod of a RayJob, with the command that the operator gives it."""
        (container,) = job["spec"]["submitterPodTemplate"]["spec"]["containers"]
        variables = self.variables(container)
        del variables["RAY_ADDRESS"]
        words = [self._machine.here(word) for word in shlex.split(job["spec"]["entrypoint"])]
        self._log = f"{job['metadata']['name']}-{len(self._submitters)}.log"
        command = [self._program("ray"), "job", "submit", f"--address={self.dashboard}"]
        self._submission = random.token_hex(6)
        command += [f"--submission-id={self._submission}", "--", *words]
        process = self._machine.start(command, variables, self._log)
        self._submitters.append(process)
        return process

    def stop_job(self) -> None:
        """Ask Ray to stop the last job, as the operator does for a RayJob that is deleted."""
        url = f"{self.dashboard}/api/jobs/{self._submission}/stop"
        headers = {"Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(url, headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer) == {"stopped": True}

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds, while the last job, or the head that watches, is at work."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.told()[-4000:]
            at_work = self._submitters[-1] if self._submitters else self._nodes[0]
            assert at_work.poll() is None, self.told()[-4000:]
            time.sleep(0.2)

    def told(self) -> str:
        """What the last submitter has printed, the job's own output, or without one the head."""
        return (self._machine.folder / self._log).read_text("utf-8", "replace")

    def node_id(self, index: int) -> str:
        """Ray's id of a node; the head is 0."""
        words = []
        for process in self._inside(index):
            with suppress(psutil.NoSuchProcess):
                words += process.cmdline()
        (found,) = {w.partition("=")[2] for w in words if w.startswith("--node_id=")}
        return found

    def _inside(self, index: int) -> list[psutil.Process]:
        """The processes of a node; none when it has ended, as a drained one does by itself."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._nodes[index].pid).children(recursive=True)
        return []

    def workers(self, index: int) -> list[int]:
        """The process ids of the training workers on a node."""
        found = []
        for process in self._inside(index):
            with suppress(psutil.NoSuchProcess, IndexError):
                if process.cmdline()[0].startswith("ray::RayTrainWorker"):
                    found.append(process.pid)
        return found

    def pre_stop(self, index: int, container: Doc) -> subprocess.CompletedProcess[str]:
        """What the kubelet runs in a container before it ends it.

        In its pod there are one node and its processes; here it is told which ones are meant.
        """
        shell, option, script = container["lifecycle"]["preStop"]["exec"]["command"]
        places = [f"/proc/{process.pid}" for process in self._inside(index)]
        assert "/proc/[0-9]*" in script
        script = script.replace("drain-node ", f"drain-node --node-id={self.node_id(index)} ")
        script = script.replace(
            "/proc/[0-9]*/cmdline", " ".join(f"{place}/cmdline" for place in places)
        )
        script = script.replace("/proc/[0-9]*", " ".join(places))
        return subprocess.run(
            [shell, option, script],
            env=self.variables(container),
            capture_output=True,
            text=True,
            check=False,
        )

    def wait_for_end(self, index: int) -> None:
        """Wait until a pod's first process has ended by itself."""
        self._nodes[index].wait(PATIENCE_SECONDS)

    def end(self, index: int) -> None:
        """A pod is gone."""
        kill_tree(psutil.Process(self._nodes[index].pid))
        self._nodes[index].wait()

    def close(self) -> None:
        """The cluster is deleted: by a suspended job, or at a job's end."""
        for process in [*self._submitters, *reversed(self._nodes)]:
            if process.poll() is None:
                kill_tree(psutil.Process(process.pid))
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _program(self, name: str) -> str:
        return str(Path(sys.executable).parent / name)


@contextmanager
def ray_cluster(machine: Machine, spec: Doc, group: str, workers: int) -> Iterator[RayCluster]:
    """A cluster with workers of one group; it ends with the block."""
    cluster = RayCluster(machine, spec)
    try:
        for _ in range(workers):
            cluster.add(group)
        yield cluster
    finally:
        cluster.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]


def _answers(url: str, token: str = "") -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
