"""Real signals: a worker and the driver are told that they end, far from any checkpoint."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, start
from tests.support.tiny_run import write_run, write_texts
from tests.support.trained_run import STEPS, Lineage, document


@pytest.mark.long
def test_sigterm_to_a_worker_and_to_the_driver_loses_no_step(
    lineage: Lineage, tmp_path: Path
) -> None:
    shutil.copytree(lineage.after_first, tmp_path / "store")
    run = document(tmp_path)
    run["training"]["checkpoint_every"] = "100000 steps"
    run["stages"]["budget"] = "20000 steps"
    run_file = write_run(tmp_path, run)
    perennial("land", run_file, "code", write_texts(tmp_path)["code"])
    store = open_store(tmp_path / "store")

    process = start("run", run_file)
    assert process.stderr is not None
    lines: list[str] = []

    def read_until(pattern: str) -> int:
        for line in process.stderr or ():
            lines.append(line)
            found = re.search(pattern, line)
            if found:
                return int(found[1].replace(",", ""))
        raise AssertionError("".join(lines))

    seen = STEPS + read_until(r"01-code .* step ([\d,]+)/")
    _worker(process.pid).send_signal(signal.SIGTERM)
    resumed = read_until(r"01-code: 2 workers go on from step ([\d,]+)")
    assert resumed >= seen
    assert checkpoint.committed_steps(store, "checkpoints/01-code") == [resumed]

    seen = STEPS + read_until(r"01-code .* step ([\d,]+)/")
    process.send_signal(signal.SIGTERM)
    stopped = read_until(r"stopped on request with the checkpoint of step ([\d,]+) stored")
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert stopped >= seen
    assert checkpoint.latest_step(store, "checkpoints/01-code") == stopped


def _worker(pid: int) -> psutil.Process:
    """One of the training processes that the driver's Ray started."""
    children = psutil.Process(pid).children(recursive=True)
    return next(each for each in children if "RayTrainWorker" in " ".join(each.cmdline()))
