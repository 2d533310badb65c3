"""Local files of workers that were killed, in a folder that machines may share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.training.checkpoint import writer


@pytest.fixture
def dead() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_is_surely_left_over_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: int
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    boot = writer._this_boot()
    host = boot.rpartition("-")[0]
    names = {
        f"{boot}-{dead}-a": "killed",
        f"{host}-0000-{os.getpid()}-b": "of this machine before it was started again",
        f"{boot}-{os.getpid()}-c": "at work",
        f"another-host-{dead}-d": "of a machine that shares the folder",
        f"another_host-{boot.rpartition('-')[2]}-{dead}-e": "of a pod on this machine",
    }
    for name in names:
        (tmp_path / f"perennial-checkpoint-{name}").mkdir()
    writer._remove_left_over()
    left = {names[path.name.removeprefix("perennial-checkpoint-")] for path in tmp_path.iterdir()}
    assert left == {
        "at work",
        "of a machine that shares the folder",
        "of a pod on this machine",
    }
