"""A release as one GGUF file, which llama.cpp and the programs around it read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.errors import InputError
from perennial.store.stored_json import parse_json
from perennial.training.model.gguf_vocabulary import (
    NotInFormat,
    read_vocabulary_of,
    write_vocabulary,
)
from perennial.training.model.shards import tensor_files

if TYPE_CHECKING:
    import gguf
    import numpy as np
    import numpy.typing as npt
    import torch

    Array = npt.NDArray[np.generic]
    Weight = Callable[[], Array]


@dataclass(frozen=True)
class GgufLayout:
    """Layout of a model type in the format.

    architecture: its name there.
    describe: writes its sizes.
    arrange: puts a tensor into the order of the format, by its name.
    tied: the embedding's name where the format wants the head written even if they are one.
    """

    architecture: str
    describe: Callable[[gguf.GGUFWriter, Any], None]
    arrange: Callable[[str, torch.Tensor, Any], torch.Tensor]
    tied: str = ""


def write_gguf(folder: Path, file: Path, name: str) -> None:
    """Write a release as a GGUF file, tensor by tensor.

    Matrices keep their precision, vectors have 32 bits.

    Args:
        folder: of the release, on this machine.
        file: to write.
        name: of the model in the file.

    Raises:
        InputError: the format has no name for the architecture, or for a part of it.
    """
    import gguf
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    kind = _KINDS.get(config.model_type)
    if kind is None:
        raise _refused(f"models of type {config.model_type}")
    try:
        _check(config)
        vocabulary = read_vocabulary_of(folder, config.vocab_size)
    except NotInFormat as lacking:
        raise _refused(str(lacking)) from None
    architecture = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == kind.architecture)
    writer = gguf.GGUFWriter(file, kind.architecture)
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    kind.describe(writer, config)
    generation = folder / "generation_config.json"
    described = parse_json(generation.read_bytes()) if generation.exists() else {}
    ends = described.get("eos_token_id", config.eos_token_id)
    ends = ends if isinstance(ends, list) else [ends]
    write_vocabulary(writer, vocabulary, [end for end in ends if end is not None])
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    weights = dict(_weights(folder, config, kind, names))
    types = {key: _add_info(writer, key, weight()) for key, weight in weights.items()}
    writer.add_file_type(_file_type(set(types.values())))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for weight in weights.values():
        writer.write_tensor_data(weight())
    writer.close()


def _refused(lacking: str) -> InputError:
    return InputError(
        "command line",
        "--format",
        f"gguf has no name for {lacking}",
        f"release it as safetensors; gguf takes {', '.join(sorted(_KINDS))}",
        code="format-lacks-model",
    )


def _check(config: Any) -> None:
    """Raise NotInFormat for what a reader would leave out without a word."""
    act = getattr(config, "hidden_act", None) or config.activation_function
    if act not in _ACTIVATIONS[config.model_type]:
        raise NotInFormat(f"the activation {act}")
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or []
    slides = "sliding_attention" in layers or config.model_type == "mistral"
    if window is not None and slides and window < config.max_position_embeddings:
        raise NotInFormat("attention in a sliding window")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope and rope.get("rope_type", "default") not in ("default", "linear", "llama3"):
        raise NotInFormat(f"rotary embeddings of type {rope['rope_type']}")
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise NotInFormat("attention that is scaled by layer")


def _weights(
    folder: Path, config: Any, kind: GgufLayout, names: Any
) -> Iterator[tuple[str, Weight]]:
    """Yield every tensor's name in the format, and what reads it."""
    for file in tensor_files(folder):
        for key in _keys(file):
            if key.endswith(_LEFT_OUT):
                continue
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise _refused(f"the tensor {key}")
            yield name, _reader(file, key, config, kind)
            if key == kind.tied and config.tie_word_embeddings:
                yield "output.weight", _reader(file, key, config, kind)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", lambda: _llama3_factors(config)


def _keys(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        return list(stored.keys())


def _reader(file: Path, key: str, config: Any, kind: GgufLayout) -> Weight:
    def read() -> Array:
        import gguf
        import torch
        from safetensors import safe_open

        with safe_open(file, framework="pt") as stored:
            tensor = kind.arrange(key, stored.get_tensor(key), config).contiguous()
        if tensor.ndim == 1 or tensor.dtype == torch.float32:
            return tensor.float().numpy()
        if tensor.dtype == torch.float16:
            return tensor.numpy()
        halves = gguf.GGMLQuantizationType.BF16
        rounded: Array = gguf.quants.quantize(tensor.float().numpy(), halves)
        return rounded

    return read


def _add_info(writer: gguf.GGUFWriter, name: str, data: Array) -> str:
    """Announce a tensor; return its type's name."""
    import gguf

    kind = {"uint8": "BF16", "float16": "F16", "float32": "F32"}[str(data.dtype)]
    raw = gguf.GGMLQuantizationType[kind]
    writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, raw_dtype=raw)
    return kind if data.ndim > 1 else ""


def _file_type(types: set[str]) -> int:
    import gguf

    of = gguf.LlamaFileType
    if "BF16" in types:
        return int(of.MOSTLY_BF16)
    return int(of.MOSTLY_F16 if "F16" in types else of.ALL_F32)


def _describe_llama(writer: gguf.GGUFWriter, config: Any) -> None:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _describe_rope(writer, config, size)


def _describe_rope(writer: gguf.GGUFWriter, config: Any, size: int) -> None:
    import gguf

    rope = config.rope_parameters
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _describe_gpt_neox(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    _describe_rope(writer, config, config.hidden_size // config.num_attention_heads)


def _describe_gpt2(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _pair_rows(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Put rows that are rotated together side by side: half a head apart they are in our models."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in heads if f".{part}." in name), None)
    if count is None:
        return tensor
    rows = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
    return rows.swapaxes(1, 2).reshape(tensor.shape)


def _part_heads(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Put all queries before all keys and values, which lie head by head in our models."""
    if ".query_key_value." not in name:
        return tensor
    parts = tensor.reshape(config.num_attention_heads, 3, -1, *tensor.shape[1:])
    return parts.swapaxes(0, 1).reshape(tensor.shape)


def _turn(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Turn the matrices of GPT-2's blocks, which are stored by column."""
    turned = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    return tensor.t() if name.endswith(turned) else tensor


def _as_it_is(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    return tensor


def _llama3_factors(config: Any) -> Array:
    """Return by what Llama 3's scaling divides each frequency."""
    import numpy as np
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope: Mapping[str, float] = config.rope_parameters
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(scaled)
    plain = 1.0 / rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    factors: Array = (plain / scaled.double().numpy()).astype(np.float32)
    return factors


_LEFT_OUT = (".attention.bias", ".attention.masked_bias", ".attn.bias", ".attn.masked_bias",
             ".rotary_emb.inv_freq")  # fmt: skip
"""constants that older checkpoints hold"""
_ACTIVATIONS = {
    "llama": ("silu",),
    "mistral": ("silu",),
    "qwen2": ("silu",),
    "gpt_neox": ("gelu", "gelu_new", "gelu_fast"),
    "gpt2": ("gelu", "gelu_new"),
}
_KINDS = {
    "llama": GgufLayout("llama", _describe_llama, _pair_rows),
    "mistral": GgufLayout("llama", _describe_llama, _pair_rows),
    "qwen2": GgufLayout("qwen2", _describe_llama, _as_it_is),
    "gpt_neox": GgufLayout("gptneox", _describe_gpt_neox, _part_heads, "gpt_neox.embed_in.weight"),
    "gpt2": GgufLayout("gpt2", _describe_gpt2, _turn),
}
"""by model type of transformers"""
