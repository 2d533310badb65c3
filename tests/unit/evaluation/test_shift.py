"""What a mixture of texts costs a model, with its errors."""

from __future__ import annotations

import math
import random

import pytest

from perennial.evaluation.loss import DocumentLoss, heldout_loss
from perennial.evaluation.shift import TextCost, text_cost


def _documents(count: int, nats: float, seed: int = 0) -> list[DocumentLoss]:
    dice = random.Random(seed)
    lengths = [dice.randint(20, 200) for _ in range(count)]
    return [DocumentLoss(n * dice.gauss(nats, 0.3), n, 4 * n + dice.randint(0, 9)) for n in lengths]


def test_one_corpus_costs_its_held_out_loss() -> None:
    documents = _documents(30, 3.0)
    cost, loss = text_cost({"a": documents}, {"a": 7}), heldout_loss("a", documents)
    assert cost.nats_per_token is not None
    assert cost.nats_per_token.value == pytest.approx(loss.nats_per_token)
    assert cost.nats_per_token.stderr == pytest.approx(loss.stderr_nats_per_token)
    assert cost.bits_per_byte is not None
    assert cost.bits_per_byte.value == pytest.approx(loss.bits_per_byte)
    assert cost.tokens_per_byte is not None
    assert cost.tokens_per_byte.value == pytest.approx(loss.tokens / loss.bytes)
    assert cost.documents == 30


def test_a_mixture_costs_what_its_proportions_say_whatever_was_held_out() -> None:
    losses = {"a": _documents(40, 2.0), "b": _documents(5, 4.0, seed=1)}
    each = {name: heldout_loss(name, its).nats_per_token for name, its in losses.items()}
    cost = text_cost(losses, {"a": 300, "b": 100})
    assert cost.nats_per_token is not None
    assert cost.nats_per_token.value == pytest.approx(0.75 * each["a"] + 0.25 * each["b"])


def test_the_error_of_a_mixture_is_how_much_samples_of_it_differ() -> None:
    def value(seed: int) -> tuple[float, float]:
        losses = {"a": _documents(60, 2.0, seed), "b": _documents(25, 4.0, seed + 10_000)}
        ratio = text_cost(losses, {"a": 300, "b": 100}).nats_per_token
        assert ratio is not None
        assert ratio.stderr is not None
        return ratio.value, ratio.stderr

    drawn = [value(seed) for seed in range(300)]
    mean = math.fsum(x for x, _ in drawn) / len(drawn)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x, _ in drawn) / len(drawn))
    assert spread == pytest.approx(math.fsum(e for _, e in drawn) / len(drawn), rel=0.15)


def test_what_is_not_known_is_none() -> None:
    whole = [DocumentLoss(3.0, 2, 8), DocumentLoss(4.0, 2, 9)]
    ids = [loss._replace(bytes=0) for loss in whole]
    broken = [loss._replace(nats=math.nan) for loss in whole]
    assert text_cost({"a": ids}, {"a": 1}).bits_per_byte is None
    assert text_cost({"a": ids}, {"a": 1}).nats_per_token is not None
    lost = text_cost({"a": broken}, {"a": 1})
    assert (lost.nats_per_token, lost.bits_per_byte) == (None, None)
    assert lost.tokens_per_byte is not None
    single: TextCost = text_cost({"a": whole[:1]}, {"a": 1})
    assert single.nats_per_token == (1.5, None)
    with pytest.raises(ValueError, match="a has no held-out documents"):
        text_cost({"a": []}, {"a": 1})
