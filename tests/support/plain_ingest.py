"""Ingest of a small landed corpus in this process: every pass of the real one, without Ray."""

from __future__ import annotations

from perennial.corpora import CorpusManifest, IngestSettings, load_tokenizer, read_landed
from perennial.corpora.counts import Counts
from perennial.corpora.encoders import EncoderName, choose_encoder
from perennial.corpora.ingest.decontaminate import read_evaluation_texts
from perennial.corpora.ingest.exact_dedup import compare_digests
from perennial.corpora.ingest.fuzzy_dedup import cluster_documents, match_bands
from perennial.corpora.ingest.jobs import IngestPlan
from perennial.corpora.ingest.partition import plan_pieces
from perennial.corpora.ingest.quality import account_losses
from perennial.corpora.ingest.read import scatter_piece
from perennial.corpora.ingest.repeated_lines import find_repeated_lines
from perennial.corpora.ingest.sample import list_inputs
from perennial.corpora.ingest.write import gather_shard, write_holdout
from perennial.corpora.manifest import manifest_key
from perennial.store import Store


def ingest_plainly(
    store: Store, inbox: Store, name: str, settings: IngestSettings
) -> CorpusManifest:
    """Tokenise a landed corpus with the store's tokenizer and commit its manifest."""
    landed = read_landed(inbox, name)
    inputs, evaluation = list_inputs(landed), read_evaluation_texts([], settings)
    tokenizer = load_tokenizer(store)
    plan = IngestPlan(store, inbox, landed, inputs, tokenizer, settings, (), evaluation)
    pieces = plan_pieces(inputs, settings.piece_bytes)
    staged = [scatter_piece(plan.scatter_job(), i, piece) for i, piece in enumerate(pieces)]
    parts = range(plan.layout.digest_parts)
    compared = [compare_digests(plan.compare_job(staged), part) for part in parts]
    counts = Counts()
    if settings.fuzzy_duplicates is not None:
        fuzzy = plan.fuzzy_job(staged)
        for part in range(plan.layout.shards):
            match_bands(fuzzy, part)
        counts = Counts(fuzzy_partly_compared=cluster_documents(fuzzy).partly_compared)
    if settings.repeated_lines is not None:
        for part in parts:
            find_repeated_lines(plan.lines_job(staged), part)
    engine: EncoderName = "ids" if settings.tokens else choose_encoder(tokenizer, ["a sample"])
    job = plan.gather_job(staged, compared, engine, account_losses(inputs, staged).losses)
    results = [write_holdout(job, part) for part in range(plan.layout.held_parts)]
    results += [gather_shard(job, shard) for shard in range(len(job.shards))]
    manifest = plan.build_manifest(engine, staged, compared, results, counts)
    plan.target.remove(plan.staging_name)
    store.write(manifest_key(name), manifest.model_dump_json().encode())
    return manifest
