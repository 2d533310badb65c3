"""The commands of the page `Day two`, one after the other, on a finished run in a folder."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import perennial
from perennial.audit.verify import verify
from perennial.cli.app import app
from perennial.store import open_run_store, open_store
from tests.integration.audit.conftest import filled
from tests.integration.audit.test_verify import RELEASE
from tests.support.tiny_run import tiny_run, write_run

PAGE = Path(__file__).parents[3] / "docs" / "guide" / "day-two.md"
HERE = {
    "01-french-4000-anneal400": RELEASE.removeprefix("releases/"),
    "01-french@4000": "00-help@10",
    "01-french": "00-help",
}
"""what the page names, and what this run has"""


def _commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [[HERE.get(word, word) for word in shlex.split(line, comments=True)] for line in lines]


@pytest.mark.long
def test_every_command_does_what_the_page_says(
    finished: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = filled(open_store(tmp_path / "store"), finished)
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    perennial.open(run_file).prepare_tracking()
    verbs = []
    for words in _commands():
        name, *rest = words
        if name != "perennial":
            subprocess.run(words, check=True)
            if words[-1] == "other.yaml":
                write_run(tmp_path, tiny_run(tmp_path, "other") | {"name": "other"}, "other.yaml")
            continue
        verbs.append(rest[0])
        if rest[0] == "repair":
            lost = next(info.key for info in store.list("checkpoints/00-help"))
            store.remove(lost)
        done = CliRunner().invoke(app, rest)
        assert done.exit_code == 0, (words, done.output, done.exception)
        if rest[0] == "repair":
            assert store.exists(lost)
        if rest[0] == "move" and "--dry-run" not in rest:
            store = open_store(tmp_path / "moved")
            write_run(tmp_path, tiny_run(tmp_path, "moved"))
    assert {"verify", "repair", "status", "plan", "rewind", "promote", "move", "fork", "gc"} == {
        *verbs
    }
    state = perennial.open(run_file).read_status()
    assert state.corpora["code"] == "held"
    assert verify(store).findings == []
    assert verify(open_run_store(tmp_path / "other")).findings == []
