"""The guide "From a crawl to a stage": its commands on real text, and what it shows of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.guide import Command, commands, run_command, unprinted

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/guide/from-a-crawl.md"
RUN_FILE = Path("examples/crawl.yaml")
SECONDS = re.compile(r"\d+\.\d s of CPU")


def _copy_examples(folder: Path) -> None:
    """Put the checkout's examples and pipelines into a folder, with a run file to write to."""
    (folder / "pipelines").symlink_to(ROOT / "pipelines")
    (folder / "examples").mkdir()
    for path in (ROOT / "examples").iterdir():
        if path.is_file():
            (folder / "examples" / path.name).write_bytes(path.read_bytes())


def _add_reading_options(folder: Path) -> None:
    """Write what the guide says into the run file: the field of the texts of `dump`."""
    (block,) = re.findall(
        r"```yaml\n(corpora:\n  read:\n.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
    )
    path = folder / RUN_FILE
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("corpora:\n", block, 1), encoding="utf-8")


def _lines(text: str) -> list[str]:
    """Return what is compared digit by digit: all but seconds and what the guide leaves out."""
    return [SECONDS.sub("# s of CPU", line) for line in text.splitlines() if "(..." not in line]


def _run_all(folder: Path) -> list[tuple[Command, str]]:
    """Run the guide; skip the test where its text cannot be fetched."""
    done: list[tuple[Command, str]] = []
    for command in commands(GUIDE):
        refused = command.shown and command.shown[0].startswith("perennial: ")
        warns = any(line.startswith("warning: ") for line in command.shown)
        code = 2 if refused else 1 if warns else 0
        done.append((command, run_command(command, folder, code=code)))
        if refused:
            _add_reading_options(folder)
        if not (folder / "build/quickstart/text/english.jsonl").exists():
            pytest.skip(f"{command.text} fetches no text: {done[-1][1].strip()}")
    return done


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_commands_of_the_guide_print_what_it_shows(tmp_path: Path) -> None:
    _copy_examples(tmp_path)
    done = _run_all(tmp_path)
    *prepared, (run, printed) = done
    assert run.text.startswith("perennial run")
    for command, said in prepared:
        shown = _lines("\n".join(command.shown))
        assert [line for line in shown if line not in _lines(said)] == [], command.text
    assert unprinted(run, printed) == []
