"""Decontamination: documents that share 13 words in a row with an evaluation text are not trained.

Thirteen words are the usual bound since GPT-3 (Brown et al. 2020, appendix C).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perennial.corpora.formats import open as formats
from perennial.corpora.formats.open import describe_suffixes, find_kind
from perennial.corpora.ingest.near_dedup import WORDS
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.corpora.ingest.documents import StagedDocuments
    from perennial.corpora.manifest import IngestSettings
    from perennial.store import Store

RUN_WORDS = 13
_KEY = "evaluation.json"


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
        if kind is None:
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
        self._vocabulary: set[str] = set()
        self._runs: set[int] = set()
        for text in texts:
            words = _words(text)
            for start in range(len(words) - RUN_WORDS + 1):
                self._runs.add(_run_digest(words[start : start + RUN_WORDS]))
            self._vocabulary.update(words)

    def search(self, documents: StagedDocuments) -> dict[int, str]:
        """Return, by row, which documents share a run with an evaluation text, and which run."""
        runs = ((row, self._find_run(str(t, "utf-8"))) for row, t in enumerate(documents.texts()))
        return {row: f"holds {run!r} of an evaluation text" for row, run in runs if run}

    def _find_run(self, text: str) -> str:
        """Return the first run of a text that an evaluation text holds; "" if there is none."""
        words = _words(text)
        if len(words) < RUN_WORDS:
            return ""
        # A run is hashed only where all its 13 words are words of some evaluation text: most
        # documents have no such place, and a look at the vocabulary is far cheaper than a hash.
        known = np.fromiter(map(self._vocabulary.__contains__, words), bool, len(words))
        before = np.concatenate([[0], np.cumsum(known)])
        for start in np.flatnonzero(before[RUN_WORDS:] - before[:-RUN_WORDS] == RUN_WORDS).tolist():
            run = words[start : start + RUN_WORDS]
            if _run_digest(run) in self._runs:
                return " ".join(run)
        return ""


@lru_cache(maxsize=1)
def load_contamination(staging: Store, digest: str) -> ContaminationIndex:
    """Return the index of the evaluation texts; it is kept for a worker's next task.

    Args:
        staging: the store that `write_evaluation_texts` wrote to.
        digest: the texts' digest, by which the index is kept.
    """
    return ContaminationIndex(json.loads(staging.read(_KEY)))


def _words(text: str) -> list[str]:
    words: list[str] = WORDS.findall(text.casefold())
    return words


def _run_digest(words: list[str]) -> int:
    digest = hashlib.blake2b(" ".join(words).encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _json(texts: Sequence[str]) -> bytes:
    return json.dumps(list(texts)).encode()
