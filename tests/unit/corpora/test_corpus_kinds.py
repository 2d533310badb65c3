"""Corpora as people have them: what is read of each, what is set aside, and whether it is taken."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from perennial.corpora.inbox import read_landed
from perennial.corpora.ingest.partition import plan_pieces
from perennial.corpora.ingest.quality import account_losses, check_quality
from perennial.corpora.ingest.read import ScatterJob, scatter_piece
from perennial.corpora.ingest.sample import list_inputs
from perennial.corpora.manifest import IngestSettings
from perennial.errors import InputError
from perennial.store import open_store
from tests.support.corpus_kinds import DOCUMENTS, CorpusKind, corpus_kinds

KINDS = corpus_kinds()


@pytest.mark.parametrize("name", KINDS)
def test_a_corpus_of_each_kind_is_read_as_a_user_expects(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    kind.write(tmp_path / "inbox" / "corpus")
    documents, reasons, state = read_corpus(tmp_path / "inbox", kind)
    assert state == kind.state
    assert reasons.keys() == kind.reasons.keys()
    assert {r: n for r, n in kind.reasons.items() if n is not None}.items() <= reasons.items()
    if kind.documents is None:
        assert documents < DOCUMENTS * len(kind.files)
    else:
        assert documents == kind.documents


def read_corpus(inbox: Path, kind: CorpusKind) -> tuple[int, dict[str, int], str]:
    """Return the good documents, the others by reason, and what becomes of the corpus."""
    store, staging = open_store(inbox), open_store(inbox.with_name("staging"))
    settings = IngestSettings(sequence_length=8, seed=0, **kind.settings)
    try:
        inputs = list_inputs(read_landed(store, "corpus"))
    except InputError:
        return 0, {}, "refused"
    job = ScatterJob(store.sub("corpus"), staging, inputs, settings, shards=1)
    pieces = plan_pieces(inputs, settings.piece_bytes)
    staged = [scatter_piece(job, index, piece) for index, piece in enumerate(pieces)]
    reasons: Counter[str] = Counter()
    for result in staged:
        reasons.update(result.quarantined)
    documents = sum(result.documents for result in staged) - reasons.total()
    try:
        account = account_losses(inputs, staged)
        check_quality("inbox", "evidence", inputs, settings, staged, account)
    except InputError:
        return documents, dict(reasons), "refused"
    return documents, dict(reasons), "ready"
