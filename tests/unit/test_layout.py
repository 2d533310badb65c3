"""The house: what may import what, and what must not exist."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.source_tree import SourceTree

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "perennial"
TREE = SourceTree(PACKAGE)

# Room -> the rooms that it may import. Nothing else is allowed, and no circle is declared.
_CORE = {
    "errors",
    "causes",
    "redaction",
    "registry",
    "fields",
    "user_code",
    "store",
    "config",
    "schedules",
    "optimizers",
    "mixture",
}
_DATA = _CORE | {"corpora"}
EDGES: dict[str, set[str]] = {
    "errors": set(),
    "causes": {"errors"},
    "version": set(),
    "redaction": set(),
    "registry": {"errors"},
    "store": {"errors", "causes", "registry"},
    "fields": {"registry"},
    "optimizers": {"errors", "registry", "fields"},
    "schedules": {"errors", "registry", "fields"},
    "user_code": set(),
    "steps": {"errors", "registry", "fields", "user_code"},
    "config": {"errors", "redaction", "registry", "fields", "schedules", "optimizers", "mixture"}
    | {"steps", "user_code"},
    "corpora": {"errors", "causes", "registry", "steps", "store"},
    "mixture": {"errors", "registry", "fields", "store"},
    "tracking": {"errors", "redaction", "store"},
    "training": _DATA | {"version"},
    "evaluation": {"errors", "causes", "store", "fields", "user_code", "config", "corpora"},
    "sources": {"errors", "redaction", "store", "fields", "config", "corpora"},
    "runs": _DATA | {"version", "training", "evaluation"},
    "audit": _DATA | {"training", "evaluation", "runs"},
    "controller": _DATA | {"steps", "training", "evaluation", "sources", "runs"},
    "telemetry": _DATA | {"tracking", "training", "runs", "controller"},
    "diagnosis": _DATA | {"runs", "controller", "telemetry"},
    "planning": _DATA | {"training", "runs", "controller"},
    "search": _DATA | {"tracking", "training", "evaluation", "runs", "controller", "telemetry"},
    "report": _DATA
    | {"version", "tracking", "training", "evaluation", "runs", "controller", "telemetry"}
    | {"planning", "search"},
    "study": _DATA
    | {"version", "training", "evaluation", "runs", "controller", "planning", "report"},
    "api": _DATA
    | {"tracking", "training", "evaluation", "sources", "runs", "audit", "controller"}
    | {"telemetry", "diagnosis", "planning", "search", "report", "study"},
    "__init__": {"errors", "version", "controller", "api"},
    "cli": {
        "errors",
        "causes",
        "version",
        "config",
        "training",
        "evaluation",
        "sources",
        "runs",
        "audit",
    }
    | {"controller", "diagnosis", "planning", "search", "report", "study", "api"},
}
# Library -> the rooms (or modules) that may import it.
ROOMS = {
    "ray.train": {"training"},
    "deepspeed": {"training"},
    "ray.tune": {"search"},
    "ray.data": {"corpora", "mixture.ray_stream"},
    "mlflow": {"tracking"},
    "wandb": {"tracking"},
    "tensorboardX": {"tracking"},
    "pandas": {"api"},
    "lm_eval": {"evaluation"},
    "s3fs": {"store"},
    "requests": {"sources"},
    "huggingface_hub": {"sources", "training.model.config", "controller.publish"},
    "cronsim": {"config"},
    "py3langid": {"steps"},
    "datatrove": {"steps"},
    "typer": {"cli"},
    "rich": {"cli"},
}


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


@functools.cache
def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def test_platform_is_a_source_root_and_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), (
        "platform/__init__.py shadows the standard library's platform module"
    )


def test_a_room_imports_only_along_declared_edges() -> None:
    wrong = []
    for name, path in _modules():
        room = name.split(".")[0]
        for imported in _imports(path):
            parts = imported.split(".")
            if parts[0] != "perennial" or len(parts) < 2 or parts[1] not in EDGES:
                continue
            if parts[1] != room and parts[1] not in EDGES.get(room, set()):
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_every_room_declares_its_edges() -> None:
    rooms = {name.split(".")[0] for name, _ in _modules()}
    assert rooms == set(EDGES)


@pytest.mark.parametrize("library", sorted(ROOMS))
def test_each_outside_library_is_imported_in_its_rooms_only(library: str) -> None:
    users = {
        name
        for name, path in _modules()
        for imported in _imports(path)
        if imported == library or imported.startswith(library + ".")
    }
    strangers = {
        name
        for name in users
        if not any(name == room or name.startswith(room + ".") for room in ROOMS[library])
    }
    assert users, f"nothing imports {library}"
    assert not strangers


@pytest.mark.parametrize(
    "statements",
    [
        "import perennial",
        "from typer.testing import CliRunner\n"
        "from perennial.cli.app import app\n"
        "assert CliRunner().invoke(app, ['run', '--help']).exit_code == 0",
    ],
    ids=["import", "help"],
)
def test_import_and_help_load_no_heavy_library(statements: str) -> None:
    code = (
        f"import sys\n{statements}\n"
        "heavy = {'torch', 'ray', 'mlflow', 'transformers', 'deepspeed', 'pyarrow', 'lm_eval'}\n"
        "heavy |= {'pandas', 'matplotlib'}\n"
        "heavy |= set() if 'typer' in sys.modules else {'pydantic', 'yaml', 'numpy'}\n"
        "loaded = heavy & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr


def test_functions_and_files_stay_small() -> None:
    """Ceilings, not goals: 500 lines a file, 60 a function."""
    large = []
    for module in TREE.modules.values():
        if module.lines > 500:
            large.append(f"{module.name}: {module.lines} lines")
        for node in module.functions():
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > 60:
                large.append(f"{module.name}.{node.name}: {length} lines")
    assert not large


def test_folders_stay_small() -> None:
    large = {name: count for name, count in TREE.files_by_folder().items() if count > 25}
    assert not large, f"a folder holds at most 25 files: {large}"


def test_declared_edges_hold_no_circle() -> None:
    assert {target for targets in EDGES.values() for target in targets} <= set(EDGES)
    try:
        TopologicalSorter(EDGES).prepare()
    except CycleError as error:
        pytest.fail(f"rooms import each other: {' -> '.join(error.args[1])}")


def test_no_module_is_a_fragment_of_another() -> None:
    """A module under 40 lines with one importer belongs into that importer.

    A verb of the command line is a module of its own, however short.
    """
    fragments = {
        name: importer
        for name, importer in TREE.single_importer_modules().items()
        if TREE.modules[name].lines < 40 and importer != "cli.app"
    }
    assert not fragments


def test_a_class_name_means_one_thing() -> None:
    assert not TREE.duplicate_classes()


def test_no_modules_import_each_other() -> None:
    """Imports for types only, and inside functions, count too."""
    assert not TREE.circles()


def test_json_that_is_stored_is_read_through_one_door() -> None:
    """`parse_json` makes a ValueError of what is nested too deeply; readers handle that one."""
    users = [name for name, path in _modules() if "json.loads(" in path.read_text()]
    # What a corpus holds has reasons of its own for being set aside.
    formats = "corpora.formats."
    assert [user for user in users if not user.startswith(formats)] == ["store.stored_json"]
