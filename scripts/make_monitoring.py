"""Writes deploy/monitoring/dashboard.json and prometheusrule.yaml.

    python scripts/make_monitoring.py           write them
    python scripts/make_monitoring.py --check   exit status 1 if one of them is stale

The panels stand below; the rules stand in rules.yaml, which this only wraps for the Prometheus
operator.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.generated import keep  # noqa: E402 - beside this one

FOLDER = ROOT / "deploy/monitoring"
WIDTH, HEIGHT, COLUMNS = 8, 7, 3
ENGINE = 'namespace=~"$namespace", model_name=~"$model"'
VOLUME = 'namespace=~"$namespace"'


@dataclass(frozen=True)
class Panel:
    """One graph: (expression, legend) of each line. ``WHERE`` in it is the choice of series."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    help: str = ""


def rate(metric: str, by: str = "") -> str:
    grouped = f"sum by ({by}) " if by else "sum "
    return f"{grouped}(rate({metric}{{WHERE}}[$__rate_interval]))"


def or_none(expression: str) -> str:
    """0 until the first of something that most engines never have, instead of no data."""
    return f"{expression} or vector(0)"


def quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    inner = rate(f"{metric}_bucket", "le")
    shares = ((0.5, "median"), (0.99, "p99"))
    return tuple((f"histogram_quantile({share}, {inner})", name) for share, name in shares)


def gauge(metric: str, how: str, by: str) -> str:
    return f"{how} by ({by}) ({metric}{{WHERE}})"


HITS = "vllm:external_prefix_cache_hits_total"
QUERIES = "vllm:external_prefix_cache_queries_total"
SHARE = f"{rate(HITS, 'model_name')} / {rate(QUERIES, 'model_name')}"
ROWS: tuple[tuple[str, str, tuple[Panel, ...]], ...] = (
    (
        "What the shelf is good for",
        ENGINE,
        (
            Panel(
                "Share of tokens from the shelf",
                "percentunit",
                ((SHARE, "{{model_name}}"),),
                "Of the prompt tokens that vLLM did not have in memory.",
            ),
            Panel("Lookups", "ops", ((rate("kvshelf:lookups_total", "result"), "{{result}}"),)),
            Panel(
                "Hits computed all the same",
                "ops",
                ((rate("kvshelf:refused_hit_tokens_total"), "tokens"),),
                "Computing was sooner than loading, or the hit too short.",
            ),
            Panel(
                "Requests left alone",
                "ops",
                ((or_none(rate("kvshelf:requests_left_alone_total", "reason")), "{{reason}}"),),
                "Neither loaded nor stored, by reason.",
            ),
            Panel(
                "Weights",
                "short",
                (
                    ("min(kvshelf:weights_known{WHERE})", "known (0: waits for a reset)"),
                    (
                        or_none(
                            "sum(increase(kvshelf:weight_epochs_total{WHERE}[$__rate_interval]))"
                        ),
                        "changes",
                    ),
                ),
                "Engines whose weights changed, and whether all engines load and store.",
            ),
            Panel(
                "Audits",
                "ops",
                (
                    (or_none(rate("kvshelf:audit_chunks_total", "result")), "chunks, {{result}}"),
                    (rate("kvshelf:audit_tokens_total"), "tokens computed"),
                    ("max(kvshelf:audit_off{WHERE})", "off"),
                    *quantiles("kvshelf:audit_distance"),
                ),
                "Hits that were computed and compared with the shelf (audit_percent).",
            ),
        ),
    ),
    (
        "Loading and storing",
        ENGINE,
        (
            Panel(
                "Bytes",
                "Bps",
                (
                    (rate("kvshelf:load_bytes_total"), "loaded"),
                    (rate("kvshelf:store_bytes_total"), "stored"),
                ),
            ),
            Panel(
                "Chunks loaded",
                "ops",
                (
                    (rate("kvshelf:load_chunks_total"), "loaded"),
                    (rate("kvshelf:load_failures_total", "cause"), "{{cause}}"),
                    (rate("kvshelf:healed_chunks_total"), "healed"),
                ),
                "With a cause: failed, and computed.",
            ),
            Panel(
                "Chunks stored",
                "ops",
                ((rate("kvshelf:store_outcomes_total", "outcome"), "{{outcome}}"),),
            ),
            Panel("Time of a load", "s", quantiles("kvshelf:load_seconds")),
            Panel("Time of a store", "s", quantiles("kvshelf:store_seconds")),
            Panel("Time of a lookup", "s", quantiles("kvshelf:lookup_seconds")),
        ),
    ),
    (
        "Health",
        ENGINE,
        (
            Panel(
                "Storage left alone",
                "none",
                (
                    (gauge("kvshelf:breaker_state", "max", "side, root"), "{{side}} {{root}}"),
                    (
                        rate("kvshelf:breaker_openings_total", "side, root"),
                        "{{side}} {{root}}: begins",
                    ),
                ),
                "0 no, 1 one request tries it, 2 yes.",
            ),
            Panel("Queues", "none", ((gauge("kvshelf:queue_files", "sum", "kind"), "{{kind}}"),)),
            Panel(
                "Staging memory in use",
                "bytes",
                ((gauge("kvshelf:write_buffer_used_bytes", "max", "instance"), "{{instance}}"),),
            ),
            Panel(
                "Packing ratio: KV bytes / bytes of their files",
                "none",
                (
                    (
                        f"{gauge('kvshelf:stored_payload_bytes', 'max', 'instance')}"
                        f" / ({gauge('kvshelf:stored_file_bytes', 'max', 'instance')} > 0)",
                        "{{instance}}",
                    ),
                ),
            ),
            Panel(
                "Threads that hang",
                "none",
                ((gauge("kvshelf:hung_threads", "max", "instance"), "{{instance}}"),),
            ),
            Panel(
                "Damaged or foreign chunks removed",
                "none",
                ((gauge("kvshelf:removed_bad_chunks", "max", "instance"), "{{instance}}"),),
            ),
        ),
    ),
    (
        "Capacity: from the lease holder, a replica or kvshelf evict",
        VOLUME,
        (
            Panel(
                "Volume",
                "bytes",
                (
                    (gauge("kvshelf:volume_used_bytes", "max", "root"), "used, {{root}}"),
                    (gauge("kvshelf:volume_total_bytes", "max", "root"), "size, {{root}}"),
                    (gauge("kvshelf:shelf_bytes", "sum", "instance"), "chunks"),
                ),
            ),
            Panel(
                "Files on the shelf",
                "none",
                (
                    (gauge("kvshelf:shelf_chunks", "sum", "instance"), "chunks"),
                    (or_none(gauge("kvshelf:shelf_foreign_files", "max", "instance")), "foreign"),
                ),
            ),
            Panel(
                "Evicted",
                "ops",
                (
                    (or_none(rate("kvshelf:evicted_chunks_total")), "chunks"),
                    (or_none(rate("kvshelf:evict_spared_chunks_total")), "spared: used meanwhile"),
                    (or_none(rate("kvshelf:gone_keys_total")), "reported evicted"),
                    (
                        or_none(rate("kvshelf:evicted_temp_files_total")),
                        "temp files of dead writers",
                    ),
                ),
            ),
            Panel(
                "Bytes evicted",
                "Bps",
                (
                    (or_none(rate("kvshelf:evicted_bytes_total")), "bytes"),
                    (
                        or_none(rate("kvshelf:evicted_temp_bytes_total")),
                        "temp files of dead writers",
                    ),
                ),
            ),
            Panel(
                "Eviction",
                "none",
                (
                    (gauge("kvshelf:evict_state", "max", "root"), "state, {{root}}"),
                    (gauge("kvshelf:evict_lease_held", "sum", "root"), "leases held, {{root}}"),
                    (gauge("kvshelf:evict_held_chunks", "max", "job"), "cannot be removed"),
                    (or_none(rate("kvshelf:evict_faults_total")), "faults"),
                    (
                        or_none(rate("kvshelf:evict_no_effect_total")),
                        "suspended: makes no room",
                    ),
                    (or_none(rate("kvshelf:evict_room_requests_total")), "requests for room"),
                ),
                "State: 0 within limits, 1 scanning, 2 evicting, 3 nothing may go, 4 blind.",
            ),
            Panel(
                "Time of an eviction",
                "s",
                (
                    (
                        or_none(gauge("kvshelf:evict_pass_seconds", "max", "instance")),
                        "{{instance}}",
                    ),
                ),
            ),
        ),
    ),
)


def _panel(panel: Panel, number: int, place: tuple[int, int], where: str) -> dict[str, Any]:
    x, y = place
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": source,
                "expr": expression.replace("WHERE", where),
                "legendFormat": legend,
            }
            for index, (expression, legend) in enumerate(panel.lines)
        ],
    }


def _variable(name: str, label: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": f"label_values(kvshelf:lookups_total, {label})",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, where, row in ROWS:
        place = {"x": 0, "y": y, "w": COLUMNS * WIDTH, "h": 1}
        heading = {"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place}
        panels.append(heading | {"panels": [], "collapsed": False})
        y += 1
        for index, panel in enumerate(row):
            column, line = index % COLUMNS, index // COLUMNS
            at = column * WIDTH, y + line * HEIGHT
            panels.append(_panel(panel, len(panels) + 1, at, where))
        y += -(-len(row) // COLUMNS) * HEIGHT
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "source"}
    return {
        "uid": "kvshelf",
        "title": "kvshelf",
        "tags": ["kvshelf", "vllm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [source, _variable("namespace", "namespace"), _variable("model", "model_name")]
        },
        "panels": panels,
    }


def prometheus_rule() -> str:
    """rules.yaml as it stands, with its comments, in the operator's object."""
    rules = (FOLDER / "rules.yaml").read_text(encoding="utf-8")
    _, _, groups = rules.partition("groups:\n")
    indented = "".join(f"  {line}\n" if line else "\n" for line in groups.splitlines())
    return (
        "# Made from rules.yaml by scripts/make_monitoring.py: change that instead.\n"
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: kvshelf\n"
        f"spec:\n  groups:\n{indented}"
    )


def main(arguments: list[str]) -> int:
    made = {
        FOLDER / "dashboard.json": json.dumps(dashboard(), indent=1) + "\n",
        FOLDER / "prometheusrule.yaml": prometheus_rule(),
    }
    return keep(made, arguments, "make_monitoring.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
