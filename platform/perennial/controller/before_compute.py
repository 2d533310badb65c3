"""Names and files of a run file that nothing can come of: `plan` and `land` refuse them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from perennial import corpora
from perennial.config.paths import input_paths
from perennial.errors import InputError, join_errors
from perennial.evaluation.suites import SUITES
from perennial.evaluation.tasks import LocalTask, find_unknown_tasks, read_task
from perennial.mixture import group_of

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.controller.context import Workspace

_OWN_CHECKS = ("tokenizer.path", "model.path")
"""files that the store has once a run has begun; whether they are there is asked elsewhere"""
_SHORTEST = 4
"""letters of a word in which another letter counts as a slip; `fr` and `br` are two languages"""


def check_before_compute(work: Workspace, landing: str | None = None) -> None:
    """Refuse what the run file names and what does not exist: tasks, corpora, files.

    Args:
        work: the run.
        landing: a corpus that is to land; None: none is.

    Raises:
        InputError: everything of that kind that is wrong.
    """
    known = {
        *work.ledger.read().corpora,
        *(landed.name for landed in corpora.list_landed(work.inbox)),
    }
    wrong = [
        *_wrong_names(work.where, work.spec, known | ({landing} if landing else set())),
        *_wrong_files(work.where, work.spec),
        *_wrong_tasks(work.where, work.spec),
    ]
    if wrong:
        raise join_errors(wrong)
    work.check_run()


def named_corpora(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """Yield every corpus that a run file names, with the field that names it."""
    stages = spec.stages
    yield from (("stages.order", name) for name in stages.order if stages.order != "landing")
    yield from (("stages.only", name) for name in stages.only or ())
    yield from ((f"stages.corpora.{name}", name) for name in stages.corpora)
    weights = [n for n in spec.replay.weights if group_of(spec.replay.groups, n) != n]
    yield from ((f"replay.weights.{name}", name) for name in weights)
    if not isinstance(spec.release.mixture, str):
        yield from ((f"release.mixture.{name}", name) for name in spec.release.mixture)


def _wrong_names(where: str, spec: RunSpec, known: Iterable[str]) -> Iterator[InputError]:
    """Yield names that no corpus can have, and those that are a slip of a corpus that is there.

    A corpus may be named before it lands, so that any other name is none of a mistake.
    """
    named = list(named_corpora(spec))
    there = set(known)
    unnamed = there - {name for _, name in named}
    for field, name in named:
        try:
            corpora.check_name(name)
        except InputError as invalid:
            yield InputError(where, field, invalid.problem, invalid.remedy, code=invalid.code)
            continue
        meant = sorted(other for other in unnamed if is_slip(name, other))
        if name not in there and meant:
            yield InputError(
                where, field, f"no corpus {name} has landed, and {meant[0]} has",
                f"did you mean {meant[0]}?", code="corpus-unknown",
            )  # fmt: skip


def is_slip(name: str, other: str) -> bool:
    """Return whether two names differ in the letters of one longer word, as by a slip of a key."""
    words, others = (re.split(r"[._-]+|\d+", text) for text in (name, other))
    if re.findall(r"\d+", name) != re.findall(r"\d+", other) or len(words) != len(others):
        return False
    different = [pair for pair in zip(words, others, strict=True) if pair[0] != pair[1]]
    if len(different) != 1 or min(map(len, different[0])) < _SHORTEST:
        return False
    return difflib.SequenceMatcher(None, *different[0]).ratio() >= 0.8


def _wrong_files(where: str, spec: RunSpec) -> Iterator[InputError]:
    for field, path in input_paths(spec):
        if field in _OWN_CHECKS or field.startswith("sources.") or "://" in path:
            continue
        if not os.path.exists(os.path.expanduser(path)):  # noqa: PTH110, PTH111
            yield InputError(
                where, field, f"there is no file or folder {path}",
                "correct the path: a relative one is from the folder of the file that names it",
                code="file-missing",
            )  # fmt: skip


def _wrong_tasks(where: str, spec: RunSpec) -> Iterator[InputError]:
    named = [("evaluation.tasks", task) for task in spec.evaluation.tasks]
    named += [(f"gates.tasks.{task}", task) for task in spec.gates.tasks]
    asked = []
    for field, task in named:
        try:
            if not isinstance(read_task(task), LocalTask) and task not in SUITES:
                asked.append((field, task))
        except InputError as missing:
            problem = f"{task}: {missing.problem}"
            yield InputError(where, field, problem, missing.remedy, code=missing.code)
    for task, close in find_unknown_tasks(dict.fromkeys(task for _, task in asked)).items():
        field = next(field for field, name in asked if name == task)
        remedy = f"did you mean {close[0]}? " if close else ""
        yield InputError(
            where, field, f"lm-eval has no task {task}",
            f"{remedy}name a task, a suite ({', '.join(SUITES)}) or a folder that holds a task",
            code="task-unknown",
        )  # fmt: skip
