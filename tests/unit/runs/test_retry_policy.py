"""Which failures are tried again: what may pass by itself, and nothing that is bound to recur."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from ray.exceptions import RayTaskError, WorkerCrashedError

from perennial.config.run import StagesSpec
from perennial.errors import TrainingFailed, TrainingStopped
from perennial.runs.retry_policy import failed, may_pass

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _caused(failure: Exception, cause: Exception) -> Exception:
    failure.__cause__ = cause
    return failure


PASSING = [
    OSError("no route to host"),
    ConnectionResetError("reset by peer"),
    MemoryError(),
    RuntimeError("gloo: connection closed by peer"),
    WorkerCrashedError(),
    RayTaskError("read", "Traceback", OSError("timed out")).as_instanceof_cause(),
    TrainingFailed("00-a: the workers ended before step 12"),
]
RECURRING = [
    TypeError("unsupported operand"),
    KeyError("rows"),
    ZeroDivisionError("division by zero"),
    RayTaskError("read", "Traceback", ValueError("bad row")).as_instanceof_cause(),
    RayTaskError("all", "T", RayTaskError("one", "T", KeyError("x"))).as_instanceof_cause(),
    _caused(TrainingFailed("00-a: TypeError"), TypeError("data type not understood")),
    TrainingStopped("00-a: step 7: loss 40 is a spike"),
]


@pytest.mark.parametrize("failure", PASSING, ids=repr)
def test_what_may_pass_is_tried_as_often_as_the_run_file_says(failure: Exception) -> None:
    spec = StagesSpec(attempts=3, retry_after_seconds=60)
    tries = [failed("a", before, failure, spec, NOW).next_try for before in range(3)]
    pauses = [timedelta(seconds=60), timedelta(seconds=120)]
    assert tries == [*((NOW + pause).isoformat() for pause in pauses), None]


@pytest.mark.parametrize("failure", RECURRING, ids=repr)
def test_a_mistake_waits_for_a_person_at_once(failure: Exception) -> None:
    told = failed("a", 0, failure, StagesSpec(attempts=3), NOW)
    assert (told.attempt, told.next_try) == (1, None)
    assert not may_pass(failure)


def test_the_reason_is_one_line_that_names_a_mistakes_kind() -> None:
    def reason(failure: Exception) -> str:
        return failed("a", 0, failure, StagesSpec(), NOW).reason

    assert reason(KeyError("rows")) == "KeyError: 'rows'"
    assert len(reason(OSError("x" * 9999))) == 500
