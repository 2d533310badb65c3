"""Model cards: what was known of the trunk until the release, and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from perennial.config import RunSpec
from perennial.evaluation import HeldoutLoss
from perennial.evaluation.shift import Ratio, TextCost
from perennial.runs.averaging import read_average
from perennial.runs.model_card import lineage_lines, model_card
from perennial.runs.stage_planner import decide_average
from perennial.runs.state import RunState
from perennial.runs.unattended.replay_share import decide_share
from tests.support.event_factory import AT, STEPS, imported, walk
from tests.support.small_manifest import small_manifest
from tests.support.tiny_run import tiny_run

MANIFESTS = {name: small_manifest(name) for name in "ab"}


def _state() -> RunState:
    state = RunState()
    state.apply(imported())
    for number, name in enumerate("ab"):
        walk(state, name)
        state.losses[f"0{number}-{name}"] = {name: HeldoutLoss(name, 4.0, 1.0, 4, 40, 160, 0.1)}
    return state


def test_the_card_of_an_earlier_checkpoint_has_no_later_losses(tmp_path: Path) -> None:
    spec, state = RunSpec.model_validate(tiny_run(tmp_path)), _state()
    first, second = state.stages
    early = "\n".join(lineage_lines(spec, state, first, STEPS, MANIFESTS))
    assert "| held-out nats per token | a |" in early
    assert "01-b" not in early
    late = "\n".join(lineage_lines(spec, state, second, 2 * STEPS, MANIFESTS))
    assert "| 01-b | - | 4.000 |" in late


def test_the_card_says_why_a_stage_replayed_as_much_as_it_did(tmp_path: Path) -> None:
    spec, state = RunSpec.model_validate(tiny_run(tmp_path)), _state()
    own, new = (TextCost(4, None, None, Ratio(bits, 0.01)) for bits in (2.0, 3.0))
    decision = decide_share("c/a", own, new)
    state.stages[1] = replace(state.stages[1], share_decision=decision)
    first, second = state.stages
    late = lineage_lines(spec, state, second, 2 * STEPS, MANIFESTS)
    (line,) = (line for line in late if line.startswith("- Replay share of "))
    assert line == f"- Replay share of 01-b, measured before it began: {decision.describe()}."
    early = "\n".join(lineage_lines(spec, state, first, STEPS, MANIFESTS))
    assert "Replay share" not in early


def test_a_parent_is_named_once(tmp_path: Path) -> None:
    spec, state = RunSpec.model_validate(tiny_run(tmp_path)), _state()
    first = state.stages[0]
    second = replace(state.stages[1], start=f"{first.folder}/{first.last_step:08d}")
    state.stages[1] = second
    held = [(first, first.last_step), (second, second.last_step)]
    decided = decide_average(spec, held, read_average("last:2"), AT)
    card = model_card(spec, state, decided, MANIFESTS)
    (line,) = (line for line in card.splitlines() if line.startswith("- Parents: "))
    parents = line.removeprefix("- Parents: ").rstrip(".").split(", ")
    assert len(parents) == len({*parents}) == 2
