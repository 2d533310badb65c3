"""Every exception that Perennial raises, in one tree.

    BaseException
    └── Terminated              the process was asked to end (SIGTERM); no handler may go on
    Exception
    └── PerennialError          an end that has a sentence and an exit code of its own
        ├── InputError          the input is wrong: exit code 2
        ├── LedgerError
        │   ├── LostRace            another process wrote this ledger entry first
        │   ├── LogGap              an entry of a log is missing, and a later one is there
        │   ├── InvalidTransition   an event that cannot follow the ledger's state
        │   ├── NewerSchema         written by a later version of Perennial
        │   ├── StaleDecision       a decision that no longer fits the ledger: decide again
        │   ├── Superseded          another controller, or another claim, is in charge
        │   └── Busy                another process holds the lease: exit code 3
        ├── TrainingFailed      the worker group gave up
        │   └── TrainingStopped     another try would meet the same batch again
        ├── Altered             a stored file is missing, or is not what was promised of it
        ├── CheckpointError
        │   ├── Damaged             a file of a committed checkpoint is missing or altered
        │   │   └── Vanished            ... because retention or a quarantine removed it
        │   ├── Unsound             damage that any rank met, raised on all of them
        │   ├── StartDamaged        the checkpoint that a job starts from is damaged
        │   └── StoreFailed         too many checkpoints in a row could not be stored
        ├── Preempted           the worker group was asked to end; its checkpoint is committed
        ├── Spike               an optimizer step that must not be kept
        ├── StorageError        a store or a disk refuses; the words are its own
        │   └── StorageFull         ... because it is full; who frees it repeats the command
        ├── TaskFailed          a task of the cluster failed
        ├── TrialFailed         a trial of a search failed too often
        ├── PullFailed          a source, or one of its files, cannot be pulled now
        │   ├── PullRefused         ... because a rule of the source forbids it
        │   └── PullSpent           ... because the pull has used up its bytes or its time
        ├── Unsteady            a request failed in a way that may pass
        └── InputMoved          a file changed while it was read

Handlers ask `isinstance`. `code` is stable: `--json` prints it, and tests match on it instead of on
the sentence, which may be reworded.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""Exceptions that indicate a bug or bad input; retrying cannot help. A machine, a network or a
store that fails raises others, such as OSError and RuntimeError."""

RUN_FILE = "run file"
"""`where` of an error of a run file whose name is not known where it is raised"""


class Terminated(BaseException):
    """End the process: it received SIGTERM, and its workers stored a checkpoint of their last step.

    Not an Exception, so that no handler for failures takes a request to end for one.
    """

    exit_code: ClassVar[int] = 128 + signal.SIGTERM
    code: ClassVar[str] = "terminated"


class PerennialError(Exception):
    """Base of every failure that the command line reports in one line, without a traceback."""

    exit_code: ClassVar[int] = 1
    code: str = "failed"

    def to_dict(self) -> dict[str, Any]:
        """Return the error as `--json` prints it."""
        return {"code": self.code, "message": str(self), "exit_code": self.exit_code}


class InputError(PerennialError):
    """Report wrong input before any compute, in one line.

    Attributes:
        others: what else is wrong with the same input, each an error of one line; `join_errors`
            puts them there.

    Args:
        where: the file (or command) that holds the mistake.
        field: the dotted name of the field in it, or "" when the whole file is meant.
        problem: what is wrong, with the value that was found.
        remedy: what would be right.
        code: the kind of mistake, stable over versions.
    """

    exit_code = 2
    code = "input"

    def __init__(
        self, where: str, field: str, problem: str, remedy: str, code: str = "input"
    ) -> None:
        super().__init__(where, field, problem, remedy, code)
        self.where = where
        self.field = field
        self.problem = problem
        self.remedy = remedy
        self.code = code
        self.others: tuple[InputError, ...] = ()

    def __str__(self) -> str:
        return "\n".join([self.line, *(other.line for other in self.others)])

    @property
    def line(self) -> str:
        """Return this error alone, without the others."""
        place = f"{self.where}: {self.field}" if self.field else self.where
        return f"{place}: {self.problem}; {self.remedy}"

    def name_file(self, file: str) -> InputError:
        """Return the error with the name of the run file, where it only says that it is one.

        Args:
            file: as the user named it.
        """
        where = file if self.where == RUN_FILE else self.where
        named = InputError(where, self.field, self.problem, self.remedy, code=self.code)
        named.others = tuple(other.name_file(file) for other in self.others)
        return named

    def to_dict(self) -> dict[str, Any]:
        """Return the error with its four parts apart, and what else is wrong."""
        parts = {"where": self.where, "field": self.field}
        parts |= {"problem": self.problem, "remedy": self.remedy}
        own = super().to_dict() | {"message": self.line} | parts
        return own | {"others": [other.to_dict() for other in self.others]}


def join_errors(errors: Iterable[InputError]) -> InputError:
    """Return the first error with the rest as its `others`.

    Args:
        errors: what is wrong with one input, in its order; at least one.
    """
    first, *rest = errors
    flat = [other for error in rest for other in (error, *error.others)]
    first.others = (*first.others, *flat)
    for other in flat:
        other.others = ()
    return first


class LedgerError(PerennialError):
    """Base of what can go wrong when several processes share one ledger."""

    code = "ledger"


class LostRace(LedgerError):
    """Another process wrote this ledger entry first."""

    code = "lost-race"


class LogGap(LedgerError):
    """An entry of an append-only log is missing, and a later one is there."""

    code = "log-gap"

    def __init__(self, missing: str, later: str) -> None:
        super().__init__(missing, later)
        self.missing = missing
        self.later = later

    def __str__(self) -> str:
        return f"{self.missing} is missing, and {self.later} is there"


class InvalidTransition(LedgerError):
    """An event that cannot follow the state of its subject; carries the subject's history."""

    code = "invalid-transition"

    def __init__(self, subject: str, state: str, event: str, history: Sequence[str]) -> None:
        super().__init__(subject, state, event, tuple(history))
        self.subject = subject
        self.state = state
        self.event = event
        self.history = tuple(history)

    def __str__(self) -> str:
        history = " -> ".join(self.history) or "nothing yet"
        return (
            f"{self.subject} is {self.state} and cannot be {self.event!r}; its history: {history}"
        )


class NewerSchema(LedgerError, ValueError):
    """The ledger was written by a later version of Perennial."""

    code = "newer-schema"


class StaleDecision(LedgerError):
    """A decision does not fit what another process wrote meanwhile: decide again."""

    code = "stale-decision"


class Superseded(LedgerError):
    """Another controller, or another claim, is in charge; this one changes nothing more."""

    code = "superseded"


class Busy(LedgerError):
    """Another process holds the run's lease, and lives; nothing was done."""

    exit_code = 3
    code = "busy"


class TrainingFailed(PerennialError):
    """The worker group gave up; the trunk stands at its last committed checkpoint.

    Its cause is what a worker raised, where that was a mistake.
    """

    code = "training-failed"


class TrainingStopped(TrainingFailed):
    """A loss stopped the job; another try would meet the same batch again."""

    code = "training-stopped"


class Altered(PerennialError):
    """A stored file is missing, or is not the one whose digest its manifest holds.

    Args:
        key: of the file.
        expected: sha256 that the manifest holds.
        actual: sha256 of what two reads gave; "" when there is no such file.
    """

    code = "file-altered"

    def __init__(self, key: str, expected: str, actual: str) -> None:
        super().__init__(key, expected, actual)
        self.key = key
        self.expected = expected
        self.actual = actual

    @property
    def problem(self) -> str:
        """Return what is wrong with the file, without its key."""
        if not self.actual:
            return f"is missing (its manifest has sha256 {self.expected})"
        return f"is damaged (its manifest has sha256 {self.expected}, two reads gave {self.actual})"

    def __str__(self) -> str:
        return f"{self.key} {self.problem}; restore the file from a copy of the store"


class CheckpointError(PerennialError):
    """Base of what can be wrong with a checkpoint."""

    code = "checkpoint"


class Damaged(CheckpointError):
    """A file of a committed checkpoint is missing or is not what was committed."""

    code = "checkpoint-damaged"

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key = key
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.key} {self.problem}"


class Vanished(Damaged):
    """A file was removed by the retention of a group that still lives, or by a quarantine."""

    code = "checkpoint-vanished"


class Unsound(CheckpointError):
    """Damage that any rank met in a checkpoint; raised on all of them."""

    code = "checkpoint-unsound"

    def __init__(self, damages: list[Damaged]) -> None:
        super().__init__(damages)
        self.damages = damages


class StartDamaged(CheckpointError):
    """The checkpoint that a job starts from is damaged; an earlier one would be another trunk."""

    code = "start-damaged"


class StoreFailed(CheckpointError):
    """Too many checkpoints in a row could not be stored; says why."""

    code = "store-failed"


class Preempted(PerennialError):
    """The worker group was asked to end; its checkpoint is committed."""

    code = "preempted"


class Spike(PerennialError):
    """The optimizer step that led to trunk step `step` must not be kept; all ranks raise it.

    Args:
        step: the trunk step that it led to.
        text: what is wrong with its loss or gradient.
        finite: whether loss and gradient are numbers.
    """

    code = "loss-spike"

    def __init__(self, step: int, text: str, finite: bool) -> None:
        super().__init__(step, text, finite)
        self.step = step
        self.text = text
        self.finite = finite

    def __str__(self) -> str:
        return self.text


class StorageError(PerennialError):
    """A store, or a disk of this machine, refuses what is asked of it; the words are its own."""

    code = "storage-error"


class StorageFull(StorageError):
    """A store, or a disk, is full: who frees room repeats the command, which then goes on."""

    code = "storage-full"


class TaskFailed(PerennialError):
    """A task of the cluster failed; the message is its innermost cause."""

    code = "task-failed"


class TrialFailed(PerennialError):
    """A trial failed more often than it is retried; the others are finished and kept."""

    code = "trial-failed"


class StudyFailed(PerennialError):
    """Runs of a study failed; the others are finished, and the page has them."""

    code = "study-failed"


class PullFailed(PerennialError):
    """A source, or one of its files, cannot be pulled now; the message says why."""

    code = "pull-failed"


class PullRefused(PullFailed):
    """A rule of the source forbids a file or an address; another try cannot help."""

    code = "pull-refused"


class PullSpent(PullFailed):
    """The bytes or the time of a pull are used up; what is left comes with the next pull."""

    code = "pull-spent"


class Unsteady(PerennialError):
    """A request failed in a way that may pass: no connection, a broken answer, 429 or 5xx."""

    code = "unsteady"


class InputMoved(PerennialError):
    """A file is not what was listed; what was read of it must be discarded.

    Args:
        file: number of the file in the listing.
        reason: why it counts as another one.
        actual: what was found in its place, in words.
    """

    code = "input-moved"

    def __init__(self, file: int, reason: str, actual: str = "") -> None:
        super().__init__(file, reason, actual)
        self.file = file
        self.reason = reason
        self.actual = actual
