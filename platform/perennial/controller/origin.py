"""Import and measure the stored models that the trunk starts from (invariant I11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from perennial.causes import describe
from perennial.controller.context import Workspace
from perennial.controller.ingest_stage import usable
from perennial.controller.questions import questions_of, sampling, warn_of_undrawn
from perennial.corpora import read_manifest
from perennial.evaluation import BASE, HeldoutLoss, examine
from perennial.evaluation.kept_samples import keep_samples
from perennial.evaluation.scores import plain
from perennial.evaluation.tasks import is_per_corpus
from perennial.optimizers import check_same_optimizer
from perennial.runs.entities import StoredOrigin
from perennial.runs.events import Event, Imported, Measured
from perennial.runs.ledger import now
from perennial.runs.state import RunState, Stage


def begin_from_stored(work: Workspace, stage: Stage) -> None:
    """Import the stored model that the run file names, and measure it before the first step.

    Args:
        work: the run.
        stage: the first one, which may keep the optimizer's state of a trunk kit.
    """
    if work.spec.model.path is not None:
        work.import_model()
        _import_state(work, work.spec.model.path, stage)
        measure_origins(work)


def _import_state(work: Workspace, path: str, stage: Stage) -> None:
    from perennial.training.model import initial

    state = initial.read_initial(work.store)[0].optimizer
    if stage.optimizer != "reset":
        if state is None:
            work.log(f"notice: {path} has no optimizer's state to keep; it starts from zero")
            return
        check_same_optimizer(path, state.kind, work.spec.training.optimizer_config.kind)
    if state and initial.needs_state(state, stage.optimizer, work.spec.training.precision):
        work.log(f"{stage.name} starts with the optimizer's state of {path}: {state.steps:,} steps")
        initial.import_state(work.store, path)


def measure_origins(work: Workspace, *, like_releases: bool = False) -> bool:
    """Measure the imported models on what they were not measured on; usually there is nothing.

    They are measured whenever a corpus or a task is new, so that all later models have something
    to be compared with; a run that an older version began is made up for.

    Args:
        work: the run.
        like_releases: whether the base is also scored on the tasks that releases alone are.

    Returns:
        Whether anything was measured.
    """
    _record_imports(work)
    tasks = _tasks(work, like_releases=like_releases)
    return any([_measure(work, name, tasks) for name in [*work.state.origins]])


def _record_imports(work: Workspace) -> None:
    """Record the imported models in the ledger, each once."""
    from perennial.training.model import initial

    if work.spec.model.path is None or not initial.has_model(work.store):
        return
    folders = {BASE: initial.FOLDER}
    if initial.has_reference(work.store):
        folders["reference"] = initial.REFERENCE_FOLDER
    for name, folder in folders.items():
        if name in work.state.origins:
            continue
        manifest, sha256 = initial.read_initial(work.store, folder)
        imported = Imported.model_validate(
            manifest.model_dump(include={"path", "inherit_layers", "parameters", "kit", "card"})
            | {"at": now(), "name": name, "folder": folder, "manifest": sha256}
        )
        _record(work, imported, partial(_is_new, name))


def _is_new(name: str, state: RunState) -> bool:
    return name not in state.origins


def _measure(work: Workspace, name: str, wanted: Sequence[str]) -> bool:
    origin = work.state.origins[name]
    ready = usable(work.state)
    missing = [corpus for corpus in ready if not _is_measured(work, origin, corpus)]
    asked = dict.fromkeys(score["asked"] for score in origin.scores)
    first = not (origin.losses or origin.not_finite)
    again = [task for task in asked if is_per_corpus(task) and task in _named(work)]
    new = [task for task in wanted if task not in asked] if name == BASE else []
    if missing:
        work.log(f"measuring the {_LABELS[name]} on {', '.join(missing)}")
        samples = sampling(work) if name == BASE else {}
        if not first:
            samples["prompts"] = {}
        _ask(work, origin, missing, missing, new if first else again, samples)
    if new and not (first and missing):
        work.log(f"scoring the {_LABELS[name]} on {', '.join(new)}")
        _ask(work, origin, (), ready, new, {})
    return bool(missing or new)


_LABELS = {BASE: "base", "reference": "whole model"}


def _is_measured(work: Workspace, origin: StoredOrigin, corpus: str) -> bool:
    """Return whether it was measured on as many documents as any model is measured on now."""
    if corpus in origin.not_finite:
        return True
    loss = origin.losses.get(corpus)
    if loss is None:
        return False
    there = read_manifest(work.store, corpus).counts.held_out_documents
    return loss.documents == min(there, work.spec.evaluation.documents)


def _tasks(work: Workspace, *, like_releases: bool) -> Sequence[str]:
    """Return the tasks that the trunk is scored on, or those of releases too."""
    its = work.spec.evaluation
    own = its.tasks if its.trunk_tasks or like_releases else ()
    return tuple(dict.fromkeys([*work.spec.gates.tasks, *own]))


def _named(work: Workspace) -> set[str]:
    return {*work.spec.gates.tasks, *work.spec.evaluation.tasks}


def _ask(
    work: Workspace,
    origin: StoredOrigin,
    corpora: Sequence[str],
    texts: Sequence[str],
    tasks: Sequence[str],
    samples: Mapping[str, Any],
) -> None:
    """Measure losses on `corpora`, and tasks and samples that are made of `texts`."""
    work.use_ray()
    questions = replace(
        questions_of(work, {}),
        corpora=tuple(corpora),
        texts=tuple(texts),
        tasks=tuple(tasks),
        **samples,
    )
    before = _known(work.state, origin.name)
    try:
        answers = examine(work.store, origin.folder, questions)
    except Exception as failed:
        if origin.name == BASE:
            raise
        # Larger than what is trained, and nothing rests on its losses.
        work.log(f"notice: the {_LABELS[origin.name]} is not measured ({describe(failed)})")
        return
    warn_of_undrawn(work, answers.samples)
    measured = Measured(
        at=now(),
        stage=origin.name,
        losses=dict(answers.losses),
        scores=[plain(score) for score in answers.tasks],
        samples=keep_samples(work.store, answers.samples),
    )
    _record(work, measured, lambda state: _known(state, origin.name) == before)


def _known(state: RunState, name: str) -> tuple[dict[str, HeldoutLoss], tuple[str, ...], int]:
    """Return what is known of an origin, to see that no other process measured it meanwhile."""
    origin = state.origins[name]
    return dict(origin.losses), origin.not_finite, len(origin.scores)


def _record(work: Workspace, event: Event, may_follow: Callable[[RunState], bool]) -> None:
    """Write an event unless another process wrote its like meanwhile."""
    work.refresh()  # a controller that lost its charge stops here
    work.ledger.transact(lambda state: event if may_follow(state) else None)
