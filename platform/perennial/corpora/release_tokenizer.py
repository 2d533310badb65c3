"""Files of a release's tokenizer: the base's own, in which only what the run changed is changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from perennial.corpora.tokenizer import RunTokenizer
from perennial.corpora.tokenizer_files import (
    CONFIG,
    SPECIALS,
    named_token,
    read_vocabulary,
    served_tokens,
)
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

_TOKENIZER = "tokenizer.json"
_ANYONES_CLASS = "PreTrainedTokenizerFast"
"""reads any tokenizer.json, in versions 4 and 5 of transformers"""
_NEW_CLASS = "TokenizersBackend"
"""its name in version 5 alone"""
_PROBE = "It's  a\tprobe of 10,000 words:\n\n caf\u00e9, na\u00efve \u4e2d\u6587 \U0001f642."
_OTHER_FORMS = (_TOKENIZER, "vocab.json", "merges.txt", "tokenizer.model", "tekken.json")
"""files of a base in which its vocabulary is"""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_SETTINGS = (
    "padding_side",
    "truncation_side",
    "model_input_names",
    "clean_up_tokenization_spaces",
)
_COMPARED_BY_IDS = ("vocab", "merges", "unk_token", "dropout")


def release_files(
    tokenizer: RunTokenizer,
    base: Mapping[str, bytes] = MappingProxyType({}),
    end_of_document: str | None = None,
    begin_of_document: str | None = None,
) -> dict[str, bytes]:
    """Return the files of a tokenizer that puts before a text what stood there in training.

    Args:
        tokenizer: the run's.
        base: its own files as they were imported; {} for a trained one, and in stores of before
            0.2.
        end_of_document: the token as the run file names it; None keeps the base's end.
        begin_of_document: likewise, "" for none.
    """
    its = tokenizer.manifest
    files = dict(base)
    if its.ancestors:
        # tokenizer.json alone has the entries that the run added.
        files = {name: data for name, data in files.items() if name not in _OTHER_FORMS}
    text = _with_template(tokenizer, files)
    is_changed = text is not None
    if text is not None or _TOKENIZER not in files:
        files[_TOKENIZER] = (text or tokenizer.json).encode()
    config, specials = (parse_json(files.get(name, b"{}")) for name in (CONFIG, SPECIALS))
    vocabulary = read_vocabulary(tokenizer.json)
    ends = [named_token(its_own, "eos_token") for its_own in (config, specials)]
    changes: dict[str, Any] = {}
    if end_of_document is not None or not any(end in vocabulary for end in ends):
        changes["eos_token"] = its.end_of_document_text
    if begin_of_document:
        changes["bos_token"] = begin_of_document
    written = _written_for_all(config, is_new=CONFIG not in files)
    if CONFIG not in files:
        standing = its.begin_of_document_text or its.end_of_document_text
        written |= {"bos_token": standing} | specials
    written |= _in_their_form(written, changes)
    has_begin = its.begin_of_document is not None
    if is_changed or written.get("add_bos_token", has_begin) != has_begin:
        written["add_bos_token"] = has_begin
    _replace(files, CONFIG, config, written)
    if SPECIALS in files:
        _replace(files, SPECIALS, specials, specials | _in_their_form(specials, changes))
    return files


def settle_class(folder: Path) -> None:
    """Name a class that reads the folder's tokenizer.json as it is, where its own does not.

    Some classes of transformers 5 make their own split, normaliser and template, and read files
    of other models that name them, such as GPT-2's class for a tokenizer that splits digits, as
    another tokenizer. What such a class would have set is then written down.

    Args:
        folder: a release with its config.json, which the choice of a class depends on.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    own = Tokenizer.from_file(str(folder / _TOKENIZER))
    settled: dict[str, Any] = {"tokenizer_class": _ANYONES_CLASS}
    file = folder / CONFIG
    config = parse_json(file.read_bytes())
    try:
        its = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:
        # Of any kind: a class reads files that are not there, or needs a package.
        file.write_text(json.dumps(config | settled, indent=2))
        return
    if _reads_alike(its.backend_tokenizer, own):
        return
    vocabulary = own.get_vocab(with_added_tokens=True)
    for name in _SPECIAL:
        if not named_token(config, name) and getattr(its, name) in vocabulary:
            settled[name] = getattr(its, name)
    unsaid = {name: getattr(its, name) for name in _SETTINGS if name not in config}
    file.write_text(json.dumps(config | unsaid | settled, indent=2))


def _reads_alike(loaded: Tokenizer, own: Tokenizer) -> bool:
    """Return whether two tokenizers of one vocabulary give the same ids."""
    if any(loaded.encode(text).ids != own.encode(text).ids for text in ("", _PROBE)):
        return False
    ours, theirs = (_what_decides(parse_json(read.to_str())) for read in (own, loaded))
    return bool(ours == theirs)


def _what_decides(content: Any) -> Any:
    """Return what ids depend on besides the vocabulary and the template."""
    if isinstance(content, dict) and "model" in content:
        own = content["model"].items()
        model = {k: v for k, v in own if v and k not in _COMPARED_BY_IDS}  # "" and none are one
        return [_what_decides(content[part]) for part in ("normalizer", "pre_tokenizer")] + [model]
    if isinstance(content, dict):
        # A place in the text is no id.
        return {k: _what_decides(v) for k, v in content.items() if k != "trim_offsets"}
    return [_what_decides(part) for part in content] if isinstance(content, list) else content


def _with_template(tokenizer: RunTokenizer, base: Mapping[str, bytes]) -> str | None:
    """Return the tokenizer.json with the run's template; None where its own puts the same there."""
    from tokenizers import Tokenizer

    begin = tokenizer.manifest.begin_of_document_text
    own = base[_TOKENIZER].decode() if _TOKENIZER in base else tokenizer.json
    if begin is None or served_tokens(own) == ((begin,) if begin else ()):
        return None
    backend = Tokenizer.from_str(tokenizer.json)
    backend.post_processor = tokenizer.template()
    content = parse_json(own)
    content["post_processor"] = parse_json(backend.to_str())["post_processor"]
    return json.dumps(content, ensure_ascii=False, indent=2)


def _written_for_all(config: Mapping[str, Any], *, is_new: bool) -> dict[str, Any]:
    """Return a configuration in the spelling that versions 4 and 5 of transformers read alike.

    One that needs code of its own becomes one that needs none: no code of a folder is kept.
    """
    written = dict(config)
    if is_new or written.pop("auto_map", None) or written.get("tokenizer_class") == _NEW_CLASS:
        written["tokenizer_class"] = _ANYONES_CLASS
        written.setdefault("clean_up_tokenization_spaces", False)
    if isinstance(written.get("extra_special_tokens"), list):
        written["additional_special_tokens"] = written.pop("extra_special_tokens")
    return written


def _in_their_form(config: Mapping[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    """Return changed tokens as the configuration spells tokens: a text, or one with settings."""
    return {
        field: {**config[field], "content": token} if isinstance(config.get(field), dict) else token
        for field, token in changes.items()
    }


def _replace(
    files: dict[str, bytes], name: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """Write a configuration, unless nothing in it changed."""
    if name not in files or after != before:
        files[name] = json.dumps(after, ensure_ascii=False, indent=2).encode()
