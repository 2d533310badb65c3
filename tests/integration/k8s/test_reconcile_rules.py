"""The manifests held against the operator's reconcile rules (`tests/support/kuberay_rules.py`)."""

from __future__ import annotations

import copy

import pytest

from tests.support.kuberay_rules import (
    RayCluster,
    RayJob,
    seconds_until_pod_is_given_up,
)
from tests.support.kubernetes_manifests import Doc, assembled, clusters, find, jobs, overlay


@pytest.fixture
def service() -> RayCluster:
    """`watch` on EKS."""
    return RayCluster(copy.deepcopy(find(overlay("aws-spot"), "RayCluster")["spec"]))


@pytest.fixture(params=["perennial-run", "perennial-ingest"])
def job(request: pytest.FixtureRequest, spot: list[Doc]) -> RayJob:
    """The copy of a template that a tick creates."""
    return RayJob(copy.deepcopy(jobs(spot)[request.param]))


def test_a_template_starts_nothing_and_its_copy_does(spot: list[Doc], job: RayJob) -> None:
    assert job.starts()
    for template in (o for o in spot if o["kind"] == "RayJob"):
        assert not RayJob(template["spec"]).starts()


# A lost head


@pytest.mark.parametrize("silently", [True, False])
def test_a_service_goes_on_after_any_lost_head(service: RayCluster, silently: bool) -> None:
    for _ in range(100):
        service.head_is_lost(silently=silently)
    assert service.heads == 101


def test_a_silent_head_is_given_up_soon(everything: list[Doc]) -> None:
    for spec in clusters(everything).values():
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        for group in groups:
            pod = group["template"]["spec"]
            assert seconds_until_pod_is_given_up(pod) == 80
            untold = {key: value for key, value in pod.items() if key != "tolerations"}
            assert seconds_until_pod_is_given_up(untold) == 350


def test_a_job_goes_on_after_a_head_that_ended(job: RayJob) -> None:
    for _ in range(10):
        job.head_is_lost(silently=False)
    assert (job.state, job.clusters) == ("Running", 1)


@pytest.mark.parametrize("retries", [0, 100])
def test_a_job_with_a_silent_head_ends_for_good_and_the_next_tick_starts_another(
    spot: list[Doc], job: RayJob, retries: int
) -> None:
    """Whatever backoffLimit says: so `watch` is no RayJob, and `run` has a schedule."""
    job.spec["backoffLimit"] = retries
    job.head_is_lost(silently=True)
    assert (job.state, job.clusters) == ("Failed", 1)
    for cron in (o["spec"] for o in spot if o["kind"] == "CronJob"):
        minute, hour, *_ = cron["schedule"].split()
        assert minute.isdigit()
        assert hour == "*", "within an hour"


# The submitter


def test_a_job_survives_evictions_of_its_submitter(job: RayJob) -> None:
    for _ in range(20):
        job.submitter_goes()
    assert (job.state, job.clusters) == ("Running", 1)


def test_three_evictions_would_end_a_job_without_submitter_config(job: RayJob) -> None:
    del job.spec["submitterConfig"]
    for _ in range(3):
        job.submitter_goes()
    assert (job.state, job.reason) == ("Failed", "SubmissionFailed")


# A mistake in the run file


def test_a_typo_costs_a_job_one_cluster(job: RayJob) -> None:
    while job.state == "Running":
        job.driver_ends(code=2)
    assert job.clusters == 1


def test_a_typo_would_cost_a_cluster_for_each_retry(job: RayJob) -> None:
    job.spec["backoffLimit"] = 100
    while job.state == "Running":
        job.driver_ends(code=2)
    assert job.clusters == 101


# Ends


def test_a_deleted_job_has_as_long_for_its_checkpoint_as_a_suspended_one(
    spot: list[Doc], job: RayJob
) -> None:
    settings = find(spot, "ConfigMap", "perennial-settings")["data"]
    deleted, suspended = job.is_deleted(settings), job.is_suspended()
    assert deleted.seconds == suspended.seconds == 90
    # The second SIGTERM does not cut off the save: tests/unit/training/test_launcher.py.
    assert (deleted.sigterms, suspended.sigterms) == (2, 1)
    assert job.is_deleted({}).seconds == 3, "what Ray gives where nothing is said"


def test_a_deleted_service_has_as_long(service: RayCluster) -> None:
    """Nobody asks Ray to stop it: it is no job of Ray's."""
    assert service.is_deleted().seconds == 90
    assert service.is_deleted().sigterms == 1


# An apply


def test_an_apply_ends_no_worker(service: RayCluster) -> None:
    applied = copy.deepcopy(service.spec)
    service.spec["workerGroupSpecs"][1]["replicas"] = 3
    service.is_changed(applied)
    assert service.workers_after_apply(1, running=3) == 3
    assert service.heads == 1


def test_another_image_reaches_the_service_by_an_apply(service: RayCluster) -> None:
    changed = copy.deepcopy(service.spec)
    changed["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = "perennial:next"
    service.is_changed(changed)
    assert service.heads == 2


def test_a_cluster_for_people_is_not_restarted_by_an_apply() -> None:
    objects = assembled(
        "overlays/aws-spot/machines", "components/interactive", "components/mode-watch"
    )
    cluster = RayCluster(find(objects, "RayCluster", "perennial-interactive")["spec"])
    changed = copy.deepcopy(cluster.spec) | {"rayVersion": "9.9.9"}
    cluster.is_changed(changed)
    assert cluster.heads == 1
