"""CephFS on this machine: one monitor, manager, object store and metadata server, two clients.

Needs root, /dev/fuse and the programs of ``PROGRAMS``, from Debian's packages ceph-mon, ceph-mgr,
ceph-osd, ceph-mds and ceph-fuse. Only the loopback device is used, without authentication.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.harness.daemons import Daemons, NotStarted, free_port

PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph-mds", "ceph-fuse", "ceph", "monmaptool")
STORE_BYTES = 10 << 30  # sparse
TRIES = 3


def _settings(folder: Path, cluster: str, port: int) -> dict[str, dict[str, object]]:
    """ceph.conf: one copy of everything, little memory."""
    return {
        "global": {
            "fsid": cluster,
            "mon host": f"v1:127.0.0.1:{port}",
            "mon initial members": "a",
            **dict.fromkeys(
                [f"auth {kind} required" for kind in ("cluster", "service", "client")], "none"
            ),
            "public addr": "127.0.0.1",
            "cluster addr": "127.0.0.1",
            "run dir": folder / "run",
            "pid file": "",
            "admin socket": "",
            "log file": folder / "log/$name.log",
            "osd pool default size": 1,
            "osd pool default min size": 1,
            "osd pool default pg autoscale mode": "off",
            "osd crush chooseleaf type": 0,
            "mon allow pool size one": "true",
            # A disk that is nearly full elsewhere is no reason.
            "mon data avail warn": 1,
            "mon data avail crit": 1,
        },
        "mon": {"mon data": folder / "mon", "auth allow insecure global id reclaim": "true"},
        "mgr": {"mgr data": folder / "mgr", "mgr initial modules": ""},
        "osd": {
            "osd data": folder / "osd",
            "osd objectstore": "bluestore",
            "bluestore block size": STORE_BYTES,
            "bluestore cache autotune": "false",
            "bluestore cache size": 64 << 20,
            "osd class update on start": "false",
        },
        # By default the first look at another client's new file may wait for a tick of 5 s.
        "mds": {"mds data": folder / "mds", "mds tick interval": 0.1, "mds beacon interval": 1},
        "client": {"client quota df": "true"},
    }


def _start(daemons: Daemons) -> list[Path]:
    folder = daemons.folder
    for name in ("run", "mon", "mgr", "osd", "mds"):
        (folder / name).mkdir()
    cluster, store, port = str(uuid.uuid4()), str(uuid.uuid4()), free_port()
    configuration = folder / "ceph.conf"
    with configuration.open("w") as out:
        for section, values in _settings(folder, cluster, port).items():
            out.write(f"[{section}]\n")
            out.writelines(f"{name} = {value}\n" for name, value in values.items())
    use = ("-c", str(configuration))

    def ceph(*line: str) -> str:
        return daemons.run("ceph", *use, "--connect-timeout", "20", *line)

    map_ = str(folder / "monmap")
    address = f"[v1:127.0.0.1:{port}]"
    daemons.run("monmaptool", "--create", "--fsid", cluster, "--addv", "a", address, map_)
    daemons.run("ceph-mon", *use, "--mkfs", "-i", "a", "--monmap", map_)
    daemons.start("mon", "ceph-mon", "-f", *use, "-i", "a")
    make = ("--mkfs", "-i", "0", "--osd-uuid", store, "--no-mon-config")
    daemons.run("ceph-osd", *use, *make, seconds=60)
    ceph("osd", "new", store, "0")
    daemons.start("osd", "ceph-osd", "-f", *use, "-i", "0")
    daemons.start("mgr", "ceph-mgr", "-f", *use, "-i", "x")
    for pool, groups in (("meta", "4"), ("data", "8")):
        ceph("osd", "pool", "create", pool, groups, groups)
    ceph("fs", "new", "shared", "meta", "data")
    daemons.start("mds", "ceph-mds", "-f", *use, "-i", "a")

    def is_active() -> bool:
        if not daemons.is_running("osd"):  # its first contact with a new monitor may fail
            daemons.start("osd", "ceph-osd", "-f", *use, "-i", "0")
        return "up:active" in ceph("mds", "stat")

    daemons.until(is_active, "active metadata server")
    places = [folder / name for name in "ab"]
    for place in places:
        client = ("-f", *use, "-n", "client.admin", str(place))
        daemons.mount(f"client-{place.name}", place, "ceph-fuse", *client)
    daemons.mounted(places)
    return places


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[list[Path]]:
    """Two mounts below ``folder``. A start that fails, as some do, is tried again.

    Raises:
        NotStarted: it cannot be had here.
    """
    for turn in range(TRIES):
        with Daemons(folder / str(turn)) as daemons:
            try:
                places = _start(daemons)
            except NotStarted:
                if turn + 1 == TRIES:
                    raise
                continue
            yield places
            return
