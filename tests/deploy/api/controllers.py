"""What a cluster's controllers would write, as far as the guide shows it.

Deployments get pods that are Running, Gateways are Programmed, claims are Bound; a claim in use is
not deleted (kubernetes.io/pvc-protection), as in a real cluster.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.deploy.api.store import Store

Object = dict[str, Any]
PROTECTION = "kubernetes.io/pvc-protection"
ADDRESS = "192.0.2.10"  # of the documentation's range (RFC 5737)


def reconcile(store: Store) -> None:
    """Bring everything to the state that its controllers want. Called with the store locked."""
    for deployment in store.all("Deployment"):
        _deployment(store, deployment)
    _orphans(store)
    for gateway in store.all("Gateway"):
        _status(
            store,
            gateway,
            {
                "addresses": [{"type": "IPAddress", "value": ADDRESS}],
                "conditions": [_condition("Accepted"), _condition("Programmed")],
            },
        )
    for claim in store.all("PersistentVolumeClaim"):
        _claim(store, claim)
    for job in store.all("Job"):
        _status(store, job, {"succeeded": 1, "conditions": [_condition("Complete")]})


def _condition(kind: str) -> Object:
    return {"type": kind, "status": "True", "reason": kind, "message": ""}


def _status(store: Store, item: Object, status: Object) -> None:
    if item.get("status") != status:
        store.write(item | {"status": status})


def _owned(store: Store, deployment: Object) -> list[Object]:
    meta = deployment["metadata"]
    return [
        pod
        for pod in store.all("Pod")
        if pod["metadata"]["namespace"] == meta["namespace"]
        and pod["metadata"]["ownerReferences"][0]["uid"] == meta["uid"]
    ]


def _deployment(store: Store, deployment: Object) -> None:
    meta, spec = deployment["metadata"], deployment["spec"]
    text = json.dumps(spec["template"], sort_keys=True)
    revision = hashlib.sha256(text.encode()).hexdigest()[:8]
    prefix = f"{meta['name']}-{revision}-"
    pods = _owned(store, deployment)
    wanted = [f"{prefix}{number:05d}" for number in range(spec.get("replicas", 1))]
    for pod in pods:
        if pod["metadata"]["name"] not in wanted:
            store.erase(pod)
    present = {pod["metadata"]["name"] for pod in pods}
    for name in wanted:
        if name in present:
            continue
        template = copy.deepcopy(spec["template"])
        template["metadata"] |= {
            "name": name,
            "namespace": meta["namespace"],
            "ownerReferences": [{"kind": "Deployment", "name": meta["name"], "uid": meta["uid"]}],
        }
        running = {"phase": "Running", "conditions": [_condition("Ready")]}
        store.write({"apiVersion": "v1", "kind": "Pod", "status": running} | template)
    count = len(wanted)
    counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    status = {"observedGeneration": meta["generation"], **dict.fromkeys(counts, count)}
    _status(store, deployment, status | {"conditions": [_condition("Available")]})


def _orphans(store: Store) -> None:
    owners = {item["metadata"]["uid"] for item in store.all("Deployment")}
    for pod in store.all("Pod"):
        if pod["metadata"]["ownerReferences"][0]["uid"] not in owners:
            store.erase(pod)


def _claim(store: Store, claim: Object) -> None:
    meta = claim["metadata"]
    if "deletionTimestamp" in meta:
        if not _in_use(store, claim):
            store.erase(claim)
        return
    if PROTECTION not in meta.get("finalizers", ()):
        meta = meta | {"finalizers": [PROTECTION]}
        claim = claim | {"metadata": meta}
        store.write(claim)
    size = claim["spec"]["resources"]["requests"]["storage"]
    modes = claim["spec"]["accessModes"]
    _status(
        store,
        claim,
        {"phase": "Bound", "capacity": {"storage": size}, "accessModes": modes},
    )


def _in_use(store: Store, claim: Object) -> bool:
    name, space = claim["metadata"]["name"], claim["metadata"]["namespace"]
    return any(
        volume.get("persistentVolumeClaim", {}).get("claimName") == name
        for pod in store.all("Pod")
        if pod["metadata"]["namespace"] == space
        for volume in pod["spec"].get("volumes", ())
    )
