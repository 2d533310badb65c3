"""Replay groups: what belongs together, and what a stage takes of its members."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from perennial.mixture import ReplayRule, ReplaySpec, StageMix, group_of, stage_mix
from perennial.mixture.groups import fill_group, join_histories
from perennial.mixture.policies import CorpusHistory

HOURLY = ReplayRule(share=0.1, groups=("news-????-??", "wiki-"))


@pytest.mark.parametrize(
    ("corpus", "group"),
    [
        ("news-2026-03-14-07", "news-2026-03"),
        ("news-2026-04-01-00", "news-2026-04"),
        ("news-2026", None),
        ("wiki-english", "wiki-"),
        ("wiki-", "wiki-"),
        ("code", None),
    ],
)
def test_a_group_is_what_a_pattern_matches_of_a_name(corpus: str, group: str | None) -> None:
    assert group_of(HOURLY.groups, corpus) == group


def test_the_first_pattern_that_matches_counts() -> None:
    assert group_of(("news-2025", "news-"), "news-2025-01") == "news-2025"
    assert group_of(("news-2025", "news-"), "news-2026-01") == "news-"
    assert group_of((), "news-2026-01") is None


@pytest.mark.parametrize("pattern", ["", "News-", "news*", "[a]", "a/b"])
def test_what_is_no_beginning_of_a_name_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        ReplaySpec(groups=(pattern,))


def _members(*replayed: int) -> dict[str, CorpusHistory]:
    """Members of 10 sequences each."""
    return {
        name: CorpusHistory(stage, 10 + count, count, 10)
        for stage, (name, count) in enumerate(zip("abcd", replayed, strict=False))
    }


@pytest.mark.parametrize(
    ("total", "replayed", "counts"),
    [
        (4, (0, 0, 0), {"a": 4}),
        (10, (4, 0, 0), {"a": 6, "b": 4}),
        (5, (10, 10, 3), {"c": 5}),
        (9, (10, 10, 3), {"a": 2, "c": 7}),
        (30, (0, 0, 0), {"a": 10, "b": 10, "c": 10}),
        (75, (0, 0, 0), {"a": 30, "b": 25, "c": 20}),
        (12, (20, 20, 0), {"c": 12}),
        (23, (20, 25, 0), {"a": 3, "c": 20}),
        (0, (1, 2, 3), {}),
    ],
)
def test_what_was_replayed_fewest_times_is_taken_first_in_the_order_of_training(
    total: int, replayed: tuple[int, ...], counts: dict[str, int]
) -> None:
    assert fill_group(total, _members(*replayed)) == counts


def test_a_group_gives_no_more_than_its_members_may() -> None:
    assert fill_group(100, _members(3, 10, 25), 2) == {"a": 17, "b": 10}
    assert fill_group(5, _members(20, 20), 2) == {}


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=5),
    st.integers(0, 300),
    st.sampled_from([None, 1, 3]),
)
def test_sequence_by_sequence_gives_the_same(
    members: list[tuple[int, int]], total: int, max_epochs: int | None
) -> None:
    """The rule as it reads: the next sequence is of the first member replayed fewest times."""
    histories = {
        str(i): CorpusHistory(i, extent + done, done, extent)
        for i, (done, extent) in enumerate(members)
    }
    done = {name: its.replayed for name, its in histories.items()}
    for _ in range(total):
        epochs = {name: done[name] // its.extent for name, its in histories.items()}
        name = min(epochs, key=lambda name: epochs[name])
        if max_epochs is not None and epochs[name] >= max_epochs:
            break
        done[name] += 1
    taken = {name: done[name] - its.replayed for name, its in histories.items()}
    counts = fill_group(total, histories, max_epochs)
    assert counts == {name: count for name, count in taken.items() if count}


def test_a_group_is_as_new_as_its_newest_member() -> None:
    assert join_histories([*_members(1, 2).values()]) == CorpusHistory(1, 23, 3, 20)


def test_many_corpora_have_as_many_sources_as_groups() -> None:
    """Of a feed that lands every hour; without groups, each corpus is one."""
    history: list[StageMix] = []
    for hour in range(200):
        name = f"news-2026-{1 + hour // 100:02d}-{hour:03d}"
        history.append(stage_mix(history, {name: 400}, 50, 8, HOURLY))
    mix = history[-1]
    replayed = sum(source.sequences for source in mix.replayed)
    assert replayed == 40, "compute-equivalent: a tenth of the stage's 400"
    assert len(mix.replayed) <= 4, "two groups, each at the border of two members at most"
    months = {group_of(HOURLY.groups, source.corpus) for source in mix.replayed}
    assert months == {"news-2026-01", "news-2026-02"}
    alone = stage_mix(history[:-1], {mix.corpora[0]: 400}, 50, 8, ReplayRule(share=0.1))
    assert len(alone.replayed) == 40


def test_groups_weigh_by_their_names() -> None:
    rule = ReplayRule(
        share=0.5, weighting="fixed", weights={"wiki-": 3, "code": 1}, groups=("wiki-",)
    )
    history = [
        stage_mix([], {"wiki-a": 20, "wiki-b": 20, "code": 40, "news": 40}, 30, 4, ReplayRule())
    ]
    mix = stage_mix(history, {"next": 80}, 20, 4, rule)
    assert {source.corpus: source.sequences for source in mix.replayed} == {
        "wiki-a": 20,
        "wiki-b": 10,
        "code": 10,
    }


def test_a_rule_without_groups_is_written_as_it_was() -> None:
    assert "groups" not in ReplayRule(share=0.1).to_dict()
    written = json.loads(json.dumps(HOURLY.to_dict()))
    assert ReplayRule.from_dict(written) == HOURLY
