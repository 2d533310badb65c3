"""Print the structure of the source in numbers: sizes, names, comments, imports.

    python benchmarks/house.py [COMMIT] > benchmarks/results/house.md

The working tree is measured, and beside it the tree of COMMIT, which is read from git without
a checkout. Counts are of `platform/perennial`; only the last two rows are of `tests`.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections.abc import Callable, Iterable
from io import BytesIO, StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.source_tree import Function, Module, SourceTree  # noqa: E402

_NESTING = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith, ast.Match)
_RIDDLES = {"what", "whether", "where", "how", "it", "the same"}


def _spread(values: Iterable[float]) -> str:
    """Return median, 95th percentile and maximum as one text."""
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return f"{statistics.median(ordered):g} / {p95:g} / {ordered[-1]:g}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} ({part:,} of {whole:,})"


def _length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def _arguments(node: Function) -> list[ast.arg]:
    """Return a function's parameters without `self` and `cls`."""
    args = node.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    extra = [arg for arg in (args.vararg, args.kwarg) if arg is not None]
    return [arg for arg in [*named, *extra] if arg.arg not in ("self", "cls")]


def _depth(node: ast.AST) -> int:
    """Return how deep blocks are nested in a function, 0 for none."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef | ast.Lambda):
            deepest = max(deepest, _depth(child) + isinstance(child, _NESTING))
    return deepest


def _docstring_lines(module: Module) -> set[int]:
    """Return the numbers of the lines that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(module.tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                lines |= set(range(value.lineno, value.end_lineno + 1))
    return lines


def _comments_and_code(module: Module) -> tuple[int, int]:
    """Return the number of comments and of lines of code in a module."""
    comments, code = 0, set()
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(StringIO(module.text).readline):
        if token.type == tokenize.COMMENT:
            comments += not token.string.startswith(("# noqa", "# type:"))
        elif token.type not in skipped:
            code |= set(range(token.start[0], token.end[0] + 1))
    return comments, len(code - _docstring_lines(module))


def _is_public(node: Function | ast.ClassDef) -> bool:
    return not node.name.startswith("_")


def _variables(module: Module) -> Iterable[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id != "_":
            yield node.id


def measure(root: Path) -> dict[str, str]:
    """Return every row of the table for the checkout in `root`."""
    tree = SourceTree(root / "platform" / "perennial")
    modules = list(tree.modules.values())
    functions = [node for module in modules for node in module.functions()]
    classes = [node for module in modules for node in module.classes()]
    folders = sorted(tree.files_by_folder().values(), reverse=True)
    public = [node for node in functions if _is_public(node)]
    documented = [text for node in functions if (text := ast.get_docstring(node))]
    annotated = sum(
        node.returns is not None and all(arg.annotation for arg in _arguments(node))
        for node in functions
    )
    annotations = [
        ast.unparse(annotation)
        for node in functions
        for annotation in (node.returns, *(arg.annotation for arg in _arguments(node)))
        if annotation is not None
    ]
    comments, code = (sum(column) for column in zip(*map(_comments_and_code, modules), strict=True))
    one_method = sum(
        sum(isinstance(item, Function) for item in node.body) == 1 and not node.decorator_list
        for node in classes
    )
    single = tree.single_importer_modules()
    tests = [Module(path.stem, path) for path in sorted((root / "tests").rglob("*.py"))]
    test_names = [
        node.name for module in tests for node in module.functions() if node.name.startswith("test")
    ]
    lines = sum(module.lines for module in modules)
    test_lines = sum(module.lines for module in tests)
    names = [node.name for node in functions]
    variables = [name for module in modules for name in _variables(module)]
    return {
        "files / lines": f"{len(modules)} / {lines:,}",
        "lines a file: median / p95 / max": _spread(module.lines for module in modules),
        "lines a function: median / p95 / max": _spread(map(_length, functions)),
        "files of 60 lines or fewer": _share(
            sum(module.lines <= 60 for module in modules), len(modules)
        ),
        "largest folders, files": ", ".join(map(str, folders[:3])),
        "modules with one importer": str(len(single)),
        "of these under 40 lines": str(sum(tree.modules[name].lines < 40 for name in single)),
        "class names in two modules or more": str(len(tree.duplicate_classes())),
        "import circles, type-only and local imports counted": str(len(tree.circles())),
        "functions with every annotation": _share(annotated, len(functions)),
        "annotations with `Any`": _share(
            sum("Any" in annotation for annotation in annotations), len(annotations)
        ),
        "public functions with a docstring": _share(
            sum(bool(ast.get_docstring(node)) for node in public), len(public)
        ),
        "docstrings of functions that start with what, whether, where, how, it or the same": _share(
            sum(
                text.lower().startswith(tuple(f"{word} " for word in _RIDDLES))
                for text in documented
            ),
            len(documented),
        ),
        "comments for each line of code": f"{comments / code:.3f} ({comments:,} of {code:,})",
        "parameters: median / p95 / max": _spread(len(_arguments(node)) for node in functions),
        "nesting: p95 / max": _spread(map(_depth, functions)).split(" / ", 1)[1],
        "classes with one method": _share(one_method, len(classes)),
        "function names, mean characters": f"{statistics.mean(map(len, names)):.1f}",
        "variable names, mean characters": f"{statistics.mean(map(len, variables)):.1f}",
        "lines of tests for each line of the package": f"{test_lines / lines:.2f}",
        "test names, median characters": f"{statistics.median(map(len, test_names)):g}",
    }


def _measure_commit(commit: str) -> dict[str, str]:
    archive = subprocess.run(
        ["git", "archive", commit, "platform", "tests"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        return measure(Path(folder))


def main() -> None:
    """Print the table for the working tree and for each commit named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commits", nargs="*", metavar="COMMIT")
    arguments = parser.parse_args().commits
    columns: dict[str, dict[str, str]] = {}
    measured: list[tuple[str, Callable[[], dict[str, str]]]] = [
        *((commit, lambda commit=commit: _measure_commit(commit)) for commit in arguments),
        ("working tree", lambda: measure(ROOT)),
    ]
    for name, run in measured:
        columns[name] = run()
    print("# The source in numbers\n")
    print("```\npython benchmarks/house.py " + " ".join(arguments) + "\n```\n")
    print("| | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for row in columns["working tree"]:
        print(f"| {row} | " + " | ".join(column[row] for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
