"""What is wrong when MLflow fails, in words for the user, and what to do about it."""

from __future__ import annotations

import re
from typing import NamedTuple

from perennial.errors import InputError
from perennial.redaction import hide_secrets

_WORDS_CHARACTERS = 300


class Failure(NamedTuple):
    """One failure of MLflow.

    problem: what is wrong; one kind of failure has one.
    remedy: what to do; "" where waiting is all.
    words: of MLflow, or of what lies below it; "" where the problem has them.
    lasting: waiting does not help.
    broken: the database itself is damaged or incomplete.
    """

    problem: str
    remedy: str
    words: str
    lasting: bool
    broken: bool = False

    def __str__(self) -> str:
        problem = f"{self.problem}: {self.words}" if self.words else self.problem
        return f"{problem}; {self.remedy}" if self.remedy else problem


class _Kind(NamedTuple):
    pattern: re.Pattern[str]
    problem: str
    remedy: str = ""
    lasting: bool = True
    broken: bool = False


def _kind(pattern: str, problem: str, remedy: str = "", *, broken: bool = False) -> _Kind:
    return _Kind(re.compile(pattern, re.IGNORECASE), problem, remedy, not broken, broken)


_AWAY = _Kind(
    re.compile(
        r"failed with exception|max retries exceeded|connection ?(error|refused|reset|aborted)|"
        r"timed? ?out|could not connect|name or service|remote end closed|error code 50[234]|"
        r"server closed the connection|database is locked|database system is",
        re.IGNORECASE,
    ),
    "MLflow does not answer",
    lasting=False,
)
_KINDS = (
    _kind(
        r"database disk image is malformed|file is not a database|no such table|_alembic_tmp_",
        "MLflow's database is damaged or incomplete",
        "move the file away; `perennial track` fills a new one from the store",
        broken=True,
    ),
    _kind(
        r"experiment \S+ must be in the 'active' state|experiment.* deleted",
        "the experiment was deleted in MLflow",
        "restore it (`mlflow experiments restore --experiment-id ID`), remove it for good "
        "(`mlflow gc --experiment-ids ID`) to have it made again, or name another in "
        "tracking.experiment",
    ),
    _kind(
        r"UNAUTHENTICATED|error code 401|\b401 client error",
        "MLflow refuses the credentials",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    ),
    _kind(
        r"PERMISSION_DENIED|error code 403|\b403 client error",
        "MLflow does not let this user write",
        "ask for the right to edit the experiment, or name another in tracking.experiment",
    ),
    _kind(
        r"readonly database|read-only file system",
        "MLflow's database cannot be written",
        "let this user write the file and its folder, or name another in tracking.uri",
    ),
    _kind(
        r"database or disk is full|no space left",
        "there is no space left for MLflow",
        "free some, then use `perennial track`",
    ),
    _kind(
        r"out-of-date database schema|can't locate revision",
        "MLflow's database is of another version of MLflow",
        "back it up and use `mlflow db upgrade URI`, or install the version that wrote it",
    ),
    _kind(
        r"ENDPOINT_NOT_FOUND|error code 40[45]|\b40[45] client error|not in a valid JSON",
        "there is no MLflow of a known version at this address",
        "correct tracking.uri (or MLFLOW_TRACKING_URI), or run a server of MLflow 3",
    ),
    _kind(
        r"unable to open database file|permission denied",
        "MLflow's database cannot be opened",
        "let this user write the file and its folder, or name another in tracking.uri",
    ),
)


def explain(error: Exception, file: str = "") -> Failure:
    """Return what is wrong.

    Args:
        error: what MLflow, its database driver or its artifact store raised.
        file: name of the artifact that was sent; "" for any other call.
    """
    if isinstance(error, InputError):
        return Failure(f"{error.where}: {error.problem}", error.remedy, "", lasting=True)
    words = describe_error(error)
    text = f"{getattr(error, 'error_code', '')} {words}"
    if _AWAY.pattern.search(text) or isinstance(error, ConnectionError | TimeoutError):
        return Failure(_AWAY.problem, _AWAY.remedy, words, lasting=False)
    if file:
        return Failure(
            "MLflow's artifact store refuses files",
            f"let this machine write where the experiment keeps its artifacts ({file} was sent)",
            words,
            lasting=True,
        )
    for kind in _KINDS:
        if kind.pattern.search(text):
            return Failure(kind.problem, kind.remedy, words, kind.lasting, kind.broken)
    return Failure("MLflow failed", "", words, lasting=False)


def describe_error(error: Exception) -> str:
    """Return the first line of the error and, where it hides one, that of the innermost cause."""
    inner: BaseException = error
    seen = {id(error)}
    while (below := inner.__cause__) is not None and id(below) not in seen:
        seen.add(id(below))
        inner = below
    words = _first_line(error)
    cause = _first_line(inner)
    return words if cause.partition(": ")[2][:80] in words else f"{words} ({cause})"


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {hide_secrets(lines[0])[:_WORDS_CHARACTERS]}"
