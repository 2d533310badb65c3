"""`perennial status`: what the store says of a run."""

from __future__ import annotations

from perennial.cli.app import AsJson, Overrides, RunFile, verb
from perennial.cli.console import out, print_corpora, print_json, print_matrix, print_tokens
from perennial.cli.opening import read_run


@verb
def status(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Stages, phases, tokens, losses, what is running, what is next. Reads only."""
    from perennial.cli.console import Screen
    from perennial.stages import outcome
    from perennial.stages.advance import todo
    from perennial.stages.workspace import Workspace

    work = Workspace(read_run(run_file, overrides), str(run_file), Screen())
    state = work.ledger.read()
    next_steps = todo(work)
    length = work.spec.corpora.sequence_length
    told = outcome.matrix(state)
    where = outcome.position(work)
    if as_json:
        print_json(
            {
                "store": work.store.url,
                "corpora": {name: corpus.state for name, corpus in state.corpora.items()},
                "trunk": where,
                "matrix": told.to_dict(),
                "tokens": outcome.tokens_by_source(state, length),
                "releases": [release.folder for release in state.releases],
                "next": next_steps,
            }
        )
        return
    print_corpora(state)
    if where is not None:
        out.print(f"trunk     {where['stage']}, step {where['step']:,}, {where['phase']} phase")
    if told.stages:
        print_matrix(told)
    print_tokens(outcome.tokens_by_source(state, length))
    for release in state.releases:
        out.print(f"release   {work.store.url}/{release.folder}")
    out.print(f"next      {next_steps[0] if next_steps else 'nothing: land another corpus'}")
