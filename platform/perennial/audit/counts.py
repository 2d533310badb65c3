"""Checks of a corpus's manifest against its files and the ledger (invariant I5). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perennial.audit.files import (
    Contents,
    DocumentsContents,
    FileRead,
    HoldoutContents,
    QuarantineContents,
    ShardContents,
)
from perennial.audit.finding import Finding, unequal
from perennial.runs.events import Ready

if TYPE_CHECKING:
    from perennial.corpora import CorpusManifest, RunTokenizer
    from perennial.corpora.manifest import Shard


def check_ready(event: Ready, key: str, manifest: CorpusManifest) -> Iterator[Finding]:
    """Check that the ledger and the corpus's manifest name the same rows."""
    recorded = (event.sequences, event.tokens, event.digest, event.parts)
    right = (manifest.rows, manifest.tokens, manifest.digest, manifest.part_rows)
    if recorded != right:
        yield Finding(
            key,
            f"{event.corpus} has {event.sequences} sequences, digest {event.digest[:12]}",
            f"its manifest has {manifest.rows} sequences, digest {manifest.digest[:12]}",
        )


def check_manifest(
    key: str, manifest: CorpusManifest, spec: Mapping[str, Any], tokenizer: RunTokenizer
) -> Iterator[Finding]:
    """Check I5: every document and token is counted, under the run's settings and tokenizer.

    Args:
        key: of the manifest.
        manifest: of the corpus.
        spec: the resolved run file.
        tokenizer: the run's.
    """
    counts = manifest.counts
    try:
        counts.check()
    except ValueError as wrong:
        yield Finding(key, str(wrong), "both numbers are equal")
    neither = counts.unused_documents
    named = tokenizer.is_named(manifest.tokenizer)
    its = tokenizer.fingerprint if named else manifest.tokenizer
    pairs = {
        "name": (manifest.name, key.split("/")[1]),
        "tokenizer": (its, tokenizer.fingerprint),
        "end_of_document": (manifest.end_of_document, tokenizer.end_of_document),
        "begin_of_document": (manifest.begin_of_document, tokenizer.begin_of_document),
        "sequence_length": (manifest.sequence_length, spec["corpora"]["sequence_length"]),
        "seed": (manifest.seed, spec["seed"]),
        "tokens in rows": (
            manifest.rows * manifest.sequence_length,
            counts.row_tokens + counts.padding_tokens,
        ),
        "held-out documents": (
            sum(file.documents for file in manifest.holdout),
            counts.held_out_documents,
        ),
        "quarantine records": (sum(file.records for file in manifest.quarantine), neither),
    }
    if manifest.erased:
        del pairs["quarantine records"]
    if manifest.parts:
        parts = manifest.parts
        pairs["rows of parts"] = (sum(part.rows for part in parts), manifest.rows)
        documents = sum(part.documents for part in parts)
        pairs["documents of parts"] = (documents, counts.trained_documents)
        remainder = sum(part.remainder_tokens for part in parts)
        pairs["remainder of parts"] = (remainder, counts.remainder_tokens)
    yield from unequal(key, pairs)


def check_earlier(
    manifests: Mapping[str, CorpusManifest], digests: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    """Check that the corpora that a corpus was compared with for duplicates have not changed.

    Args:
        manifests: of all corpora, by name.
        digests: of the manifests that a corpus had before something of it was erased.
    """
    for name, manifest in manifests.items():
        for earlier in manifest.earlier:
            if earlier.name in manifests and earlier.digest not in digests.get(earlier.name, ()):
                pair = (earlier.digest, manifests[earlier.name].digest)
                yield from unequal(
                    f"corpora/{name}/manifest.json", {f"{earlier.name}'s digest": pair}
                )


def check_read(key: str, size_bytes: int, sha256: str, file: FileRead) -> Iterator[Finding]:
    """Check that a file that a manifest names exists, with its size and digest."""
    right = f"its manifest has {size_bytes} bytes, sha256 {sha256[:12]}"
    if file.size_bytes is None:
        yield Finding(key, "is missing", right)
    elif (file.size_bytes, file.sha256) != (size_bytes, sha256):
        yield Finding(key, f"has {file.size_bytes} bytes, sha256 {file.sha256[:12]}", right)
    if file.unreadable:
        yield Finding(key, f"cannot be read ({file.unreadable})", "it can be read")


def check_shard(
    key: str, shard: Shard, manifest: CorpusManifest, contents: ShardContents
) -> Iterator[Finding]:
    """Check that the footer of a shard and the manifest agree on rows and their width."""
    pairs = {
        "rows by row group": (list(contents.row_groups), list(shard.row_groups)),
        "bytes of a row": (contents.row_bytes, manifest.sequence_length * manifest.token_bytes),
    }
    yield from unequal(key, pairs)


def check_contents(
    key: str, manifest: CorpusManifest, contents: Sequence[Contents]
) -> list[Finding]:
    """Check I5: the records in a corpus's files add up to its counts."""
    counts = manifest.counts
    held_out = [file for file in contents if isinstance(file, HoldoutContents)]
    reasons: Counter[str] = Counter()
    lost = 0
    for file in contents:
        if isinstance(file, QuarantineContents):
            reasons.update(file.reasons)
            lost += file.lost_documents
    neither = counts.unused_documents
    tokens = sum(file.token_bytes for file in held_out) // manifest.token_bytes
    pairs: dict[str, tuple[Any, Any]] = {
        "held-out documents": (sum(file.documents for file in held_out), counts.held_out_documents),
        "held-out tokens": (tokens, counts.held_out_tokens),
        "held-out bytes": (sum(file.text_bytes for file in held_out), counts.held_out_bytes),
        "quarantine records": (reasons.total(), neither),
        "lost documents": (lost, counts.lost_documents_estimate),
    }
    if manifest.documents:
        spans = [file for file in contents if isinstance(file, DocumentsContents)]
        listed = sum(file.spans for file in manifest.documents)
        pairs["spans of documents"] = (sum(file.spans for file in spans), listed)
        pairs["tokens in rows"] = (sum(file.tokens for file in spans), counts.row_tokens)
    for reason, count in counts.removed.items():
        pairs[f"records of {reason}"] = (reasons[reason], count)
    return list(unequal(key, pairs, "the files hold", "the counts say"))
