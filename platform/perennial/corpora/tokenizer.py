"""The tokenizer of a run: trained on the first corpus or imported, and fixed from then on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from perennial.corpora.inbox import LandedCorpus, read_landed
from perennial.corpora.ingest.sample import check_sampled, sample_texts
from perennial.corpora.manifest import IngestSettings, token_bytes
from perennial.errors import InputError
from perennial.store import is_store_url, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokenizers import Tokenizer

    from perennial.store import Store

T = TypeVar("T")

END_OF_DOCUMENT = "<|endoftext|>"
TOKENIZER_KEY = "tokenizer/tokenizer.json"
MANIFEST_KEY = "tokenizer/manifest.json"
SMALLEST_VOCABULARY = 257
"""256 bytes and the end of a document"""
_SAMPLE_BYTES = 64 << 20
_USUAL_ENDS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>")


class TokenizerManifest(BaseModel):
    """Identity of a tokenizer, which exists when this does (I6)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    """sha256 of the canonical JSON of tokenizer.json, which is the form that `tokenizers` writes"""
    file_fingerprint: str = ""
    """sha256 of the canonical JSON of the file that was imported: the fingerprint that versions
    before 0.2 gave it; "" where it is the same"""
    end_of_document: int
    """token id"""
    end_of_document_text: str
    vocabulary: int
    """the highest token id plus 1"""
    source: Literal["trained", "imported"]
    asked_vocabulary: int | None = None
    """of a trained one; a small corpus yields fewer"""


@dataclass(frozen=True)
class RunTokenizer:
    """A tokenizer and its identity; `json` is the text of its tokenizer.json."""

    json: str
    manifest: TokenizerManifest

    @property
    def fingerprint(self) -> str:
        """Return the identity that corpora and checkpoints refer to."""
        return self.manifest.fingerprint

    @cached_property
    def fingerprints(self) -> frozenset[str]:
        """Return every fingerprint by which a corpus may refer to this tokenizer.

        A file that lacks keys which newer versions of its library spell out is the same tokenizer.
        """
        canonical = _fingerprint(canonical_json(self.json))
        own = (self.manifest.fingerprint, self.manifest.file_fingerprint, canonical)
        return frozenset(filter(None, own))

    def is_named(self, fingerprint: str) -> bool:
        """Return whether a corpus's fingerprint is one of this tokenizer's."""
        # Only what differs at first sight is worth the reading of the whole tokenizer.
        return fingerprint == self.fingerprint or fingerprint in self.fingerprints

    @property
    def vocabulary(self) -> int:
        """Return the highest token id plus 1."""
        return self.manifest.vocabulary

    @property
    def end_of_document(self) -> int:
        """Return the token id of the end of a document."""
        return self.manifest.end_of_document

    @property
    def token_bytes(self) -> int:
        """Return the bytes of a stored token id: 2 or 4."""
        return token_bytes(self.vocabulary)

    def build(self) -> Tokenizer:
        """Return a `tokenizers.Tokenizer` that does not truncate, pad, or parse special tokens.

        The spelling of a special token in a document is text like any other.
        """
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer


def train_tokenizer(
    store: Store,
    inbox: Store,
    name: str,
    vocabulary: int,
    settings: IngestSettings,
    landed: LandedCorpus | None = None,
) -> RunTokenizer:
    """Train a byte-level BPE with GPT-2's split on a sample of a landed corpus.

    Held-out documents are not in the sample. Where the store has a tokenizer that was trained for
    the same vocabulary, that one is returned.

    Args:
        store: the run's store, which gets the tokenizer.
        inbox: the store that the corpus landed in.
        name: the corpus's name.
        vocabulary: entries of the vocabulary, at least 257.
        settings: how documents are found in the corpus.
        landed: the corpus as `check_landed` returned it; default: as it is now.

    Raises:
        InputError: for a vocabulary that is too small, a store with another tokenizer, a corpus
            without text, or a sampled file that is not what its producer promised.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise InputError(
            "tokenizer",
            "vocabulary",
            f"{vocabulary} entries cannot hold every byte",
            f"use at least {SMALLEST_VOCABULARY}",
            code="vocabulary-too-small",
        )
    if store.exists(MANIFEST_KEY):
        present = load_tokenizer(store)
        if present.manifest.asked_vocabulary != vocabulary:
            asked = present.manifest.asked_vocabulary
            raise _differs(store, "asked_vocabulary", asked, vocabulary)
        return present
    landed = landed or read_landed(inbox, name)
    # A tokenizer stays, also where the corpus is refused later.
    check_sampled(inbox, landed, _SAMPLE_BYTES)
    texts = sample_texts(inbox, landed, settings, _SAMPLE_BYTES)
    trained = _train(texts, vocabulary)
    if trained.get_vocab_size() <= SMALLEST_VOCABULARY < vocabulary:
        raise InputError(
            f"{inbox.url}/{name}",
            settings.text_field,
            "there is no text to train a tokenizer on",
            "land documents with text",
            code="no-text",
        )
    tokenizer = _build_tokenizer(trained.to_str(), END_OF_DOCUMENT, "trained", vocabulary)
    return _commit(store, tokenizer)


def import_tokenizer(store: Store, path: str | Path) -> RunTokenizer:
    """Make an existing tokenizer the run's.

    Importing the same again changes nothing.

    Args:
        store: the run's store, which gets the tokenizer.
        path: the file or folder to read; see `read_tokenizer`.

    Raises:
        InputError: for what is no tokenizer, and for a store with another one.
    """
    tokenizer = read_tokenizer(path)
    if store.exists(MANIFEST_KEY):
        return _load_same(store, tokenizer)
    return _commit(store, tokenizer)


def read_tokenizer(path: str | Path) -> RunTokenizer:
    """Read a tokenizer.json, the one in a Hugging Face folder, or a GGUF file's; local or a URL.

    Raises InputError for a missing or unreadable file, or no end-of-document token.
    """
    source, name = _locate(os.fspath(path))
    where = f"{source.url}/{name}"
    if not source.exists(name):
        raise InputError(
            "run file",
            "tokenizer.path",
            f"{where}: there is no such file",
            "name a tokenizer.json, a folder with one or a .gguf file",
            code="file-missing",
        )
    # What the store raises passes through: a network that fails is no malformed tokenizer.
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(source.url if source.is_local else scratch, name)
        if not source.is_local:
            source.download(name, local)
        text, vocabulary = _parse(where, local)
    end = _end_of_document(source, where, vocabulary)
    return _build_tokenizer(text, end, "imported", None)


def _locate(path: str) -> tuple[Store, str]:
    """Return the folder that holds the tokenizer, and the file's name in it."""
    if path.endswith((".json", ".gguf")) or (not is_store_url(path) and Path(path).is_file()):
        parent, _, name = path.rpartition("/")
        return open_store(parent or "."), name
    return open_store(path), "tokenizer.json"


def load_tokenizer(store: Store) -> RunTokenizer:
    """Return the run's tokenizer. Raises InputError when there is none or it was altered."""
    try:
        return _load_once(store)
    except InputError as wrong:
        if wrong.code != "tokenizer-altered":
            raise
    # A torn read spoils one transfer of a sound object.
    return _load_once(store)


def _load_once(store: Store) -> RunTokenizer:
    manifest = _read_part(store, MANIFEST_KEY, TokenizerManifest.model_validate_json)
    text = _read_part(store, TOKENIZER_KEY, bytes.decode)
    if _fingerprint_or_none(text) != manifest.fingerprint:
        raise InputError(
            f"{store.url}/{TOKENIZER_KEY}",
            "",
            "it is not the tokenizer that its manifest names",
            "restore the original file",
            code="tokenizer-altered",
        )
    return RunTokenizer(text, manifest)


def _read_part(store: Store, key: str, parse: Callable[[bytes], T]) -> T:
    """Return one of the tokenizer's two objects, parsed."""
    try:
        return parse(store.read(key))
    except FileNotFoundError:
        raise InputError(
            f"{store.url}/{key}",
            "",
            "the run has no tokenizer",
            "train or import one first; where corpora were tokenised, restore it from a copy",
            code="tokenizer-missing",
        ) from None
    except ValueError as broken:
        raise InputError(
            f"{store.url}/{key}",
            "",
            f"it cannot be read ({' '.join(str(broken).split())[:200]})",
            "restore the original file",
            code="tokenizer-altered",
        ) from None


def _fingerprint_or_none(text: str) -> str | None:
    try:
        return _fingerprint(text)
    except ValueError:  # no JSON
        return None


def _train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def _vocabulary(text: str) -> dict[str, int]:
    from tokenizers import Tokenizer

    vocabulary: dict[str, int] = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    return vocabulary


def _parse(where: str, local: Path) -> tuple[str, dict[str, int]]:
    """Return the text of the tokenizer.json that a file holds, and its vocabulary."""
    try:
        text = (
            _convert_gguf(local)
            if local.suffix == ".gguf"
            else json.dumps(json.loads(local.read_bytes()), ensure_ascii=False)
        )
        return text, _vocabulary(text)
    except Exception as error:
        # Any class: `tokenizers` raises Exception itself for malformed content, and transformers
        # whatever its GGUF reader does.
        raise InputError(
            where,
            "",
            f"not a tokenizer ({error})",
            "name a tokenizer.json of `tokenizers`",
            code="tokenizer-unreadable",
        ) from error


def _convert_gguf(local: Path) -> str:
    """Return the tokenizer.json of a GGUF file's own tokenizer; needs the package gguf."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        local.parent, gguf_file=local.name, local_files_only=True
    )
    text: str = tokenizer.backend_tokenizer.to_str()
    return text


def _build_tokenizer(
    text: str, end: str, source: Literal["trained", "imported"], asked: int | None
) -> RunTokenizer:
    vocabulary = _vocabulary(text)
    of_file, text = _fingerprint(text), canonical_json(text)
    fingerprint = _fingerprint(text)
    manifest = TokenizerManifest(
        fingerprint=fingerprint,
        file_fingerprint="" if of_file == fingerprint else of_file,
        end_of_document=vocabulary[end],
        end_of_document_text=end,
        vocabulary=max(vocabulary.values()) + 1,
        source=source,
        asked_vocabulary=asked,
    )
    return RunTokenizer(text, manifest)


def canonical_json(text: str) -> str:
    """Return a tokenizer.json as `tokenizers` writes it: every key spelled out, none unknown."""
    from tokenizers import Tokenizer

    written: str = Tokenizer.from_str(text).to_str()
    return written


def _fingerprint(text: str) -> str:
    canonical = json.dumps(
        json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _commit(store: Store, tokenizer: RunTokenizer) -> RunTokenizer:
    store.write(TOKENIZER_KEY, tokenizer.json.encode())
    if store.create(MANIFEST_KEY, tokenizer.manifest.model_dump_json(indent=1).encode()):
        return tokenizer
    return _load_same(store, tokenizer)


def _load_same(store: Store, tokenizer: RunTokenizer) -> RunTokenizer:
    """Return the store's tokenizer if it is the given one, else InputError."""
    present = load_tokenizer(store)
    if present.fingerprints.isdisjoint(tokenizer.fingerprints):
        raise _differs(store, "fingerprint", present.fingerprint, tokenizer.fingerprint)
    return present


def _differs(store: Store, field: str, present: object, wanted: object) -> InputError:
    return InputError(
        f"{store.url}/{MANIFEST_KEY}",
        field,
        f"the run has another tokenizer ({present}, not {wanted})",
        "keep the run's tokenizer, or start a run in another store",
        code="tokenizer-differs",
    )


def _end_of_document(source: Store, where: str, vocabulary: dict[str, int]) -> str:
    """Return the end-of-document token that the folder's configuration names, else a usual one."""
    configs = ("tokenizer_config.json", "special_tokens_map.json")
    for token in (*(_eos_token(source, name) for name in configs), *_USUAL_ENDS):
        if token in vocabulary:
            return token
    raise InputError(
        where,
        "eos_token",
        "the tokenizer has no end-of-document token",
        f"name one in tokenizer_config.json beside it, or add {END_OF_DOCUMENT} to the vocabulary",
        code="tokenizer-without-end",
    )


def _eos_token(source: Store, config: str) -> str:
    """Return the end-of-document token that a configuration file names; "" where it names none."""
    if not source.exists(config):
        return ""
    try:
        content: Any = json.loads(source.read(config))
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
