"""Features of a model: attention, activation checkpointing, the loss, masks of documents."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear, linear_cross_entropy, pad

from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.config.training import TrainingSpec

_IGNORED = -100


def prepare(model: Any, spec: TrainingSpec) -> None:
    """Set the model up as the run file asks; call it before DeepSpeed divides the weights.

    Whether the architecture computes what is asked is seen from the engine: see `probe`.

    Raises:
        InputError: transformers cannot set the architecture up so.
    """
    if spec.attention is not None:
        _set_attention(model, spec.attention)
    if spec.activation_checkpointing:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    if spec.loss == "chunked":
        ChunkedLoss(model)
    _prepare_balance(model, spec)
    # A model out of a file is set to evaluate; both kinds must train alike.
    model.train()


def _set_attention(model: Any, name: str) -> None:
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as wrong:
        reason = str(wrong).partition(". ")[0]
        raise refused(
            "attention", f"{name} cannot be used ({reason})", "name another one, or none"
        ) from wrong


def refused(field: str, problem: str, remedy: str) -> InputError:
    """Return the error for a feature that the architecture cannot have."""
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


def find_padding(ids: torch.Tensor, end_of_document: int) -> torch.Tensor:
    """Return which tokens of rows `(batch, sequence)` are padding: an end right after an end.

    `perennial.corpora.packers` makes it so. No token that counts attends to padding: it comes
    behind all that its row holds, or stands where a document was erased, which no mask shows.
    """
    padding = torch.zeros_like(ids, dtype=torch.bool)
    padding[:, 1:] = (ids[:, 1:] == end_of_document) & (ids[:, :-1] == end_of_document)
    return padding


def make_labels(ids: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """Return the labels of rows `(batch, sequence)`, whose padding is not predicted.

    Rows without anything to predict keep theirs, since a mean over nothing is no number; they
    weigh nothing (see `microbatch.weigh_targets`).
    """
    labels = ids.masked_fill(padding, _IGNORED)
    nothing = (labels[:, 1:] == _IGNORED).all()
    return torch.where(nothing, ids, labels)


def model_inputs(ids: torch.Tensor, spec: TrainingSpec, end_of_document: int) -> dict[str, Any]:
    """Return the arguments of a model's forward pass over ids `(batch, sequence)`."""
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if spec.mask == "document":
        positions = document_positions(ids, end_of_document)
        inputs["position_ids"] = positions
        if spec.attention is not None and spec.attention.startswith("flash"):
            inputs |= _flash_lengths(positions)
    return inputs


def _flash_lengths(positions: torch.Tensor) -> dict[str, Any]:
    """Return where documents begin in all rows laid end to end, as flash attention wants it.

    transformers derives this from the positions by itself, in every layer, and only for a single
    row: several rows would attend across their documents.
    """
    flat = positions.reshape(-1)
    starts = torch.nonzero(flat == 0).reshape(-1)
    bounds = pad(starts, (0, 1), value=flat.numel()).to(torch.int32)
    longest = int(positions.max()) + 1
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def balance_weight(model: Any, spec: TrainingSpec) -> float:
    """Return the weight of the loss that balances a model's experts; 0 for one without any."""
    if not _has_router(model):
        return 0.0
    if spec.balance_loss is not None:
        return spec.balance_loss
    return float(model.config.get_text_config().router_aux_loss_coef)


def measure_balance(model: Any, output: Any, padding: torch.Tensor | None) -> torch.Tensor:
    """Return the loss of unevenly used experts, over the tokens that are no padding.

    Args:
        model: the model.
        output: of its forward pass, with the routers' logits.
        padding: which tokens are padding `(batch, sequence)`; None counts all.
    """
    loss = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    if padding is None or loss is None:
        balance = output.aux_loss
    else:
        config = model.config.get_text_config()
        experts = getattr(model, "num_experts", None) or config.num_experts
        chosen = getattr(model, "num_experts_per_tok", None) or config.num_experts_per_tok
        balance = loss(output.router_logits, experts, chosen, (~padding).long())
    measured: torch.Tensor = balance.to(output.loss.device)
    return measured


def _prepare_balance(model: Any, spec: TrainingSpec) -> None:
    if _has_router(model):
        # transformers would add it to the loss, where nothing could tell the two apart.
        model.router_aux_loss_coef = 0.0
    elif spec.balance_loss:
        problem = f"{type(model).__name__} has no experts that a loss could balance"
        raise refused("balance_loss", problem, "remove balance_loss")


def _has_router(model: Any) -> bool:
    # Asked for every micro batch: most models end at the first look, a signature takes long.
    if not hasattr(model.config.get_text_config(), "router_aux_loss_coef"):
        return False
    return "output_router_logits" in inspect.signature(model.forward).parameters


class ChunkedLoss:
    """transformers' loss for causal models over the head's input in place of its output.

    The head passes hidden states on, and the loss multiplies them with its weights in chunks, so
    that the logits `(tokens, vocabulary)` never exist at once. torch's own kernel does it.
    """

    def __init__(self, model: Any) -> None:
        """Let a model compute its loss so; `of` finds it again."""
        self._head = model.get_output_embeddings()
        self._full_loss = model.loss_function
        self._factor: float | None = None
        self._head.forward = _pass_on
        model.loss_function = self

    @classmethod
    def of(cls, model: Any) -> ChunkedLoss:
        """Return the loss of a model that computes it so."""
        loss: ChunkedLoss = model.loss_function
        return loss

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any
    ) -> torch.Tensor:
        """Return the mean nats per token of `labels` `(batch, sequence)`, shifted by one."""
        targets = pad(labels, (0, 1), value=_IGNORED)[:, 1:].reshape(-1)
        hidden = logits if self._factor is None else logits * self._factor
        losses = linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            self._head.weight,
            targets,
            linear_bias=self._head.bias,
            # torch adds its chunks up in the format of the hidden states: a sum of thousands of
            # tokens in bf16 is off by several percent.
            reduction="none",
            options=LinearCrossEntropyOptions(),
        )
        return losses.float().sum() / (targets != _IGNORED).sum()

    @contextmanager
    def multiplied(self, factor: float) -> Iterator[None]:
        """Compute from the hidden states times a factor."""
        self._factor = factor
        try:
            yield
        finally:
            self._factor = None

    @contextmanager
    def switched_off(self, model: Any, factor: float = 1.0) -> Iterator[None]:
        """Let the model make logits again, and its own loss, of hidden states times a factor."""
        head: Any = self._head
        head.forward = lambda hidden: linear(hidden * factor, head.weight, head.bias)
        model.loss_function = self._full_loss
        try:
            yield
        finally:
            head.forward = _pass_on
            model.loss_function = self


def _pass_on(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
