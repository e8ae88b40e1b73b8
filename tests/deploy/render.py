"""Renders variants of ``deploy/`` with the real kubectl, as ``kubectl apply -k`` would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import DEPLOY, run, tool

Object = dict[str, Any]

GATEWAYS = ("istio", "agentgateway", "gke")
OVERLAYS = ("nvidia", "cpu")
KV_EVENTS = "nvidia+kv-events"


def copy_of_deploy(folder: Path) -> Path:
    """A working copy, so that a test can edit it as a user would."""
    return Path(shutil.copytree(DEPLOY, folder / "deploy"))


def with_kv_events(folder: Path) -> Path:
    """A copy with the component switched on: its lines are there, commented out."""
    deploy = copy_of_deploy(folder)
    for name in ("overlays/nvidia", "base/pool"):
        path = deploy / name / "kustomization.yaml"
        text = path.read_text()
        assert "\n# - ../../components/kv-events/" in text, path
        path.write_text(text.replace("\n# - ../../components", "\n- ../../components"))
    return deploy


def kustomize(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    text = run([tool("kubectl"), "kustomize", folder]).stdout
    return [item for item in yaml.safe_load_all(text) if item]


@dataclass(frozen=True)
class Variant:
    """All that one deployment applies."""

    gateway: str
    overlay: str

    def folders(self, deploy: Path) -> list[Path]:
        overlay = self.overlay.partition("+")[0]
        parts = (f"gateway/{self.gateway}", "base/storage", f"overlays/{overlay}", "base/pool")
        return [deploy / part for part in (*parts, "monitoring")]

    def objects(self, scratch: Path) -> list[Object]:
        deploy = with_kv_events(scratch) if "+" in self.overlay else DEPLOY
        return [item for folder in self.folders(deploy) for item in kustomize(folder)]


VARIANTS = [
    Variant("istio", "nvidia"),
    Variant("agentgateway", "nvidia"),
    Variant("gke", "nvidia"),
    Variant("istio", "cpu"),
    Variant("istio", KV_EVENTS),
]


def of_kind(objects: Sequence[Object], kind: str) -> Iterator[Object]:
    return (item for item in objects if item["kind"] == kind)


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = (item for item in of_kind(objects, kind) if item["metadata"]["name"] == name)
    return found


def connector_config(objects: Sequence[Object]) -> dict[str, Any]:
    """What the rendered pods give to vLLM as --kv-transfer-config."""
    (text,) = (
        item["data"]["kv-transfer.json"]
        for item in of_kind(objects, "ConfigMap")
        if "kv-transfer.json" in item["data"]
    )
    config: dict[str, Any] = json.loads(text)
    return config
