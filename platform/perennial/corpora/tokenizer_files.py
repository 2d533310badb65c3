"""Files that hold a tokenizer, local or in a store, read as the text of a tokenizer.json."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.corpora.tokenizer_conversion import (
    COMPANIONS,
    read_as_json,
    read_gguf_settings,
)
from perennial.errors import InputError
from perennial.store import is_store_url, open_store
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenizers import Tokenizer

    from perennial.store import Store

END_OF_DOCUMENT = "<|endoftext|>"
_DOCUMENT_ENDS = (
    END_OF_DOCUMENT,
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "</s>",
    "<eos>",
)
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end|>", "<end_of_turn>")
"""ends of a turn in a chat, which folders of chat models name as their end of a sequence"""


_NAMES = ("tokenizer.json", "tekken.json", "tokenizer.model", "vocab.json")
"""files that may hold a folder's tokenizer, the first that there is"""
CONFIG, SPECIALS = "tokenizer_config.json", "special_tokens_map.json"
KEPT = (
    *_NAMES,
    "merges.txt",
    "added_tokens.json",
    CONFIG,
    SPECIALS,
    "chat_template.jinja",
    "chat_template.json",
)
"""files of a folder that say how its tokenizer is used"""
TEMPLATES = "additional_chat_templates"
"""a folder of files beside them"""
_SUFFIXES = (".json", ".gguf", ".model", ".tiktoken")


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as it was read.

    where: the file, for messages.
    json: the text of a tokenizer.json.
    vocabulary: token ids by token, added tokens included.
    named_ends: the ends of a sequence that configurations beside the file name.
    served: the tokens that its own template puts before a text.
    named_begin: the begin of a sequence that the configurations name; "" for none.
    adds_begin: whether they say that it is put before a text; None where they do not.
    """

    where: str
    json: str
    vocabulary: dict[str, int]
    named_ends: tuple[str, ...]
    served: tuple[str, ...] = ()
    named_begin: str = ""
    adds_begin: bool | None = None

    def choose_end(self) -> str:
        """Return the token that ends a document.

        A configuration's own, unless it ends a turn of a chat and the vocabulary has a usual end of
        a document.

        Raises:
            InputError: there is none.
        """
        ends = [end for end in self.named_ends if end not in _TURN_ENDS]
        for token in (*ends, *_DOCUMENT_ENDS, *self.named_ends):
            if token in self.vocabulary:
                return token
        raise InputError(
            self.where,
            "eos_token",
            "the tokenizer has no end-of-document token",
            f"name one as tokenizer.end_of_document, or add {END_OF_DOCUMENT} to the vocabulary",
            code="tokenizer-without-end",
        )

    def choose_begin(self, end: str) -> str | None:
        """Return the token that stood before a text where the tokenizer's model was trained.

        `add_bos_token` of its configuration decides, and its template where that says nothing.

        Args:
            end: the token that ends a document, which stands before the next one in any case.

        Returns:
            The token; "" where the configuration turns the template's off, None for none.
        """
        template = self.served[0] if len(self.served) == 1 else ""
        token = template if self.adds_begin is None else self.adds_begin and self.named_begin
        if not token:
            return "" if self.served and self.adds_begin is False else None
        return token if token in self.vocabulary and token != end else None

    def check_token(self, field: str, token: str) -> str:
        """Return a token that the run file names. Raises InputError if there is none like it."""
        if token in self.vocabulary:
            return token
        alike = [end for end in (*self.named_ends, *_DOCUMENT_ENDS) if end in self.vocabulary]
        raise InputError(
            "run file",
            f"tokenizer.{field}",
            f"{self.where} has no token {token!r}",
            f"name a token of its vocabulary, such as {alike[0] if alike else 'its eos_token'}",
            code="token-unknown",
        )


def read_tokenizer_file(path: str | Path) -> TokenizerFile:
    """Read a tokenizer of any form, or the one in a folder; local or a URL.

    Raises InputError for a missing or unreadable file.
    """
    source, name = _locate(os.fspath(path))
    where = f"{source.url}/{name}"
    if not source.exists(name):
        raise InputError(
            "run file",
            "tokenizer.path",
            f"{where}: there is no such file",
            f"name a folder with one of {', '.join(_NAMES)}, or one of these or a .gguf file",
            code="file-missing",
        )
    # What the store raises passes through: a network that fails is no malformed tokenizer.
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(source.url if source.is_local else scratch, name)
        companions = COMPANIONS if name == "vocab.json" else ()
        for file in {name, *companions} if not source.is_local else ():
            if source.exists(file):
                source.download(file, Path(scratch, file))
        text, vocabulary, served = _parse(where, local)
        if name.endswith(".gguf"):
            configs = [parse_json(read_gguf_settings(local)[CONFIG])]
        else:
            configs = [_read_config(source, file) for file in (CONFIG, SPECIALS)]
    ends = tuple(end for config in configs if (end := named_token(config, "eos_token")))
    begins = (named_token(config, "bos_token") for config in configs)
    adds = configs[0].get("add_bos_token")
    begin = next(filter(None, begins), "")
    return TokenizerFile(
        where, text, vocabulary, ends, served, begin, adds if isinstance(adds, bool) else None
    )


def read_kept_files(path: str | Path) -> dict[str, bytes]:
    """Return a tokenizer's own files by name, as they lie in its folder.

    A file that alone holds a tokenizer.json under another name is returned as that. Of a GGUF file
    they are what its fields say: its special tokens and its chat template.
    """
    source, name = _locate(os.fspath(path))
    if name.endswith(".gguf"):
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(source.url if source.is_local else scratch, name)
            if not source.is_local:
                source.download(name, local)
            return read_gguf_settings(local)
    templates = [entry.key for entry in source.list(TEMPLATES) if entry.key.endswith(".jinja")]
    files = {kept: source.read(kept) for kept in (*KEPT, *templates) if source.exists(kept)}
    if name not in files:
        files[_NAMES[0] if name.endswith(".json") else name] = source.read(name)
    return files


def digest_conversion(path: str | Path) -> str:
    """Return a digest of what a conversion to a tokenizer.json reads; "" where there is none.

    Args:
        path: the file or folder to read; see `read_tokenizer_file`.
    """
    source, name = _locate(os.fspath(path))
    if name == "tokenizer.json" or name.endswith(".gguf") or not source.exists(name):
        return ""  # as it is; or as large as the model that is in it
    digest = hashlib.sha256()
    for file in sorted({name, *(COMPANIONS if name == "vocab.json" else ())}):
        if source.exists(file):
            content = hashlib.sha256(source.read(file)).hexdigest()
            digest.update(f"{file} {content}\n".encode())
    return digest.hexdigest()


def _locate(path: str) -> tuple[Store, str]:
    """Return the folder that holds the tokenizer, and the file's name in it."""
    parent, _, name = path.rpartition("/")
    is_file = name.endswith(_SUFFIXES) if is_store_url(path) else not Path(path).is_dir()
    if is_file and (name.endswith(_SUFFIXES) or Path(path).is_file()):
        return open_store(parent or "."), name
    folder = open_store(path)
    return folder, next((name for name in _NAMES if folder.exists(name)), _NAMES[0])


def read_vocabulary(text: str) -> dict[str, int]:
    """Return the token ids of a tokenizer.json by token, added tokens included."""
    from tokenizers import Tokenizer

    vocabulary: dict[str, int] = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    return vocabulary


def served_tokens(text: str) -> tuple[str, ...]:
    """Return the tokens that the template of a tokenizer.json puts before a text."""
    from tokenizers import Tokenizer

    return _served(Tokenizer.from_str(text))


def _served(tokenizer: Tokenizer) -> tuple[str, ...]:
    plain = tokenizer.encode("a", add_special_tokens=False).tokens
    tokens = tokenizer.encode("a").tokens
    starts = (at for at in range(len(tokens)) if tokens[at : at + len(plain)] == plain)
    return tuple(tokens[: next(starts, 0)])


def _parse(where: str, local: Path) -> tuple[str, dict[str, int], tuple[str, ...]]:
    """Return the text of a file's tokenizer.json, its vocabulary, and what stands before a text."""
    from tokenizers import Tokenizer

    try:
        text = read_as_json(where, local)
        tokenizer = Tokenizer.from_str(text)
        return text, tokenizer.get_vocab(with_added_tokens=True), _served(tokenizer)
    except InputError:
        raise
    except Exception as error:
        # Any class: `tokenizers` raises Exception itself for malformed content, and transformers
        # whatever its readers do.
        raise InputError(
            where,
            "",
            f"not a tokenizer ({error})",
            "name a tokenizer.json of `tokenizers`",
            code="tokenizer-unreadable",
        ) from error


def _read_config(source: Store, name: str) -> dict[str, Any]:
    """Return a configuration beside a tokenizer; {} where there is none."""
    if not source.exists(name):
        return {}
    try:
        content: Any = parse_json(source.read(name))
    except ValueError as error:
        raise InputError(
            f"{source.url}/{name}",
            "",
            f"it is no JSON ({error})",
            "correct or remove it",
            code="tokenizer-unreadable",
        ) from error
    return content if isinstance(content, dict) else {}


def named_token(config: Mapping[str, Any], field: str) -> str:
    """Return the special token that a configuration names, such as its `eos_token`; "" for none."""
    token = config.get(field)
    return str((token.get("content") if isinstance(token, dict) else token) or "")
