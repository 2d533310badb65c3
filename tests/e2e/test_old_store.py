"""A run that version 0.1 began is continued to its end, verified, reported and released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.runs.ledger import Ledger
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.old_store import read_expected, unpack_old_store

pytestmark = pytest.mark.usefixtures("ray_local")


def _run(*words: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


@pytest.mark.long
def test_the_run_goes_on_as_the_old_code_did(tmp_path: Path) -> None:
    old, expected = unpack_old_store(tmp_path), read_expected()
    before = _ledger(old.folder)
    assert _run("run", old.run_file, old.override)["trained"] == 1

    events = _ledger(old.folder)
    assert events[: len(before)] == before, "what was written stays"
    assert [event["kind"] for event in events] == [event["kind"] for event in expected["events"]]
    by_kind = {event["kind"]: event for event in events}
    for wanted in expected["events"][len(before) :]:
        event = by_kind[wanted["kind"]]
        for field in {*wanted} - {"at", "controller", "losses", "samples", "schema"}:
            assert event[field] == wanted[field], (wanted["kind"], field)
        for corpus, loss in wanted.get("losses", {}).items():
            measured = event["losses"][corpus]
            assert measured["nats_per_token"] == pytest.approx(loss["nats_per_token"], abs=1e-4)
            for field in ("documents", "tokens", "bytes"):
                assert measured[field] == loss[field]

    state = Ledger(old.store).read()
    end = checkpoint.read_manifest(old.store, state.ends["01-code"])
    sequences = {source.corpus: source.sequences for source in state.stages[1].mix.sources}
    assert sequences == {"code": 2400, "help": 800}
    assert end.tokens_seen == {"code": 2400 * 128, "help": (96 + 800) * 128}
    if (_processor(), torch.__version__.split("+")[0]) == (
        expected["processor"],
        expected["torch"],
    ):
        assert end.files["model.safetensors"].sha256 == expected["model_sha256"]

    assert _run("release", old.run_file, old.override)["name"] == "01-code-412-anneal4"
    verification = _run("verify", old.run_file, old.override)
    assert (verification["holds"], verification["findings"]) == (True, [])
    page = tmp_path / "page.html"
    _run("report", old.run_file, old.override, "--output", page)
    for name in ("00-help", "01-code", "00-help-12-anneal4", "01-code-412-anneal4"):
        assert name in page.read_text()


def _ledger(store: Path) -> list[dict[str, Any]]:
    """Return the ledger's events as they are stored, in order."""
    return [json.loads(file.read_text()) for file in sorted((store / "ledger").glob("*.json"))]


def _processor() -> str:
    """Return the processor's name, which decides PyTorch's kernels and the last digits."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return ""
