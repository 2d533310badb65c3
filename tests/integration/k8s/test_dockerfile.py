"""The image's recipe. It was never built whole: what can be read of it is held to its promises."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.kubernetes_manifests import K8S, ROOT

TARGETS = ("cpu", "cuda")


@dataclass
class Stage:
    """One FROM of the Dockerfile, and its instructions in order."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for name, rest in self.instructions if name == word]


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    text = re.sub(r"\\\n\s*", "", (K8S / "Dockerfile").read_text("utf-8"))
    found: dict[str, Stage] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = stage = Stage(name, base)
        elif found:
            stage.instructions.append((word, rest))
        else:
            assert line.startswith("ARG PYTHON=python:3.11"), line
    return found


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and those that it is built on, the first one last."""
    found = [stages[name]]
    while found[-1].base in stages:
        found.append(stages[found[-1].base])
    return found


def test_there_is_a_target_for_cpus_and_one_for_gpus(stages: dict[str, Stage]) -> None:
    assert set(TARGETS) <= set(stages)
    assert {line[-1].base for line in (lineage(stages, t) for t in stages)} == {"${PYTHON}"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_runs_as_the_user_of_the_manifests(stages: dict[str, Stage], target: str) -> None:
    assert stages[target].instructions[-1] == ("USER", "1000:1000")
    base = stages[target].base
    (created,) = [run for run in stages[base].all("RUN") if "useradd" in run]
    assert "--uid 1000 " in created
    assert any("HOME=/tmp" in env for env in stages[base].all("ENV"))


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_holds_no_build_tools_and_no_sources(
    stages: dict[str, Stage], target: str
) -> None:
    """What is built in other stages is copied, and nothing else is."""
    for stage in lineage(stages, target):
        for copied in stage.all("COPY"):
            assert copied == f"--from={target}-packages /opt/perennial /opt/perennial"
        for run in stage.all("RUN"):
            assert "apt-get" not in run
            assert "pip install" not in run or "--no-index" in run


@pytest.mark.parametrize("target", TARGETS)
def test_packages_are_installed_under_constraints(stages: dict[str, Stage], target: str) -> None:
    (install,) = stages[f"{target}-packages"].all("RUN")
    assert f"--constraint k8s/constraints-{target}.txt" in install
    copied = " ".join(stages["builder"].all("COPY"))
    assert f"k8s/constraints-{target}.txt" in copied


def test_the_wheel_is_built_of_what_is_copied(stages: dict[str, Stage], tmp_path: Path) -> None:
    for copied in stages["builder"].all("COPY")[:1] + stages["wheel"].all("COPY"):
        *sources, _ = copied.split()
        for name in sources:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, tmp_path / name, ignore=ignored)
            else:
                shutil.copy(source, tmp_path / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_driver_is_found_where_gke_mounts_it(stages: dict[str, Stage]) -> None:
    environment = " ".join(stages["cuda"].all("ENV"))
    assert "LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in environment
    assert "LD_LIBRARY_PATH" not in " ".join(stages["cpu"].all("ENV"))


def pins(target: str) -> dict[str, str]:
    lines = (K8S / f"constraints-{target}.txt").read_text("utf-8").splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert len(found) == sum(not line.startswith("#") for line in lines), "one line a package"
    return found


def requirements() -> list[Requirement]:
    asked = (
        "import sys; sys.path.insert(0, 'k8s'); import pin; print(*pin.requirements(), sep='\\n')"
    )
    told = subprocess.run(
        [sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [Requirement(line) for line in told.stdout.splitlines()]


def test_requirements_are_asked_for_as_the_dockerfile_does(stages: dict[str, Stage]) -> None:
    (run,) = [run for run in stages["builder"].all("RUN") if "requirements.txt" in run]
    asked = re.search(r'python -c "(.*)" >', run)
    assert asked
    told = subprocess.run(
        [sys.executable, "-c", asked[1]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [Requirement(line) for line in told.stdout.split("\n")[:-1]] == requirements()
    assert {"torch", "deepspeed", "boto3"} <= {r.name for r in requirements()}


@pytest.mark.parametrize("target", TARGETS)
def test_every_requirement_is_pinned_to_a_version_that_it_allows(target: str) -> None:
    pinned = pins(target)
    for requirement in requirements():
        assert Version(pinned[requirement.name]) in requirement.specifier, requirement


def test_the_two_images_differ_in_cuda_only() -> None:
    cpu, cuda = pins("cpu"), pins("cuda")
    assert {name for name in cpu if cuda.get(name) != cpu[name]} == set()
    more = {name for name in cuda if name not in cpu}
    assert more
    assert all(re.match("nvidia|cuda|triton", name) for name in more), more


def test_sources_that_no_image_needs_stay_outside() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "build"} <= set(ignored)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_the_pins_resolve(target: str, tmp_path: Path) -> None:
    """pip finds one set of packages that satisfies everything, without downloading wheels."""
    listed = tmp_path / "requirements.txt"
    listed.write_text("\n".join(map(str, requirements())))
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    environment = dict(os.environ)
    if target == "cuda":
        environment.pop("PIP_FIND_LINKS", None)
        command.insert(3, "--isolated")
    constraints: Path = K8S / f"constraints-{target}.txt"
    command += ["--constraint", str(constraints), "--requirement", str(listed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
