"""Conversion of the forms that tokenizers come in to the text of a tokenizer.json.

Nothing is unpickled, no code of a folder is run, and nothing is fetched.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from perennial.errors import InputError
from perennial.store.stored_json import parse_json

COMPANIONS = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "config.json",
)
"""files that belong to a vocab.json"""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_UNKNOWN, _CONTROL = 2, 3
"""types of pieces in a SentencePiece model that are special"""
_UNIGRAM, _BPE = 1, 2
"""types of SentencePiece models"""
_RANKS = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
"""the first line of a file of tiktoken"""


def read_as_json(where: str, local: Path) -> str:
    """Return a tokenizer as the text of a tokenizer.json.

    Args:
        where: the file as the user named it, for messages.
        local: a local copy; that of a vocab.json has its companions beside it.

    Raises:
        InputError: the file lacks what the conversion needs.
    """
    if local.suffix == ".gguf":
        return json.dumps(_read_gguf(local), ensure_ascii=False)
    if local.suffix != ".json":
        return _convert_model(where, local)
    content = parse_json(local.read_bytes())
    if local.name == "vocab.json" and (local.parent / "merges.txt").exists():
        return _convert_pair(where, local.parent)
    if isinstance(content, dict) and "model" not in content and "config" in content:
        return _convert_tekken(where, local)
    return json.dumps(content, ensure_ascii=False)


def _unconverted(where: str, problem: str) -> InputError:
    return InputError(
        where,
        "",
        problem,
        "where its own library loads it, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW)"
        " of transformers writes a tokenizer.json: name that",
        code="tokenizer-needs-conversion",
    )


def read_gguf_settings(local: Path) -> dict[str, bytes]:
    """Return what a GGUF file says of its tokenizer's use, as the files of a folder.

    Args:
        local: the file.
    """
    its, known = _load_gguf(local), _pieces(_read_gguf(local))
    tokens = {name: token for name in _SPECIAL if (token := getattr(its, name)) in known}
    config = tokens | {
        "add_bos_token": bool(its.add_bos_token),
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    files = {"tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2).encode()}
    if isinstance(its.chat_template, str):
        files["chat_template.jinja"] = its.chat_template.encode()
    return files


def _read_gguf(local: Path) -> Any:
    """Return the tokenizer.json of a GGUF file, without tokens that the file does not have.

    Classes of transformers add their own, such as GPT-2's end to a Llama 3.
    """
    content = parse_json(_written(_load_gguf(local).backend_tokenizer))
    known = _pieces(content)
    content["added_tokens"] = [its for its in content["added_tokens"] if its["content"] in known]
    return content


def _pieces(content: Any) -> set[str]:
    """Return the entries of a tokenizer.json besides those that were added."""
    vocabulary = content["model"]["vocab"]
    return {*vocabulary} if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}


def _load_gguf(local: Path) -> Any:
    """Return the tokenizer of a GGUF file; needs the package gguf."""
    there = local.stat()
    return _load_gguf_once(local, there.st_size, there.st_mtime_ns)


@lru_cache(maxsize=1)
def _load_gguf_once(local: Path, _size_bytes: int, _changed_ns: int) -> Any:
    """Read a file that is this size and this old: it takes seconds, and more than one asks."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        local.parent, gguf_file=local.name, local_files_only=True, trust_remote_code=False
    )


def _convert_model(where: str, local: Path) -> str:
    """Return the tokenizer.json of a SentencePiece model."""
    from tokenizers import AddedToken
    from transformers.convert_slow_tokenizer import SpmConverter, import_protobuf

    data = local.read_bytes()
    if _RANKS.match(data):
        problem = "it holds tiktoken's ranks alone, and neither its split nor its special tokens"
        raise _unconverted(where, problem)
    proto = import_protobuf().ModelProto.FromString(data)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    kind = proto.trainer_spec.model_type
    if not pieces or kind not in (_UNIGRAM, _BPE):
        raise _unconverted(where, "it is no SentencePiece model of the types unigram and bpe")
    vocabulary: Any = pieces
    if kind == _BPE:
        vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    tokenizer = SpmConverter.build_tokenizer_from_spm_proto(proto, vocabulary)
    special = [piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    return _written(tokenizer)


def _convert_tekken(where: str, local: Path) -> str:
    """Return the tokenizer.json of a tekken.json."""
    from transformers.integrations.mistral.tokenizer import MistralConverter

    try:
        return _written(MistralConverter(str(local)).converted())
    except ImportError:
        problem = "it does not name its special tokens, which the package mistral-common knows"
        raise _unconverted(where, problem) from None


def _convert_pair(where: str, folder: Path) -> str:
    """Return the tokenizer.json of a vocab.json and its merges.txt.

    As the folder's configuration says, and as GPT-2's where there is none.
    """
    from transformers import AutoTokenizer, GPT2TokenizerFast

    configured = any((folder / name).exists() for name in ("tokenizer_config.json", "config.json"))
    reader: Any = AutoTokenizer if configured else GPT2TokenizerFast
    tokenizer = reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.pre_tokenizer is None:
        raise _unconverted(where, "its folder does not say how it splits text")
    return _written(backend)


def _written(tokenizer: Any) -> str:
    text: str = tokenizer.to_str()
    return text
