"""A first run file: what a model and a sample of the data say, and `plan`'s memory model decides.

Everything is a function of what is passed in; `perennial init` asks, reads and writes.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from perennial.config.examples import show_yaml
from perennial.config.training import ModelSpec, TrainingSpec
from perennial.training.cost_model import ModelSize
from perennial.training.memory_model import worker_memory

Template = Literal["scratch", "open-model", "paper"]
Shift = Literal["measured", "weak", "strong"]

SHARES: dict[Shift, str] = {"measured": "auto", "weak": "0.05", "strong": "0.25"}
"""Replay shares of the paper (arXiv 2403.08763): English to English, and English to German."""
_STEPS, _FEWEST_ROWS = 200, 8
"""Steps of a first stage that a batch is chosen for, and its fewest sequences: a schedule needs
room, and a gradient more than a few documents."""
_FEWEST_STEPS = 20
"""Steps of a first stage for which even the fewest sequences are given up."""
_FEWEST_ANNEALED = 2
"""Steps of a release's anneal: with one there is no way down."""
_MOST_STEP_TOKENS, _MOST_ON_CPU = 1 << 19, 1 << 13
PAPER_ROWS, PAPER_LENGTH = 1104, 2048
"""Batch and sequence length of the paper (arXiv 2403.08763, section 5)."""
_MICRO_BATCHES = (8, 4, 2, 1)
_USABLE = 0.9
"""Share of a GPU's memory that the prediction may take: fragments and other programs need some."""
_SHORTEST, _LONGEST = 256, 4096
_LONGEST_ON_CPU = 512


@dataclass(frozen=True)
class DataSample:
    """The lengths of the first documents, and the size of all.

    Attributes:
        tokens: of each sampled document, estimated where the run trains its own tokenizer.
        total_tokens: of all the data, by its size; None without data.
        text_field: the field that holds the text.
    """

    tokens: tuple[int, ...] = ()
    total_tokens: int | None = None
    text_field: str = "text"

    @property
    def long_document(self) -> int:
        """Return the tokens that nine of ten sampled documents do not exceed; 0 without any."""
        ordered = sorted(self.tokens)
        return ordered[len(ordered) * 9 // 10] if ordered else 0


@dataclass(frozen=True)
class Machine:
    """The part of a machine that training has.

    Attributes:
        gpus: number of its GPUs; 0 trains on CPUs.
        memory_bytes: of one GPU, or of the machine where there is none.
        cpus: cores of the machine.
    """

    gpus: int
    memory_bytes: int
    cpus: int

    @property
    def workers(self) -> int:
        """Return the number of workers: one a GPU, or one process for all cores."""
        return max(1, self.gpus)

    @property
    def worker_bytes(self) -> int:
        """Return the memory that one worker may use."""
        return int(self.memory_bytes * (_USABLE if self.gpus else 0.5))


@dataclass(frozen=True)
class Asked:
    """The answers of the user.

    Attributes:
        template: the kind of run.
        name: of the lineage.
        store: its store, as the file names it.
        model: the stored model, as the file names it; None for random weights.
        tokenizer: a tokenizer, as the file names it; None trains one, or takes the model's.
        corpus: name of the first corpus.
        shift: of the data, against what the model was trained on; `measured` before each stage.
    """

    template: Template
    name: str
    store: str
    model: str | None
    tokenizer: str | None
    corpus: str
    shift: Shift


@dataclass(frozen=True)
class Fitted:
    """The settings that memory and data decide.

    Attributes:
        fits: whether the predicted memory is there.
        gib: predicted memory of one worker.
    """

    sequence_length: int
    global_batch: int
    micro_batch: int
    zero_stage: int
    recompute: bool
    fits: bool
    gib: float


def random_model(template: Template, machine: Machine) -> ModelSpec:
    """Return the model that a run from random weights begins with."""
    if template == "paper":
        return ModelSpec(
            architecture="gpt_neox",
            init="small-wang",
            config=_layers(1024, 24, 16)
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                   "partial_rotary_factor": 0.25}},
        )  # fmt: skip
    sizes = _layers(768, 12, 12) if machine.gpus else _layers(128, 4, 4)
    return ModelSpec(architecture="gpt_neox", config=sizes)


def _layers(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def choose_vocabulary(template: Template, machine: Machine) -> int:
    """Return the entries of a tokenizer that is trained on the first corpus."""
    if template == "paper":
        return 50_000
    return 32_000 if machine.gpus else 4_096


def choose_length(
    positions: int | None, sample: DataSample, machine: Machine, template: Template = "scratch"
) -> int:
    """Return the sequence length: that of a long document, within what the model can take.

    Args:
        positions: longest sequence of a stored model; None where it does not say.
        sample: of the data.
        machine: CPUs get short ones.
        template: `paper` keeps the paper's length on GPUs.
    """
    if template == "paper" and machine.gpus:
        return PAPER_LENGTH
    longest = _LONGEST if machine.gpus else _LONGEST_ON_CPU
    wanted = 1 << max(0, (sample.long_document or 2048) - 1).bit_length()
    length = min(max(_SHORTEST, wanted), longest)
    return min(length, positions) if positions else length


def fit(
    size: ModelSize, length: int, sample: DataSample, machine: Machine, template: Template
) -> Fitted:
    """Return batch, ZeRO stage and memory: the least partition, then the largest micro-batch.

    Args:
        size: of the model.
        length: tokens in a sequence.
        sample: of the data, whose size decides the batch.
        machine: its memory bounds what may be predicted.
        template: `paper` keeps the paper's batch, where the data fill it.
    """
    workers = machine.workers
    batch = _choose_batch(length, sample, machine, template)
    last = None
    for stage in (1, 2, 3) if workers > 1 else (1,):
        for recompute in (False, True):
            for micro in _MICRO_BATCHES:
                if batch // workers % micro:
                    continue
                training = TrainingSpec(
                    **_engine(machine), global_batch=batch, micro_batch=micro,
                    activation_checkpointing=recompute,
                )  # fmt: skip
                need = worker_memory(size, training, length, stage, workers).total
                last = Fitted(
                    length, batch, micro, stage, recompute,
                    need <= machine.worker_bytes, need / 2**30,
                )  # fmt: skip
                if last.fits:
                    return last
    assert last is not None
    return last


def _choose_batch(length: int, sample: DataSample, machine: Machine, template: Template) -> int:
    """Return the sequences of a step, at least one for each worker.

    Data that are known give so many that a stage has `_STEPS` of them. Where that would be less
    than `_FEWEST_ROWS`, there are fewer steps, and with still less data fewer sequences.
    """
    workers = machine.workers
    rows = (_MOST_STEP_TOKENS if machine.gpus else _MOST_ON_CPU) // length
    most = math.inf
    if sample.total_tokens is not None:
        there = sample.total_tokens // length
        rows = min(rows, max(_FEWEST_ROWS, there // _STEPS))
        most = max(1, there // _FEWEST_STEPS)
    if template == "paper" and machine.gpus and most >= PAPER_ROWS:
        return max(workers, PAPER_ROWS - PAPER_ROWS % workers)
    batch = max(workers, 1 << int(math.log2(max(1, min(rows, most)))))
    return batch - batch % workers


def _engine(machine: Machine) -> dict[str, Any]:
    """Return the keys of `training` that the machine decides."""
    if machine.gpus:
        return {"workers": machine.gpus, "gpus_per_worker": 1, "precision": "bf16"}
    return {"workers": 1, "cpus_per_worker": max(1.0, round(0.9 * machine.cpus, 1))}


def write_first_file(
    asked: Asked, fitted: Fitted, model: ModelSpec, sample: DataSample, machine: Machine
) -> str:
    """Return the run file, with a comment for each choice.

    Args:
        asked: what the user says.
        fitted: what memory and data decide.
        model: what the trunk starts from, its path as the file names it.
        sample: of the data.
        machine: that it was fitted to.
    """
    lines = [
        f"# Written by `perennial init --template {asked.template}`. Every key:",
        "# `perennial explain KEY`, or docs/reference/run-file.md.",
        f"name: {show_yaml(asked.name)}",
        f"store: {show_yaml(asked.store)}   # everything of the run; a folder or a bucket's url",
        *_corpora(fitted, sample),
        *_start(asked, model, machine),
        *_training(fitted, machine),
        *_schedule(asked),
        *_stages(asked, sample),
        "",
        "release:",
        *_release(fitted, sample),
        "",
        "evaluation:",
        "  documents: 200              # held-out documents of each corpus",
    ]
    return "\n".join(lines) + "\n"


def _corpora(fitted: Fitted, sample: DataSample) -> list[str]:
    why = (
        f"nine of ten sampled documents have at most {sample.long_document:,} tokens"
        if sample.tokens
        else "without a sample of the data, what the machine and the model can take"
    )
    field = [f"  text_field: {show_yaml(sample.text_field)}"] if sample.text_field != "text" else []
    return ["", "corpora:", f"  sequence_length: {fitted.sequence_length}   # {why}", *field]


def _start(asked: Asked, model: ModelSpec, machine: Machine) -> list[str]:
    if asked.model is not None:
        path = show_yaml(asked.model)
        return [
            "",
            "tokenizer:                    # the model's own",
            f"  path: {show_yaml(asked.tokenizer or asked.model)}",
            "",
            "model:                        # a folder of safetensors, or a GGUF file",
            f"  path: {path}",
        ]
    document = model.model_dump(mode="json", exclude_defaults=True)
    entries = choose_vocabulary(asked.template, machine)
    tokenizer = f"  vocabulary: {entries}   # byte-level BPE, trained on the first corpus"
    if asked.tokenizer is not None:
        tokenizer = f"  path: {show_yaml(asked.tokenizer)}"
    return [
        "",
        "tokenizer:",
        tokenizer,
        "",
        "model:                        # random weights",
        *(f"  {key}: {show_yaml(value)}" for key, value in document.items()),
    ]


def _training(fitted: Fitted, machine: Machine) -> list[str]:
    where = "a GPU's" if machine.gpus else "the machine's"
    memory = f"about {fitted.gib:.1f} of {where} {machine.memory_bytes / 2**30:.0f} GiB a worker"
    fits = "" if fitted.fits else "; IT DOES NOT FIT: take more GPUs, or a smaller model"
    step = fitted.global_batch * fitted.sequence_length
    stage = fitted.zero_stage
    recompute = ["  activation_checkpointing: true   # saves memory, costs a third of the speed"]
    return [
        "",
        "training:",
        *(f"  {key}: {show_yaml(value)}" for key, value in _engine(machine).items()),
        f"  global_batch: {fitted.global_batch}   # sequences: {step:,} tokens a step",
        f"  micro_batch: {fitted.micro_batch}",
        f"  zero_stage: {stage}               # predicted: {memory}{fits}",
        *(recompute if fitted.recompute else []),
        "  checkpoint_every: 100 steps",
    ]


def _schedule(asked: Asked) -> list[str]:
    stored = asked.model is not None
    peak = 3.0e-4 if stored or asked.template == "paper" else 1.0e-3
    warmup = (
        [
            "  warmup: 20 steps            # the optimizer starts empty, so not a percentage",
            f"  warmup_start: {_rate(peak / 10)}",
        ]
        if stored
        else ["  warmup: 1%                  # of the first stage"]
    )
    return [
        "",
        "schedule:                     # up, down to the constant rate, and there it stays",
        "  kind: infinite",
        f"  eta_max: {_rate(peak)}",
        f"  eta_const: {_rate(peak * 0.55)}",
        f"  eta_min: {_rate(peak / 10)}           # the end of a release's anneal",
        *warmup,
    ]


def _release(fitted: Fitted, sample: DataSample) -> list[str]:
    steps = count_steps(fitted, sample)
    if steps is None or steps * 0.1 >= _FEWEST_ANNEALED:
        return [
            "  anneal: 10%                 # of the trunk's steps; the trunk itself never decays"
        ]
    return [f"  anneal: {_FEWEST_ANNEALED} steps             # 10% of so short a trunk is less"]


def count_steps(fitted: Fitted, sample: DataSample) -> int | None:
    """Return the steps of one pass through the data; None where there are none yet."""
    if sample.total_tokens is None:
        return None
    return sample.total_tokens // (fitted.global_batch * fitted.sequence_length)


def _rate(eta: float) -> str:
    """Return a learning rate without the last digits of its arithmetic."""
    return show_yaml(float(f"{eta:.3g}"))


def _stages(asked: Asked, sample: DataSample) -> list[str]:
    share = SHARES[asked.shift]
    rule = {
        "measured": "5% to 25%, by the shift that is measured before each stage",
        "weak": "the paper's for a weak shift; 25% for a strong one, auto measures it",
        "strong": "the paper's for a strong shift; 5% for a weak one, auto measures it",
    }[asked.shift]
    size = "" if sample.total_tokens is None else f", about {_round(sample.total_tokens)} here"
    lines = [
        "",
        "replay:",
        f"  share: {share:<19} # {rule}",
        "",
        "stages:",
        f"  budget: 100%                # of a corpus's tokens{size}",
    ]
    if asked.model is None:
        return lines
    return [
        *lines,
        "  # Text like that which the model was trained on is replayed from the first step on and",
        "  # is never a stage. Land it as `proxy`, and take the sign away from these two lines:",
        "  # corpora:",
        "  #   proxy: {role: replay}",
    ]


def _round(tokens: int) -> str:
    for unit, scale in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if tokens >= scale:
            return f"{tokens / scale:.3g}{unit} tokens"
    return f"{tokens} tokens"


def next_commands(run_file: str, asked: Asked, files: Sequence[str]) -> list[str]:
    """Return the commands that follow, in their order.

    Args:
        run_file: its path.
        asked: what the user says.
        files: the data, as the user named it.
    """
    words = shlex.join(files) or "FILES..."
    return [
        f"perennial land {run_file} {asked.corpus} {words}",
        f"perennial plan {run_file}",
        f"perennial run {run_file}",
    ]
