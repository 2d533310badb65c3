"""Inheritune's initialisation: the first blocks of a reference model (arXiv 2404.08634, section 2).

As the paper says it, the token embeddings, the first n blocks, the final norm and the head are the
reference's; the paper's released code leaves the embeddings and the norm random.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.errors import InputError
from perennial.training.model.shards import INDEX, index_text

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from perennial.training.model.stored import ModelFiles


def shortened(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """Return the configuration with the first `layers` blocks; lists with an entry per block too.

    Raises InputError for more layers than there are.
    """
    depth = config.num_hidden_layers
    if layers > depth:
        raise InputError(
            "run file",
            "model.inherit_layers",
            f"{layers} layers, but the reference model has {depth}",
            f"use at most {depth}",
            code="layers-unavailable",
        )
    fields = copy.deepcopy(config.to_dict())
    for name, value in fields.items():
        if isinstance(value, list) and len(value) == depth and "layer" in name:
            fields[name] = value[:layers]
    depth_field = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    try:
        return type(config).from_dict(fields | {depth_field: layers})
    except (TypeError, ValueError) as wrong:
        raise _refused(config, str(wrong)) from None


def cut_tensors(files: ModelFiles, config: PretrainedConfig, folder: Path) -> bool:
    """Write the tensors of a stored model's first blocks, file by file, into a folder.

    At most one file's tensors are held at a time.

    Args:
        files: the model's; its tensors are on this machine.
        config: of the shortened model.
        folder: for the files, their index and nothing else.

    Returns:
        Whether the files have all weights of the shortened model by its own names; otherwise
        transformers has to translate them, with the whole model in memory.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        heir = AutoModelForCausalLM.from_config(config)
    wanted = set(heir.state_dict())
    needed = {name for name, _ in heir.named_parameters()}
    written: dict[str, dict[str, int]] = {}
    for file in files.tensors:
        with safe_open(files.folder / file, framework="pt") as stored:
            tensors = {
                name: stored.get_tensor(name)
                for name in stored.keys()  # noqa: SIM118, a handle is no mapping
                if name in wanted
            }
        if tensors:
            save_file(tensors, folder / file, metadata={"format": "pt"})
            written[file] = {name: tensor.nbytes for name, tensor in tensors.items()}
    if len(files.tensors) > 1:
        (folder / INDEX).write_text(index_text(written))
    return needed <= set().union(*written.values())


def inherit(reference: Any, layers: int) -> Any:
    """Return a model of the reference's first `layers` blocks, with all of its other weights.

    The output of its block k is the reference's output of block k. Raises InputError for a model
    whose blocks are not one list.
    """
    return _heir(reference, layers, _first_weights(reference, layers))


def extend(child: Any, reference: Any, layers: int) -> Any:
    """Return a model of the child's blocks and the reference's next ones, `layers` in all.

    Embeddings, final norm and head are the child's.

    Args:
        child: a model of the reference's first blocks, whatever it was trained on since.
        reference: the model of all blocks.
        layers: blocks of the new model, more than the child's.

    Raises:
        InputError: the blocks of the model are not one list.
    """
    return _heir(reference, layers, _first_weights(reference, layers) | child.state_dict())


def _first_weights(reference: Any, layers: int) -> dict[str, Any]:
    """Return a model's weights but those of the blocks behind its first `layers`."""
    blocks = _blocks(reference, reference.config.num_hidden_layers)
    of_block = re.compile(rf"{re.escape(blocks)}\.(\d+)\.")
    return {
        name: tensor
        for name, tensor in reference.state_dict().items()
        if not (block := of_block.match(name)) or int(block[1]) < layers
    }


def _heir(reference: Any, layers: int, weights: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    heir = AutoModelForCausalLM.from_config(
        shortened(reference.config, layers), dtype=reference.dtype
    )
    try:
        heir.load_state_dict(weights, strict=True)
    except RuntimeError as wrong:
        raise _refused(reference.config, " ".join(str(wrong).split())[:200]) from None
    heir.generation_config = reference.generation_config
    return heir


def _blocks(model: Any, depth: int) -> str:
    """Return the name of the list of blocks."""
    from torch.nn import ModuleList

    lists: list[str] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, ModuleList) and len(module) == depth
    ]
    if not lists:
        raise _refused(model.config, f"no list of {depth} blocks")
    return min(lists, key=lambda name: name.count("."))  # not the experts inside a block


def _refused(config: PretrainedConfig, problem: str) -> InputError:
    return InputError(
        "run file",
        "model.inherit_layers",
        f"a {config.model_type} model cannot be cut to its first blocks ({problem})",
        "leave inherit_layers out to start from the whole model",
        code="layers-unavailable",
    )
