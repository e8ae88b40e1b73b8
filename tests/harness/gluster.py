"""GlusterFS on this machine: a volume over two servers, each in a network of its own, two clients.

Needs root, /dev/fuse and the programs of ``PROGRAMS``, from Debian's packages glusterfs-server,
glusterfs-client, iproute2 and e2fsprogs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.harness.daemons import Daemons

PROGRAMS = ("glusterd", "glusterfs", "gluster", "ip", "mkfs.ext4")
BRICK_BYTES = 1 << 30  # sparse
SERVERS = (1, 2)
# Private addresses that nothing else is likely to have (RFC 2544: networks under test).
_NETWORK = "198.18.77"


def _address(server: int) -> str:
    return f"{_NETWORK}.{10 + server}"


def _network(daemons: Daemons, tag: str) -> None:
    """A bridge of this machine, and a namespace behind it for each server."""
    bridge = f"kvs{tag}b"
    daemons.run("ip", "link", "add", bridge, "type", "bridge")
    daemons.finally_run("ip", "link", "del", bridge)
    daemons.run("ip", "addr", "add", f"{_NETWORK}.1/24", "dev", bridge)
    daemons.run("ip", "link", "set", bridge, "up")
    for server in SERVERS:
        space, port = f"kvs{tag}n{server}", f"kvs{tag}p{server}"
        daemons.run("ip", "netns", "add", space)
        daemons.finally_run("ip", "netns", "del", space)
        pair = ("type", "veth", "peer", "name", "eth0", "netns", space)
        daemons.run("ip", "link", "add", port, *pair)
        daemons.run("ip", "link", "set", port, "master", bridge, "up")
        inside = ("ip", "-n", space)
        daemons.run(*inside, "addr", "add", f"{_address(server)}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            daemons.run(*inside, "link", "set", device, "up")


def _server(daemons: Daemons, tag: str, server: int) -> str:
    """Start one; its brick. Its folders in /var and /run are its own, and so are its processes:
    with the first of them all end."""
    home = daemons.folder / f"server{server}"
    own = {"state": "/var/lib/glusterd", "run": "/run/gluster", "logs": "/var/log/glusterfs"}
    for name in own:
        (home / name).mkdir(parents=True)
    image, brick = home / "brick.img", home / "brick"
    brick.mkdir()
    with image.open("wb") as made:
        made.truncate(BRICK_BYTES)
    daemons.run("mkfs.ext4", "-qF", str(image))
    daemons.run("mount", "-o", "loop", str(image), str(brick))
    daemons.finally_run("umount", "-l", str(brick))
    (brick / "data").mkdir()
    options = {
        "working-directory": "/var/lib/glusterd",
        "transport-type": "socket",
        "transport.address-family": "inet",
        "transport.socket.bind-address": _address(server),
        "glusterd-sockfile": _socket(daemons, server),
        "transport.socket.keepalive-time": "10",  # it joins no other server without these two
        "transport.socket.keepalive-interval": "2",
    }
    volume = ["volume management", "type mgmt/glusterd"]
    volume += [f"option {name} {value}" for name, value in options.items()]
    (home / "glusterd.vol").write_text("\n".join([*volume, "end-volume", ""]))
    script = "".join(
        f"mkdir -p {target}; mount --bind {home}/{name} {target}; " for name, target in own.items()
    )
    script += f"exec glusterd -N -f {home}/glusterd.vol -L WARNING -l {home}/glusterd.log"
    line = ["ip", "netns", "exec", f"kvs{tag}n{server}"]
    line += ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    daemons.start(f"server{server}", *line, "sh", "-euc", script)
    return f"{_address(server)}:{brick}/data"


def _socket(daemons: Daemons, server: int) -> str:
    return f"{daemons.folder}/s{server}"


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[list[Path]]:
    """Two mounts below ``folder``, of a volume whose files are spread over the servers.

    Raises:
        NotStarted: it cannot be had here.
    """
    tag = str(os.getpid() % 10**6)
    with Daemons(folder) as daemons:

        def gluster(server: int, *line: str) -> str:
            socket = f"--glusterd-sock={_socket(daemons, server)}"
            return daemons.run("gluster", socket, "--mode=script", *line, seconds=60)

        _network(daemons, tag)
        bricks = [_server(daemons, tag, server) for server in SERVERS]
        for server in SERVERS:
            daemons.until(lambda s=server: gluster(s, "volume", "list") is not None, "glusterd")
        gluster(1, "peer", "probe", _address(2))
        daemons.until(lambda: "in Cluster (Connected)" in gluster(1, "peer", "status"), "peer")
        gluster(1, "volume", "create", "shared", *bricks, "force")
        gluster(1, "volume", "set", "shared", "network.ping-timeout", "5")
        gluster(1, "volume", "start", "shared")
        places = [folder / name for name in "ab"]
        for place in places:
            client = [f"--volfile-server={_address(1)}", "--volfile-id=shared"]
            log = f"{folder}/log/client-{place.name}"
            daemons.mount(place.name, place, "glusterfs", "-N", *client, "-l", log, str(place))
        daemons.mounted(places)
        for place in places:
            daemons.until(lambda p=place: _answers(p), "answer")
        yield places


def _answers(place: Path) -> bool:
    # A process of its own: a look at a mount may hang.
    line = ["timeout", "5", "stat", f"{place}/."]
    return subprocess.run(line, check=False, capture_output=True).returncode == 0
