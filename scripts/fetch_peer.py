"""Unpack vLLM's own tests, of the version that is installed: its sdist carries them.

    python scripts/fetch_peer.py DIR

Writes DIR/VERSION/tests, Python files only; what is there already is left alone. The sdist comes
through pip, as the machine configures it. ``pip download`` would also build the package's metadata,
which asks for a compiler and torch's sources, so pip's finder and downloader are called alone.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pip._internal.commands import create_command
from pip._internal.network.download import Downloader

NAME = "vllm"


def installed() -> str:
    """The version whose tests are wanted, of whichever distribution it was installed from."""
    import vllm  # noqa: PLC0415 - seconds

    return str(vllm.__version__).split("+", maxsplit=1)[0]


def sdist(scratch: Path, wanted: str) -> Path:
    """Downloads it, and checks the hash that the index gives."""

    command: Any = create_command("download")
    options, _ = command.parse_args(["--no-deps", "--no-binary", ":all:", "--quiet", NAME])
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        found = [c for c in finder.find_all_candidates(NAME) if str(c.version) == wanted]
        if not found:
            raise SystemExit(f"no source of {NAME} {wanted} in this machine's package index")
        link = found[-1].link
        if link.is_file:
            return Path(link.file_path)
        path, _ = Downloader(session, "off")(link, str(scratch))
        link.as_hashes().check_against_path(path)
        return Path(path)


def unpack(archive: Path, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    with tarfile.open(archive) as source:
        for member in source:
            inside = Path(*Path(member.name).parts[1:])
            if not (member.isfile() and inside.parts[:1] == ("tests",) and inside.suffix == ".py"):
                continue
            if ".." in inside.parts:
                raise SystemExit(f"{archive}: {member.name} leads out of it")
            path = part / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            content = source.extractfile(member)
            assert content is not None
            path.write_bytes(content.read())
    part.rename(target)  # whole, so that an interrupted run leaves nothing that looks complete


def main() -> int:
    target = Path(sys.argv[1]) / installed()
    if not target.is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            print(f"fetching {NAME} {target.name}'s tests with pip {version('pip')}", flush=True)
            unpack(sdist(Path(scratch), target.name), target)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
