"""Held-out loss of a causal language model: per document, and per corpus with its standard error.

Every token of a document is predicted exactly once, its end-of-document id included. The first one
is predicted from what stands before it in training: the begin-of-document id where the run has one,
else the end-of-document id of the document before. A document that is longer than the sequence is
cut into windows that each start from the token before them, as in lm-eval's rolling log-likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

IGNORED = -100  # torch's cross entropy counts no loss where the target is this


class Document(NamedTuple):
    """A held-out document: its token ids `(tokens,)`, the end-of-document id last.

    `before` is the id that stands before its first token in training. `counted` is the number of
    tokens that a loss per token counts; default those that it has. Where a model is measured that
    lacks entries of the corpus's tokenizer, it reads other tokens than are counted.
    """

    tokens: np.ndarray[Any, np.dtype[np.integer[Any]]]
    bytes: int
    domain: str
    before: int
    counted: int | None = None


class DocumentLoss(NamedTuple):
    """Summed loss of one document in nats, over so many tokens and UTF-8 bytes."""

    nats: float
    tokens: int
    bytes: int
    domain: str = ""


class Window(NamedTuple):
    """Tokens `start` to `stop` of one document, predicted in one sequence."""

    document: int
    start: int
    stop: int


@dataclass(frozen=True)
class HeldoutLoss:
    """Held-out loss of one model on one corpus, or on one domain of it.

    `nats_per_token` is over the tokens of the corpus's own tokenizer, whatever the model reads: of
    one corpus, it is bits per byte times a constant.
    `bits_per_byte` compares models with different tokenizers; None for documents of token ids,
    whose bytes are not known. The standard error is over
    documents; None for a single document, which has none.
    `stderr_of_change` is that of this loss minus the loss right after the corpus's own stage, with
    the documents paired: most of what makes one document harder than another cancels.
    `domains` holds the losses of the domains that the corpus's documents name, if they name any.
    """

    corpus: str
    nats_per_token: float
    bits_per_byte: float | None
    documents: int
    tokens: int
    bytes: int
    stderr_nats_per_token: float | None
    stderr_of_change: float | None = None
    domains: Mapping[str, HeldoutLoss] = field(default_factory=dict)

    @property
    def macro_nats_per_token(self) -> float | None:
        """Mean over domains, each counting the same; None where no domain is named."""
        return fmean(d.nats_per_token for d in self.domains.values()) if self.domains else None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeldoutLoss:
        """Return the loss that `dataclasses.asdict` turned into `data`."""
        domains = {name: cls.from_dict(loss) for name, loss in data.get("domains", {}).items()}
        return cls(**{**data, "domains": domains})


def heldout_loss(
    corpus: str,
    losses: Sequence[DocumentLoss],
    reference: Sequence[DocumentLoss] | None = None,
) -> HeldoutLoss:
    """Return the loss of a corpus, from the losses of its documents.

    Args:
        corpus: name of the corpus.
        losses: by document.
        reference: the same documents' losses right after the corpus's own stage.

    Raises:
        ValueError: there are no documents.
    """
    whole = _ratio(corpus, losses)
    named = sorted({loss.domain for loss in losses if loss.domain})
    domains = {name: _ratio(corpus, [x for x in losses if x.domain == name]) for name in named}
    change = None if reference is None else paired_change(losses, reference)
    return replace(
        whole, domains=domains, stderr_of_change=None if change is None else change.stderr
    )


def _ratio(corpus: str, losses: Sequence[DocumentLoss]) -> HeldoutLoss:
    """Return the loss per token, sum(nats) / sum(tokens), with a ratio's standard error."""
    if not losses:
        raise ValueError(f"corpus {corpus} has no held-out documents")
    nats = math.fsum(loss.nats for loss in losses)
    tokens = sum(loss.tokens for loss in losses)
    size_bytes = sum(loss.bytes for loss in losses)
    return HeldoutLoss(
        corpus=corpus,
        nats_per_token=nats / tokens,
        bits_per_byte=nats / math.log(2) / size_bytes if size_bytes else None,
        documents=len(losses),
        tokens=tokens,
        bytes=size_bytes,
        stderr_nats_per_token=_ratio_stderr([(loss.nats, loss.tokens) for loss in losses]),
    )


def _ratio_stderr(parts: Sequence[tuple[float, int]]) -> float | None:
    """Return the standard error of sum(nats) / sum(tokens); None for fewer than two documents.

    It is sqrt(n / (n - 1) * sum(residual^2)) / sum(tokens): Cochran, Sampling Techniques, 6.4.
    """
    n, tokens = len(parts), sum(count for _, count in parts)
    if n < 2:
        return None
    ratio = math.fsum(nats for nats, _ in parts) / tokens
    squares = math.fsum((nats - ratio * count) ** 2 for nats, count in parts)
    return math.sqrt(n / (n - 1) * squares) / tokens


class Change(NamedTuple):
    """One model's loss minus another's on the same documents, in nats per token."""

    nats_per_token: float
    stderr: float | None


def paired_change(
    losses: Sequence[DocumentLoss], reference: Sequence[DocumentLoss]
) -> Change | None:
    """Return the mean of loss minus reference over paired documents.

    Args:
        losses: by document.
        reference: the losses of another model.

    Returns:
        None when the documents are not the same.
    """
    if [x.tokens for x in losses] != [x.tokens for x in reference]:
        return None
    parts = [(x.nats - y.nats, x.tokens) for x, y in zip(losses, reference, strict=True)]
    tokens = sum(count for _, count in parts)
    return Change(math.fsum(nats for nats, _ in parts) / tokens, _ratio_stderr(parts))


def cut_windows(lengths: Sequence[int], sequence_length: int) -> list[Window]:
    """Return windows that cover each document's tokens once, longest first.

    Windows of similar length share a batch, so that little of it is padding; the order depends on
    `lengths` alone.

    Args:
        lengths: tokens of each document.
        sequence_length: most tokens of a window.
    """
    windows = [
        Window(document, start, min(start + sequence_length, length))
        for document, length in enumerate(lengths)
        for start in range(0, length, sequence_length)
    ]
    return sorted(windows, key=lambda w: (w.start - w.stop, w.document, w.start))


def document_losses(
    model: torch.nn.Module, documents: Sequence[Document], sequence_length: int, batch: int
) -> list[DocumentLoss]:
    """Return the loss of every document, computed on the model's device.

    A forward pass sees up to `batch` windows: ids and logits are `(batch, sequence)` and
    `(batch, sequence, vocabulary)`, padded on the right, where causal attention cannot see it.
    The same model, documents, batch and thread count give the same losses to the last bit.

    Args:
        model: causal language model of transformers.
        documents: to score.
        sequence_length: most tokens of a window.
        batch: most windows of a forward pass.
    """
    import torch

    model.eval()
    device = next(model.parameters()).device
    nats = [0.0] * len(documents)
    windows = cut_windows([len(document.tokens) for document in documents], sequence_length)
    with torch.inference_mode():
        for first in range(0, len(windows), batch):
            group = windows[first : first + batch]
            inputs, targets = (torch.from_numpy(a).to(device) for a in _pad(documents, group))
            logits = model(input_ids=inputs, use_cache=False).logits.float()
            wanted = targets.flatten().to(logits.device)  # the last of several GPUs
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), wanted, ignore_index=IGNORED, reduction="none"
            )
            sums = losses.view(targets.shape).double().sum(dim=1).tolist()
            for window, total in zip(group, sums, strict=True):
                nats[window.document] += total
    return [
        DocumentLoss(
            total,
            len(document.tokens) if document.counted is None else document.counted,
            document.bytes,
            document.domain,
        )
        for total, document in zip(nats, documents, strict=True)
    ]


def _pad(
    documents: Sequence[Document], windows: Sequence[Window]
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Return inputs and targets of one batch, both `(windows, longest window)`."""
    longest = max(window.stop - window.start for window in windows)
    inputs = np.zeros((len(windows), longest), dtype=np.int64)
    targets = np.full((len(windows), longest), IGNORED, dtype=np.int64)
    for row, (document, start, stop) in enumerate(windows):
        tokens = documents[document].tokens
        inputs[row, 0] = tokens[start - 1] if start else documents[document].before
        inputs[row, 1 : stop - start] = tokens[start : stop - 1]
        targets[row, : stop - start] = tokens[start:stop]
    return inputs, targets
