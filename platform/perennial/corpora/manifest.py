"""Manifest of a tokenised corpus: its settings, counts and files."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from perennial.corpora.counts import Counts
from perennial.errors import InputError
from perennial.steps.base import DOCUMENT_FIELDS

if TYPE_CHECKING:
    import numpy as np

    from perennial.store import Store

FORMAT: Final = 1
BAD_FIT: Final = 1.5
"""tokens per byte over those of the first corpus, from which on the user is warned"""


_LATER: Final = (
    "steps",
    "max_window_bytes",
    "packing",
    "fill_in_the_middle",
    "metadata",
    "parts",
    "tokens",
)
"""settings that an older version did not know; at their defaults the digest leaves them out"""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FillInTheMiddle(_Frozen):
    """Documents whose middle is moved to their end, and the tokens that tell the parts apart."""

    share: Annotated[float, Field(gt=0, le=1)]
    """of the documents that fit a row"""
    spm_share: Annotated[float, Field(ge=0, le=1)]
    """of these, those whose suffix comes first"""
    prefix: str
    middle: str
    suffix: str


class TokenIds(_Frozen):
    """The documents of a corpus that are token ids already."""

    field: str = "input_ids"
    """the field of an object, or the column of a table, that holds a document's ids"""
    dtype: Literal["uint8", "uint16", "uint32", "int32", "int64"]
    """type of the ids in a file that does not say it, little-endian"""
    vocabulary: int
    """ids are below it"""
    end_of_document: int
    """the id that ends a document; the last one of a list or a file may lack it"""
    first: Annotated[int, Field(exclude_if=lambda first: not first)] = 0
    """the run's id of the files' id 0, where they have a vocabulary of their own"""
    begin_of_document: int | None = None
    """the id that may stand before a document"""

    @property
    def raw_type(self) -> np.dtype[Any]:
        """Return the type of the ids in a file that does not say it."""
        import numpy as np

        return np.dtype(self.dtype).newbyteorder("<")


class IngestSettings(_Frozen):
    """Settings of an ingest: how landed documents become sequences."""

    sequence_length: Annotated[int, Field(ge=2)]
    """tokens in one row"""
    seed: int
    """the order of documents"""
    text_field: str = "text"
    """the field of an object, or the column of a table, that holds the text"""
    tokens: TokenIds | None = None
    """how documents are token ids; null for text"""
    domain_field: str = ""
    """the field or column that names a document's domain; "" for none"""
    metadata: dict[str, str] = Field(default_factory=dict)
    """fields or columns that are kept of every trained document, by the name of the column"""
    parts: Literal["none", "domain"] = "none"
    """whether the documents of each domain are a part of the corpus, with rows of its own"""
    txt_documents: Literal["paragraph", "line", "file"] = "paragraph"
    """whether a document of a .txt file ends at a blank line, at the end of its line or of the
    file"""
    holdout_share: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """share of documents, chosen by their text's hash, that are never trained on"""
    duplicates: Literal["keep", "drop"] = "keep"
    """whether a document is trained whose text occurred before, in the corpus or an earlier one"""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """Jaccard similarity (of runs of 5 words) with a held-out document from which on a document is
    not trained; null to not compare"""
    fuzzy_duplicates: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, exclude_if=lambda similarity: similarity is None
    )
    """Jaccard similarity (of runs of 5 words) with an earlier document of the corpus from which on
    a document is not trained; null to not compare"""
    repeated_lines: Annotated[int, Field(ge=1)] | None = Field(
        default=None, exclude_if=lambda characters: characters is None
    )
    """fewest characters of a line that is cut out of a document to train where it occurred before
    in the corpus; null to cut none"""
    decontaminate: str = ""
    """digest of the evaluation texts that trained documents share no 13 words with; "" for none"""
    steps: tuple[dict[str, Any], ...] = ()
    """what documents went through before they were tokenised: section and code of each step"""
    packing: Literal["concat", "best-fit"] = "concat"
    """how documents become rows: end to end, or whole where they fit, with padding"""
    fill_in_the_middle: FillInTheMiddle | None = None
    """what share of the trained documents has its middle at the end; null for none"""
    max_document_bytes: Annotated[int, Field(ge=1)] = 8 << 20
    """longest text of a document in UTF-8 bytes; a JSON line may be four times as long"""
    max_window_bytes: Annotated[int, Field(ge=1)] = 128 << 20
    """largest window of a zstd frame that is decoded, in bytes"""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """share of documents, of stored bytes that could not be read, or of damaged files, above which
    the corpus is refused as a whole"""
    shard_tokens: Annotated[int, Field(ge=1)] = 32 << 20
    """tokens of a shard, roughly: a gather task holds one shard's text in memory, or maps it where
    the store is a local folder"""
    piece_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    """stored bytes of one scatter task, and the text that it holds in memory, at least; up to
    512 MiB in corpora of more than 256 GiB. It has no influence on the result"""

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """Return the names of the columns of metadata."""
        return tuple(sorted(self.metadata))

    @property
    def other_fields(self) -> tuple[str, ...]:
        """Return the fields that are read beside text and domain.

        Those of the columns of metadata come first, in their order, then others of the steps.
        """
        if not self.metadata and not self.steps:  # asked for every document
            return ()
        kept = tuple(self.metadata[column] for column in self.metadata_columns)
        looked_at = dict.fromkeys(f for step in self.steps for f in step.get(DOCUMENT_FIELDS, ()))
        return kept + tuple(field for field in looked_at if field not in kept)

    @property
    def content_field(self) -> str:
        """Return the field or column that holds a document: its text, or its ids."""
        return self.text_field if self.tokens is None else self.tokens.field


class InputFile(_Frozen):
    """A landed file as it was when it was ingested."""

    name: str
    size_bytes: int
    etag: str
    sha256: str = ""
    """as its producer's list promised it, and as it was read; "" where nothing was promised"""


class StoredFile(_Frozen):
    """A file of a tokenised corpus; `file` is its name in the corpus's folder."""

    file: str
    size_bytes: int
    sha256: str


class Shard(StoredFile):
    """Training rows: one column `tokens` of fixed-size binary, little-endian token ids."""

    row_groups: tuple[int, ...]
    """rows, by row group"""


class HoldoutFile(StoredFile):
    """Held-out documents: rows of tokens (with end-of-document), bytes and domain."""

    documents: int


class DocumentsFile(StoredFile):
    """Documents in the rows of a shard: a row per span, in the order of the shard's rows."""

    spans: int
    known: dict[str, int] = Field(default_factory=dict, exclude_if=lambda known: not known)
    """spans with a value, by column of metadata"""


class QuarantineFile(StoredFile):
    """A JSON line per document that was neither trained nor held out: file, offset, reason."""

    records: int


class DigestFile(StoredFile):
    """Sorted 64-bit digests of the corpus's texts, little-endian and without repeats.

    A file holds a range of digests; the ranges are in the order of the manifest.
    """

    digests: int


class EarlierCorpus(_Frozen):
    """A corpus of the run that this one was compared with."""

    name: str
    digest: str
    """its manifest's"""


class ShardResult(_Frozen):
    """Files and counts of one shard, or of one part of the held-out documents.

    It is also the completion marker of the task that wrote them.
    """

    shard: Shard | None = None
    documents: DocumentsFile | None = None
    holdout: HoldoutFile | None = None
    quarantine: QuarantineFile | None = None
    part: str | None = None
    """the part that the shard belongs to; None without parts"""
    counts: Counts

    @property
    def files(self) -> list[StoredFile]:
        """Return the files that were written."""
        given = (self.shard, self.documents, self.holdout, self.quarantine)
        return [file for file in given if file is not None]


class CorpusPart(_Frozen):
    """The trained documents of one domain; their rows follow each other in the corpus.

    The parts are in the order of the shards, of which each holds rows of one part.
    """

    name: str
    """the domain; "" for documents that name none"""
    rows: int
    documents: int
    remainder_tokens: int
    """tokens at the ends of its shards that did not fill a row"""


class CorpusManifest(_Frozen):
    """A tokenised corpus; it exists when this does (I6)."""

    format: Literal[1] = FORMAT
    name: str
    digest: str = ""
    """sha256 of all the rest except what has no influence on the output: ETags and digests of the
    inputs, the piece size, and CPU time"""
    tokenizer: str
    """the tokenizer's fingerprint"""
    engine: Literal["tiktoken", "tokenizers", "ids"]
    """what encoded the text; the ids are equal; ids where documents were ids already"""
    vocabulary: int
    end_of_document: int
    """token id"""
    begin_of_document: int | None = None
    """token id that stands before every trained document; held-out documents are stored without
    it"""
    settings: IngestSettings
    inputs: tuple[InputFile, ...]
    shards: tuple[Shard, ...]
    holdout: tuple[HoldoutFile, ...]
    quarantine: tuple[QuarantineFile, ...]
    digests: tuple[DigestFile, ...] = ()
    """of the texts of all documents"""
    documents: tuple[DocumentsFile, ...] = Field(default=(), exclude_if=lambda files: not files)
    """of each shard, in their order; none in a corpus that a version before 0.2 ingested"""
    earlier: tuple[EarlierCorpus, ...] = ()
    """the corpora that this one was compared with, in their order"""
    comparing: int = Field(default=1, exclude_if=lambda version: version == 1)
    """version of the form in which near duplicates and evaluation texts were compared; nothing in
    that form is kept, so that corpora of several versions are compared with each other"""
    parts: tuple[CorpusPart, ...] = Field(default=(), exclude_if=lambda parts: not parts)
    counts: Counts
    step_cpu_seconds: dict[str, float] = Field(default_factory=dict, exclude_if=lambda s: not s)
    """CPU time that each of the steps took, by its number and kind"""
    step_changes: dict[str, int] = Field(default_factory=dict, exclude_if=lambda s: not s)
    """documents whose text a step changed, whatever became of them then, by the step's number and
    kind"""
    erasures: int = Field(default=0, exclude_if=lambda count: not count)
    """how often something of the corpus was erased"""
    erased: bool = Field(default=False, exclude_if=lambda erased: not erased)
    """whether all of it was: its rows keep their numbers, and there are no files any more"""
    tokens_per_byte: float | None
    """of the texts, without the ends and begins of documents; null where documents were ids"""

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """Return all files beside the manifest; none of an erased corpus."""
        if self.erased:
            return ()
        return (
            *self.shards,
            *self.documents,
            *self.holdout,
            *self.quarantine,
            *self.digests,
        )

    @property
    def sequence_length(self) -> int:
        """Return the tokens of one row."""
        return self.settings.sequence_length

    @property
    def seed(self) -> int:
        """Return the seed of the documents' order."""
        return self.settings.seed

    @property
    def token_bytes(self) -> int:
        """Return the bytes of a stored token id: 2 or 4, little-endian, unsigned."""
        return token_bytes(self.vocabulary)

    @property
    def rows(self) -> int:
        """Return the number of training sequences."""
        return sum(sum(shard.row_groups) for shard in self.shards)

    @property
    def part_rows(self) -> dict[str, int]:
        """Return the training sequences of each part, in their order; none without parts."""
        return {part.name: part.rows for part in self.parts}

    @property
    def tokens(self) -> int:
        """Return the number of tokens in training sequences, without padding."""
        return self.rows * self.sequence_length - self.counts.padding_tokens

    @property
    def has_padding(self) -> bool:
        """Return whether its rows may hold padding, which no loss is taken of."""
        return self.counts.padding_tokens > 0

    @property
    def total_bytes(self) -> int:
        """Return the UTF-8 bytes of all texts, trained and held out."""
        return self.counts.trained_bytes + self.counts.held_out_bytes

    def find_unknown_metadata(self) -> dict[str, str]:
        """Return the fields of metadata that no document has, by their columns."""
        fields = self.settings.metadata
        known = {column for file in self.documents for column, spans in file.known.items() if spans}
        return {column: fields[column] for column in fields if column not in known}

    def describe_packing(self) -> str:
        """Return what packing does to the documents, as one clause."""
        counts = self.counts
        cut = counts.cut_documents / max(1, counts.trained_documents)
        text = f"{self.settings.packing} packing cuts {cut:.1%} of the documents"
        if counts.padding_tokens:
            share = counts.padding_tokens / (self.rows * self.sequence_length)
            text += f", {share:.1%} of the rows is padding"
        return text

    def sealed(self) -> CorpusManifest:
        """Return a copy that holds its digest."""
        return self.model_copy(update={"digest": self.compute_digest()})

    def compute_digest(self) -> str:
        """Return the digest of the content, which `digest` must equal."""
        content = self.model_dump(mode="json", exclude={"digest", "step_cpu_seconds"})
        if content["begin_of_document"] is None:
            content.pop("begin_of_document")  # which manifests of before 0.2 do not have
        # A corpus that was landed again, or divided otherwise, has the same shards.
        content["settings"].pop("piece_bytes")
        if self.settings.packing == "concat":  # of which older versions did not count it
            content["counts"].pop("cut_documents", None)
        for later in _LATER:
            default = IngestSettings.model_fields[later].get_default(call_default_factory=True)
            if getattr(self.settings, later) == default:
                del content["settings"][later]
        for file in content["inputs"]:
            file.pop("etag")
            file.pop("sha256")
        return digest_json(content)


def token_bytes(vocabulary: int) -> int:
    """Return the bytes of a token id of a vocabulary of that size."""
    return 2 if vocabulary <= 1 << 16 else 4


def digest_json(content: Any) -> str:
    """Return the sha256 of a JSON value's canonical text."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_key(name: str) -> str:
    """Return the key of a corpus's manifest in the run's store."""
    return f"corpora/{name}/manifest.json"


def read_manifest(store: Store, name: str) -> CorpusManifest:
    """Return the manifest of an ingested corpus.

    Args:
        store: the run's store.
        name: the corpus's name.

    Raises:
        InputError: when the corpus is not ingested, or its manifest was altered.
    """
    key = manifest_key(name)
    try:
        return _read_once(store, key)
    except InputError as wrong:
        if wrong.code == "corpus-not-ingested":
            raise
    # A torn read spoils one transfer of a sound object.
    return _read_once(store, key)


def _read_once(store: Store, key: str) -> CorpusManifest:
    try:
        data = store.read(key)
    except FileNotFoundError:
        raise InputError(
            f"{store.url}/{key}",
            "",
            "the corpus was not ingested",
            "ingest it first",
            code="corpus-not-ingested",
        ) from None
    try:
        manifest = CorpusManifest.model_validate_json(data)
    except ValueError as error:
        raise InputError(
            f"{store.url}/{key}",
            "",
            f"it cannot be read: {error}",
            "restore it or ingest again",
            code="manifest-unreadable",
        ) from error
    if manifest.digest != manifest.compute_digest():
        raise InputError(
            f"{store.url}/{key}",
            "digest",
            "the content was altered",
            "restore it or ingest again",
            code="manifest-altered",
        )
    return manifest


def fit_warning(first: CorpusManifest, this: CorpusManifest) -> str | None:
    """Return a warning if the run's tokenizer fits a corpus much worse than the first one.

    Args:
        first: manifest of the corpus that the tokenizer was made for.
        this: manifest of the corpus in question.

    Returns:
        One line, or None if the tokenizer fits well enough.
    """
    if this.tokens_per_byte is None or first.tokens_per_byte is None:
        return None
    ratio = this.tokens_per_byte / first.tokens_per_byte
    if ratio < BAD_FIT:
        return None
    return (
        f"the tokenizer fits {this.name} badly: {this.tokens_per_byte:.3f} tokens per byte against "
        f"{first.tokens_per_byte:.3f} for {first.name}, so its text takes {ratio:.1f} times the "
        "tokens"
    )
