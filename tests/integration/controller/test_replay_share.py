"""A replay share of `auto` in the controller: measured once, shown everywhere; models played."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.config import RunSpec
from perennial.controller import evaluate_stage, replay_share
from perennial.controller.context import Workspace
from perennial.controller.loop import _Controller
from perennial.controller.replay_share import forecast_share, measure_share
from perennial.evaluation import HeldoutLoss
from perennial.evaluation.cache import keep_losses
from perennial.evaluation.loss import DocumentLoss, heldout_loss
from perennial.report import tables
from perennial.runs.event_codec import decode
from perennial.runs.events import Measured, Started
from perennial.runs.ledger import FOLDER
from perennial.runs.unattended.replay_share import ShareDecision
from perennial.store import Log
from tests.support.event_factory import WALK, event_of
from tests.support.tiny_run import tiny_run, write_run

NATS = {"a": 2.0, "b": 3.5, "c": 2.1}
MANIFEST = SimpleNamespace(counts=SimpleNamespace(held_out_documents=5))
"""As much of a corpus's manifest as is read."""


class PlayedMeasure:
    """Stands in for `measure`: keeps losses of documents as a Ray task does, and what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def __call__(
        self, work: Workspace, folder: str, corpora: Sequence[str], _references: Mapping[str, str]
    ) -> dict[str, HeldoutLoss]:
        self.asked.append((folder, tuple(corpora)))
        measured = {}
        for name in corpora:
            documents = [DocumentLoss(NATS[name] * n + n % 2, n, 4 * n) for n in range(20, 25)]
            keep_losses(work.store, folder, name, documents)
            measured[name] = heldout_loss(name, documents)
        return measured


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedMeasure:
    measure = PlayedMeasure()
    monkeypatch.setattr(replay_share, "measure", measure)
    monkeypatch.setattr(evaluate_stage, "read_manifest", lambda *_: MANIFEST)
    return measure


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    document = tiny_run(tmp_path)
    document["replay"]["share"] = "auto"
    document["schedule"] = {"kind": "constant", "eta_const": 1e-3}
    return write_run(tmp_path, document)


@pytest.fixture
def work(run_file: Path, tmp_path: Path) -> Iterator[Workspace]:
    document = tiny_run(tmp_path)
    document["replay"]["share"] = "auto"
    document["schedule"] = {"kind": "constant", "eta_const": 1e-3}
    opened = Workspace(RunSpec.model_validate(document), str(run_file))
    opened.take_charge()
    for corpus, kinds in (("a", WALK), ("b", WALK[:3])):
        for kind in kinds:
            opened.record(event_of(kind, opened.state, corpus))
    yield opened
    opened.close()


def _start(work: Workspace) -> None:
    controller = _Controller(work, reschedule=True)
    action = controller.next()
    assert action is not None
    assert action.verb == "start"
    controller.perform(action)


def _events(work: Workspace) -> list[object]:
    return [decode(data).event for data in Log(work.store, FOLDER).entries().values()]


def test_the_shift_is_measured_before_the_stage_and_the_stage_begins_with_what_it_took(
    work: Workspace, played: PlayedMeasure, run_file: Path
) -> None:
    assert forecast_share(work, work.state, ("b",)) == 0.25  # at most, where nothing is known
    _start(work)
    assert played.asked == [("c/a", ("a", "b"))]
    *_, measured, started = _events(work)
    assert isinstance(measured, Measured)
    assert isinstance(started, Started)
    decision = started.share_decision
    assert decision is not None
    assert decision.shift == pytest.approx(0.73, abs=0.02)
    assert (decision.share, started.mix.replay.share) == (0.18, 0.18)
    shown = json.loads(CliRunner().invoke(app, ["status", str(run_file), "--json"]).stdout)
    assert shown["shares"]["01-b"]["share"] == 0.18
    screen = CliRunner().invoke(app, ["status", str(run_file)]).stdout
    assert "replay    01-b: 18%" in screen
    (table,) = tables.replay_shares(work.state.stages)
    assert table.rows[0][:2] == ("01-b", "18%")


def test_beside_the_measurement_of_the_stage_before_it_is_the_same_share(
    run_file: Path, tmp_path: Path, played: PlayedMeasure
) -> None:
    document = tiny_run(tmp_path, store=str(tmp_path / "beside"))
    document["replay"]["share"] = "auto"
    document["schedule"] = {"kind": "constant", "eta_const": 1e-3}
    document["evaluation"]["beside_training"] = True
    work = Workspace(RunSpec.model_validate(document), str(run_file))
    work.take_charge()
    for corpus, kinds in (("a", WALK[:5]), ("b", WALK[:3])):
        for kind in kinds:
            work.record(event_of(kind, work.state, corpus))
    _start(work)
    assert played.asked == [("c/a", ("a", "b"))]
    *before, started = _events(work)
    assert not [event for event in before if isinstance(event, Measured)], "with all the others"
    assert isinstance(started, Started)
    assert started.share_decision is not None
    assert started.mix.replay.share == started.share_decision.share == 0.18
    work.close()


def test_one_that_was_killed_before_the_stage_began_measures_nothing_again(
    work: Workspace, played: PlayedMeasure
) -> None:
    first = measure_share(work, ("b",))
    again = measure_share(work, ("b",))
    assert isinstance(first, ShareDecision)
    assert first == again == forecast_share(work, work.state, ("b",))
    assert len(played.asked) == 1


def test_a_corpus_that_lands_later_is_measured_alone_and_a_stage_that_began_never_again(
    work: Workspace, played: PlayedMeasure
) -> None:
    _start(work)
    before = work.state.stages[-1]
    for kind in WALK[4:]:
        work.record(event_of(kind, work.state, "b"))
    for kind in WALK[:3]:
        work.record(event_of(kind, work.state, "c"))
    _start(work)
    assert played.asked[1:] == [("c/b", ("a", "b", "c"))]
    assert work.ledger.read().stages[1] == before
    assert work.state.stages[2].mix.replay.share == 0.05
