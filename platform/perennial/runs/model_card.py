"""Write the model card of a release: its lineage, in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from perennial.mixture import StageMix, describe_tokens, truncate_mix
from perennial.runs import summary
from perennial.runs.card_metadata import front_matter, usage
from perennial.runs.events import Released, Releasing
from perennial.runs.state import RunState, Stage
from perennial.version import __version__

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.corpora import CorpusManifest
    from perennial.evaluation import HeldoutLoss
    from perennial.evaluation.scores import Score


def model_card(
    spec: RunSpec,
    state: RunState,
    release: Releasing,
    manifests: Mapping[str, CorpusManifest],
    released: Released | None = None,
    scores: Sequence[Score] = (),
    place: str | None = None,
    gguf: str | None = None,
    retrained: Retrained | None = None,
) -> str:
    """Write the Markdown of a release's README.md.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        release: the release as it was planned.
        manifests: of the corpora that the trunk has trained, by name.
        released: the release as it was measured; None before that.
        scores: of the tasks that it was scored on.
        place: where the release is copied to; None for the run's store.
        gguf: name of the GGUF file that it is copied as; None for a folder.
        retrained: a model that was trained from scratch on the same corpora, where one is known.
    """
    stage = state.stage(release.stage)
    trained = [*state.lineage(stage), stage]
    seen = state.seen(stage, release.step)
    length = spec.corpora.sequence_length
    return "\n".join(
        [
            *front_matter(spec, state, seen, release.name, released, scores, gguf),
            f"# {spec.name}: {release.name}",
            "",
            f"A release of the lineage `{spec.name}`: {_branch(release)}. The trunk itself never "
            "decays; it continues from its constant-phase checkpoint when the next corpus lands.",
            "",
            *_heldout_lines(state, released, retrained),
            *usage(place, gguf),
            *lineage_lines(spec, state, stage, release.step, manifests),
            *([f"- Anneal: {_fields(release.schedule)}."] if release.schedule else []),
            *([f"- Annealed on {describe_tokens(release.mix, length)}."] if release.mix else []),
            *_average_lines(release),
            f"- Parents: {', '.join(f'`{parent}`' for parent in _parents(trained, release))}.",
            f"- Tokenizer fingerprint: `{_tokenizer(state, stage, manifests)}`.",
            f"- Made by perennial {__version__}.",
            "",
        ]
    )


class Retrained(NamedTuple):
    """The model of a run that was trained from scratch on all corpora at once, and its losses."""

    run: str
    losses: Mapping[str, HeldoutLoss]


def _heldout_lines(
    state: RunState, released: Released | None, retrained: Retrained | None
) -> list[str]:
    """Return the losses of a release beside those of its base and of retraining."""
    if released is None or not released.losses:
        return []
    columns = {"this model": released.losses}
    if state.base is not None and state.base.losses:
        columns = {"the base": state.base.losses, **columns}
    if retrained is not None:
        same = {
            corpus: loss
            for corpus, loss in retrained.losses.items()
            if corpus in released.losses and _is_same_text(loss, released.losses[corpus])
        }
        columns |= {f"{retrained.run}, trained from scratch on all of it": same} if same else {}
    return [
        "## Held-out losses",
        "",
        "Nats per token on documents that none of these models saw; lower is better.",
        "",
        f"| corpus | {' | '.join(columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
        *(
            _loss_row(
                corpus,
                {name: losses[corpus] for name, losses in columns.items() if corpus in losses},
                [*columns],
            )
            for corpus in released.losses
        ),
        "",
    ]


def _is_same_text(loss: HeldoutLoss, other: HeldoutLoss) -> bool:
    """Return whether two losses are over as many documents, cut into as many tokens."""
    return (loss.documents, loss.tokens) == (other.documents, other.tokens)


def _tokenizer(state: RunState, stage: Stage, manifests: Mapping[str, CorpusManifest]) -> str:
    """Return the fingerprint of the tokenizer of a stage's model."""
    extension = state.extension_of(stage)
    return manifests[stage.corpora[0]].tokenizer if extension is None else extension.fingerprint


def lineage_lines(
    spec: RunSpec,
    state: RunState,
    stage: Stage,
    step: int,
    manifests: Mapping[str, CorpusManifest],
) -> list[str]:
    """Return the lines of a card on what the trunk was trained on until a step.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        stage: the stage that the step lies in.
        step: of the trunk.
        manifests: of the corpora that the trunk has trained, by name.
    """
    trained = [*state.lineage(stage), stage]
    mixes = [*state.history_of(stage), truncate_mix(stage.mix, step - stage.first_step)]
    length = spec.corpora.sequence_length
    seen = state.seen(stage, step)
    return [
        "## Lineage",
        *_origin_lines(state, stage, step),
        "| stage | first step | steps | tokens by source |",
        "| --- | --- | --- | --- |",
        *(_stage_row(s, mix, length) for s, mix in zip(trained, mixes, strict=True)),
        "",
        "| corpus | tokens seen, with replay | digest | |",
        "| --- | --- | --- | --- |",
        *(_corpus_row(state, manifests[name], n * length) for name, n in seen.items()),
        "",
        f"- Sequence length {length}, global batch {spec.training.global_batch} sequences.",
        f"- Trunk schedule: {_fields(stage.schedule)}.",
        *(
            f"- Replay share of {its.name}, measured before it began: "
            f"{its.share_decision.describe()}."
            for its in trained
            if its.share_decision is not None
        ),
    ]


def _origin_lines(state: RunState, stage: Stage, step: int) -> list[str]:
    """Return what the trunk started from, and its losses beside those of all until a step."""
    base = state.base
    if base is None:
        return []
    its = base.imported
    part = f", its first {its.inherit_layers} layers" if its.inherit_layers is not None else ""
    lines = [
        f"The trunk started from the base `{its.path}`{part}: {its.parameters:,} parameters, "
        f"digest of its files `{its.manifest}`.",
        "",
    ]
    if its.kit is not None:
        kit = its.kit
        lines[1:1] = [
            f"It is a trunk kit of `{kit.run}`, taken at {kit.source} after {kit.step:,} steps of "
            f"that trunk; digest of the kit `{kit.digest}`."
        ]
    line = {its.name for its in (*state.lineage(stage), stage)}
    later = {its.name for its in state.stages} - line
    later |= {
        f"release {name}"
        for name, its in state.branches.items()
        if its.step > step or its.stage not in line
    }
    matrix = summary.matrix(state, summary.SHOWN_STAGES)
    rows = [(name, losses) for name, losses in matrix.rows if name not in later]
    known = [corpus for corpus in matrix.corpora if any(corpus in losses for _, losses in rows)]
    if known:
        lines += [
            f"| held-out nats per token | {' | '.join(known)} |",
            f"| --- |{' ---: |' * len(known)}",
            *(_loss_row(name, losses, known) for name, losses in rows),
            "",
        ]
    return lines


def _loss_row(name: str, losses: Mapping[str, HeldoutLoss], corpora: Sequence[str]) -> str:
    cells = (f"{losses[c].nats_per_token:.3f}" if c in losses else "-" for c in corpora)
    return f"| {name} | {' | '.join(cells)} |"


def _branch(release: Releasing) -> str:
    if release.average is not None:
        return f"the {release.average}; nothing was trained for it"
    if release.schedule is None:
        return f"the trunk's step {release.step}, whose own schedule had decayed"
    anneal = release.schedule
    return (
        f"annealed for {anneal['steps']} steps from {anneal['eta_start']:g} to "
        f"{anneal['eta_min']:g} ({anneal['shape']}) off the trunk's step {release.step}"
    )


def _average_lines(release: Releasing) -> list[str]:
    """Return the checkpoints of an average with their shares of it."""
    if release.average is None:
        return []
    total = sum(member.weight for member in release.average.of)
    shares = (f"{m.step:,} {m.weight / total:.4g}" for m in release.average.of)
    return [f"- Averaged in 32 bits, share by step: {', '.join(shares)}."]


def _stage_row(stage: Stage, mix: StageMix, length: int) -> str:
    sources = ", ".join(f"{s.name} {s.sequences * length:,}" for s in mix.sources)
    return f"| {stage.name} | {stage.first_step:,} | {mix.steps:,} | {sources} |"


def _corpus_row(state: RunState, manifest: CorpusManifest, tokens: int) -> str:
    note = ""
    if manifest.erased:
        note = "erased since: its text is no more"
    elif manifest.name in state.retired:
        note = "retired: no longer replayed"
    elif any(manifest.name in stage.mix.replay.proxies for stage in state.stages):
        note = "a proxy for what the base was trained on: replayed, never a stage"
    return f"| {manifest.name} | {tokens:,} | `{manifest.digest}` | {note} |"


def _parents(trained: Sequence[Stage], release: Releasing) -> list[str]:
    """Return the checkpoints that the release descends from, the nearest first."""
    averaged = release.average.sources if release.average else [release.source]
    starts = (stage.start for stage in reversed(trained) if stage.start is not None)
    return [*dict.fromkeys([*reversed([*averaged]), *starts])]


def _fields(schedule: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in schedule.items())
