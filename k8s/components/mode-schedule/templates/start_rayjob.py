"""Start a copy of a suspended RayJob and wait for its end; exit 0 when it succeeded.

    TEMPLATE=perennial-ingest python start_rayjob.py

The copy is named after this pod's Job (JOB_NAME) and belongs to it (JOB_UID), so that it is
removed with it. Run again, it waits for the copy that is there. LABELS and ANNOTATIONS, JSON
objects, are added to the copy: a queue is for what runs, not for the template. It needs the rights
to get and to create RayJobs, and nothing but Python.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
SERVER = os.environ.get("KUBERNETES_API", "https://kubernetes.default.svc")
LOOK_EVERY_SECONDS = float(os.environ.get("LOOK_EVERY_SECONDS", "10"))
MISSED_LOOKS = 30


def ask(name: str = "", document: dict[str, Any] | None = None) -> dict[str, Any]:
    """Send a GET for one RayJob of this namespace, or a POST of a new one."""
    namespace = (ACCOUNT / "namespace").read_text("utf-8").strip()
    url = f"{SERVER}/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}".rstrip("/")
    headers = {
        # Read each time: the kubelet renews it.
        "Authorization": f"Bearer {(ACCOUNT / 'token').read_text('utf-8').strip()}",
        "Content-Type": "application/json",
    }
    body = None if document is None else json.dumps(document).encode()
    authority = ACCOUNT / "ca.crt"
    context = ssl.create_default_context(cafile=str(authority)) if authority.exists() else None
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:
        response: dict[str, Any] = json.load(answer)
    return response


def copy_of(template: dict[str, Any], name: str, uid: str) -> dict[str, Any]:
    """Return a RayJob like the suspended one, which is deleted together with the Job `name`."""
    labels = template["metadata"].get("labels", {}) | json.loads(os.environ.get("LABELS", "{}"))
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {
            "name": named_after(name),
            "labels": labels,
            "annotations": json.loads(os.environ.get("ANNOTATIONS", "{}")),
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
            ],
        },
        "spec": template["spec"] | {"suspend": False},
    }


def named_after(job: str) -> str:
    """Return the name of a Job's RayJob, at most 47 characters.

    It is not the Job's own: the operator gives the RayJob's submitter, a Job too, the RayJob's
    name, and takes a Job that has it for the submitter.
    """
    return f"{job[-43:].lstrip('-.0123456789')}-ray"


def main() -> int:
    job, template = os.environ["JOB_NAME"], ask(os.environ["TEMPLATE"])
    name = named_after(job)
    try:
        ask(document=copy_of(template, job, os.environ["JOB_UID"]))
        print(f"started RayJob {name}", flush=True)
    except urllib.error.HTTPError as refused:
        if refused.code != 409:  # it exists: this pod's predecessor created it
            print(f"RayJob {name} was refused: {refused.read().decode()}", flush=True)
            return 1
        print(f"RayJob {name} is there", flush=True)
    return wait(name)


def wait(name: str) -> int:
    """Return 0 when the RayJob has succeeded, 1 when it failed or cannot be read for long."""
    missed = 0
    while missed < MISSED_LOOKS:
        try:
            status = ask(name).get("status", {})
            missed = 0
        except OSError as lost:  # HTTP errors too
            missed += 1
            print(f"cannot see RayJob {name} ({lost}); looking again", flush=True)
            status = {}
        if status.get("jobDeploymentStatus") in ("Complete", "Failed", "ValidationFailed"):
            result = status.get("jobStatus") or status["jobDeploymentStatus"]
            print(f"RayJob {name}: {result} {status.get('message', '')}".rstrip(), flush=True)
            return 0 if result == "SUCCEEDED" else 1
        time.sleep(LOOK_EVERY_SECONDS)
    return 1


if __name__ == "__main__":
    sys.exit(main())
