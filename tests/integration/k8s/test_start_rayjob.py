"""The program of a tick, as the manifests start it, against a stand-in for the API.

The stand-in keeps RayJobs by name and does what the API server and the operator would: it refuses a
wrong token, a name that is taken and what does not fit, and each look sees the job further on.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.kubernetes_manifests import (
    K8S,
    Doc,
    assembled,
    crd_folder,
    find,
    operator_objections,
    pods,
    schema_errors,
)

NAMESPACE = "perennial"
PROGRAMS = K8S / "components" / "mode-schedule" / "templates"
TOKEN = "token-of-the-account"
TICK = "perennial-ingest-29400000"
JOB = f"{TICK}-ray"
DONE: list[Doc] = [
    {},
    {"jobDeploymentStatus": "Initializing"},
    {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
    {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"},
]


def scheduled() -> list[Doc]:
    return assembled("overlays/aws-spot/machines", "components/mode-schedule", "components/kueue")


class Api:
    """RayJobs by name, and what each look at a started one shows."""

    def __init__(self) -> None:
        template = copy.deepcopy(find(scheduled(), "RayJob", "perennial-ingest"))
        self.jobs: dict[str, Doc] = {"perennial-ingest": template}
        self.looks = list(DONE)
        self.outages = 0
        self.asked: list[str] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*api.get(self.path, self.headers["Authorization"]))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(*api.post(self.path, self.headers["Authorization"], body))

            def _answer(self, code: int, document: Doc) -> None:
                body = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def get(self, path: str, authorization: str) -> tuple[int, Doc]:
        name = path.rpartition("/")[2]
        self.asked.append(f"get {name}")
        if authorization != f"Bearer {TOKEN}":
            return 401, {"message": "Unauthorized"}
        if name != "perennial-ingest" and self.outages:
            self.outages -= 1
            return 503, {"message": "the server is starting"}
        if name not in self.jobs:
            return 404, {"message": f"{name} not found"}
        if name == "perennial-ingest":
            return 200, self.jobs[name] | {"status": {"jobDeploymentStatus": "Suspended"}}
        status = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return 200, self.jobs[name] | {"status": status}

    def post(self, path: str, authorization: str, document: Doc) -> tuple[int, Doc]:
        assert path == f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
        assert authorization == f"Bearer {TOKEN}"
        name = document["metadata"]["name"]
        self.asked.append(f"create {name}")
        if name in self.jobs:
            return 409, {"message": f"{name} already exists"}
        wrong = [*schema_errors(document), *operator_objections(document)]
        if wrong:
            return 422, {"message": wrong[0]}
        self.jobs[name] = document
        return 201, document


@pytest.fixture
def api() -> Iterator[Api]:
    crd_folder()
    api = Api()
    thread = threading.Thread(target=api.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield api
    api.server.shutdown()
    thread.join()
    api.server.server_close()


def start(
    api: Api, folder: Path, token: str = TOKEN, tick: str = TICK, **more: str
) -> subprocess.CompletedProcess[str]:
    """The tick's own command, with its mounts where this machine has them."""
    container = pods(scheduled())["perennial-ingest tick"]["spec"]["containers"][0]
    _, program = container["command"]
    names = {"JOB_NAME": tick, "JOB_UID": "8d1f"}
    assert set(names) <= {variable["name"] for variable in container["env"]}
    names |= {v["name"]: v["value"] for v in container["env"] if "value" in v} | more
    account = folder / "account"
    account.mkdir(exist_ok=True)
    (account / "namespace").write_text(NAMESPACE)
    (account / "token").write_text(token + "\n")
    there = {"SERVICE_ACCOUNT": str(account), "KUBERNETES_API": api.url}
    return subprocess.run(
        [sys.executable, str(PROGRAMS / Path(program).name)],
        env={**os.environ, **names, **there, "LOOK_EVERY_SECONDS": "0.01"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_tick_starts_a_copy_that_fits_and_waits_for_it(api: Api, tmp_path: Path) -> None:
    done = start(api, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"started RayJob {JOB}", f"RayJob {JOB}: SUCCEEDED"]
    template, copied = api.jobs["perennial-ingest"], api.jobs[JOB]
    assert copied["spec"] == template["spec"] | {"suspend": False}
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": TICK, "uid": "8d1f"}
    assert copied["metadata"]["ownerReferences"] == [owner]
    assert "status" not in copied
    assert len(api.looks) == 1, "it waited until the job was complete"


def test_the_copy_does_not_have_the_name_that_its_submitter_gets(api: Api, tmp_path: Path) -> None:
    """The operator finds a submitter, a Job, by the RayJob's name; the tick is a Job too."""
    long = "train-before-the-weekend-and-tell-nobody-about-it-29400000"
    for tick in (TICK, long):
        assert start(api, tmp_path, tick=tick).returncode == 0
        api.looks = list(DONE)
    names = set(api.jobs) - {"perennial-ingest"}
    assert len(names) == 2
    assert not names & {TICK, long}


def test_a_queue_is_for_the_copy(api: Api, tmp_path: Path) -> None:
    container = pods(scheduled())["perennial-run tick"]["spec"]["containers"][0]
    told = {v["name"]: v.get("value", "") for v in container["env"]}
    queue = {name: told[name] for name in ("LABELS", "ANNOTATIONS")}
    assert start(api, tmp_path, **queue).returncode == 0
    metadata = api.jobs[JOB]["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "perennial"
    assert metadata["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
    assert "kueue" not in str(api.jobs["perennial-ingest"]["metadata"])


def test_a_pod_that_starts_again_waits_for_the_copy_that_is_there(api: Api, tmp_path: Path) -> None:
    assert start(api, tmp_path).returncode == 0
    api.looks = list(DONE)
    again = start(api, tmp_path)
    assert again.returncode == 0
    assert again.stdout.splitlines()[0] == f"RayJob {JOB} is there"
    assert set(api.jobs) == {"perennial-ingest", JOB}


@pytest.mark.parametrize(
    "end",
    [
        {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit code 2"},
        {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"},
        {"jobDeploymentStatus": "ValidationFailed", "message": "wrong"},
    ],
)
def test_a_job_that_fails_fails_the_tick(api: Api, tmp_path: Path, end: Doc) -> None:
    api.looks = [{}, end]
    done = start(api, tmp_path)
    assert done.returncode == 1
    assert end.get("message", "STOPPED") in done.stdout


def test_an_api_that_is_away_for_a_while_is_asked_again(api: Api, tmp_path: Path) -> None:
    api.outages = 5
    done = start(api, tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("looking again") == 5


def test_an_api_that_stays_away_fails_the_tick(api: Api, tmp_path: Path) -> None:
    api.outages = 1000
    assert start(api, tmp_path).returncode == 1


def test_a_wrong_token_is_told_by_name(api: Api, tmp_path: Path) -> None:
    done = start(api, tmp_path, token="another")
    assert done.returncode != 0
    assert "401" in done.stderr
    assert "another" not in done.stdout + done.stderr


def test_a_template_that_is_refused_is_told(api: Api, tmp_path: Path) -> None:
    api.jobs["perennial-ingest"]["spec"] |= {"ttlSecondsAfterFinished": -1}
    done = start(api, tmp_path)
    assert done.returncode == 1
    assert "was refused" in done.stdout
    assert "ttlSecondsAfterFinished -1" in done.stdout
