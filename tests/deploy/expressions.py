"""The PromQL of ``deploy/monitoring``: of every panel, rule and alert."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from kvshelf.metrics import EVICT_METRICS, METRICS, Kind
from tests.deploy.tools import DEPLOY

FOLDER = DEPLOY / "monitoring"
# Names of series: vLLM's and ours have a colon, as have recorded ones; the kubelet's begin so.
_NAME = re.compile(r"\b(?:kvshelf|vllm|job):\w+(?::\w+)?|\bkubelet_\w+")
# Series that begin with the first fault: promtool tests their alerts (rules_test.yaml).
FAULTS_ONLY = {"kvshelf:evict_no_effect_total"}
KUBELET = {"kubelet_volume_stats_used_bytes", "kubelet_volume_stats_capacity_bytes"}
VLLM = {"vllm:external_prefix_cache_hits_total", "vllm:external_prefix_cache_queries_total"}


@dataclass(frozen=True)
class Expression:
    """One query. ``where``: which panel, rule or alert it belongs to."""

    where: str
    text: str

    @property
    def names(self) -> set[str]:
        return set(_NAME.findall(self.text))


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return content


def panels(row: str = "") -> Iterator[Expression]:
    """With Grafana's variables as Grafana would fill them in.

    Args:
        row: how the title of the row begins whose panels are wanted; "": all.
    """
    title = ""
    for panel in dashboard()["panels"]:
        title = panel["title"] if panel["type"] == "row" else title
        if not title.startswith(row):
            continue
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m")
            yield Expression(
                panel["title"], text.replace("$namespace", ".*").replace("$model", ".*")
            )


def rules() -> Iterator[tuple[str, Expression]]:
    """("record" or "alert", its expression)."""
    for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            kind = "alert" if "alert" in rule else "record"
            yield kind, Expression(rule[kind], rule["expr"])


def without_threshold(alert: Expression) -> Expression:
    """What an alert compares: it has data also while all is well."""
    text, _, limit = re.split(r" ([<>]) (?=[\d.]+$)", alert.text)
    assert float(limit) >= 0
    return Expression(alert.where, text)


def ours() -> set[str]:
    """The names that Prometheus shows for kvshelf's metrics; a histogram's as queried."""
    made = set()
    for metric in {*METRICS, *EVICT_METRICS}:
        suffix = {Kind.COUNTER: "_total", Kind.HISTOGRAM: "_bucket"}.get(metric.kind, "")
        made.add(metric.name + suffix)
    return made
