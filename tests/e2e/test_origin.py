"""A trunk from a stored model: the base is a node of the run, local and in S3 (I8, I11)."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from perennial.evaluation.kept_samples import read_samples
from perennial.runs.event_codec import decode
from perennial.runs.events import Imported, Measured
from perennial.runs.ledger import FOLDER, Ledger
from perennial.store import Log, Store, open_store
from tests.support.cli import perennial, perennial_json, start
from tests.support.tiny_run import SEQUENCE_LENGTH, tiny_run, write_run, write_texts


def _store_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = CONFIG_MAPPING["gpt_neox"](
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _document(folder: Path, store: str) -> dict[str, Any]:
    """A first stage at a rate that wrecks the first layer of a stored model; `code` is a proxy."""
    task = Path(__file__).parents[2] / "pipelines" / "tasks" / "continuation"
    document = tiny_run(folder, store)
    document["model"] = {"path": str(folder / "model"), "inherit_layers": 1}
    document["schedule"] = {"kind": "constant", "eta_const": 1.0, "warmup": "0 steps"}
    document["stages"] |= {"corpora": {"code": {"role": "replay"}}, "budget": "6 steps"}
    document["gates"] = {"max_forgetting": 0.1, "min_gain": 0.0}
    document["evaluation"] |= {"tasks": [str(task)], "trunk_tasks": True, "prompts": ["import"]}
    return document


def _failing(*words: object, env: dict[str, str]) -> Any:
    """The JSON document of a command that ends with code 1."""
    process = start(*words, "--json", env=env)
    out, err = process.communicate()
    assert process.returncode == 1, (out, err)
    return json.loads(out)


def _events(store: Store, kind: type) -> list[Any]:
    told = [decode(data).event for data in Log(store, FOLDER).entries().values()]
    return [event for event in told if isinstance(event, kind)]


def _kill_while_the_base_is_measured(run_file: Path, env: dict[str, str]) -> None:
    process = start("run", run_file, env=env)
    assert process.stderr is not None
    line = next(line for line in process.stderr if "measuring the base" in line)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert "help" in line


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_i11_the_base_is_measured_once_and_a_wrecked_first_stage_fails_its_gates(
    tmp_path: Path, store_url: str, ray_head: dict[str, str]
) -> None:
    env = {**ray_head, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    _store_model(tmp_path / "model")
    run_file = write_run(tmp_path, _document(tmp_path, store_url))
    texts = write_texts(tmp_path)
    perennial("land", run_file, "help", texts["help"], env=env)
    assert "replays code, which has not landed" in perennial("run", run_file, env=env, code=2)
    perennial("land", run_file, "code", texts["code"], env=env)
    perennial("ingest", run_file, env=env)
    _kill_while_the_base_is_measured(run_file, env)
    store = open_store(store_url)
    assert _events(store, Measured) == []
    done = _failing("run", run_file, env=env)

    names = [event.name for event in _events(store, Imported)]
    assert sorted(names) == ["base", "reference"]
    measured = [(event.stage, set(event.losses)) for event in _events(store, Measured)]
    assert sorted(measured) == [("base", {"help", "code"}), ("reference", {"help", "code"})]
    origins = {row["model"]: row["losses"] for row in done["matrix"]["origins"]}
    (stage,) = done["matrix"]["stages"]
    base, after = origins["base"]["code"], stage["losses"]["code"]
    assert stage["forgetting"]["code"] == after["nats_per_token"] - base["nats_per_token"]
    assert stage["forgetting_stderr"]["code"] > 0, "over documents paired with the base's"
    verdicts = {(v["gate"], v["subject"]): v["holds"] for v in done["gated"]["verdicts"]}
    assert verdicts == {("max_forgetting", "code"): False, ("min_gain", "help"): False}
    assert done["tokens"]["00-help"] == {
        "new": 36 * SEQUENCE_LENGTH,
        "new_by_corpus": {"help": 36 * SEQUENCE_LENGTH},
        "replayed": {"code": 12 * SEQUENCE_LENGTH},
    }
    state = Ledger(store).read()
    assert state.base is not None
    assert {score["task"] for score in state.base.scores} == {
        "continuation_help",
        "continuation_code",
    }
    assert {sample.prompt for sample in read_samples(store, state.base.samples)} >= {"import"}

    perennial("accept", run_file, "help", env=env)
    perennial("land", run_file, "late", texts["code"], env=env)
    again = _failing("run", run_file, "gates.min_gain=null", env=env)
    later = [event for event in _events(store, Measured) if event.stage == "base"][1:]
    assert [set(event.losses) for event in later] == [{"late"}]
    assert [score["task"] for event in later for score in event.scores] == ["continuation_late"]
    assert {"help", "code", "late"} == set(again["matrix"]["origins"][0]["losses"])
    perennial("accept", run_file, "late", env=env)
    _check_what_is_told(run_file, store, env)


def _check_what_is_told(run_file: Path, store: Store, env: dict[str, str]) -> None:
    """The card, the report, the status, MLflow and verify name the base."""
    release = perennial_json("release", run_file, env=env)
    assert set(release["losses"]) == {"help", "late", "code"}
    path = str(run_file.parent / "model")
    card = store.read(f"{release['folder']}/README.md").decode()
    assert f"the base `{path}`, its first 1 layers" in card
    assert "| base | " in card
    assert "a proxy for what the base was trained on" in card
    page = run_file.parent / "page.html"
    perennial("report", run_file, "--output", page, env=env)
    assert "random weights" not in page.read_text()
    assert path in page.read_text()
    assert "replayed, never a stage" in page.read_text()
    assert "\nbase " in perennial("status", run_file, env=env)
    assert _of_mlflow(env, "base", "heldout/help") == [0]
    compared = perennial_json("compare", run_file, env=env)
    assert compared["runs"][0]["models"][0]["name"] == "base"
    assert perennial_json("verify", run_file, env=env)["holds"]
    store.write("models/reference/config.json", b"{}")
    (found,) = _failing("verify", run_file, env=env)["findings"]
    assert found["key"] == "models/reference/config.json"


def _of_mlflow(env: dict[str, str], run: str, metric: str) -> list[int]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(env["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("perennial")
    assert experiment is not None
    (found,) = [
        each for each in client.search_runs([experiment.experiment_id]) if each.info.run_name == run
    ]
    return [point.step for point in client.get_metric_history(found.info.run_id, metric)]
