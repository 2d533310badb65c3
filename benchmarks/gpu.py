"""Print where a machine with GPUs stands: `sh benchmarks/gpu.sh [--cpu] [--sections a,b]`.

Each part runs in processes of its own, so that one which dies is a line of the report.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CELL_SECONDS = 180
RUN_SECONDS = 900
RUN = """\
name: gpu
store: {store}
seed: 3
corpora: {{sequence_length: 128, holdout: 0.1}}
tokenizer: {{vocabulary: 300}}
model:
  architecture: llama
  config: {{hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4}}
training:
  workers: {workers}
  gpus_per_worker: {gpus}
  cpus_per_worker: 0.8
  global_batch: 8
  micro_batch: 2
  precision: {precision}
  checkpoint_every: 10 steps
schedule: {{eta_max: 3.0e-3, eta_const: 1.65e-3, eta_min: 3.0e-4, warmup: 10%, cooldown: 60%}}
stages: {{budget: 60 steps}}
"""


def main() -> None:
    """Run the sections that are asked for and print their tables as they are ready."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="the half that needs no GPU")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of the default's")
    options = parser.parse_args()
    import torch

    on_cpu = options.cpu or not torch.cuda.is_available()
    print(f"# Where this machine stands\n\n`sh benchmarks/gpu.sh{' --cpu' if on_cpu else ''}`")
    for name in options.sections.split(","):
        began = time.perf_counter()
        print(f"\n## {inspect.cleandoc(SECTIONS[name].__doc__ or name)}\n", flush=True)
        for line in SECTIONS[name](on_cpu):
            print(line, flush=True)
        print(f"\n{time.perf_counter() - began:.0f} s", flush=True)


def preflight(on_cpu: bool) -> Iterator[str]:
    """The machine"""
    import torch

    yield "| | |"
    yield "| --- | --- |"
    for package in ("torch", "deepspeed", "ray", "transformers"):
        yield f"| {package} | {version(package)} |"
    yield f"| Python, CPUs | {platform.python_version()}, {os.cpu_count()} |"
    yield f"| free disk in {tempfile.gettempdir()} | {shutil.disk_usage('/tmp').free >> 30} GiB |"
    if on_cpu:
        yield "| GPUs | none, or not asked for |"
        return
    for index in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(index)
        yield f"| GPU {index} | {known.name}, {known.total_memory >> 30} GiB |"
    yield f"| CUDA, NCCL | {torch.version.cuda}, {'.'.join(map(str, torch.cuda.nccl.version()))} |"
    yield f"| bf16 | {'yes' if torch.cuda.is_bf16_supported() else 'no'} |"
    has_flash = importlib.util.find_spec("flash_attn") is not None
    yield f"| flash-attn | {'installed' if has_flash else 'not installed'} |"


def masks(on_cpu: bool) -> Iterator[str]:
    """Document mask beside the same documents alone on the CPU

    The largest difference of a logit, for two rows of two documents; rounding in bf16 is about
    0.02, a document that sees the one before it is off by 0.4.
    """
    names = ["sdpa", "eager"]
    if not on_cpu:
        names += ["flex_attention", "flash_attention_2", "flash_attention_3"]
    yield "| attention | precision | largest difference |"
    yield "| --- | --- | --- |"
    for name in names:
        for precision in ("fp32", "bf16"):
            if name.startswith("flash") and precision == "fp32":
                continue
            outcome = _in_process("mask", {"attention": name, "precision": precision}, on_cpu)
            yield f"| {name} | {precision} | {_told(outcome, 'difference', '.4f')} |"


def cells(on_cpu: bool) -> Iterator[str]:
    """ZeRO, precision, offload and compile: ten steps each

    Losses of one precision should agree with those of ZeRO 0 in it.
    """
    precisions = ("fp32", "bf16") if on_cpu else ("fp32", "bf16", "fp16")
    yield "| ZeRO | precision | offload | compile | loss after 10 steps | ms a step | peak MiB |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for stage in range(4):
        for precision in precisions:
            for offload in ("none", "optimizer", "weights"):
                if (offload == "optimizer" and not stage) or (offload == "weights" and stage < 3):
                    continue
                for compiled in (False, True):
                    if compiled and (on_cpu or offload != "none"):
                        continue
                    settings = {
                        "zero_stage": stage,
                        "precision": precision,
                        "cpu_offload": offload,
                        "compile": compiled,
                    }
                    outcome = _in_process("cell", settings, on_cpu)
                    yield (
                        f"| {stage} | {precision} | {offload} | {'yes' if compiled else 'no'} "
                        f"| {_told(outcome, 'loss', '.5f')} | {_told(outcome, 'step_ms', '.0f')} "
                        f"| {_told(outcome, 'peak_mib', '.0f')} |"
                    )


def snapshots(on_cpu: bool) -> Iterator[str]:
    """A step beside a snapshot, and one without"""
    outcome = _in_process("snapshot", {"precision": "bf16", "zero_stage": 1}, on_cpu)
    yield "| | |"
    yield "| --- | --- |"
    yield f"| step without, ms | {_told(outcome, 'plain_ms', '.1f')} |"
    yield f"| step beside one, ms | {_told(outcome, 'beside_ms', '.1f')} |"
    yield f"| the snapshot is of its step | {_told(outcome, 'same', '')} |"


def resume(on_cpu: bool) -> Iterator[str]:
    """A run killed in its middle and started again, beside one that was not"""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            whole = _train(Path(scratch, "whole"), on_cpu, kill=False)
            killed = _train(Path(scratch, "killed"), on_cpu, kill=True)
        except (subprocess.SubprocessError, RuntimeError, OSError) as failure:
            yield f"failed: {' '.join(str(failure).split())[-300:]}"
            return
        import torch

        off = max(float((whole[n].float() - killed[n].float()).abs().max()) for n in whole)
        equal = all(torch.equal(whole[name], killed[name]) for name in whole)
        yield f"Weights after 60 steps: {'bitwise equal' if equal else f'off by {off:.2e}'}."


def speed(on_cpu: bool) -> Iterator[str]:
    """Speed of the engine beside a bare loop of torch

    MFU by PaLM's definition. The bare loop has the same model in bf16, torch's AdamW and no
    fp32 weights, so it does less; medians of the steps after the fourth.
    """
    models = ["small"] if on_cpu else ["125m", "1b"]
    yield "| model | tokens/s | MFU | bare loop, tokens/s | ratio |"
    yield "| --- | --- | --- | --- | --- |"
    for model in models:
        ours, bare = (_in_process(arm, {"model": model}, on_cpu) for arm in ("engine", "bare"))
        ratio = "-"
        if "tokens_per_second" in ours and "tokens_per_second" in bare:
            ratio = f"{ours['tokens_per_second'] / bare['tokens_per_second']:.2f}"
        yield (
            f"| {model} | {_told(ours, 'tokens_per_second', ',.0f')} | {_told(ours, 'mfu', '.3f')} "
            f"| {_told(bare, 'tokens_per_second', ',.0f')} | {ratio} |"
        )


def quickstart(on_cpu: bool) -> Iterator[str]:
    """The quickstart's three stages on the GPU"""
    if on_cpu:
        yield "Left out: `make quickstart` is this on a CPU."
        return
    words = ["training.gpus_per_worker=1", "training.workers=1"]
    with tempfile.TemporaryDirectory() as scratch:
        run_file = "pipelines/quickstart.yaml"
        text = Path(scratch, "text")
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "pipelines/fetch_quickstart.py", str(text)], cwd=ROOT, check=True
        )
        store = [f"store={scratch}/store", *words]
        for corpus in (text / "corpora.txt").read_text().split():
            file = str(text / f"{corpus}.jsonl")
            _perennial("land", run_file, corpus, file, *store[:1])
            _perennial("watch", run_file, "--once", *store)
        state = json.loads(_perennial("evaluate", run_file, "--json", *store))
        yield f"{time.perf_counter() - began:.0f} s. Held-out losses, nats per token:"
        yield ""
        for stage in state["matrix"]["stages"]:
            losses = {name: loss["nats_per_token"] for name, loss in stage["losses"].items()}
            yield f"- after {stage['name']}: " + ", ".join(
                f"{name} {nats:.3f}" for name, nats in losses.items()
            )


SECTIONS: dict[str, Callable[[bool], Iterator[str]]] = {
    "preflight": preflight,
    "masks": masks,
    "cells": cells,
    "snapshots": snapshots,
    "resume": resume,
    "speed": speed,
    "quickstart": quickstart,
}


def _told(outcome: dict[str, Any], key: str, form: str) -> str:
    """Return a value of an outcome as text, or what went wrong instead."""
    if "failed" in outcome:
        return outcome["failed"]
    value = outcome.get(key)
    return "-" if value is None else format(value, form)


def _in_process(part: str, settings: dict[str, Any], on_cpu: bool) -> dict[str, Any]:
    """Return what one part of `gpu_parts.py` measures, on every GPU or on two CPU processes."""
    words = [sys.executable, str(ROOT / "benchmarks" / "gpu_parts.py"), part, json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    if on_cpu:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=CELL_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {CELL_SECONDS} s"}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"failed": lines[-1][:160] if lines else f"exit {done.returncode}"}
    outcome: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return outcome


def _train(folder: Path, on_cpu: bool, *, kill: bool) -> dict[str, Any]:
    """Train 60 steps in a real run; return the weights at its end."""
    import torch
    from safetensors.torch import load_file

    folder.mkdir()
    devices = 0 if on_cpu else 1
    workers = 2 if on_cpu else torch.cuda.device_count()
    run_file = folder / "run.yaml"
    run_file.write_text(
        RUN.format(store=folder / "store", workers=workers, gpus=devices, precision="bf16")
    )
    text = folder / "text.jsonl"
    words = [path.read_text() for path in sorted(ROOT.glob("platform/perennial/*/*.py"))]
    text.write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
    _perennial("land", str(run_file), "code", str(text))
    if kill:
        process = _start("run", str(run_file))
        committed = folder / "store" / "checkpoints" / "00-code"
        deadline = time.monotonic() + RUN_SECONDS
        while not list(committed.glob("*/manifest.json")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("it ended before its first checkpoint")
            time.sleep(0.05)
        os.killpg(process.pid, 9)
        process.wait()
    _perennial("run", str(run_file))
    (weights,) = sorted((folder / "store").glob("checkpoints/00-code/*60/*/model.safetensors"))
    return dict(load_file(weights))


def _start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    return subprocess.Popen(
        [sys.executable, "-m", "perennial.cli", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _perennial(*words: str) -> str:
    process = _start(*words)
    out, err = process.communicate(timeout=RUN_SECONDS)
    if process.returncode:
        raise RuntimeError(f"perennial {words[0]}: {err[-300:]}")
    return out


if __name__ == "__main__":
    main()
