"""Comparison of what the engine computes with what the run file asks of it.

An architecture is free to ignore positions or to do more to its logits than a linear head does, and
kernels differ by device and number format. So a few tokens are computed both ways by the engine
that will train: with its precision, its attention, its micro batch and its device.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from perennial.training.model.features import ChunkedLoss, model_inputs, refused

if TYPE_CHECKING:
    from perennial.config.training import TrainingSpec

_DOCUMENT_TOKENS = 6
_LOGITS_SPREAD = 30.0
"""standard deviation of the logits in the probe of the chunked loss: a cap on them, which a new
model is far below, shows there"""
_TOLERANCE = {torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 2e-2


def probe_features(engine: Any, spec: TrainingSpec, end_of_document: int) -> None:
    """Refuse an architecture that does not compute what the run file asks. A collective.

    Raises:
        InputError: it carries documents over into the next, or its loss cannot be chunked.
    """
    if spec.mask != "document" and spec.loss != "chunked":
        return
    engine.eval()
    with torch.no_grad():
        if spec.mask == "document":
            _probe_documents(engine, spec, end_of_document)
        if spec.loss == "chunked":
            _probe_chunked_loss(engine, spec)
    engine.train()


def _probe_documents(engine: Any, spec: TrainingSpec, end_of_document: int) -> None:
    """Refuse a model whose second document of a row does not come out as it does alone."""
    name = type(engine.module).__name__
    if "position_ids" not in inspect.signature(engine.module.forward).parameters:
        raise refused("mask", f"{name} knows no positions", "use mask: causal")
    alone = _tokens(engine, spec, _DOCUMENT_TOKENS, apart_from=end_of_document)
    first = alone.flip(1).clone()
    first[:, -1] = end_of_document
    rows = torch.cat([first, alone], dim=1)
    expected = engine(input_ids=alone, use_cache=False).logits.float()
    causal = engine(input_ids=rows, use_cache=False).logits[:, _DOCUMENT_TOKENS:].float()
    packed = engine(**model_inputs(rows, spec, end_of_document)).logits[:, _DOCUMENT_TOKENS:]
    error = (packed.float() - expected).norm()
    # What rounding does is allowed; what the document before does is not.
    if error > _tolerance(engine) * expected.norm() and error > (causal - expected).norm() / 4:
        problem = f"{name} carries one document into the next"
        if spec.attention is not None:
            problem += f" with attention {spec.attention}"
        raise refused("mask", problem, "use mask: causal, or another attention")


def _probe_chunked_loss(engine: Any, spec: TrainingSpec) -> None:
    """Refuse a model whose loss is not that of a linear head."""
    model = engine.module
    loss = ChunkedLoss.of(model)
    ids = _tokens(engine, spec, 2 * _DOCUMENT_TOKENS)
    inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
    with loss.switched_off(model):
        factor = _LOGITS_SPREAD / float(engine(**inputs).logits.float().std())
    with loss.switched_off(model, factor):
        expected = float(engine(**inputs).loss)
    with loss.multiplied(factor):
        chunked = float(engine(**inputs).loss)
    if not abs(chunked - expected) <= _tolerance(engine) * abs(expected):
        problem = f"{type(model).__name__} does more to its logits than a linear head does"
        raise refused("loss", problem, "use loss: full")


def _tokens(
    engine: Any, spec: TrainingSpec, length: int, apart_from: int | None = None
) -> torch.Tensor:
    """Return ids `(micro_batch, length)` of the model's vocabulary, the same on every rank."""
    vocabulary = engine.module.config.get_text_config().vocab_size
    ids = torch.arange(spec.micro_batch * length).reshape(-1, length) * 7 + 1
    ids = ids % vocabulary
    if apart_from is not None:
        ids = torch.where(ids == apart_from, (ids + 1) % vocabulary, ids)
    return ids.to(engine.device)


def _tolerance(engine: Any) -> float:
    dtype = next(engine.module.parameters()).dtype
    return _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE)
