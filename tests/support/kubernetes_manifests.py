"""The Kubernetes manifests as a cluster would see them: rendered, judged, and read out.

No cluster is reached: kubectl renders, KubeRay's CRDs (the folder that PERENNIAL_KUBERAY_CRDS
names) and the Kubernetes schemas judge, and what KubeRay 1.7's operator checks in Go and CEL, which
no schema holds, is written out below.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
GUIDE = ROOT / "docs/guide/kubernetes.md"
AWS = "overlays/aws-spot/machines"
ASSEMBLED = {
    "scheduled": (AWS, "components/mode-schedule"),
    "kueue": (AWS, "components/mode-schedule", "components/kueue"),
    "interactive": (AWS, "components/interactive", "components/mode-watch"),
}
"""overlays that people may write, as components in order"""
KUBERNETES = "1.33"
GONE = object()

Doc = dict[str, Any]


@functools.cache
def render(folder: Path) -> list[Doc]:
    """What `kubectl apply --kustomize` would send; not to be changed, as others read it too."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, and it is what renders the manifests")
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def overlay(name: str) -> list[Doc]:
    """A rendered overlay of the project."""
    return render(K8S / "overlays" / name)


def write_overlay(
    folder: Path, *components: str, base: bool = True, resources: Sequence[str] = (), **fields: Any
) -> Path:
    """An overlay like those that people write, in a folder of its own.

    Args:
        folder: where; made here.
        components: folders below k8s/, in the order of the list.
        base: with what a namespace needs once.
        resources: more folders or files below k8s/.
        fields: more of the kustomization, such as nameSuffix.
    """
    folder.mkdir(parents=True)
    up = os.path.relpath(K8S.resolve(), folder.resolve())
    told = {
        "namespace": "perennial",
        "resources": [f"{up}/{name}" for name in (*(["base"] if base else []), "run", *resources)],
        "components": [f"{up}/{name}" for name in components],
        "images": [{"name": "perennial", "newName": "r.example/perennial", "newTag": "0.2.0-cuda"}],
        **fields,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(told))
    return folder


@functools.cache
def assembled(*components: str) -> list[Doc]:
    """What an overlay of these components renders to."""
    with tempfile.TemporaryDirectory() as folder:
        return render(write_overlay(Path(folder) / "overlay", *components))


def find(objects: list[Doc], kind: str, name: str = "") -> Doc:
    """The one object of that kind; `name` where there are several."""
    (found,) = (o for o in objects if o["kind"] == kind and name in ("", o["metadata"]["name"]))
    return found


def plant(doc: Doc, path: str, value: object) -> Doc:
    """A copy of `doc` with one field set, or taken away (GONE). `/` is a dot in a key."""
    copied = copy.deepcopy(doc)
    place: Any = copied
    keys = [key.replace("/", ".") for key in path.split(".")]
    *way, last = (int(key) if key.isdigit() else key for key in keys)
    for key in way:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return copied


# Schemas


def _strict(schema: Doc) -> Doc:
    """A CRD's OpenAPI schema as JSON Schema that refuses what an API server would drop."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = dict(schema)
    if "properties" in schema:
        result["properties"] = {name: _strict(s) for name, s in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            result[inner] = _strict(schema[inner])
    return result


_CRD_FOLDERS = {
    "ray.io": "PERENNIAL_KUBERAY_CRDS",
    "monitoring.coreos.com": "PERENNIAL_PROMETHEUS_CRDS",
}


def crd_folder(group: str = "ray.io") -> Path:
    """The folder of an operator's CRDs.

    Skips the test without one, so call it in the test's thread.
    """
    variable = _CRD_FOLDERS[group]
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} does not name a folder with the CRDs of {group}")
    return Path(folder)


@functools.cache
def _crd_schema(group: str, kind: str) -> Draft202012Validator:
    text = (crd_folder(group) / f"{group}_{kind.lower()}s.yaml").read_bytes()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (v1,) = (v for v in versions if v["name"] == "v1")
    schema = v1["schema"]["openAPIV3Schema"]
    return Draft202012Validator(
        _strict(schema) | {"$schema": Draft202012Validator.META_SCHEMA["$id"]}
    )


def is_ray(doc: Doc) -> bool:
    return bool(doc["apiVersion"] == "ray.io/v1")


def schema_errors(doc: Doc) -> list[str]:
    """Where an object does not fit its schema, strictly: unknown fields are errors."""
    group = doc["apiVersion"].partition("/")[0]
    if group in _CRD_FOLDERS:
        found = _crd_schema(group, doc["kind"]).iter_errors(doc)
        return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in found]
    try:
        kubernetes_validate.validate(doc, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


# The operator's own checks

_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def _group_objections(name: str, group: Doc) -> Iterator[str]:
    params = group.get("rayStartParams", {})
    if not group["template"]["spec"].get("containers"):
        yield f"{name} has no container"
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(params):
        yield "resources stand in rayStartParams and in the group"
    if "labels" in params:
        yield "labels belong in the group's own field"
    for key, value in group.get("labels", {}).items():
        if not _LABEL_NAME.fullmatch(key.rpartition("/")[2]) or not _LABEL_VALUE.fullmatch(value):
            yield f"label {key}={value}"


def cluster_objections(spec: Doc) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    scaling, options = spec.get("enableInTreeAutoscaling", False), spec.get("autoscalerOptions", {})
    containers = head["template"]["spec"].get("containers") or [{}]
    head_env = {e["name"]: e.get("value") for e in containers[0].get("env", [])}
    names = [group["groupName"] for group in workers]
    if len(names) != len(set(names)):
        yield f"group names {names}"
    for group in workers:
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        if not scaling and None in (low, high):
            yield "without autoscaling a group needs both minReplicas and maxReplicas"
        if not 0 <= (low or 0) <= (2**31 if high is None else high):
            yield f"replicas between {low} and {high}"
        if scaling and group.get("suspend"):
            yield "a worker group cannot be suspended under autoscaling"
        if group.get("idleTimeoutSeconds", 0) < 0:
            yield "idleTimeoutSeconds below 0"
        if "idleTimeoutSeconds" in group and options.get("version", "v2") != "v2":
            yield "a group's idleTimeoutSeconds needs autoscaler v2"
    for name, group in [("head", head), *((group["groupName"], group) for group in workers)]:
        yield from _group_objections(name, group)
        restart = group["template"]["spec"].get("restartPolicy", "Never")
        if scaling and options.get("version", "v2") == "v2" and restart != "Never":
            yield f"restartPolicy {restart} under autoscaler v2"
    variable = "RAY_enable_autoscaler_v2"
    if scaling and "version" in options and variable in head_env:
        yield "the autoscaler's version is set twice"
    if not scaling and head_env.get(variable) in ("1", "true"):
        yield f"{variable} without autoscaling"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "idleTimeoutSeconds below 0"
    if "RAY_REDIS_ADDRESS" in head_env and "gcsFaultToleranceOptions" not in spec:
        yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
    if "redis-username" in head.get("rayStartParams", {}) or "REDIS_USERNAME" in head_env:
        yield "the redis user belongs in gcsFaultToleranceOptions"
    if spec.get("authOptions", {}).get("mode") == "token":
        version = tuple(int(part) for part in spec.get("rayVersion", "0").split("."))
        if version < (2, 52):
            yield "token authentication needs rayVersion 2.52 or later"
    for gated in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if gated in spec:
            yield f"{gated} needs a feature gate that is off by default"


def job_objections(spec: Doc) -> Iterator[str]:
    mode, selector = spec.get("submissionMode", "K8sJobMode"), spec.get("clusterSelector")
    stops, backoff = spec.get("shutdownAfterJobFinishes", False), spec.get("backoffLimit", 0)
    template = spec.get("rayClusterSpec")
    if template is None and not selector:
        yield "neither rayClusterSpec nor clusterSelector"
    if selector is not None and not selector.get("ray.io/cluster"):
        yield "clusterSelector names no cluster"
    if spec.get("suspend") and not stops:
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("suspend") and selector:
        yield "suspend with clusterSelector"
    if backoff < 0 or (backoff and (mode == "InteractiveMode" or selector)):
        yield f"backoffLimit {backoff} in {mode}"
    ttl = spec.get("ttlSecondsAfterFinished", 0)
    if ttl < 0:
        yield f"ttlSecondsAfterFinished {ttl}"
    if ttl > 0 and not stops:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if "deletionRules" in spec.get("deletionStrategy", {}) and (
        stops or "ttlSecondsAfterFinished" in spec
    ):
        yield "deletionRules exclude shutdownAfterJobFinishes and ttlSecondsAfterFinished"
    if mode == "SidecarMode":
        for refused in {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec):
            yield f"SidecarMode takes no {refused}"
        if template and template["headGroupSpec"]["template"]["spec"].get("restartPolicy") not in (
            None,
            "Never",
        ):
            yield "SidecarMode needs a head that is not restarted"
    for deadline in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(deadline, 1) <= 0:
            yield f"{deadline} is not positive"
    if template:
        if "upgradeStrategy" in template:
            yield "a RayJob's cluster takes no upgradeStrategy"
        if template.get("suspend"):
            yield "a RayJob whose cluster is suspended waits for ever"
        yield from cluster_objections(template)


def cron_objections(spec: Doc) -> Iterator[str]:
    schedule = spec.get("schedule", "")
    if "TZ=" in schedule:
        yield "the time zone belongs in timeZone"
    elif len(schedule.split()) != 5 and not schedule.startswith("@"):
        yield f"schedule {schedule}"
    if spec.get("timeZone", "Etc/UTC") == "Local":
        yield "timeZone Local"
    yield from job_objections(spec["jobTemplate"])


def operator_objections(doc: Doc) -> list[str]:
    """Why KubeRay's operator would refuse one of its objects."""
    kind, name = doc["kind"], doc["metadata"]["name"]
    # A RayCronJob's jobs are named after it and a time, and at most 36 characters are allowed.
    longest = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 36}[kind]
    found = [] if re.fullmatch(rf"[a-z][a-z0-9-]{{0,{longest - 1}}}(?<!-)", name) else [name]
    rules = {
        "RayCluster": cluster_objections,
        "RayJob": job_objections,
        "RayCronJob": cron_objections,
    }
    return [*found, *rules[kind](doc["spec"])]


# What pods there would be


def jobs(objects: list[Doc]) -> dict[str, Doc]:
    """The spec of every RayJob that would start, by name: copies of templates, and a cron's."""
    found = {}
    for o in objects:
        if o["kind"] == "RayJob":
            found[o["metadata"]["name"]] = o["spec"] | {"suspend": False}
        elif o["kind"] == "RayCronJob":
            found[o["metadata"]["name"]] = o["spec"]["jobTemplate"]
    return found


def clusters(objects: list[Doc]) -> dict[str, Doc]:
    """The spec of every RayCluster that there would be, by the name of what makes it."""
    found = {name: job["rayClusterSpec"] for name, job in jobs(objects).items()}
    there = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "RayCluster"}
    return found | {f"{name} cluster": spec for name, spec in there.items()}


def pods(objects: list[Doc]) -> dict[str, Doc]:
    """Every pod template by role, with the labels and the autoscaler that the operator adds."""
    found: dict[str, Doc] = {}
    for o in objects:
        name, kind, spec = o["metadata"]["name"], o["kind"], o.get("spec", {})
        if kind in ("Deployment", "StatefulSet"):
            found[name] = spec["template"]
        elif kind == "CronJob":
            found[f"{name} tick"] = spec["jobTemplate"]["spec"]["template"]
        elif kind == "RayCluster":
            found |= _nodes(f"{name} cluster", name, spec)
        elif kind == "RayJob":
            found[f"{name} submitter"] = spec["submitterPodTemplate"]
            found |= _nodes(name, f"{name}-x7k2p", spec["rayClusterSpec"])
        elif kind == "RayCronJob":
            job = spec["jobTemplate"]
            found[f"{name} cron submitter"] = job["submitterPodTemplate"]
            found |= _nodes(f"{name} cron", f"{name}-29400000-x7k2p", job["rayClusterSpec"])
    return found


def _nodes(name: str, cluster: str, spec: Doc) -> dict[str, Doc]:
    groups = [("head", "head", spec["headGroupSpec"])]
    groups += [(g["groupName"], "worker", g) for g in spec["workerGroupSpecs"]]
    found = {}
    for role, kind, group in groups:
        template = copy.deepcopy(group["template"])
        template["metadata"]["labels"] |= {
            "ray.io/is-ray-node": "yes",
            "ray.io/node-type": kind,
            "ray.io/cluster": cluster,
        }
        found[f"{name} {role}"] = template
    scaler = {"name": "autoscaler", "image": "", **spec["autoscalerOptions"]}
    found[f"{name} head"]["spec"]["containers"].append(scaler)
    return found


def containers(objects: list[Doc]) -> Iterator[tuple[str, Doc, Doc]]:
    """Role and name, container, and pod of every container."""
    for role, template in pods(objects).items():
        for container in template["spec"]["containers"]:
            yield f"{role}/{container['name']}", container, template["spec"]


def matches(spec: Doc, pod: Doc, field: str = "podSelector") -> bool:
    """Whether a selector chooses a pod."""
    selector, labels = spec[field], pod["metadata"]["labels"]
    assert "matchExpressions" not in selector
    return bool(selector.get("matchLabels", selector).items() <= labels.items())


def environment(objects: list[Doc], container: Doc, secrets: dict[str, Doc]) -> dict[str, str]:
    """The variables that a container would see; `secrets` by name, as the guide has them made."""
    maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        place = source.get("configMapRef") or source["secretRef"]
        there = maps if "configMapRef" in source else secrets
        if place["name"] in there or not place.get("optional"):
            found |= there[place["name"]]
    for variable in container.get("env", []):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        elif "fieldRef" in variable["valueFrom"]:
            if variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace":
                found[variable["name"]] = objects[0]["metadata"]["namespace"]
        else:
            ((kind, key),) = variable["valueFrom"].items()
            there = {"secretKeyRef": secrets, "configMapKeyRef": maps}[kind]
            found[variable["name"]] = there[key["name"]][key["key"]]
    named = re.compile(r"\$\((\w+)\)")  # variables that are named in others
    return {
        name: named.sub(lambda match: found.get(match[1], match[0]), value)
        for name, value in found.items()
    }
