"""A run whose disk is too small: one line each time, and the same weights once there is room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perennial.runs.ledger import Ledger
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.small_disk import remount, small_disk
from tests.support.tiny_run import tiny_run, write_run, write_texts

FIRST_KB, MORE_KB = 600, 300
"""what a part of the ingest needs, and how much more room there is each time"""


def _run_file(folder: Path, store: Path) -> Path:
    document: dict[str, Any] = tiny_run(folder, str(store))
    document["training"] |= {"workers": 1, "micro_batch": 8, "checkpoint_every": "3 steps"}
    folder.mkdir(exist_ok=True)
    return write_run(folder, document)


def _weights(store: Path) -> dict[str, str]:
    opened = open_store(store)
    (end,) = Ledger(opened).read().ends.values()
    files = checkpoint.read_manifest(opened, end).files
    return {name: file.sha256 for name, file in files.items() if name.endswith(".safetensors")}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_on_a_disk_that_fills_up_goes_on_whenever_there_is_more_room(tmp_path: Path) -> None:
    text = write_texts(tmp_path)["help"]
    with small_disk(tmp_path / "disk", FIRST_KB) as disk:
        run_file = _run_file(tmp_path / "small", disk / "store")
        perennial("land", run_file, "help", text)
        messages: list[str] = []
        size_kb = FIRST_KB
        while not any("checkpoints/00-help" in line for line in messages):
            process = start("run", run_file, "--json")
            out, err = process.communicate()
            assert process.returncode == 1, err[-4000:]
            assert "Traceback" not in err
            error = json.loads(out)["error"]
            assert error["code"] == "storage-full"
            assert err.splitlines()[-1] == f"perennial: {error['message']}"
            messages.append(error["message"])
            size_kb += MORE_KB
            remount(disk, f"size={size_kb}k")
        assert "corpora/help" in messages[0]
        assert all("No space left on device" in line and "free room" in line for line in messages)
        remount(disk, "size=64m")
        perennial("run", run_file)
        states = perennial_json("status", run_file)["corpora"]
        assert states == {"help": "passed"}
        proof = perennial_json("verify", run_file)
        assert (proof["holds"], proof["findings"]) == (True, [])
        # A failure of the machine's may be recorded; a lack of room never is.
        written = open_store(disk / "store")
        texts = [written.read(info.key) for info in written.list("failures")]
        assert not any(b"No space left" in text for text in texts)
        weights = _weights(disk / "store")
    undisturbed = _run_file(tmp_path / "large", tmp_path / "large" / "store")
    perennial("land", undisturbed, "help", text)
    perennial("run", undisturbed)
    assert weights == _weights(tmp_path / "large" / "store")
