"""Account of the documents and tokens of a corpus, and the reasons to remove a document."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field

DUPLICATE: Final = "duplicate"
"""reason to remove a document: an equal one is there already"""
NEAR_DUPLICATE: Final = "near-duplicate-of-held-out"
FUZZY_DUPLICATE: Final = "fuzzy-duplicate"
"""reason to remove a document: one that is nearly the same is there already"""
REPEATED_LINES: Final = "repeated-lines"
"""reason to remove a document: nothing is left without the lines that occurred before"""
CONTAMINATED: Final = "contaminated"
"""reason to remove a document: it holds a piece of an evaluation text"""
SPECIAL_TOKEN: Final = "special-token"
"""reason to remove a document: the tokenizer would turn its text into a special token"""


class Counts(BaseModel):
    """Account of every document and token; `check` proves that nothing was dropped."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    documents: int = 0
    """everything that was read or should have been: a bad part counts as one document"""
    trained_documents: int = 0
    held_out_documents: int = 0
    duplicate_documents: int = 0
    """dropped for an equal document"""
    near_duplicate_documents: int = 0
    """not trained because a held-out document is nearly the same"""
    partly_compared_documents: int = Field(default=0, exclude_if=lambda count: not count)
    """of those that were trained, those that are like none of the held-out documents that they were
    compared with, while more of them share text than are compared"""
    fuzzy_partly_compared: int = Field(default=0, exclude_if=lambda count: not count)
    """documents that were not compared with all that they share text with, while fuzzy duplicates
    were looked for"""
    repeated_line_documents: int = Field(default=0, exclude_if=lambda count: not count)
    """documents out of which lines were cut that occurred before; those of which nothing was left
    are among `quarantined`"""
    repeated_line_bytes: int = Field(default=0, exclude_if=lambda count: not count)
    """bytes of these lines"""
    contaminated_documents: int = 0
    """not trained because they hold a piece of an evaluation text"""
    quarantined: dict[str, int] = Field(default_factory=dict)
    """by reason"""
    lost_documents_estimate: int = Field(default=0, exclude_if=lambda count: not count)
    """documents in parts of files that could not be read, of which each is one of `quarantined`;
    not less than the truth, and not more than twice that"""
    repeats: int = 0
    """documents whose text occurred before in the corpus, dropped or not"""
    repeats_of_earlier: dict[str, int] = Field(default_factory=dict)
    """documents whose text an earlier corpus holds, dropped or not, by the first such corpus"""
    tokens: int = 0
    """of trained and held-out documents, with their ends"""
    row_tokens: int = 0
    """tokens in training rows, without padding"""
    padding_tokens: int = Field(default=0, exclude_if=lambda count: not count)
    """in training rows: rows x sequence length = `row_tokens` + `padding_tokens`. They are made by
    the packing, or stand where a document was erased, and are none of `tokens`"""
    held_out_tokens: int = 0
    remainder_tokens: int = 0
    """tokens that no row holds: at the shards' ends, where they fill none, or with `best-fit` ends
    of documents that would stand in a row without a token before them"""
    cut_documents: int = Field(default=0, exclude_if=lambda count: not count)
    """trained documents that do not lie whole in one row"""
    filled_documents: int = Field(default=0, exclude_if=lambda count: not count)
    """trained documents whose middle was moved to their end"""
    erased_documents: int = Field(default=0, exclude_if=lambda count: not count)
    """trained or held-out documents that were erased since"""
    erased_tokens: int = Field(default=0, exclude_if=lambda count: not count)
    """tokens of them, in whose place rows have padding"""
    trained_bytes: int = 0
    """UTF-8 bytes of the trained documents' texts, those erased since too"""
    held_out_bytes: int = 0

    @property
    def unused_documents(self) -> int:
        """Return the number of documents that were neither trained nor held out."""
        used = self.trained_documents + self.held_out_documents + self.erased_documents
        return self.documents - used

    @property
    def removed(self) -> dict[str, int]:
        """Return the number of records that are neither trained nor held out, by reason."""
        dropped = {
            DUPLICATE: self.duplicate_documents,
            NEAR_DUPLICATE: self.near_duplicate_documents,
            CONTAMINATED: self.contaminated_documents,
        }
        return {reason: count for reason, count in dropped.items() if count} | self.quarantined

    def plus(self, other: Counts) -> Counts:
        """Return the sum of both counts."""
        names = Counts.model_fields
        return Counts(**{name: _sum(getattr(self, name), getattr(other, name)) for name in names})

    def check(self) -> Self:
        """Return itself. Raises ValueError if a document or token is not accounted for (I5)."""
        kept = self.documents - self.unused_documents
        documents = kept + sum(self.removed.values())
        tokens = self.row_tokens + self.held_out_tokens + self.remainder_tokens
        tokens += self.erased_tokens
        if documents != self.documents or tokens != self.tokens:
            raise ValueError(
                f"{self.documents} documents and {self.tokens} tokens were read, "
                f"but {documents} and {tokens} are accounted for"
            )
        return self


def sum_counts(counts: Iterable[Counts]) -> Counts:
    """Return the sum of all counts."""
    return reduce(Counts.plus, counts, Counts())


def _sum(mine: Any, theirs: Any) -> Any:
    if not isinstance(mine, dict):
        return mine + theirs
    return {name: mine.get(name, 0) + theirs.get(name, 0) for name in sorted(mine | theirs)}
