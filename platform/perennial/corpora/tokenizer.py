"""The tokenizer of a run: trained on the first corpus or imported; then it may only grow."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from perennial.corpora.manifest import StoredFile, token_bytes
from perennial.corpora.special_tokens import Borders, hide_special_tokens
from perennial.corpora.tokenizer_files import (
    digest_conversion,
    read_kept_files,
    read_tokenizer_file,
    read_vocabulary,
    served_tokens,
)
from perennial.errors import InputError
from perennial.store import read_checked
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tokenizers import Tokenizer

    from perennial.store import Store

T = TypeVar("T")

FIRST_TOKENIZER = "tokenizer"
"""folder of the run's first tokenizer; those that grew from it are below it"""
TOKENIZER_KEY = f"{FIRST_TOKENIZER}/tokenizer.json"
MANIFEST_KEY = f"{FIRST_TOKENIZER}/manifest.json"
GROWN = f"{FIRST_TOKENIZER}/grown"
"""folder of the tokenizers that grew from it, by the corpus that brought the entries"""
BASE = "tokenizer/base"
"""folder of an imported tokenizer's own files"""


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
    begin_of_document: int | None = None
    """token id; None where nothing stands before a document"""
    begin_of_document_text: str | None = None
    """of that token; "" where the run file or the tokenizer's configuration says that there is none
    """
    conversion: str = Field(default="", exclude_if=lambda digest: not digest)
    """digest of the files that were converted, so that the same ones are not converted again; ""
    for a tokenizer.json"""
    vocabulary: int
    """the highest token id plus 1"""
    source: Literal["trained", "imported"]
    asked_vocabulary: int | None = None
    """of a trained one; a small corpus yields fewer"""
    files: tuple[StoredFile, ...] = ()
    """the tokenizer's own, below `tokenizer/base/`; none in stores of before 0.2"""
    ancestors: tuple[str, ...] = Field(default=(), exclude_if=lambda its: not its)
    """fingerprints of the tokenizers whose ids it has with the same meaning, the first one first;
    none of a tokenizer that did not grow"""


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
    def begin_of_document(self) -> int | None:
        """Return the token id that stands before a document; None for none."""
        return self.manifest.begin_of_document

    @property
    def borders(self) -> Borders:
        """Return the tokens between documents with their ids."""
        its = self.manifest
        end = (its.end_of_document_text, its.end_of_document)
        if its.begin_of_document is None:
            return (end,)
        return (end, (str(its.begin_of_document_text), its.begin_of_document))

    @property
    def plain_json(self) -> str:
        """Return the tokenizer.json that encodes the spelling of a special token as text."""
        return hide_special_tokens(canonical_json(self.json), self.borders)

    @property
    def token_bytes(self) -> int:
        """Return the bytes of a stored token id: 2 or 4."""
        return token_bytes(self.vocabulary)

    def build(self) -> Tokenizer:
        """Return a `tokenizers.Tokenizer` that does not truncate, pad, or parse special tokens.

        The one token that it adds, where it is asked to add special tokens, is the run's begin of
        a document.
        """
        return self._build(self.json)

    def build_encoder(self) -> Tokenizer:
        """Return the tokenizer of documents, which takes no spelling for a special token.

        Not for decoding: special tokens have other spellings in it.
        """
        return self._build(self.plain_json)

    def _build(self, tokenizer_json: str) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        tokenizer.post_processor = self.template()
        return tokenizer

    def template(self) -> Any:
        """Return the post-processor that puts before a text what stands before a document."""
        from tokenizers.processors import TemplateProcessing

        begin, number = self.manifest.begin_of_document_text, self.begin_of_document
        if number is None:
            return TemplateProcessing(single=["$A"], pair=["$A", "$B"], special_tokens=[])
        return TemplateProcessing(
            single=[begin, "$A"],
            pair=[begin, "$A", begin, "$B:1"],
            special_tokens=[(begin, number)],
        )

    def describe_borders(self) -> str:
        """Return a sentence on what stands between documents, with what a served text would get."""
        its = self.manifest
        end = f"documents end with {its.end_of_document_text} (id {its.end_of_document})"
        if its.begin_of_document is not None:
            return f"{end} and begin with {its.begin_of_document_text} (id {its.begin_of_document})"
        served = served_tokens(self.json)
        if not served:
            return f"{end}; nothing stands before them"
        return (
            f"{end}; nothing stands before them, though the tokenizer puts {' '.join(served)} "
            "before what is served: a model that was trained with it needs "
            f"tokenizer.begin_of_document: {served[0]!r}"
        )


def import_tokenizer(
    store: Store,
    path: str | Path,
    end_of_document: str | None = None,
    begin_of_document: str | None = None,
) -> RunTokenizer:
    """Make an existing tokenizer the run's, with the files beside it as they are.

    Importing the same again changes nothing.

    Args:
        store: the run's store, which gets the tokenizer.
        path: the file or folder to read.
        end_of_document: the token that ends a document; see `read_tokenizer`. Where the store has
            the tokenizer, its own is kept unless this names another one.
        begin_of_document: the token that stands before a document, "" for none; likewise.

    Raises:
        InputError: for what is no tokenizer, and for a store with another one.
    """
    present = find_converted(store, path, end_of_document, begin_of_document)
    if present is not None:
        return present
    tokenizer = read_tokenizer(path, end_of_document, begin_of_document)
    if not store.exists(MANIFEST_KEY):
        manifest = tokenizer.manifest.model_copy(update={"conversion": digest_conversion(path)})
        return commit_tokenizer(
            store, RunTokenizer(tokenizer.json, manifest), read_kept_files(path)
        )
    present = _load_same(store, tokenizer)
    its, wanted = present.manifest, tokenizer.manifest
    if end_of_document is not None and its.end_of_document != wanted.end_of_document:
        raise tokenizer_differs(store, "end_of_document", its.end_of_document_text, end_of_document)
    if begin_of_document is not None and its.begin_of_document != wanted.begin_of_document:
        begins = (its.begin_of_document_text, wanted.begin_of_document_text)
        raise tokenizer_differs(store, "begin_of_document", *begins)
    return present


def find_converted(
    store: Store, path: str | Path, end_of_document: str | None, begin_of_document: str | None
) -> RunTokenizer | None:
    """Return the run's tokenizer if it was converted from these files; None where that is not so.

    A conversion takes seconds; this compares digests. The arguments are `import_tokenizer`'s.
    """
    conversion = digest_conversion(path)
    if not conversion or not store.exists(MANIFEST_KEY):
        return None
    present = load_tokenizer(store)
    its = present.manifest
    same = its.conversion == conversion and its.begin_of_document_text == begin_of_document
    return present if same and end_of_document in (its.end_of_document_text, None) else None


def withdraw_tokenizer(store: Store) -> None:
    """Remove a tokenizer that no accepted corpus has ids of, such as that of a refused one.

    Args:
        store: the run's store.
    """
    store.remove(MANIFEST_KEY)  # a tokenizer exists while its manifest does
    store.remove(TOKENIZER_KEY)
    store.remove(BASE)
    store.remove(GROWN)


def read_tokenizer(
    path: str | Path, end_of_document: str | None = None, begin_of_document: str | None = None
) -> RunTokenizer:
    """Read a tokenizer.json, the one in a Hugging Face folder, or a GGUF file's; local or a URL.

    Args:
        path: the file or folder to read.
        end_of_document: the token that ends a document; default: see `TokenizerFile.choose_end`.
        begin_of_document: the token that stands before a document, "" for none; default: see
            `TokenizerFile.choose_begin`.

    Raises:
        InputError: for a missing or unreadable file, and for a token that it does not have.
    """
    file = read_tokenizer_file(path)
    end = file.choose_end() if end_of_document is None else end_of_document
    end = file.check_token("end_of_document", end)
    if begin_of_document is None:
        begin = file.choose_begin(end)
    else:
        begin = begin_of_document and file.check_token("begin_of_document", begin_of_document)
    if begin == end:
        raise InputError(
            "run file",
            "tokenizer.begin_of_document",
            f"{begin!r} is the end of a document, which stands before the next one already",
            "leave it out",
            code="begin-is-end",
        )
    tokenizer = build_tokenizer(file.json, end, "imported", None, begin)
    if end_of_document or begin:
        _check_borders(tokenizer)
    return tokenizer


def _check_borders(tokenizer: RunTokenizer) -> None:
    """Refuse a token between documents that text becomes by itself."""
    encoder, decoder = tokenizer.build_encoder(), tokenizer.build()
    for text, number in tokenizer.borders:
        spelled = decoder.decode([number], skip_special_tokens=False)
        if number in encoder.encode(spelled, add_special_tokens=False).ids:
            its = tokenizer.manifest
            field = "end_of_document" if text == its.end_of_document_text else "begin_of_document"
            raise InputError(
                "run file",
                f"tokenizer.{field}",
                f"{text!r} is a piece of text, which documents hold too",
                "name a special token",
                code="token-is-text",
            )


def read_base_files(store: Store, tokenizer: RunTokenizer) -> dict[str, bytes]:
    """Return an imported tokenizer's own files by name.

    Raises:
        Altered: one is missing or has another digest than the manifest says.
    """
    kept = tokenizer.manifest.files
    return {file.file: read_checked(store, f"{BASE}/{file.file}", file.sha256) for file in kept}


def load_tokenizer(store: Store, folder: str = FIRST_TOKENIZER) -> RunTokenizer:
    """Return the run's first tokenizer, or one that grew from it.

    Args:
        store: the run's store.
        folder: key of the tokenizer's folder.

    Raises:
        InputError: there is none, or it was altered.
    """
    try:
        return _load_once(store, folder)
    except InputError as wrong:
        if wrong.code != "tokenizer-altered":
            raise
    # A torn read spoils one transfer of a sound object.
    return _load_once(store, folder)


def _load_once(store: Store, folder: str) -> RunTokenizer:
    key = f"{folder}/tokenizer.json"
    manifest = _read_part(store, f"{folder}/manifest.json", TokenizerManifest.model_validate_json)
    text = _read_part(store, key, bytes.decode)
    if _fingerprint_or_none(text) != manifest.fingerprint:
        raise InputError(
            f"{store.url}/{key}",
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


def build_tokenizer(
    text: str,
    end: str,
    source: Literal["trained", "imported"],
    asked: int | None,
    begin: str | None = None,
) -> RunTokenizer:
    """Return a tokenizer with its manifest.

    Args:
        text: a tokenizer.json.
        end: the token that ends a document.
        source: where it is from.
        asked: entries that it was trained for; None for an imported one.
        begin: the token that stands before a document; None or "" for none.
    """
    vocabulary = read_vocabulary(text)
    of_file, text = _fingerprint(text), canonical_json(text)
    fingerprint = _fingerprint(text)
    manifest = TokenizerManifest(
        fingerprint=fingerprint,
        file_fingerprint="" if of_file == fingerprint else of_file,
        end_of_document=vocabulary[end],
        end_of_document_text=end,
        begin_of_document=vocabulary[begin] if begin else None,
        begin_of_document_text=begin,
        vocabulary=max(vocabulary.values()) + 1,
        source=source,
        asked_vocabulary=asked,
    )
    return RunTokenizer(text, manifest)


@lru_cache(maxsize=4)
def canonical_json(text: str) -> str:
    """Return a tokenizer.json as `tokenizers` writes it: every key spelled out, none unknown.

    The scores of a Unigram model stay the file's: the library reads some of them off by one in
    the last place, which decides between two splits of one score.
    """
    from tokenizers import Tokenizer

    written: str = Tokenizer.from_str(text).to_str()
    model = parse_json(text)["model"]
    if model.get("type") != "Unigram":
        return written
    content = parse_json(written)
    content["model"]["vocab"] = model["vocab"]
    return json.dumps(content, ensure_ascii=False)


def _fingerprint(text: str) -> str:
    canonical = json.dumps(
        parse_json(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def commit_tokenizer(
    store: Store, tokenizer: RunTokenizer, files: Mapping[str, bytes] = MappingProxyType({})
) -> RunTokenizer:
    """Write a tokenizer, the manifest last; return the one that another process wrote first.

    Args:
        store: the run's store, which gets it.
        tokenizer: the tokenizer.
        files: its own files, by name.
    """
    stored = tuple(
        StoredFile(file=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    )
    manifest = tokenizer.manifest.model_copy(update={"files": stored})
    tokenizer = RunTokenizer(tokenizer.json, manifest)
    for name, data in files.items():
        store.write(f"{BASE}/{name}", data)
    store.write(TOKENIZER_KEY, tokenizer.json.encode())
    if store.create(MANIFEST_KEY, tokenizer.manifest.model_dump_json(indent=1).encode()):
        return tokenizer
    return _load_same(store, tokenizer)


def _load_same(store: Store, tokenizer: RunTokenizer) -> RunTokenizer:
    """Return the store's tokenizer if it is the given one, else InputError."""
    present = load_tokenizer(store)
    if present.fingerprints.isdisjoint(tokenizer.fingerprints):
        raise tokenizer_differs(store, "fingerprint", present.fingerprint, tokenizer.fingerprint)
    return present


def tokenizer_differs(store: Store, field: str, present: object, wanted: object) -> InputError:
    """Return the error of a store with another tokenizer.

    Args:
        store: the run's store.
        field: of its manifest, that differs.
        present: the value there.
        wanted: the value that was asked for.
    """
    return InputError(
        f"{store.url}/{MANIFEST_KEY}",
        field,
        f"the run has another tokenizer ({present}, not {wanted})",
        "keep the run's tokenizer, or start a run in another store",
        code="tokenizer-differs",
    )
