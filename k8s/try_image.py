"""Build the image's CPU stage without a container daemon, and try it as the manifests run it.

    apt-get install buildah crun debootstrap
    python k8s/try_image.py > benchmarks/results/image.md

It needs root, about 12 GB of disk and an hour on two busy cores. The base is made of Debian's
packages, unless --base names an image. The container has the security context of the manifests'
head: its user, a read-only root filesystem, no capabilities; and no network but its own loopback.
What no machine without a GPU can build or try is the CUDA stage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
BASE, IMAGE = "localhost/perennial-base", "localhost/perennial:tried"
DEBIAN = "http://deb.debian.org/debian"
PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"
LAST_LINES = 14
"""Of a command's output, those that the page shows."""
QUICKSTART_SECONDS = 3 * 3600
SERVE_SECONDS = 1800
START_SECONDS = 60

# The operator's own command for a head, less what only a cluster has.
RAY_START = (
    "ray start --head --block --dashboard-host=0.0.0.0 --num-cpus=2 --metrics-export-port=8080 "
    "--dashboard-agent-listen-port=52365 --memory=4294967296"
)
ANSWERS = (
    "import sys, time, urllib.request as web\n"
    "url, until = sys.argv[1], time.monotonic() + 300\n"
    "while True:\n"
    "    try: sys.exit(print(web.urlopen(url, timeout=5).read()[:80].decode()))\n"
    "    except OSError:\n"
    "        if time.monotonic() > until: raise\n"
    "        time.sleep(1)\n"
)


def crun(*words: str) -> list[str]:
    """Return the command that runs crun, which does not bear cgroups of both versions at once."""
    alone = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec crun --cgroup-manager=disabled "$@"'
    return ["unshare", "--mount", "sh", "-c", alone, "crun", *words]


def call(*command: str, into: Path | None = None) -> str:
    """Run a command; return its output. With `into` its messages are appended to a file."""
    with (into or Path(os.devnull)).open("a") as log:
        done = subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE, stderr=log if into else None
        )
    return done.stdout.strip()


def make_base(work: Path) -> None:
    """Make the base image out of Debian's packages."""
    if not call("buildah", "images", "--quiet", "--filter", f"reference={BASE}"):
        root = work / "root"
        if not (root / "usr/bin/python").exists():
            shutil.rmtree(root, ignore_errors=True)
            options = ["--variant=minbase", f"--include={PACKAGES}"]
            call("debootstrap", *options, "bookworm", str(root), DEBIAN, into=work / "base.log")
        container = call("buildah", "from", "scratch")
        call("buildah", "add", "--quiet", container, str(root), "/")
        call("buildah", "commit", "--quiet", container, BASE)
        call("buildah", "rm", container)


def torch_index(work: Path, wheels: Path) -> Path:
    """Return a package index whose torch is the wheel in a folder."""
    (wheel,) = wheels.glob("torch-*.whl")
    index = work / "index"
    (index / "torch").mkdir(parents=True, exist_ok=True)
    if not (index / "torch" / wheel.name).exists():
        shutil.copy(wheel, index / "torch")
    (index / "torch" / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>\n')
    return index


def build(work: Path, base: str, wheels: Path | None, isolation: str) -> None:
    """Build the CPU stage."""
    arguments = ["--build-arg", f"PYTHON={base}"]
    if wheels is not None:
        arguments += ["--build-arg", "TORCH_INDEX=file:///index"]
        arguments += ["--volume", f"{torch_index(work, wheels)}:/index:ro"]
    # The certificates that this machine trusts: its way to a registry may need one of its own.
    settings = work / "pip.conf"
    settings.write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\ntimeout = 180\n")
    arguments += ["--volume", f"{settings}:/etc/pip.conf:ro"]
    arguments += ["--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"]
    command = ["buildah", "build", "--layers", f"--isolation={isolation}", "--runtime=crun"]
    command += ["--network=host", "--file=k8s/Dockerfile", "--target=cpu"]
    subprocess.run(
        [*command, *arguments, "--tag", IMAGE, "."], cwd=ROOT, check=True, stdout=sys.stderr
    )


def head_pod() -> dict[str, Any]:
    """Return the pod of the manifests' head."""
    cluster = yaml.safe_load((ROOT / "k8s/run/raycluster.yaml").read_text("utf-8"))
    pod: dict[str, Any] = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    return pod


class Ended(NamedTuple):
    """A command that was run: its exit code, its output, and seconds."""

    code: int
    text: str
    seconds: float


class Pod:
    """Containers of the image that share volumes, as those of one pod do."""

    def __init__(self, work: Path, rootfs: str, environment: list[str]) -> None:
        """Prepare the volumes; nothing is started."""
        self._work, self._rootfs, self._environment = work, rootfs, environment
        self._pod = head_pod()
        self._context = self._pod["securityContext"]
        (self._container,) = self._pod["containers"]
        self._mounts = []
        for mount in self._container["volumeMounts"]:
            path = work / "volumes" / mount["name"]
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            if not mount.get("readOnly"):  # as the kubelet makes an emptyDir for an fsGroup
                os.chown(path, 0, self._context["fsGroup"])
                path.chmod(0o2777)
            self._mounts.append((path, mount["mountPath"], bool(mount.get("readOnly"))))
        self.run_file = work / "volumes" / "run-file" / "run.yaml"

    def mount(self, path: Path, place: str) -> None:
        """Mount a folder, read-only."""
        self._mounts.append((path, place, True))

    def bundle(self, name: str, command: list[str], **variables: str) -> Path:
        """Write the description of a container in the manifests' security context."""
        bundle = self._work / "bundles" / name
        shutil.rmtree(bundle, ignore_errors=True)
        bundle.mkdir(parents=True)
        call(*crun("spec", "--bundle", str(bundle)))
        file = bundle / "config.json"
        spec = json.loads(file.read_text())
        mine = self._container["securityContext"]
        # Not all that a container runtime sets, where this machine's root may not raise it.
        files = min(1048576, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        assert mine["capabilities"] == {"drop": ["ALL"]}
        spec["root"] = {"path": self._rootfs, "readonly": mine["readOnlyRootFilesystem"]}
        environment = [*self._environment, *(f"{k}={v}" for k, v in variables.items())]
        environment += [f"{e['name']}={e['value']}" for e in self._container["env"]]
        spec["process"] |= {
            "terminal": False,
            "args": command,
            "cwd": "/tmp",
            "env": environment,
            "user": {
                "uid": self._context["runAsUser"],
                "gid": self._context["runAsGroup"],
                "additionalGids": [self._context["fsGroup"]],
            },
            "capabilities": {},
            "noNewPrivileges": not mine["allowPrivilegeEscalation"],
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": files, "soft": min(65536, files)}],
        }
        for mount in spec["mounts"]:
            if mount["destination"] == "/dev/shm":  # the operator's, half of the pod's memory
                mount["options"] = ["nosuid", "noexec", "nodev", "mode=1777", "size=4g"]
        spec["mounts"] += [
            {
                "destination": place,
                "type": "bind",
                "source": str(path),
                "options": ["rbind", "ro" if read_only else "rw"],
            }
            for path, place, read_only in self._mounts
        ]
        file.write_text(json.dumps(spec))
        return bundle

    def start(self, name: str, command: list[str], **variables: str) -> subprocess.Popen[bytes]:
        """Start a container; its output is the file NAME.log."""
        bundle = self.bundle(name, command, **variables)
        run = crun("run", "--bundle", str(bundle), name)
        with (self._work / f"{name}.log").open("wb") as log:
            return subprocess.Popen(run, stdout=log, stderr=subprocess.STDOUT)

    def run(self, name: str, command: list[str], seconds: float = 600) -> Ended:
        """Run a container to its end."""
        began = time.monotonic()
        process = self.start(name, command)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill(name)
            code = process.wait()
        return Ended(code, self.told(name), time.monotonic() - began)

    def inside(self, name: str, command: list[str]) -> Ended:
        """Run a command in a container as its user, once it runs."""
        user = f"{self._context['runAsUser']}:{self._context['runAsGroup']}"
        began = time.monotonic()
        while not self._runs(name) and time.monotonic() < began + START_SECONDS:
            time.sleep(0.2)
        done = subprocess.run(
            crun("exec", f"--user={user}", name, *command),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return Ended(done.returncode, done.stdout, time.monotonic() - began)

    def _runs(self, name: str) -> bool:
        done = subprocess.run(crun("state", name), capture_output=True)
        return done.returncode == 0 and json.loads(done.stdout)["status"] == "running"

    def told(self, name: str) -> str:
        """Return what a container has printed."""
        return (self._work / f"{name}.log").read_text("utf-8", "replace")

    def kill(self, name: str) -> None:
        """End a container, whatever it does."""
        subprocess.run(crun("delete", "--force", name), check=False, capture_output=True)


def shown(text: str, lines: int = LAST_LINES) -> str:
    """Return the last lines of an output, without colours and without names of this machine."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])


def report(title: str, command: str, ended: Ended, expected: bool, lines: int = 3) -> bool:
    """Print what came of a command; return whether it was as expected."""
    print(f"**{title}**: {'as expected' if expected else 'NOT AS EXPECTED'}, ", end="")
    print(f"exit code {ended.code}, {ended.seconds:.0f} s")
    print(f"\n```\n$ {command}\n{shown(ended.text, lines)}\n```\n", flush=True)
    return expected


def try_basics(pod: Pod) -> Iterator[bool]:
    """Try what every pod needs."""
    context = head_pod()["securityContext"]
    user = f"uid={context['runAsUser']}(perennial)"
    cases: list[tuple[str, str, Callable[[Ended], bool]]] = [
        ("The user of the manifests", "id", lambda e: user in e.text),
        (
            "The root filesystem is read-only",
            "touch /opt/perennial/x",
            lambda e: "Read-only file system" in e.text,
        ),
        (
            "No compiler",
            "command -v cc gcc g++ make nvcc || echo none",
            lambda e: e.text.strip() == "none",
        ),
        (
            "Every package is there, and they fit each other",
            "python -m pip check",
            lambda e: "No broken requirements" in e.text,
        ),
        ("The command line", "perennial --version", lambda e: e.code == 0),
        (
            "The libraries load",
            'python -c "import torch, deepspeed, ray, mlflow, psycopg, boto3, py3langid; '
            'print(torch.__version__, torch.cuda.is_available())"',
            lambda e: "False" in e.text,
        ),
    ]
    for index, (title, command, good) in enumerate(cases):
        ended = pod.run(f"basic-{index}", ["/bin/sh", "-c", command])
        yield report(title, command, ended, good(ended), lines=2)


def try_mlflow(pod: Pod) -> Iterator[bool]:
    """Start the server of the manifests, with a database file in place of PostgreSQL."""
    server = ["mlflow", "server", "--host=0.0.0.0", "--port=5000", "--workers=1"]
    variables = {
        "MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    process = pod.start("mlflow", server, **variables)
    try:
        ended = pod.inside("mlflow", ["python", "-c", ANSWERS, "http://127.0.0.1:5000/health"])
        good = ended.code == 0 and "OK" in ended.text
        yield report("The MLflow server answers its probe", " ".join(server), ended, good, 1)
    finally:
        pod.kill("mlflow")
        process.wait()


def try_quickstart(pod: Pod) -> Iterator[bool]:
    """Run the main job: three stages, a release, an evaluation."""
    command = ["perennial", "quickstart", "/tmp/quickstart"]
    ended = pod.run("quickstart", command, QUICKSTART_SECONDS)
    yield report("The quickstart", " ".join(command), ended, ended.code == 0, LAST_LINES)
    verify = ["perennial", "verify", "/tmp/quickstart/quickstart.yaml"]
    ended = pod.run("verify", verify)
    yield report("Its store is whole", " ".join(verify), ended, ended.code == 0, 4)


def try_head(pod: Pod) -> Iterator[bool]:
    """Start the head of `watch` by its own first process, probe it, and end it by preStop."""
    (container,) = head_pod()["containers"]
    stop = container["lifecycle"]["preStop"]["exec"]["command"]
    # Paths in the base are seen from there.
    pod.run_file.write_text("base: /tmp/quickstart/quickstart.yaml\n")
    pod.mount(ROOT / "k8s/components/mode-watch", "/etc/perennial-watch")
    command = ["python", "/etc/perennial-watch/serve.py", "/etc/perennial/run.yaml"]
    process = pod.start(
        "watch",
        command,
        KUBERAY_GEN_RAY_START_CMD=RAY_START,
        RAY_ADDRESS="127.0.0.1:6379",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN="a-token-of-32-characters-or-more",
    )
    try:
        probe = "http://127.0.0.1:52365/api/healthz"
        ended = pod.inside("watch", ["python", "-c", ANSWERS, probe])
        yield report(
            "The head of `watch` answers the operator's probe", probe, ended, not ended.code
        )
        deadline = time.monotonic() + SERVE_SECONDS
        while "next look" not in pod.told("watch") and time.monotonic() < deadline:
            time.sleep(1)
        began = time.monotonic()
        stopped = pod.inside("watch", stop)
        code = process.wait(SERVE_SECONDS)
        ended = Ended(code, pod.told("watch"), time.monotonic() - began)
        good = stopped.code == code == 0 and "next look" in ended.text
        yield report("`watch` runs, and preStop ends it", " ".join(command), ended, good, 6)
    finally:
        pod.kill("watch")
        process.wait()


@contextmanager
def mounted(image: str) -> Iterator[tuple[str, list[str]]]:
    """Mount the image; yield its root filesystem and the environment that it declares."""
    described = json.loads(call("buildah", "inspect", "--type=image", image))
    container = call("buildah", "from", image)
    try:
        yield call("buildah", "mount", container), described["OCIv1"]["config"]["Env"]
    finally:
        call("buildah", "rm", container)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="an image with Python 3.11, in place of Debian's packages")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "image")
    parser.add_argument(
        "--wheels",
        type=Path,
        default=os.environ.get("PIP_FIND_LINKS") or None,
        help="a folder with torch's CPU wheel, where PyTorch's own index is not reached",
    )
    parser.add_argument(
        "--isolation",
        default="oci",
        choices=["oci", "chroot"],
        help="of the build's commands; oci needs a machine with cgroups of one version",
    )
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if options.base is None:
        make_base(work)
    build(work, options.base or BASE, options.wheels, options.isolation)
    seconds = time.monotonic() - began
    tools = [call(name, "--version").splitlines()[0] for name in ("buildah", "crun")]
    with mounted(IMAGE) as (rootfs, environment):
        size = call("du", "--summarize", "--block-size=1M", rootfs).split()[0]
        print("# The image, built and tried\n\n`python k8s/try_image.py`\n")
        print(f"The CPU stage of `k8s/Dockerfile`, by {', '.join(tools)}, on ", end="")
        print(options.base or "a base of Debian 12's packages (python3.11)", end="")
        print(f": {size} MiB, {seconds / 60:.0f} minutes. The CUDA stage was never built.\n")
        print("Each command is run by crun as in a pod of `k8s/run/raycluster.yaml`: its user, ")
        print("read-only root, no capabilities, no new privileges, its volumes, and no network.\n")
        pod = Pod(work, rootfs, environment)
        tries = (try_basics, try_mlflow, try_quickstart, try_head)
        results = [result for each in tries for result in each(pod)]
    print(f"{sum(results)} of {len(results)} as expected.")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
