"""Runs of the same three corpora, whose stages are compared bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from perennial.store import Store
from perennial.training.checkpoint import manifest as checkpoints
from tests.support.cli import perennial
from tests.support.tiny_run import tiny_run, write_run, write_texts

NAMES = ("help", "code", "more")
STAGES = tuple(f"{number:02d}-{name}" for number, name in enumerate(NAMES))


def land_three(folder: Path, steps: int, **sections: dict[str, Any]) -> Path:
    """The file of a run of three corpora that landed, the last one half of another.

    Args:
        folder: a new one, for the run.
        steps: of a stage.
        sections: more settings, by section of the run file.
    """
    folder.mkdir()
    run = tiny_run(folder)
    run["stages"] = {"budget": f"{steps} steps"}
    for name, settings in sections.items():
        run[name] = run.get(name, {}) | settings
    run_file = write_run(folder, run)
    texts = write_texts(folder)
    lines = texts["code"].read_text().splitlines(keepends=True)
    texts["more"] = folder / "more.jsonl"
    for name, part in (("more", lines[len(lines) // 2 :]), ("code", lines[: len(lines) // 2])):
        texts[name].write_text("".join(part))
    for name in NAMES:
        perennial("land", run_file, name, texts[name])
    return run_file


def weights(store: Store, end: str) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    key = checkpoints.read_manifest(store, end).key_of(end, "model.safetensors")
    loaded: dict[str, torch.Tensor] = load_file(Path(store.url) / key)
    return loaded


def numbers_of(store: Store, stage: str) -> list[tuple[int, str]]:
    """Step, and what was computed in it, of every step of a stage."""
    _, rows = checkpoints.kept_rows(store, f"checkpoints/{stage}")
    kept = ("loss", "gradient_norm", "eta", "tokens_seen")
    return [(row["step"], json.dumps([row[name] for name in kept])) for row in rows]
