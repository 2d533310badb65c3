"""From rows of corpora, or a step of the trunk, to the documents in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial import corpora
from perennial.corpora.document_spans import DocumentSpan, read_spans
from perennial.errors import InputError
from perennial.mixture.provenance import trace_origins
from perennial.runs.job_factory import layout
from perennial.training.spikes.batch import find_documents

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.corpora import CorpusManifest
    from perennial.mixture import StageMix
    from perennial.runs.state import RunState


@dataclass(frozen=True)
class TracedRows:
    """Documents in rows.

    Attributes:
        documents: by corpus, their stretches in the order of the rows; none where all that the rows
            held is erased.
        stage: the stage, or `release NAME`, that trained them, where a step was asked for.
    """

    documents: dict[str, list[DocumentSpan]]
    stage: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        documents = [
            {"corpus": corpus} | span.to_dict()
            for corpus, spans in self.documents.items()
            for span in spans
        ]
        return {"stage": self.stage or None, "documents": documents}


def describe_span(corpus: str, span: DocumentSpan) -> str:
    """Return a stretch of a document in a row of a corpus, as one line."""
    last = span.start + span.tokens - 1
    rest = f", from its token {span.before}" if span.before else ""
    return f"{corpus} row {span.row}, tokens {span.start} to {last}: {span}{rest}"


def trace_rows(work: Workspace, corpus: str, rows: Sequence[int]) -> TracedRows:
    """Return what rows of a corpus hold; see `Run.trace`."""
    corpora.check_name(corpus)
    manifest = corpora.read_manifest(work.store, corpus)
    bad = next((row for row in rows if not 0 <= row < manifest.rows), None)
    if bad is not None:
        raise InputError(
            "command line", "ROW", f"{corpus} has no row {bad}",
            f"name rows from 0 to {manifest.rows - 1}" if manifest.rows
            else "name a corpus with rows: its tokens did not fill one", code="row-missing",
        )  # fmt: skip
    traced = TracedRows({corpus: list(read_spans(work.store, manifest, rows))})
    _check_kept({corpus: manifest})
    return traced


def trace_step(work: Workspace, step: int, release: str | None = None) -> TracedRows:
    """Return what the batch of a step holds; see `Run.trace_step`."""
    state = work.ledger.read()
    name, first_step, mix = (
        _stage_at(state, step) if release is None else _anneal_at(state, step, release)
    )
    manifests = {s.corpus: corpora.read_manifest(work.store, s.corpus) for s in mix.sources}
    layouts = {corpus: layout(manifest) for corpus, manifest in manifests.items()}
    origins = trace_origins(mix, layouts, step - 1 - first_step)
    traced = TracedRows(find_documents(work.store, origins), name)
    _check_kept({corpus: manifests[corpus] for corpus in traced.documents})
    return traced


def _stage_at(state: RunState, step: int) -> tuple[str, int, StageMix]:
    """Return name, first step and mix of the stage that has a step of the trunk."""
    stages = state.stages
    stage = next((s for s in stages if s.first_step < step <= s.last_step), None)
    if stage is None:
        last = stages[-1].last_step if stages else 0
        raise InputError(
            "command line", "--step", f"the trunk has no step {step}",
            f"name one from 1 to {last}" if last else "train a stage first", code="step-missing",
        )  # fmt: skip
    return stage.name, stage.first_step, stage.mix


def _anneal_at(state: RunState, step: int, release: str) -> tuple[str, int, StageMix]:
    """Return name, first step and mix of the anneal of a release that has a step."""
    branch = state.branches.get(release)
    if branch is None:
        names = ", ".join(state.branches) or "none yet"
        raise InputError(
            "command line", "--release", f"there is no release {release!r}",
            f"its releases: {names}", code="release-missing",
        )  # fmt: skip
    if branch.mix is None:
        how = f"it is the {branch.average}" if branch.average else "it was not annealed"
        raise InputError(
            "command line", "--release", f"{release} has no steps of its own: {how}",
            "trace the trunk's: leave out --release", code="release-not-annealed",
        )  # fmt: skip
    last = branch.step + branch.mix.steps
    if not branch.step < step <= last:
        raise InputError(
            "command line", "--step", f"{release} has no step {step}",
            f"name one from {branch.step + 1} to {last}", code="step-missing",
        )  # fmt: skip
    return f"release {release}", branch.step, branch.mix


def _check_kept(manifests: Mapping[str, CorpusManifest]) -> None:
    """Refuse to answer for a corpus that an earlier version ingested."""
    for corpus, manifest in manifests.items():
        if not manifest.documents and not manifest.erased:
            raise InputError(
                f"corpora/{corpus}", "", "the documents of its rows were not kept",
                "a corpus that is ingested by this version keeps them", code="documents-not-kept",
            )  # fmt: skip
