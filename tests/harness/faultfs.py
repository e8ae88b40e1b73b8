"""A directory mounted again, over FUSE, with faults on demand; ``FaultyMount`` starts it.

    python -m tests.harness.faultfs SOURCE MOUNT

A line of JSON on standard input is a command and answered by one on standard output: see
``faults.Control.answer``. The first line is {"mounted": true}. The end of standard input unmounts.

Nothing is cached but attributes, for 20 ms after a look at them, so every read, write and call by
name gets here. As on a local disk, a removed or replaced file that is open can still be read:
libfuse gives it a name of its own first, which lies beside SOURCE here, where no listing shows it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy

from tests.harness.faults import Control, InForce

ATTRIBUTES_SECONDS = 0.02
# One for each call that hangs.
_THREADS, _IDLE_THREADS = 200, 16
# What libfuse calls an open file that is removed or replaced.
_HIDDEN = ".fuse_hidden"
_REPLACED_SECONDS = 0.2
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_DROPPED = os.O_APPEND | os.O_DIRECT | os.O_NOATIME | os.O_EXCL | os.O_CREAT
_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _bytes_at(pointer: Any, size: int) -> memoryview:
    return memoryview((ctypes.c_char * size).from_address(ctypes.addressof(pointer.contents))).cast(
        "B"
    )


class Served(mfusepy.Operations):
    """The calls by name, on the directory beneath. Those on open files are ``Server``'s."""

    use_ns = True

    def __init__(self, source: str) -> None:
        self.source = source
        self.control = Control()
        self.names: dict[int, str] = {}  # open file -> the path that opened it
        self._removed = tempfile.mkdtemp(prefix="removed-", dir=os.path.dirname(source))
        self._hidden: dict[str, float] = {}  # path -> when libfuse took its open file away

    def place(self, path: str) -> str:
        """Where an entry lies."""
        name = path.rpartition("/")[2]
        if name.startswith(_HIDDEN):
            return f"{self._removed}/{name}"
        return self.source + path

    def is_replaced(self, path: str) -> bool:
        """Whether an entry that is absent may be there in a moment: libfuse replaces an open file
        in two steps. Waits for a part of the time."""
        since = self._hidden.get(path)
        if since is None or time.monotonic() > since + _REPLACED_SECONDS:
            self._hidden.pop(path, None)
            return False
        time.sleep(0.001)
        return True

    def close(self) -> None:
        shutil.rmtree(self._removed, ignore_errors=True)

    def init_with_config(self, conn_info: Any, config: Any) -> None:
        config.nullpath_ok = 1  # no lock on a path while a read of it hangs
        config.direct_io = 1
        config.use_ino = 1
        config.attr_timeout = ATTRIBUTES_SECONDS
        config.entry_timeout = config.negative_timeout = 0.0

    def opened(self, path: str, handle: int) -> int:
        self.names[handle] = path
        return handle

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        path = self.names[fh]
        self.control.meet("readdir", path)
        with os.scandir(self.source + path) as entries:
            for entry in entries:
                kind = stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else stat.S_IFREG
                if entry.is_symlink():
                    kind = stat.S_IFLNK
                yield entry.name, {"st_ino": entry.inode(), "st_mode": kind}, 0

    def opendir(self, path: str) -> int:
        return self.opened(path, os.open(self.source + path, os.O_RDONLY | os.O_DIRECTORY))

    def releasedir(self, path: str, fh: int) -> int:
        return self.release(path, fh)

    def readlink(self, path: str) -> str:
        return os.readlink(self.source + path)

    def mkdir(self, path: str, mode: int) -> int:
        self.control.meet("mkdir", path)
        os.mkdir(self.source + path, mode)
        return self._own(path, is_folder=True)

    def rmdir(self, path: str) -> None:
        self.control.meet("rmdir", path)
        os.rmdir(self.source + path)

    def symlink(self, target: str, source: str) -> None:
        os.symlink(source, self.source + target)

    def link(self, target: str, source: str) -> None:
        self.control.meet("link", source, target)
        os.link(self.source + source, self.source + target)

    def unlink(self, path: str) -> None:
        if not path.rpartition("/")[2].startswith(_HIDDEN):
            self.control.meet("unlink", path)
        os.unlink(self.place(path))

    def rename_with(self, old: str, new: str, flags: int) -> None:
        if new.rpartition("/")[2].startswith(_HIDDEN):
            self.control.meet("unlink", old)
            self._hidden[old] = time.monotonic()
            os.rename(self.source + old, self.place(new))
            return
        ends = (-100, os.fsencode(self.source + old), -100, os.fsencode(self.source + new))
        self.control.after(
            "rename", lambda: _checked(_LIBC.renameat2(*ends, ctypes.c_uint(flags))), old, new
        )
        self._hidden.pop(new, None)

    def chmod(self, path: str, mode: int) -> None:
        self.control.meet("chmod", path)
        os.chmod(self.place(path), stat.S_IMODE(mode))

    def chown(self, path: str, uid: int, gid: int) -> None:
        self.control.meet("chmod", path)
        unset = (1 << 32) - 1
        ids = [-1 if each == unset else each for each in (uid, gid)]
        place = self.place(path)
        mode = os.lstat(place).st_mode
        os.lchown(place, *ids)
        if not stat.S_ISLNK(mode):
            os.chmod(place, stat.S_IMODE(mode))  # it took the bits that run as another

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        self.control.meet("utimens", path)
        pairs = [divmod(each, 10**9) for each in times or ()]
        for index, each in enumerate(times or ()):
            if each in (_UTIME_NOW, _UTIME_OMIT):
                pairs[index] = (0, each)
        spec = (ctypes.c_long * 4)(*(value for pair in pairs for value in pair)) if pairs else None
        _checked(_LIBC.utimensat(-100, os.fsencode(self.place(path)), spec, 0x100))

    def statfs(self, path: str) -> dict[str, int]:
        self.control.meet("statfs", path)
        found = os.statvfs(self.source + path)
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}

    def access(self, path: str, amode: int) -> None:
        """Permissions are the kernel's to check."""

    def create(self, path: str, mode: int, flags: int) -> int:
        self.control.meet("create", path)
        wanted = os.O_RDWR | os.O_CREAT | (flags & os.O_EXCL)
        handle = os.open(self.source + path, wanted, mode)
        self._own(path, is_folder=False)
        return self.opened(path, handle)

    def open(self, path: str, flags: int) -> int:
        self.control.meet("open", path)
        while True:
            try:
                return self.opened(path, os.open(self.place(path), flags & ~_DROPPED))
            except FileNotFoundError:  # replaced between the kernel's lookup and this
                if not self.is_replaced(path):
                    raise

    def flush(self, path: str, fh: int) -> None:
        self.control.meet("close", self.names[fh])

    def release(self, path: str, fh: int) -> int:
        self.names.pop(fh)  # first: the number may be another file's in a moment
        os.close(fh)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        self.control.meet("fsync", self.names[fh])
        (os.fdatasync if datasync else os.fsync)(fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        self.fsync(path, datasync, fh)

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> None:
        self.control.meet("allocate", self.names[fh])
        _checked(_LIBC.fallocate(fh, mode, ctypes.c_long(offset), ctypes.c_long(size)))

    # Only that FUSE registers them; ``Server`` answers.
    getattr = truncate = rename = read = write = lambda self, *_: None

    def _own(self, path: str, *, is_folder: bool) -> int:
        """Give a new entry to its maker and, below a folder with a group of its own, to that."""
        uid, gid, _ = mfusepy.fuse_get_context()
        place = self.source + path
        folder = os.stat(os.path.dirname(place))
        inherits = bool(folder.st_mode & stat.S_ISGID)
        if (uid, gid) == (0, 0) and not inherits:
            return 0
        mode = stat.S_IMODE(os.lstat(place).st_mode)
        os.lchown(place, uid, folder.st_gid if inherits else gid)
        os.chmod(place, mode | stat.S_ISGID if inherits and is_folder else mode)
        return 0


class Server(mfusepy.FUSE):
    """What is asked most often, without copies: the buffers are libfuse's."""

    operations: Served

    def getattr_fuse_3(self, path: bytes | None, buf: Any, fip: Any) -> int:
        served = self.operations
        if path is None:
            handle = fip.contents.fh
            served.control.meet("stat", served.names[handle])
            return _checked(_LIBC.fstat(handle, buf))
        name = os.fsdecode(path)
        if name.rpartition("/")[2].startswith(_HIDDEN):
            return _checked(_LIBC.lstat(os.fsencode(served.place(name)), buf))
        served.control.meet("stat", name)
        place = os.fsencode(served.source) + path
        while _LIBC.lstat(place, buf) != 0:
            number = ctypes.get_errno()
            if number != errno.ENOENT or not served.is_replaced(name):
                raise OSError(number, "lstat")
        return 0

    def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> int:
        served = self.operations
        if path is None:
            served.control.meet("truncate", served.names[fip.contents.fh])
            os.ftruncate(fip.contents.fh, length)
        else:
            name = os.fsdecode(path)
            served.control.meet("truncate", name)
            os.truncate(served.place(name), length)
        return 0

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        self.operations.rename_with(os.fsdecode(old), os.fsdecode(new), flags)
        return 0

    def _acting(self, operation: str, handle: int, size: int) -> tuple[InForce | None, int]:
        """The faults of this read or write, if any, and how much of it is done."""
        served = self.operations
        force = served.control.in_force
        if force is None:
            return None, size
        force.pace(size)
        name = served.names[handle]
        if not force.matches(name):
            return None, size
        force.meet(operation, name)
        return force, force.part(f"short_{operation}", size)

    def read(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        handle = fip.contents.fh
        force, size = self._acting("read", handle, size)
        view = _bytes_at(buf, size)
        done = os.preadv(handle, [view], offset)
        bit = force.bit(done) if force is not None else None
        if bit is not None:
            view[bit // 8] ^= 1 << bit % 8
        return done

    def write(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        handle = fip.contents.fh
        _, size = self._acting("write", handle, size)
        return os.pwritev(handle, [_bytes_at(buf, size)], offset)


def obey(served: Served, mount: str) -> None:
    """Answer commands until there are no more, then unmount."""
    while not os.path.ismount(mount):
        threading.Event().wait(0.002)
    _say({"mounted": True})
    for line in sys.stdin:
        command = json.loads(line)
        _say({"id": command["id"], **served.control.answer(command)})
    served.control.set({})
    subprocess.run(["umount", "-l", mount], check=False)
    served.close()
    os._exit(0)  # files may be open still, which keep it


def main(source: str, mount: str) -> None:
    os.umask(0)
    served = Served(source)
    threading.Thread(target=obey, args=(served, mount), daemon=True).start()
    Server(
        served,
        mount,
        foreground=True,
        allow_other=True,
        default_permissions=True,
        fsname="faultfs",
        max_threads=_THREADS,
        max_idle_threads=_IDLE_THREADS,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
