"""One measurement of `gpu.py`: PART SETTINGS; prints its outcome as a JSON line.

It runs on every GPU of the machine, or on two processes of a CPU.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

END = 0
STEPS = 10
WARMUP = 4
MODELS = {
    "small": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "heads": 4},
    "125m": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "heads": 12},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "heads": 16},
}
LENGTHS = {"small": 128, "125m": 2048, "1b": 2048}
ROWS = {"small": 2, "125m": 8, "1b": 4}


def main() -> None:
    """Run the part on every rank and print what rank 0 found."""
    import torch
    import torch.multiprocessing as mp

    part, settings = sys.argv[1], json.loads(sys.argv[2])
    world = torch.cuda.device_count() or 2
    if part in ALONE:
        world = 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        mp.spawn(_rank, args=(world, port, part, settings, scratch), nprocs=world)
        print((Path(scratch) / "outcome.json").read_text())


def _rank(
    rank: int, world: int, port: int, part: str, settings: dict[str, Any], scratch: str
) -> None:
    import torch
    import torch.distributed as dist

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    outcome = PARTS[part](settings, Path(scratch))
    if rank == 0:
        (Path(scratch) / "outcome.json").write_text(json.dumps(outcome))
    dist.barrier()
    # Without the interpreter's end: threads of gloo and of DeepSpeed's groups that meet a peer that
    # has gone abort a process whose work is done and written.
    os._exit(0)


def mask(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    """Logits of a row's second document beside those of the document alone on the CPU."""
    import torch

    from perennial.training.model.features import model_inputs, prepare

    spec = _spec(mask="document", micro_batch=2, **settings)
    model = _model("small", 64).eval()
    documents = torch.randint(1, 500, (4, 32), generator=torch.Generator().manual_seed(1))
    documents[:, -1] = END
    rows = torch.cat([documents[:2], documents[2:]], dim=1)
    with torch.no_grad():
        alone = model(input_ids=documents[2:], use_cache=False).logits
        prepare(model, spec)
        model = model.to(_device(), _dtype(spec)).eval()
        packed = model(**model_inputs(rows.to(_device()), spec, END)).logits[:, 32:]
    return {"difference": float((packed.float().cpu() - alone).abs().max())}


def cell(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    """Ten steps of a small model in one combination of settings."""
    losses, seconds = _steps("small", _spec(**settings), STEPS)
    step_ms = 1000 * statistics.median(seconds[WARMUP:])
    return {"loss": losses[-1], "step_ms": step_ms, "peak_mib": _peak_mib()}


def snapshot(settings: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """A step beside the writing of a snapshot, and whether the files are of their step."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    import torch.distributed as dist
    from safetensors.torch import load_file

    from perennial.training.checkpoint.tensors import write_tensors
    from perennial.training.engine.engine import losses_of, set_eta
    from perennial.training.engine.optimizer_state import optimizer_state

    spec = _spec(**settings)
    engine = _engine("125m" if torch.cuda.is_available() else "small", spec)
    ids = _ids("small", spec.micro_batch).to(engine.device)
    plain, beside, same = [], [], True
    path = scratch / f"state-{dist.get_rank()}.safetensors"
    with ThreadPoolExecutor(1) as thread:
        for step in range(2 * STEPS):
            set_eta(engine, 1e-3)
            written = None
            if step % 2:
                tensors, _ = optimizer_state(engine, spec.optimizer_config)
                before = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
                _wait()
                written = thread.submit(write_tensors, tensors, path)
            began = time.perf_counter()
            engine.backward(losses_of(engine, ids, spec, END).objective)
            if written is not None:
                written.result()
            engine.step()
            _wait()
            (beside if step % 2 else plain).append(1000 * (time.perf_counter() - began))
            if step % 2:
                stored = load_file(path)
                same &= all(torch.equal(stored[name], before[name]) for name in before)
    return {
        "plain_ms": statistics.median(plain[2:]),
        "beside_ms": statistics.median(beside[2:]),
        "same": "yes" if same else "no",
    }


def engine(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    """Speed of the engine in bf16 with ZeRO 1."""
    import torch
    import torch.distributed as dist

    from perennial.training.cost_model import flops_per_token, model_size, peak_flops

    model = settings["model"]
    spec = _spec(
        precision="bf16",
        zero_stage=1,
        loss="chunked",
        micro_batch=ROWS[model],
        activation_checkpointing=model == "1b",
    )
    _, seconds = _steps(model, spec, 2 * STEPS)
    tokens = ROWS[model] * LENGTHS[model] * dist.get_world_size()
    speed = tokens / statistics.median(seconds[WARMUP:])
    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    mfu = None
    if peak is not None:
        size = model_size(_config(model, LENGTHS[model]))
        flops = flops_per_token(size, LENGTHS[model])
        mfu = speed * flops / dist.get_world_size() / peak
    return {"tokens_per_second": speed, "mfu": mfu}


def bare(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    """Speed of a loop of torch alone: DistributedDataParallel, bf16, AdamW."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    name = settings["model"]
    model = _model(name, LENGTHS[name]).to(_device(), torch.bfloat16)
    if name == "1b":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-4, fused=True)
    ids = _ids(name, ROWS[name]).to(_device())
    seconds = []
    for _step in range(2 * STEPS):
        began = time.perf_counter()
        parallel(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _wait()
        seconds.append(time.perf_counter() - began)
    tokens = ids.numel() * dist.get_world_size()
    return {"tokens_per_second": tokens / statistics.median(seconds[WARMUP:])}


PARTS: dict[str, Callable[[dict[str, Any], Path], dict[str, Any]]] = {
    "mask": mask,
    "cell": cell,
    "snapshot": snapshot,
    "engine": engine,
    "bare": bare,
}
ALONE = {"mask"}


def _steps(model: str, spec: Any, steps: int) -> tuple[list[float], list[float]]:
    """Return losses and seconds of steps on the same rows."""
    from perennial.training.engine.engine import losses_of, set_eta

    engine = _engine(model, spec)
    ids = _ids(model, spec.micro_batch).to(engine.device)
    losses, seconds = [], []
    for _ in range(steps):
        began = time.perf_counter()
        set_eta(engine, 1e-3)
        found = losses_of(engine, ids, spec, END)
        engine.backward(found.objective)
        engine.step()
        _wait()
        seconds.append(time.perf_counter() - began)
        losses.append(float(found.loss))
    return losses, seconds


def _engine(model: str, spec: Any) -> Any:
    import torch.distributed as dist

    from perennial.training.engine.engine import build_engine

    world = dist.get_world_size()
    return build_engine(_model(model, LENGTHS[model]), spec, spec.global_batch, world, END)


def _spec(**settings: Any) -> Any:
    import torch
    import torch.distributed as dist

    from perennial.config.training import TrainingSpec

    rows = settings.get("micro_batch", 2)
    whole = {
        "global_batch": rows * dist.get_world_size(),
        "micro_batch": rows,
        "workers": dist.get_world_size(),
        "gpus_per_worker": int(torch.cuda.is_available()),
    }
    return TrainingSpec.model_validate(whole | settings)


def _config(model: str, length: int) -> Any:
    from perennial.config.training import ModelSpec
    from perennial.training.model.config import model_config

    size = dict(MODELS[model])
    heads = size.pop("heads")
    spec = ModelSpec(
        architecture="llama",
        config=size | {"num_attention_heads": heads, "num_key_value_heads": heads},
    )
    return model_config(spec, 512 if model == "small" else 50304, END, length)


def _model(model: str, length: int) -> Any:
    from perennial.training.model.config import random_model

    return random_model(_config(model, length), 1)


def _ids(model: str, rows: int) -> Any:
    import torch

    return torch.randint(1, 500, (rows, LENGTHS[model]), generator=torch.Generator().manual_seed(2))


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(spec: Any) -> Any:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[spec.precision]


def _wait() -> None:
    """Wait for the GPU's kernels, which run behind the host."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_mib() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / (1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
