"""How a model computes: every setting gives the numbers that the plain model gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from perennial.config.training import TrainingSpec
from perennial.errors import InputError
from perennial.training.engine.microbatch import on_device, seed_dropout
from perennial.training.model.features import document_positions, prepare
from tests.support.small_models import small_model

END = 3
IDS = torch.tensor([[7, 8, END, 9, 10, 11, 12, END, 5, 6], [END, END, 1, 2, 4, 5, 6, 7, 8, 9]])


def _model(architecture: str = "llama", **settings: Any) -> Any:
    return small_model(architecture, **{"vocab_size": 40, "head_dim": 8} | settings)


def _spec(**settings: Any) -> TrainingSpec:
    return TrainingSpec.model_validate({"global_batch": 2, "micro_batch": 2} | settings)


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
    prepare(plain, _spec(), END)
    prepare(changed, _spec(**settings), END)
    if settings.get("compile"):
        changed.compile()
    expected, theirs = _loss_and_gradients(plain)
    found, ours = _loss_and_gradients(changed)
    assert found == pytest.approx(expected, rel=1e-5)
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-3, atol=1e-6), name


def test_the_chunked_loss_never_makes_the_logits() -> None:
    model = _model()
    prepare(model, _spec(loss="chunked"), END)
    assert model(input_ids=IDS, labels=IDS, use_cache=False).logits.shape == (2, 10, 16)


def test_an_attention_that_the_architecture_lacks_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"training\.attention: sdpa cannot be used"):
        prepare(_model("gemma2"), _spec(attention="sdpa"), END)


def test_a_head_that_is_more_than_linear_is_refused_for_the_chunked_loss() -> None:
    with pytest.raises(InputError, match="does more to its logits than a linear head"):
        prepare(_model("gemma2", final_logit_softcapping=0.1), _spec(loss="chunked"), END)


def test_a_documents_positions_begin_again_after_each_end() -> None:
    assert document_positions(IDS, END).tolist() == [
        [0, 1, 2, 0, 1, 2, 3, 4, 0, 1],
        [0, 0, 0, 1, 2, 3, 4, 5, 6, 7],
    ]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2", "qwen3", "gemma2"])
def test_with_the_document_mask_a_row_has_the_losses_of_its_documents_alone(
    architecture: str,
) -> None:
    model = _model(architecture)
    prepare(model, _spec(mask="document"), END)
    model.eval()
    row = IDS[:1]
    with torch.no_grad():
        packed = model(
            input_ids=row, position_ids=document_positions(row, END), labels=row, use_cache=False
        )
        alone = [model(row[:, a:b], use_cache=False).logits for a, b in ((0, 3), (3, 8), (8, 10))]
        causal = model(input_ids=row, labels=row, use_cache=False)
    losses = cross_entropy(torch.cat(alone, dim=1)[0, :-1], row[0, 1:])
    assert packed.loss.item() == pytest.approx(losses.item(), rel=1e-5)
    assert packed.loss.item() != pytest.approx(causal.loss.item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ["bloom", "mamba"])
def test_an_architecture_that_carries_documents_over_is_refused_for_the_document_mask(
    architecture: str,
) -> None:
    with pytest.raises(InputError, match=r"training\.mask: .* use mask: causal"):
        prepare(_model(architecture), _spec(mask="document"), END)


def test_a_loaded_model_trains_as_a_new_one_does() -> None:
    model = _model().eval()
    prepare(model, _spec(), END)
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
