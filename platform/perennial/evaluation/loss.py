"""Held-out loss of a causal language model: per document, and per corpus with its standard error.

Every token of a document is predicted exactly once, its end-of-document id included. The first one
is predicted from an end-of-document id, which is what stands before a document in training. A
document that is longer than the sequence is cut into windows that each start from the token before
them, as in lm-eval's rolling log-likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

IGNORED = -100  # torch's cross entropy counts no loss where the target is this


class Document(NamedTuple):
    """A held-out document: its token ids `(tokens,)`, the end-of-document id last."""

    tokens: np.ndarray[Any, np.dtype[np.integer[Any]]]
    bytes: int
    domain: str


class DocumentLoss(NamedTuple):
    """Summed loss of one document in nats, over so many tokens and UTF-8 bytes."""

    nats: float
    tokens: int
    bytes: int


class Window(NamedTuple):
    """Tokens `start` to `stop` of one document, predicted in one sequence."""

    document: int
    start: int
    stop: int


@dataclass(frozen=True)
class HeldoutLoss:
    """Held-out loss of one model on one corpus.

    `bits_per_byte` compares models with different tokenizers. The standard error is over
    documents; None for a single document, which has none.
    """

    corpus: str
    nats_per_token: float
    bits_per_byte: float
    documents: int
    tokens: int
    bytes: int
    stderr_nats_per_token: float | None


def heldout_loss(corpus: str, losses: Sequence[DocumentLoss]) -> HeldoutLoss:
    """The loss of a corpus, from the losses of its documents.

    Loss per token is a ratio of two sums over documents, sum(nats) / sum(tokens), so its standard
    error is that of a ratio: sqrt(n / (n - 1) * sum((nats_i - ratio * tokens_i)^2)) / sum(tokens)
    (Cochran, Sampling Techniques, section 6.4). Raises ValueError if there are no documents.
    """
    if not losses:
        raise ValueError(f"corpus {corpus} has no held-out documents")
    nats, tokens, size_bytes = (math.fsum(column) for column in zip(*losses, strict=True))
    ratio = nats / tokens
    n = len(losses)
    stderr = None
    if n > 1:
        squares = math.fsum((loss.nats - ratio * loss.tokens) ** 2 for loss in losses)
        stderr = math.sqrt(n / (n - 1) * squares) / tokens
    return HeldoutLoss(
        corpus=corpus,
        nats_per_token=ratio,
        bits_per_byte=nats / math.log(2) / size_bytes,
        documents=n,
        tokens=int(tokens),
        bytes=int(size_bytes),
        stderr_nats_per_token=stderr,
    )


def cut_windows(lengths: Sequence[int], sequence_length: int) -> list[Window]:
    """Windows that cover each document's tokens once, longest first.

    Windows of like length share a batch, so that little of it is padding; the order depends on
    `lengths` alone.
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
    """Score documents with a causal language model of transformers, on the model's device.

    A forward pass sees up to `batch` windows: ids and logits are `(batch, sequence)` and
    `(batch, sequence, vocabulary)`, padded on the right, where causal attention cannot see it.
    The same model, documents, batch and thread count give the same losses to the last bit.
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
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
            )
            sums = losses.view(targets.shape).double().sum(dim=1).tolist()
            for window, total in zip(group, sums, strict=True):
                nats[window.document] += total
    return [
        DocumentLoss(total, len(document.tokens), document.bytes)
        for total, document in zip(nats, documents, strict=True)
    ]


def _pad(
    documents: Sequence[Document], windows: Sequence[Window]
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Inputs and targets `(windows, longest window)` of one batch."""
    longest = max(window.stop - window.start for window in windows)
    inputs = np.zeros((len(windows), longest), dtype=np.int64)
    targets = np.full((len(windows), longest), IGNORED, dtype=np.int64)
    for row, (document, start, stop) in enumerate(windows):
        tokens = documents[document].tokens
        # The token before the first is the end-of-document id, and tokens[-1] is just that.
        inputs[row, 0] = tokens[start - 1]
        inputs[row, 1 : stop - start] = tokens[start : stop - 1]
        targets[row, : stop - start] = tokens[start:stop]
    return inputs, targets
