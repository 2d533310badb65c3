"""A release's tokenizer is the base's, whole: only what the run changed is changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from perennial.corpora import import_tokenizer, load_tokenizer, read_base_files
from perennial.corpora.release_tokenizer import release_files, settle_class
from perennial.corpora.reuse import borrow_tokenizer
from perennial.corpora.tokenizer import BASE, MANIFEST_KEY, TOKENIZER_KEY, withdraw_tokenizer
from perennial.errors import Altered
from perennial.store import Store, open_store
from tests.support.base_folders import FAMILIES, write_base

TEXT = "The 1234 colours of\n\tthe rainbow, <|endoftext|> in between: caf\u00e9. 10 100 2000 3.11"
BEGINS = {
    "gpt2": None,
    "gpt_neox": None,
    "llama3": "<|begin_of_text|>",
    "mistral": "<s>",
    "smollm2": None,
}
ENDS = {
    "gpt2": "<|endoftext|>",
    "gpt_neox": "<|endoftext|>",
    "llama3": "<|end_of_text|>",
    "mistral": "</s>",
    "smollm2": "<|endoftext|>",
}
IDS = ("ids", "pair", "plain")
NOT_THE_TOKENIZERS = {"config.json", "generation_config.json"}


def release(store: Store, base: Path, folder: Path, *named: str | None) -> Any:
    """Write a release's files beside the base's config.json, and load its tokenizer."""
    tokenizer = load_tokenizer(store)
    folder.mkdir()
    for name, data in release_files(tokenizer, read_base_files(store, tokenizer), *named).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    settle_class(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def fields(tokenizer: Any) -> dict[str, Any]:
    """Return what a user of a tokenizer sees of it."""
    names = ("bos", "eos", "unk", "pad")
    settings = (
        "special_tokens_map",
        "all_special_ids",
        "chat_template",
        "padding_side",
        "truncation_side",
        "model_max_length",
        "clean_up_tokenization_spaces",
        "model_input_names",
    )
    said = [{"role": "user", "content": "Hello"}]
    return (
        {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in names}
        | {name: getattr(tokenizer, name) for name in settings}
        | {"class": type(tokenizer).__name__, "entries": len(tokenizer)}
        | {"ids": tokenizer(TEXT)["input_ids"], "pair": tokenizer(TEXT, TEXT)["input_ids"]}
        | {"plain": tokenizer(TEXT, add_special_tokens=False)["input_ids"]}
        | {"text": tokenizer.decode(tokenizer(TEXT)["input_ids"])}
        | {"chat": tokenizer.chat_template and tokenizer.apply_chat_template(said, tokenize=False)}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_release_has_the_bases_tokenizer_field_by_field(tmp_path: Path, family: str) -> None:
    base, store = write_base(tmp_path / "base", family), open_store(tmp_path / "store")
    its = import_tokenizer(store, str(base)).manifest
    assert (its.begin_of_document_text, its.end_of_document_text) == (BEGINS[family], ENDS[family])
    expected = fields(AutoTokenizer.from_pretrained(base, local_files_only=True))
    released = fields(release(store, base, tmp_path / "release"))
    if family == "smollm2":  # which GPT-2's class does not read as it is: it splits no digits
        expected |= {"class": released["class"]} | {name: released[name] for name in IDS}
    assert released == expected
    own = Tokenizer.from_file(str(base / "tokenizer.json"))
    ids = [own.encode(TEXT), own.encode(TEXT, TEXT), own.encode(TEXT, add_special_tokens=False)]
    assert [released[name] for name in IDS] == [each.ids for each in ids]
    names = {file.name for file in base.iterdir()} - NOT_THE_TOKENIZERS
    assert names == {file.file for file in its.files}
    for name in names:
        data = (base / name).read_bytes()
        assert store.read(f"{BASE}/{name}") == data
        if (family, name) != ("smollm2", "tokenizer_config.json"):
            assert (tmp_path / "release" / name).read_bytes() == data
    assert load_tokenizer(store).build().encode("a").ids == own.encode("a").ids


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_run_file_names_is_all_that_differs(tmp_path: Path, family: str) -> None:
    base, store = write_base(tmp_path / "base", family), open_store(tmp_path / "store")
    end, begin = {
        "gpt2": (None, None),
        "gpt_neox": ("<|padding|>", "<|endoftext|>"),
        "llama3": ("<|end_of_text|>", ""),
        "mistral": (None, ""),
        "smollm2": ("<|endoftext|>", "<|im_start|>"),
    }[family]
    import_tokenizer(store, str(base), end, begin)
    released = fields(release(store, base, tmp_path / "release", end, begin))
    before = fields(AutoTokenizer.from_pretrained(base, local_files_only=True))
    changed = {name for name in before if before[name] != released[name]}
    ends = {"eos_token", "special_tokens_map", "all_special_ids"}
    assert changed <= {*ends, *IDS, "text", "class"}
    assert released["eos_token"] == (end or before["eos_token"])
    assert released["bos_token"] == before["bos_token"]
    own = load_tokenizer(store)
    begins = [] if own.begin_of_document is None else [own.begin_of_document]
    assert released["ids"] == [*begins, *released["plain"]]
    assert (
        released["plain"] == Tokenizer.from_str(own.json).encode(TEXT, add_special_tokens=False).ids
    )


def test_the_configuration_turns_a_begin_on_and_off(tmp_path: Path) -> None:
    for adds, without_template, begin, served in (
        (True, True, "<s>", [1]),
        (False, False, "", []),
        (None, False, "<s>", [1]),
        (None, True, None, []),
    ):
        place = tmp_path / f"{adds}{without_template}"
        base, store = write_base(place / "base", "mistral"), open_store(place / "store")
        config = json.loads((base / "tokenizer_config.json").read_text()) | {"add_bos_token": adds}
        (base / "tokenizer_config.json").write_text(json.dumps(config))
        if without_template:
            content = json.loads((base / "tokenizer.json").read_text())
            (base / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
        imported = import_tokenizer(store, base)
        assert imported.manifest.begin_of_document_text == begin
        released = release(store, base, place / "release")
        plain = released("one", add_special_tokens=False)["input_ids"]
        assert released("one")["input_ids"] == [*served, *plain]
        assert imported.build().encode("one").ids == [*served, *plain]


def test_a_begin_that_is_the_end_stands_there_already(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "gpt2")
    config = json.loads((base / "tokenizer_config.json").read_text()) | {"add_bos_token": True}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    assert import_tokenizer(open_store(tmp_path / "store"), base).begin_of_document is None


def test_a_folder_that_one_version_alone_reads_is_written_for_both(tmp_path: Path) -> None:
    base, store = write_base(tmp_path / "base", "smollm2"), open_store(tmp_path / "store")
    saved = AutoTokenizer.from_pretrained(base, local_files_only=True)
    saved.save_pretrained(tmp_path / "base")  # as version 5 writes it
    config = json.loads((base / "tokenizer_config.json").read_text())
    config |= {
        "tokenizer_class": "TokenizersBackend",
        "auto_map": {"AutoTokenizer": ["its.Own", None]},
    }
    config["extra_special_tokens"] = ["<repo_name>"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    import_tokenizer(store, base)
    released = release(store, base, tmp_path / "release")
    written = json.loads((tmp_path / "release/tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<repo_name>"]
    assert not {"auto_map", "extra_special_tokens"} & written.keys()
    assert released(TEXT)["input_ids"] == saved(TEXT)["input_ids"]
    assert released.chat_template == saved.chat_template


def test_a_store_with_the_tokenizer_alone_is_released(tmp_path: Path) -> None:
    base, store = write_base(tmp_path / "base", "mistral"), open_store(tmp_path / "store")
    import_tokenizer(store, base)
    its = json.loads(store.read(MANIFEST_KEY))
    del its["files"]  # as a version before wrote it, which put nothing before a document
    its |= {"begin_of_document": None, "begin_of_document_text": None}
    store.write(MANIFEST_KEY, json.dumps(its).encode())
    store.remove(BASE)
    old = import_tokenizer(store, base)
    assert (old.manifest.files, old.begin_of_document) == ((), None)
    assert old.describe_borders().endswith("needs tokenizer.begin_of_document: '<s>'")
    released = release(store, base, tmp_path / "release")
    assert (released.eos_token, released.bos_token) == ("</s>", "</s>")
    assert {file.name for file in (tmp_path / "release").iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_files_are_compared_with_their_digests_borrowed_and_withdrawn(tmp_path: Path) -> None:
    base, store = write_base(tmp_path / "base", "smollm2"), open_store(tmp_path / "store")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/tools.jinja").write_text("{{ tools }}")
    imported = import_tokenizer(store, base)
    borrower = open_store(tmp_path / "borrower")
    borrow_tokenizer(borrower, store)
    assert read_base_files(borrower, load_tokenizer(borrower)) == read_base_files(store, imported)
    assert set(release(store, base, tmp_path / "release").chat_template) == {"default", "tools"}
    store.write(f"{BASE}/chat_template.jinja", b"another")
    with pytest.raises(Altered):
        read_base_files(store, imported)
    withdraw_tokenizer(store)
    assert not [entry.key for entry in store.list("tokenizer")]
    assert not store.exists(TOKENIZER_KEY)


def test_a_lone_file_has_what_lies_beside_it(tmp_path: Path) -> None:
    base, store = write_base(tmp_path / "base", "llama3"), open_store(tmp_path / "store")
    (base / "tokenizer.json").rename(base / "own.json")
    imported = import_tokenizer(store, base / "own.json")
    names = {file.file for file in imported.manifest.files}
    assert names == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
