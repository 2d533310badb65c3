"""Beginning: read a model's folder and a sample of the data, and write a first run file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.config.training import ModelSpec
from perennial.corpora import IngestSettings, check_files, check_name, read_tokenizer
from perennial.corpora.formats.base import counts_as_bad
from perennial.corpora.sample import estimate_tokens, read_sample
from perennial.errors import InputError
from perennial.planning.first_run_file import (
    Asked,
    DataSample,
    Fitted,
    Machine,
    choose_length,
    choose_vocabulary,
    count_steps,
    fit,
    next_commands,
    random_model,
    write_first_file,
)
from perennial.sources.places import find_files

if TYPE_CHECKING:
    from perennial.corpora.landing import LandingFile
    from perennial.training.cost_model import ModelSize

_FEWEST_STEPS = 4
"""of a first stage: fewer leave no room for a schedule with a release off its end"""
_READING = IngestSettings(sequence_length=2048, seed=0)
_FIELD = re.compile(r"set corpora\.text_field: (\S+)")


@dataclass(frozen=True)
class Begun:
    """A first run file.

    Attributes:
        path: of the file.
        text: of the file.
        fitted: what memory and data decided.
        commands: those that follow.
    """

    path: Path
    text: str
    fitted: Fitted
    commands: list[str]


def begin_run(
    path: Path, asked: Asked, data: Sequence[str], machine: Machine, *, writes: bool = True
) -> Begun:
    """Write a commented run file that `plan` accepts; a file that is there is never overwritten.

    Args:
        path: of the run file.
        asked: what the user says; its paths are from the working directory.
        data: files, folders or globs of the first corpus; none may be given.
        machine: what training has.
        writes: whether the file is written, and `plan` tried on it.

    Raises:
        InputError: the file is there already, or the model, the tokenizer or the data do not fit.
    """
    check_absent(path)
    check_name(asked.corpus)
    sample = read_data(data, asked.tokenizer or asked.model)
    model, positions = _read_model(asked, machine)
    length = choose_length(positions, sample, machine, asked.template)
    entries = 0 if asked.model else choose_vocabulary(asked.template, machine)
    fitted = fit(_size(model, entries, length), length, sample, machine, asked.template)
    _check_enough(count_steps(fitted, sample), fitted, machine)
    named = _from_folder(asked, path.parent)
    text = write_first_file(named, fitted, model, sample, machine)
    begun = Begun(path, text, fitted, next_commands(str(path), asked, data))
    if not writes:
        return begun
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileNotFoundError:
        raise InputError(
            str(path), "", "its folder does not exist", "make it first", code="folder-missing"
        ) from None
    try:
        _check(path)
    except InputError:
        path.unlink()
        raise
    return begun


def _check_enough(steps: int | None, fitted: Fitted, machine: Machine) -> None:
    """Refuse data that are no stage, however small the batch."""
    if steps is None or steps >= _FEWEST_STEPS:
        return
    step = fitted.global_batch * fitted.sequence_length
    fewer = f", or train on fewer than {machine.gpus} GPUs (--gpus)" if machine.gpus > 1 else ""
    raise InputError(
        "command line", "--data",
        f"it fills {steps} steps of {step:,} tokens, and a stage needs {_FEWEST_STEPS}",
        f"name more text{fewer}", code="corpus-too-small",
    )  # fmt: skip


def check_absent(path: Path) -> None:
    """Refuse to write over a run file, which is its user's."""
    if path.exists():
        raise InputError(
            str(path), "", "is there already, and is not written over",
            "name another file, or remove it", code="file-exists",
        )  # fmt: skip


def _check(path: Path) -> None:
    from perennial.api.open import open_run

    open_run(path).plan()


def _from_folder(asked: Asked, folder: Path) -> Asked:
    """Return what the user says with paths from the folder of the run file."""

    def place(text: str | None) -> str | None:
        if text is None or "://" in text or os.path.isabs(text):  # noqa: PTH117
            return text
        return os.path.relpath(text, folder)

    return Asked(
        asked.template,
        asked.name,
        place(asked.store) or ".",
        place(asked.model),
        place(asked.tokenizer),
        asked.corpus,
        asked.shift,
    )


def read_data(places: Sequence[str], tokenizer: str | None) -> DataSample:
    """Return what the first documents of some files say.

    Args:
        places: as `land` takes them; none may be given.
        tokenizer: counts tokens; None estimates them.

    Raises:
        InputError: there are no such files, or none of their first documents can be read.
    """
    if not places:
        return DataSample()
    placed = find_data(places)
    field = _text_field(placed, "text")
    settings = _READING.model_copy(update={"text_field": field})
    encoder = None if tokenizer is None else read_tokenizer(tokenizer).build_encoder()
    estimate = estimate_tokens(placed, settings, encoder)
    if estimate is None:
        return DataSample(text_field=field)
    return DataSample(estimate.lengths, estimate.tokens, field)


def find_data(places: Sequence[str]) -> tuple[LandingFile, ...]:
    """Return the files of some places, as `land` takes them.

    Raises:
        InputError: there is no such file, or it is of no known kind.
    """
    try:
        placed = find_files(places).files
        check_files(placed)
    except InputError as wrong:
        what = f"{wrong.field}: " if wrong.field not in ("", "files") else ""
        raise InputError(
            "command line", "--data", f"{what}{wrong.problem}", wrong.remedy, code=wrong.code
        ) from None
    return placed


def _text_field(files: Sequence[LandingFile], field: str) -> str:
    """Return the field of the documents' text: another than the given one where all name it."""
    settings = _READING.model_copy(update={"text_field": field})
    records = list(read_sample(files, settings))
    if not records or any(not record.reason for record in records):
        return field
    bad = next((record for record in records if counts_as_bad(record.reason)), records[0])
    other = _FIELD.search(bad.detail)
    if other is not None and other[1] != field:
        return _text_field(files, other[1])
    raise InputError(
        "command line", "--data",
        f"{files[0].origin}: its first documents cannot be read: {bad.reason} ({bad.detail})",
        "correct the files, or leave them out", code="sample-unreadable",
    )  # fmt: skip


def _read_model(asked: Asked, machine: Machine) -> tuple[ModelSpec, int | None]:
    """Return the model, and the longest sequence that it can take, where it is bounded."""
    from perennial.training.model.config import model_config

    if asked.model is None:
        return random_model(asked.template, machine), None
    model = ModelSpec(path=asked.model)
    config = model_config(model, 0, 0, 8).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    return model, positions if isinstance(positions, int) else None


def _size(model: ModelSpec, vocabulary: int, length: int) -> ModelSize:
    from perennial.training.cost_model import model_size
    from perennial.training.model.config import model_config

    return model_size(model_config(model, vocabulary, 0, length))


def machine_of(gpus: int | None = None, memory_bytes: int | None = None) -> Machine:
    """Return what training has: this machine, or the GPUs that a user names.

    Args:
        gpus: number of GPUs; None for those of this machine.
        memory_bytes: memory of one; None for that of this machine's.

    Raises:
        InputError: GPUs of another machine, whose memory is not said.
    """
    import torch

    cpus, here = os.cpu_count() or 1, torch.cuda.device_count()
    count = here if gpus is None else gpus
    if not count:
        return Machine(0, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cpus)
    if memory_bytes is None and not here:
        raise InputError(
            "command line", "--gpus", "this machine has no GPU whose memory could be read",
            "give --gpu-memory too, such as --gpu-memory 80", code="gpu-memory-unknown",
        )  # fmt: skip
    return Machine(count, memory_bytes or torch.cuda.get_device_properties(0).total_memory, cpus)
