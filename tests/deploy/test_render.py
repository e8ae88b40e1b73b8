"""Every variant renders, and an API server would take every object of it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from kvshelf.config import Settings
from tests.deploy import strict
from tests.deploy.render import (
    DEPLOY,
    GATEWAYS,
    PREFIX,
    Object,
    connector_config,
    copy_of_deploy,
    kustomize,
    named,
    switch_on,
)

NAMES = {  # of the guide
    "Gateway": {"llm-d-inference-gateway"},
    "HTTPRoute": {"llm-d-route"},
    "InferencePool": {"llm-d-infpool"},
    "PersistentVolumeClaim": {"llm-d-kv-cache-storage"},
}
CLASSES = {
    "istio": "istio",
    "agentgateway": "agentgateway",
    "gke": "gke-l7-regional-external-managed",
}


def test_names_are_those_of_the_guide(variant: list[Object]) -> None:
    for kind, names in NAMES.items():
        found = {i["metadata"]["name"].removeprefix(PREFIX) for i in variant if i["kind"] == kind}
        assert not found or names <= found
    deployments = {
        i["metadata"]["name"].removeprefix(PREFIX) for i in variant if i["kind"] == "Deployment"
    }
    assert {"llm-d-model-server", "llm-d-infpool-epp"} <= deployments
    spaces = {i["metadata"]["namespace"] for i in variant if i["kind"] != "PersistentVolume"}
    assert spaces == {"llm-d-storage"}


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_a_gateway_variant_sets_the_class_alone(gateway: str) -> None:
    objects = kustomize(DEPLOY / "gateway" / gateway)
    spec = named(objects, "Gateway", "llm-d-inference-gateway")["spec"]
    assert spec.pop("gatewayClassName") == CLASSES[gateway]
    base = kustomize(DEPLOY / "gateway/base")
    expected = named(base, "Gateway", "llm-d-inference-gateway")["spec"]
    expected.pop("gatewayClassName")
    assert spec == expected


def test_every_object_has_the_schema_that_it_claims(variant: list[Object]) -> None:
    assert {item["kind"] for item in variant if not strict.knows(item)} == set()
    assert [problem for item in variant for problem in strict.problems(item)] == []


def changed(objects: list[Object], kind: str, name: str, path: str, value: Any) -> Object:
    """A copy of an object with one field replaced; ``None`` removes it."""
    item = copy.deepcopy(named(objects, kind, name))
    *parents, last = (int(p) if p.isdigit() else p for p in path.split("."))
    inner: Any = item
    for part in parents:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return item


POOL = "InferencePool", "llm-d-infpool"
SERVER = "Deployment", "llm-d-model-server"
ROUTE = "HTTPRoute", "llm-d-route"
GATEWAY = "Gateway", "llm-d-inference-gateway"
RULE = "DestinationRule", "llm-d-infpool-epp"


@pytest.mark.parametrize(
    ("item", "path", "value", "says"),
    [
        (POOL, "spec.selector", {"app": "vllm"}, "'matchLabels' is a required property"),
        (POOL, "spec.targetPorts", [{"number": 1}, {"number": 1}], "unique|two equal"),
        (POOL, "spec.endpointPickerRef.port", None, "port"),
        (POOL, "spec.endpointPickerRef.failureMode", "FailClosed", "'FailClosed' is not one of"),
        (POOL, "spec.targetPortNumber", 8000, "'targetPortNumber' was unexpected"),
        (SERVER, "spec.template.spec.containers.0.portz", [], "'portz' was unexpected"),
        (SERVER, "spec.replicas", "two", "integer"),
        (ROUTE, "spec.rules.0.matches.0.path.value", "//", "must not contain"),
        (ROUTE, "spec.rules.0.timeouts.request", "300", "does not match"),
        (GATEWAY, "spec.listeners.0.port", 70000, "maximum"),
        (GATEWAY, "spec.gatewayClassName", None, "'gatewayClassName' is a required property"),
        (RULE, "spec.trafficPolicy.tls.mode", "Simple", "'Simple' is not one of"),
        (RULE, "spec.host", None, "'host' is a required property"),
        (
            ("PodMonitor", "llm-d-model-server"),
            "spec.podMetricsEndpoints.0.prot",
            "x",
            "unexpected",
        ),
    ],
)
def test_the_schemas_refuse(
    render: Any, item: tuple[str, str], path: str, value: Any, says: str
) -> None:
    from tests.deploy.render import VARIANTS

    broken = changed(render(VARIANTS[0]), *item, path, value)
    found = " ".join(strict.problems(broken))
    assert any(word in found for word in says.split("|")), found


def test_one_edit_names_the_images_registry_and_tag(scratch: Path) -> None:
    """The command of the guide: no image of ours is left behind."""
    deploy = switch_on(copy_of_deploy(scratch), "kv-events")
    path = deploy / "components/image/kustomization.yaml"
    text = path.read_text().replace("registry.example.com", "r.corp/x")
    path.write_text(re.sub("newTag: .*", "newTag: 9.9-x", text))
    folders = ("overlays/nvidia", "overlays/cpu", "base/pool", "standalone", "base/prepare")
    images = [
        container["image"]
        for folder in folders
        for item in kustomize(deploy / folder)
        if item["kind"] in ("Deployment", "Job")
        for container in item["spec"]["template"]["spec"]["containers"]
    ]
    ours = {image for image in images if "kvshelf" in image}
    assert ours == {"r.corp/x/kvshelf-vllm:9.9-x", "r.corp/x/kvshelf-vllm-cpu:9.9-x"}
    others = {image.rpartition(":")[0] for image in images} - {i.rpartition(":")[0] for i in ours}
    assert others == {
        "ghcr.io/llm-d/llm-d-router-endpoint-picker",
        "docker.io/envoyproxy/envoy",
    }


def test_every_account_of_our_images_gets_the_pull_secret(scratch: Path) -> None:
    deploy = switch_on(copy_of_deploy(scratch), "image-pull-secret", "kv-events")
    for folder in ("overlays/cpu", "base/pool", "standalone"):
        objects = kustomize(deploy / folder)
        accounts = {i["metadata"]["name"]: i for i in objects if i["kind"] == "ServiceAccount"}
        for item in (i for i in objects if i["kind"] == "Deployment"):
            account = accounts[item["spec"]["template"]["spec"]["serviceAccountName"]]
            assert account["imagePullSecrets"] == [{"name": "kvshelf-pull"}]


def test_an_empty_class_is_the_clusters_default(scratch: Path) -> None:
    deploy = copy_of_deploy(scratch)
    (deploy / "components/storage-class/storage.env").write_text(
        "STORAGE_CLASS=\nSTORAGE_SIZE=1Ti\n"
    )
    (claim,) = kustomize(deploy / "base/storage")
    assert claim["spec"]["storageClassName"] is None  # "" would ask for a volume without a class


def test_monitors_and_rules_carry_the_operators_label() -> None:
    objects = kustomize(DEPLOY / "monitoring")
    kinds = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
    found = {
        i["kind"]: i["metadata"]["labels"].get("release") for i in objects if i["kind"] in kinds
    }
    assert found == dict.fromkeys(kinds, "kube-prometheus-stack")


def test_the_claims_root_is_prepared_as_the_replicas_need_it() -> None:
    (job,) = kustomize(DEPLOY / "base/prepare")
    server = named(kustomize(DEPLOY / "overlays/cpu"), "Deployment", "llm-d-model-server")
    group = server["spec"]["template"]["spec"]["securityContext"]["fsGroup"]
    pod = job["spec"]["template"]["spec"]
    assert f"chown 0:{group} /mnt/files-storage && chmod 2770" in pod["containers"][0]["command"][2]
    assert strict.problems(job) == []
    assert pod["volumes"] == [
        v for v in server["spec"]["template"]["spec"]["volumes"] if v["name"] == "kv-cache"
    ]


def test_one_line_moves_everything_into_another_namespace(scratch: Path) -> None:
    deploy = copy_of_deploy(scratch)
    path = deploy / "components/namespace/kustomization.yaml"
    path.write_text(path.read_text().replace("llm-d-storage", "elsewhere"))
    folders = ("gateway/gke", "base/storage", "base/pool", "overlays/cpu", "monitoring")
    objects = [item for folder in folders for item in kustomize(deploy / folder)]
    assert {item["metadata"]["namespace"] for item in objects} == {"elsewhere"}
    binding = named(objects, "RoleBinding", "llm-d-infpool-epp")
    assert binding["subjects"][0]["namespace"] == "elsewhere"


def test_the_claim_follows_storage_env(scratch: Path) -> None:
    deploy = copy_of_deploy(scratch)
    (deploy / "components/storage-class/storage.env").write_text(
        "STORAGE_CLASS=efs-sc\nSTORAGE_SIZE=5Ti\n"
    )
    (claim,) = kustomize(deploy / "base/storage")
    assert claim["spec"]["storageClassName"] == "efs-sc"
    assert claim["spec"]["resources"]["requests"]["storage"] == "5Ti"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_a_changed_setting_rolls_the_pods(scratch: Path) -> None:
    """The generated ConfigMap has another name, so the pods' template changes."""
    deploy = copy_of_deploy(scratch)
    before = kustomize(deploy / "overlays/cpu")
    path = deploy / "base/model-server/kv-transfer.json"
    path.write_text(path.read_text().replace("256", "512"))
    after = kustomize(deploy / "overlays/cpu")
    name = "Deployment", "llm-d-model-server"
    assert named(before, *name)["spec"]["template"] != named(after, *name)["spec"]["template"]


def test_with_the_charts_eviction_the_replicas_do_not_evict(scratch: Path) -> None:
    """As kvshelf itself reads the pod's settings and environment."""
    deploy = copy_of_deploy(scratch)
    for is_on in (True, False):
        if not is_on:
            switch_on(deploy, "evict-chart")
        objects = kustomize(deploy / "overlays/cpu")
        server = named(objects, *SERVER)["spec"]["template"]["spec"]["containers"][0]
        environment = {v["name"]: v["value"] for v in server["env"] if "value" in v}
        given = connector_config(objects)["kv_connector_extra_config"]
        assert Settings.from_mapping(given, environment).evict is is_on
