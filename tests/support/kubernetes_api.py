"""A stand-in for the Kubernetes API, for real kubectl: objects by path, and what was asked.

It creates, reads, lists, patches and deletes. A RayCluster's groups get the default of `replicas`
when they are stored, and its head is ready, as a Deployment is rolled out. It checks no schema, no
resourceVersion and no rights; lists are replaced whole by every kind of patch, which is right for
Ray's objects and for JSON merge patches, and coarse for strategic merge patches of built-in kinds.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.kubernetes_manifests import Doc

# What a cluster with KubeRay's operator and the Prometheus operator serves, as far as it is used.
_SERVED = {
    "v1": ["Namespace", "ConfigMap", "Secret", "Service", "ServiceAccount", "Pod"],
    "apps/v1": ["Deployment", "StatefulSet"],
    "batch/v1": ["CronJob", "Job"],
    "policy/v1": ["PodDisruptionBudget"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "rbac.authorization.k8s.io/v1": ["Role", "RoleBinding"],
    "ray.io/v1": ["RayCluster", "RayJob", "RayCronJob"],
    "monitoring.coreos.com/v1": ["PodMonitor", "PrometheusRule"],
}


_PROTOBUF = b"k8s\0"
"""how kubectl sends the objects that it creates from arguments"""


def _plural(kind: str) -> str:
    name = kind.lower()
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"


def _fields(message: bytes) -> dict[int, bytes]:
    """The fields of a protobuf message that hold bytes; of repeated ones the last."""
    found: dict[int, bytes] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        key = number()
        length = number()  # of bytes, or a number itself
        if key & 7 == 2:
            found[key >> 3] = message[at : at + length]
            at += length
    return found


def _named_in(body: bytes) -> Doc:
    """Kind and name of an object in Kubernetes' protobuf; its other fields are left out."""
    unknown = _fields(body.removeprefix(_PROTOBUF))
    told, metadata = _fields(unknown[1]), _fields(_fields(unknown[2])[1])
    return {
        "apiVersion": told[1].decode(),
        "kind": told[2].decode(),
        "metadata": {"name": metadata[1].decode(), "labels": {}},
    }


def merged(target: Doc, patch: Doc) -> Doc:
    """A JSON merge patch applied (RFC 7386)."""
    result = dict(target)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = value
    return result


def stored(document: Doc) -> Doc:
    """What there is of an object soon: a CRD's defaults, and what a guide's reader waits for."""
    document = copy.deepcopy(document)
    metadata = document["metadata"]
    metadata.setdefault("uid", f"uid-of-{metadata['name']}")
    metadata.update(resourceVersion="1", generation=1)
    if document["kind"] == "RayCluster":
        for group in document["spec"].get("workerGroupSpecs", []):
            group.setdefault("replicas", 0)
        ready = {"type": "HeadPodReady", "status": "True"}
        document.setdefault("status", {"conditions": [ready]})
    if document["kind"] == "Deployment":
        counts = ("replicas", "updatedReplicas", "availableReplicas")
        document["status"] = dict.fromkeys(counts, 1) | {"observedGeneration": 1}
    return document


class KubernetesApi:
    """Objects by path, and every change that was asked for, in order.

    objects: such as /apis/ray.io/v1/namespaces/perennial/rayclusters/perennial.
    changes: pairs of the method with the kind and name, and of what was sent; patches that change
        nothing are left out.
    """

    def __init__(self, folder: Path) -> None:
        self.objects: dict[str, Doc] = {}
        self.changes: list[tuple[str, Doc]] = []
        self._folder = folder
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*api.read(self.path))

            def do_POST(self) -> None:
                self._answer(*api.create(self.path.partition("?")[0], self._body()))

            def do_PATCH(self) -> None:
                self._answer(*api.change(self.path.partition("?")[0], self._body()))

            def do_DELETE(self) -> None:
                self._body()
                self._answer(*api.remove(self.path.partition("?")[0]))

            def _body(self) -> Doc:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if body.startswith(_PROTOBUF):
                    return _named_in(body)
                document: Doc = json.loads(body or b"{}")
                return document

            def _answer(self, code: int, document: Doc) -> None:
                body = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def find(self, kind: str, name: str, namespace: str = "perennial") -> Doc:
        """A live object, to be changed as others of a cluster change it."""
        return self.objects[self._path(kind, name, namespace)]

    def names(self, kind: str) -> list[str]:
        """The names of the live objects of a kind."""
        return sorted(o["metadata"]["name"] for o in self.objects.values() if o["kind"] == kind)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl against this server; return what it printed."""
        done = subprocess.run(
            ["kubectl", *arguments],
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def environment(self) -> dict[str, str]:
        """An environment in which `kubectl` is the real one, with this server as its cluster.

        It checks nothing with the server before it applies, as this one has no schemas.
        """
        real = shutil.which("kubectl")
        if real is None:
            pytest.skip("kubectl is not installed")
        programs = self._folder / "bin"
        if not programs.exists():
            programs.mkdir(parents=True)
            script = '#!/bin/sh\ncase " $* " in *" apply "*) set -- "$@" --validate=false;; esac\n'
            (programs / "kubectl").write_text(f'{script}exec {real} "$@"\n')
            (programs / "kubectl").chmod(0o755)
            there = {"server": f"http://127.0.0.1:{self.server.server_port}"}
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "here", "cluster": there}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                "users": [{"name": "me", "user": {}}],
                "current-context": "here",
            }
            (self._folder / "kubeconfig").write_text(json.dumps(config))
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        home = {"HOME": str(self._folder), "KUBECONFIG": str(self._folder / "kubeconfig")}
        return {**os.environ, **home, "PATH": path, "NO_PROXY": "127.0.0.1"}

    # What the server does

    def read(self, path: str) -> tuple[int, Doc]:
        path, _, query = path.partition("?")
        if path in self.objects:
            return 200, self.objects[path]
        if (found := _discovery(path)) is not None:
            return 200, found
        kind = next((k for v in _SERVED.values() for k in v if path.endswith(f"/{_plural(k)}")), "")
        if not kind:
            return _missing(path)
        items = [o for at, o in self.objects.items() if at.rpartition("/")[0] == path]
        for asked in query.split("&"):  # kubectl wait and rollout look for one name
            if asked.startswith("fieldSelector=metadata.name%3D"):
                name = asked.rpartition("%3D")[2]
                items = [o for o in items if o["metadata"]["name"] == name]
            if asked.startswith("labelSelector="):
                wanted = dict(w.split("%3D") for w in asked.partition("=")[2].split("%2C"))
                wanted = {k.replace("%2F", "/"): v for k, v in wanted.items()}
                items = [o for o in items if wanted.items() <= o["metadata"]["labels"].items()]
        version = next(v for v, kinds in _SERVED.items() if kind in kinds)
        return 200, {"kind": f"{kind}List", "apiVersion": version, "metadata": {}, "items": items}

    def create(self, path: str, document: Doc) -> tuple[int, Doc]:
        name = document["metadata"]["name"]
        if f"{path}/{name}" in self.objects:
            reason = f'{path} "{name}" already exists'
            failure = {"kind": "Status", "status": "Failure", "reason": "AlreadyExists"}
            return 409, failure | {"message": reason, "code": 409}
        self.changes.append((f"create {document['kind']} {name}", document))
        self.objects[f"{path}/{name}"] = stored(document)
        return 201, self.objects[f"{path}/{name}"]

    def change(self, path: str, patch: Doc) -> tuple[int, Doc]:
        if path not in self.objects:
            return _missing(path)
        before, after = self.objects[path], stored(merged(self.objects[path], patch))
        if after != before:
            self.changes.append((f"patch {before['kind']} {before['metadata']['name']}", patch))
            self.objects[path] = after
        return 200, after

    def remove(self, path: str) -> tuple[int, Doc]:
        if path not in self.objects:
            return _missing(path)
        gone = self.objects.pop(path)
        self.changes.append((f"delete {gone['kind']} {gone['metadata']['name']}", {}))
        return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def _path(self, kind: str, name: str, namespace: str) -> str:
        version = next(v for v, kinds in _SERVED.items() if kind in kinds)
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        return f"{root}/namespaces/{namespace}/{_plural(kind)}/{name}"


def _missing(path: str) -> tuple[int, Doc]:
    failure = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound"}
    return 404, failure | {"message": f"{path} not found", "code": 404}


def _discovery(path: str) -> Doc | None:
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for version in (v for v in _SERVED if "/" in v):
            group, _, number = version.partition("/")
            served = {"groupVersion": version, "version": number}
            groups.append({"name": group, "versions": [served], "preferredVersion": served})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version not in _SERVED:
        return None
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    resources = [
        {
            "name": _plural(kind),
            "singularName": kind.lower(),
            "namespaced": kind != "Namespace",
            "kind": kind,
            "verbs": verbs,
        }
        for kind in _SERVED[version]
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


@contextmanager
def kubernetes_api(folder: Path) -> Iterator[KubernetesApi]:
    """A running server; it ends with the block."""
    api = KubernetesApi(folder)
    thread = threading.Thread(target=api.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        api.server.shutdown()
        thread.join()
        api.server.server_close()
