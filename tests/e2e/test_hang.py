"""A worker that does not answer: the others end after a while, and a new group goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.tiny_run import tiny_run, write_run, write_texts

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

STEPS = 400


def test_a_worker_that_hangs_is_replaced_and_training_goes_on(tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    document["stages"] |= {"budget": f"{STEPS} steps"}
    document["training"] |= {"hang_minutes": 0.2}
    run_file = write_run(tmp_path, document)
    perennial("land", run_file, "help", write_texts(tmp_path)["help"])
    store = open_store(tmp_path / "store")
    process = start("run", run_file)
    while checkpoint.latest_step(store, "checkpoints/00-help") is None:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)  # polling a condition: the first checkpoint of the stage
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.cmdline() and child.cmdline()[0].startswith("ray::RayTrainWorker")
    ]
    assert len(workers) == 2
    workers[-1].send_signal(signal.SIGSTOP)
    out, err = process.communicate()
    assert process.returncode == 0, (out[-2000:], err[-4000:])
    status = perennial_json("status", run_file)
    assert status["corpora"] == {"help": "passed"}
    assert status["times"][0]["starts"] == 2
