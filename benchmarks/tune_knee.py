"""Which search finds the knee of the full grid, and at what part of the grid's compute.

The setting is the quickstart's own: the trunk after English, the stage of French, its model, its
corpora, its held-out documents. `measure` trains every point of a 4 x 4 grid for half of the stage,
with the plan, schedule and held-out measurement of `perennial tune`'s trials, and measures it on
the way; but in one process without Ray, whose start of a worker group would take longer than a
trial. It may be killed: a point that is finished is kept. `report` then runs every searcher over
that table with many seeds: what it would have trained, and how far its knee is from the grid's.

    make quickstart
    python benchmarks/tune_knee.py measure build/tune_knee.jsonl
    python benchmarks/tune_knee.py report build/tune_knee.jsonl > benchmarks/results/tune_knee.md
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tune_knee_searches import report

from perennial.config import load_run, parse
from perennial.config.search import Point, TuningSpec
from perennial.controller.context import Workspace
from perennial.evaluation.evaluate import MAX_WINDOWS, load_model
from perennial.evaluation.heldout import read_documents
from perennial.evaluation.loss import document_losses
from perennial.mixture.batches import Batches
from perennial.mixture.row_reader import RowReader
from perennial.search.begin import plan_search
from perennial.search.space import space_of
from perennial.search.trials import Bench, objective_values
from perennial.store import Store
from perennial.training.checkpoint.manifest import place_of, read_manifest
from perennial.training.job import Job

ETAS = [4.0e-4, 8.0e-4, 1.65e-3, 3.0e-3]
SHARES = [0.0, 0.05, 0.15, 0.5]
STEPS = 32
"""of a trial: half of the stage"""
LOOKS = (4, 7, 16)
"""steps at which a trial is measured on its way"""


class Quiet:
    """A narrator for nobody."""

    def say(self, text: str) -> None:
        """Nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("measure", "report"))
    parser.add_argument("table", type=Path)
    parser.add_argument("--run", type=Path, default=Path("pipelines/quickstart.yaml"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="of the run file, such as store=FOLDER")
    asked = parser.parse_intermixed_args()
    if asked.verb == "report":
        print(report(asked.table))
        return
    measure(asked.run, asked.overrides, asked.table, asked.threads)


def measure(run_file: Path, overrides: list[str], table: Path, threads: int) -> None:
    """Append a line for every point that the table does not have yet."""
    import torch

    torch.set_num_threads(threads)
    work = Workspace(load_run(run_file, overrides), str(run_file), Quiet())  # type: ignore[arg-type]
    work.ledger.read()
    document = {
        "name": "knee",
        "run": str(run_file),
        "after": "00-english",
        "corpus": "french",
        "budget": f"{STEPS} steps",
        "eta_const": ETAS,
        "replay": SHARES,
    }
    search = plan_search(work, "tune_knee", parse(document, TuningSpec, "tune_knee"), ingest=False)
    lines = table.read_text().splitlines() if table.exists() else []
    done = {Point(**json.loads(line)["point"]) for line in lines[1:]}
    trainer = Trainer(work.store, search.bench)
    with table.open("a") as sink:
        if not lines:
            print(json.dumps(trainer.head(search.here, threads)), file=sink, flush=True)
        for point in space_of(parse(document, TuningSpec, "tune_knee"), search.here).grid():
            if point not in done:
                print(json.dumps(trainer.line(point)), file=sink, flush=True)


class Trainer:
    """Trains and measures points in this process."""

    def __init__(self, store: Store, bench: Bench) -> None:
        self.store, self.bench = store, bench
        limit = bench.spec.evaluation.documents
        self.documents = {
            corpus: read_documents(store, corpus, limit) for corpus in (bench.corpus, *bench.old)
        }
        self.before = self._losses(self._model())

    def head(self, here: Point, threads: int) -> dict[str, Any]:
        """What all lines share."""
        return {
            "steps": self.bench.steps,
            "tokens_per_step": self.bench.spec.tokens_per_step,
            "here": asdict(here),
            "before": self.before,
            "versions": {name: version(name) for name in ("torch", "ray", "optuna", "numpy")},
            "cores": os.cpu_count(),
            "threads": threads,
        }

    def line(self, point: Point) -> dict[str, Any]:
        """A point's objectives at every look and at the end."""
        began = time.monotonic()
        bench = self.bench
        decided = bench.branched(point)
        job = bench.job(bench.run_spec(point), decided, bench.first_step + bench.steps)
        looks = {}
        for step, model in islice(self._train(job), bench.steps):
            if step in (*LOOKS, bench.steps):
                nats = self._losses(model)
                values = objective_values(
                    bench.objectives, nats, self.before, bench.corpus, bench.old
                )
                looks[step] = list(values.values())
        return {"point": asdict(point), "looks": looks, "seconds": time.monotonic() - began}

    def _model(self) -> Any:
        manifest = read_manifest(self.store, self.bench.source)
        return load_model(Path(self.store.url) / place_of(self.bench.source, manifest.attempt))

    def _losses(self, model: Any) -> dict[str, float]:
        length = self.bench.spec.corpora.sequence_length
        found = {
            corpus: document_losses(model, documents, length, MAX_WINDOWS)
            for corpus, documents in self.documents.items()
        }
        return {c: sum(d.nats for d in f) / sum(d.tokens for d in f) for c, f in found.items()}

    def _train(self, job: Job) -> Iterator[tuple[int, Any]]:
        """The model after every step of the job's plan, at the job's rate."""
        import torch

        model, spec = self._model(), job.training
        groups = _groups(model, spec.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=spec.betas, eps=spec.epsilon)
        for step, ids in enumerate(_batches(self.store, job)):
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = job.eta(job.first_step + step)
            parts = torch.from_numpy(ids).split(spec.micro_batch)
            for part in parts:
                loss = model(input_ids=part, labels=part, use_cache=False).loss
                (loss * len(part) / len(ids)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            yield step + 1, model


def _groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def _batches(store: Store, job: Job) -> Iterator[Any]:
    """The sequences `(global batch, sequence)` of every step, as the plan names them."""
    dtype = np.dtype(job.dtype)
    reader = RowReader(store, job.layouts, job.sequence_length * dtype.itemsize)
    names = [source.corpus for source in job.mix.sources]
    deal = Batches(job.mix, 0)
    for _ in range(job.mix.steps):
        sources, rows = deal.take(1)
        parts = []
        for index, name in enumerate(names):
            wanted = rows[0][sources[0] == index]
            # A reader takes ascending runs; wrapping makes two of them.
            parts += [reader.read([(name, wanted)])] if len(wanted) else []
        yield np.concatenate(parts).view(dtype).astype(np.int64)


if __name__ == "__main__":
    main()
