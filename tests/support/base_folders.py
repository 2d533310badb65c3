"""Folders of small open models, as the families of this field lay them out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers

from tests.support.small_tokenizers import byte_level_json

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
FAMILIES = ("gpt2", "gpt_neox", "llama3", "mistral", "smollm2")
_LLAMA3_SPLIT = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
ARCHITECTURES = {
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "llama3": "llama",
    "mistral": "mistral",
    "smollm2": "llama",
}
"""model types by family"""


def write_base(folder: Path, family: str) -> Path:
    """Write the tokenizer, its configurations and config.json of a family; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[], dict[str, Any]]] = {
        "gpt2": _gpt2,
        "gpt_neox": _gpt_neox,
        "llama3": _llama3,
        "mistral": _mistral,
        "smollm2": _smollm2,
    }
    files = writers[family]()
    config = files["generation_config.json"] | {"model_type": ARCHITECTURES[family]}
    for name, content in (files | {"config.json": config}).items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        (folder / name).write_text(text)
    return folder


def _token(text: str, **settings: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": text} | plain | settings


def _specials(*tokens: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return a byte-level tokenizer.json with special tokens, and their ids."""
    content = byte_level_json(500, tokens)
    return content, {token["content"]: token["id"] for token in content["added_tokens"]}


def _pair(content: dict[str, Any]) -> dict[str, Any]:
    """Return the vocab.json and merges.txt of a tokenizer.json."""
    merges = "\n".join(" ".join(merge) for merge in content["model"]["merges"])
    return {"vocab.json": content["model"]["vocab"], "merges.txt": f"#version: 0.2\n{merges}\n"}


def _gpt2() -> dict[str, Any]:
    content, _ = _specials("<|endoftext|>")
    content["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }
    end = _token("<|endoftext|>")
    named = {"bos_token": end, "eos_token": end, "unk_token": end}
    return _pair(content) | {
        "tokenizer.json": content,
        "tokenizer_config.json": named
        | {
            "add_bos_token": False,
            "add_prefix_space": False,
            "errors": "replace",
            "model_max_length": 1024,
            "pad_token": None,
            "tokenizer_class": "GPT2Tokenizer",
        },
        "special_tokens_map.json": dict.fromkeys(named, "<|endoftext|>"),
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 0},
    }


def _gpt_neox() -> dict[str, Any]:
    content, _ = _specials("<|endoftext|>", "<|padding|>")
    content["normalizer"] = {"type": "NFC"}
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return {
        "tokenizer.json": content,
        "tokenizer_config.json": named
        | {"add_prefix_space": False, "tokenizer_class": "GPTNeoXTokenizer"},
        "special_tokens_map.json": named,
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    }


def _llama3() -> dict[str, Any]:
    begin, end, turn = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
    content, ids = _specials(begin, end, turn, "<|finetune_right_pad_id|>")
    content["model"]["ignore_merges"] = True
    split = {
        "type": "Split",
        "pattern": {"Regex": _LLAMA3_SPLIT},
        "behavior": "Isolated",
        "invert": False,
    }
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split, content["pre_tokenizer"] | {"use_regex": False}],
    }
    content["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": False,
                "use_regex": True,
            },
            _template(begin, ids[begin]),
        ],
    }
    return {
        "tokenizer.json": content,
        "tokenizer_config.json": {
            "bos_token": begin,
            "chat_template": CHAT,
            "clean_up_tokenization_spaces": True,
            "eos_token": turn,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 131072,
            "pad_token": "<|finetune_right_pad_id|>",
            "padding_side": "left",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "special_tokens_map.json": {"bos_token": begin, "eos_token": turn},
        "generation_config.json": {
            "bos_token_id": ids[begin],
            "eos_token_id": [ids[end], ids[turn]],
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.9,
        },
    }


def _template(begin: str, number: int) -> dict[str, Any]:
    special = {"SpecialToken": {"id": begin, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, {"SpecialToken": {"id": begin, "type_id": 1}}, second],
        "special_tokens": {begin: {"id": begin, "ids": [number], "tokens": [begin]}},
    }


def _mistral() -> dict[str, Any]:
    """Return a byte-fallback BPE of the kind that SentencePiece makes."""
    plain = byte_level_json(500)["model"]
    pieces = [piece.replace("\u0120", "\u2581") for piece in plain["vocab"] if piece.isascii()]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    kept = dict.fromkeys([*names, *pieces])
    vocabulary = {piece: number for number, piece in enumerate(kept)}
    merges = [
        (left, right)
        for left, right in (
            tuple(part.replace("\u0120", "\u2581") for part in merge) for merge in plain["merges"]
        )
        if {left, right, left + right} <= vocabulary.keys()
    ]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    content = json.loads(tokenizer.to_str()) | {"post_processor": _template("<s>", 1)}
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "tokenizer.json": content,
        "tokenizer_config.json": named
        | {
            "add_bos_token": True,
            "add_eos_token": False,
            "additional_special_tokens": [],
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": None,
            "padding_side": "left",
            "sp_model_kwargs": {},
            "spaces_between_special_tokens": False,
            "tokenizer_class": "LlamaTokenizer",
            "use_default_system_prompt": False,
        },
        "special_tokens_map.json": {field: _token(text) for field, text in named.items()},
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
    }


def _smollm2() -> dict[str, Any]:
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>")
    content, ids = _specials(*specials)
    byte_level = content["pre_tokenizer"] | {"add_prefix_space": False}
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
    }
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    extra = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "pad_token": "<|im_end|>"}
    return _pair(content) | {
        "tokenizer.json": content,
        "tokenizer_config.json": named
        | extra
        | {
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
            "tokenizer_class": "GPT2Tokenizer",
            "vocab_size": 49152,
        },
        "special_tokens_map.json": named | extra,
        "chat_template.jinja": CHAT,
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|im_end|>"],
        },
    }
