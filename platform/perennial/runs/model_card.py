"""Write the model card of a release: its lineage, in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from perennial.mixture import StageMix, truncate_mix
from perennial.runs.events import Releasing
from perennial.runs.state import RunState, Stage
from perennial.version import __version__

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.corpora import CorpusManifest


def model_card(
    spec: RunSpec,
    state: RunState,
    release: Releasing,
    manifests: Mapping[str, CorpusManifest],
) -> str:
    """Write the Markdown of a release's README.md.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        release: the release as it was planned.
        manifests: of the corpora that the trunk has trained, by name.
    """
    stage = state.stage(release.stage)
    trained = [*state.stages[: stage.after], stage]
    mixes = [*state.history_of(stage), truncate_mix(stage.mix, release.step - stage.first_step)]
    length = spec.corpora.sequence_length
    seen = state.seen(stage, release.step)
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "---",
            f"# {spec.name}: {release.name}",
            "",
            f"A release of the lineage `{spec.name}`: {_branch(release)}. The trunk itself never "
            "decays; it continues from its constant-phase checkpoint when the next corpus lands.",
            "",
            "## Lineage",
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
            *([f"- Anneal: {_fields(release.schedule)}."] if release.schedule else []),
            f"- Parents: {', '.join(f'`{parent}`' for parent in _parents(trained, release))}.",
            f"- Tokenizer fingerprint: `{manifests[stage.corpora[0]].tokenizer}`.",
            f"- Made by perennial {__version__}.",
            "",
        ]
    )


def _branch(release: Releasing) -> str:
    if release.schedule is None:
        return f"the trunk's step {release.step}, whose own schedule had decayed"
    anneal = release.schedule
    return (
        f"annealed for {anneal['steps']} steps from {anneal['eta_start']:g} to "
        f"{anneal['eta_min']:g} ({anneal['shape']}) off the trunk's step {release.step}"
    )


def _stage_row(stage: Stage, mix: StageMix, length: int) -> str:
    sources = ", ".join(f"{s.name} {s.sequences * length:,}" for s in mix.sources)
    return f"| {stage.name} | {stage.first_step:,} | {mix.steps:,} | {sources} |"


def _corpus_row(state: RunState, manifest: CorpusManifest, tokens: int) -> str:
    retired = "retired: no longer replayed" if manifest.name in state.retired else ""
    return f"| {manifest.name} | {tokens:,} | `{manifest.digest}` | {retired} |"


def _parents(trained: Sequence[Stage], release: Releasing) -> list[str]:
    """Return the checkpoints that the release descends from, the nearest first."""
    return [release.source, *(s.start for s in reversed(trained) if s.start is not None)]


def _fields(schedule: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in schedule.items())
