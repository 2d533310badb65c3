"""Read from the ledger what a snapshot leaves there: plans and measurements of stages, when asked.

A plan names every corpus that is replayed, an evaluation every corpus that was measured. They are
in the ledger's events already, which never change; a snapshot names the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from perennial.config.run import OptimizerAtJoin
from perennial.evaluation.gates import Verdict
from perennial.evaluation.loss import HeldoutLoss
from perennial.evaluation.scores import Score
from perennial.mixture import StageMix
from perennial.runs.entities import Stage
from perennial.runs.events import (
    Document,
    Evaluated,
    Event,
    Gated,
    Measured,
    Passed,
    ScheduleRecord,
    Started,
)

if TYPE_CHECKING:
    from perennial.runs.state import RunState
    from perennial.runs.unattended.replay_share import ShareDecision

T = TypeVar("T")
E = TypeVar("E", bound=Event)


class ReadEntry(Protocol):
    """Reads an entry of the ledger."""

    def __call__(self, number: int, *kinds: type[E]) -> E:
        """Return its event; raise InputError unless it is there and of one of these kinds."""


@dataclass
class StageEntries:
    """Numbers of the ledger's entries about a stage; None for what did not happen.

    measured: those of further measurements since it was evaluated.
    judged: that of its last verdicts.
    """

    started: int
    evaluated: int | None = None
    measured: list[int] = field(default_factory=list)
    judged: int | None = None


class StageIndex(dict[str, StageEntries]):
    """The entries about every stage that was started, by its name, in their order."""

    def note(self, number: int, event: Event, state: RunState) -> None:
        """Note an entry that was folded into the state."""
        match event:
            case Started():
                self[event.stage] = StageEntries(number)
            case Evaluated():
                its = self[state.stage_of(event.corpus).name]
                its.evaluated, its.measured = number, []
            case Measured() if event.stage in self:
                self[event.stage].measured.append(number)
            case Passed() | Gated():
                self[state.stage_of(event.corpus).name].judged = number


class StageArchive:
    """Plans and measurements of stages, each read when it is first asked for.

    Args:
        index: the entries about every stage.
        read: returns the event of an entry of the ledger.
    """

    def __init__(self, index: Mapping[str, StageEntries], read: ReadEntry) -> None:
        self._index = index
        self._read = read
        self._evaluations: dict[str, Evaluated] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the archive itself: entries never change."""
        return self

    def started(self, name: str) -> Started:
        """Return the event that planned a stage."""
        return self._read(self._index[name].started, Started)

    def attach(self, state: RunState) -> None:
        """Give a state the measurements of its stages."""
        names = [name for name, its in self._index.items() if its.evaluated is not None]
        judged = [name for name, its in self._index.items() if its.judged is not None]
        state.losses = StoredRows(names, self._losses)
        state.stage_scores = StoredRows(names, self._scores)
        state.stage_samples = StoredRows(names, lambda name: self._evaluated(name).samples)
        state.verdicts = StoredRows(judged, self._verdicts)
        state.draws = StoredRows(names, lambda name: self._evaluated(name).draw)

    def _losses(self, name: str) -> dict[str, HeldoutLoss]:
        losses = self._evaluated(name).losses
        for measured in self._measured(name):
            losses = measured.losses | losses
        return losses

    def _scores(self, name: str) -> list[Score]:
        later = (score for measured in self._measured(name) for score in measured.scores)
        return [*self._evaluated(name).scores, *later]

    def _verdicts(self, name: str) -> list[Verdict]:
        number = self._index[name].judged
        assert number is not None
        judged = self._read(number, Passed, Gated)
        assert isinstance(judged, Passed | Gated)
        return judged.verdicts

    def _evaluated(self, name: str) -> Evaluated:
        if name not in self._evaluations:
            number = self._index[name].evaluated
            assert number is not None
            self._evaluations[name] = self._read(number, Evaluated)
        return self._evaluations[name]

    def _measured(self, name: str) -> Iterator[Measured]:
        for number in self._index[name].measured:
            yield self._read(number, Measured)


@dataclass(frozen=True)
class StageRow:
    """A stage as a snapshot holds it.

    schedule: index of its schedule among the snapshot's, which many stages have in common.
    """

    name: str
    first_step: int
    steps: int
    start: str | None
    after: int
    corpora: tuple[str, ...]
    proxies: tuple[str, ...]
    schedule: int
    gpus: float

    @classmethod
    def of(cls, stage: Stage, schedule: int) -> StageRow:
        """Return the row of a stage."""
        return cls(
            name=stage.name,
            first_step=stage.first_step,
            steps=stage.steps,
            start=stage.start,
            after=stage.after,
            corpora=stage.corpora,
            proxies=stage.replayed_proxies,
            schedule=schedule,
            gpus=stage.gpus,
        )


class StoredStage(Stage):
    """A stage whose plan is read from the ledger when it is first asked for.

    Args:
        row: what is known without that.
        schedule: its schedule.
        archive: where the plan is.
    """

    def __init__(self, row: StageRow, schedule: ScheduleRecord, archive: StageArchive) -> None:
        known = {"name": row.name, "first_step": row.first_step, "start": row.start}
        known |= {"gpus": row.gpus}
        hidden = {"after": row.after, "schedule": schedule, "_row": row, "_archive": archive}
        self.__dict__.update(known | hidden)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stage):
            return NotImplemented
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(Stage))

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the stage itself: it never changes."""
        return self

    @cached_property
    def _decided(self) -> Started:
        archive: StageArchive = self.__dict__["_archive"]
        return archive.started(self.name)

    @property
    def _stored(self) -> StageRow:
        row: StageRow = self.__dict__["_row"]
        return row

    @property
    def mix(self) -> StageMix:
        return self._decided.mix

    @property
    def tracking_run(self) -> str:
        return self._decided.tracking_run

    @property
    def optimizer(self) -> OptimizerAtJoin:
        return self._decided.optimizer

    @property
    def settings(self) -> Document | None:
        return self._decided.settings

    @property
    def share_decision(self) -> ShareDecision | None:
        return self._decided.share_decision

    @property
    def resumes(self) -> str | None:
        return self._decided.resumes

    @property
    def corpora(self) -> tuple[str, ...]:
        return self._stored.corpora

    @property
    def steps(self) -> int:
        return self._stored.steps

    @property
    def replayed_proxies(self) -> tuple[str, ...]:
        return self._stored.proxies


class StoredRows(MutableMapping[str, T]):
    """A value for each stage, which is read when it is first asked for.

    Args:
        names: of the stages.
        read: returns the value of a stage.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], T]) -> None:
        self._rows: dict[str, T | None] = dict.fromkeys(names)
        self._read = read

    def __getitem__(self, name: str) -> T:
        value = self._rows[name]
        if value is None:
            value = self._rows[name] = self._read(name)
        return value

    def __setitem__(self, name: str, value: T) -> None:
        self._rows[name] = value

    def __delitem__(self, name: str) -> None:
        del self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return repr(dict(self))
