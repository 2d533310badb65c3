"""Held-out loss: every token once, and the standard error of a ratio."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from perennial.evaluation.cache import keep_losses, kept_losses
from perennial.evaluation.loss import (
    Document,
    DocumentLoss,
    HeldoutLoss,
    cut_windows,
    document_losses,
    heldout_loss,
    paired_change,
)
from perennial.store import open_store

END = 0
SEQUENCE = 16


@pytest.fixture(scope="module")
def model() -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=61,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return GPTNeoXForCausalLM(config).eval()


def document(*tokens: int) -> Document:
    return Document(
        np.array([*tokens, END], dtype=np.uint16), bytes=3 * len(tokens), domain="", before=END
    )


def random_documents(*lengths: int) -> list[Document]:
    chance = np.random.default_rng(1)
    return [document(*chance.integers(1, 61, length).tolist()) for length in lengths]


def nats_by_hand(model: GPTNeoXForCausalLM, inputs: list[int], targets: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([inputs])).logits[0]
    return -sum(
        float(torch.log_softmax(logits[i].double(), dim=-1)[target])
        for i, target in enumerate(targets)
    )


def test_every_token_is_predicted_once_from_the_end_of_the_document_before(
    model: GPTNeoXForCausalLM,
) -> None:
    [loss] = document_losses(model, [document(5, 9, 7)], SEQUENCE, batch=4)
    assert loss.nats == pytest.approx(nats_by_hand(model, [END, 5, 9, 7], [5, 9, 7, END]), rel=1e-5)
    assert (loss.tokens, loss.bytes) == (4, 9)


def test_the_first_token_is_predicted_from_the_begin_of_a_document(
    model: GPTNeoXForCausalLM,
) -> None:
    long = document(*range(5, 5 + SEQUENCE + 3))._replace(before=3)
    inputs = [3, *long.tokens[:-1].tolist()]
    tokens = long.tokens.tolist()
    expected = nats_by_hand(model, inputs[:SEQUENCE], tokens[:SEQUENCE])
    expected += nats_by_hand(model, inputs[SEQUENCE:], tokens[SEQUENCE:])
    [loss] = document_losses(model, [long], SEQUENCE, batch=4)
    assert loss.nats == pytest.approx(expected, rel=1e-5)
    assert loss.tokens == len(tokens)


def test_a_long_document_is_scored_in_windows_that_start_from_the_token_before(
    model: GPTNeoXForCausalLM,
) -> None:
    [long] = random_documents(37)
    tokens = long.tokens.tolist()
    inputs = [END, *tokens[:-1]]
    expected = sum(
        nats_by_hand(model, inputs[at : at + SEQUENCE], tokens[at : at + SEQUENCE])
        for at in (0, 16, 32)
    )
    [loss] = document_losses(model, [long], SEQUENCE, batch=2)
    assert loss.nats == pytest.approx(expected, rel=1e-5)
    assert loss.tokens == 38


def test_batching_and_padding_do_not_change_a_documents_loss(model: GPTNeoXForCausalLM) -> None:
    documents = random_documents(1, 40, 15, 16, 17, 3, 0)
    together = document_losses(model, documents, SEQUENCE, batch=5)
    alone = [document_losses(model, [each], SEQUENCE, batch=1)[0] for each in documents]
    assert [loss.tokens for loss in together] == [len(each.tokens) for each in documents]
    assert [loss.nats for loss in together] == pytest.approx([a.nats for a in alone], rel=1e-5)


def test_the_same_question_has_the_same_answer_to_the_last_bit(model: GPTNeoXForCausalLM) -> None:
    documents = random_documents(9, 30, 21)
    first = document_losses(model, documents, SEQUENCE, batch=2)
    assert document_losses(model, documents, SEQUENCE, batch=2) == first


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33])
def test_windows_cover_a_document_exactly(length: int) -> None:
    windows = sorted(cut_windows([length], SEQUENCE))
    assert [w.start for w in windows] == [0, *(w.stop for w in windows[:-1])]
    assert windows[-1].stop == length
    assert all(0 < w.stop - w.start <= SEQUENCE for w in windows)


def test_loss_is_a_ratio_of_sums_with_the_standard_error_of_a_ratio() -> None:
    losses = [DocumentLoss(10.0, 4, 8), DocumentLoss(30.0, 10, 30), DocumentLoss(8.0, 2, 2)]
    # 48 nats over 16 tokens: 3 a token. Residuals -2, 0, 2; sqrt(3 / 2 * 8) / 16.
    loss = heldout_loss("english", losses)
    assert loss.nats_per_token == 3.0
    assert loss.stderr_nats_per_token == pytest.approx(math.sqrt(12) / 16)
    assert loss.bits_per_byte == pytest.approx(48 / math.log(2) / 40)
    assert (loss.corpus, loss.documents, loss.tokens, loss.bytes) == ("english", 3, 16, 40)


def test_the_standard_error_is_that_of_repeated_sampling() -> None:
    chance = np.random.default_rng(7)
    sizes = chance.integers(5, 200, 4000)
    nats = sizes * 3.0 + chance.normal(0, 0.4, 4000) * sizes + 20.0
    population = [
        DocumentLoss(float(n), int(s), int(4 * s)) for n, s in zip(nats, sizes, strict=True)
    ]
    ratios, errors = [], []
    for _ in range(400):
        drawn = [population[i] for i in chance.integers(0, 4000, 100)]
        loss = heldout_loss("english", drawn)
        ratios.append(loss.nats_per_token)
        errors.append(loss.stderr_nats_per_token or math.nan)
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.1)


def test_one_document_has_a_loss_but_no_standard_error() -> None:
    loss = heldout_loss("english", [DocumentLoss(10.0, 4, 8)])
    assert loss.nats_per_token == 2.5
    assert loss.stderr_nats_per_token is None


def test_no_documents_is_an_error_that_names_the_corpus() -> None:
    with pytest.raises(ValueError, match="corpus english has no held-out documents"):
        heldout_loss("english", [])


def test_importing_the_room_loads_nothing_heavy() -> None:
    heavy = ("torch", "ray", "transformers", "lm_eval", "pyarrow", "mlflow", "matplotlib")
    code = f"""
import sys
import perennial.evaluation
print([name for name in {heavy!r} if name in sys.modules])
"""
    source = Path(__file__).parents[3] / "platform"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


DOMAINS = [
    DocumentLoss(30.0, 10, 40, "web"),
    DocumentLoss(50.0, 10, 40, "books"),
    DocumentLoss(20.0, 10, 40, "web"),
    DocumentLoss(9.0, 3, 12),
]


def test_domains_have_losses_of_their_own_and_a_mean_in_which_each_counts_the_same() -> None:
    loss = heldout_loss("english", DOMAINS)
    assert {name: d.nats_per_token for name, d in loss.domains.items()} == {
        "web": 2.5,
        "books": 5.0,
    }
    assert loss.macro_nats_per_token == 3.75
    assert loss.nats_per_token == pytest.approx(109 / 33)
    assert heldout_loss("english", DOMAINS[-1:]).macro_nats_per_token is None
    assert HeldoutLoss.from_dict(asdict(loss)) == loss


def test_the_standard_error_of_a_change_is_over_paired_documents() -> None:
    chance = np.random.default_rng(3)
    hard = chance.uniform(1, 9, 400)  # documents differ far more than the models do
    before = [DocumentLoss(100 * h, 100, 400) for h in hard]
    after = [
        DocumentLoss(100 * h + d, 100, 400)
        for h, d in zip(hard, chance.normal(2, 1, 400), strict=True)
    ]
    change = paired_change(after, before)
    assert change is not None
    assert change.stderr is not None
    assert change.nats_per_token == pytest.approx(0.02, abs=4 * change.stderr)
    assert change.stderr == pytest.approx(0.01 / math.sqrt(400), rel=0.15)
    unpaired = heldout_loss("english", after).stderr_nats_per_token
    assert unpaired is not None
    assert unpaired > 100 * change.stderr
    assert heldout_loss("english", after, before).stderr_of_change == change.stderr


def test_other_documents_are_not_paired() -> None:
    assert paired_change(DOMAINS, DOMAINS[1:]) is None
    assert heldout_loss("english", DOMAINS, DOMAINS[1:]).stderr_of_change is None


def test_losses_of_documents_come_back_as_they_were_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep_losses(store, "checkpoints/00-english/00000060", "english", DOMAINS)
    assert kept_losses(store, "checkpoints/00-english/00000060", "english") == DOMAINS
    assert kept_losses(store, "checkpoints/00-english/00000060", "french") is None
