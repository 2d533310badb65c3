"""A finished run whose trunk is taken back, in a folder and a bucket, killed where it can be."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from typer.testing import CliRunner

import perennial
from perennial.audit.verify import verify
from perennial.cli.app import app
from perennial.controller import reuse_trial
from perennial.controller.context import Workspace
from perennial.controller.loop import _Controller
from perennial.errors import Busy, InputError
from perennial.runs.actions import Action
from perennial.runs.job_factory import stage_job
from perennial.runs.ledger import Ledger
from perennial.store import Store, copy_checked
from perennial.training.checkpoint import manifest as manifests
from perennial.training.checkpoint.manifest import committed_steps, read_manifest
from perennial.training.checkpoint.reader import check_latest
from perennial.training.spikes.skips import Skip, read_skips, record_skip
from tests.integration.audit.conftest import filled
from tests.integration.audit.test_verify import edit
from tests.support.small_ledger import objects

HELP, CODE = "checkpoints/00-help", "checkpoints/01-code"
MIDDLE = f"{CODE}/00000017"


def _findings(store: Store) -> list[str]:
    return [str(finding) for finding in verify(store).findings]


def _do(*words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def _controller(store: Store) -> tuple[Workspace, _Controller]:
    work = Workspace(perennial.open(store.url).spec, store.url)
    work.take_charge()
    return work, _Controller(work, reschedule=False)


def test_later_stages_leave_and_nothing_is_removed(store: Store) -> None:
    before = objects(store)
    assert _do("rewind", store.url, "00-help", "--dry-run")["todo"] == ["01-code leaves the trunk"]
    assert objects(store) == before
    told = _do("rewind", store.url, "00-help", "--reason", "its text is wrong")
    assert (told["left"], told["held"], told["goes_on"]) == (["01-code"], ["code"], [])
    after = objects(store)
    assert before.items() - after.items() <= {("leases/head.json", before["leases/head.json"])}
    assert _findings(store) == []
    status = _do("status", store.url)
    assert (status["corpora"], status["next"]) == ({"help": "passed", "code": "held"}, [])
    assert status["reasons"] == {"code": "its text is wrong"}
    assert status["trunk"]["stage"] == "00-help"
    again = _do("rewind", store.url, "00-help")
    assert (again["left"], objects(store).keys()) == ([], after.keys())
    assert _do("retry", store.url, "code")["state"] == "ready"
    assert _do("status", store.url)["next"] == ["start code"]


def test_a_stage_goes_on_from_its_middle_also_where_that_was_killed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 17 in committed_steps(store, CODE)
    done = perennial.open(store.url).rewind("01-code@17")
    assert (done.left, done.held, done.goes_on) == (("01-code",), (), ("code",))
    assert _findings(store) == []
    work, controller = _controller(store)
    action = controller.next()
    assert action == Action("start", "code")
    controller.perform(action)
    stage = work.state.stages[-1]
    assert (stage.name, stage.resumes) == ("02-code", MIDDLE)
    assert _findings(store) == []

    copied: list[str] = []

    def killed(*asked: Any) -> None:
        if len(copied) == 2:
            raise KeyboardInterrupt
        copied.append(asked[3])
        copy_checked(*asked)

    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(manifests, "copy_checked", killed)
        reuse_trial.adopt(work, stage)
    assert committed_steps(store, stage.folder) == []
    assert _findings(store) == []
    reuse_trial.adopt(work, stage)
    assert committed_steps(store, stage.folder) == [17]
    first, second = (read_manifest(store, f"{f}/00000017") for f in (CODE, stage.folder))
    assert second == first.model_copy(update={"name": "02-code"})
    assert _findings(store) == []
    job = stage_job(work.spec, work.state, stage, work.manifests())
    assert job.tokens_at(17) == first.tokens_seen
    check_latest(job, store)
    work.close()


def test_batches_that_were_left_out_before_that_step_stay_left_out(local: Store) -> None:
    for step in (15, 20):
        record_skip(local, CODE, Skip(step=step, reason="a spike", origins=()))
    perennial.open(local.url).rewind("01-code@17")
    work, controller = _controller(local)
    action = controller.next()
    assert action is not None
    controller.perform(action)
    reuse_trial.adopt(work, work.state.stages[-1])
    assert [skip.step for skip in read_skips(local, "checkpoints/02-code")] == [15]
    work.close()


def test_a_controller_that_lives_is_not_overruled_unless_a_user_insists(local: Store) -> None:
    work, _ = _controller(local)
    run = perennial.open(local.url)
    with pytest.raises(Busy):
        run.rewind("00-help")
    assert run.rewind("00-help", take_over=True).left == ("01-code",)
    assert work.ledger.read().epoch > 1
    work.close()


def _set(field: str, value: str, event: Any) -> None:
    event[field] = value


def _another_plan(store: Store, field: str) -> None:
    def change(manifest: Any) -> None:
        if field == "mix":
            manifest["mix"]["sources"][0]["start"] += 1
        else:
            manifest["schedule"]["eta_max"] *= 2

    edit(store, f"{MIDDLE}/manifest.json", change)


@pytest.mark.parametrize("field", ["mix", "schedule"])
def test_a_checkpoint_of_another_plan_is_never_gone_on_from(local: Store, field: str) -> None:
    """Its step alone is right: by the verb, by the copy into a stage, and by a job."""
    run = perennial.open(local.url)
    stage = Ledger(local).read().stages[1]
    for step in committed_steps(local, CODE):
        if step > 17:
            local.remove(f"{CODE}/{step:08d}")
    work = Workspace(run.spec, local.url)
    work.ledger.read()
    job = stage_job(work.spec, work.state, stage, work.manifests())
    check_latest(job, local)
    run.rewind("01-code@17")
    _another_plan(local, field)
    work, controller = _controller(local)
    action = controller.next()
    assert action is not None
    controller.perform(action)
    stage = work.state.stages[-1]
    for act in (partial(reuse_trial.adopt, work, stage), partial(check_latest, job, local)):
        with pytest.raises(InputError) as wrong:
            act()
        assert wrong.value.code == "checkpoint-of-another-plan"
        assert field in str(wrong.value)
    assert committed_steps(local, "checkpoints/02-code") == []
    work.close()


@pytest.mark.parametrize(
    ("place", "code", "told"),
    [
        ("02-none", "stage-missing", "its stages: 00-help, 01-code"),
        ("01-code@18", "checkpoint-missing", "give 01-code@"),
        ("01-code@", "checkpoint-missing", "there is no checkpoint 01-code@"),
        ("01-code@x", "checkpoint-missing", "there is no checkpoint 01-code@x"),
    ],
)
def test_a_place_that_is_none_is_refused(local: Store, place: str, code: str, told: str) -> None:
    before = objects(local)
    error = _do("rewind", local.url, place, code=2)["error"]
    assert (error["code"], error["field"]) == (code, "STAGE")
    assert told in error["message"]
    assert objects(local) == before


def test_the_verb_refuses_a_checkpoint_of_another_plan(local: Store) -> None:
    _another_plan(local, "mix")
    before = objects(local)
    error = _do("rewind", local.url, "01-code@17", code=2)["error"]
    assert error["code"] == "checkpoint-of-another-plan"
    assert objects(local) == before


def test_verify_finds_a_lost_checkpoint_and_another_plan(local: Store) -> None:
    perennial.open(local.url).rewind("01-code@17")
    objects_before = objects(local)
    local.remove(MIDDLE)
    assert any(f"{MIDDLE}/manifest.json: is missing" in line for line in _findings(local))
    filled(local, objects_before)
    work, controller = _controller(local)
    action = controller.next()
    assert action is not None
    controller.perform(action)
    work.close()
    assert _findings(local) == []
    local.remove(MIDDLE)
    assert any(f"{MIDDLE}/manifest.json: is missing" in line for line in _findings(local))
    filled(local, objects_before)
    key = next(
        key
        for key, data in sorted(objects(local).items())
        if key.startswith("ledger/") and b"resumes" in data
    )
    whole = objects(local)
    for field, value in {"resumes": f"{HELP}/00000010", "optimizer": "keep"}.items():
        edit(local, key, partial(_set, field, value))
        assert any("goes on from" in line for line in _findings(local))
        filled(local, whole)
