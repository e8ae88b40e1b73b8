"""Reads the blocks of ``deploy/README.md`` and executes them as a reader would, in one shell."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.tools import DEPLOY, run, tool

_BLOCK = re.compile(
    r"(?:<!-- (?P<only>pods|gateway|standalone|optional)\b[^\n]*-->\n)?"
    r"```(?P<kind>bash|text|console)\n(?P<text>.*?)```\n",
    re.S,
)


@dataclass(frozen=True)
class Block:
    """One fenced block: its kind, what the page says of it, and its section.

    Attributes:
        only: "pods": it needs replicas that run; "gateway" or "standalone": for that mode alone;
            "optional": not everybody needs it; "": for all.
    """

    kind: str
    section: str
    text: str
    only: str

    @property
    def pods(self) -> bool:
        return self.only == "pods"

    def is_for(self, gateway: str) -> bool:
        """Whether a reader who chose this way in executes it."""
        modes = {"gateway", "standalone"}
        mine = "standalone" if gateway == "standalone" else "gateway"
        return self.only not in modes - {mine}


def blocks(path: Path = DEPLOY / "README.md") -> Iterator[Block]:
    """All of the guide, or of another page, in order."""
    page = path.read_text()
    for match in _BLOCK.finditer(page):
        section = re.findall(r"^#+ (.*)$", page[: match.start()], re.M)[-1]
        yield Block(match["kind"], section, match["text"], match["only"] or "")


def cell_shapes(table: str) -> list[list[str]]:
    """The words of each line, without what differs from one time to the next."""
    rows = [line.split() for line in table.splitlines() if line.strip()]
    return [[_shape(word) for word in row] for row in rows]


def _shape(word: str) -> str:
    word = re.sub(r"^(llm-d-infpool-epp|llm-d-model-server)-\w{8}-\w{5}$", r"\1-HASH", word)
    return re.sub(r"^\d+[smhd]$", "AGE", word)


class Shell:
    """Runs blocks one after the other; exported variables stay.

    Args:
        folder: where a copy of ``deploy/`` lies, named "deploy"; other files are made beside it.
        kubeconfig: whom kubectl and helm ask.
    """

    def __init__(self, folder: Path, kubeconfig: Path, **variables: str) -> None:
        self._cwd = folder / "deploy"
        self._state = folder / "environment"
        self._state.write_text("")
        home = folder / "home"
        home.mkdir(exist_ok=True)
        self._env = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "HOME": str(home),
            "PATH": f"{tool('kubectl').parent}:{tool('helm').parent}:{os.environ['PATH']}",
            "NO_PROXY": "127.0.0.1",
        }
        for name, value in variables.items():
            self._set(name, value)

    def _set(self, name: str, value: str) -> None:
        with self._state.open("a") as state:
            state.write(f"declare -x {name}='{value}'\n")

    def run(self, text: str) -> str:
        """The block's output; a command of it that fails ends it and fails the test."""
        script = f"set -euo pipefail; . {self._state}; {{\n{text}\n}}; export -p > {self._state}"
        done = run(["bash", "-c", script], env=self._env, cwd=self._cwd, check=False)
        assert done.returncode == 0, f"$ {text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fails(self, text: str) -> str:
        """What a block says that must fail."""
        script = f"set -euo pipefail; . {self._state}; {text}"
        done = run(["bash", "-c", script], env=self._env, cwd=self._cwd, check=False)
        assert done.returncode != 0, f"$ {text}\n{done.stdout}"
        return done.stdout + done.stderr
