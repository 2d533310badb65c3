"""Building the language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from perennial.spec.run import ModelSpec


def model_config(
    spec: ModelSpec, vocabulary: int, end_of_document: int, sequence_length: int
) -> PretrainedConfig:
    """The transformers configuration; vocabulary, special ids and positions follow the run.

    Raises InputError for an unknown architecture or field, before any compute.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    known = {config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    if spec.architecture not in known:
        raise InputError(
            "run file",
            "model.architecture",
            f"{spec.architecture!r} is not a causal language model of transformers",
            "give a model type such as gpt_neox or llama",
        )
    config_class = CONFIG_MAPPING[spec.architecture]
    defaults = config_class()
    for name in spec.config:
        if not hasattr(defaults, name):
            raise InputError(
                "run file",
                f"model.config.{name}",
                f"{config_class.__name__} has no such field",
                "see that class's documentation in transformers",
            )
    settings: dict[str, Any] = {
        "max_position_embeddings": sequence_length,
        "bos_token_id": end_of_document,
        "eos_token_id": end_of_document,
        "use_cache": False,
    }
    try:
        return config_class(**settings | spec.config | {"vocab_size": vocabulary})
    except (TypeError, ValueError) as wrong:
        raise InputError(
            "run file", "model.config", str(wrong).splitlines()[0], "correct the field"
        ) from None


def random_model(config: PretrainedConfig, seed: int) -> Any:
    """A model with the architecture's own initialisation, the same on every worker."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def stored_model(folder: Path) -> Any:
    """The model in a local checkpoint folder, in float32; nothing is unpickled."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
