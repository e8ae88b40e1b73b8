"""What the guide says beside its commands: links lead somewhere, numbers are the manifests'."""

from __future__ import annotations

import re
from pathlib import Path

from tests.deploy import guide
from tests.deploy.render import DEPLOY, kustomize, named

PAGE = (DEPLOY / "README.md").read_text()


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGE.replace("\n", " "))
    assert len(links) > 8
    for link in links:
        name, _, anchor = link.partition("#")
        path = (DEPLOY / name).resolve() if name else DEPLOY / "README.md"
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_files_that_are_named_exist() -> None:
    names = re.findall(
        r"`((?:base|components|monitoring|overlays|gateway)/[\w${}./-]+\.\w+)`", PAGE
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
    assert f"at most {pause} s (`preStop`) and {timeout.partition('=')[2]} s" in PAGE
    assert f"the {pod['terminationGracePeriodSeconds']} s that it is given" in PAGE


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
    assert all("curl" in text or "kubectl exec" in text for text in consoles)
