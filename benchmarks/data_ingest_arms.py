"""One measurement of `data_ingest.py`: ARM FOLDER; prints a JSON line with its tokens and times.

FOLDER holds text.jsonl and a store with the tokenizer. Imports, starting Ray and a first small
ingest (in which its workers start and import) are not measured; all CPU of the process tree after
that is.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from perennial.corpora.byte_bpe import ByteBpe

SEQUENCE = 1024
END = "<|endoftext|>"


def main() -> None:
    arm, folder = sys.argv[1], Path(sys.argv[2])
    run, close = ARMS[arm](folder)
    cpu, wall = _cpu_seconds(), time.perf_counter()
    tokens = run()
    result = {
        "tokens": tokens,
        "cpu_seconds": _cpu_seconds() - cpu,
        "wall_seconds": time.perf_counter() - wall,
    }
    print(json.dumps(result))
    close()


Arm = tuple[Callable[[], int], Callable[[], None]]


def tiktoken_arm(folder: Path) -> Arm:
    """The bare engine as tiktoken ships it: texts in memory, one call a document."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    ours = _converted(folder)
    shipped = tiktoken.Encoding(
        "bare",
        pat_str=r50k_pat_str,
        mergeable_ranks=ours.encoding._mergeable_ranks,
        special_tokens=ours.encoding._special_tokens,
    )
    return _bare(dataclasses.replace(ours, encoding=shipped), folder)


def tiktoken_grouped_arm(folder: Path) -> Arm:
    """The same engine with the form of the split that the ingest gives it."""
    return _bare(_converted(folder), folder)


def _bare(bare: ByteBpe, folder: Path) -> Arm:
    texts, encode = _texts(folder), bare.encoding.encode_to_numpy
    before, marks = bare.before.apply, set(bare.before.marks)

    def run() -> int:
        found = (
            encode(before(text), allowed_special=marks, disallowed_special=()) for text in texts
        )
        return sum(len(ids) for ids in found) + len(texts)

    return run, _nothing


def tokenizers_arm(folder: Path) -> Arm:
    """`tokenizers` without offsets, a batch at a time, its ids taken."""
    from tokenizers import Tokenizer

    tokenizer, texts = Tokenizer.from_file(_tokenizer(folder)), _texts(folder)

    def run() -> int:
        count = len(texts)
        for start in range(0, len(texts), 1000):
            batch = tokenizer.encode_batch_fast(texts[start : start + 1000])
            count += sum(len(encoding.ids) for encoding in batch)
        return count

    return run, _nothing


def perennial_arm(folder: Path) -> Arm:
    """The whole ingest, with the search for near duplicates."""
    return _perennial(folder, near_duplicates=0.8)


def perennial_plain_arm(folder: Path) -> Arm:
    """The whole ingest without that search."""
    return _perennial(folder, near_duplicates=None)


def _perennial(folder: Path, near_duplicates: float | None) -> Arm:
    import ray

    from perennial.corpora import IngestSettings, land
    from perennial.corpora.ingest.pipeline import ingest_corpus
    from perennial.store import open_store

    store = open_store(folder / "store")
    inbox = store.sub("inbox")
    with (folder / "text.jsonl").open() as stream:
        (folder / "warm.jsonl").write_text("".join(next(stream) for _ in range(200)))
    for name, file in (("warm", "warm.jsonl"), ("text", "text.jsonl")):
        store.remove(f"corpora/{name}")
        land(inbox, name, [folder / file])
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    settings = IngestSettings(sequence_length=SEQUENCE, seed=1, near_duplicates=near_duplicates)
    small = {"piece_bytes": 50_000, "shard_tokens": 20_000}
    ingest_corpus(store, inbox, "warm", settings.model_copy(update=small))
    return lambda: ingest_corpus(store, inbox, "text", settings).counts.tokens, ray.shutdown


def datasets_arm(folder: Path) -> Arm:
    """datasets: map to ids, map to fixed rows (group_texts), Parquet."""
    from datasets import Dataset, disable_caching, disable_progress_bars
    from tokenizers import Tokenizer

    disable_caching()
    disable_progress_bars()
    tokenizer = Tokenizer.from_file(_tokenizer(folder))
    end = tokenizer.token_to_id(END)
    out = _emptied(folder / "datasets")
    counted: list[int] = []

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        ids = [[*e.ids, end] for e in tokenizer.encode_batch_fast(batch["text"])]
        counted.append(sum(map(len, ids)))
        return {"input_ids": ids}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        ids = [token for document in batch["input_ids"] for token in document]
        starts = range(0, len(ids) - len(ids) % SEQUENCE, SEQUENCE)
        return {"input_ids": [ids[start : start + SEQUENCE] for start in starts]}

    def run() -> int:
        data = Dataset.from_json(str(folder / "text.jsonl"), cache_dir=str(out / "cache"))
        data = data.map(encode, batched=True, remove_columns=data.column_names)
        data.shuffle(seed=1).map(group, batched=True).to_parquet(out / "rows.parquet")
        return sum(counted)

    return run, _nothing


def datatrove_arm(folder: Path) -> Arm:
    """datatrove: JsonlReader and DocumentTokenizer as they come, documents shuffled."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    out = _emptied(folder / "datatrove")
    reader = JsonlReader(str(folder), glob_pattern="text.jsonl")
    writer = DocumentTokenizer(
        str(out / "tokens"),
        _tokenizer(folder),
        local_working_dir=str(out / "work"),
        eos_token=END,
        seed=1,
    )
    executor = LocalPipelineExecutor([reader, writer], logging_dir=str(out / "log"))

    def run() -> int:
        return int(executor.run().stats[-1].stats["tokens"].total)

    return run, _nothing


ARMS: dict[str, Callable[[Path], Arm]] = {
    "tiktoken": tiktoken_arm,
    "tiktoken-grouped": tiktoken_grouped_arm,
    "tokenizers": tokenizers_arm,
    "perennial": perennial_arm,
    "perennial-plain": perennial_plain_arm,
    "datasets": datasets_arm,
    "datatrove": datatrove_arm,
}


def _texts(folder: Path) -> list[str]:
    with (folder / "text.jsonl").open() as stream:
        return [json.loads(line)["text"] for line in stream]


def _tokenizer(folder: Path) -> str:
    return str(folder / "store/tokenizer/tokenizer.json")


def _converted(folder: Path) -> ByteBpe:
    from perennial.corpora.byte_bpe import convert_to_tiktoken

    converted = convert_to_tiktoken(Path(_tokenizer(folder)).read_text())
    assert converted is not None
    return converted


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _cpu_seconds() -> float:
    """CPU of this process and all below it."""
    me, seconds = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        seconds += times.user + times.system
    return seconds


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()
