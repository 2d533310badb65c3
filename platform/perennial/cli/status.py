"""`perennial status`: what the store says of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from perennial.cli.app import AsJson, Overrides, RunFile, verb
from perennial.cli.console import (
    out,
    print_corpora,
    print_gate,
    print_json,
    print_matrix,
    print_scores,
    print_sources,
    print_tokens,
)
from perennial.cli.opening import read_run

if TYPE_CHECKING:
    from perennial.stages.workspace import Workspace


@verb
def status(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Stages, phases, tokens, losses, what is running, what is next. Reads only."""
    from perennial.cli.console import Screen
    from perennial.stages import outcome
    from perennial.stages.advance import todo
    from perennial.stages.sourcing import open_sources, utc_now
    from perennial.stages.workspace import Workspace

    work = Workspace(read_run(run_file, overrides), str(run_file), Screen())
    state = work.ledger.read()
    next_steps = todo(work)
    length = work.spec.corpora.sequence_length
    told = outcome.matrix(state)
    where = outcome.position(work)
    sources = [source.status(utc_now()) for source in open_sources(work)]
    states = outcome.told_states(work)
    if as_json:
        print_json(
            {
                "store": work.store.url,
                "corpora": states,
                "reasons": {n: c.reason for n, c in state.corpora.items() if c.reason},
                "controller": {"epoch": state.epoch, "name": state.controller},
                "gated": outcome.gated(state),
                "trunk": where,
                "matrix": told.to_dict(),
                "tokens": outcome.tokens_by_source(state, length),
                "releases": [release.folder for release in state.releases],
                "sources": [asdict(source) for source in sources],
                "next": next_steps,
            }
        )
        return
    print_sources(sources)
    print_corpora(state, states)
    if told.stages:
        print_matrix(told)
        print_tokens(outcome.tokens_by_source(state, length))
    for release, found in state.scores.items():
        print_scores(release, found)
    _print_places(work, str(run_file), where, next_steps)


def _print_places(
    work: Workspace, run_file: str, where: dict[str, Any] | None, next_steps: Sequence[str]
) -> None:
    from perennial.stages import outcome
    from perennial.stages.decisions import choices

    if where is not None:
        out.print(f"trunk     {where['stage']}, step {where['step']:,}, {where['phase']} phase")
    for release in work.state.releases:
        out.print(f"release   {work.store.url}/{release.folder}")
    if work.state.losses:
        out.print(f"pictures  {work.store.url}/report/ (learning-rate.png, matrix.png, ...)")
    out.print(f"store     {work.store.url}")
    out.print(f"inbox     {work.inbox.url}")
    out.print(f"curves    perennial ui {run_file}")
    for step in next_steps:
        out.print(f"next      {step}: perennial run {run_file}")
    gated = choices(work.state, run_file)
    print_gate(outcome.gated(work.state), gated)
    if not next_steps and not gated:
        out.print(f"next      land another corpus: perennial land {run_file} NAME FILES...")
        out.print("          or search what its stage should use: perennial tune TUNING_FILE")
