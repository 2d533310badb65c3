"""Define corpora and stages, of which the state of a run consists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from perennial.config.run import OptimizerAtJoin
from perennial.corpora.file_list import ListRecord
from perennial.evaluation.kept_samples import SampleList
from perennial.evaluation.loss import HeldoutLoss
from perennial.evaluation.samples import Sample
from perennial.evaluation.scores import Score
from perennial.mixture import StageMix
from perennial.runs.events import (
    CorpusEvent,
    Document,
    Erased,
    Failed,
    Imported,
    Ingesting,
    Measured,
    Retried,
    ScheduleRecord,
    Started,
)
from perennial.runs.transitions import CorpusState
from perennial.runs.unattended.replay_share import ShareDecision


@dataclass
class Corpus:
    """One corpus, as of the ledger."""

    name: str
    state: CorpusState = "unknown"
    #: kinds of the events that happened to it, in order
    event_kinds: list[str] = field(default_factory=list)
    size_bytes: int = 0
    #: the list of its files when it landed; None where there is nothing to compare with
    listing: ListRecord | None = None
    sequences: int = 0
    tokens: int = 0
    #: sequences by part, in their order in the corpus; none of a corpus without parts
    parts: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    #: the stable code of the reason for which it was refused; "" where it has none
    code: str = ""
    #: where `retried` leads to
    back: CorpusState = "unknown"
    #: failures in a row of what is being done with it, of so many that are allowed
    attempt: int = 0
    attempts: int = 0
    next_try: str | None = None
    #: replay share of its next stage, which a user gave or a broken gate
    replay: float | None = None
    #: how often its stage was trained again with more replay, since a user last decided
    retries: int = 0
    #: peak learning rate of its next stage, and the search that gave it and the share; "" for none
    rate: float | None = None
    search: str = ""
    #: how often something of it was erased
    erasures: int = 0
    #: whether a user accepted its stage before it begins
    approved: bool = False
    #: number of the last stage of the trunk whose end was measured on it; -1 for none
    measured: int = -1

    def is_late(self, event: CorpusEvent) -> bool:
        """Return whether an event counts on from another number than the corpus has."""
        if isinstance(event, Erased):
            return event.corpus == self.name and event.number != self.erasures
        if not isinstance(event, Failed) or event.attempt == self.attempt + 1:
            return False
        # Ledgers of earlier code count from the start at each start of an ingest.
        return not (self.state == "ingesting" and event.attempt == 1)

    def count_failures(self, event: CorpusEvent) -> None:
        """Keep how often in a row what is being done has failed, and when it is tried again.

        A retry by the controller goes on counting, and so does the start of an ingest, which every
        try of it has.
        """
        match event:
            case Failed():
                self.attempt, self.attempts = event.attempt, event.attempts
                self.next_try = event.next_try
            case Retried(by_person=False):
                pass
            case Ingesting():
                self.next_try = None
            case _:
                self.attempt, self.next_try = 0, None

    def go_on(self, event: Retried) -> None:
        """Keep what a retry says of the next stage."""
        by_gate = not event.by_person and event.replay is not None
        self.retries = 0 if event.by_person else self.retries + by_gate
        if event.by_person or by_gate:
            self.replay, self.rate, self.search = event.replay, event.rate, event.search
        # Where nothing was promised, a user's retry takes the inbox as it is.
        if event.by_person and self.listing and not self.listing.promised:
            self.listing = None

    @property
    def holds_nothing_new(self) -> bool:
        """Return whether it was left out because all of it is known, which is no mistake."""
        return self.state == "refused" and self.code == "nothing-new"

    @property
    def stands_at(self) -> CorpusState:
        """Return its state, or the state in which it failed."""
        return self.back if self.state == "failed" else self.state


@dataclass(frozen=True)
class Stage:
    """One stage, decided by its `Started` event.

    after: number of the trunk's stages that came before it.
    settings: what it keeps of the run file until it is finished; None where that is not known.
    share_decision: why it replays as much as it does; None where a number was set.
    gpus: of the largest worker group that it may have; 0 where an older version began it.
    resumes: key of the checkpoint of the same plan that it goes on from; None for none.
    """

    name: str
    first_step: int
    start: str | None
    mix: StageMix
    schedule: ScheduleRecord
    tracking_run: str
    after: int
    optimizer: OptimizerAtJoin
    settings: Document | None = None
    share_decision: ShareDecision | None = None
    gpus: float = 0.0
    resumes: str | None = None

    @classmethod
    def decided(cls, event: Started, after: int) -> Stage:
        """Return the stage that an event plans."""
        return cls(
            name=event.stage,
            first_step=event.first_step,
            start=event.start,
            mix=event.mix,
            schedule=event.schedule,
            tracking_run=event.tracking_run,
            after=after,
            optimizer=event.optimizer,
            settings=event.settings,
            share_decision=event.share_decision,
            gpus=event.gpus,
            resumes=event.resumes,
        )

    def with_mix(self, mix: StageMix) -> Stage:
        """Return the stage with another mix."""
        return Stage(**{f.name: getattr(self, f.name) for f in fields(Stage)} | {"mix": mix})

    @property
    def corpora(self) -> tuple[str, ...]:
        """Return the new corpora; the first gave the stage its name."""
        return self.mix.corpora

    @property
    def steps(self) -> int:
        """Return the number of its optimizer steps."""
        return self.mix.steps

    @property
    def replayed_proxies(self) -> tuple[str, ...]:
        """Return the corpora that it replays and that never have a stage of their own."""
        proxies = self.mix.replay.proxies
        return tuple(dict.fromkeys(s.corpus for s in self.mix.replayed if s.corpus in proxies))

    @property
    def last_step(self) -> int:
        """Return the trunk step after the stage."""
        return self.first_step + self.steps

    @property
    def folder(self) -> str:
        """Return the key of the folder of the stage's checkpoints."""
        return f"checkpoints/{self.name}"


@dataclass
class StoredOrigin:
    """A stored model that the trunk starts from, and its measurements.

    imported: the copy in the store.
    """

    imported: Imported
    losses: dict[str, HeldoutLoss] = field(default_factory=dict)
    #: corpora on which its loss is not a number
    not_finite: tuple[str, ...] = ()
    scores: list[Score] = field(default_factory=list)
    samples: list[Sample | SampleList] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return its name among the run's models."""
        return self.imported.name

    @property
    def folder(self) -> str:
        """Return the key of its folder."""
        return self.imported.folder

    def measured(self, event: Measured) -> None:
        """Keep measurements; the newest loss on a corpus counts, a score or sample the first."""
        self.losses |= event.losses
        lost = [name for name in self.not_finite if name not in event.losses]
        self.not_finite = tuple(dict.fromkeys([*lost, *event.not_finite]))
        known = {(score["asked"], score["task"]) for score in self.scores}
        self.scores += [s for s in event.scores if (s["asked"], s["task"]) not in known]
        asked = {_asked(held) for held in self.samples}
        self.samples += [held for held in event.samples if _asked(held) not in asked]


def _asked(held: Sample | SampleList) -> tuple[str, ...]:
    """Return what a model continued: a prompt, or those of a corpus."""
    return (held.corpus, held.prompt) if isinstance(held, Sample) else (held.corpus,)


def note_measured(corpora: Mapping[str, Corpus], measured: Iterable[str], stage: Stage) -> None:
    """Note that a stage's end was measured on some of the corpora.

    Args:
        corpora: of the run, by name.
        measured: names; those that are no corpora of the run are left out.
        stage: the stage.
    """
    for name in measured:
        if name in corpora:
            corpora[name].measured = max(corpora[name].measured, stage.after)


def names_in(corpora: Iterable[Corpus], *states: CorpusState) -> list[str]:
    """Return the names of the corpora in one of these states, in the order of landing."""
    return [corpus.name for corpus in corpora if corpus.state in states]
