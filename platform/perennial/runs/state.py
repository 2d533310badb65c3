"""Fold the ledger's events into the state of a run. Pure: no I/O, no clock.

Corpora and releases follow one table (`transitions`), the next action this state (`actions`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain

from perennial.errors import InvalidTransition
from perennial.evaluation import BASE
from perennial.evaluation.budget import Draw
from perennial.evaluation.gates import Verdict
from perennial.evaluation.kept_samples import SampleList
from perennial.evaluation.loss import HeldoutLoss
from perennial.evaluation.samples import Sample
from perennial.evaluation.scores import Score
from perennial.mixture import StageMix, TrunkUse, trained_by_part, trained_sequences
from perennial.runs.entities import Corpus, Stage, StoredOrigin, note_measured
from perennial.runs.events import (
    Accepted,
    Branched,
    CorpusEvent,
    Document,
    Erased,
    Evaluated,
    Evaluating,
    Event,
    Extended,
    Gated,
    Imported,
    Ingesting,
    Landed,
    Measured,
    Opened,
    Passed,
    Promoted,
    Ready,
    Refused,
    Released,
    Releasing,
    Retried,
    Rewound,
    Scored,
    Searching,
    Started,
    TookOver,
    Trained,
    Tried,
)
from perennial.runs.search_state import Searches
from perennial.runs.storage.store_events import StoreEvent
from perennial.runs.storage.store_state import StoreState
from perennial.runs.transitions import (
    ASIDE,
    FINISHED,
    TRANSITIONS,
    CorpusState,
    ReleaseState,
    check_release,
)
from perennial.runs.trunk import invariants, rewinding, unfinished
from perennial.runs.trunk.training_times import TrainingTimes, note_training
from perennial.runs.trunk.trunk_state import Resumption
from perennial.runs.trunk.trunk_sums import Skipped, TrunkSums

__all__ = ["Corpus", "CorpusState", "InvalidTransition", "RunState", "Stage"]


@dataclass
class RunState:
    """The whole run, as of the ledger."""

    spec: Document | None = None
    store: StoreState = field(default_factory=StoreState)
    epoch: int = 0
    controller: str = ""
    #: keys of the heartbeats of who trains, and of who tokenises
    lease: str = ""
    ingest_lease: str = ""
    #: stored models that the trunk starts from, by name; none where it starts from random weights
    origins: dict[str, StoredOrigin] = field(default_factory=dict)
    #: corpora by name, in the order in which they landed
    corpora: dict[str, Corpus] = field(default_factory=dict)
    #: entries that corpora bring to the tokenizer, by corpus; in force once their stage passed
    extensions: dict[str, Extended] = field(default_factory=dict)
    #: stages in the order of the trunk
    stages: list[Stage] = field(default_factory=list)
    #: stages that were started and have left the trunk, in the order of leaving it
    abandoned: list[Stage] = field(default_factory=list)
    #: the stage that left it and whose plan goes on next; None where a corpus begins the next one
    resumption: Resumption | None = None
    #: checkpoint at the end of each trained stage, by stage name
    ends: dict[str, str] = field(default_factory=dict)
    #: UTC times at which each stage was `started` and `trained`, by stage name
    times: dict[str, dict[str, str]] = field(default_factory=dict)
    #: when each stage was being trained, by stage name, in the order in which they were started
    training: dict[str, TrainingTimes] = field(default_factory=dict)
    #: trunk steps whose batch a trained stage skipped, by the stage's folder
    skipped: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: held-out losses after each evaluated stage, by stage name and corpus
    losses: MutableMapping[str, dict[str, HeldoutLoss]] = field(default_factory=dict)
    #: of those, the losses on the stage's own corpora: what later forgetting is counted from
    own_losses: dict[str, dict[str, HeldoutLoss]] = field(default_factory=dict)
    #: what a budget leaves of all corpora, of the stage being evaluated and by stage name
    drawing: Draw | None = None
    draws: MutableMapping[str, Draw | None] = field(default_factory=dict)
    #: corpora on which a stage's loss is not a number, by stage name
    not_finite: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: scores that the gates asked for, and their verdicts, by stage name
    stage_scores: MutableMapping[str, list[Score]] = field(default_factory=dict)
    verdicts: MutableMapping[str, list[Verdict]] = field(default_factory=dict)
    #: samples from every stage's end, by stage name
    stage_samples: MutableMapping[str, list[Sample | SampleList]] = field(default_factory=dict)
    #: why a user accepted a stage in spite of its verdicts, by stage name
    accepted: dict[str, str] = field(default_factory=dict)
    #: releases that were begun and do not exist yet, by name
    releasing: dict[str, Releasing] = field(default_factory=dict)
    releases: list[Released] = field(default_factory=list)
    #: the plan of every release, by name
    branches: dict[str, Releasing] = field(default_factory=dict)
    #: lm-eval scores by release, and the tasks of the run file that gave them
    scores: dict[str, list[Score]] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)
    #: releases to which each alias pointed, by the alias; the last one is where it points now
    aliases: dict[str, list[str]] = field(default_factory=dict)
    #: searches for the settings of stages, and their trials
    searches: Searches = field(default_factory=Searches)

    def __post_init__(self) -> None:
        """Begin the running sums; they follow the stages when they are asked for."""
        self._sums = TrunkSums()
        self._walk: tuple[Skipped | None, TrunkSums] = None, TrunkSums()

    def apply(self, event: Event) -> None:
        """Fold in an event; raise InvalidTransition, and change nothing, when it cannot follow."""
        self.check(event)
        match event:
            case Opened():
                self.spec, self.store.id = event.spec, event.id
            case StoreEvent():
                self.store.apply(event, self)
            case TookOver():
                self.epoch, self.controller = event.epoch, event.controller
                self.lease = event.lease
            case Imported():
                self.origins[event.name] = StoredOrigin(event)
            case Releasing():
                self.releasing[event.name] = self.branches[event.name] = event
            case Released():
                del self.releasing[event.name]
                self.releases.append(event)
            case Rewound():
                rewinding.apply_rewind(self, event)
            case Measured() if event.stage in self.origins:
                self.origins[event.stage].measured(event)
            case Measured():
                self._keep_losses(self.stage(event.stage), event.losses | self.losses[event.stage])
                self.stage_scores[event.stage] += event.scores
            case Scored():
                self.scores.setdefault(event.release, []).extend(event.scores)
                self.tasks.setdefault(event.release, []).extend(event.tasks)
            case Promoted():
                self.aliases.setdefault(event.alias, []).append(event.release)
            case Searching() | Branched() | Tried():
                self.searches.apply(event)
            case Erased() if not event.whole:
                self.corpora[event.corpus].erasures += 1
            case _:
                self._apply_to_corpus(event)

    def check(self, event: Event) -> None:
        """Raise InvalidTransition when the event cannot follow; changes nothing."""
        self.store.check(event, self)
        match event:
            case StoreEvent():
                pass
            case Opened():
                if self.spec is not None:
                    raise InvalidTransition("the run", "open", "opened", ["opened"])
            case TookOver():
                if event.epoch != self.epoch + 1:
                    raise InvalidTransition("the run", f"at epoch {self.epoch}", event.kind, [])
            case Imported():
                if event.name in self.origins:
                    raise InvalidTransition(event.name, "imported", event.kind, ["imported"])
            case Releasing() | Released():
                last = self.releasing.get(event.name)
                check_release(event, self.release_state(event.name), last)
            case Rewound():
                rewinding.list_leaving(self, event)
            case Measured():
                if event.stage not in {*self.losses, *self.origins}:
                    raise InvalidTransition(event.stage, "not evaluated", event.kind, [])
            case Scored() | Promoted():
                self._check_released(event)
            case Searching() | Branched() | Tried():
                self.searches.check(event)
            case _:
                self._check_corpus(event)

    def _check_released(self, event: Scored | Promoted) -> None:
        if self.release_state(event.release) != "released":
            raise InvalidTransition(event.release, "not released", event.kind, [])
        if isinstance(event, Promoted) and self.aliases.get(event.alias, [""])[-1] == event.release:
            raise InvalidTransition(event.release, event.alias, event.kind, [])

    def aliases_of(self, release: str) -> tuple[str, ...]:
        """Return the aliases that point to a release now."""
        return tuple(alias for alias, to in self.aliases.items() if to[-1] == release)

    def _check_corpus(self, event: CorpusEvent) -> None:
        if isinstance(event, Started) and event.mix.corpora[:1] != (event.corpus,):
            mix = f"mix that trains {' and '.join(event.mix.corpora)}"
            raise ValueError(f"the stage of {event.corpus} has a {mix}")
        unfinished.check_order(self, event)
        for name, kind in self._happenings(event).items():
            corpus = self.corpora.get(name) or Corpus(name)
            if corpus.is_late(event) or (corpus.state, kind) not in TRANSITIONS:
                raise InvalidTransition(name, corpus.state, kind, corpus.event_kinds)

    def _happenings(self, event: CorpusEvent) -> dict[str, str]:
        """Return the transition of every corpus that an event concerns.

        Corpora of a stage share its events; one that is refused or erased frees the others.
        """
        if isinstance(event, Started):
            return dict.fromkeys(event.mix.corpora, event.kind)
        together = self.together(event.corpus)
        if isinstance(event, Refused | Erased):
            return {**dict.fromkeys(together, "freed"), event.corpus: event.kind}
        return dict.fromkeys(together, event.kind)

    def together(self, corpus: str) -> tuple[str, ...]:
        """Return the corpora of the unfinished stage of which this is one, else this one."""
        return next((s.corpora for s in self.unfinished if corpus in s.corpora), (corpus,))

    @property
    def ingesting(self) -> Corpus | None:
        """Return the corpus that is being tokenised, or None."""
        return next((c for c in self.corpora.values() if c.state == "ingesting"), None)

    @property
    def at_work(self) -> Stage | None:
        """Return the first stage of the trunk that has not passed, or None."""
        return next(iter(self.unfinished), None)

    @property
    def unfinished(self) -> list[Stage]:
        """Return the stages that have not passed: a second one while the first is measured."""
        return unfinished.list_unfinished(self)

    @property
    def gated(self) -> Stage | None:
        """Return the stage that a gate stopped, or None."""
        stage = self.at_work
        return stage if stage and self.corpora[stage.corpora[0]].state == "gated" else None

    def has_passed(self, stage: Stage) -> bool:
        """Return whether the next stage may start from this one's end."""
        return self.corpora[stage.corpora[0]].state in FINISHED

    def _apply_to_corpus(self, event: CorpusEvent) -> None:
        happenings, stages = self._happenings(event), self.unfinished
        for name, kind in happenings.items():
            corpus = self.corpora.setdefault(name, Corpus(name))
            self.move(corpus, kind)
            self._note(corpus, event)
            corpus.reason = getattr(event, "reason", "") if kind == event.kind else ""
            corpus.code = getattr(event, "code", "") if kind == event.kind else ""
        unfinished.take_off(self, stages, event)
        rewinding.forget_resumption(self, event)
        self._note_stage(event)
        for stage in [*stages, *(self.stages[-1:] if isinstance(event, Started) else ())]:
            trains = self.corpora[stage.corpora[0]].state == "training"
            note_training(self.training.setdefault(stage.name, []), event.at, trains=trains)

    def move(self, corpus: Corpus, kind: str) -> None:
        """Move a corpus along the transition table."""
        target = TRANSITIONS[corpus.state, kind]
        if target in ASIDE and corpus.state not in ASIDE:
            corpus.back = corpus.state
        if target == "refused":
            corpus.back = "ready" if corpus.sequences else "landed"
        corpus.state = corpus.back if target == "back" else target
        corpus.event_kinds.append(kind)

    def _note(self, corpus: Corpus, event: CorpusEvent) -> None:
        """Keep an event's data about a corpus."""
        corpus.count_failures(event)
        match event:
            case Landed():
                corpus.size_bytes, corpus.listing = event.size_bytes, event.listing
            case Ingesting():
                self.ingest_lease = event.lease
            case Extended():
                self.extensions[event.corpus] = event
            case Erased() if event.corpus == corpus.name:
                corpus.erasures += 1
            case Ready():
                corpus.sequences, corpus.tokens = event.sequences, event.tokens
                corpus.parts = event.parts
            case Accepted():
                corpus.approved = True
            case Retried():
                corpus.go_on(event)

    def _note_stage(self, event: CorpusEvent) -> None:
        """Keep an event's data about a stage."""
        match event:
            case Started():
                self.times[event.stage] = {event.kind: event.at}
                self.stages.append(Stage.decided(event, after=len(self.stages)))
            case Trained():
                stage = self.stage_of(event.corpus)
                self.ends[stage.name], self.skipped[stage.folder] = event.checkpoint, event.skipped
                self.times[stage.name][event.kind] = event.at
            case Evaluating():
                self.drawing = event.draw
            case Evaluated():
                name = self._keep_losses(self.stage_of(event.corpus), event.losses)
                self.draws[name], self.not_finite[name] = event.draw, event.not_finite
                self.stage_scores[name], self.stage_samples[name] = [*event.scores], event.samples
            case Passed() | Gated():
                self.verdicts[self.stage_of(event.corpus).name] = event.verdicts
            case Accepted() if self.corpora[event.corpus].state == "passed":
                self.accepted[self.stage_of(event.corpus).name] = event.reason

    def _keep_losses(self, stage: Stage, losses: dict[str, HeldoutLoss]) -> str:
        own = {name: losses[name] for name in stage.corpora if name in losses}
        self.losses[stage.name], self.own_losses[stage.name] = losses, own
        note_measured(self.corpora, losses, stage)
        return stage.name

    @property
    def extension(self) -> Extended | None:
        """Return the last growth of the tokenizer that passed; None where it is as it began.

        What lands is tokenised with that one: a stage that leaves the trunk takes the entries that
        it brought with it, and no other corpus has any of them.
        """
        return self._last_extension([stage for stage in self.stages if self.has_passed(stage)])

    def extension_of(self, stage: Stage) -> Extended | None:
        """Return the last growth of the tokenizer of a stage's model; None where there is none."""
        return self._last_extension([*self.lineage(stage), stage])

    def extension_before(self, stage: Stage) -> Extended | None:
        """Return the last growth of the tokenizer of the model that a stage starts from."""
        return self._last_extension(self.lineage(stage))

    def _last_extension(self, stages: Sequence[Stage]) -> Extended | None:
        brought = [self.extensions.get(name) for stage in stages for name in stage.corpora]
        return next((extended for extended in reversed(brought) if extended is not None), None)

    @property
    def growing(self) -> tuple[str, ...]:
        """Return the corpora whose entries are neither in force nor put aside by a user."""
        settled = (*FINISHED, "refused", "held")
        return tuple(n for n in self.extensions if self.corpora[n].state not in settled)

    @property
    def base(self) -> StoredOrigin | None:
        """Return the stored model that the trunk starts from; None for random weights."""
        return self.origins.get(BASE)

    def start_of(self, stage: Stage) -> str | None:
        """Return the key of the model that a stage starts from; None for random weights."""
        return stage.start or (self.base.folder if self.base else None)

    def stage_of(self, corpus: str) -> Stage:
        """Return the stage of a corpus on the trunk."""
        return next(stage for stage in reversed(self.stages) if corpus in stage.corpora)

    def stage(self, name: str) -> Stage:
        """Return a stage by its name, abandoned or not."""
        newest_first = chain(reversed(self.stages), self.abandoned)
        return next(stage for stage in newest_first if stage.name == name)

    def release_state(self, name: str) -> ReleaseState:
        """Return the state of a release."""
        if name in self.releasing:
            return "releasing"
        return "released" if name in self.branches else "unknown"

    @property
    def history(self) -> list[StageMix]:
        """Return the mixes of all stages, in the order of the trunk."""
        return [stage.mix for stage in self.stages]

    @property
    def use(self) -> TrunkUse:
        """Return the sums over the mixes of all stages; valid until the next one starts."""
        # Skipped steps of the last one are not known yet: no sum that is kept has the unfinished.
        return reduce(TrunkUse.followed_by, (s.mix for s in self.unfinished), self.passed_sums.use)

    @property
    def passed_sums(self) -> TrunkSums:
        """Return the running sums over the stages of the trunk that have passed."""
        return self._sums_of(self._passed)

    def restore_sums(self, sums: TrunkSums) -> None:
        """Go on from running sums over the first of the stages."""
        self._sums = sums

    def use_before(self, stage: Stage) -> TrunkUse:
        """Return the sums over the mixes of the trunk before a stage, abandoned or not.

        They are valid until the sums before another stage are asked for.
        """
        return self._sums_of(self.lineage(stage)).use

    @property
    def _passed(self) -> list[Stage]:
        return self.stages[: len(self.stages) - len(self.unfinished)]

    def _sums_of(self, stages: list[Stage], skipped: Skipped | None = None) -> TrunkSums:
        """Return the sums over the first stages of the trunk, or of one that it was.

        Those of the trunk's end are kept; others are kept too, so that asking for one stage after
        the other costs each once.
        """
        sums = self._sums
        if skipped is not None or not sums.are_of(stages):
            of, sums = self._walk
            if of is not skipped or not sums.are_of(stages):
                sums = TrunkSums()
            self._walk = skipped, sums
            if skipped is None and len(stages) == len(self._passed):
                self._sums, self._walk = sums, (None, TrunkSums())
        return sums.extend(stages, lambda stage: self.trained(stage, stage.last_step, skipped))

    @property
    def retired(self) -> tuple[str, ...]:
        """Return the corpora that later stages do not replay."""
        return tuple(name for name, c in self.corpora.items() if c.state in ("retired", "erased"))

    @property
    def started_stages(self) -> list[Stage]:
        """Return every stage that was ever started, the abandoned ones last."""
        return [*self.stages, *self.abandoned]

    def lineage(self, stage: Stage) -> list[Stage]:
        """Return the stages that a stage follows, in their order, whether it left the trunk."""
        return rewinding.list_lineage(self, stage)

    def history_of(self, stage: Stage) -> list[StageMix]:
        """Return the mixes of the trunk before a stage, abandoned or not."""
        return [earlier.mix for earlier in self.lineage(stage)]

    def trained(self, stage: Stage, step: int, skipped: Skipped | None = None) -> dict[str, int]:
        """Count the sequences that a stage has trained, by corpus.

        Args:
            stage: the stage.
            step: trunk step at which they are counted.
            skipped: steps whose batch was skipped, by folder; default those of the ledger.
        """
        past = self._skipped_until(stage, step, skipped)
        return trained_sequences(stage.mix, step - stage.first_step, past)

    def trained_parts(self, stage: Stage) -> dict[str, dict[str, int]]:
        """Count the sequences of a whole stage, by corpus and part, of corpora with parts."""
        past = self._skipped_until(stage, stage.last_step, None)
        parts: dict[str, dict[str, int]] = {}
        for (corpus, part), count in trained_by_part(stage.mix, stage.mix.steps, past).items():
            if part is not None:
                parts.setdefault(corpus, {})[part] = count
        return parts

    def _skipped_until(self, stage: Stage, step: int, skipped: Skipped | None) -> list[int]:
        """Return the steps of a stage whose batch was left out, up to trunk step `step`."""
        steps = (self.skipped if skipped is None else skipped).get(stage.folder, ())
        return [number - 1 - stage.first_step for number in steps if number <= step]

    def seen(self, stage: Stage, step: int, skipped: Skipped | None = None) -> dict[str, int]:
        """Count the sequences that the trunk has trained, by corpus.

        Args:
            stage: the stage that the trunk is in.
            step: trunk step at which they are counted.
            skipped: as for `trained`.
        """
        seen = Counter(self._sums_of(self.lineage(stage), skipped).seen)
        if step > stage.first_step:
            seen.update(self.trained(stage, step, skipped))
        return dict(seen)

    def validate(self) -> None:
        """Assert what must hold after any sequence of events."""
        invariants.validate(self)
