"""Weights are known by content that misses no byte, or said to be in memory; never guessed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf.config import Settings  # noqa: E402
from kvshelf.errors import ConfigError  # noqa: E402
from kvshelf.weights import (  # noqa: E402
    IN_MEMORY,
    draft_of,
    weights_are_known,
    weights_of,
)
from kvshelf.weights import files as weight_files  # noqa: E402

AUTO = SimpleNamespace(load_format="auto", download_dir=None)
CONTENT = bytes(range(256)) * 400  # 102,400 bytes


def loader(name: str) -> SimpleNamespace:
    return SimpleNamespace(load_format=name, download_dir=None)


def model(path: Path | str, revision: str | None = None, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(model=str(path), revision=revision, **more)


def weights_digest(model_config: Any, load_config: Any) -> str:
    return weights_of(model_config, load_config, Settings()).name


def digest(path: Path, load: Any = AUTO) -> str:
    return weights_digest(model(path), load)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pieces of a file, each read in several parts, and a small one."""
    monkeypatch.setattr(weight_files, "PIECE_BYTES", 40_000)
    monkeypatch.setattr(weight_files, "_BUFFER_BYTES", 7_000)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(CONTENT)
    (folder / "extra.safetensors").write_bytes(b"x")
    return folder


def test_equal_files_in_other_places_are_equal(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in weights.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert digest(weights) == digest(other)


@pytest.mark.parametrize("offset", [0, 1, 12_345, 39_999, 40_000, 66_666, 80_001, 102_399])
def test_each_byte_counts(weights: Path, offset: int) -> None:
    """A few changed rows of an embedding: some bytes anywhere in a file of gigabytes."""
    before = digest(weights)
    changed = bytearray(CONTENT)
    changed[offset] ^= 1
    (weights / "model.safetensors").write_bytes(changed)
    assert digest(weights) != before


def test_names_sizes_and_borders_count(weights: Path) -> None:
    seen = {digest(weights)}
    (weights / "extra.safetensors").rename(weights / "other.safetensors")
    seen.add(digest(weights))
    (weights / "model.safetensors").write_bytes(CONTENT + b"x")
    seen.add(digest(weights))
    (weights / "other.safetensors").write_bytes(b"")
    seen.add(digest(weights))
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["a.bin", "b.pt", "c.gguf", "adapter/model.safetensors"])
def test_every_file_that_a_loader_could_read_counts(weights: Path, name: str) -> None:
    before = digest(weights)
    (weights / name).parent.mkdir(exist_ok=True)
    (weights / name).write_bytes(b"1")
    first = digest(weights)
    (weights / name).write_bytes(b"2")
    assert len({before, first, digest(weights)}) == 3


@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "checkpoint-500/model.safetensors", "original/consolidated.00.pth", "a.txt"],
)
def test_a_trainers_files_do_not(weights: Path, name: str) -> None:
    before = digest(weights)
    (weights / name).parent.mkdir(exist_ok=True)
    (weights / name).write_bytes(b"1")
    assert digest(weights) == before


def test_loaders_differ_only_where_they_choose_differently(weights: Path) -> None:
    names = ("auto", "safetensors", "hf", "fastsafetensors")
    assert len({digest(weights, loader(name)) for name in names}) == 1
    (weights / "pytorch_model.bin").write_bytes(b"other weights")
    assert digest(weights, loader("safetensors")) != digest(weights, loader("pt"))


def test_links_are_followed_and_circles_are_not(weights: Path, tmp_path: Path) -> None:
    before = digest(weights)
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in weights.iterdir():
        (linked / file.name).symlink_to(file)
    (linked / "self").symlink_to(linked)
    assert digest(linked) == before


def test_a_single_file_of_weights_counts(weights: Path) -> None:
    file = weights / "model.safetensors"
    before = digest(file)
    file.write_bytes(CONTENT[:-1] + b"x")
    assert digest(file) != before


def index(folder: Path, *shards: str) -> None:
    text = json.dumps({"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}})
    (folder / "model.safetensors.index.json").write_text(text)


def test_an_index_counts(weights: Path) -> None:
    before = digest(weights)
    index(weights, "model.safetensors")
    one = digest(weights)
    index(weights, "model.safetensors", "extra.safetensors")
    assert len({before, one, digest(weights)}) == 3


def test_a_missing_shard_is_refused(weights: Path) -> None:
    index(weights, "model.safetensors", "gone.safetensors")
    with pytest.raises(ConfigError, match=r"weight file gone\.safetensors is missing"):
        digest(weights)


def test_an_index_of_files_of_another_kind_is_not(weights: Path) -> None:
    """A folder whose sharded files were taken away, the consolidated one was not."""
    index(weights, "model-1.safetensors", "model-2.safetensors")
    assert digest(weights).startswith("blake3:")


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_refused(weights: Path, text: str) -> None:
    (weights / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ConfigError, match=r"index\.json"):
        digest(weights)


def test_a_file_that_cannot_be_read_is_refused(weights: Path) -> None:
    (weights / "lost.safetensors").symlink_to(weights / "nowhere")
    with pytest.raises(ConfigError, match=r"lost\.safetensors.*cannot be read"):
        digest(weights)


def test_a_pipe_is_refused_and_not_waited_for(weights: Path) -> None:
    os.mkfifo(weights / "pipe.safetensors")
    with pytest.raises(ConfigError, match="is no file"):
        digest(weights)


@pytest.mark.parametrize("content", [CONTENT[::-1], CONTENT[:10], CONTENT + b"x"])
def test_a_file_that_changes_meanwhile_is_refused(
    weights: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    hash_piece = weight_files._hash_piece

    def hash_changed(piece: Any) -> bytes:
        if piece[1] == 0 and piece[0].name == "model.safetensors":
            piece[0].write_bytes(content)
        return hash_piece(piece)

    monkeypatch.setattr(weight_files, "_hash_piece", hash_changed)
    with pytest.raises(ConfigError, match="changed while kvshelf hashed it"):
        digest(weights)


@pytest.mark.parametrize(
    "name",
    ["dummy", "tensorizer", "runai_streamer", "runai_streamer_sharded", "npcache", "my_loader"],
)
def test_what_files_do_not_say_is_in_memory(weights: Path, name: str) -> None:
    assert digest(weights, loader(name)) == IN_MEMORY


def test_a_folder_without_weights_is_in_memory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert digest(tmp_path) == IN_MEMORY
    assert digest(tmp_path, loader("sharded_state")) == IN_MEMORY


def test_weights_of_an_object_store_are_in_memory(weights: Path) -> None:
    """vLLM downloads the rest of such a model into a folder."""
    assert weights_digest(model(weights, model_weights="s3://bucket/model"), AUTO) == IN_MEMORY


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub's models."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


OLD, NEW = "a" * 40, "b" * 40


def snapshot(hub: Path, commit: str, revision: str) -> None:
    folder = hub / "models--org--name"
    (folder / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / revision).write_text(commit)


def test_a_hubs_model_is_named_by_its_commit(hub: Path) -> None:
    """What a branch's name stands for changes; replicas of both must not share."""
    main, branch = model("org/name"), model("org/name", "v2")
    assert weights_digest(main, AUTO) == weights_digest(branch, AUTO) == IN_MEMORY
    snapshot(hub, OLD, "main")
    assert weights_digest(main, AUTO) == f"hub:{OLD}"
    snapshot(hub, NEW, "main")
    snapshot(hub, OLD, "v2")
    assert weights_digest(main, AUTO) == f"hub:{NEW}"
    assert weights_digest(branch, AUTO) == weights_digest(model("org/name", OLD), AUTO)
    assert weights_digest(branch, AUTO) == f"hub:{OLD}"


def test_a_download_folder_is_where_the_commit_is(hub: Path, tmp_path: Path) -> None:
    snapshot(hub, OLD, "main")
    snapshot(tmp_path / "mine", NEW, "main")
    mine = SimpleNamespace(load_format="auto", download_dir=str(tmp_path / "mine"))
    assert weights_digest(model("org/name"), mine) == f"hub:{NEW}"


def test_a_branch_that_moved_meanwhile_is_in_memory(hub: Path) -> None:
    snapshot(hub, NEW, "main")
    read = SimpleNamespace(_commit_hash=OLD)
    assert weights_digest(model("org/name", hf_config=read), AUTO) == IN_MEMORY
    read._commit_hash = NEW
    assert weights_digest(model("org/name", hf_config=read), AUTO) == f"hub:{NEW}"


def test_another_hub_is_in_memory(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot(hub, OLD, "main")
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    assert weights_digest(model("org/name"), AUTO) == IN_MEMORY


@pytest.mark.parametrize("name", ["a/b/c", "org/name:Q4_K_M", "s3://bucket/model", "~", "a--b"])
def test_a_name_that_no_hub_has_is_in_memory(hub: Path, name: str) -> None:
    assert weights_digest(model(name), AUTO) == IN_MEMORY


def engine(target: Any, draft: Any = None, load: Any = AUTO, draft_load: Any = None) -> Any:
    speculative = draft and SimpleNamespace(draft_model_config=draft, draft_load_config=draft_load)
    return SimpleNamespace(model_config=target, load_config=load, speculative_config=speculative)


def test_an_engine_knows_its_weights_if_it_knows_all_of_them(weights: Path, tmp_path: Path) -> None:
    known, unknown = model(weights), model(tmp_path / "nothing")
    (tmp_path / "nothing").mkdir()
    assert weights_are_known(engine(known)) and not weights_are_known(engine(unknown))
    assert weights_are_known(engine(known, known))
    assert not weights_are_known(engine(known, unknown))
    assert not weights_are_known(engine(known, load=loader("dummy")))
    other = model(weights / "model.safetensors")
    assert weights_are_known(engine(known, other))
    assert not weights_are_known(engine(known, other, draft_load=loader("dummy")))


def test_a_draft_with_the_models_own_weights_is_none(weights: Path) -> None:
    assert not list(draft_of(engine(model(weights), model(weights))))
    assert len(list(draft_of(engine(model(weights), model(weights, "v2"))))) == 1
