"""Jobs of the passes of an ingest, and the manifest that their results make. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from perennial.corpora.comparing import FORM
from perennial.corpora.counts import Counts, sum_counts
from perennial.corpora.fill_in_the_middle import MARKS
from perennial.corpora.ingest.domains import sum_sizes
from perennial.corpora.ingest.exact_dedup import CompareJob, CompareResult, EarlierDigests
from perennial.corpora.ingest.fuzzy_dedup import FuzzyJob
from perennial.corpora.ingest.partition import (
    Layout,
    count_shards,
    holdout_bound,
    make_layout,
    plan_shards,
)
from perennial.corpora.ingest.read import PieceResult, ScatterJob
from perennial.corpora.ingest.repeated_lines import LinesJob
from perennial.corpora.ingest.spill import run_key
from perennial.corpora.ingest.write import GatherJob
from perennial.corpora.manifest import (
    FORMAT,
    CorpusManifest,
    CorpusPart,
    EarlierCorpus,
    IngestSettings,
    InputFile,
    ShardResult,
    digest_json,
)

if TYPE_CHECKING:
    from perennial.corpora.encoders import EncoderName
    from perennial.corpora.inbox import LandedCorpus
    from perennial.corpora.ingest.decontaminate import EvaluationTexts
    from perennial.corpora.ingest.losses import FileLoss
    from perennial.corpora.tokenizer import RunTokenizer
    from perennial.store import Store


@dataclass(frozen=True)
class IngestPlan:
    """Plan of an ingest: its inputs, and the jobs of its passes."""

    store: Store
    inbox: Store
    landed: LandedCorpus
    inputs: tuple[InputFile, ...]
    tokenizer: RunTokenizer
    settings: IngestSettings
    earlier: tuple[CorpusManifest, ...]
    evaluation: EvaluationTexts

    @property
    def name(self) -> str:
        """Return the corpus's name."""
        return self.landed.name

    @property
    def target(self) -> Store:
        """Return the corpus's folder in the run's store."""
        return self.store.sub(f"corpora/{self.name}")

    @property
    def layout(self) -> Layout:
        """Return how documents are dealt into parts."""
        shards = count_shards(self.inputs, self.settings.shard_tokens)
        return make_layout(shards, self.settings.holdout_share)

    @cached_property
    def staging_name(self) -> str:
        """Return the folder, below the corpus's, of everything that this plan stages.

        Its name depends on all that influences what is staged, so that an ingest with another
        setting never takes the staged files of this one for its own.
        """
        content = {
            "format": FORMAT,
            "comparing": FORM,
            "inputs": [file.model_dump() for file in self.inputs],
            "tokenizer": self.tokenizer.fingerprint,
            "end_of_document": self.tokenizer.end_of_document,
            "settings": self.settings.model_dump(),
            "earlier": [manifest.digest for manifest in self.earlier],
        }
        if self.tokenizer.begin_of_document is not None:
            content["begin_of_document"] = self.tokenizer.begin_of_document
        return f"staging-{digest_json(content)[:16]}"

    @property
    def staging(self) -> Store:
        """Return the store of everything that this plan stages."""
        return self.target.sub(self.staging_name)

    def scatter_job(self) -> ScatterJob:
        """Return the job of the first pass, which stages the documents."""
        corpus = self.inbox.sub(self.name)
        return ScatterJob(corpus, self.staging, self.inputs, self.settings, self.layout.shards)

    def compare_job(self, staged: Sequence[PieceResult]) -> CompareJob:
        """Return the job of the second pass, which finds equal texts.

        Args:
            staged: results of the first pass, by piece.
        """
        return CompareJob(
            corpora=self.store.sub("corpora"),
            name=self.name,
            staging=self.staging,
            runs=tuple(piece.runs for piece in staged),
            inputs=self.inputs,
            settings=self.settings,
            layout=self.layout,
            earlier=tuple(EarlierDigests(m.name, m.digests) for m in self.earlier),
        )

    def fuzzy_job(self, staged: Sequence[PieceResult]) -> FuzzyJob:
        """Return the job of the passes that find fuzzy duplicates; `staged` as above."""
        assert self.settings.fuzzy_duplicates is not None
        return FuzzyJob(
            staging=self.staging,
            places=_list_runs(staged),
            inputs=self.inputs,
            layout=self.layout,
            seed=self.settings.seed,
            similarity=self.settings.fuzzy_duplicates,
        )

    def lines_job(self, staged: Sequence[PieceResult]) -> LinesJob:
        """Return the job of the pass that finds repeated lines; `staged` as above."""
        return LinesJob(
            staging=self.staging,
            places=_list_runs(staged),
            inputs=self.inputs,
            layout=self.layout,
            seed=self.settings.seed,
            without_fuzzy=self.settings.fuzzy_duplicates is not None,
        )

    def gather_job(
        self,
        staged: Sequence[PieceResult],
        compared: Sequence[CompareResult],
        encoder: EncoderName,
        losses: tuple[FileLoss, ...],
    ) -> GatherJob:
        """Return the job of the passes that write the held-out files and the shards.

        Args:
            staged: results of the first pass, by piece.
            compared: results of the second pass, by part.
            encoder: the library that encodes text.
            losses: parts of files that could not be read.
        """
        return GatherJob(
            target=self.target,
            staging=self.staging,
            runs=tuple(piece.runs for piece in staged),
            domains=tuple(piece.domains for piece in staged),
            shards=plan_shards(self.layout, self._part_bytes(staged)),
            inputs=self.inputs,
            settings=self.settings,
            layout=self.layout,
            tokenizer=self.tokenizer,
            encoder=encoder,
            holdout_bound=_holdout_bound(self.settings.holdout_share, compared),
            drops=tuple(part for part, result in enumerate(compared) if result.drops),
            earlier=tuple(manifest.name for manifest in self.earlier),
            losses=losses,
        )

    def _part_bytes(self, staged: Sequence[PieceResult]) -> dict[str, int] | None:
        """Return the bytes of text of each part; None for a corpus that is one whole."""
        if self.settings.parts == "none":
            return None
        where = f"{self.inbox.url}/{self.name}"
        return sum_sizes(where, [piece.domain_bytes for piece in staged])

    def build_manifest(
        self,
        encoder: EncoderName,
        staged: Sequence[PieceResult],
        compared: Sequence[CompareResult],
        results: Sequence[ShardResult],
        repeats: Counts,
    ) -> CorpusManifest:
        """Return the manifest of the finished corpus.

        Args:
            encoder: the library that encoded the text.
            staged: results of the first pass, by piece.
            compared: results of the second pass, by part.
            results: results of the last passes.
            repeats: what the passes between them counted.

        Raises:
            ValueError: when a document or token is not accounted for (I5).
        """
        parts = [r.counts for r in compared] + [r.counts for r in results]
        counts = sum_counts([repeats, *parts]).check()
        borders = counts.trained_documents + counts.held_out_documents
        if self.tokenizer.begin_of_document is not None:
            borders += counts.trained_documents
        borders += MARKS * counts.filled_documents
        text_bytes = counts.trained_bytes + counts.held_out_bytes
        manifest = CorpusManifest(
            name=self.name,
            tokenizer=self.tokenizer.fingerprint,
            engine=encoder,
            vocabulary=self.tokenizer.vocabulary,
            end_of_document=self.tokenizer.end_of_document,
            begin_of_document=self.tokenizer.begin_of_document,
            settings=self.settings,
            inputs=self.inputs,
            shards=tuple(r.shard for r in results if r.shard is not None),
            documents=tuple(r.documents for r in results if r.documents is not None),
            holdout=tuple(r.holdout for r in results if r.holdout is not None),
            quarantine=tuple(r.quarantine for r in results if r.quarantine is not None),
            digests=tuple(result.file for result in compared),
            earlier=tuple(EarlierCorpus(name=m.name, digest=m.digest) for m in self.earlier),
            comparing=FORM,
            parts=_sum_parts(results),
            counts=counts,
            step_cpu_seconds={
                step: round(sum(piece.step_cpu_seconds[step] for piece in staged), 3)
                for step in staged[0].step_cpu_seconds
            },
            step_changes=_sum_changes(staged),
            tokens_per_byte=(counts.tokens - borders) / text_bytes if text_bytes else None,
        )
        return manifest.sealed()


def _sum_changes(staged: Sequence[PieceResult]) -> dict[str, int]:
    """Return the documents that each step changed, in the order of the steps."""
    changes: Counter[str] = Counter()
    for piece in staged:
        changes.update(piece.step_changes)
    return {step: changes[step] for step in staged[0].step_cpu_seconds if changes[step]}


def _list_runs(staged: Sequence[PieceResult]) -> tuple[str, ...]:
    """Return the keys of all run files."""
    return tuple(run_key(n, run) for n, piece in enumerate(staged) for run in range(piece.runs))


def _sum_parts(results: Sequence[ShardResult]) -> tuple[CorpusPart, ...]:
    """Return the parts that hold trained documents, in the order of their shards."""
    counts: dict[str, Counts] = {}
    rows: Counter[str] = Counter()
    for result in results:
        if result.part is not None:
            counts[result.part] = counts.get(result.part, Counts()).plus(result.counts)
            rows[result.part] += sum(result.shard.row_groups) if result.shard else 0
    return tuple(
        CorpusPart(
            name=name,
            rows=rows[name],
            documents=its.trained_documents,
            remainder_tokens=its.remainder_tokens,
        )
        for name, its in counts.items()
        if its.trained_documents
    )


def _holdout_bound(share: float, compared: Sequence[CompareResult]) -> int:
    """Return the bound below which a document's digest means that it is held out.

    Of a corpus of two texts or more at least one is held out, the one with the lowest digest, so
    that the corpus can be evaluated.
    """
    lowest = min((result.lowest for result in compared if result.lowest is not None), default=0)
    texts = sum(result.file.digests for result in compared)
    usual = holdout_bound(share)
    return max(usual, lowest + 1) if share > 0 and texts > 1 else usual
