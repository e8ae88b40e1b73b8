"""What the guide says beside its commands: links lead somewhere, numbers are the manifests'."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.deploy import guide, pods, strict
from tests.deploy.render import DEPLOY, kustomize, named

PAGE = (DEPLOY / "README.md").read_text()
DOCS = DEPLOY.parent / "docs"
STORAGE = sorted((DOCS / "howto/storage").glob("*.md"))
PAGES = [
    DEPLOY / "README.md",
    DOCS / "start/kubernetes.md",
    DOCS / "howto/llm-d-names.md",
    *STORAGE,
]


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text().replace("\n", " "))
    assert len(links) > 8 or page.name != "README.md"
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_files_that_are_named_exist() -> None:
    names = re.findall(
        r"`((?:base|components|monitoring|overlays|gateway|standalone)/[\w${}./-]+\.\w+)`", PAGE
    )
    assert len(names) > 5
    for name in names:
        assert (DEPLOY / name.replace("${HARDWARE}", "cpu")).is_file(), name


def test_times_of_an_end_are_those_of_the_manifest() -> None:
    pod = named(kustomize(DEPLOY / "overlays/cpu"), "Deployment", "llm-d-model-server")["spec"][
        "template"
    ]["spec"]
    container = pod["containers"][0]
    (timeout,) = (a for a in container["args"] if a.startswith("--shutdown-timeout="))
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    text = f"at most {pause} s (`preStop`) and {timeout.partition('=')[2]} s"
    assert text in PAGE.replace("\n", " ")
    assert pause >= 15  # until every gateway has heard that the pod is not ready
    assert f"the {pod['terminationGracePeriodSeconds']} s that it is given" in PAGE


def test_waiting_for_a_rollout_outlasts_its_deadline() -> None:
    spec = named(kustomize(DEPLOY / "overlays/nvidia"), "Deployment", "llm-d-model-server")["spec"]
    waits = re.findall(r"rollout status .*llm-d-model-server --timeout=(\d+)m", PAGE)
    assert len(waits) == 2
    assert min(map(int, waits)) * 60 > spec["progressDeadlineSeconds"]


def test_every_component_is_in_the_table() -> None:
    folders = {path.parent for path in (DEPLOY / "components").rglob("kustomization.yaml")}
    names = {path.relative_to(DEPLOY / "components").parts[0] for path in folders}
    table = set(re.findall(r"^\| `([\w-]+)` \|", PAGE, re.M))
    assert names - {"namespace", "image", "storage-class"} == table & names


def test_cores_of_a_gpu_are_those_of_the_check() -> None:
    assert f"{pods.CORES_A_GPU} cores a GPU" in PAGE


def test_the_storage_class_is_one_word_everywhere() -> None:
    env = (DEPLOY / "components/storage-class/storage.env").read_text()
    (name,) = re.findall(r"^STORAGE_CLASS=(\S+)$", env, re.M)
    assert re.search(rf"Bound .* RWX +{name} ", PAGE)
    assert f"name: {name}\n" in (DEPLOY.parent / "docs/howto/storage/cephfs.md").read_text()


@pytest.mark.parametrize("page", STORAGE, ids=lambda path: path.stem)
def test_a_storage_page_has_a_class_that_an_api_server_takes(page: Path) -> None:
    text = page.read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.M | re.S)
    assert blocks
    for block in blocks:
        item = yaml.safe_load(block)
        assert item["kind"] == "StorageClass" and strict.problems(item) == []
        assert f"`{item['provisioner']}`" in PAGE  # the table names it
    assert text.rstrip().splitlines()[-1].startswith(("Tested: ", "Not tested: "))
    assert f"docs/howto/storage/{page.name}" in PAGE


@pytest.mark.parametrize(
    "url",
    [
        "kubernetes-sigs/gateway-api/releases/download/v1.6.1/",
        "kubernetes-sigs/gateway-api-inference-extension/releases/download/v1.6.0/",
        "istio.io/",
        "agentgateway.dev/",
        "deploy-gke-inference-gateway",
        "prometheus-operator.dev/",
        "NVIDIA/k8s-device-plugin",
    ],
)
def test_everything_from_outside_has_a_link(url: str) -> None:
    assert url in PAGE


def test_the_sizes_of_a_token_are_right() -> None:
    """2 x layers x KV heads x head size x 2 bytes, of the models that the overlays serve."""
    large, small = (2 * layers * 8 * 128 * 2 for layers in (64, 28))
    assert f"{large:,}" in PAGE and f"{small:,}" in PAGE
    assert f"2,000 GiB hold {2000 * 2**30 / large / 1e6:.0f} million tokens" in PAGE.replace(
        "\n", " "
    )


def test_every_command_of_the_page_is_executed_or_says_why_not() -> None:
    """A fence of another kind would escape the tests."""
    kinds = re.findall(r"^```(\w*)$", PAGE, re.M)
    assert set(kinds) <= {"bash", "text", "console", ""}
    assert len(list(guide.blocks())) == sum(kind != "" for kind in kinds)
    consoles = [block.text for block in guide.blocks() if block.kind == "console"]
    outside = ("curl ", "kubectl exec", "https://", "docker build", "istioctl")
    assert all(any(word in text for word in outside) for text in consoles)
