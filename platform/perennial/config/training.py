"""The sections `model` and `training` of the run file: the model, the workers and the engine."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from perennial.config.deepspeed_overrides import check_overrides
from perennial.config.spikes import SpikesSpec
from perennial.fields import (
    FREE,
    HELD,
    JOIN,
    PINNED,
    ByKind,
    Count,
    PathText,
    PositiveAmount,
    Section,
    parse_amount,
)
from perennial.optimizers import (
    OPTIMIZERS,
    AbsentOptimizerConfig,
    AdamWConfig,
    OptimizerConfig,
)
from perennial.optimizers.base import DecayRate

Precision = Literal["fp32", "bf16", "fp16"]
_ADAMW_KEYS = ("betas", "epsilon", "weight_decay")
"""AdamW's settings in the section `training` itself, where versions before 0.2 have them."""


class ModelSpec(Section):
    """The model that stage 0 starts from: random weights, a stored model, or a part of one."""

    architecture: Annotated[str | None, PINNED] = None
    """random weights of this type of causal language model in transformers, such as gpt_neox or
    llama"""
    config: Annotated[dict[str, Any], PINNED] = Field(default_factory=dict)
    """with `architecture`, fields of its configuration in transformers"""
    path: Annotated[PathText | None, PINNED] = None
    """a stored model: a Hugging Face folder of safetensors or a .gguf file, local or a
    bucket's url"""
    init: Annotated[Literal["architecture", "small-wang"], PINNED] = "architecture"
    """with `architecture`, standard deviations of the random weights: architecture (what
    transformers does for it, mostly 0.02) or small-wang (GPT-NeoX's and the paper's: sqrt(2 / 5h),
    and 2 / (L sqrt(h)) where a block adds to the residual stream, h wide and L blocks deep)"""
    inherit_layers: Annotated[Count | None, PINNED] = None
    """with `path`, number of the model's first blocks that are kept, beside the embeddings, the
    final norm and the head (Inheritune, arXiv 2404.08634); default all"""

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelSpec:
        if (self.architecture is None) == (self.path is None):
            both = "neither" if self.path is None else "both"
            raise ValueError(
                f"architecture and path: {both} given; give one, an architecture for random "
                "weights or the path of a stored model"
            )
        if self.path is not None and self.config:
            raise ValueError(
                "config goes with architecture, and a stored model brings its own; remove config"
            )
        if self.path is not None and self.init != "architecture":
            raise ValueError(
                "init goes with architecture, and a stored model has its weights; remove init"
            )
        if self.path is None and self.inherit_layers is not None:
            raise ValueError(
                "inherit_layers needs a reference model; give its path instead of an architecture"
            )
        return self

    def describe_start(self) -> str:
        """Return what the trunk starts from, in words."""
        if self.path is None:
            return "random weights"
        layers = self.inherit_layers
        return self.path if layers is None else f"{self.path}, its first {layers} layers"


class WorkersSpec(Section):
    """The number of workers: a fixed number, or a range within which the cluster decides."""

    min: Annotated[Count, FREE]
    """minimum number of workers, at least 1; with fewer, training waits"""
    max: Annotated[Count, FREE]
    """maximum number of workers, at least `min`"""
    grow: Annotated[Literal["when-worth", "at-once"], FREE] = "when-worth"
    """when a group restarts to take in machines that came: once they are worth the restart, or as
    soon as there are any"""
    labels: Annotated[dict[str, str], FREE] = Field(default_factory=dict)
    """labels that a worker's machine must have in Ray, such as
    `{ray.io/availability-zone: us-east-1a}`"""

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, dict | WorkersSpec):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return {"min": value, "max": value}
        raise ValueError(
            f"{value!r} is refused (not a whole number of at least 1); "
            "give a number of workers, or {min: 1, max: 4}"
        )

    @model_validator(mode="after")
    def _ordered(self) -> WorkersSpec:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; use min <= max")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "integer", "minimum": 1}, handler(schema)]}

    @property
    def elastic(self) -> bool:
        """Return whether the number may change while a stage trains."""
        return self.min < self.max

    def __str__(self) -> str:
        return f"{self.min} to {self.max}" if self.elastic else str(self.max)


class TrainingSpec(Section):
    """The training engine. Defaults are the paper's (arXiv 2403.08763, section 5 and appendix)."""

    workers: WorkersSpec = Field(default_factory=lambda: WorkersSpec(min=1, max=1))
    """number of Ray Train workers, at least 1; or {min: 1, max: 4} to use as many as the cluster
    has resources for at any time"""
    cpus_per_worker: Annotated[float, Field(gt=0), FREE] = 1.0
    """CPUs that one worker reserves, and computes with in as many threads (1.8: 2); leave some of
    the machine for Ray Data's readers"""
    gpus_per_worker: Annotated[float, Field(ge=0), FREE] = 0.0
    """GPUs of one worker: 1, or 0 to train on CPUs"""
    global_batch: Annotated[Count, JOIN]
    """sequences in one optimizer step, constant for any number of workers"""
    micro_batch: Annotated[Count, FREE]
    """most sequences in one forward pass of one worker"""
    tensor_parallel: Annotated[Count, FREE] = 1
    """number of workers, at least 1, that compute one model together, each with a part of its
    matrices, such as `2`; they read the same rows and lie on one node. `workers` counts all of them
    and is a multiple of it"""
    zero_stage: Annotated[Literal[0, 1, 2, 3], FREE] = 1
    """what DeepSpeed's ZeRO partitions among the workers: 0 nothing, 1 the optimizer state, 2 also
    the gradients, 3 also the weights"""
    cpu_offload: Annotated[Literal["none", "optimizer", "weights"], FREE] = "none"
    """what is kept in CPU memory instead of GPU memory: none, optimizer (its state and the fp32
    weights; needs zero_stage 1 or more) or weights (these too; needs zero_stage 3)"""
    precision: Annotated[Precision, HELD] = "fp32"
    """number format of the forward and backward pass: fp32, bf16 or fp16 (on GPUs; with a dynamic
    loss scale)"""
    attention: Annotated[
        Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] | None,
        FREE,
    ] = None
    """implementation of attention in transformers: sdpa (torch's own), eager, or on GPUs
    flex_attention and, where the package flash-attn is installed, flash_attention_2 or
    flash_attention_3; default sdpa, or eager for an architecture without it"""
    mask: Annotated[Literal["causal", "document"], HELD] = "causal"
    """what a token attends to: causal (all before it in its sequence) or document (what is before
    it in its own document)"""
    loss: Annotated[Literal["full", "chunked"], FREE] = "full"
    """full (all logits at once) or chunked (torch's linear_cross_entropy: the logits of a part of
    the tokens at a time, which saves memory where the vocabulary is large)"""
    balance_loss: Annotated[Annotated[float, Field(ge=0)] | None, HELD] = None
    """weight of the loss that spreads the tokens of a mixture-of-experts model over its experts, at
    least 0, which turns it off; default what the model's configuration says. It is trained and
    recorded apart from the loss"""
    activation_checkpointing: Annotated[bool, FREE] = False
    """true recomputes every block's activations in the backward pass, to save memory"""
    compile: Annotated[bool, FREE] = False
    """true compiles the model with torch.compile"""
    deepspeed: Annotated[dict[str, Any], FREE] = Field(default_factory=dict)
    """further keys of DeepSpeed's configuration, passed on unchanged: those that change how a step
    is computed, and neither its result nor the state that checkpoints store"""
    optimizer: Annotated[
        OptimizerConfig | None, ByKind(OPTIMIZERS, "adamw", AbsentOptimizerConfig), HELD
    ] = None
    """the optimizer and its settings; default AdamW with `betas`, `epsilon` and `weight_decay` of
    this section, which may not be given together with it"""
    betas: Annotated[tuple[DecayRate, DecayRate], HELD] = (0.9, 0.95)
    """AdamW's two decay rates, from 0 to below 1"""
    epsilon: Annotated[float, Field(gt=0), HELD] = 1e-8
    """AdamW's epsilon, above 0"""
    weight_decay: Annotated[float, Field(ge=0), HELD] = 0.1
    """AdamW's weight decay on matrices (never on norms and biases), at least 0"""
    gradient_clip: Annotated[float, Field(gt=0), HELD] = 1.0
    """largest norm of the gradient, above 0"""
    checkpoint_every: Annotated[PositiveAmount, FREE] = Field(
        default_factory=lambda: parse_amount("500 steps")
    )
    """distance between checkpoints, such as `100 steps` or `4M tokens`"""
    spikes: SpikesSpec = Field(default_factory=SpikesSpec)
    """detection of loss spikes, and the reaction to one"""
    max_failed_checkpoints: Annotated[Count, FREE] = 3
    """training stops when this many checkpoints in a row cannot be stored, at least 1"""
    keep_last: Annotated[Count, FREE] = 2
    """number of a stage's latest checkpoints that are kept, at least 1; those at the end of a phase
    or stage are always kept"""
    profile: Annotated[bool, FREE] = False
    """true writes a trace of the PyTorch profiler, of steps 4 to 7 after every start of the
    workers, one file per worker, into profiles/ of the store"""
    hang_minutes: Annotated[float, Field(gt=0), FREE] = 10.0
    """minutes after which a worker that does not answer, or does not go on inside a step, is
    killed, and the workers start again, above 0; longer than the slowest step and the slowest read
    of a checkpoint"""
    idle_minutes: Annotated[float, Field(ge=0), FREE] = 5.0
    """minutes for which the workers of a stage that has ended wait, with their CPUs and GPUs, for
    the next stage, which then begins without starting workers; 0 starts new ones for every stage"""
    max_failures: Annotated[int, Field(ge=0), FREE] = 3
    """number of failures of the worker group in a row, without a new checkpoint between them, that
    are retried before the stage fails"""
    max_machine_failures: Annotated[Count, FREE] = 3
    """number of failures of workers on one machine within a day after which no worker is placed on
    it for a day, as long as the other machines have room for `workers.min`; at least 1"""
    least_speed: Annotated[float | None, Field(ge=0, lt=1), FREE] = None
    """share of the median machine's speed, in matrix products and in all-reduce, below which a
    machine is left out for a day, from 0 to below 1; measured before a machine's first step. 0
    measures nothing; default 0.7 with GPUs, 0 without"""

    @property
    def threads_per_worker(self) -> int:
        """Count the threads that one worker computes with; a part of a CPU has one too."""
        return math.ceil(self.cpus_per_worker)

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """Return the optimizer's settings, wherever in the section they stand."""
        if self.optimizer is not None:
            return self.optimizer
        return AdamWConfig(betas=self.betas, epsilon=self.epsilon, weight_decay=self.weight_decay)

    @model_validator(mode="after")
    def _one_optimizer(self) -> TrainingSpec:
        given = [key for key in _ADAMW_KEYS if key in self.model_fields_set]
        if self.optimizer is not None and given:
            raise ValueError(
                f"{given[0]} is a setting of AdamW's and optimizer names one with settings of its "
                f"own; give one of the two ({given[0]}: null forgets what a base says)"
            )
        return self

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the optimizer once; without the block, as every version so far has written it."""
        data: dict[str, Any] = dump(self)
        unused = ("optimizer",) if self.optimizer is None else _ADAMW_KEYS
        return {key: value for key, value in data.items() if key not in unused}

    @model_validator(mode="after")
    def _matrices_are_whole(self) -> TrainingSpec:
        kind = self.optimizer_config.kind
        if not self.optimizer_config.whole_matrices:
            return self
        if self.cpu_offload != "none":
            raise ValueError(
                f"cpu_offload {self.cpu_offload} with optimizer {kind} is refused: it steps whole "
                "matrices, and offloading needs ZeRO, which divides them; set zero_stage to 0 and "
                "remove cpu_offload, or use the optimizer adamw"
            )
        if self.zero_stage > 0:
            raise ValueError(
                f"zero_stage {self.zero_stage} with optimizer {kind} is refused: it steps whole "
                "matrices, and ZeRO gives each worker a flat piece of all parameters; "
                "set zero_stage to 0, or use the optimizer adamw"
            )
        if self.tensor_parallel > 1:
            raise ValueError(
                f"tensor_parallel {self.tensor_parallel} with optimizer {kind} is refused: it "
                "steps whole matrices, and the workers of a group have a part of each; "
                "set tensor_parallel to 1, or use the optimizer adamw"
            )
        return self

    @model_validator(mode="after")
    def _engine_agrees(self) -> TrainingSpec:
        check_overrides(self.deepspeed)
        if self.gpus_per_worker not in (0, 1):
            raise ValueError(
                f"gpus_per_worker {self.gpus_per_worker:g} is refused: a worker is one process "
                "with one GPU; give 1 (or 0 for CPUs), and more workers"
            )
        if self.cpu_offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("cpu_offload optimizer needs ZeRO; set zero_stage to 1, 2 or 3")
        if self.cpu_offload == "weights" and self.zero_stage != 3:
            raise ValueError(
                f"cpu_offload weights with zero_stage {self.zero_stage} has nothing to move; "
                "set zero_stage to 3"
            )
        if self.attention not in (None, "sdpa", "eager") and self.gpus_per_worker == 0:
            raise ValueError(f"attention {self.attention} needs GPUs; set gpus_per_worker")
        if str(self.attention).startswith("flash") and self.precision == "fp32":
            raise ValueError(
                f"attention {self.attention} does not compute in fp32; set precision to bf16"
            )
        if self.precision == "fp16" and self.gpus_per_worker == 0:
            raise ValueError("precision fp16 needs GPUs; set gpus_per_worker, or use bf16")
        return self

    @model_validator(mode="after")
    def _tensor_parallel_agrees(self) -> TrainingSpec:
        number = self.tensor_parallel
        if number == 1:
            return self
        for bound in (self.workers.min, self.workers.max):
            if bound % number:
                raise ValueError(
                    f"tensor_parallel {number} does not divide {bound} workers; "
                    f"use workers in multiples of {number}"
                )
        if self.zero_stage == 3:
            raise ValueError(
                f"tensor_parallel {number} with zero_stage 3 is refused: checkpoints do not store "
                "weights that are divided twice; use zero_stage 0, 1 or 2"
            )
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(
                f"tensor_parallel {number} with zero_stage 0 in {self.precision} is refused: "
                "DeepSpeed leaves most of the gradient out of its norm there; use zero_stage 1 or 2"
            )
        if self.loss == "chunked":
            raise ValueError(
                f"tensor_parallel {number} with loss chunked is refused: no worker has the whole "
                "head; use loss: full"
            )
        if self.compile:
            raise ValueError(
                f"tensor_parallel {number} with compile is refused: no test compares what a "
                "compiled model that is divided computes; remove compile"
            )
        return self

    @model_validator(mode="after")
    def _enough_for_all(self) -> TrainingSpec:
        groups = self.workers.max // self.tensor_parallel
        if self.global_batch < groups:
            what = "workers" if self.tensor_parallel == 1 else "tensor-parallel groups"
            raise ValueError(
                f"global_batch of {self.global_batch} sequences leaves some of "
                f"{groups} {what} without one; "
                f"use a global_batch of at least {groups}, or fewer workers"
            )
        if self.checkpoint_every.unit == "percent":
            raise ValueError("checkpoint_every is a number of steps or tokens, not a percentage")
        return self
