"""Clusters, jobs and ticks of the manifests, and what runs in them."""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from perennial.version import __version__
from tests.support.kubernetes_manifests import (
    AWS,
    GUIDE,
    K8S,
    OVERLAYS,
    ROOT,
    Doc,
    assembled,
    clusters,
    containers,
    find,
    jobs,
    overlay,
    pods,
)

CLOUDS = [name for name in OVERLAYS if name != "local"]
SCRIPTS = {"watch": "components/mode-watch", "schedule": "components/mode-schedule/templates"}


# Clusters


def test_all_clusters_are_alike_but_for_the_head_that_watches(everything: list[Doc]) -> None:
    there = copy.deepcopy(clusters(everything))
    watching = there.pop("perennial cluster", None)
    if watching:
        head = watching["headGroupSpec"]["template"]
        assert head["metadata"]["annotations"].pop("ray.io/overwrite-container-cmd") == "true"
        assert watching.pop("upgradeStrategy") == {"type": "Recreate"}
        command = head["spec"]["containers"][0].pop("command")
        assert command == ["python", "/etc/perennial-watch/serve.py", "/etc/perennial/run.yaml"]
        head["spec"]["containers"][0]["volumeMounts"].pop()
        assert head["spec"]["volumes"].pop()["configMap"] == {"name": "perennial-watch"}
        there["perennial cluster"] = watching
    assert there
    specs = list(there.values())
    assert all(spec == specs[0] for spec in specs)
    assert "suspend" not in specs[0]


def test_clusters_scale_by_the_second_autoscaler(everything: list[Doc]) -> None:
    for cluster in clusters(everything).values():
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 0
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in cluster["workerGroupSpecs"]:
            assert "replicas" not in group, "that number is the autoscaler's"
            assert group["minReplicas"] == 0 < group["maxReplicas"]


@pytest.mark.parametrize("name", CLOUDS)
def test_training_is_on_spot_machines_and_the_head_is_not(name: str) -> None:
    cluster = next(iter(clusters(overlay(name)).values()))
    data, gpu = cluster["workerGroupSpecs"]
    head = cluster["headGroupSpec"]
    assert (data["groupName"], gpu["groupName"]) == ("data", "gpu")
    assert gpu["labels"] == {"ray.io/market-type": "spot"}
    assert head["labels"] == {"ray.io/market-type": "on-demand"}
    places = [json.dumps(group["template"]["spec"]) for group in (head, data, gpu)]
    spot = {"karpenter.sh/capacity-type": "spot"}, {"cloud.google.com/gke-spot": "true"}
    selector = gpu["template"]["spec"]["nodeSelector"]
    assert any(chosen.items() <= selector.items() for chosen in spot)
    for place in places[:2]:
        assert '"on-demand"' in place or '"DoesNotExist"' in place
    limits = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == ("8" if name == "nodes-of-8" else "1")
    assert any(t["key"] == "nvidia.com/gpu" for t in gpu["template"]["spec"]["tolerations"])


@pytest.mark.parametrize(
    ("role", "does"),
    [("head", "kill -TERM"), ("gpu", "ray drain-node --reason=DRAIN_NODE_REASON_PREEMPTION")],
)
def test_a_pod_that_is_stopped_has_a_checkpoint_stored_within_its_notice(
    spot: list[Doc], role: str, does: str
) -> None:
    """The preStop hook, then SIGTERM and Ray's own drain, then the end of the grace period."""
    settings = find(spot, "ConfigMap", "perennial-settings")["data"]
    drain = int(settings["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    for name in ("perennial-run", "perennial cluster"):
        pod = pods(spot)[f"{name} {role}"]["spec"]
        (_, _, script) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert does in script
        (waits,) = {int(n) for n in re.findall(r"(?:-seconds=|-lt )(\d+)", script)}
        assert waits + drain < pod["terminationGracePeriodSeconds"] < 120


# Jobs and ticks


def test_nothing_that_people_patch_is_declared(everything: list[Doc]) -> None:
    """`suspend` stands in templates alone, which nobody resumes."""
    declared = {
        f"{o['kind']} {o['metadata']['name']}"
        for o in everything
        if re.search(r"\bsuspend:", yaml.dump(o.get("spec", {})))
    }
    templates = {f"RayJob {o['metadata']['name']}" for o in everything if o["kind"] == "RayJob"}
    assert declared == templates


def test_the_objects_are_of_one_mode(everything: list[Doc]) -> None:
    modes = {o["metadata"].get("labels", {}).get("perennial/mode") for o in everything} - {None}
    assert len(modes) == 1
    kinds = {o["kind"] for o in everything}
    if modes == {"watch"}:
        assert "perennial cluster" in clusters(everything)
        assert not kinds & {"RayJob", "CronJob", "RayCronJob", "Role"}
    else:
        assert modes == {"schedule"}
        assert "RayCluster" not in kinds
        assert set(jobs(everything)) == {"perennial-run", "perennial-ingest"}


def test_a_program_is_mounted_as_it_stands_in_the_repository(spot: list[Doc]) -> None:
    for mode, folder in SCRIPTS.items():
        for program, text in find(spot, "ConfigMap", f"perennial-{mode}")["data"].items():
            assert text == (K8S / folder / program).read_text("utf-8")


def test_each_tick_starts_its_own_template_one_at_a_time(spot: list[Doc]) -> None:
    for name in ("perennial-ingest", "perennial-run"):
        cron = find(spot, "CronJob", name)
        assert cron["spec"]["concurrencyPolicy"] == "Forbid"
        tick = pods(spot)[f"{name} tick"]["spec"]["containers"][0]
        python, program = tick["command"]
        assert (python, Path(program).name) == ("python", "start_rayjob.py")
        (mount,) = [m for m in tick["volumeMounts"] if program.startswith(m["mountPath"] + "/")]
        assert mount["readOnly"] is True
        template = next(v["value"] for v in tick["env"] if v["name"] == "TEMPLATE")
        assert template == name
        assert find(spot, "RayJob", template)["spec"]["suspend"] is True


def test_an_evicted_tick_does_not_count(spot: list[Doc]) -> None:
    """Beyond backoffLimit the Job would fail, and in time its RayJob be deleted with it."""
    for cron in (o for o in spot if o["kind"] == "CronJob"):
        (rule,) = cron["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
        assert rule["action"] == "Ignore"
        assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_a_queue_is_for_what_a_tick_of_run_creates() -> None:
    queued = assembled(AWS, "components/mode-schedule", "components/kueue")
    told = {
        role: [v["name"] for v in pod["spec"]["containers"][0]["env"]]
        for role, pod in pods(queued).items()
        if role.endswith(" tick")
    }
    assert {role for role, names in told.items() if "LABELS" in names} == {"perennial-run tick"}
    labelled = [o for o in queued if "kueue" in json.dumps(o["metadata"])]
    assert labelled == []
    for job in jobs(queued).values():  # Kueue's conditions
        assert job["shutdownAfterJobFinishes"] is True
        assert "clusterSelector" not in job
        assert len(job["rayClusterSpec"]["workerGroupSpecs"]) <= 7


def test_ray_cron_jobs_take_the_cron_jobs_place() -> None:
    objects = overlay("ray-cron-job")
    kinds = {o["kind"] for o in objects}
    assert not kinds & {"CronJob", "RayJob", "Role", "RoleBinding"}
    scheduled = assembled(AWS, "components/mode-schedule")
    for name in ("perennial-ingest", "perennial-run"):
        cron = find(objects, "RayCronJob", name)["spec"]
        before = find(scheduled, "CronJob", name)["spec"]
        assert (cron["schedule"], cron["timeZone"]) == (before["schedule"], before["timeZone"])
        template = dict(find(scheduled, "RayJob", name)["spec"])
        assert template.pop("suspend") is True
        image = template["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        ours = yaml.dump(template).replace(image["image"], "image")
        theirs = yaml.dump(cron["jobTemplate"])
        assert re.sub(r"registry\.example\.com/perennial:\S+", "image", theirs) == ours
    text = (K8S / "overlays" / "ray-cron-job" / "kustomization.yaml").read_text()
    assert "featureGates[0].name=RayCronJob" in text
    assert "RayCronJob" in GUIDE.read_text()


# What runs in them


def test_versions_agree_with_the_package(everything: list[Doc]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (ray,) = (d.split("==")[1] for d in project["dependencies"] if d.startswith("ray["))
    assert {spec["rayVersion"] for spec in clusters(everything).values()} == {ray}
    assert f"ray[default]=={ray}" in project["optional-dependencies"]["cluster"]
    images = {c["image"].rpartition("/")[2] for _, c, _ in containers(everything) if c["image"]}
    ours = {image for image in images if image.startswith("perennial")}
    assert len(ours) == 1
    assert images - ours <= {"postgres:17-bookworm", "seaweedfs:4.44"}
    assert ours.pop().startswith(f"perennial:{__version__}-")


def test_the_entrypoints_are_verbs_and_options_of_the_command_line(everything: list[Doc]) -> None:
    from perennial.cli.app import app

    verbs: Any = typer.main.get_command(app)
    told = {}
    for name, job in jobs(everything).items():
        program, verb, run_file, *rest = shlex.split(job["entrypoint"])
        told[name] = (program, verb, run_file)
        options = {option for p in verbs.commands[verb].params for option in p.opts}
        assert set(rest) <= options
    run_file = "/etc/perennial/run.yaml"
    scheduled = {
        "perennial-run": ("perennial", "run", run_file),
        "perennial-ingest": ("perennial", "ingest", run_file),
    }
    assert told in ({}, scheduled)
    for role, pod in pods(everything).items():
        if role.endswith(" head"):
            (mount,) = [
                m
                for m in pod["spec"]["containers"][0]["volumeMounts"]
                if m["mountPath"] == "/etc/perennial"
            ]
            volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
            assert volumes[mount["name"]]["configMap"] == {"name": "perennial-run"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_run_file_is_the_quickstarts_but_for_where_it_runs(name: str, tmp_path: Path) -> None:
    from perennial.config import load_run

    objects = overlay(name)
    text = find(objects, "ConfigMap", "perennial-run")["data"]["run.yaml"]
    (tmp_path / "run.yaml").write_text(text)
    here = load_run(tmp_path / "run.yaml").model_dump()
    laptop = load_run(ROOT / "pipelines" / "quickstart.yaml").model_dump()
    assert here["store"].startswith("s3://")
    others = {key for key in here if here[key] != laptop[key]}
    assert others <= {"store", "training", "evaluation"}
    workers = {key for key, value in here["training"].items() if value != laptop["training"][key]}
    where = {"workers", "cpus_per_worker", "gpus_per_worker", "precision"}
    assert workers <= where
    parts = {key for key, value in here["evaluation"].items() if value != laptop["evaluation"][key]}
    assert parts <= {"tasks", "baseline"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_run_fits_the_cluster(name: str, tmp_path: Path) -> None:
    from perennial.config import load_run

    objects = overlay(name)
    text = find(objects, "ConfigMap", "perennial-run")["data"]["run.yaml"]
    (tmp_path / "run.yaml").write_text(text)
    training = load_run(tmp_path / "run.yaml").training
    assert training.workers.elastic
    group = next(iter(clusters(objects).values()))["workerGroupSpecs"][-1]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = int(limits.get("nvidia.com/gpu", 0))
    if gpus:
        assert training.gpus_per_worker == 1
        assert training.workers.max == gpus * group["maxReplicas"]
        wanted = gpus * training.cpus_per_worker
        assert wanted < int(limits["cpu"]), "Ray Data's readers need some"
    else:
        wanted = training.workers.max * training.cpus_per_worker
        assert wanted < int(limits["cpu"]) * group["maxReplicas"], "as above"
