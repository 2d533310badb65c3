"""A small model of what KubeRay's operator does to a RayJob and a RayCluster over time.

Each rule cites the lines that it models, of ray-project/kuberay at tag v1.7.0, below
ray-operator/controllers/ray/: `job` is rayjob_controller.go, `cluster` is raycluster_controller.go,
`submit` is common/job.go, `names` is common/association.go. Kubernetes' own part (a Job's retries,
when a silent node's pods go) and Ray's (how it stops a job: dashboard/modules/job/
job_supervisor.py:375-424 of Ray 2.60.0) are modelled as far as they meet it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tests.support.kubernetes_manifests import Doc

SUBMITTER_RETRIES = 2
"""job:717-720, of spec.submitterConfig.backoffLimit"""

NOT_RETRIED = ("DeadlineExceeded", "JobStatusCheckTimeoutExceeded")
"""job:542-551: reasons for which backoffLimit is not looked at"""

NODE_GRACE_SECONDS = 50
"""Kubernetes' node-monitor-grace-period: a node that is silent so long is not ready"""

TOLERATED_SECONDS = 300
"""Kubernetes' default toleration of a node that is not ready, where a pod names none"""

STOP_WAIT_SECONDS = 3
"""Ray's default of RAY_JOB_STOP_WAIT_TIME_S: then SIGKILL"""


@dataclass
class RayJob:
    """A RayJob of K8sJobMode at work.

    state: status.jobDeploymentStatus.
    clusters: how many RayClusters were made for it so far.
    """

    spec: Doc
    state: str = "Running"
    reason: str = ""
    clusters: int = 1
    failed: int = 0
    evictions: int = field(default=0, repr=False)

    def starts(self) -> bool:
        """Whether a RayJob that is created gets a cluster: not with `suspend` (job:179-182)."""
        return not self.spec.get("suspend", False)

    def fail(self, reason: str) -> None:
        """The RayJob is Failed; it may be retried with a new cluster (job:531-556, 366-410)."""
        self.state, self.reason = "Failed", reason
        self.failed += 1
        retried = self.failed < self.spec.get("backoffLimit", 0) + 1
        if retried and reason not in NOT_RETRIED:
            self.state, self.clusters, self.evictions = "Running", self.clusters + 1, 0

    def driver_ends(self, code: int) -> None:
        """`perennial` ended by itself (job:334-349)."""
        if code == 0:
            self.state = "Complete"
        else:
            self.fail("AppFailed")

    def submitter_goes(self) -> None:
        """The submitter's pod was evicted, or ended because the head went.

        The Job starts another, which finds the Ray job by its id and follows it, or submits it
        again where the cluster does not know it (submit:128-165, 204-209). Beyond the Job's
        backoffLimit the RayJob fails (job:1151-1165, 717-720).
        """
        self.evictions += 1
        retries = self.spec.get("submitterConfig", {}).get("backoffLimit", SUBMITTER_RETRIES)
        if self.evictions > retries:
            self.fail("SubmissionFailed")

    def head_is_lost(self, *, silently: bool) -> None:
        """The head went, and the operator made another in the same cluster (cluster:1025-1055).

        A process that ends closes its connections: the submitter ends with an error, and the next
        one submits again. A node that falls silent closes none: the submitter waits for ever (Ray
        2.60.0, dashboard/modules/job/sdk.py, tail_job_logs: no heartbeat), the new head does not
        know the job, and that answer does not reset the time since which the status cannot be read
        (job:301-329). After 300 seconds the RayJob fails for good (job:336-354).
        """
        if silently:
            self.fail("JobStatusCheckTimeoutExceeded")
        else:
            self.submitter_goes()

    def is_deleted(self, settings: Doc) -> Stop:
        """Ray is asked to stop the job, and the cluster is deleted at once (job:112-139).

        Ray sends SIGTERM to the driver and its children, waits, and sends SIGKILL; meanwhile the
        pods are ended, whose preStop sends SIGTERM again.
        """
        wait = int(settings.get("RAY_JOB_STOP_WAIT_TIME_S", STOP_WAIT_SECONDS))
        head = self.spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        return Stop(2, min(wait, pre_stop_seconds(head)))

    def is_suspended(self) -> Stop:
        """The cluster is deleted; Ray is not asked (job:250-252, 366-387)."""
        self.state = "Suspended"
        head = self.spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        return Stop(1, pre_stop_seconds(head))


@dataclass(frozen=True)
class Stop:
    """How a driver is ended: so many SIGTERMs, and SIGKILL no sooner than after `seconds`."""

    sigterms: int
    seconds: int


@dataclass
class RayCluster:
    """A RayCluster that is no RayJob's, with its controller in the head's pod.

    heads: how many head pods were made so far.
    """

    spec: Doc
    heads: int = 1

    def head_is_lost(self, *, silently: bool) -> None:
        """The head's pod went, however late: another is made (cluster:1025-1055).

        Where its container ended, the operator deletes the pod (cluster:1512-1529): with autoscaler
        v2 it sets restartPolicy Never (common/pod.go:280). A silent node's pods go by themselves.
        """
        assert silently or self.spec["autoscalerOptions"]["version"] == "v2"
        self.heads += 1

    def is_deleted(self) -> Stop:
        """Its pods are ended, by their owner's deletion: one SIGTERM, from preStop."""
        return Stop(1, pre_stop_seconds(self.spec["headGroupSpec"]["template"]["spec"]))

    def is_changed(self, spec: Doc) -> None:
        """Another spec was applied.

        Without upgradeStrategy Recreate running pods stay as they are; with it all are deleted and
        made anew (cluster:969-982, 1463-1502), unless only the autoscaler's fields differ.
        """
        recreated = spec.get("upgradeStrategy", {}).get("type") == "Recreate"
        if recreated and _hashed(spec) != _hashed(self.spec):
            self.heads += 1
        self.spec = spec

    def workers_after_apply(self, group: int, running: int) -> int:
        """How many pods of a group stay when an apply resets `replicas`.

        The operator never deletes a pod for the number alone under autoscaling (cluster:1218-1256);
        the autoscaler counts the pods there are, not the number (Ray 2.60.0, autoscaler/v2/
        instance_manager/cloud_providers/kuberay/cloud_provider.py, _initialize_scale_request).
        """
        wanted = self.spec["workerGroupSpecs"][group].get("replicas", 0)
        return running if self.spec["enableInTreeAutoscaling"] else min(running, wanted)


def _hashed(spec: Doc) -> Doc:
    """What upgradeStrategy compares: all but replicas and workersToDelete (cluster:935)."""
    groups = [
        {k: v for k, v in group.items() if k not in ("replicas", "scaleStrategy")}
        for group in spec["workerGroupSpecs"]
    ]
    return spec | {"workerGroupSpecs": groups}


def seconds_until_pod_is_given_up(pod: Doc) -> float:
    """How long a pod on a node that fell silent is waited for before it is deleted.

    It is gone, and another made, when the cloud has deleted the node, or the node is back.
    """
    tolerated = [
        t.get("tolerationSeconds", float("inf"))
        for t in pod.get("tolerations", [])
        if t["key"] == "node.kubernetes.io/unreachable" and t["effect"] == "NoExecute"
    ]
    return NODE_GRACE_SECONDS + min(tolerated, default=TOLERATED_SECONDS)


def pre_stop_seconds(pod: Doc) -> int:
    """How long preStop of a pod's first container waits for its processes to end."""
    hook = pod["containers"][0].get("lifecycle", {}).get("preStop")
    if hook is None:
        return 0
    (seconds,) = {int(n) for n in re.findall(r"-lt (\d+)", hook["exec"]["command"][-1])}
    return seconds
