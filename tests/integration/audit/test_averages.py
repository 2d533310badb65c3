"""A release that is an average: `verify` makes its weights again from the checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from perennial.audit.verify import verify
from perennial.config import RunSpec
from perennial.corpora import load_tokenizer
from perennial.corpora.release_tokenizer import release_files
from perennial.runs.averaging import read_average
from perennial.runs.events import Released, Releasing
from perennial.runs.ledger import Ledger, now
from perennial.runs.stage_planner import decide_average
from perennial.store import Store, open_store
from perennial.training.checkpoint.manifest import committed_steps, digest
from perennial.training.model.export import export
from tests.integration.audit.conftest import filled
from tests.support.tiny_run import tiny_run


@pytest.fixture
def averaged(finished: dict[str, bytes], tmp_path: Path) -> tuple[Store, Releasing]:
    """A finished run with the average of its last four checkpoints, of both stages."""
    store = filled(open_store(tmp_path / "store"), finished)
    ledger = Ledger(store)
    stages = ledger.read().stages
    held = [(stage, step) for stage in stages for step in committed_steps(store, stage.folder)]
    spec, asked = RunSpec.model_validate(tiny_run(tmp_path)), read_average("last:4:linear")
    decided = decide_average(spec, held, asked, now())
    assert decided.average is not None
    assert len({member.stage for member in decided.average.of}) == 2
    ledger.append(decided)
    folder, files = f"releases/{decided.name}", release_files(load_tokenizer(store))
    export(store, decided.source, folder, files, "A card.", decided.average.sources)
    ledger.append(
        Released(
            at=now(),
            name=decided.name,
            source=decided.source,
            folder=folder,
            steps=0,
            schedule={},
            losses={},
            samples=[],
        )
    )
    return store, decided


def _findings(store: Store) -> list[str]:
    return [str(finding) for finding in verify(store).findings]


def test_it_holds_also_where_retention_has_removed_a_checkpoint(
    averaged: tuple[Store, Releasing],
) -> None:
    store, decided = averaged
    assert decided.average is not None
    made = load_file(Path(store.url, "releases", decided.name, "model.safetensors"))
    shares = np.array([1, 2, 3, 4], np.float32)
    steps = np.array([member.step for member in decided.average.of], np.float32)
    assert (made["w"] == (steps * shares).sum() / np.float32(10)).all()
    assert _findings(store) == []
    # Retention keeps the end of a stage.
    ends = {stage.folder: stage.last_step for stage in Ledger(store).read().stages}
    store.remove(next(m.source for m in decided.average.of if m.step not in ends.values()))
    assert _findings(store) == []


def test_other_weights_are_found_though_their_digest_is_right(
    averaged: tuple[Store, Releasing],
) -> None:
    store, decided = averaged
    file = Path(store.url, "releases", decided.name, "model.safetensors")
    where = f"releases/{decided.name}/manifest.json"
    save_file({"w": load_file(file)["w"] + 1}, file, {"format": "pt"})
    manifest = json.loads(store.read(where))
    entry = {"size_bytes": file.stat().st_size, "sha256": digest(file)}
    manifest["files"]["model.safetensors"] = entry
    store.write(where, json.dumps(manifest).encode())
    (finding,) = _findings(store)
    assert finding.startswith(f"{where}: sha256 of model.safetensors: it has")


@pytest.mark.parametrize(
    ("name", "value"),
    [("average", {"checkpoints/01-code/00000024": 1.0}), ("average", 3), ("tokens_seen", {"a": 1})],
)
def test_what_it_says_of_itself_is_held_against_the_ledger(
    averaged: tuple[Store, Releasing], name: str, value: Any
) -> None:
    store, decided = averaged
    where = f"releases/{decided.name}/manifest.json"
    store.write(where, json.dumps(json.loads(store.read(where)) | {name: value}).encode())
    assert any(finding.startswith(f"{where}: {name}: it has") for finding in _findings(store))
