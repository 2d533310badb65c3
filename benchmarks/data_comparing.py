"""What comparing documents costs: near duplicates among boilerplate, and evaluation texts.

In one process, on the passes of an ingest that compare (`near_dedup`, `decontaminate`), with the
tokenizer's own work as the measure. Corpora are words of the source files of this Python in random
order, 300 a document; of a boilerplate corpus the first 30, 50 or 70% of every document are the
same. 107 trained documents of each are copies of held-out ones, with other white space. Chinese
text is characters of a real passage in random order. Rounds are interleaved; medians.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

if TYPE_CHECKING:
    from perennial.corpora.encoders import Encoder
    from perennial.corpora.tokenizer import RunTokenizer

WORDS, COPIES, SIMILARITY = 300, 107, 0.8


class Corpus(NamedTuple):
    """Texts to hold out, and texts to train, the last of which are copies of the former."""

    held: list[str]
    trained: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=6000, help="of each corpus")
    parser.add_argument("--held", type=int, default=1000, help="held-out documents")
    asked = parser.parse_args()
    words = _read_words()
    corpora = {
        share: _make_corpus(words, share, asked.documents, asked.held) for share in (0, 30, 50, 70)
    }
    print(f"`{' '.join(['python', *sys.argv])}`  ")
    print(f"{os.cpu_count()} cores; tiktoken {version('tiktoken')}, numpy {version('numpy')}\n")
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = _train(Path(scratch), corpora[0].trained[:1500])
        _compare_near_duplicates(Path(scratch), tokenizer, corpora, asked.rounds)
        _compare_evaluation_texts(tokenizer, corpora[0].trained, asked.rounds)
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")


def _compare_near_duplicates(
    folder: Path, tokenizer: RunTokenizer, corpora: dict[int, Corpus], rounds: int
) -> None:
    from perennial.corpora.encoders import make_encoder
    from perennial.corpora.ingest.near_dedup import BandHasher, NearDuplicateIndex, write_index
    from perennial.corpora.manifest import InputFile
    from perennial.store import open_store
    from tests.support.passages import staged

    encoder = make_encoder(tokenizer, "tiktoken")
    hasher = BandHasher(tokenizer, encoder)
    indexes, seconds, found = {}, defaultdict[int, list[float]](list), {}
    for share, corpus in corpora.items():
        held = staged(corpus.held)
        texts = [held.take([row]).texts()[0] for row in range(len(held))]
        signatures = hasher.hash_documents(texts, encoder.encode_documents(texts))
        store = open_store(folder / f"held-{share}")
        write_index(store, 0, held, [signatures])
        file = InputFile(name="a", size_bytes=1, etag="")
        indexes[share] = NearDuplicateIndex(store, 1, (file,), SIMILARITY)
    documents = {share: staged(corpus.trained) for share, corpus in corpora.items()}
    for _ in range(rounds):
        for share, index in indexes.items():
            began, first, rows = time.process_time(), 0, []
            for batch in documents[share].batches():
                kept = batch.texts()
                signed = hasher.hash_documents(kept, encoder.encode_documents(kept))
                rows += [first + row for row in index.search(batch, signed)]
                first += len(batch)
            seconds[share].append(time.process_time() - began)
            found[share] = sum(row >= first - COPIES for row in rows), len(rows)
    plain = statistics.median(seconds[0])
    print("Tokenised and compared with held-out documents:\n")
    print("| boilerplate | CPU, s | of plain | lowest-highest | copies found | others removed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for share, values in seconds.items():
        copies, removed = found[share]
        cells = [f"{share}%", f"{statistics.median(values):.2f}"]
        cells += [f"{statistics.median(values) / plain:.2f}"]
        cells += [f"{min(values) / plain:.2f}-{max(values) / plain:.2f}"]
        print(f"| {' | '.join([*cells, f'{copies} of {COPIES}', str(removed - copies)])} |")


def _compare_evaluation_texts(tokenizer: RunTokenizer, english: list[str], rounds: int) -> None:
    from perennial.corpora.encoders import make_encoder
    from perennial.corpora.ingest.decontaminate import ContaminationIndex
    from tests.support.passages import PASSAGES, staged

    encoder = make_encoder(tokenizer, "tiktoken")
    size = sum(map(len, english))
    chinese = _draw(random.Random(1), PASSAGES["zh"], size // 3000)
    print("\nCompared with 200 evaluation texts, in CPU of tokenising the same text:\n")
    print("| text | MB | tokenised, s | compared, s | compared, of tokenised |")
    print("| --- | --- | --- | --- | --- |")
    for name, texts in {"words": english, "Chinese": chinese}.items():
        index = ContaminationIndex([text[:400] for text in random.Random(5).sample(texts, 200)])
        batches = list(staged(texts).batches())
        times = [
            (_time(encoder, batches, None), _time(encoder, batches, index)) for _ in range(rounds)
        ]
        encoded, compared = (statistics.median(column) for column in zip(*times, strict=True))
        size_mb = sum(len(text.encode()) for text in texts) / 1e6
        print(f"| {name} | {size_mb:.1f} | {encoded:.2f} | {compared:.2f} ", end="")
        print(f"| {compared / encoded:.2f} |")


def _time(encoder: Encoder, batches: list[object], index: object) -> float:
    """CPU seconds of tokenising the batches, or of comparing them with an index."""
    began = time.process_time()
    for batch in batches:
        if index is None:
            encoder.encode_documents(batch.texts())  # type: ignore[attr-defined]
        else:
            index.search(batch)  # type: ignore[attr-defined]
    return time.process_time() - began


def _read_words() -> list[str]:
    """Words of the standard library's source files."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [word for file in files for word in file.read_text(errors="replace").split()]


def _make_corpus(words: list[str], percent: int, documents: int, held: int) -> Corpus:
    order = random.Random(3)
    same = order.choices(words, k=WORDS * percent // 100)
    texts = [
        " ".join([*same, *order.choices(words, k=WORDS - len(same))])
        for _ in range(documents + held)
    ]
    copies = [text.replace(" ", "\n", 20) for text in texts[held - COPIES : held]]
    return Corpus(texts[:held], texts[held:] + copies)


def _draw(order: random.Random, passage: str, documents: int) -> list[str]:
    return ["".join(order.choices(passage, k=1000)) for _ in range(documents)]


def _train(folder: Path, texts: list[str]) -> RunTokenizer:
    from perennial.corpora import IngestSettings, land, train_tokenizer
    from perennial.store import open_store

    (folder / "a.txt").write_text("\n\n".join(texts))
    store = open_store(folder / "store")
    land(store.sub("inbox"), "a", [folder / "a.txt"])
    settings = IngestSettings(sequence_length=8, seed=0)
    return train_tokenizer(store, store.sub("inbox"), "a", 8000, settings)


if __name__ == "__main__":
    main()
