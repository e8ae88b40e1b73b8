"""A real Prometheus that scrapes pods as the PodMonitor says and evaluates the rules."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.deploy import expressions
from tests.deploy.render import named
from tests.deploy.tools import tool
from tests.e2e.servers import free_port


class Prometheus:
    """Started by ``with``.

    Args:
        folder: for its data; made here.
        monitoring: the objects of deploy/monitoring.
        targets: ``host:port`` of each pod.
    """

    def __init__(
        self, folder: Path, monitoring: Sequence[dict[str, Any]], targets: Sequence[str]
    ) -> None:
        folder.mkdir()
        (endpoint,) = named(monitoring, "PodMonitor", "llm-d-model-server")["spec"][
            "podMetricsEndpoints"
        ]
        rules = yaml.safe_load((expressions.FOLDER / "rules.yaml").read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule.pop("for", None)  # an alert is to fire while the test looks
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "rules.yaml")],
            "scrape_configs": [
                {
                    "job_name": "llm-d-model-server",
                    "metrics_path": endpoint["path"],
                    "static_configs": [
                        {"targets": list(targets), "labels": {"namespace": "llm-d-storage"}}
                    ],
                }
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        port = free_port()
        self._command = [
            str(tool("prometheus", optional=True)),
            f"--config.file={folder}/prometheus.yaml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        self._address = f"http://127.0.0.1:{port}/api/v1/query"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Prometheus:
        self._process = subprocess.Popen(self._command)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)

    def query(self, text: str) -> list[dict[str, Any]]:
        """The series of an instant query; none while it is starting."""
        try:
            reply = httpx.get(self._address, params={"query": text}, timeout=30)
        except httpx.TransportError:
            return []
        if reply.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # in words, before it is ready
            return []
        body = reply.json()
        assert body["status"] == "success", body
        series: list[dict[str, Any]] = body["data"]["result"]
        return [one for one in series if one["value"][1] != "NaN"]

    def await_data(self, texts: Sequence[str], seconds: float) -> list[str]:
        """Wait until every query has data; the ones that have none by then."""
        deadline = time.monotonic() + seconds
        left = list(texts)
        while left and time.monotonic() < deadline:
            left = [text for text in left if not self.query(text)]
            time.sleep(0.5)
        return left
