"""`perennial watch` as a process: SIGTERM ends it, whatever it does at that moment."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.runs.ledger import Ledger
from perennial.store import open_store
from tests.support.cli import SOURCE
from tests.support.event_factory import WALK, event_of
from tests.support.tiny_run import tiny_run, write_run

TESTS = Path(__file__).parents[3]
STAND_IN = """
# A job that needs no cluster: its workers only wait for the request to end.
import sys, time
from perennial.cli.app import app
from perennial.controller import loop
from perennial.controller.context import Workspace
from perennial.errors import Terminated
from perennial.training.ray.preemption import Termination

def train(*_, **__):
    termination = Termination()
    termination.graceful = True
    with termination.handled():
        print("the job trains", file=sys.stderr, flush=True)
        while not termination.requested:
            time.sleep(0.05)
    raise Terminated("stopped on request")

Workspace.use_ray = Workspace.import_model = Workspace.manifests = lambda *_: None
loop.adopt = loop.stage_job = lambda *_: None
loop.train_trunk = train
app(sys.argv[1:])
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    return write_run(tmp_path, tiny_run(tmp_path))


@pytest.mark.parametrize(
    ("kinds", "ready"), [((), "next look in"), (WALK[:4], "the job trains")], ids=["idle", "train"]
)
def test_sigterm_ends_a_watch(
    run_file: Path, tmp_path: Path, kinds: tuple[str, ...], ready: str
) -> None:
    store = open_store(tmp_path / "store")
    ledger = Ledger(store)
    for kind in kinds:
        ledger.append(event_of(kind, ledger.state, "a"))
    process = subprocess.Popen(
        [sys.executable, "-c", STAND_IN, "watch", str(run_file), "--interval", "0.1"],
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{SOURCE}:{TESTS}", "PATH": "/usr/bin:/bin"},
    )
    assert process.stderr is not None
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            assert "failed" not in line, line
            if ready in line:
                break
        process.send_signal(signal.SIGTERM)
        lines += process.communicate(timeout=60)[1].splitlines()
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, "".join(lines)
    assert any("stopped on request" in line for line in lines)
    assert [c.state for c in Ledger(store).read().corpora.values()] == ["training"] * bool(kinds)
