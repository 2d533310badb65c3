"""Checks of a run's ledger, manifests and files against each other (I2, I4, I5, I6). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from perennial.audit.children import right_mix
from perennial.audit.finding import Finding, field_of, unequal
from perennial.config.search import Child
from perennial.errors import InputError, InvalidTransition
from perennial.mixture import (
    CorpusRows,
    StageMix,
    TrunkUse,
    branch_mix,
    list_new,
    stage_mix,
    trained_sequences,
    truncate_mix,
)
from perennial.runs.event_codec import decode
from perennial.runs.events import Branched, Event, Opened, Releasing, Rewound, Started, Trained
from perennial.runs.ledger import HEAD, Head, check_follows, digest_of
from perennial.runs.search_state import shifted
from perennial.runs.state import RunState, Stage
from perennial.runs.unattended.replay_share import decide_share
from perennial.training.checkpoint.manifest import folder_of

_NO_HEAD = Head()


@dataclass
class FoldedLedger:
    """The ledger as far as it can be folded; `findings` say why it ends there.

    digests: of the entries, in order.
    """

    events: list[Event] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    state: RunState = field(default_factory=RunState)
    findings: list[Finding] = field(default_factory=list)

    def key(self, kind: str, **named: str) -> str:
        """Return the key of the first event of a kind with these fields."""
        return ledger_key(
            next(
                number
                for number, event in enumerate(self.events)
                if event.kind == kind and event.model_dump(include=set(named)) == named
            )
        )


def ledger_key(number: int) -> str:
    """Return the key of an event."""
    return f"ledger/{number:012d}.json"


def check_run_file(event: Event) -> None:
    """Raise ValueError where a run file lacks what the checks of its corpora rest on."""
    if isinstance(event, Opened):
        for name in ("corpora.sequence_length", "seed"):
            value = field_of(event.spec, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"its run file has no {name}")


def fold(ledger: Mapping[str, bytes], head: Head = _NO_HEAD) -> FoldedLedger:
    """Fold the ledger's objects up to the first that is missing, unreadable or impossible.

    Args:
        ledger: its objects by key.
        head: its end, as the store remembers it.
    """
    story = FoldedLedger()
    reached, chained = Head(), False
    named = [ledger_key(head.events - 1)] if head.events and head.is_possible else []
    last = max([*ledger, *named], default="")
    while (key := ledger_key(reached.events)) <= last:
        if key not in ledger:
            right = f"there are entries up to {last}; restore it from a copy"
            story.findings.append(Finding(key, "is missing", right))
            break
        try:
            entry = decode(ledger[key])
            check_follows(entry.before, reached, chained)
            check_run_file(entry.event)
            story.state.apply(entry.event)
        except InvalidTransition as impossible:
            story.findings.append(
                Finding(key, str(impossible), "each corpus is landed, trained and evaluated once")
            )
            break
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as broken:
            problem = f"cannot be read ({' '.join(str(broken).split())[:200]})"
            story.findings.append(Finding(key, problem, "an event that follows the one before it"))
            break
        story.events.append(entry.event)
        reached = Head(reached.events + 1, digest_of(ledger[key]))
        story.digests.append(reached.sha256)
        chained = entry.before is not None
    if not head.is_possible:
        story.findings.append(Finding(HEAD, "names no end of a ledger", "`perennial repair` it"))
    elif head.events and story.digests[head.events - 1 : head.events] not in ([], [head.sha256]):
        last = ledger_key(head.events - 1)
        story.findings.append(Finding(last, f"is not the entry that {HEAD} names", "restore it"))
    if (
        story.findings
    ):  # an event may have changed the state before it failed: fold again without it
        story.state = RunState()
        for event in story.events:
            story.state.apply(event)
    try:
        story.state.validate()
    except AssertionError as broken:
        story.findings.append(Finding("ledger", f"it does not hold that {broken}", "it must"))
    return story


def check_stages(story: FoldedLedger, rows: Mapping[str, CorpusRows]) -> Iterator[Finding]:
    """Check I2 and I4: each stage trains its corpora once, and replays what its history gives.

    Args:
        story: the folded ledger.
        rows: number of sequences of each corpus, or of its parts, from its manifest.
    """
    for stage in story.state.started_stages:
        key = story.key("started", stage=stage.name)
        mix = stage.mix
        for name in mix.replay.proxies.keys() & rows.keys():
            sizes = {f"sequences of {name}": (mix.replay.proxies[name], rows[name])}
            yield from unequal(key, sizes, f"{stage.name} has", "its manifest has")
        if set(stage.corpora) <= rows.keys():
            history = story.state.use_before(stage)
            try:
                new = list_new(stage.corpora, rows, mix.weights)
                right = stage_mix(history, new, mix.steps, mix.global_batch, mix.replay)
            except InputError as absent:
                yield _uncheckable(key, stage.name, absent)
                continue
            if mix != right:
                yield Finding(
                    key,
                    f"{stage.name} takes {_shown(mix)}",
                    f"its history gives {_shown(right)}",
                )
        yield from _check_share(key, stage, story.state)
    yield from _check_ends(story)
    yield from _check_resumed(story)


def _check_resumed(story: FoldedLedger) -> Iterator[Finding]:
    """Check that a stage that goes on after a rewind has the plan of the one that it goes on."""
    state = story.state
    places = {
        folder_of(state.stage(event.stage).folder, event.step): event.stage
        for event in story.events
        if isinstance(event, Rewound)
    }
    for stage in state.started_stages:
        if stage.resumes is None:
            continue
        key = story.key("started", stage=stage.name)
        if stage.resumes not in places:
            right = f"the trunk was taken back to {', '.join(places) or 'no checkpoint'}"
            yield Finding(key, f"{stage.name} goes on from {stage.resumes}", right)
            continue
        former = state.stage(places[stage.resumes])
        for name in ("first_step", "start", "mix", "schedule", "optimizer", "settings"):
            if getattr(stage, name) != getattr(former, name):
                problem = f"{stage.name} goes on from {stage.resumes} with another {name}"
                yield Finding(key, problem, f"that of {former.name}")


def list_awaited(state: RunState, committed: Collection[str]) -> Iterator[str]:
    """Return the keys of checkpoints that a stage goes on from and has not copied yet.

    Args:
        state: of the run.
        committed: keys of the committed checkpoints.
    """
    if state.resumption is not None:
        yield folder_of(state.stage(state.resumption.stage).folder, state.resumption.step)
    for stage in state.unfinished:
        is_begun = any(key.startswith(f"{stage.folder}/") for key in committed)
        if stage.resumes is not None and not is_begun:
            yield stage.resumes


def _check_share(key: str, stage: Stage, state: RunState) -> Iterator[Finding]:
    """Check that a share that was measured follows from its numbers, and is that of the mix."""
    decision = stage.share_decision
    if decision is None:
        return
    right = decide_share(decision.model, decision.own, decision.new, decision.rule)
    values = {
        "share of replay": (stage.mix.replay.share, right.share),
        "shift": (decision.shift, right.shift),
        "decided share": (decision.share, right.share),
        "measured model": (decision.model, state.start_of(stage)),
    }
    yield from unequal(key, values, f"{stage.name} has", "what was measured gives")


def _check_ends(story: FoldedLedger) -> Iterator[Finding]:
    """Check that each stage ends at the checkpoint of its last step."""
    for number, event in enumerate(story.events):
        if isinstance(event, Started):
            stage = story.state.stage(event.stage)
        elif isinstance(event, Trained):
            right = (folder_of(stage.folder, stage.last_step), stage.last_step)
            if (event.checkpoint, event.step) != right:
                yield Finding(
                    ledger_key(number),
                    f"{stage.name} ends at {event.checkpoint}, step {event.step}",
                    f"its last step is {stage.last_step}",
                )


def check_skips(story: FoldedLedger, skipped: Mapping[str, tuple[int, ...]]) -> Iterator[Finding]:
    """Check I5: the ledger names every batch that a trained stage skipped, and no other.

    Args:
        story: the folded ledger.
        skipped: trunk steps whose batch was skipped, by folder, from the store.
    """
    for folder, recorded in story.state.skipped.items():
        right = list(skipped.get(folder, ()))
        yield from unequal(
            folder, {"skipped steps": (list(recorded), right)}, "the ledger has", "it has"
        )


@dataclass(frozen=True)
class PlannedFolder:
    """The plan that the checkpoints of one folder must agree with.

    seen: sequences of each corpus that were trained before `first_step`.
    skipped: trunk steps whose batch was skipped.
    settings: what it keeps of the run file until it is finished; None where that is not known.
    inherits: whether its optimizer goes on with steps of the trunk's.
    kit_steps: of the optimizer, before the trunk; those of the trunk kit that it starts from.
    """

    name: str
    folder: str
    first_step: int
    mix: StageMix
    schedule: dict[str, Any]
    seen: dict[str, int]
    sequence_length: int
    skipped: tuple[int, ...] = ()
    settings: Mapping[str, Any] | None = None
    inherits: bool = True
    kit_steps: int = 0

    @property
    def last_step(self) -> int:
        """Return the trunk step at the end of the folder's training."""
        return self.first_step + self.mix.steps

    def skipped_until(self, step: int) -> tuple[int, ...]:
        """Return the skipped steps up to trunk step `step`."""
        return tuple(skipped for skipped in self.skipped if skipped <= step)

    def stated_tokens(self, step: int, stated: Mapping[str, int]) -> tuple[dict[str, int], int]:
        """Return what a checkpoint says of the tokens seen: by corpus, and of all others together.

        Args:
            step: trunk step of the checkpoint.
            stated: what it says by corpus: those of its mix, or every one in an older version.
        """
        seen = self.tokens_seen(step)
        named = {source.corpus for source in self.mix.sources} | (stated.keys() & seen.keys())
        own = {name: seen[name] for name in seen if name in named}
        return own, sum(seen.values()) - sum(own.values())

    def tokens_seen(self, step: int) -> dict[str, int]:
        """Return the tokens of each corpus seen up to trunk step `step`, from the plan."""
        seen = Counter(self.seen)
        past = [skipped - 1 - self.first_step for skipped in self.skipped_until(step)]
        seen.update(trained_sequences(self.mix, step - self.first_step, past))
        return {corpus: count * self.sequence_length for corpus, count in seen.items()}


def plan_folders(
    state: RunState, sequence_length: int, skipped: Mapping[str, tuple[int, ...]]
) -> dict[str, PlannedFolder]:
    """Return the plans of all stages (abandoned ones too), anneals and trials, by folder.

    Args:
        state: of the run.
        sequence_length: tokens in one sequence.
        skipped: trunk steps whose batch was skipped, by folder.
    """
    planned = {}
    for stage in state.started_stages:
        planned[stage.folder] = PlannedFolder(
            stage.name,
            stage.folder,
            stage.first_step,
            stage.mix,
            stage.schedule,
            state.seen(stage, stage.first_step, skipped),
            sequence_length,
            skipped.get(stage.folder, ()),
            stage.settings,
            stage.optimizer != "reset",
        )
    for branch in state.branches.values():
        if branch.mix is not None and branch.schedule is not None:
            folder = f"branches/{branch.name}"
            planned[folder] = PlannedFolder(
                branch.name,
                folder,
                branch.step,
                branch.mix,
                branch.schedule,
                state.seen(state.stage(branch.stage), branch.step, skipped),
                sequence_length,
                skipped.get(folder, ()),
                branch.settings,
            )
    for name, trial in state.searches.trials.items():
        branched = trial.branched
        planned[trial.folder] = PlannedFolder(
            name,
            trial.folder,
            branched.step,
            branched.mix,
            branched.schedule,
            state.seen(state.stage(branched.stage), branched.step, skipped),
            sequence_length,
            skipped.get(trial.folder, ()),
            branched.settings,
            branched.optimizer != "reset",
        )
    kit = state.base.imported.kit if state.base else None
    steps = kit.optimizer_steps if kit else 0
    return {folder: replace(plan, kit_steps=steps) for folder, plan in planned.items()}


def check_branches(story: FoldedLedger) -> Iterator[Finding]:
    """Check I7: each release branches off a step of a stage, and continues its mix."""
    for branch in story.state.branches.values():
        stage = story.state.stage(branch.stage)
        key = story.key("releasing", name=branch.name)
        if not stage.first_step < branch.step <= stage.last_step:
            yield Finding(
                key,
                f"it branches off step {branch.step}",
                f"{stage.name} has steps {stage.first_step + 1} to {stage.last_step}",
            )
        elif branch.mix is not None:
            mix = branch.mix
            history = _trained_before(story.state, branch)
            try:
                right = branch_mix(history, mix.steps, mix.replay.retired, mix.mixture)
            except (ValueError, LookupError, TypeError, ArithmeticError) as strange:
                problem = f"the mixture of {branch.name} cannot be made ({strange})"
                yield Finding(key, problem, "stage, seen, balanced, or weights of its corpora")
                continue
            if mix != right:
                yield Finding(
                    key,
                    f"{branch.name} takes {_shown(mix)}",
                    f"its history gives {_shown(right)}",
                )


def check_trials(story: FoldedLedger, rows: Mapping[str, CorpusRows]) -> Iterator[Finding]:
    """Check I2: each trial begins the stage that its point and the trunk's history give.

    Args:
        story: the folded ledger.
        rows: number of sequences of each corpus, or of its parts, from its manifest.
    """
    for name, trial in story.state.searches.trials.items():
        branched = trial.branched
        mix = branched.mix
        if any(corpus not in rows for corpus in mix.corpora):
            continue
        key = story.key("branched", trial=name)
        if isinstance(branched.point, Child):
            if story.state.spec is None:
                continue
            right = right_mix(story.state, branched)
            if mix != right:
                gives = f"its reference gives {_shown(right)}"
                yield Finding(key, f"{name} takes {_shown(mix)}", gives)
            continue
        history = _trained_before(story.state, branched)
        try:
            new = list_new(mix.corpora, rows, mix.weights)
            whole = stage_mix(history, new, mix.steps, mix.global_batch, mix.replay)
        except InputError as absent:
            yield _uncheckable(key, name, absent)
            continue
        right = shifted(whole, branched.point.seed)
        if mix != right:
            yield Finding(key, f"{name} takes {_shown(mix)}", f"its history gives {_shown(right)}")


def _uncheckable(key: str, name: str, absent: InputError) -> Finding:
    """Return the finding for a plan that cannot be made again: its replay policy is missing."""
    return Finding(key, f"the plan of {name} cannot be checked", absent.problem)


def _trained_before(state: RunState, branch: Releasing | Branched) -> TrunkUse:
    stage = state.stage(branch.stage)
    trained = truncate_mix(stage.mix, branch.step - stage.first_step)
    return state.use_before(stage).followed_by(trained)


def _shown(mix: StageMix) -> str:
    takes = [
        f"{s.sequences} sequences of {s.name} from {s.start} of {s.extent}" for s in mix.sources
    ]
    rule = f"{mix.replay.weighting}, share {mix.replay.share:g}"
    return f"{', '.join(takes)} ({rule if mix.mixture == 'stage' else f'mixture {mix.mixture}'})"
