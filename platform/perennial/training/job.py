"""The job of a worker group: everything that it needs, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from perennial.config.run import OptimizerAtJoin
from perennial.config.training import ModelSpec, TrainingSpec
from perennial.corpora.tokenizer import FIRST_TOKENIZER
from perennial.mixture import StageMix, trained_sequences
from perennial.mixture.row_reader import CorpusLayout
from perennial.schedules import Phase, Schedule, from_dict, to_dict
from perennial.store import Store
from perennial.training.checkpoint.ownership import Fence


@dataclass(frozen=True)
class Job:
    """A stretch of training: a stage of the trunk, an anneal, or a trial.

    store_url: root of the run.
    name: stage or branch name, as messages show it.
    folder: key under which its checkpoints go.
    mix: the plan of its steps, counted from 0.
    layouts: where the rows of the mix's corpora lie.
    first_step: trunk step at which it begins; trunk step = first_step + step of the mix.
    start: key of the checkpoint whose weights it starts from; None starts from what `model` says.
    optimizer: whether the optimizer's state starts from zero or comes from `start`, whole or
        without its averages of the gradient.
    old: corpora whose held-out loss is measured, with that of the new ones, in the stage's first
        steps; without any nothing is measured.
    schedule: the learning rate by trunk step; an anneal on a branch.
    tokens_seen: tokens that the trunk has seen of each corpus of the mix before `first_step`.
    tokens_elsewhere: those of all other corpora. They are one number, so that what a job and its
        checkpoints hold does not grow with the corpora of a trunk.
    dtype: numpy name of a token id in the shards.
    fence: until when the job may commit checkpoints; None is without end.
    padded: whether rows of its corpora hold padding, as `corpora.packing: best-fit` makes it.
    tokenizer: key of the folder of the model's tokenizer in the store.
    grown_from: entries of the model that it starts from, where that has fewer than the tokenizer:
        those from this id on are new; None where none is.
    until: trunk step at which it ends before the mix does, as a trial; another job of its folder
        goes on from there. None trains the whole mix.
    """

    store_url: str
    name: str
    folder: str
    mix: StageMix
    layouts: dict[str, CorpusLayout]
    first_step: int
    start: str | None
    schedule: Schedule
    model: ModelSpec
    training: TrainingSpec
    sequence_length: int
    vocabulary: int
    end_of_document: int
    dtype: str
    seed: int
    optimizer: OptimizerAtJoin = "reset"
    old: tuple[str, ...] = ()
    tokens_seen: dict[str, int] = field(default_factory=dict)
    tokens_elsewhere: int = 0
    tracking_run: str = ""
    fence: Fence | None = None
    until: int | None = None
    begin_of_document: int | None = None
    padded: bool = False
    tokenizer: str = FIRST_TOKENIZER
    grown_from: int | None = None

    @property
    def last_step(self) -> int:
        """Return the trunk step after the job's last optimizer step."""
        return self.first_step + self.mix.steps if self.until is None else self.until

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens in one global batch."""
        return self.mix.global_batch * self.sequence_length

    @property
    def logits_bytes(self) -> int:
        """Return the bytes of a micro batch's logits, in fp32."""
        return self.training.micro_batch * self.sequence_length * self.vocabulary * 4

    def eta(self, step: int) -> float:
        """Return the rate of the optimizer step that leaves trunk step `step` (invariant I1)."""
        return self.schedule.eta(step)

    def phase(self, step: int) -> Phase:
        """Return the phase of the optimizer step that leaves trunk step `step`."""
        return self.schedule.phase(step)

    @cached_property
    def checkpoint_interval_steps(self) -> int:
        """Return the optimizer steps from one checkpoint of the interval to the next."""
        return max(1, self.training.checkpoint_every.steps(0, self.tokens_per_step))

    @cached_property
    def phase_ends(self) -> frozenset[int]:
        """Return the trunk steps inside the job at which a phase of the schedule ends."""
        ends = {end + 1 for end in self.schedule.phase_ends().values()}
        return frozenset(end for end in ends if self.first_step < end < self.last_step)

    def may_commit(self, store: Store) -> bool:
        """Return whether the job still has its owner; asked before a checkpoint is committed."""
        return self.fence is None or self.fence.stands(store)

    def checkpoint_steps(self) -> set[int]:
        """Return the trunk steps at which a checkpoint is due; see `checkpoint_steps`."""
        every = self.checkpoint_interval_steps
        return checkpoint_steps(self.schedule, self.first_step, self.last_step, every)

    def tokens_at(self, step: int, skipped: Sequence[int] = ()) -> dict[str, int]:
        """Return the tokens seen per corpus of the mix when the trunk (or branch) stands at `step`.

        Args:
            step: trunk step.
            skipped: trunk steps whose batch (the one that would have led there) was not trained.
        """
        past = [left_out - 1 - self.first_step for left_out in skipped if left_out <= step]
        taken = trained_sequences(self.mix, step - self.first_step, past)
        seen = dict(self.tokens_seen)
        for corpus, sequences in taken.items():
            seen[corpus] = seen.get(corpus, 0) + sequences * self.sequence_length
        return seen

    def to_dict(self) -> dict[str, Any]:
        """Return the job as plain JSON values."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return data | {
            "mix": self.mix.to_dict(),
            "layouts": {name: asdict(layout) for name, layout in self.layouts.items()},
            "schedule": to_dict(self.schedule),
            "model": self.model.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "fence": None if self.fence is None else asdict(self.fence),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        """Return the job that `to_dict` wrote."""
        return cls(
            **data
            | {
                "old": tuple(data["old"]),
                "mix": StageMix.from_dict(data["mix"]),
                "layouts": {name: _layout(layout) for name, layout in data["layouts"].items()},
                "schedule": from_dict(data["schedule"]),
                "model": ModelSpec.model_validate(data["model"]),
                "training": TrainingSpec.model_validate(data["training"]),
                "fence": None if data["fence"] is None else Fence(**data["fence"]),
            }
        )


def checkpoint_steps(schedule: Schedule, first_step: int, last_step: int, every: int) -> set[int]:
    """Return the trunk steps at which a checkpoint is due.

    Args:
        schedule: a checkpoint is due at the end of every phase.
        first_step: trunk step at which the job begins.
        last_step: trunk step at which it ends; a checkpoint is due there.
        every: steps of the interval.
    """
    ends = {end + 1 for end in schedule.phase_ends().values()}
    due = {*range(first_step + every, last_step, every), *ends}
    return {step for step in due if first_step < step < last_step} | {last_step}


def _layout(data: dict[str, Any]) -> CorpusLayout:
    tuples = {name: tuple(values) for name, values in data.items() if isinstance(values, list)}
    return CorpusLayout(**data | tuples)
