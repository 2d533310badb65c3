"""One `watch` of `warm_trunk.py`: IDLE_MINUTES BESIDE STAGES STEPS; prints a JSON line."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_models import model_spec, sequence_length, training_spec

import perennial
from perennial.controller.observer import ObservedRun, RunObserver
from perennial.errors import Terminated

if TYPE_CHECKING:
    from perennial.runs.state import Stage
    from perennial.training.job import Job
    from perennial.training.launcher import Progress

MODEL, WORKERS, VOCABULARY = "small", 2, 512
_Settings = tuple[dict[str, float], dict[str, bool]]
"""of `training` and of `evaluation`"""


class _Clock(RunObserver):
    """Notes when what happens to each stage.

    times: by stage and by what happened first; steps: seconds of a stage's steps.
    """

    def __init__(self) -> None:
        self.times: dict[str, dict[str, float]] = {}
        self.steps: dict[str, list[float]] = {}
        self.evaluated = threading.Condition()
        self._ingested = 0.0

    def _note(self, stage: str, what: str) -> None:
        self.times.setdefault(stage, {}).setdefault(what, time.time())

    def ingest_began(self, work: ObservedRun, corpus: str) -> None:
        self._ingested = time.time()

    def job_began(self, work: ObservedRun, job: Job) -> None:
        self.times.setdefault(job.name, {})["ingest"] = self._ingested
        self._note(job.name, "began")

    def job_progressed(self, work: ObservedRun, job: Job, progress: Progress) -> None:
        for row in progress.rows:
            self.steps.setdefault(job.name, []).append(sum(row["seconds"].values()))
            # The row comes up to half a second after its step.
            self._note(job.name, "first")

    def job_ended(self, work: ObservedRun, job: Job) -> None:
        self._note(job.name, "ended")

    def stage_evaluated(self, work: ObservedRun, stage: Stage) -> None:
        with self.evaluated:
            self._note(stage.name, "evaluated")
            self.evaluated.notify_all()

    def wait_for(self, stages: int) -> None:
        """Wait until so many stages are evaluated."""
        with self.evaluated:
            self.evaluated.wait_for(
                lambda: sum("evaluated" in times for times in self.times.values()) >= stages
            )


def main() -> None:
    settings = {"idle_minutes": float(sys.argv[1])}, {"beside_training": sys.argv[2] == "true"}
    stages, steps = int(sys.argv[3]), int(sys.argv[4])
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(_measure(Path(scratch), settings, stages, steps)))


def _measure(folder: Path, settings: _Settings, stages: int, steps: int) -> dict[str, Any]:
    """Run one watch: a stage, one that lands later, and `stages` that follow each other."""
    clock, landed = _Clock(), [0.0]
    run = perennial.open(_run_file(folder, settings, steps), observers=[clock])

    def land(number: int) -> None:
        run.land(f"corpus-{number:02d}", [_text(folder, number, steps)])
        landed[0] = time.time()

    def produce() -> None:
        land(0)
        clock.wait_for(1)
        if stages:
            land(1)
            landed_at.append(landed[0])
            clock.wait_for(2)
            for number in range(2, 2 + stages):
                land(number)
            clock.wait_for(2 + stages)
        os.kill(os.getpid(), signal.SIGTERM)

    landed_at: list[float] = []
    threading.Thread(target=produce, daemon=True).start()
    with suppress(Terminated, SystemExit):  # sent by `produce`
        run.watch(interval_seconds=0.5)
    names = sorted(clock.times)
    result: dict[str, Any] = {"step": statistics.median(clock.steps[names[0]])}
    if stages:
        result["landed"] = clock.times[names[1]]["first"] - landed_at[0]
        times = [clock.times[name] for name in names[2:]]
        between = _between(times)
        seconds = times[-1]["ended"] - times[0]["first"]
        computed = result["step"] * sum(len(clock.steps[name]) for name in names[2:])
        result |= between | {
            "goodput": computed / seconds,
            "goodput_without_evaluation": computed / (seconds - sum(between["evaluation"])),
        }
    return result


def _between(stages: list[dict[str, float]]) -> dict[str, list[float]]:
    """Return the seconds between the stages, by what they are spent on."""
    pairs = list(pairwise(stages))
    # A stage whose successor began before has been measured beside that one.
    evaluation = [
        0.0 if before["evaluated"] > after["began"] else before["evaluated"] - before["ended"]
        for before, after in pairs
    ]
    return {
        "between": [after["first"] - before["ended"] for before, after in pairs],
        "evaluation": evaluation,
        "ingest": [
            b["began"] - a["ended"] - m for (a, b), m in zip(pairs, evaluation, strict=True)
        ],
        "start": [after["first"] - after["began"] for _, after in pairs],
    }


def _run_file(folder: Path, settings: _Settings, steps: int) -> Path:
    training = training_spec(MODEL, WORKERS).model_dump(mode="json", exclude_defaults=True)
    document = {
        "name": "warm",
        "store": str(folder / "store"),
        "corpora": {"sequence_length": sequence_length(MODEL), "holdout": 0.01},
        "tokenizer": {"vocabulary": VOCABULARY},
        "model": model_spec(MODEL).model_dump(mode="json", exclude_defaults=True),
        "training": training | settings[0],
        "schedule": {"eta_max": 1e-3, "eta_const": 5e-4, "eta_min": 1e-4},
        "stages": {"budget": f"{steps} steps"},
        "evaluation": {"documents": 5} | settings[1],
        "release": {"sample_tokens": 0},
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(document))
    return path


def _text(folder: Path, number: int, steps: int) -> Path:
    """Write a corpus of more text than `steps` train."""
    drawn = random.Random(number)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(drawn.choices(letters, k=drawn.randint(2, 8))) for _ in range(2000)]
    batch = training_spec(MODEL, WORKERS).global_batch
    # A word has more than one token, with this vocabulary.
    documents = steps * batch * sequence_length(MODEL) // 200 + 200
    path = folder / f"corpus-{number:02d}.jsonl"
    with path.open("w") as sink:
        for _ in range(documents):
            sink.write(json.dumps({"text": " ".join(drawn.choices(words, k=200))}) + "\n")
    return path


if __name__ == "__main__":
    main()
