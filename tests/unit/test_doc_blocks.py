"""Every block of commands in the documentation is run by a test, or says why it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.doc_blocks import EVERY, NOT_RUN, ROOT, RUN, command_blocks, runner_of
from tests.unit.test_docs import PAGES

BLOCKS = [block for page in PAGES for block in command_blocks(ROOT / page)]


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS}))
def test_each_block_is_run_or_says_why_not(page: str) -> None:
    unknown = []
    for block in BLOCKS:
        if block.page != page:
            continue
        try:
            runner_of(block)
        except KeyError as missing:
            unknown.append(str(missing))
    assert unknown == [], "add it to RUN or to NOT_RUN of tests/support/doc_blocks.py"


def test_the_tables_name_no_block_that_is_gone() -> None:
    there = {(block.page, block.first) for block in BLOCKS}
    pages = {block.page for block in BLOCKS}
    for page, command in [*RUN, *NOT_RUN]:
        assert (page, command) in there or (command == EVERY and page in pages), (page, command)
    assert not RUN.keys() & NOT_RUN.keys()


@pytest.mark.parametrize("named", sorted({*RUN.values()}))
def test_the_test_that_runs_a_block_is_there(named: str) -> None:
    file, _, name = named.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("reason", sorted({*NOT_RUN.values()}))
def test_a_reason_names_tests_that_are_there(reason: str) -> None:
    for file in re.findall(r"tests/[\w/]+\.py", reason):
        assert (ROOT / file).is_file(), file


def test_every_target_that_a_block_shows_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = {
        match[1]
        for block in BLOCKS
        for line in block.lines
        if (match := re.match(r"(?:\$ )?make ([\w-]+)", line))
    }
    assert shown >= {"test", "quickstart", "docs"}
    assert [target for target in shown if not re.search(rf"^{target}:", makefile, re.M)] == []


def test_a_block_is_known_by_its_commands(tmp_path: Path) -> None:
    page = ROOT / "docs" / "guide" / "tracking.md"
    firsts = [block.first for block in command_blocks(page)]
    assert firsts == [
        "perennial ui pipelines/quickstart.yaml",
        "pip install 'perennial[wandb,tensorboard]'",
        "pip install 'psycopg[binary]'",
        "perennial track pipelines/quickstart.yaml",
    ]
