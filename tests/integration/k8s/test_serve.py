"""The first process of the head that watches, with programs in the place of Ray and `perennial`."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.kubernetes_manifests import K8S

SERVE = K8S / "components" / "mode-watch" / "serve.py"
PATIENCE_SECONDS = 120
# Each says that it runs only when it is ready for the signal that a test sends on reading so. Ray's
# own code after SIGTERM is 1.
RAY = """#!/bin/sh
trap 'echo "ray ended" >> log; kill $!; exit 1' TERM
echo "ray $*" >> log
while [ ! -e ray-dies ]; do sleep 0.05 & wait $!; done
exit 9
"""
# `perennial` says with which run file it runs, and ends as the file says.
PERENNIAL = """#!/bin/sh
read=$(cat "$2")
trap 'echo "checkpoint stored" >> log; kill $!; exit 143' TERM
echo "$1 $read" >> log
if [ "$read" = wrong ]; then exit 2; fi
if [ -e store-is-away ]; then rm store-is-away; exit 1; fi
while true; do sleep 0.05 & wait $!; done
"""


class Container:
    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        for name, program in {"ray": RAY, "perennial": PERENNIAL}.items():
            (folder / name).write_text(program)
            (folder / name).chmod(0o755)
        self.write("run.yaml", "right")
        there = {
            "KUBERAY_GEN_RAY_START_CMD": "ray start --head --block",
            "RAY_ADDRESS": address,
            "LOOK_EVERY_SECONDS": "0.02",
            "RETRY_SECONDS": "0.05",
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        }
        self.start = [sys.executable, str(SERVE), "run.yaml"]
        self.environment = {**os.environ, **there}
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        # A group of its own, which ends with the test: what it started would outlive it.
        self.process = subprocess.Popen(
            self.start, env=self.environment, cwd=self.folder, start_new_session=True
        )

    def write(self, name: str, text: str) -> None:
        (self.folder / "new").write_text(text)
        (self.folder / "new").rename(self.folder / name)

    def log(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []

    def until(self, line: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while line not in self.log():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def ends(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    with socket.create_server(("127.0.0.1", 0)) as head:  # what Ray's head listens at
        container = Container(tmp_path, f"127.0.0.1:{head.getsockname()[1]}")
        yield container
        if container.process is not None and container.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(container.process.pid, signal.SIGKILL)
            container.process.wait()


def test_a_process_has_not_ended_where_one_of_its_number_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve = runpy.run_path(str(SERVE))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    children = serve["Children"]()
    monkeypatch.setattr(os, "posix_spawnp", lambda *_: 7)
    ended = [(7, 1 << 8), (0, 0), (0, 0)]
    monkeypatch.setattr(os, "waitpid", lambda *_: ended.pop(0))
    assert children.code(7) == 1, "a stray one, which was given to this process"
    assert not children.has_ended(children.start(["perennial"]))


def test_a_stopped_container_stores_a_checkpoint_before_ray_ends(container: Container) -> None:
    container.run()
    # In either order: the two run side by side, and what listens for Ray is there before both.
    container.until("ray start --head --block")
    container.until("watch right")
    assert container.process is not None
    container.process.send_signal(signal.SIGTERM)
    assert container.ends() == 0
    assert sorted(container.log()[:2]) == ["ray start --head --block", "watch right"]
    assert container.log()[2:] == ["checkpoint stored", "ray ended"]


def test_a_mistake_is_waited_out_in_the_same_pod(container: Container) -> None:
    container.write("run.yaml", "wrong")
    container.run()
    container.until("watch wrong")
    container.write("run.yaml", "right")
    container.until("watch right")
    container.until("ray start --head --block")
    assert container.log().count("watch wrong") == 1
    assert container.log().count("ray start --head --block") == 1


def test_a_failure_is_tried_again(container: Container) -> None:
    container.write("store-is-away", "")
    container.run()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while container.log().count("watch right") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_ray_the_container_ends(container: Container) -> None:
    container.run()
    container.until("ray start --head --block")
    container.until("watch right")
    container.write("ray-dies", "")
    assert container.ends() == 1
    assert container.log()[-1] == "checkpoint stored"


def test_a_head_that_does_not_come_up_ends_the_container(container: Container) -> None:
    container.environment["RAY_ADDRESS"] = "127.0.0.1:1"
    container.write("ray-dies", "")
    container.run()
    assert container.ends() == 1
    assert container.log() == ["ray start --head --block"]


def test_a_command_that_was_asked_to_end_is_not_started_again(container: Container) -> None:
    """PreStop sends SIGTERM to `perennial` itself."""
    container.run()
    container.until("ray start --head --block")
    container.until("watch right")
    assert container.process is not None
    children = f"/proc/{container.process.pid}/task/{container.process.pid}/children"
    _ray, watch = Path(children).read_text().split()
    os.kill(int(watch), signal.SIGTERM)
    assert container.ends() == 0
    assert container.log().count("watch right") == 1
    assert container.log()[-1] == "ray ended"
