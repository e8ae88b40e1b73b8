"""The scheduler's side of audits: which requests, which keys."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf import make_key, metrics  # noqa: E402
from kvshelf.config import Settings  # noqa: E402
from kvshelf.errors import ConfigError  # noqa: E402
from kvshelf.vllm.scheduler import audit  # noqa: E402
from kvshelf.vllm.scheduler.audit import Audits  # noqa: E402
from kvshelf.vllm.stats import StatsSink  # noqa: E402
from kvshelf.vllm.tier import tier_settings  # noqa: E402

LOG = logging.getLogger("vllm.kvshelf.test")


def key(i: int) -> bytes:
    return make_key(i.to_bytes(32, "big"), 0)


A, B, C = key(1), key(2), key(3)


def audits(percent: float) -> Audits:
    return Audits(Settings(audit_percent=percent), StatsSink(), LOG)


@pytest.mark.parametrize("percent", [0.0, 5.0, 50.0, 100.0])
def test_a_share_of_the_requests_is_picked_always_the_same(percent: float) -> None:
    one = audits(percent)
    picked = [i for i in range(4000) if one.picks(f"req-{i}", 0, 16, lambda: {A: 0})]
    assert abs(len(picked) / 40 - percent) < 2.5
    again = [i for i in range(4000) if one.picks(f"req-{i}", 0, 16, lambda: {A: 0})]
    assert again == picked
    if percent == 50.0:  # a client that chooses its ids cannot know which
        other = audits(percent)
        assert picked != [i for i in range(4000) if other.picks(f"req-{i}", 0, 16, lambda: {A: 0})]


def test_without_the_setting_no_key_is_looked_at() -> None:
    def never() -> dict[bytes, int]:
        raise AssertionError("work on the hot path")

    off = audits(0.0)
    assert not off.picks("r", 0, 16, never)
    assert not off.refuses("r", 0)
    wanted = [A]
    assert off.offered("r", never, wanted) == (wanted, ())  # type: ignore[arg-type]


def test_what_vllm_may_have_loaded_meanwhile_is_not_compared() -> None:
    """A preempted request finds in vLLM's prefix cache what another request has loaded."""
    made = audits(100.0)
    assert made.picks("r", 16, 48, lambda: {A: 16, B: 32, C: 48})
    assert made.refuses("r", 16) and made.refuses("r", 8)
    assert made.refuses("r", 40)
    assert made.offered("r", [A, B, C], []) == ([C], (0,))


def test_keys_of_a_job_stay_in_their_order() -> None:
    made = audits(100.0)
    keys = [key(i) for i in range(6)]
    assert made.picks("r", 0, 96, lambda: {keys[1]: 0, keys[2]: 0, keys[5]: 0})
    chosen, compared = made.offered("r", keys, [keys[0], keys[2], keys[4]])
    assert chosen == [keys[0], keys[1], keys[2], keys[4], keys[5]]
    assert compared == (1, 4)  # what is to be stored is not compared
    assert made.offered("r", keys, []) == ([], ())  # each once


def test_a_request_without_known_keys_is_not_picked() -> None:
    assert not audits(100.0).picks("r", 0, 16, dict)
    assert audit._DIFFERENT == (metrics.AUDIT_CHUNKS, ("different",))


def test_the_tier_refuses_to_audit() -> None:
    """It never sees what computed a row of host memory."""
    with pytest.raises(ConfigError, match="audit_percent"):
        tier_settings({"shared_storage_path": "/x", "audit_percent": 1})


def test_a_variable_of_one_process_cannot_turn_audits_on() -> None:
    """The scheduler would mark keys for workers that have no memory for them."""
    given = {"shared_storage_path": "/x"}
    with pytest.raises(ConfigError, match="KVSHELF_AUDIT_PERCENT"):
        Settings.from_mapping(given, {"KVSHELF_AUDIT_PERCENT": "1"})
