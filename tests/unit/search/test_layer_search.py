"""Inheritune searches as pure decisions: children, plans, when the search ends, its result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec, parse
from perennial.config.search import Child, InherituneSpec, TuningSpec
from perennial.corpora.manifest import Shard
from perennial.errors import InputError
from perennial.mixture import Source, StageMix
from perennial.runs import event_codec, events
from perennial.runs.search_state import child_mix, start_key
from perennial.runs.stage_planner import decide_stage
from perennial.runs.state import RunState
from perennial.search.children import ChildBench, children_of, next_layers
from perennial.search.layer_results import LayerSearchResult
from perennial.search.tune_runner import _point
from tests.support.event_factory import AT, event_of
from tests.support.search_results import sample_layers
from tests.support.small_manifest import small_manifest
from tests.support.tiny_run import tiny_run

SEARCH: dict[str, Any] = {"name": "s", "run": "run.yaml", "inheritune": {}}
SECTION = InherituneSpec()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budget": "20%"}, "budget belongs to a search for settings"),
        ({"replay": [0.1]}, "replay belongs to a search for settings"),
        ({"searcher": "optuna", "trials": 3}, "searcher belongs to a search for settings"),
        ({"inheritune": {"first": 4, "last": 2}}, "first 4 is above last 2"),
        ({"inheritune": {"first": 0}}, "inheritune.first: 0 is refused"),
        ({"inheritune": {"margin": -0.1}}, "inheritune.margin: -0.1 is refused"),
        ({"inheritune": {"subset": "5%"}}, "subset and epochs go together"),
        ({"inheritune": {"subset": "5 steps", "epochs": 2}}, "not of steps"),
        ({"inheritune": {"grow_from": "parent"}}, "inheritune.grow_from: 'parent' is refused"),
        ({"inheritune": None}, "budget is missing"),
    ],
)
def test_a_wrong_search_for_layers_is_refused_with_what_would_be_right(
    changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError) as refused:
        parse(SEARCH | changes, TuningSpec, "tuning.yaml")
    assert told in str(refused.value)
    assert refused.value.remedy


def test_a_search_for_layers_says_the_same_after_it_went_through_json() -> None:
    spec = parse(SEARCH | {"inheritune": {"subset": "5%", "epochs": 8}}, TuningSpec, "")
    assert parse(spec.model_dump(mode="json"), TuningSpec, "") == spec


def test_the_search_ends_at_the_first_child_at_parity() -> None:
    sizes = [4, 6, 7]
    assert next_layers({}, sizes, 0.0) == 4
    assert next_layers({4: 0.1}, sizes, 0.0) == 6
    assert next_layers({4: 0.1}, sizes, 0.1) is None
    assert next_layers({4: 0.1, 6: -0.01}, sizes, 0.0) is None
    assert next_layers({4: 0.1, 6: 0.02}, sizes, 0.0) == 7
    assert next_layers({4: 0.1, 6: 0.02, 7: 0.01}, sizes, 0.0) is None


def test_a_larger_child_begins_with_the_reference_or_with_the_child_before_it() -> None:
    assert children_of(SECTION, 6, first=4) == [Child(6, "inherited"), Child(6, "random")]
    growing = SECTION.model_copy(update={"grow_from": "child", "random": False})
    assert children_of(growing, 4, first=4) == [Child(4, "inherited")]
    assert children_of(growing, 6, first=4) == [Child(6, "grown")]


def _mix(sequences: int, extent: int) -> StageMix:
    return StageMix(("a",), sequences // 8, 8, (Source("a", sequences, 0, extent),))


def test_a_child_is_trained_on_what_its_reference_was() -> None:
    mix = _mix(96, 100)
    assert child_mix(mix, Child(2, "inherited"), 128) == mix
    starts = {child_mix(mix, Child(2, "random", seed=s), 128).sources[0].start for s in range(5)}
    assert len(starts) == 5
    assert max(starts) < 100


@pytest.mark.parametrize(
    ("subset", "rows"), [("10%", 100), ("12800 tokens", 100), ("100%", 1000), ("1 tokens", 1)]
)
def test_a_child_of_a_subset_sees_the_same_few_rows_again_and_again(subset: str, rows: int) -> None:
    mix = child_mix(_mix(800, 1000), Child(2, "inherited", subset, 16), 128)
    (source,) = mix.sources
    assert (source.extent, source.start) == (rows, 0)
    assert source.sequences == mix.steps * 8
    assert mix.steps == max(1, rows * 16 // 8)


def test_a_subset_of_two_corpora_is_of_each_in_proportion() -> None:
    sources = (Source("a", 60, 0, 60), Source("b", 20, 0, 20), Source("old", 16, 3, 40))
    mix = child_mix(StageMix(("a", "b"), 12, 8, sources), Child(2, "inherited", "50%", 2), 128)
    assert [(s.corpus, s.extent) for s in mix.sources] == [("a", 30), ("b", 10)]
    assert sum(s.sequences for s in mix.sources) == mix.steps * 8 == 80


def _bench(folder: Path, **changes: Any) -> ChildBench:
    run = parse(tiny_run(folder) | changes, RunSpec, "run.yaml")
    state = RunState()
    for kind in ("landed", "ingesting", "ready"):
        state.apply(event_of(kind, state, "a"))
    begun = decide_stage(run, state, "a", AT, "", reschedule=False)
    state.apply(begun)
    end = f"checkpoints/{begun.stage}/00000012"
    state.apply(events.Trained(at=AT, corpus="a", checkpoint=end, step=12))
    return ChildBench("t.yaml", "s", run, state, 8, (4, 2), {}, reference_loss=3.0)


def test_a_child_begins_at_the_references_first_step_with_its_plan(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    stage = bench.reference
    trial = bench.branched(Child(4, "inherited"))
    assert (trial.step, trial.source) == (stage.first_step, bench.source)
    assert (trial.mix, trial.schedule) == (stage.mix, stage.schedule)
    assert trial.optimizer == "reset"
    assert bench.branched(Child(4, "inherited")).trial == trial.trial
    others = [Child(6, "inherited"), Child(4, "random"), Child(4, "inherited", seed=1)]
    assert len({trial.trial, *(bench.branched(child).trial for child in others)}) == 4
    read = event_codec.decode(event_codec.encode(trial)).event
    assert read == trial
    assert bench.values_of({"a": 3.25}) == {"loss": 3.25, "above": 0.25}


def test_the_job_of_a_child_trains_the_references_steps_from_weights_of_its_own(
    tmp_path: Path,
) -> None:
    shard = Shard(file="shard", size_bytes=1, sha256="", row_groups=(80,))
    bench = replace(_bench(tmp_path), manifests={"a": small_manifest("a", shards=(shard,))})
    decided = bench.branched(Child(4, "inherited"))
    job = bench.job(decided, 12)
    assert (job.start, job.folder) == (start_key(decided), f"branches/{decided.trial}")
    assert (job.first_step, job.last_step, job.optimizer) == (0, 12, "reset")
    assert (job.tokens_seen, job.grown_from, job.old) == ({}, None, ())


def test_a_grown_child_begins_with_the_checkpoint_of_the_smaller_one(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    smallest, grown, largest = (
        bench.branched(child)
        for child in (Child(4, "inherited"), Child(6, "grown"), Child(8, "grown"))
    )
    assert grown.source == f"branches/{smallest.trial}/00000012"
    assert largest.source == f"branches/{grown.trial}/00000012"
    start = bench.start_of(Child(6, "grown"))
    assert (start.reference, start.grown_from, start.seed) == (bench.source, grown.source, None)
    random = bench.start_of(Child(6, "random", seed=2))
    assert (random.grown_from, random.seed) == (None, bench.spec.seed + 2)


def test_a_child_of_a_subset_has_the_rates_of_its_own_length(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    whole = bench.branched(Child(4, "inherited"))
    part = bench.branched(Child(4, "inherited", "50%", 8))
    assert part.mix.steps == bench.steps_of(Child(4, "inherited", "50%", 8)) > whole.mix.steps
    assert part.schedule != whole.schedule
    assert part.schedule["kind"] == whole.schedule["kind"]


def test_a_child_of_a_subset_has_the_peak_of_the_references_own_stage(tmp_path: Path) -> None:
    cosine = {"kind": "cosine", "eta_max": 3e-3, "eta_min": 3e-4}
    own = {"corpora": {"a": {"schedule": {"eta_max": 1e-3}}}}
    bench = _bench(tmp_path, schedule=cosine, stages=own)
    part = bench.branched(Child(4, "inherited", "50%", 8))
    assert part.schedule["steps"] == part.mix.steps
    assert part.schedule["eta_max"] == bench.reference.schedule["eta_max"] == 1e-3


def test_a_trial_of_ray_tune_is_the_child_that_it_was_given() -> None:
    child = Child(4, "grown", "5%", 8, 1)
    assert _point({"point": vars(replace(child))}) == child


def test_a_result_is_read_as_it_was_written() -> None:
    for smallest in (None, 2):
        result = sample_layers(smallest)
        document = json.loads(json.dumps(result.to_dict()))
        assert LayerSearchResult.from_dict(document) == result
        assert LayerSearchResult.from_dict(document | {"later": 1}).to_dict() == document
