"""What must hold between a corpus's manifest, its files and the ledger (invariant I5). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perennial.audit.files import (
    Contents,
    FileRead,
    HoldoutContents,
    QuarantineContents,
    ShardContents,
)
from perennial.audit.finding import Finding, unequal
from perennial.runs.events import Ready

if TYPE_CHECKING:
    from perennial.corpora import CorpusManifest
    from perennial.corpora.manifest import Shard


def check_ready(event: Ready, key: str, manifest: CorpusManifest) -> Iterator[Finding]:
    """The ledger and the corpus's manifest speak of the same rows."""
    told = (event.sequences, event.tokens, event.digest)
    right = (manifest.rows, manifest.tokens, manifest.digest)
    if told != right:
        yield Finding(
            key,
            f"{event.corpus} has {event.sequences} sequences, digest {event.digest[:12]}",
            f"its manifest has {manifest.rows} sequences, digest {manifest.digest[:12]}",
        )


def check_manifest(
    key: str, manifest: CorpusManifest, spec: Mapping[str, Any], tokenizer: str
) -> Iterator[Finding]:
    """I5: every document and token is accounted for, under the run's settings and tokenizer."""
    counts = manifest.counts
    try:
        counts.check()
    except ValueError as wrong:
        yield Finding(key, str(wrong), "both numbers are equal")
    neither = counts.documents - counts.trained_documents - counts.held_out_documents
    pairs = {
        "name": (manifest.name, key.split("/")[1]),
        "tokenizer": (manifest.tokenizer, tokenizer),
        "sequence_length": (manifest.sequence_length, spec["corpora"]["sequence_length"]),
        "seed": (manifest.seed, spec["seed"]),
        "tokens in rows": (manifest.tokens, counts.row_tokens),
        "held-out documents": (
            sum(file.documents for file in manifest.holdout),
            counts.held_out_documents,
        ),
        "quarantine records": (sum(file.records for file in manifest.quarantine), neither),
    }
    yield from unequal(key, pairs)


def check_earlier(manifests: Mapping[str, CorpusManifest]) -> Iterator[Finding]:
    """The corpora that a corpus was compared with for duplicates are still the same."""
    for name, manifest in manifests.items():
        for earlier in manifest.earlier:
            if earlier.name in manifests:
                pair = (earlier.digest, manifests[earlier.name].digest)
                yield from unequal(
                    f"corpora/{name}/manifest.json", {f"{earlier.name}'s digest": pair}
                )


def check_read(key: str, size_bytes: int, sha256: str, found: FileRead) -> Iterator[Finding]:
    """A file that a manifest names is there, with its size and digest."""
    right = f"its manifest has {size_bytes} bytes, sha256 {sha256[:12]}"
    if found.size_bytes is None:
        yield Finding(key, "is missing", right)
    elif (found.size_bytes, found.sha256) != (size_bytes, sha256):
        yield Finding(key, f"has {found.size_bytes} bytes, sha256 {found.sha256[:12]}", right)
    if found.unreadable:
        yield Finding(key, f"cannot be read ({found.unreadable})", "it holds what it was made for")


def check_shard(
    key: str, shard: Shard, manifest: CorpusManifest, found: ShardContents
) -> Iterator[Finding]:
    """The footer and the manifest agree on rows and their width."""
    pairs = {
        "rows by row group": (list(found.row_groups), list(shard.row_groups)),
        "bytes of a row": (found.row_bytes, manifest.sequence_length * manifest.token_bytes),
    }
    yield from unequal(key, pairs)


def check_contents(key: str, manifest: CorpusManifest, found: Sequence[Contents]) -> list[Finding]:
    """I5: the records in a corpus's files add up to its counts."""
    counts = manifest.counts
    held = [each for each in found if isinstance(each, HoldoutContents)]
    reasons: Counter[str] = Counter()
    for each in found:
        if isinstance(each, QuarantineContents):
            reasons.update(each.reasons)
    neither = counts.documents - counts.trained_documents - counts.held_out_documents
    tokens = sum(each.token_bytes for each in held) // manifest.token_bytes
    pairs: dict[str, tuple[Any, Any]] = {
        "held-out documents": (sum(each.documents for each in held), counts.held_out_documents),
        "held-out tokens": (tokens, counts.held_out_tokens),
        "held-out bytes": (sum(each.text_bytes for each in held), counts.held_out_bytes),
        "quarantine records": (reasons.total(), neither),
    }
    for reason, count in counts.removed.items():
        pairs[f"records of {reason}"] = (reasons[reason], count)
    return list(unequal(key, pairs, "the files hold", "the counts say"))
