"""What a failure says in one line, wherever it was raised."""

from __future__ import annotations

import errno
import pickle
import traceback

import pytest
from ray.exceptions import RayTaskError, UserCodeException, WorkerCrashedError
from ray.train import WorkerGroupError

from perennial.causes import causes, describe, innermost_of, is_storage_full, storage_error
from perennial.corpora.ingest.task_failures import carried, raise_carried
from perennial.errors import InputError, StorageFull, TrainingFailed, TrainingStopped
from perennial.training.launcher import _first_failure

FULL = OSError(errno.ENOSPC, "No space left on device", "/store/a")


def raised(failure: Exception, cause: Exception | None = None) -> Exception:
    """Return an exception with a traceback, as a worker has it."""
    try:
        raise failure from cause
    except Exception as caught:
        return caught


def of_task(failure: Exception) -> Exception:
    """Return what the driver gets of a task that raised this."""
    printed = "".join(traceback.format_exception(failure))
    body = printed.partition("Traceback (most recent call last):\n")
    coloured = f"{body[0]}\x1b[36mray::write_shard()\x1b[39m (pid=7, ip=10.0.0.1)\n{body[2]}"
    # Causes do not survive the way to the driver.
    alone = pickle.loads(pickle.dumps(failure))
    arrived: Exception = RayTaskError("write_shard", coloured, alone).as_instanceof_cause()
    return arrived


def of_ray_data(failure: Exception) -> Exception:
    """Return what the driver gets of a task of Ray Data: a text alone."""
    wrapped = raised(UserCodeException("UDF failed to process a data block."), raised(failure))
    return of_task(wrapped)


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (OSError("no\nroute"), "no route"),
        (KeyError("rows"), "KeyError: 'rows'"),
        (MemoryError(), "MemoryError"),
        (raised(OSError("cannot read a"), KeyError("rows")), "cannot read a (KeyError: 'rows')"),
        (raised(OSError("cannot read: b is gone"), OSError("b is gone")), "cannot read: b is gone"),
        (of_task(raised(FULL)), "[Errno 28] No space left on device: '/store/a'"),
        (
            of_task(raised(RuntimeError("cannot write\nthe shard"), raised(FULL))),
            "cannot write the shard (OSError: [Errno 28] No space left on device: '/store/a')",
        ),
        (of_task(raised(ValueError("bad\nrow"))), "ValueError: bad row"),
        (of_ray_data(FULL), "OSError: [Errno 28] No space left on device: '/store/a'"),
        (of_ray_data(ValueError("bad\n row")), "ValueError: bad row"),
        (
            of_task(raised(InputError("a.txt", "", "no text", "land it"))),
            "a.txt: no text; land it",
        ),
        (TrainingFailed("00-a: ValueError: x"), "00-a: ValueError: x"),
    ],
)
def test_a_failure_is_one_line_with_its_innermost_cause(failure: Exception, line: str) -> None:
    assert describe(failure) == line


def test_what_ray_says_itself_is_told_in_its_words() -> None:
    assert describe(WorkerCrashedError()).startswith("The worker died unexpectedly")


def test_of_a_printed_traceback_the_first_cause_is_told() -> None:
    printed = "".join(
        traceback.format_exception(raised(RuntimeError("b"), raised(InputError("w", "", "p", "r"))))
    )
    assert innermost_of(printed) == "InputError: w: p; r"
    assert innermost_of("") == ""
    assert innermost_of("SystemExit: 1") == "SystemExit: 1"


def test_of_a_worker_group_the_mistake_counts_and_not_the_lost_connections() -> None:
    lost = RuntimeError("gloo: connection closed by peer")
    group = WorkerGroupError("several", {0: lost, 1: raised(TypeError("no such operand"))})
    first, line = _first_failure(group)
    assert isinstance(first, TypeError)
    assert line == "TypeError: no such operand"
    assert _first_failure(WorkerGroupError("one", {0: lost}))[1] == f"RuntimeError: {lost}"


def test_causes_that_name_each_other_end() -> None:
    failure = of_task(raised(KeyError("a")))
    own = next(link for link in causes(failure) if link is not failure)
    own.__cause__ = failure
    assert len(list(causes(own))) == 2


@pytest.mark.parametrize(
    "failure",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded", "/store/a"),
        OSError(errno.EIO, "XMinioStorageFull: Storage backend has reached its minimum", "s3://b"),
        PermissionError(errno.EACCES, "QuotaExceeded: Unknown", "s3://b"),
        of_task(raised(RuntimeError("cannot write"), raised(FULL))),
        of_ray_data(FULL),
        TrainingStopped("00-a: 3 checkpoints could not be stored: No space left on device"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ],
)
def test_a_full_storage_is_known_wherever_it_was_met(failure: Exception) -> None:
    assert is_storage_full(failure)
    told = storage_error(failure)
    assert isinstance(told, StorageFull)
    assert "\n" not in str(told)
    assert "free room" in str(told)


def test_a_traceback_that_shows_the_word_is_no_full_storage() -> None:
    assert not is_storage_full(raised(OSError(errno.EIO, "the disk is not full")))


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EROFS, "writable"),
        (errno.EACCES, "right"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "check that disk"),
        (errno.EFBIG, "ulimit -f"),
    ],
)
def test_a_refusal_of_the_system_names_its_remedy(number: int, remedy: str) -> None:
    told = str(storage_error(OSError(number, "what the system says", "/store/a")))
    assert told.startswith("/store/a: what the system says; ")
    assert remedy in told


class _Unreadable(Exception):
    """An exception that cannot be made again from its pickle."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)


def test_a_failure_of_a_task_arrives_with_its_class_its_causes_and_its_traceback() -> None:
    def work() -> str:
        raise InputError("a", "b", "c", "d", code="no-text") from KeyError("rows")

    with pytest.raises(InputError) as caught:
        raise_carried(carried(work)[0])
    assert caught.value.code == "no-text"
    assert isinstance(caught.value.__cause__, KeyError)
    printed = "".join(traceback.format_exception(caught.value))
    assert printed.count("in work") >= 1
    assert "a: b: c; d" in describe(caught.value)


def test_a_failure_that_cannot_be_sent_arrives_as_its_text() -> None:
    def work() -> str:
        raise _Unreadable(3, "odd")

    with pytest.raises(RuntimeError, match="_Unreadable: odd"):
        raise_carried(carried(work)[0])
    assert carried(lambda: "fine") == (b"", "fine")
    raise_carried(b"")


def test_a_failure_that_passes_by_itself_is_left_to_ray() -> None:
    def work() -> str:
        raise OSError("When reading information: AWS Error NETWORK_CONNECTION")

    with pytest.raises(OSError, match="AWS Error"):
        carried(work)
