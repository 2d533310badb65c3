"""What the Kubernetes manifests would run, run: their own commands and environment, as processes.

A cluster is what it cannot have here: no scheduler, no autoscaler and no operator was reached. The
test does what they would do, and the storage, the database, MLflow and Ray are real.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial
from tests.support.kubernetes_manifests import assembled, clusters, find, overlay, pods
from tests.support.kubernetes_processes import Machine, mlflow, ray_cluster
from tests.support.postgres_server import Postgres
from tests.support.s3_server import S3Server
from tests.support.tiny_run import tiny_run, write_texts

BUCKET = "perennial"
STEPS = 400
SCHEDULED = assembled("overlays/local/machines", "components/mode-schedule")
HEAD = pods(SCHEDULED)["perennial-run head"]
SPOT = pods(overlay("aws-spot"))["perennial cluster gpu"]


@pytest.fixture(scope="module")
def machine(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """This machine with the Secrets of the guide, and a smaller model in the run file."""
    jobs = [o for o in SCHEDULED if o["kind"] == "RayJob"]
    objects = [*overlay("local"), *jobs]
    folder = tmp_path_factory.mktemp("machine")
    client = s3_server.client()
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    client.close()
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
    there = s3_server.environment()
    secrets = {"perennial-store": {key: there[key] for key in keys}}
    machine = Machine(objects, secrets, folder)
    machine.mounts["/etc/perennial"] = folder / "etc"
    machine.mounts["/etc/perennial-watch"] = folder / "watch"
    for mount, name in (("etc", "perennial-run"), ("watch", "perennial-watch")):
        (folder / mount).mkdir()
        for file, text in find(objects, "ConfigMap", name)["data"].items():
            (folder / mount / file).write_text(text)
    return machine


@pytest.fixture
def run_file(machine: Machine, request: pytest.FixtureRequest) -> Path:
    """The manifests' run file with a model and a budget that this machine trains in seconds."""
    told = yaml.safe_load(find(machine.objects, "ConfigMap", "perennial-run")["data"]["run.yaml"])
    tiny = tiny_run(machine.folder)
    parts = ("corpora", "tokenizer", "model", "schedule", "release", "evaluation")
    told |= {part: tiny[part] for part in parts}
    told["training"] |= {"global_batch": 8, "micro_batch": 4, "checkpoint_every": "10 steps"}
    told["stages"] = {"budget": f"{STEPS} steps"}
    name = re.sub(r"\W", "-", request.node.name)
    told["store"] += f"/{name}"
    told["sources"] = {"crawl": {"prefix": f"s3://{BUCKET}/crawl/{name}", "schedule": "1d"}}
    path = machine.folder / "etc" / "run.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


@pytest.fixture
def outside(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person's machine, with the store's keys in its environment."""
    s3_server.use(monkeypatch)


def job(machine: Machine, verb: str) -> dict[str, Any]:
    return find(machine.objects, "RayJob", f"perennial-{verb}")


def cluster_of(machine: Machine, verb: str) -> dict[str, Any]:
    spec: dict[str, Any] = job(machine, verb)["spec"]["rayClusterSpec"]
    return spec


def test_the_head_has_all_that_an_entrypoint_needs(
    machine: Machine, run_file: Path, outside: None
) -> None:
    """Its environment reaches the store, and its run file says where."""
    perennial("land", run_file, "help", write_texts(machine.folder)["help"])
    head = HEAD["spec"]["containers"][0]
    watch = "perennial watch /etc/perennial/run.yaml"  # by serve.py
    entrypoints = [*(job(machine, verb)["spec"]["entrypoint"] for verb in ("ingest", "run")), watch]
    for entrypoint, told in zip(entrypoints, ("pull crawl", "help", "help"), strict=True):
        words = [machine.here(word) for word in shlex.split(entrypoint)]
        done = subprocess.run(
            [str(machine.folder / "bin" / words[0]), *words[1:], "--dry-run"],
            env=machine.variables(head),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert told in done.stdout


@pytest.fixture
def tracking(machine: Machine, postgres: Postgres) -> Iterator[str]:
    uri = postgres.uri
    machine.secrets["perennial-mlflow"] = {
        "backend-store-uri": uri,
        "password": postgres.password,
    }
    with mlflow(machine, find(machine.objects, "Deployment")) as address:
        yield address


def latest(store: Store, stage: str) -> int:
    step = checkpoint.latest_step(store, f"checkpoints/{stage}")
    return -1 if step is None else step


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.skipif(
    importlib.util.find_spec("aiohttp_cors") is None, reason="needs ray[default], its job server"
)
def test_a_pulled_corpus_is_trained_through_a_suspension_a_deletion_and_a_lost_head(
    machine: Machine,
    run_file: Path,
    tracking: str,
    outside: None,
) -> None:
    texts = write_texts(machine.folder)
    spec = yaml.safe_load(run_file.read_text())
    store = open_store(spec["store"])
    open_store(spec["sources"]["crawl"]["prefix"]).upload(texts["help"], "help.jsonl")

    # A tick: the RayJob that it starts pulls and tokenises, and trains nothing.
    with ray_cluster(machine, cluster_of(machine, "ingest"), "data", 1) as cluster:
        submitter = cluster.submit(job(machine, "ingest"))
        assert submitter.wait() == 0, cluster.told()
    (pulled,) = Ledger(store).read().corpora.values()
    assert pulled.state == "ready"
    first = f"00-{pulled.name}"

    # `run` is resumed, and suspended while it trains: its cluster goes.
    with ray_cluster(machine, cluster_of(machine, "run"), "data", 2) as cluster:
        cluster.submit(job(machine, "run"))
        cluster.wait_for(lambda: latest(store, first) >= 20)
        cluster.pre_stop(0, HEAD["spec"]["containers"][0])
    suspended_at = latest(store, first)
    assert 20 < suspended_at < STEPS
    assert suspended_at % 10, "a checkpoint for the suspension, not a due one"

    # Resumed: another cluster with another token, and on from the checkpoint. Then the RayJob is
    # deleted: the operator has Ray stop the job, and the head's pod goes.
    with ray_cluster(machine, cluster_of(machine, "run"), "data", 2) as cluster:
        submitter = cluster.submit(job(machine, "run"))
        cluster.wait_for(lambda: latest(store, first) >= suspended_at + 20)
        cluster.stop_job()
        cluster.pre_stop(0, HEAD["spec"]["containers"][0])
        submitter.wait()
        assert f"{first}: 2 workers go on from step {suspended_at}" in cluster.told()
    deleted_at = latest(store, first)
    assert suspended_at + 20 < deleted_at < STEPS
    assert deleted_at % 10, "a checkpoint for the deletion, not a due one"

    # Made anew. Its head is lost, without a notice.
    with ray_cluster(machine, cluster_of(machine, "run"), "data", 2) as cluster:
        cluster.submit(job(machine, "run"))
        cluster.wait_for(lambda: latest(store, first) >= deleted_at + 20)
        cluster.end(0)
    lost_at = latest(store, first)
    assert deleted_at < lost_at < STEPS

    # The operator makes another cluster and submits the job again.
    with ray_cluster(machine, cluster_of(machine, "run"), "data", 2) as cluster:
        submitter = cluster.submit(job(machine, "run"))
        assert submitter.wait() == 0, cluster.told()
        assert f"{first}: 2 workers go on from step {lost_at}" in cluster.told()
    assert latest(store, first) == STEPS
    perennial("verify", run_file)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    importlib.util.find_spec("aiohttp_cors") is None, reason="needs ray[default], its job server"
)
def test_a_watch_trains_what_lands_though_a_machine_is_taken_away(
    machine: Machine,
    run_file: Path,
    tracking: str,
    s3_server: S3Server,
    outside: None,
) -> None:
    store = open_store(yaml.safe_load(run_file.read_text())["store"])
    perennial("land", run_file, "code", write_texts(machine.folder)["code"])
    with ray_cluster(machine, clusters(machine.objects)["perennial cluster"], "data", 2) as cluster:
        cluster.wait_for(lambda: latest(store, "00-code") >= 10)
        drained = next(index for index in (1, 2) if cluster.workers(index))
        before = latest(store, "00-code")
        done = cluster.pre_stop(drained, SPOT["spec"]["containers"][0])
        assert not cluster.workers(drained), done.stderr
        saved = latest(store, "00-code")
        assert before < saved < STEPS
        cluster.end(drained)
        cluster.wait_for(lambda: Ledger(store).read().corpora["code"].state == "passed")
        # The pod is deleted: its first process ends by itself when `perennial` has.
        cluster.pre_stop(0, cluster.head)
        cluster.wait_for_end(0)
    perennial("verify", run_file)

    # Runs are in PostgreSQL, their artifacts in the bucket; both came through the server.
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=50)
    assert any(run.info.run_name.startswith("00-code") for run in runs)
    s3 = s3_server.client()
    try:
        found = s3.list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")
    finally:
        s3.close()
    assert found["KeyCount"] > 0
