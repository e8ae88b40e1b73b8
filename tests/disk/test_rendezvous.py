"""Which root a chunk lies in: evenly, the same everywhere, and few moves when roots change."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import numpy as np
import pytest

from kvshelf.disk.keys import make_key
from kvshelf.disk.rendezvous import Rendezvous

ROOTS = [f"/mnt/disk{i}/kv" for i in range(16)]
COUNT = 40_000
RANDOM = random.Random(9)
KEYS = {
    "random": [make_key(RANDOM.randbytes(32), 0) for _ in range(COUNT)],
    # As poor as a hash can be: neighbors.
    "counted": [make_key(i.to_bytes(8, "big"), i % 3) for i in range(COUNT)],
}


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_every_root_gets_its_share(keys: str, count: int) -> None:
    found = np.bincount(Rendezvous(ROOTS[:count]).of_keys(KEYS[keys]), minlength=count)
    share = COUNT / count
    # Five standard deviations of a binomial distribution: never by chance.
    assert (abs(found - share) < 5 * math.sqrt(share * (1 - 1 / count))).all(), found


def test_the_order_of_the_roots_does_not_matter() -> None:
    roots = ROOTS[:5]
    shuffled = [roots[i] for i in (3, 0, 4, 2, 1)]
    one, two = (Rendezvous(each).of_keys(KEYS["random"]) for each in (roots, shuffled))
    assert [roots[i] for i in one] == [shuffled[i] for i in two]


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_a_root_that_is_added_takes_its_share_and_moves_nothing_else(count: int) -> None:
    keys = KEYS["random"]
    before = Rendezvous(ROOTS[:count]).of_keys(keys)
    after = Rendezvous(ROOTS[: count + 1]).of_keys(keys)
    moved = before != after
    assert set(after[moved].tolist()) == {count}  # and so, the other way round, for one taken away
    share = COUNT / (count + 1)
    assert abs(moved.sum() - share) < 5 * math.sqrt(share * count / (count + 1))


def test_one_key_and_many_keys_agree() -> None:
    route = Rendezvous(ROOTS[:7])
    rng = random.Random(1)
    keys = [make_key(rng.randbytes(rng.randrange(8, 125)), rng.randrange(9)) for _ in range(500)]
    roots = route.of_keys(keys).tolist()
    assert [route.of_key(key) for key in keys] == roots


def test_a_key_that_is_too_short_is_refused() -> None:
    """Beside seven others their bytes would make the hashes of seven keys."""
    with pytest.raises(ValueError, match="12"):
        Rendezvous(ROOTS[:2]).shares([bytes(11)] * 8)


def test_one_root_has_all_keys() -> None:
    route, keys = Rendezvous(ROOTS[:1]), KEYS["random"][:9]
    (share,) = route.shares(keys, [4, 5])
    assert (share.root, share.keys, share.runs) == (0, keys, [4, 5])
    assert share.rows.tolist() == list(range(9)) and route.of_key(keys[0]) == 0


def test_all_groups_of_a_chunk_lie_together() -> None:
    route = Rendezvous(ROOTS)
    for key in KEYS["random"][:50]:
        assert len({route.of_key(make_key(key[:-4], group)) for group in (0, 1, 70_000)}) == 1


def test_a_path_may_be_written_in_several_ways() -> None:
    plain = Rendezvous(["/mnt/a", "/mnt/b"]).of_keys(KEYS["random"])
    odd = Rendezvous(["/mnt/a/", "/mnt/./x/..//b"]).of_keys(KEYS["random"])
    assert (plain == odd).all()


# Of keys with hashes that end in 0, 1, 2 ... of 8 bytes: what another version must find again.
KNOWN = [2, 2, 0, 0, 0, 2, 0, 0, 0, 1, 2, 2, 0, 0, 2, 0, 2, 2, 2, 2, 2, 2, 2, 1]


def test_it_is_the_same_in_every_process_and_version() -> None:
    code = (
        "from kvshelf.disk.rendezvous import Rendezvous;"
        "keys = [i.to_bytes(8, 'big') + bytes(4) for i in range(24)];"
        "print(Rendezvous(['/mnt/a', '/mnt/b', '/mnt/c']).of_keys(keys).tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == str(KNOWN)


def test_shares_are_a_partition_with_the_runs_in_order() -> None:
    route = Rendezvous(ROOTS[:3])
    keys, runs = KEYS["random"][:100], [40, 1, 30]
    shares = route.shares(keys, runs)
    assert sorted(row for share in shares for row in share.rows) == list(range(100))
    ends = np.cumsum(runs)
    for share in shares:
        assert share.keys == [keys[row] for row in share.rows]
        assert {route.of_key(key) for key in share.keys} == {share.root}
        of_run = [int(np.searchsorted(ends, row, "right")) for row in share.rows]
        assert share.runs == [of_run.count(run) for run in range(3) if run in of_run]
    assert route.shares(keys[:40], [40]) and not route.shares([], [])
