"""A model's folder as transformers loads it, written while the model trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perennial.training.checkpoint.tensors import write_tensors

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def write_model_folder(module: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write `folder` with these weights, or write them over those that are there.

    weights: whole tensors by the module's names; a shared one once. They may be live, and views of
    one buffer, as ZeRO's are: transformers' own `save_pretrained` would take those for tied weights
    and copy them. It writes what belongs beside the weights.
    """
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.utils import SAFE_WEIGHTS_NAME

    if not folder.exists():
        module.save_pretrained(folder, state_dict={})
    stored = revert_weight_conversion(module, dict(weights))
    write_tensors(stored, folder / SAFE_WEIGHTS_NAME)
