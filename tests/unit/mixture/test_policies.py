"""Replay policies: what a new one must bring, and what a missing one does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from perennial.config import RunSpec, parse, stage_settings
from perennial.errors import InputError
from perennial.mixture import (
    REPLAY_POLICIES,
    CorpusHistory,
    ReplayPolicy,
    ReplayRule,
    ReplaySpec,
    StageMix,
    stage_mix,
)
from tests.support.tiny_run import tiny_run


class OldestPolicy(ReplayPolicy):
    """the oldest corpus alone"""

    @staticmethod
    def weigh(earlier: Mapping[str, CorpusHistory], weights: Mapping[str, float]) -> dict[str, int]:
        return {name: int(index == 0) for index, name in enumerate(earlier)}


def _mixes(weighting: str) -> list[StageMix]:
    mixes: list[StageMix] = []
    for name in "abc":
        rule = ReplayRule(share=0.5).model_copy(update={"weighting": weighting})
        mixes.append(stage_mix(mixes, {name: 100}, 10, 8, rule))
    return mixes


def test_a_registered_policy_splits_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        REPLAY_POLICIES, "_known", {**REPLAY_POLICIES._known, "oldest": OldestPolicy}
    )
    assert ReplaySpec(weighting="oldest").weighting == "oldest"
    last = _mixes("oldest")[-1]
    assert {source.corpus: source.sequences for source in last.replayed} == {"a": 40}


def test_a_stored_stage_of_a_missing_policy_is_read_and_not_planned_again() -> None:
    stored = _mixes("seen")[-1].to_dict()
    stored["replay"]["weighting"] = "oldest"
    mix = StageMix.from_dict(stored)
    assert mix.to_dict() == stored
    with pytest.raises(InputError) as refused:
        stage_mix(_mixes("seen"), {"d": 100}, 10, 8, mix.replay)
    assert refused.value.code == "plugin-missing" and "'oldest'" in refused.value.problem


def test_a_run_file_with_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    document = tiny_run(Path("/nowhere")) | {"replay": {"weighting": "oldest"}}
    with pytest.raises(InputError) as refused:
        parse(document, RunSpec, "run.yaml")
    assert (refused.value.field, refused.value.code) == ("replay.weighting", "plugin-missing")
    assert "seen, uniform, recent, fixed" in refused.value.problem


def test_the_stored_form_of_a_rule_is_that_of_earlier_versions() -> None:
    weights = {"a": 1.0, "b": 0.5}
    spec = ReplaySpec(share=0.25, weighting="fixed", weights=weights, max_epochs=2)
    rule = ReplayRule.resolve(spec, ["c"])
    assert rule.to_dict() == {
        "share": 0.25, "weighting": "fixed", "weights": weights, "max_epochs": 2, "retired": ["c"],
    }  # fmt: skip
    assert ReplayRule.from_dict(rule.to_dict()) == rule
    assert ReplayRule.from_dict({"share": 0.25}) == ReplayRule(share=0.25)
    floored = ReplayRule.resolve(ReplaySpec(minimum=0.1), [])
    assert floored.to_dict()["minimum"] == 0.1
    assert ReplayRule.from_dict(floored.to_dict()) == floored


@pytest.mark.parametrize(
    ("minimum", "latest", "others"),
    [(0.0, 2, (32, 6)), (0.1, 4, (30, 6)), (0.3, 12, (16, 12)), (0.4, 13, (14, 13))],
)
def test_a_floor_lifts_the_latest_corpus_which_the_papers_rule_gives_least(
    minimum: float, latest: int, others: tuple[int, int]
) -> None:
    """Stages of 40, 20 and 8 batches: what was seen of each shrinks with its age."""
    mixes: list[StageMix] = []
    for name, steps in (("a", 40), ("b", 20), ("c", 8), ("d", 10)):
        rule = ReplayRule(share=0.5, minimum=minimum)
        mixes.append(stage_mix(mixes, {name: 1000}, steps, 8, rule))
    taken = {source.corpus: source.sequences for source in mixes[-1].replayed}
    assert sum(taken.values()) == 40
    assert (taken["c"], (taken["a"], taken["b"])) == (latest, others)


@pytest.mark.parametrize(
    ("corpora", "user_replay_share", "share"),
    [({}, None, 0.25), ({"a": {"replay": 0.5}}, None, 0.5), ({"a": {"replay": 0.5}}, 0.0, 0.0)],
)
def test_the_most_specific_share_wins(
    corpora: dict[str, dict[str, float]], user_replay_share: float | None, share: float
) -> None:
    document = tiny_run(Path("/nowhere"))
    document["stages"] |= {"corpora": corpora}
    spec = parse(document, RunSpec, "run.yaml")
    settings = stage_settings(spec, "a", user_replay_share)
    assert settings.replay == spec.replay.model_copy(update={"share": share})
    assert (settings.budget, settings.optimizer) == (spec.stages.budget, "reset")
