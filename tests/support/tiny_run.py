"""A run small enough for tests, on real text that every CPython carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

SEQUENCE_LENGTH = 128


def tiny_run(folder: Path, store: str | None = None) -> dict[str, Any]:
    """A run file's document: one layer of 32, sequences of 128 tokens, batches of 8."""
    return {
        "name": "tiny",
        "store": store or str(folder / "store"),
        "seed": 3,
        "corpora": {"sequence_length": SEQUENCE_LENGTH, "holdout": 0.1},
        "tokenizer": {"vocabulary": 300},
        "model": {
            "architecture": "gpt_neox",
            "config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
        },
        "training": {
            "workers": 2,
            "cpus_per_worker": 0.8,
            "global_batch": 8,
            "micro_batch": 4,
            "checkpoint_every": "5 steps",
        },
        "schedule": {
            "eta_max": 3e-3,
            "eta_const": 1.65e-3,
            "eta_min": 3e-4,
            "warmup": "10%",
            "cooldown": "60%",
        },
        "replay": {"share": 0.25},
        "stages": {"budget": "12 steps"},
        "release": {"anneal": "4 steps", "sample_tokens": 8},
        "evaluation": {"documents": 5},
    }


def write_run(folder: Path, document: dict[str, Any], name: str = "run.yaml") -> Path:
    """The document as a run file."""
    path = folder / name
    path.write_text(yaml.safe_dump(document))
    return path


def write_texts(folder: Path) -> dict[str, Path]:
    """Two small corpora as JSON lines: `help` (Python's help topics) and `code` (its modules)."""
    from pydoc_data.topics import topics

    library = Path(json.__file__).parent.parent
    modules = sorted(library.glob("a*.py"))
    texts = {
        "help": [text[:6000] for text in topics.values()],
        "code": [part for path in modules for part in path.read_text().split("\n\n\n")],
    }
    paths = {}
    for name, documents in texts.items():
        paths[name] = folder / f"{name}.jsonl"
        lines = [json.dumps({"text": text}) for text in documents]
        paths[name].write_text("\n".join(lines) + "\n")
    return paths
