"""Links inside pods: volumes, configuration, probes, and the connector's settings against ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from kvshelf.config import Settings
from kvshelf.errors import ConfigError
from tests.deploy.render import Object, of_kind

Objects = Sequence[Object]
# Secrets of the guide and of components' comments, and whether a pod starts without.
MADE_BY_HAND = {
    ("Secret", "llm-d-hf-token"): True,
    ("Secret", "llm-d-api-key"): False,
}
SECRET_VOLUMES = {"llm-d-kv-auth-key": {"key"}}
CORES_A_GPU = 14  # 12 for threads_per_gpu, 2 for vLLM: README.md, "Sizing"
# What the programs answer without a body.
SERVED = {
    "vllm": {"/health", "/v1/models", "/metrics"},
    "kvshelf": {"/healthz", "/metrics"},
    "envoy": {"/ready"},
}


GIB = 1 << 30


def problems(objects: Objects) -> Iterator[str]:
    for deployment in of_kind(objects, "Deployment"):
        name = deployment["metadata"]["name"]
        spec = deployment["spec"]
        found = [*_pod(objects, spec), *_restricted(spec["template"]["spec"])]
        for container in spec["template"]["spec"]["containers"]:
            found += _container(objects, spec["template"]["spec"], container)
            if container["name"] == "modelserver":
                found += _deadlines(spec, container)
            if any(arg.startswith("--kv-transfer-config=") for arg in container.get("args", ())):
                found += _connector(objects, spec["template"]["spec"], container)
        yield from (f"{name}: {problem}" for problem in found)


def _pod(objects: Objects, spec: dict[str, Any]) -> Iterator[str]:
    template = spec["template"]
    labels = template["metadata"]["labels"]
    if not spec["selector"]["matchLabels"].items() <= labels.items():
        yield "the selector does not match its own pods"
    account = template["spec"].get("serviceAccountName")
    if account and not _find(objects, "ServiceAccount", account):
        yield f"no ServiceAccount {account}"
    for volume in template["spec"].get("volumes", ()):
        if "configMap" in volume and not _find(objects, "ConfigMap", volume["configMap"]["name"]):
            yield f"no ConfigMap {volume['configMap']['name']}"
        if "secret" in volume and volume["secret"]["secretName"] not in SECRET_VOLUMES:
            yield f"no Secret {volume['secret']['secretName']}"
        if "persistentVolumeClaim" in volume:
            claim = _find(objects, "PersistentVolumeClaim", _claim(volume))
            if claim is None:
                yield f"no claim {_claim(volume)}"
            elif "ReadWriteMany" not in claim["spec"]["accessModes"] and spec["replicas"] > 1:
                yield f"claim {_claim(volume)} cannot be mounted by {spec['replicas']} pods"


def _claim(volume: dict[str, Any]) -> str:
    return str(volume["persistentVolumeClaim"]["claimName"])


def _find(objects: Objects, kind: str, name: str) -> Object | None:
    return next((i for i in of_kind(objects, kind) if i["metadata"]["name"] == name), None)


def _container(objects: Objects, pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    paths = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
    for mount in container.get("volumeMounts", ()):
        if mount["name"] not in volumes:
            yield f"no volume {mount['name']}"
    if len(set(paths)) != len(paths):
        yield "two volumes at one path"
    environment = {variable["name"] for variable in container.get("env", ())}
    for variable in container.get("env", ()):
        for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
            reference = variable.get("valueFrom", {}).get(key)
            if reference and not _has_key(objects, kind, reference):
                yield f"{variable['name']}: no key {reference['key']} in {reference['name']}"
    for text in [*container.get("command", ()), *container.get("args", ())]:
        for name in re.findall(r"\$\((\w+)\)", text):
            if name not in environment:
                yield f"nobody sets $({name})"
    ports = {p[key] for p in container.get("ports", ()) for key in ("name", "containerPort")}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        check = container.get(probe, {})
        target = check.get("httpGet") or check.get("grpc")
        if target and target["port"] not in ports:
            yield f"{probe}: no port {target['port']}"
        program = container.get("command", [""])[0]
        if "httpGet" in check and target["path"] not in SERVED[program]:
            yield f"{probe}: {program} has no {target['path']}"


WEIGHTS_BYTES = 65.5e9  # of the largest model that an overlay serves, Qwen3-32B in bf16
DOWNLOAD_BYTES_PER_SECOND = 25e6
LOAD_SECONDS = 300  # into the GPUs, and compiling
IMAGE_SECONDS = 300  # 15 GB of image, before the startup probe's time begins


def _deadlines(spec: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    """A first start downloads the weights: no deadline may be shorter than that."""
    probe = container["startupProbe"]
    budget = probe["periodSeconds"] * probe["failureThreshold"]
    if budget < WEIGHTS_BYTES / DOWNLOAD_BYTES_PER_SECOND + LOAD_SECONDS:
        yield f"the startup probe gives up after {budget} s: the download takes longer"
    deadline = spec.get("progressDeadlineSeconds", 600)
    if deadline < budget + IMAGE_SECONDS:
        yield f"a rollout is called failed after {deadline} s, the startup probe waits {budget} s"
    asked = container.get("resources", {}).get("requests", {})
    if "ephemeral-storage" not in asked:
        yield "its weights and caches fill the node's disk: no ephemeral-storage request"
    gpus = int(asked.get("nvidia.com/gpu", 0))
    if gpus and int(asked["cpu"]) != gpus * CORES_A_GPU:
        yield f"{asked['cpu']} cores for {gpus} GPUs"


def _has_key(objects: Objects, kind: str, reference: dict[str, Any]) -> bool:
    if (kind, reference["name"]) in MADE_BY_HAND:
        return bool(reference.get("optional")) == MADE_BY_HAND[kind, reference["name"]]
    item = _find(objects, kind, reference["name"])
    return item is not None and reference["key"] in item["data"]


def _restricted(pod: dict[str, Any]) -> Iterator[str]:
    """The Pod Security Standard "restricted", and a read-only root with places to write."""
    context = pod.get("securityContext", {})
    if not context.get("runAsNonRoot") or context.get("runAsUser") == 0:
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    kinds = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected"}
    for volume in pod.get("volumes", ()):
        if not kinds & volume.keys():
            yield f"volume {volume['name']} is of a forbidden kind"
    for container in pod["containers"]:
        mine = container.get("securityContext", {})
        if mine.get("allowPrivilegeEscalation") is not False:
            yield "may gain privileges"
        if mine.get("capabilities", {}).get("drop") != ["ALL"]:
            yield "keeps capabilities"
        if mine.get("readOnlyRootFilesystem") is not True:
            yield "may write to its image"
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield "no memory limit"


def _connector(objects: Objects, pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    """The settings as kvshelf itself reads them, and what must agree with them."""
    flags = dict(a.removeprefix("--").partition("=")[::2] for a in container["args"] if "=" in a)
    values = {v["name"]: v.get("value") for v in container["env"]}
    name = flags["kv-transfer-config"].removeprefix("$(").removesuffix(")")
    (source,) = (v["valueFrom"]["configMapKeyRef"] for v in container["env"] if v["name"] == name)
    item = _find(objects, "ConfigMap", source["name"])
    if item is None:
        return
    config = json.loads(item["data"][source["key"]])
    extra = config["kv_connector_extra_config"]
    if extra.get("spec_name") == "TieringOffloadingSpec":
        yield from _tier(pod, container, extra)
        (tier,) = (t for t in extra["secondary_tiers"] if t["type"] == "KvshelfTier")
        extra = {k: v for k, v in tier.items() if k not in ("type", "root_dir")}
        extra["shared_storage_path"] = tier["root_dir"]
    elif config["kv_connector"] != "KvshelfConnector":
        yield f"another connector: {config['kv_connector']}"
    try:
        settings = Settings.from_mapping(extra, environment={})
    except ConfigError as error:
        yield f"kv-transfer.json: {error}"
        return
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    keys = {
        f"{m['mountPath']}/{key}"
        for m in container["volumeMounts"]
        for key in SECRET_VOLUMES.get(secrets.get(m["name"], ""), ())
    }
    if settings.auth_key_file and settings.auth_key_file not in keys:
        yield f"no Secret holds {settings.auth_key_file}"
    claims = {v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    mounts = [m for m in container["volumeMounts"] if m["name"] in claims]
    for root in map(PurePosixPath, settings.roots):
        if not any(PurePosixPath(mount["mountPath"]) in root.parents for mount in mounts):
            yield f"{root} does not lie on the claim"
    if values.get("PYTHONHASHSEED") in (None, "", "random"):
        yield "block hashes differ from pod to pod: no PYTHONHASHSEED"
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain, grace = int(flags.get("shutdown-timeout", 0)), pod["terminationGracePeriodSeconds"]
    workers = int(values.get("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS") or 0)
    if not settings.close_timeout_seconds < workers < drain or pause + drain >= grace:
        yield (
            f"write-behind is cut off: close {settings.close_timeout_seconds}, workers {workers}, "
            f"vLLM {pause} + {drain}, pod {grace}"
        )
    gpus = container["resources"].get("limits", {}).get("nvidia.com/gpu")
    if gpus is not None and gpus != flags.get("tensor-parallel-size", "1"):
        yield f"{gpus} GPUs for {flags.get('tensor-parallel-size', '1')} ranks"
    yield from _writable(pod, container, values)


def _tier(pod: dict[str, Any], container: dict[str, Any], extra: dict[str, Any]) -> Iterator[str]:
    """Host memory lies in /dev/shm and counts against the container's limit."""
    host = extra["cpu_bytes_to_use"]
    (shm,) = (v["emptyDir"] for v in pod["volumes"] if v["name"] == "shm")
    limit = container["resources"]["limits"]["memory"]
    if host + 8 * GIB > int(shm["sizeLimit"].removesuffix("Gi")) * GIB:
        yield f"{host} bytes of host memory do not fit into /dev/shm"
    if 2 * host > int(limit.removesuffix("Gi")) * GIB:
        yield f"{host} bytes of host memory in a container of {limit}"


def _writable(
    pod: dict[str, Any], container: dict[str, Any], values: dict[str, str | None]
) -> Iterator[str]:
    """With a read-only root every folder that is written to must be a volume."""
    empty = {
        volume["name"]
        for volume in pod["volumes"]
        if "emptyDir" in volume or "persistentVolumeClaim" in volume
    }
    places = [
        PurePosixPath(m["mountPath"]) for m in container["volumeMounts"] if m["name"] in empty
    ]
    wanted = {name: values.get(name) for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME")}
    for name, path in {**wanted, "temporary files": "/tmp", "shared memory": "/dev/shm"}.items():
        if path is None or not any(PurePosixPath(path).is_relative_to(place) for place in places):
            yield f"{name} ({path}) is not writable"
