"""Ray's own Prometheus endpoint serves what the Grafana dashboard asks for."""

from __future__ import annotations

import importlib.util
import json
import re
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from perennial.telemetry.gauges import Gauges
from perennial.telemetry.prometheus import METRICS, Exported
from perennial.training.ray.progress_actor import Progress

DASHBOARD = Path(__file__).parents[3] / "k8s" / "monitoring" / "grafana-dashboard.json"
PATIENCE_SECONDS = 120
_NAME = re.compile(r"\bray_(perennial_\w+)")


def asked() -> dict[str, set[str]]:
    """Labels that the dashboard uses, by metric that it queries."""
    found: dict[str, set[str]] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            labels |= set(re.findall(r"(\w+)=~", target["expr"]))
            for name in _NAME.findall(target["expr"]):
                found.setdefault(name, set()).update(labels)
    return found


def scrape() -> dict[str, str]:
    """The lines that the node serves of this project's metrics, by metric."""
    import ray

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {match[1]: line for line in lines if (match := _NAME.match(line))}


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    assert set(asked()) == set(METRICS)


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("prometheus_client") is None, reason="needs ray[default]"
)
@pytest.mark.usefixtures("ray_local")
def test_the_endpoint_serves_what_the_dashboard_asks() -> None:
    exported = Exported("quickstart")
    row = {
        "step": 7,
        "loss": 5.5,
        "eta": 1e-3,
        "phase": "warmup",
        "batch_tokens": 4096,
        "tokens_per_second": 1e4,
    }
    job = cast(Any, SimpleNamespace(name="00-english", tokens_per_step=4096))
    exported.begin(job)
    rows = [row, row | {"step": 8, "phase": "cooldown"}]
    exported.progress(job, Progress(started=[(0, 2)], rows=rows, failed_saves=[5]))
    exported.source("crawl", 3)
    exported.controller(Gauges("training english", ("french",), 60.0))
    exported.trained("00-english", 90.0)
    wanted, deadline, served = asked(), time.monotonic() + PATIENCE_SECONDS, dict[str, str]()
    while set(served) != set(wanted):
        assert time.monotonic() < deadline, set(wanted) - set(served)
        time.sleep(0.5)
        with suppress(OSError):  # the agent that serves starts after Ray does
            served = scrape()
    for name, labels in wanted.items():
        for label in labels:
            assert f'{label}="' in served[name], served[name]
    assert served["perennial_step"].endswith(" 8.0")
    assert served["perennial_data_lag_seconds"].endswith(" 60.0")
    assert served["perennial_failed_checkpoints"].endswith(" 1.0")
    assert served["perennial_source_failures"].endswith(" 3.0")
    assert 'lineage="quickstart"' in served["perennial_loss"]
