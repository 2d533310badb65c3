"""lm-eval tasks: by name, by a suite's name, or from a local folder of task YAML files.

A local folder may name, anywhere in its YAML files,
    ${folder}          the folder itself, at the place where the task runs
    ${corpus}          a corpus of the run
    ${continuations}   a JSON-lines file of multiple-choice items made of its held-out documents
and with either of the last two it runs once for each corpus.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.errors import InputError
from perennial.evaluation.heldout import CONTINUATION_WORDS, OPENING_WORDS, continuation_items
from perennial.evaluation.scores import NotRun, TaskScore
from perennial.evaluation.suites import AVERAGE, SUITES, Suite, SuiteTask, chosen, mean

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

FOLDER, CORPUS, CONTINUATIONS = "${folder}", "${corpus}", "${continuations}"
BATCH = 16
_COPIES_OF_LOGITS = 3
"""the model's, their logarithmic softmax and its copy in fp32, which lm-eval holds at once"""


@dataclass(frozen=True)
class LocalTask:
    """The files of a local task folder, by their path inside it, so that any node can run it."""

    path: str
    files: Mapping[str, bytes]

    @property
    def per_corpus(self) -> bool:
        """Return whether the task runs once for every corpus."""
        return self.mentions(CORPUS) or self.mentions(CONTINUATIONS)

    def mentions(self, word: str) -> bool:
        """Return whether a YAML file contains a placeholder, such as `${corpus}`."""
        yaml = (data for name, data in self.files.items() if name.endswith(".yaml"))
        return any(word.encode() in data for data in yaml)

    def write(self, folder: Path, values: Mapping[str, str]) -> None:
        """Write the files below `folder`, with the YAML's placeholders replaced by `values`."""
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
    """Return a task of a run file: a folder is read, a name of a suite or a task is returned.

    Raises:
        InputError: a path that is no folder, or a folder without a task.
    """
    path = Path(task)
    if not path.is_dir():
        if "/" in task or task.endswith(".yaml"):
            raise InputError(
                "evaluation.tasks",
                task,
                "there is no such folder",
                "name an lm-eval task or a folder",
                code="folder-missing",
            )
        return task
    files = {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    if not any(name.endswith(".yaml") for name in files):
        raise InputError(
            "evaluation.tasks",
            task,
            "the folder holds no .yaml file",
            "describe the task in one",
            code="task-missing",
        )
    return LocalTask(task, files)


def find_unknown_tasks(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names that lm-eval has no task, group or tag of, with names like them.

    Args:
        names: as a run file has them; no folders, no suites.
    """
    wanted = list(names)
    if not wanted:
        return {}
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    known = TaskManager().task_index
    return {
        name: difflib.get_close_matches(name, list(known), n=1)
        for name in wanted
        if name not in known
    }


def is_per_corpus(task: str) -> bool:
    """Return whether a task of a run file runs once for every corpus."""
    described = read_task(task)
    return isinstance(described, LocalTask) and described.per_corpus


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | LocalTask],
    texts: Mapping[str, Sequence[str]],
    *,
    folder: Path,
    context_tokens: int,
    most_logits: int,
    seed: int,
) -> list[TaskScore | NotRun]:
    """Score the tasks with a loaded model.

    A task that cannot be run, for example without its data, is returned as `NotRun` and does not
    stop the others.

    Args:
        model: causal language model of transformers.
        tokenizer: the model's tokenizer.
        tasks: as `read_task` returns them.
        texts: held-out documents by corpus.
        folder: local tasks are written below it; they need no network.
        context_tokens: longest sequence that the model has seen, in tokens.
        most_logits: numbers of logits that may be in memory at once.
        seed: of the items of local tasks.
    """
    if not tasks:
        return []
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logits = context_tokens * model.config.get_text_config().vocab_size
    batch = max(1, min(BATCH, most_logits // (_COPIES_OF_LOGITS * logits)))
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=context_tokens)
    outcomes: list[TaskScore | NotRun] = []
    named = [task for task in tasks if isinstance(task, str)]
    # lm-eval reads thousands of files to list its own tasks, so only where one is named.
    defaults = TaskManager() if named else None
    for task in named:
        suite = SUITES.get(task)
        scored = run_suite(lm, defaults, task, suite) if suite else _score(lm, defaults, task, task)
        outcomes += _asked(task, scored)
    for i, local in enumerate(task for task in tasks if isinstance(task, LocalTask)):
        corpora = list(texts) if local.per_corpus else [""]
        if not corpora:
            reason = "it runs once for every corpus, and no corpus is being evaluated"
            outcomes.append(NotRun(local.path, reason, local.path))
        for corpus in corpora:
            place = folder / f"{i:02d}-{corpus}"
            scored = _run_local(lm, local, corpus, texts.get(corpus, ()), place, seed)
            outcomes += _asked(local.path, scored)
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
            words = OPENING_WORDS + CONTINUATION_WORDS
            reason = f"no held-out document has the {words} words of an item"
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
    """Run every task of a suite, and add their mean where all of them have a score.

    Args:
        lm: lm-eval's wrapper of the model.
        manager: lm-eval's index of its tasks.
        name: of the suite.
        suite: its tasks.
    """
    outcomes: list[TaskScore | NotRun] = []
    for wanted in suite.tasks:
        outcomes += _of_suite(lm, manager, wanted)
    outcomes += [NotRun(task, reason) for task, reason in suite.absent.items()]
    scored = [outcome for outcome in outcomes if isinstance(outcome, TaskScore)]
    if len(scored) < len(suite.tasks):
        reason = f"{len(scored)} of its {len(suite.tasks)} tasks were run"
        return [*outcomes, NotRun(name, reason)]
    value, stderr = mean(scored)
    items = sum(score.samples for score in scored)
    return [*outcomes, TaskScore(name, AVERAGE, value, stderr, "1", items)]


def _of_suite(lm: HFLM, manager: TaskManager | None, wanted: SuiteTask) -> list[TaskScore | NotRun]:
    """Return the score of one task of a suite, or the reason why there is none."""
    version = task_version(manager, wanted.task)
    if version != wanted.version:
        installed = "lacks it" if version is None else f"has its version {version}"
        reason = f"the suite is made for its version {wanted.version}, this lm-eval {installed}"
        return [NotRun(wanted.task, reason)]
    outcomes = _score(lm, manager, wanted.task, wanted.task, wanted.shots)
    scored = [outcome for outcome in outcomes if isinstance(outcome, TaskScore)]
    if not scored:
        return outcomes
    return [*chosen(scored, wanted)] or [NotRun(wanted.task, f"it gave no {wanted.metric}")]


def task_version(manager: TaskManager | None, task: str) -> str | None:
    """Return the version of a task in this lm-eval; None when it has no such task."""
    entry = manager.task_index.get(task) if manager else None
    return str(entry.cfg.get("metadata", {}).get("version")) if entry and entry.cfg else None


def _score(
    lm: HFLM, manager: TaskManager | None, name: str, label: str, shots: int | None = None
) -> list[TaskScore | NotRun]:
    from lm_eval import simple_evaluate

    while True:
        try:
            with _silence():
                results = simple_evaluate(
                    lm, tasks=[name], num_fewshot=shots, task_manager=manager, log_samples=True
                )
        except Exception as error:  # a fault in one task's data or code must not stop the others
            if not _is_out_of_memory(error) or lm.batch_size_per_gpu == 1:
                return [NotRun(label, _reason(error))]
        else:
            return [*scores(results)]
        # Outside the handler, whose traceback holds the tensors.
        lm.batch_size_per_gpu //= 2


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether torch found no memory; on CPUs it has no class of its own for that."""
    import torch

    on_cpu = isinstance(error, RuntimeError) and "not enough memory" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or on_cpu


@contextmanager
def _silence() -> Iterator[None]:
    """Discard what is written to the process's standard error.

    lm-eval draws progress bars that no setting turns off, warns of every long item, and asks git
    for a commit where there may be no repository.
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
    """Return the first line of an error, or the place that raised it when it has no text."""
    lines = str(error).strip().splitlines()
    if lines:
        return f"{type(error).__name__}: {lines[0]}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at `{place.line}` in {Path(place.filename).name}"


def scores(results: Mapping[str, Any]) -> list[TaskScore]:
    """Return one score for every task or group and metric in lm-eval's results.

    A metric's name includes the filter of its answers, unless that is lm-eval's "none".
    """
    listed = []
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, answers = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{answers}")
            listed.append(
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
    return listed


def _items(
    samples: Sequence[Mapping[str, Any]], metric: str, answers: str
) -> tuple[tuple[str, float], ...]:
    """Return digest and score of every item, in order; () where items have no scores."""
    scored = [sample for sample in samples if sample.get("filter", answers) == answers]
    if not all(isinstance(sample.get(metric), int | float) for sample in scored):
        return ()
    return tuple((str(sample.get("doc_hash", ""))[:16], float(sample[metric])) for sample in scored)
