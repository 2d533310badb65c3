"""Stages in the workers of the stage before, one of which is killed, beside stages of new ones."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoints
from tests.support.cli import perennial, perennial_json, start
from tests.support.tiny_run import tiny_run, write_run, write_texts

STEPS, EVERY = 400, 20
NAMES = ("help", "code", "more")
STAGES = tuple(f"{number:02d}-{name}" for number, name in enumerate(NAMES))


@pytest.mark.long
def test_i9_stages_in_workers_that_stay_are_bitwise_those_in_new_ones(tmp_path: Path) -> None:
    run_files = {arm: _land(tmp_path / arm, idle) for arm, idle in (("warm", 30), ("cold", 0))}
    workers = _run_and_kill(run_files["warm"], in_stage=STAGES[1])
    assert workers[0] == workers[1], "the second stage begins in the workers of the first"
    assert not workers[1] & workers[2], "the group of the killed worker started again"
    assert workers[2] == workers[3], "and the third stage begins in its workers"
    perennial("run", run_files["cold"])

    warm, cold = (open_store(tmp_path / arm / "store") for arm in ("warm", "cold"))
    for number, stage in enumerate(STAGES):
        end = checkpoints.folder_of(f"checkpoints/{stage}", STEPS * (number + 1))
        expected = _weights(cold, end)
        for name, tensor in _weights(warm, end).items():
            assert torch.equal(tensor, expected[name]), (stage, name)
        seen = [checkpoints.read_manifest(store, end).tokens_seen for store in (warm, cold)]
        assert seen[0] == seen[1]
        numbers = [_numbers(store, stage) for store in (warm, cold)]
        assert numbers[0] == numbers[1]
        assert [step for step, _ in numbers[0]] == [STEPS * number + n + 1 for n in range(STEPS)]
    told = [perennial_json("status", run_files[arm])["times"] for arm in ("warm", "cold")]
    assert [[time["starts"] for time in times] for times in told] == [[1, 2, 1], [1, 1, 1]]
    states = [Ledger(store).read() for store in (warm, cold)]
    assert states[0].stages[2].mix == states[1].stages[2].mix
    perennial("verify", run_files["warm"])


def _land(folder: Path, idle_minutes: int) -> Path:
    """A run of three corpora, of which one is the end of another."""
    folder.mkdir()
    run = tiny_run(folder)
    run["training"] |= {"idle_minutes": idle_minutes, "checkpoint_every": f"{EVERY} steps"}
    run["stages"] = {"budget": f"{STEPS} steps"}
    run_file = write_run(folder, run)
    texts = write_texts(folder)
    lines = texts["code"].read_text().splitlines(keepends=True)
    texts["more"] = folder / "more.jsonl"
    for name, part in (("more", lines[len(lines) // 2 :]), ("code", lines[: len(lines) // 2])):
        texts[name].write_text("".join(part))
    for name in NAMES:
        perennial("land", run_file, name, texts[name])
    return run_file


def _run_and_kill(run_file: Path, in_stage: str) -> list[set[int]]:
    """Run all stages, and kill a worker in the middle of one.

    Returns:
        The processes of the workers in the first steps of every stage, and after the kill.
    """
    lines: list[str] = []
    workers: list[set[int]] = []
    begun: set[str] = set()
    is_killed = False
    with start("run", run_file) as process:
        for line in process.stderr or ():
            lines.append(line)
            step = re.search(r"^(\d\d-\w+) .* step ([\d,]+)/", line)
            if step and step[1] not in begun:
                begun.add(step[1])
                workers.append(_workers(process.pid))
            if step and step[1] == in_stage and int(step[2]) > 2 * EVERY and not is_killed:
                is_killed = True  # behind a checkpoint: before, the stage would begin again
                psutil.Process(min(workers[-1])).send_signal(signal.SIGKILL)
            elif re.search(rf"^{in_stage}: 2 workers go on from step", line):
                workers.append(_workers(process.pid))
    assert process.returncode == 0, "".join(lines)[-4000:]
    return workers


def _workers(pid: int) -> set[int]:
    children = psutil.Process(pid).children(recursive=True)
    return {each.pid for each in children if "RayTrainWorker" in " ".join(each.cmdline())}


def _weights(store: Store, end: str) -> dict[str, torch.Tensor]:
    key = checkpoints.read_manifest(store, end).key_of(end, "model.safetensors")
    weights: dict[str, torch.Tensor] = load_file(Path(store.url) / key)
    return weights


def _numbers(store: Store, stage: str) -> list[tuple[int, str]]:
    """Step, and what was computed in it, of every step of a stage."""
    _, rows = checkpoints.kept_rows(store, f"checkpoints/{stage}")
    kept = ("loss", "gradient_norm", "eta", "tokens_seen")
    return [(row["step"], json.dumps([row[name] for name in kept])) for row in rows]
