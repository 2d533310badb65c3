"""What `verify` proves of a stage of several corpora, from events alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from perennial.audit.checkpoint_checks import check_checkpoint, check_ledger_position
from perennial.audit.checks import (
    PlannedFolder,
    check_stages,
    fold,
)
from perennial.mixture import StageMix
from perennial.runs import event_codec
from perennial.runs.ledger import digest_of
from perennial.runs.state import RunState
from perennial.training.checkpoint.manifest import CheckpointManifest, FileEntry
from tests.support.event_factory import AT, ROWS, WALK, event_of

READY = ["landed", "ingesting", "ready"]
Change = Callable[[Any], None]


def _ledger(change: Change = lambda _: None) -> dict[str, bytes]:
    """A first stage, then one of two corpora, as objects; `change` alters the mix of the second."""
    state, told = RunState(), []
    kinds = [("a", kind) for kind in WALK]
    kinds += [(name, kind) for name in ("b", "c") for kind in READY]
    for corpus, kind in [*kinds, ("b", "started")]:
        event = event_of(kind, state, corpus, joined=("c",) if corpus == "b" else ())
        state.apply(event)
        told.append(json.loads(event_codec.encode(event)))
    change(told[-1]["mix"])
    ledger, before = {}, ""
    for number, document in enumerate(told):
        data = json.dumps(document | {"before": before}).encode()
        ledger[f"ledger/{number:012d}.json"] = data
        before = digest_of(data)
    return ledger


def _findings(change: Change = lambda _: None) -> list[str]:
    """What is found of the second stage; the walk's checkpoints are not where they would be."""
    ledger = _ledger(change)
    story = fold(ledger)
    found = [*story.findings, *check_stages(story, dict.fromkeys("abc", ROWS))]
    return [str(each) for each in found if each.key == max(ledger)]


def test_a_stage_of_several_corpora_follows_from_its_history() -> None:
    assert _findings() == []


def _favour(mix: Any) -> None:
    """One sequence more of one new corpus than its tokens give it."""
    mix["sources"][0]["sequences"] += 1
    mix["sources"][1]["sequences"] -= 1


def _swap(mix: Any) -> None:
    mix["corpora"].reverse()


def _leave_out(mix: Any) -> None:
    mix["corpora"].remove("c")


def _invent_proxy(mix: Any) -> None:
    """A proxy of another size than its manifest has, which changes no share: a was trained."""
    mix["replay"]["proxies"] = {"a": 7}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_invent_proxy, "sequences of a: 01-b-and-1-more has 7; its manifest has 80"),
        (_favour, "takes 31 sequences of b .*; its history gives 30 sequences of b"),
        (_swap, "the stage of b has a mix that trains c and b"),
        (_leave_out, "takes .* 30 sequences of c .*; its history gives 60 sequences of b"),
    ],
)
def test_a_stage_that_took_other_shares_of_its_corpora_is_found(change: Change, told: str) -> None:
    (found,) = _findings(change)
    assert re.search(told, found), found


def test_a_checkpoint_that_tells_its_mix_in_the_older_form_is_the_same() -> None:
    state = RunState()
    for kind in WALK[:4]:
        state.apply(event_of(kind, state, "a"))
    (stage,) = state.stages
    line = PlannedFolder(stage.name, stage.folder, 0, stage.mix, stage.schedule, {}, 32)
    older = {k: v for k, v in stage.mix.to_dict().items() if k != "corpora"} | {"corpus": "a"}
    for mix, problems in ((older, set()), (older | {"steps": 9}, {"mix"})):
        manifest = CheckpointManifest(
            name=stage.name,
            step=10,
            phase="constant",
            eta=1e-3,
            schedule=stage.schedule,
            mix=mix,
            mix_step=10,
            tokens_seen=line.tokens_seen(10),
            optimizer_steps=10,
            world_size=0,
            code_version="0",
            tracking_run="",
            attempt=AT,
            files={},
        )
        found = check_checkpoint("checkpoints/00-a/00000010", manifest, line)
        told = {f.problem.split(":")[0] for f in found if "names no" not in f.problem}
        assert told == problems
    assert StageMix.from_dict(older) == stage.mix


def test_tokens_are_told_of_the_mix_s_corpora_and_of_all_others_together() -> None:
    state = RunState()
    for kind in WALK[:4]:
        state.apply(event_of(kind, state, "a"))
    (stage,) = state.stages
    before = {"a": 3, "old": 40, "older": 500}
    line = PlannedFolder(stage.name, stage.folder, 0, stage.mix, stage.schedule, before, 32)
    whole = line.tokens_seen(10)
    own, elsewhere = line.stated_tokens(10, {"a": whole["a"]})
    assert (own, elsewhere) == ({"a": whole["a"]}, 540 * 32)
    assert line.stated_tokens(10, whole) == (whole, 0), "as versions before 0.2 told them"
    assert line.stated_tokens(10, {"a": 1, "b": 2}) == (own, elsewhere)


FP32 = {"training.precision": "fp32", "training.optimizer": {"kind": "adamw"}}
FP16 = FP32 | {"training.precision": "fp16"}


@pytest.mark.parametrize(
    ("settings", "fields", "told"),
    [
        (FP32, {}, ""),
        (FP32, {"optimizer": "adamw"}, ""),
        (FP32, {"optimizer": "ademamix"}, "optimizer: it has ademamix; it should be adamw"),
        (FP32, {"optimizer_steps": 9}, "taken 9 steps; the plan gives 10"),
        (FP16, {"optimizer_steps": 9, "loss_scale": 4.0}, ""),
        (None, {"optimizer_steps": 11}, "taken 11 steps; the plan gives 0 to 10"),
        (FP32, {"loss_scale": 2.0}, "loss_scale: it has 2.0; it should be null"),
        (FP16, {"loss_scale": math.inf}, "loss_scale: it has inf"),
        (FP32, {"world_size": 0}, "names optimizer-00-of-01.safetensors; it is of 0 workers"),
        (FP32, {"world_size": 10**9}, "names no optimizer-00-of-1000000000.safetensors"),
    ],
)
def test_a_checkpoints_optimizer_is_that_of_its_plan(
    settings: dict[str, Any] | None, fields: dict[str, Any], told: str
) -> None:
    state = RunState()
    for kind in WALK[:4]:
        state.apply(event_of(kind, state, "a"))
    (stage,) = state.stages
    line = PlannedFolder(
        stage.name, stage.folder, 0, stage.mix, stage.schedule, {}, 32, (), settings, False
    )
    entry = FileEntry(size_bytes=1, sha256="")
    names = ("optimizer-00-of-01.safetensors", "config.json", "metrics.jsonl", "model.safetensors")
    whole = CheckpointManifest(
        name=stage.name,
        step=10,
        phase="constant",
        eta=1e-3,
        schedule=stage.schedule,
        mix=stage.mix.to_dict(),
        mix_step=10,
        tokens_seen=line.tokens_seen(10),
        optimizer_steps=10,
        world_size=1,
        code_version="0",
        tracking_run="",
        files=dict.fromkeys(names, entry),
    )
    manifest = whole.model_copy(update=fields)
    found = [str(f) for f in check_checkpoint("checkpoints/00-a/00000010", manifest, line)]
    assert [told in line for line in found] == [True] * bool(told)


@pytest.mark.parametrize(
    ("events_then", "kept", "is_lost"),
    [(14, 14, False), (9, 14, False), (14, 13, True), (14, 9, True), (None, 9, False)],
)
def test_an_end_of_the_ledger_that_is_lost_with_its_head_is_seen_by_checkpoints(
    events_then: int | None, kept: int, is_lost: bool
) -> None:
    entries = _ledger()
    keys = sorted(entries)
    before = fold(entries)
    manifest = CheckpointManifest.model_construct(
        ledger_events=events_then,
        ledger_sha256=digest_of(entries[keys[events_then - 1]]) if events_then else "",
    )
    story = fold({key: entries[key] for key in keys[:kept]})
    assert not before.findings
    assert not story.findings, "without a head its end is any end"
    lines = [str(finding) for finding in check_ledger_position("checkpoints/a/1", manifest, story)]
    assert len(lines) == is_lost
    if is_lost:
        assert lines[0].startswith(f"{keys[13]}: is not the entry that checkpoints/a/1")
