"""Fold the events of searches: claims, trials and measurements. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from perennial.config.search import Child
from perennial.errors import InvalidTransition
from perennial.fields import parse_amount
from perennial.mixture import Source, StageMix
from perennial.mixture.replay import apportion
from perennial.runs.entities import Stage
from perennial.runs.events import Branched, Searching, Started, Tried

GATE_SEARCH = "gate/"
"""Begins the name of a search after a broken gate, which ends with the stage; a tuning file's name
has no slash."""


@dataclass
class Trial:
    """One branch off the trunk, and its measurements in the order of its steps."""

    branched: Branched
    tried: list[Tried] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """Return the key of the folder of its checkpoints."""
        return f"branches/{self.branched.trial}"

    def at(self, step: int) -> Tried | None:
        """Return the measurement at a trunk step, or None."""
        return next((tried for tried in self.tried if tried.step == step), None)

    @property
    def trained_steps(self) -> int:
        """Return the optimizer steps that it has cost, anneals included."""
        return sum(tried.trained_steps for tried in self.tried)


@dataclass
class Searches:
    """Every search's last claim by its name, and every trial by its own."""

    claims: dict[str, Searching] = field(default_factory=dict)
    trials: dict[str, Trial] = field(default_factory=dict)

    def check(self, event: Searching | Branched | Tried) -> None:
        """Raise InvalidTransition when the event cannot follow; changes nothing."""
        match event:
            case Searching():
                last = self.claims.get(event.name)
                if event.claim != (last.claim if last else 0) + 1:
                    history = [f"searching (claim {last.claim})"] if last else []
                    raise InvalidTransition(event.name, "known", f"claim {event.claim}", history)
            case Branched():
                if event.search not in self.claims:
                    raise InvalidTransition(event.trial, "of no search", event.kind, [])
                if event.trial in self.trials:
                    raise InvalidTransition(event.trial, "branched", event.kind, ["branched"])
            case Tried():
                trial = self.trials.get(event.trial)
                if trial is None:
                    raise InvalidTransition(event.trial, "unknown", event.kind, [])
                last_step = trial.tried[-1].step if trial.tried else trial.branched.step
                if event.step <= last_step:
                    state = f"measured at step {last_step}"
                    raise InvalidTransition(event.trial, state, f"tried at {event.step}", [])

    def apply(self, event: Searching | Branched | Tried) -> None:
        """Fold in an event that `check` accepts."""
        match event:
            case Searching():
                self.claims[event.name] = event
            case Branched():
                self.trials[event.trial] = Trial(event)
            case Tried():
                self.trials[event.trial].tried.append(event)

    def of(self, search: str) -> dict[str, Trial]:
        """Return the trials of a search by name, in the order in which they branched."""
        return {n: t for n, t in self.trials.items() if t.branched.search == search}


def shifted(mix: StageMix, seed: int) -> StageMix:
    """Return a mix on other documents, for a repeated trial.

    Args:
        mix: the mix of the stage.
        seed: every source starts `seed` times its own number of sequences later; 0 changes nothing.
    """
    sources = tuple(
        replace(s, start=(s.start + seed * s.sequences) % s.extent) if s.extent else s
        for s in mix.sources
    )
    return replace(mix, sources=sources)


def start_key(branched: Branched) -> str:
    """Return the key of what a child begins with, a checkpoint of no steps."""
    return f"searches/{branched.search}/starts/{branched.trial}"


def child_mix(reference: StageMix, child: Child, sequence_length: int) -> StageMix:
    """Return what a child of an Inheritune search is trained on.

    Args:
        reference: the mix of the stage that trained its reference.
        child: that of a subset is trained on the first rows of each source, which are in random
            order, again and again; any other as its reference was. With a seed, every source
            starts elsewhere in its order.
        sequence_length: tokens in one sequence.
    """
    mix = reference
    if child.subset:
        rows = {index: source.extent for index, source in enumerate(reference.new)}
        whole, batch = sum(rows.values()), reference.global_batch
        wanted = parse_amount(child.subset).steps(whole, sequence_length)
        subset = apportion(min(max(wanted, 1), whole), rows)
        steps = max(1, sum(subset.values()) * child.epochs // batch)
        takes = apportion(steps * batch, subset)
        sources = tuple(
            replace(source, sequences=takes[index], start=0, extent=subset[index])
            for index, source in enumerate(reference.new)
            if subset[index]
        )
        mix = StageMix(reference.corpora, steps, batch, sources, reference.replay)
    return replace(mix, sources=tuple(_rotated(source, child.seed) for source in mix.sources))


def _rotated(source: Source, seed: int) -> Source:
    """Return a source that starts elsewhere in its order for every seed, far from the others."""
    if not seed or not source.extent:
        return source
    away = seed * 618 * source.extent // 1000  # the golden section of it
    return replace(source, start=(source.start + away) % source.extent)


def trial_stage(decided: Branched, after: int) -> Stage:
    """Return the stage that a trial is the beginning of, under the trial's name.

    Args:
        decided: the trial.
        after: number of the trunk's stages before it.
    """
    return Stage.decided(
        Started(
            at=decided.at,
            corpus=decided.corpus,
            stage=decided.trial,
            first_step=decided.step,
            start=decided.source,
            mix=decided.mix,
            schedule=decided.schedule,
            tracking_run="",
            optimizer=decided.optimizer,
            settings=decided.settings,
        ),
        after,
    )
