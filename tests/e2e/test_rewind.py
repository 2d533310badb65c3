"""A trunk that is taken back on a real cluster: the same plan gives the same weights again (I9)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from perennial.runs.ledger import Ledger
from perennial.store import open_store
from perennial.training.checkpoint.manifest import committed_steps, read_manifest
from tests.support import trained_run as shared
from tests.support.cli import perennial, perennial_json
from tests.support.tiny_run import write_run
from tests.support.trained_run import Lineage


@pytest.mark.long
def test_a_stage_goes_on_from_its_middle_to_the_same_weights(
    lineage: Lineage, ray_head: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(lineage.folder / "store", tmp_path / "store")
    run_file, store = write_run(tmp_path, shared.document(tmp_path)), open_store(tmp_path / "store")
    former = Ledger(store).read().stages[1]
    middle = committed_steps(store, former.folder)[0]
    assert former.first_step < middle < former.last_step
    done = perennial_json("rewind", run_file, f"{former.name}@{middle}")
    assert (done["left"], done["goes_on"]) == (["01-code"], ["code"])
    told = perennial_json("run", run_file, env=ray_head)
    assert told["trained"] == 1
    state = Ledger(store).read()
    assert [stage.name for stage in state.stages] == ["00-help", "02-code"]
    first, second = (read_manifest(store, state.ends[name]) for name in ("01-code", "02-code"))
    assert second.files["model.safetensors"] == first.files["model.safetensors"]
    assert second.tokens_seen == first.tokens_seen
    assert perennial_json("verify", run_file)["holds"]

    # To the end of the first stage; the corpus waits, and is trained anew from there.
    assert perennial_json("rewind", run_file, "00-help")["held"] == ["code"]
    assert perennial_json("run", run_file, env=ray_head)["trained"] == 0
    perennial("retry", run_file, "code", "--replay", "0.5")
    perennial("run", run_file, env=ray_head)
    stage = Ledger(store).read().stages[1]
    assert (stage.name, stage.mix.replay.share) == ("03-code", 0.5)
    assert stage.start == state.ends["00-help"]
    assert perennial_json("verify", run_file)["holds"]
