"""The guide, executed: its own commands, by real kubectl and helm, against our small API server.

The blocks of "Is it working?" need replicas that run: test_running.py executes those.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import guide
from tests.deploy.api.server import Server
from tests.deploy.render import copy_of_deploy
from tests.deploy.tools import DEPLOY, module

pytestmark = pytest.mark.timeout(400)


class Site:
    """A server, a copy of ``deploy/`` and a shell that speaks to it."""

    def __init__(self, folder: Path, server: Server, gateway: str = "istio") -> None:
        module("kubernetes_validate")
        self.server = server
        self.folder = folder
        self.check_out()
        self.gateway = gateway
        kubeconfig = server.kubeconfig(folder / "kubeconfig")
        self.shell = guide.Shell(folder, kubeconfig, GATEWAY=gateway, HF_TOKEN="")

    def check_out(self) -> None:
        """``deploy/`` as it is in the repository, without what the page's commands changed."""
        shutil.rmtree(self.folder / "deploy", ignore_errors=True)
        copy_of_deploy(self.folder)

    def kinds(self) -> list[str]:
        return sorted(item["kind"] for item in self.server.store.everything())

    def play(self, *sections: str) -> dict[str, str]:
        """Execute the blocks of sections, all if none is named; their outputs by their text."""
        return {
            block.text: self.shell.run(block.text)
            for block in guide.blocks()
            if block.kind == "bash" and not block.pods and block.is_for(self.gateway)
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


def walk(site: Site) -> str:
    """Every block of the page that a reader executes who chose as the site did; what they said."""
    said = ""
    everything = list(guide.blocks())
    for block, following in zip(everything, [*everything[1:], None], strict=True):
        if block.kind != "bash" or block.pods or not block.is_for(site.gateway):
            continue
        output = site.shell.run(block.text)
        said += output
        if following is not None and following.kind == "text" and block.section == "Verify":
            *_, table = output.partition("NAME")  # a block may say more before its table
            shown = following.text
            if site.gateway == "standalone":  # as the page says
                shown = re.sub(r"(llm-d-infpool-epp.*)1/1", r"\g<1>2/2", shown)
            assert guide.cell_shapes(f"NAME{table}") == guide.cell_shapes(shown)
    return said


@pytest.mark.parametrize("hardware", ["nvidia", "cpu"])
@pytest.mark.parametrize("gateway", ["istio", "standalone"])
def test_the_guide_runs_from_its_first_block_to_its_last_twice(
    tmp_path: Path, gateway: str, hardware: str
) -> None:
    """Install, verify, upgrade, clean up; outputs as the page shows them; nothing is left."""
    with Server() as server:
        site = Site(tmp_path, server, gateway)
        site.shell.run(f"export HARDWARE={hardware}")
        for _ in range(2):
            site.check_out()
            said = walk(site)
            way_in = {
                "istio": (
                    "gateway.gateway.networking.k8s.io/llm-d-inference-gateway created",
                    "destinationrule.networking.istio.io/llm-d-infpool-epp created",
                    "inferencepool.inference.networking.k8s.io/llm-d-infpool created",
                ),
                "standalone": ("service/llm-d-router created",),
            }
            for line in (
                *way_in[gateway],
                "persistentvolumeclaim/llm-d-kv-cache-storage created",
                "job.batch/kvshelf-prepare condition met",
                "deployment.apps/llm-d-model-server created",
                "deployment.apps/llm-d-model-server configured",
                'deployment "llm-d-model-server" successfully rolled out',
                "STATUS: deployed",
                'release "kv-evictor" uninstalled',
            ):
                assert line in said, line
            assert "inferencepool" not in said or gateway != "standalone"
            assert site.kinds() == []


CUSTOM = (
    "monitoring.coreos.com",
    "networking.gke.io",
    "networking.istio.io",
    "gateway.networking.k8s.io",
    "inference.networking.k8s.io",
)


def test_standalone_on_a_cluster_without_custom_resources(tmp_path: Path) -> None:
    """No operator, no Gateway API, no evictor: every block still ends well."""
    with Server(without=CUSTOM) as server:
        site = Site(tmp_path, server, "standalone")
        site.play(*INSTALL, "Monitoring", "Clean up")
        assert site.kinds() == []


def test_the_short_page_runs_on_a_cluster_without_custom_resources(tmp_path: Path) -> None:
    with Server(without=CUSTOM) as server:
        site = Site(tmp_path, server, "standalone")
        site.shell.run("export REGISTRY=r.corp/x STORAGE_CLASS=fast")
        for block in guide.blocks(DEPLOY.parent / "docs/start/kubernetes.md"):
            if block.kind == "bash":
                said = site.shell.run(block.text)
        assert "successfully rolled out" in said
        (claim,) = server.store.all("PersistentVolumeClaim")
        assert claim["spec"]["storageClassName"] == "fast"
        images = {
            container["image"].rpartition("/")[0]
            for pod in server.store.all("Pod")
            for container in pod["spec"]["containers"]
        }
        assert "r.corp/x" in images and "registry.example.com" not in images


@pytest.mark.parametrize("token", ["", "hf_x"])
def test_the_secret_is_made_with_a_token_alone(site: Site, token: str) -> None:
    """A placeholder would be answered 401 for public models too."""
    site.shell.run(f"export HF_TOKEN={token}")
    site.play("Prerequisites")
    secrets = [item["metadata"]["name"] for item in site.server.store.all("Secret")]
    assert secrets == ["llm-d-hf-token"] * bool(token)


def test_applying_again_changes_nothing(site: Site) -> None:
    site.play(*INSTALL)
    again = site.play(*INSTALL[1:])
    lines = [line for output in again.values() for line in output.splitlines()]
    assert len(lines) > 10
    fine = (" unchanged", "rolled out", "labeled", "condition met", "unlabeled")
    job = 'job.batch "kvshelf-prepare" deleted', "job.batch/kvshelf-prepare created"
    assert [x for x in lines if not x.endswith(fine) and not x.startswith(job)] == []
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
    site.shell.run("sed -i 's/newTag: .*/newTag: 9.9-new/' components/image/kustomization.yaml")
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
    values: dict[str, Any] = {
        "image": {"repository": "registry.example.com/kvshelf-vllm"},
        "metrics": {"podMonitor": True},
        "limits": {"shelf": "2TB"},
    }

    (tmp_path / "values.json").write_text(json.dumps(values))
    site.shell.run(f"helm install x charts/kv-evictor -n $NAMESPACE -f {tmp_path}/values.json")
    assert "x-kv-evictor" in {i["metadata"]["name"] for i in site.server.store.all("PodMonitor")}
    site.shell.run("helm uninstall x -n $NAMESPACE")
    assert site.server.store.all("Deployment") == []
