"""Decontamination: documents that share 13 words in a row with an evaluation text are not trained.

Thirteen words are the usual bound since GPT-3 (Brown et al. 2020, appendix C). In scripts without
spaces they are characters (`comparing`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perennial.corpora.comparing import split_words
from perennial.corpora.formats import open as formats
from perennial.corpora.formats.open import describe_suffixes, find_kind
from perennial.corpora.ingest.partition import splitmix64
from perennial.errors import InputError
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.corpora.ingest.documents import StagedDocuments
    from perennial.corpora.manifest import IngestSettings
    from perennial.store import Store

RUN_WORDS = 13
_KEY = "evaluation.json"
_BETWEEN = b""
"""between two documents, a word that no text has"""
_ENDS = np.uint64(1 << 20)
"""size of a table of the ends of hashes"""
_PLACES = splitmix64(np.arange(1, RUN_WORDS + 1, dtype=np.uint64)) | np.uint64(1)


@dataclass(frozen=True)
class EvaluationTexts:
    """Evaluation texts, and a digest of them that does not depend on their files' names."""

    digest: str
    texts: tuple[str, ...]

    @property
    def too_short(self) -> int:
        """Return the number of texts of fewer than 13 words, which cannot be looked for."""
        return sum(len(_words(text)) < RUN_WORDS for text in self.texts)


def read_evaluation_texts(paths: Sequence[Path], settings: IngestSettings) -> EvaluationTexts:
    """Return the texts of files of any format; see `FileFormat.read_evaluation_texts`.

    Args:
        paths: local files.
        settings: how texts are found in them.

    Raises:
        InputError: for a file that is missing, unreadable, or of no known format.
    """
    texts: set[str] = set()
    for path in paths:
        kind = find_kind(path.name)
        if kind is None or not kind.format.holds_text:
            raise InputError(
                str(path),
                "corpora.decontaminate",
                f"its suffix {path.suffix!r} is unknown",
                f"name UTF-8 files of evaluation texts: {describe_suffixes()}",
                code="format-unknown",
            )
        try:
            with path.open("rb") as stream:
                size = path.stat().st_size
                texts.update(formats.read_evaluation_texts(stream, kind, size, settings))
        except (OSError, ValueError) as error:
            raise InputError(
                str(path),
                "corpora.decontaminate",
                f"it cannot be read: {error}",
                f"name UTF-8 files of evaluation texts: {describe_suffixes()}",
                code="file-unreadable",
            ) from error
    ordered = tuple(sorted(texts))
    return EvaluationTexts(hashlib.sha256(_json(ordered)).hexdigest() if paths else "", ordered)


def write_evaluation_texts(staging: Store, texts: EvaluationTexts) -> None:
    """Write the texts where gather tasks read them, with `load_contamination`.

    Args:
        staging: the store of staged files.
        texts: the texts.
    """
    staging.write(_KEY, _json(texts.texts))


class ContaminationIndex:
    """Search for the runs of 13 words of the evaluation texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        split = [_words(text) for text in texts]
        distinct = dict.fromkeys(chain.from_iterable(split))
        self._numbers = {word: number for number, word in enumerate(distinct, start=1)}
        self._mixed = splitmix64(np.arange(len(self._numbers) + 1, dtype=np.uint64))
        runs = [self._hash_runs(self._number(words), _run_starts(len(words))) for words in split]
        self._runs = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *runs]))
        self._ends_of_runs = np.zeros(_ENDS, dtype=bool)
        self._ends_of_runs[self._runs % _ENDS] = True

    def search(self, documents: StagedDocuments) -> dict[int, str]:
        """Return, by row, which documents share a run with an evaluation text, and which run."""
        if not len(self._runs):
            return {}
        words: list[bytes] = []
        first_words = []
        for text in documents.texts():
            first_words.append(len(words))
            words += split_words(text)
            words.append(_BETWEEN)
        numbers = self._number(words)
        # Only runs of words that are all words of some evaluation text are hashed.
        known = np.concatenate([[0], np.cumsum(numbers > 0)])
        starts = np.flatnonzero(known[RUN_WORDS:] - known[:-RUN_WORDS] == RUN_WORDS)
        hashes = self._hash_runs(numbers, starts)
        # A look at a table of ends, most of which are no run's, is much faster than a search.
        likely = self._ends_of_runs[hashes % _ENDS]
        starts, hashes = starts[likely], hashes[likely]
        places = np.minimum(np.searchsorted(self._runs, hashes), len(self._runs) - 1)
        shared = starts[self._runs[places] == hashes]
        rows, firsts = np.unique(
            np.searchsorted(first_words, shared, side="right") - 1, return_index=True
        )
        runs = (b" ".join(words[start:][:RUN_WORDS]) for start in shared[firsts].tolist())
        return {
            row: f"holds {run.decode()!r} of an evaluation text"
            for row, run in zip(rows.tolist(), runs, strict=True)
        }

    def _number(self, words: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Return the number `(words,)` of every word; 0 for one of no evaluation text."""
        return np.fromiter(map(self._numbers.get, words, repeat(0)), np.int64, len(words))

    def _hash_runs(
        self, numbers: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint64]:
        """Return 64 bits `(runs,)` for runs of 13 words; their order matters.

        Args:
            numbers: of all words.
            starts: of the runs, among the words.
        """
        runs = np.zeros(len(starts), dtype=np.uint64)
        for place, factor in enumerate(_PLACES):
            runs += self._mixed[numbers[starts + place]] * factor
        return splitmix64(runs)


@lru_cache(maxsize=1)
def load_contamination(staging: Store, digest: str) -> ContaminationIndex:
    """Return the index of the evaluation texts; it is kept for a worker's next task.

    Args:
        staging: the store that `write_evaluation_texts` wrote to.
        digest: the texts' digest, by which the index is kept.
    """
    return ContaminationIndex(parse_json(staging.read(_KEY)))


def _words(text: str) -> list[bytes]:
    return split_words(text.encode(errors="replace"))


def _run_starts(words: int) -> npt.NDArray[np.int64]:
    """Return the starts of all runs of a text.

    Args:
        words: of the text.
    """
    return np.arange(max(0, words - RUN_WORDS + 1))


def _json(texts: Sequence[str]) -> bytes:
    return json.dumps(list(texts)).encode()
