"""The objects of every variant fit together, and the check finds each link that is broken."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.deploy import links
from tests.deploy.render import KV_EVENTS, VARIANTS, Object, Variant, named, of_kind

Objects = list[Object]
EVENTS = Variant("istio", KV_EVENTS)
SERVER = "Deployment", "llm-d-model-server"
EPP = "Deployment", "llm-d-infpool-epp"
POOL = "InferencePool", "llm-d-infpool"
ROUTE = "HTTPRoute", "llm-d-route"


def test_everything_fits(variant: list[Object]) -> None:
    assert links.problems(variant) == []


def spec(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    inner: dict[str, Any] = named(objects, kind, name)["spec"]
    return inner


def pod(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    inner: dict[str, Any] = spec(objects, kind, name)["template"]["spec"]
    return inner


def server(objects: Objects) -> dict[str, Any]:
    inner: dict[str, Any] = pod(objects, *SERVER)["containers"][0]
    return inner


def epp(objects: Objects) -> dict[str, Any]:
    inner: dict[str, Any] = pod(objects, *EPP)["containers"][0]
    return inner


def swap(container: dict[str, Any], old: str, new: str) -> None:
    """In an argument of a container; it must be there."""
    assert any(old in arg for arg in container["args"])
    container["args"] = [arg.replace(old, new) for arg in container["args"]]


def drop(objects: Objects, kind: str, name: str = "") -> None:
    """Remove the objects of a kind whose name contains ``name``."""
    gone = [i for i in of_kind(objects, kind) if name in i["metadata"]["name"]]
    assert gone
    for item in gone:
        objects.remove(item)


def setenv(container: dict[str, Any], name: str, value: str) -> None:
    (variable,) = (v for v in container["env"] if v["name"] == name)
    variable["value"] = value


def data(objects: Objects, key: str) -> dict[str, str]:
    (item,) = (i for i in of_kind(objects, "ConfigMap") if key in i["data"])
    content: dict[str, str] = item["data"]
    return content


def connector(objects: Objects, **settings: Any) -> None:
    content = data(objects, "kv-transfer.json")
    config = json.loads(content["kv-transfer.json"])
    config["kv_connector_extra_config"].update(settings)
    content["kv-transfer.json"] = json.dumps(config)


def plugins(objects: Objects, change: Callable[[dict[str, Any]], Any]) -> None:
    content = data(objects, "config.yaml")
    config = yaml.safe_load(content["config.yaml"])
    change(config)
    content["config.yaml"] = yaml.safe_dump(config)


def plugin(config: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (p for p in config["plugins"] if p["name"] == name)
    inner: dict[str, Any] = found
    return inner


PRODUCER = "precise-prefix-cache-producer"
Mutation = tuple[str, Callable[[Objects], Any], str]
MUTATIONS: list[Mutation] = [
    ("old API group", lambda o: spec(o, *ROUTE)["rules"][0]["backendRefs"][0].update(
        group="inference.networking.x-k8s.io"), "backendRef"),
    ("other pool", lambda o: spec(o, *ROUTE)["rules"][0]["backendRefs"][0].update(name="x"),
     "backendRef"),
    ("no gateway", lambda o: drop(o, "Gateway"), "parentRef"),
    ("parent of another kind", lambda o: spec(o, *ROUTE)["parentRefs"][0].update(kind="Service"),
     "parentRef"),
    ("no route", lambda o: drop(o, "HTTPRoute"), "no HTTPRoute"),
    ("two namespaces", lambda o: o[0]["metadata"].update(namespace="x"), "namespace"),
    ("no namespace", lambda o: [i["metadata"].update(namespace=None) for i in o], "namespace"),
    ("twice", lambda o: o.append(copy.deepcopy(o[0])), "twice"),
    ("pool selects nothing", lambda o: spec(o, *POOL)["selector"]["matchLabels"].update(a="b"),
     "the pool selects []"),
    ("pool selects the picker too", lambda o: spec(o, *EPP)["template"]["metadata"][
        "labels"].update(spec(o, *POOL)["selector"]["matchLabels"]), "the pool selects"),
    ("pool's port", lambda o: spec(o, *POOL)["targetPorts"][0].update(number=8001), "8001"),
    ("picker's port", lambda o: spec(o, *POOL)["endpointPickerRef"]["port"].update(number=9090),
     "gRPC port 9090"),
    ("picker's name", lambda o: spec(o, *POOL)["endpointPickerRef"].update(name="epp"),
     "endpointPickerRef"),
    ("service selects nothing", lambda o: spec(o, "Service", "llm-d-infpool-epp")[
        "selector"].update(a="b"), "selects no pod"),
    ("service's port", lambda o: spec(o, "Service", "llm-d-infpool-epp")["ports"][0].update(
        targetPort="grpc"), "no container port grpc"),
    ("port as a name", lambda o: spec(o, "PodMonitor", "llm-d-model-server")[
        "podMetricsEndpoints"][0].update(port="8000"), "PodMonitor"),
    ("monitor of the picker", lambda o: spec(o, "ServiceMonitor", "llm-d-infpool-epp")[
        "endpoints"][0].update(port="metrics"), "ServiceMonitor"),
    ("no role", lambda o: drop(o, "RoleBinding") or o.append(
        {"kind": "RoleBinding", "metadata": {"name": "r", "namespace": "llm-d-storage"},
         "roleRef": {"kind": "Role", "name": "x"}, "subjects": []}), "no Role x"),
    ("subject elsewhere", lambda o: named(o, "RoleBinding", "llm-d-infpool-epp")["subjects"][
        0].update(namespace="default"), "subject is in default"),
    ("no account", lambda o: drop(o, "ServiceAccount", "epp"), "no ServiceAccount"),
    ("rights", lambda o: named(o, "Role", "llm-d-infpool-epp")["rules"].pop(), "may not watch"),
    ("selector", lambda o: spec(o, *SERVER)["selector"]["matchLabels"].update(a="b"),
     "does not match its own pods"),
    ("no claim", lambda o: drop(o, "PersistentVolumeClaim"), "no claim"),
    ("claim of one node", lambda o: spec(o, "PersistentVolumeClaim", "llm-d-kv-cache-storage").
     update(accessModes=["ReadWriteOnce"]), "cannot be mounted by 2 pods"),
    ("no configuration", lambda o: drop(o, "ConfigMap", "kv-transfer"), "no key kv-transfer.json"),
    ("key of configuration", lambda o: data(o, "MODEL").pop("SERVED_MODEL_NAME"), "no key SERVED"),
    ("picker's configuration", lambda o: drop(o, "ConfigMap", "epp"), "no ConfigMap"),
    ("picker's file", lambda o: swap(epp(o), "config.yaml", "x.yaml"), "has no /config/x.yaml"),
    ("picker's mount", lambda o: swap(epp(o), "/config/", "/etc/"), "has no /etc/config.yaml"),
    ("picker's pool", lambda o: swap(epp(o), "llm-d-infpool", "x"), "a pool that is not there"),
    ("picker's group", lambda o: swap(epp(o), "networking.k8s", "networking.x-k8s"), "not there"),
    ("picker's health", lambda o: swap(epp(o), "9003", "9004"), "health port"),
    ("picker's probe", lambda o: epp(o)["readinessProbe"]["grpc"].update(port=9),
     "readinessProbe: no port 9"),
    ("token needed", lambda o: server(o)["env"][5]["valueFrom"]["secretKeyRef"].pop("optional"),
     "HF_TOKEN"),
    ("volume", lambda o: server(o)["volumeMounts"][0].update(name="x"), "no volume x"),
    ("one path twice", lambda o: server(o)["volumeMounts"].append(
        {"name": "tmp", "mountPath": "/tmp"}), "two volumes at one path"),
    ("variable", lambda o: swap(server(o), "$(MODEL)", "$(MODLE)"), "nobody sets $(MODLE)"),
    ("probe's port", lambda o: server(o)["startupProbe"]["httpGet"].update(port="http"),
     "startupProbe: no port http"),
    ("probe's path", lambda o: server(o)["livenessProbe"]["httpGet"].update(path="/healthz"),
     "vllm has no /healthz"),
    ("setting", lambda o: connector(o, threads="many"), "unknown setting"),
    ("value", lambda o: connector(o, lookup_threads=0), "lookup_threads"),
    ("off the claim", lambda o: connector(o, shared_storage_path="/mnt/kv"), "not lie on"),
    ("the mount itself", lambda o: connector(o, shared_storage_path="/mnt/files-storage"),
     "not lie on"),
    ("close too long", lambda o: connector(o, close_timeout_seconds=60), "cut off"),
    ("vLLM kills", lambda o: swap(server(o), "timeout=110", "timeout=0"), "cut off"),
    ("kubelet kills", lambda o: pod(o, *SERVER).update(terminationGracePeriodSeconds=30),
     "cut off"),
    ("workers are killed", lambda o: setenv(
        server(o), "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "4"), "cut off"),
    ("hash seed", lambda o: setenv(server(o), "PYTHONHASHSEED", "random"), "PYTHONHASHSEED"),
    ("GPUs", lambda o: swap(server(o), "size=2", "size=4"), "2 GPUs for 4 ranks"),
    ("home", lambda o: setenv(server(o), "HF_HOME", "/root/hf"), "HF_HOME (/root/hf)"),
    ("no /tmp", lambda o: server(o)["volumeMounts"].pop(), "temporary files"),
    ("root", lambda o: pod(o, *SERVER)["securityContext"].update(runAsUser=0), "as root"),
    ("seccomp", lambda o: pod(o, *EPP)["securityContext"].pop("seccompProfile"), "seccomp"),
    ("privileges", lambda o: server(o)["securityContext"].pop("allowPrivilegeEscalation"),
     "gain privileges"),
    ("capabilities", lambda o: server(o)["securityContext"].pop("capabilities"), "capabilities"),
    ("image", lambda o: server(o)["securityContext"].pop("readOnlyRootFilesystem"), "its image"),
    ("memory", lambda o: server(o)["resources"]["limits"].pop("memory"), "memory limit"),
    ("hostPath", lambda o: pod(o, *SERVER)["volumes"].append(
        {"name": "h", "hostPath": {"path": "/"}}), "forbidden kind"),
    ("other connector", lambda o: data(o, "kv-transfer.json").update(
        {"kv-transfer.json": data(o, "kv-transfer.json")["kv-transfer.json"].replace(
            "KvshelfConnector", "OffloadingConnector")}), "another connector"),
    ("plugin", lambda o: plugins(o, lambda c: c["plugins"][2].update(type="x")), "of type x"),
    ("reference", lambda o: plugins(o, lambda c: c["plugins"].pop(2)), "no plugin queue-scorer"),
    ("unused", lambda o: plugins(o, lambda c: c["schedulingProfiles"][0]["plugins"].pop()),
     "nothing uses"),
    ("version", lambda o: plugins(o, lambda c: c.update(apiVersion="llm-d.ai/v1")), "is a llm-d"),
]  # fmt: skip
EVENT_MUTATIONS: list[Mutation] = [
    ("no events", lambda o: swap(server(o), "--kv-events-config", "--x"), "no model server"),
    ("event port", lambda o: swap(server(o), ":5556", ":5557"), "publishes at tcp://*:5557"),
    ("topic", lambda o: swap(server(o), "kv@$", "x@$"), "does not hear"),
    ("block size", lambda o: swap(server(o), "size=64", "size=16"), "another size"),
    ("medium", lambda o: plugins(o, lambda c: plugin(c, PRODUCER)["parameters"]["indexerConfig"][
        "kvCacheBackendConfigs"].pop()), "draw requests"),
    ("renderer", lambda o: plugins(o, lambda c: plugin(c, "token-producer")["parameters"][
        "vllm"].update(url="http://x:8000")), "no service x"),
    ("rendered model", lambda o: plugins(o, lambda c: plugin(c, "token-producer")[
        "parameters"].update(modelName="x")), "another model"),
    ("source", lambda o: plugins(o, lambda c: c["dataLayer"]["sources"][1]["extractors"][
        0].update(pluginRef="x")), "no plugin x"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mutation", "base"),
    [(m, VARIANTS[0]) for m in MUTATIONS] + [(m, EVENTS) for m in EVENT_MUTATIONS],
    ids=[m[0] for m in MUTATIONS + EVENT_MUTATIONS],
)
def test_a_broken_link_is_found(render: Any, mutation: Mutation, base: Variant) -> None:
    _, change, says = mutation
    objects = copy.deepcopy(render(base))
    change(objects)
    found = links.problems(objects)
    assert any(word in problem for problem in found for word in says.split("|")), found
