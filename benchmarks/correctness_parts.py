"""The measurements of `correctness.py`; each runs on every rank of a group over gloo."""

from __future__ import annotations

import gc
import json
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import linear_cross_entropy, pad

END = 3
WIDE = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 256}
SUMS_IN_BF16 = {"data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}


def report(part: Callable[..., Any], folder: Path, *settings: Any) -> None:
    """Write what a part finds on this rank."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    found = part(folder, *settings)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))


def losses(_: Path, tokens: int, words: int) -> list[float]:
    """Losses in fp32, in bf16 with all logits, naive, ours; errors of both ways' gradients."""
    from perennial.training.engine.engine import loss_of
    from tests.support.engines import engine_of_one, training_spec
    from tests.support.small_models import small_model

    ids = torch.randint(0, words, (tokens // 128, 128), generator=torch.manual_seed(3))
    found, gradients = [], []
    for precision, loss, way in (
        ("fp32", "full", None),
        ("bf16", "full", None),
        ("bf16", "chunked", _mean_of_torch),
        ("bf16", "chunked", None),
    ):
        model = small_model("gpt_neox", vocab_size=words, **WIDE).bfloat16().float()
        rows = len(ids)
        spec = training_spec(
            precision=precision, loss=loss, zero_stage=0, global_batch=rows, micro_batch=rows
        )
        engine = engine_of_one(model, spec)
        if way is not None:
            way(engine.module)
        value = loss_of(engine, ids, spec, END)
        engine.backward(value)
        found.append(float(value))
        parts = [p.grad.float().reshape(-1) for p in engine.module.parameters()]
        gradients.append(torch.cat(parts))
    whole = gradients[1]
    return found + [float((each - whole).norm() / whole.norm()) for each in gradients[2:]]


def _mean_of_torch(model: Any) -> None:
    """Let the head's chunked loss be averaged by torch, in the format of the hidden states."""
    head = model.get_output_embeddings()

    def mean(logits: torch.Tensor, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        targets = pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1)
        options = torch.nn.LinearCrossEntropyOptions()
        hidden = logits.reshape(-1, logits.shape[-1])
        return linear_cross_entropy(hidden, head.weight, targets, options=options)

    model.loss_function = mean


def masks(_: Path, architecture: str, micro_batch: int) -> list[float]:
    """Largest differences of the logits of second documents, naive and ours."""
    from perennial.training.model.features import document_positions, model_inputs, prepare
    from tests.support.engines import training_spec
    from tests.support.flash_stand_in import FlashCalls, flash_stand_ins
    from tests.support.small_models import small_model

    model = small_model(architecture, vocab_size=512, **WIDE).double()
    spec = training_spec(
        mask="document",
        attention="flash_attention_2",
        micro_batch=micro_batch,
        global_batch=micro_batch,
    )
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randint(4, 512, (2, micro_batch, 64), generator=generator)
    first[:, -1] = second[:, -1] = END
    rows = torch.cat([first, second], dim=1)
    run_varlen = FlashCalls.run_varlen

    def run_lengths(calls: FlashCalls, *tensors: torch.Tensor, **options: Any) -> torch.Tensor:
        # The stand-in refuses the tensor that transformers gives it where it finds the documents.
        return run_varlen(
            calls, *tensors, **options | {"max_seqlen_q": int(options["max_seqlen_q"])}
        )

    FlashCalls.run_varlen = run_lengths  # type: ignore[method-assign]
    with flash_stand_ins(), torch.no_grad():
        prepare(model, spec)
        model.eval()
        alone = torch.cat([model(row[None], use_cache=False).logits for row in second])
        naive = model(rows, position_ids=document_positions(rows, END), use_cache=False).logits
        ours = model(**model_inputs(rows, spec, END)).logits
    return [float((packed[:, 64:] - alone).abs().max()) for packed in (naive, ours)]


def sums_over_micro_batches(_: Path, count: int, stage: int) -> list[float]:
    """Relative errors of a step of so many micro batches, naive and ours."""
    from tests.support.engines import one_step
    from tests.support.small_models import small_model

    ids = torch.randint(0, 50, (count, 16), generator=torch.manual_seed(1))
    settings: dict[str, Any] = {"micro_batch": 1}
    _, exact = one_step(small_model("llama"), ids, settings)
    settings |= {"precision": "bf16", "zero_stage": stage}
    steps = [
        one_step(small_model("llama"), ids, settings | more)[1]
        for more in ({"deepspeed": SUMS_IN_BF16}, {})
    ]
    return [float((step - exact).norm() / exact.norm()) for step in steps]


def sums_over_workers(_: Path, stage: int) -> list[float]:
    """Relative errors of a step of 64 sequences over all workers, naive and ours."""
    exact = _shared_step(0, "fp32", {})
    steps = [_shared_step(stage, "bf16", more) for more in (SUMS_IN_BF16, {})]
    return [float((step - exact).norm() / exact.norm()) for step in steps]


def _shared_step(stage: int, precision: str, deepspeed: dict[str, Any]) -> torch.Tensor:
    """Return the change of all fp32 weights by a step along the gradient of 64 sequences."""
    from perennial.training.engine.engine import build_engine, losses_of, set_eta
    from tests.support.engines import training_spec
    from tests.support.small_models import small_model

    rank, world = dist.get_rank(), dist.get_world_size()
    spec = training_spec(
        global_batch=64,
        micro_batch=1,
        workers=world,
        zero_stage=stage,
        precision=precision,
        gradient_clip=1e6,
        optimizer={"kind": "adamw", "epsilon": 1e3, "weight_decay": 0.0},
        deepspeed=deepspeed,
    )
    engine = build_engine(small_model("llama").bfloat16().float(), spec, 64, world, END)
    before = _all_weights(engine)
    set_eta(engine, 1e3)
    ids = torch.randint(0, 50, (64, 16), generator=torch.manual_seed(1))
    for row in range(rank, 64, world):
        engine.backward(losses_of(engine, ids[row : row + 1], spec, END).objective)
        engine.step()
    return _all_weights(engine) - before


def _all_weights(engine: Any) -> torch.Tensor:
    """Return the fp32 weights of all ranks, flat, in the order of their names."""
    from perennial.training.engine.deepspeed_internals import owned_shards

    alone = engine.zero_optimization_stage() == 0 and dist.get_rank() > 0
    mine = [
        (shard.parameter, shard.start, shard.slice(shard.owner.detach().float()).clone())
        for shard in owned_shards(engine)
        if not alone
    ]
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine)
    pieces = sorted((piece for of_rank in of_ranks for piece in of_rank), key=lambda p: p[:2])
    return torch.cat([values for _, _, values in pieces])


def join(folder: Path, stage: int) -> dict[str, dict[str, float]]:
    """What a cut after 20 of 40 steps does to the fp32 weights, naive and ours."""
    from safetensors.torch import save_file

    from perennial.training.engine.engine import gather_weights
    from perennial.training.engine.optimizer_state import load_optimizer, optimizer_state
    from tests.support.engines import engine_of_one, stepped_weights, training_spec
    from tests.support.small_models import small_model

    spec = training_spec(precision="bf16", zero_stage=stage)
    whole = engine_of_one(small_model("llama"), spec)
    begun = stepped_weights(whole)
    _train(whole, spec, range(20))
    cut = stepped_weights(whole)
    update = (cut - begun).norm()
    state, steps = optimizer_state(whole, spec.optimizer_config)
    weights = gather_weights(whole)
    assert weights is not None
    stored = {name: tensor.clone() for name, tensor in weights.items()}
    files = {"ours": folder / "ours.safetensors", "naive": folder / "naive.safetensors"}
    save_file({name: tensor.clone() for name, tensor in state.items()}, files["ours"])
    moments = {name: t.clone() for name, t in state.items() if not name.endswith("|master")}
    save_file(moments, files["naive"])
    _train(whole, spec, range(20, 40))
    uncut = stepped_weights(whole)
    found = {}
    for way, file in files.items():
        model = small_model("llama")
        model.load_state_dict({name: t.float() for name, t in stored.items()}, strict=False)
        engine = engine_of_one(model, spec)
        load_optimizer(engine, spec.optimizer_config, [file], steps)
        again = stepped_weights(engine)
        _train(engine, spec, range(20, 40))
        found[way] = {
            "changed": float((again != cut).float().mean()),
            "of_update": float((again - cut).norm() / update),
            "after": float((stepped_weights(engine) - uncut).abs().max()),
        }
    return found


def _train(engine: Any, spec: Any, steps: range) -> None:
    from perennial.training.engine.engine import loss_of, set_eta

    for step in steps:
        ids = torch.randint(0, 50, (2, 16), generator=torch.manual_seed(step))
        set_eta(engine, 1e-3)
        engine.backward(loss_of(engine, ids, spec, END))
        engine.step()


def rollback(_: Path, stage: int) -> list[float]:
    """Shares of an engine's bytes that are alive after it was dropped.

    With DeepSpeed's `destroy`, with a collection after it, and ours.
    """
    from perennial.training.engine.deepspeed_internals import release_engine
    from tests.support.engines import engine_of_one, training_spec
    from tests.support.small_models import small_model

    spec = training_spec(precision="bf16", zero_stage=stage)
    shares = []
    for release in (lambda engine: engine.destroy(), release_engine):
        engine = engine_of_one(small_model("llama", **WIDE), spec)
        _train(engine, spec, range(2))
        held = _held(engine)
        gc.collect()
        gc.disable()  # when Python would collect by itself is chance
        release(engine)
        del engine
        shares.append(_alive(held))
        gc.enable()
        gc.collect()
        shares.append(_alive(held))
    destroyed, collected, _released, ours = shares
    return [destroyed, collected, ours]


def _alive(held: list[tuple[Any, int]]) -> float:
    """Return the share of bytes whose tensors are still there."""
    return sum(size for tensor, size in held if tensor() is not None) / sum(n for _, n in held)


def _held(engine: Any) -> list[tuple[Any, int]]:
    """Return weak references to an engine's weights, fp32 weights and moments, with their bytes."""
    from perennial.training.engine.deepspeed_internals import inner_optimizer, owned_shards

    tensors = {id(p): p for p in engine.module.parameters()}
    tensors |= {id(shard.owner): shard.owner for shard in owned_shards(engine)}
    for state in inner_optimizer(engine).state.values():
        tensors |= {id(t): t for t in state.values() if isinstance(t, torch.Tensor)}
    return [(weakref.ref(tensor), tensor.nbytes) for tensor in tensors.values()]


def loading(folder: Path) -> list[int]:
    """Bytes by which this worker grows at most until it has its part in bf16, naive and ours."""
    from perennial.training.engine.deepspeed_config import deepspeed_settings
    from perennial.training.engine.deepspeed_internals import partition
    from perennial.training.engine.engine import load_model
    from perennial.training.model.config import stored_model
    from perennial.training.ray.environment import return_freed_memory
    from tests.support.engines import training_spec
    from tests.support.memory_limit import PeakMemory
    from tests.support.small_models import small_model

    size = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 7}
    if dist.get_rank() == 0:
        model = small_model("llama", num_attention_heads=12, num_key_value_heads=12, **size)
        model.save_pretrained(folder / "model", max_shard_size="64MB")
        small_model("llama").save_pretrained(folder / "tiny")
        del model
    dist.barrier()
    world = dist.get_world_size()
    spec = training_spec(
        zero_stage=3, precision="bf16", global_batch=world, micro_batch=1, workers=world
    )
    settings = deepspeed_settings(spec, world, world, parameters=1)

    load_model(folder / "tiny", spec, world, world)  # starts DeepSpeed

    def load_whole(files: Path) -> Any:
        model = stored_model(files).bfloat16()
        partition(list(model.parameters()), settings)
        return model

    grown = []
    for load in (load_whole, lambda files: load_model(files, spec, world, world)):
        load(folder / "tiny")  # what is imported and set up once is no model's memory
        return_freed_memory()
        with PeakMemory() as peak:
            model = load(folder / "model")
        grown.append(peak.grown_bytes)
        del model
        dist.barrier()
    return grown


def bucket(_: Path, stage: int) -> list[int]:
    """Bytes that torch has allocated at most in three steps, with DeepSpeed's bucket and ours."""
    from allocations import AllocatedBytes

    from tests.support.engines import engine_of_one, training_spec
    from tests.support.small_models import small_model

    default = {"reduce_bucket_size": 500_000_000, "allgather_bucket_size": 500_000_000}
    peaks = []
    for deepspeed in ({"zero_optimization": default}, {}):
        spec = training_spec(zero_stage=stage, deepspeed=deepspeed)
        with AllocatedBytes() as allocated:
            model = small_model("llama", vocab_size=4096, num_hidden_layers=4, **WIDE)
            engine = engine_of_one(model, spec)
            _train(engine, spec, range(3))
        peaks.append(allocated.peak)
        del engine, model
        gc.collect()
    return peaks
