"""lm-eval tasks: by name, by a suite's name, or from a local folder of task YAML files.

A local folder may name, anywhere in its YAML files,
    ${folder}          the folder itself, at the place where the task runs
    ${corpus}          a corpus of the run
    ${continuations}   a JSON-lines file of multiple-choice items made of its held-out documents
and with either of the last two it runs once for each corpus.
"""

from __future__ import annotations

import json
import logging
import math
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import TypedDict

from perennial.errors import InputError
from perennial.evaluation.heldout import CHOICES, continuation_items
from perennial.evaluation.suites import AVERAGE, SUITES, Suite, SuiteTask, chosen, mean

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

FOLDER, CORPUS, CONTINUATIONS = "${folder}", "${corpus}", "${continuations}"
BATCH = 16


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task. `samples` is the number of items behind it; chance is not 0.

    asked: the run file's word for it: the name of the task, its group or suite, or a folder's path.
    stderr_of_change: standard error of this score minus that of the reference model, over items
        paired with themselves: what makes one item harder than another cancels.
    items: each item's digest and its own score, where lm-eval tells them; groups have none.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    version: str
    samples: int
    asked: str = ""
    stderr_of_change: float | None = None
    items: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class NotRun:
    """A task that gave no score, and why; `asked` as in `TaskScore`."""

    task: str
    reason: str
    asked: str = ""


class Score(TypedDict, total=False):
    """A task's score, or the reason for which it was not run, as ledger and reports hold it."""

    task: str
    metric: str
    value: float
    stderr: float | None
    version: str
    samples: int
    reason: str
    asked: str
    stderr_of_change: float | None


def plain(outcome: TaskScore | NotRun) -> Score:
    """Return the outcome ready for the ledger, which need not know every item."""
    fields = {name: value for name, value in asdict(outcome).items() if name != "items"}
    return cast(Score, fields)


@dataclass(frozen=True)
class LocalTask:
    """The files of a local task folder, by their path inside it, so that any node can run it."""

    path: str
    files: Mapping[str, bytes]

    @property
    def per_corpus(self) -> bool:
        """Whether the task runs once for each corpus."""
        return self.mentions(CORPUS) or self.mentions(CONTINUATIONS)

    def mentions(self, word: str) -> bool:
        """Whether a YAML file holds a word that is to be filled in."""
        yaml = (data for name, data in self.files.items() if name.endswith(".yaml"))
        return any(word.encode() in data for data in yaml)

    def write(self, folder: Path, values: Mapping[str, str]) -> None:
        """Write the files below `folder`, with the values in place of their names in the YAML."""
        for name, data in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".yaml"):
                text = data.decode()
                for word, value in values.items():
                    text = text.replace(word, value)
                data = text.encode()
            target.write_bytes(data)


def read_task(task: str) -> str | LocalTask:
    """A task of a run file: a folder is read, anything else is the name of a suite or a task.

    Raises InputError for a folder without a task, or a path that is no folder.
    """
    path = Path(task)
    if not path.is_dir():
        if "/" in task or task.endswith(".yaml"):
            raise InputError(
                "evaluation.tasks",
                task,
                "there is no such folder",
                "name an lm-eval task or a folder",
            )
        return task
    files = {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    if not any(name.endswith(".yaml") for name in files):
        raise InputError(
            "evaluation.tasks", task, "the folder holds no .yaml file", "describe the task in one"
        )
    return LocalTask(task, files)


def is_per_corpus(task: str) -> bool:
    """Whether a task of a run file runs once for each corpus."""
    found = read_task(task)
    return isinstance(found, LocalTask) and found.per_corpus


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | LocalTask],
    texts: Mapping[str, Sequence[str]],
    *,
    folder: Path,
    context_tokens: int,
    seed: int,
) -> list[TaskScore | NotRun]:
    """Score the tasks with a loaded model. `texts` are held-out documents by corpus.

    A task that cannot be run, for want of its data for instance, is reported as such and stops
    no other. Local tasks are written to `folder` and need no network.
    """
    if not tasks:
        return []
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, max_length=context_tokens)
    outcomes: list[TaskScore | NotRun] = []
    named = [task for task in tasks if isinstance(task, str)]
    # Finding lm-eval's own tasks means reading thousands of files: only where one is named.
    defaults = TaskManager() if named else None
    for task in named:
        suite = SUITES.get(task)
        found = run_suite(lm, defaults, task, suite) if suite else _score(lm, defaults, task, task)
        outcomes += _asked(task, found)
    for i, local in enumerate(task for task in tasks if isinstance(task, LocalTask)):
        corpora = list(texts) if local.per_corpus else [""]
        if not corpora:
            reason = "it runs on corpora, and none was asked about"
            outcomes.append(NotRun(local.path, reason, local.path))
        for corpus in corpora:
            place = folder / f"{i:02d}-{corpus}"
            found = _run_local(lm, local, corpus, texts.get(corpus, ()), place, seed)
            outcomes += _asked(local.path, found)
    return outcomes


def _asked(name: str, outcomes: Sequence[TaskScore | NotRun]) -> list[TaskScore | NotRun]:
    return [replace(outcome, asked=name) for outcome in outcomes]


def _run_local(
    lm: HFLM, local: LocalTask, corpus: str, texts: Sequence[str], place: Path, seed: int
) -> list[TaskScore | NotRun]:
    from lm_eval.tasks import TaskManager

    label = f"{local.path} ({corpus})" if corpus else local.path
    items = place / "continuations.jsonl"
    values = {FOLDER: str(place), CORPUS: corpus, CONTINUATIONS: str(items)}
    local.write(place, values)
    if local.mentions(CONTINUATIONS):
        rows = continuation_items(texts, seed)
        if not rows:
            reason = f"fewer than {CHOICES} held-out documents are long enough"
            return [NotRun(label, reason)]
        items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manager = TaskManager(include_path=str(place), include_defaults=False)
    if not manager.all_subtasks:
        return [NotRun(label, "none of its YAML files is an lm-eval task")]
    return [
        outcome for name in manager.all_subtasks for outcome in _score(lm, manager, name, label)
    ]


def run_suite(
    lm: HFLM, manager: TaskManager | None, name: str, suite: Suite
) -> list[TaskScore | NotRun]:
    """Every task of a suite, and their mean where all of them gave a score."""
    outcomes: list[TaskScore | NotRun] = []
    for wanted in suite.tasks:
        outcomes += _of_suite(lm, manager, wanted)
    outcomes += [NotRun(task, reason) for task, reason in suite.absent.items()]
    found = [outcome for outcome in outcomes if isinstance(outcome, TaskScore)]
    if len(found) < len(suite.tasks):
        reason = f"{len(found)} of its {len(suite.tasks)} tasks were run"
        return [*outcomes, NotRun(name, reason)]
    value, stderr = mean(found)
    items = sum(score.samples for score in found)
    return [*outcomes, TaskScore(name, AVERAGE, value, stderr, "1", items)]


def _of_suite(lm: HFLM, manager: TaskManager | None, wanted: SuiteTask) -> list[TaskScore | NotRun]:
    """The score of one task of a suite, or why there is none."""
    version = task_version(manager, wanted.task)
    if version != wanted.version:
        found = "lacks it" if version is None else f"has its version {version}"
        reason = f"the suite is made for its version {wanted.version}, this lm-eval {found}"
        return [NotRun(wanted.task, reason)]
    outcomes = _score(lm, manager, wanted.task, wanted.task, wanted.shots)
    scored = [outcome for outcome in outcomes if isinstance(outcome, TaskScore)]
    if not scored:
        return outcomes
    return [*chosen(scored, wanted)] or [NotRun(wanted.task, f"it gave no {wanted.metric}")]


def task_version(manager: TaskManager | None, task: str) -> str | None:
    """The version of a task that this lm-eval has; None when it has no such task."""
    entry = manager.task_index.get(task) if manager else None
    return str(entry.cfg.get("metadata", {}).get("version")) if entry and entry.cfg else None


def _score(
    lm: HFLM, manager: TaskManager | None, name: str, label: str, shots: int | None = None
) -> list[TaskScore | NotRun]:
    from lm_eval import simple_evaluate

    try:
        with _silence():
            results = simple_evaluate(
                lm, tasks=[name], num_fewshot=shots, task_manager=manager, log_samples=True
            )
    except Exception as error:  # whatever a task's data or code does, the others go on
        return [NotRun(label, _reason(error))]
    return [*scores(results)]


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing on the process's standard error.

    lm-eval draws progress bars that no setting turns off, a warning for each long item, and asks
    git for a commit where there need be no repository.
    """
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _reason(error: Exception) -> str:
    """One line: the error's own, or where it was raised when it says nothing."""
    lines = str(error).strip().splitlines()
    if lines:
        return f"{type(error).__name__}: {lines[0]}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at `{place.line}` in {Path(place.filename).name}"


def scores(results: Mapping[str, Any]) -> list[TaskScore]:
    """What lm-eval's results say, one score for each task or group and metric.

    A metric's name holds the filter of its answers, unless that is lm-eval's "none".
    """
    found = []
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, answers = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{answers}")
            found.append(
                TaskScore(
                    task=task,
                    metric=metric if answers == "none" else key,
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, int | float) else None,
                    version=str(results["versions"].get(task)),
                    samples=int(values["sample_len"]),
                    items=_items(results.get("samples", {}).get(task, ()), metric, answers),
                )
            )
    return found


def _items(
    samples: Sequence[Mapping[str, Any]], metric: str, answers: str
) -> tuple[tuple[str, float], ...]:
    """Digest and score of every item, in order; none where scores are not of single items."""
    told = [sample for sample in samples if sample.get("filter", answers) == answers]
    if not all(isinstance(sample.get(metric), int | float) for sample in told):
        return ()
    return tuple((str(sample.get("doc_hash", ""))[:16], float(sample[metric])) for sample in told)


def paired_stderr(
    items: Sequence[tuple[str, float]], before: Sequence[tuple[str, float]]
) -> float | None:
    """Standard error of the mean change over the same items; None where they are not the same."""
    if len(items) < 2 or [digest for digest, _ in items] != [digest for digest, _ in before]:
        return None
    changes = [now - then for (_, now), (_, then) in zip(items, before, strict=True)]
    return stdev(changes) / math.sqrt(len(changes))
