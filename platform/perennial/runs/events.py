"""Define the events of a run: small records that are written once and never changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue, PlainSerializer, model_validator

from perennial.config.run import OptimizerAtJoin
from perennial.config.search import Child, Point
from perennial.corpora.file_list import ListRecord
from perennial.evaluation.budget import Draw
from perennial.evaluation.finite import drop_not_finite, explain_not_finite, names_not_finite
from perennial.evaluation.gates import Verdict
from perennial.evaluation.kept_samples import SampleList
from perennial.evaluation.loss import HeldoutLoss
from perennial.evaluation.samples import Sample
from perennial.evaluation.scores import Score
from perennial.mixture import StageMix
from perennial.runs.averaging import Average
from perennial.runs.storage.store_events import AnyStoreEvent
from perennial.runs.storage.store_events import EventRecord as _Record
from perennial.runs.unattended.replay_share import ShareDecision
from perennial.training.kit.manifest import KitOrigin
from perennial.training.model.base_card import BaseCard

Document = dict[str, JsonValue]
"""A resolved run file or tuning file as it was written; read by field name alone."""
Settings = Annotated[Document | None, Field(exclude_if=lambda value: value is None)]
"""What a stage, release or trial keeps of the run file until it is finished, by dotted field name
(`config.changes.held_settings`); None, and not in the event, where an older version began it."""
ScheduleRecord = dict[str, str | bool | int | float | None]
"""A schedule's kind and fields as `schedules.to_dict` wrote them. It stays a record here, so that a
ledger can be read where the plug-in of its schedule is not installed."""


def _read_mix(value: object) -> object:
    return StageMix.from_dict(value) if isinstance(value, dict) else value


Mix = Annotated[StageMix, BeforeValidator(_read_mix), PlainSerializer(StageMix.to_dict)]
"""A stage's share of the plan; read once, when its event is."""

Losses = Annotated[dict[str, HeldoutLoss], BeforeValidator(drop_not_finite)]
"""Held-out losses by corpus. Versions that wrote what is not a number into events are read without
it: a loss that is not a number is one that was not measured."""
Scores = Annotated[list[Score], BeforeValidator(explain_not_finite)]
"""Scores of tasks; one that is not a number is a task without a score, with that reason."""
MaybeDraw = Annotated[Draw | None, Field(exclude_if=lambda draw: draw is None)]


class Opened(_Record):
    """The run exists; `spec` is the resolved run file that opened it.

    id: what names its store wherever that lies, copies included; "" in events of older versions.
    """

    kind: Literal["opened"] = "opened"
    spec: Document
    id: str = Field(default="", exclude_if=lambda name: not name)


class TookOver(_Record):
    """A controller took charge; every controller with a lower epoch must stop.

    lease: key of its heartbeat; "" where an older version wrote none.
    """

    kind: Literal["took-over"] = "took-over"
    epoch: int
    controller: str
    lease: str = ""


class Imported(_Record):
    """A stored model was copied into the store: where the trunk starts from.

    name: `base`, the model at step 0; or `reference`, the whole model whose first layers it has.
    folder: key of the copy. `manifest`: SHA-256 of the copy's manifest.
    path, inherit_layers: as the run file gave them.
    kit: the trunk kit that it is; None for any other model. card: what its card says.
    """

    kind: Literal["imported"] = "imported"
    name: Literal["base", "reference"]
    folder: str
    path: str
    inherit_layers: int | None
    parameters: int
    manifest: str
    kit: KitOrigin | None = Field(default=None, exclude_if=lambda kit: kit is None)
    card: BaseCard | None = Field(default=None, exclude_if=lambda card: card is None)


class Landed(_Record):
    """A complete corpus was seen in the inbox.

    listing: the digest of the list of its files, which is an object of its own so that the event
        stays small; None in events of version 0.1, and for a list that cannot be read.
    """

    kind: Literal["landed"] = "landed"
    corpus: str
    size_bytes: int
    listing: ListRecord | None = Field(default=None, exclude_if=lambda listing: listing is None)


class Ingesting(_Record):
    """Tokenising the corpus began, or continues in another process: the latest may finish it.

    lease: key of that process's heartbeat; "" where an older version wrote none.
    """

    kind: Literal["ingesting"] = "ingesting"
    corpus: str
    lease: str = ""


class Ready(_Record):
    """The corpus is tokenised: `sequences` to train on, its manifest's digest.

    parts: sequences by part, in their order in the corpus; none of a corpus without parts.
    """

    kind: Literal["ready"] = "ready"
    corpus: str
    sequences: int
    tokens: int
    digest: str
    parts: dict[str, int] = Field(default_factory=dict, exclude_if=lambda parts: not parts)


class Extended(_Record):
    """The corpus brings ids `first` to `vocabulary` - 1 to the tokenizer that it `grew_from`."""

    kind: Literal["extended"] = "extended"
    corpus: str
    folder: str
    fingerprint: str
    grew_from: str
    first: int
    vocabulary: int


class Refused(_Record):
    """The corpus is no stage, or its stage, stopped by a gate, is no longer of the trunk.

    code: the stable code of the reason; "" for a user's decision, and in events of older versions.
    """

    kind: Literal["refused"] = "refused"
    corpus: str
    reason: str
    code: str = Field(default="", exclude_if=lambda code: not code)


class Held(_Record):
    """A user holds the corpus."""

    kind: Literal["held"] = "held"
    corpus: str
    reason: str = ""


class Retried(_Record):
    """Continue with a corpus that was held, failed or refused, or train its stage again.

    by_person: a user's retry counts attempts from the start; the controller's own does not.
    replay: the replay share of its next stage, in place of the run file's.
    reason: why the controller trains a stage again that a gate stopped.
    search: that gave the share, if any. rate: the peak that it gave.
    """

    kind: Literal["retried"] = "retried"
    corpus: str
    by_person: bool = True
    replay: float | None = None
    reason: str = Field(default="", exclude_if=lambda reason: not reason)
    search: str = Field(default="", exclude_if=lambda search: not search)
    rate: float | None = Field(default=None, exclude_if=lambda rate: rate is None)


class Retired(_Record):
    """The trained corpus is no longer replayed by later stages; it stays in the lineage."""

    kind: Literal["retired"] = "retired"
    corpus: str
    reason: str = ""


class Unretired(_Record):
    """The retired corpus is replayed again by the stages that follow."""

    kind: Literal["unretired"] = "unretired"
    corpus: str
    reason: str = ""


class Erased(_Record):
    """Documents of a corpus were erased, or all of it; its rows keep their numbers.

    number: how often something of it was erased before.
    documents, tokens: that were erased, with those of held-out documents.
    digest: of the corpus's manifest after it; "" of a corpus that was not tokenised.
    tombstone: SHA-256 of the tombstone of that number.
    """

    kind: Literal["erased"] = "erased"
    corpus: str
    number: int
    whole: bool
    documents: int
    tokens: int
    digest: str
    tombstone: str
    reason: str = ""


class Failed(_Record):
    """An action on the corpus failed for the `attempt`-th time.

    next_try: UTC time of the next try at the earliest; None when it waits for a user.
    """

    kind: Literal["failed"] = "failed"
    corpus: str
    attempt: int
    attempts: int
    reason: str
    next_try: str | None


class Started(_Record):
    """A stage is planned: mix, schedule, and the checkpoint that it starts from.

    corpus: the first of its new corpora, `mix.corpora`; what happens to the stage happens to all.
    share_decision: why it replays so much; None for a share that was set, and for no replay.
    gpus: of the largest worker group that it may have.
    resumes: key of a checkpoint of a stage that left the trunk, whose plan goes on; None for none.
    """

    kind: Literal["started"] = "started"
    corpus: str
    stage: str
    first_step: int
    start: str | None
    mix: Mix
    schedule: ScheduleRecord
    tracking_run: str
    optimizer: OptimizerAtJoin = "reset"
    settings: Settings = None
    share_decision: Annotated[
        ShareDecision | None, Field(exclude_if=lambda decision: decision is None)
    ] = None
    gpus: float = Field(default=0.0, exclude_if=lambda gpus: not gpus)
    resumes: str | None = Field(default=None, exclude_if=lambda key: key is None)


class Trained(_Record):
    """The trunk has trained the corpus; `checkpoint` is the stage's end.

    skipped: trunk steps whose batch was skipped: the step that the batch would have led to.
    """

    kind: Literal["trained"] = "trained"
    corpus: str
    checkpoint: str
    step: int
    skipped: tuple[int, ...] = ()


class Evaluating(_Record):
    """Measuring the stage's end began; `draw` has the corpora that a budget leaves of all."""

    kind: Literal["evaluating"] = "evaluating"
    corpus: str
    draw: MaybeDraw = None


class _Measurements(_Record):
    """Held-out losses of a model by corpus, scores of the tasks asked for, and samples.

    not_finite: corpora on which the loss is not a number.
    """

    losses: Losses
    scores: Scores = Field(default_factory=list)
    samples: list[Sample | SampleList] = Field(default_factory=list)
    not_finite: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _name_not_finite(cls, document: object) -> object:
        """Name the corpora of an older event whose loss is not a number."""
        if not isinstance(document, dict) or not isinstance(document.get("losses"), dict):
            return document
        named = [*document.get("not_finite", ()), *names_not_finite(document["losses"])]
        return document | {"not_finite": tuple(dict.fromkeys(named))}


class Evaluated(_Measurements):
    """The end of a stage was measured; a loss that is not a number is a verdict that fails."""

    kind: Literal["evaluated"] = "evaluated"
    corpus: str
    draw: MaybeDraw = None


class Passed(_Record):
    """The stage kept within the gates' bounds; the next one starts from its end."""

    kind: Literal["passed"] = "passed"
    corpus: str
    verdicts: list[Verdict]


class Gated(_Record):
    """The stage exceeded a gate's bound: the run is paused until a user decides."""

    kind: Literal["gated"] = "gated"
    corpus: str
    verdicts: list[Verdict]


class Accepted(_Record):
    """The operator accepted a stage that failed its gates, or one that is to begin."""

    kind: Literal["accepted"] = "accepted"
    corpus: str
    reason: str


class Rewound(_Record):
    """A user took the trunk back to a checkpoint; the stages behind it left the trunk.

    stage, step: the checkpoint. At the stage's last step it is the trunk's end, else the stage left
        the trunk too, and its plan goes on from there under another name.
    """

    kind: Literal["rewound"] = "rewound"
    stage: str
    step: int
    reason: str = ""


class Measured(_Measurements):
    """A stage's end was measured on corpora that came later, or a stored model on any.

    stage: the stage, or the name of the stored model.
    """

    kind: Literal["measured"] = "measured"
    stage: str


class Releasing(_Record):
    """A release is planned, or continues under a new claim: the latest claim alone may commit.

    stage, step: the trunk's checkpoint that it branches from.
    mix, schedule: of its anneal; None when the trunk had decayed there already, or of an average.
    claim: 1, 2, ...: number of processes that began it.
    """

    kind: Literal["releasing"] = "releasing"
    name: str
    stage: str
    step: int
    source: str
    mix: Mix | None
    schedule: ScheduleRecord | None
    claim: int
    settings: Settings = None
    average: Annotated[Average | None, Field(exclude_if=lambda value: value is None)] = None


class Released(_Record):
    """A branch was annealed and exported; the trunk is as it was."""

    kind: Literal["released"] = "released"
    name: str
    source: str
    folder: str
    steps: int
    schedule: ScheduleRecord
    losses: Losses
    samples: list[Sample | SampleList]


class Scored(_Record):
    """A release's lm-eval scores, or why a task was not run."""

    kind: Literal["scored"] = "scored"
    release: str
    tasks: list[str]
    scores: Scores


class Promoted(_Record):
    """An alias points to a release from now on, wherever it pointed before."""

    kind: Literal["promoted"] = "promoted"
    release: str
    alias: str
    reason: str = ""


class Searching(_Record):
    """A search for a corpus's stage began, or continues under a new claim: the latest may write.

    source: the checkpoint that its trials branch from.
    spec: the resolved tuning file; after a broken gate, the bounds of the search and the reason.
    claim: 1, 2, ...: number of processes that began it.
    """

    kind: Literal["searching"] = "searching"
    name: str
    corpus: str
    source: str
    spec: Document
    claim: int


class Branched(_Record):
    """A trial left the trunk: the beginning of the stage that `run` would train at its point.

    stage, step: the trunk's checkpoint `source` that it branches from. Of a child (a model of fewer
        layers) they are the stage that trained its reference and the step at which that began, and
        `source` is what its weights are from: the end of that stage, or of a smaller child.
    point: what it tries. `mix`, `schedule`, `optimizer`: of the whole stage that it begins.
    """

    kind: Literal["branched"] = "branched"
    search: str
    trial: str
    corpus: str
    point: Point | Child
    stage: str
    step: int
    source: str
    mix: Mix
    schedule: ScheduleRecord
    optimizer: OptimizerAtJoin
    settings: Settings = None


class Tried(_Record):
    """A trial was measured when it stood at trunk step `step`.

    checkpoint: what was measured: the trial itself, or an anneal off it.
    trained_steps: what the trial has cost since it was measured last, anneal included.
    values: the search's objectives, nats per token, less is better.
    losses: held-out losses by corpus. verdicts: of a search after a broken gate.
    """

    kind: Literal["tried"] = "tried"
    trial: str
    step: int
    checkpoint: str
    trained_steps: int
    values: dict[str, float]
    losses: Losses
    verdicts: list[Verdict] = Field(default_factory=list, exclude_if=lambda verdicts: not verdicts)


CorpusEvent = (
    Landed
    | Ingesting
    | Ready
    | Extended
    | Refused
    | Held
    | Retried
    | Retired
    | Unretired
    | Erased
    | Failed
    | Started
    | Trained
    | Evaluating
    | Evaluated
    | Passed
    | Gated
    | Accepted
)
ReleaseEvent = Releasing | Released
SearchEvent = Searching | Branched | Tried
Event = (
    Opened
    | TookOver
    | Imported
    | CorpusEvent
    | Rewound
    | Measured
    | ReleaseEvent
    | Scored
    | Promoted
    | SearchEvent
    | AnyStoreEvent
)
