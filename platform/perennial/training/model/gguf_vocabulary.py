"""A release's tokenizer in the fields of a GGUF file, for the kinds that the format names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.corpora.tokenizer_files import CONFIG, named_token, read_vocabulary, served_tokens
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    import gguf

_WORDS = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}%s"
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
_PATTERNS = {_WORDS % "{1,3}": "llama-bpe", _WORDS % "": "qwen2"}
"""names of the format by the regular expression of a split"""
_MERGES_WHOLE = {"llama-bpe"}
"""splits whose pieces are tokens as a whole where the vocabulary has them, as `ignore_merges`"""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""types of tokens in the format"""


class NotInFormat(ValueError):
    """A part of a release that the format has no name for."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, as a GGUF file describes it.

    model: `gpt2` for a byte-level BPE, `llama` for one as SentencePiece makes it.
    split: name of the split before merges.
    tokens, types: by id, of as many rows as the model has.
    merges: of a byte-level BPE; scores: of another, the higher ones are merged first.
    """

    model: str
    split: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    special: dict[str, int]
    adds_begin: bool
    template: str


def read_vocabulary_of(folder: Path, rows: int) -> Vocabulary:
    """Return the tokenizer of a release.

    Args:
        folder: of the release.
        rows: of the model's embedding, which may be more than the tokenizer's entries.

    Raises:
        NotInFormat: its kind or its split has no name in the format.
    """
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    content, ids = parse_json(text), read_vocabulary(text)
    model = content["model"]
    if model["type"] != "BPE":
        raise NotInFormat(f"a tokenizer of type {model['type']}")
    names = {number: token for token, number in ids.items()}
    added = {token["id"]: token["special"] for token in content["added_tokens"]}
    tokens = [names.get(number, f"[PAD{number}]") for number in range(rows)]
    is_bytes = bool(model.get("byte_fallback"))
    types = [_type(n, names, added, model, is_bytes=is_bytes) for n in range(rows)]
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    config = parse_json((folder / CONFIG).read_bytes())
    template = folder / "chat_template.jinja"
    chat = template.read_text() if template.exists() else config.get("chat_template")
    return Vocabulary(
        model="llama" if is_bytes else "gpt2",
        split="default" if is_bytes else _split_name(content),
        tokens=tokens,
        types=types,
        merges=[] if is_bytes else [" ".join(merge) for merge in merges],
        scores=_scores(content, merges, tokens) if is_bytes else [],
        special={
            name: ids[token]
            for name in ("bos", "eos", "unk", "pad")
            if (token := named_token(config, f"{name}_token")) in ids
        },
        adds_begin=bool(served_tokens(text)),
        template=chat if isinstance(chat, str) else "",
    )


def write_vocabulary(writer: gguf.GGUFWriter, its: Vocabulary, ends: list[int]) -> None:
    """Write a tokenizer's fields.

    Args:
        writer: of the file.
        its: the tokenizer.
        ends: the model's end tokens; the one that is not the tokenizer's own ends a turn.
    """
    writer.add_tokenizer_model(its.model)
    writer.add_tokenizer_pre(its.split)
    writer.add_token_list(its.tokens)
    writer.add_token_types(its.types)
    if its.merges:
        writer.add_token_merges(its.merges)
    if its.scores:
        writer.add_token_scores(its.scores)
        writer.add_add_space_prefix(True)
    eos = its.special.get("eos", ends[0] if ends else 0)
    writer.add_eos_token_id(eos)
    # A reader would take an id of GPT-2's for one that is not there.
    writer.add_bos_token_id(its.special.get("bos", eos))
    others = [end for end in ends if end != eos]
    if others:
        writer.add_eot_token_id(others[0])
    if "unk" in its.special:
        writer.add_unk_token_id(its.special["unk"])
    if "pad" in its.special:
        writer.add_pad_token_id(its.special["pad"])
    writer.add_add_bos_token(its.adds_begin)
    if its.template:
        writer.add_chat_template(its.template)


def _type(
    number: int,
    names: Mapping[int, str],
    added: Mapping[int, bool],
    model: Mapping[str, Any],
    *,
    is_bytes: bool,
) -> int:
    name = names.get(number)
    if name is None:
        return _UNUSED
    if is_bytes and name == model.get("unk_token"):
        return _UNKNOWN
    if number in added:
        return _CONTROL if added[number] else _USER_DEFINED
    is_byte = is_bytes and name.startswith("<0x") and len(name) == len("<0x00>")
    return _BYTE if is_byte else _NORMAL


def _split_name(content: Mapping[str, Any]) -> str:
    """Return the format's name of a byte-level BPE's split."""
    steps = _steps(content["pre_tokenizer"])
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise NotInFormat("a split that is not of byte-level BPE")
    if content["normalizer"] not in (None, {"type": "NFC"}):
        raise NotInFormat("a normaliser besides NFC")
    name = _name_of(steps[:-1], uses_regex=last.get("use_regex", True))
    if name is None:
        raise NotInFormat("a split of its own")
    if content["model"].get("ignore_merges") and name not in _MERGES_WHOLE:
        raise NotInFormat("ignore_merges with another split than Llama 3's")
    return name


def _name_of(before: list[dict[str, Any]], *, uses_regex: bool) -> str | None:
    if not before:
        return "gpt-2" if uses_regex else None
    first = before[0]
    if len(before) > 1:
        return None
    if first["type"] == "Digits" and first["individual_digits"] and uses_regex:
        return "smollm"
    if first["type"] == "Split" and first["behavior"] == "Isolated" and not uses_regex:
        return _PATTERNS.get(first["pattern"].get("Regex", ""))
    return None


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer.get("pretokenizers", [pre_tokenizer]))


def _scores(
    content: Mapping[str, Any], merges: list[tuple[str, ...]], tokens: list[str]
) -> list[float]:
    """Return scores by which a reader merges in the order of the merges."""
    prefixed = {"type": "Prepend", "prepend": "\u2581"}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    normalizer = content["normalizer"] or {}
    if normalizer.get("normalizers") != [prefixed, spaces] or content["pre_tokenizer"]:
        raise NotInFormat("a normaliser that is not Llama 2's")
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), rank)
    return [-float(ranks.get(token, 0)) for token in tokens]
