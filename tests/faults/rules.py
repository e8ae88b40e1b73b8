"""Which system calls of a cell's job fail, as rules of FaultyCalls."""

from __future__ import annotations

from tests.harness.faulty_calls import Rule

from .matrix import STORES, Cell
from .site import IDENTITY

VICTIM = 2  # which of many chunks meets the fault
# Done to the file that a name leads to, not to a call.
ON_DISK = ("swapped", "stale namespace")
_ACTIONS = {"short": "short", "bit flip": "flip", "torn": "torn", "hang": "hang"}


def rule_of(cell: Cell, turn: int, action: str, error: str) -> Rule:
    """The rule that makes this call of the victim fail, from the ``turn``-th on."""
    one = cell.chunks == "one"
    victim = 0 if one else VICTIM
    temp = f"*-{victim}.tmp"
    paths = {
        "folder": f"*/r0/{victim:03x}",
        "temp folder": f"*/{IDENTITY.folder}/tmp",
        "temp file": temp,
        "failed temp file": temp,
        "linked temp file": temp,
    }
    chunk = f"*/r0/{victim:03x}/*.kv"
    path = paths.get(cell.target, chunk)
    if (cell.operation, cell.target) == ("open", "temp file") and (one or cell.times == "always"):
        path = "*.tmp"  # the next attempt has another name
    offsets = (0, 1 << 62)
    if cell.operation == "write":
        path = temp
    if cell.operation in ("read", "write") and cell.job != "probe":  # which reads all alike
        offsets = (0, 4096) if cell.target == "header" else (4096, 1 << 62)
    skip = turn + (1 if cell.target == "chunk again" else 0)
    count = 1 if cell.times == "once" else 0
    role = ""
    if cell.job in STORES:
        role = "meta" if cell.target == "chunk ahead" else "io"
    return Rule(cell.operation, action, error, path, skip, count, role=role, offsets=offsets)


def rules_of(cell: Cell, turn: int) -> list[Rule]:
    """The fault, then what the cell sets up."""
    rules: list[Rule] = []
    if cell.fault not in ON_DISK:
        action, error = _ACTIONS.get(cell.fault, "error"), cell.fault
        if cell.fault in _ACTIONS:
            error = "EIO"
        if cell.fault == "done, but EIO":
            action, error = "error after", "EIO"
        if cell.operation == "close" and action == "error":
            action = "error after"  # Linux frees the number whatever close() says
        rules.append(rule_of(cell, turn, action, error))
    if cell.condition == "write error":
        rules.append(Rule("write", "error", "EIO", rules[0].path))
    if cell.condition in ("no renameat2", "no links"):
        rules.append(Rule("rename", "error", "EINVAL"))
    if cell.condition == "no links":
        rules.append(Rule("link", "error", "EPERM"))
    return rules
