"""What entries for a new language are worth: bits per byte and tokens per byte, with and without.

English is trained first, then another language with a quarter of the tokens replayed. Three arms
see the same bytes of the same documents in the same order: the base's tokenizer (`without`), the
base's with merges continued over the new text (`growth`), and a tokenizer of as many entries that
was trained on both languages from the start (`union`), which a run that is fed as data arrives
cannot have. One process without Ray; tokenizers, growth and held-out loss are the product's own.

    python benchmarks/vocabulary_growth.py fetch build/vocabulary_growth
    python benchmarks/vocabulary_growth.py measure build/vocabulary_growth french 0
    python benchmarks/vocabulary_growth.py report build/vocabulary_growth \\
        > benchmarks/results/vocabulary_growth.md

French and Spanish are the encyclopaedia leads of the quickstart, German is Debian's `fortunes-de`
(`apt-get download`, so that the first command needs a Debian or Ubuntu for it; it goes on without).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from perennial.corpora.growth.extend import extend_from_sample, pieces_of_entries
from perennial.corpora.tokenizer_files import END_OF_DOCUMENT
from perennial.sources.sample_text import encyclopaedia_leads

BASE, ENTRIES = 2048, 1024
SEQUENCE, BATCH = 256, 4
TRAINED = {"english": 600_000, "other": 400_000}
HELD_OUT = 40_000
"""bytes of text"""
REPLAY = 0.25
ETA_MAX, ETA = 3e-3, 1.65e-3
ARMS = ("without", "growth", "union")
LANGUAGES = ("french", "spanish", "german")
SHAPE = {
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": SEQUENCE,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("fetch", "measure", "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("language", nargs="?", choices=LANGUAGES)
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    asked = parser.parse_args()
    match asked.verb:
        case "fetch":
            fetch(asked.folder)
        case "measure":
            measure(asked.folder, asked.language, asked.seed, asked.arms)
        case _:
            report(asked.folder)


def fetch(folder: Path) -> None:
    """Write a JSON list of documents for every language."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = encyclopaedia_leads()
    with tempfile.TemporaryDirectory() as scratch:
        command = "apt-get download fortunes-de && dpkg-deb -x fortunes-de_*.deb ."
        if subprocess.run(["sh", "-c", command], cwd=scratch, check=False).returncode == 0:
            files = sorted(Path(scratch, "usr/share/games/fortunes/de").glob("*"))
            plain = [file for file in files if not file.suffix and not file.is_symlink()]
            parts = (text for file in plain for text in file.read_text("utf-8").split("\n%\n"))
            texts["german"] = list(dict.fromkeys(filter(None, map(str.strip, parts))))
    for language, documents in texts.items():
        (folder / f"{language}.json").write_text(json.dumps(documents, ensure_ascii=False))


def measure(folder: Path, language: str, seed: int, arms: Sequence[str]) -> None:
    """Train arms and append a line for each to `results.jsonl`."""
    import torch

    torch.set_num_threads(1)
    english = _divide(folder, "english", TRAINED["english"], seed)
    other = _divide(folder, language, TRAINED["other"], seed)
    base = _train_tokenizer(english[0], BASE)
    extension = extend_from_sample(base, other[0], ENTRIES)
    union = _train_tokenizer([*english[0], *other[0]], BASE + len(extension.entries))
    for arm in arms:
        started = time.perf_counter()
        text = {"without": base, "growth": extension.json, "union": union}[arm]
        if arm == "union":
            first = _train(_new_model(text, seed), text, english[0], (), seed)
        else:
            first = _trunk(folder, base, english[0], seed)
            first = _grow(first, extension) if arm == "growth" else first
        # Documents of the first corpus keep the ids that they have.
        old = base if arm == "growth" else text
        before = _bits(first, old, english[1])
        replayed = _rows(old, english[0])
        model = _train(first, text, other[0], replayed, seed)
        line = {
            "language": language,
            "seed": seed,
            "arm": arm,
            "new bits": _bits(model, text, other[1]),
            "old bits": _bits(model, old, english[1]),
            "old bits before": before,
            "old bits served": _bits(model, text, english[1]),
            "new bytes a token": _bytes_a_token(text, other[1]),
            "old bytes a token": _bytes_a_token(text, english[1]),
            "steps": len(_rows(text, other[0])) / (1 - REPLAY) // BATCH,
            "parameters": model.num_parameters(),
            "entries": len(extension.entries),
            "unreachable": len(extension.unreachable),
            "seconds": time.perf_counter() - started,
        }
        print(json.dumps(line), flush=True)
        with (folder / "results.jsonl").open("a") as results:
            results.write(json.dumps(line) + "\n")


def _trunk(folder: Path, base: str, texts: Sequence[str], seed: int) -> Any:
    """Return the model after English, which is trained once for all languages."""
    from perennial.training.model.config import stored_model

    place = folder / f"trunk-{seed}"
    if not place.exists():
        _train(_new_model(base, seed), base, texts, (), seed).save_pretrained(place)
    return stored_model(place)


def _divide(folder: Path, language: str, size_bytes: int, seed: int) -> tuple[list[str], list[str]]:
    """Return documents to train and to hold out; which are held out does not depend on the seed."""
    documents = json.loads((folder / f"{language}.json").read_text())
    random.Random(0).shuffle(documents)
    held_out = list(_take(documents, HELD_OUT))
    trained = documents[len(held_out) :]
    random.Random(seed).shuffle(trained)
    return list(_take(trained, size_bytes)), held_out


def _take(documents: Iterable[str], size_bytes: int) -> Iterator[str]:
    taken = 0
    for document in documents:
        if taken >= size_bytes:
            return
        taken += len(document.encode())
        yield document


def _train_tokenizer(texts: Sequence[str], vocabulary: int) -> str:
    from perennial.corpora.tokenizer_training import _train as train_bpe

    text: str = train_bpe(texts, vocabulary).to_str()
    return text


def _encode(tokenizer_json: str, texts: Sequence[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    return [[*encoding.ids, end] for encoding in tokenizer.encode_batch(texts)]


def _rows(tokenizer_json: str, texts: Sequence[str]) -> np.ndarray:
    """Return documents end to end, in rows of a sequence."""
    ids = np.concatenate([np.array(ids) for ids in _encode(tokenizer_json, texts)])
    count = len(ids) // SEQUENCE
    return ids[: count * SEQUENCE].reshape(count, SEQUENCE)


def _bytes_a_token(tokenizer_json: str, texts: Sequence[str]) -> float:
    tokens = sum(len(ids) - 1 for ids in _encode(tokenizer_json, texts))
    return sum(len(text.encode()) for text in texts) / tokens


def _new_model(tokenizer_json: str, seed: int) -> Any:
    from perennial.config.training import ModelSpec
    from perennial.corpora.tokenizer_files import read_vocabulary
    from perennial.training.model.config import model_config, random_model

    spec = ModelSpec(architecture="gpt_neox", config=SHAPE)
    entries = max(read_vocabulary(tokenizer_json).values()) + 1
    return random_model(model_config(spec, entries, 0, SEQUENCE), seed)


def _grow(model: Any, extension: Any) -> Any:
    """Return a copy of a model with rows for new entries."""
    from perennial.training.model.config import stored_model
    from perennial.training.model.growth import grow_folder

    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        pieces = pieces_of_entries(extension.json, extension.first)
        grow_folder(Path(scratch), extension.first, pieces)
        return stored_model(Path(scratch))


def _train(
    model: Any, tokenizer_json: str, texts: Sequence[str], replayed: Sequence[Any], seed: int
) -> Any:
    """Return a copy of a model after one pass over texts; without replay, after a warmup too."""
    from copy import deepcopy

    import torch

    model = deepcopy(model)
    rows = _rows(tokenizer_json, texts)
    old = round(BATCH * REPLAY) if len(replayed) else 0
    new = BATCH - old
    optimizer = torch.optim.AdamW(model.parameters(), lr=ETA, betas=(0.9, 0.95), weight_decay=0.1)
    steps = len(rows) // new
    generator = random.Random(seed)
    order = generator.sample(range(len(rows)), len(rows))
    for step in range(steps):
        batch = rows[order[step * new : (step + 1) * new]]
        if old:
            again = [(step * old + number) % len(replayed) for number in range(old)]
            batch = np.concatenate([batch, np.asarray(replayed)[again]])
        for group in optimizer.param_groups:
            group["lr"] = ETA if len(replayed) else _eta(step / steps)
        ids = torch.from_numpy(batch.astype(np.int64))
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def _eta(done: float) -> float:
    """Return the rate of the first stage: warmup over a tenth, cooldown over half, constant."""
    if done < 0.1:
        return ETA_MAX * (done + 0.01) / 0.11
    return max(ETA, ETA_MAX - (ETA_MAX - ETA) * (done - 0.1) / 0.5)


def _bits(model: Any, tokenizer_json: str, texts: Sequence[str]) -> float:
    """Return held-out bits per byte, as the product counts them."""
    from perennial.evaluation.loss import Document, document_losses, heldout_loss

    ids = _encode(tokenizer_json, texts)
    documents = [
        Document(np.array(its), len(text.encode()), "", its[-1])
        for its, text in zip(ids, texts, strict=True)
    ]
    loss = heldout_loss("", document_losses(model, documents, SEQUENCE, 16)).bits_per_byte
    assert loss is not None
    return loss


def report(folder: Path) -> None:
    """Print the tables."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    lines.sort(key=lambda line: (LANGUAGES.index(line["language"]), ARMS.index(line["arm"])))
    for line in lines:
        groups[line["language"], line["arm"]].append(line)
    seeds = {language: len(groups.get((language, ARMS[0]), ())) for language in LANGUAGES}
    counts = ", ".join(f"{language} {count}" for language, count in seeds.items() if count)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    versions += f", tokenizers {version('tokenizers')}"
    print("# Entries for a new language\n")
    print(f"`python benchmarks/vocabulary_growth.py report {folder}`  ")
    print(f"{versions}; one thread a run, {sum(x['seconds'] for x in lines) / 60:.0f} minutes\n")
    print(_SETTING.format(counts=counts))
    _print_losses(groups)
    _print_costs(groups)


_SETTING = f"""A GPT-NeoX of 3 x 96 is trained on {TRAINED["english"] / 1e6:.1f} MB of English,
then on {TRAINED["other"] / 1e6:.1f} MB of another language, with {REPLAY:.0%} replay and the
optimizer reset. All arms see the same bytes.

- `without`: the {BASE:,} entries of a BPE that was trained on the English
- `growth`: {ENTRIES:,} merges continued over the new text
- `union`: {BASE + ENTRIES:,} entries that were trained on both from the start

Means over seeds ({{counts}}); in brackets the lowest and the highest. English is scored by the
tokenizer that its corpus was tokenised with, before the stage and after it; with `growth`, before
is after the rows were added. `served`: English as the grown tokenizer spells it, which is what a
release is given. Less is better but for bytes a token.
"""


def _print_losses(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    print("## Held-out bits per byte\n")
    print("| language | arm | new language | English before | after | English served |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    keys = ("new bits", "old bits before", "old bits", "old bits served")
    for (language, arm), its in groups.items():
        cells = (_spread([x[key] for x in its]) for key in keys)
        print(f"| {language} | {arm} | {' | '.join(cells)} |")


def _print_costs(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    print("\n## Bytes a token, and what the stage costs\n")
    print("| language | arm | new language | English | steps | parameters | unreachable entries |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for (language, arm), its in groups.items():
        new, old, steps, size, unreachable = (
            fmean(x[key] for x in its)
            for key in (
                "new bytes a token",
                "old bytes a token",
                "steps",
                "parameters",
                "unreachable",
            )
        )
        lost = f"{unreachable:.0f}" if arm == "growth" else ""
        cells = (f"{new:.2f}", f"{old:.2f}", f"{steps:.0f}", f"{size:,.0f}", lost)
        print(f"| {language} | {arm} | {' | '.join(cells)} |")


def _spread(values: Sequence[float]) -> str:
    mean = f"{fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"


if __name__ == "__main__":
    main()
