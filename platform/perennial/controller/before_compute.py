"""What nothing can come of, refused by `plan` and `land`: names, files, corpora below one step."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from perennial import corpora
from perennial.config.paths import input_paths
from perennial.corpora.landing import LocalFile
from perennial.corpora.tokenizer import MANIFEST_KEY
from perennial.errors import InputError, join_errors
from perennial.evaluation.suites import SUITES
from perennial.evaluation.tasks import LocalTask, find_unknown_tasks, read_task
from perennial.mixture import group_of
from perennial.runs.stage_planner import check_stated_budget
from perennial.training.model.initial import MODEL_KEY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from perennial.config import RunSpec
    from perennial.controller.context import Workspace
    from perennial.corpora.inbox import LandedFile
    from perennial.corpora.landing import LandingFile
    from perennial.corpora.manifest import IngestSettings
    from perennial.corpora.sample import TokenEstimate

_COPIED = {"tokenizer.path": MANIFEST_KEY, "model.path": MODEL_KEY}
"""files that a run copies into its store before it needs them, and the key of the copy"""
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
        *_wrong_files(work, is_landing=landing is not None),
        *_wrong_tasks(work.where, work.spec),
        *_wrong_budgets(work.where, work.spec),
    ]
    if wrong:
        raise join_errors(wrong)
    work.check_run()


def named_corpora(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """Yield every corpus that a run file names, with the field that names it."""
    stages = spec.stages
    yield from (("stages.order", name) for name in stages.order if stages.order != "landing")
    gated = [name for name in spec.gates.corpora if not set(name) & set("*?[")]
    yield from (("gates.corpora", name) for name in gated)
    yield from (("stages.only", name) for name in stages.only or ())
    yield from ((f"stages.corpora.{name}", name) for name in stages.corpora)
    weights = [n for n in spec.replay.weights if group_of(spec.replay.groups, n) != n]
    yield from ((f"replay.weights.{name}", name) for name in weights)
    if not isinstance(spec.release.mixture, str):
        yield from ((f"release.mixture.{name}", name) for name in spec.release.mixture)


def check_names(work: Workspace) -> None:
    """Refuse corpora and tasks that the run file names and that cannot be, before a stage trains.

    Args:
        work: the run.

    Raises:
        InputError: every one that is wrong.
    """
    known = {*work.state.corpora, *(landed.name for landed in corpora.list_landed(work.inbox))}
    names = _wrong_names(work.where, work.spec, known)
    wrong = [*names, *_wrong_tasks(work.where, work.spec)]
    if wrong:
        raise join_errors(wrong)


def absent_names(spec: RunSpec, known: Collection[str]) -> list[str]:
    """Return, for each field whose corpora decide what is trained, those that have not landed.

    Args:
        spec: the run file.
        known: the corpora that have landed.
    """
    absent: dict[str, list[str]] = {}
    for field, name in named_corpora(spec):
        if field in ("stages.order", "stages.only", "gates.corpora") and name not in known:
            absent.setdefault(field, []).append(name)
    return [f"wait for {' and '.join(names)}, named in {field}" for field, names in absent.items()]


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


def _wrong_files(work: Workspace, *, is_landing: bool) -> Iterator[InputError]:
    spec = work.spec
    # `plan` can do without the tokenizer of a model whose vocabulary is said, and notes it.
    is_said = not is_landing and isinstance(spec.model.config.get("vocab_size"), int)
    for field, path in input_paths(spec):
        if field.startswith("sources.") or "://" in path:
            continue
        if field == "tokenizer.path" and (is_said or spec.corpora.borrow):
            continue
        if os.path.exists(os.path.expanduser(path)):  # noqa: PTH110, PTH111
            continue
        if field in _COPIED and work.store.exists(_COPIED[field]):
            continue
        yield InputError(
            work.where, field, f"there is no file or folder {path}",
            "correct the path: a relative one is from the folder of the file that names it",
            code="file-missing",
        )  # fmt: skip


def _wrong_budgets(where: str, spec: RunSpec) -> Iterator[InputError]:
    """Yield the first budget that is less than one step."""
    for name in ("", *spec.stages.corpora):
        try:
            check_stated_budget(spec, name)
        except InputError as wrong:
            yield InputError(where, wrong.field, wrong.problem, wrong.remedy, code=wrong.code)
            return


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


def check_size(work: Workspace, name: str, files: Sequence[LandingFile | LandedFile]) -> None:
    """Refuse a corpus whose files are too small for one global batch, whatever they hold.

    Args:
        work: the run.
        name: of the corpus.
        files: its files.

    Raises:
        InputError: text of that size cannot have so many tokens. Other text may pass here and be
            refused by a sample, or when it is ingested.
    """
    stored = sum(file.size_bytes for file in files)
    kinds = [corpora.find_kind(file.name) for file in files]
    # A byte is a token at most, and a line has one more at its end. Compressed text gives more.
    densest = 2 if all(kind and kind.expansion == 1 for kind in kinds) else 16
    if stored * densest < work.spec.tokens_per_step:
        raise _too_small(work, name, f"{stored:,} bytes", stored * densest)


def check_tokens(
    work: Workspace, name: str, files: Sequence[LandingFile], settings: IngestSettings
) -> None:
    """Refuse text that has less tokens than one global batch, as a sample of it says.

    A corpus is refused for what it holds at most, and where it is only likely to be too small, the
    log says so.

    Args:
        work: the run.
        name: of the corpus that is to land.
        files: its files.
        settings: how documents are found in them.

    Raises:
        InputError: it cannot fill a step.
    """
    local = [file for file in files if isinstance(file, LocalFile)]
    estimate = estimate_corpus(work, local, settings) if len(local) == len(files) else None
    step = work.spec.tokens_per_step
    if estimate is None or estimate.tokens >= step:
        return
    too_small = _too_small(work, name, f"about {estimate.tokens:,} tokens", estimate.tokens)
    # What steps of the user's make of a text is not known.
    if estimate.at_most < step and not settings.steps:
        raise too_small
    work.log(f"warning: {too_small}")


def estimate_corpus(
    work: Workspace, files: Sequence[LandingFile], settings: IngestSettings
) -> TokenEstimate | None:
    """Return the tokens of text by the run's tokenizer, or by its size where there is none yet.

    Args:
        work: the run.
        files: those of one corpus.
        settings: how documents are found in them.
    """
    # Imported here: it loads the tokenizers' library, which a look at a run needs not.
    from perennial.corpora.sample import estimate_tokens

    return estimate_tokens(files, settings, _encoder(work))


def _encoder(work: Workspace) -> Tokenizer | None:
    spec = work.spec.tokenizer
    if work.store.exists(MANIFEST_KEY):
        return corpora.load_tokenizer(work.store).build_encoder()
    if spec.path is None:
        return None
    named = corpora.read_tokenizer(spec.path, spec.end_of_document, spec.begin_of_document)
    return named.build_encoder()


def _too_small(work: Workspace, name: str, size: str, tokens: int) -> InputError:
    spec = work.spec
    most = tokens // spec.corpora.sequence_length
    batch = spec.training.global_batch
    smaller = f", or lower training.global_batch ({batch}) to {most} or less" if most else ""
    return InputError(
        "land", name, f"{size} are less than one global batch of {spec.tokens_per_step:,} tokens",
        f"land more text{smaller}", code="corpus-too-small",
    )  # fmt: skip
