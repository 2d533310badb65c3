"""Write what a trunk kit says: its manifest, its card, and the run file that continues from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from perennial.config.changes import run_fields
from perennial.config.load import parse
from perennial.config.run import RunSpec
from perennial.config.training import TrainingSpec
from perennial.errors import InputError
from perennial.fields import Changeable
from perennial.mixture import truncate_mix
from perennial.runs.card_metadata import HUB, describe_model
from perennial.runs.model_card import lineage_lines
from perennial.runs.state import RunState, Stage
from perennial.schedules import from_dict
from perennial.store import is_store_url
from perennial.training.kit.manifest import (
    KIT,
    MASTER,
    RUN_FILE,
    STATE_FOLDER,
    KitCorpus,
    KitManifest,
    KitStage,
    OptimizerState,
)
from perennial.version import __version__

if TYPE_CHECKING:
    from perennial.corpora import CorpusManifest, RunTokenizer

_OF_THE_TRUNK = ("global_batch", "micro_batch")
"""Fields of `training` that the run file takes over besides those that decide a step's result."""


def check_continuable(spec: RunSpec, stage: Stage, step: int) -> None:
    """Refuse a checkpoint from which no run file can continue the trunk's rate.

    Args:
        spec: the run file.
        stage: the stage.
        step: trunk step of its checkpoint.

    Raises:
        InputError: `trunk-decayed`, its rate was annealed; `schedule-changed`, the run file has
            another schedule than the stage.
    """
    schedule = from_dict(stage.schedule).installed()
    if schedule.kind != spec.schedule.kind:
        raise InputError(
            "run file",
            "schedule.kind",
            f"it is {spec.schedule.kind}, and {stage.name} was trained under {schedule.kind}",
            f"restore {schedule.kind} for this command",
            code="schedule-changed",
        )
    if schedule.phase(step - 1) == "anneal":
        ends = schedule.phase_ends()
        until = 1 + max((end for phase, end in ends.items() if phase == "constant"), default=0)
        raise InputError(
            "command line",
            "--trunk-kit",
            f"the schedule {schedule.kind} has begun to anneal the trunk at step {step}, and who "
            "continued it would have to warm it up again",
            f"name a checkpoint of step {until} or before with --from"
            if until > stage.first_step
            else "make a release of it instead",
            code="trunk-decayed",
        )


def kit_manifest(
    spec: RunSpec,
    state: RunState,
    stage: Stage,
    step: int,
    manifests: Mapping[str, CorpusManifest],
    optimizer: OptimizerState,
    tokenizer: RunTokenizer,
    checkpoint: str,
) -> KitManifest:
    """Return the manifest of a kit, still without its files.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        stage: the stage of the checkpoint.
        step: trunk step of the checkpoint.
        manifests: of the corpora that the trunk has trained, by name.
        optimizer: its state in the kit.
        tokenizer: the run's.
        checkpoint: SHA-256 of the checkpoint's manifest.
    """
    length = spec.corpora.sequence_length
    trained = [*state.lineage(stage), stage]
    mixes = [*state.history_of(stage), truncate_mix(stage.mix, step - stage.first_step)]
    schedule = from_dict(stage.schedule)
    return KitManifest(
        run=spec.name,
        source=f"{stage.name}@{step}",
        checkpoint=checkpoint,
        step=step,
        phase=schedule.phase(step - 1),
        eta=schedule.eta(step - 1),
        schedule=dict(stage.schedule),
        sequence_length=length,
        global_batch=spec.training.global_batch,
        optimizer=optimizer,
        tokenizer=tokenizer.fingerprint,
        corpora={
            name: KitCorpus(tokens_seen=count * length, digest=manifests[name].digest)
            for name, count in state.seen(stage, step).items()
        },
        stages=tuple(
            KitStage(
                name=its.name,
                first_step=its.first_step,
                steps=mix.steps,
                tokens={
                    name: count * length
                    for name, count in state.trained(its, its.first_step + mix.steps).items()
                },
            )
            for its, mix in zip(trained, mixes, strict=True)
        ),
        code_version=__version__,
        files={},
    )


def continuing_run_file(
    spec: RunSpec, stage: Stage, step: int, tokenizer: RunTokenizer, place: str
) -> str:
    """Return a run file that continues the trunk from a kit, for others to edit.

    Args:
        spec: the run file of the trunk.
        stage: the stage of the checkpoint.
        step: trunk step of the checkpoint.
        tokenizer: the run's.
        place: where the kit will lie.
    """
    lines = [
        f"# Continues the trunk of {spec.name} from the kit beside this file. In its folder:",
        f"#   perennial land {RUN_FILE} NAME FILES...   your documents",
        f"#   perennial run {RUN_FILE}",
    ]
    for comment, section in _sections(spec, stage, step, tokenizer, place):
        lines += ["", *(f"# {line}" for line in comment.split("\n"))]
        lines += [yaml.safe_dump(section, sort_keys=False, allow_unicode=True).rstrip()]
    text = "\n".join(lines) + "\n"
    parse(yaml.safe_load(text), RunSpec, RUN_FILE)
    return text


def _sections(
    spec: RunSpec, stage: Stage, step: int, tokenizer: RunTokenizer, place: str
) -> list[tuple[str, dict[str, Any]]]:
    """Return parts of the run file, each with a comment; arguments of `continuing_run_file`."""
    document = spec.model_dump(mode="json")
    path = place.rstrip("/") if is_store_url(place) else "."
    its = tokenizer.manifest
    borders: dict[str, Any] = {"end_of_document": its.end_of_document_text}
    if its.begin_of_document_text is not None:
        borders["begin_of_document"] = its.begin_of_document_text
    kept = [f.key for f in run_fields(TrainingSpec) if f.change is Changeable.HELD]
    own = document["training"]
    training = {name: own[name] for name in (*_OF_THE_TRUNK, *kept) if name in own}
    schedule = spec.schedule.continued(from_dict(stage.schedule), step)
    return [
        (
            "Yours: a name, and a folder or a bucket's url that keeps everything of your run.",
            {"name": f"{spec.name[:54]}-continued", "store": f"../{spec.name}-continued"},
        ),
        (
            "Where the kit lies; a relative path is one from the folder of this file.",
            {"model": {"path": path}, "tokenizer": {"path": path} | borders},
        ),
        (
            "keep goes on with the optimizer's state of the kit, and reset starts it from zero. A\n"
            "corpus that stands in for what the trunk was trained on so far, see README.md, is\n"
            "replayed with `corpora: {NAME: {role: replay}}` here.",
            {"stages": {"optimizer": "keep"}, "replay": document["replay"]},
        ),
        (
            f"The trunk's own from here on. Step 0 of your run follows its step {step:,}.",
            {
                "seed": spec.seed,
                "corpora": {
                    name: document["corpora"][name] for name in ("sequence_length", "packing")
                },
                "training": training,
                "schedule": schedule.model_dump(mode="json", exclude_none=True),
                "release": {name: document["release"][name] for name in ("anneal", "shape")},
            },
        ),
    ]


def kit_card(
    spec: RunSpec,
    state: RunState,
    stage: Stage,
    kit: KitManifest,
    manifests: Mapping[str, CorpusManifest],
    place: str,
) -> str:
    """Return the Markdown of a kit's README.md.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        stage: the stage of the checkpoint.
        kit: its manifest.
        manifests: of the corpora that the trunk has trained, by name.
        place: where the kit will lie.
    """
    fetched = []
    if place.startswith(HUB):
        fetched = [f"hf download {place.removeprefix(HUB)} --local-dir kit && cd kit"]
    return "\n".join(
        [
            *describe_model(spec, state, kit.corpora, ["trunk-kit"]),
            f"# {spec.name}: trunk kit {kit.source}",
            "",
            f"What continues the trunk of the lineage `{spec.name}`: its checkpoint after "
            f"{kit.step:,} steps, before any anneal, in the phase {kit.phase} at a rate of "
            f"{kit.eta:g}. A model to use is a release, which is annealed; this one is to train "
            "on.",
            "",
            *_file_table(kit.optimizer),
            "## Continue it",
            "```sh",
            *fetched,
            f"perennial land {RUN_FILE} NAME FILES...   # your documents",
            f"perennial run {RUN_FILE}",
            "```",
            "",
            "The first stage starts at the rate where the trunk stands, with the optimizer's state "
            "of the kit unless `stages.optimizer` is `reset`. The ledger of the new run names this "
            "kit. Files that are not those of the manifest are refused.",
            "",
            *lineage_lines(spec, state, stage, kit.step, manifests),
            f"- Tokenizer fingerprint: `{kit.tokenizer}`.",
            f"- Made by perennial {__version__}.",
            "",
        ]
    )


def _file_table(state: OptimizerState) -> list[str]:
    """Return the lines of a card on the files of a kit, given the optimizer's state in it."""
    exact = " and the fp32 weights once more" if MASTER in state.tensors else ""
    return [
        "| file | |",
        "| --- | --- |",
        "| `config.json`, `model*.safetensors` | the model in fp32, for transformers |",
        f"| `{STATE_FOLDER}/state-*.safetensors` | the state of {state.kind} after {state.steps:,} "
        f"steps{exact}: tensors `PARAMETER\\|0\\|KIND` of kind {', '.join(state.tensors)}, each "
        "flat, in the order of its parameter |",
        "| `tokenizer.json` and beside it | the tokenizer |",
        f"| `{RUN_FILE}` | a run file that starts from here; edit it |",
        f"| `{KIT}` | schedule, phase, tokens seen by corpus, stages, and the SHA-256 of every "
        f"file but `{RUN_FILE}` |",
        "",
    ]
