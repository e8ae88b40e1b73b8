"""Print what kvshelf changes in vLLM's classes and the environment until a connector is made.

Run by test_patches.py in a process of its own: patches of a test session would be seen as changes.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from types import FunctionType

import vllm.distributed.kv_transfer.kv_connector.factory
import vllm.distributed.kv_transfer.kv_connector.v1.multi_connector
import vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector
import vllm.lora.worker_manager
import vllm.v1.core.sched.scheduler
import vllm.v1.engine.core
import vllm.v1.kv_offload.tiering.factory
import vllm.v1.worker.gpu_worker  # noqa: F401 - all of which kvshelf changes or asks

# Made when a class is first asked for them.
LAZY = {"__annotations__", "__doc__", "__abstractmethods__", "__weakref__"}


def snapshot() -> dict[str, object]:
    """Every function and every class attribute of what is loaded of vLLM."""
    seen: dict[str, object] = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] != "vllm" or module is None:
            continue
        for name, value in vars(module).items():
            if isinstance(value, FunctionType):
                seen[f"{module_name}.{name}"] = value
            if isinstance(value, type) and value.__module__ == module_name:
                members = {
                    k: v for k, v in vars(value).items() if k not in LAZY and k[:4] != "_abc"
                }
                seen.update({f"{module_name}.{name}.{k}": v for k, v in members.items()})
    return seen


def main() -> None:
    before, environment = snapshot(), dict(os.environ)
    import kvshelf.vllm
    from kvshelf.vllm.plugin import register

    for each in pkgutil.walk_packages(kvshelf.vllm.__path__, "kvshelf.vllm."):
        importlib.import_module(each.name)
    register()
    after = snapshot()
    changed = {name for name in before if after.get(name) is not before[name]}
    changed |= {f"os.environ[{name}]" for name, _ in environment.items() ^ os.environ.items()}
    sys.stdout.write("\n".join(["changed:", *sorted(changed)]))


main()
