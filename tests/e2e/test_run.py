"""The main job, as a person runs it: corpora land one by one, everything is killed in between."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import psutil
import pytest

from perennial.config import load_run
from perennial.controller.context import Workspace
from perennial.corpora import read_manifest
from perennial.evaluation.kept_samples import read_samples
from perennial.report.publish import catch_up
from perennial.runs.ledger import Ledger
from perennial.store import open_store
from perennial.telemetry.mlflow_observer import MlflowObserver
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.tiny_run import SEQUENCE_LENGTH, write_run, write_texts
from tests.support.trained_run import STEPS, Lineage, document


def test_each_corpus_that_landed_became_one_stage(lineage: Lineage) -> None:
    state = Ledger(lineage.store).read()
    state.validate()
    assert [stage.name for stage in state.stages] == ["00-help", "01-code"]
    assert [corpus.state for corpus in state.corpora.values()] == ["passed", "passed"]
    assert lineage.first_run["trained"] == 1


def test_i7_the_second_stage_stays_constant_and_replays_a_quarter(lineage: Lineage) -> None:
    first, second = Ledger(lineage.store).read().stages
    end = checkpoint.read_manifest(lineage.store, f"checkpoints/01-code/{2 * STEPS:08d}")
    assert second.start == f"checkpoints/00-help/{STEPS:08d}"
    assert second.schedule == first.schedule == end.schedule
    assert (end.phase, end.eta) == ("constant", 1.65e-3)
    counts = {source.corpus: source.sequences for source in second.mix.sources}
    assert counts == {"code": 6 * STEPS, "help": 2 * STEPS}
    assert end.tokens_seen == {
        "help": (8 + 2) * STEPS * SEQUENCE_LENGTH,
        "code": 6 * STEPS * SEQUENCE_LENGTH,
    }


def test_the_optimizer_is_reset_at_the_joint(lineage: Lineage) -> None:
    manifest = checkpoint.read_manifest(lineage.store, f"checkpoints/01-code/{2 * STEPS:08d}")
    assert manifest.optimizer_steps == STEPS


def test_only_the_ends_of_phases_and_the_last_checkpoints_stay(lineage: Lineage) -> None:
    steps = checkpoint.committed_steps(lineage.store, "checkpoints/00-help")
    assert {6 + 1, 6 + 36 + 1, STEPS} <= set(steps)
    # One more at most; a busy machine skips those that nothing needs.
    assert len(steps) <= 4


def test_the_matrix_holds_every_stage_on_every_corpus(lineage: Lineage) -> None:
    stages = lineage.evaluation["matrix"]["stages"]
    assert [set(stage["losses"]) for stage in stages] == [{"help", "code"}] * 2
    for stage in stages:
        for loss in stage["losses"].values():
            assert 0 < loss["nats_per_token"] < 6
            assert loss["bits_per_byte"] > 0
    forgetting = stages[1]["forgetting"]["help"]
    after, before = (stage["losses"]["help"]["nats_per_token"] for stage in reversed(stages))
    assert forgetting == pytest.approx(after - before)
    assert stages[1]["adaptation"] < stages[0]["losses"]["code"]["nats_per_token"]


def test_the_release_is_a_hugging_face_folder_with_its_lineage(lineage: Lineage) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(lineage.store.url) / lineage.release["folder"]
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer("import this", return_tensors="pt").input_ids
    assert model(ids).logits.shape[-1] == model.config.vocab_size
    assert tokenizer.decode(ids[0]) == "import this"
    assert tokenizer.eos_token == "<|endoftext|>"
    card = (folder / "README.md").read_text()
    assert "| 00-help | 0 | 60 | help " in card
    assert "| 01-code | 60 | 60 | code " in card
    for corpus in ("help", "code"):
        digest = read_manifest(lineage.store, corpus).digest
        assert any(f"| {corpus} | " in line and digest in line for line in card.splitlines())
    samples = lineage.release["samples"]
    assert {sample["corpus"] for sample in samples} == {"help", "code", ""}
    assert [sample["prompt"] for sample in samples if not sample["corpus"]] == ["import"]


def test_i7_the_anneal_ends_at_eta_min_and_leaves_the_trunk_alone(lineage: Lineage) -> None:
    branch = f"branches/{lineage.release['name']}/{2 * STEPS + 4:08d}"
    manifest = checkpoint.read_manifest(lineage.store, branch)
    assert (manifest.phase, manifest.eta) == ("anneal", 3e-4)
    assert manifest.optimizer_steps == STEPS + 4
    assert checkpoint.latest_step(lineage.store, "checkpoints/01-code") == 2 * STEPS


def test_the_local_task_is_scored_with_its_standard_error(lineage: Lineage) -> None:
    (scores,) = lineage.evaluation["scores"].values()
    assert scores
    for score in scores:
        assert "reason" not in score
        assert 0 <= score["value"] <= 1
        assert score["stderr"] > 0


def test_a_stage_is_held_against_the_scores_of_the_checkpoint_that_it_started_from(
    lineage: Lineage,
) -> None:
    state = Ledger(lineage.store).read()
    assert state.verdicts["00-help"] == []
    verdicts = {each.subject: each for each in state.verdicts["01-code"]}
    assert set(verdicts) == {"continuation_help", "continuation_code"}
    for task, verdict in verdicts.items():
        before, after = (
            next(score for score in state.stage_scores[stage] if score["task"] == task)
            for stage in ("00-help", "01-code")
        )
        assert verdict.gate == "tasks.max_drop"
        assert verdict.value == pytest.approx(before["value"] - after["value"])
        assert verdict.stderr == after["stderr_of_change"], "over items paired"
        assert after["stderr_of_change"] is not None
        assert verdict.holds


def test_every_stage_writes_from_the_same_prompts(lineage: Lineage) -> None:
    held = Ledger(lineage.store).read().stage_samples
    samples = {name: read_samples(lineage.store, held[name]) for name in held}
    first, second = ([s.prompt for s in samples[name]] for name in ("00-help", "01-code"))
    assert second[: len(first)] == first
    assert first[0] == "import"
    assert all(sample.text for sample in samples["01-code"])


def test_mlflow_has_one_run_a_stage_below_the_lineage(lineage: Lineage) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{lineage.store.url}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("perennial")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"tiny", "00-help", "01-code", f"release-{lineage.release['name']}"}
    tags, metrics = runs["tiny"].data.tags, runs["tiny"].data.metrics
    assert (tags["perennial.state"], tags["perennial.queue"]) == ("waiting", "-")
    assert (metrics["queue/length"], metrics["queue/data_lag_seconds"]) == (0, 0)
    assert metrics["queue/landed_to_trained_seconds"] > 0
    parent = runs.pop("tiny").info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}
    stage = runs["01-code"]
    losses = client.get_metric_history(stage.info.run_id, "train/loss")
    assert [point.step for point in losses] == list(range(STEPS + 1, 2 * STEPS + 1))
    by_tokens = client.get_metric_history(stage.info.run_id, "versus_tokens/train/loss")
    assert [point.step for point in by_tokens] == [p.step * 8 * SEQUENCE_LENGTH for p in losses]
    assert stage.info.run_id == Ledger(lineage.store).read().stages[1].tracking_run
    version = client.get_model_version_by_alias("tiny", "stage-01-code")
    assert version.tags["perennial.release"] == lineage.release["name"]
    pictures = _artifacts(lineage, parent)
    assert {"matrix.png", "matrix.json", "learning-rate.png", "tokens.png"} <= pictures
    for name in ("00-help", "01-code", f"release-{lineage.release['name']}"):
        scored = runs[name].data.metrics
        assert any(each.startswith("tasks/") and each.endswith("_stderr") for each in scored)
        assert "samples.txt" in _artifacts(lineage, runs[name].info.run_id)


def _artifacts(lineage: Lineage, run_id: str) -> set[str]:
    """Return the names of a run's artifacts, which lie beside the database."""
    folder = Path(lineage.store.url) / "mlflow" / "artifacts" / run_id / "artifacts"
    return {file.name for file in folder.iterdir()}


def test_an_mlflow_that_was_lost_is_filled_again_from_the_store(
    lineage: Lineage, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    document = load_run(lineage.run_file, [f"tracking.uri={uri}"])
    for _ in range(2):
        mlflow = MlflowObserver()
        work = Workspace(document, "", [mlflow])
        work.ledger.read()
        assert catch_up(work, mlflow.tracker(work)) == ["00-help", "01-code"]
        work.close()
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("perennial")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    release = f"release-{lineage.release['name']}"
    assert set(runs) == {"tiny", "00-help", "01-code", release}
    for name, first, last in (("01-code", STEPS, 2 * STEPS), (release, 2 * STEPS, 2 * STEPS + 4)):
        points = client.get_metric_history(runs[name].info.run_id, "train/loss")
        assert [point.step for point in points] == list(range(first + 1, last + 1))
    assert len(client.search_model_versions("name = 'tiny'")) == 1


def test_running_again_does_nothing(lineage: Lineage) -> None:
    before = [(entry.key, entry.etag) for entry in lineage.store.list("")]
    again = perennial_json("run", lineage.run_file)
    assert again["trained"] == 0
    made = perennial_json("release", lineage.run_file)
    assert made["name"] == lineage.release["name"]
    after = [(entry.key, entry.etag) for entry in lineage.store.list("")]
    assert after == before


def test_status_tells_the_whole_story(lineage: Lineage) -> None:
    told = perennial_json("status", lineage.run_file)
    assert told["corpora"] == {"help": "passed", "code": "released"}
    assert told["trunk"] == {"stage": "01-code", "step": 2 * STEPS, "phase": "constant"}
    assert told["tokens"]["01-code"]["replayed"] == {"help": 2 * STEPS * SEQUENCE_LENGTH}
    assert told["next"] == []
    assert told["times"][1]["starts"] == 1
    shown = perennial("status", lineage.run_file, env={"COLUMNS": "80", "LINES": "24"})
    assert len(shown.splitlines()) < 24, "one screen"
    for words in ("00-help", "01-code", f"release {lineage.release['name']}"[:30], "goodput"):
        assert words in shown


@pytest.mark.long
def test_i9_killed_in_the_middle_of_a_stage_it_ends_with_the_same_weights(
    lineage: Lineage, tmp_path: Path
) -> None:
    """kill -9 of the driver, Ray and every worker; then the same command again."""
    shutil.copytree(lineage.after_first, tmp_path / "store")
    run_file = write_run(tmp_path, document(tmp_path))
    perennial("land", run_file, "code", write_texts(tmp_path)["code"])
    store = open_store(tmp_path / "store")

    process = start("run", run_file)
    while checkpoint.latest_step(store, "checkpoints/01-code") is None:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)  # polling a condition: the first checkpoint of the stage
    _kill_all(process.pid)
    process.communicate()

    killed_at = checkpoint.latest_step(store, "checkpoints/01-code")
    assert killed_at is not None
    assert killed_at < 2 * STEPS
    assert Ledger(store).read().corpora["code"].state == "training"

    assert perennial_json("run", run_file)["trained"] == 1
    end = f"checkpoints/01-code/{2 * STEPS:08d}"
    undisturbed = checkpoint.read_manifest(lineage.store, end).files
    resumed = checkpoint.read_manifest(store, end).files
    weights = [name for name in undisturbed if name.endswith(".safetensors")]
    assert len(weights) == 3
    for name in weights:
        assert resumed[name].sha256 == undisturbed[name].sha256
    state = Ledger(store).read()
    state.validate()
    assert state.corpora["code"].event_kinds.count("started") == 1


def _kill_all(pid: int) -> None:
    """SIGKILL to a process and everything that it started, workers first seen to last."""
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        process.kill()
