"""Spelling of a model's config.json that versions 4 and 5 of transformers, and servers, read alike.

Version 5 gathered what rotary position embeddings depend on in `rope_parameters`. Version 4 does
not know that field, and computes with its defaults instead, without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OWN_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "modernbert-decoder": {"rope_theta": "global_rope_theta", "local": "local_rope_theta"},
    "gemma3_text": {"local": "rope_local_base_freq"},
    "gemma3n_text": {"local": "rope_local_base_freq"},
    "olmo3": {},
}
"""names of version 4 that are not the usual ones, by model type; of those whose layers differ, the
ones that it has"""
_TYPES = ("linear", "dynamic", "yarn", "longrope", "llama3")
"""kinds of rotary embeddings that version 4 has, besides the default"""
_ORIGINAL = "original_max_position_embeddings"
_ALIKE = ("rope_theta", "partial_rotary_factor")
"""parameters that version 4 has as fields of their own; the others are its `rope_scaling`"""


def spell_for_all(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's configuration, as version 5 writes it, with the fields of version 4 too.

    A key and value cache is on, which training had no use for: a server is several times slower
    without one.

    Args:
        config: content of a config.json, or of a generation_config.json.
    """
    spelled = dict(config) | {"use_cache": True}
    if "dtype" in config:
        spelled["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    # What version 4 does not have is left out: its fields would be read before the others.
    return (_earlier_rope(config, rope) if rope else {}) | spelled


def _earlier_rope(config: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of version 4 for the parameters of rotary embeddings.

    Where each kind of layer has its own, those of full attention are the usual fields.
    """
    model_type = config.get("model_type", "")
    full = rope.get("full_attention", rope)
    kind = full.get("rope_type") if isinstance(full, dict) else None
    if kind not in ("default", *_TYPES) or (full is not rope and model_type not in _OWN_NAMES):
        return {}
    names = {name: name for name in (*_ALIKE, "local")} | _OWN_NAMES.get(model_type, {})
    fields = {names[name]: full[name] for name in _ALIKE if full.get(name) is not None}
    if kind != "default":
        scaling = {k: v for k, v in full.items() if k not in _ALIKE}
        if scaling.get(_ORIGINAL) == config.get("max_position_embeddings") and kind == "yarn":
            del scaling[_ORIGINAL]  # with it, version 4 takes the factor for 1
        fields["rope_scaling"] = scaling
    if names["local"] != "local":
        fields[names["local"]] = rope["sliding_attention"]["rope_theta"]
    return fields
