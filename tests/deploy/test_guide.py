"""The guide, executed: its own commands, by real kubectl and helm, against our small API server.

The blocks of "Is it working?" need replicas that run: test_running.py executes those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import guide
from tests.deploy.api.server import Server
from tests.deploy.render import copy_of_deploy
from tests.deploy.tools import module

pytestmark = pytest.mark.timeout(400)


class Site:
    """A server, a copy of ``deploy/`` and a shell that speaks to it."""

    def __init__(self, folder: Path, server: Server) -> None:
        module("kubernetes_validate")
        copy_of_deploy(folder)
        self.server = server
        self.folder = folder
        self.shell = guide.Shell(folder, server.kubeconfig(folder / "kubeconfig"))

    def kinds(self) -> list[str]:
        return sorted(item["kind"] for item in self.server.store.everything())

    def play(self, *sections: str) -> dict[str, str]:
        """Execute the blocks of sections, all if none is named; their outputs by their text."""
        return {
            block.text: self.shell.run(block.text)
            for block in guide.blocks()
            if block.kind == "bash" and not block.pods
            if not sections or block.section in sections
        }


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Server() as server:
        yield Site(tmp_path, server)


INSTALL = (
    "Prerequisites",
    "1. Gateway and HTTPRoute",
    "2. Shared storage",
    "3. Model server",
    "4. InferencePool",
)


def test_the_guide_runs_from_its_first_block_to_its_last(site: Site) -> None:
    """Install, verify, upgrade, clean up; outputs as the page shows them; nothing is left."""
    outputs: list[tuple[str, str]] = []
    everything = list(guide.blocks())
    for block, following in zip(everything, [*everything[1:], None], strict=True):
        if block.kind != "bash" or block.pods:
            continue
        output = site.shell.run(block.text)
        outputs.append((block.section, output))
        if following is not None and following.kind == "text" and block.section == "Verify":
            *_, table = output.partition("NAME")  # a block may say more before its table
            assert guide.cell_shapes(f"NAME{table}") == guide.cell_shapes(following.text)
    said = "".join(output for _, output in outputs)
    for line in (
        "gateway.gateway.networking.k8s.io/llm-d-inference-gateway created",
        "persistentvolumeclaim/llm-d-kv-cache-storage created",
        "deployment.apps/llm-d-model-server created",
        "inferencepool.inference.networking.k8s.io/llm-d-infpool created",
        "deployment.apps/llm-d-model-server configured",
        'deployment "llm-d-model-server" successfully rolled out',
        "STATUS: deployed",
        'release "kv-evictor" uninstalled',
    ):
        assert line in said, line
    assert site.kinds() == []


def test_applying_again_changes_nothing(site: Site) -> None:
    site.play(*INSTALL)
    again = site.play(*INSTALL[1:])
    lines = [line for output in again.values() for line in output.splitlines()]
    assert len(lines) > 10
    assert [x for x in lines if not x.endswith((" unchanged", "rolled out"))] == []
    assert site.shell.run("kubectl diff -n $NAMESPACE -k overlays/$HARDWARE") == ""


def test_the_claim_first_hangs_as_in_a_real_cluster(site: Site) -> None:
    """The mistake that the guide's order avoids: pvc-protection keeps a claim that pods use."""
    site.play(*INSTALL)
    said = site.shell.fails("kubectl delete -n $NAMESPACE -k base/storage --timeout=2s")
    assert "timed out waiting for the condition" in said
    assert "Terminating" in site.shell.run("kubectl get pvc -n $NAMESPACE")
    site.shell.run("kubectl delete -n $NAMESPACE -k overlays/$HARDWARE")
    assert "PersistentVolumeClaim" not in site.kinds()


def test_an_upgrade_replaces_the_pods(site: Site) -> None:
    site.play(*INSTALL)
    before = {item["metadata"]["name"] for item in site.server.store.all("Pod")}
    site.shell.run("sed -i 's/newTag: .*/newTag: 9.9-new/' overlays/$HARDWARE/kustomization.yaml")
    site.shell.run("kubectl apply -n $NAMESPACE -k overlays/$HARDWARE")
    pods = site.server.store.all("Pod")
    servers = [pod for pod in pods if "model-server" in pod["metadata"]["name"]]
    images = {pod["spec"]["containers"][0]["image"] for pod in servers}
    assert images == {"registry.example.com/kvshelf-vllm:9.9-new"}
    assert len(servers) == 2
    assert not before & {pod["metadata"]["name"] for pod in servers}
    assert len(servers[0]["spec"]["containers"][0]["env"]) > 10  # the patch lost nothing


def test_another_namespace_than_the_files_say_is_refused_by_kubectl(site: Site) -> None:
    site.play("Prerequisites")
    site.shell.run("kubectl create namespace other")
    said = site.shell.fails("kubectl apply -n other -k base/pool")
    assert "does not match the namespace" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("s/failureMode: .*/failureMode: FailClosed/", "is not one of"),
        ("s/targetPorts:/targetPortNumber: 8000\\n  targetPorts:/", "targetPortNumber"),
        ("s/      number: 9002/      nummer: 9002/", "number"),
    ],
)
def test_the_server_refuses_what_a_cluster_would(site: Site, change: str, says: str) -> None:
    site.play("Prerequisites")
    site.shell.run(f"sed -i '{change}' base/pool/pool.yaml")
    said = site.shell.fails("kubectl apply -n $NAMESPACE -k base/pool")
    assert "InferencePool" in said and says in said, said


def test_helm_installs_the_chart_with_every_value(site: Site, tmp_path: Path) -> None:
    site.play("Prerequisites")
    values: dict[str, Any] = {"metrics": {"podMonitor": True}, "limits": {"shelf": "2TB"}}

    (tmp_path / "values.json").write_text(json.dumps(values))
    site.shell.run(f"helm install x charts/kv-evictor -n $NAMESPACE -f {tmp_path}/values.json")
    assert "x-kv-evictor" in {i["metadata"]["name"] for i in site.server.store.all("PodMonitor")}
    site.shell.run("helm uninstall x -n $NAMESPACE")
    assert site.server.store.all("Deployment") == []
