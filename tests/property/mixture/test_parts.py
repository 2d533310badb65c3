"""Parts of a corpus: exact shares of every batch, whole stages, replay by what was seen."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.errors import InputError
from perennial.mixture import (
    Part,
    ReplayRule,
    Source,
    StageMix,
    branch_mix,
    rows_of,
    seen_by_part,
    stage_mix,
    truncate_mix,
    weigh_parts,
)
from perennial.mixture.batches import Batches, slice_rank_rows

WEIGHTS = st.sampled_from([0.0, 0.1, 0.2, 1.0, 3.0])


@st.composite
def parted(draw: st.DrawFn, name: str) -> int | tuple[Part, ...]:
    """A new corpus: a whole, or up to five parts of any sizes, with weights or without."""
    if draw(st.booleans()):
        return draw(st.integers(1, 300))
    sizes = draw(st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any))
    rows = {f"p{index}": size for index, size in enumerate(sizes)}
    weights = draw(st.none() | st.fixed_dictionaries(dict.fromkeys(rows, WEIGHTS)))
    if weights and not any(weights[part] and rows[part] for part in rows):
        weights = None
    return weigh_parts(name, rows, weights or {})


@st.composite
def lineages(draw: st.DrawFn) -> list[StageMix]:
    """One to three stages of one or two new corpora, with replay of the earlier ones."""
    batch, history = draw(st.sampled_from([1, 4, 6, 16])), list[StageMix]()
    for stage in range(draw(st.integers(1, 3))):
        new = {f"c{stage}{i}": draw(parted(f"c{stage}{i}")) for i in range(draw(st.integers(1, 2)))}
        rule = ReplayRule(
            share=draw(st.sampled_from([0.0, 0.05, 1 / 3])),
            weighting=draw(st.sampled_from(["seen", "uniform", "recent"])),
            max_epochs=draw(st.sampled_from([None, 1])),
        )
        history.append(stage_mix(history, new, draw(st.integers(1, 40)), batch, rule))
    return history


@given(lineages())
def test_every_batch_holds_its_share_of_each_part_and_of_each_corpus_within_one_sequence(
    history: list[StageMix],
) -> None:
    for mix in history:
        whole = Counter[str]()
        for source in mix.sources:
            whole[source.corpus] += source.sequences
        for step in range(mix.steps):
            before, after = mix.count_taken(step), mix.count_taken(step + 1)
            of_corpus = Counter[str]()
            for source, begin, end in zip(mix.sources, before, after, strict=True):
                assert abs(end - begin - source.sequences / mix.steps) < 1
                of_corpus[source.corpus] += end - begin
            assert of_corpus.total() == mix.global_batch
            for corpus, count in of_corpus.items():
                assert abs(count - whole[corpus] / mix.steps) < 1


@given(lineages(), st.integers(1, 5), st.data())
def test_a_seek_and_any_number_of_workers_take_the_same_rows_of_their_parts(
    history: list[StageMix], world: int, data: st.DataObject
) -> None:
    mix = history[-1]
    at = data.draw(st.integers(0, mix.steps - 1))
    sources, rows = Batches(mix, 0).take(mix.steps)
    later = Batches(mix, at).take(mix.steps - at)
    assert (sources[at:] == later[0]).all()
    assert (rows[at:] == later[1]).all()
    ranks = [slice_rank_rows(mix.global_batch, rank, world) for rank in range(world)]
    assert (np.concatenate([rows[:, mine] for mine in ranks], axis=1) == rows).all()
    for index, source in enumerate(mix.sources):
        taken = rows[sources == index]
        order = source.start + np.arange(source.sequences)
        assert (taken == source.first + order % source.extent).all()


@given(lineages())
def test_a_part_has_its_weights_share_of_the_stage_and_one_without_weight_none(
    history: list[StageMix],
) -> None:
    for mix in history:
        for corpus, weights in mix.weights.items():
            its = {s.part: s.sequences for s in mix.new if s.corpus == corpus}
            given_weights = {part: weights[part] for part in its if part is not None}
            for part, count in its.items():
                share = given_weights[part or ""] / sum(given_weights.values())
                assert abs(count - sum(its.values()) * share) < 1
            assert all(given_weights.values())


@given(lineages())
def test_replay_follows_what_was_seen_of_each_part(history: list[StageMix]) -> None:
    for index, mix in enumerate(history):
        if mix.replay.max_epochs is not None:
            continue
        seen = seen_by_part(history[:index])
        for corpus in {source.corpus for source in mix.replayed}:
            its = {
                source.key: source.sequences for source in mix.replayed if source.corpus == corpus
            }
            known = {key: count for key, count in seen.items() if key[0] == corpus}
            for key, count in known.items():
                share = count / sum(known.values())
                assert abs(its.get(key, 0) - sum(its.values()) * share) < 2


@given(lineages())
def test_a_mix_of_parts_is_the_same_behind_its_json_and_made_again(
    history: list[StageMix],
) -> None:
    for index, mix in enumerate(history):
        again = StageMix.from_dict(json.loads(json.dumps(mix.to_dict(), sort_keys=True)))
        assert again == mix
        branch = branch_mix(history[: index + 1], 3)
        assert [s.first for s in branch.sources] == [
            s.first for s in mix.sources if s.key in {b.key for b in branch.sources}
        ]
        assert truncate_mix(mix, 1).weights == mix.weights


def test_a_corpus_without_parts_has_the_mix_that_it_always_had() -> None:
    first = stage_mix([], {"a": 100}, 10, 8, ReplayRule())
    second = stage_mix([first], {"b": 60, "c": 30}, 10, 8, ReplayRule(share=0.25))
    assert second.to_dict() == {
        "corpora": ["b", "c"],
        "steps": 10,
        "global_batch": 8,
        "sources": [
            {"corpus": "b", "sequences": 40, "start": 0, "extent": 60},
            {"corpus": "c", "sequences": 20, "start": 0, "extent": 30},
            {"corpus": "a", "sequences": 20, "start": 0, "extent": 80},
        ],
        "replay": ReplayRule(share=0.25).to_dict(),
        "unreplayed": 0,
    }


def test_parts_without_weights_have_shares_by_their_rows_and_are_each_trained_once() -> None:
    parts = weigh_parts("c", {"": 8, "web": 60, "wiki": 12}, {})
    assert stage_mix([], {"c": parts}, 10, 8, ReplayRule()).sources == (
        Source("c", 8, 0, 8, "", 0),
        Source("c", 60, 0, 60, "web", 8),
        Source("c", 12, 0, 12, "wiki", 68),
    )


def test_weights_are_shares_whatever_the_sizes_and_a_small_part_repeats() -> None:
    parts = weigh_parts("c", {"book": 5, "web": 60, "wiki": 12}, {"book": 0, "web": 1, "wiki": 3})
    assert rows_of(parts) == 72
    assert stage_mix([], {"c": parts}, 10, 8, ReplayRule()).sources == (
        Source("c", 20, 0, 60, "web", 5),
        Source("c", 60, 0, 12, "wiki", 65),
    )


@pytest.mark.parametrize(
    ("rows", "weights", "said"),
    [
        ({}, {"web": 1.0}, "no parts"),
        ({"web": 9, "wiki": 1}, {"web": 1.0}, "'wiki' has no weight"),
        ({"web": 9, "wiki": 1}, {"web": 1.0, "wiki": 1, "wik": 2}, "no part 'wik'"),
        ({"web": 9, "tiny": 0}, {"web": 0, "tiny": 1}, "has the weight 0"),
    ],
)
def test_weights_that_do_not_fit_the_parts_are_refused_with_what_fits(
    rows: dict[str, int], weights: dict[str, float], said: str
) -> None:
    with pytest.raises(InputError, match=said) as refused:
        weigh_parts("c", rows, weights)
    assert refused.value.code == "weights-of-parts"
    if len(rows) == 2 and "tiny" not in rows:
        assert "'web': 0.9000, 'wiki': 0.1000" in refused.value.remedy
