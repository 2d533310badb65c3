"""MLflow's database in a store: killed in the making, damaged, old, new, copied, refused."""

from __future__ import annotations

import http.server
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from perennial.errors import InputError
from perennial.tracking import Receipt, Tracker, open_tracker, prepare
from tests.support.digests import read_digests
from tests.support.mlflow_server import PATIENCE_SECONDS, until

EXPERIMENT = "perennial"
MAKER = """
import logging, os, sys
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
from perennial.tracking.database import prepare_database
for line in sys.stdin:
    makers = []
    for _ in range(int(line)):
        makers.append(os.fork())
        if makers[-1] == 0:
            prepare_database(sys.argv[1], owned=True)
            os._exit(0)
    print(*makers, flush=True)
    print(*[os.waitpid(maker, 0)[1] for maker in makers], flush=True)
"""


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def track_one(uri: str, lineage: str = "tiny") -> tuple[Tracker, Receipt]:
    """Log a stage with a value and a file."""
    tracker = open_tracker(uri, EXPERIMENT, lineage, owned=True)
    stage = tracker.child("00-help")
    stage.log(1, {"train/loss": 2.0})
    stage.artifact(b"{}", "plots/matrix.json")
    return tracker, tracker.close(PATIENCE_SECONDS)


def query(path: Path, wanted: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(wanted).fetchall()


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database that one stage was logged to."""
    folder = tmp_path_factory.mktemp("made") / "store" / "mlflow"
    _, receipt = track_one(uri_of(folder))
    assert receipt == Receipt(runs=2, values=1, files=1, missing=(), reason="")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(made, tmp_path / "store" / "mlflow"))


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that starts as many makers of a database as each line on its stdin says."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, uri_of(tmp_path / "new")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3] / "platform"), "PATH": "/usr/bin:/bin"},
    )
    yield process
    process.communicate()


def _kill_while_making(maker: subprocess.Popen[str], folder: Path, at_bytes: int) -> bool:
    """Kill a maker once its file has so many bytes; return whether that was before its end."""
    assert maker.stdin is not None and maker.stdout is not None
    print(1, file=maker.stdin, flush=True)
    pid = int(maker.stdout.readline())
    path = folder / "mlflow.db"

    def so_large() -> bool:
        with suppress(FileNotFoundError):  # renamed or removed since it was listed
            files = [*folder.glob(".pending-mlflow-*"), *folder.glob("mlflow.db")]
            return any(file.stat().st_size >= at_bytes for file in files)
        return False

    until(so_large, f"the database has {at_bytes} bytes")
    subprocess.run(["kill", "-KILL", str(pid)], check=False)
    (status,) = map(int, maker.stdout.readline().split())
    if path.exists():
        assert query(path, "PRAGMA quick_check") == [("ok",)]
        assert query(path, "SELECT name FROM experiments") == [("Default",)]
        path.unlink()
    return status == 9


@pytest.mark.parametrize("kills", [1, pytest.param(30, marks=pytest.mark.long)])
def test_killed_while_it_is_made_the_next_process_makes_it(
    maker: subprocess.Popen[str], tmp_path: Path, kills: int
) -> None:
    folder = tmp_path / "new"
    sizes = [random.Random(kills).randrange(900_000) for _ in range(kills)]
    killed = [_kill_while_making(maker, folder, size) for size in sizes]
    assert any(killed)
    assert maker.stdin is not None and maker.stdout is not None
    print(2, file=maker.stdin, flush=True)  # two at once
    maker.stdout.readline()
    assert maker.stdout.readline().split() == ["0", "0"]
    assert sorted(file.name for file in folder.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    _, receipt = track_one(uri_of(folder))
    assert receipt == Receipt(runs=2, values=1, files=1, missing=(), reason="")


def _cut_off(path: Path) -> None:
    change(path, "CREATE TABLE _alembic_tmp_experiments (name TEXT)")


def _without_a_table(path: Path) -> None:
    change(path, "DROP TABLE metrics")


def _malformed(path: Path) -> None:
    with path.open("r+b") as file:  # the pages of its tables, and not their list
        file.seek(40 * 4096)
        file.write(b"\xff" * 60 * 4096)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_cut_off, "its making was cut off at experiments"),
        pytest.param(_without_a_table, "it has no table metrics", marks=pytest.mark.long),
        pytest.param(lambda path: path.write_bytes(b""), "it is empty", marks=pytest.mark.long),
        pytest.param(_malformed, "", marks=pytest.mark.long),
    ],
    ids=["cut off", "no table", "empty", "malformed"],
)
def test_a_database_that_cannot_be_used_is_set_aside(
    folder: Path, damage: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "mlflow.db"
    damage(path)
    before = path.read_bytes()
    tracker, receipt = track_one(uri_of(folder))
    assert receipt == Receipt(runs=2, values=1, files=1, missing=(), reason="")
    (kept,) = folder.glob("mlflow.db.set-aside-*")
    assert kept.read_bytes() == before
    told = next(text for text in caplog.messages if "it is kept as" in text)
    assert f"{path} cannot be used ({reason}" in told
    assert kept.name in told
    assert tracker.incomplete


@pytest.mark.long
def test_an_older_database_is_migrated_beside(tmp_path: Path) -> None:
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    path = tmp_path / "mlflow.db"
    engine = utils.create_sqlalchemy_engine(uri_of(tmp_path))
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(uri_of(tmp_path))
    command.upgrade(config, "451aebb31d03")
    engine.dispose()
    change(path, "INSERT INTO experiments VALUES (7, 'kept', '', 'active')")
    before = path.read_bytes()
    prepare(uri_of(tmp_path), owned=False)
    assert path.read_bytes() == before, "a database of others is left alone"
    prepare(uri_of(tmp_path), owned=True)
    assert (tmp_path / "mlflow.db.of-451aebb31d03").read_bytes() == before
    names = [experiment.name for experiment in client(uri_of(tmp_path)).search_experiments()]
    assert sorted(names) == ["Default", "kept"]


def test_a_database_of_a_newer_mlflow_is_left_alone(folder: Path) -> None:
    path = folder / "mlflow.db"
    change(path, "UPDATE alembic_version SET version_num = 'of-tomorrow'")
    before = path.read_bytes()
    with pytest.raises(InputError, match="of-tomorrow") as refused:
        prepare(uri_of(folder), owned=True)
    assert refused.value.code == "tracking-database-newer"
    _, receipt = track_one(uri_of(folder))
    assert "a newer MLflow wrote this database" in receipt.reason
    assert path.read_bytes() == before


def test_a_copied_database_of_an_older_version_writes_beside_itself(
    folder: Path, tmp_path: Path
) -> None:
    """Earlier versions kept the path of the folder in the database."""
    path, root = folder / "mlflow.db", f"{folder}/artifacts"
    change(
        path,
        f"UPDATE experiments SET artifact_location = '{root}' WHERE name = '{EXPERIMENT}'",
        f"UPDATE runs SET artifact_uri = replace(artifact_uri, 'mlflow-artifacts:', '{root}')",
        "UPDATE experiments SET artifact_location = '/home/me/mlruns/0' WHERE experiment_id = 0",
    )
    registry = client(uri_of(folder))
    registry.create_registered_model("tiny")
    run_id = registry.search_runs(["1"])[0].info.run_id
    tags = {"perennial.location": f"{tmp_path}/store/releases/00-help-8"}
    registry.create_model_version("tiny", f"{root}/{run_id}/artifacts", run_id, tags)
    source = read_digests(folder)
    copy = Path(shutil.copytree(folder, tmp_path / "copy" / "mlflow"))

    tracker, receipt = track_one(uri_of(copy))

    assert receipt.files == 1
    assert read_digests(folder) == source
    stage = tracker.child("00-help")
    assert (copy / "artifacts" / str(stage.id) / "artifacts" / "plots" / "matrix.json").is_file()
    with closing(sqlite3.connect(copy / "mlflow.db")) as database:
        held = "\n".join(database.iterdump())
    assert str(tmp_path) not in held
    assert "/home/me" not in held
    assert "'releases/00-help-8'" in held
    assert query(copy / "mlflow.db", "SELECT artifact_uri FROM runs ORDER BY start_time") == [
        (f"mlflow-artifacts:/{run}/artifacts",)
        for (run,) in query(copy / "mlflow.db", "SELECT run_uuid FROM runs ORDER BY start_time")
    ]


def test_a_deleted_experiment_is_told_as_one_and_goes_on_when_it_is_restored(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = uri_of(folder)
    mlflow = client(uri)
    experiment = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
    mlflow.delete_experiment(experiment)
    tracker, receipt = track_one(uri)
    assert receipt.missing[0] == "tiny: the run itself"
    assert tracker.child("00-help").id is None
    for text in (caplog.text, receipt.reason):
        assert "the experiment was deleted in MLflow" in text
        assert f"The experiment {experiment} must be in the 'active' state" in text
        assert "mlflow experiments restore" in text
        assert "does not answer" not in text
    mlflow.restore_experiment(experiment)
    _, receipt = track_one(uri)
    assert (receipt.runs, receipt.missing) == (2, ())


def test_nobody_waits_for_an_id_while_mlflow_fails(folder: Path) -> None:
    client(uri_of(folder)).delete_experiment("1")
    tracker = open_tracker(uri_of(folder), EXPERIMENT, "tiny", owned=True)
    waited = threading.Thread(target=tracker.child("00-help").wait_id, args=(PATIENCE_SECONDS,))
    waited.start()
    waited.join(PATIENCE_SECONDS / 2)
    assert not waited.is_alive()
    tracker.close()


def test_artifacts_that_are_refused_are_named_and_the_values_arrive(folder: Path) -> None:
    shutil.rmtree(folder / "artifacts")
    (folder / "artifacts").write_text("a file where the folder should be")
    _, receipt = track_one(uri_of(folder), "other")
    assert (receipt.runs, receipt.values, receipt.files) == (2, 1, 0)
    assert receipt.missing == ("other/00-help: artifact plots/matrix.json",)
    assert "MLflow's artifact store refuses files: " in receipt.reason
    assert "plots/matrix.json" in receipt.reason


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Stands in for servers that are no MLflow of ours: each folder answers with its status."""

    words: ClassVar[dict[int, str]] = {401: "You are not authenticated", 403: "Permission denied"}

    def do_GET(self) -> None:
        status = int(self.path.split("/")[1])
        self.send_response(status)
        self.end_headers()
        self.wfile.write(self.words.get(status, "nothing here").encode())

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Keep standard error quiet."""


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "problem", "words"),
    [
        (401, "MLflow refuses the credentials", "You are not authenticated"),
        (403, "MLflow does not let this user write", "Permission denied"),
        (404, "there is no MLflow of a known version at this address", "nothing here"),
        (200, "there is no MLflow of a known version at this address", ""),
        (503, "MLflow does not answer", "503"),
    ],
)
def test_what_a_server_refuses_is_told_in_its_words(
    refusing: str, status: int, problem: str, words: str
) -> None:
    tracker = open_tracker(f"{refusing}/{status}", EXPERIMENT, "tiny")
    assert tracker.parent_run().wait_id(PATIENCE_SECONDS) is None
    receipt = tracker.close(0.5)
    assert receipt.missing == ("tiny: the run itself",)
    assert receipt.reason.startswith(problem)
    assert words in receipt.reason
