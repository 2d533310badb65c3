"""Summarise what a release was trained on, in the sections of the European Commission's template.

The template is that of the public summary of training content of general-purpose AI models (24 July
2025; Article 53(1)(d) of Regulation (EU) 2024/1689). What the lineage knows is filled in. What it
does not know is said to be not recorded, with the field of the run file that records it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perennial.mixture import StageMix, trained_sequences
from perennial.runs.card_metadata import base_card
from perennial.runs.state import RunState, Stage
from perennial.version import __version__

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.corpora import CorpusManifest

PAGE, RECORD = "TRAINING_CONTENT.md", "training_content.json"
FILES = (PAGE, RECORD)

_KINDS = {
    "public": "2.1 Publicly available datasets",
    "licensed": "2.2.1 Datasets commercially licensed by rightsholders or their representatives",
    "third-party": "2.2.2 Private datasets obtained from other third parties",
    "crawled": "2.3 Data crawled and scraped from online sources",
    "user": "2.4 User data",
    "synthetic": "2.5 Synthetic data",
    "other": "2.6 Other sources of data",
}
_THIRD_PARTIES = "2.2 Private non-publicly available datasets obtained from third parties"
_RESERVATIONS = (
    "3.1 Respect of reservation of rights from text and data mining exception or limitation"
)
_UNKNOWN_KIND = "Corpora whose kind is not recorded"
_MISSING = "not recorded"
_LEAST, _MOST = 10**9, 10**13
"""Tokens at which the template's ranges of the size of text end."""


def content_files(
    spec: RunSpec,
    state: RunState,
    stage: Stage,
    step: int,
    manifests: Mapping[str, CorpusManifest],
    anneal: StageMix | None = None,
) -> dict[str, bytes]:
    """Return the summary as a page and as JSON, by the files' names.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        stage: the stage of the trunk's checkpoint.
        step: trunk step of the checkpoint.
        manifests: of the corpora that the trunk has trained, by name.
        anneal: what a release trained on after it; None for nothing.
    """
    document = summarize_content(spec, state, stage, step, manifests, anneal)
    record = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    return {PAGE: content_page(document).encode(), RECORD: record.encode()}


def summarize_content(
    spec: RunSpec,
    state: RunState,
    stage: Stage,
    step: int,
    manifests: Mapping[str, CorpusManifest],
    anneal: StageMix | None = None,
) -> dict[str, Any]:
    """Return the summary as a JSON document; null is what is not recorded.

    The arguments are those of `content_files`.
    """
    length = spec.corpora.sequence_length
    first: Counter[str] = Counter()
    again: Counter[str] = Counter()
    for its in (*state.lineage(stage), stage):
        for name, rows in state.trained(its, min(its.last_step, step)).items():
            (first if name in its.corpora else again)[name] += rows * length
    if anneal is not None:
        for name, rows in trained_sequences(anneal, anneal.steps).items():
            again[name] += rows * length
    names = [name for name in manifests if first[name] + again[name]]
    stated = spec.release.summary
    return {
        "template": "European Commission, 24 July 2025, Article 53(1)(d) of Regulation 2024/1689",
        "made_by": f"perennial {__version__}",
        "provider": stated.provider,
        "representative": stated.representative,
        "model": f"{spec.name}, trunk step {step}",
        "market_date": stated.market_date,
        "base": _describe_base(spec, state),
        "trained_until": state.times.get(stage.name, {}).get("trained"),
        "modalities": ["text"],
        "tokens_trained": sum(first.values()),
        "tokens_replayed": sum(again.values()),
        "languages": sorted(
            {language for n in names for language in spec.corpora.origin_of(n).languages}
        ),
        "corpora": [
            _describe(spec, name, manifests[name], first[name], again[name]) for name in names
        ],
        "copyright": stated.copyright,
        "illegal_content": stated.illegal_content,
    }


def _describe_base(spec: RunSpec, state: RunState) -> dict[str, Any] | None:
    if state.base is None:
        return None
    its, says = state.base.imported, base_card(state)
    return {
        "path": its.path,
        "digest": its.manifest,
        "card": _card_of(spec.release.base_model),
        "kit_of": its.kit.run if its.kit else None,
        "license": says.license_name or says.license,
        "languages": list(says.languages),
    }


def _describe(
    spec: RunSpec, name: str, manifest: CorpusManifest, trained: int, replayed: int
) -> dict[str, Any]:
    """Return what is known of a corpus."""
    origin = spec.corpora.origin_of(name).model_dump(mode="json")
    source, pulled = _pulled(spec, name)
    counts, settings = manifest.counts, manifest.settings
    compared = {
        "near-duplicates of held-out documents": settings.near_duplicates is not None,
        "evaluation texts": bool(settings.decontaminate),
        "near-duplicates among themselves": settings.fuzzy_duplicates is not None,
        "lines that occurred before": settings.repeated_lines is not None,
        "copies": settings.duplicates == "drop",
    }
    return {
        "name": name,
        "digest": manifest.digest,
        **origin,
        "source": origin["source"] or source,
        "collected": origin["collected"] or (pulled and f"pulled on {pulled}"),
        "role": "proxy" if name in spec.stages.proxies else "trained",
        "files": len(manifest.inputs),
        "bytes_landed": sum(file.size_bytes for file in manifest.inputs),
        "documents": counts.documents,
        "documents_trained": counts.trained_documents,
        "documents_held_out": counts.held_out_documents,
        "documents_removed": counts.removed,
        "text_bytes_trained": counts.trained_bytes,
        "tokens_trained": trained,
        "tokens_replayed": replayed,
        "domains": list(manifest.part_rows),
        "steps": [str(step.get("kind")) for step in settings.steps],
        "removed_as": [what for what, is_done in compared.items() if is_done],
    }


def _pulled(spec: RunSpec, corpus: str) -> tuple[str | None, str | None]:
    """Return the address of the source that a corpus was pulled from, and the date in its name."""
    for name, source in spec.sources.items():
        match = re.fullmatch(rf"{re.escape(name)}-(\d{{4}}-\d\d-\d\d)(\.\d+)?", corpus)
        if match:
            shown = source.model_dump(mode="json")  # in which secrets are hidden
            place = shown["prefix"] or shown["index"]
            return place or f"the program {source.command[0] if source.command else ''}", match[1]
    return None, None


def _card_of(model: str | None) -> str | None:
    """Return the address of a model's card, where the Hub has one."""
    if model is None:
        return None
    return f"https://huggingface.co/{model}" if model.count("/") == 1 else model


def content_page(document: Mapping[str, Any]) -> str:
    """Return the summary as Markdown.

    Args:
        document: as `summarize_content` returns it.
    """
    return "\n".join(
        [
            f"# Public summary of training content: {document['model']}",
            "",
            f"In the sections of the template of the {document['template']}. Written by "
            f"{document['made_by']} from the run's own records. *Not recorded* names the field of "
            "the run file that records it. The same as JSON: "
            f"`{RECORD}`.",
            "",
            *_general(document),
            "## 2. List of data sources",
            "",
            *_sources(document),
            *_processing(document),
        ]
    )


def _general(document: Mapping[str, Any]) -> list[str]:
    tokens = document["tokens_trained"]
    size = (
        "less than 1 billion tokens"
        if tokens < _LEAST
        else "1 billion to 10 trillion tokens"
        if tokens <= _MOST
        else "more than 10 trillion tokens"
    )
    languages = ", ".join(document["languages"])
    dates = sorted(c["collected"] for c in document["corpora"] if c["collected"])
    return [
        "## 1. General information",
        "### 1.1 Provider identification",
        f"- Name and contact: {_stated(document['provider'], 'release.summary.provider')}",
        "- Authorised representative: "
        f"{_stated(document['representative'], 'release.summary.representative')}",
        "",
        "### 1.2 Model identification",
        f"- Name and version: {document['model']}",
        f"- Model that it was made from: {_base(document['base'])}",
        "- Placed on the Union market: "
        f"{_stated(document['market_date'], 'release.summary.market_date')}",
        "",
        "### 1.3 Modalities, overall training data size and other characteristics",
        f"- Modality: text, {size}: {tokens:,} trained once, and {document['tokens_replayed']:,} "
        "of them or of proxy corpora once more",
        f"- Languages: {_stated(languages, 'corpora.about.NAME.languages')}",
        f"- Collected: {_stated('; '.join(dates), 'corpora.about.NAME.collected')}",
        f"- Trained until: {_stated(document['trained_until'], 'the ledger')}",
        "",
    ]


def _base(base: Mapping[str, Any] | None) -> str:
    if base is None:
        return "none, it began with random weights"
    whose = f", a trunk kit of `{base['kit_of']}`" if base["kit_of"] else ""
    card = _stated(base["card"], "release.base_model")
    says = [f"licence {base['license']}"] if base["license"] else []
    says += [f"languages {', '.join(base['languages'])}"] if base["languages"] else []
    return (
        f"`{base['path']}`{whose} (digest `{base['digest']}`). What it was trained on is no part "
        f"of this summary; its own card: {card}" + (f" ({'; '.join(says)})" if says else "")
    )


def _sources(document: Mapping[str, Any]) -> list[str]:
    lines = []
    corpora: Sequence[Mapping[str, Any]] = document["corpora"]
    for kind, title in (*_KINDS.items(), (None, _UNKNOWN_KIND)):
        own = [corpus for corpus in corpora if corpus["kind"] == kind]
        if kind is None and not own:
            continue
        if kind == "licensed":
            lines += [f"### {_THIRD_PARTIES}"]
        lines.append(f"{_level(title)} {title}")
        lines += [""] if own else ["None recorded.", ""]
        if kind is None:
            lines += [f"The kind is {_field('corpora.about.NAME.kind')}.", ""]
        for corpus in own:
            lines += [*_corpus(corpus), ""]
    return lines


def _level(title: str) -> str:
    """Return the mark of a heading: 2.2 has two sections of its own."""
    return "####" if title.startswith("2.2.") else "###"


def _corpus(corpus: Mapping[str, Any]) -> list[str]:
    about = f"corpora.about.{corpus['name']}"
    removed = ", ".join(
        f"{count:,} {reason}" for reason, count in corpus["documents_removed"].items()
    )
    proxy = "; it stands in for data of the base" if corpus["role"] == "proxy" else ""
    domains = f"; domains: {', '.join(corpus['domains'])}" if corpus["domains"] else ""
    lines = [
        f"**{corpus['title'] or corpus['name']}**{proxy}",
        f"- Source: {_stated(corpus['source'], f'{about}.source')}",
        f"- Licence: {_stated(corpus['license'], f'{about}.license')}",
        f"- Languages: {_stated(', '.join(corpus['languages']), f'{about}.languages')}",
        f"- Types of content: {_stated(corpus['content'], f'{about}.content')}{domains}",
        f"- Collected: {_stated(corpus['collected'], f'{about}.collected')}",
        f"- Size: {corpus['bytes_landed']:,} bytes, files: {corpus['files']:,}; "
        f"{corpus['documents']:,} documents, of which {corpus['documents_trained']:,} "
        f"({corpus['text_bytes_trained']:,} bytes of text) were for training, "
        f"{corpus['documents_held_out']:,} were held out"
        + (f"; removed: {removed}" if removed else ""),
        f"- Tokens: {corpus['tokens_trained']:,} trained, {corpus['tokens_replayed']:,} replayed",
        f"- Corpus `{corpus['name']}` of the lineage, digest `{corpus['digest']}`",
    ]
    return [*lines, f"- {corpus['note']}"] if corpus["note"] else lines


def _processing(document: Mapping[str, Any]) -> list[str]:
    done = [line for corpus in document["corpora"] if (line := _done_to(corpus))]
    return [
        "## 3. Data processing aspects",
        f"### {_RESERVATIONS}",
        _stated(document["copyright"], "release.summary.copyright"),
        "",
        "### 3.2 Removal of illegal content",
        _stated(document["illegal_content"], "release.summary.illegal_content"),
        "",
        "### 3.3 Other information",
        *(done or ["None."]),
        "",
    ]


def _done_to(corpus: Mapping[str, Any]) -> str:
    steps = ", ".join(corpus["steps"])
    clauses = [f"steps {steps}"] if steps else []
    if corpus["removed_as"]:
        clauses.append(f"removed: {', '.join(corpus['removed_as'])}")
    return f"- {corpus['name']}: {'; '.join(clauses)}" if clauses else ""


def _stated(value: str | None, field: str) -> str:
    return value or _field(field)


def _field(name: str) -> str:
    return f"*{_MISSING}* (`{name}`)"
