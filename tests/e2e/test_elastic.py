"""Workers, nodes and drivers are killed, nodes come and go; the run ends as if nothing happened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.chaos_run import DisturbedRun, Moment, Victim
from tests.support.cli import perennial
from tests.support.ray_nodes import Nodes, ray_nodes
from tests.support.tiny_run import tiny_run, write_run, write_texts
from tests.support.trained_run import STEPS, Lineage, document

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

SECOND = "checkpoints/01-code"
FIRST = "checkpoints/00-help"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes; a test that ends with another number takes care of it."""
    with ray_nodes(count=2) as nodes:
        yield nodes


@pytest.mark.parametrize("victim", get_args(Victim))
@pytest.mark.parametrize("moment", get_args(Moment))
def test_i9_killed_at_any_moment_it_ends_with_the_same_weights(
    lineage: Lineage, nodes: Nodes, tmp_path: Path, moment: Moment, victim: Victim
) -> None:
    shutil.copytree(lineage.after_first, tmp_path / "store")
    run_file = write_run(tmp_path, document(tmp_path))
    perennial("land", run_file, "code", write_texts(tmp_path)["code"])
    with closing(DisturbedRun(run_file, str(tmp_path / "store"), nodes)) as run:
        run.until(lambda: run.in_the_middle_of(moment, "code", SECOND))
        run.kill(victim)
        assert run.saved(SECOND) < 2 * STEPS
        run.end()
        end = checkpoint.folder_of(SECOND, 2 * STEPS)
        assert _weights(run.store, end) == _weights(lineage.store, end)
        state = Ledger(run.store).read()
        state.validate()
        assert state.corpora["code"].event_kinds.count("started") == 1
    perennial("verify", run_file)


def _weights(store: Store, folder: str) -> dict[str, str]:
    """The digests of a checkpoint's tensors."""
    files = checkpoint.read_manifest(store, folder).files
    return {name: entry.sha256 for name, entry in files.items() if name.endswith(".safetensors")}


RESIZE_STEPS = 400


def _resizable(folder: Path, **training: Any) -> Path:
    """A run file with steps that are long enough to be resized in."""
    run = tiny_run(folder)
    run["model"]["config"] |= {"hidden_size": 128, "intermediate_size": 512}
    run["training"] |= {"checkpoint_every": "10 steps", "keep_last": RESIZE_STEPS} | training
    run["stages"]["budget"] = f"{RESIZE_STEPS} steps"
    folder.mkdir(parents=True, exist_ok=True)
    run_file = write_run(folder, run)
    perennial("land", run_file, "help", write_texts(folder)["help"])
    return run_file


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_file = _resizable(folder, workers=2)
    with closing(DisturbedRun(run_file, str(folder / "store"), nodes)) as run:
        run.end()
        return run.store


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_i9_two_one_two_three_workers_train_the_same(
    nodes: Nodes, undisturbed: Store, tmp_path: Path, zero_stage: int
) -> None:
    workers = {"min": 1, "max": 3, "grow": "at-once"}
    run_file = _resizable(tmp_path, workers=workers, zero_stage=zero_stage)
    store = open_store(tmp_path / "store")
    with closing(DisturbedRun(run_file, store.url, nodes)) as run:
        run.until(lambda: _size(store) == 2)
        nodes.kill(0)
        run.until(lambda: _size(store) == 1)
        nodes.add()
        run.until(lambda: _size(store) == 2)
        nodes.add()
        run.until(lambda: _size(store) == 3)
        run.end()
    nodes.kill(0)
    losses, expected = _losses(store), _losses(undisturbed)
    assert list(losses) == list(range(1, RESIZE_STEPS + 1))
    assert max(abs(losses[step] - expected[step]) for step in expected) < 1e-4
    end = checkpoint.folder_of(FIRST, RESIZE_STEPS)
    seen = checkpoint.read_manifest(store, end).tokens_seen
    assert seen == checkpoint.read_manifest(undisturbed, end).tokens_seen
    perennial("verify", run_file)


def test_i9_groups_of_two_workers_come_and_go_with_their_machines(
    undisturbed: Store, tmp_path: Path
) -> None:
    """Two workers have one model: 2 x 2, 1 x 2 after a machine is gone, and 2 x 2 again."""
    workers = {"min": 2, "max": 4, "grow": "at-once"}
    run_file = _resizable(tmp_path, workers=workers, tensor_parallel=2)
    store = open_store(tmp_path / "store")
    with ray_nodes(count=0) as nodes:
        nodes.add(cpus=2)
        nodes.add(cpus=2)
        with closing(DisturbedRun(run_file, store.url, nodes)) as run:
            run.until(lambda: _size(store) == 4)
            nodes.kill(0)
            run.until(lambda: _size(store) == 2)
            nodes.add(cpus=2)
            run.until(lambda: _size(store) == 4)
            run.end()
        perennial("release", run_file, env=nodes.environment)
    losses, expected = _losses(store), _losses(undisturbed)
    assert list(losses) == list(range(1, RESIZE_STEPS + 1))
    assert max(abs(losses[step] - expected[step]) for step in expected) < 1e-4
    perennial("verify", run_file)


def test_i9_a_stage_goes_on_when_the_run_file_divides_its_model_otherwise(
    undisturbed: Store, tmp_path: Path
) -> None:
    """Workers that read rows of their own x workers of one model: 1 x 2, then 2 x 1, then 2 x 2."""
    run_file = _resizable(tmp_path, workers=2, tensor_parallel=2)
    store = open_store(tmp_path / "store")
    with ray_nodes(count=0) as nodes:
        nodes.add(cpus=4)
        with closing(DisturbedRun(run_file, store.url, nodes)) as run:
            for workers, together in ((2, 1), (4, 2)):
                before = run.saved(FIRST)
                run.until(lambda before=before: run.saved(FIRST) > before)  # type: ignore[misc]
                text = yaml.safe_load(run_file.read_text())
                text["training"] |= {"workers": workers, "tensor_parallel": together}
                run_file.write_text(yaml.safe_dump(text))
                run.kill("driver")
            run.end()
        told = (tmp_path / "driver.log").read_text()
        perennial("release", run_file, env=nodes.environment)
    assert "4 workers" in told
    assert _size(store) == 4
    losses, expected = _losses(store), _losses(undisturbed)
    assert list(losses) == list(range(1, RESIZE_STEPS + 1))
    assert max(abs(losses[step] - expected[step]) for step in expected) < 1e-4
    perennial("verify", run_file)


def test_i9_a_drained_node_leaves_a_checkpoint_before_it_is_gone(
    nodes: Nodes, tmp_path: Path
) -> None:
    run_file = _resizable(
        tmp_path, workers={"min": 1, "max": 2}, checkpoint_every=f"{2 * RESIZE_STEPS} steps"
    )
    store = open_store(tmp_path / "store")
    with closing(DisturbedRun(run_file, store.url, nodes)) as run:
        log = tmp_path / "driver.log"
        run.until(lambda: "00-help  constant" in log.read_text())
        nodes.drain(0, seconds=600)
        run.until(lambda: _size(store) == 2)
        saved = run.saved(FIRST)
        nodes.kill(0)
        run.end()
    nodes.add()
    assert 0 < saved < RESIZE_STEPS
    assert f"1 worker goes on from step {saved}" in log.read_text()
    perennial("verify", run_file)


def _size(store: Store) -> int:
    """How many workers wrote the latest checkpoint."""
    step = checkpoint.latest_step(store, FIRST)
    if step is None:
        return 0
    return checkpoint.read_manifest(store, checkpoint.folder_of(FIRST, step)).world_size


def _losses(store: Store) -> dict[int, float]:
    """The loss after each step, from the checkpoints that it went into."""
    rows = [
        json.loads(line)
        for entry in store.list(FIRST)
        if entry.key.endswith("/metrics.jsonl")
        for line in store.read(entry.key).decode().splitlines()
    ]
    return {row["step"]: row["loss"] for row in rows}
