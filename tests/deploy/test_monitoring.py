"""Rules, alerts and dashboard: they fit our metrics, and promtool's own tests of them pass.

test_running.py asks them of a real Prometheus that scrapes real engines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import expressions
from tests.deploy.render import kustomize, named
from tests.deploy.tools import REPOSITORY, run, tool


def test_generated_files_are_current() -> None:
    script = REPOSITORY / "scripts/make_monitoring.py"
    done = run([sys.executable, script, "--check"], check=False)
    assert done.returncode == 0, done.stdout


def test_every_name_exists() -> None:
    recorded = {rule.where for kind, rule in expressions.rules() if kind == "record"}
    known = expressions.ours() | expressions.VLLM | expressions.KUBELET
    every = [*expressions.panels(), *(rule for _, rule in expressions.rules())]
    assert [
        (e.where, e.names - known - recorded) for e in every if e.names - known - recorded
    ] == []
    assert all(expression.names for expression in every)


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = {name for panel in expressions.panels() for name in panel.names}
    assert expressions.ours() - shown == set()


def test_every_recorded_ratio_has_an_alert() -> None:
    recorded = {rule.where for kind, rule in expressions.rules() if kind == "record"}
    alerted = {n for kind, rule in expressions.rules() if kind == "alert" for n in rule.names}
    assert recorded <= alerted


def test_panels_do_not_overlap_and_have_units() -> None:
    taken: set[tuple[int, int]] = set()
    numbers = [panel["id"] for panel in expressions.dashboard()["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in expressions.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24  # Grafana's grid
        taken |= cells
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]


def test_promtool_takes_the_rules_and_their_tests_pass() -> None:
    promtool = tool("promtool", optional=True)
    run([promtool, "check", "rules", expressions.FOLDER / "rules.yaml"])
    run([promtool, "test", "rules", "rules_test.yaml"], cwd=expressions.FOLDER)


def test_every_alert_has_a_promtool_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((expressions.FOLDER / "rules_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", ())
        if case.get("exp_alerts")
    }
    assert fired == {rule.where for kind, rule in expressions.rules() if kind == "alert"}


def test_promtool_takes_every_panel(tmp_path: Path) -> None:
    promtool = tool("promtool", optional=True)
    rules = [
        {"record": f"panel:{number}", "expr": panel.text}
        for number, panel in enumerate(expressions.panels())
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run([promtool, "check", "rules", path])


def test_the_operators_objects_carry_rules_and_dashboard() -> None:
    objects = kustomize(expressions.FOLDER)
    rule = named(objects, "PrometheusRule", "kvshelf")
    plain = yaml.safe_load((expressions.FOLDER / "rules.yaml").read_text())
    assert rule["spec"] == plain
    board = named(objects, "ConfigMap", "kvshelf-dashboard")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"]["dashboard.json"])["uid"] == "kvshelf"


@pytest.mark.parametrize(
    ("path", "value"), [("spec.groups.0.rules.0.forr", "5m"), ("spec.groups.0.name", "")]
)
def test_a_wrong_rule_object_is_refused(path: str, value: Any) -> None:
    from tests.deploy import strict
    from tests.deploy.test_render import changed

    broken = changed(kustomize(expressions.FOLDER), "PrometheusRule", "kvshelf", path, value)
    assert strict.problems(broken)
