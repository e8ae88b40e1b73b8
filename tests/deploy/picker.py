"""Links of the endpoint picker (EPP): its arguments, its configuration, and KV events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from tests.deploy.render import Object, of_kind, our

Objects = Sequence[Object]
NAME = "llm-d-infpool-epp"
# Flags of llm-d-router v0.10.0 (71f4f0999f95, pkg/epp/server/options.go) and their defaults, as far
# as one of ours depends on them. A flag that is not here is refused.
FLAGS = {
    "config-file": "",
    "endpoint-selector": "",
    "endpoint-target-ports": "",
    "grpc-health-port": "9003",
    "grpc-port": "9002",
    "metrics-endpoint-auth": "true",
    "metrics-port": "9090",
    "pool-group": "inference.networking.k8s.io",
    "pool-name": "",
    "pool-namespace": "",
    "secure-serving": "true",
    "tracing": "true",
}
# Without a pool it reads where it is from these (cmd/epp/runner/runner.go, extractGKNN).
STANDALONE_ENVIRONMENT = {"NAMESPACE": "metadata.namespace", "POD_NAME": "metadata.name"}
VERSION = "llm-d.ai/v1alpha1"
# The plugins that we use, as llm-d-router v0.10 names them.
PLUGINS = {
    "approx-prefix-cache-producer",
    "core-metrics-extractor",
    "endpoint-notification-source",
    "kv-cache-utilization-scorer",
    "metrics-data-source",
    "no-hit-lru-scorer",
    "precise-prefix-cache-producer",
    "prefix-cache-scorer",
    "queue-scorer",
    "token-producer",
}
# What it lists at its start, and ends if it may not.
WATCHED = {
    ("", "pods"),
    ("inference.networking.k8s.io", "inferencepools"),
    ("inference.networking.x-k8s.io", "inferenceobjectives"),
    ("inference.networking.x-k8s.io", "inferencemodelrewrites"),
    ("llm-d.ai", "inferenceobjectives"),
    ("llm-d.ai", "inferencemodelrewrites"),
}


def flags(template: dict[str, Any]) -> dict[str, str]:
    """The picker's flags, with variables of plain values put in."""
    (container,) = (c for c in template["spec"]["containers"] if c["name"] == "epp")
    values = {v["name"]: v["value"] for v in container.get("env", ()) if "value" in v}
    found = {}
    for arg in container["args"]:
        name, _, value = arg.removeprefix("--").partition("=")
        found[name] = re.sub(r"\$\((\w+)\)", lambda m: values.get(m[1], m[0]), value)
    return found


def _start(objects: Objects, template: dict[str, Any], given: dict[str, str]) -> Iterator[str]:
    """What ends it at its start, or makes it unreachable."""
    for name in sorted(given.keys() - FLAGS.keys()):
        yield f"the picker has no flag --{name}"
    (container,) = (c for c in template["spec"]["containers"] if c["name"] == "epp")
    pools = {
        (p["apiVersion"].rpartition("/")[0], p["metadata"]["name"])
        for p in of_kind(objects, "InferencePool")
    }
    if "pool-name" in given and (given.get("pool-group"), given["pool-name"]) not in pools:
        yield f"the picker serves a pool that is not there: {given['pool-name']}"
    if ("pool-name" in given) == ("endpoint-selector" in given):
        yield "the picker needs a pool or a selector, not both"
    if "endpoint-selector" in given:
        fields = {
            v["name"]: v.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            for v in container.get("env", ())
        }
        for name, path in STANDALONE_ENVIRONMENT.items():
            if fields.get(name) != path:
                yield f"the picker does not learn {path} from {name}"
    merged = FLAGS | given
    if merged["metrics-endpoint-auth"] != "false":
        yield "scrapes of the picker are refused: nobody gives it the right to review tokens"
    if merged["tracing"] != "false":
        yield "the picker sends traces to a collector that is not there"


def problems(objects: Objects) -> Iterator[str]:
    template = our(objects, "Deployment", NAME)["spec"]["template"]
    pod = template["spec"]
    (container,) = (c for c in pod["containers"] if c["name"] == "epp")
    given = flags(template)
    yield from _start(objects, template, given)
    ports = {port["containerPort"] for port in container["ports"]}
    if int(given["grpc-health-port"]) not in ports:
        yield "the picker's health port is not its container's"
    (mount,) = container["volumeMounts"]
    (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
    if not given["config-file"].startswith(mount["mountPath"] + "/"):
        yield f"the picker has no {given['config-file']}"
        return
    key = given["config-file"].removeprefix(mount["mountPath"] + "/")
    for item in of_kind(objects, "ConfigMap"):
        if item["metadata"]["name"] == volume["configMap"]["name"]:
            if key not in item["data"]:
                yield f"the picker has no {given['config-file']}"
                return
            yield from configuration(objects, yaml.safe_load(item["data"][key]))
    yield from _rights(objects, pod["serviceAccountName"], "pool-name" in given)


def _rights(objects: Objects, account: str, has_pool: bool) -> Iterator[str]:
    bound = {
        binding["roleRef"]["name"]
        for binding in of_kind(objects, "RoleBinding")
        if account in [subject["name"] for subject in binding["subjects"]]
    }
    given = {
        (group, resource)
        for role in of_kind(objects, "Role")
        if role["metadata"]["name"] in bound
        for rule in role["rules"]
        if {"get", "list", "watch"} <= set(rule["verbs"])
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    wanted = WATCHED if has_pool else {("", "pods")}
    for group, resource in sorted(wanted - given):
        yield f"the picker may not watch {resource} of {group or 'core'}"


def configuration(objects: Objects, config: dict[str, Any]) -> Iterator[str]:
    """References inside an EndpointPickerConfig, and those that lead out of it."""
    if (config["apiVersion"], config["kind"]) != (VERSION, "EndpointPickerConfig"):
        yield f"the picker's configuration is a {config['apiVersion']}"
    names = {plugin.get("name", plugin["type"]): plugin for plugin in config["plugins"]}
    used = set()
    for plugin in config["plugins"]:
        if plugin["type"] not in PLUGINS:
            yield f"the picker has no plugin of type {plugin['type']}"
        producer = plugin.get("parameters", {}).get("prefixMatchInfoProducerName")
        if producer is not None:
            used.add(producer)
    for profile in config["schedulingProfiles"]:
        used |= {reference["pluginRef"] for reference in profile["plugins"]}
    for source in config.get("dataLayer", {}).get("sources", ()):
        used |= {source["pluginRef"], *(e["pluginRef"] for e in source["extractors"])}
    for name in sorted(used - names.keys()):
        yield f"the picker's configuration has no plugin {name}"
    for name in sorted(names.keys() - used - {"token-producer"}):
        yield f"nothing uses the picker's plugin {name}"
    if "precise-prefix-cache-producer" in names:
        yield from _events(objects, names)


def _events(objects: Objects, plugins: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Routing by KV events: both sides must speak of the same port, topic, block and model."""
    producer = plugins["precise-prefix-cache-producer"]["parameters"]
    server = our(objects, "Deployment", "llm-d-model-server")["spec"]["template"]["spec"]
    (container,) = server["containers"]
    flags = dict(a.removeprefix("--").partition("=")[::2] for a in container["args"] if "=" in a)
    if "kv-events-config" not in flags:
        yield "the picker listens for events, and no model server publishes them"
        return
    events = json.loads(flags["kv-events-config"])
    port = producer["kvEventsConfig"]["podDiscoveryConfig"]["socketPort"]
    ports = {p["containerPort"] for p in container["ports"]}
    if not events["endpoint"].endswith(f":{port}") or port not in ports:
        yield f"the picker listens at {port}, vLLM publishes at {events['endpoint']}"
    if not events["topic"].startswith(producer["kvEventsConfig"]["topicFilter"]):
        yield f"the picker does not hear the topic {events['topic']}"
    if flags.get("block-size") != str(producer["tokenProcessorConfig"]["blockSize"]):
        yield "the picker's blocks have another size than vLLM's"
    media = {
        entry["name"]: entry["weight"]
        for entry in producer["indexerConfig"]["kvCacheBackendConfigs"]
    }
    if media.get("storage") != 0:
        yield "chunks on the shelf draw requests to the replica that stored them"
    tokens = plugins["token-producer"]["parameters"]
    host = tokens["vllm"]["url"].removeprefix("http://").partition(":")[0]
    if not any(s["metadata"]["name"].endswith(host) for s in of_kind(objects, "Service")):
        yield f"no service {host} renders prompts"
    models = [i["data"] for i in of_kind(objects, "ConfigMap") if "MODEL" in i["data"]]
    if {data["MODEL"] for data in models} | {tokens["modelName"]} != {models[0]["MODEL"]}:
        yield f"prompts are rendered for another model than is served: {models}, {tokens}"
