"""Ray Train's failures under our policy: what counts is whether training gets on."""

from __future__ import annotations

from pathlib import Path

from ray.train import WorkerGroupError
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from perennial.store import open_store
from perennial.training.checkpoint.manifest import MANIFEST, folder_of
from perennial.training.ray.elastic import CheckpointProgress, FailuresInARow

FOLDER = "checkpoints/00-help"
RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE


def test_failures_without_a_new_checkpoint_exhaust_the_tries(tmp_path: Path) -> None:
    policy = FailuresInARow(2, CheckpointProgress(str(tmp_path)), lambda: FOLDER)
    assert [_fail(policy) for _ in range(3)] == [RETRY, RETRY, RAISE]


def test_a_failure_after_a_new_checkpoint_is_the_first_one(tmp_path: Path) -> None:
    policy = FailuresInARow(1, CheckpointProgress(str(tmp_path)), lambda: FOLDER)
    for step in range(1, 10):
        assert _fail(policy) is RETRY
        _commit(tmp_path, step)
    assert [_fail(policy) for _ in range(2)] == [RETRY, RAISE]


def test_checkpoints_of_an_earlier_attempt_are_no_news(tmp_path: Path) -> None:
    _commit(tmp_path, 5)
    policy = FailuresInARow(0, CheckpointProgress(str(tmp_path)), lambda: FOLDER)
    assert _fail(policy) is RAISE


def test_failures_are_counted_for_each_job(tmp_path: Path) -> None:
    at_work = [FOLDER]
    policy = FailuresInARow(1, CheckpointProgress(str(tmp_path)), lambda: at_work[-1])
    assert _fail(policy) is RETRY
    at_work.append("checkpoints/01-code")
    assert [_fail(policy) for _ in range(2)] == [RETRY, RAISE]


def test_workers_that_fail_between_two_jobs_are_let_go(tmp_path: Path) -> None:
    policy = FailuresInARow(9, CheckpointProgress(str(tmp_path)), lambda: None)
    assert _fail(policy) is RAISE


def _fail(policy: FailuresInARow) -> FailureDecision:
    dead = RuntimeError("a worker died")
    return policy.make_decision(WorkerGroupError("some died", {0: dead}))


def _commit(store: Path, step: int) -> None:
    open_store(str(store)).create(f"{folder_of(FOLDER, step)}/{MANIFEST}", b"{}")
