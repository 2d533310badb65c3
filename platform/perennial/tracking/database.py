"""MLflow's database in an SQLite file: made beside its place, moved with its folder, set aside.

MLflow makes and migrates its tables by many small commits, for some seconds; a process that is
killed meanwhile leaves a database that no later one can use. So that is done to a file of another
name, which takes its place once it is complete. Importing this module imports MLflow.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow.store.db import utils as mlflow_db
from mlflow.store.db.base_sql_model import Base
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore
from mlflow.utils.file_utils import ExclusiveFileLock

from perennial.errors import InputError
from perennial.tracking.registry import LOCATION_TAG
from perennial.tracking.uris import ARTIFACTS, artifact_root, sqlite_path

logger = logging.getLogger("perennial.tracking")

_PENDING = ".pending-mlflow-"
"""begins the names of files in the making; no listing of a store shows them"""
_BUSY_SECONDS = 20.0


class _Condition(NamedTuple):
    """The condition of the file at a database's place.

    Attributes:
        reason: why it cannot be used.
        revision: MLflow's name of its tables.
    """

    state: Literal["absent", "current", "older", "newer", "broken"]
    reason: str = ""
    revision: str = ""


def prepare_database(uri: str, owned: bool, thorough: bool = False) -> None:
    """Have a whole database of this MLflow at `uri`, without the path of the folder it lies in.

    Safe to kill, and in any number of processes at once. Nothing is ever deleted: a warning says
    what was set aside, why, and where it is now.

    Args:
        uri: of an SQLite file; for any other one, nothing is done.
        owned: the file belongs to one run's store: an older one is migrated, one that cannot be
            used is set aside, and all artifacts are beside it. Another file is made where it is
            absent, and else left to MLflow.
        thorough: read the whole file, because a call on it failed.

    Raises:
        InputError: a newer MLflow wrote the file.
        OSError: a file cannot be written.
        sqlite3.Error: another process uses the file, or it cannot be written.
    """
    path = sqlite_path(uri)
    if path is None:
        return
    condition = _examine(path, thorough)
    if condition.state == "current":
        _relocate(path, owned)
        return
    if condition.state != "absent" and not owned:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExclusiveFileLock(f"{path}.lock"):
        for left in path.parent.glob(f"{_PENDING}*"):  # by a process that was killed
            left.unlink(missing_ok=True)
        try:
            _mend(path, thorough)
        finally:
            _forget_connections(uri)


def _mend(path: Path, thorough: bool) -> None:
    """Make, migrate or replace the database, as its condition needs; the caller holds the lock."""
    condition = _examine(path, thorough)
    if condition.state == "newer":
        raise InputError(
            str(path),
            "",
            f"a newer MLflow wrote this database (its revision {condition.revision} is not known)",
            "install that MLflow, or move the file away and use `perennial track`",
            code="tracking-database-newer",
        )
    if condition.state == "older":
        condition = _migrate(path, condition.revision)
    if condition.state == "broken":
        kept = _set_aside(path)
        logger.warning(
            "MLflow's database %s cannot be used (%s); it is kept as %s, and a new one is filled "
            "from the store",
            path,
            condition.reason,
            kept.name,
        )
    if not path.exists():
        with _beside(path) as new:
            # The store makes the tables and the default experiment.
            TrackingStore(f"sqlite:///{new}", ARTIFACTS).engine.dispose()
            new.replace(path)
    _relocate(path, owned=True)


def _examine(path: Path, thorough: bool) -> _Condition:
    if not path.exists():
        return _Condition("absent")
    if path.stat().st_size == 0:
        return _Condition("broken", "it is empty")
    try:
        with closing(_open(path)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            revisions: list[str] = []
            if "alembic_version" in tables:
                rows = database.execute("SELECT version_num FROM alembic_version")
                revisions = [revision for (revision,) in rows]
            if thorough:
                (answer,) = database.execute("PRAGMA quick_check(1)").fetchone()
                if answer != "ok":
                    return _Condition("broken", str(answer))
    except sqlite3.OperationalError:
        raise  # in use, or no right to it
    except sqlite3.DatabaseError as error:
        return _Condition("broken", str(error))
    return _judge(tables, revisions)


def _judge(tables: set[str], revisions: list[str]) -> _Condition:
    left = sorted(name for name in tables if name.startswith("_alembic_tmp_"))
    if left or len(revisions) != 1:
        which = f"at {left[0].removeprefix('_alembic_tmp_')}" if left else "at its first tables"
        return _Condition("broken", f"its making was cut off {which}")
    (revision,) = revisions
    if revision == mlflow_db._get_latest_schema_revision():
        absent = sorted(set(Base.metadata.tables) - tables)
        if absent:
            return _Condition("broken", f"it has no table {absent[0]}")
        return _Condition("current", revision=revision)
    try:
        ScriptDirectory.from_config(mlflow_db._get_alembic_config("")).get_revision(revision)
    except CommandError:
        return _Condition("newer", revision=revision)
    return _Condition("older", revision=revision)


def _migrate(path: Path, revision: str) -> _Condition:
    """Migrate a copy, which takes the place of the database; the old one is kept beside it."""
    with _beside(path) as new, closing(_open(path)) as database:
        database.execute("BEGIN IMMEDIATE")  # no other process writes until the copy is in place
        with closing(_open(path)) as reader, closing(sqlite3.connect(new)) as copy:
            reader.backup(copy)
        engine = mlflow_db.create_sqlalchemy_engine(f"sqlite:///{new}")
        try:
            mlflow_db._upgrade_db(engine)
        except Exception as error:  # whatever the steps of a migration meet
            lines = str(error).splitlines() or [""]
            return _Condition("broken", f"it cannot be migrated: {lines[0]}")
        finally:
            engine.dispose()
        condition = _examine(new, thorough=False)
        if condition.state == "current":
            os.link(path, _free_name(path, f"of-{revision}"))
            new.replace(path)
        return condition


def _set_aside(path: Path) -> Path:
    """Rename the database and the journal that belongs to it; return where it is now."""
    kept = _free_name(path, f"set-aside-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    journal = Path(f"{path}-journal")
    if journal.exists():
        journal.rename(f"{kept}-journal")
    path.rename(kept)
    return kept


def _free_name(path: Path, ending: str) -> Path:
    named = Path(f"{path}.{ending}")
    return named if not named.exists() else Path(f"{named}-{uuid.uuid4().hex[:8]}")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield the name of a file in the folder of `path`; what is left of it is removed."""
    new = path.parent / f"{_PENDING}{uuid.uuid4().hex}"
    try:
        yield new
    finally:
        for left in path.parent.glob(f"{new.name}*"):
            left.unlink(missing_ok=True)


def _open(path: Path) -> sqlite3.Connection:
    location = f"file:{quote(str(path.absolute()))}?mode=rw"
    return sqlite3.connect(location, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)


def _misplaced(path: Path, owned: bool) -> list[tuple[int, str]]:
    """Return the experiments whose artifacts are named by the path of a folder, with that path.

    Earlier versions named the folder beside the database: after a copy, that of another store.
    """
    beside = artifact_root(f"sqlite:///{path}")
    wanted = "SELECT experiment_id, artifact_location FROM experiments"
    with closing(_open(path)) as database:
        named = [(int(i), str(root)) for i, root in database.execute(wanted) if root]
    return [
        (number, root)
        for number, root in named
        if root == beside or (owned and root.startswith("/") and root.endswith("/artifacts"))
    ]


def _relocate(path: Path, owned: bool) -> None:
    """Name all artifacts beside the database relative to it, whichever path they were named by."""
    misplaced = _misplaced(path, owned)
    if not misplaced:
        return
    with closing(_open(path)) as database:
        database.execute("BEGIN IMMEDIATE")
        for number, root in misplaced:
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (ARTIFACTS, number),
            )
            for table, column in (
                ("runs", "artifact_uri"),
                ("model_versions", "source"),
                ("model_versions", "storage_location"),
            ):
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    (ARTIFACTS, len(root) + 2, len(root) + 1, f"{root}/"),
                )
        if owned:
            _relocate_releases(database)
        database.execute(
            # MLflow's default experiment, named by the folder of the process that made the file.
            "UPDATE experiments SET artifact_location = ? || experiment_id WHERE experiment_id = 0 "
            "AND artifact_location LIKE '/%' AND NOT EXISTS "
            "(SELECT 1 FROM runs WHERE runs.experiment_id = experiments.experiment_id)",
            (ARTIFACTS,),
        )
        database.execute("COMMIT")


def _relocate_releases(database: sqlite3.Connection) -> None:
    """Name the folders of releases relative to the store."""
    wanted = "SELECT rowid, value FROM model_version_tags WHERE key = ? AND value LIKE '/%'"
    for row, value in database.execute(wanted, (LOCATION_TAG,)).fetchall():
        _, folder, name = str(value).rpartition("/releases/")
        if folder:
            change = "UPDATE model_version_tags SET value = ? WHERE rowid = ?"
            database.execute(change, (f"releases/{name}", row))


def _forget_connections(uri: str) -> None:
    """Have MLflow open the file again: its pools hold the file that was replaced."""
    for store in (TrackingStore, RegistryStore):
        engine = store._engine_map.get(uri)
        if engine is not None:
            engine.dispose()
