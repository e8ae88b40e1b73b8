"""The rendered CPU overlay, started twice on one claim with the real vLLM engine of the CPU.

The claim is a file system of 128 MiB. The first pod has it directly; the second one, where a
fault-injecting file system is at hand, through a mount of its own, as another node would.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from demo.damage import chunk_files

from tests.deploy import expressions, guide
from tests.deploy.api.server import Server
from tests.deploy.prometheus import Prometheus
from tests.deploy.render import copy_of_deploy, kustomize
from tests.deploy.running import Pod, why_not
from tests.harness.engines import make_prompt
from tests.harness.faulty_mount import FaultyMount
from tests.harness.faulty_mount import why_not as why_no_mount

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

CLAIM = "llm-d-kv-cache-storage"
CLAIM_MIB = 128
START_SECONDS = 600  # of two engines on a busy machine; 40 s are usual
CHUNK_TOKENS = 256
# Whether loading is worth it for a tiny model on a busy machine is another question, and how soon a
# lookup is answered there too.
PATIENCE = {
    "KVSHELF_ADMISSION": "always",
    "KVSHELF_LOOKUP_WAIT_SECONDS": "20",
    "KVSHELF_LOOKUP_TIMEOUT_SECONDS": "25",
    "KVSHELF_MIN_HIT_TOKENS": "300",  # one chunk is refused, so that refusals are there to be seen
}


@dataclass
class Site:
    """Two pods, and the claim's directory behind them."""

    claim: Path
    objects: list[dict[str, object]]
    one: Pod
    two: Pod
    mount: FaultyMount | None

    @property
    def shelf(self) -> Path:
        return self.claim / "kv-cache"

    def faults(self, **faults: object) -> None:
        """Of the second pod's mount."""
        if self.mount is None:
            pytest.skip(f"storage cannot be slowed here: {why_no_mount()}")
        self.mount.set(**faults)


def rendered(folder: Path) -> list[dict[str, object]]:
    """The CPU overlay with a model that lies on the claim, as model.env says it may."""
    deploy = copy_of_deploy(folder)
    (deploy / "overlays/cpu/model.env").write_text(
        "MODEL=/mnt/files-storage/models/tiny\nSERVED_MODEL_NAME=tiny\n"
    )
    return [*kustomize(deploy / "overlays/cpu"), *kustomize(deploy / "base/storage")]


def as_fs_group(path: Path) -> None:
    """What a kubelet does to a volume for ``fsGroup: 1000``."""
    for entry in (path, *path.rglob("*")):
        shutil.chown(entry, group=1000)
        entry.chmod(entry.stat().st_mode | (0o2770 if entry.is_dir() else 0o660))


@contextlib.contextmanager
def claim_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own and of a known size."""
    if reason := why_not():
        pytest.skip(reason)
    disk = folder / "disk"
    disk.mkdir()
    size = f"size={CLAIM_MIB}m,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@contextlib.contextmanager
def shared_claim(folder: Path, model: Path) -> Iterator[Path]:
    """A claim's directory with the model on it, as the kubelet gives it to the pods."""
    with claim_disk(folder) as disk:
        claim = disk / "claim"
        claim.mkdir()
        shutil.copytree(model, claim / "models/tiny")
        as_fs_group(claim)
        yield claim


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("claim")
    objects = rendered(folder)
    with claim_disk(folder) as disk, contextlib.ExitStack() as stack:
        mount = None
        claim = other = disk / "claim/source"
        if why_no_mount() is None:
            mount = FaultyMount(disk / "claim")
            stack.callback(mount.close)
            other = mount.path
        else:
            claim.mkdir(parents=True)
        shutil.copytree(tiny_model, claim / "models/tiny")
        as_fs_group(claim)
        one = Pod(objects, "llm-d-model-server", folder / "one", {CLAIM: claim}, **PATIENCE)
        two = Pod(objects, "llm-d-model-server", folder / "two", {CLAIM: other}, **PATIENCE)
        stack.callback(one.close)
        stack.callback(two.close)
        one.launch()
        two.launch()
        yield Site(claim, objects, one.ready(START_SECONDS), two.ready(START_SECONDS), mount)


def complete(pod: Pod, prompt: list[int]) -> dict[str, object]:
    """The answer of /v1/completions."""
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": 4,
        "temperature": 0,
        "ignore_eos": True,
    }
    reply = httpx.post(f"{pod.address}/v1/completions", json=body, timeout=120)
    assert reply.status_code == httpx.codes.OK, reply.text + pod.log_tail()
    answer: dict[str, object] = reply.json()
    return answer


def wait_for(condition: object, seconds: float, pod: Pod) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, pod.log_tail()
        time.sleep(0.1)


def test_the_guides_checks_tell_a_working_shelf(site: Site, tmp_path: Path) -> None:
    """ "Is it working?", word for word: replica 2 loads what replica 1 stored."""
    with Server() as server:
        copy_of_deploy(tmp_path)
        shell = guide.Shell(
            tmp_path,
            server.kubeconfig(tmp_path / "kubeconfig"),
            NAMESPACE="llm-d-storage",
        )
        shell.run("kubectl create namespace llm-d-storage")
        shell.run("kubectl apply -k overlays/cpu")
        server.backends += [site.one.address, site.two.address]
        outputs = [shell.run(block.text) for block in guide.blocks() if block.pods]
    assert len(outputs) == 3
    stored = [line for line in outputs[1].splitlines() if "store_bytes_total" in line]
    assert float(stored[0].rsplit(" ", 1)[1]) > 0
    cached, loaded, hits = outputs[2].splitlines()
    assert cached.startswith('"cached_tokens":') and int(cached.partition(":")[2]) >= CHUNK_TOKENS
    assert float(loaded.rsplit(" ", 1)[1]) > 0
    assert float(hits.rsplit(" ", 1)[1]) >= CHUNK_TOKENS


def test_all_probes_answer(site: Site) -> None:
    for pod in (site.one, site.two):
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert pod.probe(name)


def test_kvshelf_ls_in_the_pod(site: Site) -> None:
    """The guide's kubectl exec, as the container's user: both share one folder."""
    complete(site.one, make_prompt(1, CHUNK_TOKENS + 1))
    (line,) = (
        line
        for block in guide.blocks()
        for line in block.text.splitlines()
        if line.endswith("kvshelf ls /mnt/files-storage/kv-cache")
    )
    said = site.one.execute(*line.partition(" -- ")[2].split())
    folders = [path.name for path in site.shelf.iterdir() if (path / "namespace.json").is_file()]
    assert len(folders) == 1
    assert folders[0] in said


def test_the_process_is_what_the_security_context_says(site: Site) -> None:
    status = site.one.execute("cat", "/proc/1/status")  # of the machine: only that it is readable
    assert status
    said = site.one.execute("sh", "-c", "id -u; id -g; touch /x 2>&1; touch /usr/x 2>&1; true")
    assert said.splitlines()[:2] == ["1000", "1000"]
    assert said.count("Read-only file system") + said.count("Permission denied") == 2
    owner = next(iter(chunk_files(site.shelf))).stat()
    assert owner.st_uid in (0, 1000)  # 0 where the second pod's mount acts as root
    assert owner.st_gid == 1000


def test_the_containers_stay_within_the_manifests_memory(site: Site) -> None:
    for pod in (site.one, site.two):
        if pod.memory.path is None:
            pytest.skip("no memory cgroups here")
        assert pod.memory.number("memory.limit_in_bytes") == pod.memory.limit == 12 << 30
        assert 100 << 20 < pod.memory.number("memory.max_usage_in_bytes") < pod.memory.limit
        assert pod.memory.number("memory.failcnt") == 0


@pytest.fixture(scope="module")
def monitored(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("monitoring") / "prometheus"
    targets = [f"127.0.0.1:{pod.port}" for pod in (site.one, site.two)]
    with Prometheus(folder, kustomize(expressions.FOLDER), targets) as prometheus:
        wait_for(lambda: len(prometheus.query("up == 1")) == 2, 60, site.one)
        yield prometheus


def test_every_panel_and_alert_has_data_under_load(site: Site, monitored: Prometheus) -> None:
    """Nothing on the dashboard is dead: a panel needs one line with data, a rule all of it."""
    elsewhere = expressions.KUBELET  # not of these pods
    for seed in range(60, 66):  # new, stored by one, loaded by the other, over some scrapes
        prompts = [make_prompt(seed, 2 * CHUNK_TOKENS + 1), make_prompt(-seed, CHUNK_TOKENS + 1)]
        stored = len(chunk_files(site.shelf))
        for prompt in prompts:
            complete(site.one, prompt)
        wait_for(lambda stored=stored: len(chunk_files(site.shelf)) == stored + 3, 30, site.one)
        for prompt in prompts:
            complete(site.two, prompt)
    rules = [expression for kind, expression in expressions.rules() if kind == "record"]
    alerts = [
        expressions.without_threshold(expression)
        for kind, expression in expressions.rules()
        if kind == "alert" and not expression.names & (elsewhere | expressions.FAULTS_ONLY)
    ]
    assert len(alerts) >= 9
    # A ratio to a day's mean that is 0 has no value: the traffic above hits.
    assert monitored.await_data([e.text for e in (*rules, *alerts)], 60) == []
    lines: dict[str, list[str]] = {}
    for expression in expressions.panels():
        if not expression.names & elsewhere:
            lines.setdefault(expression.where, []).append(expression.text)
    assert len(lines) >= 22
    dead = monitored.await_data(
        [" or ".join(f"({t})" for t in texts) for texts in lines.values()], 60
    )
    assert dead == []


def test_a_fault_fires_its_alert(site: Site, monitored: Prometheus) -> None:
    """The second pod's storage fails: its breaker opens, and the alert names it."""
    alert = 'ALERTS{alertname="KvshelfBreakerOpen", alertstate="firing"}'
    assert monitored.query(alert) == []
    site.faults(stat="EIO")
    try:

        def fires() -> bool:
            complete(site.two, make_prompt(int(time.monotonic() * 1000), CHUNK_TOKENS + 1))
            return bool(monitored.query(alert))

        wait_for(fires, 90, site.two)
        (series,) = monitored.query(alert)
        assert series["metric"]["instance"] == f"127.0.0.1:{site.two.port}"
    finally:
        site.faults()

    def closes() -> bool:
        """It takes a request that loads: the first pod has stored what the second one asks."""
        prompt = make_prompt(int(time.monotonic() * 1000), 2 * CHUNK_TOKENS + 1)
        for pod in (site.one, site.two):
            complete(pod, prompt)
        return site.two.metric("kvshelf:breaker_state") == 0

    wait_for(closes, 90, site.two)


def test_a_full_volume_stops_storing_and_nothing_else(site: Site) -> None:
    known = make_prompt(20, 2 * CHUNK_TOKENS + 1)
    complete(site.one, known)
    wait_for(lambda: site.one.metric("kvshelf:store_outcomes_total") > 0, 30, site.one)
    filler = site.claim / "filler"
    before = site.two.metric("kvshelf:load_chunks_total")
    try:
        # Unbuffered: else closing it would fail again.
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(b"x" * 4096)
        for seed in range(21, 33):
            complete(site.one, make_prompt(seed, 2 * CHUNK_TOKENS + 1))
        failed = {"outcome": "io_error"}
        assert site.one.metric("kvshelf:store_outcomes_total", **failed) > 0
        assert site.one.probe("readinessProbe") and site.one.probe("livenessProbe")
        complete(site.two, known)  # what is there is loaded
        assert site.two.metric("kvshelf:load_chunks_total") == before + 2
    finally:
        filler.unlink()
    published = site.one.metric("kvshelf:store_outcomes_total", outcome="published")

    def stores_again() -> bool:
        complete(site.one, make_prompt(int(time.monotonic() * 1000), CHUNK_TOKENS + 1))
        now = site.one.metric("kvshelf:store_outcomes_total", outcome="published")
        return now > published

    wait_for(stores_again, 30, site.one)


def test_a_volume_that_the_pod_may_not_write_ends_it_with_the_reason(
    site: Site, tmp_path: Path
) -> None:
    """As on a volume whose driver does not know fsGroup."""
    claim = tmp_path / "read-only"
    shutil.copytree(site.claim / "models", claim / "models")
    for entry in (claim, *claim.rglob("*")):  # root's, and all may read
        shutil.chown(entry, "root", "root")
        entry.chmod(0o755)
    pod = Pod(site.objects, "llm-d-model-server", tmp_path / "pod", {CLAIM: claim})
    try:
        assert pod.launch().wait(START_SECONDS) != 0
    finally:
        pod.close()
    log = pod.log.read_text(errors="replace")
    assert "/mnt/files-storage/kv-cache" in log
    assert "Permission denied" in log or "permission" in log


def test_a_pod_that_ends_writes_what_it_has_taken(site: Site) -> None:
    """SIGTERM while chunks are on their way to slow storage: all of them arrive."""
    chunks = 8
    before = len(chunk_files(site.shelf))
    site.faults(write_latency_ms=400)
    complete(site.two, make_prompt(50, chunks * CHUNK_TOKENS + 1))
    begun = time.monotonic()
    assert len(chunk_files(site.shelf)) < before + chunks  # or the test shows nothing
    site.two.terminate()
    assert len(chunk_files(site.shelf)) == before + chunks, site.two.log_tail()
    assert not list(site.shelf.glob("*/tmp/*"))
    assert time.monotonic() - begun > 0.4


def test_a_pod_ends_within_its_grace_period(site: Site) -> None:
    site.one.terminate()
    assert "stores not yet written are given up" not in site.one.log.read_text()
