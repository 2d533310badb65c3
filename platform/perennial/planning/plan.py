"""Predict the stages, cost and memory of a run before any compute: `perennial plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from perennial import corpora
from perennial.config.stage_settings import stage_settings
from perennial.config.training import ModelSpec
from perennial.controller.before_compute import absent_names, check_before_compute
from perennial.controller.context import Workspace
from perennial.controller.loop import check_inbox
from perennial.controller.replay_share import forecast_share
from perennial.errors import InputError
from perennial.mixture import StageMix, name_source, seen_by_part
from perennial.planning.growth_forecast import grown_vocabulary
from perennial.planning.inbox_sizes import list_expected
from perennial.planning.lookahead import Ahead, Basis, look_ahead, notes_on_gates
from perennial.planning.plan_notes import (
    notes_on_corpora,
    notes_on_start,
    replay_split,
    share_reason,
)
from perennial.runs.stage_planner import anneal_mix
from perennial.runs.state import RunState, Stage
from perennial.schedules import Anneal, Schedule, from_dict, release_anneal
from perennial.training import cost_model, memory_model
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.checkpoint.retention import kept
from perennial.training.cost_model import ModelSize
from perennial.training.job import checkpoint_steps
from perennial.training.memory_model import DiskSpace, HostMemory, Memory

if TYPE_CHECKING:
    from perennial.config import RunSpec

_RECENT_STEPS = 1000
"""number of the trunk's last steps whose speed is taken for that of the steps to come"""


@dataclass(frozen=True)
class Hardware:
    """GPUs as the user states them.

    Attributes:
        peak_flops: FLOP/s of one GPU.
        mfu: share of it that training reaches (model FLOPs utilisation), 0 to 1.
        memory_bytes: of one GPU; None does not check it.
        workers_per_node: how many workers share a node's main memory and disk.
    """

    peak_flops: float
    mfu: float
    memory_bytes: int | None = None
    workers_per_node: int = 8


@dataclass(frozen=True)
class Speed:
    """Tokens per second of the whole worker group, and the source of that number."""

    tokens_per_second: float
    source: str


@dataclass(frozen=True)
class SourcePlan:
    """The share of one corpus, or of one part of it, in a stage.

    Attributes:
        epochs: passes through the corpus or part in this stage.
        epochs_so_far: passes over the trunk's life, this stage included.
        part: its name; None for a corpus without parts.
    """

    corpus: str
    tokens: int
    epochs: float
    epochs_so_far: float
    part: str | None = None

    @property
    def name(self) -> str:
        """Return the corpus, and the part if it has any, as it is shown."""
        return name_source(self.corpus, self.part)


@dataclass(frozen=True)
class PhasePlan:
    """A stretch of trunk steps in one phase, with its rates at both ends."""

    stage: str
    phase: str
    first_step: int
    last_step: int
    eta_first: float
    eta_last: float


@dataclass(frozen=True)
class StagePlan:
    """A stage that is not trained to its end.

    Attributes:
        basis: source of its corpora's sizes.
        steps_left: steps after its last checkpoint.
        displaced_tokens: tokens of the new corpora that replay takes the place of.
        split: parts of the replayed tokens by corpus, and the rule that they follow from; "" where
            at most one corpus is replayed.
        share_reason: why a replay share of `auto` is what it is, or that it is not known yet; ""
            for a share that is set.
        checkpoints: number of checkpoints that retention keeps.
        seconds, gpu_hours: of the steps that are left; None where the speed is not known.
    """

    stage: str
    corpora: tuple[str, ...]
    basis: Basis
    first_step: int
    steps: int
    steps_left: int
    tokens: int
    sources: tuple[SourcePlan, ...]
    displaced_tokens: int
    split: str
    share_reason: str
    checkpoints: int
    seconds: float | None
    gpu_hours: float | None


@dataclass(frozen=True)
class Plan:
    """The predictions for a run.

    Attributes:
        memory: bytes of one worker, by ZeRO stage.
        annealed: sources of a release off the end; none where it is not annealed.
    """

    model: ModelSize
    flops_per_token: int
    workers: int
    tensor_parallel: int
    zero_stage: int
    memory: dict[int, Memory]
    host: HostMemory
    disk: DiskSpace
    checkpoint_bytes: int
    stages: tuple[StagePlan, ...]
    annealed: tuple[SourcePlan, ...]
    phases: tuple[PhasePlan, ...]
    unknown: tuple[str, ...]
    speed: Speed | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form, with the totals."""
        stages = [asdict(stage) for stage in self.stages]
        totals = {
            "steps": sum(stage.steps_left for stage in self.stages),
            "tokens": sum(stage.tokens for stage in self.stages),
            "seconds": _sum([stage.seconds for stage in self.stages]),
            "gpu_hours": _sum([stage.gpu_hours for stage in self.stages]),
        }
        host = asdict(self.host) | {"total": self.host.total}
        disk = asdict(self.disk) | {"node": self.disk.node, "store": self.disk.store}
        return asdict(self) | {"stages": stages, "host": host, "disk": disk, "totals": totals}


def plan_run(
    work: Workspace, hardware: Hardware, reschedule: bool = False
) -> tuple[Plan, RunState, Anneal | None]:
    """Return the plan of the work that is left. Reads only.

    Args:
        work: the run.
        hardware: the GPUs.
        reschedule: allow a schedule that is not the trunk's so far.

    Returns:
        The plan, the run as it will be after it, and the branch of a release off its end.

    Raises:
        InputError: the run file describes what cannot work.
    """
    spec = work.spec
    check_before_compute(work)
    check_inbox(work)
    ahead, waiting = _look_ahead(work, reschedule)
    to_come = [stage for stage, _ in ahead.stages]
    size, notes = _model_size(work)
    training, length = spec.training, spec.corpora.sequence_length
    workers = training.workers.min
    memory = memory_model.memory_by_stage(size, training, length, workers)
    _check_memory(spec, memory, hardware)
    speed = _measured(work) or _stated(spec, size, hardware)
    stages = tuple(
        _stage_plan(work, ahead.state, stage, basis, speed) for stage, basis in ahead.stages
    )
    notes += (*notes_on_start(spec, to_come), *notes_on_gates(spec, work.state, to_come))
    anneal, mix, undecided = _release(spec, ahead.state)
    on_node = min(workers, hardware.workers_per_node)
    kept_count, stored = sum(s.checkpoints for s in stages), _stored_parameters(work, size)
    plan = Plan(
        model=size,
        flops_per_token=cost_model.flops_per_token(size, length),
        workers=workers,
        tensor_parallel=training.tensor_parallel,
        zero_stage=training.zero_stage,
        memory=memory,
        host=memory_model.host_memory(size, training, length, workers, on_node),
        disk=memory_model.disk_space(size, training, workers, on_node, kept_count, stored),
        checkpoint_bytes=cost_model.checkpoint_bytes(size, training),
        stages=stages,
        annealed=_sources_of(mix, [*ahead.state.history, mix], length) if mix else (),
        phases=tuple(chain.from_iterable(_phases(stage) for stage in to_come)),
        unknown=ahead.unknown,
        speed=speed,
        notes=(*waiting, *notes, *notes_on_corpora(work, to_come, size), *undecided),
    )
    return plan, ahead.state, anneal


def _look_ahead(work: Workspace, reschedule: bool) -> tuple[Ahead, tuple[str, ...]]:
    """Return the work that is left, and notes on corpora that are too small or absent."""
    expected, small = list_expected(work)
    names = {*work.state.corpora, *(corpus.name for corpus in expected)}
    shares = partial(forecast_share, work)
    ahead = look_ahead(work.spec, work.state, expected, reschedule, shares)
    return ahead, (*small, *absent_names(work.spec, names))


def _phases(stage: Stage) -> list[PhasePlan]:
    schedule = from_dict(stage.schedule)
    return phases_of(stage.name, schedule, stage.first_step, stage.last_step)


def phases_of(name: str, schedule: Schedule, first_step: int, last_step: int) -> list[PhasePlan]:
    """Return the phases of a stage.

    Args:
        name: of the stage.
        schedule: its learning rate.
        first_step: its first trunk step.
        last_step: the trunk step after its last one.
    """
    starts = {end + 1 for end in schedule.phase_ends().values()}
    cuts = [first_step, *sorted(s for s in starts if first_step < s < last_step), last_step]
    return [
        PhasePlan(
            stage=name,
            phase=schedule.phase(first),
            first_step=first,
            last_step=end - 1,
            eta_first=schedule.eta(first),
            eta_last=schedule.eta(end - 1),
        )
        for first, end in pairwise(cuts)
    ]


def _stage_plan(
    work: Workspace, state: RunState, stage: Stage, basis: Basis, speed: Speed | None
) -> StagePlan:
    spec, mix = work.spec, stage.mix
    length = spec.corpora.sequence_length
    done = checkpoint.latest_step(work.store, stage.folder) or stage.first_step
    left = stage.last_step - done
    tokens_per_step = mix.global_batch * length
    every = max(1, spec.training.checkpoint_every.steps(0, tokens_per_step))
    schedule = from_dict(stage.schedule)
    due = checkpoint_steps(schedule, stage.first_step, stage.last_step, every)
    ends = {end + 1 for end in schedule.phase_ends().values()}
    stay = kept(due, ends, stage.last_step, spec.training.keep_last)
    tokens_left = left * tokens_per_step
    seconds = tokens_left / speed.tokens_per_second if speed else None
    gpus = spec.training.workers.max * spec.training.gpus_per_worker
    return StagePlan(
        stage=stage.name,
        corpora=stage.corpora,
        basis=basis,
        first_step=stage.first_step,
        steps=mix.steps,
        steps_left=left,
        tokens=mix.steps * tokens_per_step,
        sources=_sources_of(mix, state.history[: state.stages.index(stage) + 1], length),
        displaced_tokens=sum(s.sequences for s in mix.replayed) * length,
        split=replay_split(mix),
        share_reason=share_reason(work, stage),
        checkpoints=len(stay),
        seconds=seconds,
        gpu_hours=gpus * seconds / 3600 if gpus and seconds is not None else None,
    )


def _release(spec: RunSpec, state: RunState) -> tuple[Anneal | None, StageMix | None, list[str]]:
    """Return the branch that `perennial release` would anneal, what on, and why not on anything.

    There is none without a trunk.
    """
    if not state.stages:
        return None, None, []
    last = state.stages[-1]
    trunk = from_dict(last.schedule)
    end = stage_settings(spec, last.corpora[0]).schedule.anneal_end
    eta = release_anneal(spec.release, end, trunk, last.last_step, spec.tokens_per_step)
    if eta is None:
        return None, None, []
    try:
        mix = anneal_mix(spec.release.mixture, state.history, eta.steps, state)
    except InputError as wrong:
        # A corpus that is named may be still to land; the stages do not wait for it.
        return eta, None, [f"no release can be made yet: {wrong.field}: {wrong.problem}"]
    return eta, mix, []


def _sources_of(mix: StageMix, history: Sequence[StageMix], length: int) -> tuple[SourcePlan, ...]:
    """Return the tokens and epochs of a mix by source, where `history` ends with it."""
    seen = seen_by_part(history)
    return tuple(
        SourcePlan(
            source.corpus,
            source.sequences * length,
            source.sequences / source.extent,
            seen[source.key] / source.extent,
            source.part,
        )
        for source in mix.sources
    )


def _model_size(work: Workspace) -> tuple[ModelSize, tuple[str, ...]]:
    """Return the size of the model, and notes for the user."""
    from perennial.training.model.config import model_config
    from perennial.training.model.growth import grown_rows
    from perennial.training.model.initial import FOLDER, has_model
    from perennial.training.model.tensor_parallel import check_divisible

    spec, model = work.spec, work.spec.model
    if has_model(work.store):
        model = ModelSpec(path=f"{work.store.holder(FOLDER).url}/{FOLDER}")
    vocabulary, notes, was_read = _vocabulary(work)
    if was_read:
        work.check_model()
    config = model_config(model, vocabulary, 0, spec.corpora.sequence_length)
    rows = config.get_text_config()
    rows.vocab_size = grown_rows(rows.vocab_size, grown_vocabulary(work, vocabulary))
    check_divisible(config, spec.training.tensor_parallel)
    return cost_model.model_size(config), notes


def _stored_parameters(work: Workspace, size: ModelSize) -> int:
    """Return the parameters of the stored models of which the store has or will have copies."""
    from perennial.training.model import initial
    from perennial.training.model.config import model_config

    model = work.spec.model
    if model.path is None:
        return 0
    if model.inherit_layers is None:
        return size.parameters
    if initial.has_reference(work.store):
        whole = initial.read_initial(work.store, initial.REFERENCE_FOLDER)[0].parameters
    elif initial.has_model(work.store):
        whole = 0  # imported by a version that did not copy the whole model
    else:
        length = work.spec.corpora.sequence_length
        whole = cost_model.model_size(
            model_config(ModelSpec(path=model.path), 0, 0, length)
        ).parameters
    return size.parameters + whole


def model_flops(work: Workspace) -> int:
    """Return the FLOPs of training one token, forward and backward."""
    size, _ = _model_size(work)
    return cost_model.flops_per_token(size, work.spec.corpora.sequence_length)


def _vocabulary(work: Workspace) -> tuple[int, tuple[str, ...], bool]:
    """Return the size of the vocabulary, notes, and whether the tokenizer was there to be read."""
    its = work.spec.tokenizer
    if work.store.exists("tokenizer/manifest.json"):
        tokenizer = corpora.load_tokenizer(work.store)
    elif its.path is None:
        assert its.vocabulary is not None
        return its.vocabulary, (), True
    else:
        try:
            tokenizer = corpora.read_tokenizer(its.path, its.end_of_document, its.begin_of_document)
        except InputError as absent:
            padded = work.spec.model.config.get("vocab_size")
            if absent.field != "tokenizer.path" or not isinstance(padded, int):
                raise
            note = f"tokenizer.path {its.path} does not exist; `run` will need it"
            return padded, (note,), False
    notes = () if its.path is None else (tokenizer.describe_borders(),)
    return tokenizer.vocabulary, notes, True


def _check_memory(spec: RunSpec, memory: dict[int, Memory], hardware: Hardware) -> None:
    limit = hardware.memory_bytes
    if limit is None or memory[spec.training.zero_stage].total <= limit:
        return
    fitting = [stage for stage, needed in memory.items() if needed.total <= limit]
    need = memory[spec.training.zero_stage].total / 2**30
    is_whole = spec.training.optimizer_config.whole_matrices
    more = "more GPUs" if not is_whole else "the optimizer adamw, which ZeRO divides,"
    raise InputError(
        "run file",
        "training.zero_stage",
        f"a GPU would need {need:.1f} GiB under ZeRO stage {spec.training.zero_stage}, "
        f"it has {limit / 2**30:.1f}",
        f"use ZeRO stage {min(fitting)}" if fitting else f"use {more} or a lower micro_batch",
        code="gpu-memory-too-small",
    )


def _measured(work: Workspace) -> Speed | None:
    """Return the speed of the trunk's last steps, checkpoints included; None without any."""
    for stage in reversed(work.state.stages):
        step = checkpoint.latest_step(work.store, stage.folder)
        if step is None:
            continue
        folder = checkpoint.folder_of(stage.folder, step)
        manifest = checkpoint.read_manifest(work.store, folder)
        recent = checkpoint.read_rows(work.store, folder, manifest)[-_RECENT_STEPS:]
        rows = [row for row in recent if "tokens_per_second" in row]  # not those left out
        if rows:
            tokens = sum(row["batch_tokens"] for row in rows)
            seconds = sum(row["batch_tokens"] / row["tokens_per_second"] for row in rows)
            workers = manifest.world_size
            source = f"measured over {len(rows):,} steps of {stage.name} on {workers} workers"
            return Speed(tokens / seconds, source)
    return None


def _stated(spec: RunSpec, size: ModelSize, hardware: Hardware) -> Speed | None:
    """Return the speed at the stated utilisation; None on CPUs, where nothing was stated."""
    gpus = spec.training.workers.max * spec.training.gpus_per_worker
    if not gpus:
        return None
    flops = cost_model.flops_per_token(size, spec.corpora.sequence_length)
    return Speed(
        gpus * hardware.peak_flops * hardware.mfu / flops,
        f"{hardware.mfu:.0%} MFU of {hardware.peak_flops / 1e12:g} TFLOP/s on {gpus:g} GPUs, "
        "stated, not measured",
    )


def _sum(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None
