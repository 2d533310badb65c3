"""The part of the state of a run that its trunk's functions read and change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from perennial.runs.entities import Corpus, Stage
from perennial.runs.events import Released, Releasing


@dataclass(frozen=True)
class Resumption:
    """A stage that left the trunk, and the trunk step from which its plan goes on."""

    stage: str
    step: int


class TrunkState(Protocol):
    """The state of a run, see `perennial.runs.state`."""

    corpora: dict[str, Corpus]
    stages: list[Stage]
    abandoned: list[Stage]
    resumption: Resumption | None
    ends: dict[str, str]
    releasing: dict[str, Releasing]
    releases: list[Released]
    branches: dict[str, Releasing]

    @property
    def at_work(self) -> Stage | None:
        """The first stage of the trunk that has not passed."""

    @property
    def unfinished(self) -> Sequence[Stage]:
        """The stages that have not passed."""

    @property
    def started_stages(self) -> Sequence[Stage]:
        """Every stage that was ever started."""

    def stage(self, name: str) -> Stage:
        """Return a stage by its name."""

    def lineage(self, stage: Stage) -> Sequence[Stage]:
        """Return the stages that a stage follows."""

    def move(self, corpus: Corpus, kind: str) -> None:
        """Move a corpus along the transition table."""
