"""Results of the verbs of a run; `to_dict` is the document that `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perennial.evaluation import LossMatrix
    from perennial.evaluation.samples import Sample
    from perennial.evaluation.scores import Score
    from perennial.planning.plan import Plan
    from perennial.runs.events import Released
    from perennial.runs.state import RunState
    from perennial.runs.summary import RatePoint
    from perennial.schedules import Anneal
    from perennial.sources import SourceStatus
    from perennial.study.results import StudyResults
    from perennial.tracking import Receipt


@dataclass(frozen=True)
class LandedFiles:
    """A corpus that was put into the inbox.

    Attributes:
        keys: of its files.
        left_out: files that were found beside them and did not land, each with the reason.
    """

    corpus: str
    inbox: str
    keys: tuple[str, ...]
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {
            "corpus": self.corpus,
            "inbox": self.inbox,
            "keys": list(self.keys),
            "left_out": self.left_out,
        }


@dataclass(frozen=True)
class TrainingSummary:
    """The effect of `run`, or of one look of `watch`, and what the run has achieved so far.

    Attributes:
        trained: number of stages that were trained by this call.
        matrix: held-out losses of every stage on every corpus.
        tokens: by stage, new and replayed tokens by corpus.
        gated: the stage that a gate stopped, with its verdicts; None without one.
        choices: commands that decide about that stage, each with its effect.
        store: URL of the run's store.
        nothing_new: corpora that were left out because all of their text is known.
        waiting: why stages wait though their corpora are ready.
    """

    trained: int
    matrix: LossMatrix
    tokens: Mapping[str, Mapping[str, Any]]
    gated: Mapping[str, Any] | None
    choices: Sequence[tuple[str, str]]
    store: str
    nothing_new: Sequence[str] = ()
    waiting: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {
            "trained": self.trained,
            "matrix": self.matrix.to_dict(),
            "tokens": self.tokens,
            "gated": self.gated,
            "nothing_new": list(self.nothing_new),
            "waiting": list(self.waiting),
        }


@dataclass(frozen=True)
class WatchedLook:
    """One look of a watch.

    Attributes:
        summary: what was trained; None where nothing was.
        failure: what kept the look from training more; the next look tries again.
        inbox: URL of the inbox that is watched.
    """

    summary: TrainingSummary | None
    failure: Exception | None
    inbox: str


@dataclass(frozen=True)
class IngestSummary:
    """The effect of `ingest`.

    Attributes:
        landed: corpora that sources landed in this call.
        corpora: state of every corpus by name.
        reasons: why a corpus is held or refused or failed, by name.
        sources: the run file's sources.
        refused: corpora that were refused in this call.
    """

    landed: Sequence[str]
    corpora: Mapping[str, str]
    reasons: Mapping[str, str]
    sources: Sequence[SourceStatus]
    refused: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        sources = [asdict(source) for source in self.sources]
        return {
            "landed": list(self.landed),
            "corpora": self.corpora,
            "reasons": self.reasons,
            "sources": sources,
            "refused": list(self.refused),
        }


@dataclass(frozen=True)
class EvaluationSummary:
    """The loss matrix, and lm-eval scores by release.

    Attributes:
        untrained_nats: loss of a model that finds every token equally likely, nats per token.
    """

    matrix: LossMatrix
    untrained_nats: float
    scores: Mapping[str, Sequence[Score]]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {"matrix": self.matrix.to_dict(self.untrained_nats), "scores": self.scores}


@dataclass(frozen=True)
class ReleaseSummary:
    """A release as the ledger has it, its samples, and the URL of its Hugging Face folder."""

    released: Released
    samples: Sequence[Sample]
    matrix: LossMatrix
    url: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        samples = [asdict(sample) for sample in self.samples]
        return self.released.model_dump(mode="json") | {"samples": samples}


@dataclass(frozen=True)
class ReportPage:
    """The report: its HTML, and the file or store object that holds it."""

    place: str
    html: str

    @property
    def size_bytes(self) -> int:
        """Return the size of the page."""
        return len(self.html.encode())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {"page": self.place, "bytes": self.size_bytes}


@dataclass(frozen=True)
class StudySummary:
    """The results of a study, and its page.

    Attributes:
        results: of its arms and claims.
        page: where the page is.
        failed: why runs failed, by their name.
    """

    results: StudyResults
    page: str
    failed: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return self.results.to_dict() | {"page": self.page}


@dataclass(frozen=True)
class TrackingSummary:
    """The effect of `track` on MLflow and its like.

    Attributes:
        uri: of MLflow, without a password; "" where the run is not kept there.
        places: all services and where they are, in words.
        stages: stages that they have whole.
        receipt: numbers of what was delivered, and what is missing.
    """

    uri: str
    places: str
    stages: Sequence[str]
    receipt: Receipt

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {
            "tracking": self.uri,
            "places": self.places,
            "stages": list(self.stages),
        } | self.receipt._asdict()


@dataclass(frozen=True)
class RunPlan:
    """The steps, tokens and costs of a run to come.

    Attributes:
        plan: stages, tokens, rates, memory and time.
        state: the run as it will be after these stages.
        release: the branch that a release would anneal off its end; None without a trunk.
    """

    plan: Plan
    state: RunState
    release: Anneal | None

    @property
    def rates(self) -> list[RatePoint]:
        """Return the learning rate over the trunk's life, thinned out for a picture."""
        from perennial.runs.summary import rate_points

        return rate_points(self.state.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return self.plan.to_dict()
