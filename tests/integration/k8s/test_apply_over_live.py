"""Manifests applied by real kubectl over what people, the operator and the autoscaler have changed.

The API is a stand-in (`tests/support/kubernetes_api.py`).
"""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kubernetes_api import KubernetesApi, kubernetes_api
from tests.support.kubernetes_manifests import AWS, Doc, write_overlay

MODES = {"watch": "components/mode-watch", "schedule": "components/mode-schedule"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    with kubernetes_api(tmp_path / "api") as api:
        yield api


def live(api: KubernetesApi) -> Doc:
    """Every object without what each change renews."""
    found = {}
    for path, document in api.objects.items():
        document = copy.deepcopy(document)
        document["metadata"].get("annotations", {}).pop(
            "kubectl.kubernetes.io/last-applied-configuration", None
        )
        found[path] = document
    return found


def test_what_others_set_survives_an_apply_of_the_service(
    api: KubernetesApi, tmp_path: Path
) -> None:
    folder = write_overlay(tmp_path / "mine", AWS, MODES["watch"])
    api.kubectl("apply", "--kustomize", str(folder))
    cluster = api.find("RayCluster", "perennial")
    cluster["spec"]["suspend"] = True  # a person pauses it
    cluster["spec"]["workerGroupSpecs"][1]["replicas"] = 3  # the autoscaler
    cluster["status"] = {"state": "suspended"}  # the operator
    before, api.changes = live(api), []

    api.kubectl("apply", "--kustomize", str(folder))

    # A list is replaced whole, so the autoscaler's number goes back to the default, 0: by the rule
    # `workers_after_apply` of kuberay_rules no pod is deleted for it. Nothing else is sent.
    ((changed, patch),) = api.changes
    assert changed == "patch RayCluster perennial"
    assert set(patch["spec"]) == {"workerGroupSpecs"}
    after = live(api)
    path = next(p for p, o in after.items() if o["kind"] == "RayCluster")
    before[path]["spec"]["workerGroupSpecs"][1]["replicas"] = 0
    assert after == before
    assert after[path]["spec"]["suspend"] is True


def test_what_others_set_survives_an_apply_of_the_schedule(
    api: KubernetesApi, tmp_path: Path
) -> None:
    folder = write_overlay(tmp_path / "mine", AWS, MODES["schedule"], "components/kueue")
    api.kubectl("apply", "--kustomize", str(folder))
    api.find("CronJob", "perennial-ingest")["spec"]["suspend"] = True  # a person pauses it
    # A tick has created a RayJob, and Kueue has admitted it.
    copied = copy.deepcopy(api.find("RayJob", "perennial-run"))
    copied["metadata"] = {"name": "perennial-run-29400000-ray", "namespace": "perennial"}
    copied["spec"]["suspend"] = False
    running = "/apis/ray.io/v1/namespaces/perennial/rayjobs/perennial-run-29400000-ray"
    api.objects[running] = copied
    before, api.changes = live(api), []

    api.kubectl("apply", "--kustomize", str(folder))

    assert api.changes == []
    assert live(api) == before


@pytest.mark.long
def test_a_mode_that_was_left_is_deleted_by_its_label(api: KubernetesApi, tmp_path: Path) -> None:
    watch = write_overlay(tmp_path / "watch", AWS, MODES["watch"])
    schedule = write_overlay(tmp_path / "schedule", AWS, MODES["schedule"])
    api.kubectl("apply", "--kustomize", str(watch))
    shared = {p for p, o in api.objects.items() if "perennial/mode" not in str(o["metadata"])}

    kinds = "raycluster,rayjob,cronjob,configmap,serviceaccount,role,rolebinding"
    label = "perennial/mode=watch"
    api.kubectl("--namespace", "perennial", "delete", kinds, "--selector", label)
    assert set(api.objects) == shared
    api.kubectl("apply", "--kustomize", str(schedule))
    assert api.names("RayCluster") == []
    assert api.names("CronJob") == api.names("RayJob") == ["perennial-ingest", "perennial-run"]


@pytest.mark.long
@pytest.mark.parametrize("order", [("watch", "schedule"), ("schedule", "watch")])
def test_both_modes_at_once_do_not_build(tmp_path: Path, order: tuple[str, str]) -> None:
    folder = write_overlay(tmp_path / "mine", AWS, *(MODES[mode] for mode in order))
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "perennial~1mode" in done.stderr or "RayCluster" in done.stderr


@pytest.mark.long
def test_a_cluster_for_people_is_taken_before_the_mode_changes_its_head(tmp_path: Path) -> None:
    components = (AWS, MODES["watch"], "components/interactive")
    command = ["kubectl", "kustomize", str(write_overlay(tmp_path / "mine", *components))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "perennial~1mode" in done.stderr


@pytest.mark.long
def test_the_stand_in_shows_a_declared_switch_being_flipped(
    api: KubernetesApi, tmp_path: Path
) -> None:
    """The fault that the tests above exclude, made on purpose: they would see it."""
    folder = write_overlay(
        tmp_path / "mine",
        AWS,
        MODES["watch"],
        patches=[
            {
                "target": {"kind": "RayCluster"},
                "patch": json.dumps([{"op": "add", "path": "/spec/suspend", "value": False}]),
            }
        ],
    )
    api.kubectl("apply", "--kustomize", str(folder))
    api.find("RayCluster", "perennial")["spec"]["suspend"] = True
    api.kubectl("apply", "--kustomize", str(folder))
    assert api.find("RayCluster", "perennial")["spec"]["suspend"] is False
