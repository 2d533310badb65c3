"""A run on a cluster of several nodes, in which things are killed at chosen moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import psutil

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.ray_nodes import Nodes

Victim = Literal["worker", "node", "driver"]
Moment = Literal["step", "upload", "join"]


class DisturbedRun:
    """`perennial run` as a driver on a cluster; what is killed comes back as in Kubernetes.

    A lost node is replaced, a killed driver is started again with the same command.
    """

    def __init__(self, run_file: Path, store_url: str, nodes: Nodes, **more: str) -> None:
        self.store: Store = open_store(store_url)
        self.nodes = nodes
        self._run_file = run_file
        self._environment = {**os.environ, **nodes.environment, **more}
        self._log = run_file.parent / "driver.log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._driver = subprocess.Popen(
                [sys.executable, "-m", "perennial.cli", "run", str(self._run_file)],
                stdout=log,
                stderr=log,
                env=self._environment,
            )

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds; the driver must not end before."""
        while not condition():
            assert self._driver.poll() is None, self._told()
            time.sleep(0.005)  # polling a condition

    def ended(self) -> bool:
        """Whether the driver has ended, which must be well."""
        if self._driver.poll() is None:
            return False
        assert self._driver.returncode == 0, self._told()
        return True

    def end(self) -> None:
        """Wait until the run has ended well."""
        self._driver.wait()
        assert self.ended()

    def kill(self, victim: Victim, index: int = 0) -> None:
        """SIGKILL, and what replaces the victim. `index` says which node, or whose worker."""
        if victim == "worker":
            for process in self.nodes.workers(index):
                process.send_signal(signal.SIGKILL)
        elif victim == "node":
            self.nodes.kill(index)
            self.nodes.add()
        else:
            self._driver.kill()
            self._driver.wait()
            self.start()

    def close(self) -> None:
        """End the driver, if it has not ended."""
        if self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()

    def workers(self) -> list[psutil.Process]:
        """All training workers."""
        found = [self.nodes.workers(index) for index in range(len(self.nodes))]
        return [process for processes in found for process in processes]

    def saved(self, folder: str) -> int:
        """The latest committed step of a stage; -1 when there is none."""
        step = checkpoint.latest_step(self.store, folder)
        return -1 if step is None else step

    def uploading(self, folder: str) -> bool:
        """Whether some of a checkpoint that is not committed is in the store."""
        keys = [entry.key.removeprefix(f"{folder}/") for entry in self.store.list(folder)]
        committed = {key.split("/")[0] for key in keys if key.endswith(f"/{checkpoint.MANIFEST}")}
        return any(key.split("/")[0] not in committed for key in keys if key[0].isdecimal())

    def in_the_middle_of(self, moment: Moment, corpus: str, folder: str) -> bool:
        """Whether the stage of `corpus`, whose checkpoints go to `folder`, is at that moment."""
        if moment == "step":
            return self.saved(folder) >= 0
        if moment == "upload":
            return self.uploading(folder)
        corpora = Ledger(self.store).read().corpora
        begun = corpus in corpora and "started" in corpora[corpus].event_kinds
        return begun and self.saved(folder) < 0 and bool(self.workers())

    def _told(self) -> str:
        return f"exit {self._driver.returncode}\n{self._log.read_text()[-6000:]}"
