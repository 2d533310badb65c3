"""The plan: which sequences make up step s, for any history, share and number of workers."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.mixture import ReplayRule, StageMix, branch_mix, seen_sequences, stage_mix
from perennial.mixture.batches import Batches
from perennial.mixture.policies import CorpusHistory
from perennial.mixture.replay import PartKey, apportion, raise_to_minimum, split_replay


def rows(mix: StageMix, step: int) -> list[tuple[int, int]]:
    """The batch of `step` as (source index, row), as the counts before and after it define it."""
    before, after = mix.count_taken(step), mix.count_taken(step + 1)
    return [
        (index, (source.start + taken) % source.extent)
        for index, source in enumerate(mix.sources)
        for taken in range(before[index], after[index])
    ]


RECENT_HALF = ReplayRule(share=0.5, weighting="recent")


def whole(
    weighting: str, weights: dict[str, float] | None = None, max_epochs: int | None = None
) -> ReplayRule:
    """Return a rule of nothing but replay."""
    return ReplayRule(share=1.0, weighting=weighting, weights=weights or {}, max_epochs=max_epochs)


def rules() -> st.SearchStrategy[ReplayRule]:
    """Any rule, over the corpora c0 to c3, one that never comes, and proxies that may be there."""
    names = st.sampled_from(["c0", "c1", "c2", "c3", "p0", "other"])
    return st.builds(
        ReplayRule.model_construct,  # any weights with any policy, as a stored rule may have
        share=st.sampled_from([0.0, 0.05, 0.25, 1 / 3, 0.5, 1.0]),
        weighting=st.sampled_from(["seen", "seen", "uniform", "recent", "fixed"]),
        weights=st.dictionaries(names, st.sampled_from([0, 0.1, 0.2, 1, 3])),
        max_epochs=st.sampled_from([None, None, 1, 2]),
        minimum=st.sampled_from([0.0, 0.0, 0.1, 0.3, 1.0]),
        groups=st.sampled_from([(), (), ("c",), ("c?", "p"), ("c1", "?"), ("x",)]),
        proxies=st.sampled_from([{}, {}, {"p0": 7}, {"p0": 7, "p1": 150}]),
    )


@st.composite
def lineages(draw: st.DrawFn) -> list[StageMix]:
    """One to four stages of one to three new corpora, any budgets, rules and corpus sizes."""
    global_batch = draw(st.sampled_from([1, 4, 6, 16]))
    history: list[StageMix] = []
    for index in range(draw(st.integers(1, 4))):
        steps = draw(st.integers(1, 40))
        names = ["", "x", "y"][: draw(st.sampled_from([1, 1, 2, 3]))]
        sizes = st.integers(1, 2 * steps * global_batch)
        new = {f"c{index}{name}": draw(sizes) for name in names}
        history.append(stage_mix(history, new, steps, global_batch, draw(rules())))
    return history


@given(lineages())
def test_every_batch_holds_its_shares_within_one_sequence(history: list[StageMix]) -> None:
    for mix in history:
        before = mix.count_taken(0)
        assert before == (0,) * len(mix.sources)
        for step in range(mix.steps):
            after = mix.count_taken(step + 1)
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
            for index, row in rows(mix, step):
                taken.setdefault(index, []).append(row)
        for index, source in enumerate(mix.sources):
            found = taken.get(index, [])
            expected = [(source.start + i) % source.extent for i in range(source.sequences)]
            assert found == expected
            times = Counter(found)
            often = [times[row] for row in range(source.extent)] if found else [0]
            assert max(often) - min(often) <= 1
        assert sum(len(found) for found in taken.values()) == mix.steps * mix.global_batch


@given(lineages())
def test_replay_goes_on_where_the_last_one_stopped(history: list[StageMix]) -> None:
    replayed: dict[str, int] = {}
    for mix in history:
        for source in mix.replayed:
            assert source.start == replayed.get(source.corpus, 0) % source.extent
            replayed[source.corpus] = replayed.get(source.corpus, 0) + source.sequences


@given(lineages(), rules())
def test_i2_adding_a_stage_under_any_rule_never_changes_what_earlier_steps_saw(
    history: list[StageMix], rule: ReplayRule
) -> None:
    before = [rows(mix, step) for mix in history for step in range(mix.steps)]
    longer = [*history, stage_mix(history, {"later": 100}, 5, history[0].global_batch, rule)]
    again = [StageMix.from_dict(json.loads(json.dumps(mix.to_dict()))) for mix in longer]
    after = [rows(mix, step) for mix in again[:-1] for step in range(mix.steps)]
    assert after == before
    assert again == longer


@given(lineages())
def test_a_stage_follows_from_the_stages_before_it_and_its_own_rule(
    history: list[StageMix],
) -> None:
    for index, mix in enumerate(history):
        new = {source.corpus: source.extent for source in mix.new}
        assert mix == stage_mix(history[:index], new, mix.steps, mix.global_batch, mix.replay)


@given(lineages())
def test_new_corpora_share_the_new_part_in_proportion_to_their_tokens(
    history: list[StageMix],
) -> None:
    for mix in history:
        assert tuple(source.corpus for source in mix.new) == mix.corpora
        assert mix.sources == (*mix.new, *mix.replayed)
        part = sum(source.sequences for source in mix.new)
        rows = sum(source.extent for source in mix.new)
        for source in mix.new:
            assert source.start == 0
            assert abs(source.sequences - part * source.extent / rows) < 1
            # None is repeated before all of every other one was trained as often.
            assert source.sequences <= source.extent * -(-part // rows)


@given(st.lists(st.integers(1, 500), min_size=2, max_size=4), st.sampled_from([1, 4, 6]))
def test_corpora_that_become_one_stage_are_each_trained_whole_and_once(
    sizes: list[int], batch: int
) -> None:
    new = {f"c{index}": size for index, size in enumerate(sizes)}
    steps = -(-sum(sizes) // batch)
    mix = stage_mix([], new, steps, batch, ReplayRule())
    over = steps * batch - sum(sizes)
    wrapped = {s.corpus: s.sequences - s.extent for s in mix.new if s.sequences != s.extent}
    assert sum(wrapped.values()) == over < batch
    assert all(count > 0 for count in wrapped.values())


@given(lineages())
def test_no_sequence_is_replayed_more_often_than_the_cap(history: list[StageMix]) -> None:
    times: Counter[tuple[str, int]] = Counter()
    for mix in history:
        for source in mix.replayed:
            replayed = Counter(
                (source.corpus, (source.start + i) % source.extent) for i in range(source.sequences)
            )
            times += replayed
            if mix.replay.max_epochs is not None:
                assert max(times[row] for row in replayed) <= mix.replay.max_epochs


@given(lineages())
def test_what_is_not_replayed_is_new_and_told(history: list[StageMix]) -> None:
    for index, mix in enumerate(history):
        budget = mix.steps * mix.global_batch
        earlier = mix.replay.proxies or _trained_before(history[:index])
        wanted = round(mix.replay.share * budget) if earlier else 0
        replayed = sum(source.sequences for source in mix.replayed)
        assert replayed + mix.unreplayed == wanted
        assert sum(source.sequences for source in mix.new) == budget - replayed


def _trained_before(history: list[StageMix]) -> bool:
    return any(source.sequences for mix in history for source in mix.new)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([0, 1, 2, 7, 100, 10**9])),
    st.sampled_from(["0", "0.1", "0.25", "1/3", "0.5", "1"]),
)
def test_no_weight_is_less_than_the_minimum_and_the_others_keep_their_proportions(
    weights: dict[str, int], part: str
) -> None:
    minimum = Fraction(part)
    lifted = raise_to_minimum(weights, minimum)
    taken = [name for name, weight in weights.items() if weight]
    assert [name for name, weight in lifted.items() if weight] == taken
    if not minimum or not taken:
        assert lifted == weights
        return
    total = sum(lifted.values())
    floor = min(minimum, Fraction(1, len(taken)))
    assert all(Fraction(lifted[name], total) >= floor for name in taken)
    above = [name for name in taken if Fraction(lifted[name], total) > floor]
    assert all(
        lifted[one] * weights[other] == lifted[other] * weights[one]
        for one in above
        for other in above
    )
    low = {name for name in taken if name not in above}
    assert all(weights[name] <= weights[other] for name in low for other in above)


WEIGHTINGS = [
    (whole("seen"), {"a": 10, "b": 30, "c": 60}),
    (whole("uniform"), {"a": 34, "b": 33, "c": 33}),
    (whole("recent"), {"a": 14, "b": 29, "c": 57}),
    (
        whole("fixed", weights={"a": 0.1, "c": 0.3, "later": 5}),
        {"a": 25, "c": 75},
    ),
    (whole("fixed", weights={"later": 5}), {}),
    # What the one or two capped corpora cannot give goes to the rest by the same rule.
    (whole("seen", max_epochs=1), {"a": 18, "b": 52, "c": 30}),
    (whole("uniform", max_epochs=1), {"a": 35, "b": 35, "c": 30}),
    (whole("recent", max_epochs=2), {"a": 14, "b": 29, "c": 57}),
    (whole("fixed", weights={"c": 1}, max_epochs=2), {"c": 80}),
]


@pytest.mark.parametrize(("rule", "counts"), WEIGHTINGS)
def test_the_share_is_split_by_the_rules_weights_and_cap(
    rule: ReplayRule, counts: dict[str, int]
) -> None:
    earlier = {
        "a": CorpusHistory(0, 20, 0, 50),
        "b": CorpusHistory(1, 60, 0, 100),
        "c": CorpusHistory(2, 120, 20, 50),
    }
    split = split_replay(rule, 100, {(name, None): known for name, known in earlier.items()})
    assert split == {(name, None): count for name, count in counts.items()}


@given(
    st.lists(
        st.builds(
            CorpusHistory,
            stage=st.integers(0, 3),
            seen=st.integers(1, 1000),
            replayed=st.integers(0, 300),
            extent=st.integers(1, 200),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 1500),
    rules(),
)
def test_a_cap_that_binds_leaves_the_others_in_proportion(
    known: list[CorpusHistory], total: int, rule: ReplayRule
) -> None:
    rule = rule.model_copy(update={"groups": ()})  # whose members have no proportion to each other
    earlier = {f"c{index}": each for index, each in enumerate(known)}
    keyed: dict[PartKey, CorpusHistory] = {(name, None): each for name, each in earlier.items()}
    counts = {name: n for (name, _), n in split_replay(rule, total, keyed).items()}
    uncapped = rule.model_copy(update={"max_epochs": None})
    free = {name: n for (name, _), n in split_replay(uncapped, total, keyed).items()}
    epochs = rule.max_epochs or 10**9
    room = {name: max(0, epochs * each.extent - each.replayed) for name, each in earlier.items()}
    assert all(count <= room[name] for name, count in counts.items())
    capped = {name for name, count in counts.items() if count == room[name]}
    rest = {name for name in counts if name not in capped}
    if sum(counts.values()) < total:
        assert not rest
    given_up = sum(counts[name] for name in capped)
    free_weights = {name: free_weight(rule, earlier, name) for name in earlier}
    weights = raise_to_minimum(free_weights, Fraction(str(rule.minimum)))
    weights = {name: weights[name] for name in rest}
    if rest:
        expected = apportion(total - given_up, weights)
        assert all(abs(counts[name] - expected[name]) <= 1 for name in rest)
    if not capped:
        assert counts == free


def free_weight(rule: ReplayRule, earlier: dict[str, CorpusHistory], name: str) -> int:
    """The corpus's weight as a whole number; ten times what a fixed rule writes."""
    weights: dict[str, int] = {
        "seen": earlier[name].seen,
        "uniform": 1,
        "recent": 2 ** sorted({e.stage for e in earlier.values()}).index(earlier[name].stage),
        "fixed": round(10 * rule.weights.get(name, 0)),
    }
    return weights[rule.weighting]


@given(lineages(), st.data())
def test_i2_the_position_is_a_pure_function_of_history_and_step(
    history: list[StageMix], data: st.DataObject
) -> None:
    mix = history[-1]
    restored = StageMix.from_dict(json.loads(json.dumps(mix.to_dict())))
    steps = data.draw(st.lists(st.integers(0, mix.steps - 1), min_size=1, max_size=5))
    assert [rows(restored, step) for step in steps] == [rows(mix, step) for step in steps]


@given(lineages(), st.data())
def test_i2_batches_dealt_in_blocks_of_any_size_are_those_of_the_plan(
    history: list[StageMix], data: st.DataObject
) -> None:
    mix = history[-1]
    step = data.draw(st.integers(0, mix.steps - 1))
    batches = Batches(mix, step)
    while step < mix.steps:
        steps = data.draw(st.integers(1, mix.steps - step))
        sources, found = batches.take(steps)
        assert sources.shape == found.shape == (steps, mix.global_batch)
        for index in range(steps):
            batch = list(zip(sources[index].tolist(), found[index].tolist(), strict=True))
            assert batch == rows(mix, step + index)
        step += steps


@settings(max_examples=30)
@given(st.integers(10**5, 10**7), st.integers(0, 10**7))
def test_i2_a_seek_far_into_a_large_plan_agrees_with_counting_on(steps: int, at: int) -> None:
    batch = 1104
    first = stage_mix([], {"a": steps * batch}, steps, batch, ReplayRule(share=0.05))
    mix = stage_mix([first], {"b": steps * batch}, steps, batch, ReplayRule(share=0.05))
    at %= steps
    here, there = mix.count_taken(at), mix.count_taken(min(at + 50, steps))
    counted = Counter(i for step in range(at, min(at + 50, steps)) for i, _ in rows(mix, step))
    assert tuple(counted[i] for i in range(len(here))) == tuple(
        b - a for a, b in zip(here, there, strict=True)
    )
    assert mix.count_taken(steps) == tuple(source.sequences for source in mix.sources)


def test_the_papers_three_stage_shares_are_reproduced() -> None:
    """Two stages of 300 : 100 with 5% replay have seen 305 : 95, so the third's 5% is split so."""
    batch, scale = 1000, 1000
    first = stage_mix([], {"pile": 10**9}, 300 * scale, batch, ReplayRule(share=0.05))
    second = stage_mix([first], {"sp1": 10**9}, 100 * scale, batch, ReplayRule(share=0.05))
    seen = seen_sequences([first, second])
    assert seen == {"pile": 305 * scale * batch, "sp1": 95 * scale * batch}
    third = stage_mix([first, second], {"sp2": 10**9}, 100 * scale, batch, ReplayRule(share=0.05))
    budget = third.steps * batch
    shares = {source.corpus: source.sequences / budget for source in third.sources}
    assert shares == {"sp2": 0.95, "pile": 0.038125, "sp1": 0.011875}


def test_a_branch_goes_on_where_its_stage_stopped() -> None:
    first = stage_mix([], {"a": 100}, 10, 8, ReplayRule(share=0.25))
    second = stage_mix([first], {"b": 100}, 10, 8, ReplayRule(share=0.25))
    branch = branch_mix([first, second], 5)
    assert {s.corpus: s.sequences for s in branch.sources} == {"b": 30, "a": 10}
    assert {s.corpus: s.start for s in branch.sources} == {"b": 60, "a": 20}


def test_corpora_of_one_stage_are_equally_recent() -> None:
    first = stage_mix([], {"a": 100}, 10, 8, ReplayRule())
    second = stage_mix([first], {"b": 60, "c": 30}, 10, 8, ReplayRule())
    third = stage_mix([first, second], {"d": 100}, 10, 10, RECENT_HALF)
    assert {s.corpus: s.sequences for s in third.replayed} == {"a": 10, "b": 20, "c": 20}


def test_a_mix_of_one_corpus_is_read_in_its_older_form() -> None:
    mix = stage_mix([], {"a": 100}, 10, 8, ReplayRule())
    older = mix.to_dict() | {"corpus": "a"}
    del older["corpora"]
    assert StageMix.from_dict(json.loads(json.dumps(older))) == mix


def test_a_corpus_is_one_source_of_a_stage() -> None:
    first = stage_mix([], {"a": 80}, 10, 8, ReplayRule())
    with pytest.raises(ValueError, match="a corpus is two sources of one stage: a, a"):
        stage_mix([first], {"a": 80}, 10, 8, ReplayRule(share=0.5))


def test_without_an_earlier_corpus_nothing_is_replayed() -> None:
    mix = stage_mix([], {"a": 80}, 10, 8, ReplayRule(share=0.9))
    assert [source.corpus for source in mix.sources] == ["a"]


def test_a_mix_that_does_not_fill_its_batches_is_refused() -> None:
    whole = stage_mix([], {"a": 80}, 10, 8, ReplayRule(share=0.0))
    with pytest.raises(ValueError, match="sources give 80 sequences, the stage has 11 x 8"):
        StageMix(("a",), 11, 8, whole.sources)


@given(
    st.integers(0, 10**9),
    st.dictionaries(st.text(max_size=3), st.integers(0, 10**9), min_size=1, max_size=6),
)
def test_apportioned_numbers_add_up_and_are_within_one(total: int, weights: dict[str, int]) -> None:
    counts = apportion(total, weights)
    weight = sum(weights.values())
    if not weight:
        assert set(counts.values()) == {0}
        return
    assert sum(counts.values()) == total
    for name, count in counts.items():
        assert abs(count * weight - total * weights[name]) < weight


def test_a_proxy_is_replayed_from_the_first_stage_on_and_goes_on_where_it_stopped() -> None:
    rule = ReplayRule(share=0.25, proxies={"web": 30})
    first = stage_mix([], {"a": 80}, 10, 8, rule)
    second = stage_mix([first], {"b": 80}, 10, 8, rule)
    taken = [{s.corpus: (s.sequences, s.start) for s in mix.sources} for mix in (first, second)]
    assert taken[0] == {"a": (60, 0), "web": (20, 0)}
    # As if its 30 sequences had been trained once before: 30 + 20 of it are seen, 60 of a.
    assert taken[1] == {"b": (60, 0), "web": (9, 20), "a": (11, 0)}
    assert (first.corpora, [s.corpus for s in first.replayed]) == (("a",), ["web"])


def test_a_proxy_is_bounded_by_the_cap_and_what_it_cannot_give_is_new() -> None:
    mix = stage_mix([], {"a": 80}, 10, 8, ReplayRule(share=0.5, max_epochs=2, proxies={"web": 10}))
    assert {s.corpus: s.sequences for s in mix.sources} == {"a": 60, "web": 20}
    assert mix.unreplayed == 20
    later = stage_mix([mix], {"b": 80}, 10, 8, mix.replay)
    assert "web" not in seen_sequences([later])


def test_a_proxy_that_becomes_a_stage_is_no_proxy_in_it() -> None:
    rule = ReplayRule(share=0.25, proxies={"web": 30})
    first = stage_mix([], {"a": 80}, 10, 8, rule)
    second = stage_mix([first], {"web": 30}, 10, 8, rule)
    assert {s.corpus: s.sequences for s in second.sources} == {"web": 60, "a": 20}
    third = stage_mix([first, second], {"b": 80}, 10, 8, rule)
    assert sum(s.corpus == "web" for s in third.sources) == 1


def test_a_rule_without_a_proxy_is_written_as_before_there_were_any() -> None:
    assert "proxies" not in ReplayRule(share=0.25).to_dict()
    rule = ReplayRule(share=0.25, proxies={"web": 30})
    assert ReplayRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    old = ReplayRule(share=0.25).to_dict()
    assert ReplayRule.from_dict(old) == ReplayRule(share=0.25)
    branch = branch_mix([stage_mix([], {"a": 80}, 10, 8, rule)], 4)
    assert {s.corpus: s.sequences for s in branch.sources} == {"a": 24, "web": 8}
