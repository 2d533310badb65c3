"""The plan: which sequences make up step s, for any history, share and number of workers."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.mixture import StageMix, branch_mix, seen_sequences, stage_mix
from perennial.mixture.plan import apportion


@st.composite
def lineages(draw: st.DrawFn) -> list[StageMix]:
    """One to four stages with any budgets, shares and corpus sizes."""
    global_batch = draw(st.sampled_from([1, 4, 6, 16]))
    history: list[StageMix] = []
    for index in range(draw(st.integers(1, 4))):
        steps = draw(st.integers(1, 40))
        rows = draw(st.integers(1, 2 * steps * global_batch))
        share = draw(st.sampled_from([0.0, 0.05, 0.25, 1 / 3, 0.5, 1.0]))
        history.append(stage_mix(history, f"c{index}", rows, steps, global_batch, share))
    return history


@given(lineages())
def test_every_batch_holds_its_shares_within_one_sequence(history: list[StageMix]) -> None:
    for mix in history:
        before = mix.taken(0)
        assert before == (0,) * len(mix.sources)
        for step in range(mix.steps):
            after = mix.taken(step + 1)
            counts = [b - a for a, b in zip(before, after, strict=True)]
            assert sum(counts) == mix.global_batch
            for count, source in zip(counts, mix.sources, strict=True):
                assert count >= 0
                assert abs(count - source.sequences / mix.steps) < 1
            before = after


@given(lineages())
def test_the_union_over_a_stage_is_its_budget_and_nothing_repeats_before_a_wrap(
    history: list[StageMix],
) -> None:
    for mix in history:
        taken: dict[int, list[int]] = {}
        for step in range(mix.steps):
            for index, row in mix.rows(step):
                taken.setdefault(index, []).append(row)
        for index, source in enumerate(mix.sources):
            rows = taken.get(index, [])
            expected = [(source.start + i) % source.extent for i in range(source.sequences)]
            assert rows == expected
            times = Counter(rows)
            often = [times[row] for row in range(source.extent)] if rows else [0]
            assert max(often) - min(often) <= 1
        assert sum(len(rows) for rows in taken.values()) == mix.steps * mix.global_batch


@given(lineages())
def test_replay_goes_on_where_the_last_one_stopped(history: list[StageMix]) -> None:
    replayed: dict[str, int] = {}
    for mix in history:
        for source in mix.sources[1:]:
            assert source.start == replayed.get(source.corpus, 0) % source.extent
            replayed[source.corpus] = replayed.get(source.corpus, 0) + source.sequences


@given(lineages(), st.sampled_from([0.0, 0.1, 0.9]))
def test_adding_a_stage_never_changes_what_earlier_steps_saw(
    history: list[StageMix], share: float
) -> None:
    before = [mix.to_dict() for mix in history]
    stage_mix(history, "later", 100, 5, history[0].global_batch, share)
    assert [mix.to_dict() for mix in history] == before


@given(lineages(), st.data())
def test_i2_the_position_is_a_pure_function_of_history_and_step(
    history: list[StageMix], data: st.DataObject
) -> None:
    mix = history[-1]
    restored = StageMix.from_dict(json.loads(json.dumps(mix.to_dict())))
    steps = data.draw(st.lists(st.integers(0, mix.steps - 1), min_size=1, max_size=5))
    assert [restored.rows(step) for step in steps] == [mix.rows(step) for step in steps]


@settings(max_examples=30)
@given(st.integers(10**5, 10**7), st.integers(0, 10**7))
def test_i2_a_seek_far_into_a_large_plan_agrees_with_counting_on(steps: int, at: int) -> None:
    batch = 1104
    first = stage_mix([], "a", steps * batch, steps, batch, 0.05)
    mix = stage_mix([first], "b", steps * batch, steps, batch, 0.05)
    at %= steps
    here, there = mix.taken(at), mix.taken(min(at + 50, steps))
    counted = Counter(i for step in range(at, min(at + 50, steps)) for i, _ in mix.rows(step))
    assert tuple(counted[i] for i in range(len(here))) == tuple(
        b - a for a, b in zip(here, there, strict=True)
    )
    assert mix.taken(steps) == tuple(source.sequences for source in mix.sources)


def test_the_papers_three_stage_shares_are_reproduced() -> None:
    """Two stages of 300 : 100 with 5% replay have seen 305 : 95, so the third's 5% is split so."""
    batch, scale = 1000, 1000
    first = stage_mix([], "pile", 10**9, 300 * scale, batch, 0.05)
    second = stage_mix([first], "sp1", 10**9, 100 * scale, batch, 0.05)
    seen = seen_sequences([first, second])
    assert seen == {"pile": 305 * scale * batch, "sp1": 95 * scale * batch}
    third = stage_mix([first, second], "sp2", 10**9, 100 * scale, batch, 0.05)
    budget = third.steps * batch
    shares = {source.corpus: source.sequences / budget for source in third.sources}
    assert shares == {"sp2": 0.95, "pile": 0.038125, "sp1": 0.011875}


def test_a_branch_goes_on_where_its_stage_stopped() -> None:
    first = stage_mix([], "a", 100, 10, 8, 0.25)
    second = stage_mix([first], "b", 100, 10, 8, 0.25)
    branch = branch_mix([first, second], 5)
    assert {s.corpus: s.sequences for s in branch.sources} == {"b": 30, "a": 10}
    assert {s.corpus: s.start for s in branch.sources} == {"b": 60, "a": 20}


def test_without_an_earlier_corpus_nothing_is_replayed() -> None:
    mix = stage_mix([], "a", 80, 10, 8, 0.9)
    assert [source.corpus for source in mix.sources] == ["a"]


def test_a_mix_that_does_not_fill_its_batches_is_refused() -> None:
    whole = stage_mix([], "a", 80, 10, 8, 0.0)
    with pytest.raises(ValueError, match="sources give 80 sequences, the stage has 11 x 8"):
        StageMix("a", 11, 8, whole.sources)


@given(
    st.integers(0, 10**9),
    st.dictionaries(st.text(max_size=3), st.integers(0, 10**9), min_size=1, max_size=6),
)
def test_apportioned_numbers_add_up_and_are_within_one(
    total: int, weights: dict[str, int]
) -> None:
    counts = apportion(total, weights)
    weight = sum(weights.values())
    if not weight:
        assert set(counts.values()) == {0}
        return
    assert sum(counts.values()) == total
    for name, count in counts.items():
        assert abs(count * weight - total * weights[name]) < weight
