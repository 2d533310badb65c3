"""Which models were trained on rows of a corpus: by the plans, as a count of every batch says."""

from __future__ import annotations

import random

import numpy as np
import pytest

from perennial.mixture import ReplayRule, StageMix, stage_mix
from perennial.mixture.batches import Batches
from perennial.mixture.parts import Part
from perennial.runs.state import RunState
from perennial.runs.trunk.containment import Containment, first_step_with
from tests.support.event_factory import released, releasing, rewound, walk


def _counted(mix: StageMix, corpus: str, rows: range) -> int | None:
    """The steps until one of the rows was in a batch, by looking at every batch."""
    sources, taken = Batches(mix, 0).take(mix.steps)
    names = np.array([source.corpus for source in mix.sources])
    hit = (names[sources] == corpus) & np.isin(taken, [*rows])
    steps = np.flatnonzero(hit.any(axis=1))
    return int(steps[0]) + 1 if len(steps) else None


def test_the_first_step_with_a_row_is_that_of_the_batches() -> None:
    draw = random.Random(4)
    history: list[StageMix] = []
    found = 0
    for name in "abcde":
        new = {name: draw.randrange(60, 200)}
        history.append(stage_mix(history, new, draw.randrange(5, 40), 8, ReplayRule(share=0.4)))
        for source in history[-1].sources:
            for _ in range(8):
                first = draw.randrange(source.extent)
                last = min(first + draw.randrange(4), source.extent - 1)
                told = first_step_with(history[-1], source.corpus, [(first, last)])
                assert told == _counted(history[-1], source.corpus, range(first, last + 1))
                found += told is not None
    assert found > 20


def test_rows_of_a_part_are_found_in_that_part_alone() -> None:
    rule = ReplayRule(share=0.0)
    mix = stage_mix([], {"a": [Part("x", 0, 40), Part("y", 40, 40)]}, 10, 8, rule)
    for row in range(80):
        assert first_step_with(mix, "a", [(row, row)]) == _counted(mix, "a", range(row, row + 1))


@pytest.fixture
def state() -> RunState:
    """A trunk of three stages of 80 rows each, with a quarter of replay."""
    run = RunState()
    for corpus in ("a", "b", "c"):
        walk(run, corpus)
    return run


def test_a_stage_a_checkpoint_and_a_release_contain_what_came_before(state: RunState) -> None:
    name = "of-b"
    state.apply(releasing(state, name))
    state.apply(released(name))
    held = Containment(state, "c", [(0, 79)])
    assert held.stages == {"02-c": 21}
    assert not held.has_checkpoint("checkpoints/02-c/00000020")
    assert held.has_checkpoint("checkpoints/02-c/00000021")
    assert not held.has_checkpoint("checkpoints/01-b/00000020")
    assert held.has_branch(name)
    assert not Containment(state, "z", [(0, 79)]).stages
    assert not Containment(state, "z", [(0, 79)]).has_branch(name)


def test_a_stage_that_left_the_trunk_still_contains_it(state: RunState) -> None:
    state.apply(rewound(state.stages[0]))
    held = Containment(state, "b", [(0, 0)])
    assert "01-b" in held.stages
    assert held.has_checkpoint("checkpoints/02-c/00000030"), "its lineage was trained on b"
    assert not held.has(state.stages[0], 10)
