"""Links of the endpoint picker (EPP): its arguments, its configuration, and KV events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from tests.deploy.render import Object, named, of_kind

Objects = Sequence[Object]
NAME = "llm-d-infpool-epp"
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


def problems(objects: Objects) -> Iterator[str]:
    pod = named(objects, "Deployment", NAME)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    flags = dict(arg.removeprefix("--").partition("=")[::2] for arg in container["args"])
    pools = {
        (p["apiVersion"].rpartition("/")[0], p["metadata"]["name"])
        for p in of_kind(objects, "InferencePool")
    }
    if (flags["pool-group"], flags["pool-name"]) not in pools:
        yield f"the picker serves a pool that is not there: {flags['pool-name']}"
    ports = {port["containerPort"] for port in container["ports"]}
    if int(flags["grpc-health-port"]) not in ports:
        yield "the picker's health port is not its container's"
    (mount,) = container["volumeMounts"]
    (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
    if not flags["config-file"].startswith(mount["mountPath"] + "/"):
        yield f"the picker has no {flags['config-file']}"
        return
    key = flags["config-file"].removeprefix(mount["mountPath"] + "/")
    for item in of_kind(objects, "ConfigMap"):
        if item["metadata"]["name"] == volume["configMap"]["name"]:
            if key not in item["data"]:
                yield f"the picker has no {flags['config-file']}"
                return
            yield from configuration(objects, yaml.safe_load(item["data"][key]))
    yield from _rights(named(objects, "Role", NAME))


def _rights(role: Object) -> Iterator[str]:
    given = {
        (group, resource)
        for rule in role["rules"]
        if {"get", "list", "watch"} <= set(rule["verbs"])
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    for group, resource in sorted(WATCHED - given):
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
    server = named(objects, "Deployment", "llm-d-model-server")["spec"]["template"]["spec"]
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
    if not any(s["metadata"]["name"] == host for s in of_kind(objects, "Service")):
        yield f"no service {host} renders prompts"
    models = [i["data"] for i in of_kind(objects, "ConfigMap") if "MODEL" in i["data"]]
    if {data["MODEL"] for data in models} | {tokens["modelName"]} != {models[0]["MODEL"]}:
        yield f"prompts are rendered for another model than is served: {models}, {tokens}"
