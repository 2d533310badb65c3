"""The Kubernetes manifests, rendered and held against the schemas and rules a cluster would apply.

No cluster is reached: kubectl renders, KubeRay's CRDs (the folder that PERENNIAL_KUBERAY_CRDS
names) and the Kubernetes schemas judge, and the operator's own checks are written out below.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
BASE = ROOT / "k8s" / "base"
GUIDE = ROOT / "docs" / "kubernetes.md"
KUBERNETES = "1.33"

Doc = dict[str, Any]


def render(folder: Path) -> list[Doc]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, and it is what renders the manifests")
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


@pytest.fixture(scope="module")
def objects() -> list[Doc]:
    return render(BASE)


@pytest.fixture(scope="module", params=["base", "the guide's overlay"])
def everything(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Doc]:
    """The base, and what the guide tells people to make of it."""
    if request.param == "base":
        return render(BASE)
    folder = tmp_path_factory.mktemp("overlay").resolve()
    guide = GUIDE.read_text("utf-8")
    (overlay,) = re.findall(r"```yaml\n( +# kustomization.yaml\n.*?)```", guide, re.DOTALL)
    text = textwrap.dedent(overlay).replace("../../base", os.path.relpath(BASE, folder))
    (folder / "kustomization.yaml").write_text(text, "utf-8")
    shutil.copy(BASE / "run.yaml", folder)
    return render(folder)


def find(objects: list[Doc], kind: str, name: str = "perennial") -> Doc:
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["name"].startswith(name))
    return found


# Schemas


def strict(schema: Doc) -> Doc:
    """A CRD's OpenAPI schema as JSON Schema that refuses what an API server would drop."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = dict(schema)
    if "properties" in schema:
        result["properties"] = {name: strict(s) for name, s in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            result[inner] = strict(schema[inner])
    return result


@functools.cache
def ray_schema(kind: str) -> Draft202012Validator:
    folder = os.environ.get("PERENNIAL_KUBERAY_CRDS")
    if not folder:
        pytest.skip("PERENNIAL_KUBERAY_CRDS does not name a folder with KubeRay's CRDs")
    text = (Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_bytes()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (v1,) = (v for v in versions if v["name"] == "v1")
    schema = v1["schema"]["openAPIV3Schema"]
    return Draft202012Validator(
        strict(schema) | {"$schema": Draft202012Validator.META_SCHEMA["$id"]}
    )


def schema_errors(doc: Doc) -> list[str]:
    if is_ray(doc):
        found = ray_schema(doc["kind"]).iter_errors(doc)
        return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in found]
    try:
        kubernetes_validate.validate(doc, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


# What KubeRay 1.7's operator checks in Go and CEL, which no schema holds


def cluster_objections(spec: Doc) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    scaling, options = spec.get("enableInTreeAutoscaling", False), spec.get("autoscalerOptions", {})
    head_env = {e["name"] for e in head["template"]["spec"]["containers"][0].get("env", [])}
    for group in workers:
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        if not scaling and None in (low, high):
            yield "without autoscaling a group needs both minReplicas and maxReplicas"
        if not 0 <= (low or 0) <= (0 if high is None else high):
            yield f"replicas between {low} and {high}"
        if scaling and group.get("suspend"):
            yield "a worker group cannot be suspended under autoscaling"
    for group in [head, *workers]:
        params = group.get("rayStartParams", {})
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(params):
            yield "resources stand in rayStartParams and in the group"
        if "labels" in params:
            yield "labels belong in the group's own field"
        restart = group["template"]["spec"].get("restartPolicy", "Never")
        if scaling and options.get("version", "v2") == "v2" and restart != "Never":
            yield f"restartPolicy {restart} under autoscaler v2"
    if "version" in options and "RAY_enable_autoscaler_v2" in head_env:
        yield "the autoscaler's version is set twice"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "idleTimeoutSeconds below 0"
    if spec.get("authOptions", {}).get("mode") == "token":
        version = tuple(int(part) for part in spec.get("rayVersion", "0").split("."))
        if version < (2, 52):
            yield "token authentication needs rayVersion 2.52 or later"
    for gated in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if gated in spec:
            yield f"{gated} needs a feature gate that is off by default"


def job_objections(spec: Doc) -> Iterator[str]:
    mode, template = spec.get("submissionMode", "K8sJobMode"), spec["rayClusterSpec"]
    stops, backoff = spec.get("shutdownAfterJobFinishes", False), spec.get("backoffLimit", 0)
    if spec.get("suspend") and not stops:
        yield "suspend needs shutdownAfterJobFinishes"
    if backoff < 0 or (backoff and (mode == "InteractiveMode" or "clusterSelector" in spec)):
        yield f"backoffLimit {backoff} in {mode}"
    if spec.get("ttlSecondsAfterFinished", 0) != 0 and not stops:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if "deletionRules" in spec.get("deletionStrategy", {}) and (
        stops or "ttlSecondsAfterFinished" in spec
    ):
        yield "deletionRules exclude shutdownAfterJobFinishes and ttlSecondsAfterFinished"
    if mode == "SidecarMode":
        for refused in {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec):
            yield f"SidecarMode takes no {refused}"
        if template["headGroupSpec"]["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "SidecarMode needs a head that is not restarted"
    for deadline in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(deadline, 1) <= 0:
            yield f"{deadline} is not positive"
    if "upgradeStrategy" in template:
        yield "a RayJob's cluster takes no upgradeStrategy"
    yield from cluster_objections(template)


def operator_objections(doc: Doc) -> list[str]:
    longest = {"RayCluster": 53, "RayJob": 47}[doc["kind"]]
    name = doc["metadata"]["name"]
    found = [] if re.fullmatch(rf"[a-z][a-z0-9-]{{0,{longest - 1}}}(?<!-)", name) else [name]
    rules = job_objections if doc["kind"] == "RayJob" else cluster_objections
    return [*found, *rules(doc["spec"])]


def is_ray(doc: Doc) -> bool:
    return bool(doc["apiVersion"] == "ray.io/v1")


def test_every_core_object_fits_the_kubernetes_schemas(everything: list[Doc]) -> None:
    core = [o for o in everything if not is_ray(o)]
    assert [schema_errors(o) for o in core] == [[] for _ in core]


def test_every_ray_object_fits_kuberays_crds(everything: list[Doc]) -> None:
    ray = [o for o in everything if is_ray(o)]
    assert {o["kind"]: schema_errors(o) for o in ray} == {"RayCluster": [], "RayJob": []}


def test_the_operator_would_take_every_ray_object(everything: list[Doc]) -> None:
    ray = [o for o in everything if is_ray(o)]
    assert {o["kind"]: operator_objections(o) for o in ray} == {"RayCluster": [], "RayJob": []}


GONE = object()
HEAD = "headGroupSpec.template.spec"
WORKER = "workerGroupSpecs.0.template.spec.containers.0"


def plant(doc: Doc, path: str, value: object) -> Doc:
    """A copy of `doc` with one field set, or taken away."""
    copied = copy.deepcopy(doc)
    place: Any = copied
    *way, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in way:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return copied


@pytest.mark.parametrize(
    ("kind", "path", "value", "named"),
    [
        ("RayCluster", f"spec.{WORKER}.volumeMounts.0.mountpath", "/x", "mountpath"),
        ("RayCluster", "spec.autoscalerOptions.version", "v3", "v3"),
        ("RayCluster", "spec.authOptions.mode", "tokens", "tokens"),
        ("RayCluster", "spec.workerGroupSpecs.0.maxReplica", 4, "maxReplica"),
        ("RayCluster", "spec.headGroupSpec.rayStartParams.num-cpus", 0, "num-cpus"),
        (
            "RayJob",
            f"spec.rayClusterSpec.{HEAD}.containers.0.securityContext.readOnlyRootFileSystem",
            True,
            "readOnlyRootFileSystem",
        ),
        ("RayJob", "spec.backoffLimit", "three", "backoffLimit"),
        ("RayJob", "spec.rayClusterSpec.headGroupSpec", GONE, "headGroupSpec"),
        ("RayJob", "spec.submitterPodTemplate.spec.containers.0.name", GONE, "name"),
        ("CronJob", "spec.concurencyPolicy", "Forbid", "concurencyPolicy"),
        ("Deployment", "spec.template.spec.containers.0.livenessProbe.httpGet.pth", "/", "pth"),
        ("NetworkPolicy", "spec.ingress.0.from.0.podselector", {}, "podselector"),
        ("PodDisruptionBudget", "spec.selector.matchLabels", ["head"], "matchLabels"),
    ],
)
def test_a_planted_mistake_does_not_fit(
    objects: list[Doc], kind: str, path: str, value: object, named: str
) -> None:
    doc = next(o for o in objects if o["kind"] == kind)
    assert any(named in error for error in schema_errors(plant(doc, path, value)))


@pytest.mark.parametrize(
    ("kind", "path", "value", "named"),
    [
        ("RayCluster", f"spec.{HEAD}.restartPolicy", "Always", "restartPolicy"),
        ("RayCluster", f"spec.{HEAD}.containers.0.env.0.name", "RAY_enable_autoscaler_v2", "twice"),
        ("RayCluster", "spec.workerGroupSpecs.0.minReplicas", 9, "between 9 and 4"),
        ("RayCluster", "spec.rayVersion", "2.47.0", "2.52"),
        ("RayCluster", "spec.networkPolicy", {"mode": "DenyAll"}, "feature gate"),
        ("RayCluster", "metadata.name", "Perennial_1", "Perennial_1"),
        ("RayJob", "spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished"),
        ("RayJob", "spec.submissionMode", "SidecarMode", "submitterPodTemplate"),
        ("RayJob", "spec.submissionMode", "InteractiveMode", "backoffLimit"),
        ("RayJob", "spec.deletionStrategy", {"deletionRules": []}, "deletionRules"),
        ("RayJob", "spec.activeDeadlineSeconds", 0, "activeDeadlineSeconds"),
        ("RayJob", "spec.rayClusterSpec.upgradeStrategy", {"type": "None"}, "upgradeStrategy"),
    ],
)
def test_the_operator_would_refuse_a_planted_mistake(
    objects: list[Doc], kind: str, path: str, value: object, named: str
) -> None:
    doc = next(o for o in objects if o["kind"] == kind)
    assert any(named in error for error in operator_objections(plant(doc, path, value)))


# What the project asks of its own manifests


def pods(objects: list[Doc]) -> dict[str, Doc]:
    """Every pod template by role, with the labels that the operator adds."""
    cluster, job = find(objects, "RayCluster"), find(objects, "RayJob")
    cron = find(objects, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    found = {
        "mlflow": find(objects, "Deployment")["spec"]["template"],
        "watch submitter": cron,
        "run submitter": job["spec"]["submitterPodTemplate"],
    }
    for name, spec in (("perennial", cluster["spec"]), ("run-x", job["spec"]["rayClusterSpec"])):
        groups = [("head", spec["headGroupSpec"]), ("worker", spec["workerGroupSpecs"][0])]
        for role, group in groups:
            template = copy.deepcopy(group["template"])
            template["metadata"]["labels"] |= {
                "ray.io/is-ray-node": "yes",
                "ray.io/node-type": role,
                "ray.io/cluster": name,
            }
            found[f"{name} {role}"] = template
        options = spec["autoscalerOptions"]
        found[f"{name} head"]["spec"]["containers"].append({"name": "autoscaler", **options})
    return found


def containers(objects: list[Doc]) -> Iterator[tuple[str, Doc, Doc]]:
    for role, template in pods(objects).items():
        for container in template["spec"]["containers"]:
            yield f"{role}/{container['name']}", container, template["spec"]


def test_every_container_is_confined_and_bounded(objects: list[Doc]) -> None:
    for where, container, pod in containers(objects):
        assert pod["securityContext"]["runAsNonRoot"] is True, where
        assert pod["securityContext"]["runAsUser"] == 1000, where
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, where
        for bound in ("requests", "limits"):
            assert container["resources"][bound].keys() == {"cpu", "memory"}, where
        assert {"name": "HOME", "value": "/tmp"} in container["env"], where
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert "emptyDir" in mounts["/tmp"], where


def test_only_a_head_holds_a_token_for_the_kubernetes_api(objects: list[Doc]) -> None:
    holders = {
        role
        for role, template in pods(objects).items()
        if template["spec"].get("automountServiceAccountToken", True)
    }
    assert holders == {"perennial head", "run-x head"}


def test_ray_asks_for_its_token(objects: list[Doc]) -> None:
    cluster, job = find(objects, "RayCluster")["spec"], find(objects, "RayJob")["spec"]
    assert cluster["authOptions"] == job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    modes = {e["value"] for _, c, _ in containers(objects) for e in c["env"] if "MODE" in e["name"]}
    assert modes == {"token"}


def test_secrets_are_referenced_and_never_contained(objects: list[Doc]) -> None:
    assert "Secret" not in {o["kind"] for o in objects}
    text = yaml.dump([o for o in objects if o["kind"] != "ConfigMap"])
    referenced = set(re.findall(r"secret(?:Key)?Ref:(?:\n +key: \S+)?\n +name: (\S+)", text))
    # The operator makes the first one, named after the cluster; the guide creates the others.
    assert referenced == {"perennial", "perennial-store", "perennial-mlflow"}
    for name in referenced - {find(objects, "RayCluster")["metadata"]["name"]}:
        assert f"create secret generic {name} " in GUIDE.read_text("utf-8")
    for _, container, _ in containers(objects):
        for variable in container["env"]:
            secret = re.search("KEY|SECRET|PASSWORD|_TOKEN|STORE_URI", variable["name"])
            assert not (secret and "value" in variable), variable["name"]


def test_names_lead_to_what_is_there(everything: list[Doc]) -> None:
    maps = {o["metadata"]["name"]: o["data"] for o in everything if o["kind"] == "ConfigMap"}
    text = yaml.dump(everything)
    assert set(re.findall(r"configMap(?:Ref)?:\n +name: (\S+)", text)) == set(maps)
    assert "run.yaml" in maps["perennial-run"]
    service = find(everything, "Service")
    assert matches(service["spec"], pods(everything)["mlflow"], "selector")
    host = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert maps["perennial-settings"]["MLFLOW_TRACKING_URI"] == f"http://{host}"
    env = {e["name"]: e for e in pods(everything)["mlflow"]["spec"]["containers"][0]["env"]}
    assert host in env["MLFLOW_SERVER_ALLOWED_HOSTS"]["value"].split(",")
    cluster = find(everything, "RayCluster")["metadata"]["name"]
    submitter = pods(everything)["watch submitter"]["spec"]["containers"][0]
    assert f"--address=http://{cluster}-head-svc:8265" in submitter["command"]


def matches(spec: Doc, pod: Doc, field: str = "podSelector") -> bool:
    selector, labels = spec[field], pod["metadata"]["labels"]
    wanted = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
    others = selector.get("matchExpressions", [])
    assert all(rule["operator"] == "NotIn" for rule in others)
    return wanted.items() <= labels.items() and all(
        labels.get(rule["key"]) not in rule["values"] for rule in others
    )


def test_each_head_has_one_disruption_budget_and_nothing_else_has(objects: list[Doc]) -> None:
    budgets = [o["spec"] for o in objects if o["kind"] == "PodDisruptionBudget"]
    covered = {r: sum(matches(b, p, "selector") for b in budgets) for r, p in pods(objects).items()}
    assert {role: n for role, n in covered.items() if n} == {"perennial head": 1, "run-x head": 1}


def test_ray_and_mlflow_hear_only_who_they_must(objects: list[Doc]) -> None:
    heard: dict[str, set[tuple[str, int | None]]] = {}
    for policy in (o["spec"] for o in objects if o["kind"] == "NetworkPolicy"):
        for target in (r for r, p in pods(objects).items() if matches(policy, p)):
            heard[target] = {
                (role, rule.get("ports", [{"port": None}])[0]["port"])
                for rule in policy["ingress"]
                for peer in rule["from"]
                for role, pod in pods(objects).items()
                if matches(peer, pod)
            }
    ray = {"perennial head", "perennial worker", "run-x head", "run-x worker"}
    nodes: set[tuple[str, int | None]] = {(role, None) for role in ray}
    submitters = {("watch submitter", 8265), ("run submitter", 8265)}
    assert heard == {role: nodes | submitters for role in ray} | {
        "mlflow": {(role, 5000) for role in ray}
    }


def test_the_run_has_a_cluster_like_the_standing_one(everything: list[Doc]) -> None:
    job = find(everything, "RayJob")["spec"]["rayClusterSpec"]
    assert job == find(everything, "RayCluster")["spec"]
    assert job["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "replicas" not in job["workerGroupSpecs"][0]


def test_versions_agree_with_the_package(objects: list[Doc]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (ray,) = (d.split("==")[1] for d in project["dependencies"] if d.startswith("ray["))
    assert find(objects, "RayCluster")["spec"]["rayVersion"] == ray
    assert f"ray[default]=={ray}" in project["optional-dependencies"]["cluster"]
    images = {c["image"] for _, c, _ in containers(objects) if "image" in c}
    assert images == {f"perennial:{project['version']}"}


def test_the_commands_are_verbs_and_options_of_the_command_line(objects: list[Doc]) -> None:
    from perennial.cli.app import app

    submitter = pods(objects)["watch submitter"]["spec"]["containers"][0]
    run = shlex.split(find(objects, "RayJob")["spec"]["entrypoint"])
    watch = submitter["args"]
    assert run[:2] == ["perennial", "run"]
    assert watch[:2] == ["perennial", "watch"]
    verbs: Any = typer.main.get_command(app)
    for _, verb, *rest in (run, watch):
        options = {name for p in verbs.commands[verb].params for name in p.opts}
        assert rest[0] == "/etc/perennial/run.yaml"
        assert set(rest[1:]) <= options


def test_the_run_file_is_valid_and_fits_the_cluster(objects: list[Doc]) -> None:
    from perennial.spec import load_run

    run = load_run(BASE / "run.yaml")
    assert run.store.startswith("s3://")
    (group,) = find(objects, "RayCluster")["spec"]["workerGroupSpecs"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    wanted = run.training.workers.max * run.training.cpus_per_worker
    assert wanted < cpus * group["maxReplicas"], "nothing is left for Ray Data's readers"
