"""The schema of the run file's section `corpora`: what becomes of landed documents."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from perennial.config.provenance import CorpusOrigin
from perennial.config.sources import Size
from perennial.fields import (
    FREE,
    JOIN,
    PINNED,
    Count,
    PathOrName,
    PathText,
    Section,
    Share,
)
from perennial.steps import StepSection

S = TypeVar("S", bound=Section)
TxtDocuments = Literal["paragraph", "line", "file"]
TAKEN_COLUMNS = ("row", "start", "tokens", "before", "file", "offset", "digest", "domain")


def _check_column(name: str) -> str:
    if name in TAKEN_COLUMNS:
        raise ValueError(f"{name} has a meaning of its own beside it; keep it under another name")
    return name


ColumnName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$"), AfterValidator(_check_column)]
Metadata = dict[ColumnName, Annotated[str, Field(min_length=1)]]
CorpusPattern = Annotated[str, Field(pattern=r"^[a-z0-9._*?\[\]!-]+$")]
IdType = Literal["uint8", "uint16", "uint32", "int32", "int64"]
PartsOf = Literal["none", "domain"]
DoneToText = Literal[
    "steps", "decontaminate", "fuzzy_duplicates", "repeated_lines", "fill_in_the_middle"
]
LargestDocument = Annotated[Size, Field(ge=1, le=1 << 30)]
LargestWindow = Annotated[Size, Field(ge=1 << 10, le=1 << 31)]


class TokensSpec(Section):
    """Documents of a corpus that are ids already: give exactly one of tokenizer and brought_by."""

    tokenizer: Annotated[PathOrName | None, JOIN] = None
    """what the ids are of: the fingerprint of a tokenizer (that of a run is in its store,
    tokenizer/manifest.json), or the path of one, as `tokenizer.path` takes it; any other than the
    run's is refused"""
    brought_by: Annotated[str | None, JOIN] = None
    """the ids are no text: they count from 0 in the vocabulary that this corpus, or an earlier one,
    brings by `stages.corpora.NAME.extend_tokenizer.ids`; the number of its ids, where it occurs,
    ends a document"""
    vocabulary: Annotated[Count | None, JOIN] = None
    """ids are below this number; default, and at most: the entries of the run's tokenizer, or those
    that were brought. A document with another id is set aside"""
    field: Annotated[str, JOIN] = "input_ids"
    """the field of an object, or the column of a table, that holds a document's ids"""
    dtype: Annotated[IdType | None, JOIN] = None
    """type of the ids in a .bin or .npy file without a head: uint8, uint16, uint32, int32 or
    int64, little-endian; default uint16 for a vocabulary of at most 65,536, else uint32"""
    without: Annotated[tuple[DoneToText, ...], JOIN] = ()
    """what `corpora` asks of text that is not done to these ids; a corpus is refused where the run
    file asks for one of them that is not named here"""

    @model_validator(mode="after")
    def _one_vocabulary(self) -> TokensSpec:
        if (self.tokenizer is None) == (self.brought_by is None):
            raise ValueError("give exactly one of tokenizer and brought_by")
        return self


class ReadingOverride(Section):
    """Reading of the files of one corpus, in place of what `corpora` says."""

    text_field: Annotated[str | None, JOIN] = None
    """the field or column that holds the text"""
    domain_field: Annotated[str | None, JOIN] = None
    """the field or column that names a document's domain"""
    metadata: Annotated[Metadata | None, JOIN] = None
    """fields or columns that are kept of every document, by the name to keep them under"""
    parts: Annotated[PartsOf | None, JOIN] = None
    """domain keeps the documents of each domain apart, so that a stage can weigh them; or none"""
    txt_documents: Annotated[TxtDocuments | None, JOIN] = None
    """where a document of a .txt file ends: paragraph, line or file"""
    max_document: Annotated[LargestDocument | None, JOIN] = None
    """longest text of a document, at most 1 GiB"""
    max_zstd_window: Annotated[LargestWindow | None, JOIN] = None
    """largest window of a .zst file, at most 2 GiB"""
    tokens: TokensSpec | None = None
    """the documents are token ids, not text"""

    @model_validator(mode="after")
    def _one_field(self) -> ReadingOverride:
        if self.tokens is not None and self.text_field is not None:
            raise ValueError(
                "text_field is that of text; name the field of the ids as tokens.field"
            )
        return self


class FillInTheMiddleSpec(Section):
    """Documents whose middle is moved to their end, for a model that completes code or text.

    The tokens are the tokenizer's own.
    """

    share: Annotated[Annotated[float, Field(gt=0.0, le=1.0)], JOIN] = 0.5
    """share of the trained documents, of those that fit a sequence"""
    spm_share: Annotated[Share, JOIN] = 0.5
    """share of these whose suffix comes before their prefix, from 0 to 1"""
    prefix: Annotated[str, JOIN] = "<|fim_prefix|>"
    """the token before the prefix"""
    middle: Annotated[str, JOIN] = "<|fim_middle|>"
    """the token before the middle"""
    suffix: Annotated[str, JOIN] = "<|fim_suffix|>"
    """the token before the suffix"""

    @model_validator(mode="after")
    def _three_tokens(self) -> FillInTheMiddleSpec:
        if len({self.prefix, self.middle, self.suffix}) < 3:
            raise ValueError("prefix, middle and suffix are three different tokens")
        return self


class CorporaSpec(Section):
    """Tokenisation of landed documents into sequences."""

    text_field: Annotated[str, JOIN] = "text"
    """the field of an object, or the column of a table, that holds the text; where there is none of
    that very name, `doc.text` is the field `text` of what the field `doc` holds"""
    domain_field: Annotated[str, JOIN] = ""
    """the field or column that names a document's domain, such as `source`; held-out losses are
    then reported by domain as well. Empty: documents have no domains"""
    metadata: Annotated[Metadata, JOIN] = Field(default_factory=dict)
    """fields or columns that are kept of every trained document, by the name to keep them under,
    such as `{id: id, url: metadata.url}`: a sequence leads back to them"""
    parts: Annotated[PartsOf, JOIN] = "none"
    """domain makes each value of `domain_field` a part of the corpus, at most 256: every batch
    holds its share of each part, by its size or by `stages.corpora.NAME.weights`. Tokens at a
    part's end that fill no row are not trained; none: a corpus is one whole"""
    txt_documents: Annotated[TxtDocuments, JOIN] = "paragraph"
    """where a document of a .txt file ends: paragraph (at a blank line), line, or file"""
    max_document: Annotated[LargestDocument, JOIN] = 8 << 20
    """longest text of a document, at most 1 GiB; a longer one is set aside. A JSON line or a row
    may be four times as long. A task that reads or writes holds several of the longest texts in
    memory"""
    max_zstd_window: Annotated[LargestWindow, JOIN] = 128 << 20
    """largest window of a .zst file (`zstd --long`), at most 2 GiB; a task that reads one holds it
    in memory. A file that needs a larger one is set aside"""
    read: dict[CorpusPattern, ReadingOverride] = Field(default_factory=dict)
    """overrides of `text_field`, `domain_field`, `metadata`, `parts`, `txt_documents`,
    `max_document` and `max_zstd_window`, and `tokens`, by a corpus's name, or by a glob such as
    `"c4-*"`: those of the exact name, else of the longest glob that matches"""
    about: dict[CorpusPattern, CorpusOrigin] = Field(default_factory=dict)
    """origins of corpora for the summary of training content, by a corpus's name or a glob, as
    `read` takes them"""
    sequence_length: Annotated[int, Field(ge=8), PINNED] = 2048
    """tokens in one sequence"""
    packing: Annotated[Literal["concat", "best-fit"], JOIN] = "concat"
    """concat lays documents end to end and cuts them where a sequence ends; best-fit cuts none that
    fits a sequence, and fills what is left with padding, which is not trained"""
    fill_in_the_middle: FillInTheMiddleSpec | None = None
    """with a tokenizer that has tokens for it, moves the middle of some documents to their end;
    `{}` takes the defaults"""
    holdout: Annotated[float, Field(gt=0.0, lt=0.5), PINNED] = 0.01
    """share of a corpus's documents that are held out for evaluation, above 0 and below 0.5"""
    max_bad_share: Annotated[Share, JOIN] = 0.01
    """share of bad documents, of stored bytes that cannot be read, or of damaged files, above which
    the whole corpus is refused, from 0 to 1"""
    duplicates: Annotated[Literal["keep", "drop"], JOIN] = "keep"
    """keep or drop documents whose text occurred before, in this corpus or an earlier one; both
    count them"""
    near_duplicates: Annotated[Annotated[float, Field(gt=0.0, le=1.0)] | None, JOIN] = 0.8
    """documents at least this similar to a held-out document are not trained; similarity is the
    share of common runs of 5 words, estimated by MinHash, above 0 and at most 1. null turns it
    off"""
    fuzzy_duplicates: Annotated[Annotated[float, Field(gt=0.0, le=1.0)] | None, JOIN] = None
    """documents at least this similar to an earlier document of the same corpus are not trained,
    such as 0.8; similarity is the share of common runs of 5 words, estimated by MinHash, above 0
    and at most 1. Default: trained documents are not compared with each other"""
    repeated_lines: Annotated[Count | None, JOIN] = None
    """lines of at least so many characters, such as 100, are cut out of a document where they
    occurred before in the same corpus. Default: none are"""
    steps: Annotated[tuple[StepSection, ...], JOIN] = ()
    """what becomes of a document before it is tokenised, in this order: each step keeps it, drops
    it with a reason, or changes its text"""
    borrow: Annotated[PathText | None, FREE] = None
    """store of another run, a folder or a bucket's url: its tokenizer, and the corpora of this
    run's inbox that it has tokenised, are copied instead of computed again"""
    decontaminate: Annotated[tuple[PathText, ...], JOIN] = ()
    """files of evaluation texts, in any format that a corpus may have; a document that shares 13
    consecutive words with one of them is not trained"""

    @model_validator(mode="after")
    def _parts_have_domains(self) -> CorporaSpec:
        for own in (ReadingOverride(), *self.read.values()):
            field = self.domain_field if own.domain_field is None else own.domain_field
            if (own.parts or self.parts) == "domain" and not field:
                raise ValueError(
                    "parts: domain needs domain_field; name the field that holds the domain"
                )
        return self

    def for_corpus(self, name: str) -> CorporaSpec:
        """Return the section with what `read` has for a corpus in the place of its own keys.

        Args:
            name: of the corpus.
        """
        own = dict(self._override(name))
        del own["tokens"]
        return self.model_copy(update={k: v for k, v in own.items() if v is not None})

    def tokens_of(self, name: str) -> TokensSpec | None:
        """Return how the documents of a corpus are token ids; None for text.

        Args:
            name: of the corpus.
        """
        return self._override(name).tokens

    def origin_of(self, name: str) -> CorpusOrigin:
        """Return what the run file says about the origin of a corpus.

        Args:
            name: of the corpus.
        """
        return of_name(self.about, name) or CorpusOrigin()

    def _override(self, name: str) -> ReadingOverride:
        return of_name(self.read, name) or ReadingOverride()


def of_name(sections: Mapping[str, S], name: str) -> S | None:
    """Return the section of the exact name, else of the longest glob that matches it."""
    globs = [glob for glob in sections if fnmatchcase(name, glob)]
    longest = max(globs, key=lambda glob: (len(glob), glob), default=None)
    return sections.get(name, None if longest is None else sections[longest])
