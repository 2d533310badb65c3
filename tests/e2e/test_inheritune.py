"""A search for layers, killed in the middle and repeated, and a run that starts from its child."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.ray_nodes import kill_tree
from tests.support.tiny_run import tiny_run, write_run, write_texts

STEPS = 24
TOKENS = STEPS * 8 * 128


def _document(folder: Path) -> dict[str, Any]:
    document = tiny_run(folder)
    document["model"]["config"]["num_hidden_layers"] = 3
    document["training"] |= {"workers": 1, "micro_batch": 8}
    document["stages"]["budget"] = f"{STEPS} steps"
    return document


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_killed_search_for_layers_goes_on_and_a_run_starts_from_its_child(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    run_file = write_run(tmp_path, _document(tmp_path))
    perennial("land", run_file, "help", write_texts(tmp_path)["help"])
    perennial("run", run_file, env=ray_head)
    tuning_file = tmp_path / "tuning.yaml"
    search = {"name": "few", "run": str(run_file), "inheritune": {"first": 1, "margin": 9.0}}
    tuning_file.write_text(yaml.safe_dump(search))
    store = open_store(tmp_path / "store")
    planned = perennial_json("tune", tuning_file, "--dry-run", env=ray_head)
    assert [child["layers"] for child in planned["children"]] == [1]

    process = start("tune", tuning_file, env=ray_head)
    while len(_measured(store)) < 1:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)  # polling a condition
    kill_tree(psutil.Process(process.pid))
    process.communicate()
    before = _measured(store)
    found = perennial_json("tune", tuning_file, env=ray_head)

    assert {name: _measured(store)[name] for name in before} == before
    inherited, random = found["children"]
    assert (inherited["init"], random["init"], found["smallest"]) == ("inherited", "random", 0)
    assert inherited["low"] < inherited["above"] < inherited["high"]
    assert inherited["above"] < random["above"]
    assert found["cost"]["trained_tokens"] == 2 * TOKENS
    end = checkpoint.read_manifest(store, inherited["checkpoints"][0])
    assert (end.step, end.optimizer_steps, end.tokens_seen) == (STEPS, STEPS, {"help": TOKENS})
    assert store.exists("searches/few/layers.png")
    events = len(store.list("ledger"))
    assert perennial_json("tune", tuning_file, env=ray_head) == found
    assert len(store.list("ledger")) == events + 1  # the new claim
    assert perennial_json("verify", run_file)["findings"] == []
    perennial("report", run_file, env=ray_head)
    assert "Search: few" in store.read("report/report.html").decode()
    _start_from(found, tmp_path, ray_head)


def _measured(store: Store) -> dict[str, Any]:
    trials = Ledger(store).read().searches.trials
    return {name: trial.tried for name, trial in trials.items() if trial.tried}


def _start_from(found: Any, folder: Path, env: dict[str, str]) -> None:
    """Train a run from the child by the command that the search gave."""
    command = found["command"].replace("name=NAME", "name=child")
    command = command.replace("store=STORE", f"store={folder}/other")
    words = command.split()[2:]
    perennial("land", *words[:1], "help", folder / "help.jsonl", f"store={folder}/other")
    perennial("run", *words, env=env)
    state = Ledger(open_store(folder / "other")).read()
    assert state.stages[0].name == "00-help"
    manifest = checkpoint.read_manifest(open_store(folder / "other"), state.ends["00-help"])
    assert manifest.step == STEPS
