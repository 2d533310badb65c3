"""Every block of commands in README and the guides, and what runs it.

`RUN` names the test that runs a block, `NOT_RUN` says why none does. A block is named by its page
and the first of its commands; `EVERY` in place of the command stands for all others of the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EVERY = "*"
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_PROGRAMS = ("perennial", "python", "python3.11", "pip", "make", "kubectl", "helm", "docker", "cp")
_LANGUAGES = ("sh", "bash", "console")


@dataclass(frozen=True)
class Block:
    """A block of commands: its page in the checkout, its lines, and the first command."""

    page: str
    lines: tuple[str, ...]

    @property
    def first(self) -> str:
        """Return the first command, on one line and without a comment."""
        text = "\n".join(self.lines).replace("\\\n", " ").splitlines()[0]
        return " ".join(text.removeprefix("$ ").partition("  #")[0].split())


def command_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that show commands."""
    blocks = []
    for indent, language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        lines = tuple(line.removeprefix(indent) for line in text.splitlines())
        words = [line.split()[0] for line in lines if line.split()]
        shows = "$" in words or (words and words[0] in _PROGRAMS)
        if language in _LANGUAGES or (language in ("", "text") and shows):
            blocks.append(Block(page.relative_to(ROOT).as_posix(), lines))
    return blocks


_ON_A_RUN = "tests/e2e/test_doc_blocks.py::test_blocks_on_a_finished_run"
_BEFORE = "tests/e2e/test_doc_blocks.py::test_blocks_before_any_training"
_FIRST_RUN = "tests/e2e/test_doc_blocks.py::test_the_first_run_of_the_guide"

RUN: dict[tuple[str, str], str] = {
    ("CONTRIBUTING.md", "rm -rf build/release"): (
        "tests/e2e/test_release_checklist.py::test_the_checklist_is_walked"
    ),
    ("docs/explanation/planning.md", "perennial plan pipelines/paper-405m.yaml"): _BEFORE,
    (
        "docs/explanation/planning.md",
        "perennial plan pipelines/paper-10b.yaml training.tensor_parallel=6 --workers-per-node 6",
    ): _BEFORE,
    (
        "docs/explanation/planning.md",
        "perennial plan pipelines/paper-405m-infinite.yaml --picture learning-rate.png",
    ): _BEFORE,
    ("docs/guide/continue-an-open-model.md", EVERY): (
        "tests/e2e/test_continue_guide.py::test_the_commands_of_the_guide_print_what_it_shows"
    ),
    ("docs/guide/day-two.md", EVERY): (
        "tests/integration/audit/test_day_two_guide.py::test_every_command_does_what_the_page_says"
    ),
    (
        "docs/guide/evaluate.md",
        "perennial compare pipelines/quickstart.yaml pipelines/baselines/union.yaml "
        "--output compare.html",
    ): _ON_A_RUN,
    (
        "docs/guide/evaluate.md",
        "perennial report pipelines/quickstart.yaml --output report.html",
    ): _ON_A_RUN,
    ("docs/guide/from-a-crawl.md", EVERY): (
        "tests/e2e/test_crawl_guide.py::test_the_commands_of_the_guide_print_what_it_shows"
    ),
    ("docs/guide/getting-started.md", "perennial plan pipelines/mine.yaml"): (
        "tests/unit/config/test_explain.py::test_the_guide_shows_what_a_file_with_mistakes_gives"
    ),
    **{
        ("docs/guide/getting-started.md", first): _FIRST_RUN
        for first in (
            "perennial init mine.yaml --model models/base --data news.jsonl.gz --corpus news",
            "perennial plan mine.yaml",
            "perennial land mine.yaml news news.jsonl.gz",
            "perennial run mine.yaml",
            "perennial status mine.yaml",
            "perennial release mine.yaml",
            "perennial run mine.yaml replay.share=0.05 training.workers=2",
        )
    },
    ("docs/guide/kubernetes.md", EVERY): (
        "tests/integration/k8s/test_guide.py"
        "::test_the_guide_is_followed_from_the_first_command_to_the_last"
    ),
    ("docs/guide/land-data.md", "perennial land tiny.yaml code code.jsonl more.jsonl.gz"): _BEFORE,
    (
        "docs/guide/plan.md",
        "perennial simulate pipelines/quickstart.yaml --costs benchmarks/costs/quickstart.yaml "
        "--preemptions-per-hour 2 --replacement-seconds 300 --hours 8",
    ): _BEFORE,
    ("docs/guide/release.md", EVERY): _ON_A_RUN,
    ("docs/guide/run-and-watch.md", "perennial run run.yaml"): _ON_A_RUN,
    (
        "docs/guide/run-and-watch.md",
        'perennial hold run.yaml code --reason "its licence is being checked"',
    ): _BEFORE,
    ("docs/guide/tracking.md", "perennial ui pipelines/quickstart.yaml"): _ON_A_RUN,
    ("docs/guide/tracking.md", "perennial track pipelines/quickstart.yaml"): _ON_A_RUN,
}

_LONG = "it trains for longer than a test may; "
NOT_RUN: dict[tuple[str, str], str] = {
    ("README.md", "make quickstart"): (
        f"{_LONG}tests/e2e/test_wheel.py runs its parts out of the wheel"
    ),
    ("CONTRIBUTING.md", "make unit"): (
        "a test cannot run the tests; that the Makefile has each target is checked"
    ),
    (
        "docs/explanation/planning.md",
        "python benchmarks/simulate_chaos.py benchmarks/costs/quickstart.yaml > "
        "benchmarks/results/simulate.md",
    ): "it writes a measurement of this checkout; tests/e2e/test_plan.py simulates",
    (
        "docs/explanation/retraining.md",
        "perennial compare pipelines/quickstart.yaml "
        "pipelines/baselines/{union,no-replay,cosine,english,french,spanish}.yaml "
        "--output compare.html",
    ): f"{_LONG}it compares seven trained runs (`make baselines`)",
    ("docs/extending.md", "pip install -e examples/plugin_schedule"): (
        "it installs into the environment; tests/unit/config/test_explain.py explains its keys"
    ),
    ("docs/guide/evaluate.md", "for seed in 0 1 2; do"): (
        f"{_LONG}tests/e2e/test_report.py compares two seeds"
    ),
    ("docs/guide/getting-started.md", "python3.11 -m venv .venv"): (
        "it downloads gigabytes; the checklist of a release installs the wheel"
    ),
    ("docs/guide/getting-started.md", "make quickstart"): (
        f"{_LONG}tests/e2e/test_wheel.py runs its parts out of the wheel"
    ),
    ("docs/guide/ingest-on-schedule.md", "perennial ingest run.yaml --due"): (
        "it pulls from hosts on the internet; tests/e2e/test_sources.py pulls from local ones"
    ),
    (
        "docs/guide/land-data.md",
        "perennial land run.yaml crawl crawl/2026-11 'more/*/part-*.jsonl.gz'",
    ): ("it reads a bucket and the Hub; tests/integration/sources/test_places.py reads stand-ins"),
    (
        "docs/guide/land-data.md",
        "duckdb -c \"from 'STORE/corpora/crawl/documents-*.parquet' where "
        "url like '%example.org%'\"",
    ): "another program, which is none of the project's tests",
    ("docs/guide/land-data.md", "perennial trace tiny.yaml code 7 8"): (
        "of a corpus that is not kept; tests/unit/api/test_trace.py prints such rows"
    ),
    ("docs/guide/land-data.md", "perennial ingest tiny.yaml"): (
        "of files with every kind of damage; tests/integration/corpora/test_ingest_faults.py makes "
        "and ingests such files"
    ),
    ("docs/guide/land-data.md", "cat build/tiny/corpora/code/quarantine-*.jsonl"): (
        "as the ingest before it"
    ),
    ("docs/guide/other-sequences.md", EVERY): (
        f"{_LONG}tests/e2e/test_other_sequences.py trains text and images with the same functions"
    ),
    ("docs/guide/study.md", EVERY): f"{_LONG}tests/e2e/test_study.py runs a small study",
    ("docs/guide/run-and-watch.md", "perennial watch run.yaml --log-format json"): (
        "it runs until it is stopped; tests/unit/cli/test_log_lines.py has the lines of each format"
    ),
    ("docs/guide/tracking.md", "pip install 'perennial[wandb,tensorboard]'"): (
        "it downloads packages; tests/integration/tracking/test_services.py writes for both"
    ),
    ("docs/guide/tracking.md", "pip install 'psycopg[binary]'"): (
        "it serves a team; tests/integration/tracking/test_tracking_team.py does, with PostgreSQL"
    ),
    ("docs/guide/training.md", EVERY): (
        f"{_LONG}tests/e2e/test_inherit.py inherits from the same model"
    ),
    ("docs/guide/tune.md", EVERY): f"{_LONG}tests/e2e/test_tune.py searches and follows the advice",
    ("docs/guide/verify.md", EVERY): (
        "of a store that lost an entry of its ledger; "
        "tests/integration/runs/test_ledger_repair.py loses and mends such entries"
    ),
}


def runner_of(block: Block) -> tuple[str, str]:
    """Return the test that runs a block, or "", and why none does, or "".

    Raises:
        KeyError: the block is in neither table.
    """
    for command in (block.first, EVERY):
        if (key := (block.page, command)) in RUN:
            return RUN[key], ""
        if key in NOT_RUN:
            return "", NOT_RUN[key]
    raise KeyError(f"{block.page}: {block.first}")
