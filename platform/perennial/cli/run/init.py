"""`perennial init`: a first run file, by questions on a terminal and by options elsewhere."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from perennial.cli.command import AsJson, DryRun
from perennial.cli.console import out, print_json
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.planning.first_run_file import Asked

Template = Literal["scratch", "open-model", "paper"]
Shift = Literal["measured", "weak", "strong"]


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN_FILE.yaml] [PLACE...]",
        help="The file to write, by default run.yaml, and files of the first corpus as for --data",
    ),
]
TemplateOption = Annotated[
    Template | None,
    typer.Option(
        "--template",
        help="scratch (random weights), open-model (goes on with a stored model) or paper (the "
        "paper's 405M model, and on GPUs its batch where the data fill it); default open-model "
        "with --model, else scratch",
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Folder of safetensors, GGUF file or bucket's url")
]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", help="A tokenizer; default the model's, or one is trained"),
]
DataOption = Annotated[
    list[str],
    typer.Option(
        metavar="PLACE",
        help="A file, folder, pattern or bucket's url of the first corpus, of which a sample is "
        "read; more may follow it",
    ),
]
ShiftOption = Annotated[
    Shift | None,
    typer.Option(
        "--shift",
        help="Of the data, against what was trained before: weak (5% replay), strong (25%), or "
        "measured before each stage, the default",
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the run; default its folder's")
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Folder or bucket's url of the run; default NAME-store"),
]
GpusOption = Annotated[
    int | None, typer.Option("--gpus", min=0, help="GPUs to train on; default this machine's")
]
GpuMemoryOption = Annotated[
    float | None, typer.Option("--gpu-memory", min=0.1, help="GiB of one GPU")
]


def init(
    words: Words = None,
    template: TemplateOption = None,
    model: ModelOption = None,
    tokenizer: TokenizerOption = None,
    data: DataOption = [],  # noqa: B006 (typer reads it)
    corpus: Annotated[str, typer.Option(help="Name of the first corpus")] = "first",
    shift: ShiftOption = None,
    name: NameOption = None,
    store: StoreOption = None,
    gpus: GpusOption = None,
    gpu_memory: GpuMemoryOption = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Write a commented run file that fits the model, a sample of the data and the machine.

    On a terminal it asks for what no option says. Nothing is written over.
    """
    from perennial.api.begin import begin_run, check_absent, machine_of
    from perennial.planning.first_run_file import Asked

    run_file, places = _tell_apart(words or [])
    data = [*data, *places]
    check_absent(run_file)
    if _is_terminal() and not as_json:
        template, model, data, shift = _ask(template, model, data, shift)
    chosen = template or ("open-model" if model else "scratch")
    _check_model(chosen, model)
    named = name or _plain(run_file.absolute().parent.name)
    asked: Asked = Asked(
        template=chosen,
        name=named,
        store=store or str(run_file.parent / f"{named}-store"),
        model=model,
        tokenizer=tokenizer,
        corpus=corpus,
        shift=shift or "measured",
    )
    machine = machine_of(gpus, None if gpu_memory is None else int(gpu_memory * 2**30))
    try:
        begun = begin_run(run_file, asked, data, machine, writes=not dry_run)
    except InputError as wrong:
        raise wrong.name_file(str(run_file)) from None
    if dry_run:
        print_json({"path": str(run_file), "text": begun.text})
        return
    if as_json:
        print_json(
            {"path": str(begun.path), "fitted": asdict(begun.fitted), "next": begun.commands}
        )
        return
    out.print(f"wrote {begun.path}", markup=False)
    for command in begun.commands:
        out.print(f"next   {command}", markup=False)


def _tell_apart(words: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the file to write, and the words that are places of data.

    A shell makes several words of a pattern, so that `--data *.jsonl` leaves all but one of them.
    """
    files = [word for word in words if word.endswith((".yaml", ".yml"))]
    if len(files) > 1:
        raise InputError(
            "command line", "RUN_FILE", f"{' and '.join(files)} are two run files",
            "name the one to write", code="two-run-files",
        )  # fmt: skip
    return Path(files[0] if files else "run.yaml"), [word for word in words if word not in files]


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _check_model(template: Template, model: str | None) -> None:
    if (template == "open-model") != (model is not None):
        problem = "is missing" if model is None else f"template {template} has random weights"
        raise InputError(
            "command line", "--model", problem,
            "name its folder, GGUF file or url" if model is None else "leave out --model, or give "
            "--template open-model",
            code="model-unsettled",
        )  # fmt: skip


def _plain(text: str) -> str:
    """Return a text as a run may be named."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")
    return plain[:60] or "my-run"


def _ask(
    template: Template | None, model: str | None, data: list[str], shift: Shift | None
) -> tuple[Template | None, str | None, list[str], Shift | None]:
    """Ask for what no option says."""
    if template is None and model is None:
        template = _choose("Begin with", ["open-model", "scratch", "paper"])  # type: ignore[assignment]
    if model is None and template == "open-model":
        model = _ask_for("Folder, GGUF file or url of the model", None, _check_place)
    if not data:
        question = "Files of your data, with spaces between them (empty: none yet)"
        data = shlex.split(_ask_for(question, "", _check_data))
    if shift is None and (model is not None or template == "open-model"):
        typer.echo(
            "weak: the same language or kind of text; strong: another; measured: before each stage",
            err=True,
        )
        shift = _choose("Shift of the data", ["measured", "weak", "strong"])  # type: ignore[assignment]
    return template, model, data, shift


def _ask_for(question: str, default: str | None, check: Callable[[str], None]) -> str:
    """Ask until the answer is one that the check does not refuse."""
    while True:
        answer = str(typer.prompt(question, default=default, err=True))
        try:
            check(answer)
        except InputError as wrong:
            typer.echo(f"{wrong.problem}; {wrong.remedy}", err=True)
            continue
        return answer


def _check_place(answer: str) -> None:
    if "://" not in answer and not Path(answer).expanduser().exists():
        raise InputError(
            "command line", "--model", f"there is no file or folder {answer}", "correct the path"
        )


def _check_data(answer: str) -> None:
    from perennial.api.begin import find_data

    try:
        places = shlex.split(answer)
    except ValueError as unclosed:
        raise InputError("command line", "--data", str(unclosed), "close the quote") from None
    if places:
        find_data(places)


def _choose(question: str, choices: list[str]) -> str:
    while True:
        answer = str(
            typer.prompt(f"{question} ({', '.join(choices)})", default=choices[0], err=True)
        )
        if answer in choices:
            return answer
