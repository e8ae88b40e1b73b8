"""Starts the containers of rendered pods on this machine, as a kubelet would, without images.

The command, arguments, environment, mounts, user, memory limit and probes are the manifest's.
Replaced are: the image, by this machine's own files, read-only; ``vllm serve MODEL``, by the module
behind it, since the CPU build of vLLM is no distribution named vllm; the port, because all pods
share one network.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.deploy.memory import MemoryLimit
from tests.deploy.render import Object, named
from tests.deploy.tools import REPOSITORY
from tests.e2e.servers import free_port

Template = dict[str, Any]
# What this machine needs beside the manifest: no network, and where the programs are.
MACHINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1"}


def why_not() -> str | None:
    """The reason why no container can be started here, or None."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if any(shutil.which(name) is None for name in ("unshare", "nsenter")):
        return "needs unshare and nsenter (util-linux)"
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return "no mount namespaces here"
    return None


class Pod:
    """One pod of a Deployment, with one container.

    Args:
        folder: for its volumes and its log; made here.
        claims: the directory behind each claim.
        variables: environment beside the manifest's.
    """

    def __init__(
        self,
        objects: Sequence[Object],
        deployment: str,
        folder: Path,
        claims: dict[str, Path],
        **variables: str,
    ) -> None:
        self.spec = named(objects, "Deployment", deployment)["spec"]["template"]["spec"]
        (self.container,) = self.spec["containers"]
        self.port = free_port()
        self.log = folder / "container.log"
        self._objects, self._claims, self._folder = objects, claims, folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        limit = self.container["resources"]["limits"]["memory"]
        self.memory = MemoryLimit(f"{folder.parent.name}-{folder.name}", limit)
        self.environment = self._environment() | variables

    def _environment(self) -> dict[str, str]:
        made = dict(MACHINE, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        for variable in self.container.get("env", ()):
            source = variable.get("valueFrom", {})
            if "configMapKeyRef" in source:
                reference = source["configMapKeyRef"]
                item = named(self._objects, "ConfigMap", reference["name"])
                made[variable["name"]] = item["data"][reference["key"]]
            elif "secretKeyRef" in source:
                assert source["secretKeyRef"].get("optional"), variable
            else:
                made[variable["name"]] = variable["value"]
        return made

    def command(self) -> list[str]:
        """The manifest's, with its variables expanded and what this machine replaces."""
        words = [*self.container.get("command", ()), *self.container.get("args", ())]
        words = [
            re.sub(r"\$\((\w+)\)", lambda match: self.environment[match[1]], word) for word in words
        ]
        (listed,) = (p for p in self.container["ports"] if p["name"] == self._port_name())
        own = f"port={listed['containerPort']}"
        assert any(word.endswith(own) for word in words), words
        words = [word.replace(own, f"port={self.port}") for word in words]
        if words[:2] == ["vllm", "serve"]:
            module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
            return [*module, "--model", *words[2:], "--host=127.0.0.1"]
        found = shutil.which(words[0], path=self.environment["PATH"])
        assert found is not None, words
        return [found, *words[1:]]

    def _port_name(self) -> str:
        return str(self.container["readinessProbe"]["httpGet"]["port"])

    def _mounts(self) -> list[list[str]]:
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        made = []
        for mount in self.container["volumeMounts"]:
            volume = volumes[mount["name"]]
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                source = str(self._claims[claim])
            elif volume["emptyDir"].get("medium") == "Memory":
                source = "tmpfs"
            else:
                path = self._folder / mount["name"]
                path.mkdir()
                path.chmod(0o777)
                source = str(path)
            made.append([source, mount["mountPath"]])
        return made

    def launch(self) -> Pod:
        """Begin to start; ``ready`` waits."""
        context = self.spec["securityContext"]
        root = self._folder / "root"
        root.mkdir()
        keep = [sys.prefix, sys.base_prefix, str(REPOSITORY), *map(str, _paths())]
        spec = {
            "root": str(root),
            "keep": sorted({str(Path(path).absolute()) for path in keep}),
            "mounts": self._mounts(),
            "uid": context["runAsUser"],
            "gid": context["runAsGroup"],
            "groups": [context["fsGroup"]],
            "env": self.environment,
            "argv": self.command(),
            "cgroup": str(self.memory.path) if self.memory.path else None,
        }
        helper = Path(__file__).with_name("container.py")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", sys.executable, str(helper), json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def probe(self, name: str) -> bool:
        """One of the manifest's HTTP probes, asked once."""
        path = self.container[name]["httpGet"]["path"]
        try:
            reply = httpx.get(self.address + path, timeout=self.container[name]["timeoutSeconds"])
        except httpx.TransportError:
            return False
        return 200 <= reply.status_code < 400

    def ready(self, seconds: float) -> Pod:
        """Wait until the startup probe (if there is one) and the readiness probe answer."""
        deadline = time.monotonic() + seconds
        for name in ("startupProbe", "readinessProbe"):
            while name in self.container and not self.probe(name):
                assert self.running(), self.log_tail()
                assert time.monotonic() < deadline, self.log_tail()
                time.sleep(0.3)
        return self

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def execute(self, *command: str) -> str:
        """As ``kubectl exec``: a command's output, in the container and as its user."""
        assert self._process is not None
        context = self.spec["securityContext"]
        enter = ["nsenter", "--target", str(self._process.pid), "--mount", "--root", "--wd=/"]
        enter += [f"--setuid={context['runAsUser']}", f"--setgid={context['runAsGroup']}"]
        done = subprocess.run(
            [*enter, *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series on /metrics that have these labels."""
        total = 0.0
        for line in httpx.get(f"{self.address}/metrics", timeout=30).text.splitlines():
            if line.startswith((name + "{", name + " ")) and all(
                f'{key}="{value}"' in line for key, value in labels.items()
            ):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait(self, seconds: float) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        """As the kernel does when memory runs out, or a node that is lost."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def pre_stop_seconds(self) -> float:
        """How long it still serves after it was told to end, and no new requests come."""
        pause = self.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        return float(pause.get("seconds", 0))

    def terminate(self) -> int:
        """As a kubelet does after preStop: SIGTERM, and after the grace period the end of the test.

        Returns:
            The exit status.
        """
        assert self._process is not None
        grace = self.spec["terminationGracePeriodSeconds"] - self.pre_stop_seconds
        self._process.terminate()
        try:
            return self._process.wait(grace)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"killed after {grace} s\n{self.log_tail()}") from None

    def close(self) -> None:
        """End whatever is left of it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.memory.close()


def _paths() -> list[Path]:
    """Folders that Python imports from."""
    return [Path(path) for path in sys.path if path and Path(path).is_dir()]
