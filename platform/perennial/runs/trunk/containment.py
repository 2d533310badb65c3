"""Which stages, checkpoints, releases and trials were trained on some rows of a corpus. Pure.

It follows from the plans alone: a row of a corpus has a place in the training order of every stage
that takes the corpus, and the plan says at which step it is taken (I2).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

from perennial.mixture import Source, StageMix
from perennial.runs.entities import Stage, names_in
from perennial.runs.state import RunState

Stretches = Sequence[tuple[int, int]]
"""first and last row of stretches of rows of a corpus"""


def first_step_with(mix: StageMix, corpus: str, rows: Stretches) -> int | None:
    """Return how many steps a stage takes until it has trained one of the rows; None for never.

    Batches that were left out count as trained: what is found is never too little.

    Args:
        mix: the stage.
        corpus: the corpus.
        rows: of it.
    """
    steps = [
        bisect_right(range(1, mix.steps + 1), taken, key=lambda step: mix.count_taken(step)[index])
        for index, source in enumerate(mix.sources)
        if source.corpus == corpus
        for stretch in rows
        if (taken := _order_of(source, *stretch)) is not None
    ]
    return min(steps) + 1 if steps else None


def _order_of(source: Source, first: int, last: int) -> int | None:
    """Return the place of the first of the rows in a source's order; None for none."""
    low, high = max(first - source.first, 0), min(last - source.first, source.extent - 1)
    if low > high:
        return None
    start = source.start % source.extent
    place = 0 if low <= start <= high else (low - start) % source.extent
    return place if place < source.sequences else None


def trained_corpora(state: RunState, stage: Stage) -> tuple[str, ...]:
    """Return what a stage's end was trained on, without erased corpora; proxies last."""
    stages = [*state.lineage(stage), stage]
    new = [name for earlier in stages for name in earlier.corpora]
    proxies = [name for earlier in stages for name in earlier.replayed_proxies]
    erased = {*names_in(state.corpora.values(), "erased")}
    return tuple(name for name in dict.fromkeys([*new, *proxies]) if name not in erased)


class Containment:
    """The models of a run that were trained on rows of a corpus.

    Args:
        state: of the run.
        corpus: the corpus.
        rows: of it; one stretch that is longer than the corpus stands for all of it.
    """

    def __init__(self, state: RunState, corpus: str, rows: Stretches) -> None:
        self._state = state
        self._corpus = corpus
        self._rows = rows

    @cached_property
    def stages(self) -> dict[str, int]:
        """Return the stages that take one of the rows, and the trunk step that first has it."""
        steps = {
            stage.name: (stage, first_step_with(stage.mix, self._corpus, self._rows))
            for stage in self._state.started_stages
        }
        return {
            name: stage.first_step + step
            for name, (stage, step) in steps.items()
            if step is not None
        }

    def has(self, stage: Stage, step: int) -> bool:
        """Return whether a checkpoint of a stage at a trunk step was trained on one of the rows."""
        if self.stages.get(stage.name, step + 1) <= step:
            return True
        return any(earlier.name in self.stages for earlier in self._state.lineage(stage))

    def has_checkpoint(self, key: str) -> bool:
        """Return whether a checkpoint of the trunk, a release or a trial was, by its key."""
        folder, _, step = key.rpartition("/")
        room, _, name = folder.partition("/")
        if not step.isdecimal():
            return False
        if room == "branches":
            return self.has_branch(name, int(step))
        known = [stage for stage in self._state.started_stages if stage.name == name]
        return any(self.has(stage, int(step)) for stage in known)

    def has_branch(self, name: str, step: int | None = None) -> bool:
        """Return whether a release or a trial was; up to a step, or as a whole.

        Args:
            name: of the release or trial.
            step: a trunk step of its anneal; None for its end.
        """
        trials, branches = self._state.searches.trials, self._state.branches
        branch = branches.get(name) or (trials[name].branched if name in trials else None)
        if branch is None:
            return False
        if self.has(self._state.stage(branch.stage), branch.step):
            return True
        own = None if branch.mix is None else first_step_with(branch.mix, self._corpus, self._rows)
        return own is not None and (step is None or branch.step + own <= step)
