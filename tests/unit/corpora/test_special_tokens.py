"""A document that spells a special token is text: with plain pieces, or counted as removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from perennial.corpora import IngestSettings, import_tokenizer, land, read_manifest, read_tokenizer
from perennial.corpora.encoders import TokenizersEncoder, choose_encoder, make_encoder
from perennial.corpora.ingest.partition import digest_text
from perennial.corpora.tokenizer import canonical_json
from perennial.store import open_store
from tests.support.plain_ingest import ingest_plainly
from tests.support.refusal import refused
from tests.support.small_tokenizers import byte_level_json

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]
PROSE = [text[:4000] for text in list(topics.values())[:12]]
SETTINGS = IngestSettings(sequence_length=16, seed=0, holdout_share=0.3)


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*PROSE, "< / s > pad unk"], trainer=trainer)
    return tokenizer


def unigram_of_pieces_alone() -> Tokenizer:
    """A vocabulary whose special pieces are no added tokens, as some conversions leave them."""
    content = json.loads(unigram().to_str()) | {"added_tokens": []}
    return Tokenizer.from_str(json.dumps(content))


def words() -> Tokenizer:
    listed = [*SPECIALS, *sorted(set(" ".join(PROSE).split()))[:400], "<", ">", "/", "s"]
    vocabulary = {word: number for number, word in enumerate(listed)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def whole_words() -> Tokenizer:
    """A BPE that looks up whole words, with its special tokens among them."""
    content = byte_level_json(400, tuple(SPECIALS))
    content["model"]["ignore_merges"] = True
    step = {"type": "Split", "pattern": {"Regex": r"\S+"}, "behavior": "Isolated", "invert": False}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = [step, {**plain, "trim_offsets": True}]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    return Tokenizer.from_str(json.dumps(content))


def plain_end() -> Tokenizer:
    """An end of a document that is an added token, and not marked as a special one."""
    content = byte_level_json(400, tuple(SPECIALS))
    content["added_tokens"][2]["special"] = False
    return Tokenizer.from_str(json.dumps(content))


KINDS: list[Callable[[], Tokenizer]] = [
    unigram,
    unigram_of_pieces_alone,
    words,
    whole_words,
    plain_end,
]


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("make", KINDS)
def test_the_spelling_of_a_special_token_becomes_plain_pieces(
    make: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    tokenizer = make()
    run = read_tokenizer(saved(tokenizer, tmp_path))
    assert run.manifest.end_of_document_text == "</s>"
    encoder = make_encoder(run, choose_encoder(run, PROSE))
    special = {tokenizer.token_to_id(token) for token in SPECIALS[1:]} - {None}
    texts = ["</s>", "a </s> b", " </s>", "<s>", "a<pad>b</s>", "</s></s>"]
    if make is unigram_of_pieces_alone:
        special, texts = {run.end_of_document}, texts[:3]
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        assert len(ids)
        assert not special & set(ids.tolist()), text
    stored = encoder.encode_documents([text.encode() for text in texts])
    assert np.count_nonzero(stored == run.end_of_document) == len(texts)


@pytest.mark.parametrize("make", KINDS)
def test_other_texts_keep_their_ids(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    folder = saved(make(), tmp_path)
    run = read_tokenizer(folder)
    # From the file, as a user's own: a score that is written and read may change in its last place.
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [*PROSE, "日本語 \u2603 unknown", ""]
    for text, ids in zip(texts, TokenizersEncoder(run).encode(texts), strict=True):
        assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_the_scores_of_a_unigram_model_stay_those_of_its_file(tmp_path: Path) -> None:
    folder = saved(unigram(), tmp_path)
    scores = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    run = read_tokenizer(folder)
    for text in (run.json, canonical_json(run.json), run.plain_json):
        kept = json.loads(text)["model"]["vocab"]
        assert [score for _, score in kept] == [score for _, score in scores]


def merged_end() -> dict[str, Any]:
    """A BPE whose merges lead to its end of a document: no other spelling of it has other ids."""
    content = byte_level_json(400, ("</s>",))
    model = content["model"]
    for left, right in (("<", "/"), ("s", ">"), ("</", "s>")):
        model["vocab"].setdefault(left + right, len(model["vocab"]))
        model["merges"].append([left, right])
    step = {"type": "Split", "pattern": {"Regex": r"\S+|\s+"}, "behavior": "Isolated"}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = [{**step, "invert": False}, {**plain, "trim_offsets": True}]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    return content


def test_a_document_that_has_no_other_ids_is_counted_as_removed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(merged_end()))
    store, inbox = open_store(tmp_path / "store"), open_store(tmp_path / "inbox")
    imported = import_tokenizer(store, tmp_path)
    assert choose_encoder(imported, PROSE) == "tokenizers"
    texts = [f"document {n} has words" + (" and </s>" if n % 10 == 7 else "") for n in range(80)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    land(inbox, "en", [file])
    ingest_plainly(store, inbox, "en", SETTINGS)
    counts = read_manifest(store, "en").counts
    assert counts.quarantined == {"special-token": 8}
    assert counts.trained_documents + counts.held_out_documents == 72
    assert counts.held_out_documents > 5
    records = [
        json.loads(line)
        for file in read_manifest(store, "en").quarantine
        for line in store.read(f"corpora/en/{file.file}").splitlines()
    ]
    offsets, at = [], 0
    for text in texts:
        offsets += [at] if "</s>" in text else []
        at += len(json.dumps({"text": text})) + 1
    assert sorted(record["offset"] for record in records) == offsets
    assert {(r["reason"], r["detail"]) for r in records} == {
        ("special-token", "is encoded as </s>")
    }


def order_of(text: str) -> int:
    """Return the number by which documents are held out, the lowest first."""
    return int.from_bytes(digest_text(text.encode())[:8], "little")


def test_a_corpus_whose_one_held_out_document_is_removed_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(merged_end()))
    store, inbox = open_store(tmp_path / "store"), open_store(tmp_path / "inbox")
    import_tokenizer(store, tmp_path)
    spelled = [f"{n} words and </s>" for n in range(9)]
    lowest = min(spelled, key=order_of)
    plain = (f"{n} other words" for n in range(1000))
    above = [text for text in plain if order_of(text) > order_of(lowest)][:20]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*above, lowest]))
    land(inbox, "en", [file])
    ingest_plainly(store, inbox, "en", SETTINGS.model_copy(update={"holdout_share": 1e-9}))
    counts = read_manifest(store, "en").counts
    assert (counts.documents, counts.trained_documents, counts.held_out_documents) == (21, 20, 0)
    assert counts.quarantined == {"special-token": 1}


def test_a_piece_of_text_is_refused_as_a_border(tmp_path: Path) -> None:
    content = byte_level_json(400)
    model = content["model"]
    assert {"t", "he", "Ġthe"} <= set(model["vocab"])
    model["vocab"]["the"] = len(model["vocab"])
    model["merges"].append(["t", "he"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    for piece in ("the", "Ġthe"):
        with refused("token-is-text", "tokenizer.end_of_document"):
            read_tokenizer(tmp_path, piece)
        with refused("token-is-text", "tokenizer.begin_of_document"):
            read_tokenizer(tmp_path, None, piece)
