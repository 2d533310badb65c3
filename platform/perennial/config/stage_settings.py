"""The settings of one corpus's stage, resolved from the run file and the user's overrides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perennial.config.run import OptimizerAtJoin, RunSpec
    from perennial.fields import AmountValue
    from perennial.mixture import ReplaySpec, ShareOrAuto
    from perennial.schedules import ScheduleConfig


@dataclass(frozen=True)
class StageSettings:
    """The settings of a corpus's stage.

    budget: tokens or steps of the stage, or a percentage of the corpus.
    replay: the run file's rule of replay, with the share of this stage.
    optimizer: what the stage takes over of the optimizer's state.
    schedule: the run's, with the stage's own values.
    """

    budget: AmountValue
    replay: ReplaySpec
    optimizer: OptimizerAtJoin
    schedule: ScheduleConfig


def stage_settings(
    spec: RunSpec, corpus: str, user_replay_share: float | None = None
) -> StageSettings:
    """Return the settings of the stage of `corpus`.

    The most specific wins: the user's decision, then `stages.corpora`, then the run's own.

    Args:
        spec: the run file.
        corpus: name of the stage's first new corpus.
        user_replay_share: share that a user gave with `retry --replay`, from 0 to 1.
    """
    stages = spec.stages
    override = stages.corpora.get(corpus)
    share: ShareOrAuto | None = user_replay_share
    if share is None and override is not None:
        share = override.replay
    replay = spec.replay if share is None else spec.replay.model_copy(update={"share": share})
    if override is None:
        return StageSettings(stages.budget, replay, stages.optimizer, spec.schedule)
    return StageSettings(
        budget=stages.budget if override.budget is None else override.budget,
        replay=replay,
        optimizer=stages.optimizer if override.optimizer is None else override.optimizer,
        schedule=spec.schedule_of(corpus),
    )
