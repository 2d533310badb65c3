"""A search for the next stage: branches off one trunk checkpoint, and a stage that goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.runs.ledger import Ledger
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.tiny_run import write_run, write_texts
from tests.support.trained_run import STEPS, Lineage, document


@pytest.mark.long
def test_a_search_advises_a_fragment_and_the_stage_goes_on_from_its_trial(
    lineage: Lineage, ray_head: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(lineage.after_first, tmp_path / "store")
    run_file = write_run(tmp_path, document(tmp_path))
    perennial("land", run_file, "code", write_texts(tmp_path)["code"])
    tuning_file = tmp_path / "tuning.yaml"
    search = {"name": "small", "run": str(run_file), "budget": "16 steps"}
    space = {"eta_const": [5e-4, 3e-3], "replay": [0.5]}
    halving = {"halving": {"first": "8 steps", "factor": 2}}
    tuning_file.write_text(yaml.safe_dump(search | space | halving))
    store = open_store(tmp_path / "store")

    found = perennial_json("tune", tuning_file, env=ray_head)

    assert [trial["point"]["eta"] for trial in found["trials"]] == [5e-4, 3e-3]
    assert sorted(trial["steps"] for trial in found["trials"]) == [8, 16]
    first, second = (trial["values"] for trial in found["trials"])
    assert first != second
    best = found["trials"][found["knee"]]
    manifest = checkpoint.read_manifest(store, best["checkpoints"][0])
    assert (manifest.step, manifest.optimizer_steps) == (STEPS + 16, 16)
    assert found["cost"]["trained_tokens"] == (2 * 8 + 8) * 8 * 128
    assert store.exists("searches/small/pareto.png")

    runs = MlflowClient(f"sqlite:///{tmp_path}/store/mlflow/mlflow.db").search_runs(["1"])
    named = {run.info.run_name: run for run in runs}
    parent = named["tune-small"].info.run_id
    under = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent]
    assert len(under) == 2
    assert all({"adaptation", "forgetting", "train/loss"} <= set(r.data.metrics) for r in under)

    events = len(store.list("ledger"))
    again = perennial_json(
        "tune", tuning_file, env=ray_head
    )  # nothing is trained or measured again
    assert again == found
    assert len(store.list("ledger")) == events + 1  # the new claim

    command = found["advice"][1]["command"].split()
    assert command[:2] == ["perennial", "run"]
    process = start(*command[1:], env=ray_head)
    _, told = process.communicate()
    assert process.returncode == 0, told[-4000:]
    assert f"step {STEPS + 16} of trial" in told
    assert "16 steps are not trained again" in told
    state = Ledger(store).read()
    state.validate()
    stage = state.stage("01-code")
    share = best["point"]["replay"]
    assert (stage.mix.replay.share, stage.schedule["eta_const"]) == (share, best["point"]["eta"])
    end = checkpoint.read_manifest(store, state.ends[stage.name])
    assert (end.step, end.optimizer_steps, end.name) == (2 * STEPS, STEPS, "01-code")
    assert perennial_json("verify", run_file)["findings"] == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"after": "00-help@7"}, "after: 00-help@7 is of the cooldown phase"),
        ({"after": "00-help@8"}, "after: there is no checkpoint 00-help@8; give one of 00-help@7"),
        ({"after": "07-none"}, "after: '07-none' is not a finished stage; give one of 00-help"),
        ({"corpus": "prose"}, "corpus: prose is there that 00-help has not trained"),
        ({"after": "01-code"}, "corpus: no corpus is there that 01-code has not trained"),
        ({"budget": "4 steps"}, "budget: 4 steps are not more than the 6 of the warmup"),
        ({"budget": "10 tokens"}, "budget: 10 tokens is less than one step of 1,024 tokens"),
        ({"budget": "90 steps"}, "budget: 90 steps is 90 steps, and the stage itself has 60"),
        ({"halving": {"first": "50%"}}, "halving.first: 50% is 30 steps, and the budget only 20"),
        ({"eta_max": [1e-3]}, "eta_max: a search under the schedule infinite varies eta_const"),
        ({"eta_max": {"low": 1e-4, "high": 1e-3}, "searcher": "random", "trials": 3}, "eta_max: "),
        ({"eta_const": [1e-2]}, "eta_const 0.01 is outside eta_min 0.0003 .. eta_max 0.003"),
        (
            {"objectives": ["adaptation", "forgetting/prose"]},
            "objectives: there is no objective 'forgetting/prose'",
        ),
        ({"concurrent": 50}, "concurrent: 50 trials of 1.8 CPUs each need 90 CPUs"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_is_trained(
    lineage: Lineage, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    events = len(lineage.store.list("ledger"))
    search = {"name": "s", "run": str(lineage.run_file), "budget": "20 steps", "replay": [0.1]}
    tuning_file = tmp_path / "tuning.yaml"
    tuning_file.write_text(yaml.safe_dump(search | {"after": "00-help"} | changes))
    done = CliRunner().invoke(app, ["tune", str(tuning_file)])
    assert done.exit_code == 2, (done.output, done.exception)
    assert told in " ".join(done.stderr.split())
    assert len(done.stderr.strip().splitlines()) == 1
    assert len(lineage.store.list("ledger")) == events
