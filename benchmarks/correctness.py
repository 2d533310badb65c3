"""Losses, masks, sums of gradients, joins and memory: the naive way beside this code's.

    python benchmarks/correctness.py > benchmarks/results/correctness.md

Both columns are computed by this run, on CPUs: the naive way is a few lines in
`correctness_parts.py`, which torch, transformers or DeepSpeed would do if nothing was done about
it, and which this project did before it was measured. Flash attention's kernels are stand-ins in
plain torch behind transformers' own dispatch.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for the tests' models and kernels

STAGES = (0, 1, 2, 3)


def main() -> None:
    """Print every table; the measurements run in processes of their own."""
    quiet = {"DS_ACCELERATOR": "cpu", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ |= quiet | {"OMP_NUM_THREADS": "1"}
    libraries = ("torch", "deepspeed", "transformers")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    print(f"`{' '.join(['python', *sys.argv])}`  ")
    print(f"{versions}; {os.cpu_count()} cores, no GPU; load {os.getloadavg()[0]:.1f} at the start")
    _print_losses()
    _print_masks()
    _print_sums()
    _print_joins()
    _print_memory()


def _print_losses() -> None:
    from correctness_parts import losses

    rows = []
    for tokens, words in ((1024, 8192), (4096, 8192), (1024, 32768)):
        (found,) = _measure(1, losses, tokens, words)
        rows.append((f"{tokens:,} of {words:,} words", *_digits(found, 4)))
    _print_table(
        "Loss in bf16 by parts of the tokens, nats a token",
        "The naive way is the mean of torch's `linear_cross_entropy`, which adds the parts up in "
        "bf16. Gradients are compared with those of the whole logits: relative difference.",
        "tokens | fp32 | bf16, all logits | naive | this code | gradients, naive | and this code",
        rows,
    )


def _print_masks() -> None:
    from correctness_parts import masks

    rows = []
    for architecture in ("gpt_neox", "llama"):
        for micro_batch in (1, 2, 4):
            (found,) = _measure(1, masks, architecture, micro_batch)
            rows.append((architecture, str(micro_batch), *_scientific(found)))
    _print_table(
        "Document mask with flash attention",
        "Largest difference of a second document's logits from those of the document alone, in "
        "fp64. The naive way gives transformers the positions, which finds the documents itself.",
        "architecture | micro batch | naive | this code",
        rows,
    )


def _print_sums() -> None:
    from correctness_parts import sums_over_micro_batches, sums_over_workers

    rows = []
    for count in (8, 64, 256):
        for stage in STAGES:
            (found,) = _measure(1, sums_over_micro_batches, count, stage)
            rows.append((str(count), str(stage), *_digits(found, 4)))
    _print_table(
        "Gradients of bf16 summed over micro batches",
        "Relative error of a step along the gradient, against fp32. The naive way sums in bf16. "
        "What is left in fp32 is the rounding inside each micro batch's passes.",
        "micro batches | ZeRO stage | naive | this code",
        rows,
    )
    rows = []
    for workers in (1, 2, 4):
        for stage in STAGES:
            found = _measure(workers, sums_over_workers, stage)[0]
            rows.append((str(workers), str(stage), *_digits(found, 4)))
    _print_table(
        "Gradients of bf16 summed over workers",
        "As above, for 64 sequences, one a micro batch, divided among the workers; the naive way "
        "also reduces in bf16.",
        "workers | ZeRO stage | naive | this code",
        rows,
    )


def _print_joins() -> None:
    from correctness_parts import join

    rows = []
    for stage in STAGES:
        (found,) = _measure(1, join, stage)
        naive, ours = found["naive"], found["ours"]
        rows.append(
            (
                str(stage),
                f"{naive['changed']:.3%}",
                f"{ours['changed']:.3%}",
                f"{naive['of_update']:.2%}",
                f"{ours['of_update']:.2%}",
                f"{naive['after']:.2e}",
                f"{ours['after']:.2e}",
            )
        )
    _print_table(
        "The fp32 weights at a join in bf16",
        "Forty steps cut in two. The naive way begins the second half with the stored bf16 "
        "weights; the moments are kept in both. `changed` is the share of the fp32 weights that "
        "are others after the cut; `of the update` how much, beside what the last 20 steps "
        "changed; `at the end` the largest difference from 40 steps that were not cut.",
        "ZeRO stage | changed, naive | and this code | of the update, naive | and this code "
        "| at the end, naive | and this code",
        rows,
    )


def _print_memory() -> None:
    from correctness_parts import bucket, loading, rollback

    rows = []
    for stage in STAGES:
        (found,) = _measure(1, rollback, stage)
        rows.append((str(stage), *(f"{share:.0%}" for share in found)))
    _print_table(
        "Memory that an engine keeps after a rollback",
        "Share of the bytes of weights and optimizer state that are still there. The naive way is "
        "DeepSpeed's `destroy` and `del`, which leave cycles to a collection.",
        "ZeRO stage | naive | naive, collected | this code",
        rows,
    )
    rows = []
    for workers in (1, 2, 4):
        of_ranks = _measure(workers, loading)
        worst = [max(found) for found in zip(*of_ranks, strict=True)]
        rows.append((str(workers), *(f"{size / 2**20:,.0f}" for size in worst)))
    _print_table(
        "Loading a stored model under ZeRO 3",
        "MiB by which the largest worker grows at most, for a model of 254 MiB in four files. The "
        "naive way loads it whole in every worker.",
        "workers | naive | this code",
        rows,
    )
    rows = []
    for stage in (1, 2, 3):
        (found,) = _measure(1, bucket, stage)
        rows.append((str(stage), *(f"{size / 2**20:,.0f}" for size in found)))
    _print_table(
        "The bucket of gradients",
        "MiB that torch has allocated at most in three steps of a model of 7 MiB. The naive way is "
        "DeepSpeed's default of 500 million numbers.",
        "ZeRO stage | naive | this code",
        rows,
    )


def _measure(workers: int, part: Any, *settings: Any) -> list[Any]:
    """Return what a part found on each rank."""
    from correctness_parts import report

    from tests.support.gloo import run_on

    with tempfile.TemporaryDirectory() as folder:
        run_on(workers, report, part, Path(folder), *settings)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(workers)]


def _digits(numbers: Iterable[float], digits: int) -> list[str]:
    return [f"{number:.{digits}f}" for number in numbers]


def _scientific(numbers: Iterable[float]) -> list[str]:
    return [f"{number:.1e}" for number in numbers]


def _print_table(title: str, text: str, columns: str, rows: Iterable[Iterable[str]]) -> None:
    print(f"\n## {title}\n\n{text}\n")
    print(f"| {columns} |")
    print(f"|{' --- |' * len(columns.split(' | '))}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
