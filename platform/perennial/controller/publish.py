"""Copy a release to where others load it from: a folder, a bucket, or the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.causes import describe
from perennial.errors import Altered, InputError
from perennial.evaluation.evaluate import fetch
from perennial.runs.card_metadata import HUB
from perennial.runs.ledger import Ledger
from perennial.runs.model_card import Retrained, model_card
from perennial.runs.training_content import content_files
from perennial.store import check_object, open_store, shown_transfer
from perennial.training.model.gguf_file import write_gguf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perennial.controller.context import Workspace
    from perennial.runs.events import Released, Releasing

_CARD = "README.md"
_LAST = ("config.json", ".gguf")
"""without it a place holds no model: it is copied last"""


def publish(
    work: Workspace, decided: Releasing, released: Released, place: str, *, gguf: bool = False
) -> None:
    """Copy a release's files, each compared with its digest, and a card with what was measured.

    A copy that was interrupted is completed; one that is there already gets the new card alone.

    Args:
        work: the run.
        decided: the release as it was planned.
        released: the release as it was measured.
        place: a folder, a bucket's url, or `hf://OWNER/NAME`.
        gguf: whether one GGUF file is copied instead of the folder.

    Raises:
        InputError: the place is none, or holds something else, or the format lacks the model.
    """
    scores = work.state.scores.get(released.name, [])
    file = f"{work.spec.name}-{released.name}.gguf" if gguf else None
    card = model_card(
        work.spec, work.state, decided, work.manifests(), released, scores, place, file,
        retrained=_read_retrained(work),
    )  # fmt: skip
    stage = work.state.stage(decided.stage)
    content = content_files(
        work.spec, work.state, stage, decided.step, work.manifests(), decided.mix
    )
    work.log(f"copying release {released.name} to {place}")
    with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
        folder = Path(scratch, "release")
        size = sum(entry.size_bytes for entry in work.store.list(f"{released.folder}/"))
        with shown_transfer(f"reading release {released.name}", size, work.log):
            fetch(work.store, released.folder, folder)
        if file is not None:
            whole, folder = folder, Path(scratch, "converted")
            folder.mkdir()
            write_gguf(whole, folder / file, f"{work.spec.name} {released.name}")
        (folder / _CARD).write_text(card, encoding="utf-8")
        for name, data in content.items():
            (folder / name).write_bytes(data)
        if place.startswith(HUB):
            push_folder(folder, place, f"Release {released.name}")
        else:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            with shown_transfer(f"writing release {released.name}", size, work.log):
                copy_folder(folder, place, rewritten=(_CARD, *content))


def _read_retrained(work: Workspace) -> Retrained | None:
    """Return the last model of the run file's baseline; None where it has none that can be read."""
    place = work.spec.evaluation.baseline
    if place is None:
        return None
    try:
        state = Ledger(open_store(place)).read()
    except (InputError, OSError) as failed:
        work.log(f"notice: the card has no losses of the baseline ({describe(failed)})")
        return None
    measured = [*state.losses.values()][-1:] + [its.losses for its in state.releases[-1:]]
    if not measured or state.spec is None:
        return None
    return Retrained(str(state.spec["name"]), measured[-1])


def check_place(place: str) -> None:
    """Refuse what is no repository of the Hub and no place of a store."""
    if not place.startswith(HUB):
        try:
            open_store(place)
        except InputError as wrong:
            raise InputError(
                "command line", "--to", wrong.problem, wrong.remedy, code="place-unusable"
            ) from None
        return
    owner, _, name = place.removeprefix(HUB).partition("/")
    if not owner or not name or "/" in name or owner == "datasets":
        raise _refused(place, "it names no model of the Hub", "write hf://OWNER/NAME")


def check_empty(place: str) -> None:
    """Refuse a place that holds something, before a release is made that is to be copied there.

    Args:
        place: checked by `check_place`; a repository of the Hub may hold anything.
    """
    held = [] if place.startswith(HUB) else sorted(entry.key for entry in open_store(place).list())
    if held:
        raise _refused(place, f"it holds {held[0]}", "name an empty place")


def copy_folder(folder: Path, place: str, rewritten: Sequence[str] = ()) -> None:
    """Copy a local folder's files to a place that is empty or holds a part of the same.

    Args:
        folder: local.
        place: a folder or a bucket's url.
        rewritten: files that replace those that are there.

    Raises:
        InputError: the place holds anything else.
    """
    from perennial.training.checkpoint.manifest import digest

    target = open_store(place)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    files = {name: digest(folder / name) for name in names if (folder / name).is_file()}
    there = {entry.key for entry in target.list()}
    for name in sorted(there - {*rewritten}):
        try:
            check_object(target, name, files.get(name, ""))
        except Altered:
            problem = f"it holds another {name}" if name in files else f"it holds {name}"
            raise _refused(place, problem, "name an empty place") from None
    for name in _in_order(files):
        if name not in there or name in rewritten:
            target.upload(folder / name, name)


def _in_order(names: Sequence[str] | dict[str, str]) -> list[str]:
    return sorted(names, key=lambda name: (name.endswith(_LAST), name))


def push_folder(folder: Path, place: str, message: str) -> None:
    """Commit a folder to a repository of the Hub, which is made, private, where there is none."""
    from huggingface_hub import HfApi

    repository = place.removeprefix(HUB)
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as wrong:
        # Of any kind: the client lets through what its transport raises.
        remedy = "set HF_TOKEN to a token that may write there, or correct the address"
        raise _refused(place, f"it cannot be written ({describe(wrong)})", remedy) from wrong


def _refused(place: str, problem: str, remedy: str) -> InputError:
    return InputError("command line", "--to", f"{place}: {problem}", remedy, code="place-unusable")
