"""How a model computes: every setting gives the numbers that the plain model gives."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from perennial.errors import InputError
from perennial.training.engine.engine import loss_of
from perennial.training.engine.microbatch import on_device, seed_dropout
from perennial.training.model.features import document_positions, prepare
from tests.support.engines import END_OF_DOCUMENT as END
from tests.support.engines import PlainModel, engine_of_one, one_step, training_spec
from tests.support.flash_stand_in import FlashCalls, flash_stand_ins
from tests.support.small_models import small_model

IDS = torch.tensor([[7, 8, END, 9, 10, 11, 12, END, 5, 6], [END, END, 1, 2, 4, 5, 6, 7, 8, 9]])


def _model(architecture: str = "llama", **settings: Any) -> Any:
    return small_model(architecture, **{"vocab_size": 40, "head_dim": 8} | settings)


@pytest.fixture
def flash() -> Iterator[FlashCalls]:
    with flash_stand_ins() as calls:
        yield calls


def _loss_and_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "chunked"},
        {"activation_checkpointing": True},
        {"attention": "eager"},
        pytest.param(
            {"compile": True},
            marks=[
                pytest.mark.long,
                # torch's own tracing looks at .grad of tensors that have none.
                pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_a_setting_changes_neither_the_loss_nor_the_gradients(
    architecture: str, settings: dict[str, Any]
) -> None:
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    extra = quiet if architecture == "gpt2" else {}
    plain, changed = _model(architecture, **extra), _model(architecture, **extra)
    prepare(plain, training_spec())
    prepare(changed, training_spec(**settings))
    if settings.get("compile"):
        changed.compile()
    expected, theirs = _loss_and_gradients(plain)
    found, ours = _loss_and_gradients(changed)
    assert found == pytest.approx(expected, rel=1e-5)
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-3, atol=1e-6), name


def test_the_chunked_loss_never_makes_the_logits() -> None:
    model = _model()
    prepare(model, training_spec(loss="chunked"))
    assert model(input_ids=IDS, labels=IDS, use_cache=False).logits.shape == (2, 10, 16)


def test_an_attention_that_the_architecture_lacks_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"training\.attention: sdpa cannot be used"):
        prepare(_model("gemma2"), training_spec(attention="sdpa"))


@pytest.mark.parametrize("cap", [0.1, 30.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_head_that_is_more_than_linear_is_refused_for_the_chunked_loss(
    group_of_one: None, precision: str, cap: float
) -> None:
    """A cap of 30 changes nothing in a new model, whose logits are small."""
    model = _model("gemma2", final_logit_softcapping=cap)
    with pytest.raises(InputError, match="does more to its logits than a linear head"):
        engine_of_one(model, training_spec(loss="chunked", precision=precision))


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_the_chunked_loss_in_bf16_is_the_full_one(group_of_one: None, architecture: str) -> None:
    ids = torch.randint(0, 8192, (8, 32), generator=torch.Generator().manual_seed(3))
    losses = {}
    for loss in ("full", "chunked"):
        spec = training_spec(loss=loss, precision="bf16")
        engine = engine_of_one(_model(architecture, vocab_size=8192, hidden_size=64), spec)
        losses[loss] = loss_of(engine, ids, spec, END)
    assert losses["chunked"].dtype == torch.float32
    assert losses["chunked"].item() == pytest.approx(losses["full"].item(), rel=1e-3)


def test_a_documents_positions_begin_again_after_each_end() -> None:
    assert document_positions(IDS, END).tolist() == [
        [0, 1, 2, 0, 1, 2, 3, 4, 0, 1],
        [0, 0, 0, 1, 2, 3, 4, 5, 6, 7],
    ]


ATTENTION = ["sdpa", "eager", "flash_attention_2", "flash_attention_3"]


@pytest.mark.parametrize("attention", [None, *ATTENTION])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2", "qwen3", "gemma2"])
def test_with_the_document_mask_rows_have_the_losses_of_their_documents_alone(
    flash: FlashCalls, architecture: str, attention: str | None
) -> None:
    """For every implementation, and more than one row; flash attention by stand-ins."""
    model = _model(architecture, final_logit_softcapping=None) if architecture == "gemma2" else None
    model = model or _model(architecture)
    if architecture == "gemma2" and attention == "sdpa":
        pytest.skip("transformers has no sdpa for it")
    model.double()  # flash attention takes no fp32
    spec = training_spec(mask="document", attention=attention)
    prepare(model, spec)
    model.eval()
    with torch.no_grad():
        packed = loss_of(PlainModel(model), IDS, spec, END)
        of_packed = (flash.varlen, flash.dense)
        documents = [IDS[:1, a:b] for a, b in ((0, 3), (3, 8), (8, 10))]
        documents += [IDS[1:, a:b] for a, b in ((0, 1), (1, 2), (2, 10))]
        alone = [model(document, use_cache=False).logits[0] for document in documents]
        causal = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    rows = torch.cat(alone[:3])[:-1], torch.cat(alone[3:])[:-1]
    losses = cross_entropy(torch.cat(rows), IDS[:, 1:].reshape(-1))
    assert packed.item() == pytest.approx(losses.item(), rel=1e-5)
    assert packed.item() != pytest.approx(causal.item(), rel=1e-5)
    if str(attention).startswith("flash"):
        assert of_packed == (2, 0), "one call for each layer, over pieces"


@pytest.mark.parametrize("attention", [None, "flash_attention_2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["bloom", "mamba", "llama"])
def test_an_architecture_that_carries_documents_over_is_refused_for_the_document_mask(
    group_of_one: None,
    flash: FlashCalls,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    precision: str,
    attention: str | None,
) -> None:
    """llama does, where a kernel is called with no lengths: the probe uses the run's attention."""
    if architecture == "llama":
        if attention is None:
            pytest.skip("it does not")
        monkeypatch.setattr("perennial.training.model.features._flash_lengths", lambda _: {})
    elif attention is not None:
        pytest.skip("it has none")
    spec = training_spec(mask="document", attention=attention, precision=precision)
    with pytest.raises(InputError, match=r"training\.mask: .* use mask: causal"):
        engine_of_one(_model(architecture), spec)


FEATURES: dict[str, dict[str, Any]] = {
    "chunked": {"loss": "chunked"},
    "documents": {"mask": "document"},
    "flash": {"attention": "flash_attention_2"},
    "recomputed": {"activation_checkpointing": True},
    "zero-0": {"zero_stage": 0},
    "zero-2": {"zero_stage": 2},
    "zero-3": {"zero_stage": 3},
}
TRIPLES = [
    ("chunked", "documents", "flash"),
    ("documents", "flash", "recomputed"),
    ("chunked", "recomputed", "zero-3"),
]
"""all that GPUs are used for at once; recomputing a layer with its lengths; the head's weights read
by a loss while blocks are gathered and dropped twice"""


@pytest.mark.parametrize(
    "names",
    [
        *(
            pair
            for pair in combinations(FEATURES, 2)
            if not all(name.startswith("zero") for name in pair)
        ),
        *TRIPLES,
    ],
    ids="+".join,
)
def test_features_together_in_bf16_have_the_loss_and_the_step_of_the_plain_model(
    group_of_one: None, flash: FlashCalls, names: tuple[str, ...]
) -> None:
    """The plain model has the same mask, which is no setting of how, but of what is computed."""
    merged: dict[str, Any] = {"precision": "bf16"}
    for name in names:
        merged |= FEATURES[name]
    mask = {"mask": merged.get("mask", "causal")}
    expected, step = one_step(_model(), IDS, mask)
    loss, ours = one_step(_model(), IDS, merged)
    assert loss == pytest.approx(expected, rel=5e-3)
    assert (ours - step).norm() < 0.02 * step.norm()


def test_a_loaded_model_trains_as_a_new_one_does() -> None:
    model = _model().eval()
    prepare(model, training_spec())
    assert model.training


def test_dropout_depends_on_seed_step_and_rank_alone() -> None:
    def drawn(*state: int) -> list[float]:
        seed_dropout(*state)
        numbers: list[float] = torch.rand(3).tolist()
        return numbers

    assert drawn(1, 5, 0) == drawn(1, 5, 0)
    assert (
        len({tuple(drawn(*state)) for state in ((1, 5, 0), (1, 5, 1), (1, 6, 0), (2, 5, 0))}) == 4
    )


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_parts_arrive_on_the_device_whole_and_in_order(count: int) -> None:
    parts = [np.arange(6, dtype=np.int64).reshape(2, 3) + 10 * n for n in range(count)]
    arrived = list(on_device(iter(parts), torch.device("cpu")))
    assert [each.tolist() for each in arrived] == [part.tolist() for part in parts]
