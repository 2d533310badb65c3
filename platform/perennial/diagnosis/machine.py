"""Facts of this machine, and what they mean for a run: the judgement is pure."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from perennial.config.training import TrainingSpec

Verdict = Literal["ok", "notice", "wrong"]

_GIB = 1 << 30
_LEAST_MEMORY, _LEAST_SHARED = 2 * _GIB, _GIB
_LEAST_SCRATCH, _LITTLE_SCRATCH = _GIB, 10 * _GIB
_LEAST_FILES = 4096
_SECONDS = 60
_PIN = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([^;\s]+)$")
_TORCH = """
import json, torch
facts = {"version": torch.__version__, "gpus": torch.cuda.device_count(), "problem": ""}
try:
    if facts["gpus"]:
        (torch.ones(8, device="cuda") + 1).sum().item()
except Exception as broken:
    facts["problem"] = str(broken).splitlines()[0]
print(json.dumps(facts))
"""


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at.

    Attributes:
        area: machine, GPU, run file, store, cluster or network.
        subject: what was looked at.
        verdict: ok; notice for what works and is worth knowing; wrong for what does not work.
        state: how it is; remedy: what would be right, "" where it is.
    """

    area: str
    subject: str
    verdict: Verdict
    state: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class MachineFacts:
    """This machine as it was found.

    memory_bytes: that is available; None where it is not known, as shared_bytes.
    shared_bytes: free in /dev/shm, where Ray keeps what its processes share.
    driver_gpus: as nvidia-smi lists them. torch: version, "" where it cannot be imported.
    torch_gpus: that torch sees; torch_problem: why it cannot be used, or cannot use them.
    pins: packages of another version than the one that this package asks for, by name.
    """

    cpus: int
    memory_bytes: int | None
    shared_bytes: int | None
    scratch: str
    scratch_bytes: int
    open_files: int
    driver_gpus: tuple[str, ...] = ()
    torch: str = ""
    torch_gpus: int = 0
    torch_problem: str = ""
    pins: tuple[tuple[str, str, str], ...] = ()


def read_machine() -> MachineFacts:
    """Return the facts of this machine. torch is imported in a process of its own.

    A broken driver can hang or kill what asks it, and must not take this process with it.
    """
    scratch = tempfile.gettempdir()
    torch = _ask_torch()
    return MachineFacts(
        cpus=os.cpu_count() or 1,
        memory_bytes=_available_memory(),
        shared_bytes=_free("/dev/shm"),
        scratch=scratch,
        scratch_bytes=_free(scratch) or 0,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        driver_gpus=_list_gpus(),
        torch=str(torch.get("version", "")),
        torch_gpus=int(torch.get("gpus", 0)),
        torch_problem=str(torch.get("problem", "")),
        pins=tuple(find_other_versions()),
    )


def _free(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _list_gpus() -> tuple[str, ...]:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line for line in answer.stdout.splitlines() if line.startswith("GPU "))


def _ask_torch() -> dict[str, Any]:
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=_SECONDS * 5,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"problem": "it did not answer: the driver may hang"}
    try:
        facts = parse_json(answer.stdout.splitlines()[-1])
        return facts if isinstance(facts, dict) else {}
    except (ValueError, IndexError):
        last = (answer.stderr.strip().splitlines() or [f"it ended with code {answer.returncode}"])[
            -1
        ]
        return {"problem": last}


def find_other_versions(package: str = "perennial") -> Iterator[tuple[str, str, str]]:
    """Yield the pinned packages that are there in another version: name, version and pin."""
    try:
        asked = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in asked:
        pin = _PIN.match(requirement.strip())
        if pin is None:
            continue
        name, right = pin.groups()
        try:
            there = metadata.version(name)
        except metadata.PackageNotFoundError:
            there = "none"
        if there.partition("+")[0] != right.partition("+")[0]:
            yield name, there, right


def judge_machine(
    facts: MachineFacts, training: TrainingSpec | None, *, alone: bool
) -> Iterator[Diagnosis]:
    """Yield what the facts mean.

    Args:
        facts: of the machine.
        training: the section of a run file; None for none.
        alone: whether the run's workers run on this machine, and not on a cluster.
    """
    for name, there, right in facts.pins:
        yield Diagnosis(
            "machine", name, "wrong", f"version {there}, and perennial needs {right}",
            f"pip install {name}=={right}",
        )  # fmt: skip
    yield Diagnosis("machine", "CPUs", "ok", str(facts.cpus))
    yield _judge_room(
        "memory", facts.memory_bytes, _LEAST_MEMORY, "end other programs, or take a larger machine"
    )
    yield _judge_room(
        "/dev/shm", facts.shared_bytes, _LEAST_SHARED,
        "give the container more (docker --shm-size, an emptyDir of medium Memory): without it Ray "
        "shares objects through the disk",
    )  # fmt: skip
    yield _judge_scratch(facts)
    few = facts.open_files < _LEAST_FILES and facts.open_files >= 0
    yield Diagnosis(
        "machine", "open files", "notice" if few else "ok", f"at most {facts.open_files:,}",
        "ulimit -n 65536: Ray and many shards need more" if few else "",
    )  # fmt: skip
    yield from _judge_gpus(facts, training, alone=alone)


def _judge_room(subject: str, free: int | None, least: int, remedy: str) -> Diagnosis:
    if free is None:
        return Diagnosis("machine", subject, "notice", "it is not known how much is free")
    little = free < least
    room = f"{free / _GIB:,.1f} GiB free"
    return Diagnosis(
        "machine", subject, "notice" if little else "ok", room, remedy if little else ""
    )


def _judge_scratch(facts: MachineFacts) -> Diagnosis:
    free, room = facts.scratch_bytes, f"{facts.scratch_bytes / _GIB:,.1f} GiB free"
    verdict: Verdict = "ok"
    if free < _LITTLE_SCRATCH:
        verdict = "notice" if free >= _LEAST_SCRATCH else "wrong"
    remedy = "free some, or set TMPDIR to a larger disk: checkpoints pass through it"
    return Diagnosis("machine", facts.scratch, verdict, room, remedy if verdict != "ok" else "")


def _judge_gpus(
    facts: MachineFacts, training: TrainingSpec | None, *, alone: bool
) -> Iterator[Diagnosis]:
    driver, seen = len(facts.driver_gpus), facts.torch_gpus
    if not facts.torch:
        yield Diagnosis(
            "GPU", "torch", "wrong", f"cannot be imported: {facts.torch_problem}",
            "install the package again: pip install perennial",
        )  # fmt: skip
        return
    if facts.torch_problem:
        yield Diagnosis(
            "GPU", "torch", "wrong", f"{facts.torch} cannot use its GPUs: {facts.torch_problem}",
            "look at nvidia-smi: another program may have the memory, or the driver is too old",
        )  # fmt: skip
    elif driver and not seen:
        yield Diagnosis(
            "GPU", "torch", "wrong", f"{facts.torch} sees none of {driver} GPUs",
            "install torch of its CUDA build, and look at CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    else:
        names = {name.partition(" (")[0].partition(": ")[2] for name in facts.driver_gpus}
        what = f"{seen} GPUs ({', '.join(sorted(names))})" if seen else "no GPU"
        yield Diagnosis("GPU", "torch", "ok", f"{facts.torch}, {what}")
    if training is None or not alone:
        return
    needed = training.workers.min * training.gpus_per_worker
    if needed > seen:
        yield Diagnosis(
            "GPU", "training.gpus_per_worker", "wrong",
            f"{training.workers.min} workers need {needed:g} GPUs, and torch sees {seen}",
            "lower it or training.workers, or set RAY_ADDRESS",
        )  # fmt: skip
    elif seen and not training.gpus_per_worker:
        yield Diagnosis(
            "GPU", "training.gpus_per_worker", "notice", f"0: the {seen} GPUs stay unused",
            "set it to 1",
        )  # fmt: skip
