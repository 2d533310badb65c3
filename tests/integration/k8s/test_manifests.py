"""The Kubernetes manifests, rendered and held against what a cluster would apply."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.support.kubernetes_manifests import (
    GONE,
    GUIDE,
    OVERLAYS,
    Doc,
    clusters,
    containers,
    find,
    is_ray,
    matches,
    operator_objections,
    overlay,
    plant,
    pods,
    schema_errors,
)


def test_the_overlays_are_those_that_are_promised() -> None:
    assert {"local", "aws-spot", "gke", "ray-cron-job"} <= set(OVERLAYS)


# Schemas, and the operator's rules


def test_every_core_object_fits_the_kubernetes_schemas(everything: list[Doc]) -> None:
    core = {f"{o['kind']} {o['metadata']['name']}": o for o in everything if not is_ray(o)}
    assert {name: schema_errors(o) for name, o in core.items()} == {name: [] for name in core}


def test_every_ray_object_fits_kuberays_crds(everything: list[Doc]) -> None:
    ray = {f"{o['kind']} {o['metadata']['name']}": o for o in everything if is_ray(o)}
    assert ray
    assert {name: schema_errors(o) for name, o in ray.items()} == {name: [] for name in ray}


def test_the_operator_would_take_every_ray_object(everything: list[Doc]) -> None:
    ray = {f"{o['kind']} {o['metadata']['name']}": o for o in everything if is_ray(o)}
    assert {name: operator_objections(o) for name, o in ray.items()} == {name: [] for name in ray}


HEAD = "headGroupSpec.template.spec"
GPU = "workerGroupSpecs.1.template.spec"
JOB = "spec.rayClusterSpec"
CONTAINER = "containers.0"
CRON_POD = "spec.jobTemplate.spec.template.spec"


@pytest.mark.parametrize(
    ("kind", "path", "value", "named"),
    [
        ("RayCluster", f"spec.{GPU}.{CONTAINER}.volumeMounts.0.mountpath", "/x", "mountpath"),
        ("RayCluster", f"spec.{GPU}.{CONTAINER}.lifecycle.preStop.exec.cmd", ["x"], "cmd"),
        ("RayCluster", f"spec.{GPU}.tolerations.0.effect", 1, "effect"),
        ("RayCluster", f"spec.{GPU}.terminationGracePeriod", 9, "terminationGracePeriod"),
        ("RayCluster", f"spec.{GPU}.nodeselector", {}, "nodeselector"),
        ("RayCluster", f"spec.{GPU}.{CONTAINER}.resources.limit", {}, "limit"),
        ("RayCluster", f"spec.{GPU}.volumes.0.emptyDir.sizelimit", "1Gi", "sizelimit"),
        ("RayCluster", f"spec.{HEAD}.{CONTAINER}.image", 1, "image"),
        ("RayCluster", f"spec.{HEAD}.{CONTAINER}.ports.0.containerPort", "6379", "containerPort"),
        ("RayCluster", f"spec.{HEAD}.{CONTAINER}.envFrom.0.configmapRef", {}, "configmapRef"),
        ("RayCluster", f"spec.{HEAD}.securityContext.runAsNonroot", True, "runAsNonroot"),
        ("RayCluster", "spec.autoscalerOptions.version", "v3", "v3"),
        ("RayCluster", "spec.autoscalerOptions.upscalingMode", "Fast", "Fast"),
        ("RayCluster", "spec.autoscalerOptions.idleTimeoutSeconds", "5m", "idleTimeoutSeconds"),
        ("RayCluster", "spec.authOptions.mode", "tokens", "tokens"),
        ("RayCluster", "spec.authOptions.token", "abc", "token"),
        ("RayCluster", "spec.enableInTreeAutoscaler", True, "enableInTreeAutoscaler"),
        ("RayCluster", "spec.workerGroupSpecs.0.maxReplica", 4, "maxReplica"),
        ("RayCluster", "spec.workerGroupSpecs.0.minReplicas", "0", "minReplicas"),
        ("RayCluster", "spec.workerGroupSpecs.0.groupName", GONE, "groupName"),
        ("RayCluster", "spec.workerGroupSpecs.0.template", GONE, "template"),
        ("RayCluster", "spec.workerGroupSpecs.1.labels", ["spot"], "labels"),
        ("RayCluster", "spec.headGroupSpec.rayStartParams.num-cpus", 0, "num-cpus"),
        ("RayCluster", "spec.rayVersion", 2.6, "rayVersion"),
        ("RayCluster", "spec.suspended", True, "suspended"),
        ("RayJob", f"{JOB}.{HEAD}.{CONTAINER}.securityContext.readOnlyRoot", True, "readOnlyRoot"),
        ("RayJob", f"{JOB}.{GPU}.{CONTAINER}.env.0.valueform", {}, "valueform"),
        ("RayJob", f"{JOB}.headGroupSpec", GONE, "headGroupSpec"),
        ("RayJob", f"{JOB}.workerGroupSpecs", {}, "workerGroupSpecs"),
        ("RayJob", "spec.backoffLimit", "three", "backoffLimit"),
        ("RayJob", "spec.backofLimit", 3, "backofLimit"),
        ("RayJob", "spec.entrypoint", ["perennial", "run"], "entrypoint"),
        ("RayJob", "spec.shutdownAfterJobFinish", True, "shutdownAfterJobFinish"),
        ("RayJob", "spec.suspend", "true", "suspend"),
        ("RayJob", "spec.submitterPodTemplate.spec.containers.0.name", GONE, "name"),
        ("RayJob", "spec.submitterPodTemplate.spec.containers", GONE, "containers"),
        ("CronJob", "spec.concurencyPolicy", "Forbid", "concurencyPolicy"),
        ("CronJob", "spec.schedule", GONE, "schedule"),
        ("CronJob", "spec.jobTemplate.spec.backofLimit", 3, "backofLimit"),
        ("CronJob", f"{CRON_POD}.containers.0.commands", ["x"], "commands"),
        ("CronJob", f"{CRON_POD}.containers.0.env.2.valueFrom.fieldref", {}, "fieldref"),
        ("Deployment", "spec.template.spec.containers.0.livenessProbe.httpGet.pth", "/", "pth"),
        ("Deployment", "spec.template.spec.containers.0.readynessProbe", {}, "readynessProbe"),
        ("Deployment", "spec.template.spec.containers.0.ports.0.containerPort", "5000", "type"),
        ("Deployment", "spec.selector", GONE, "selector"),
        ("Service", "spec.ports.0.targetport", 5000, "targetport"),
        ("Service", "spec.ports.0.port", "http", "type"),
        ("ServiceAccount", "automountToken", False, "automountToken"),
        ("Role", "rules.0.resource", ["rayjobs"], "resource"),
        ("Role", "rules.0.verbs", "get", "verbs"),
        ("RoleBinding", "roleRef.kind", GONE, "kind"),
        ("RoleBinding", "subject", [], "subject"),
        ("NetworkPolicy", "spec.ingress.0.from.0.podselector", {}, "podselector"),
        ("NetworkPolicy", "spec.policyType", ["Ingress"], "policyType"),
        ("PodDisruptionBudget", "spec.selector.matchLabels", ["head"], "matchLabels"),
        ("PodDisruptionBudget", "spec.minAvailble", 1, "minAvailble"),
        ("ConfigMap", "data.run/yaml", {"name": "x"}, "type"),
    ],
)
def test_a_planted_mistake_does_not_fit(
    spot: list[Doc], kind: str, path: str, value: object, named: str
) -> None:
    doc = next(o for o in spot if o["kind"] == kind)
    assert any(named in error for error in schema_errors(plant(doc, path, value)))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("spec.jobtemplate", {}, "jobtemplate"),
        ("spec.schedule", GONE, "schedule"),
        ("spec.concurrencyPolicy", "Forbid", "concurrencyPolicy"),
        ("spec.jobTemplate.suspended", True, "suspended"),
        ("spec.jobTemplate.rayClusterSpec.headGroupSpec", GONE, "headGroupSpec"),
    ],
)
def test_a_mistake_planted_in_a_ray_cron_job_does_not_fit(
    path: str, value: object, named: str
) -> None:
    doc = find(overlay("ray-cron-job"), "RayCronJob", "perennial-run")
    assert any(named in error for error in schema_errors(plant(doc, path, value)))


@pytest.mark.parametrize(
    ("kind", "path", "value", "named"),
    [
        ("RayCluster", f"spec.{HEAD}.restartPolicy", "Always", "restartPolicy"),
        ("RayCluster", f"spec.{GPU}.restartPolicy", "OnFailure", "restartPolicy"),
        ("RayCluster", f"spec.{HEAD}.containers", [], "no container"),
        ("RayCluster", f"spec.{GPU}.containers", [], "gpu has no container"),
        ("RayCluster", f"spec.{HEAD}.containers.0.env.0.name", "RAY_enable_autoscaler_v2", "twice"),
        ("RayCluster", f"spec.{HEAD}.containers.0.env.0.name", "RAY_REDIS_ADDRESS", "REDIS"),
        ("RayCluster", f"spec.{HEAD}.containers.0.env.0.name", "REDIS_USERNAME", "redis user"),
        ("RayCluster", "spec.workerGroupSpecs.0.minReplicas", 9, "between 9 and 4"),
        ("RayCluster", "spec.workerGroupSpecs.0.minReplicas", -1, "between -1 and 4"),
        ("RayCluster", "spec.workerGroupSpecs.0.suspend", True, "cannot be suspended"),
        ("RayCluster", "spec.workerGroupSpecs.0.rayStartParams.labels", "a=b", "own field"),
        ("RayCluster", "spec.workerGroupSpecs.1.labels.market", "spot machines", "label market"),
        ("RayCluster", "spec.workerGroupSpecs.1.labels.a b", "spot", "label a b"),
        ("RayCluster", "spec.workerGroupSpecs.1.groupName", "data", "group names"),
        ("RayCluster", "spec.headGroupSpec.resources", {"CPU": "0"}, "resources stand"),
        ("RayCluster", "spec.autoscalerOptions.version", "v1", "needs autoscaler v2"),
        ("RayCluster", "spec.autoscalerOptions.idleTimeoutSeconds", -1, "below 0"),
        ("RayCluster", "spec.rayVersion", "2.47.0", "2.52"),
        ("RayCluster", "spec.networkPolicy", {"mode": "DenyAll"}, "feature gate"),
        ("RayCluster", "metadata.name", "Perennial_1", "Perennial_1"),
        ("RayCluster", "metadata.name", "p" * 54, "ppp"),
        ("RayJob", "spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished"),
        ("RayJob", "spec.shutdownAfterJobFinishes", False, "suspend needs"),
        ("RayJob", "spec.ttlSecondsAfterFinished", -1, "ttlSecondsAfterFinished -1"),
        ("RayJob", "spec.submissionMode", "SidecarMode", "submitterPodTemplate"),
        ("RayJob", "spec.clusterSelector", {"ray.io/cluster": "x"}, "suspend with"),
        ("RayJob", "spec.clusterSelector", {}, "names no cluster"),
        ("RayJob", "spec.deletionStrategy", {"deletionRules": []}, "deletionRules"),
        ("RayJob", "spec.activeDeadlineSeconds", 0, "activeDeadlineSeconds"),
        ("RayJob", "spec.preRunningDeadlineSeconds", -5, "preRunningDeadlineSeconds"),
        ("RayJob", "spec.backoffLimit", -1, "backoffLimit -1"),
        ("RayJob", "spec.rayClusterSpec", GONE, "neither"),
        ("RayJob", f"{JOB}.upgradeStrategy", {"type": "None"}, "upgradeStrategy"),
        ("RayJob", f"{JOB}.suspend", True, "waits for ever"),
        ("RayJob", f"{JOB}.{HEAD}.restartPolicy", "Always", "restartPolicy"),
        ("RayJob", "metadata.name", "perennial-" + "run" * 15, "perennial-run"),
    ],
)
def test_the_operator_would_refuse_a_planted_mistake(
    spot: list[Doc], kind: str, path: str, value: object, named: str
) -> None:
    doc = find(spot, kind, "perennial-run" if kind == "RayJob" else "perennial")
    assert any(named in error for error in operator_objections(plant(doc, path, value)))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("spec.schedule", "TZ=Europe/Paris 0 * * * *", "timeZone"),
        ("spec.schedule", "0 * * *", "schedule"),
        ("spec.timeZone", "Local", "timeZone"),
        ("metadata.name", "perennial-" + "ingest" * 5, "perennial-ingest"),
        ("spec.jobTemplate.rayClusterSpec.suspend", True, "waits for ever"),
    ],
)
def test_the_operator_would_refuse_a_mistake_in_a_ray_cron_job(
    path: str, value: object, named: str
) -> None:
    doc = find(overlay("ray-cron-job"), "RayCronJob", "perennial-run")
    assert any(named in error for error in operator_objections(plant(doc, path, value)))


def test_without_autoscaling_the_operator_wants_both_numbers(spot: list[Doc]) -> None:
    fixed = plant(find(spot, "RayCluster"), "spec.enableInTreeAutoscaling", False)
    assert operator_objections(fixed) == []
    (told,) = operator_objections(plant(fixed, "spec.workerGroupSpecs.0.maxReplicas", GONE))
    assert "both" in told


# Confined, bounded, probed


def test_every_container_is_confined_and_bounded(everything: list[Doc]) -> None:
    for where, container, pod in containers(everything):
        assert pod["securityContext"]["runAsNonRoot"] is True, where
        assert pod["securityContext"]["runAsUser"] in (999, 1000), where
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert pod["enableServiceLinks"] is False, where
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, where
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][bound].keys(), where
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {
            mount["mountPath"]: volumes[mount["name"]]
            for mount in container["volumeMounts"]
            if mount["name"] in volumes
        }
        assert mounts["/tmp"]["emptyDir"]["sizeLimit"], where
        if container["image"].rpartition(":")[0].endswith("perennial"):
            assert {"name": "HOME", "value": "/tmp"} in container["env"], where


def test_what_serves_is_probed(everything: list[Doc]) -> None:
    """Ray's containers get theirs from the operator."""
    served = [o for o in everything if o["kind"] in ("Deployment", "StatefulSet")]
    assert served
    for server in served:
        for container in server["spec"]["template"]["spec"]["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


def test_a_ray_container_asks_for_all_that_it_may_use(everything: list[Doc]) -> None:
    """Ray sizes a node by its container's limits, Kubernetes places it by its requests."""
    for where, container, _ in containers(everything):
        if where.rpartition("/")[2] in ("ray-head", "ray-worker"):
            assert container["resources"]["requests"] == container["resources"]["limits"], where


def test_only_heads_and_ticks_hold_a_token_for_the_kubernetes_api(everything: list[Doc]) -> None:
    for role, template in pods(everything).items():
        holds = template["spec"].get("automountServiceAccountToken", True)
        assert holds == role.endswith((" head", " tick")), role
        if not holds:
            account = template["spec"].get("serviceAccountName", "perennial")
            assert account == "perennial", role


def test_a_tick_may_get_and_create_rayjobs_and_nothing_else(spot: list[Doc]) -> None:
    (role,) = [o for o in spot if o["kind"] == "Role"]
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create"]}
    ]
    (binding,) = [o for o in spot if o["kind"] == "RoleBinding"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (subject,) = binding["subjects"]
    tick = pods(spot)["perennial-ingest tick"]["spec"]
    assert subject["name"] == tick["serviceAccountName"] == "perennial-schedule"
    assert "ClusterRole" not in {o["kind"] for o in spot}


def test_ray_asks_for_its_token(everything: list[Doc]) -> None:
    for spec in clusters(everything).values():
        assert spec["authOptions"] == {"mode": "token"}
    variables = {e["name"] for _, c, _ in containers(everything) for e in c.get("env", [])}
    assert "RAY_AUTH_MODE" not in variables, "the operator sets it"


def test_secrets_are_referenced_and_never_contained(everything: list[Doc]) -> None:
    assert "Secret" not in {o["kind"] for o in everything}
    text = yaml.dump([o for o in everything if o["kind"] != "ConfigMap"])
    referenced = set(re.findall(r"secret(?:Key)?Ref:(?:\n +key: \S+)?\n +name: (\S+)", text))
    assert referenced == {"perennial-store", "perennial-mlflow"}
    for name in referenced:
        assert f"create secret generic {name} " in GUIDE.read_text("utf-8")
    for where, container, _ in containers(everything):
        for variable in container.get("env", []):
            secret = re.search("KEY|SECRET|PASSWORD|_TOKEN|STORE_URI", variable["name"])
            assert not (secret and "value" in variable), where


# Names, labels, selectors


def test_everything_is_in_one_namespace(everything: list[Doc]) -> None:
    assert {o["metadata"].get("namespace") for o in everything} == {"perennial"}
    bindings = [o for o in everything if o["kind"] == "RoleBinding"]
    assert {s["namespace"] for b in bindings for s in b["subjects"]} <= {"perennial"}


def test_names_lead_to_what_is_there(everything: list[Doc]) -> None:
    maps = {o["metadata"]["name"]: o["data"] for o in everything if o["kind"] == "ConfigMap"}
    text = yaml.dump(everything)
    assert set(re.findall(r"configMap(?:Ref)?:\n +name: (\S+)", text)) == set(maps)
    accounts = {o["metadata"]["name"] for o in everything if o["kind"] == "ServiceAccount"}
    assert set(re.findall(r"serviceAccountName: (\S+)", text)) == accounts
    assert "run.yaml" in maps["perennial-run"]
    service = find(everything, "Service", "perennial-mlflow")
    assert matches(service["spec"], pods(everything)["perennial-mlflow"], "selector")
    host = f"perennial-mlflow:{service['spec']['ports'][0]['port']}"
    assert maps["perennial-settings"]["MLFLOW_TRACKING_URI"] == f"http://{host}"
    mlflow = pods(everything)["perennial-mlflow"]["spec"]["containers"][0]
    env = {e["name"]: e for e in mlflow["env"]}
    assert host in env["MLFLOW_SERVER_ALLOWED_HOSTS"]["value"].split(",")


def test_no_head_is_evicted_and_everything_else_may_be(everything: list[Doc]) -> None:
    (budget,) = [o["spec"] for o in everything if o["kind"] == "PodDisruptionBudget"]
    covered = {role for role, pod in pods(everything).items() if matches(budget, pod, "selector")}
    heads = {role for role in pods(everything) if role.endswith(" head")}
    assert covered == heads
    assert budget["minAvailable"] > len(heads)
    for head in heads:
        annotations = pods(everything)[head]["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


def test_ray_and_mlflow_hear_only_who_they_must(everything: list[Doc]) -> None:
    heard: dict[str, set[tuple[str, int | None]]] = {}
    there = pods(everything)
    for policy in (o["spec"] for o in everything if o["kind"] == "NetworkPolicy"):
        for target in (r for r, p in there.items() if matches(policy, p)):
            assert target not in heard, "two policies add up"
            heard[target] = {
                (role, rule.get("ports", [{"port": None}])[0]["port"])
                for rule in policy["ingress"]
                for peer in rule["from"]
                for role, pod in there.items()
                if matches(peer, pod)
            }
    ray = {role for role, pod in there.items() if "ray.io/cluster" in pod["metadata"]["labels"]}
    nodes: set[tuple[str, int | None]] = {(role, None) for role in ray}
    submitters = {(role, 8265) for role in there if role.endswith(" submitter")}
    expected = {role: nodes | submitters for role in ray}
    expected["perennial-mlflow"] = {(role, 5000) for role in ray}
    if "perennial-postgres" in there:
        expected["perennial-postgres"] = {("perennial-mlflow", 5432)}
        expected["perennial-s3"] = {(role, 8333) for role in (*ray, "perennial-mlflow")}
    assert heard == expected


def test_ray_is_reached_from_elsewhere_by_the_operator_only(spot: list[Doc]) -> None:
    policy = find(spot, "NetworkPolicy", "perennial-ray")["spec"]
    elsewhere = [
        (peer, rule["ports"])
        for rule in policy["ingress"]
        for peer in rule["from"]
        if "namespaceSelector" in peer
    ]
    ((peer, ports),) = elsewhere
    assert peer["podSelector"] == {
        "matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}
    }
    assert ports == [{"protocol": "TCP", "port": 8265}]
