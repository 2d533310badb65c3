"""Which tokenizer a stage, its job and what lands have, while corpora bring entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.corpora import CorpusManifest
from perennial.corpora.manifest import Shard
from perennial.runs import summary
from perennial.runs.actions import Action, Outside, next_action, next_ingest
from perennial.runs.job_factory import stage_job
from perennial.runs.stage_planner import order_of
from perennial.runs.state import RunState
from perennial.store import open_store
from perennial.training.job import Job
from tests.support.event_factory import event_of
from tests.support.small_manifest import small_manifest
from tests.support.tiny_run import tiny_run

INGESTED = ("landed", "ingesting", "extended", "ready")
TRAINED = ("started", "trained", "evaluating", "evaluated")


def spec_of(model: dict[str, Any] | None = None) -> RunSpec:
    document = tiny_run(Path("/nowhere"))
    own = {"extend_tokenizer": {"entries": 10}}
    document["stages"]["corpora"] = {"french": own, "german": own}
    document["model"] = model or document["model"]
    return RunSpec.model_validate(document)


def apply(state: RunState, corpus: str, *kinds: str) -> RunState:
    for kind in kinds:
        state.apply(event_of(kind, state, corpus))
    state.validate()
    return state


def plain(state: RunState, corpus: str) -> RunState:
    return apply(state, corpus, "landed", "ingesting", "ready", *TRAINED, "passed")


def manifest(name: str, vocabulary: int = 300) -> CorpusManifest:
    shard = Shard(file="shard", size_bytes=1, sha256="", row_groups=(80,))
    return small_manifest(name, vocabulary=vocabulary, shards=(shard,))


def job_of(state: RunState, spec: RunSpec | None = None, **vocabularies: int) -> Job:
    manifests = {name: manifest(name, vocabularies.get(name, 300)) for name in state.corpora}
    return stage_job(spec or spec_of(), state, state.stages[-1], manifests)


def test_entries_are_in_force_once_their_stage_passed() -> None:
    state = apply(plain(RunState(), "english"), "french", *INGESTED)
    assert state.growing == ("french",)
    assert state.extension is None, "what lands now is tokenised as before"
    apply(state, "french", *TRAINED)
    assert state.extension is None
    apply(state, "french", "passed")
    assert state.extension is not None and state.extension.corpus == "french"
    assert state.growing == ()


@pytest.mark.parametrize("end", [("refused",), (*TRAINED, "gated", "refused")])
def test_a_corpus_that_leaves_takes_its_entries_with_it(end: tuple[str, ...]) -> None:
    state = apply(plain(RunState(), "english"), "french", *INGESTED, *end)
    assert state.extension is None and state.growing == ()
    spanish = apply(state, "spanish", "landed", "ingesting", "ready", "started")
    assert (job_of(spanish).tokenizer, job_of(spanish).grown_from) == ("tokenizer", None)


def test_the_stage_grows_the_model_and_later_ones_only_have_the_tokenizer() -> None:
    state = apply(plain(RunState(), "english"), "french", *INGESTED, "started")
    grown = job_of(state)
    assert (grown.tokenizer, grown.grown_from) == ("tokenizer/grown/french", 300)
    apply(state, "french", *TRAINED[1:], "passed")
    plain(state, "spanish")
    later = job_of(state)
    assert (later.tokenizer, later.grown_from) == ("tokenizer/grown/french", None)
    apply(state, "german", *INGESTED, "started")
    again = job_of(state)
    assert (again.tokenizer, again.grown_from) == ("tokenizer/grown/german", 310)
    assert Job.from_dict(again.to_dict()) == again


def test_the_first_stage_grows_a_stored_model_and_draws_a_random_one_whole() -> None:
    state = apply(RunState(), "french", *INGESTED, "started")
    assert job_of(state, spec_of({"path": "/a/model"})).grown_from == 300
    assert job_of(state).grown_from is None


def test_a_mix_of_16_and_32_bits_is_read_as_32() -> None:
    state = apply(plain(RunState(), "english"), "french", *INGESTED, "started")
    job = job_of(state, english=65_000, french=70_000)
    assert job.dtype == "<u4"
    assert {name: layout.row_bytes for name, layout in job.layouts.items()} == {
        "english": 256,
        "french": 512,
    }
    assert Job.from_dict(job.to_dict()) == job


def test_a_corpus_waits_for_the_entries_of_another_alone(tmp_path: Path) -> None:
    order = order_of(spec_of())
    assert order.extending == {"french", "german"}
    state = apply(plain(RunState(), "english"), "french", *INGESTED)
    apply(apply(state, "german", "landed"), "spanish", "landed")
    assert next_ingest(state, Outside(), order) == Action("ingest", "spanish")
    apply(state, "spanish", "ingesting", "ready")
    assert next_ingest(state, Outside(), order) is None
    told = summary.describe_states(open_store(tmp_path), spec_of(), state)
    assert told["german"] == "landed (waits for the entries of french)"
    apply(state, "french", "held")
    assert next_ingest(state, Outside(), order) == Action("ingest", "german")
    apply(state, "french", "retried")
    assert next_action(state, Outside(), order) == Action("start", "french")
