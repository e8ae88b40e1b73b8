"""The kinds that the test server knows, and how ``kubectl get`` shows them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """One kind. ``columns``: (title, path of the value) after NAME; AGE is always the last."""

    group: str
    version: str
    kind: str
    plural: str
    short: tuple[str, ...] = ()
    namespaced: bool = True
    columns: tuple[tuple[str, str], ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


RESOURCES = (
    Resource("", "v1", "Namespace", "namespaces", ("ns",), namespaced=False),
    Resource("", "v1", "ConfigMap", "configmaps", ("cm",)),
    Resource("", "v1", "Secret", "secrets"),
    Resource("", "v1", "Service", "services", ("svc",)),
    Resource("", "v1", "ServiceAccount", "serviceaccounts", ("sa",)),
    Resource(
        "",
        "v1",
        "Pod",
        "pods",
        ("po",),
        columns=(("Ready", "ready"), ("Status", "status.phase"), ("Restarts", "restarts")),
    ),
    Resource(
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        ("pvc",),
        columns=(
            ("Status", "phase"),
            ("Capacity", "status.capacity.storage"),
            ("Access Modes", "modes"),
            ("StorageClass", "spec.storageClassName"),
        ),
    ),
    Resource("", "v1", "PersistentVolume", "persistentvolumes", ("pv",), namespaced=False),
    Resource("apps", "v1", "Deployment", "deployments", ("deploy",)),
    Resource("batch", "v1", "Job", "jobs"),
    Resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", ("pdb",)),
    Resource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", ("netpol",)),
    Resource("rbac.authorization.k8s.io", "v1", "Role", "roles"),
    Resource("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
    Resource(
        "gateway.networking.k8s.io",
        "v1",
        "Gateway",
        "gateways",
        ("gtw",),
        columns=(
            ("Class", "spec.gatewayClassName"),
            ("Address", "status.addresses.0.value"),
            ("Programmed", "programmed"),
        ),
    ),
    Resource(
        "gateway.networking.k8s.io",
        "v1",
        "HTTPRoute",
        "httproutes",
        columns=(("Hostnames", "spec.hostnames"),),
    ),
    Resource("inference.networking.k8s.io", "v1", "InferencePool", "inferencepools", ("infpool",)),
    Resource("networking.istio.io", "v1", "DestinationRule", "destinationrules", ("dr",)),
    Resource("networking.gke.io", "v1", "HealthCheckPolicy", "healthcheckpolicies"),
    Resource("networking.gke.io", "v1", "GCPBackendPolicy", "gcpbackendpolicies"),
    Resource("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors"),
    Resource("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors"),
    Resource("monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules"),
)
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


def groups(without: Collection[str] = ()) -> dict[str, list[Resource]]:
    """Resources by API version.

    Args:
        without: groups of custom resources that the cluster does not have.
    """
    found: dict[str, list[Resource]] = {}
    for resource in RESOURCES:
        if resource.group not in without:
            found.setdefault(resource.api_version, []).append(resource)
    return found


def _computed(item: Object, path: str) -> Any:
    status = item.get("status", {})
    if path == "ready":
        count = len(item["spec"]["containers"])
        return f"{count}/{count}"
    if path == "restarts":
        return 0
    if path == "phase":
        return "Terminating" if "deletionTimestamp" in item["metadata"] else status.get("phase")
    if path == "modes":
        short = {"ReadWriteMany": "RWX", "ReadWriteOnce": "RWO"}
        return ",".join(short[mode] for mode in item["spec"]["accessModes"])
    conditions = status.get("conditions", ())
    return next((c["status"] for c in conditions if c["type"] == "Programmed"), None)


def _cell(item: Object, path: str) -> Any:
    if "." not in path:
        return _computed(item, path)
    value: Any = item
    for part in path.split("."):
        if isinstance(value, list):
            value = value[int(part)] if len(value) > int(part) else None
        else:
            value = (value or {}).get(part)
    return value


def table(resource: Resource, items: list[Object], version: str) -> Object:
    """As an API server answers a client that asks for a table."""
    columns = [("Name", "metadata.name"), *resource.columns, ("Age", "metadata.creationTimestamp")]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version},
        "columnDefinitions": [
            {
                "name": title,
                "type": "date" if title == "Age" else "string",
                "format": "name" if title == "Name" else "",
                "description": "",
                "priority": 0,
            }
            for title, _ in columns
        ],
        "rows": [
            {
                "cells": ["0s" if t == "Age" else _cell(item, path) for t, path in columns],
                "object": {
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": item["metadata"],
                },
            }
            for item in items
        ],
    }
