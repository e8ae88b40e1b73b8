"""A worker's weights as they lie in memory: their digest, and a watch on some of their bytes.

In a worker's process, on its main thread. ``digest_of`` reads every byte of every parameter and of
every buffer that a checkpoint would hold, so it sees a single changed value.

vLLM's CPU build packs the weights of linear layers into objects of oneDNN and of its own kernels,
and leaves an empty parameter behind. Such a layer is asked for its weights: what it makes of the
identity matrix is its weight matrix, value by value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from kvshelf.vllm import compat

logger = compat.logger_of(__name__)

# On a GPU, tensors are mixed in parts of 16 MiB: mixing takes some five times that of memory.
_PART_WORDS = 2 << 20
# Odd 64-bit constants: the golden ratio's, and two of the finalizer of SplitMix64 (Steele and
# others, "Fast splittable pseudorandom number generators", 2014), as signed numbers.
_GOLDEN = -7046029254386353131
_MIXERS = (-4658895280553007687, -7723592293110705685)
# Packed layers are asked for so many rows of the identity matrix at once.
_ROWS = 256
# Asking costs 2 K^2 N operations a layer. 1e12 are 5 s of two cores; beyond, the weights count as
# unknown.
_OPERATIONS_MAX = 1e12
# The watch looks at two windows of 64 bytes of each tensor: its first and its middle values.
_WINDOW_BYTES = 64


class UnreadableWeightsError(Exception):
    """Some weights of the model cannot be read; the text names the layer."""


def models_of(worker: Any) -> list[tuple[str, torch.nn.Module]]:
    """Every model whose KV is in the cache: the target's, and a speculator's own."""
    runner = worker.model_runner
    models = [("model", runner.get_model())]
    for owner in ("drafter", "speculator"):
        draft = getattr(getattr(runner, owner, None), "model", None)
        if isinstance(draft, torch.nn.Module):
            models.append((owner, draft))
    return models


def digest_of(models: Iterable[tuple[str, torch.nn.Module]]) -> str:
    """A digest of all weights, hexadecimal. Of a GPU's 16 GB: some 0.1 s; of a CPU's: 10 s.

    Raises:
        UnreadableWeightsError: a layer keeps its weights where they cannot be read.
    """
    digest = hashlib.sha256()
    for owner, model in models:
        for name, tensor in _tensors(model):
            digest.update(f"{owner}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(_digest_of_tensor(tensor))
        for name, module in _packed(model):
            digest.update(f"{owner}.{name} packed\n".encode())
            for rows in _unpacked(name, module):
                digest.update(bytes_of(rows))
    return digest.hexdigest()


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Plain tensors with all bytes of the weights, in the model's order."""
    for name, tensor in _registered(model):
        yield from _plain(name, tensor.detach())


def _registered(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, and the buffers that a checkpoint would hold; each object once.

    Not ``state_dict``: a quantized layer's hooks may change what that says.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        left_out = module._non_persistent_buffers_set
        buffers = {n: each for n, each in module._buffers.items() if n not in left_out}
        for name, tensor in {**module._parameters, **buffers}.items():
            if tensor is None or tensor.is_meta or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield f"{prefix}.{name}", tensor


def _plain(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors with the bytes of one, which may be a wrapper (TorchAO's quantized ones are)."""
    if hasattr(tensor, "__tensor_flatten__"):
        for inner in tensor.__tensor_flatten__()[0]:
            yield from _plain(f"{name}.{inner}", getattr(tensor, inner))
    elif tensor.layout is not torch.strided:
        raise UnreadableWeightsError(f"{name} has the layout {tensor.layout}")
    else:
        yield name, tensor


def _digest_of_tensor(tensor: torch.Tensor) -> bytes:
    if tensor.device.type == "cpu":
        return hashlib.sha256(bytes_of(tensor)).digest()
    return _mixed(tensor)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The values of a tensor on the CPU, in their order."""
    flat = tensor.contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def _mixed(tensor: torch.Tensor) -> bytes:
    """128 bits of a tensor on a device: each word, mixed with its position, added up; twice."""
    words, rest = _words(tensor)
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for start in range(0, words.numel(), _PART_WORDS):
        part = words[start : start + _PART_WORDS]
        place = torch.arange(start + 1, start + 1 + part.numel(), device=part.device)
        mixed = part ^ (place * _GOLDEN)
        for row, factor in enumerate(_MIXERS):
            mixed = mixed * factor
            mixed = mixed ^ (mixed >> 31)
            sums[row] += (mixed * _GOLDEN).sum()
    return bytes(bytes_of(sums.cpu())) + bytes(bytes_of(rest.cpu()))


def _words(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor's bytes as 64-bit words, and the bytes behind the last whole one."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    whole = flat.numel() // 8 * 8
    head = flat[:whole]
    if head.data_ptr() % 8:
        head = head.clone()
    return head.view(torch.int64), flat[whole:]


def _packed(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """Layers that keep their weights elsewhere: an empty weight, and outputs all the same.

    Raises:
        UnreadableWeightsError: one cannot be asked, or all together would take too long.
    """
    layers = []
    operations = 0.0
    for name, module in model.named_modules():
        emptied = [
            kind
            for kind, each in module._parameters.items()
            if kind.endswith("weight") and each is not None
            if each.device.type == "cpu" and not each.numel()
        ]
        if not emptied:
            continue
        size, outputs = _sizes(module)
        if emptied != ["weight"] or not callable(getattr(module, "cpu_linear", None)) or not size:
            raise UnreadableWeightsError(f"{name} ({type(module).__name__}) has no readable weight")
        operations += 2.0 * size * size * outputs
        layers.append((name, module))
    if operations > _OPERATIONS_MAX:
        raise UnreadableWeightsError(f"reading packed weights takes {operations:.1e} operations")
    return layers


def _sizes(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer on this rank; 0 where it does not say."""
    inputs, outputs = (
        int(getattr(module, f"{side}_size_per_partition", 0) or getattr(module, f"{side}_size", 0))
        for side in ("input", "output")
    )
    return inputs, outputs


def _unpacked(name: str, module: Any) -> Iterator[torch.Tensor]:
    """The weight matrix of a packed layer, transposed, in rows."""
    weight, (size, _) = module.weight, _sizes(module)
    for start in range(0, size, _ROWS):
        count = min(_ROWS, size - start)
        rows = torch.zeros(count, size, dtype=weight.dtype)
        rows[torch.arange(count), start + torch.arange(count)] = 1
        try:
            with torch.inference_mode():
                yield module.cpu_linear(rows, weight, None)
        except Exception as error:
            raise UnreadableWeightsError(f"{name} cannot be asked: {error}") from error


class Watch:
    """Sees most changes that nobody announces: it compares some bytes of each tensor.

    It knows only the tensors that there were when it began, and keeps them in memory: drop it
    before weights may be replaced.
    """

    def __init__(self, models: Iterable[tuple[str, torch.nn.Module]]) -> None:
        self._windows: dict[torch.device, list[torch.Tensor]] = {}
        for _, model in models:
            for _, tensor in _registered(model):
                if _is_plain(tensor):
                    self._windows.setdefault(tensor.device, []).extend(_windows(tensor.detach()))
        # A stream of its own: the look waits for no step that is under way.
        self._streams = {
            device: torch.cuda.Stream(device) for device in self._windows if device.type == "cuda"
        }
        self._before = self._look()

    def has_changed(self) -> bool:
        """Whether a window differs from what it was. Some 0.2 ms; a GPU is asked and awaited."""
        return self._look() != self._before

    def _look(self) -> list[bytes]:
        seen = []
        for device, windows in self._windows.items():
            stream = self._streams.get(device)
            if stream is None:
                seen.append(bytes(bytes_of(torch.cat(windows))))
                continue
            with torch.cuda.stream(stream):
                seen.append(bytes(bytes_of(torch.cat(windows).cpu())))
        return seen


def _is_plain(tensor: torch.Tensor) -> bool:
    is_wrapper = hasattr(tensor, "__tensor_flatten__")
    return not is_wrapper and tensor.layout is torch.strided and tensor.is_contiguous()


def _windows(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Views of the first and the middle bytes; none of a small tensor."""
    flat = tensor.reshape(-1).view(torch.uint8)
    if flat.numel() < _WINDOW_BYTES:
        return []
    middle = flat.numel() // 2 // _WINDOW_BYTES * _WINDOW_BYTES
    return [flat[offset : offset + _WINDOW_BYTES] for offset in sorted({0, middle})]
