"""Whether the objects of a deployment fit together: what no schema says and no API server checks.

``problems`` returns a line for each name that leads nowhere. test_links.py breaks every link once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.deploy import picker, pods
from tests.deploy.render import Object, named, of_kind

Objects = Sequence[Object]
GATEWAY_GROUP = "gateway.networking.k8s.io"
POOL_GROUP = "inference.networking.k8s.io"


def problems(objects: Objects) -> list[str]:
    """What is wrong with the objects of one deployment, one line each."""
    checks: tuple[Callable[[Objects], Iterator[str]], ...] = (
        _names,
        _routes,
        _pools,
        _services,
        _monitors,
        _accounts,
        pods.problems,
        picker.problems,
    )
    return [problem for check in checks for problem in check(objects)]


def _names(objects: Objects) -> Iterator[str]:
    seen = set()
    for item in objects:
        key = item["kind"], item["metadata"]["name"]
        if key in seen:
            yield f"{key} twice"
        seen.add(key)
    spaces = {item["metadata"].get("namespace") for item in objects}
    if len(spaces) != 1 or None in spaces:
        yield f"more than one namespace: {sorted(map(str, spaces))}"


def _exists(objects: Objects, kind: str, name: str) -> bool:
    return any(item["metadata"]["name"] == name for item in of_kind(objects, kind))


def _group(item: Object) -> str:
    return str(item["apiVersion"]).rpartition("/")[0]


def _routes(objects: Objects) -> Iterator[str]:
    routes = list(of_kind(objects, "HTTPRoute"))
    if not routes:
        yield "no HTTPRoute"
    for route in routes:
        spec = route["spec"]
        for parent in spec["parentRefs"]:
            if (parent.get("group"), parent.get("kind")) != (GATEWAY_GROUP, "Gateway") or not (
                _exists(objects, "Gateway", parent["name"])
            ):
                yield f"parentRef of the route leads nowhere: {parent}"
        for backend in (b for rule in spec["rules"] for b in rule["backendRefs"]):
            pools = list(of_kind(objects, backend["kind"]))
            if not any(
                (backend.get("group"), backend["name"]) == (_group(p), p["metadata"]["name"])
                for p in pools
            ):
                yield f"backendRef of the route leads nowhere: {backend}"


def _selects(labels: dict[str, str], template: dict[str, Any]) -> bool:
    return bool(labels) and labels.items() <= template["metadata"].get("labels", {}).items()


def _container_ports(template: dict[str, Any]) -> dict[str | int, int]:
    """Ports by number and by name."""
    found: dict[str | int, int] = {}
    for container in template["spec"]["containers"]:
        for port in container.get("ports", ()):
            found[port["containerPort"]] = port["containerPort"]
            found[port.get("name", "")] = port["containerPort"]
    return found


def _templates(objects: Objects, labels: dict[str, str]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (item["metadata"]["name"], item["spec"]["template"])
        for item in of_kind(objects, "Deployment")
        if _selects(labels, item["spec"]["template"])
    ]


def _pools(objects: Objects) -> Iterator[str]:
    for pool in of_kind(objects, "InferencePool"):
        spec = pool["spec"]
        chosen = _templates(objects, spec["selector"]["matchLabels"])
        if [name for name, _ in chosen] != ["llm-d-model-server"]:
            yield f"the pool selects {[name for name, _ in chosen]}, not the model servers alone"
        for _, template in chosen:
            for port in spec["targetPorts"]:
                if port["number"] not in _container_ports(template):
                    yield f"no container has the pool's port {port['number']}"
        reference = spec["endpointPickerRef"]
        if not _exists(objects, "Service", reference["name"]):
            yield f"the pool's endpointPickerRef leads nowhere: {reference['name']}"
            continue
        service = named(objects, "Service", reference["name"])
        ports = {port["port"]: port for port in service["spec"]["ports"]}
        if ports.get(reference["port"]["number"], {}).get("appProtocol") != "kubernetes.io/h2c":
            yield f"the picker's service has no gRPC port {reference['port']['number']}"


def _services(objects: Objects) -> Iterator[str]:
    for service in of_kind(objects, "Service"):
        name = service["metadata"]["name"]
        chosen = _templates(objects, service["spec"]["selector"])
        if not chosen:
            yield f"service {name} selects no pod"
        for _, template in chosen:
            for port in service["spec"]["ports"]:
                if port.get("targetPort", port["port"]) not in _container_ports(template):
                    yield f"service {name}: no container port {port.get('targetPort')}"


def _monitors(objects: Objects) -> Iterator[str]:
    for monitor in of_kind(objects, "PodMonitor"):
        chosen = _templates(objects, monitor["spec"]["selector"]["matchLabels"])
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if not chosen or any(
                # a name, never a number: "8000" as a name finds no target, and says nothing
                endpoint["port"] not in _container_ports(template)
                for _, template in chosen
            ):
                yield f"PodMonitor {monitor['metadata']['name']} has no target"
    for monitor in of_kind(objects, "ServiceMonitor"):
        labels = monitor["spec"]["selector"]["matchLabels"]
        services = [
            item
            for item in of_kind(objects, "Service")
            if labels.items() <= item["metadata"].get("labels", {}).items()
        ]
        for endpoint in monitor["spec"]["endpoints"]:
            names = {port.get("name") for item in services for port in item["spec"]["ports"]}
            if endpoint["port"] not in names:
                yield f"ServiceMonitor {monitor['metadata']['name']} has no target"


def _accounts(objects: Objects) -> Iterator[str]:
    for binding in of_kind(objects, "RoleBinding"):
        if not _exists(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"]):
            yield f"no Role {binding['roleRef']['name']}"
        for subject in binding["subjects"]:
            where = subject.get("namespace")
            if not _exists(objects, subject["kind"], subject["name"]):
                yield f"no {subject['kind']} {subject['name']}"
            if where != binding["metadata"]["namespace"]:
                yield f"the RoleBinding's subject is in {where}"
