"""From landed files to tokenised, shuffled, packed shards with a manifest (I5, I6)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perennial.corpora.compatibility import check_same_run
    from perennial.corpora.formats.open import find_kind
    from perennial.corpora.inbox import (
        Landed,
        StoredFile,
        check_files,
        inspect,
        land,
        land_stored,
        landed,
    )
    from perennial.corpora.ingest.pipeline import ingest_corpus
    from perennial.corpora.manifest import (
        CorpusManifest,
        IngestSettings,
        fit_warning,
        read_manifest,
    )
    from perennial.corpora.names import check_name
    from perennial.corpora.reuse import borrow_tokenizer
    from perennial.corpora.tokenizer import (
        RunTokenizer,
        import_tokenizer,
        load_tokenizer,
        read_tokenizer,
        train_tokenizer,
    )

__all__ = [
    "CorpusManifest",
    "IngestSettings",
    "Landed",
    "RunTokenizer",
    "StoredFile",
    "borrow_tokenizer",
    "check_files",
    "check_name",
    "check_same_run",
    "find_kind",
    "fit_warning",
    "import_tokenizer",
    "ingest_corpus",
    "inspect",
    "land",
    "land_stored",
    "landed",
    "load_tokenizer",
    "read_manifest",
    "read_tokenizer",
    "train_tokenizer",
]

_HOMES = {
    "CorpusManifest": "manifest",
    "IngestSettings": "manifest",
    "Landed": "inbox",
    "RunTokenizer": "tokenizer",
    "StoredFile": "inbox",
    "borrow_tokenizer": "reuse",
    "check_files": "inbox",
    "check_name": "names",
    "check_same_run": "compatibility",
    "find_kind": "formats.open",
    "fit_warning": "manifest",
    "import_tokenizer": "tokenizer",
    "ingest_corpus": "ingest.pipeline",
    "inspect": "inbox",
    "land": "inbox",
    "land_stored": "inbox",
    "landed": "inbox",
    "load_tokenizer": "tokenizer",
    "read_manifest": "manifest",
    "read_tokenizer": "tokenizer",
    "train_tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    # Resolved on first use: `import perennial.corpora` alone imports nothing heavy.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "perennial.corpora." + _HOMES[name]
    return getattr(import_module(module), name)
