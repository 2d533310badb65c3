"""`perennial plan`: what is known before compute, and what is refused; it reads only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.cli.look.plan import curve
from perennial.runs.ledger import Ledger
from tests.support.cli import SOURCE, perennial_json
from tests.support.small_models import small_model
from tests.support.tiny_run import SEQUENCE_LENGTH, tiny_run, write_run, write_texts
from tests.support.trained_run import STEPS, Lineage

PIPELINES = Path(__file__).parents[2] / "pipelines"


def _plan(*words: object) -> Any:
    done = CliRunner().invoke(app, ["plan", *(str(word) for word in words), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def _refused(*words: object) -> str:
    done = CliRunner().invoke(app, ["plan", *(str(word) for word in words)])
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    assert "Traceback" not in done.output
    return done.stderr


@pytest.mark.parametrize(
    ("recipe", "parameters", "gpu_hours"),
    [("paper-405m", 405_334_016, 3_633), ("paper-10b", 9_642_249_216, 80_640)],
)
def test_the_papers_recipes_are_planned_to_the_step_and_the_token(
    tmp_path: Path, recipe: str, parameters: int, gpu_hours: int
) -> None:
    told = _plan(PIPELINES / f"{recipe}.yaml", f"store={tmp_path / 'store'}")
    assert told["model"]["parameters"] == parameters
    first, second = told["stages"]
    assert (first["steps"], first["tokens"]) == (132_366, 299_278_467_072)
    new, replayed = second["sources"]
    assert (new["corpus"], replayed["corpus"]) == ("slimpajama", "pile")
    assert second["displaced_tokens"] == replayed["tokens"]
    assert replayed["tokens"] == round(0.05 * 132_366 * 1104) * 2048
    assert new["tokens"] + replayed["tokens"] == second["tokens"]
    # tokens x FLOPs a token / (40% of 312 TFLOP/s), in hours
    flops = told["totals"]["tokens"] * told["flops_per_token"]
    assert told["totals"]["gpu_hours"] == pytest.approx(flops / (0.4 * 312e12) / 3600)
    assert round(told["totals"]["gpu_hours"]) == gpu_hours
    host, disk = told["host"], told["disk"]
    assert host["workers"] == 8
    assert host["total"] > host["start"] > 8 * 4 * parameters, "each worker builds the model"
    kept = sum(stage["checkpoints"] for stage in told["stages"])
    assert disk["store"] == (kept + 1) * told["checkpoint_bytes"]
    assert disk["node"] > disk["snapshot"] > 2 * parameters
    assert not (tmp_path / "store").exists()


def test_the_rates_are_told_by_phase_and_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "rate.png"
    told = _plan(PIPELINES / "paper-405m-infinite.yaml", "--picture", picture)
    rows = [(p["phase"], p["first_step"], p["last_step"], p["eta_last"]) for p in told["phases"]]
    assert rows == [
        ("warmup", 0, 442, 3e-4),
        ("cooldown", 443, 26_979, 1.65e-4),
        ("constant", 26_980, 44_228, 1.65e-4),
        ("constant", 44_229, 88_457, 1.65e-4),
        ("constant", 88_458, 132_686, 1.65e-4),
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_before_anything_landed_a_plan_is_for_the_corpora_that_the_file_names(
    tmp_path: Path,
) -> None:
    document = tiny_run(tmp_path) | {
        "stages": {"budget": "100%", "corpora": {"code": {"budget": "12 steps"}, "help": {}}}
    }
    told = _plan(write_run(tmp_path, document))
    assert [(*s["corpora"], s["basis"], s["steps"]) for s in told["stages"]] == [
        ("code", "planned", 12)
    ]
    assert told["unknown"] == ["help"]
    assert told["speed"] is None
    assert told["stages"][0]["seconds"] is None


def test_a_release_is_planned_by_source_under_its_mixture(tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    document["stages"]["corpora"] = {"code": {}, "help": {"budget": "20 steps"}}
    run_file = write_run(tmp_path, document)
    by_stage = _plan(run_file)["annealed"]
    assert [(s["corpus"], s["tokens"] // SEQUENCE_LENGTH) for s in by_stage] == [
        ("help", 24),
        ("code", 8),
    ]
    balanced = _plan(run_file, "release.mixture=balanced")["annealed"]
    assert {s["corpus"]: s["tokens"] // SEQUENCE_LENGTH for s in balanced} == {
        "code": 16,
        "help": 16,
    }
    still_to_land = _plan(run_file, "release.mixture={code: 1, later: 2}")
    assert still_to_land["annealed"] == []
    assert "cannot take later: the trunk has not trained on it" in still_to_land["notes"][-1]
    assert "release.mixture" in _refused(run_file, "release.mixture=newest")


def test_a_run_from_a_stored_model_is_told_what_it_copies_and_what_its_first_stage_lacks(
    tmp_path: Path,
) -> None:
    whole = small_model("gpt_neox", vocab_size=300, max_position_embeddings=SEQUENCE_LENGTH)
    whole.save_pretrained(tmp_path / "model")
    document = tiny_run(tmp_path) | {"model": {"path": str(tmp_path / "model")}}
    document["stages"] |= {"corpora": {"code": {"budget": "40 steps"}}}
    document["schedule"]["warmup"] = "1%"
    run_file = write_run(tmp_path, document)
    told = _plan(run_file)
    parameters = whole.num_parameters()
    assert told["disk"]["initial_model"] == 4 * parameters
    lacks, warmup, reason = told["notes"]
    assert "replays nothing of what that was trained on" in lacks
    assert "at its peak after 0 of 40 steps" in warmup
    assert "its peak much" in reason
    inherited = _plan(run_file, "model.inherit_layers=1", "stages.corpora.web.role=replay")
    assert 4 * parameters < inherited["disk"]["initial_model"] < 8 * parameters
    assert not any("replays nothing" in note for note in inherited["notes"])
    assert [s["corpus"] for s in inherited["stages"][0]["sources"]] == ["code", "web"]


def test_it_needs_neither_ray_nor_deepspeed(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    code = (
        "import sys\n"
        "from perennial.cli.app import app\n"
        f"app(['plan', {str(run_file)!r}], standalone_mode=False)\n"
        "loaded = {'ray', 'deepspeed', 'mlflow', 'lm_eval'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert "to do       0 steps" in done.stdout
    assert "main memory of a node of 2 workers, GiB" in done.stdout


MUON = ["training.optimizer={kind: muon}", "training.zero_stage=0"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["stages.budget=10 tokens"], "less than one step"),
        (["schedule.warmup=9 steps"], "do not fit into a first stage of 12 steps"),
        (["replay={weighting: fixed, weights: {hlep: 1}}"], "replay.weights.hlep: no corpus"),
        (["training.global_batch=1"], "use a global_batch of at least 2"),
        (["model.config.hidden_size=33"], "model.config"),
        (["model.config.vocab_size=200"], "vocab_size: 200 is not a number of at least"),
        (["tokenizer={path: /no/such/tokenizer.json}"], "tokenizer.path: "),
        (["training.micro_batch=4", "--gpu-memory", "0.1"], None),
        (["model.config.hidden_size=8192", "--gpu-memory", "1"], "a GPU would need"),
        (["training.optimizer={kind: muon}"], "set zero_stage to 0"),
        (MUON, None),
        (
            [*MUON, "model.config.hidden_size=8192", "--gpu-memory", "1"],
            "the optimizer adamw, which ZeRO divides",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_compute(
    tmp_path: Path, words: list[str], told: str | None
) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    text = write_texts(tmp_path)["help"]
    assert CliRunner().invoke(app, ["land", str(run_file), "help", str(text)]).exit_code == 0
    if told is None:
        assert _plan(run_file, *words)["stages"]
    else:
        assert told in _refused(run_file, *words)


def test_after_a_run_the_speed_is_measured_and_a_checkpoint_is_what_it_was_planned_to_be(
    lineage: Lineage,
) -> None:
    run_file = lineage.run_file
    told = perennial_json("plan", run_file, "stages.corpora={more: {budget: 20 steps}}")
    assert [(s["stage"], s["first_step"], s["steps"]) for s in told["stages"]] == [
        ("02-more", 2 * STEPS, 20)
    ]
    assert told["speed"]["source"].startswith("measured over ")
    tokens = 20 * 8 * SEQUENCE_LENGTH
    assert told["totals"]["seconds"] == pytest.approx(tokens / told["speed"]["tokens_per_second"])
    state = Ledger(lineage.store).read()
    stored = lineage.store.list(state.ends["01-code"])
    tensors = sum(f.size_bytes for f in stored if f.key.endswith(".safetensors"))
    assert tensors == pytest.approx(told["checkpoint_bytes"], rel=0.1)  # headers are 10% of it


def test_the_curve_is_as_high_as_its_highest_value() -> None:
    assert curve([0.0, 1.0, 2.0], 2) == ["  █", " ██"]
    assert curve([0.0, 0.0], 1) == [""]


def test_a_fleet_is_simulated_with_costs_that_say_where_they_were_measured(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    costs = tmp_path / "costs.yaml"
    words = ["simulate", run_file, "--costs", costs, "--preemptions-per-hour", 2, "--seeds", 3]
    missing = CliRunner().invoke(app, [str(word) for word in words])
    assert (missing.exit_code, "there is no such file" in missing.stderr) == (2, True)
    costs.write_text("{step_seconds: 0.5, checkpoint_seconds: 1, restart_seconds: 20, source: a}")
    done = CliRunner().invoke(app, [*map(str, words), "--measured", "0.5", "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    told = json.loads(done.stdout)
    assert told["source"] == "a"
    assert told["error"] == pytest.approx(told["goodput"]["mean"] - 0.5)
    assert told["best"]["goodput"]["mean"] >= told["goodput"]["mean"]
    assert told["best"]["workers"]["max"] == 2


def test_a_share_that_is_measured_later_is_planned_with_the_most(tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    document["replay"]["share"] = "auto"
    own = {"a": {}, "b": {}, "c": {"replay": 0.1}}
    document["stages"] |= {"corpora": own}
    first, second, third = _plan(write_run(tmp_path, document))["stages"]
    assert (first["displaced_tokens"], first["share_reason"]) == (0, "")
    assert second["displaced_tokens"] == 24 * SEQUENCE_LENGTH  # a quarter of 12 batches of 8
    assert second["share_reason"].startswith("decided when the stage begins, between 5% and 25%")
    assert third["displaced_tokens"] == 10 * SEQUENCE_LENGTH
    assert third["share_reason"] == ""
    shown = CliRunner().invoke(app, ["plan", str(tmp_path / "run.yaml")]).stdout
    assert "01-b: replay share decided when the stage begins" in shown
