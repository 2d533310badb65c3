"""Blocks of README and guides that no guide's own test runs: as they stand there, and compared.

Names of the pages are replaced by those of the run that is here; numbers are the variable parts.
"""

from __future__ import annotations

import gzip
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.support.doc_blocks import ROOT, RUN, Block, command_blocks, runner_of
from tests.support.guide import LEFT_OUT, Command, run_command, unprinted
from tests.support.small_models import small_model
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run, write_run, write_texts
from tests.support.trained_run import Lineage

HERE = {
    "pipelines/quickstart.yaml": "run.yaml",
    "pipelines/baselines/union.yaml": "twin.yaml",
    "build/quickstart/store": "store",
    "3 stages: 00-english, 01-french, 02-spanish": "2 stages: 00-help, 01-code",
    "01-french@400": "00-help@7",
    "01-french": "00-help",
    "english=2,french=1": "help=2,code=1",
    "last:5": "last:2",
    "s3://bucket/models/mine": "models/bucket",
    "hf://org/mine": "models/hub",
    "s3://bucket/kits/mine": "kits/mine",
}
"""what the pages name, and what the run has that is here"""
WRITES = {"compare", "report", "track", "status", "verify"}
"""verbs that are run as they are; others with --dry-run, as the run is not to be changed"""


def _blocks(test: str) -> list[Block]:
    """Return the blocks that a test of this module runs."""
    name = f"tests/e2e/test_doc_blocks.py::{test}"
    pages = sorted({page for page, _ in RUN})
    blocks = [block for page in pages for block in command_blocks(ROOT / page)]
    return [block for block in blocks if runner_of(block)[0] == name]


def _commands(block: Block) -> list[Command]:
    """Return a block's commands, and what it shows below each."""
    text = "\n".join(block.lines).replace("\\\n", " ")
    if not text.startswith("$ "):
        return [Command(line, []) for line in text.splitlines() if line]
    found = []
    for part in text[2:].split("\n$ "):
        command, *shown = part.splitlines()
        found.append(Command(command, [line for line in shown if line != "exit 0"]))
    return found


def _here(text: str) -> str:
    for name, ours in HERE.items():
        text = text.replace(name, ours)
    return text


def _check_exact(command: Command, printed: str) -> None:
    """Compare every line that a page shows, digit by digit."""
    lines = [line.rstrip() for line in printed.splitlines()]
    shown = [line.rstrip() for line in command.shown if line.strip() not in ("", LEFT_OUT)]
    assert [line for line in shown if line not in lines] == [], command.text


@pytest.mark.long
def test_blocks_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    texts = write_texts(tmp_path)
    rows = texts["code"].read_bytes()
    with gzip.open(tmp_path / "more.jsonl.gz", "wb") as packed:
        packed.write(rows)
    document = tiny_run(tmp_path, store="build/tiny")
    for name in ("tiny.yaml", "run.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(document), encoding="utf-8")
    blocks = _blocks("test_blocks_before_any_training")
    assert len(blocks) == 6
    for block in blocks:
        if block.page.endswith("run-and-watch.md"):
            shutil.rmtree(tmp_path / "build")
            for name in ("help", "code"):
                run_command(Command(f"perennial land run.yaml {name} {name}.jsonl", []), tmp_path)
        for command in _commands(block):
            _check_exact(command, run_command(command, tmp_path))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_blocks_on_a_finished_run(lineage: Lineage, tmp_path: Path) -> None:
    shutil.copytree(lineage.store.url, tmp_path / "store", symlinks=True)
    shutil.copytree(lineage.store.url, tmp_path / "twin", symlinks=True)
    document = yaml.safe_load(lineage.run_file.read_text(encoding="utf-8"))
    run_file = write_run(tmp_path, document | {"store": str(tmp_path / "store")})
    (tmp_path / "twin.yaml").write_text(f"base: {run_file}\nname: twin\nstore: twin\n")
    shutil.copy(write_texts(tmp_path)["code"], tmp_path / "contracts.jsonl")
    blocks = _blocks("test_blocks_on_a_finished_run")
    assert len(blocks) == 11
    for block in blocks:
        for command in _commands(block):
            ours = replace(
                command, text=_here(command.text), shown=[_here(line) for line in command.shown]
            )
            verb = shlex.split(ours.text, comments=True)[1]
            if verb not in WRITES and "--dry-run" not in ours.text:
                ours = replace(ours, text=f"{ours.text.partition('#')[0].rstrip()} --dry-run")
            printed = run_command(ours, tmp_path)
            assert unprinted(ours, printed) == [], ours.text


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_first_run_of_the_guide(
    ray_head: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    for name, value in ray_head.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    base = tmp_path / "models" / "base"
    content = Tokenizer.from_str(json.dumps(byte_level_json(600)))
    PreTrainedTokenizerFast(tokenizer_object=content, eos_token="<|endoftext|>").save_pretrained(
        base
    )
    small_model("gpt_neox", vocab_size=600, max_position_embeddings=128).save_pretrained(base)
    with gzip.open(tmp_path / "news.jsonl.gz", "wb") as packed:
        packed.write(write_texts(tmp_path)["help"].read_bytes())
    blocks = _blocks("test_the_first_run_of_the_guide")
    assert len(blocks) == 7
    for block in blocks:
        for command in _commands(block):
            printed = run_command(command, tmp_path)
            assert unprinted(command, printed) == [], command.text
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert list(tmp_path.rglob("releases/*/model.safetensors"))
