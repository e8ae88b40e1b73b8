"""The backend through SGLang's own factory: bytes, damage, settings, deadlines."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("sglang", reason="SGLang is not on PYTHONPATH: make test-sglang")

from prometheus_client import REGISTRY
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer

from kvshelf.errors import ConfigError
from tests.sglang.rig import (
    PAGE_TOKENS,
    arguments,
    back_up,
    backend_of,
    config_of,
    controller_of,
    hashes,
    make_mla_pool,
    make_model,
    make_pool,
    page_bytes,
    prefetch,
    slots,
)

LAYOUTS = ("layer_first", "page_first", "page_first_direct")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "tiny")


def chunk_files(shelf: Path) -> list[Path]:
    return sorted(shelf.rglob("*.kv"))


def stored(shelf: Path, model: Path, pages: int = 8, **config: Any) -> Any:
    """A pool whose first pages are on the shelf."""
    pool = make_pool(seed=1)
    with backend_of(shelf, pool, arguments(model), config_of(shelf, **config)) as backend:
        assert all(backend.batch_set_v1(hashes(pages), slots(list(range(pages)))))
    return pool


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_come_back_to_other_pages(tmp_path: Path, model: Path, layout: str) -> None:
    source, target = make_pool(layout, seed=1), make_pool(layout, seed=2)
    shelf, keys, places = tmp_path / "shelf", hashes(6), [9, 3, 31, 0, 17, 5]
    with backend_of(shelf, source, arguments(model)) as backend:
        assert backend.batch_exists(keys) == 0
        assert backend.batch_set_v1(keys, slots([1, 2, 3, 4, 5, 6])) == [True] * 6
    untouched = {p: page_bytes(target, p) for p in range(32) if p not in places}
    with backend_of(shelf, target, arguments(model)) as backend:
        assert backend.batch_exists(keys) == 6
        assert backend.batch_exists([*keys[:3], "ab" * 32, *keys[3:]]) == 3
        assert backend.batch_get_v1(keys, slots(places)) == [True] * 6
    for page, place in enumerate(places):
        assert page_bytes(target, place) == page_bytes(source, page + 1)
    assert all(page_bytes(target, p) == content for p, content in untouched.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_pages_a_chunk(tmp_path: Path, model: Path, layout: str) -> None:
    source, target = make_pool(layout, seed=1), make_pool(layout, seed=2)
    shelf, keys = tmp_path / "shelf", hashes(30)
    config = config_of(shelf, extra={"pages_per_chunk": 4})
    with backend_of(shelf, source, arguments(model), config) as backend:
        assert all(backend.batch_set_v1(keys[:10], slots(list(range(10)))))  # 4, 4, 2
        assert all(backend.batch_set_v1(keys[10:17], slots(list(range(10, 17)))))  # 4, 3
        assert backend.batch_exists(keys) == 17
    assert len(chunk_files(shelf)) == 5
    places = list(reversed(range(17)))
    with backend_of(shelf, target, arguments(model), config) as backend:
        assert backend.batch_exists(keys) == 17
        assert all(backend.batch_get_v1(keys[:5], slots(places[:5])))  # ends within a chunk
        assert all(backend.batch_get_v1(keys[5:17], slots(places[5:])))
    assert [page_bytes(target, at) for at in places] == [page_bytes(source, p) for p in range(17)]


def test_damage_of_a_chunk_of_pages_is_a_miss_of_those_that_it_holds(
    tmp_path: Path, model: Path
) -> None:
    shelf, keys = tmp_path / "shelf", hashes(12)
    source = stored(shelf, model, pages=12, extra={"pages_per_chunk": 4})
    _flip(next(path for path in chunk_files(shelf) if keys[7] in path.name), shelf)
    target = make_pool(seed=2)
    config = config_of(shelf, extra={"pages_per_chunk": 4})
    with backend_of(shelf, target, arguments(model), config) as backend:
        assert backend.batch_exists(keys) == 12
        good = backend.batch_get_v1(keys, slots(list(range(12))))
        assert good == [not 4 <= page < 8 for page in range(12)]
        assert backend.batch_exists(keys) == 4
        assert all(backend.batch_set_v1(keys[4:], slots(list(range(20, 28)))))
        assert backend.batch_exists(keys) == 12
    assert page_bytes(target, 2) == page_bytes(source, 2)


@pytest.mark.parametrize("layout", ["layer_first", "page_first"])
def test_ranks_of_a_replicated_model_share_one_writers_files(
    tmp_path: Path, model: Path, layout: str
) -> None:
    source, target = make_mla_pool(layout, seed=1), make_mla_pool(layout, seed=2)
    shelf, keys = tmp_path / "shelf", hashes(4)
    writer = config_of(shelf, is_mla_model=True, tp_size=2)
    reader = config_of(shelf, is_mla_model=True, tp_size=4, tp_rank=3)
    with backend_of(shelf, source, arguments(model), writer) as backend:
        assert all(backend.batch_set_v1(keys, slots([0, 1, 2, 3])))
    with backend_of(shelf, target, arguments(model), reader) as backend:
        assert backend.batch_exists(keys) == 4
        assert backend.batch_get_v1(keys, slots([4, 5, 6, 7])) == [True] * 4
    assert [page_bytes(target, p + 4) for p in range(4)] == [
        page_bytes(source, p) for p in range(4)
    ]


def test_a_page_is_found_once_all_ranks_have_it(tmp_path: Path, model: Path) -> None:
    shelf, keys = tmp_path / "shelf", hashes(3)
    pools = [make_pool(seed=1), make_pool(seed=2)]
    configs = [config_of(shelf, tp_size=2, tp_rank=rank) for rank in range(2)]
    with (
        backend_of(shelf, pools[0], arguments(model), configs[0]) as first,
        backend_of(shelf, pools[1], arguments(model), configs[1]) as second,
    ):
        first.batch_set_v1(keys, slots([0, 1, 2]))
        assert first.batch_exists(keys) == second.batch_exists(keys) == 0
        second.batch_set_v1(keys[:2], slots([0, 1]))
        assert first.batch_exists(keys) == second.batch_exists(keys) == 2
        assert second.batch_get_v1(keys[:2], slots([5, 6])) == [True, True]
    assert page_bytes(pools[1], 5) == page_bytes(pools[1], 0) != page_bytes(pools[0], 0)


def _flip(file: Path, other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)


def _shorten(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4096])


def _swap(file: Path, other: Path) -> None:
    shutil.copyfile(other, file)


def _remove(file: Path, other: Path) -> None:
    file.unlink()


def _empty(file: Path, other: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [_flip, _shorten, _swap, _remove, _empty])
def test_damage_is_a_miss_and_is_stored_again(tmp_path: Path, model: Path, damage: Any) -> None:
    shelf, keys = tmp_path / "shelf", hashes(8)
    source = stored(shelf, model)
    files = chunk_files(shelf)
    hit = next(path for path in files if keys[3] in path.name)
    damage(hit, next(path for path in files if keys[4] in path.name))
    target = make_pool(seed=2)
    with backend_of(shelf, target, arguments(model)) as backend:
        assert backend.batch_exists(keys) == (3 if damage in (_remove, _empty) else 8)
        good = backend.batch_get_v1(keys, slots(list(range(8))))
        assert good == [page != 3 for page in range(8)]
        for page in (0, 1, 2, 4, 5, 6, 7):
            assert page_bytes(target, page) == page_bytes(source, page)
        assert backend.batch_exists(keys) == 3  # the bad file is removed
        target.kv_buffer.copy_(source.kv_buffer)  # SGLang computes the page
        assert all(backend.batch_set_v1(keys, slots(list(range(8)))))
        assert backend.batch_exists(keys) == 8
        assert all(backend.batch_get_v1(keys, slots(list(range(8, 16)))))
    assert page_bytes(target, 11) == page_bytes(source, 3)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"load_timeout": 3}, "did you mean load_timeout_seconds"),
        ({"load_timeout_seconds": "soon"}, "load_timeout_seconds='soon'"),
        ({"shared_storage_path": "relative"}, "shared_storage_path"),
        ({"admission": "always"}, "prefetch-policy"),
        ({"block_size": 16}, "of vLLM only"),
        ({"interface_v1": 0}, "must be 1"),
        ({"pages_per_chunk": 200}, "from 1 to 128"),
    ],
)
def test_a_bad_setting_ends_the_start(
    tmp_path: Path, model: Path, given: dict[str, Any], named: str
) -> None:
    config = config_of(tmp_path / "shelf", extra=given)
    with (
        pytest.raises(ConfigError, match=named),
        backend_of(tmp_path / "shelf", make_pool(), arguments(model), config),
    ):
        pass


def namespace(shelf: Path, pool: Any, server_args: Any, **parts: Any) -> str:
    with backend_of(shelf, pool, server_args, config_of(shelf, **parts)) as backend:
        return str(backend._pools["kv"].shelf.folder)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "shelf"


def test_whoever_has_other_bytes_has_another_namespace(shelf: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m" / "tiny")
    other = make_model(tmp_path / "o" / "tiny", weights=b"other weights")
    mine = namespace(shelf, make_pool(), arguments(model))
    assert mine == namespace(shelf, make_pool(seed=5, pages=8), arguments(model))
    others = {
        namespace(shelf, make_pool(), arguments(other)),
        namespace(shelf, make_pool(), arguments(model, quantization="fp8")),
        namespace(shelf, make_pool("page_first"), arguments(model)),
        namespace(shelf, make_pool(), arguments(model), tp_size=2),
        namespace(shelf, make_pool(), arguments(model), extra={"identity_salt": "a"}),
        namespace(shelf, make_mla_pool(), arguments(model), is_mla_model=True),
    }
    assert len(others) == 6
    assert mine not in others


def test_unknown_weights_need_a_name(shelf: Path, model: Path) -> None:
    unknown = arguments(model)
    unknown.load_format = "dummy"
    with pytest.raises(ConfigError, match="identity_salt"):
        namespace(shelf, make_pool(), unknown)
    assert namespace(shelf, make_pool(), unknown, extra={"identity_salt": "run 7"})


def test_adapters_are_refused(shelf: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match="LoRA"):
        namespace(shelf, make_pool(), arguments(model, enable_lora=True))


def test_slots_that_are_no_pages_are_refused(shelf: Path, model: Path) -> None:
    with backend_of(shelf, make_pool(), arguments(model)) as backend:
        with pytest.raises(ValueError, match="no whole pages"):
            backend.batch_get_v1(hashes(2), slots([0, 1]) + 1)
        with pytest.raises(ValueError, match="slots for 3 pages"):
            backend.batch_set_v1(hashes(3), slots([0, 1]))
    assert PAGE_TOKENS == 16


def test_pools_of_a_hybrid_model_gate_the_prefix(shelf: Path, model: Path) -> None:
    main, side, state = make_pool(seed=1), make_mla_pool(seed=2), make_mla_pool(seed=3)
    keys, places = hashes(6), slots([0, 1, 2, 3, 4, 5])
    with backend_of(shelf, main, arguments(model)) as backend:
        backend.register_mem_host_pool_v2(side, PoolName.INDEXER)
        backend.register_mem_host_pool_v2(state, PoolName.MAMBA)
        backend.batch_set_v1(keys, places)
        stored = backend.batch_set_v2(
            [
                PoolTransfer(PoolName.INDEXER, host_indices=places[:80], keys=keys[:5]),
                PoolTransfer(PoolName.MAMBA, host_indices=slots([8, 9]), keys=[keys[2], keys[4]]),
            ]
        )
        assert stored == {PoolName.INDEXER: [True] * 5, PoolName.MAMBA: [True] * 2}
        wanted = [
            PoolTransfer(PoolName.INDEXER),
            PoolTransfer(PoolName.MAMBA, keys=keys[:1], hit_policy=PoolHitPolicy.TRAILING_PAGES),
        ]
        found = backend.batch_exists_v2(keys, wanted)
        assert found.kv_hit_pages == 5
        assert found.extra_pool_hit_pages == {"kv": 6, "indexer": 5, "mamba": 5}
        assert getattr(found, "restorable_prefix_pages", [3, 5]) == [3, 5]
        assert backend.batch_exists_v2(keys[:4], wanted).kv_hit_pages == 3
        expected = [page_bytes(side, page) for page in range(5)]
        side.kv_buffer.zero_()
        loaded = backend.batch_get_v2(
            [
                PoolTransfer(PoolName.INDEXER, host_indices=slots([10, 11, 12]), keys=keys[2:5]),
                PoolTransfer(PoolName.MAMBA, host_indices=slots([1]), keys=keys[:2]),
            ]
        )
        assert loaded == {PoolName.INDEXER: [True] * 3, PoolName.MAMBA: [False] * 2}
        assert [page_bytes(side, p) for p in (10, 11, 12)] == expected[2:]


def test_storage_that_hangs_is_left_alone(shelf: Path, model: Path) -> None:
    """The breaker: after breaker_faults late lookups nothing is asked, until a try succeeds."""
    extra = {"breaker_faults": 2, "breaker_retry_seconds": 0.2, "lookup_wait_seconds": 0.1}
    keys = hashes(2)
    with backend_of(shelf, make_pool(), arguments(model), config_of(shelf, extra=extra)) as backend:
        assert all(backend.batch_set_v1(keys, slots([0, 1])))
        jobs = backend._pools["kv"].jobs
        asked = []

        def late(submit: Any, limit: float) -> None:
            asked.append(limit)

        with mock.patch.object(jobs, "ask", late):
            assert [backend.batch_exists(keys) for _ in range(5)] == [0] * 5
            assert asked == [0.1, 0.1]
            assert backend.batch_get_v1(keys, slots([2, 3])) == [False, False]
            time.sleep(0.25)
            assert backend.batch_exists(keys) == 0
            assert len(asked) == 3
        time.sleep(0.25)
        assert backend.batch_exists(keys) == 2  # the try succeeds
        assert all(backend.batch_get_v1(keys, slots([2, 3])))


def test_metrics_are_prometheus(shelf: Path, model: Path) -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    names = ("kvshelf:load_chunks_total", "kvshelf:store_bytes_total")
    before = [value(each) for each in names]
    absent = value("kvshelf:load_failures_total", cause="not_found")
    pool = make_pool()
    with backend_of(shelf, pool, arguments(model)) as backend:
        backend.batch_set_v1(hashes(3), slots([0, 1, 2]))
        backend.batch_get_v1(hashes(4), slots([0, 1, 2, 3]))
        size = len(page_bytes(pool, 0))
    assert [value(each) - old for each, old in zip(names, before, strict=True)] == [3, 3 * size]
    assert value("kvshelf:load_failures_total", cause="not_found") == absent + 1


def test_this_engine_evicts(shelf: Path, model: Path) -> None:
    pool = make_pool(pages=64)
    limit = 20 * (len(page_bytes(pool, 0)) + 4096)
    extra = {"evict_shelf_gb": limit / 1e9, "evict_lease_seconds": 1}
    with backend_of(shelf, pool, arguments(model), config_of(shelf, extra=extra)) as backend:
        assert all(backend.batch_set_v1(hashes(64), slots(list(range(64)))))
        deadline = time.monotonic() + 60
        while len(chunk_files(shelf)) > 20:
            assert time.monotonic() < deadline, len(chunk_files(shelf))
            time.sleep(0.1)
        assert len(chunk_files(shelf)) > 10


def test_failures_that_sglang_injects(
    shelf: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang's own hooks: calls fail and wait at random (0.5.17 has none and takes no notice)."""
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY", "0.01")
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE", "0.3")
    pool = make_pool(seed=1)
    loaded = 0
    with backend_of(shelf, pool, arguments(model)) as backend:
        controller = controller_of(pool, backend)
        for seed in range(40):
            pages, places = list(range(12)), list(range(12, 24))
            expected = [page_bytes(pool, page) for page in pages]
            back_up(controller, hashes(12, seed), pages)
            pool.kv_buffer[:, :, 12 * PAGE_TOKENS :] = 0
            count = prefetch(controller, hashes(12, seed), places)
            assert [page_bytes(pool, place) for place in places[:count]] == expected[:count]
            loaded += count
    assert loaded > 100


def test_an_engine_that_refuses_jobs_is_a_miss(shelf: Path, model: Path) -> None:
    """SGLang's threads must not meet an exception: 0.5.17's would end."""
    with backend_of(shelf, make_pool(), arguments(model)) as backend:
        backend._pools["kv"].shelf.close()
        assert backend.batch_exists(hashes(2)) == 0
        assert backend.batch_get_v1(hashes(2), slots([0, 1])) == [False, False]
        assert backend.batch_set_v1(hashes(2), slots([0, 1])) == [False, False]
