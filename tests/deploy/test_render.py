"""Every variant renders, and an API server would take every object of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import strict
from tests.deploy.render import DEPLOY, GATEWAYS, Object, copy_of_deploy, kustomize, named

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
        assert {i["metadata"]["name"] for i in variant if i["kind"] == kind} == names
    deployments = {i["metadata"]["name"] for i in variant if i["kind"] == "Deployment"}
    assert {"llm-d-model-server", "llm-d-infpool-epp"} <= deployments
    assert {item["metadata"]["namespace"] for item in variant} == {"llm-d-storage"}


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
    unknown = sorted({item["kind"] for item in variant if not strict.knows(item)})
    found = [problem for item in variant if strict.knows(item) for problem in strict.problems(item)]
    assert found == []
    if unknown:
        pytest.skip(f"no schemas here of {', '.join(unknown)}: set KVSHELF_CRDS")


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
    ],
)
def test_the_schemas_refuse(
    render: Any, item: tuple[str, str], path: str, value: Any, says: str
) -> None:
    from tests.deploy.render import VARIANTS

    broken = changed(render(VARIANTS[0]), *item, path, value)
    if not strict.knows(broken):
        pytest.skip(f"no schema here of {item[0]}: set KVSHELF_CRDS")
    found = " ".join(strict.problems(broken))
    assert any(word in found for word in says.split("|")), found


def test_a_name_prefix_leaves_no_reference_dangling(scratch: Path) -> None:
    """What kustomize does not do by itself, and references.yaml makes it do."""
    deploy = copy_of_deploy(scratch)
    for folder in ("gateway/istio", "base/pool"):
        path = deploy / folder / "kustomization.yaml"
        path.write_text(path.read_text() + "namePrefix: two-\n")
    route = named(kustomize(deploy / "gateway/istio"), "HTTPRoute", "two-llm-d-route")
    assert route["spec"]["parentRefs"][0]["name"] == "two-llm-d-inference-gateway"
    pool = named(kustomize(deploy / "base/pool"), "InferencePool", "two-llm-d-infpool")
    assert pool["spec"]["endpointPickerRef"]["name"] == "two-llm-d-infpool-epp"


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
