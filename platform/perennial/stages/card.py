"""The model card of a release: its lineage, in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import perennial
from perennial.mixture import seen_sequences
from perennial.stages.machine import RunState, Stage

if TYPE_CHECKING:
    from perennial.corpora import CorpusManifest
    from perennial.schedules import Anneal
    from perennial.spec import RunSpec


def model_card(
    spec: RunSpec,
    state: RunState,
    name: str,
    stage: Stage,
    anneal: Anneal | None,
    manifests: Mapping[str, CorpusManifest],
) -> str:
    """Markdown for the release's README.md."""
    length = spec.corpora.sequence_length
    seen = seen_sequences(state.history)
    rows = [
        f"| {s.name} | {s.corpus} | {manifests[s.corpus].digest[:16]} | {s.first_step:,} | "
        f"{s.mix.steps:,} | {seen[s.corpus] * length:,} |"
        for s in state.stages
    ]
    branch = (
        f"annealed for {anneal.steps} steps from {anneal.eta_start:g} to {anneal.eta_min:g} "
        f"({anneal.shape}) off the trunk's step {stage.last_step}"
        if anneal
        else f"the trunk's step {stage.last_step}, whose own schedule had decayed"
    )
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "---",
            f"# {spec.name}: {name}",
            "",
            f"A release of the lineage `{spec.name}`: {branch}. The trunk itself never decays; "
            "it goes on from its constant-phase checkpoint when the next corpus lands.",
            "",
            "| stage | corpus | corpus digest | first step | steps | tokens seen, with replay |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"- Sequence length {length}, global batch {spec.training.global_batch} sequences.",
            f"- Trunk schedule: {_fields(stage.schedule)}.",
            f"- Parent checkpoint: `{state.ends[stage.name]}`.",
            f"- Tokenizer fingerprint: `{manifests[stage.corpus].tokenizer[:16]}`.",
            f"- Made by perennial {perennial.__version__}.",
            "",
        ]
    )


def _fields(schedule: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in schedule.items())
