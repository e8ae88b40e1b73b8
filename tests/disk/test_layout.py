"""Names under the root: what is made is understood, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshelf.disk.keys import HASH_BYTES_MIN, KEY_BYTES_MAX, make_key
from kvshelf.disk.layout import (
    ChunkName,
    TempOwner,
    chunk_path,
    is_chunk_name,
    is_namespace_folder,
    owner_is_dead,
    parse_chunk_path,
    parse_temp_name,
    safe_host,
    temp_name,
)
from kvshelf.disk.namespace import Identity

FOLDER = "org_model-0123456789ab"
HASH = "abc0" * 16
GOOD = f"{FOLDER}/r3/abc/{HASH}-g7.kv"

FOLDERS = st.text().map(lambda model: Identity({"model": model}).folder)
HASHES = st.binary(min_size=HASH_BYTES_MIN, max_size=KEY_BYTES_MAX - 4)
OWNERS = st.builds(
    TempOwner,
    host=st.text().map(safe_host),
    boot=st.integers(0, 2**32 - 1).map(lambda n: f"{n:08x}"),
    pids=st.integers(0, 2**63),
    pid=st.integers(1, 2**22),
    start_ticks=st.integers(0, 2**63),
)


def test_a_chunk_path_is_the_documented_one() -> None:
    assert chunk_path(FOLDER, 3, make_key(bytes.fromhex(HASH), 7)) == GOOD


@given(FOLDERS, st.integers(0, 10**9 - 1), HASHES, st.integers(0, 2**32 - 1))
def test_a_chunk_path_is_understood(folder: str, rank: int, digest: bytes, group: int) -> None:
    key = make_key(digest, group)
    assert parse_chunk_path(chunk_path(folder, rank, key)) == ChunkName(folder, rank, key)


@given(
    st.sampled_from(["abc", "000"]),
    st.sampled_from(["abc", "000", "0ab"]),
    st.integers(0, 250),
    st.sampled_from(["0", "7", "07", "4294967295", "4294967296", "x", "", "\u0661"]),
    st.sampled_from([".kv", ".KV", "", ".kv\n"]),
)
def test_a_chunk_name_is_what_a_chunk_path_ends_with(
    leaf: str, start: str, digits: int, group: str, suffix: str
) -> None:
    name = f"{start}{'0' * digits}-g{group}{suffix}"
    understood = parse_chunk_path(f"{FOLDER}/r3/{leaf}/{name}") is not None
    assert is_chunk_name(leaf, name) == understood


@given(st.text())
def test_any_text_is_refused_or_comes_back_as_it_is(path: str) -> None:
    name = parse_chunk_path(path)
    assert name is None or chunk_path(name.folder, name.rank, name.key) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        f"/{GOOD}",
        f"../{GOOD}",
        f"{GOOD}/",
        f"{GOOD}\n",
        f"{GOOD}\0",
        GOOD.replace(FOLDER, ".."),
        GOOD.replace(FOLDER, "."),
        GOOD.replace(FOLDER, "tmp"),
        GOOD.replace(FOLDER, f".{FOLDER}"),
        GOOD.replace(FOLDER, f"a/{FOLDER}"),
        GOOD.replace(FOLDER, f"{'x' * 65}-0123456789ab"),
        GOOD.replace("r3", "r-3"),
        GOOD.replace("r3", "r03"),
        GOOD.replace("r3", "r"),
        GOOD.replace("r3", "r\u0663"),
        GOOD.replace("r3", "r1234567890"),
        GOOD.replace("r3/", "r3//"),
        GOOD.replace("r3/", "r3/../r3/"),
        GOOD.replace("/abc/", "/abd/"),
        GOOD.replace("/abc/", "/ABC/"),
        GOOD.replace(HASH, HASH[:-1]),
        GOOD.replace(HASH, HASH[:14]),
        GOOD.replace(HASH, HASH * 4),
        GOOD.replace(HASH, HASH.upper()),
        GOOD.replace("-g7", "-g07"),
        GOOD.replace("-g7", "-g+7"),
        GOOD.replace("-g7", f"-g{2**32}"),
        GOOD.replace("-g7", ""),
        GOOD.replace(".kv", ".KV"),
        GOOD.replace(".kv", ".kv.tmp"),
    ],
)
def test_a_path_that_we_could_not_have_made_is_refused(path: str) -> None:
    assert parse_chunk_path(GOOD) is not None
    assert parse_chunk_path(path) is None


def test_only_names_like_ours_are_namespace_folders() -> None:
    assert is_namespace_folder(FOLDER) and is_namespace_folder("model-000000000000")
    for name in ("", "..", "lost+found", "tmp", "a-0123456789AB", f"{FOLDER}\n", f".{FOLDER}"):
        assert not is_namespace_folder(name)


@given(OWNERS, st.integers(0, 2**63))
def test_a_temp_name_is_understood(owner: TempOwner, count: int) -> None:
    name = temp_name(owner, count)
    assert "/" not in name and len(name) < 255
    assert parse_temp_name(name) == owner


@pytest.mark.parametrize(
    "name",
    [
        "",
        "host.tmp",
        "host-0123abcd-9-1-2-3",
        "host-0123abcd-9-1-2-3.tmp\n",
        "host-0123ABCD-9-1-2-3.tmp",
        "host-0123abc-9-1-2-3.tmp",
        "host-0123abcd--9-1-2-3.tmp.kv",
        "host-0123abcd-9-01-2-3.tmp",
        "host-0123abcd-09-1-2-3.tmp",
        "host-0123abcd-1-2-3.tmp",
        "host-0123abcd-9-1-02-3.tmp",
        "host-0123abcd-9-\u0661-2-3.tmp",
        "ho/st-0123abcd-9-1-2-3.tmp",
        f"{'h' * 65}-0123abcd-9-1-2-3.tmp",
        GOOD,
    ],
)
def test_other_temp_names_are_refused(name: str) -> None:
    assert parse_temp_name("host-0123abcd-9-1-2-3.tmp") is not None
    assert parse_temp_name(name) is None


@given(st.text())
def test_a_host_name_is_made_safe(host: str) -> None:
    safe = safe_host(host)
    assert 1 <= len(safe) <= 64 and safe.isascii() and "/" not in safe
    assert safe_host(safe) == safe


HERE = TempOwner("here", "0123abcd", 99, 7, 1000)


@pytest.mark.parametrize(
    ("owner", "running", "dead"),
    [
        (HERE, {7: 1000}, False),
        (HERE, {}, True),
        (HERE, {7: 1001}, True),  # the pid was given to another process
        (HERE, {8: 1000}, True),
        # Rebooted since, or another node's pod of this host name: nobody can tell.
        (replace(HERE, boot="ffffffff"), {}, None),
        (replace(HERE, host="there"), {}, None),
        # Another container of this pod: its processes are not seen from here.
        (replace(HERE, pids=98), {}, None),
        (replace(HERE, pids=0), {}, None),
    ],
)
def test_who_is_dead(owner: TempOwner, running: dict[int, int], dead: bool | None) -> None:
    assert owner_is_dead(owner, here=HERE, start_ticks_of=running.get) is dead


def test_without_a_pid_namespace_nobody_is_called_dead() -> None:
    hidden = replace(HERE, pids=0)
    assert owner_is_dead(hidden, here=hidden, start_ticks_of={}.get) is None
