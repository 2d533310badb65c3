"""Stand-ins for flash attention's kernels, which need a GPU: the same function in plain torch.

They stand behind transformers' own dispatch, so what is tested is which kernel it calls with what.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention


class FlashCalls:
    """Numbers of calls to the kernels: `dense` over whole rows, `varlen` over pieces of one row."""

    def __init__(self) -> None:
        self.dense = 0
        self.varlen = 0

    def run_dense(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """Return causal attention of `(batch, sequence, heads, size)`."""
        self.dense += 1
        return _attend(q, k, v, options.get("softmax_scale"))

    def run_varlen(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        cu_seqlens_q: torch.Tensor,
        **options: Any,
    ) -> torch.Tensor:
        """Return causal attention inside each piece of `(tokens, heads, size)`."""
        self.varlen += 1
        assert cu_seqlens_q.dtype == torch.int32
        assert isinstance(options["max_seqlen_q"], int), (
            "a tensor would be waited for in each layer"
        )
        bounds = cu_seqlens_q.tolist()
        assert options["max_seqlen_q"] == max(b - a for a, b in pairwise(bounds))
        pieces = [
            _attend(q[None, a:b], k[None, a:b], v[None, a:b], options.get("softmax_scale"))[0]
            for a, b in pairwise(bounds)
        ]
        return torch.cat(pieces)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


@contextmanager
def flash_stand_ins() -> Iterator[FlashCalls]:
    """Let transformers find the stand-ins where flash-attn would be installed."""
    from transformers import modeling_flash_attention_utils as dispatch
    from transformers.modeling_utils import PreTrainedModel

    calls = FlashCalls()

    def import_kernels(*_: Any, **__: Any) -> Any:
        def select(**options: Any) -> dict[str, Any]:
            return {key: options.get(key) for key in ("softmax_scale", "max_seqlen_q")}

        return (calls.run_dense, calls.run_varlen, None, None, None), (select, None)

    def set_implementation(model: Any, name: str) -> None:
        model.config._attn_implementation = name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "lazy_import_flash_attention", import_kernels)
        # transformers' own asks for the package first.
        patch.setattr(PreTrainedModel, "set_attn_implementation", set_implementation)
        yield calls
