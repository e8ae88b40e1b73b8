"""The evictor's chart: what it renders, and which values it refuses. The image's Dockerfile too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvshelf.cli.main import COMMANDS, parser
from tests.deploy import pods, strict
from tests.deploy.render import DEPLOY, Object, connector_config, kustomize, named, of_kind
from tests.deploy.tools import REPOSITORY, run, tool

CHART = DEPLOY / "charts/kv-evictor"
IMAGE = {"repository": "registry.example.com/kvshelf-vllm"}
DEFAULTS: dict[str, Any] = {"image": IMAGE}
EVERYTHING: dict[str, Any] = {
    "image": {**IMAGE, "tag": "1.2.3"},
    "imagePullSecrets": [{"name": "pull"}],
    "limits": {
        "volumePercent": None,
        "inodePercent": 80.5,
        "shelf": "2TB",
        "namespace": "500 GiB",
        "namespaces": {"Qwen3": "1.5TiB"},
    },
    "rate": 100000000,
    "metrics": {"port": 9401, "podMonitor": True},
    "podLabels": {"team": "a"},
    "nodeSelector": {"disk": "near"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
OPENSHIFT: dict[str, Any] = {"image": IMAGE, "podSecurityContext": None}


def template(values: dict[str, Any], folder: Path, name: str = "kv-evictor") -> list[Object]:
    path = folder / "values.json"
    path.write_text(json.dumps(values))
    command = [tool("helm"), "template", name, CHART, "--namespace", "llm-d-storage", "-f", path]
    return [item for item in yaml.safe_load_all(run(command).stdout) if item]


def arguments(objects: Sequence[Object]) -> list[str]:
    (deployment,) = of_kind(objects, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    words: list[str] = [*container["command"], *container["args"]]
    return words


@pytest.mark.parametrize("values", [DEFAULTS, EVERYTHING, OPENSHIFT], ids=["none", "all", "shift"])
def test_what_it_renders_is_valid_and_fits(values: dict[str, Any], tmp_path: Path) -> None:
    objects = template(values, tmp_path)
    for item in objects:
        assert strict.problems(item) == []
    claim = kustomize(DEPLOY / "base/storage")
    found = list(pods.problems([*objects, *claim]))
    assert found == (
        []
        if values is not OPENSHIFT
        else [f"kv-evictor: {p}" for p in ("may run as root", "no seccomp profile")]
    )
    (deployment,) = of_kind(objects, "Deployment")
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]) == (
        1,
        {"type": "Recreate"},
    )
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert not pod["containers"][0]["image"].endswith((":latest", ":"))


def test_every_value_arrives(tmp_path: Path) -> None:
    objects = template(EVERYTHING, tmp_path)
    words = arguments(objects)
    assert words[:3] == ["kvshelf", "evict", "/mnt/files-storage/kv-cache"]
    assert {
        "--inode-percent=80.5",
        "--shelf-limit=2TB",
        "--namespace-limit=500 GiB",
        "--namespace-limit=Qwen3=1.5TiB",
        "--max-files-per-second=100000000",  # not 1e+08
        "--metrics-port=9401",
    } <= set(words)
    assert not any(word.startswith("--volume-percent") for word in words)
    (deployment,) = of_kind(objects, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["nodeSelector"] == {"disk": "near"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["affinity"] == {"nodeAffinity": {}}
    (monitor,) = of_kind(objects, "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels["team"] == "a"


def test_the_defaults_evict_where_the_replicas_store(tmp_path: Path) -> None:
    """The chart's root, claim, user and image are those of the model servers."""
    objects = template(DEFAULTS, tmp_path)
    servers = [*kustomize(DEPLOY / "overlays/nvidia"), *kustomize(DEPLOY / "base/storage")]
    settings = connector_config(servers)["kv_connector_extra_config"]
    assert arguments(objects)[2] == settings["shared_storage_path"]
    mine = named(objects, "Deployment", "kv-evictor")["spec"]["template"]["spec"]
    theirs = named(servers, "Deployment", "llm-d-model-server")["spec"]["template"]["spec"]
    for field in ("runAsUser", "runAsGroup", "fsGroup"):
        assert mine["securityContext"][field] == theirs["securityContext"][field]
    assert mine["volumes"][0] in theirs["volumes"]
    assert mine["containers"][0]["volumeMounts"][0] in theirs["containers"][0]["volumeMounts"]
    assert mine["containers"][0]["image"] == theirs["containers"][0]["image"]


@pytest.mark.skipif("evict" not in COMMANDS, reason="this kvshelf has no evict command")
@pytest.mark.parametrize("values", [DEFAULTS, EVERYTHING], ids=["none", "all"])
def test_our_own_parser_takes_the_arguments(values: dict[str, Any], tmp_path: Path) -> None:
    options = parser().parse_args(arguments(template(values, tmp_path))[1:])
    assert options.root == "/mnt/files-storage/kv-cache"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"image": {}}, "repository"),  # there is no registry to guess
        ({"replicaCount": 2}, "replicaCount"),
        ({"limits": {"volumePercent": 101}}, "volumePercent"),
        ({"limits": {"shelf": "lots"}}, "shelf"),
        ({"limits": {"namespaces": {"a": ""}}}, "namespaces"),
        ({"image": {**IMAGE, "tag": "latest"}}, "tag"),
        ({"threads": 0}, "threads"),
        ({"rate": "fast"}, "rate"),
        ({"metrics": {"port": 80}}, "port"),
        ({"storage": {"root": "kv-cache"}}, "root"),
        ({"storage": {"root": "/data/kv"}}, "storage.root must lie below storage.mountPath"),
        ({"storage": {"claimName": "Not_A_Name"}}, "claimName"),
        ({"limits": {"volumePercent": None, "inodePercent": None}}, "give at least one"),
    ],
)
def test_values_that_it_refuses(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_text(json.dumps({"image": IMAGE, **values}))
    done = run([tool("helm"), "template", "x", CHART, "-f", path], check=False)
    assert done.returncode != 0
    assert says in done.stderr


def test_helm_finds_nothing_to_complain_about() -> None:
    image = f"image.repository={IMAGE['repository']}"
    said = run([tool("helm"), "lint", "--strict", CHART, "--set", image]).stdout
    assert "0 chart(s) failed" in said


def test_two_releases_do_not_clash(tmp_path: Path) -> None:
    one = {item["metadata"]["name"] for item in template(DEFAULTS, tmp_path, "a")}
    two = {item["metadata"]["name"] for item in template(DEFAULTS, tmp_path, "b")}
    assert not one & two


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    run([tool("hadolint"), "--failure-threshold", "info", DEPLOY / "Dockerfile"])


def test_the_image_is_built_from_files_that_exist() -> None:
    """COPY takes the whole repository; what the build does not need is left out."""
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    for needed in ("src", "native", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        assert (REPOSITORY / needed).exists() and needed not in ignored
