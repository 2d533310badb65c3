"""Plain technical English: words that names, docstrings, messages and docs do without."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.source_tree import SourceTree

ROOT = Path(__file__).parents[2]
TREE = SourceTree(ROOT / "platform" / "perennial")

VAGUE_NAMES = {"told", "each", "found"}
"""Names that fit every value and so describe none."""
WORDS = re.compile(
    r"\b(heeded|foretells?|anew|overtakes?|whoever|somebody|nobody|a person|hears|told|tells)\b",
    re.IGNORECASE,
)
QUESTION_WORDS = re.compile(r"(What|Whether|Where|How|It|The same)\b")
"""A docstring's first line says what the function does, not what it is about."""


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def test_no_name_is_vague() -> None:
    vague = [
        f"{module.name}: {name}"
        for module in TREE.modules.values()
        for name in _names(module.tree)
        if name.strip("_") in VAGUE_NAMES
    ]
    assert not vague


def test_a_docstring_begins_with_what_the_function_does() -> None:
    asking = [
        f"{module.name}.{node.name}: {first}"
        for module in TREE.modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and QUESTION_WORDS.match(first := (ast.get_docstring(node) or "").partition("\n")[0])
    ]
    assert not asking


def test_source_and_docs_are_in_plain_words() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    pages += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    files = [*pages, *(module.path for module in TREE.modules.values())]
    odd = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := WORDS.search(line))
    ]
    assert not odd
