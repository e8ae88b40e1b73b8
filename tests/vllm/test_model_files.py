"""Files beside the weights that change KV are in the identity: processors, quantization, code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf.errors import ConfigError  # noqa: E402
from kvshelf.vllm.identity import build_identity  # noqa: E402
from kvshelf.vllm.identity.model_files import file_digests  # noqa: E402

from .configs import kv_cache_config, save_weights, vllm_config  # noqa: E402

LOAD = SimpleNamespace(load_format="auto", download_dir=None)


def digests(path: Path | str, *, is_draft: bool = False, **more: Any) -> dict[str, str]:
    fields = {"revision": None, "trust_remote_code": False, "multimodal_config": None, **more}
    return file_digests(SimpleNamespace(model=str(path), **fields), LOAD, is_draft=is_draft)


@pytest.mark.parametrize(
    "name",
    [
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
        "hf_quant_config.json",
        "tekken.json",
        "params.json",
        "something_new.json",
    ],
)
def test_a_file_that_changes_kv_counts(tmp_path: Path, name: str) -> None:
    before = digests(tmp_path)
    (tmp_path / name).write_text('{"size": 1}')
    first = digests(tmp_path)
    (tmp_path / name).write_text('{"size": 2}')
    second = digests(tmp_path)
    assert before == {} and first.keys() == second.keys() == {name} and first != second


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "README.md",
        "chat_template.jinja",
        "modeling_x.py",
    ],
)
def test_a_file_that_does_not_does_not(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    assert digests(tmp_path) == {}


def test_a_models_own_code_counts_if_it_runs(tmp_path: Path) -> None:
    (tmp_path / "modeling_x.py").write_text("")
    assert digests(tmp_path, trust_remote_code=True).keys() == {"modeling_x.py"}


def test_a_drafts_configuration_counts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert digests(tmp_path, is_draft=True).keys() == {"config.json"}


def test_scales_of_an_encoder_count(tmp_path: Path) -> None:
    (tmp_path / "scales").write_text("1")
    encoder = SimpleNamespace(mm_encoder_fp8_scale_path=str(tmp_path / "scales"))
    first = digests(tmp_path, multimodal_config=encoder)
    (tmp_path / "scales").write_text("2")
    assert first != digests(tmp_path, multimodal_config=encoder)
    (tmp_path / "scales").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        digests(tmp_path, multimodal_config=encoder)


def test_a_processor_in_a_hubs_cache_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--name"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    (snapshot / "preprocessor_config.json").write_text("1")
    (snapshot / "params.json").write_text("named by the commit")
    first = digests("org/name")
    (snapshot / "preprocessor_config.json").write_text("2")
    assert first.keys() == {"preprocessor_config.json"} and digests("org/name") != first
    assert digests("org/other") == {} == digests("no/hubs/name")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json.*cannot be read"):
        digests(tmp_path)


def test_replicas_with_other_processors_do_not_share(tmp_path: Path) -> None:
    save_weights(tmp_path / "tiny")
    config = vllm_config(tmp_path / "tiny")
    before = build_identity(config, kv_cache_config(), "")
    (tmp_path / "tiny" / "preprocessor_config.json").write_text('{"size": 448}')
    after = build_identity(config, kv_cache_config(), "")
    assert before.digest != after.digest
    assert "preprocessor_config.json" in after.fields["files"]
