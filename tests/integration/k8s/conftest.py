"""The manifests that the tests of this folder look at."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

import pytest

from tests.support.kubernetes_manifests import (
    ASSEMBLED,
    GUIDE,
    K8S,
    OVERLAYS,
    Doc,
    assembled,
    find,
    overlay,
    render,
)


@pytest.fixture(scope="session")
def guides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the manifests with the overlay that the guide writes."""
    copied = tmp_path_factory.mktemp("manifests").resolve() / "k8s"
    shutil.copytree(K8S, copied)
    (mine,) = re.findall(r"```yaml\n( *# k8s/overlays/mine/.*?)```", GUIDE.read_text(), re.DOTALL)
    (copied / "overlays" / "mine").mkdir()
    (copied / "overlays" / "mine" / "kustomization.yaml").write_text(textwrap.dedent(mine))
    shutil.copy(K8S / "run" / "run.yaml", copied / "overlays" / "mine")
    return copied / "overlays" / "mine"


@pytest.fixture(params=[*OVERLAYS, "guide", *ASSEMBLED])
def everything(request: pytest.FixtureRequest, guides: Path) -> list[Doc]:
    """Each overlay, what the guide tells people to make of it, and other components."""
    if request.param == "guide":
        return render(guides)
    if request.param in ASSEMBLED:
        return assembled(*ASSEMBLED[request.param])
    return overlay(request.param)


@pytest.fixture(scope="module")
def spot() -> list[Doc]:
    """The objects of both modes on EKS."""
    scheduled = assembled(*ASSEMBLED["scheduled"])
    watching = overlay("aws-spot")
    configured = find(watching, "ConfigMap", "perennial-watch")
    return [*scheduled, find(watching, "RayCluster"), configured]
