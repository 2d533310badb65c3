"""Group compared runs that differ in their seed alone, and give each a name of its own. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from perennial.config import RunSpec
from perennial.evaluation.seeds import SeededModel, pool
from perennial.report.compared_run import ComparedRun

_PLACES = (
    "name", "store", "inbox", "sources", "corpora.borrow", "evaluation.baseline",
    "tracking.to", "tracking.folder", "tracking.uri", "tracking.experiment",
)  # fmt: skip
"""Fields that say where a run is, not what is trained."""
_SEED_IN_NAME = re.compile(r"[-_.]*(?:seed|s)?[-_.]*\d*$")
_LONGEST_VALUE = 40
_MOST_FIELDS = 2
"""Fields that are shown in a name, at most."""

Fields = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone, by seed; most often one."""

    name: str
    runs: Mapping[int, ComparedRun]

    @property
    def first(self) -> ComparedRun:
        """Return the run of the lowest seed."""
        return next(iter(self.runs.values()))

    @property
    def bases(self) -> list[SeededModel]:
        """Return the stored models that the runs start from."""
        bases = {seed: [run.base] for seed, run in self.runs.items() if run.base is not None}
        return pool(self.name, bases)

    @property
    def finals(self) -> list[SeededModel]:
        """Return the ends of the trunks, and the releases off them."""
        return pool(self.name, {seed: run.final for seed, run in self.runs.items()})

    @property
    def last(self) -> SeededModel:
        """Return the last model of the runs; of several, that which most seeds have."""
        pools = pool(self.name, {seed: run.final[-1:] for seed, run in self.runs.items()})
        return max(pools, key=lambda model: (model.seeds, model.first.tokens))


def group_arms(runs: Sequence[ComparedRun]) -> tuple[Arm, ...]:
    """Return runs that differ in their seed alone together, in the order of their first run.

    A second run of the same settings and the same seed begins an arm of its own.

    Args:
        runs: with distinct names.
    """
    grouped: list[tuple[Fields, dict[int, ComparedRun]]] = []
    for run in runs:
        settings, seed = _settings(run.spec), run.spec.seed
        same = (its for others, its in grouped if others == settings and seed not in its)
        match = next(same, None)
        if match is None:
            grouped.append((settings, {seed: run}))
        else:
            match[seed] = run
    names = [_shared_name([run.spec.name for run in its.values()]) for _, its in grouped]
    names = _distinct(names, [settings for settings, _ in grouped])
    taken = Counter(names)
    arms = []
    for name, (_, its) in zip(names, grouped, strict=True):
        by_seed = dict(sorted(its.items()))
        # A run that stands alone has the name that it has everywhere else.
        alone = len(its) == 1 or taken[name] > 1
        arms.append(Arm(next(iter(by_seed.values())).name if alone else name, by_seed))
    return tuple(arms)


def name_runs(specs: Sequence[RunSpec]) -> list[str]:
    """Return a distinct name for each run: its own, with what sets it apart from its namesakes.

    Args:
        specs: of runs in different stores.
    """
    fields = [{"seed": spec.seed} | _settings(spec) for spec in specs]
    names = _distinct([spec.name for spec in specs], fields)
    repeated = {name for name, count in Counter(names).items() if count > 1}
    stores = [spec.store.split("/") for spec in specs]
    shared = sum(1 for _ in takewhile(lambda parts: len({*parts}) == 1, zip(*stores, strict=False)))
    return [
        f"{spec.name} ({'/'.join(store[shared:]) or spec.store})" if name in repeated else name
        for name, spec, store in zip(names, specs, stores, strict=True)
    ]


def _settings(spec: RunSpec) -> Fields:
    """Return what decides a run's result apart from its seed, by dotted names."""
    fields = dict(_flat(spec.model_dump(mode="json")))
    del fields["seed"]
    return {
        name: value
        for name, value in fields.items()
        if not any(name == place or name.startswith(f"{place}.") for place in _PLACES)
    }


def _flat(document: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{inside}{key}.")
        else:
            yield f"{inside}{key}", value


def _shared_name(names: Sequence[str]) -> str:
    """Return what names of runs have in common, without the number of a seed at its end."""
    if len({*names}) == 1:
        return names[0]
    columns = takewhile(lambda letters: len({*letters}) == 1, zip(*names, strict=False))
    return _SEED_IN_NAME.sub("", "".join(letters[0] for letters in columns)) or names[0]


def _distinct(names: Sequence[str], fields: Sequence[Fields]) -> list[str]:
    """Return the names; those that occur twice with the fields that differ, where these are few."""
    distinct = []
    for name, own in zip(names, fields, strict=True):
        namesakes = [f for n, f in zip(names, fields, strict=True) if n == name]
        keys = dict.fromkeys(key for its in namesakes for key in its)
        shown = [
            f"{key}={own[key]}"
            for key in keys
            if key in own and any(its.get(key) != own[key] for its in namesakes)
        ]
        is_short = 0 < len(shown) <= _MOST_FIELDS and all(len(s) <= _LONGEST_VALUE for s in shown)
        distinct.append(f"{name} ({', '.join(shown)})" if is_short else name)
    return distinct
