"""Renders variants of ``deploy/`` with the real kubectl, as ``kubectl apply -k`` would."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import DEPLOY, run, tool

Object = dict[str, Any]

GATEWAYS = ("istio", "agentgateway", "gke")
STANDALONE = "standalone"
OVERLAYS = ("nvidia", "cpu")
PREFIX = "second-"  # components/instance
# Optional components, by the folders whose kustomizations offer them.
OFFERED = ("overlays/nvidia", "overlays/cpu", "base/pool", "standalone")


def copy_of_deploy(folder: Path) -> Path:
    """A working copy, so that a test can edit it as a user would."""
    return Path(shutil.copytree(DEPLOY, folder / "deploy"))


def offered(folder: str) -> list[str]:
    """The optional components of a kustomization: lines that are commented out."""
    text = (DEPLOY / folder / "kustomization.yaml").read_text()
    return re.findall(r"^# - (?:\.\./)+components/(\S+)$", text, re.M)


def switch_on(deploy: Path, *components: str) -> Path:
    """As a reader does: the "# " before a component goes, wherever it is offered.

    Args:
        components: names; "kv-events" stands for all below it.
    """
    for name in components:
        line = re.compile(rf"^# (- (?:\.\./)+components/{name}(?:/\S+)?)$", re.M)
        found = 0
        for folder in OFFERED:
            path = deploy / folder / "kustomization.yaml"
            text, count = line.subn(r"\1", path.read_text())
            path.write_text(text)
            found += count
        assert found, name
    return deploy


def kustomize(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    text = run([tool("kubectl"), "kustomize", folder]).stdout
    return [item for item in yaml.safe_load_all(text) if item]


@dataclass(frozen=True)
class Variant:
    """All that one deployment applies.

    Attributes:
        gateway: a folder of gateway/, or STANDALONE.
        components: that are switched on; "static-pv" in the place of storage-class.
        prefixed: whether it is a second one in its namespace, by components/instance.
    """

    gateway: str
    overlay: str
    components: tuple[str, ...] = ()
    prefixed: bool = False

    def __str__(self) -> str:
        return "-".join((PREFIX * self.prefixed + self.gateway, self.overlay, *self.components))

    def parts(self) -> list[str]:
        way = (f"gateway/{self.gateway}", "base/pool")
        if self.gateway == STANDALONE:
            way = (STANDALONE, "")
        return [p for p in (way[0], "base/storage", f"overlays/{self.overlay}", way[1]) if p]

    def objects(self, scratch: Path) -> list[Object]:
        deploy = copy_of_deploy(scratch)
        optional = [name for name in self.components if name != "static-pv"]
        switch_on(deploy, *optional)
        if "static-pv" in self.components:
            path = deploy / "base/storage/kustomization.yaml"
            path.write_text(path.read_text().replace("storage-class", "static-pv"))
        parts = [*self.parts(), "monitoring"]
        if not self.prefixed:
            return [item for part in parts for item in kustomize(deploy / part)]
        own = {
            "resources": [f"../{part}" for part in parts],
            "components": ["../components/instance"],
        }
        (deploy / "own").mkdir()
        (deploy / "own/kustomization.yaml").write_text(json.dumps(own))
        return kustomize(deploy / "own")


# Together in one variant goes what does not exclude each other.
EVERY = (
    "model-cache",
    "evict-chart",
    "kv-events",
    "pdb",
    "network-policy",
    "placement",
    "image-pull-secret",
)
VARIANTS = [
    Variant("istio", "nvidia"),
    Variant("agentgateway", "nvidia"),
    Variant("gke", "nvidia"),
    Variant("istio", "cpu"),
    Variant(STANDALONE, "nvidia"),
    Variant(STANDALONE, "cpu"),
    Variant("istio", "nvidia", ("kv-events",)),
    Variant("gke", "nvidia", (*EVERY, "auth-key", "static-pv")),
    Variant(STANDALONE, "nvidia", (*EVERY, "several-roots")),
    Variant("istio", "nvidia", ("tier", "pdb")),
    Variant("istio", "cpu", ("api-key",)),
    Variant("istio", "nvidia", prefixed=True),
    Variant("gke", "cpu", ("pdb", "network-policy", "model-cache"), prefixed=True),
    Variant(STANDALONE, "nvidia", prefixed=True),
]
OPENSHIFT = Variant("istio", "nvidia", ("openshift",))


def of_kind(objects: Sequence[Object], kind: str) -> Iterator[Object]:
    return (item for item in objects if item["kind"] == kind)


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = (item for item in of_kind(objects, kind) if item["metadata"]["name"] == name)
    return found


def our(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name, whatever prefix its deployment has."""
    (found,) = (i for i in of_kind(objects, kind) if i["metadata"]["name"].endswith(name))
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
