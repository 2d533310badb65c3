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
    spec: RunSpec,
    corpus: str,
    decided_share: float | None = None,
    decided_rate: float | None = None,
) -> StageSettings:
    """Return the settings of the stage of `corpus`.

    The most specific wins: what was decided for the stage, then `stages.corpora`, then the run's
    own.

    Args:
        spec: the run file.
        corpus: name of the stage's first new corpus.
        decided_share: replay share that a user or a broken gate gave, from 0 to 1.
        decided_rate: peak learning rate that a search gave, of a schedule with one in each stage.
    """
    stages = spec.stages
    override = stages.corpora.get(corpus)
    share: ShareOrAuto | None = decided_share
    if share is None and override is not None:
        share = override.replay
    replay = spec.replay if share is None else spec.replay.model_copy(update={"share": share})
    schedule = spec.schedule_of(corpus)
    if decided_rate is not None and schedule.rate_field is not None:
        values = schedule.model_dump(mode="json") | {schedule.rate_field: decided_rate}
        schedule = type(schedule).model_validate(values)
    if override is None:
        return StageSettings(stages.budget, replay, stages.optimizer, schedule)
    return StageSettings(
        budget=stages.budget if override.budget is None else override.budget,
        replay=replay,
        optimizer=stages.optimizer if override.optimizer is None else override.optimizer,
        schedule=schedule,
    )
