"""Stages that are measured while the next one trains: killed, compared, and stopped by a gate."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from perennial.runs.event_codec import decode
from perennial.runs.events import Evaluated, Started
from perennial.runs.ledger import FOLDER, Ledger
from perennial.runs.state import RunState
from perennial.store import Log, Store, open_store
from perennial.training.checkpoint import manifest as checkpoints
from tests.support.cli import perennial, perennial_json, start
from tests.support.three_stages import NAMES, STAGES, land_three, numbers_of, weights

pytestmark = pytest.mark.long
STEPS, EVERY = 200, 20
BESIDE = {"beside_training": True}


def test_i9_stages_that_are_measured_beside_the_next_are_bitwise_those_measured_before_it(
    tmp_path: Path,
) -> None:
    often = {"checkpoint_every": f"{EVERY} steps"}
    apart = land_three(tmp_path / "apart", STEPS, training=often)
    beside = land_three(tmp_path / "beside", STEPS, training=often, evaluation=BESIDE)
    stores = [open_store(tmp_path / arm / "store") for arm in ("apart", "beside")]
    perennial("run", apart)
    _run_until(beside, lambda: _are_at(Ledger(stores[1]).read(), "evaluating", "training"))
    assert perennial_json("status", beside)["next"] == [f"train code while {STAGES[0]} is measured"]
    _run_until(
        beside, lambda: len(checkpoints.committed_steps(stores[1], f"checkpoints/{STAGES[1]}")) > 2
    )
    perennial("run", beside)

    states = [Ledger(store).read() for store in stores]
    for number, stage in enumerate(STAGES):
        end = checkpoints.folder_of(f"checkpoints/{stage}", STEPS * (number + 1))
        expected = weights(stores[0], end)
        for name, tensor in weights(stores[1], end).items():
            assert torch.equal(tensor, expected[name]), (stage, name)
        assert numbers_of(stores[0], stage) == numbers_of(stores[1], stage)
    assert states[0].own_losses == states[1].own_losses
    for name in NAMES:
        assert states[1].corpora[name].state == "passed"
        assert states[1].corpora[name].event_kinds.count("started") == 1
    assert _is_second_begun_before_first_is_measured(stores[1])
    assert not _is_second_begun_before_first_is_measured(stores[0])
    perennial("verify", beside)


def test_a_broken_gate_ends_the_stage_behind_whose_corpus_another_one_takes(
    tmp_path: Path,
) -> None:
    stages = {"corpora": {"more": {"budget": "100000 steps"}}, "budget": f"{EVERY} steps"}
    run_file = land_three(
        tmp_path / "run", EVERY, stages=stages, evaluation=BESIDE, gates={"min_gain": 50}
    )
    store = open_store(tmp_path / "run" / "store")
    perennial("run", run_file, code=1)
    assert perennial_json("status", run_file)["gated"]["stage"] == STAGES[1]
    state = Ledger(store).read()
    assert [stage.name for stage in state.stages] == [*STAGES[:2]]
    (left,) = state.abandoned
    assert (left.name, left.start) == (STAGES[2], state.ends[STAGES[1]])
    assert [state.corpora[name].state for name in NAMES] == ["passed", "gated", "ready"]
    assert left.first_step <= (checkpoints.latest_step(store, left.folder) or 0) < left.last_step

    perennial("refuse", run_file, "code")
    perennial("run", run_file, "stages.corpora.more.budget=20 steps", "gates.min_gain=null")
    state = Ledger(store).read()
    assert [stage.name for stage in state.stages] == [STAGES[0], "03-more"]
    assert state.stages[1].start == state.ends[STAGES[0]]
    assert state.corpora["more"].state == "passed"
    perennial("verify", run_file)


def _run_until(run_file: Path, condition: Callable[[], bool]) -> None:
    """Run, and kill every process of it as soon as the condition holds."""
    process = start("run", run_file)
    try:
        while not condition():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)  # polling a condition
    finally:
        root = psutil.Process(process.pid)
        for each in [*root.children(recursive=True), root]:
            each.kill()
        process.communicate()


def _are_at(state: RunState, *at: str) -> bool:
    """Whether the stages that have not passed are in these states."""
    return at == tuple(state.corpora[stage.corpora[0]].state for stage in state.unfinished)


def _is_second_begun_before_first_is_measured(store: Store) -> bool:
    events = [decode(data).event for _, data in Log(store, FOLDER).tail(0)]
    begun = next(
        place for place, event in enumerate(events)
        if isinstance(event, Started) and event.stage == STAGES[1]
    )  # fmt: skip
    measured = next(place for place, event in enumerate(events) if isinstance(event, Evaluated))
    return begun < measured
