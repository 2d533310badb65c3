"""A real S3 server for the tests: the Ceph RADOS gateway, or moto's mock where it is absent."""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Literal

import pytest

_CEPH_PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool")
_READY_SECONDS = 60
_CEPH_CONF = """\
[global]
fsid = {fsid}
mon initial members = a
mon host = v2:127.0.0.1:{mon_port}/0
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms client mode = crc
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd op num shards = 2
osd memory target = 939524096
osd heartbeat interval = 2
osd client watch timeout = 2
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 2000
mon data avail crit = 1
paxos propose interval = 0.05
rgw enable gc threads = false
run dir = {folder}/run
admin socket = {folder}/run/$name.$pid.asok
log file = {folder}/run/$name.log
[mon]
mon data = {folder}/mon
[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
[client]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw dns name = 127.0.0.1
rgw thread pool size = 32
"""


class S3Server:
    """A running server and the keys of one user of it.

    kind: "ceph" checks secrets and can be killed and started again; "moto" does neither.
    """

    kind: Literal["ceph", "moto"]
    region: str

    def __init__(self) -> None:
        self.port = _free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.access_key = "perennial"
        self.secret_key = secrets.token_hex(20)
        self._processes = ExitStack()

    def environment(self) -> dict[str, str]:
        """The variables that point S3 clients at this server and at nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point this process and its children at the server until the test ends."""
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)

    def client(self) -> Any:
        """A plain botocore client: what a program other than ours sees in the server."""
        from botocore.config import Config
        from botocore.session import Session

        return Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}),
        )

    def new_bucket(self) -> str:
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        client = self.client()
        try:
            client.create_bucket(Bucket=bucket)
        finally:
            client.close()
        return bucket

    def stop(self) -> None:
        self._processes.close()

    def _start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a daemon that is killed by `stop`, and by the kernel when this process dies."""
        with log.open("ab") as sink:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command]
                if shutil.which("setpriv")
                else command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        self._processes.callback(_kill, process)
        return process

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        """Return when the server answers HTTP; fail with its log when it died or is too late."""
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with closing(connection), suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/")
                connection.getresponse().read()
                return
            time.sleep(0.05)
        raise RuntimeError(f"the S3 server did not come up:\n{log.read_text()[-2000:]}")


class MotoServer(S3Server):
    kind = "moto"
    region = "us-east-1"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        log = folder / "moto.log"
        command = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port))
        self._wait(self._start(*command, log=log), log)


class CephServer(S3Server):
    kind = "ceph"
    region = "default"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._log = folder / "daemons.log"
        self._gateway: subprocess.Popen[bytes] | None = None
        try:
            self._boot(fsid=str(uuid.uuid4()), mon_port=_free_port(), osd=str(uuid.uuid4()))
            self.add_user("perennial", self.access_key, self.secret_key)
            self.start_gateway()
        except BaseException:
            self.stop()
            raise

    def add_user(self, name: str, access_key: str, secret_key: str, *options: str) -> None:
        """Add a user; `--op-mask=read` makes one that cannot write."""
        keys = (f"--access-key={access_key}", f"--secret-key={secret_key}", "--max-buckets=0")
        self._run(
            "radosgw-admin",
            "user",
            "create",
            f"--uid={name}",
            "--display-name=test",
            *keys,
            *options,
        )

    def kill_gateway(self) -> None:
        """Cause an outage: the stored objects survive it."""
        assert self._gateway is not None
        _kill(self._gateway)

    def start_gateway(self) -> None:
        """Start the gateway (again) and wait until it answers."""
        self._gateway = self._start(
            "radosgw", "-c", self._conf, "-n", "client.admin", "-f", log=self._log
        )
        self._wait(self._gateway, self._log)

    @property
    def _conf(self) -> str:
        return str(self._folder / "ceph.conf")

    def _boot(self, fsid: str, mon_port: int, osd: str) -> None:
        folder, conf = self._folder, self._conf
        for name in ("mon", "osd", "run"):
            (folder / name).mkdir()
        text = _CEPH_CONF.format(fsid=fsid, mon_port=mon_port, folder=folder, port=self.port)
        Path(conf).write_text(text)
        monmap = f"{folder}/monmap"
        address = f"[v2:127.0.0.1:{mon_port}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "-c", conf, "-i", "a", "--mkfs", "--monmap", monmap)
        self._start("ceph-mon", "-c", conf, "-i", "a", "-f", log=self._log)
        self._run("ceph", "-c", conf, "--connect-timeout", str(_READY_SECONDS), "osd", "new", osd)
        self._run("ceph-osd", "-c", conf, "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._start("ceph-osd", "-c", conf, "-i", "0", "-f", log=self._log)

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            env={**os.environ, "CEPH_CONF": self._conf},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_READY_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[:3])} failed: {done.stderr[-2000:]}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _has_ceph() -> bool:
    return all(map(shutil.which, _CEPH_PROGRAMS))


_MOCKED = f"S3 server: mock (moto); the real one needs {', '.join(_CEPH_PROGRAMS)} on the PATH"


def pytest_report_header() -> str:
    return "S3 server: Ceph RADOS gateway" if _has_ceph() else _MOCKED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _has_ceph():
        terminalreporter.write_line(_MOCKED)  # -q hides the header


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for the whole session; it and its data die with the session."""
    # Not pytest's temporary folder: the path of a unix socket must stay below 108 characters.
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:
        server = CephServer(Path(folder)) if _has_ceph() else MotoServer(Path(folder))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The url of an empty place in a fresh bucket; the environment points at its server."""
    s3_server.use(monkeypatch)
    return f"s3://{s3_server.new_bucket()}/runs/one"
