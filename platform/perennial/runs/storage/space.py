"""Decide what of a store can be let go, and sum its bytes by kind. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, get_args

from perennial.config.search import Point
from perennial.runs.search_state import GATE_SEARCH, Trial
from perennial.runs.transitions import FINISHED

if TYPE_CHECKING:
    from perennial.runs.state import RunState
    from perennial.store import ObjectInfo

Kind = Literal["branches", "trials", "evaluations", "staged", "left"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""what can be let go: checkpoints of the anneals of releases that were made; those of finished
searches of stages that were trained since; measurements of models that are neither of the trunk nor
released; staged text of corpora that are tokenised or refused, and what a killed process trained
again; checkpoints of stages that left the trunk"""
DEFAULT_KINDS: tuple[Kind, ...] = ("branches", "trials", "evaluations", "staged")

_KIND_OF = {
    "leases": "ledger",
    "landed": "ledger",
    "starts": "report",
    "pins": "ledger",
    "aliases": "releases",
}
STAGING = "staging"
RETRAINING = "retraining"
"""key below which the steps of checkpoints are trained again"""


def sum_by_kind(objects: Iterable[ObjectInfo]) -> dict[str, int]:
    """Return the bytes of a store by kind, the largest first.

    Args:
        objects: all of the store.
    """
    sizes: Counter[str] = Counter()
    for info in objects:
        folder, mark, _ = info.key.partition("/")
        sizes[_KIND_OF.get(folder, folder) if mark else "ledger"] += info.size_bytes
    return dict(sizes.most_common())


def list_free(
    state: RunState, kind: Kind, keys: Collection[str], pinned: Collection[str]
) -> list[str]:
    """Return the keys of folders that can be let go: never what a restart or a release needs.

    Args:
        state: of the run.
        kind: of what is let go.
        keys: of all objects in the store.
        pinned: keys of folders that another run borrows.
    """
    keys = frozenset(keys)
    free = {
        "branches": _list_branches,
        "trials": _list_trials,
        "evaluations": _list_evaluations,
        "staged": _list_staged,
        "left": _list_left,
    }[kind](state, keys)
    kept = _needed(state) | set(pinned)
    folders = {folder for folder in free if not _overlaps(folder, kept)}
    there = {ancestor for key in keys for ancestor in _ancestors(key)}
    return sorted(folders & there)


def _list_branches(state: RunState, keys: Collection[str]) -> Iterator[str]:
    for release in state.releases:
        yield f"branches/{release.name}"


def _list_trials(state: RunState, keys: Collection[str]) -> Iterator[str]:
    for trial in state.searches.trials.values():
        if _is_over(state, trial, keys):
            yield trial.folder


def _is_over(state: RunState, trial: Trial, keys: Collection[str]) -> bool:
    """Return whether nothing goes on from a trial: neither its search nor the stage it begins.

    A child of an Inheritune search is never over: its weights are what was searched for.
    """
    its = trial.branched
    if its.search.startswith(GATE_SEARCH):
        return state.corpora[its.corpus].state in FINISHED
    return (
        isinstance(its.point, Point)
        and state.corpora[its.corpus].state in FINISHED
        and f"searches/{its.search}/result.json" in keys
        and all(other.tried for other in state.searches.of(its.search).values())
    )


def _list_evaluations(state: RunState, keys: Collection[str]) -> Iterator[str]:
    models = [state.ends[stage.name] for stage in state.stages if stage.name in state.ends]
    models += [origin.folder for origin in state.origins.values()]
    models += [model for made in state.releases for model in (made.source, made.folder)]
    kept = {f"evaluations/{model}" for model in models}
    # What is being measured now is none of them yet: its stage is at work, or its release is made.
    kept |= {f"evaluations/{stage.folder}" for stage in state.unfinished}
    branches = set(state.searches.trials) - {f.partition("/")[2] for f in _list_trials(state, keys)}
    kept |= {f"evaluations/branches/{name}" for name in branches | state.branches.keys()}
    above = {ancestor for folder in kept for ancestor in _ancestors(folder)}
    for key in keys:
        folder = key.rpartition("/")[0].removesuffix("/tasks")
        is_measured = key.startswith("evaluations/") and folder not in above
        if is_measured and not kept & {*_ancestors(key)}:
            yield folder


def _list_staged(state: RunState, keys: Collection[str]) -> Iterator[str]:
    manifests = {key for key in keys if key.endswith("/manifest.json")}
    for key in keys:
        room, _, rest = key.partition("/")
        name, mark, inside = rest.partition("/")
        if room == "corpora" and mark and inside.partition("/")[0].startswith(STAGING):
            corpus = state.corpora.get(name)
            is_refused = corpus is not None and corpus.state == "refused"
            if is_refused or f"corpora/{name}/manifest.json" in manifests:
                yield f"corpora/{name}/{inside.partition('/')[0]}"
        if room == RETRAINING or key.startswith(f"starts/{RETRAINING}/"):
            yield key.partition(RETRAINING)[0] + RETRAINING


def _list_left(state: RunState, keys: Collection[str]) -> Iterator[str]:
    yield from (stage.folder for stage in state.abandoned)


def _needed(state: RunState) -> set[str]:
    """Return the folders without which the trunk could not go on, or a release not be made."""
    needed = {stage.folder for stage in state.stages}
    needed |= {stage.resumes for stage in state.stages if stage.resumes}
    needed |= {stage.start for stage in state.stages if stage.start}
    if state.resumption is not None:
        needed.add(state.stage(state.resumption.stage).folder)
    for claimed in state.releasing.values():
        needed |= {claimed.source, *(claimed.average.sources if claimed.average else ())}
    # Of a trial that was not measured yet: it may be training.
    trials = state.searches.trials.values()
    needed |= {trial.branched.source for trial in trials if not trial.tried}
    needed |= {f"branches/{name}" for name in state.releasing}
    needed |= {made.folder for made in state.releases}
    return needed


def _overlaps(folder: str, kept: Collection[str]) -> bool:
    """Return whether a folder is one that is kept, or lies in one, or has one in it."""
    return any(
        folder == its or folder.startswith(f"{its}/") or its.startswith(f"{folder}/")
        for its in kept
    )


def _ancestors(key: str) -> Iterator[str]:
    folder = key.rpartition("/")[0]
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def sum_below(objects: Iterable[ObjectInfo], folders: Collection[str]) -> Mapping[str, int]:
    """Return the bytes of what is below each folder.

    Args:
        objects: all of the store.
        folders: keys of the folders.
    """
    sizes: Counter[str] = Counter(dict.fromkeys(folders, 0))
    for info in objects:
        for ancestor in _ancestors(info.key):
            if ancestor in sizes:
                sizes[ancestor] += info.size_bytes
    return sizes
