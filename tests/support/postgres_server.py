"""A real PostgreSQL server for the tests, from Debian's package."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.mlflow_server import until

_USER = "postgres"


def _program(name: str) -> str | None:
    """Debian keeps the server's programs out of the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(places[-1]) if places else shutil.which(name)


def has_postgres() -> bool:
    """Whether the server can be started here; it refuses to run as root."""
    if not (_program("initdb") and _program("postgres") and shutil.which("setpriv")):
        return False
    with suppress(KeyError):
        return os.getuid() != 0 or bool(pwd.getpwnam(_USER))
    return False


class Postgres:
    """A database cluster in a folder of its own, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self._as_owner = ["setpriv", "--pdeathsig", "KILL"]
        if os.getuid() == 0:
            owner = pwd.getpwnam(_USER)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            self._as_owner += [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}"]
            self._as_owner += ["--clear-groups"]
        secret = folder / "password"
        secret.write_text(self._password)
        secret.chmod(0o644)
        self._run("initdb", f"--pwfile={secret}", "-U", "mlflow", "-A", "scram-sha-256", "-N")

    @property
    def uri(self) -> str:
        """For SQLAlchemy, with its password."""
        place = f"mlflow:{self._password}@127.0.0.1:{self._port}"
        return f"postgresql+psycopg://{place}/postgres"

    @property
    def password(self) -> str:
        return self._password

    def start(self) -> None:
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._as_owner,
                    str(_program("postgres")),
                    *("-D", str(self._data), "-p", str(self._port)),
                    *("-c", "listen_addresses=127.0.0.1"),
                    *("-c", f"unix_socket_directories={self._folder}"),
                ],
                stdout=log,
                stderr=log,
                cwd="/",
            )
        until(self._accepts, f"PostgreSQL accepts; see {self._folder}/server.log")

    def kill(self) -> None:
        """End every process at once, as a lost machine does."""
        if self._process is not None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            pids = [self._process.pid, *map(int, children.read_text().split())]
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _accepts(self) -> bool:
        import psycopg

        with suppress(psycopg.OperationalError):
            psycopg.connect(self.uri.replace("+psycopg", ""), connect_timeout=5).close()
            return True
        return False

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as_owner, str(_program(program)), "-D", str(self._data), *arguments],
            check=True,
            capture_output=True,
            cwd="/",
        )


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """One server for a test module."""
    if not has_postgres():
        pytest.skip("needs Debian's postgresql (make test-services) and setpriv")
    # Not pytest's temporary folder, which another user than root may not enter.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        server = Postgres(Path(name))
        server.start()
        yield server
        server.kill()
