"""Features of a model: attention, activation checkpointing, the loss, masks of documents."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy, pad

from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.config.training import TrainingSpec

_PROBE_TOKENS = 12


def prepare(model: Any, spec: TrainingSpec, end_of_document: int) -> None:
    """Set the model up as the run file asks; call it before DeepSpeed divides the weights.

    Raises InputError when the architecture cannot do what is asked: that is found by computing a
    few tokens both ways.
    """
    if spec.mask == "document":
        _check_documents(model, end_of_document)
    if spec.attention is not None:
        _set_attention(model, spec.attention)
    if spec.activation_checkpointing:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    if spec.loss == "chunked":
        _use_chunked_loss(model)
    # A model out of a file is set to evaluate; both kinds must train alike.
    model.train()


def _set_attention(model: Any, name: str) -> None:
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as wrong:
        reason = str(wrong).partition(". ")[0]
        raise _refused(
            "attention", f"{name} cannot be used ({reason})", "name another one, or none"
        ) from wrong


def _refused(field: str, problem: str, remedy: str) -> InputError:
    return InputError("run file", f"training.{field}", problem, remedy, code="feature-unsupported")


def document_positions(ids: torch.Tensor, end_of_document: int) -> torch.Tensor:
    """Return the position of every token in its document, `(batch, sequence)`.

    A document ends after its end-of-document id.

    transformers takes positions that start again as documents that do not see each other.
    """
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    ended = torch.zeros_like(ids, dtype=torch.bool)
    ended[:, 1:] = ids[:, :-1] == end_of_document
    starts = torch.where(ended, places, torch.zeros_like(places)).cummax(dim=1).values
    return places - starts


def _check_documents(model: Any, end_of_document: int) -> None:
    """Refuse a model whose second document of a row does not come out as it does alone."""
    name = type(model).__name__
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise _refused("mask", f"{name} knows no positions", "use mask: causal")
    length = _PROBE_TOKENS // 2
    alone = (torch.arange(length)[None] + end_of_document + 1) % model.config.vocab_size
    first = alone.flip(1).clone()
    first[:, -1] = end_of_document
    row = torch.cat([first, alone], dim=1)
    model.eval()
    with torch.no_grad():
        expected = model(alone, use_cache=False).logits
        positions = document_positions(row, end_of_document)
        beside = model(row, position_ids=positions, use_cache=False).logits[:, length:]
    if not torch.allclose(expected, beside, rtol=1e-3, atol=1e-4):
        problem = f"{name} carries one document into the next"
        raise _refused("mask", problem, "use mask: causal")


def _use_chunked_loss(model: Any) -> None:
    """Let the head pass hidden states on, and the loss multiply them with its weights in chunks.

    So the logits `(tokens, vocabulary)` never exist at once. torch's own kernel does it.
    """
    ids = (torch.arange(_PROBE_TOKENS)[None] * 7 + 1) % model.config.vocab_size
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids, use_cache=False).loss.item()
    head = model.get_output_embeddings()
    head.forward = _pass_on
    model.loss_function = _ChunkedLoss(head)
    with torch.no_grad():
        chunked = model(input_ids=ids, labels=ids, use_cache=False).loss.item()
    if not math.isclose(expected, chunked, rel_tol=1e-3):
        problem = f"{type(model).__name__} does more to its logits than a linear head does"
        raise _refused("loss", problem, "use loss: full")


def _pass_on(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


class _ChunkedLoss:
    """transformers' loss for causal models over the head's input in place of its output."""

    def __init__(self, head: torch.nn.Linear) -> None:
        self._head = head

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any
    ) -> torch.Tensor:
        """Return the mean nats per token of `labels` `(batch, sequence)`, shifted by one."""
        targets = pad(labels, (0, 1), value=-100)[:, 1:]
        return linear_cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            self._head.weight,
            targets.reshape(-1),
            linear_bias=self._head.bias,
            options=LinearCrossEntropyOptions(),
        )
