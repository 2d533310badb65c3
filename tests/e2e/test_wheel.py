"""The built wheel in an empty folder: what it is there for works without a checkout."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long


def _run(*words: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """The wheel, built from the source distribution, and that."""
    folder = tmp_path_factory.mktemp("dist")
    words = ("-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    _run(sys.executable, *words, cwd=folder)
    yield sorted(folder.iterdir(), key=lambda path: path.suffix, reverse=True)


class _Installed:
    """Perennial out of a wheel, and an empty folder to work in."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.site, self.work = folder / "site", folder / "work"
        self.work.mkdir()
        options = ("--quiet", "--no-deps", "--no-index", "--target", self.site)
        _run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=folder)

    def perennial(self, *words: str | Path) -> str:
        return self.python("-m", "perennial.cli", *words)

    def python(self, *words: str | Path) -> str:
        return _run(sys.executable, *words, cwd=self.work, PYTHONPATH=str(self.site))


@pytest.fixture(scope="module")
def installed(distributions: list[Path], tmp_path_factory: pytest.TempPathFactory) -> _Installed:
    return _Installed(distributions[0], tmp_path_factory.mktemp("installed"))


def test_the_distributions_are_fit_for_an_index(distributions: list[Path]) -> None:
    wheel, source = distributions
    assert (wheel.suffix, source.suffix) == (".whl", ".gz")
    said = _run(sys.executable, "-m", "twine", "check", "--strict", *distributions, cwd=ROOT)
    assert said.count("PASSED") == 2
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    head = message_from_string(text)
    assert head["License-Expression"] == "Apache-2.0"
    assert head["Requires-Python"] == ">=3.11"
    assert "](docs/" not in text and "](CONTRIBUTING" not in text, "it would lead nowhere"
    assert "https://arxiv.org/abs/2403.08763" in text
    kept = {name.split("/")[0] for name in names}
    assert kept == {"perennial", metadata.split("/")[0]}


def test_everything_comes_from_the_wheel(installed: _Installed) -> None:
    where = installed.python("-c", "import perennial; print(perennial.__file__)")
    assert where.startswith(str(installed.site))
    schemas = installed.python(
        "-c",
        "from importlib.resources import files\n"
        "for path in (files('perennial') / 'config').iterdir():\n"
        "    print(path.name)",
    )
    assert {"run-file.schema.json", "tuning-file.schema.json", "study-file.schema.json"} <= set(
        schemas.split()
    )
    assert "training.zero_stage" in installed.perennial("explain", "zero_stage")


def test_a_run_begins_in_an_empty_folder(installed: _Installed) -> None:
    rows = ({"text": f"document {n} with some words in it. " * 20} for n in range(600))
    (installed.work / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("mine.yaml", "--data", "news.jsonl", "--corpus", "news", "--gpus", "0", "--json")
    begun = json.loads(installed.perennial("init", *words))
    plan, land, run = (shlex.split(command)[1:] for command in begun["next"])
    assert json.loads(installed.perennial(*plan, "--json"))["stages"][0]["stage"] == "00-news"
    assert json.loads(installed.perennial(*land, "--json"))["keys"]
    status = json.loads(installed.perennial("status", "mine.yaml", "--json"))
    assert status["store"] == str(installed.work / "work-store")
    assert json.loads(installed.perennial(*run, "--dry-run"))["todo"]


def test_the_quickstart_has_its_files(installed: _Installed) -> None:
    todo = json.loads(installed.perennial("quickstart", "demo", "--dry-run"))["todo"]
    assert todo[0] == "write demo/quickstart.yaml and demo/union.yaml"
    assert not (installed.work / "demo").exists()
    installed.python(
        "-c",
        "from importlib.resources import files\n"
        "from pathlib import Path\n"
        "from perennial.cli.run.quickstart import write_template\n"
        "write_template(files('perennial') / 'templates' / 'quickstart', Path('demo'))",
    )
    plan = json.loads(
        installed.perennial("plan", "demo/quickstart.yaml", "--json", "stages.corpora.english={}")
    )
    assert plan["model"]["parameters"] > 1_000_000
    for number in range(3):
        text = installed.work / f"text-{number}.jsonl"
        rows = ({"text": f"document {n} of text {number}. " * 40} for n in range(400))
        text.write_text("".join(json.dumps(row) + "\n" for row in rows))
        installed.perennial("land", "demo/quickstart.yaml", f"text-{number}", text.name)
    status = json.loads(installed.perennial("status", "demo/quickstart.yaml", "--json"))
    assert status["store"] == str(installed.work / "demo" / "store")
