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
from perennial.corpora import load_tokenizer, read_holdout, read_manifest
from perennial.corpora.document_spans import read_spans
from perennial.store import open_run_store, open_store
from tests.integration.audit.conftest import filled
from tests.integration.audit.test_verify import RELEASE
from tests.support.tiny_run import tiny_run, write_run

PAGE = Path(__file__).parents[3] / "docs" / "guide" / "day-two.md"
HERE = {
    "01-french-4000-anneal400": RELEASE.removeprefix("releases/"),
    "01-french@4000": "00-help@10",
    "01-french": "00-help",
    "french": "help",
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
    manifest = read_manifest(store, "help")
    digest = next(read_spans(store, manifest, [3])).digest
    (tmp_path / "people.txt").write_text(digest)
    held = next(iter(read_holdout(store, manifest)))
    ids = held.tokens[:-1].tolist()
    text = load_tokenizer(store).build().decode(ids, skip_special_tokens=False)
    (tmp_path / "letter.txt").write_text(text)
    verbs = []
    for words in _commands():
        name, *rest = [word.replace("f9b3c0ffee15600d", digest) for word in words]
        if name != "perennial":
            subprocess.run(words, check=True)
            if words[-1] == "other.yaml":
                write_run(tmp_path, tiny_run(tmp_path, "other") | {"name": "other"}, "other.yaml")
            continue
        verbs.append(rest[0])
        if rest[0] == "upgrade" and "--dry-run" not in rest:
            continue  # weights that nobody trained; tests/e2e/test_retrained.py runs it
        if "--from" in rest:
            lost = next(info.key for info in store.list("checkpoints/00-help"))
            store.remove(lost)
        done = CliRunner().invoke(app, rest)
        assert done.exit_code == 0, (words, done.output, done.exception)
        if "--from" in rest:
            assert store.exists(lost)
        if rest[0] == "fork" and "--dry-run" not in rest:
            perennial.open("other.yaml").prepare_tracking()
        if rest[0] == "move" and "--dry-run" not in rest:
            store = open_store(tmp_path / "moved")
            write_run(tmp_path, tiny_run(tmp_path, "moved"))
    assert {
        "doctor",
        "verify",
        "repair",
        "status",
        "plan",
        "rewind",
        "promote",
        "move",
        "fork",
        "gc",
        "trace",
        "erase",
        "upgrade",
    } == {*verbs}
    state = perennial.open(run_file).read_status()
    assert (state.corpora["code"], state.corpora["help"]) == ("held", "erased")
    assert verify(store).findings == []
    assert verify(open_run_store(tmp_path / "other")).findings == []
