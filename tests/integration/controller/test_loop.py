"""What the controller writes of what goes wrong, and what a person reads of it; without compute."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.cli.console import ProgressScreen
from perennial.config import RunSpec
from perennial.controller import evaluate_stage, loop
from perennial.controller import questions as questions_module
from perennial.controller.context import Workspace
from perennial.controller.decisions import choices
from perennial.controller.loop import _Controller, advance, todo
from perennial.errors import InputError, StorageFull, Superseded
from perennial.evaluation import Answers, HeldoutLoss, Loading, Questions
from perennial.evaluation.budget import Draw
from perennial.evaluation.gates import Verdict
from perennial.runs.actions import Action
from perennial.runs.events import Gated
from perennial.runs.ledger import Ledger
from perennial.runs.stage_planner import decide_stage
from tests.support.controllers import supersede
from tests.support.event_factory import AT, WALK, event_of, released, releasing
from tests.support.tiny_run import tiny_run, write_run, write_texts


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    document = tiny_run(tmp_path)
    document["stages"] |= {"attempts": 2, "retry_after_seconds": 3600, "batch_arrivals": {}}
    return write_run(tmp_path, document)


@pytest.fixture
def work(run_file: Path, tmp_path: Path) -> Iterator[Workspace]:
    document = tiny_run(tmp_path)
    document["stages"] |= {"attempts": 2, "retry_after_seconds": 3600, "batch_arrivals": {}}
    opened = Workspace(RunSpec.model_validate(document), str(run_file), [ProgressScreen()])
    opened.take_charge()
    yield opened
    opened.close()


def _write(work: Workspace, corpus: str, *kinds: str, joined: tuple[str, ...] = ()) -> None:
    for kind in kinds:
        work.record(event_of(kind, work.state, corpus, joined=joined))


def _raising(failure: Exception) -> None:
    raise failure


@pytest.mark.parametrize("at", range(1, len(WALK)))
def test_whatever_was_being_done_its_failure_is_written_down(work: Workspace, at: int) -> None:
    _write(work, "a", *WALK[:at])
    before, controller = work.state.corpora["a"].state, _Controller(work, reschedule=False)
    for attempt in (1, 2):
        controller._try("a", lambda: _raising(OSError("the store is away")))
        corpus = work.state.corpora["a"]
        assert (corpus.state, corpus.back, corpus.attempt) == ("failed", before, attempt)
        assert (corpus.next_try is None) == (attempt == 2)
        if attempt == 1:
            assert todo(work)[0] == f"wait a until {corpus.next_try}"
            assert controller.gave_up is None
            work.record(
                event_of("retried", work.state, "a").model_copy(update={"by_person": False})
            )
    assert isinstance(controller.gave_up, OSError)


def test_a_mistake_is_not_tried_again_and_its_kind_is_told(work: Workspace) -> None:
    _write(work, "a", *WALK[:4])
    controller = _Controller(work, reschedule=False)
    controller._try("a", lambda: _raising(TypeError("no such operand")))
    corpus = work.state.corpora["a"]
    assert (corpus.attempt, corpus.next_try) == (1, None)
    reason, _, rest = corpus.reason.partition(" (the whole text: ")
    assert reason == "TypeError: no such operand"
    whole = work.store.read(rest.removesuffix(")")).decode()
    assert whole.startswith("Traceback (most recent call last)")
    assert "in _raising" in whole
    assert isinstance(controller.gave_up, TypeError)


def test_the_text_of_a_failure_holds_no_secret_and_is_never_overwritten(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-hush")
    _write(work, "a", *WALK[:4])
    for failure in ("hush-hush-hush", "http://user:hush@host/a?X-Amz-Signature=hush"):
        _Controller(work, reschedule=False)._try("a", partial(_raising, OSError(failure)))
        assert "hush" not in work.state.corpora["a"].reason
        work.record(event_of("retried", work.state, "a"))  # attempts are counted from the start
    texts = [work.store.read(info.key).decode() for info in work.store.list("failures/a")]
    assert len(texts) == 2
    assert "hush" not in "".join(texts)


def test_a_full_storage_is_no_failure_of_the_corpus(work: Workspace) -> None:
    _write(work, "a", *WALK[:4])
    full = OSError(errno.ENOSPC, "No space left on device", "/store/a")
    with pytest.raises(StorageFull, match="/store/a: No space left on device; free room"):
        _Controller(work, reschedule=False)._try("a", lambda: _raising(full))
    assert work.state.corpora["a"].state == "training"
    assert work.store.list("failures") == []


@pytest.mark.parametrize("end", [InputError("w", "f", "p", "r"), Superseded("another")])
def test_what_is_no_failure_of_the_corpus_is_not_written_of_it(
    work: Workspace, end: Exception
) -> None:
    _write(work, "a", *WALK[:4])
    with pytest.raises(type(end)):
        _Controller(work, reschedule=False)._try("a", lambda: _raising(end))
    assert work.state.corpora["a"].state == "training"


def test_a_controller_that_lost_its_charge_writes_no_failure(work: Workspace) -> None:
    _write(work, "a", *WALK[:4])
    supersede(work)
    with pytest.raises(Superseded):
        _Controller(work, reschedule=False)._try("a", lambda: _raising(OSError("away")))
    assert work.ledger.read().corpora["a"].state == "training"


def test_a_release_by_policy_that_fails_is_not_tried_at_every_look(
    run_file: Path, tmp_path: Path
) -> None:
    document = tiny_run(tmp_path)
    document["release"]["policy"] = "each-stage"
    document["schedule"] = {"kind": "cosine", "eta_max": 3e-3, "eta_min": 3e-4}
    work = Workspace(RunSpec.model_validate(document), str(run_file), [ProgressScreen()])
    work.take_charge()
    _write(work, "a", *WALK[:3])
    work.record(decide_stage(work.spec, work.state, "a", AT, "", reschedule=False))
    _write(work, "a", *WALK[4:])
    # Decayed already, it needs no anneal; but its corpus is in no store.
    with pytest.raises(InputError, match="corpora/a"):
        advance(work, wait=False)
    (begun,) = work.state.releasing.values()
    assert begun.claim == 1
    assert work.setbacks[begun.name].next_try is not None
    assert advance(work, wait=False) == 0
    assert Ledger(work.store).read().releasing[begun.name].claim == 1
    work.close()


TOLD = {
    "landed": ["landed"],
    "ingesting": WALK[:2],
    "ready": WALK[:3],
    "training (starting, step 10)": WALK[:4],
    "trained": WALK[:5],
    "evaluating": WALK[:6],
    "evaluated": WALK[:7],
    "gated": [*WALK[:7], "gated"],
    "passed": WALK,
    "held": ["landed", "held"],
    "refused": ["landed", "refused"],
    "failed (attempt 1 of 3, next waits for `retry`)": [*WALK[:4], "failed"],
    "retired": [*WALK, "retired"],
}


@pytest.mark.parametrize("told", TOLD)
def test_a_person_reads_each_state_and_why(work: Workspace, run_file: Path, told: str) -> None:
    _write(work, "first", *WALK)
    _write(work, "b", *TOLD[told])
    done = CliRunner().invoke(app, ["status", str(run_file), "--json"])
    status = json.loads(done.stdout)
    assert status["corpora"]["b"] == told
    reasons = {"held": "later", "refused": "too small", "failed": "it broke"}
    why = reasons.get(told.split()[0])
    assert status["reasons"] == ({"b": why} if why else {})


def test_a_person_reads_that_a_stages_end_is_being_released_and_was(
    work: Workspace, run_file: Path
) -> None:
    _write(work, "first", *WALK)

    def told() -> str:
        status = CliRunner().invoke(app, ["status", str(run_file), "--json"])
        return str(json.loads(status.stdout)["corpora"]["first"])

    work.record(releasing(work.state, "r"))
    assert told() == "releasing"
    work.record(released("r"))
    assert told() == "released"


def test_a_corpus_that_a_person_retired_is_replayed_no_more_and_stays_in_the_lineage(
    work: Workspace, run_file: Path
) -> None:
    for name in ("a", "b"):
        _write(work, name, *WALK)
    _write(work, "c", *WALK[:3])
    done = CliRunner().invoke(app, ["retire", str(run_file), "a", "--json"])
    assert json.loads(done.stdout)["state"] == "retired"
    state = work.ledger.read()
    started = decide_stage(work.spec, state, "c", AT, "", reschedule=True)
    assert [source.corpus for source in started.mix.sources] == ["c", "b"]
    assert [stage.name for stage in state.stages] == ["00-a", "01-b"]


def test_of_a_gated_stage_of_several_corpora_each_choice_says_whom_it_concerns(
    work: Workspace, run_file: Path
) -> None:
    for name in ("a", "b"):
        _write(work, name, *WALK[:3])
    assert todo(work) == ["start a and b"]
    _write(work, "a", *WALK[3:7], "gated", joined=("b",))
    done = CliRunner().invoke(app, ["status", str(run_file), "--json"])
    gated = json.loads(done.stdout)["gated"]
    assert (gated["stage"], gated["corpora"]) == ("00-a-and-1-more", ["a", "b"])
    said = CliRunner().invoke(app, ["status", str(run_file)]).stdout
    assert "together  00-a-and-1-more: a, b" in said
    assert choices(work.state, "run.yaml")[2] == (
        "perennial refuse run.yaml a",
        "leave a out; b will be trained without it",
    )
    accepted = CliRunner().invoke(app, ["accept", str(run_file), "b", "--json"])
    assert json.loads(accepted.stdout)["state"] == "passed"
    assert work.ledger.read().gated is None


def test_a_retired_corpus_is_replayed_again_once_a_person_says_so(
    work: Workspace, run_file: Path
) -> None:
    for name in ("a", "b"):
        _write(work, name, *WALK)
    _write(work, "a", "retired")
    done = CliRunner().invoke(app, ["unretire", str(run_file), "a", "--json"])
    assert json.loads(done.stdout)["state"] == "passed"
    assert work.ledger.read().retired == ()
    again = CliRunner().invoke(app, ["unretire", str(run_file), "a"])
    assert again.exit_code == 2


@pytest.mark.parametrize(
    "policy",
    [
        {"policy": "each-stage"},
        {"policy": "every", "every": "5 steps"},
        {"policy": "schedule", "schedule": "0 0 * * *"},
    ],
)
def test_a_release_that_cannot_be_decided_stops_nothing_and_says_why(
    tmp_path: Path, policy: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every corpus retired, a policy that wants a release, and a new corpus."""
    document = tiny_run(tmp_path)
    document["release"] |= policy
    path = write_run(tmp_path, document)
    work = Workspace(RunSpec.model_validate(document), str(path), [ProgressScreen()])
    monkeypatch.setattr(loop, "committed_steps", lambda *_: [5, 10])
    work.take_charge()
    _write(work, "a", *WALK[:3])
    work.record(decide_stage(work.spec, work.state, "a", AT, "", reschedule=False))
    _write(work, "a", *WALK[4:])
    _write(work, "a", "retired")
    texts = write_texts(tmp_path)
    CliRunner().invoke(app, ["land", str(path), "code", str(texts["code"])])
    assert todo(work) == ["take up code", f"no release by policy: {work.undecided}"]
    assert "every corpus of the stage is retired" in work.undecided
    assert "perennial unretire" in work.undecided
    status = CliRunner().invoke(app, ["status", str(path), "--json"])
    assert (status.exit_code, json.loads(status.stdout)["next"]) == (0, todo(work))
    controller = _Controller(work, reschedule=False)
    action = controller.next()
    assert action is not None
    controller.perform(action)
    assert work.state.corpora["code"].state == "landed"
    _write(work, "a", "unretired")
    assert todo(work)[0].startswith("release 00-a-")
    work.close()


def test_a_loss_that_is_no_number_stops_the_run_at_its_gate(
    work: Workspace, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any bound in the run file; the next stage must not start from such a model."""
    _write(work, "a", *WALK[:5])
    loss = HeldoutLoss("a", math.nan, math.nan, 2, 10, 40, math.nan)
    monkeypatch.setattr(evaluate_stage, "examine", lambda *_: Answers({"a": loss}, (), ()))
    questions = Questions(corpora=("a",), sequence_length=128, max_documents=2, seed=1)
    monkeypatch.setattr(evaluate_stage, "questions_of", lambda *_: questions)
    monkeypatch.setattr(work, "use_ray", lambda: None)
    evaluate_stage.evaluate(work, "a")
    evaluate_stage.judge(work, "a")
    assert work.state.corpora["a"].state == "gated"
    told = CliRunner().invoke(app, ["status", str(run_file)]).stdout
    assert "a: its held-out loss is not a number" in told
    status = CliRunner().invoke(app, ["status", str(run_file), "--json"])
    assert json.loads(status.stdout)["gated"]["verdicts"][0]["gate"] == "finite"
    assert CliRunner().invoke(app, ["accept", str(run_file), "a"]).exit_code == 0
    assert CliRunner().invoke(app, ["status", str(run_file)]).exit_code == 0


def test_an_evaluation_that_is_killed_goes_on_with_the_corpora_that_were_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever became ready meanwhile, and whatever the run file says now."""
    document = tiny_run(tmp_path) | {
        "evaluation": {"corpora": 1},
        "gates": {"max_forgetting": 9.0, "corpora": ["b"]},
    }
    asked: list[Questions] = []

    def measure(_store: object, _folder: str, questions: Questions) -> Answers:
        asked.append(questions)
        if len(asked) == 1:
            raise KeyboardInterrupt
        losses = {name: HeldoutLoss(name, 1.0, 0.5, 2, 10, 40, 0.1) for name in questions.corpora}
        return Answers(losses, (), ())

    monkeypatch.setattr(evaluate_stage, "examine", measure)
    monkeypatch.setattr(questions_module, "loading_of", lambda _: Loading())
    monkeypatch.setattr(Workspace, "use_ray", lambda _: None)
    for attempt in range(2):
        document["evaluation"] = {"corpora": 1 + attempt}
        work = Workspace(RunSpec.model_validate(document), "run.yaml")
        work.take_charge()
        if attempt == 0:
            for corpus in ("a", "b", "c"):
                _write(work, corpus, *WALK)
            _write(work, "d", *WALK[:5])
            with pytest.raises(KeyboardInterrupt):
                evaluate_stage.evaluate(work, "d")
            _write(work, "e", *WALK[:3])
        else:
            evaluate_stage.evaluate(work, "d")
            evaluate_stage.judge(work, "d")
        work.close()
    assert [questions.corpora for questions in asked] == [("a", "b", "d")] * 2
    assert [questions.sources for questions in asked] == [("b", "d")] * 2
    assert {*work.state.losses["03-d"]} == {"a", "b", "d"}
    assert work.state.draws["03-d"] == Draw(("b",), ("a",), 2)
    assert work.state.corpora["d"].state == "passed"
    assert [verdict.subject for verdict in work.state.verdicts["03-d"]] == ["b"]


def test_a_stage_that_forgot_too_much_is_trained_again_with_more_replay_then_waits(
    run_file: Path, tmp_path: Path
) -> None:
    document = tiny_run(tmp_path)
    document["gates"] = {"on_broken": "retry-with-more-replay", "max_retries": 1}
    path = write_run(tmp_path, document)
    work = Workspace(RunSpec.model_validate(document), str(path), [ProgressScreen()])
    work.take_charge()
    verdict = Verdict("max_forgetting", "a", 0.4, 0.01, 0.1, False)
    _write(work, "a", *WALK)
    _write(work, "b", *WALK[:7])
    work.record(Gated(at=AT, corpus="b", verdicts=[verdict]))
    controller = _Controller(work, reschedule=True)
    assert todo(work) == ["retry-with-more-replay b"]
    action = controller.next()
    assert action is not None
    controller.perform(action)
    assert (work.state.corpora["b"].state, work.state.corpora["b"].replay) == ("ready", 0.5)
    told = json.loads(CliRunner().invoke(app, ["status", str(path), "--json"]).stdout)
    assert told["reasons"]["b"] == "01-b: max_forgetting of a is +0.400, bound 0.1"
    work.record(decide_stage(work.spec, work.state, "b", AT, "", reschedule=True))
    _write(work, "b", *WALK[4:7])
    work.record(Gated(at=AT, corpus="b", verdicts=[verdict]))
    assert controller.next() == Action("wait", "b")
    screen = CliRunner().invoke(app, ["status", str(path)]).stdout
    assert "stopped   no retry: its replay share is 50% already" in screen
    work.close()


def test_a_limit_ends_a_run_with_its_reason_and_the_clock_lifts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tiny_run(tmp_path)
    document["limits"] = {"stages_per_day": 1}
    path = write_run(tmp_path, document)
    work = Workspace(RunSpec.model_validate(document), str(path), [ProgressScreen()])
    work.take_charge()
    _write(work, "a", *WALK)
    _write(work, "b", *WALK[:3])
    monkeypatch.setattr(loop, "now", lambda: "2026-01-01T23:59:59+00:00")
    waits = "wait b until 2026-01-02T00:00:00+00:00: 1 of 1 stages of 2026-01-01 have begun"
    assert todo(work) == [waits]
    assert advance(work) == 0  # without waiting for the day to pass
    assert work.waiting == (waits.replace("wait b", "b waits"),)
    status = CliRunner().invoke(app, ["status", str(path), "limits.stages_per_day=9", "--json"])
    assert json.loads(status.stdout)["next"] == ["start b"]
    monkeypatch.setattr(loop, "now", lambda: "2026-01-02T00:00:00+00:00")
    assert todo(work) == ["start b"]
    work.close()


def test_a_stage_waits_for_approval_and_says_so(tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    document["stages"]["approval"] = "manual"
    path = write_run(tmp_path, document)
    work = Workspace(RunSpec.model_validate(document), str(path), [ProgressScreen()])
    work.take_charge()
    _write(work, "a", *WALK[:3])
    assert advance(work) == 0
    assert work.waiting == ("the stage of a waits for `accept`",)
    shown = json.loads(CliRunner().invoke(app, ["status", str(path), "--json"]).stdout)
    assert shown["corpora"] == {"a": "ready (waits for `accept`)"}
    assert shown["next"] == ["the stage of a waits for `accept`"]
    automatic = CliRunner().invoke(app, ["accept", str(path), "a", "stages.approval=automatic"])
    assert automatic.exit_code == 2
    assert "its stage waits for no approval" in automatic.stderr
    accepted = CliRunner().invoke(app, ["accept", str(path), "a", "--json"])
    assert json.loads(accepted.stdout)["state"] == "ready"
    work.refresh()
    assert todo(work) == ["start a"]
    work.close()
