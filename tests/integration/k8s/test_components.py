"""The components that people add to an overlay: a cloud's identity, monitoring, other machines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.telemetry.prometheus import METRICS
from tests.support.kubernetes_manifests import (
    AWS,
    GUIDE,
    Doc,
    assembled,
    clusters,
    containers,
    environment,
    find,
    is_ray,
    operator_objections,
    overlay,
    pods,
    render,
    schema_errors,
    write_overlay,
)

IDENTITY = {
    "eks": "eks.amazonaws.com/role-arn",
    "gke": "iam.gke.io/gcp-service-account",
    "aks": "azure.workload.identity/client-id",
}
MODES = ("components/mode-watch", "components/mode-schedule")


def objections(objects: list[Doc]) -> dict[str, list[str]]:
    """What a schema or the operator has against each object; empty without objections."""
    found = {}
    for o in objects:
        wrong = [*schema_errors(o), *(operator_objections(o) if is_ray(o) else [])]
        if wrong:
            found[f"{o['kind']} {o['metadata']['name']}"] = wrong
    return found


@pytest.mark.parametrize(
    ("cloud", "mode"),
    [
        ("eks", MODES[0]),
        *(pytest.param(cloud, MODES[0], marks=pytest.mark.long) for cloud in ("gke", "aks")),
        *(pytest.param(cloud, MODES[1], marks=pytest.mark.long) for cloud in IDENTITY),
    ],
)
def test_every_pod_that_reaches_the_store_has_an_identity(cloud: str, mode: str) -> None:
    """And starts without static keys."""
    objects = assembled(AWS, f"components/workload-identity/{cloud}", mode)
    assert objections(objects) == {}
    accounts = {
        o["metadata"]["name"]: o["metadata"].get("annotations", {})
        for o in objects
        if o["kind"] == "ServiceAccount"
    }
    reaching = [
        (where, container, pod)
        for where, container, pod in containers(objects)
        if "perennial-store" in json.dumps(container.get("envFrom", []))
    ]
    assert len(reaching) >= 4  # a head, two groups, and MLflow
    for where, container, pod in reaching:
        assert IDENTITY[cloud] in accounts[pod["serviceAccountName"]], where
        (secret,) = [s["secretRef"] for s in container["envFrom"] if "secretRef" in s]
        assert secret == {"name": "perennial-store", "optional": True}, where
    if cloud == "aks":
        roles = {where.rpartition("/")[0] for where, _, _ in reaching}
        for role in roles:
            labels = pods(objects)[role]["metadata"]["labels"]
            assert labels["azure.workload.identity/use"] == "true", role


def test_without_an_identity_a_forgotten_secret_is_noticed() -> None:
    for where, container, _ in containers(assembled(AWS, MODES[0])):
        for source in container.get("envFrom", []):
            assert "optional" not in source.get("secretRef", {}), where


# Monitoring


def rules() -> list[Doc]:
    """The alerts."""
    rule = find(assembled(AWS, "components/monitoring", MODES[0]), "PrometheusRule")
    (group,) = rule["spec"]["groups"]
    alerts: list[Doc] = group["rules"]
    return alerts


@pytest.mark.parametrize("kind", ["PodMonitor", "PrometheusRule"])
def test_what_prometheus_reads_fits_its_operators_crds(kind: str) -> None:
    doc = find(assembled(AWS, "components/monitoring", MODES[0]), kind)
    assert schema_errors(doc) == []
    assert schema_errors(doc | {"spec": doc["spec"] | {"selektor": {}}}) != []


def test_alerts_query_what_is_exported() -> None:
    for alert in rules():
        asked = re.findall(r"ray_(\w+)", alert["expr"])
        assert asked, alert["alert"]
        assert set(asked) <= set(METRICS), alert["alert"]


def test_the_kinds_of_trouble_that_are_told() -> None:
    asked = {name for alert in rules() for name in re.findall(r"ray_(\w+)", alert["expr"])}
    assert asked == {
        "perennial_step",
        "perennial_state",
        "perennial_checkpoint_time_seconds",
        "perennial_failed_checkpoints",
        "perennial_source_failures",
        "perennial_data_lag_seconds",
        "perennial_restarts",
    }


RUN = 'lineage="quickstart"'
TRAINS = f'ray_perennial_state{{{RUN}, doing="training french"}}'
OLD, NEW = f'{{{RUN}, stage="00-english"}}', f'{{{RUN}, stage="01-french"}}'
QUIET = {  # a stage that is over, whose gauges stand still, and one that trains; a value a minute
    TRAINS: "1x600",
    f'ray_perennial_state{{{RUN}, doing="gated english"}}': "0x600",
    f"ray_perennial_step{OLD}": "500x600",
    f"ray_perennial_step{NEW}": "500+10x600",
    f"ray_perennial_checkpoint_time_seconds{OLD}": "0x600",
    f"ray_perennial_checkpoint_time_seconds{NEW}": "0+60x600",
    f"ray_perennial_failed_checkpoints{NEW}": "0x600",
    f"ray_perennial_restarts{NEW}": "0x600",
    f'ray_perennial_source_failures{{{RUN}, source="crawl"}}': "1x600",
    f"ray_perennial_data_lag_seconds{{{RUN}}}": "3600x600",
}
TROUBLES = {
    "PerennialNoStep": {f"ray_perennial_step{NEW}": "700x600"},
    "PerennialCheckpointOld": {f"ray_perennial_checkpoint_time_seconds{NEW}": "60x600"},
    "PerennialCheckpointFailed": {f"ray_perennial_failed_checkpoints{NEW}": "0x570 1x30"},
    "PerennialGated": {
        TRAINS: "0x600",
        f'ray_perennial_state{{{RUN}, doing="gated english"}}': "1x600",
    },
    "PerennialStageFailed": {
        TRAINS: "0x600",
        f'ray_perennial_state{{{RUN}, doing="failed english"}}': "1x600",
    },
    "PerennialSourceFailing": {f'ray_perennial_source_failures{{{RUN}, source="crawl"}}': "5x600"},
    "PerennialDataWaits": {f"ray_perennial_data_lag_seconds{{{RUN}}}": "90000x600"},
    "PerennialRestarts": {f"ray_perennial_restarts{NEW}": "0+1x600"},
    "": {},
}


def test_every_alert_has_its_trouble() -> None:
    assert {alert["alert"] for alert in rules()} == set(TROUBLES) - {""}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, Prometheus' own")
def test_each_trouble_fires_its_alert_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.dump({"groups": [{"name": "a", "rules": rules()}]}))
    at, tests = "9h50m", list[dict[str, Any]]()
    for trouble, changed in TROUBLES.items():
        series = QUIET | changed
        values = [{"series": name, "values": value} for name, value in series.items()]
        tests.append(
            {
                "name": trouble or "none",
                "interval": "1m",
                "input_series": values,
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": at,
                        "exp_samples": [{"labels": f'{{alertname="{trouble}"}}', "value": 1}]
                        * bool(trouble),
                    }
                ],
            }
        )
    told = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.dump(told))
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_is_let_in_to_the_metrics_alone() -> None:
    objects = assembled(AWS, "components/monitoring", MODES[0])
    policy = find(objects, "NetworkPolicy", "perennial-ray")["spec"]
    (rule,) = [
        rule
        for rule in policy["ingress"]
        if any("prometheus" in json.dumps(peer) for peer in rule["from"])
    ]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8080}]
    monitor = find(objects, "PodMonitor")["spec"]
    scraped = monitor["selector"]["matchLabels"].items()
    for role, pod in pods(objects).items():
        is_ray_node = "ray.io/cluster" in pod["metadata"]["labels"]
        assert (scraped <= pod["metadata"]["labels"].items()) == is_ray_node, role


# The store of `local`, and several runs


def test_the_local_overlay_brings_its_own_store() -> None:
    objects = overlay("local")
    service = find(objects, "Service", "perennial-s3")
    (port,) = service["spec"]["ports"]
    server = pods(objects)["perennial-s3"]
    assert service["spec"]["selector"].items() <= server["metadata"]["labels"].items()
    settings = find(objects, "ConfigMap", "perennial-settings")["data"]
    assert settings["AWS_ENDPOINT_URL"] == f"http://perennial-s3:{port['port']}"
    run = yaml.safe_load(find(objects, "ConfigMap", "perennial-run")["data"]["run.yaml"])
    bucket = run["store"].removeprefix("s3://").partition("/")[0]
    (container,) = server["spec"]["containers"]
    assert f"-bucket={bucket}" in container["args"]
    assert settings["MLFLOW_ARTIFACTS_DESTINATION"].startswith(f"s3://{bucket}/")
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    there = environment(objects, container, {"perennial-store": keys})
    assert there == keys, "its own keys, and no endpoint of another server"
    for where, reader, _ in containers(objects):
        if "perennial-settings" in json.dumps(reader.get("envFrom", [])):
            secrets = {"perennial-store": keys, "perennial-mlflow": {"backend-store-uri": "x"}}
            told = environment(objects, reader, secrets)
            assert told["AWS_ENDPOINT_URL"] == settings["AWS_ENDPOINT_URL"], where
            assert keys.items() <= told.items(), where


@pytest.mark.parametrize("mode", [MODES[0], pytest.param(MODES[1], marks=pytest.mark.long)])
def test_several_runs_share_a_namespace_and_one_mlflow(tmp_path: Path, mode: str) -> None:
    """As the guide says: another overlay without ../../base, with a suffix."""
    first = assembled(AWS, MODES[0])
    (told,) = re.findall(
        r"```yaml\n(resources:\n  - ../../run\n.*?)```", GUIDE.read_text(), re.DOTALL
    )
    guides = {key: value for key, value in yaml.safe_load(told).items() if key != "resources"}
    assert set(guides) == {"nameSuffix", "labels"}
    folder = write_overlay(tmp_path / "french", AWS, mode, base=False, **guides)
    second = render(folder)
    assert objections(second) == {}
    keys = [(o["kind"], o["metadata"]["name"]) for o in (*first, *second)]
    assert len(keys) == len(set(keys)), "no object of one run is another's"
    assert "Deployment" not in {o["kind"] for o in second}
    modes = [o["metadata"]["labels"] for o in second if "perennial/mode" in str(o["metadata"])]
    assert {labels["perennial/run"] for labels in modes} == {"french"}
    # Every name leads to an object of its own run, or to one that all share.
    own = {name for _, name in keys[len(first) :]}
    shared = {name for _, name in keys if not name.startswith(("perennial-run", "perennial-watch"))}
    text = yaml.dump([o["spec"] for o in second if "spec" in o])
    mounted = set(re.findall(r"configMap(?:Ref)?:\n +name: (\S+)", text))
    assert mounted == {
        "perennial-run-french",
        f"perennial-{mode[16:]}-french",
        "perennial-settings",
    }
    assert mounted <= own | shared
    accounts = set(re.findall(r"serviceAccountName: (\S+)", text))
    assert accounts <= own | {"perennial", "perennial-head"}
    assert shared >= {"perennial-settings", "perennial", "perennial-head"}
    for cron in (o for o in second if o["kind"] == "CronJob"):
        (container,) = pods([cron])[f"{cron['metadata']['name']} tick"]["spec"]["containers"]
        template = next(v["value"] for v in container["env"] if v["name"] == "TEMPLATE")
        assert find(second, "RayJob", template)["metadata"]["name"] == cron["metadata"]["name"]


# Machines

# CPUs, GiB and GPUs: aws.amazon.com/ec2/instance-types (g6, p4, p5), and
# cloud.google.com/compute/docs/accelerator-optimized-machines (g2, a3), where GB are 10^9 bytes
MACHINES: dict[str, list[tuple[str, int, float, int]]] = {
    "aws-spot": [("g6.2xlarge", 8, 32, 1)],
    "gke": [("g2-standard-8", 8, 32e9 / 2**30, 1)],
    "nodes-of-8": [
        ("p5.48xlarge", 192, 2048, 8),
        ("p4d.24xlarge", 96, 1152, 8),
        ("a3-highgpu-8g", 208, 1872e9 / 2**30, 8),
        ("a3-ultragpu-8g", 224, 2952e9 / 2**30, 8),
    ],
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_gpu_pod_fits_the_machines_that_it_names(name: str) -> None:
    """With what the node itself keeps: up to 12% of a small machine's memory, and 1 CPU."""
    group = clusters(overlay(name))["perennial cluster"]["workerGroupSpecs"][1]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["memory"].endswith("Gi")
    for machine, cpus, gib, gpus in MACHINES[name]:
        assert int(limits["cpu"]) <= cpus - 1, machine
        assert int(limits["memory"][:-2]) <= gib * 0.88, machine
        assert int(limits["nvidia.com/gpu"]) == gpus, "a pod takes the whole machine"


@pytest.mark.parametrize("name", MACHINES)
def test_a_pod_is_placed_where_its_volumes_fit(name: str) -> None:
    for role, pod in pods(overlay(name)).items():
        if "ray.io/cluster" not in pod["metadata"]["labels"]:
            continue
        sizes = [v["emptyDir"]["sizeLimit"] for v in pod["spec"]["volumes"] if "emptyDir" in v]
        asked = pod["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"]
        assert int(asked[:-2]) >= sum(int(size[:-2]) for size in sizes), role


def test_machines_of_a_cluster_are_in_one_zone() -> None:
    for name, how in (("aws-spot", "preferred"), ("nodes-of-8", "required")):
        pod = pods(overlay(name))["perennial cluster gpu"]["spec"]
        ((kind, terms),) = pod["affinity"]["podAffinity"].items()
        assert kind.startswith(how)
        term = terms[0].get("podAffinityTerm", terms[0])
        assert term["topologyKey"] == "topology.kubernetes.io/zone"
        assert term["matchLabelKeys"] == ["ray.io/cluster"]
        assert term["labelSelector"]["matchLabels"] == {"ray.io/group": "gpu"}


def test_efa_is_asked_for_and_used() -> None:
    (container,) = pods(overlay("nodes-of-8"))["perennial cluster gpu"]["spec"]["containers"]
    for bound in ("requests", "limits"):
        assert container["resources"][bound]["vpc.amazonaws.com/efa"] == "32"
    told = {v["name"]: v.get("value") for v in container["env"]}
    assert told["FI_PROVIDER"] == "efa"
    assert {"NCCL_SOCKET_IFNAME", "NCCL_DEBUG", "LD_LIBRARY_PATH"} <= set(told)


def test_gpudirect_is_wired_to_every_adapter() -> None:
    objects = assembled(
        "overlays/gke/machines", "components/nodes-of-8", "components/gpudirect-rdma", MODES[0]
    )
    assert objections(objects) == {}
    pod = pods(objects)["perennial cluster gpu"]
    told = json.loads(pod["metadata"]["annotations"]["networking.gke.io/interfaces"])
    networks = [interface["network"] for interface in told]
    assert networks == ["default", "gvnic-1", *(f"rdma-{number}" for number in range(8))]
    assert [interface["interfaceName"] for interface in told] == [f"eth{n}" for n in range(10)]
    container = pod["spec"]["containers"][0]
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "gib")
    # The operator puts `ray start` behind a command that does not hold it.
    script = " ".join(container["command"])
    assert script.startswith(f". {mount['mountPath']}/")
    assert "ray start" not in script
    variables = {v["name"]: v.get("value") for v in container["env"]}
    assert "/usr/local/nvidia/lib64" in variables["LD_LIBRARY_PATH"], "GKE's driver stays found"
    head = pods(objects)["perennial cluster head"]["spec"]
    assert not any("hostPath" in volume for volume in head["volumes"])


def test_a_gang_is_what_starts_together() -> None:
    """The operator makes the pod group of a RayJob: its labels, and the least number of workers."""
    objects = assembled("overlays/aws-spot/machines", MODES[1], "components/volcano")
    assert objections(objects) == {}
    run = find(objects, "RayJob", "perennial-run")["spec"]
    data, gpu = run["rayClusterSpec"]["workerGroupSpecs"]
    assert (data["minReplicas"], gpu["minReplicas"]) == (0, 2)
    assert gpu["minReplicas"] <= gpu["maxReplicas"]
    ticks = find(objects, "CronJob", "perennial-run")["spec"]["jobTemplate"]["spec"]["template"]
    (container,) = ticks["spec"]["containers"]
    (labels,) = (v["value"] for v in container["env"] if v["name"] == "LABELS")
    assert json.loads(labels)["volcano.sh/queue-name"] == "perennial"
    (ingest,) = find(objects, "RayJob", "perennial-ingest")["spec"]["rayClusterSpec"][
        "workerGroupSpecs"
    ][1:]
    assert ingest["minReplicas"] == 0, "tokenising waits for no GPU"
