"""The objects of every variant fit together, and the check finds each link that is broken."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.deploy import links
from tests.deploy.render import (
    OPENSHIFT,
    STANDALONE,
    VARIANTS,
    Object,
    Variant,
    named,
    of_kind,
    offered,
)

Objects = list[Object]
EVENTS = Variant("istio", "nvidia", ("kv-events",))
GKE = Variant("gke", "nvidia")
ALONE = Variant(STANDALONE, "nvidia")
TIER = Variant("istio", "nvidia", ("tier", "pdb"))
SERVER = "Deployment", "llm-d-model-server"
EPP = "Deployment", "llm-d-infpool-epp"
POOL = "InferencePool", "llm-d-infpool"
ROUTE = "HTTPRoute", "llm-d-route"


def test_everything_fits(variant: list[Object]) -> None:
    assert links.problems(variant) == []


def test_every_optional_component_is_in_a_variant() -> None:
    wanted = {
        name.partition("/")[0]
        for folder in ("overlays/nvidia", "overlays/cpu", "base/pool", "standalone")
        for name in offered(folder)
    }
    assert len(wanted) >= 12
    assert wanted <= {name for v in (*VARIANTS, OPENSHIFT) for name in v.components}


def test_openshift_chooses_users_itself(render: Any) -> None:
    objects = render(OPENSHIFT)
    for item in of_kind(objects, "Deployment"):
        context = item["spec"]["template"]["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert not context.keys() & {"runAsUser", "runAsGroup", "fsGroup"}
    assert links.problems(objects) == []


@pytest.mark.parametrize("gateway", ["istio", "gke", STANDALONE])
def test_two_deployments_in_one_namespace_do_not_select_each_other(
    render: Any, gateway: str
) -> None:
    (second,) = [render(v) for v in VARIANTS if v.prefixed and v.gateway == gateway]
    first = render(Variant(gateway, "nvidia"))
    names = [(i["kind"], i["metadata"]["name"]) for i in (*first, *second)]
    assert len(set(names)) == len(names)
    for objects in (first, second):
        assert links.selected_elsewhere(objects, [*first, *second]) == []
    merged = copy.deepcopy(second)  # the check sees it: without the label they do
    for item in merged:
        selector = item.get("spec", {}).get("selector", {})
        selector.get("matchLabels", selector).pop("app.kubernetes.io/instance", None)
    assert links.selected_elsewhere(merged, [*first, *merged])


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
    ("rights", lambda o: named(o, "Role", "llm-d-infpool-epp-pool")["rules"].pop(),
     "may not watch"),
    ("rights that nobody has", lambda o: drop(o, "RoleBinding", "epp-pool"), "may not watch"),
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
    ("picker's pool", lambda o: setenv(epp(o), "POOL_NAME", "x"), "a pool that is not there"),
    ("picker's flag", lambda o: swap(epp(o), "--tracing", "--trace"), "no flag --trace"),
    ("scrapes", lambda o: swap(epp(o), "auth=false", "auth=true"), "scrapes of the picker"),
    ("traces", lambda o: swap(epp(o), "tracing=false", "tracing=true"), "a collector"),
    ("TLS of Istio", lambda o: drop(o, "DestinationRule"), "Istio does not speak TLS"),
    ("TLS of another", lambda o: spec(o, "DestinationRule", "llm-d-infpool-epp").update(host="x"),
     "Istio does not speak TLS"),
    ("rollout's deadline", lambda o: spec(o, *SERVER).pop("progressDeadlineSeconds"),
     "called failed after 600 s"),
    ("startup's budget", lambda o: server(o)["startupProbe"].update(failureThreshold=360),
     "gives up after 1800 s"),
    ("node's disk", lambda o: server(o)["resources"]["requests"].pop("ephemeral-storage"),
     "fill the node's disk"),
    ("cores", lambda o: server(o)["resources"]["requests"].update(cpu="16"), "16 cores for 2"),
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


def envoy(objects: Objects, old: str, new: str) -> None:
    content = data(objects, "envoy.yaml")
    assert old in content["envoy.yaml"]
    content["envoy.yaml"] = content["envoy.yaml"].replace(old, new)


GKE_MUTATIONS: list[Mutation] = [
    ("health of GKE", lambda o: drop(o, "HealthCheckPolicy"), "GKE asks another path"),
    ("time of GKE", lambda o: drop(o, "GCPBackendPolicy"), "default of 30 s"),
    ("target of GKE", lambda o: spec(o, "HealthCheckPolicy", "llm-d-infpool")["targetRef"].update(
        name="x"), "GKE asks another path"),
    ("timeouts of GKE", lambda o: spec(o, *ROUTE)["rules"][0].update(
        timeouts={"request": "300s"}), "GKE refuses"),
]  # fmt: skip
ALONE_MUTATIONS: list[Mutation] = [
    ("selector alone", lambda o: swap(epp(o), "guide=kvshelf", "guide=x"), "the picker selects []"),
    ("port alone", lambda o: swap(epp(o), "ports=8000", "ports=8001"), "picker's port 8001"),
    ("TLS alone", lambda o: swap(epp(o), "serving=false", "serving=true"), "plain text"),
    ("Envoy's picker", lambda o: envoy(o, "port_value: 9002", "port_value: 9003"), "asks for the"),
    ("Envoy's port", lambda o: envoy(o, "port_value: 8081", "port_value: 80"), "Envoy listens"),
    ("name of the pod", lambda o: epp(o)["env"].pop(1), "does not learn metadata.n"),
    ("router", lambda o: spec(o, "Service", "llm-d-router")["ports"][0].update(targetPort="x"),
     "no container port x"),
]  # fmt: skip
TIER_MUTATIONS: list[Mutation] = [
    ("budget", lambda o: spec(o, "PodDisruptionBudget", "llm-d-model-server")["selector"][
        "matchLabels"].update(a="b"), "PodDisruptionBudget selects []"),
    ("spread", lambda o: pod(o, *SERVER)["topologySpreadConstraints"][0]["labelSelector"][
        "matchLabels"].update(a="b"), "do not spread"),
    ("shared memory", lambda o: [v["emptyDir"].update(sizeLimit="8Gi") for v in pod(o, *SERVER)[
        "volumes"] if v["name"] == "shm"], "do not fit into /dev/shm"),
    ("host memory", lambda o: server(o)["resources"]["limits"].update(memory="32Gi"),
     "in a container of 32Gi"),
]  # fmt: skip
ALL: list[tuple[Mutation, Variant]] = [
    *((m, VARIANTS[0]) for m in MUTATIONS),
    *((m, EVENTS) for m in EVENT_MUTATIONS),
    *((m, GKE) for m in GKE_MUTATIONS),
    *((m, ALONE) for m in ALONE_MUTATIONS),
    *((m, TIER) for m in TIER_MUTATIONS),
]


@pytest.mark.parametrize(("mutation", "base"), ALL, ids=[m[0] for m, _ in ALL])
def test_a_broken_link_is_found(render: Any, mutation: Mutation, base: Variant) -> None:
    _, change, says = mutation
    objects = copy.deepcopy(render(base))
    change(objects)
    found = links.problems(objects)
    assert any(word in problem for problem in found for word in says.split("|")), found
