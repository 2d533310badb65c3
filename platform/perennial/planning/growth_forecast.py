"""What entries that corpora bring to the tokenizer cost and save, before any compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from perennial import corpora
from perennial.controller.tokenizer_growth import asked_of, extension_for, settled_tokenizer
from perennial.corpora.growth.stored import Growth
from perennial.corpora.tokenizer import MANIFEST_KEY
from perennial.runs.transitions import FINISHED
from perennial.training import cost_model

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.training.cost_model import ModelSize

_SAMPLE_BYTES = 1 << 20
"""bytes of text that `plan` looks at, where an ingest looks at more"""


def grown_vocabulary(work: Workspace, vocabulary: int) -> int:
    """Return the entries of the tokenizer once all corpora that landed have brought theirs.

    Args:
        work: the run.
        vocabulary: entries of its first tokenizer.
    """
    settled = work.state.extension
    entries = vocabulary if settled is None else settled.vocabulary
    for name in work.spec.stages.corpora:
        known = work.state.extensions.get(name)
        corpus = work.state.corpora.get(name)
        brought = extension_for(work, name)
        if corpus is not None and corpus.state in (*FINISHED, "refused", "held"):
            continue
        if known is not None:
            entries += known.vocabulary - known.first
        elif brought is not None:
            entries += brought.most
    return entries


def growth_notes(work: Workspace, names: Sequence[str], size: ModelSize) -> Iterator[str]:
    """Yield what the entries of each corpus add to the model, and save of its tokens.

    Args:
        work: the run.
        names: of the new corpora of stages to come.
        size: of the model in the end.
    """
    for name in names:
        brought = extension_for(work, name)
        if brought is None:
            continue
        known = work.state.extensions.get(name)
        if known is not None:
            entries = known.vocabulary - known.first
            effect = corpora.read_growth(work.store, name).describe()
        else:
            entries = brought.most
            effect = _describe_sample(work, name) or f"up to {entries:,} entries"
        added = entries * size.hidden * (1 if size.tied else 2)
        stored = added * cost_model.checkpoint_bytes_each(work.spec.training)
        yield (
            f"{name} brings {effect}; at most {added:,} parameters more, "
            f"{stored / 1e6:,.1f} MB more in each checkpoint"
        )


def _describe_sample(work: Workspace, name: str) -> str:
    """Return what a small sample of a landed corpus says; "" where nothing can be looked at."""
    from perennial.controller.ingest_stage import settings_of

    landed = {its.name: its for its in corpora.list_landed(work.inbox)}.get(name)
    brought = extension_for(work, name)
    its = work.spec.tokenizer
    if landed is None or brought is None or work.spec.corpora.tokens_of(name) is not None:
        return ""
    if work.store.exists(MANIFEST_KEY):
        before = settled_tokenizer(work)
    elif its.path is not None:
        before = corpora.read_tokenizer(its.path, its.end_of_document, its.begin_of_document)
    else:
        return ""
    asked = asked_of(brought)
    extension = corpora.extend_for(
        before.json, work.inbox, landed, asked, settings_of(work, name), _SAMPLE_BYTES
    )
    return Growth.of(extension, asked, before.fingerprint).describe()
