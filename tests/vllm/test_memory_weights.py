"""The digest of weights in memory sees every value; the watch sees what changes all over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from kvshelf.vllm.worker import memory_weights
from kvshelf.vllm.worker.memory_weights import (
    UnreadableWeightsError,
    Watch,
    digest_of,
    models_of,
)


class Packed(torch.nn.Module):
    """A linear layer as vLLM's CPU build leaves it: an empty weight, and a function."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.input_size, self.output_size = weight.shape[1], weight.shape[0]
        self.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
        self.cpu_linear = lambda x, _weight, bias: torch.nn.functional.linear(x, weight, bias)


def make_model(seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Module()
    model.embed = torch.nn.Embedding(300, 32, _weight=torch.randn(300, 32, generator=generator))
    model.thin = torch.nn.Parameter(torch.randn(33, generator=generator).to(torch.bfloat16))
    model.register_buffer("scale", torch.ones(()))
    model.register_buffer("scratch", torch.zeros(9), persistent=False)
    model.packed = Packed(torch.randn(40, 300, generator=generator))
    return model


def digest(model: Any) -> str:
    return digest_of([("model", model)])


def test_equal_weights_have_equal_digests() -> None:
    assert digest(make_model()) == digest(make_model()) != digest(make_model(1))


@pytest.mark.parametrize("row", [0, 7, 150, 299])
def test_any_value_counts(row: int) -> None:
    model, before = make_model(), digest(make_model())
    model.embed.weight.data[row, 31] += 2**-20
    assert digest(model) != before
    model.embed.weight.data[row, 31] -= 2**-20


def test_buffers_of_a_checkpoint_count_and_scratch_does_not() -> None:
    model, before = make_model(), digest(make_model())
    model.scratch += 1
    assert digest(model) == before
    model.scale += 1
    assert digest(model) != before


def test_rows_that_change_places_count() -> None:
    model, before = make_model(), digest(make_model())
    model.embed.weight.data[[3, 4]] = model.embed.weight.data[[4, 3]]
    assert digest(model) != before


def test_a_packed_layer_is_asked_for_its_weights() -> None:
    weight = torch.randn(40, 300)
    model = make_model()
    model.packed = Packed(weight)
    before = digest(model)
    assert digest(model) == before
    weight[39, 299] += 1e-3
    assert digest(model) != before


def test_what_cannot_be_read_is_said() -> None:
    model = make_model()
    model.packed.cpu_linear = None
    with pytest.raises(UnreadableWeightsError, match=r"packed .*Packed.* no readable weight"):
        digest(model)
    model = make_model()
    model.packed.cpu_linear = lambda *_: 1 / 0
    with pytest.raises(UnreadableWeightsError, match="packed cannot be asked: division"):
        digest(model)


def test_packed_layers_that_take_too_long_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_weights, "_OPERATIONS_MAX", 1000)
    with pytest.raises(UnreadableWeightsError, match="operations"):
        digest(make_model())


@pytest.mark.parametrize("values", [0, 1, 5, 1000, 1 << 13])
def test_the_mixing_of_a_device_sees_values_and_places(
    values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arithmetic for GPUs, here on the CPU, in several parts."""
    monkeypatch.setattr(memory_weights, "_PART_WORDS", 64)
    tensor = torch.randn(values).to(torch.bfloat16)
    mixed = memory_weights._mixed(tensor)
    assert memory_weights._mixed(tensor.clone()) == mixed
    seen = {mixed}
    for index in range(0, values, max(1, values // 50)):
        other = tensor.clone()
        other[index] = -other[index]  # one sign bit
        seen.add(memory_weights._mixed(other))
    assert len(seen) == 1 + len(range(0, values, max(1, values // 50)))
    if values > 8:
        turned = tensor.roll(4)  # whole words change places
        assert memory_weights._mixed(turned) != mixed
        signs = -tensor  # all at once, so that sums of sign bits cancel
        assert memory_weights._mixed(signs) not in seen


def test_a_speculators_own_model_counts() -> None:
    draft = SimpleNamespace(model=make_model(1))
    runner = SimpleNamespace(get_model=make_model, drafter=draft)
    worker = SimpleNamespace(model_runner=runner)
    assert [name for name, _ in models_of(worker)] == ["model", "drafter"]
    before = digest_of(models_of(worker))
    draft.model.embed.weight.data[5] += 1
    assert digest_of(models_of(worker)) != before


def test_the_watch_sees_an_update_of_all_weights() -> None:
    model = make_model()
    watch = Watch([("model", model)])
    assert not watch.has_changed()
    model.embed.weight.data *= 1.001
    assert watch.has_changed()
    model.embed.weight.data = make_model().embed.weight.data
    watch = Watch([("model", model)])
    model.embed.weight.data.copy_(make_model(1).embed.weight.data)
    assert watch.has_changed()
