"""A run on corpora that are packed by best fit: from the run file to the rows of its metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perennial.corpora import read_manifest
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json
from tests.support.tiny_run import SEQUENCE_LENGTH, tiny_run, write_run, write_texts

pytestmark = pytest.mark.long


def test_padding_is_counted_at_ingest_and_at_every_step_and_proved(tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    document["corpora"]["packing"] = "best-fit"
    document["training"]["mask"] = "document"
    document["stages"]["budget"] = "100%"
    run_file = write_run(tmp_path, document)
    code = write_texts(tmp_path)["code"]
    short = tmp_path / "short.jsonl"
    lines = [line for line in code.read_text().splitlines() if len(line) < 700][:300]
    short.write_text("\n".join(lines) + "\n")
    perennial("land", run_file, "code", short)
    assert perennial_json("ingest", run_file)["corpora"] == {"code": "ready"}
    store = open_store(tmp_path / "store")
    manifest = read_manifest(store, "code")
    padding = manifest.counts.padding_tokens
    assert 0 < padding < manifest.counts.row_tokens
    notes = perennial_json("plan", run_file)["notes"]
    assert f"code: {manifest.describe_packing()}" in notes
    perennial("run", run_file)
    step = checkpoint.latest_step(store, "checkpoints/00-code")
    assert step is not None
    key = checkpoint.folder_of("checkpoints/00-code", step)
    rows = checkpoint.read_rows(store, key, checkpoint.read_manifest(store, key))
    batch = 8 * SEQUENCE_LENGTH
    assert all(0 < row["padding_tokens"] < row["batch_tokens"] == batch for row in rows)
    left_out = manifest.rows - 8 * len(rows)
    told = sum(row["padding_tokens"] for row in rows)
    assert told <= padding <= told + left_out * SEQUENCE_LENGTH
    assert rows[-1]["loss"] < rows[0]["loss"]
    traced = perennial_json("trace", run_file, "--step", str(rows[-1]["step"]))
    assert traced["stage"] == "00-code"
    spans = traced["documents"]
    told = sum(span["tokens"] for span in spans)
    assert told == batch - rows[-1]["padding_tokens"]
    assert not perennial_json("verify", run_file)["findings"]
    assert json.loads((tmp_path / "store/corpora/code/manifest.json").read_text())["counts"]
