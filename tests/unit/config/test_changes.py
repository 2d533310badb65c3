"""When each field of the run file may change: declared for all, and kept by run and stage."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from perennial.config import RunSpec
from perennial.config.changes import held_settings, run_fields
from perennial.config.reference import documented_keys
from perennial.controller.context import Workspace
from perennial.corpora.manifest import CorpusManifest, Shard
from perennial.errors import InputError
from perennial.fields import Changeable
from perennial.runs.event_codec import decode, encode
from perennial.runs.events import Event, Opened, Releasing, Started
from perennial.runs.job_factory import release_job, stage_job
from perennial.runs.ledger import Ledger
from perennial.runs.stage_planner import decide_release, decide_stage
from perennial.runs.state import RunState
from perennial.training.job import Job
from tests.support.event_factory import AT, event_of
from tests.support.refusal import refused
from tests.support.small_manifest import small_manifest
from tests.support.tiny_run import tiny_run

FIELDS = {field.name: field for field in run_fields()}
STORED_MODEL = {"model": {"path": "stored", "inherit_layers": 2}}
SOURCE = {"prefix": "incoming", "schedule": "1d"}
INDEX = {"sources": {"crawl": {"index": "http://a.example.org/", "schedule": "1d"}}}
COMMAND = {"sources": {"crawl": {"command": ["fetch"], "schedule": "1d"}}}
RELEASES = {"release": {"policy": "every", "every": "5 steps"}}
IDS = {"corpora": {"read": {"a": {"tokens": {"tokenizer": "a" * 64}}}}}
OWN_IDS = {"corpora": {"read": {"a": {"tokens": {"brought_by": "a"}}}}}
DRAWN = {"evaluation": {"render": {"a": {"function": "own:draw"}}}}
NIGHTLY = {"release": {"policy": "schedule", "schedule": "1d"}}
EMAIL = {"to": ["a@example.org"], "sender": "b@example.org", "host": "mail"}
MAIL = {"notify": {"email": EMAIL | {"user": "me", "password": "env:MAIL"}}}
FILL = {"corpora": {"fill_in_the_middle": {}}, "tokenizer": {"path": "a.json"}}
COSINE = {"kind": "cosine", "eta_max": 3e-3, "eta_min": 3e-4, "warmup": "10%"}
OWN_SCHEDULE = {"schedule": COSINE, "stages": {"corpora": {"a": {"schedule": {"eta_max": 2e-3}}}}}
STAGE_RATES = {"eta_max": 1e-3, "eta_min": 1e-4, "warmup": "5%", "warmup_start": 1e-4}
# Field -> another value of it; or what the run was opened with besides, and another value.
OTHERS: dict[str, Any] = {
    "name": "other",
    "store": "elsewhere",
    "inbox": "incoming",
    "seed": 4,
    "sources.NAME.prefix": ({"sources": {"crawl": SOURCE}}, "arriving"),
    "sources.NAME.index": (INDEX, "http://b.example.org/"),
    "sources.NAME.command": (COMMAND, ["get"]),
    "sources.NAME.schedule": (COMMAND, "2d"),
    "sources.NAME.match": (COMMAND, "*.txt"),
    "sources.NAME.minimum": (COMMAND, "1 MB"),
    "sources.NAME.max_age": (COMMAND, "7d"),
    "sources.NAME.timeout": (COMMAND, "2h"),
    "sources.NAME.file_timeout": (COMMAND, "1h"),
    "sources.NAME.max_file": (COMMAND, "1 GB"),
    "sources.NAME.max_pull": (COMMAND, "200 GB"),
    "sources.NAME.hosts": (INDEX, ["cdn.example.org"]),
    "sources.NAME.private": (INDEX, True),
    "sources.NAME.proxy": (INDEX, True),
    "sources.NAME.unsized": (INDEX, True),
    "sources.NAME.secrets": (INDEX, ["ticket"]),
    "corpora.text_field": "content",
    "corpora.domain_field": "source",
    "corpora.metadata": {"url": "url"},
    "corpora.parts": ({"corpora": {"domain_field": "source"}}, "domain"),
    "corpora.txt_documents": "file",
    "corpora.max_document": "64 MiB",
    "corpora.max_zstd_window": "1 GiB",
    "corpora.read.NAME.text_field": ({"corpora": {"read": {"a": {}}}}, "content"),
    "corpora.read.NAME.domain_field": ({"corpora": {"read": {"a": {}}}}, "source"),
    "corpora.read.NAME.metadata": ({"corpora": {"read": {"a": {}}}}, {"url": "url"}),
    "corpora.read.NAME.parts": (
        {"corpora": {"read": {"a": {"domain_field": "source"}}}},
        "domain",
    ),
    "corpora.read.NAME.txt_documents": ({"corpora": {"read": {"a": {}}}}, "line"),
    "corpora.read.NAME.tokens.tokenizer": (IDS, "b" * 64),
    "corpora.read.NAME.tokens.brought_by": (OWN_IDS, "b"),
    "corpora.read.NAME.tokens.vocabulary": (IDS, 400),
    "corpora.read.NAME.tokens.field": (IDS, "ids"),
    "corpora.read.NAME.tokens.dtype": (IDS, "uint32"),
    "corpora.read.NAME.tokens.without": (IDS, ["steps"]),
    "corpora.read.NAME.max_document": ({"corpora": {"read": {"a": {}}}}, "1 GiB"),
    "corpora.read.NAME.max_zstd_window": ({"corpora": {"read": {"a": {}}}}, "1 GiB"),
    "corpora.about.NAME.kind": ({"corpora": {"about": {"a": {}}}}, "public"),
    "corpora.about.NAME.title": ({"corpora": {"about": {"a": {}}}}, "A corpus"),
    "corpora.about.NAME.source": ({"corpora": {"about": {"a": {}}}}, "https://example.org"),
    "corpora.about.NAME.license": ({"corpora": {"about": {"a": {}}}}, "cc0-1.0"),
    "corpora.about.NAME.languages": ({"corpora": {"about": {"a": {}}}}, ["fr"]),
    "corpora.about.NAME.content": ({"corpora": {"about": {"a": {}}}}, "news"),
    "corpora.about.NAME.collected": ({"corpora": {"about": {"a": {}}}}, "2024"),
    "corpora.about.NAME.note": ({"corpora": {"about": {"a": {}}}}, "by hand"),
    "corpora.sequence_length": 256,
    "corpora.packing": "best-fit",
    "corpora.fill_in_the_middle.share": (FILL, 0.9),
    "corpora.fill_in_the_middle.spm_share": (FILL, 0.0),
    "corpora.fill_in_the_middle.prefix": (FILL, "<PRE>"),
    "corpora.fill_in_the_middle.middle": (FILL, "<MID>"),
    "corpora.fill_in_the_middle.suffix": (FILL, "<SUF>"),
    "corpora.holdout": 0.05,
    "corpora.max_bad_share": 0.5,
    "corpora.duplicates": "drop",
    "corpora.near_duplicates": 0.7,
    "corpora.fuzzy_duplicates": 0.8,
    "corpora.repeated_lines": 100,
    "corpora.borrow": "other-store",
    "corpora.decontaminate": ["questions.jsonl"],
    "corpora.steps": [{"kind": "personal-data"}],
    "tokenizer.vocabulary": 400,
    "tokenizer.path": ({"tokenizer": {"path": "a.json"}}, "b.json"),
    "tokenizer.end_of_document": ({"tokenizer": {"path": "a.json"}}, "<|endoftext|>"),
    "tokenizer.begin_of_document": ({"tokenizer": {"path": "a.json"}}, "<s>"),
    "model.architecture": "llama",
    "model.config": {"hidden_size": 64},
    "model.path": (STORED_MODEL, "another"),
    "model.init": "small-wang",
    "model.inherit_layers": (STORED_MODEL, 3),
    "training.workers.min": 1,
    "training.workers.max": 4,
    "training.workers.grow": "at-once",
    "training.cpus_per_worker": 1.0,
    "training.gpus_per_worker": 1,
    "training.global_batch": 16,
    "training.micro_batch": 2,
    "training.tensor_parallel": 2,
    "training.zero_stage": 2,
    "training.cpu_offload": "optimizer",
    "training.precision": "bf16",
    "training.attention": "eager",
    "training.mask": "document",
    "training.loss": "chunked",
    "training.balance_loss": 0.1,
    "training.activation_checkpointing": True,
    "training.compile": True,
    "training.deepspeed": {"wall_clock_breakdown": True},
    "training.optimizer": {"kind": "ademamix"},
    "training.betas": [0.9, 0.99],
    "training.epsilon": 1e-6,
    "training.weight_decay": 0.2,
    "training.gradient_clip": 2.0,
    "training.checkpoint_every": "3 steps",
    "training.spikes.policy": "ignore",
    "training.spikes.threshold": 9.0,
    "training.spikes.window": 10,
    "training.spikes.max_skips": 1,
    "training.max_failed_checkpoints": 1,
    "training.keep_last": 1,
    "training.profile": True,
    "training.hang_minutes": 1.0,
    "training.idle_minutes": 1.0,
    "training.max_failures": 0,
    "training.max_machine_failures": 1,
    "training.least_speed": 0.5,
    "training.workers.labels": {"zone": "x"},
    "schedule": {"kind": "constant", "eta_const": 1e-4, "eta_min": 1e-5},
    "replay.share": 0.5,
    "replay.weighting": "uniform",
    "replay.weights": ({"replay": {"weighting": "fixed", "weights": {"a": 1}}}, {"a": 2, "b": 1}),
    "replay.groups": ["news-????-??"],
    "replay.minimum": 0.1,
    "replay.max_epochs": 1,
    "stages.budget": "6 steps",
    "stages.optimizer": "keep",
    "stages.corpora.NAME.budget": ({"stages": {"corpora": {"a": {}}}}, "6 steps"),
    "stages.corpora.NAME.replay": ({"stages": {"corpora": {"a": {}}}}, 0.5),
    "stages.corpora.NAME.priority": ({"stages": {"corpora": {"a": {}}}}, 2),
    "stages.corpora.NAME.role": ({"stages": {"corpora": {"a": {}}}}, "replay"),
    "stages.corpora.NAME.weights": ({"stages": {"corpora": {"a": {}}}}, {"b": 1.0}),
    **{
        f"stages.corpora.NAME.schedule.{key}": (OWN_SCHEDULE, value)
        for key, value in STAGE_RATES.items()
    },
    "stages.corpora.NAME.extend_tokenizer.entries": (
        {"stages": {"corpora": {"a": {"extend_tokenizer": {"entries": 10}}}}},
        20,
    ),
    "stages.corpora.NAME.extend_tokenizer.tokens": (
        {"stages": {"corpora": {"a": {"extend_tokenizer": {"tokens": [" one"]}}}}},
        [" two"],
    ),
    "stages.corpora.NAME.extend_tokenizer.ids": (
        {"stages": {"corpora": {"a": {"extend_tokenizer": {"ids": 17}}}}},
        18,
    ),
    "stages.corpora.NAME.optimizer": ({"stages": {"corpora": {"a": {}}}}, "keep"),
    "stages.order": ["a"],
    "stages.only": ["a"],
    "stages.batch_arrivals.max_corpora": 3,
    "stages.batch_arrivals.max_tokens": "1M tokens",
    "stages.approval": "manual",
    "stages.attempts": 5,
    "stages.retry_after_seconds": 1.0,
    "release.anneal": "2 steps",
    "release.shape": "linear",
    "release.license": "mit",
    "release.languages": ["en"],
    "release.base_model": "org/base",
    "release.summary.provider": "text",
    "release.summary.representative": "text",
    "release.summary.market_date": "text",
    "release.summary.copyright": "text",
    "release.summary.illegal_content": "text",
    "release.sample_tokens": 0,
    "release.mixture": "balanced",
    "release.policy": "each-stage",
    "release.every": (RELEASES, "6 steps"),
    "release.schedule": (NIGHTLY, "2d"),
    "evaluation.documents": 6,
    "evaluation.corpora": 3,
    "evaluation.tasks": ["lambada_openai"],
    "evaluation.precision": "bf16",
    "evaluation.gpus": 2,
    "evaluation.trunk_tasks": True,
    "evaluation.beside_training": True,
    "evaluation.prompts": ["Once"],
    "evaluation.render.NAME.function": (DRAWN, "own:write"),
    "evaluation.render.NAME.parameters": (DRAWN, {"scale": 2}),
    "evaluation.render.NAME.given": (DRAWN, 0.25),
    "evaluation.baseline": "other-store",
    "gates.max_forgetting": 1.0,
    "gates.corpora": ({"gates": {"max_forgetting": 1.0}}, ["a*"]),
    "gates.max_adaptation": 9.0,
    "gates.min_gain": 0.1,
    "gates.tasks.NAME.min": ({"gates": {"tasks": {"a": {"min": 0.1}}}}, 0.2),
    "gates.tasks.NAME.max_drop": ({"gates": {"tasks": {"a": {"min": 0.1}}}}, 0.2),
    "gates.tasks.NAME.metric": ({"gates": {"tasks": {"a": {"min": 0.1}}}}, "acc"),
    "gates.standard_errors": 2.0,
    "limits.stages_per_day": 3,
    "limits.gpu_hours_per_month": ({"training": {"gpus_per_worker": 1}}, 100.0),
    "limits.search_tokens": "1M tokens",
    "gates.on_broken": "retry-with-more-replay",
    "gates.max_retries": 3,
    "gates.retry_tokens": "1M tokens",
    "gates.max_trials": 3,
    "gates.search_tokens": "1M tokens",
    "notify.events": ["gate"],
    "notify.webhook": "env:HOOK",
    "notify.command": ["page"],
    "notify.timeout": "1m",
    "notify.stall_after": "2h",
    "notify.email.to": (MAIL, ["c@example.org"]),
    "notify.email.sender": (MAIL, "c@example.org"),
    "notify.email.host": (MAIL, "other"),
    "notify.email.port": (MAIL, 25),
    "notify.email.security": (MAIL, "tls"),
    "notify.email.user": (MAIL, "you"),
    "notify.email.password": (MAIL, "env:OTHER"),
    "tracking.to": ["tensorboard"],
    "tracking.folder": "files",
    "tracking.uri": "http://tracking",
    "tracking.experiment": "other",
}


def of_class(change: Changeable) -> list[str]:
    return [name for name, field in FIELDS.items() if field.change is change]


def before_and_after(name: str, folder: Path) -> tuple[RunSpec, RunSpec]:
    """Return a run file, and the same with another value of one field."""
    besides, value = OTHERS[name] if isinstance(OTHERS[name], tuple) else ({}, OTHERS[name])
    opened: dict[str, Any] = tiny_run(folder)
    for section, values in besides.items():
        plain = section in ("model", "tokenizer") or not isinstance(opened.get(section), dict)
        plain |= "kind" in values
        opened[section] = values if plain else opened[section] | values
    changed = copy.deepcopy(opened)
    if name.startswith("training.workers."):
        changed["training"]["workers"] = {"min": 2, "max": 2}
    *path, key = [step for step in name.split(".")]
    inner: Any = changed
    for step in path:
        step = next(iter(inner)) if step == "NAME" else step
        inner = inner.setdefault(step, {})
    inner[key] = value
    return RunSpec.model_validate(opened), RunSpec.model_validate(changed)


def test_every_field_declares_when_it_may_change() -> None:
    assert [name for name, field in FIELDS.items() if field.change is None] == []
    assert FIELDS.keys() == OTHERS.keys(), "a new field needs another value here"
    whole = {key.split(" of kind ")[0] for key in documented_keys(RunSpec)}
    assert whole == FIELDS.keys()


@pytest.mark.parametrize("name", of_class(Changeable.PINNED))
def test_a_pinned_field_is_refused_with_both_values_and_the_remedy(
    name: str, tmp_path: Path
) -> None:
    opened, changed = before_and_after(name, tmp_path)
    work = Workspace(opened, "run.yaml")
    work.open_ledger()
    work.check_run()
    with refused("run-changed", name) as caught:
        Workspace(changed, "run.yaml").check_run()
    assert "but the run in" in caught.value.problem
    assert "restore it" in caught.value.remedy
    with refused("run-changed", name):
        Workspace(changed, "run.yaml").take_charge()  # opened by another process since the check


def test_a_pinned_field_may_be_written_out_where_an_older_version_did_not_know_it(
    tmp_path: Path,
) -> None:
    spec = RunSpec.model_validate(tiny_run(tmp_path))
    document = spec.model_dump(mode="json")
    del document["model"]["init"], document["corpora"]["holdout"]
    Ledger(Workspace(spec, "").store).append(Opened(at=AT, spec=document))
    stated = tiny_run(tmp_path)
    stated["model"]["init"] = "architecture"
    stated["corpora"]["holdout"] = 0.01
    Workspace(RunSpec.model_validate(stated), "run.yaml").check_run()
    with refused("run-changed", "corpora.holdout"):
        Workspace(spec, "run.yaml").check_run()


def begun(spec: RunSpec, ledger: Ledger | None = None) -> tuple[RunState, Started]:
    """Return a run whose first stage, on corpus `a`, was started, and its event."""
    state = RunState()
    events: list[Event] = [Opened(at=AT, spec=spec.model_dump(mode="json"))]
    for event in events:
        state.apply(event)
    for kind in ("landed", "ingesting", "ready"):
        events.append(event_of(kind, state, "a"))
        state.apply(events[-1])
    started = decide_stage(spec, state, "a", AT, "", reschedule=False)
    # As the ledger gives it back.
    state.apply(read := decode(encode(started)).event)
    assert read == started
    if ledger is not None:
        for event in [*events, started]:
            ledger.append(event)
    return state, started


def manifest() -> CorpusManifest:
    shard = Shard(file="shard", size_bytes=1, sha256="", row_groups=(80,))
    return small_manifest("a", shards=(shard,))


@pytest.mark.parametrize("name", of_class(Changeable.HELD))
def test_a_held_field_is_refused_while_a_stage_that_it_would_change_is_unfinished(
    name: str, tmp_path: Path
) -> None:
    opened, changed = before_and_after(name, tmp_path)
    state, started = begun(opened, Ledger(Workspace(opened, "").store))
    work = Workspace(changed, "run.yaml")
    work.check_run()
    with refused("unfinished-under-other-settings") as caught:
        work.check_unfinished()
    assert caught.value.field.startswith(name)
    assert f"{started.stage} was begun with" in caught.value.problem
    assert f"until {started.stage} is finished or refused" in caught.value.remedy
    with refused("unfinished-under-other-settings"):
        stage_job(changed, state, state.stages[-1], {"a": manifest()})


@pytest.mark.parametrize("name", [*of_class(Changeable.JOIN), *of_class(Changeable.FREE)])
def test_any_other_field_leaves_a_begun_stage_as_it_is(name: str, tmp_path: Path) -> None:
    opened, changed = before_and_after(name, tmp_path)
    assert opened != changed
    state, _ = begun(opened, Ledger(Workspace(opened, "").store))
    work = Workspace(changed.model_copy(update={"store": opened.store}), "run.yaml")
    work.check_run()
    work.check_unfinished()

    def job(spec: RunSpec) -> Job:
        return stage_job(spec, state, state.stages[-1], {"a": manifest()})

    before, after = job(opened), job(changed)
    same_place = replace(after, training=before.training, store_url=before.store_url)
    assert same_place == before
    different = {
        key
        for key in type(before.training).model_fields
        if getattr(before.training, key) != getattr(after.training, key)
    }
    # What of the section reaches the workers: declared free; the batch is that of the mix.
    assert different <= {"global_batch"} | {n.split(".")[1] for n in [name] if "training." in n}


def test_what_begins_after_the_change_takes_the_new_value(tmp_path: Path) -> None:
    opened, changed = before_and_after("training.precision", tmp_path)
    state, _ = begun(opened)
    for kind in ("trained", "evaluating", "evaluated", "passed"):
        state.apply(event_of(kind, state, "a"))
    state.ends[state.stages[-1].name] = "c/a"
    for kind in ("landed", "ingesting", "ready"):
        state.apply(event_of(kind, state, "b"))
    started = decide_stage(changed, state, "b", AT, "", reschedule=False)
    assert started.settings == held_settings(changed)
    assert started.settings != held_settings(opened)


def test_a_stage_that_an_older_version_began_goes_on(tmp_path: Path) -> None:
    opened, changed = before_and_after("training.precision", tmp_path)
    state, started = begun(opened)
    document = json.loads(encode(started))
    del document["settings"]
    old = decode(json.dumps(document).encode()).event
    assert isinstance(old, Started)
    assert old.settings is None
    stage = replace(state.stages[-1], settings=old.settings)
    stage_job(changed, state, stage, {"a": manifest()})


def test_the_same_optimizer_may_be_written_in_another_place(tmp_path: Path) -> None:
    opened, changed = before_and_after("training.weight_decay", tmp_path)
    document = tiny_run(tmp_path)
    document["training"]["optimizer"] = {"kind": "adamw"}
    moved = RunSpec.model_validate(document)
    assert held_settings(moved) == held_settings(opened)
    state, _ = begun(opened)
    stage_job(moved, state, state.stages[-1], {"a": manifest()})
    with pytest.raises(InputError) as caught:
        stage_job(changed, state, state.stages[-1], {"a": manifest()})
    assert caught.value.field == "training.weight_decay"
    assert caught.value.problem.startswith("0.2, but 00-a was begun with 0.1")


def test_a_release_that_was_begun_keeps_its_settings_too(tmp_path: Path) -> None:
    opened, changed = before_and_after("training.gradient_clip", tmp_path)
    state, _ = begun(opened)
    stage = state.stages[-1]
    decided = decide_release(opened, state, stage, stage.last_step, None, AT)
    stored = decode(encode(decided)).event
    assert isinstance(stored, Releasing)
    release_job(opened, state, stored, {"a": manifest()}, "")
    with refused("unfinished-under-other-settings", "training.gradient_clip"):
        release_job(changed, state, stored, {"a": manifest()}, "")


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_no_field_takes_a_number_that_an_event_cannot_hold(number: float, tmp_path: Path) -> None:
    for name, field in FIELDS.items():
        if isinstance(field.default, float):
            *path, key = name.split(".")
            document: Any = tiny_run(tmp_path)
            inner = document
            for step in path:
                inner = inner.setdefault(step, {})
            inner[key] = number
            with pytest.raises(ValidationError):
                RunSpec.model_validate(document)
