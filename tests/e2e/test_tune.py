"""A search for the next stage: four branches off one trunk checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from perennial.stages.ledger import Ledger
from perennial.store import open_store
from perennial.training import checkpoint
from tests.command import perennial, perennial_json
from tests.lineage import STEPS, Lineage, document
from tests.tiny import write_run, write_texts


def test_four_trials_give_four_points_and_their_front(lineage: Lineage, tmp_path: Path) -> None:
    shutil.copytree(lineage.after_first, tmp_path / "store")
    run_file = write_run(tmp_path, document(tmp_path))
    perennial("land", run_file, "code", write_texts(tmp_path)["code"])
    tuning_file = tmp_path / "tuning.yaml"
    search = {"name": "small", "run": str(run_file), "budget": "6 steps"}
    grid = {"eta_const": [5e-4, 3e-3], "replay": [0.0, 0.5]}
    tuning_file.write_text(yaml.safe_dump(search | grid))

    points = perennial_json("tune", tuning_file)["points"]

    assert [(p["eta"], p["replay"]) for p in points] == [
        (5e-4, 0.0), (5e-4, 0.5), (3e-3, 0.0), (3e-3, 0.5)
    ]  # fmt: skip
    assert len({p["adaptation"] for p in points}) == 4
    for point in points:
        beaten = any(
            other["adaptation"] <= point["adaptation"]
            and other["forgetting"] <= point["forgetting"]
            and other != point
            for other in points
        )
        assert point["on_front"] is not beaten
    store = open_store(tmp_path / "store")
    for point in points:
        manifest = checkpoint.read_manifest(store, point["checkpoint"])
        assert (manifest.step, manifest.optimizer_steps) == (STEPS + 6, 6)
    state = Ledger(store).read()
    state.validate()
    assert [stage.name for stage in state.stages] == ["00-help"]
    assert state.corpora["code"].state == "ready"
