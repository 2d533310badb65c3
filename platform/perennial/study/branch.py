"""Begin a run with the stages that another one trained as this one would.

The other run's events up to the first stage that this run would train otherwise become the first
events of this run's ledger, and what they name is copied. A stage is shared where `decide_stage`
plans it for this run as the other run's ledger has it: the same sequences, schedule, optimizer and
settings, and so the same weights (invariant I9).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from perennial import corpora
from perennial.config import read_stored_run
from perennial.corpora.manifest import manifest_key
from perennial.corpora.reuse import borrow_tokenizer
from perennial.errors import InputError
from perennial.runs import events as happened
from perennial.runs.event_codec import decode
from perennial.runs.events import Event, Opened, Started
from perennial.runs.ledger import FOLDER, Head, Ledger
from perennial.runs.stage_planner import decide_stage, order_of
from perennial.runs.state import RunState
from perennial.store import Log, Store, copy_checked
from perennial.training.checkpoint import manifest as checkpoint

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.mixture import StageMix
    from perennial.runs.state import Stage

_OF_RELEASES = (happened.Releasing, happened.Released, happened.Scored)
_OF_STAGES = (
    *(happened.TookOver, happened.Imported, happened.Landed, happened.Ingesting, happened.Ready),
    *(happened.Trained, happened.Evaluating, happened.Evaluated, happened.Measured),
    *(happened.Passed, happened.Failed, happened.Retried),
)
_MODELS = "models"


def may_share(spec: RunSpec, other: RunSpec) -> bool:
    """Return whether the first stages of two runs can be the same, as far as run files say.

    Args:
        spec: a run file.
        other: another run's.
    """
    same = ("seed", "tokenizer", "model", "training", "evaluation", "gates")
    if any(getattr(spec, name) != getattr(other, name) for name in same):
        return False
    one, two = (its.corpora.model_copy(update={"borrow": None}) for its in (spec, other))
    return one == two and _ordering(spec) == _ordering(other)


def _ordering(spec: RunSpec) -> tuple[object, ...]:
    order = order_of(spec)
    priority = {name: number for name, number in order.priority.items() if number}
    alone = frozenset(order.alone)
    return (tuple(order.first), priority, order.only, order.most_corpora, order.most_tokens,
            alone, tuple(order.proxies))  # fmt: skip


def count_shared(stages: Iterable[Stage], others: Iterable[Stage]) -> int:
    """Return how many stages two runs have in common from the beginning.

    Args:
        stages: of one run, in order.
        others: of the other run.
    """
    count = 0
    for stage, other in zip(stages, others, strict=False):
        if _plan(stage) != _plan(other):
            break
        count += 1
    return count


def _plan(stage: Stage) -> tuple[object, ...]:
    optimizer = stage.optimizer if stage.after else None
    return (stage.name, stage.first_step, _batches(stage.mix), dict(stage.schedule), optimizer,
            stage.settings)  # fmt: skip


def _batches(mix: StageMix) -> tuple[object, ...]:
    """Return what decides the batches of a stage; a rule of replay does by its sources alone."""
    return mix.corpora, mix.steps, mix.global_batch, mix.sources


def shared_events(spec: RunSpec, story: Iterable[Event]) -> dict[int, Event]:
    """Return the events of another run that this run may begin with, by their numbers. Pure.

    They end behind a stage that passed; there are none where no stage is shared.

    Args:
        spec: this run's file.
        story: the other run's events, in order.
    """
    state, kept, whole = RunState(), dict[int, Event](), 0
    for number, event in enumerate(story):
        if isinstance(event, _OF_RELEASES):
            continue
        if isinstance(event, Opened):
            if not may_share(spec, read_stored_run(event.spec)):
                break
            document = spec.model_dump(mode="json") | {"store": "."}
            event = event.model_copy(update={"spec": document})
        elif isinstance(event, Started):
            mine = _start(spec, state, event)
            if mine is None:
                break
            event = mine
        elif not isinstance(event, _OF_STAGES) or getattr(event, "by_person", False):
            break  # a user decided something
        state.apply(event)
        kept[number] = event
        if isinstance(event, happened.Passed):
            whole = len(kept)
    return dict(list(kept.items())[:whole])


def _start(spec: RunSpec, state: RunState, event: Started) -> Started | None:
    """Return the event by which this run would start the same stage; None where it would not."""
    first, *joined = event.mix.corpora
    try:
        mine = decide_stage(
            spec,
            state,
            first,
            event.at,
            event.tracking_run,
            False,
            joined,
            event.share_decision,
        )
    except InputError:
        return None
    own: dict[str, object] = {"mix": mine.mix}
    if event.start is None:
        own["optimizer"] = mine.optimizer  # of a state that a first stage does not inherit
    is_same = mine == event.model_copy(update=own)
    return mine if is_same and _batches(mine.mix) == _batches(event.mix) else None


def branch_off(store: Store, spec: RunSpec, lender: Store) -> int:
    """Begin the run of an empty store with the stages that it shares with another run.

    Args:
        store: this run's, with nothing in it.
        spec: this run's file.
        lender: the other run's store; it may go on training.

    Returns:
        The number of stages that are shared; with none of them nothing is written.

    Raises:
        Altered: a file of the other run is missing or has another digest than its manifest says.
    """
    story = [decode(data).event for _, data in Log(lender, FOLDER).tail(0)]
    shared = shared_events(spec, story)
    if not shared:
        return 0
    ledger, heads = Ledger(store), dict[int, Head]()
    for number, event in shared.items():
        ledger.append(event)
        heads[number] = ledger.head
    state = ledger.state
    borrow_tokenizer(store, lender)
    for key in _plain_keys(lender, state):
        store.write(key, lender.read(key))
    for corpus in state.corpora.values():
        if corpus.sequences:
            _copy_corpus(store, lender, corpus.name)
    for stage in state.stages:
        _copy_checkpoint(store, lender, state.ends[stage.name], stage.mix, heads)
    return len(state.stages)


def _plain_keys(lender: Store, state: RunState) -> Iterator[str]:
    """Yield the keys of what is copied as it is: it has a digest elsewhere, or needs none."""
    for corpus in state.corpora.values():
        if corpus.listing is not None:
            yield corpus.listing.key
    folders = [f"evaluations/{end}" for end in state.ends.values()]
    folders += [_MODELS] if state.origins else []
    for folder in folders:
        yield from (entry.key for entry in lender.list(folder))
    for stage in state.stages:
        for entry in lender.list(stage.folder):
            if not entry.key.removeprefix(f"{stage.folder}/").partition("/")[0].isdecimal():
                yield entry.key  # skipped batches


def _copy_corpus(store: Store, lender: Store, name: str) -> None:
    manifest = corpora.read_manifest(lender, name)
    for file in manifest.files:
        key = f"corpora/{name}/{file.file}"
        copy_checked(lender, key, store, key, file.sha256)
    store.create(manifest_key(name), lender.read(manifest_key(name)))


def _copy_checkpoint(
    store: Store, lender: Store, key: str, mix: StageMix, heads: Mapping[int, Head]
) -> None:
    """Copy a checkpoint; its mix, and the entry that it names, become those of the new ledger."""
    manifest = checkpoint.read_manifest(lender, key)
    for name, file in manifest.files.items():
        copied = manifest.key_of(key, name)
        copy_checked(lender, copied, store, copied, file.sha256)
    before = [head for number, head in heads.items() if number < (manifest.ledger_events or 0)]
    place = before[-1] if before else Head()
    update = {
        "mix": mix.to_dict(),
        "ledger_events": place.events or None,
        "ledger_sha256": place.sha256,
    }
    checkpoint.commit(store, key, manifest.model_copy(update=update))
