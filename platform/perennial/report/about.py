"""Say how a run was made and how its model is loaded: settings, code, provenance. Mostly pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perennial.corpora import read_manifest
from perennial.errors import InputError
from perennial.report.html import PageSection, Table
from perennial.runs.card_metadata import usage_lines
from perennial.version import __version__

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.corpora import CorpusManifest
    from perennial.runs.ledger import Head
    from perennial.runs.state import RunState
    from perennial.store import Store

MOST_ROWS = 20
"""Rows of a table about stages or corpora, at most: the last ones."""
SETTINGS = "Settings"
"""title of the section whose table does not grow with the stages"""
_DIGEST_LETTERS = 12
_ELSEWHERE = ("name", "store", "inbox", "sources", "tracking", "notify")
"""Fields of the run file that say where things are, and nothing about the model."""
_FOLDERS = re.compile(r"(?<![\w:/.~$}])/(?:[\w.@+=-]+/)+(?=[\w.@+=-])")


def without_folders(section: PageSection) -> PageSection:
    """Return a section whose absolute paths are shortened to their last names.

    A page is sent to others, who have other folders and no business with these.
    """
    return replace(
        section,
        lead=_shortened(section.lead),
        tables=[
            replace(table, rows=[[*map(_shortened, row)] for row in table.rows])
            for table in section.tables
        ],
    )


def _shortened(text: str) -> str:
    return _FOLDERS.sub("", text)


def settings(spec: RunSpec) -> PageSection:
    """Return the run file's settings that are not the default."""
    document = spec.model_dump(mode="json", exclude_defaults=True)
    chosen = {key: value for key, value in document.items() if key not in _ELSEWHERE}
    rows = list(_flat(chosen))
    return PageSection(
        SETTINGS,
        "What the run file sets. Any other setting has its default, and `perennial explain FIELD` "
        "says what a setting means.",
        tables=[Table(("setting", "value"), rows, stacked=True)],
    )


def _flat(document: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in document.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(str(item) for item in value) or "none"
        else:
            yield name, "none" if value is None else str(value)


def load_it(store: Store, state: RunState) -> PageSection:
    """Return how the newest release is loaded, or how one is made."""
    if not state.releases:
        return PageSection(
            "Load it", "There is no release so far: `perennial release RUN_FILE` makes one."
        )
    folder = state.releases[-1].folder
    is_local = "://" not in store.url
    where = "Run in the folder of the run's store. " if is_local else ""
    return PageSection(
        "Load it",
        f"{where}The newest release is {state.releases[-1].name}.",
        code=usage_lines(folder if is_local else f"{store.url}/{folder}"),
    )


def provenance(
    spec: RunSpec, state: RunState, head: Head, manifests: Sequence[CorpusManifest]
) -> PageSection:
    """Return what the models of the run descend from, with the digests that prove it.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        head: the end of the ledger that the page was made from.
        manifests: of the newest corpora that were tokenised.
    """
    facts = [("made by", f"perennial {__version__}"), ("seed", str(spec.seed))]
    facts.append(("ledger", f"{head.events:,} events, the last one's sha256 {head.sha256}"))
    facts += [
        (f"{name}, a stored model", f"{its.imported.path}, digest {its.imported.manifest}")
        for name, its in state.origins.items()
    ]
    tokenizers = dict.fromkeys(manifest.tokenizer for manifest in manifests)
    facts += [("tokenizer", fingerprint) for fingerprint in tokenizers]
    rows = [_corpus_row(spec, manifest) for manifest in manifests]
    columns = ("corpus", "documents", "tokens", "held out", "licence", "source", "digest")
    numbers = frozenset(columns[1:4])
    known = sum(1 for corpus in state.corpora.values() if corpus.tokens)
    corpora = Table(
        columns, rows, numbers, stacked=True, earlier=max(0, known - len(rows)),
        whole="each is in the store, as corpora/NAME/manifest.json",
    )  # fmt: skip
    return PageSection(
        "Provenance",
        "`perennial verify RUN_FILE` proves these digests again from what is stored.",
        tables=[Table(("of the run", ""), facts, stacked=True), *([corpora] if rows else [])],
    )


def newest_manifests(store: Store, state: RunState) -> list[CorpusManifest]:
    """Read the manifests of the newest corpora that were tokenised."""
    ready = [name for name, corpus in state.corpora.items() if corpus.tokens]
    manifests = []
    for name in ready[-MOST_ROWS:]:
        with suppress(InputError):  # altered or lost: `verify` is for that, and the page for losses
            manifests.append(read_manifest(store, name))
    return manifests


def _corpus_row(spec: RunSpec, manifest: CorpusManifest) -> Sequence[str]:
    origin = spec.corpora.origin_of(manifest.name)
    return (
        manifest.name,
        f"{manifest.counts.documents:,}",
        f"{manifest.counts.tokens:,}",
        f"{manifest.counts.held_out_documents:,}",
        origin.license or "not stated",
        origin.source or origin.title or "not stated",
        manifest.digest[:_DIGEST_LETTERS],
    )
