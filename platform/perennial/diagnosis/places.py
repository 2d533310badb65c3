"""What a run reaches for: its store, its inbox, MLflow, a cluster, addresses and secrets."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from perennial.causes import describe
from perennial.diagnosis.machine import Diagnosis
from perennial.errors import InputError, PerennialError
from perennial.store.base import PROBE
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.config.training import TrainingSpec
    from perennial.controller.context import Workspace
    from perennial.store import Store

_SECONDS = 5.0
_CLUSTER_SECONDS = 90
_SKEW_SECONDS = 60
_HUB = "https://huggingface.co"
_RAY = """
import json, logging, ray
ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
print(json.dumps({"resources": ray.cluster_resources(), "nodes": len(ray.nodes())}))
"""


def refusal(area: str, subject: str, failure: Exception) -> Iterator[Diagnosis]:
    """Yield what a failure says, with everything else that is wrong with the same input."""
    if isinstance(failure, InputError):
        for wrong in (failure, *failure.others):
            problem = ": ".join(filter(None, (wrong.field, wrong.problem)))
            yield Diagnosis(area, subject, "wrong", " ".join(problem.split()), wrong.remedy)
        return
    words = str(failure) if isinstance(failure, PerennialError) else describe(failure)
    yield Diagnosis(area, subject, "wrong", " ".join(words.split()))


def examine_store(work: Workspace) -> Iterator[Diagnosis]:
    """Look at the store, the storage's clock, the ledger and the inbox; leaves nothing behind."""
    try:
        work.store.check()
    except (PerennialError, OSError) as refused:
        yield from refusal("store", work.store.url, refused)
        return
    yield Diagnosis("store", work.store.url, "ok", "can be read and written, creates a key once")
    yield judge_clock(_skew_seconds(work.store))
    try:
        work.check_run()
        events = work.ledger.next
        yield Diagnosis("store", "ledger", "ok", f"{events:,} events" if events else "no run yet")
        work.check_model()
        work.check_fill_tokens()
    except (PerennialError, OSError) as wrong:
        yield from refusal("run file", work.where, wrong)
    try:
        landed = len({info.key.partition("/")[0] for info in work.inbox.list()})
        yield Diagnosis("store", work.inbox.url, "ok", f"an inbox with {landed} corpora")
    except (PerennialError, OSError) as refused:
        yield from refusal("store", work.inbox.url, refused)


def _skew_seconds(store: Store) -> float:
    """Return by how much the storage's clock is before this machine's."""
    key = f"{PROBE}{uuid.uuid4().hex}"
    try:
        store.write(key, b"")
        return (store.info(key).modified - datetime.now(UTC)).total_seconds()
    finally:
        store.remove(key)


def judge_clock(skew: float) -> Diagnosis:
    """Return what a difference between the storage's clock and this machine's means."""
    off = abs(skew) > _SKEW_SECONDS
    difference = f"{abs(skew):,.0f} s {'before' if skew > 0 else 'behind'} this machine's"
    remedy = "set this machine's clock (NTP): a bucket refuses requests of another time"
    return Diagnosis(
        "store", "clock of the storage", "wrong" if off else "ok",
        difference if off else "agrees with this machine's", remedy if off else "",
    )  # fmt: skip


def examine_cluster(address: str, training: TrainingSpec | None) -> Iterator[Diagnosis]:
    """Connect to a Ray cluster in a process of its own, and look at what it has."""
    environment = {**os.environ, "RAY_ADDRESS": address, "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _RAY], capture_output=True, text=True, env=environment,
            timeout=_CLUSTER_SECONDS, check=False,
        )  # fmt: skip
        answer = parse_json(ended.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        answer, problem = None, f"did not answer in {_CLUSTER_SECONDS} s"
    except (ValueError, IndexError):
        lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        answer, problem = None, lines[-1] if lines else f"ended with code {ended.returncode}"
    if answer is None:
        yield Diagnosis(
            "cluster", address, "wrong", problem,
            "start it with the same Ray and Python, and set RAY_ADDRESS to its head",
        )  # fmt: skip
        return
    yield from judge_cluster(address, answer["resources"], int(answer["nodes"]), training)


def judge_cluster(
    address: str, resources: Mapping[str, float], nodes: int, training: TrainingSpec | None
) -> Iterator[Diagnosis]:
    """Yield what a cluster has, and what a run's smallest worker group would lack.

    Args:
        address: of its head.
        resources: that it has now, by name.
        nodes: number of its machines.
        training: the section of a run file; None for none.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    yield Diagnosis("cluster", address, "ok", f"{nodes} machines, {cpus:g} CPUs, {gpus:g} GPUs")
    if training is None:
        return
    workers = training.workers.min
    for name, there, a_worker in (
        ("CPUs", cpus, training.cpus_per_worker), ("GPUs", gpus, training.gpus_per_worker),
    ):  # fmt: skip
        if workers * a_worker > there + 1e-9:
            yield Diagnosis(
                "cluster", "training.workers", "notice",
                f"{workers} workers need {workers * a_worker:g} {name}, and it has {there:g} now",
                "training waits until machines come; lower training.workers where none will",
            )  # fmt: skip


def list_texts(document: object) -> Iterator[str]:
    """Yield every text of a run file."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, Mapping):
        for value in document.values():
            yield from list_texts(value)
    elif isinstance(document, list | tuple):
        for value in document:
            yield from list_texts(value)


def list_addresses(document: object) -> list[str]:
    """Return the http addresses that a run file names, each host once, without anything secret."""
    hosts: dict[str, None] = {}
    for text in list_texts(document):
        parts = urlsplit(text if text.startswith(("http://", "https://")) else "")
        if text.startswith("hf://"):
            hosts[_HUB] = None
        elif parts.hostname:
            port = "".join(f":{number}" for number in [_port_in(parts)] if number)
            hosts[f"{parts.scheme}://{parts.hostname}{port}"] = None
    return [*hosts]


def examine_secrets(document: object) -> Iterator[Diagnosis]:
    """Look for the secrets that a run file names: are they there? Their values are not read."""
    for text in sorted({*list_texts(document)}):
        kind, _, name = text.partition(":")
        if kind == "env" and name and name not in os.environ:
            yield Diagnosis("run file", text, "wrong", "the variable is not set", f"export {name}")
        elif kind == "file" and name.startswith("/") and not Path(name).is_file():
            yield Diagnosis("run file", text, "wrong", "there is no such file", "mount the secret")


def examine_address(address: str) -> Diagnosis:
    """Return whether a host answers, through the proxy where one is set."""
    parts = urlsplit(address)
    proxies = urllib.request.getproxies()
    proxy = None if urllib.request.proxy_bypass(parts.hostname or "") else proxies.get(parts.scheme)
    reached = urlsplit(proxy) if proxy else parts
    through = f" through the proxy {reached.hostname}" if proxy else ""
    try:
        host = reached.hostname or ""
        with socket.create_connection((host, _port_of(reached)), timeout=_SECONDS):
            return Diagnosis("network", address, "ok", f"answers{through}")
    except OSError as refused:
        return Diagnosis(
            "network", address, "wrong", f"cannot be reached{through} ({describe(refused)})",
            "look at the name, the firewall, and HTTPS_PROXY",
        )  # fmt: skip


def _port_of(parts: SplitResult) -> int:
    return _port_in(parts) or (443 if parts.scheme == "https" else 80)


def _port_in(parts: SplitResult) -> int | None:
    """Return the port that an address names; None for none, also where it is no number."""
    try:
        return parts.port
    except ValueError:
        return None


def examine_tracking(uri: str) -> Diagnosis:
    """Return whether MLflow answers; a database beside the store needs none."""
    if not uri.startswith(("http://", "https://")):
        return Diagnosis("network", "MLflow", "ok", "a database of its own, without a server")
    shown = list_addresses(uri)[0]
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_SECONDS) as answer:
            answer.read(1)
        return Diagnosis("network", f"MLflow at {shown}", "ok", "answers")
    except (OSError, ValueError, http.client.HTTPException) as refused:
        reason = f"code {refused.code}" if isinstance(refused, urllib.error.HTTPError) else "none"
        return Diagnosis(
            "network", f"MLflow at {shown}", "notice", f"no answer of a healthy server ({reason})",
            "start it, or correct tracking.uri; training goes on, and `track` brings the rest",
        )  # fmt: skip


def document_of(spec: RunSpec) -> dict[str, Any]:
    """Return a run file as plain values."""
    document: dict[str, Any] = spec.model_dump(mode="json")
    return document
