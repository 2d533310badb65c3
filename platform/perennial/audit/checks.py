"""What must hold between a run's ledger, manifests and files (invariants I2, I4, I5, I6). Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from perennial.audit.files import MetricsContents
from perennial.audit.finding import Finding, unequal
from perennial.errors import InputError, InvalidTransition
from perennial.mixture import StageMix, branch_mix, stage_mix, trained_sequences, truncate_mix
from perennial.runs.events import Branched, Event, Releasing, Started, Trained, decode
from perennial.runs.search_state import shifted
from perennial.runs.state import RunState
from perennial.schedules import AbsentSchedule, from_dict
from perennial.training.checkpoint.manifest import MANIFEST, CheckpointManifest, folder_of


@dataclass
class Story:
    """The ledger as far as it can be folded; `findings` say why it ends there."""

    events: list[Event] = field(default_factory=list)
    state: RunState = field(default_factory=RunState)
    findings: list[Finding] = field(default_factory=list)

    def key(self, kind: str, **named: str) -> str:
        """The ledger object of the first event of a kind with these fields."""
        return ledger_key(
            next(
                number
                for number, event in enumerate(self.events)
                if event.kind == kind and event.model_dump(include=set(named)) == named
            )
        )


def ledger_key(number: int) -> str:
    """Where an event lies."""
    return f"ledger/{number:012d}.json"


def fold(ledger: Mapping[str, bytes]) -> Story:
    """Fold the ledger's objects up to the first that is missing, unreadable or impossible."""
    story = Story()
    for number in range(len(ledger)):
        key = ledger_key(number)
        if key not in ledger:
            right = f"{len(ledger)} events follow each other without a gap"
            story.findings.append(Finding(key, "is missing, and later events are there", right))
            break
        try:
            event = decode(ledger[key])
            story.state.apply(event)
        except InvalidTransition as impossible:
            story.findings.append(
                Finding(key, str(impossible), "each corpus is landed, trained and evaluated once")
            )
            break
        except (ValueError, LookupError, TypeError, StopIteration) as broken:
            problem = f"cannot be read ({' '.join(str(broken).split())[:200]})"
            story.findings.append(Finding(key, problem, "an event that follows the one before it"))
            break
        story.events.append(event)
    if story.findings:  # the last event may have left its mark before it failed
        story.state = RunState()
        for event in story.events:
            story.state.apply(event)
    try:
        story.state.validate()
    except AssertionError as broken:
        story.findings.append(Finding("ledger", f"it does not hold that {broken}", "it must"))
    return story


def check_stages(story: Story, rows: Mapping[str, int]) -> Iterator[Finding]:
    """I2, I4: each stage trains its own corpora once, and replays what its history gives."""
    for stage in story.state.started_stages:
        key = story.key("started", stage=stage.name)
        mix = stage.mix
        if set(stage.corpora) <= rows.keys():
            new = {name: rows[name] for name in stage.corpora}
            history = story.state.history_of(stage)
            try:
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
    yield from _check_ends(story)


def _check_ends(story: Story) -> Iterator[Finding]:
    """Each stage ends at the checkpoint of its last step."""
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


def check_skips(story: Story, skipped: Mapping[str, tuple[int, ...]]) -> Iterator[Finding]:
    """I5: the ledger names every batch that a trained stage left out, and no other."""
    for folder, told in story.state.skipped.items():
        right = list(skipped.get(folder, ()))
        yield from unequal(
            folder, {"skipped steps": (list(told), right)}, "the ledger has", "it has"
        )


@dataclass(frozen=True)
class Line:
    """What the checkpoints of one folder must agree with.

    seen: sequences of each corpus that were trained before `first_step`.
    skipped: trunk steps whose batch the line's folder leaves out.
    """

    name: str
    folder: str
    first_step: int
    mix: StageMix
    schedule: dict[str, Any]
    seen: dict[str, int]
    sequence_length: int
    skipped: tuple[int, ...] = ()

    @property
    def last_step(self) -> int:
        """Trunk step at the end of the line."""
        return self.first_step + self.mix.steps

    def skipped_until(self, step: int) -> tuple[int, ...]:
        """What is left out until the line stands at trunk step `step`."""
        return tuple(each for each in self.skipped if each <= step)

    def tokens_seen(self, step: int) -> dict[str, int]:
        """Tokens of each corpus when the line stands at trunk step `step`, from the plan."""
        seen = Counter(self.seen)
        past = [each - 1 - self.first_step for each in self.skipped_until(step)]
        seen.update(trained_sequences(self.mix, step - self.first_step, past))
        return {corpus: count * self.sequence_length for corpus, count in seen.items()}


def lines_of(
    state: RunState, sequence_length: int, skipped: Mapping[str, tuple[int, ...]]
) -> dict[str, Line]:
    """The stages, abandoned ones too, the releases' anneals and the trials, by folder.

    skipped: the steps whose batch each folder leaves out.
    """
    lines = {}
    for stage in state.started_stages:
        lines[stage.folder] = Line(
            stage.name,
            stage.folder,
            stage.first_step,
            stage.mix,
            stage.schedule,
            state.seen(stage, stage.first_step, skipped),
            sequence_length,
            skipped.get(stage.folder, ()),
        )
    for branch in state.branches.values():
        if branch.mix is not None and branch.schedule is not None:
            folder = f"branches/{branch.name}"
            lines[folder] = Line(
                branch.name,
                folder,
                branch.step,
                branch.mix,
                branch.schedule,
                state.seen(state.stage(branch.stage), branch.step, skipped),
                sequence_length,
                skipped.get(folder, ()),
            )
    for name, trial in state.searches.trials.items():
        told = trial.branched
        lines[trial.folder] = Line(
            name,
            trial.folder,
            told.step,
            told.mix,
            told.schedule,
            state.seen(state.stage(told.stage), told.step, skipped),
            sequence_length,
            skipped.get(trial.folder, ()),
        )
    return lines


def check_branches(story: Story) -> Iterator[Finding]:
    """I7: each release branches off a step of a stage, and goes on with what was trained there."""
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
            right = branch_mix(history, mix.steps, mix.replay.retired)
            if mix != right:
                yield Finding(
                    key,
                    f"{branch.name} takes {_shown(mix)}",
                    f"its history gives {_shown(right)}",
                )


def check_trials(story: Story, rows: Mapping[str, int]) -> Iterator[Finding]:
    """I2: each trial of a search begins the stage that its point and the trunk's history give."""
    for name, trial in story.state.searches.trials.items():
        told = trial.branched
        mix = told.mix
        if told.corpus not in rows:
            continue
        key = story.key("branched", trial=name)
        new = {told.corpus: rows[told.corpus]}
        history = _trained_before(story.state, told)
        try:
            whole = stage_mix(history, new, mix.steps, mix.global_batch, mix.replay)
        except InputError as absent:
            yield _uncheckable(key, name, absent)
            continue
        right = shifted(whole, told.point.seed)
        if mix != right:
            yield Finding(key, f"{name} takes {_shown(mix)}", f"its history gives {_shown(right)}")


def _uncheckable(key: str, name: str, absent: InputError) -> Finding:
    """Return the finding for a plan that cannot be made again: its replay policy is missing."""
    return Finding(key, f"the plan of {name} cannot be checked", absent.problem)


def _trained_before(state: RunState, branch: Releasing | Branched) -> list[StageMix]:
    stage = state.stage(branch.stage)
    return [*state.history_of(stage), truncate_mix(stage.mix, branch.step - stage.first_step)]


def check_checkpoint(key: str, manifest: CheckpointManifest, line: Line) -> Iterator[Finding]:
    """I6: a committed checkpoint says what the ledger's plan says of its step."""
    where, step = f"{key}/{MANIFEST}", manifest.step
    if key != folder_of(line.folder, step) or not line.first_step < step <= line.last_step:
        yield Finding(
            where,
            f"its step is {step}",
            f"{line.name} has steps {line.first_step + 1} to {line.last_step}, one folder each",
        )
        return
    schedule = from_dict(line.schedule)
    is_known = not isinstance(schedule, AbsentSchedule)
    if not is_known:
        yield Finding(
            where,
            f"the learning rate of {line.name} cannot be checked",
            f"no installed package brings its schedule {line.schedule['kind']!r}",
        )
    pairs = {
        "name": (manifest.name, line.name),
        "mix": (_in_this_form(manifest.mix), line.mix.to_dict()),
        "mix_step": (manifest.mix_step, step - line.first_step),
        "schedule": (manifest.schedule, line.schedule),
        "phase": (manifest.phase, schedule.phase(step - 1) if is_known else manifest.phase),
        "tokens_seen": (manifest.tokens_seen, line.tokens_seen(step)),
        "skipped": (list(manifest.skipped), list(line.skipped_until(step))),
    }
    yield from unequal(where, pairs)
    # Another machine's cosine may differ in the last bit.
    if is_known and not math.isclose(manifest.eta, schedule.eta(step - 1), rel_tol=1e-9):
        yield from unequal(where, {"eta": (manifest.eta, schedule.eta(step - 1))})
    world = manifest.world_size
    wanted = [f"optimizer-{rank:02d}-of-{world:02d}.safetensors" for rank in range(world)]
    for name in ("config.json", "metrics.jsonl", *wanted):
        if name not in manifest.files:
            yield Finding(where, f"it names no {name}", "a checkpoint has one")
    if not any(n.startswith("model") and n.endswith(".safetensors") for n in manifest.files):
        yield Finding(where, "it names no weights", "a checkpoint has model.safetensors")


def _in_this_form(mix: dict[str, Any]) -> dict[str, Any]:
    """A mix as this version writes it; one that it cannot read, as it is."""
    try:
        return StageMix.from_dict(mix).to_dict()
    except (ValueError, LookupError, TypeError):
        return mix


def check_metrics(
    key: str, manifest: CheckpointManifest, line: Line, found: MetricsContents
) -> Iterator[Finding]:
    """I4: every step of the line so far was taken once, on a whole batch."""
    first = line.first_step + 1
    right = ((first, manifest.step),)
    if found.runs != right:
        told = ", ".join(f"{begin} to {end}" for begin, end in found.runs[:4])
        yield Finding(
            key,
            f"it tells of steps {told}",
            f"each of {first} to {manifest.step} once",
        )
    batch = line.mix.global_batch * line.sequence_length
    if found.batch_tokens - {batch}:
        sizes = ", ".join(map(str, sorted(found.batch_tokens)))
        yield Finding(key, f"it tells of batches of {sizes} tokens", f"batches of {batch} tokens")
    left_out = list(line.skipped_until(manifest.step))
    yield from unequal(key, {"steps without their batch": (list(found.skipped), left_out)})


def _shown(mix: StageMix) -> str:
    takes = [
        f"{s.sequences} sequences of {s.corpus} from {s.start} of {s.extent}" for s in mix.sources
    ]
    return f"{', '.join(takes)} ({mix.replay.weighting}, share {mix.replay.share:g})"
