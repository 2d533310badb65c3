"""Memory and disk that training takes, before it is trained. Pure arithmetic on a `ModelSize`.

Sources: weights, gradients and optimizer by ZeRO stage, Rajbhandari et al. 2020 (arXiv 1910.02054,
sections 3 and 5); activations, Korthikanti et al. 2022 (arXiv 2205.05198, sections 4 and 5);
temporaries, the code of DeepSpeed 0.19. `benchmarks/memory.py` holds it against what real workers
take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.training.cost_model import (
    MASTER_BYTES,
    ModelSize,
    checkpoint_bytes,
    number_bytes,
    state_bytes_saved,
)
from perennial.training.engine.deepspeed_config import deepspeed_settings

if TYPE_CHECKING:
    from perennial.config.training import TrainingSpec

_ZERO_STAGES = (0, 1, 2, 3)
_LIBRARY_BYTES = 600 << 20
"""Resident memory of a worker with what it imports, before it has a model."""
_STAGING_BYTES = 2 * (64 << 20)
"""Pinned buffers that a worker's snapshot leaves its GPU by."""
_LOADED_AT_ONCE_BYTES = 64 << 20
"""Weights that are whole at once in a worker that loads its part; see `partitioned_load`."""
_ALLREDUCE_NUMBERS = 500_000_000
"""Gradients that DeepSpeed reduces at once at ZeRO 0."""
_LIVE_NUMBERS = 550_000_000
"""Weights that ZeRO 3 has whole at once: those that the backward pass reads again within
DeepSpeed's reuse distance of a billion numbers, so half of that, and those fetched ahead."""
_NUMBER_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU (or of the tensors of one CPU worker) during a step.

    Attributes:
        weights: in the format of the forward pass.
        gradients: as they are summed over micro batches.
        optimizer: its state, and the fp32 weights where they are a copy.
        activations: what one forward pass leaves to its backward pass.
        temporaries: most bytes at once of what a part of the step needs besides: the bucket that
            gradients are reduced in and its copies, weights that ZeRO 3 gathers, the gradients in
            fp32, intermediate results of the optimizer.
        total: most bytes at once. Activations and most temporaries are there one after the other,
            so it is less than the sum. The allocator's waste comes on top.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    temporaries: int
    total: int


@dataclass(frozen=True)
class HostMemory:
    """Bytes of main memory on a node of `workers`.

    Attributes:
        workers: on the node.
        libraries: what the workers' processes import.
        training: during a step: on CPUs the whole of `Memory`, beside GPUs what is offloaded.
        snapshot: buffers and whole weights that a checkpoint is written from.
        start: at a start, instead of `training` and `snapshot`: the model as the workers build or
            load it, and the pages of its files.
        total: most bytes at once.
    """

    workers: int
    libraries: int
    training: int
    snapshot: int
    start: int

    @property
    def total(self) -> int:
        """Return the most bytes at once."""
        return self.libraries + max(self.training + self.snapshot, self.start)


def worker_memory(
    size: ModelSize, training: TrainingSpec, sequence_length: int, zero_stage: int, workers: int
) -> Memory:
    """Return bytes in one worker's memory; what `cpu_offload` moves to the CPU is not in it.

    Args:
        size: of the model.
        training: the run file's section.
        sequence_length: in tokens.
        zero_stage: of DeepSpeed's ZeRO, 0 to 3; that of `training` is not read.
        workers: number of all workers; groups of `training.tensor_parallel` divide what the stage
            divides, and in each group the workers divide the model.
    """
    training = training.model_copy(update={"zero_stage": zero_stage})
    division = _Division.of(size, training, workers)
    away = training.cpu_offload if zero_stage else "none"
    weights = 0 if away == "weights" and zero_stage == 3 else division.share(division.number, 3)
    gradients = 0 if away != "none" and zero_stage >= 2 else division.share(division.sum, 2)
    optimizer = 0 if away != "none" else division.share(_optimizer_bytes(training), 1)
    if zero_stage == 0:
        optimizer -= state_bytes_saved(size, training)
    activations = activation_bytes(
        size,
        sequence_length,
        training.micro_batch,
        division.number,
        recomputed=training.activation_checkpointing,
        scores=training.attention == "eager",
        logits=training.loss == "full",
        together=training.tensor_parallel,
    )
    passes, reduction, step = _temporaries(division, training)
    # Gradients come as activations go; those of the micro batches before are there all along.
    summed = gradients if division.micro_batches > 1 or zero_stage == 3 else 0
    # What fills more than one bucket is reduced while the backward pass still has activations.
    beside = activations if zero_stage >= 2 and division.bucket < division.parameters else 0
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        temporaries=max(passes, reduction, step),
        total=weights
        + optimizer
        + max(summed + activations + passes, gradients + beside + reduction, gradients + step),
    )


def memory_by_stage(
    size: ModelSize, training: TrainingSpec, sequence_length: int, workers: int
) -> dict[int, Memory]:
    """Return `worker_memory` by every ZeRO stage that the run could have instead of its own."""
    stages: tuple[int, ...] = _ZERO_STAGES if training.tensor_parallel == 1 else _ZERO_STAGES[:3]
    if training.optimizer_config.whole_matrices:
        stages = _ZERO_STAGES[:1]
    return {
        stage: worker_memory(size, training, sequence_length, stage, workers) for stage in stages
    }


@dataclass(frozen=True)
class _Division:
    """The division of a model among workers, and the bytes of its numbers.

    Attributes:
        parameters: number of all that a worker computes with: those of the model, or of a worker's
            part of it in a tensor-parallel group.
        workers, stage: what divides them further.
        number: bytes of one in the passes; sum: in the sum of gradients; sent: between workers.
        bucket: number of gradients that are reduced at once.
        micro_batches: of a worker in a step.
    """

    parameters: int
    workers: int
    stage: int
    number: int
    sum: int
    sent: int
    bucket: int
    micro_batches: int

    @classmethod
    def of(cls, size: ModelSize, training: TrainingSpec, workers: int) -> _Division:
        """Read the settings that DeepSpeed is given."""
        parameters = size.parameters_of_one(training.tensor_parallel)
        settings: dict[str, Any] = deepspeed_settings(
            training, training.global_batch, workers, parameters
        )
        number = number_bytes(training.precision)
        sums = settings.get("data_types", {}).get("grad_accum_dtype", training.precision)
        sent = settings.get("communication_data_type", training.precision)
        bucket = int(settings["zero_optimization"]["reduce_bucket_size"])
        return cls(
            parameters=parameters,
            workers=workers // training.tensor_parallel,
            stage=training.zero_stage,
            number=number,
            sum=_NUMBER_BYTES.get(sums, number),
            sent=_NUMBER_BYTES.get(sent, number),
            bucket=min(bucket, parameters),
            micro_batches=settings["gradient_accumulation_steps"],
        )

    def share(self, bytes_per_parameter: int, from_stage: int) -> int:
        """Return the bytes on one worker of what is divided from a stage on."""
        total = self.parameters * bytes_per_parameter
        return -(-total // self.workers) if self.stage >= from_stage else total


def _temporaries(division: _Division, training: TrainingSpec) -> tuple[int, int, int]:
    """Return bytes beside weights, summed gradients and optimizer, in the parts of a step.

    Returns:
        Those during the passes, beside activations; while gradients are reduced; in the optimizer.
    """
    stage, sums, sent = division.stage, division.sum, division.sent
    offloaded = training.cpu_offload != "none" and stage > 0
    # torch's AdamW without its fused kernel computes the denominator of the update apart, at
    # ZeRO 0 of one weight after the other.
    denominator = 0 if training.gpus_per_worker or stage == 0 else 2 * 4
    # Muon's products are of one matrix at a time, and smaller than what ZeRO 0 reduces at once.
    in_fp32 = 0 if sums == 4 else 4
    step = 0 if offloaded else division.share(denominator + in_fp32, 1)
    bucket = division.bucket
    if stage == 0:
        flat = min(division.parameters, _ALLREDUCE_NUMBERS)
        return 0, flat * sums + _converted(flat, sums, sent), step
    if stage == 1:
        # Gradients move into the bucket, which is copied once more to be sent.
        moved = bucket * sums + _converted(bucket, sums, sent) + division.share(sums, 1)
        return bucket * sums, moved, step
    if stage == 2:
        number = division.number
        return bucket * number, 2 * bucket * number + _converted(bucket, number, sent), step
    gathered = min(division.parameters, _LIVE_NUMBERS) * division.number
    whole = bucket * sent
    return whole + gathered, 2 * whole + gathered, whole + step + division.share(sums, 3)


def _converted(numbers: int, held: int, sent: int) -> int:
    """Return bytes of the copy of numbers that are sent in another format than they are held in."""
    return 0 if held == sent else numbers * sent


def host_memory(
    size: ModelSize, training: TrainingSpec, sequence_length: int, workers: int, on_node: int
) -> HostMemory:
    """Return bytes of main memory on the node of the first worker, which takes the most.

    Args:
        size: of the model.
        training: the run file's section.
        sequence_length: in tokens.
        workers: number of all workers.
        on_node: how many of them share the node.
    """
    stage, parameters = training.zero_stage, size.parameters
    division = _Division.of(size, training, workers)
    number, on_gpu = division.number, training.gpus_per_worker > 0
    if on_gpu:
        training_bytes = on_node * _offloaded_bytes(division, training)
    else:
        worker = worker_memory(size, training, sequence_length, stage, workers)
        training_bytes = on_node * worker.total
    # The first worker gathers the whole weights of ZeRO 3 for the model's file; those of a
    # tensor-parallel group gather the tensors that each of them writes.
    gathered = parameters * number if stage == 3 else 0
    if training.tensor_parallel > 1:
        gathered = -(-parameters * number * on_node // workers)
    # The pages of the model's files, which all workers of a node share.
    pages = parameters * 4
    if stage == 3:
        # The weights that were read, before they are divided; a random model is drawn whole.
        built = division.share(number, 3) + _LOADED_AT_ONCE_BYTES
        drawn = 0 if on_node == 0 else parameters * 4
        start = pages + max(on_node * built, drawn)
    else:
        flat = 0 if on_gpu else division.parameters * number
        start = pages + on_node * (parameters * 4 + flat)
    return HostMemory(
        workers=on_node,
        libraries=on_node * _LIBRARY_BYTES,
        training=training_bytes,
        snapshot=gathered + on_node * (_STAGING_BYTES if on_gpu else 0),
        start=start,
    )


def _offloaded_bytes(division: _Division, training: TrainingSpec) -> int:
    """Return what one worker keeps in main memory beside its GPU."""
    away, stage = training.cpu_offload, division.stage
    if away == "none" or stage == 0:
        return 0
    # Beside state and fp32 weights, their gradient in fp32 and its sum over micro batches.
    state = division.share(_optimizer_bytes(training) + 4 + division.sum, 1)
    # ZeRO 1 and 2 keep a buffer of the stepped weights in the format of the passes.
    rounded = 0 if stage == 3 and away == "optimizer" else division.share(division.number, 1)
    return state + rounded


@dataclass(frozen=True)
class DiskSpace:
    """Bytes on disks.

    Attributes:
        snapshot: of the files for temporaries on a node: the files that a checkpoint is copied to
            the store from.
        left_over: there until the workers that follow have started: the snapshot of workers that
            were killed.
        start: there while workers start: the model that they load, and the optimizer's state of
            the node's workers.
        checkpoints: of the store: those that retention keeps, and the one being written.
        initial_model: of the store: the copy of the model that the run starts from.
    """

    snapshot: int
    left_over: int
    start: int
    checkpoints: int
    initial_model: int

    @property
    def node(self) -> int:
        """Return the most bytes at once on a node's disk for temporary files."""
        return self.left_over + max(self.start, self.snapshot)

    @property
    def store(self) -> int:
        """Return the bytes in the store, corpora apart."""
        return self.checkpoints + self.initial_model


def disk_space(
    size: ModelSize, training: TrainingSpec, workers: int, on_node: int, kept: int, stored: int
) -> DiskSpace:
    """Return bytes on the node of the first worker, whose disk has the most, and in the store.

    Args:
        size: of the model.
        training: the run file's section.
        workers: number of all workers.
        on_node: how many of them share the node.
        kept: number of checkpoints that stay.
        stored: parameters of the stored models that the store has copies of; 0 where the run does
            not start from one.
    """
    whole = checkpoint_bytes(size, training)
    model = size.parameters * number_bytes(training.precision)
    snapshot = model + -(-(whole - model) * on_node // workers)
    # A random model is written for the workers of a node, or ZeRO 3, to load.
    drawn = on_node > 1 or training.zero_stage == 3
    initial = size.parameters * 4
    return DiskSpace(
        snapshot=snapshot,
        left_over=snapshot,
        start=max(snapshot, initial if stored or drawn else 0),
        checkpoints=(kept + 1) * whole if kept else 0,
        initial_model=stored * 4,
    )


def activation_bytes(
    size: ModelSize,
    sequence_length: int,
    micro_batch: int,
    bytes_per_number: int,
    *,
    recomputed: bool,
    scores: bool,
    logits: bool = True,
    together: int = 1,
) -> int:
    """Return the bytes of activations that one forward pass leaves to its backward pass.

    recomputed: activation checkpointing; every layer keeps its input, and one layer at a time the
    rest. scores: attention keeps its (sequence, sequence) scores, which fused kernels never write.
    logits: the loss is not taken a part of the tokens at a time. together: t workers that divide
    the heads and the inner width of a layer, and not its inputs.
    A layer is s b h (10 + 24 / t + 5 a s / h t) bytes in 16-bit numbers, without the last term
    where there are no scores; the logits and their gradient are fp32.
    """
    tokens = sequence_length * micro_batch
    layer = 10 * tokens * size.hidden + 24 * tokens * size.hidden // together
    if scores:
        layer += 5 * size.heads * sequence_length * tokens // together
    inputs = 2 * tokens * size.hidden
    layers = size.layers * inputs + layer if recomputed else size.layers * layer
    output = 2 * 4 * tokens * size.vocabulary if logits else 0
    return layers * bytes_per_number // 2 + output


def _optimizer_bytes(training: TrainingSpec) -> int:
    """Return the bytes a parameter of the optimizer's state and of the fp32 copy that it steps."""
    offloaded = training.cpu_offload != "none"
    # In fp32 torch steps the weights themselves, or ZeRO 3 its part of them.
    alone = training.precision == "fp32" and training.zero_stage in (0, 3) and not offloaded
    return training.optimizer_config.state_bytes() + (0 if alone else MASTER_BYTES)
