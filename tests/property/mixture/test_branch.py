"""The mixture of a release's anneal: shares by rule or weight, exact in every batch."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.mixture import (
    ReplayRule,
    StageMix,
    annealed_corpora,
    branch_mix,
    mixture_suffix,
    read_mixture,
    seen_by_part,
    seen_sequences,
    stage_mix,
    truncate_mix,
)
from perennial.mixture.batches import Batches
from tests.property.mixture.test_parts import lineages

NAMES = ("c00", "c10", "c20", "p")


@st.composite
def branches(draw: st.DrawFn) -> tuple[list[StageMix], StageMix]:
    """The history of a checkpoint in the middle of a stage or at its end, and a branch off it."""
    history = draw(lineages())
    history[-1] = truncate_mix(history[-1], draw(st.integers(1, history[-1].steps)))
    rule: Any = draw(
        st.sampled_from(["stage", "seen", "balanced"])
        | st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.1, 0.2, 1.0, 3.0]), min_size=1)
    )
    left_out = draw(st.sampled_from([(), ("c00",)]))
    named = set(annealed_corpora(history, left_out, rule))
    if not named & (set(rule) if isinstance(rule, dict) else named):
        rule, left_out = "seen", ()
    return history, branch_mix(history, draw(st.integers(1, 30)), left_out, rule)


@given(branches())
def test_every_batch_of_a_branch_holds_its_shares_of_corpora_and_parts_within_one_sequence(
    made: tuple[list[StageMix], StageMix],
) -> None:
    _, mix = made
    whole = Counter[str]()
    for source in mix.sources:
        whole[source.corpus] += source.sequences
    for step in range(mix.steps):
        taken = Counter[str]()
        counts = zip(mix.count_taken(step), mix.count_taken(step + 1), strict=True)
        for source, (before, after) in zip(mix.sources, counts, strict=True):
            assert abs(after - before - source.sequences / mix.steps) < 1
            taken[source.corpus] += after - before
        assert taken.total() == mix.global_batch
        for corpus, count in taken.items():
            assert abs(count - whole[corpus] / mix.steps) < 1


@given(branches())
def test_a_branch_has_the_shares_that_its_mixture_names(
    made: tuple[list[StageMix], StageMix],
) -> None:
    history, mix = made
    rule = mix.mixture
    known = annealed_corpora(history, mix.replay.retired, rule)
    seen = seen_sequences(history)
    shares: dict[str, Fraction] = {}
    if rule == "stage":
        sizes = {s.corpus: 0 for s in history[-1].sources}
        for source in history[-1].sources:
            sizes[source.corpus] += source.sequences
        shares = {name: Fraction(sizes[name]) for name in known}
    elif rule == "seen":
        shares = {name: Fraction(seen[name]) for name in known}
    elif rule == "balanced":
        shares = {name: Fraction(1) for name in known}
    else:
        assert not isinstance(rule, str)
        shares = {name: Fraction(str(rule[name])) for name in known if name in rule}
    budget, total = mix.steps * mix.global_batch, sum(shares.values())
    taken = Counter[str]()
    for source in mix.sources:
        taken[source.corpus] += source.sequences
    parts = Counter(source.corpus for source in mix.sources)
    assert set(taken) <= set(shares)
    for name, share in shares.items():
        # Rounding leaves one sequence to a source at most.
        assert abs(taken[name] - budget * share / total) <= max(1, parts[name])


@given(branches(), st.data())
def test_a_branch_is_made_again_from_its_json_and_resumed_at_any_step(
    made: tuple[list[StageMix], StageMix], data: st.DataObject
) -> None:
    history, mix = made
    again = StageMix.from_dict(json.loads(json.dumps(mix.to_dict(), sort_keys=True)))
    assert again == mix
    right = branch_mix(history, again.steps, again.replay.retired, again.mixture)
    assert right == mix
    at = data.draw(st.integers(0, mix.steps - 1))
    sources, rows = Batches(mix, 0).take(mix.steps)
    later = Batches(again, at).take(mix.steps - at)
    assert (sources[at:] == later[0]).all()
    assert (rows[at:] == later[1]).all()


@given(branches())
def test_a_branch_goes_on_where_the_trunk_stopped_in_each_corpus(
    made: tuple[list[StageMix], StageMix],
) -> None:
    history, mix = made
    last = {source.key: source for source in history[-1].sources}
    for source in mix.sources:
        if source.key in last:
            before = last[source.key]
            start, extent = before.start + before.sequences, before.extent
        else:
            own = [s for each in history for s in each.new if s.key == source.key]
            extent = min(own[-1].sequences, own[-1].extent)
            start = (seen_by_part(history)[source.key] - own[-1].sequences) % extent
        assert (source.start, source.extent) == (start, extent)


def test_a_branch_with_the_shares_of_its_stage_is_written_as_before_there_were_any() -> None:
    first = stage_mix([], {"a": 100}, 10, 8, ReplayRule(share=0.25))
    second = stage_mix([first], {"b": 100}, 10, 8, ReplayRule(share=0.25))
    assert branch_mix([first, second], 5, ("a",)).to_dict() == {
        "corpora": ["b"],
        "steps": 5,
        "global_batch": 8,
        "sources": [{"corpus": "b", "sequences": 40, "start": 60, "extent": 100}],
        "replay": second.replay.to_dict() | {"retired": ["a"]},
        "unreplayed": 0,
    }


def test_a_proxy_counts_as_seen_once_and_has_an_equal_part() -> None:
    rule = ReplayRule(share=0.25, proxies={"web": 60, "books": 100})
    history = [stage_mix([], {"a": 80}, 10, 8, rule)]
    assert seen_sequences(history) == {"a": 60, "web": 8, "books": 12}
    seen = {s.corpus: s.sequences for s in branch_mix(history, 30, (), "seen").sources}
    assert seen == {"a": 60, "web": 60 + 8, "books": 100 + 12}, "and 240 are all"
    balanced = branch_mix(history, 30, ("books",), "balanced")
    assert {s.corpus: (s.sequences, s.start) for s in balanced.sources} == {
        "web": (120, 8),
        "a": (120, 60),
    }


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1.0, "b": 2.0}, {"b": 0.2, "a": 0.1}, True),
        ({"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 1.0}, False),
        ({"a": 1.0}, {"b": 1.0}, False),
    ],
)
def test_a_name_tells_shares_apart(one: Any, other: Any, same: bool) -> None:
    assert (mixture_suffix(one) == mixture_suffix(other)) == same
    assert mixture_suffix("stage") == ""
    assert mixture_suffix("balanced") == "-balanced"


def test_weights_are_read_from_a_command_line() -> None:
    assert read_mixture("balanced") == "balanced"
    assert read_mixture("english=2, french=0.5") == {"english": "2", "french": "0.5"}
