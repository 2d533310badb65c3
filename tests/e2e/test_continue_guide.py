"""The guide to continuing an open model: its commands, as they stand there, on a real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.guide import Command, commands, run_command, table, unprinted

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/guide/continue-an-open-model.md"
MODEL = Path("build/smollm/SmolLM2-135M-Instruct.Q4_1.gguf")
MATRIX = "held-out loss"


def _losses(text: str) -> dict[str, list[float]]:
    """Return nats per token by model, in the order of the corpora."""
    rows = table(text, MATRIX)
    del rows[""]
    return {name: [float(cell.split()[0]) for cell in cells] for name, cells in rows.items()}


def _run_all(folder: Path) -> list[tuple[Command, str]]:
    """Run the guide in a folder that has the checkout's pipelines; skip it without the model."""
    (folder / "pipelines").symlink_to(ROOT / "pipelines")
    done: list[tuple[Command, str]] = []
    for command in commands(GUIDE):
        done.append((command, run_command(command, folder)))
        if not (folder / MODEL).exists():
            pytest.skip(f"{command.text} fetches no model: {done[-1][1].strip()}")
    return done


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_the_commands_of_the_guide_print_what_it_shows(tmp_path: Path) -> None:
    done = _run_all(tmp_path)
    shown = [(command.text, unprinted(command, printed)) for command, printed in done]
    assert [(text, lines) for text, lines in shown if lines and "print(" not in text] == []

    (release,) = [each for each in done if each[0].text.startswith("perennial release")]
    head = table(release[1], MATRIX)[""]
    assert head == table("\n".join(release[0].shown), MATRIX)[""] == ["french", "english"]
    losses, in_guide = _losses(release[1]), _losses("\n".join(release[0].shown))
    assert list(losses) == list(in_guide) == ["base", "00-french", "release 00-french-30-anneal6"]
    assert losses["base"] == pytest.approx(in_guide["base"], abs=0.02)
    _check_claims(losses)

    ((program, said),) = [each for each in done if each[0].program]
    last = said.splitlines()[-1]  # behind the library's bars of progress
    assert last.startswith(program.shown[0][:12]), "the prompt, then what the model makes of it"
    card = (tmp_path / "build/continue/model/README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert all(f"| {name} | " in card for name in losses)
    page = (tmp_path / "build/continue/report.html").read_text(encoding="utf-8")
    assert "replayed, never a stage" in page


def test_the_tables_of_the_guide_show_what_it_claims() -> None:
    (release,) = [each for each in commands(GUIDE) if each.text.startswith("perennial release")]
    _check_claims(_losses("\n".join(release.shown)))


def _check_claims(losses: dict[str, list[float]]) -> None:
    """What the guide says of its table."""
    base, trunk, release = losses.values()
    assert base[0] > trunk[0] > release[0], "French is learned, and the anneal adds to it"
    assert release[0] < base[0] - 0.1
    assert abs(release[1] - base[1]) < (base[0] - release[0]) / 2, "English stays, beside that"
