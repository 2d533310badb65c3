"""A worker that hangs ends its group, which says so and starts again as after a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import SOURCE, perennial, start
from tests.support.tiny_run import tiny_run, write_run, write_texts

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

LIMIT_SECONDS = 12
RESTART_SECONDS = 120
"""Bound on the end of the old group and the start of the new one, on a busy machine."""
BLOCKING_METRIC = '''
import threading
from pathlib import Path

import torch.distributed as dist

from perennial.training.metrics import StepMetric

BLOCKED = Path({blocked!r})


class Blocking(StepMetric):
    """Blocks the last rank once, in step 9."""

    name = "blocking"
    combine = "max"
    in_progress = False
    figure = False

    def measure(self, facts):
        last = dist.get_rank() == dist.get_world_size() - 1
        if facts.step == 8 and last and not BLOCKED.exists():
            BLOCKED.touch()
            threading.Event().wait()
        return 0.0


BLOCKING = Blocking()
'''


@contextmanager
def _run(
    folder: Path, environment: dict[str, str], workers: int = 2
) -> Iterator[subprocess.Popen[str]]:
    """A run that goes on until the block ends."""
    document = tiny_run(folder)
    document["training"]["workers"] = workers
    document["training"]["hang_minutes"] = LIMIT_SECONDS / 60
    document["stages"]["budget"] = "20000 steps"
    run_file = write_run(folder, document)
    perennial("land", run_file, "help", write_texts(folder)["help"], env=environment)
    process = start("run", run_file, env=environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def _read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    lines = []
    for line in process.stderr or ():
        lines.append(line)
        if matched := re.search(pattern, line):
            return matched
    raise AssertionError("".join(lines))


def test_a_stopped_process_is_named_and_the_group_starts_again(tmp_path: Path) -> None:
    with _run(tmp_path, {}) as process:
        _read_until(process, r"00-help .* step ([\d,]+)/")
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [each for each in children if "RayTrainWorker" in " ".join(each.cmdline())]
        assert len(workers) == 2
        stopped = workers[0]
        stopped.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        silent = _read_until(process, r"worker [01] has not answered for (\d+) s")
        assert int(silent[1]) >= LIMIT_SECONDS
        resumed = _read_until(process, r"00-help: 2 workers go on from step ([\d,]+)")
        assert time.monotonic() - began < LIMIT_SECONDS + RESTART_SECONDS
        _check_it_goes_on(process, tmp_path, resumed)
        assert not stopped.is_running()


def test_a_worker_that_the_others_wait_for_is_named(tmp_path: Path) -> None:
    with _run(tmp_path, _plugin(tmp_path)) as process:
        silent = _read_until(process, r"worker (\d) has not gone on for (\d+) s")
        assert silent[1] == "1"
        assert LIMIT_SECONDS <= int(silent[2]) < LIMIT_SECONDS + RESTART_SECONDS
        resumed = _read_until(process, r"00-help: 2 workers go on from step ([\d,]+)")
        assert (tmp_path / "blocked").exists()
        assert resumed[1] == "5"
        (stacks,) = (tmp_path / "store" / "hangs").iterdir()
        told = stacks.read_text()
        assert re.search(r"(?s)^worker 0$.*^worker 1$.*blocking.py", told, re.MULTILINE)
        _check_it_goes_on(process, tmp_path, resumed)


def test_a_lone_worker_that_blocks_is_named_with_its_place(tmp_path: Path) -> None:
    with _run(tmp_path, _plugin(tmp_path), workers=1) as process:
        silent = _read_until(process, r"worker 0 has not gone on for (\d+) s .*, in (.*)")
        assert LIMIT_SECONDS <= int(silent[1]) < LIMIT_SECONDS + RESTART_SECONDS
        assert re.search(r"wait \(threading.py:\d+\), called by measure \(blocking.py:", silent[2])
        resumed = _read_until(process, r"00-help: 1 workers? go(?:es)? on from step ([\d,]+)")
        assert resumed[1] == "5"
        _check_it_goes_on(process, tmp_path, resumed)


def _check_it_goes_on(process: subprocess.Popen[str], folder: Path, resumed: re.Match[str]) -> None:
    first = int(resumed[1].replace(",", ""))
    last = _read_until(process, r"00-help .* step ([\d,]+)/")
    assert int(last[1].replace(",", "")) > first
    steps = checkpoint.committed_steps(open_store(folder / "store"), "checkpoints/00-help")
    assert max(steps) >= first


def _plugin(folder: Path) -> dict[str, str]:
    """The environment of a process that finds a metric which blocks a worker."""
    place = folder / "plugin"
    described = place / "blocking-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: blocking\nVersion: 1.0\n")
    entry = "[perennial.metrics]\nblocking = blocking:BLOCKING\n"
    (described / "entry_points.txt").write_text(entry)
    code = BLOCKING_METRIC.format(blocked=str(folder / "blocked"))
    (place / "blocking.py").write_text(code)
    return {"PYTHONPATH": f"{SOURCE}{os.pathsep}{place}"}
