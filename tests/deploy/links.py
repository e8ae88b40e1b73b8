"""Whether the objects of a deployment fit together: what no schema says and no API server checks.

``problems`` returns a line for each name that leads nowhere. test_links.py breaks every link once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from tests.deploy import picker, pods
from tests.deploy.render import Object, named, of_kind, our

Objects = Sequence[Object]
GATEWAY_GROUP = "gateway.networking.k8s.io"
POOL_GROUP = "inference.networking.k8s.io"
MIN_TIMEOUT = 300  # seconds, as the HTTPRoute of the other gateways


def problems(objects: Objects) -> list[str]:
    """What is wrong with the objects of one deployment, one line each."""
    checks: tuple[Callable[[Objects], Iterator[str]], ...] = (
        _names,
        _routes,
        _providers,
        _pools,
        _standalone,
        _services,
        _guards,
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
    bound = [item for item in objects if item["kind"] != "PersistentVolume"]  # of the cluster
    spaces = {item["metadata"].get("namespace") for item in bound}
    if len(spaces) != 1 or None in spaces:
        yield f"more than one namespace: {sorted(map(str, spaces))}"


def _exists(objects: Objects, kind: str, name: str) -> bool:
    return any(item["metadata"]["name"] == name for item in of_kind(objects, kind))


def _group(item: Object) -> str:
    return str(item["apiVersion"]).rpartition("/")[0]


def _routes(objects: Objects) -> Iterator[str]:
    routes = list(of_kind(objects, "HTTPRoute"))
    if not routes and any(of_kind(objects, "InferencePool")):
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


def _providers(objects: Objects) -> Iterator[str]:
    """What a gateway's controller needs beside the Gateway. Source: the templates istio.yaml,
    gke.yaml and httproute.yaml of llm-d-router v0.10.0's chart llm-d-router-gateway."""
    for gateway in of_kind(objects, "Gateway"):
        name = gateway["spec"]["gatewayClassName"]
        pool = our(objects, "InferencePool", "llm-d-infpool")
        if name == "istio":
            service = pool["spec"]["endpointPickerRef"]["name"]
            rules = {r["spec"]["host"]: r for r in of_kind(objects, "DestinationRule")}
            tls = rules.get(service, {}).get("spec", {}).get("trafficPolicy", {}).get("tls")
            if tls != {"mode": "SIMPLE", "insecureSkipVerify": True}:
                yield f"Istio does not speak TLS to the picker {service}"
        if name.startswith("gke-"):
            yield from _gke(objects, pool)


def _gke(objects: Objects, pool: Object) -> Iterator[str]:
    target = {"group": POOL_GROUP, "kind": "InferencePool", "name": pool["metadata"]["name"]}
    found = {}
    for kind in ("HealthCheckPolicy", "GCPBackendPolicy"):
        for item in of_kind(objects, kind):
            if item["spec"]["targetRef"] == target:
                found[kind] = item["spec"]["default"]
    check = found.get("HealthCheckPolicy", {}).get("config", {}).get("httpHealthCheck")
    port = pool["spec"]["targetPorts"][0]["number"]
    if check != {"requestPath": "/health", "port": port}:
        yield f"GKE asks another path or port than vLLM's /health: {check}"
    if found.get("GCPBackendPolicy", {}).get("timeoutSec", 30) < MIN_TIMEOUT:
        yield "GKE ends requests after its default of 30 s"
    for route in of_kind(objects, "HTTPRoute"):
        if any("timeouts" in rule for rule in route["spec"]["rules"]):
            yield "GKE refuses a route with timeouts"


def _standalone(objects: Objects) -> Iterator[str]:
    """Envoy in the picker's pod: its listener, the picker's port, and the replicas."""
    if any(of_kind(objects, "InferencePool")):
        return
    template = our(objects, "Deployment", picker.NAME)["spec"]["template"]
    flags = picker.flags(template)
    labels = dict(pair.split("=") for pair in flags["endpoint-selector"].split(","))
    labels["app.kubernetes.io/instance"] = template["metadata"]["labels"].get(
        "app.kubernetes.io/instance", ""
    )
    chosen = _templates(objects, labels)
    if len(chosen) != 1 or not chosen[0][0].endswith("llm-d-model-server"):
        yield f"the picker selects {[name for name, _ in chosen]}, not the model servers alone"
    for _, server in chosen:
        if int(flags["endpoint-target-ports"]) not in _container_ports(server):
            yield f"no container has the picker's port {flags['endpoint-target-ports']}"
    (text,) = (
        i["data"]["envoy.yaml"] for i in of_kind(objects, "ConfigMap") if "envoy.yaml" in i["data"]
    )
    envoy = yaml.safe_load(text)["static_resources"]
    ports = {one["address"]["socket_address"]["port_value"] for one in envoy["listeners"]}
    if not ports <= _container_ports(template).keys():
        yield f"Envoy listens at {ports}"
    (cluster,) = (c for c in envoy["clusters"] if c["name"] == "picker")
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    where = endpoint["endpoint"]["address"]["socket_address"]
    if where != {"address": "127.0.0.1", "port_value": 9002}:
        yield f"Envoy asks for the picker at {where}"
    if flags.get("secure-serving") != "false" and "transport_socket" not in cluster:
        yield "Envoy speaks plain text to a picker that serves TLS"


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
        if len(chosen) != 1 or not chosen[0][0].endswith("llm-d-model-server"):
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


def _guards(objects: Objects) -> Iterator[str]:
    """Budgets and policies are about the model servers, and a replica spreads from its like."""
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for item in of_kind(objects, kind):
            spec = item["spec"]
            selector = spec.get("podSelector") or spec["selector"]
            chosen = _templates(objects, selector["matchLabels"])
            if len(chosen) != 1 or not chosen[0][0].endswith("llm-d-model-server"):
                yield f"{kind} selects {[name for name, _ in chosen]}"
    template = our(objects, "Deployment", "llm-d-model-server")["spec"]["template"]
    spread = template["spec"].get("topologySpreadConstraints", ())
    if not any(_selects(one["labelSelector"]["matchLabels"], template) for one in spread):
        yield "replicas do not spread over nodes"


def selected_elsewhere(mine: Objects, everything: Objects) -> list[str]:
    """Selectors of one deployment that reach a pod of another one in its namespace."""
    own = {item["metadata"]["name"] for item in of_kind(mine, "Deployment")}
    found = []
    for item in mine:
        selector = item.get("spec", {}).get("selector")
        if item["kind"] == "ServiceMonitor" or not selector:
            continue
        for name, _ in _templates(everything, selector.get("matchLabels", selector)):
            if name not in own:
                found.append(f"{item['kind']} {item['metadata']['name']} selects {name}")
    return found


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
