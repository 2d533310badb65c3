"""What a notification says of a run. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from perennial.redaction import hide_secrets
from perennial.runs.unattended.gate_response import respond_to_gate

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.config.notify import Happening
    from perennial.runs.events import Failed
    from perennial.runs.state import RunState


@dataclass(frozen=True)
class Notice:
    """A notification.

    on: the kind of what happened.
    subject: the stage, corpus, release or source.
    text: one sentence, and further lines.
    at: UTC time, ISO 8601.
    mark: names what happened, so that no process sends it again; "" where only this one knows it.
    """

    on: Happening
    run: str
    store: str
    subject: str
    text: str
    at: str
    mark: str = ""

    @property
    def headline(self) -> str:
        """Return the first line, with the name of the run."""
        return f"{self.run}: {self.text.splitlines()[0]}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form, which a program reads."""
        return {name: value for name, value in asdict(self).items() if name != "mark"}


Compose = Callable[[], str]
"""returns the text; may read the ledger"""


def list_conditions(
    spec: RunSpec, state: RunState
) -> Iterator[tuple[Happening, str, str, Compose]]:
    """Yield what a user should know of a run as it stands: kind, mark, subject and text.

    A stage that a gate stopped is none as long as the controller answers that by itself.
    """
    stage, response = state.gated, respond_to_gate(spec, state)
    if stage is not None and (response is None or response.answer is None):
        tried = response.describe() if response else ""
        yield "gate", f"gate-{stage.name}", stage.name, partial(_gated, state, stage.name, tried)
    for corpus in state.corpora.values():
        if corpus.state == "failed":
            mark = f"failure-{corpus.name}-{corpus.event_kinds.count('failed')}"
            tries = f"attempt {corpus.attempt} of {corpus.attempts}"
            text = partial(_failed, corpus.name, corpus.reason, tries, corpus.next_try)
            yield "failure", mark, corpus.name, text


def describe_setbacks(setbacks: Mapping[str, Failed]) -> Iterator[tuple[str, str, str]]:
    """Yield mark, name and text of releases that failed in this process."""
    for name, failed in setbacks.items():
        tries = f"attempt {failed.attempt} of {failed.attempts}"
        text = _failed(f"release {name}", failed.reason, tries, failed.next_try)
        yield f"release-failure-{name}-{failed.attempt}", name, text


def _gated(state: RunState, stage: str, tried: str) -> str:
    broken = [
        f"{its.gate} of {its.subject}: {its.reason or f'{its.value:.4g}'}, bound {its.bound:.4g}"
        for its in state.verdicts[stage]
        if not its.holds
    ]
    first = f"a gate stopped {stage}; the run is paused until you decide"
    rest = [*filter(None, [tried]), "`perennial status` shows what you can do"]
    return "\n".join([first, *broken, *rest])


def _failed(what: str, reason: str, tries: str, next_try: str | None) -> str:
    again = f"tried again at {next_try}" if next_try else "it waits for `perennial retry`"
    if what.startswith("release ") and not next_try:
        again = "make it with `perennial release`"
    return hide_secrets(f"{what} failed ({tries}; {again})\n{reason}")
