"""The run's tokenizer, and that both engines give its ids."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.corpora import (
    IngestSettings,
    RunTokenizer,
    import_tokenizer,
    land,
    load_tokenizer,
    train_tokenizer,
)
from perennial.corpora.byte_bpe import _GPT2_SPLIT, group_alternatives
from perennial.corpora.encoders import (
    Encoder,
    TiktokenEncoder,
    TokenizersEncoder,
    choose_encoder,
)
from perennial.errors import Terminated
from perennial.steps import STEPS
from perennial.store import Store, open_store
from tests.support.refusal import refused

SETTINGS = IngestSettings(sequence_length=8, seed=0)
no_deadline = settings(deadline=None, max_examples=60)
LITERAL = "one <|endoftext|> two"
TEXTS = [LITERAL, *list(topics.values())[:40], "日本語 été 🎉🎉\x00\x7f", "", "  a\n\n\tb  "]


@pytest.fixture(scope="module")
def inbox(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("landed")
    file = folder / "topics.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in topics.values()))
    inbox = open_store(folder / "inbox")
    land(inbox, "en", [file])
    return inbox


@pytest.fixture(scope="module")
def trained(inbox: Store, tmp_path_factory: pytest.TempPathFactory) -> RunTokenizer:
    store = open_store(tmp_path_factory.mktemp("store"))
    return train_tokenizer(store, inbox, "en", 1000, SETTINGS)


def altered(tokenizer: RunTokenizer, **changes: Any) -> RunTokenizer:
    content = json.loads(tokenizer.json) | changes
    return RunTokenizer(json.dumps(content), tokenizer.manifest)


def test_training_twice_gives_the_same_tokenizer(
    trained: RunTokenizer, inbox: Store, tmp_path: Path
) -> None:
    store = open_store(tmp_path)
    again = train_tokenizer(store, inbox, "en", 1000, SETTINGS)
    assert again == trained
    assert (again.vocabulary, again.token_bytes) == (1000, 2)
    assert load_tokenizer(store) == again
    assert train_tokenizer(store, inbox, "en", 1000, SETTINGS) == again
    with refused("tokenizer-differs"):
        train_tokenizer(store, inbox, "en", 2000, SETTINGS)


def test_a_vocabulary_without_room_for_the_bytes_is_refused(inbox: Store, tmp_path: Path) -> None:
    with refused("vocabulary-too-small", "vocabulary"):
        train_tokenizer(open_store(tmp_path), inbox, "en", 256, SETTINGS)


def test_both_engines_give_the_same_ids(trained: RunTokenizer) -> None:
    slow, fast = TokenizersEncoder(trained), TiktokenEncoder(trained)
    for text, expected, found in zip(TEXTS, slow.encode(TEXTS), fast.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=text[:40])
    assert choose_encoder(trained, TEXTS) == "tiktoken"


@pytest.mark.parametrize("engine", [TokenizersEncoder, TiktokenEncoder])
def test_a_spelled_out_special_token_stays_text(trained: RunTokenizer, engine: Any) -> None:
    (ids,) = engine(trained).encode([LITERAL])
    assert trained.end_of_document not in ids
    assert trained.build().decode(ids.tolist()) == LITERAL


spellings = st.sampled_from([*"<|endoftext|>", "<|end", "<|endoftext|>", "\x00\x01", "é", " \n"])


@pytest.fixture(scope="module")
def engines_of_both_kinds(trained: RunTokenizer) -> list[Encoder]:
    return [TiktokenEncoder(trained), TokenizersEncoder(trained)]


@no_deadline
@given(parts=st.lists(st.lists(spellings).map("".join), max_size=4))
def test_special_tokens_spelled_in_texts_stay_text_in_every_engine(
    trained: RunTokenizer, engines_of_both_kinds: list[Encoder], parts: list[str]
) -> None:
    texts = [part for part in parts if part]
    fast, slow = (
        each.encode_documents([text.encode() for text in texts]) for each in engines_of_both_kinds
    )
    np.testing.assert_array_equal(fast, slow)
    assert np.count_nonzero(fast == trained.end_of_document) == len(texts)
    assert trained.build().decode(fast.tolist(), skip_special_tokens=True) == "".join(texts)


@pytest.mark.parametrize("space", [" ", "\n", "\t", "\r\n", " \n", "\u2003", "\v"])
def test_long_runs_of_white_space_are_encoded(trained: RunTokenizer, space: str) -> None:
    text = "a" + space * 200_000 + "b"
    (fast,) = TiktokenEncoder(trained).encode([text])
    (slow,) = TokenizersEncoder(trained).encode([text])
    np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize("engine", [TokenizersEncoder, TiktokenEncoder])
@pytest.mark.parametrize("special", ["", " " * 5000, "\x00\x01end of document\x02"])
def test_documents_encoded_at_once_have_the_ids_of_each_and_its_end(
    trained: RunTokenizer, engine: Any, special: str
) -> None:
    texts = [*TEXTS, special, "\x00\x01end of", " document\x02", "\n"]
    encoder = engine(trained)
    found = encoder.encode_documents([text.encode() for text in texts])
    end = [trained.end_of_document]
    expected = np.concatenate([part for ids in encoder.encode(texts) for part in (ids, end)])
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)


def test_a_tokenizer_that_tiktoken_cannot_express_keeps_its_own_engine(
    trained: RunTokenizer,
) -> None:
    spaced = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
    spaced["trim_offsets"] = True
    for changes in ({"normalizer": {"type": "NFKC"}}, {"pre_tokenizer": spaced}):
        assert choose_encoder(altered(trained, **changes), TEXTS) == "tokenizers"


def test_a_tokenizer_whose_merges_miss_a_token_keeps_its_own_engine(trained: RunTokenizer) -> None:
    model = json.loads(trained.json)["model"]
    model["merges"] = [["t", "h"], ["h", "e"], ["t", "he"]]
    # "the" is ["th", "e"] here: no merge joins those two. tiktoken joins whatever makes "the".
    assert choose_encoder(altered(trained, model=model), ["no sample shows it"]) == "tokenizers"


def test_a_split_by_regular_expression_uses_tiktoken_too(trained: RunTokenizer) -> None:
    pattern = r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    sequence = [{**split, "invert": False}, {**bytes_, "trim_offsets": True}]
    changed = altered(trained, pre_tokenizer={"type": "Sequence", "pretokenizers": sequence})
    assert choose_encoder(changed, TEXTS) == "tiktoken"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"'s| ?\p{L}+|\s+(?!\S)|\s", r"(?:'s| ?\p{L}+)|\s+(?!\S)|(?:\s)"),
        (r"(?i:'s|'t)|[^|(\]]?\p{L}|a++|b", r"(?:(?i:'s|'t)|[^|(\]]?\p{L})|a++|(?:b)"),
        (r"[]|[]+|\||(?:a|(b|c))", r"(?:[]|[]+|\||(?:a|(b|c)))"),
        (r"a|(?<=b)c|\p{L}+|\p{N}{1,3}+|d", r"(?:a)|(?<=b)c|(?:\p{L}+)|\p{N}{1,3}+|(?:d)"),
        (r"(?i)a|b", r"(?i)a|b"),
        (r"[a[b|c]]|d", r"[a[b|c]]|d"),
        (r"a)|(b", r"a)|(b"),
    ],
)
def test_plain_alternatives_of_a_split_are_grouped(pattern: str, expected: str) -> None:
    assert group_alternatives(pattern) == expected


SPLITS = [
    _GPT2_SPLIT,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
]


@no_deadline
@pytest.mark.parametrize("pattern", SPLITS)
@given(text=st.text(alphabet="aB1'sé日 \t\r\n.\u2003\U0001f389") | st.text())
def test_a_grouped_split_cuts_like_the_one_that_it_was_made_of(pattern: str, text: str) -> None:
    # Ranks of bytes and of every pair of them, so that each piece's borders show in the ids.
    ids = [splitter(each).encode_ordinary(text) for each in (pattern, group_alternatives(pattern))]
    assert ids[0] == ids[1]


@cache
def splitter(pattern: str) -> tiktoken.Encoding:
    ranks = {bytes([b]): b for b in range(256)}
    ranks |= {bytes([a, b]): 256 + 256 * a + b for a in range(256) for b in range(256)}
    return tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def test_truncation_and_padding_of_an_imported_tokenizer_are_off(trained: RunTokenizer) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (expected,) = TokenizersEncoder(trained).encode([LITERAL])
    (ids,) = TokenizersEncoder(altered(trained, truncation=truncation)).encode([LITERAL])
    np.testing.assert_array_equal(ids, expected)


def test_importing_a_folder_takes_its_end_of_document(
    trained: RunTokenizer, tmp_path: Path
) -> None:
    content = json.loads(trained.json)
    entry = {**content["added_tokens"][0], "id": 1000, "content": "<stop>"}
    content["added_tokens"].append(entry)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    store = open_store(tmp_path / "store")
    imported = import_tokenizer(store, folder)
    assert (imported.end_of_document, imported.vocabulary) == (1000, 1001)
    assert import_tokenizer(store, folder / "tokenizer.json") == load_tokenizer(store) == imported
    config.unlink()
    other = open_store(tmp_path / "other")
    assert import_tokenizer(other, folder).end_of_document == trained.end_of_document


def test_importing_another_tokenizer_than_the_runs_is_refused(
    trained: RunTokenizer, tmp_path: Path
) -> None:
    store = open_store(tmp_path / "store")
    (tmp_path / "a.json").write_text(trained.json)
    (tmp_path / "b.json").write_text(altered(trained, normalizer={"type": "NFC"}).json)
    import_tokenizer(store, tmp_path / "a.json")
    with refused("tokenizer-differs"):
        import_tokenizer(store, tmp_path / "b.json")


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"model": {"type": "none"}}'])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    store = open_store(tmp_path / "store")
    with refused("file-missing" if content is None else "tokenizer-unreadable"):
        import_tokenizer(store, tmp_path)
    assert store.list("") == []


def test_a_tokenizer_without_an_end_of_document_is_refused(
    trained: RunTokenizer, tmp_path: Path
) -> None:
    content = trained.json.replace("<|endoftext|>", "<unnamed>")
    (tmp_path / "tokenizer.json").write_text(content)
    with refused("tokenizer-without-end"):
        import_tokenizer(open_store(tmp_path / "store"), tmp_path)


def test_a_configuration_that_is_no_json_is_refused(trained: RunTokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(trained.json)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with refused("tokenizer-unreadable") as broken:
        import_tokenizer(open_store(tmp_path / "store"), tmp_path)
    assert broken.value.where.endswith("tokenizer_config.json")


@pytest.mark.parametrize("ending", [Terminated, KeyboardInterrupt, SystemExit])
def test_a_request_to_end_passes_through_the_encoder(
    trained: RunTokenizer, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    class Ending:
        def encode_to_numpy(self, *_: object, **__: object) -> None:
            raise ending

    encoder = TiktokenEncoder(trained)
    monkeypatch.setattr(encoder, "_encoding", Ending())
    with pytest.raises(ending):
        encoder.encode(["a text"])


def test_an_altered_tokenizer_is_noticed(inbox: Store, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with refused("tokenizer-missing"):
        load_tokenizer(store)
    tokenizer = train_tokenizer(store, inbox, "en", 500, SETTINGS)
    store.write("tokenizer/tokenizer.json", tokenizer.json.replace('"the"', '"eht"').encode())
    with refused("tokenizer-altered"):
        load_tokenizer(store)


@pytest.mark.parametrize("run", ["ACGT", "=", "_-", " ", "\n ", "1", "\u00e9"])
def test_a_run_that_no_word_is_as_long_as_is_cut_for_training(tmp_path: Path, run: str) -> None:
    """Left whole, it would be trained on for hours."""
    inbox, store = open_store(tmp_path / "inbox"), open_store(tmp_path / "store")
    text = "some words " * 50 + run * (600_000 // len(run)) + "."
    inbox.write("en/a.jsonl", json.dumps({"text": text}).encode())
    inbox.write("en/_SUCCESS", b"")
    tokenizer = train_tokenizer(store, inbox, "en", 300, SETTINGS)
    assert 257 < tokenizer.vocabulary <= 300


def test_a_first_corpus_without_text_is_refused_with_its_records(tmp_path: Path) -> None:
    inbox, store = open_store(tmp_path / "inbox"), open_store(tmp_path / "store")
    row = json.dumps({"content": "a text of some words", "id": 1}).encode() + b"\n"
    inbox.write("en/a.jsonl", row * 1100 + b"no JSON")
    inbox.write("en/_SUCCESS", b"")
    with refused("no-text", "text") as caught:
        train_tokenizer(store, inbox, "en", 300, SETTINGS)
    problem = caught.value.problem
    assert "1100 missing-text, the first in a.jsonl at 0: no field 'text'" in problem
    assert "set corpora.text_field: content" in problem
    kept = store.read("refused/en/quarantine-00000.jsonl").splitlines()
    assert len(kept) == 1001
    inbox.write("steps/a.jsonl", json.dumps({"text": "a few words"}).encode())
    inbox.write("steps/_SUCCESS", b"")
    described = STEPS["gopher-quality"].model_validate({}).describe()
    settings = SETTINGS.model_copy(update={"steps": (described,)})
    with refused("no-text", "corpora.steps") as caught:
        train_tokenizer(store, inbox, "steps", 300, settings)
    assert "the steps leave none of its documents (1 gopher-quality/too-few-" in str(caught.value)
    inbox.write("none/a.json", b"[ ]")
    inbox.write("none/_SUCCESS", b"")
    with refused("no-text") as caught:
        train_tokenizer(store, inbox, "none", 300, SETTINGS)
    assert "there are no documents in its 1 files" in caught.value.problem
