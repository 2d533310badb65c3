"""Checks of checkpoints and their metrics against the ledger's plan of them (I4, I6). Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from perennial.audit.checks import FoldedLedger, PlannedFolder, ledger_key
from perennial.audit.files import MetricsContents
from perennial.audit.finding import Finding, unequal, unequal_tokens
from perennial.mixture import StageMix
from perennial.schedules import AbsentSchedule, from_dict
from perennial.training.checkpoint.manifest import (
    MANIFEST,
    OPTIMIZER,
    CheckpointManifest,
    folder_of,
)
from perennial.training.model.shards import absent_files


def check_ledger_position(
    key: str, manifest: CheckpointManifest, story: FoldedLedger
) -> Iterator[Finding]:
    """Check that the ledger still has the entry behind which a checkpoint's job began.

    Args:
        key: folder of the checkpoint.
        manifest: of the checkpoint.
        story: the folded ledger.
    """
    events = manifest.ledger_events
    # Behind a gap nothing is folded; the gap has its finding.
    if not events or story.findings or not manifest.ledger_sha256:
        return
    if events < 0:
        yield Finding(f"{key}/{MANIFEST}", f"ledger_events: it has {events}", "a number above 0")
    elif story.digests[events - 1 : events] != [manifest.ledger_sha256]:
        problem = f"is not the entry that {key} was trained behind, or is missing"
        yield Finding(ledger_key(events - 1), problem, "restore it from a copy")


def check_checkpoint(
    key: str, manifest: CheckpointManifest, plan: PlannedFolder
) -> Iterator[Finding]:
    """Check I6: a committed checkpoint agrees with the ledger's plan of its step.

    Args:
        key: folder of the checkpoint.
        manifest: of the checkpoint.
        plan: of the stage or branch that it belongs to.
    """
    where, step = f"{key}/{MANIFEST}", manifest.step
    if key != folder_of(plan.folder, step) or not plan.first_step < step <= plan.last_step:
        yield Finding(
            where,
            f"its step is {step}",
            f"{plan.name} has steps {plan.first_step + 1} to {plan.last_step}, one folder each",
        )
        return
    schedule = from_dict(plan.schedule)
    is_known = not isinstance(schedule, AbsentSchedule)
    if not is_known:
        yield Finding(
            where,
            f"the learning rate of {plan.name} cannot be checked",
            f"no installed package brings its schedule {plan.schedule['kind']!r}",
        )
    pairs = {
        "name": (manifest.name, plan.name),
        "mix": (_in_this_form(manifest.mix), plan.mix.to_dict()),
        "mix_step": (manifest.mix_step, step - plan.first_step),
        "schedule": (manifest.schedule, plan.schedule),
        "phase": (manifest.phase, schedule.phase(step - 1) if is_known else manifest.phase),
        "skipped": (list(manifest.skipped), list(plan.skipped_until(step))),
    }
    yield from unequal(where, pairs)
    seen = (manifest.tokens_seen, manifest.tokens_elsewhere)
    yield from unequal_tokens(where, seen, plan.stated_tokens(step, manifest.tokens_seen))
    # Another machine's cosine may differ in the last bit.
    if is_known and not math.isclose(manifest.eta, schedule.eta(step - 1), rel_tol=1e-9):
        yield from unequal(where, {"eta": (manifest.eta, schedule.eta(step - 1))})
    yield from _check_engine(where, manifest, plan)
    world = manifest.world_size
    others = [name for name in manifest.files if name.startswith(OPTIMIZER)]
    of_all = (f"{OPTIMIZER}{rank:02d}-of-{world:02d}.safetensors" for rank in range(world))
    absent = [name for name in ("config.json", "metrics.jsonl") if name not in manifest.files]
    for name in of_all:
        if name not in others:
            absent.append(name)
            break  # an altered number of workers may be any
        others.remove(name)
    else:
        for name in others:
            yield Finding(where, f"it names {name}", f"it is of {world} workers")
    for name in (*absent, *absent_files(manifest.files)):
        yield Finding(where, f"it names no {name}", "a checkpoint has one")


def _check_engine(
    where: str, manifest: CheckpointManifest, plan: PlannedFolder
) -> Iterator[Finding]:
    """Check optimizer, its steps and fp16's factor against the plan and what the job keeps."""
    steps, done = manifest.optimizer_steps, manifest.step - plan.first_step
    least, most = 0, manifest.step + plan.kit_steps if plan.inherits else done
    if plan.settings is not None:
        kept = plan.settings.get("training.optimizer")
        kind = kept.get("kind") if isinstance(kept, Mapping) else None
        # Manifests that name none are of versions that had AdamW alone.
        kind_here = "adamw" if manifest.optimizer is None else manifest.optimizer
        if kind is not None:
            yield from unequal(where, {"optimizer": (kind_here, kind)})
        is_fp16 = plan.settings.get("training.precision") == "fp16"
        if not is_fp16:
            yield from unequal(where, {"loss_scale": (manifest.loss_scale, None)})
        elif manifest.loss_scale is not None and not 0 < manifest.loss_scale < math.inf:
            right = "a finite number above 0"
            yield from unequal(where, {"loss_scale": (str(manifest.loss_scale), right)})
        if kind == "adamw" and not is_fp16:
            # fp16 leaves out the steps that overflow, and other optimizers may count otherwise.
            least = done - len(plan.skipped_until(manifest.step))
    if not least <= steps <= most:
        right = f"{least}" if least == most else f"{least} to {most}"
        yield Finding(where, f"its optimizer has taken {steps} steps", f"the plan gives {right}")


def _in_this_form(mix: dict[str, Any]) -> dict[str, Any]:
    """Return a mix as this version writes it; one that cannot be read, unchanged."""
    try:
        return StageMix.from_dict(mix).to_dict()
    except (ValueError, LookupError, TypeError):
        return mix


def check_metrics(
    key: str, manifest: CheckpointManifest, plan: PlannedFolder, metrics: MetricsContents
) -> Iterator[Finding]:
    """Check I4: every step up to the checkpoint was taken once, on a whole batch.

    Args:
        key: of the metrics file.
        manifest: of the checkpoint that holds it.
        plan: of the stage or branch that it belongs to.
        metrics: contents of the file.
    """
    first = plan.first_step + 1
    right = ((first, manifest.step),)
    if metrics.runs != right:
        steps = ", ".join(f"{begin} to {end}" for begin, end in metrics.runs[:4])
        yield Finding(
            key,
            f"it has steps {steps}",
            f"each of {first} to {manifest.step} once",
        )
    batch = plan.mix.global_batch * plan.sequence_length
    if metrics.batch_tokens - {batch}:
        sizes = ", ".join(map(str, sorted(metrics.batch_tokens)))
        yield Finding(key, f"it has batches of {sizes} tokens", f"batches of {batch} tokens")
    left_out = list(plan.skipped_until(manifest.step))
    yield from unequal(key, {"steps without their batch": (list(metrics.skipped), left_out)})


def check_released_tokens(
    where: str, released: Mapping[str, Any], checkpoint: CheckpointManifest
) -> Iterator[Finding]:
    """Yield a finding where a release says other tokens than the checkpoint that it is of.

    Args:
        where: key of the release's manifest.
        released: the manifest.
        checkpoint: what the release is exported from.
    """
    stated = (released["tokens_seen"], released.get("tokens_elsewhere", 0))
    right = (checkpoint.tokens_seen, checkpoint.tokens_elsewhere)
    yield from unequal_tokens(where, stated, right)
