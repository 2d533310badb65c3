"""Files that hold a tokenizer, local or in a store, read as the text of a tokenizer.json."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.corpora.tokenizer_conversion import COMPANIONS, read_as_json
from perennial.errors import InputError
from perennial.store import is_store_url, open_store
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
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
_SUFFIXES = (".json", ".gguf", ".model", ".tiktoken")


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as it was read.

    where: the file, for messages.
    json: the text of a tokenizer.json.
    vocabulary: token ids by token, added tokens included.
    named_ends: the ends of a sequence that configurations beside the file name.
    """

    where: str
    json: str
    vocabulary: dict[str, int]
    named_ends: tuple[str, ...]

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
        text, vocabulary = _parse(where, local)
    configs = ("tokenizer_config.json", "special_tokens_map.json")
    named = (_eos_token(source, config) for config in configs)
    return TokenizerFile(where, text, vocabulary, tuple(filter(None, named)))


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


def _parse(where: str, local: Path) -> tuple[str, dict[str, int]]:
    """Return the text of the tokenizer.json that a file holds, and its vocabulary."""
    try:
        text = read_as_json(where, local)
        return text, read_vocabulary(text)
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


def _eos_token(source: Store, config: str) -> str:
    """Return the end-of-document token that a configuration file names; "" where it names none."""
    if not source.exists(config):
        return ""
    try:
        content: Any = parse_json(source.read(config))
    except ValueError as error:
        raise InputError(
            f"{source.url}/{config}",
            "",
            f"it is no JSON ({error})",
            "correct or remove it",
            code="tokenizer-unreadable",
        ) from error
    token = content.get("eos_token") if isinstance(content, dict) else None
    return str((token.get("content") if isinstance(token, dict) else token) or "")
