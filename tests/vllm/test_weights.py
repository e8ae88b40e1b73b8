"""The weights digest sees a change in any tensor, reads little, and survives odd files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvshelf.vllm.weights import weights_digest

AUTO = SimpleNamespace(load_format="auto")


def write_safetensors(path: Path, tensors: dict[str, bytes]) -> None:
    header, offset = {}, 0
    for name, data in tensors.items():
        header[name] = {
            "dtype": "U8",
            "shape": [len(data)],
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


def model(path: Path, seed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(model=str(path), revision=None, seed=seed)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    write_safetensors(
        tmp_path / "model.safetensors", {"a": bytes(50_000), "b": b"\1" * 70_000, "c": b"xyz"}
    )
    return tmp_path


def test_equal_files_in_other_places_are_equal(weights: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes())
    assert weights_digest(model(weights), AUTO) == weights_digest(model(other), AUTO)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_each_tensor_counts(weights: Path, tmp_path_factory, name: str) -> None:
    tensors = {"a": bytes(50_000), "b": b"\1" * 70_000, "c": b"xyz"}
    tensors[name] = b"\7" * len(tensors[name])
    other = tmp_path_factory.mktemp("other")
    write_safetensors(other / "model.safetensors", tensors)
    assert weights_digest(model(weights), AUTO) != weights_digest(model(other), AUTO)


def test_other_formats_are_sampled(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(3_000_000))
    before = weights_digest(model(tmp_path), AUTO)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\1" * 3_000_000)
    assert weights_digest(model(tmp_path), AUTO) != before


@pytest.mark.parametrize(
    "content", [b"", b"1234567", struct.pack("<Q", 2**60) + b"{}", b"\2" + bytes(7) + b"[]"]
)
def test_damaged_safetensors_do_not_raise(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert weights_digest(model(tmp_path), AUTO).startswith("sampled:")


def test_dummy_weights_are_named_by_their_seed(tmp_path: Path) -> None:
    dummy = SimpleNamespace(load_format="dummy")
    assert weights_digest(model(tmp_path, 1), dummy) != weights_digest(model(tmp_path, 2), dummy)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub's models."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def snapshot(hub: Path, commit: str, revision: str) -> None:
    folder = hub / "models--org--name"
    (folder / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / revision).write_text(commit)


def test_a_hubs_model_is_named_by_its_commit(hub: Path) -> None:
    """What a branch's name stands for changes; replicas of both must not share."""
    main = SimpleNamespace(model="org/name", revision=None, seed=0)
    branch = SimpleNamespace(model="org/name", revision="v2", seed=0)
    assert weights_digest(main, AUTO) == "hub:main"
    assert weights_digest(branch, AUTO) == "hub:v2"
    old, new = "a" * 40, "b" * 40
    snapshot(hub, old, "main")
    assert weights_digest(main, AUTO) == f"hub:{old}"
    snapshot(hub, new, "main")
    snapshot(hub, old, "v2")
    assert weights_digest(main, AUTO) == f"hub:{new}"
    assert weights_digest(branch, AUTO) == f"hub:{old}"


def test_a_single_file_of_weights_counts(weights: Path) -> None:
    file = weights / "model.safetensors"
    before = weights_digest(model(file), AUTO)
    assert before == weights_digest(model(weights), AUTO)
    write_safetensors(file, {"a": bytes(50_000)})
    assert weights_digest(model(file), AUTO) != before
