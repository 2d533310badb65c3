"""Stages in the workers of the stage before, one of which is killed, beside stages of new ones."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psutil
import pytest
import torch

from perennial.runs.ledger import Ledger
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoints
from tests.support.cli import perennial, perennial_json, start
from tests.support.three_stages import STAGES, land_three, numbers_of, weights

STEPS, EVERY = 400, 20


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
        expected = weights(cold, end)
        for name, tensor in weights(warm, end).items():
            assert torch.equal(tensor, expected[name]), (stage, name)
        seen = [checkpoints.read_manifest(store, end).tokens_seen for store in (warm, cold)]
        assert seen[0] == seen[1]
        numbers = [numbers_of(store, stage) for store in (warm, cold)]
        assert numbers[0] == numbers[1]
        assert [step for step, _ in numbers[0]] == [STEPS * number + n + 1 for n in range(STEPS)]
    told = [perennial_json("status", run_files[arm])["times"] for arm in ("warm", "cold")]
    assert [[time["starts"] for time in times] for times in told] == [[1, 2, 1], [1, 1, 1]]
    states = [Ledger(store).read() for store in (warm, cold)]
    assert states[0].stages[2].mix == states[1].stages[2].mix
    perennial("verify", run_files["warm"])


def _land(folder: Path, idle_minutes: int) -> Path:
    training = {"idle_minutes": idle_minutes, "checkpoint_every": f"{EVERY} steps"}
    return land_three(folder, STEPS, training=training)


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
